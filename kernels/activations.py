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
def _normal_share_device(x):
    """The share of a normal distribution below float32 x, (1 + erf(x / sqrt(2))) / 2, to 1e-7.

    The tail beyond |x| is 2 to the power of a polynomial in |x|, whose coefficients make the largest error of the share
    as small as it gets. CUDA's own erf chooses between two series and takes twice as many instructions.
    """
    size = tl.abs(x)
    power = -2.83491227e-06 * size + 3.9377684e-05
    power = power * size - 0.000186180204
    power = power * size - 0.000136936461
    power = power * size + 0.00706342024
    power = power * size - 0.0524961784
    power = power * size - 0.459208197
    power = power * size - 1.15110521
    tail = tl.exp2(power * size - 1.0)
    return tl.where(x < 0.0, tail, 1.0 - tail)


@triton.jit
def activated_device(x, KIND: tl.constexpr, ALPHA: tl.constexpr):
    """Return the activation KIND of float32 values; `none` leaves them unchanged. ALPHA is CELU's."""
    if KIND == "gelu":
        x *= _normal_share_device(x)
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
        slope = _normal_share_device(x) + x * density
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
