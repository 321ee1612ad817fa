"""Image folders: which files are of which split and class, and what pixels they hold."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from .errors import UserError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Progress = Callable[[int, int, str], None]
"""Told how many of how many images are done, and what is being done to them."""

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
LAYOUT = "expected FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val) with png, jpg, webp or bmp images"
IMAGES_PER_TASK = 64


class Splits(NamedTuple):
    """A data set as its source gives it."""

    class_names: Sequence[str]
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def read_image_folder(folder: Path, size: int | None = None, progress: Progress | None = None) -> Splits:
    """The images of FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val, where there is no test).

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
    return Splits(class_names, images[:train_count], train_labels, images[train_count:], test_labels)


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
            return resized(image.convert("RGB"), size)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UserError(f"cannot read image {path}: {error}; repair it or take it away") from error


def resized(image: Image.Image, size: int | None) -> Images:
    """Pixels of an image, resized with antialiasing to size x size unless `size` is None."""
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)
