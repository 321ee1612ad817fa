"""Updates of whole lists of tensors in place, with rates that are device tensors: nothing here asks the host."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True)
class ParameterGroup:
    """Parameters that share a learning rate and a decay, with their momentum buffers."""

    parameters: list[Tensor]
    learning_rate: float
    """Peak, for the loss summed over the batch and scaled."""
    weight_decay: float
    momentum_buffers: list[Tensor]


def nesterov_sgd_(group: ParameterGroup, gradients: list[Tensor], learning_rate: Tensor, momentum: float) -> None:
    """One step of SGD with Nesterov momentum, as torch.optim.SGD(nesterov=True) defines it, in place.

    With d = gradient + weight_decay * p and buffers that start at zero:
    buffer <- momentum * buffer + d;  p <- p - learning_rate * (d + momentum * buffer).

    Args:
        group: parameters and buffers, changed in place.
        gradients: one for each parameter.
        learning_rate: 0-d tensor, that of this step.
        momentum: in [0, 1).
    """
    directions = torch._foreach_add(gradients, group.parameters, alpha=group.weight_decay)
    torch._foreach_mul_(group.momentum_buffers, momentum)
    torch._foreach_add_(group.momentum_buffers, directions)
    steps = torch._foreach_add(directions, group.momentum_buffers, alpha=momentum)
    torch._foreach_mul_(steps, learning_rate)
    torch._foreach_sub_(group.parameters, steps)


def mix_(destination: list[Tensor], source: list[Tensor], keep: Tensor) -> None:
    """Destination <- keep * destination + (1 - keep) * source, in place; exact for keep 0 and 1.

    Args:
        destination: tensors of any one dtype.
        source: as many, of the same shapes and dtype.
        keep: 0-d tensor in [0, 1].
    """
    torch._foreach_mul_(destination, keep)
    torch._foreach_add_(destination, torch._foreach_mul(source, 1 - keep))
