"""Compiled code kept between processes: one file for each recipe, backend, GPU and set of versions.

Inductor caches compiled code in a folder that most machines empty at boot. The files here are stored beside the packs
and restored into that folder before a run compiles, so a new machine with a copy of them starts warm.
Source: torch.compiler.save_cache_artifacts, "Portable caching" in PyTorch's documentation.
"""

import contextlib
import hashlib
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..kernels.language import AVAILABLE, triton
from .backends import COMPILING
from .data import cache_folder
from .errors import UserError
from .files import write_atomically
from .recipe import Recipe

FOLDER_VARIABLE = "SPEEDYRESNET_COMPILED"
_DIGEST_BYTES = 32


def artifacts_path(recipe: Recipe, backend: str, device: torch.device) -> Path:
    """Return the cache file of `recipe` on this machine: in $SPEEDYRESNET_COMPILED, else in the cache folder."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    kind = (
        recipe.hash,
        backend,
        torch.__version__,
        triton.__version__ if AVAILABLE else None,
        platform.python_version(),
        (gpu.name, gpu.major, gpu.minor) if gpu else platform.machine(),
    )
    folder = os.environ.get(FOLDER_VARIABLE)
    name = f"{recipe.name.replace('/', '-')}-{backend}-{hashlib.sha256(repr(kind).encode()).hexdigest()[:16]}.bin"
    return (Path(folder) if folder else cache_folder() / "compiled") / name


@contextlib.contextmanager
def compiled_code(recipe: Recipe, backend: str, device: torch.device) -> Iterator[None]:
    """Restore code compiled earlier for this recipe, and save newly compiled code on exit.

    A file that is damaged, of another version or not writable only costs compile time.
    """
    if backend not in COMPILING:
        yield
        return
    path = artifacts_path(recipe, backend, device)
    known = _load(path)
    yield
    made = torch.compiler.save_cache_artifacts()
    if made is not None and _keys(made[1]) != known:
        _store(path, made[0])


def _keys(info: Any) -> dict[str, set[str]]:
    """Return the keys of a set of artifacts by kind."""
    return {kind: set(keys) for kind, keys in info.artifacts.items() if keys}


def _load(path: Path) -> dict[str, set[str]] | None:
    """Hand the content of `path` to the compiler and return its keys; None if there is nothing usable."""
    try:
        content = path.read_bytes()
    except OSError:  # missing or unreadable: the compiler starts cold
        return None
    digest, artifacts = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(artifacts).digest() != digest:
        return None
    info = torch.compiler.load_cache_artifacts(artifacts)
    return None if info is None else _keys(info)


def _store(path: Path, artifacts: bytes) -> None:
    content = hashlib.sha256(artifacts).digest() + artifacts
    try:
        write_atomically(path, lambda part: part.write_bytes(content))
    except UserError as error:
        warnings.warn(f"compiled code is not kept: {error}", stacklevel=2)
