"""What a kernel file promises: one `KERNEL` that says what it computes, for what, where, and how it is checked.

A file of this folder that ends with `KERNEL = Kernel(...)` is found by `registered`; nothing else has to name it. The
same promise is all that a kernel from outside the package needs.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

REFERENCE, TRITON = "reference", "triton"
"""Providers of an operation: plain PyTorch, and the kernel that this package ships."""
_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
HALF_AND_SINGLE = tuple(_POINTERS)


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that a net or its input pipeline computes in training, described without any tensor."""

    name: str
    shape: tuple[int, ...]
    """Of the first input: activations [N, C, H, W], or all images of the data set [N, H, W, C]."""
    dtype: torch.dtype
    """Of the activations."""
    layout: str = "channels_last"
    """Of the activations: channels_last or contiguous."""
    options: tuple[tuple[str, Any], ...] = ()
    """Everything else that the result depends on, by name, such as ("activation", "gelu")."""

    def __getitem__(self, name: str) -> Any:
        """The option `name`."""
        return dict(self.options)[name]

    def __str__(self) -> str:
        options = (f"{name} {value}" for name, value in self.options if value not in (0, "none"))
        words = "x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch."), *options
        return f"{self.name} of {', '.join(words)}"


class Target(NamedTuple):
    """Where a kernel would run."""

    device: str
    """cuda or cpu, which is Triton's interpreter."""
    capability: tuple[int, int] | None
    """Compute capability of an NVIDIA GPU."""


@dataclass(frozen=True, kw_only=True)
class CompileCase:
    """One device function with everything that its code depends on."""

    shape: str
    """What it is for, in words and numbers."""
    function: Any
    """The `@triton.jit` function."""
    arguments: dict[str, str]
    """Triton type of each argument that is no constant, such as `*fp16`; pointers are aligned to 16 bytes."""
    constants: dict[str, Any]
    warps: int
    bytes: int
    """Moved by a launch."""
    flops: int = 0
    wide_loads: bool = False
    """The layout allows loads of 16 bytes."""
    streams: bool = False
    """A reduction that reads whole tensors: its loops must not make threads exchange values or wait for each other."""
    hopper_only: bool = False
    """Made for the first target; the others do not get it."""

    @property
    def kernel(self) -> str:
        """Name of the device function."""
        return str(self.function.__name__)

    @property
    def code(self) -> tuple[Any, ...]:
        """Equal for cases that compile to the same code."""
        return (self.kernel, tuple(self.arguments.items()), tuple(self.constants.items()), self.warps)


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What a registered PyTorch operator (`speedyresnet::NAME`) moves, for the floors of `bench`."""

    bytes: Callable[[Sequence[int], Sequence[int]], dict[str, int]]
    """Bytes of each tensor that it is given and of each that it makes -> bytes that each GPU function moves."""
    reads: Callable[[Sequence[Any], Sequence[Tensor]], list[Tensor]] | None = None
    """Its arguments and results -> tensors as large as what it reads; none: it reads all that it is given."""


def all_by(gpu_function: str) -> Callable[[Sequence[int], Sequence[int]], dict[str, int]]:
    """For an operator of one launch: it moves all that the operator is given and makes."""
    return lambda reads, writes: {gpu_function: sum(reads) + sum(writes)}


def _nothing(_: Operation) -> list[CompileCase]:
    return []


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """A kernel with its reference and all that others need to know of it.

    `function` and `reference` take what `inputs` gives, as keyword arguments, and return a tensor or a tuple of tensors
    and None; both are differentiable and both change the same inputs in place, such as running statistics.
    """

    operation: str
    """Name of the operation; `function` does it in kernels."""
    function: Callable[..., Any]
    reference: Callable[..., Any]
    """Does it in plain PyTorch on any device, in float64 too."""
    fits: Callable[[Operation], str | None]
    """Why the kernel cannot do an operation, as a line that goes on behind its name; None where it can."""
    inputs: Callable[[Operation, torch.device, int], dict[str, Any]]
    """Random inputs for an operation on a device, from a seed; what wants a gradient requires it."""
    read_backward: tuple[str, ...] = ()
    """Inputs that the backward pass reads."""
    runs_on: Callable[[Operation, Target], bool] = lambda _operation, _target: True
    """Whether the kernel is made for a target."""
    auto: Callable[[Operation, Target], bool] = lambda _operation, target: target.device == "cuda"
    """Whether `kernels=auto` takes it there, where it fits and runs."""
    compile_cases: Callable[[Operation], list[CompileCase]] = _nothing
    """The device functions that an operation launches."""
    samples: tuple[Operation, ...] = ()
    """Operations to compile before those of recipes: one to compare targets by, and what only settings lead to."""
    gpu_functions: Mapping[str, str] = field(default_factory=dict)
    """Names of its device functions, each with the group that a profile reports it in."""
    followed_by_pytorch: tuple[str, ...] = ()
    """Those behind which PyTorch's own kernels run inside the same operator, to sum and to change types."""
    operators: Mapping[str, Operator] = field(default_factory=dict)
    """Its registered operators by name, without the namespace."""

    @property
    def file(self) -> str:
        """Name of its file, without the ending."""
        return str(self.function.__module__).rpartition(".")[2]

    def cases(self, operations: Iterable[Operation]) -> list[CompileCase]:
        """What to compile: for the samples, and for those of `operations` that it fits; each case once."""
        wanted = [each for each in operations if each.name == self.operation and self.fits(each) is None]
        cases = (case for each in (*self.samples, *wanted) for case in self.compile_cases(each))
        return list({(case.kernel, case.shape): case for case in cases}.values())


