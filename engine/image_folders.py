"""Image folders: all their pixels, as train and test split or for evaluation.

`folder_layout.py` assigns files to splits and classes, `image_files.py` decodes single files.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import UserError
from .folder_layout import LAYOUT, Labels, Listing, list_classes, note_unused_splits, split_folders
from .image_files import Images, Size, decode, is_grey

Progress = Callable[[int, int, str], None]
"""Callback that receives the number of finished images, their total, and the activity."""
IMAGES_PER_TASK = 64


class Splits(NamedTuple):
    """Data set as read from its source."""

    class_names: Sequence[str]
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    skipped: Mapping[str, int] = MappingProxyType({})
    """Numbers of skipped files by reason."""


def read_image_folder(
    folder: Path, size: int | None = None, holdout: float | None = None, progress: Progress | None = None
) -> Splits:
    """Read the images of FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val, if there is no test).

    With `holdout`, read the images of FOLDER/train/CLASS/*, or FOLDER/CLASS/*, and move that share to the test split,
    see `held_out_images`. As in torchvision's ImageFolder, classes are numbered in alphabetical order, and an image may
    lie at any depth in its class folder.

    Images have one channel if all files are greyscale, else they are RGB. They are decoded as in `read_image`; with
    `size` they are resized to size x size pixels.

    Raises UserError for any other layout, for an unreadable image and, without `size`, for images of several sizes.
    """
    listing = Listing(folder)
    try:
        class_names, splits = _list_splits(folder, listing, holdout)
    except OSError as error:
        raise UserError(f"cannot list {folder} ({error}); give a folder that you may read") from error
    files = [path for paths, _ in splits for path in paths]
    channels = 1 if all(map(is_grey, files)) else 3
    images, _ = decode_all(files, channels, None if size is None else (size, size), progress)
    labels = np.concatenate([labels for _, labels in splits])
    if holdout is None:
        count = len(splits[0][1])
        parts = images[:count], labels[:count], images[count:], labels[count:]
    else:
        is_test = held_out_images(images, labels, class_names, holdout)
        parts = images[~is_test], labels[~is_test], images[is_test], labels[is_test]
    return Splits(class_names, *parts, skipped=listing.skipped)


def held_out_images(images: Images, labels: Labels, class_names: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """Return which images [N, ...] form the test split, bool [N]: `share` of the distinct ones of each class.

    They are those whose pixels have the smallest SHA-256, so names and order of the files do not matter, and equal
    images are on the same side. Raises UserError if a class is left without images on one side.
    """
    keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
    chosen: set[bytes] = set()
    for label in range(len(class_names)):
        distinct = sorted({keys[index] for index in np.flatnonzero(labels == label)})
        chosen.update(distinct[: max(min(round(share * len(distinct)), len(distinct) - 1), 1)])
    is_test = np.array([key in chosen for key in keys])
    for side in (is_test, ~is_test):
        if len(absent := np.setdiff1d(labels, labels[side])):
            name = class_names[absent[0]]
            raise UserError(f"class {name} has too few different images to hold some out; give it more")
    return is_test


def _list_splits(
    folder: Path, listing: Listing, holdout: float | None
) -> tuple[list[str], list[tuple[list[Path], Labels]]]:
    """Return class names, then files and labels of the train and the test split, or of the folder to split."""
    splits = split_folders(folder, holdout)
    class_names = list_classes(splits[0])
    for split in splits[1:]:
        for name in sorted(set(class_names) ^ set(list_classes(split))):
            absent = split if name in class_names else splits[0]
            raise UserError(f"class {name} is missing in {absent}; both splits need the same classes")
    if len(class_names) == 1:
        raise UserError(f"{folder} has one class only, {class_names[0]}; {LAYOUT}")
    found = [listing.files_of(split, class_names) for split in splits]
    note_unused_splits(folder, splits[-1], class_names)
    return class_names, found


def decode_all(
    files: Sequence[Path], channels: int, size: Size | None, progress: Progress | None
) -> tuple[Images, set[Size]]:
    """Decode all images into one array [N, H, W, C]; return it and the set of sizes before resizing.

    Uses a few threads, because Pillow releases Python's lock.
    """
    images = np.empty((len(files), *decode(files[0], channels, size).pixels.shape), dtype=np.uint8)
    sizes: set[Size] = set()
    starts = range(0, len(files), IMAGES_PER_TASK)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        # map yields in order, so the first of several bad files is reported; leaving it cancels the rest.
        for done in pool.map(partial(_decode_some, files, images, sizes, channels, size), starts):
            if progress is not None:
                progress(done, len(files), "reading images")
    return images, sizes


def _decode_some(
    files: Sequence[Path], images: Images, sizes: set[Size], channels: int, size: Size | None, start: int
) -> int:
    """Decode one task's files into their places in `images`; return the index after the last."""
    end = min(start + IMAGES_PER_TASK, len(files))
    for index in range(start, end):
        pixels, stored_size = decode(files[index], channels, size)
        if pixels.shape != images.shape[1:]:
            (height, width), (first_height, first_width) = pixels.shape[:2], images.shape[1:3]
            raise UserError(
                f"{files[index]} is {width}x{height} pixels, but {files[0]} is {first_width}x{first_height}; "
                "resize all images with `speedyresnet data pack FOLDER --size 64`"
            )
        images[index] = pixels
        sizes.add(stored_size)
    return end
