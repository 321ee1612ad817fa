"""CIFAR-10 as image sheets, in parts: a way to bring real images to a machine that accepts only so much at a time.

A sheet is an image file with a column of square images of one class, named CLASS-NUMBER, in a folder `train` or `test`.
Parts are folders of sheets; they are merged here, and packed once all of CIFAR-10 is there.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.folder_layout import Labels
from speedyresnet.engine.image_files import Images
from speedyresnet.engine.pack import Pack, make_pack

CIFAR10_SHA256 = "352d3fcc579817b5a983c78c3949a6ccbb63a257480cd4723d0cbb34424b3188"
"""Checksum of the pack of CIFAR-10, whatever its source."""
CIFAR10_IMAGES = {"train": 50_000, "test": 10_000}


def add_sheets(part: Path, folder: Path) -> None:
    """Copy the sheets of `part` into `folder`.

    Raises:
        UserError: `part` has none.
    """
    found = [(split, path) for split in CIFAR10_IMAGES for path in sorted((part / split).glob("*-*.*"))]
    if not found:
        raise UserError(f"--images {part}: no sheets there; give a folder with train/CLASS-NUMBER.webp, or test/")
    for split, path in found:
        (folder / split).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / split / path.name)


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError as error:
        raise UserError(f"{path} is no image sheet ({error}); copy it again") from None


def count_images(folder: Path) -> dict[str, int]:
    """Return the number of images of each split in the sheets of `folder`, from the sizes of the sheets alone."""
    counts = dict.fromkeys(CIFAR10_IMAGES, 0)
    for split in counts:
        for path in (folder / split).glob("*-*.*"):
            with _opened(path) as sheet:
                counts[split] += sheet.height // sheet.width
    return counts


def _pixels(sheet: Image.Image, path: Path) -> Images:
    """Return uint8 [images * side, side, 3] of an opened sheet; raise UserError if it is cut off or not of squares."""
    try:
        pixels = np.asarray(sheet.convert("RGB"))
    except OSError as error:
        raise UserError(f"{path} is no whole image sheet ({error}); copy it again") from None
    if pixels.shape[0] % pixels.shape[1]:
        raise UserError(f"{path} is {pixels.shape[1]} x {pixels.shape[0]} pixels, no column of squares; copy it again")
    return pixels


def _split(sheets: Sequence[Path], class_names: Sequence[str]) -> tuple[Images, Labels]:
    """Return the images uint8 [N, H, W, C] and labels [N] of sheets."""
    images, labels = [], []
    for path in sheets:
        with _opened(path) as sheet:
            pixels = _pixels(sheet, path)
        images.append(pixels.reshape(-1, pixels.shape[1], pixels.shape[1], 3))
        labels.append(np.full(len(images[-1]), class_names.index(path.stem.rpartition("-")[0])))
    return np.concatenate(images), np.concatenate(labels)


def pack_sheets(folder: Path) -> Pack:
    """Return the sheets in `folder` as the pack `cifar10`.

    Raises:
        UserError: they are not CIFAR-10.
    """
    sheets = [sorted((folder / split).glob("*-*.*")) for split in CIFAR10_IMAGES]
    names = sorted({path.stem.rpartition("-")[0] for paths in sheets for path in paths})
    (train_images, train_labels), (test_images, test_labels) = (_split(paths, names) for paths in sheets)
    pack = make_pack("cifar10", names, train_images, train_labels, test_images, test_labels)
    check_cifar10(pack, folder)
    return pack


def check_cifar10(pack: Pack, path: Path) -> None:
    """Raise UserError if a pack, which comes from `path`, is not CIFAR-10."""
    if pack.sha256 != CIFAR10_SHA256:
        raise UserError(f"{path} is not CIFAR-10 (checksum {pack.sha256}); remove it, then give its images again")
