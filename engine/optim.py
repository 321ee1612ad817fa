"""Updates of whole lists of tensors in place, with rates that are device tensors: nothing here asks the host."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .recipe import Muon

UPDATE_EPSILON = 1e-7
"""Added to the norms of updates, so that a gradient of zero moves nothing."""


@dataclass(slots=True)
class ParameterGroup:
    """Parameters that share a learning rate and a decay, with their momentum buffers."""

    parameters: list[Tensor]
    learning_rate: float
    """Peak; of SGD for the loss summed over the batch and scaled."""
    weight_decay: float
    """Likewise."""
    momentum_buffers: list[Tensor]


def nesterov_sgd_(
    group: ParameterGroup, gradients: list[Tensor], learning_rate: Tensor, momentum: float, *, rate_inside: bool = False
) -> None:
    """One step of SGD with Nesterov momentum, as torch.optim.SGD(nesterov=True) defines it, in place.

    With d = gradient + weight_decay * p and buffers that start at zero:
    buffer <- momentum * buffer + d;  p <- p - learning_rate * (d + momentum * buffer).
    With `rate_inside`, as cifar10-fast has it, d = learning_rate * (gradient + weight_decay * p):
    buffer <- momentum * buffer + d;  p <- p - (d + momentum * buffer).

    Args:
        group: parameters and buffers, changed in place.
        gradients: one for each parameter.
        learning_rate: 0-d tensor, that of this step.
        momentum: in [0, 1).
        rate_inside: the buffers hold steps, each at the learning rate it was taken with.
    """
    directions = torch._foreach_add(gradients, group.parameters, alpha=group.weight_decay)
    if rate_inside:
        torch._foreach_mul_(directions, learning_rate)
    torch._foreach_mul_(group.momentum_buffers, momentum)
    torch._foreach_add_(group.momentum_buffers, directions)
    steps = torch._foreach_add(directions, group.momentum_buffers, alpha=momentum)
    if not rate_inside:
        torch._foreach_mul_(steps, learning_rate)
    torch._foreach_sub_(group.parameters, steps)


def normalised(matrices: Tensor, epsilon: float = 0.0) -> Tensor:
    """Each matrix of [n, rows, columns] divided by its Frobenius norm plus epsilon."""
    norms: Tensor = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    return matrices / (norms + epsilon)


def newton_schulz(matrices: Tensor, settings: Muon) -> Tensor:
    """What is near the orthogonal factor U V^T of each matrix U S V^T, by a quintic iteration.

    Each is divided by its Frobenius norm, then x <- a x + b (x x^T) x + c (x x^T)^2 x so many times; matrices with
    more rows than columns are transposed for it. Source: Keller Jordan, "Muon: an optimizer for hidden layers" (2024).

    Args:
        matrices: [n, rows, columns], float32 or float64, in which the norms are taken.
        settings: steps, coefficients a, b, c and dtype of the iteration.

    Returns:
        [n, rows, columns] in the dtype of the iteration.
    """
    a, b, c = settings.newton_schulz_coefficients
    dtype: torch.dtype = getattr(torch, settings.newton_schulz_dtype)
    tall = matrices.shape[1] > matrices.shape[2]
    x = normalised(matrices.mT if tall else matrices, UPDATE_EPSILON).to(dtype)
    for _ in range(settings.newton_schulz_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_(
    group: ParameterGroup, gradients: list[Tensor], learning_rate: Tensor, renormalise: Tensor, settings: Muon
) -> None:
    """One step of Muon, in place, on weights of convolutions, each taken as a matrix [C_out, C_in * kernel**2].

    buffer <- momentum * buffer + gradient;  w <- w * sqrt(C_out) / |w| where `renormalise` is 1;
    w <- (w - learning_rate * newton_schulz(gradient + momentum * buffer)) * (1 - learning_rate * weight_decay).
    Weights of one shape are computed together, in float32 at least, and rounded once.
    Sources: KellerJordan/cifar10-airbench; hiverge/cifar10-speedrun for cadence and decay.

    Args:
        group: parameters [C_out, C_in, kernel, kernel] and buffers, changed in place.
        gradients: one for each parameter.
        learning_rate: 0-d tensor, that of this step.
        renormalise: 0-d tensor, 0 or 1.
        settings: momentum and the iteration.
    """
    torch._foreach_mul_(group.momentum_buffers, settings.momentum)
    torch._foreach_add_(group.momentum_buffers, gradients)
    directions = torch._foreach_add(gradients, group.momentum_buffers, alpha=settings.momentum)
    shrink = 1 - learning_rate * group.weight_decay
    for places in _places_by_shape(group.parameters):
        weights = [group.parameters[place] for place in places]
        old, direction = _as_matrices(weights), _as_matrices([directions[place] for place in places])
        old = torch.where(renormalise > 0, math.sqrt(old.shape[1]) * normalised(old), old)
        update = newton_schulz(direction, settings).to(old.dtype)
        torch._foreach_copy_(weights, _as_filters((old - learning_rate * update) * shrink, weights[0].shape))


def _places_by_shape(tensors: list[Tensor]) -> list[list[int]]:
    """The places of `tensors` in their list, one list for each shape."""
    places: dict[torch.Size, list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault(tensor.shape, []).append(place)
    return list(places.values())


def _as_matrices(filters: list[Tensor]) -> Tensor:
    """Tensors [C_out, C_in, h, w] -> [n, C_out, h * w * C_in], in float32 at least.

    Nothing in Muon depends on the order of the columns; this one is that of channels_last memory.
    """
    stacked = torch.stack([each.permute(0, 2, 3, 1) for each in filters])
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32)).flatten(2)


def _as_filters(matrices: Tensor, shape: torch.Size) -> list[Tensor]:
    """What `_as_matrices` was made from."""
    outputs, inputs, height, width = shape
    return list(matrices.view(-1, outputs, height, width, inputs).permute(0, 1, 4, 2, 3).unbind())


def mix_(destination: list[Tensor], source: list[Tensor], keep: Tensor) -> None:
    """Destination <- keep * destination + (1 - keep) * source, in place; exact for keep 0 and 1.

    Args:
        destination: tensors of any one dtype.
        source: as many, of the same shapes and dtype.
        keep: 0-d tensor in [0, 1].
    """
    torch._foreach_mul_(destination, keep)
    torch._foreach_add_(destination, torch._foreach_mul(source, 1 - keep))
