"""Agreement of a kernel with its reference, as measured by tests and commands."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .contract import Kernel, Operation, RandomTensors

_TIMES = 4
"""Factor by which a kernel's error may exceed that of PyTorch's own arithmetic in the same dtype."""
_LEAST = 5e-7
"""Error of float32 sums in any order."""


class Agreement(NamedTuple):
    """Error of one tensor against the float64 reference, and its tolerance."""

    tensor: str
    """Such as result, gradient of x, or running_mean afterwards."""
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.allowed


def error(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference, relative to that of the expected values."""
    difference = found.detach().double() - expected.detach().double()
    return float(difference.square().mean().sqrt() / expected.detach().double().square().mean().sqrt().clamp_min(1e-30))


def _worst(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest expected value; it reveals errors in a few values."""
    difference = found.detach().double() - expected.detach().double()
    return float(difference.abs().max() / expected.detach().double().abs().max().clamp_min(1e-30))


def agreements(kernel: Kernel, operation: Operation, device: torch.device, seed: int = 0) -> list[Agreement]:
    """Compare a kernel with its reference in float64: results, gradients, and the inputs after the call.

    Each tensor is compared by the root mean square of its differences and by the largest of them. The tolerance is a
    multiple of the reference's error in the dtype of the operation, and never less than the rounding of that dtype.

    Raises:
        ValueError: the two return different tensors, or one of them lacks a gradient.
    """
    inputs = kernel.inputs(operation, device, seed)
    expected = _everything(kernel.reference, _in_float64(inputs), seed)
    own, found = _everything(kernel.reference, inputs, seed), _everything(kernel.function, inputs, seed)
    if [(name, each.shape) for name, each in found.items()] != [(name, each.shape) for name, each in expected.items()]:
        shapes = {name: list(each.shape) for name, each in found.items()}
        raise ValueError(f"gives {shapes}, not { ({name: list(each.shape) for name, each in expected.items()}) }")
    compared = []
    for name, exact in expected.items():
        if not exact.is_floating_point():
            compared.append(Agreement(name, float((found[name] != exact).double().mean()), 0.0))
            continue
        least = max(torch.finfo(operation.dtype).eps, _LEAST)
        for measure in (error, _worst):
            allowed = _TIMES * max(measure(own[name], exact), least / (_TIMES if measure is error else 1))
            compared.append(Agreement(name, measure(found[name], exact), allowed))
    return compared


def _in_float64(inputs: Mapping[str, Any]) -> dict[str, Any]:
    def wide(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.detach().double().requires_grad_(value.requires_grad)
        return torch.float64 if isinstance(value, torch.dtype) else value

    return {name: wide(value) for name, value in inputs.items()}


def _everything(function: Callable[..., Any], inputs: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Return what a training step sees of a call: results, requested gradients, and other inputs after the call."""
    given = {name: _copied(value) for name, value in inputs.items()}
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    trained = {name: value for name, value in tensors.items() if value.requires_grad}
    results = [each for each in tree_leaves(function(**given)) if isinstance(each, Tensor)]
    found = {f"result {number}" if number else "result": each for number, each in enumerate(results)}
    if trained:
        differentiable = [each for each in results if each.requires_grad]
        if not differentiable:
            raise ValueError("gives a result without gradients")
        draw = RandomTensors(results[0].device, seed + 100)
        factors = [draw.normal(*each.shape).to(each.dtype) for each in differentiable]
        gradients = torch.autograd.grad(differentiable, list(trained.values()), factors, allow_unused=True)
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is None:
                raise ValueError(f"gives no gradient of {name}")
            found[f"gradient of {name}"] = gradient
    rest = {f"{name} afterwards": each for name, each in tensors.items() if name not in trained}
    return found | rest


def _copied(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)


def worst(found: list[Agreement]) -> Agreement:
    """Return the agreement with the largest error relative to its tolerance."""
    return max(found, key=_excess)


def _excess(each: Agreement) -> float:
    if each.error != each.error:
        return float("inf")
    return each.error / each.allowed if each.allowed else float("inf") if each.error else 0.0
