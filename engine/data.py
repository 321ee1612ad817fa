"""Sources of training and test images: downloads, image folders, drawn shapes, and the cache of packs.

Packs are defined in `pack.py` and stored by `pack_file.py`.
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from .downloads import DOWNLOADS, LOCK, DownloadError, download
from .errors import UserError, note
from .files import check_writable
from .folder_layout import LAYOUT
from .image_folders import Progress, Splits, read_image_folder
from .nets import MAX_IMAGE_SIDE
from .pack import Pack, make_pack
from .pack_file import read_pack, save_pack
from .synthetic import SYNTHETIC, make_synthetic

# --- Names


def cache_folder() -> Path:
    """Return the folder of downloads and named packs: $SPEEDYRESNET_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("SPEEDYRESNET_CACHE"):
        return _expanded(chosen)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "speedyresnet"


def pack_path(name: str) -> Path:
    """Return the file of the cached pack `name`. Raise UserError unless the name matches [a-z0-9._-]+."""
    if not re.fullmatch(r"[a-z0-9._-]+", name):
        raise UserError(f"{name!r} is no pack name; use lower-case letters, digits, '.', '_' and '-'")
    return cache_folder() / "packs" / f"{name}.safetensors"


# --- Sources given on the command line


def pack_source(
    source: str,
    *,
    name: str | None = None,
    size: int | None = None,
    holdout: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pack:
    """Pack an image folder, a data set of DOWNLOADS or "synthetic" (drawn from `seed`).

    Args:
        source: an existing folder takes precedence over a download of the same name.
        name: name of the pack; None: see `pack_name`. Synthetic data is always called synthetic.
        size: side in pixels that images are resized to; None keeps them as they are, or uses the size in DOWNLOADS.
        holdout: share of each class that becomes the test split of a folder without one.
        seed: seed of synthetic images, not negative.
        progress: receives the progress.

    Raises:
        UserError: invalid input, reported before the images are read where possible.
    """
    if size is not None and not 1 <= size <= MAX_IMAGE_SIDE:
        raise UserError(f"--size {size} is no image size; give 1 to {MAX_IMAGE_SIDE} pixels")
    if holdout is not None and not 0 < holdout < 1:
        raise UserError(f"--holdout {holdout} is no share of the images; give a number between 0 and 1, such as 0.1")
    chosen, folder = pack_name(source, name, size), _expanded(source)
    if os.path.isdir(folder) and source != SYNTHETIC:
        _note_folder(source, folder)
        return make_pack(chosen, *read_image_folder(folder, size, holdout, progress))
    if holdout is not None:
        raise UserError(f"{source} has a test split; leave out --holdout")
    if source == SYNTHETIC:
        return _drawn(size, seed, progress)
    return make_pack(chosen, *_downloaded(source.lower(), size, progress))


def pack_name(source: str, name: str | None = None, size: int | None = None) -> str:
    """Return the name of a pack: `name`, else that of `source`, with -SIZE for a download at an unusual size.

    Raises UserError for an unknown source or an invalid name.
    """
    chosen = _default_name(source, size) if name is None else name
    pack_path(chosen)  # refuses invalid names
    if chosen == SYNTHETIC and source != SYNTHETIC:
        raise UserError(f"the name {SYNTHETIC} is kept for drawn images; choose another --name")
    return chosen


def _default_name(source: str, size: int | None) -> str:
    if source == SYNTHETIC:
        return source
    if os.path.isdir(_expanded(source)):
        return _sanitised(_expanded(source).resolve().name)
    name = source.lower()
    if name not in DOWNLOADS:
        raise UserError(f"no data source {source}; give {', '.join([*DOWNLOADS, SYNTHETIC])} or a folder: {LAYOUT}")
    return name if size in (None, DOWNLOADS[name].size) else f"{name}-{size}"


def _expanded(source: str | Path) -> Path:
    return Path(os.path.expanduser(source))  # pathlib's own raises if the home of a user is unknown


def _sanitised(text: str) -> str:
    """Return the nearest valid pack name."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-") or "images"


def writable_pack_path(name: str) -> Path:
    """Return `pack_path`. Raise UserError if no pack can be written there, before one is made."""
    return _writable(pack_path(name))


def _downloaded(name: str, size: int | None, progress: Progress | None) -> Splits:
    return download(name, _writable(cache_folder() / "downloads" / LOCK).parent, size, progress)


def _writable(path: Path) -> Path:
    """Return the path of a file in the cache. Raise UserError if it cannot be written."""
    if os.path.isdir(path):
        raise UserError(f"{path} in the cache is a folder where a file belongs; delete it")
    try:
        check_writable(path)
    except UserError as error:
        raise UserError(f"{error}; SPEEDYRESNET_CACHE=FOLDER sets another cache") from error
    return path


def _drawn(size: int | None, seed: int, progress: Progress | None) -> Pack:
    return make_synthetic(size=size or 32, seed=seed, progress=progress)


def held_out(pack: Pack, count: int) -> Pack:
    """Return a pack whose test images are `count` held-out training images of `pack`.

    They are the last ones in the pack's order, which is that of a hash: a random sample, the same from every source.
    Raises UserError if that leaves no training images.
    """
    left = len(pack.train_labels) - count
    if count < 1 or left < 1:
        raise UserError(f"--validation {count} must be between 1 and {len(pack.train_labels) - 1}")
    images, labels = pack.train_images.numpy(), pack.train_labels.numpy()
    name = f"{pack.name}-validation-{count}"
    return make_pack(name, pack.class_names, images[:left], labels[:left], images[left:], labels[left:])


def load_data(data: str | Path, *, progress: Progress | None = None) -> Pack:
    """Load "synthetic", a cached pack, an image folder, a pack file or one of DOWNLOADS, tried in this order.

    Downloads are packed and cached. A warning reports which source was used if a folder has the name of a cached pack
    or a download, and which files of a folder were skipped.

    Raises UserError for invalid or unknown data, and DownloadError if a download fails.

    Examples:
        >>> from speedyresnet.engine import load_data
        >>> pack = load_data("synthetic")
        >>> pack.name, pack.num_classes, pack.image_size, pack.channels
        ('synthetic', 10, (32, 32), 3)
        >>> pack.train_images.shape, pack.train_images.dtype
        (torch.Size([20000, 32, 32, 3]), torch.uint8)
        >>> pack.train_labels.shape, pack.test_labels.dtype
        (torch.Size([20000]), torch.int64)
        >>> [round(value, 2) for value in pack.mean], len(pack.sha256)
        ([0.5, 0.5, 0.5], 64)
        >>> pack.class_names[:3]
        ('disc', 'ring', 'square')
        >>> load_data("no-such-data")
        Traceback (most recent call last):
        speedyresnet.engine.errors.UserError: no pack file, image folder or cached pack no-such-data...
    """
    name, path = str(data), _expanded(data)
    if name == SYNTHETIC:
        return _drawn(None, 0, progress)
    if name in _cached_names():
        _note_choice(name, path)
        return read_pack(pack_path(name))
    if folder := image_folder(data):
        pack = pack_source(str(folder.absolute()), progress=progress)
        note_skipped(folder, pack.skipped)
        return pack
    if os.path.exists(path):
        return read_pack(path)
    if name.lower() in DOWNLOADS:
        return _cached_download(name.lower(), progress)
    raise _unknown_data(name)


def image_folder(data: str | Path) -> Path | None:
    """Return the image folder that `load_data` uses for `data`; None if it uses another source."""
    path = _expanded(data)
    if str(data) == SYNTHETIC or str(data) in _cached_names() or not os.path.isdir(path):  # accepts any text
        return None
    _note_folder(str(data), path)
    return path


def _note_folder(name: str, path: Path) -> None:
    """Tell the user that a folder shadows a download of the same name."""
    if name.lower() in DOWNLOADS:
        note(f"{name} is taken from the folder {path.absolute()}, not from a download; for that run in another folder")


def _note_choice(name: str, path: Path) -> None:
    """Tell the user that a cached pack shadows a folder or file of the same name, which may be newer."""
    if os.path.exists(path):
        note(
            f"{name} is taken from the cached pack {pack_path(name)}, not from {path.absolute()}: "
            f"for that give ./{name}, or pack it again with `speedyresnet data pack ./{name}`"
        )


def skipped_told(skipped: Mapping[str, int]) -> str:
    """Describe how many files were skipped, by reason."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))


def note_skipped(folder: Path, skipped: Mapping[str, int]) -> None:
    """Tell the user which files of an image folder were skipped."""
    if skipped:
        note(f"left out of {folder}: {skipped_told(skipped)}")


def _unknown_data(name: str) -> UserError:
    near = difflib.get_close_matches(name, {*DOWNLOADS, SYNTHETIC, *_cached_names()}, n=3, cutoff=0.5)
    hint = f" (nearest: {', '.join(near)})" if near else ""
    remedy = f"make one with `speedyresnet data pack FOLDER --name {_sanitised(name)}`"
    return UserError(f"no pack file, image folder or cached pack {name}{hint}; {remedy}")


def _cached_download(name: str, progress: Progress | None) -> Pack:
    path = pack_path(name)
    if path.exists():
        _note_choice(name, _expanded(name))
        return read_pack(path)
    _writable(path)
    pack = make_pack(name, *_downloaded(name, None, progress))
    save_pack(pack, path)
    return pack


def _cached_names() -> list[str]:
    return sorted(path.stem for path in (cache_folder() / "packs").glob("*.safetensors"))


def default_data(name: str, progress: Progress | None, warn: Callable[[str], None]) -> Pack:
    """Load the recipe's dataset `name`; if it is neither cached nor downloadable, warn once and load synthetic data.

    Without a network the warning comes within 20 seconds.
    """
    try:
        return _cached_download(name, progress) if name in DOWNLOADS else load_data(name, progress=progress)
    except DownloadError as error:
        warn(f"{error}; until then the synthetic data set is used")
    return load_data(SYNTHETIC, progress=progress)
