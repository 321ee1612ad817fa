"""Atomic file writes: a crash never leaves a partial file under its final name."""

import contextlib
import glob
import io
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .errors import UserError, note

ABANDONED_SECONDS = 3600.0
"""Age after which an unmodified temporary file is considered to belong to a killed process."""


@contextlib.contextmanager
def refusals_explained(path: Path) -> Iterator[None]:
    """Convert an OSError (no permission, full disk, `path` is a folder) to a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


class Outputs:
    """Output files of a command: all are attempted even if some fail; the failures are reported together at the end.

    As a context manager it calls `check` on exit. If the block ends with another error, such as that of a full standard
    output, the failures are added to it as notes.
    """

    def __init__(self) -> None:
        self._refusals = dict[Path, str]()
        self._noted = set[Path]()
        self._elsewhere = list[str]()

    def attempt(
        self,
        path: Path,
        write: Callable[[], object],
        *,
        again: bool = False,
        tell: Callable[[str], object] = note,
    ) -> None:
        """Call `write`, which writes `path`; a failure counts until a later attempt at `path` succeeds.

        Args:
            path: the file.
            write: raises UserError if the file cannot be written.
            again: whether another attempt follows; the first failure is then reported at once.
            tell: called with that report.
        """
        try:
            write()
        except UserError as error:
            self._refusals[path] = str(error)
            if again and path not in self._noted:
                self._noted.add(path)
                tell(f"{error}; the work goes on, and the file is tried again")
        else:
            self._refusals.pop(path, None)

    def count(self, refusal: str | None) -> None:
        """Add the failure of a file attempted elsewhere; None: it did not fail."""
        if refusal is not None:
            self._elsewhere.append(refusal)

    def refuses(self, path: Path) -> bool:
        """Return whether the last attempt at `path` failed."""
        return path in self._refusals

    @property
    def refused(self) -> list[str]:
        """Failures, one line each."""
        return [*self._refusals.values(), *self._elsewhere]

    def check(self) -> None:
        """Raise UserError, in one line, if files failed."""
        if self.refused:
            raise UserError("; ".join(self.refused))

    def __enter__(self) -> "Outputs":
        """Return the object itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Call `check`, or add the failures to the current error."""
        if error is None:
            self.check()
            return
        for refusal in self.refused:
            error.add_note(refusal)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path`, then move it to `path` atomically.

    Creates the folder. If `write` raises, the old file is kept and the temporary one removed; that of a killed process
    is removed by a later writer of `path`. Raises UserError if the operating system refuses.
    """
    _check_kind(path)
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
        with contextlib.suppress(OSError):  # removed by another writer, or not ours: neither matters
            if time.time() - temporary.stat().st_mtime > ABANDONED_SECONDS:
                temporary.unlink()


def _temporary(path: Path) -> Path:
    """Return an unused name beside `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _flush_to_disk(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _remove_if_there(path: Path) -> None:
    # os.path.exists, because Path.exists raises if the folder is not accessible, which would hide the real error.
    if os.path.exists(path):
        path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[io.FileIO]:
    """Open the file `path` for appending, unbuffered, and lock it until the block ends or the process dies.

    Creates file and folder. Raises OSError; it is BlockingIOError if the file is locked and `wait` is false. Python for
    Windows has no such locks; there a note asks the user to let no other process use the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        _lock(file, path, wait=wait)
        yield file


def _lock(file: io.FileIO, path: Path, *, wait: bool) -> None:
    try:
        import fcntl
    except ImportError:
        note(f"{path} cannot be locked on this system: let no other process use it meanwhile")
        return
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def check_writable(path: Path) -> None:
    """Raise UserError if `path` cannot be written, determined by a trial write before any work is done."""
    _check_kind(path)
    folder = next(each for each in path.absolute().parents if os.path.exists(each))
    if not os.path.isdir(folder):
        raise UserError(f"cannot write {path}: {folder} is not a folder; choose another place")
    try:
        with contextlib.suppress(FileNotFoundError):  # it will be created; a name that is too long raises another error
            path.parent.stat()
        trial = folder / _temporary(path).name
        trial.open("xb").close()
        trial.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def _check_kind(path: Path) -> None:
    """Raise UserError if `path` is not a valid file name or exists and is not a regular file."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # the file does not exist, or writing it will report the error
        return
    except ValueError as error:  # a NUL or another character that is not allowed in file names
        raise UserError(f"cannot write {str(path)!r}: {error}; choose another place") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot write {path}: it is a folder; give a file name")
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot write {path}: it is no regular file; give another file name")


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise UserError if an output cannot be written, is one of `inputs`, or is given twice; None is skipped."""
    taken = {os.path.realpath(each): "read" for each in inputs if each is not None and os.path.isfile(each)}
    for path in outputs:
        if path is None:
            continue
        check_writable(path)
        place = os.path.realpath(path)
        if place in taken:
            raise UserError(f"cannot write {path}: it is {taken[place]} by the same command; give another file name")
        taken[place] = "written"
