"""How a step is executed; every backend runs `step.training_step` on the same state.

`eager` calls it. `compile` hands it to torch.compile as one graph: gradients are taken inside with
torch.autograd.grad, which Dynamo traces since torch 2.11.
"""

import functools
import shutil
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch

from .errors import UserError
from .step import TrainingState, training_step

Backend = Literal["eager", "compile"]
BACKENDS: tuple[str, ...] = get_args(Backend)

class Variant(NamedTuple):
    """What distinguishes the steps of a run."""

    whitening_bias: bool
    """The whitening bias is trained."""
    cutmix: bool
    """Squares of other images are pasted in."""



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
