"""The device of a run: which one it is, the dtypes it works in, and how its time is taken."""

import time
from typing import Any

import torch

from .errors import UserError
from .ranks import launched
from .recipe import Recipe

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def dtype_name(dtype: torch.dtype) -> str:
    """The name that DTYPES and stored files have for `dtype`."""
    return str(dtype).removeprefix("torch.")


def pick_device(name: str) -> torch.device:
    """The device called `name`, made ready; `auto` is the GPU if there is one, else the CPU.

    With a launcher `auto` and `cuda` are the GPU of this rank.

    Raises:
        UserError: unknown device, or CUDA asked for and absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    ranks = launched()
    if name == "cuda" and ranks.size > 1:
        name = f"cuda:{ranks.local_rank}"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:0") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UserError(f"device {name!r} is not supported: choose auto, cpu, cuda or cuda:0")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA GPU here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        where = f"rank {ranks.rank} takes {name}" if ranks.size > 1 else f"--device {name}"
        raise UserError(f"{where}: there are only {torch.cuda.device_count()} CUDA GPUs")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # a few shapes, met hundreds of times: let cuDNN try its ways
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # kernels are launched on the current device, wherever their tensors are
    return device


def pick_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations that `recipe` means on `device`."""
    if recipe.dtype != "auto":
        return DTYPES[recipe.dtype]
    if device.type == "cuda":
        return torch.float16
    able = torch.cpu.get_capabilities()
    fast = able.get("amx_bf16", False) or able.get("avx512_bf16", False)
    return torch.bfloat16 if recipe.optimizer.master_weights and fast else torch.float32


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Marks:
    """Moments in the work of a device, taken without waiting for it.

    Args:
        device: on CUDA a mark is an event between two kernels; on a CPU, which is never behind, it is the time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def add(self) -> None:
        """Mark the end of all work that has been issued."""
        if self._device.type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds from the first mark to each later one; the device has to be done with its work."""
        if self._device.type == "cuda":
            return [self._marks[0].elapsed_time(mark) / 1e3 for mark in self._marks[1:]]
        return [mark - self._marks[0] for mark in self._marks[1:]]
