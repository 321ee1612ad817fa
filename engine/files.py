"""Files that are either whole or not there: a crash never leaves half of one under its real name."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path

from .errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path`, then put it in the place of `path` at once.

    Creates the folder. When `write` raises, the old file stays and the temporary one is removed. Raises
    UserError when the operating system refuses (no permission, full disk, `path` is a folder).
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.open("xb").close()
        write(temporary)
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    finally:
        _remove_if_there(temporary)


def _flush_to_disk(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _remove_if_there(path: Path) -> None:
    # os.path.exists, because Path's raises where the folder is closed, and would hide the real error.
    if os.path.exists(path):
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, which appears whole or not at all."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


def check_writable(path: Path) -> None:
    """Raise UserError where `path` surely cannot be written later, so that no work is lost."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give a file name")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"cannot write {path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {path}: no permission in {parent}; choose another place")
