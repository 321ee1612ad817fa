"""Data packs: where training and test images come from, and the one file format they are kept in.

A pack holds the uint8 images and labels of a train and a test split. The images of a split stand in the order
of their SHA-256, so one data set gives one pack and one checksum, whatever source and order it came from.
"""

import contextlib
import difflib
import hashlib
import http.client
import json
import math
import os
import queue
import re
import socket
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open

from .errors import UserError
from .files import write_atomically

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]
"""The four arrays of a pack under the names of DTYPES."""
Progress = Callable[[int, int, str], None]
"""Told how many of how many images are done, and what is being done to them."""

FORMAT = "speedyresnet.pack/1"
DTYPES = {
    "train_images": torch.uint8,
    "train_labels": torch.int64,
    "test_images": torch.uint8,
    "test_labels": torch.int64,
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
LAYOUT = "expected FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val) with png, jpg, webp or bmp images"
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
DEFAULT_SIZE = 32
PROBE_SECONDS = 8.0
STALL_SECONDS = 10.0
IMAGES_PER_TASK = 64
ROWS_PER_SUM = 128


class DownloadError(UserError):
    """A data set could not be downloaded. The message says what to do without a network."""


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
) -> Pack:
    """Put arrays from any source into canonical order and add checksum, mean and std.

    Images are uint8 [N, H, W, C], labels integers [N]. Raises UserError when they do not fit together.
    """
    arrays: Arrays = {
        "train_images": np.asarray(train_images),
        "train_labels": np.asarray(train_labels, dtype=np.int64),
        "test_images": np.asarray(test_images),
        "test_labels": np.asarray(test_labels, dtype=np.int64),
    }
    if fault := _find_fault(arrays, class_names):
        raise UserError(f"data set {name}: {fault}; give uint8 images [N, H, W, C] and one label per image")
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        order = _canonical_order(images, labels)
        # A view with other strides, as torchvision's is, would keep them through the indexing.
        arrays[f"{split}_images"] = np.ascontiguousarray(images[order])
        arrays[f"{split}_labels"] = labels[order]
    return _assemble(name, class_names, arrays)


def _find_fault(arrays: Arrays, class_names: Sequence[str]) -> str | None:
    """In words, what keeps four arrays from being a data set; None when they are one."""
    if len(set(class_names)) != len(class_names) or not class_names:
        return "the class names are not distinct"
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


def _assemble(name: str, class_names: Sequence[str], arrays: Arrays) -> Pack:
    """A pack of arrays that are already in canonical order."""
    mean, std = _mean_and_std(arrays["train_images"])
    return Pack(
        **{key: torch.from_numpy(array) for key, array in arrays.items()},
        name=name,
        class_names=tuple(class_names),
        sha256=_checksum(class_names, arrays),
        mean=mean,
        std=std,
    )


def _checksum(class_names: Sequence[str], arrays: Arrays) -> str:
    shapes = {key: arrays[key].shape for key in DTYPES}
    digest = hashlib.sha256(json.dumps([list(class_names), shapes]).encode())
    for key in DTYPES:
        digest.update(_little_endian(arrays[key]).data)
    return digest.hexdigest()


