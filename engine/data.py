"""Data packs: where training and test images come from. How they are kept is in `pack_file.py`.

A pack holds the uint8 images and labels of a train and a test split. The images of a split stand in the order
of their SHA-256, so one data set gives one pack and one checksum, whatever source and order it came from.
"""

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .downloads import DOWNLOADS, LOCK, DownloadError, download
from .errors import UserError, note
from .files import check_writable
from .folder_layout import LAYOUT, Labels
from .image_files import Images
from .image_folders import Progress, Splits, read_image_folder
from .nets import MAX_IMAGE_SIDE

Arrays = dict[str, npt.NDArray[Any]]
"""The four arrays of a pack under the names of DTYPES."""

DTYPES = {
    "train_images": torch.uint8,
    "train_labels": torch.int64,
    "test_images": torch.uint8,
    "test_labels": torch.int64,
}
ROWS_PER_SUM = 128
SYNTHETIC = "synthetic"


# Equality of two packs is equality of their sha256; comparing tensors field by field would raise.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pack:
    """A data set in host memory; `load_data` has an example.

    Attributes:
        train_images, test_images: torch.uint8 [N, H, W, C].
        train_labels, test_labels: torch.int64 [N], indices into class_names.
        name: what the data set is called in output and records.
        class_names: in the order of the labels.
        sha256: hexadecimal checksum of images, labels and class names; not of the name.
        mean, std: per channel, of the train images scaled to [0, 1]; std is the population's, and 0 where a
            channel is constant.
        skipped: how many files of an image folder were left out, by reason; a pack file does not keep it.

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
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train_images.shape[1], self.train_images.shape[2]

    @property
    def channels(self) -> int:
        """Channels of an image: 3 for colour."""
        return self.train_images.shape[3]


# --- Making a pack


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

    Raises UserError when they do not fit together.
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
        # A view with other strides, as torchvision's is, would keep them through the indexing.
        arrays[f"{split}_images"] = np.ascontiguousarray(images[order])
        arrays[f"{split}_labels"] = labels[order]
    return assemble(name, class_names, arrays, skipped)


def find_fault(arrays: Arrays, class_names: Sequence[str]) -> str | None:
    """In words, what keeps four arrays from being a data set; None when they are one."""
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
    """Indices that sort images by the SHA-256 of their pixels and label (as little-endian int64)."""
    suffixes = labels.astype("<i8")
    keys = [
        hashlib.sha256(image.tobytes() + suffix.tobytes()).digest()
        for image, suffix in zip(images, suffixes, strict=True)
    ]
    return sorted(range(len(keys)), key=keys.__getitem__)


def assemble(
    name: str, class_names: Sequence[str], arrays: Arrays, skipped: Mapping[str, int] = MappingProxyType({})
) -> Pack:
    """A pack of arrays that are already in canonical order and without fault."""
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
    """`array`, contiguous and with its bytes in the order of pack files and checksums."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _mean_and_std(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population std per channel of images / 255, from exact integer sums."""
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
    # Python integers do not overflow and divide with one rounding, so every machine gets the same last digit.
    variances = [(count * s - t * t) / (255 * count) ** 2 for t, s in zip(totals, square_totals, strict=True)]
    return mean, tuple(math.sqrt(variance) for variance in variances)


# --- Names


