"""Element-wise activations by name, on tensors of any shape and floating dtype."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "celu": functools.partial(F.celu, alpha=0.3),  # the alpha of cifar10-fast's bag of tricks
}
