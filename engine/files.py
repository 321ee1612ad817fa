"""Files that are either whole or not there: a crash never leaves half of one under its real name."""

import contextlib
import fcntl
import glob
import io
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
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
    temporary = _temporary(path)
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


def _temporary(path: Path) -> Path:
    """A name beside `path` that nobody else uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


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
    """Raise UserError where `path` cannot be written, found out by a trial, so that no work is lost."""
    if os.path.isdir(path):
        raise UserError(f"cannot write {path}: it is a folder; give a file name")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"cannot write {path}: it is no regular file; give another file name")
    folder = next(each for each in path.absolute().parents if os.path.exists(each))
    if not os.path.isdir(folder):
        raise UserError(f"cannot write {path}: {folder} is not a folder; choose another place")
    try:
        with contextlib.suppress(FileNotFoundError):  # it will be made; a name that is too long cannot be
            path.parent.stat()
        trial = folder / _temporary(path).name
        trial.open("xb").close()
        trial.unlink()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}; choose another place") from error


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise UserError where an output cannot be written, is one of the `inputs`, or is given twice; none is skipped."""
    taken = {os.path.realpath(each): "read" for each in inputs if each is not None and os.path.isfile(each)}
    for path in outputs:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise UserError(f"cannot write {path}: it is {taken[place]} by the same command; give another file name")
        check_writable(path)
        taken[place] = "written"