@functools.cache
def registered() -> dict[str, Kernel]:
    """The kernels of this package by the names of their operations."""
    package = importlib.import_module(__package__)
    files = (importlib.import_module(f"{__package__}.{found.name}") for found in pkgutil.iter_modules(package.__path__))
    kernels = (getattr(file, "KERNEL", None) for file in files)
    return {kernel.operation: kernel for kernel in kernels if isinstance(kernel, Kernel)}


_OUTSIDE: dict[tuple[str, str], Kernel] = {}
"""Kernels that this package does not ship, by operation and provider."""


def add_outside_kernel(provider: str, kernel: Kernel) -> None:
    """Let `kernel_called` know a kernel from outside; a provider names one content, such as a file with its hash."""
    _OUTSIDE[kernel.operation, provider] = kernel


def outside_providers(operation: str) -> list[str]:
    """The providers of an operation that `add_outside_kernel` was told of."""
    return [provider for name, provider in _OUTSIDE if name == operation]


def kernel_called(operation: str, provider: str) -> Kernel:
    """The kernel of an operation that `provider` names.

    Raises:
        ValueError: there is none.
    """
    if provider == TRITON and operation in registered():
        return registered()[operation]
    if (operation, provider) not in _OUTSIDE:
        raise ValueError(f"no kernel {provider} of {operation} is known here")
    return _OUTSIDE[operation, provider]


def common_refusal(operation: Operation) -> str | None:
    """Why no kernel for activations in channels_last fits `operation`; what most kernels ask first in `fits`."""
    if operation.layout != "channels_last":
        return f"takes activations in channels_last, not {operation.layout}"
    if operation.dtype not in HALF_AND_SINGLE:
        return f"takes float16, bfloat16 or float32, not {operation.dtype}"
    return None


def pointer_type(dtype: torch.dtype) -> str:
    """Triton's type of a pointer to a tensor of `dtype`."""
    return _POINTERS[dtype]


class RandomTensors:
    """Random tensors on a device, from a seed; on the meta device their shapes."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self._device = device
        self._generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0) -> Tensor:
        """Values around `mean` with a deviation of 1; of four dimensions in channels_last."""
        made = (torch.randn(shape, generator=self._generator, device=self._device) + mean).to(dtype)
        return made.to(memory_format=torch.channels_last) if len(shape) == 4 else made

    def uniform(self, *shape: int, least: float = 0.0) -> Tensor:
        """float32 values in [least, least + 1)."""
        return torch.rand(shape, generator=self._generator, device=self._device) + least

    def integers(self, *shape: int, below: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Integers in [0, below)."""
        return torch.randint(0, below, shape, generator=self._generator, device=self._device, dtype=dtype)
