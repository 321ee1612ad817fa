"""Reading safetensors files that anybody may have made: names, dtypes and shapes are judged before a tensor is made.

safetensors itself refuses a header that does not fit into the file, is no JSON, or whose tensors overlap, leave gaps,
end elsewhere than the file or have other sizes than their shapes say. So what is read is never larger than the file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

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
