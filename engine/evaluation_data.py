"""Evaluation data: test images as a model takes them, with labels in the order of its classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data import image_folder, load_data, note_skipped
from .errors import UserError, note
from .folder_layout import Listing, evaluation_folder, list_classes, note_unused_splits
from .image_files import Images, Size, is_grey, resized
from .image_folders import Progress, decode_all
from .pack import Pack


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Input that a model takes."""

    class_names: tuple[str, ...]
    """Class names in the order of the model's outputs."""
    channels: int
    image_size: Size | None
    """None if the model file does not contain it; images then keep their size."""


def evaluation_data(data: Pack | str | Path, wanted: Wanted, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
    """Return test images uint8 [N, H, W, C] and labels int64 [N] of a pack, or of anything that `load_data` accepts.

    An image folder needs only its test split, or only class folders. Images of another size are resized as in
    `speedyresnet data pack --size`, with a note. Classes are matched by name, whatever their order in `data`; a note
    lists the model's classes without images.

    Raises UserError for classes unknown to the model, for a pack with another number of channels, and for whatever
    `load_data` refuses.
    """
    if not isinstance(data, Pack) and (folder := image_folder(data)):
        return _of_folder(folder, wanted, progress)
    pack = data if isinstance(data, Pack) else load_data(data, progress=progress)
    numbers = _class_numbers(pack.class_names, wanted, f"the data {pack.name}")
    if pack.channels != wanted.channels:
        raise UserError(
            f"the model takes images of {wanted.channels} channels, the data {pack.name} has {pack.channels}; "
            "give other --data"
        )
    return _resized_as_wanted(pack.test_images, wanted), numbers[pack.test_labels]


def _of_folder(folder: Path, wanted: Wanted, progress: Progress | None) -> tuple[Tensor, Tensor]:
    listing = Listing(folder)
    try:
        split = evaluation_folder(folder)
        class_names = list_classes(split)
        numbers = _class_numbers(class_names, wanted, str(split))
        files, labels = listing.files_of(split, class_names)
    except OSError as error:
        raise UserError(f"cannot list {folder} ({error}); give a folder that you may read") from error
    images, sizes = decode_all(files, wanted.channels, wanted.image_size, progress)
    note_unused_splits(folder, split, class_names)
    note_skipped(split, listing.skipped)
    if wanted.channels == 1 and not all(map(is_grey, files)):
        note(f"colour images of {split} are made grey, as the model takes them")
    _note_resizing(sizes, wanted)
    return torch.from_numpy(images), numbers[torch.from_numpy(labels)]


def _class_numbers(class_names: Sequence[str], wanted: Wanted, source: str) -> Tensor:
    """Return the model's index of each class of the data, int64 [classes]. Raise UserError for an unknown class."""
    if unknown := [name for name in class_names if name not in wanted.class_names]:
        raise UserError(
            f"the model knows {len(wanted.class_names)} classes ({_listed(wanted.class_names)}), {source} has others "
            f"({_listed(unknown)}); give other --data"
        )
    if absent := [name for name in wanted.class_names if name not in class_names]:
        note(f"{source} has no class {_listed(absent)}: the accuracy is that of the other classes")
    return torch.tensor([wanted.class_names.index(name) for name in class_names])


def _resized_as_wanted(images: Tensor, wanted: Wanted) -> Tensor:
    """Return uint8 [N, H, W, C] in the size that the model takes."""
    size = images.shape[1], images.shape[2]
    if wanted.image_size is None or size == wanted.image_size:
        return images
    _note_resizing({size}, wanted)
    return torch.from_numpy(np.stack([_resized_pixels(image, wanted.image_size) for image in images.numpy()]))


def _resized_pixels(pixels: Images, size: Size) -> Images:
    return resized(Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels), size)


def _note_resizing(sizes: set[Size], wanted: Wanted) -> None:
    if wanted.image_size is None or sizes == {wanted.image_size}:
        return
    before = "several sizes" if len(sizes) > 1 else "{1}x{0} pixels".format(*next(iter(sizes)))
    height, width = wanted.image_size
    note(f"test images of {before} are resized to {width}x{height}, the size that the model was trained on")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
