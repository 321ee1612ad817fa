"""Safetensors files: reproducible writing, and safe reading of untrusted files.

Names, dtypes and shapes are checked before any tensor is created. safetensors itself rejects headers that exceed the
file, are not JSON, or whose tensors overlap, leave gaps, do not end with the file or differ in size from their shapes.
Thus nothing larger than the file is read.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from .files import write_atomically

DTYPE_NAMES = {
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}
"""Names in safetensors of the supported dtypes."""

Judged = TypeVar("Judged")


class Header(NamedTuple):
    """Header of a safetensors file."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Dtype name and shape by tensor name."""


def read_tensors(path: Path, judge: Callable[[Header], Judged]) -> tuple[Judged, dict[str, Tensor]]:
    """Return the result of `judge` on the header of `path`, and the tensors by name, on the CPU.

    If `judge` raises, no tensors are read. The tensors may be views of the file.

    Raises:
        OSError, safetensors.SafetensorError: the file cannot be read or is not a complete safetensors file.
    """
    # By descriptor, because safetensors opens the name twice, and another process may replace the file in between.
    with path.open("rb") as opened, safe_open(f"/dev/fd/{opened.fileno()}", framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        tensors = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
        judged = judge(Header(file.metadata() or {}, tensors))
        return judged, {name: file.get_tensor(name) for name in tensors}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically; the same content gives the same bytes.

    safetensors' own writer orders metadata differently each time.

    Args:
        path: the file.
        tensors: by name, on any device, with the dtypes in DTYPE_NAMES; stored with wider dtypes first, so that each
            begins at a multiple of its own width, and otherwise in the order given.
        metadata: stored in the order given.

    Raises:
        UserError: the operating system refuses.
    """
    # Tensors on another device or not contiguous are copied one at a time as they are written.
    ordered = sorted(tensors.items(), key=lambda each: -each[1].element_size())
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        dtype = DTYPE_NAMES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, tensor in ordered:
                file.write(_little_endian_bytes(tensor))

    write_atomically(path, write)


def _little_endian_bytes(tensor: Tensor) -> memoryview:
    """Return the values of a tensor in sequence, as safetensors requires."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if sys.byteorder == "big":
        values = values.reshape(-1, tensor.element_size())[:, ::-1].copy()
    return values.data
