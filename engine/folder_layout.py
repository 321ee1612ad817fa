"""Layout of image folders: the split and class of each file, and which files are skipped."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import UserError, note
from .image_files import IMAGE_SUFFIXES

Labels = npt.NDArray[np.int64]

LAYOUT = (
    "expected FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or val), or FOLDER/CLASS/* and --holdout 0.1, "
    "with png, jpg, webp, bmp, gif, tif or ppm images"
)
SPLIT_NAMES = {
    "train": ("train", "training", "seg_train"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing", "seg_test"),
}
"""Accepted folder names of each split, in any case."""


def split_folders(folder: Path, holdout: float | None) -> list[Path]:
    """Return the folders of the train and the test split; with `holdout` only the folder to split.

    Raises UserError for any other layout.
    """
    train, test = _find_split(folder, "train"), _find_split(folder, "test") or _find_split(folder, "validation")
    if test and not train:
        remedy = f"{LAYOUT}; if {test.name} is a class, give it another name"
        raise UserError(f"{folder} has a test split, {test}, and no folder train; {remedy}")
    if test and holdout is not None:
        raise UserError(f"{folder} has a test split, {test}; leave out --holdout")
    if train and test:
        return [train, test]
    # A folder of images called train, without subfolders, is a class of vehicles.
    whole = train if train and _has_folders(train) else folder
    class_names = list_classes(whole)
    if len(class_names) == 1:
        raise UserError(f"{whole} has one class only, {class_names[0]}; {LAYOUT}")
    if holdout is None and whole != folder:
        for other in _folders_beside(folder, whole):
            if _looks_like_split(other, class_names):
                raise UserError(f"{folder} has no folder test or val; if {other} is its test split, call it test")
    if holdout is None:
        remedy = f"hold some images out with `speedyresnet data pack {folder} --holdout 0.1 --name NAME`"
        raise UserError(f"{folder} has no folder test or val; {remedy}")
    return [whole]


def evaluation_folder(folder: Path) -> Path:
    """Return the test split of `folder`, or `folder` itself if it contains the class folders.

    Raises UserError if there is only a train split.
    """
    train, test = _find_split(folder, "train"), _find_split(folder, "test") or _find_split(folder, "validation")
    if test:
        return test
    if train and _has_folders(train):
        raise UserError(f"{folder} has a train split and no test split; give a folder test/CLASS/* or CLASS/*")
    list_classes(folder)
    return folder


def note_unused_splits(folder: Path, used: Path, class_names: Sequence[str]) -> None:
    """Tell the user which folders beside `used` are ignored although they may have been meant.

    Beside a test split these are the folders that look like splits. Beside a train split that is to be split these are
    all folders, since `used` may be a class called train and the others its sibling classes.
    """
    if used == folder:
        return
    unused, role = _folders_beside(folder, used), "split"
    if used != _find_split(folder, "train"):
        unused, role = [path for path in unused if _looks_like_split(path, class_names)], "test split"
    if unused:
        verb = "is" if len(unused) == 1 else "are"
        note(f"{used} is taken as the {role} of {folder}; {' and '.join(map(str, unused))} {verb} not used")


def _folders_beside(folder: Path, used: Path) -> list[Path]:
    """Return the folders in `folder` other than its train split and `used`."""
    train = _find_split(folder, "train")
    known = {path for split in (train, used) if split for path in (split, split.parent)}
    return [folder / name for name in _folder_names(folder) if folder / name not in known]


def _looks_like_split(path: Path, class_names: Sequence[str]) -> bool:
    """Return whether a folder has the name of a split, or subfolders with names of the classes."""
    is_named = any(path.name.lower() in names for names in SPLIT_NAMES.values())
    return is_named or bool(set(_folder_names(path)) & set(class_names))


def _find_split(folder: Path, kind: str) -> Path | None:
    """Return the folder of one split, or its only subfolder if an archive has doubled it, as in seg_train/seg_train."""

    def named(parent: Path) -> list[Path]:
        return sorted(path for path in parent.iterdir() if path.name.lower() in SPLIT_NAMES[kind] and path.is_dir())

    found = named(folder)
    if len(found) > 1:
        raise UserError(f"{folder} has {' and '.join(path.name for path in found)}, two {kind} splits; keep one")
    if not found:
        return None
    inner = named(found[0])
    return inner[0] if inner and _folder_names(found[0]) == [inner[0].name] else found[0]


def _folder_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _has_folders(folder: Path) -> bool:
    return bool(_folder_names(folder))


def list_classes(split: Path) -> list[str]:
    """Return the class names of a split in alphabetical order.

    Raises UserError if there are none, or if all of them look like splits under unknown names.
    """
    names = _folder_names(split)
    if not names:
        raise UserError(f"{split} has no class folders; {LAYOUT}")
    if all(re.search("train|test|val", name.lower()) and _has_folders(split / name) for name in names):
        raise UserError(f"{', '.join(names)} in {split} look like splits, not classes; call them train and test")
    return names


class Listing:
    """Image files of the splits of one folder, and counts of the skipped files.

    Hidden files and folders are skipped, links are followed. Attributes: `skipped` counts the skipped files by reason.
    """

    def __init__(self, folder: Path) -> None:
        self.skipped: Counter[str] = Counter()
        self._folder = folder
        self._owners: dict[str, Path] = {}  # class folders by the real paths of their files

    def files_of(self, split: Path, class_names: Sequence[str]) -> tuple[list[Path], Labels]:
        """Return image files at any depth in the class folders of `split`, and their indices in `class_names`.

        Raises:
            UserError: a class without images, a link to a folder above itself, or a file in two classes or splits.
            OSError: a folder that cannot be listed.
        """
        self._count_beside_classes(split)
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(class_names):
            found = sorted(self._files_below(split, name))
            if not found:
                raise UserError(f"{split / name} has no images; {LAYOUT}")
            files += found
            labels += [label] * len(found)
        return files, np.array(labels, dtype=np.int64)

    def _count_beside_classes(self, split: Path) -> None:
        with os.scandir(split) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    self.skipped["hidden"] += 1
                elif not os.path.isdir(entry.path):
                    self.skipped[_reason_to_skip(entry) or "outside class folders"] += 1

    def _files_below(self, split: Path, name: str) -> Iterator[Path]:
        """Yield the image files of one class; each folder is visited once."""
        above: tuple[str, ...] = ()
        if split != self._folder:
            above = (_real_folder(str(self._folder), ()),)
        above += (_real_folder(str(split), above),)
        pending, visited = [(str(split / name), above)], set[str]()
        while pending:
            folder, above = pending.pop()
            here = _real_folder(folder, above)
            if here not in visited:
                visited.add(here)
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            self.skipped["hidden"] += 1
                        elif os.path.isdir(entry.path):  # unlike entry.is_dir, accepts circular links
                            pending.append((entry.path, (*above, here)))
                        elif reason := _reason_to_skip(entry):
                            self.skipped[reason] += 1
                        else:
                            self._claim(entry, here, split / name)
                            yield Path(entry.path)

    def _claim(self, entry: os.DirEntry[str], folder: str, owner: Path) -> None:
        """Assign a file to its class folder; raise UserError if it already belongs to another class or split."""
        real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(folder, entry.name)
        first = self._owners.setdefault(real, owner)
        if first != owner:
            raise UserError(
                f"{entry.path} is, through a link, the same file as one in {first}; an image belongs to one class of "
                "one split: take the link away"
            )


def _real_folder(folder: str, above: Sequence[str]) -> str:
    """Return the real path of `folder`. Raise UserError if it contains one of the real folders that led to it."""
    here = os.path.realpath(folder)
    if any(os.path.commonpath([here, each]) == here for each in above):
        raise UserError(
            f"{folder} is a link to {here}, a folder above itself, which may hold other classes and splits; "
            "take the link away"
        )
    return here


def _reason_to_skip(entry: os.DirEntry[str]) -> str | None:
    """Return why a file is skipped; None if it is read. Broken links are read, so that the reader reports them."""
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix not in IMAGE_SUFFIXES:
        return suffix or "without suffix"
    return "no regular file" if os.path.exists(entry.path) and not os.path.isfile(entry.path) else None
