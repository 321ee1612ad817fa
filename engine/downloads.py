"""Data sets that torchvision downloads, and errors with a remedy if there is no network.

To add one, add an entry to DOWNLOADS.
"""

import contextlib
import http.client
import os
import queue
import socket
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from .errors import UserError
from .files import locked
from .image_files import Images, resized
from .image_folders import Progress, Splits, read_image_folder

PROBE_SECONDS = 6.0
STALL_SECONDS = 10.0
LOCK = ".lock"
"""Name of the file that a process locks while it downloads."""


class DownloadError(UserError):
    """Error for a failed download of a data set. The message says what to do without a network."""


class Download(Protocol):
    """Data set that torchvision can download."""

    @property
    def title(self) -> str:
        """Common name of the data set."""

    @property
    def size(self) -> int:
        """Default side of its images in pixels."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of training images, test images and classes."""

    def archive(self) -> tuple[str, str]:
        """Return the URL of the archive and its MD5."""

    def unpacked_files(self) -> list[tuple[str, str]]:
        """Return paths and MD5 of the files that make the archive unnecessary; empty if it always is necessary."""

    def read(self, folder: Path, size: int, progress: Progress | None) -> Splits:
        """Return the images as `size` x `size`; download the archive into `folder` unless it is there."""


# torchvision is imported late: the import takes a second, which other sources need not spend.


@dataclass(frozen=True, slots=True)
class Cifar:
    """CIFAR-10, or another data set whose torchvision class has the same form."""

    title: str
    class_name: str
    counts: tuple[int, int, int]
    size: int = 32

    def _dataset(self) -> Any:
        from torchvision import datasets

        return getattr(datasets, self.class_name)

    def archive(self) -> tuple[str, str]:
        """Return the URL of the archive and its MD5."""
        return self._dataset().url, self._dataset().tgz_md5

    def unpacked_files(self) -> list[tuple[str, str]]:
        """Return paths and MD5 of all files of the archive."""
        dataset = self._dataset()
        files = [*dataset.train_list, *dataset.test_list, [dataset.meta["filename"], dataset.meta["md5"]]]
        return [(f"{dataset.base_folder}/{name}", md5) for name, md5 in files]

    def read(self, folder: Path, size: int, progress: Progress | None) -> Splits:
        """Return images, labels and class names as torchvision has them; for CIFAR-100 the 100 fine classes."""
        train, test = (self._dataset()(root=folder, train=train, download=True) for train in (True, False))
        images = (part.data if size == self.size else _resize_all(part.data, size, progress) for part in (train, test))
        labels = (np.array(part.targets, dtype=np.int64) for part in (train, test))
        (train_images, test_images), (train_labels, test_labels) = images, labels
        return Splits(train.classes, train_images, train_labels, test_images, test_labels)


class Imagenette:
    """Imagenette, from its edition with a shorter side of 160 pixels."""

    title: ClassVar[str] = "Imagenette"
    size: ClassVar[int] = 64
    counts: ClassVar[tuple[int, int, int]] = 9_469, 3_925, 10

    def archive(self) -> tuple[str, str]:
        """Return the URL of the archive and its MD5."""
        from torchvision.datasets import Imagenette as Dataset

        url, md5 = Dataset._ARCHIVES["160px"]
        return url, md5

    def unpacked_files(self) -> list[tuple[str, str]]:
        """Return an empty list: the archive is unpacked anew for each pack."""
        return []

    def read(self, folder: Path, size: int, progress: Progress | None) -> Splits:
        """Return images squashed to squares; classes are in order of WordNet number, under their first English name."""
        from torchvision.datasets import Imagenette as Dataset
        from torchvision.datasets.utils import download_and_extract_archive

        url, md5 = self.archive()
        folder.mkdir(parents=True, exist_ok=True)
        # torchvision's own class is avoided: it takes any unpacked folder for complete, even after an interruption.
        with tempfile.TemporaryDirectory(dir=folder) as unpacked:
            download_and_extract_archive(url, folder, unpacked, md5=md5)
            splits = read_image_folder(Path(unpacked) / Path(url).stem, size, progress=progress)
        return splits._replace(class_names=[Dataset._WNID_TO_CLASS[number][0] for number in splits.class_names])


DOWNLOADS: dict[str, Download] = {
    "cifar10": Cifar("CIFAR-10", "CIFAR10", (50_000, 10_000, 10)),
    "cifar100": Cifar("CIFAR-100", "CIFAR100", (50_000, 10_000, 100)),
    "imagenette": Imagenette(),
}
"""Data sets by the name used in `--data` and `data pack`."""


def download(name: str, folder: Path, size: int | None = None, progress: Progress | None = None) -> Splits:
    """Return a data set of DOWNLOADS at `size` x `size` pixels; download it into `folder` unless it is there.

    Raises DownloadError: within PROBE_SECONDS if there is no network, and after STALL_SECONDS without incoming data.
    """
    source = DOWNLOADS[name]
    url, _ = source.archive()
    if not _is_downloaded(source, folder) and not is_reachable(url, PROBE_SECONDS):
        raise _download_error(name, folder, f"{urllib.parse.urlsplit(url).hostname} does not answer")
    try:
        # One process at a time: torchvision writes and unpacks in place.
        with locked(folder / LOCK, wait=True), _stall_limit(STALL_SECONDS):
            return source.read(folder, size or source.size, progress)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise _download_error(name, folder, str(error)) from error


def _is_downloaded(source: Download, folder: Path) -> bool:
    from torchvision.datasets.utils import check_integrity

    url, md5 = source.archive()
    unpacked = source.unpacked_files()
    if unpacked and all(check_integrity(folder / name, md5) for name, md5 in unpacked):
        return True
    return bool(check_integrity(folder / Path(url).name, md5))


def _download_error(name: str, folder: Path, fault: str) -> DownloadError:
    source = DOWNLOADS[name]
    if (damaged := _damaged(source, folder)) is not None:
        fault += f", and {damaged} is damaged: delete it"
    one_line = " ".join(fault.split())
    remedy = f"pack an image folder instead: `speedyresnet data pack FOLDER --name {name}`"
    return DownloadError(
        f"cannot download {source.title} ({one_line}); put {source.archive()[0]} into {folder}, or {remedy}"
    )


def _damaged(source: Download, folder: Path) -> Path | None:
    """Return the archive, or a file or folder unpacked from it, that exists and is damaged."""
    from torchvision.datasets.utils import check_integrity

    url, archive_md5 = source.archive()
    for name, md5 in [(Path(url).name, archive_md5), *source.unpacked_files()]:
        path = folder / name
        if os.path.lexists(path.parent) and not os.path.isdir(path.parent):
            return path.parent
        if os.path.lexists(path) and not check_integrity(path, md5):
            return path
    return None


def is_reachable(url: str, seconds: float) -> bool:
    """Return whether the host of `url` answers a request, with any status, within `seconds`."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    # A thread, because name lookup has no timeout; a daemon, so that it cannot delay the exit.
    threading.Thread(target=lambda: answers.put(_answers(url, seconds)), daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return False


def _answers(url: str, seconds: float) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, http.client.HTTPException):
        return False
    return True


@contextlib.contextmanager
def _stall_limit(seconds: float) -> Iterator[None]:
    """Make every connection opened inside fail once nothing has come in for `seconds`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _resize_all(images: Images, size: int, progress: Progress | None) -> Images:
    results = []
    for done, image in enumerate(images, start=1):
        results.append(resized(Image.fromarray(image), (size, size)))
        if progress is not None and (done % 1000 == 0 or done == len(images)):
            progress(done, len(images), "resizing images")
    return np.stack(results)
