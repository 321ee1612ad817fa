"""How a step is executed; every backend runs `step.training_step` on the same state.

`eager` calls it. `compile` hands it to torch.compile as one graph: gradients are taken inside with
torch.autograd.grad, which Dynamo traces since torch 2.11.
"""

import functools
import shutil
from collections.abc import Callable
from typing import Literal, get_args

import torch

from .errors import UserError
from .step import TrainingState, training_step

Backend = Literal["eager", "compile"]
BACKENDS: tuple[str, ...] = get_args(Backend)

Variant = tuple[bool, bool]
"""(whitening bias trained, cutmix on): what distinguishes the steps of a run."""


class UnavailableBackendError(UserError):
    """This machine lacks what a backend needs."""


def make_step(state: TrainingState, backend: str, variant: Variant) -> Callable[[], None]:
    """A function without arguments that moves `state` one step on.

    Raises:
        UserError: unknown backend, or one that this machine cannot run.
    """
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}: choose {' or '.join(BACKENDS)}")
    whitening_bias, cutmix = variant
    step = functools.partial(training_step, state, whitening_bias=whitening_bias, cutmix=cutmix)
    return step if backend == "eager" else _compiled(step, state.counter.device.type)


def _compiled(step: Callable[[], None], device: str) -> Callable[[], None]:
    if device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UnavailableBackendError("--backend compile needs a C++ compiler on a CPU; use --backend eager")
    torch._dynamo.config.trace_autograd_ops = True
    return torch.compile(step, fullgraph=True, dynamic=False)


def reset_compiler() -> None:
    """Forget compiled steps of earlier runs, which would count against the recompilation limit."""
    torch._dynamo.reset()
