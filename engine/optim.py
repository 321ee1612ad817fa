"""Updates of whole lists of tensors in place, with rates that are device tensors: nothing here asks the host."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .recipe import Muon

MOST_GRAM_STEPS = 3
"""Iterations of Newton-Schulz that are done in Gram form."""
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

    def only(self, wanted: Callable[[Tensor], bool]) -> "ParameterGroup":
        """The parameters that are wanted, with their buffers."""
        pairs = [pair for pair in zip(self.parameters, self.momentum_buffers, strict=True) if wanted(pair[0])]
        parameters, buffers = ([pair[side] for pair in pairs] for side in (0, 1))
        return ParameterGroup(parameters, self.learning_rate, self.weight_decay, buffers)


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

    Each is divided by its Frobenius norm, then x <- p x with p = a + b g + c g^2 and g = x x^T, so many times. Up to
    three times this is done in Gram form: p commutes with g, so g <- p g p follows x without it, and the wide matrix is
    multiplied twice in all instead of twice an iteration. Rounding grows faster that way: at three iterations the error
    in half precision is at most twice as large (test_optim.py), at five it is ten times and more for matrices of
    falling singular values, so more iterations take g anew from x each time.
    Rows and columns of zeros stay zeros and change nothing; wide matrices cost less than tall ones.
    Source: Keller Jordan, "Muon: an optimizer for hidden layers" (2024).

    Args:
        matrices: [n, rows, columns], float32 or float64, in which the norms are taken.
        settings: steps, coefficients a, b, c and dtype of the iteration.

    Returns:
        [n, rows, columns] in the dtype of the iteration.
    """
    a, b, c = settings.newton_schulz_coefficients
    dtype: torch.dtype = getattr(torch, settings.newton_schulz_dtype)
    x = normalised(matrices, UPDATE_EPSILON).to(dtype)
    identity = torch.eye(x.shape[1], dtype=dtype, device=x.device)

    def polynomial(gram: Tensor) -> Tensor:
        # Instead of three products with x: what is small is added up, not what is wide.
        return a * identity + b * gram + c * (gram @ gram)

    steps = settings.newton_schulz_steps
    if steps > MOST_GRAM_STEPS:
        for _ in range(steps):
            x = polynomial(x @ x.mT) @ x
        return x
    gram, product = x @ x.mT, identity
    for step in range(steps):
        factor = polynomial(gram)
        product = factor @ product if step else factor
        if step < steps - 1:
            gram = factor @ gram @ factor
    return product @ x if steps else x


def muon_(
    group: ParameterGroup, gradients: list[Tensor], learning_rate: Tensor, renormalise: Tensor, settings: Muon
) -> None:
    """One step of Muon, in place, on weights of convolutions, each taken as a matrix [C_out, C_in * kernel**2].

    buffer <- momentum * buffer + gradient;  w <- w * sqrt(C_out) / |w| where `renormalise` is 1;
    w <- (w - learning_rate * newton_schulz(gradient + momentum * buffer)) * (1 - learning_rate * weight_decay).
    All are computed together, in float32 at least, and rounded once: one by one, they would be dozens of launches that
    each take a GPU longer to begin than to do.
    Sources: KellerJordan/cifar10-airbench; hiverge/cifar10-speedrun for cadence, decay and padding to one shape.

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
    weights = group.parameters
    old = _as_matrices(weights)
    norms = torch.stack([old.new_full((1, 1), math.sqrt(len(each))) for each in weights])
    old = torch.where(renormalise > 0, norms * normalised(old), old)
    update = newton_schulz(_as_matrices(directions), settings).to(old.dtype)
    new = (old - learning_rate * update) * (1 - learning_rate * group.weight_decay)
    torch._foreach_copy_(weights, [_as_filters(*each) for each in zip(new.unbind(), weights, strict=True)])


def _as_matrices(filters: Sequence[Tensor]) -> Tensor:
    """Tensors [C_out, C_in, h, w] -> [n, rows, columns], in float32 at least: wide matrices and zeros around them.

    A matrix is [C_out, h * w * C_in], or its transpose where that has more columns. Nothing in Muon depends on the
    order of h, w and C_in; this one is that of channels_last memory.
    """
    matrices = [each.permute(0, 2, 3, 1).flatten(1) for each in filters]
    wide = [each.T if each.shape[0] > each.shape[1] else each for each in matrices]
    rows, columns = (max(each.shape[side] for each in wide) for side in (0, 1))
    padded = torch.stack([F.pad(each, (0, columns - each.shape[1], 0, rows - each.shape[0])) for each in wide])
    return padded.to(torch.promote_types(padded.dtype, torch.float32))


def _as_filters(matrix: Tensor, filters: Tensor) -> Tensor:
    """What is in a matrix of `_as_matrices` at the place of `filters`, in their shape."""
    outputs, inputs, height, width = filters.shape
    columns = filters[0].numel()
    own = matrix[:columns, :outputs].T if outputs > columns else matrix[:outputs, :columns]
    return own.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def mix_(destination: list[Tensor], source: list[Tensor], keep: Tensor) -> None:
    """Destination <- keep * destination + (1 - keep) * source, in place; exact for keep 0 and 1.

    Args:
        destination: tensors of any one dtype.
        source: as many, of the same shapes and dtype.
        keep: 0-d tensor in [0, 1].
    """
    torch._foreach_mul_(destination, keep)
    torch._foreach_add_(destination, torch._foreach_mul(source, 1 - keep))


def nesterov_mix_(
    slow: list[Tensor], live: list[Tensor], velocity: list[Tensor], keep: Tensor, moves: Tensor, momentum: float
) -> None:
    """`mix_` live weights into slow ones as a step of Nesterov momentum, in place.

    With g = slow - live, velocities that start at zero and `moves` 1:
    velocity <- momentum * velocity + g;  slow <- slow - (1 - keep) * (g + momentum * velocity).
    That is torch.optim.SGD(nesterov=True) at the learning rate 1 - keep, and `mix_` where momentum is 0. With `moves` 0
    it is `mix_`, and the velocities stay. Source of the idea: the outer optimizer of Douillard et al., "DiLoCo:
    Distributed Low-Communication Training of Language Models" (2023).

    Args:
        slow: tensors of any one dtype.
        live: as many, of the same shapes and dtype.
        velocity: as many, of the same shapes and dtype.
        keep: 0-d tensor in [0, 1].
        moves: 0-d tensor, 0 or 1, of the dtype of `keep`.
        momentum: in [0, 1).
    """
    gradients = torch._foreach_sub(slow, live)
    torch._foreach_mul_(velocity, 1 - moves * (1 - momentum))
    torch._foreach_add_(velocity, torch._foreach_mul(gradients, moves))
    mix_(slow, live, keep)
    torch._foreach_sub_(slow, torch._foreach_mul(velocity, moves * (1 - keep) * momentum))
