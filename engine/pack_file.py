"""Data packs on disk: one safetensors file with images and labels, and metadata that can be verified against them."""

import json
import os
import reprlib
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from .errors import UserError
from .json_files import json_value
from .pack import DTYPES, Pack, assemble, find_fault
from .tensor_file import DTYPE_NAMES, Header, read_tensors, save_tensors

FORMAT = "speedyresnet.pack/1"


def save_pack(pack: Pack, path: Path) -> None:
    """Write a pack as one safetensors file, atomically; the same pack gives the same bytes.

    Raises UserError if the file cannot be written.
    """
    save_tensors(path, {key: getattr(pack, key) for key in DTYPES}, _metadata(pack))


def _metadata(pack: Pack) -> dict[str, str]:
    return {
        "format": FORMAT,
        "name": pack.name,
        "class_names": json.dumps(pack.class_names),
        "sha256": pack.sha256,
        "mean": json.dumps(pack.mean),
        "std": json.dumps(pack.std),
    }


def read_pack(path: Path) -> Pack:
    """Read a pack file and verify all of it: 60,000 CIFAR images take about half a second.

    Raises UserError if the file is missing, damaged or not a pack.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder where a data pack belongs; delete it, or give another name")
    if not os.path.isfile(path):
        raise UserError(f"no data pack at {path}; make one with `speedyresnet data pack`")
    try:
        metadata, tensors = read_tensors(path, partial(_checked_metadata, path))
    except (SafetensorError, OSError) as error:
        raise _refusal(path, f"is not a whole data pack ({error})") from error
    return _verified(path, metadata, tensors)


def _checked_metadata(path: Path, header: Header) -> dict[str, str]:
    """Return the metadata of a header; raise UserError unless it can be that of a pack."""
    if header.metadata.get("format") != FORMAT:
        raise _refusal(path, f"is not a data pack of format {FORMAT}")
    found = {key: dtype for key, (dtype, _) in header.tensors.items()}
    if found != {key: DTYPE_NAMES[dtype] for key, dtype in DTYPES.items()}:
        raise _refusal(path, f"has the wrong tensors ({reprlib.repr(found)})")
    for key, (_, shape) in header.tensors.items():
        if len(shape) != (4 if key.endswith("images") else 1) or 0 in shape:
            raise _refusal(path, f"is damaged: the {key.replace('_', ' ')} are {reprlib.repr(list(shape))}")
    return header.metadata


def _verified(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> Pack:
    """Return the pack of a file's tensors; recompute everything that can be derived and compare it."""
    try:
        class_names, mean, std = (json_value(metadata[key]) for key in ("class_names", "mean", "std"))
        name, sha256 = metadata["name"], metadata["sha256"]
    except (KeyError, ValueError) as error:
        raise _refusal(path, f"has unreadable metadata ({error!r})") from error
    if not isinstance(class_names, list) or not all(isinstance(entry, str) for entry in class_names):
        raise _refusal(path, "has unreadable metadata (class_names is not a list of names)")
    if not name.isprintable():
        raise _refusal(path, "has unreadable metadata (its name is not printable)")
    # Cloned, because the tensors may be views of the file, which another process could overwrite in place.
    arrays = {key: tensors[key].clone().numpy() for key in DTYPES}
    if fault := find_fault(arrays, class_names):
        raise _refusal(path, f"is damaged: {fault}")
    pack = assemble(name, class_names, arrays)
    if (pack.sha256, list(pack.mean), list(pack.std)) != (sha256, mean, std):
        raise _refusal(path, "is damaged: its content does not match its checksum, mean and std")
    return pack


def _refusal(path: Path, fault: str) -> UserError:
    return UserError(f"{path} {fault}; pack the data again with `speedyresnet data pack`")
