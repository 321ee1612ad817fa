"""Files that are either whole or not there: a crash never leaves half of one under its real name."""

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
"""A temporary file that nobody has written to for so long belongs to a process that was killed."""


@contextlib.contextmanager
def refusals_explained(path: Path) -> Iterator[None]:
    """Within, an OSError (no permission, full disk, `path` is a folder) becomes a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


class Outputs:
    """The files of a command: all are written, though some may be refused, and then the command tells which.

    As a context manager it calls `check` at the end. An error that ends the block before, such as that of a full
    standard output, goes on with the refusals as its notes.
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
        """Call `write`, which writes `path`; a refusal counts until a later attempt at `path` succeeds.

        Args:
            path: of the file.
            write: raises UserError where it is refused.
            again: whether another attempt follows; then the first refusal is told at once.
            tell: told of it.
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
        """Add why a file was refused that something else attempted; none: it was not."""
        if refusal is not None:
            self._elsewhere.append(refusal)

    def refuses(self, path: Path) -> bool:
        """Whether the last attempt at `path` was refused."""
        return path in self._refusals

    @property
    def refused(self) -> list[str]:
        """Why files were refused, each in one line."""
        return [*self._refusals.values(), *self._elsewhere]

    def check(self) -> None:
        """Raise UserError, in one line, where files were refused."""
        if self.refused:
            raise UserError("; ".join(self.refused))

    def __enter__(self) -> "Outputs":
        """Nothing is refused yet."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """See `check`."""
        if error is None:
            self.check()
            return
        for refusal in self.refused:
            error.add_note(refusal)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in the folder of `path`, then put it in the place of `path` at once.

    Creates the folder. When `write` raises, the old file stays and the temporary one is removed; a process that is
    killed leaves its temporary file to a later writer of `path`. Raises UserError when the operating system refuses.
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
    Python for Windows has no such locks: there a note asks the user to let no other process use the file.
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
    """Raise UserError where `path` cannot be written, found out by a trial, so that no work is lost."""
    _check_kind(path)
    folder = next(each for each in path.absolute().parents if os.path.exists(each))
    if not os.path.isdir(folder):
        raise UserError(f"cannot write {path}: {folder} is not a folder; choose another place")
    try:
        with contextlib.suppress(FileNotFoundError):  # it will be made; a name that is too long cannot be
            path.parent.stat()
        trial = folder / _temporary(path).name
        trial.open("xb").close()
        trial.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def _check_kind(path: Path) -> None:
    """Raise UserError where `path` can be no file's name, or something else than a regular file has it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # nothing is there, or writing it will tell
        return
    except ValueError as error:  # a NUL in the name, or a character that names of files cannot have
        raise UserError(f"cannot write {str(path)!r}: {error}; choose another place") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot write {path}: it is a folder; give a file name")
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot write {path}: it is no regular file; give another file name")


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[str | Path | None] = ()) -> None:
    """Raise UserError where an output cannot be written, is one of the `inputs`, or is given twice; none is skipped."""
    taken = {os.path.realpath(each): "read" for each in inputs if each is not None and os.path.isfile(each)}
    for path in outputs:
        if path is None:
            continue
        check_writable(path)
        place = os.path.realpath(path)
        if place in taken:
            raise UserError(f"cannot write {path}: it is {taken[place]} by the same command; give another file name")
        taken[place] = "written"
