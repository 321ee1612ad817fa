"""How a step is executed; every backend runs `step.training_step` on the same state.

`eager` calls it. `compile` hands it to torch.compile as one graph: gradients are taken inside with
torch.autograd.grad, which Dynamo traces since torch 2.11.
"""

import functools
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch

from .errors import UserError
from .recipe import Recipe
from .schedules import Plan
from .step import TrainingState, training_step

Backend = Literal["eager", "compile"]
BACKENDS: tuple[str, ...] = get_args(Backend)


class Variant(NamedTuple):
    """What distinguishes the steps of a run."""

    whitening_bias: bool
    """The whitening bias is trained."""
    cutmix: bool
    """Squares of other images are pasted in."""


def variant_of_step(recipe: Recipe, plan: Plan, step: int) -> Variant:
    """The kind of step number `step` (0-based)."""
    epoch = step // plan.steps_per_epoch
    return Variant(
        whitening_bias=recipe.net.whitening_bias and step < plan.whitening_bias_steps,
        cutmix=plan.first_cutmix_epoch is not None and epoch >= plan.first_cutmix_epoch,
    )


def most_common_variant(recipe: Recipe, plan: Plan) -> Variant:
    """The kind of step that a run takes most often."""
    kinds = Counter(variant_of_step(recipe, plan, step) for step in range(plan.steps))
    return kinds.most_common(1)[0][0]


def check_backend(backend: str, device: torch.device) -> None:
    """Raise UserError for an unknown backend, or one that this machine cannot run."""
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}: choose {' or '.join(BACKENDS)}")
    if backend == "compile" and device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("--backend compile needs a C++ compiler on a CPU; use --backend eager")


def make_step(state: TrainingState, backend: str, variant: Variant) -> Callable[[], None]:
    """A function without arguments that moves `state` one step on; `backend` has passed `check_backend`."""
    step = functools.partial(training_step, state, **variant._asdict())
    if backend == "eager":
        return step
    torch._dynamo.config.trace_autograd_ops = True
    return torch.compile(step, fullgraph=True, dynamic=False)
