"""Safetensors files: writing the same bytes for the same content, and reading those that anybody may have made.

Names, dtypes and shapes are judged before a tensor is made. safetensors itself refuses a header that does not fit into
the file, is no JSON, or whose tensors overlap, leave gaps, end elsewhere than the file or have other sizes than their
shapes say. So what is read is never larger than the file.
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
"""What safetensors calls the dtypes that our files hold."""

Judged = TypeVar("Judged")


class Header(NamedTuple):
    """What a safetensors file says it holds."""

    metadata: dict[str, str]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Name of the dtype and shape by name of the tensor."""


def read_tensors(path: Path, judge: Callable[[Header], Judged]) -> tuple[Judged, dict[str, Tensor]]:
    """What `judge` makes of the header of `path`, and then the tensors by name, on the CPU.

    A `judge` that raises keeps the tensors from being read. The tensors may be views of the file.

    Raises:
        OSError, safetensors.SafetensorError: a file that cannot be read, or is no whole safetensors file.
    """
    # By its descriptor, because safetensors opens the name twice, and another process may put a new file there between.
    with path.open("rb") as opened, safe_open(f"/dev/fd/{opened.fileno()}", framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        tensors = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
        judged = judge(Header(file.metadata() or {}, tensors))
        return judged, {name: file.get_tensor(name) for name in tensors}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that appears whole or not at all; the same content gives the same bytes.

    safetensors' own writer puts metadata in another order each time.

    Args:
        path: of the file.
        tensors: by name, of any device and the dtypes in DTYPE_NAMES; those of wider dtypes come first in the file, so
            that each begins at a multiple of its own width, else they stand in the order given.
        metadata: in the order given.

    Raises:
        UserError: the operating system refuses.
    """
    # On another device or not contiguous a tensor is copied when its turn comes, not all of them at once.
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
    """The values of a tensor one after the other, as safetensors wants them."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    if sys.byteorder == "big":
        values = values.reshape(-1, tensor.element_size())[:, ::-1].copy()
    return values.data
