"""Files that are either whole or not there: a crash never leaves half of one under its real name."""

import contextlib
import fcntl
import glob
import io
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import UserError

ABANDONED_SECONDS = 3600.0
"""A temporary file that nobody has written to for so long belongs to a process that was killed."""


@contextlib.contextmanager
def refusals_explained(path: Path) -> Iterator[None]:
    """Within, an OSError (no permission, full disk, `path` is a folder) becomes a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path`, then put it in the place of `path` at once.

    Creates the folder. When `write` raises, the old file stays and the temporary one is removed; a process that is
    killed leaves its temporary file to a later writer of `path`. Raises UserError when the operating system refuses.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with refusals_explained(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(path)
            temporary.open("xb").close()
            write(temporary)
            _flush_to_disk(temporary)
            os.replace(temporary, path)
        finally:
            _remove_if_there(temporary)


def _remove_abandoned(path: Path) -> None:
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 32}.tmp"):
        with contextlib.suppress(OSError):  # another writer was faster, or it is somebody else's: neither matters
            if time.time() - temporary.stat().st_mtime > ABANDONED_SECONDS:
                temporary.unlink()


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


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[io.FileIO]:
    """The file `path`, open for appending, unbuffered and locked until the block ends or the process dies.

    Creates file and folder. Raises OSError, which is BlockingIOError where another holds the lock and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield file


def check_writable(path: Path) -> None:
    """Raise UserError where `path` surely cannot be written later, so that no work is lost."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; give a file name")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"cannot write {path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {path}: no permission in {parent}; choose another place")
