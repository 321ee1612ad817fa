"""Data sets: uint8 images and labels of a train and a test split, in an order determined by their content.

The images of a split are sorted by SHA-256, so one data set gives one pack and one checksum, whatever its source and
order.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .errors import UserError
from .folder_layout import Labels
from .image_files import Images

Arrays = dict[str, npt.NDArray[Any]]
"""The four arrays of a pack, with the keys of DTYPES."""

DTYPES = {
    "train_images": torch.uint8,
    "train_labels": torch.int64,
    "test_images": torch.uint8,
    "test_labels": torch.int64,
}
ROWS_PER_SUM = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """Properties of a data set that determine how a recipe runs on it."""

    image_size: tuple[int, int]
    """Height and width in pixels."""
    channels: int
    """Channels of an image: 3 for colour."""
    classes: int
    train_images: int
    test_images: int

    @property
    def train_shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, C] of the training images."""
        return self.train_images, *self.image_size, self.channels


# No generated equality: comparing tensors field by field would raise. Compare sha256 instead.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pack:
    """Data set in host memory; see `load_data` for an example.

    Attributes:
        train_images, test_images: torch.uint8 [N, H, W, C].
        train_labels, test_labels: torch.int64 [N], indices into class_names.
        name: name of the data set in output and records.
        class_names: names in the order of the labels.
        sha256: hexadecimal checksum of images, labels and class names, but not of the name.
        mean, std: per channel, of the train images scaled to [0, 1]; std is the population standard deviation, and 0
            for a constant channel.
        skipped: numbers of skipped files of an image folder, by reason; not stored in pack files.

    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    name: str
    class_names: tuple[str, ...]
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train_images.shape[1], self.train_images.shape[2]

    @property
    def channels(self) -> int:
        """Channels of an image: 3 for colour."""
        return self.train_images.shape[3]

    @property
    def facts(self) -> DataFacts:
        """Facts that a run is set up from."""
        return DataFacts(
            image_size=self.image_size,
            channels=self.channels,
            classes=self.num_classes,
            train_images=len(self.train_labels),
            test_images=len(self.test_labels),
        )


def make_pack(
    name: str,
    class_names: Sequence[str],
    train_images: Images,
    train_labels: Labels,
    test_images: Images,
    test_labels: Labels,
    skipped: Mapping[str, int] = MappingProxyType({}),
) -> Pack:
    """Put arrays from any source into canonical order and add checksum, mean and std.

    Images are uint8 [N, H, W, C], labels integers [N]; `skipped` is that of the pack.

    Raises UserError if they do not fit together.
    """
    arrays: Arrays = {
        "train_images": np.asarray(train_images),
        "train_labels": np.asarray(train_labels, dtype=np.int64),
        "test_images": np.asarray(test_images),
        "test_labels": np.asarray(test_labels, dtype=np.int64),
    }
    if fault := find_fault(arrays, class_names):
        raise UserError(f"data set {name}: {fault}; give uint8 images [N, H, W, C] and one label per image")
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        order = _canonical_order(images, labels)
        # Indexing would preserve the strides of a view such as torchvision's.
        arrays[f"{split}_images"] = np.ascontiguousarray(images[order])
        arrays[f"{split}_labels"] = labels[order]
    return assemble(name, class_names, arrays, skipped)


def find_fault(arrays: Arrays, class_names: Sequence[str]) -> str | None:
    """Describe why four arrays are not a data set; None if they are."""
    if len(set(class_names)) != len(class_names) or not class_names:
        return "the class names are not distinct"
    if unprintable := next((name for name in class_names if not name.isprintable() or not name), None):
        return f"the class name {unprintable!r} is not printable"
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
            return f"the {split} images are {images.dtype} {list(images.shape)}"
        if labels.shape != images.shape[:1]:
            return f"there are {len(images)} {split} images and labels of shape {list(labels.shape)}"
        if labels.min() < 0 or labels.max() >= len(class_names):
            return f"the {split} labels are not all in 0..{len(class_names) - 1}"
    train_shape, test_shape = arrays["train_images"].shape[1:], arrays["test_images"].shape[1:]
    return None if train_shape == test_shape else f"train images are {train_shape}, test images {test_shape}"


def _canonical_order(images: Images, labels: Labels) -> list[int]:
    """Return indices that sort images by the SHA-256 of their pixels and label (as little-endian int64)."""
    suffixes = labels.astype("<i8")
    keys = [
        hashlib.sha256(image.tobytes() + suffix.tobytes()).digest()
        for image, suffix in zip(images, suffixes, strict=True)
    ]
    return sorted(range(len(keys)), key=keys.__getitem__)


def assemble(
    name: str, class_names: Sequence[str], arrays: Arrays, skipped: Mapping[str, int] = MappingProxyType({})
) -> Pack:
    """Make a pack of valid arrays that are already in canonical order."""
    mean, std = _mean_and_std(arrays["train_images"])
    return Pack(
        **{key: torch.from_numpy(array) for key, array in arrays.items()},
        name=name,
        class_names=tuple(class_names),
        sha256=_checksum(class_names, arrays),
        mean=mean,
        std=std,
        skipped=dict(skipped),
    )


def _checksum(class_names: Sequence[str], arrays: Arrays) -> str:
    shapes = {key: arrays[key].shape for key in DTYPES}
    digest = hashlib.sha256(json.dumps([list(class_names), shapes]).encode())
    for key in DTYPES:
        digest.update(little_endian(arrays[key]).data)
    return digest.hexdigest()


def little_endian(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `array`, contiguous and in the byte order of pack files and checksums."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _mean_and_std(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population std per channel of images / 255, from exact integer sums."""
    rows, channels = images.reshape(len(images), -1), images.shape[-1]
    sums, squares = np.zeros((2, rows.shape[1]), dtype=np.uint64)
    for start in range(0, len(rows), ROWS_PER_SUM):
        block = rows[start : start + ROWS_PER_SUM].astype(np.uint32)
        sums += block.sum(axis=0, dtype=np.uint32)
        squares += (block * block).sum(axis=0, dtype=np.uint32)
    count = images.size // channels
    totals = [int(total) for total in sums.reshape(-1, channels).sum(axis=0)]
    square_totals = [int(total) for total in squares.reshape(-1, channels).sum(axis=0)]
    mean = tuple(total / (255 * count) for total in totals)
    # Python integers do not overflow and round once in division, so the last digit is the same on every machine.
    variances = [(count * s - t * t) / (255 * count) ** 2 for t, s in zip(totals, square_totals, strict=True)]
    return mean, tuple(math.sqrt(variance) for variance in variances)