def _little_endian(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
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


# --- Pack files


def save_pack(pack: Pack, path: Path) -> None:
    """Write a pack as one safetensors file, atomically; the same pack gives the same bytes.

    Raises UserError where the file cannot be written.
    """
    write_atomically(path, partial(_write_safetensors, pack))


def _write_safetensors(pack: Pack, path: Path) -> None:
    # Not safetensors' own writer, which puts metadata in another order each time.
    header: dict[str, Any] = {"__metadata__": _metadata(pack)}
    # The labels come first, because images can end at an odd byte.
    keys = sorted(DTYPES, key=lambda key: key.endswith("images"))
    end = 0
    for key in keys:
        tensor = getattr(pack, key)
        start, end = end, end + tensor.nbytes
        dtype = "U8" if tensor.dtype == torch.uint8 else "I64"
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in keys:
            file.write(_little_endian(getattr(pack, key).numpy()).data)


def _metadata(pack: Pack) -> dict[str, str]:
    return {
        "format": FORMAT,
        "name": pack.name,
        "class_names": json.dumps(pack.class_names),
        "sha256": pack.sha256,
        "mean": json.dumps(pack.mean),
        "std": json.dumps(pack.std),
    }


def read_pack(path: Path) -> Pack:
    """Read a pack file and verify all of it: 60,000 CIFAR images take about half a second.

    Raises UserError when the file is missing, damaged or not a pack.
    """
    if not path.is_file():
        raise UserError(f"no data pack at {path}; make one with `speedyresnet data pack`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise _refusal(path, f"is not a whole data pack ({error})") from error
    if metadata.get("format") != FORMAT:
        raise _refusal(path, f"is not a data pack of format {FORMAT}")
    return _verified(path, metadata, tensors)


def _verified(path: Path, metadata: dict[str, str], tensors: dict[str, torch.Tensor]) -> Pack:
    """The pack of a file's tensors, with everything that can be derived derived anew and compared."""
    if {key: tensor.dtype for key, tensor in tensors.items()} != DTYPES:
        found = {key: str(tensor.dtype) for key, tensor in tensors.items()}
        raise _refusal(path, f"has the wrong tensors ({found})")
    try:
        class_names, mean, std = (json.loads(metadata[key]) for key in ("class_names", "mean", "std"))
        name, sha256 = metadata["name"], metadata["sha256"]
    except (KeyError, ValueError) as error:
        raise _refusal(path, f"has unreadable metadata ({error!r})") from error
    if not isinstance(class_names, list) or not all(isinstance(entry, str) for entry in class_names):
        raise _refusal(path, "has unreadable metadata (class_names is not a list of names)")
    # Cloned, because the file's tensors may be a view of the file, which somebody could overwrite in place.
    arrays = {key: tensors[key].clone().numpy() for key in DTYPES}
    if fault := _find_fault(arrays, class_names):
        raise _refusal(path, f"is damaged: {fault}")
    pack = _assemble(name, class_names, arrays)
    if (pack.sha256, list(pack.mean), list(pack.std)) != (sha256, mean, std):
        raise _refusal(path, "is damaged: its content does not match its checksum, mean and std")
    return pack


def _refusal(path: Path, fault: str) -> UserError:
    return UserError(f"{path} {fault}; pack the data again with `speedyresnet data pack`")


def cache_folder() -> Path:
    """Where downloads and named packs are kept: $SPEEDYRESNET_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("SPEEDYRESNET_CACHE"):
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "speedyresnet"


def pack_path(name: str) -> Path:
    """File of the cached pack called `name`. Raises UserError for a name that is not [a-z0-9._-]+."""
    if not re.fullmatch(r"[a-z0-9._-]+", name):
        raise UserError(f"{name!r} is no pack name; use lower-case letters, digits, '.', '_' and '-'")
    return cache_folder() / "packs" / f"{name}.safetensors"


# --- Image folders


def read_image_folder(folder: Path, *, name: str, size: int | None = None, progress: Progress | None = None) -> Pack:
    """Pack the images of FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val, where there is no test).

    Classes are numbered in alphabetical order. Images become RGB, upright as their EXIF tag says, and with
    `size` are resized to size x size pixels (aspect ratio not kept). Raises UserError for any other layout,
    for an image that cannot be read and, without `size`, for images of several sizes.
    """
    try:
        class_names, splits = _list_splits(folder)
    except OSError as error:
        raise UserError(f"cannot list {folder} ({error}); give a folder that you may read") from error
    files = [path for paths, _ in splits for path in paths]
    images = _decode_all(files, size, progress)
    (train_files, train_labels), (_, test_labels) = splits
    train_count = len(train_files)
    return make_pack(name, class_names, images[:train_count], train_labels, images[train_count:], test_labels)


def _list_splits(folder: Path) -> tuple[list[str], list[tuple[list[Path], Labels]]]:
    """Class names, then image files and labels of the train and of the test split."""
    train, test = folder / "train", folder / "test"
    if not test.is_dir():
        test = folder / "val"
    for split in (train, test):
        if not split.is_dir():
            raise UserError(f"{folder} has no folder {split.name}; {LAYOUT}")
    class_names = _list_classes(train)
    for name in sorted(set(class_names) ^ set(_list_classes(test))):
        absent = test if name in class_names else train
        raise UserError(f"class {name} is missing in {absent}; both splits need the same classes")
    return class_names, [_list_images(split, class_names) for split in (train, test)]


def _list_classes(split: Path) -> list[str]:
    names = sorted(path.name for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{split} has no class folders; {LAYOUT}")
    return names


def _list_images(split: Path, class_names: Sequence[str]) -> tuple[list[Path], Labels]:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = sorted(path for path in (split / name).iterdir() if _is_image(path))
        if not found:
            raise UserError(f"{split / name} has no images; {LAYOUT}")
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, dtype=np.int64)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _decode_all(files: Sequence[Path], size: int | None, progress: Progress | None) -> Images:
    """All images as one array [N, H, W, 3], decoded by a few threads (Pillow releases Python's lock)."""
    images = np.empty((len(files), *_decode(files[0], size).shape), dtype=np.uint8)
    starts = range(0, len(files), IMAGES_PER_TASK)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        # map returns in order, so of several bad files the first is reported; leaving it cancels the rest.
        for done in pool.map(partial(_decode_some, files, images, size), starts):
            if progress is not None:
                progress(done, len(files), "reading images")
    return images


def _decode_some(files: Sequence[Path], images: Images, size: int | None, start: int) -> int:
    """Decode one task's files into their places in `images`; returns the index after the last."""
    end = min(start + IMAGES_PER_TASK, len(files))
    for index in range(start, end):
        pixels = _decode(files[index], size)
        if pixels.shape != images.shape[1:]:
            (height, width), (first_height, first_width) = pixels.shape[:2], images.shape[1:3]
            raise UserError(
                f"{files[index]} is {width}x{height} pixels, but {files[0]} is {first_width}x{first_height}; "
                "give --size to resize all images"
            )
        images[index] = pixels
    return end


def _decode(path: Path, size: int | None) -> Images:
    """One file as RGB, [H, W, 3]."""
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _resize(image.convert("RGB"), size)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UserError(f"cannot read image {path}: {error}; repair it or take it away") from error


def _resize(image: Image.Image, size: int | None) -> Images:
    """Pixels of an image, resized with antialiasing to size x size unless `size` is None."""
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


# --- CIFAR-10


def pack_from_torchvision_cifar10(
    progress: Progress | None = None, *, name: str = "cifar10", size: int | None = None
) -> Pack:
    """Download CIFAR-10 into the cache folder, unless it is there, and pack it.

    Raises DownloadError: within PROBE_SECONDS where there is no network, and when nothing has come in for
    STALL_SECONDS.
    """
    arrays: list[npt.NDArray[Any]] = []
    for dataset in _download_cifar10():
        images = dataset.data if size in (None, DEFAULT_SIZE) else _resize_all(dataset.data, size, progress)
        arrays += [images, np.array(dataset.targets, dtype=np.int64)]
    train_images, train_labels, test_images, test_labels = arrays
    return make_pack(name, CIFAR10_CLASSES, train_images, train_labels, test_images, test_labels)


def _download_cifar10() -> list[Any]:
    """The train and the test set as torchvision gives them."""
    # Imported late: it takes a second that other sources need not spend.
    from torchvision.datasets import CIFAR10

    folder = cache_folder() / "downloads"
    host = urllib.parse.urlsplit(CIFAR10.url).hostname
    if not _is_downloaded(folder) and not is_reachable(CIFAR10.url, PROBE_SECONDS):
        raise _download_error(f"{host} does not answer")
    try:
        # torchvision's own messages must not get into what the user pipes on.
        with _stall_limit(STALL_SECONDS), contextlib.redirect_stdout(sys.stderr):
            return [CIFAR10(root=folder, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise _download_error(str(error)) from error


def _download_error(fault: str) -> DownloadError:
    one_line = " ".join(fault.split())
    remedy = "pack an image folder instead: `speedyresnet data pack FOLDER --name cifar10`"
    return DownloadError(f"cannot download CIFAR-10 ({one_line}); {remedy}")


def _is_downloaded(folder: Path) -> bool:
    """Whether a whole CIFAR-10, packed or unpacked, lies in the download folder."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    if check_integrity(folder / CIFAR10.filename, CIFAR10.tgz_md5):
        return True
    files = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    return all(check_integrity(folder / CIFAR10.base_folder / file, md5) for file, md5 in files)


def is_reachable(url: str, seconds: float) -> bool:
    """Whether the host of `url` answers a request, with whatever status, within `seconds`."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    # A thread, because looking up a name has no time limit; a daemon, so that it cannot hold up the exit.
    threading.Thread(target=lambda: answers.put(_answers(url, seconds)), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return False


def _answers(url: str, seconds: float) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    return True


@contextlib.contextmanager
def _stall_limit(seconds: float) -> Iterator[None]:
    """Let every connection opened inside fail once nothing has come in for `seconds`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _resize_all(images: Images, size: int | None, progress: Progress | None) -> Images:
    resized = []
    for done, image in enumerate(images, start=1):
        resized.append(_resize(Image.fromarray(image), size))
        if progress is not None and (done % 1000 == 0 or done == len(images)):
            progress(done, len(images), "resizing images")
    return np.stack(resized)


# --- What the command line takes


def pack_source(
    source: str,
    *,
    name: str | None = None,
    size: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pack:
    """Pack an image folder, CIFAR-10 (downloaded by torchvision) or "synthetic" (drawn from `seed`).

    A folder that exists wins over the word cifar10. The name defaults to the source's, except that CIFAR-10 at
    another size than 32 is called cifar10-SIZE; synthetic data is always called synthetic. Raises UserError.
    """
    if size is not None and size < 1:
        raise UserError(f"--size {size} is no image size; give at least 1 pixel")
    if name is not None:
        pack_path(name)  # refuses a bad name before the images are read
    if source == "synthetic":
        return _drawn(size, seed, progress)
    folder = Path(source).expanduser()
    if not folder.is_dir() and source.lower() != "cifar10":
        raise UserError(f"no data source {source}; give cifar10, synthetic or a folder: {LAYOUT}")
    name = name or _default_name(source, size)
    if name == "synthetic":
        raise UserError("the name synthetic is kept for drawn images; choose another --name")
    if folder.is_dir():
        return read_image_folder(folder, name=name, size=size, progress=progress)
    return pack_from_torchvision_cifar10(progress, name=name, size=size)


def _default_name(source: str, size: int | None) -> str:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _sanitised(folder.resolve().name)
    return "cifar10" if size in (None, DEFAULT_SIZE) else f"cifar10-{size}"


def _sanitised(text: str) -> str:
    """The nearest valid pack name."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-") or "images"


def _drawn(size: int | None, seed: int, progress: Progress | None) -> Pack:
    from .synthetic import make_synthetic  # it imports this module for Pack

    return make_synthetic(size=size or DEFAULT_SIZE, seed=seed, progress=progress)


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
    """What `--data` names: "synthetic", a cached pack, a pack file, an image folder or CIFAR-10, in this order.

    CIFAR-10 is downloaded and cached where nothing else has that name. Raises UserError, and DownloadError where
    CIFAR-10 cannot be had.

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
    name, path = str(data), Path(data).expanduser()
    if name == "synthetic":
        return _drawn(None, 0, progress)
    if name in _cached_names():
        return read_pack(pack_path(name))
    if path.is_dir():
        return pack_source(str(path.absolute()), progress=progress)
    if path.is_file():
        return read_pack(path)
    if name.lower() == "cifar10":
        return _cached_cifar10(progress)
    raise _unknown_data(name)


def _unknown_data(name: str) -> UserError:
    near = difflib.get_close_matches(name, {"cifar10", "synthetic", *_cached_names()}, n=3, cutoff=0.5)
    hint = f" (nearest: {', '.join(near)})" if near else ""
    remedy = f"make one with `speedyresnet data pack FOLDER --name {_sanitised(name)}`"
    return UserError(f"no pack file, image folder or cached pack {name}{hint}; {remedy}")


def _cached_cifar10(progress: Progress | None) -> Pack:
    path = pack_path("cifar10")
    if path.exists():
        return read_pack(path)
    pack = pack_from_torchvision_cifar10(progress)
    save_pack(pack, path)
    return pack


def _cached_names() -> list[str]:
    return sorted(path.stem for path in (cache_folder() / "packs").glob("*.safetensors"))


def default_data(progress: Progress | None, warn: Callable[[str], None]) -> Pack:
    """CIFAR-10 from the cache or the network; where there is neither, the synthetic data set and one warning.

    Without a network the warning comes within 20 seconds.
    """
    try:
        return _cached_cifar10(progress)
    except DownloadError as error:
        warn(f"{error}; until then the synthetic data set is used")
    return load_data("synthetic", progress=progress)