def cache_folder() -> Path:
    """Where downloads and named packs are kept: $SPEEDYRESNET_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("SPEEDYRESNET_CACHE"):
        return _expanded(chosen)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "speedyresnet"


def pack_path(name: str) -> Path:
    """File of the cached pack called `name`. Raises UserError for a name that is not [a-z0-9._-]+."""
    if not re.fullmatch(r"[a-z0-9._-]+", name):
        raise UserError(f"{name!r} is no pack name; use lower-case letters, digits, '.', '_' and '-'")
    return cache_folder() / "packs" / f"{name}.safetensors"


# --- What the command line takes


def pack_source(
    source: str,
    *,
    name: str | None = None,
    size: int | None = None,
    holdout: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pack:
    """Pack an image folder, a data set of DOWNLOADS or "synthetic" (drawn from `seed`).

    Args:
        source: a folder that exists wins over the name of a download.
        name: of the pack; none: see `pack_name`. Synthetic data is always called synthetic.
        size: side in pixels that images are resized to; none: as they are, those of DOWNLOADS as it says.
        holdout: share of each class that becomes the test split of a folder that has none.
        seed: of synthetic images, not negative.
        progress: told how it goes.

    Raises:
        UserError: anything wrong with what was given, before the images are read where possible.
    """
    if size is not None and not 1 <= size <= MAX_IMAGE_SIDE:
        raise UserError(f"--size {size} is no image size; give 1 to {MAX_IMAGE_SIDE} pixels")
    if holdout is not None and not 0 < holdout < 1:
        raise UserError(f"--holdout {holdout} is no share of the images; give a number between 0 and 1, such as 0.1")
    chosen, folder = pack_name(source, name, size), _expanded(source)
    if os.path.isdir(folder) and source != SYNTHETIC:
        _note_folder(source, folder)
        return make_pack(chosen, *read_image_folder(folder, size, holdout, progress))
    if holdout is not None:
        raise UserError(f"{source} has a test split; leave out --holdout")
    if source == SYNTHETIC:
        return _drawn(size, seed, progress)
    return make_pack(chosen, *_downloaded(source.lower(), size, progress))


def pack_name(source: str, name: str | None = None, size: int | None = None) -> str:
    """What a pack of `source` is called: `name`, else as the source; a download at an unusual size is NAME-SIZE.

    Raises UserError for an unknown source and for a name that will not do.
    """
    chosen = _default_name(source, size) if name is None else name
    pack_path(chosen)  # refuses what is no name
    if chosen == SYNTHETIC and source != SYNTHETIC:
        raise UserError(f"the name {SYNTHETIC} is kept for drawn images; choose another --name")
    return chosen


def _default_name(source: str, size: int | None) -> str:
    if source == SYNTHETIC:
        return source
    if os.path.isdir(_expanded(source)):
        return _sanitised(_expanded(source).resolve().name)
    name = source.lower()
    if name not in DOWNLOADS:
        raise UserError(f"no data source {source}; give {', '.join([*DOWNLOADS, SYNTHETIC])} or a folder: {LAYOUT}")
    return name if size in (None, DOWNLOADS[name].size) else f"{name}-{size}"


def _expanded(source: str | Path) -> Path:
    return Path(os.path.expanduser(source))  # pathlib's own fails for the home of nobody


def _sanitised(text: str) -> str:
    """The nearest valid pack name."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-") or "images"


def writable_pack_path(name: str) -> Path:
    """As `pack_path`. Raises UserError where no pack can be written there, before there is one."""
    return _writable(pack_path(name))


def _downloaded(name: str, size: int | None, progress: Progress | None) -> Splits:
    return download(name, _writable(cache_folder() / "downloads" / LOCK).parent, size, progress)


def _writable(path: Path) -> Path:
    """The path of a file in the cache. Raises UserError where it cannot be written."""
    if os.path.isdir(path):
        raise UserError(f"{path} in the cache is a folder where a file belongs; delete it")
    try:
        check_writable(path)
    except UserError as error:
        raise UserError(f"{error}; SPEEDYRESNET_CACHE=FOLDER sets another cache") from error
    return path


def _drawn(size: int | None, seed: int, progress: Progress | None) -> Pack:
    from .synthetic import make_synthetic  # it imports this module for Pack

    return make_synthetic(size=size or 32, seed=seed, progress=progress)


def held_out(pack: Pack, count: int) -> Pack:
    """A pack that tests on `count` of the training images of `pack` instead of its test images.

    They are the last ones in the pack's order, which is that of a hash: a random sample, the same from every source.
    Raises UserError where that leaves no training images.
    """
    left = len(pack.train_labels) - count
    if count < 1 or left < 1:
        raise UserError(f"--validation {count} must be between 1 and {len(pack.train_labels) - 1}")
    images, labels = pack.train_images.numpy(), pack.train_labels.numpy()
    name = f"{pack.name}-validation-{count}"
    return make_pack(name, pack.class_names, images[:left], labels[:left], images[left:], labels[left:])


