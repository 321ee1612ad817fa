"""Data sets that torchvision downloads, and what becomes of them where there is no network."""

import contextlib
import http.client
import queue
import socket
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from .errors import UserError
from .image_folders import Images, Progress, Splits, resized

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CIFAR10_SIZE = 32
CIFAR10_SIZE = 32
PROBE_SECONDS = 8.0
STALL_SECONDS = 10.0


class DownloadError(UserError):
    """A data set could not be downloaded. The message says what to do without a network."""


def download_cifar10(folder: Path, size: int | None = None, progress: Progress | None = None) -> Splits:
    """CIFAR-10 at `size` x `size` pixels, downloaded into `folder` unless it is there.

    Raises DownloadError: within PROBE_SECONDS where there is no network, and when nothing has come in for
    STALL_SECONDS.
    """
    arrays: list[npt.NDArray[Any]] = []
    for dataset in _torchvision_cifar10(folder):
        images = dataset.data if size in (None, CIFAR10_SIZE) else _resize_all(dataset.data, size, progress)
        arrays += [images, np.array(dataset.targets, dtype=np.int64)]
    train_images, train_labels, test_images, test_labels = arrays
    return Splits(CIFAR10_CLASSES, train_images, train_labels, test_images, test_labels)


def _torchvision_cifar10(folder: Path) -> list[Any]:
    """The train and the test set as torchvision gives them."""
    # Imported late: it takes a second that other sources need not spend.
    from torchvision.datasets import CIFAR10

    host = urllib.parse.urlsplit(CIFAR10.url).hostname
    if not _is_downloaded(folder) and not is_reachable(CIFAR10.url, PROBE_SECONDS):
        raise _download_error(f"{host} does not answer")
    try:
        # torchvision's own messages must not get into what the user pipes on.
        with _stall_limit(STALL_SECONDS), contextlib.redirect_stdout(sys.stderr):
            return [CIFAR10(root=folder, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise _download_error(str(error)) from error


def _download_error(fault: str) -> DownloadError:
    one_line = " ".join(fault.split())
    remedy = "pack an image folder instead: `speedyresnet data pack FOLDER --name cifar10`"
    return DownloadError(f"cannot download CIFAR-10 ({one_line}); {remedy}")


def _is_downloaded(folder: Path) -> bool:
    """Whether a whole CIFAR-10, packed or unpacked, lies in the download folder."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    if check_integrity(folder / CIFAR10.filename, CIFAR10.tgz_md5):
        return True
    files = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    return all(check_integrity(folder / CIFAR10.base_folder / file, md5) for file, md5 in files)


def is_reachable(url: str, seconds: float) -> bool:
    """Whether the host of `url` answers a request, with whatever status, within `seconds`."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    # A thread, because looking up a name has no time limit; a daemon, so that it cannot hold up the exit.
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
    """Let every connection opened inside fail once nothing has come in for `seconds`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _resize_all(images: Images, size: int | None, progress: Progress | None) -> Images:
    results = []
    for done, image in enumerate(images, start=1):
        results.append(resized(Image.fromarray(image), size))
        if progress is not None and (done % 1000 == 0 or done == len(images)):
            progress(done, len(images), "resizing images")
    return np.stack(results)
