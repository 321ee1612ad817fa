"""David Page's cut-away chart: what a step costs as its layers are put back on the convolutions, one after the other.

Every rung is measured, not derived from a profile: each trained convolution on its own inputs, forward and the
gradients that a step takes of it; the whole net with its loss, forward and backward, on one batch; the same with
optimizer and averaging; the real step. Rungs run as the backend runs a step, so what a compiler fuses is fused, and the
gradients of the first two go into buffers, as they would be lost to the compiler otherwise. With `torchscript` only the
last rung is traced.

Source of the idea: David Page, "How to train your ResNet 3: regularisation" (myrtle.ai, 2018).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speedyresnet.engine.backends import Variant, regions_of, run_as
from speedyresnet.engine.nets import Convolution
from speedyresnet.engine.optim import ParameterGroup
from speedyresnet.engine.step import (
    Regions,
    TrainingState,
    first_map_of,
    losses_and_logits,
    parameters_of,
    step_batch,
)
from speedyresnet.engine.trainer import Trainer
from speedyresnet.kernels.augment import Batch

from .step_time import timed_round

RUNGS = ("convolutions only", "+ norm, activation, pool and loss", "+ optimizer and averaging", "+ data")


def convolution_inputs(state: TrainingState, images: Tensor) -> list[tuple[Convolution, Tensor]]:
    """Every trained convolution in the order of the net, with its input [B, C, H, W]."""
    found: list[tuple[Convolution, Tensor]] = []
    trained = [each for each in state.net.modules() if isinstance(each, Convolution) and each.weight.requires_grad]
    hooks = [
        each.register_forward_pre_hook(lambda module, inputs: found.append((module, inputs[0].detach())))
        for each in trained
    ]
    with torch.no_grad():
        state.net(images, state.whitens_batches)
    for hook in hooks:
        hook.remove()
    return found


def _convolve(pairs: Sequence[tuple[Convolution, Tensor]], kept: list[Tensor | None]) -> None:
    """Forward of each convolution alone, and its gradients where `kept` has a tensor for that of its weights."""
    for (convolution, x), buffer in zip(pairs, kept, strict=True):
        y = convolution(x)
        if buffer is not None:
            wanted = [tensor for tensor in (convolution.weight, x) if tensor.requires_grad]
            buffer.copy_(torch.autograd.grad(y, wanted, y.detach())[0])


class _Given(NamedTuple):
    """What the rungs above the convolutions work on."""

    state: TrainingState
    batch: Batch
    variant: Variant
    groups: Mapping[str, ParameterGroup]
    regions: Regions


def _gradients(given: _Given) -> list[Tensor]:
    state = given.state
    first_map = first_map_of(state, given.batch.images, first_group=given.variant.first_group)
    losses, _ = losses_and_logits(state, first_map, given.batch, given.regions.head_losses)
    return list(torch.autograd.grad(losses.sum() * state.recipe.loss.scale, parameters_of(given.groups)))


def _differentiate(given: _Given) -> None:
    """Forward and backward of the net, nothing else; the gradients are put where momentum belongs."""
    buffers = [buffer for group in given.groups.values() for buffer in group.momentum_buffers]
    torch._foreach_copy_(buffers, _gradients(given))


def _update(given: _Given) -> None:
    """All of a step but its batch."""
    state, gradients = given.state, _gradients(given)
    with torch.no_grad():
        given.regions.optimize_(state, given.groups, gradients)
        if state.averages and given.variant.averaging:
            given.regions.average_(state)
        state.counter.add_(1)


def rungs_of(trainer: Trainer) -> list[Callable[[], None]]:
    """The functions of `RUNGS`, for the kind of step that a run takes most often."""
    state, variant = trainer.state, trainer.main_variant
    with torch.no_grad():
        batch = step_batch(state, whitening_bias=False, cutmix=variant.cutmix, size=variant.size)
    trains_bias = variant.whitening_bias and not state.whitens_batches  # the fused stem belongs to the data
    groups = state.trained_groups(whitening_bias=trains_bias, first_group=variant.first_group)
    pairs, trained = convolution_inputs(state, batch.images), {id(each) for each in parameters_of(groups)}
    kept = [torch.empty_like(each.weight) if id(each.weight) in trained else None for each, _ in pairs]
    for index, (_, x) in enumerate(pairs):  # the input of the first that is trained depends on nothing but the bias
        x.requires_grad_(any(each is not None for each in kept[:index]) or variant.whitening_bias)
    given = _Given(state, batch, variant, groups, regions_of(trainer.backend))
    rungs: list[Callable[[], None]] = [
        functools.partial(_convolve, pairs, kept),
        functools.partial(_differentiate, given),
        functools.partial(_update, given),
    ]
    return [*(run_as(trainer.backend, rung, state) for rung in rungs), trainer.main_step]


def ladder(trainer: Trainer, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Median seconds a step of each rung over `rounds` rounds in turns; leaves the trainer's state spoilt.

    Args:
        trainer: prepared.
        rounds: every other one runs backwards, so that drift hits all alike.
        steps: a round, at most those of a run.
    """
    trainer.net.train()
    functions = rungs_of(trainer)
    samples: list[list[float]] = [[] for _ in functions]
    for function in functions:  # compilation
        timed_round(trainer, 1, function)
    for number in range(rounds):
        order = range(len(functions))
        for place in order if number % 2 == 0 else reversed(order):
            samples[place].append(timed_round(trainer, steps, functions[place])[0])
    return [{"name": name, "step_seconds": median(values)} for name, values in zip(RUNGS, samples, strict=True)]
