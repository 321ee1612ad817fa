"""Element-wise activations by name: as PyTorch functions for any shape and floating dtype, and as device functions."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .language import tl, triton

CELU_ALPHA = 0.3
"""Alpha of CELU in cifar10-fast's bag of tricks."""

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "celu": functools.partial(F.celu, alpha=CELU_ALPHA),
}
ACTIVATION_CHOICES = ("none", *ACTIVATIONS)


@triton.jit
def _tanh_device(x):
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def activated_device(x, KIND: tl.constexpr, ALPHA: tl.constexpr):
    """Return the activation KIND of float32 values; `none` leaves them unchanged. ALPHA is CELU's."""
    if KIND == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if KIND == "gelu_tanh":
        x = 0.5 * x * (1.0 + _tanh_device(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    if KIND == "silu":
        x = x * tl.sigmoid(x)
    if KIND == "relu":
        x = tl.where(x < 0.0, 0.0, x)  # not maximum, which loses NaN
    if KIND == "celu":
        x = tl.where(x < 0.0, ALPHA * (tl.exp(x / ALPHA) - 1.0), x)
    return x


@triton.jit
def activation_slope_device(x, KIND: tl.constexpr, ALPHA: tl.constexpr):
    """Return the derivative of `activated_device` at x; that of ReLU at 0 is 0, as in PyTorch."""
    slope = tl.full(x.shape, 1.0, tl.float32)
    if KIND == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        slope = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * density
    if KIND == "gelu_tanh":
        tanh = _tanh_device(0.7978845608028654 * (x + 0.044715 * x * x * x))
        slope = 0.5 * (1.0 + tanh)
        slope += 0.5 * x * (1.0 - tanh * tanh) * 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x)
    if KIND == "silu":
        gate = tl.sigmoid(x)
        slope = gate * (1.0 + x * (1.0 - gate))
    if KIND == "relu":
        slope = tl.where(x <= 0.0, 0.0, 1.0)
    if KIND == "celu":
        slope = tl.where(x <= 0.0, tl.exp(x / ALPHA), 1.0)
    return slope