def load_data(data: str | Path, *, progress: Progress | None = None) -> Pack:
    """What `--data` names: "synthetic", a cached pack, an image folder, a pack file or one of DOWNLOADS, in this order.

    What is downloaded is packed and cached. A warning says which one was taken where a cached pack or a download has
    the name of a folder, and which files of a folder were left out.

    Raises UserError, and DownloadError where it cannot be had.

    Examples:
        >>> from speedyresnet.engine import load_data
        >>> pack = load_data("synthetic")
        >>> pack.name, pack.num_classes, pack.image_size, pack.channels
        ('synthetic', 10, (32, 32), 3)
        >>> pack.train_images.shape, pack.train_images.dtype
        (torch.Size([20000, 32, 32, 3]), torch.uint8)
        >>> pack.train_labels.shape, pack.test_labels.dtype
        (torch.Size([20000]), torch.int64)
        >>> [round(value, 2) for value in pack.mean], len(pack.sha256)
        ([0.5, 0.5, 0.5], 64)
        >>> pack.class_names[:3]
        ('disc', 'ring', 'square')
        >>> load_data("no-such-data")
        Traceback (most recent call last):
        speedyresnet.engine.errors.UserError: no pack file, image folder or cached pack no-such-data...
    """
    from .pack_file import read_pack  # it imports this module for Pack

    name, path = str(data), _expanded(data)
    if name == SYNTHETIC:
        return _drawn(None, 0, progress)
    if name in _cached_names():
        _note_choice(name, path)
        return read_pack(pack_path(name))
    if folder := image_folder(data):
        pack = pack_source(str(folder.absolute()), progress=progress)
        note_skipped(folder, pack.skipped)
        return pack
    if os.path.exists(path):
        return read_pack(path)
    if name.lower() in DOWNLOADS:
        return _cached_download(name.lower(), progress)
    raise _unknown_data(name)


def image_folder(data: str | Path) -> Path | None:
    """The image folder that `load_data` takes for `data`; none where it takes something else."""
    path = _expanded(data)
    if str(data) == SYNTHETIC or str(data) in _cached_names() or not os.path.isdir(path):  # it takes any text
        return None
    _note_folder(str(data), path)
    return path


def _note_folder(name: str, path: Path) -> None:
    """Tell the user where a folder hides a download of the same name."""
    if name.lower() in DOWNLOADS:
        note(f"{name} is taken from the folder {path.absolute()}, not from a download; for that run in another folder")


def _note_choice(name: str, path: Path) -> None:
    """Tell the user where a cached pack hides a folder or file of the same name, which may be newer."""
    if os.path.exists(path):
        note(
            f"{name} is taken from the cached pack {pack_path(name)}, not from {path.absolute()}: "
            f"for that give ./{name}, or pack it again with `speedyresnet data pack ./{name}`"
        )


def skipped_told(skipped: Mapping[str, int]) -> str:
    """In words, how many files were left out for which reason."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))


def note_skipped(folder: Path, skipped: Mapping[str, int]) -> None:
    """Tell the user which files of an image folder were left out."""
    if skipped:
        note(f"left out of {folder}: {skipped_told(skipped)}")


def _unknown_data(name: str) -> UserError:
    near = difflib.get_close_matches(name, {*DOWNLOADS, SYNTHETIC, *_cached_names()}, n=3, cutoff=0.5)
    hint = f" (nearest: {', '.join(near)})" if near else ""
    remedy = f"make one with `speedyresnet data pack FOLDER --name {_sanitised(name)}`"
    return UserError(f"no pack file, image folder or cached pack {name}{hint}; {remedy}")


def _cached_download(name: str, progress: Progress | None) -> Pack:
    from .pack_file import read_pack, save_pack  # it imports this module for Pack

    path = pack_path(name)
    if path.exists():
        _note_choice(name, _expanded(name))
        return read_pack(path)
    _writable(path)
    pack = make_pack(name, *_downloaded(name, None, progress))
    save_pack(pack, path)
    return pack


def _cached_names() -> list[str]:
    return sorted(path.stem for path in (cache_folder() / "packs").glob("*.safetensors"))


def default_data(name: str, progress: Progress | None, warn: Callable[[str], None]) -> Pack:
    """What a recipe is for; where that can be had neither from the cache nor the network, synthetic and one warning.

    Without a network the warning comes within 20 seconds.
    """
    try:
        return _cached_download(name, progress) if name in DOWNLOADS else load_data(name, progress=progress)
    except DownloadError as error:
        warn(f"{error}; until then the synthetic data set is used")
    return load_data(SYNTHETIC, progress=progress)
