"""Image folders: which files are of which split and class, and what pixels they hold."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
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

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LAYOUT = (
    "expected FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val), or FOLDER/CLASS/* and --holdout 0.1, "
    "with png, jpg, webp or bmp images"
)
GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B"}
"""Pillow's names for greyscale."""
IMAGES_PER_TASK = 64


class Splits(NamedTuple):
    """A data set as its source gives it."""

    class_names: Sequence[str]
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels


def read_image_folder(
    folder: Path, size: int | None = None, holdout: float | None = None, progress: Progress | None = None
) -> Splits:
    """The images of FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val, where there is no test).

    With `holdout` the images of FOLDER/train/CLASS/*, or FOLDER/CLASS/*, of which that share makes the test split, see
    `held_out_images`. As in torchvision's ImageFolder classes are numbered in alphabetical order, and an image may lie
    at any depth in the folder of its class.

    Images have one channel if all files are greyscale, else they are RGB. They are upright as their EXIF tag says;
    what is transparent in them is laid on white; 16 bits are scaled to 8. With `size` they are resized to size x size
    pixels with antialiasing (aspect ratio not kept).

    Raises UserError for any other layout, for an image that cannot be read and, without `size`, for images of several
    sizes.
    """
    try:
        class_names, splits = _list_splits(folder, holdout)
    except OSError as error:
        raise UserError(f"cannot list {folder} ({error}); give a folder that you may read") from error
    images = _decode_all([path for paths, _ in splits for path in paths], size, progress)
    if len(class_names) == 1:
        raise UserError(f"{folder} has one class only, {class_names[0]}; {LAYOUT}")
    labels = np.concatenate([labels for _, labels in splits])
    if holdout is None:
        count = len(splits[0][1])
        return Splits(class_names, images[:count], labels[:count], images[count:], labels[count:])
    is_test = held_out_images(images, labels, class_names, holdout)
    return Splits(class_names, images[~is_test], labels[~is_test], images[is_test], labels[is_test])


def held_out_images(images: Images, labels: Labels, class_names: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """Which images [N, ...] make the test split, bool [N]: `share` of the distinct ones of each class.

    They are those whose pixels have the smallest SHA-256. So neither names nor order of the files matter, and images
    that are equal are on the same side. Raises UserError where that leaves a class without images on one side.
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


def _list_splits(folder: Path, holdout: float | None) -> tuple[list[str], list[tuple[list[Path], Labels]]]:
    """Class names, then image files and labels of the train and of the test split, or of what is to be split."""
    splits = _split_folders(folder, holdout)
    class_names = _list_classes(splits[0])
    for split in splits[1:]:
        for name in sorted(set(class_names) ^ set(_list_classes(split))):
            absent = split if name in class_names else splits[0]
            raise UserError(f"class {name} is missing in {absent}; both splits need the same classes")
    return class_names, [_list_images(split, class_names) for split in splits]


def _split_folders(folder: Path, holdout: float | None) -> list[Path]:
    """The folders of the train and of the test split; with `holdout` the one of what is to be split."""
    train = folder / "train"
    tests = [folder / name for name in ("test", "val") if (folder / name).is_dir()]
    if tests and not train.is_dir():
        raise UserError(f"{folder} has no folder train; {LAYOUT}")
    if tests and holdout is not None:
        raise UserError(f"{folder} has a test split, {tests[0]}; leave out --holdout")
    if tests:
        return [train, tests[0]]
    # A folder of images called train, without folders inside, is a class of vehicles.
    whole = train if train.is_dir() and any(path.is_dir() for path in train.iterdir()) else folder
    if holdout is None:
        _list_classes(whole)
        remedy = f"hold some images out with `speedyresnet data pack {folder} --holdout 0.1 --name NAME`"
        raise UserError(f"{folder} has no folder test or val; {remedy}")
    return [whole]


def _list_classes(split: Path) -> list[str]:
    names = sorted(path.name for path in split.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise UserError(f"{split} has no class folders; {LAYOUT}")
    return names


def _list_images(split: Path, class_names: Sequence[str]) -> tuple[list[Path], Labels]:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = sorted(_image_files(split / name))
        if not found:
            raise UserError(f"{split / name} has no images; {LAYOUT}")
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, dtype=np.int64)


def _image_files(folder: Path) -> Iterator[Path]:
    """The images at any depth below a folder; hidden files and folders left out, links followed."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link to a folder above itself
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                yield Path(parent, name)


def _decode_all(files: Sequence[Path], size: int | None, progress: Progress | None) -> Images:
    """All images as one array [N, H, W, C], decoded by a few threads (Pillow releases Python's lock)."""
    mode = "L" if all(map(_is_grey, files)) else "RGB"
    images = np.empty((len(files), *_decode(files[0], mode, size).shape), dtype=np.uint8)
    starts = range(0, len(files), IMAGES_PER_TASK)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        # map returns in order, so of several bad files the first is reported; leaving it cancels the rest.
        for done in pool.map(partial(_decode_some, files, images, mode, size), starts):
            if progress is not None:
                progress(done, len(files), "reading images")
    return images


def _decode_some(files: Sequence[Path], images: Images, mode: str, size: int | None, start: int) -> int:
    """Decode one task's files into their places in `images`; returns the index after the last."""
    end = min(start + IMAGES_PER_TASK, len(files))
    for index in range(start, end):
        pixels = _decode(files[index], mode, size)
        if pixels.shape != images.shape[1:]:
            (height, width), (first_height, first_width) = pixels.shape[:2], images.shape[1:3]
            raise UserError(
                f"{files[index]} is {width}x{height} pixels, but {files[0]} is {first_width}x{first_height}; "
                "resize all images with `speedyresnet data pack FOLDER --size 64`"
            )
        images[index] = pixels
    return end


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file. What goes wrong with it becomes a UserError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UserError(f"cannot read image {path}: {error}; repair it or take it away") from error


def _is_grey(path: Path) -> bool:
    with _opened(path) as image:
        return image.mode in GREY_MODES


def _decode(path: Path, mode: str, size: int | None) -> Images:
    """One file as Pillow's `mode`, [H, W, C]."""
    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return resized(_converted(image, mode), size)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """An image as L or RGB, opaque and in 8 bits."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255; of colours it keeps the upper 8 itself
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        # Whatever colour lies under transparent pixels is an accident of the program that wrote them.
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image.convert("RGBA"))
        image = paper
    return image.convert(mode)


def resized(image: Image.Image, size: int | None) -> Images:
    """Pixels [H, W, C] of an image, resized with antialiasing to size x size unless `size` is None."""
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(image.height, image.width, -1)
