"""How a step is executed; every backend runs `step.training_step` on the same state.

- `eager` calls it.
- `torchscript` traces net and loss with torch.jit and runs the rest of the step eagerly: plain PyTorch operations only.
- `compile` hands the step to torch.compile as one graph: gradients are taken inside with torch.autograd.grad, which
  Dynamo traces since torch 2.11.
- `capture` captures the eager step as a CUDA graph and replays it: one launch a step. See `graphs.py`.
- `graph` captures a step whose regions are compiled: the head with the loss, the optimizer, and averaging. The rest is
  convolutions and kernels of ours, in which a compiler has nothing to fuse, and which it would compile anew for every
  size of the images.
"""

import functools
import logging
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .errors import UserError
from .evaluate import LabelledImages, device_scores, forward_of
from .graphs import CapturedFunction, CapturedStep, Result, memory_of
from .recipe import Recipe, View
from .schedules import Plan
from .scoring import folded_state, scoring_net
from .step import Regions, TrainingState, training_step
from .torchscript import TracedForward, torchscript_obstacle

LOG = logging.getLogger("speedyresnet")
"""Gets the traceback of each failure that the user is told in one line, at level DEBUG; `--debug` prints it."""
Backend = Literal["eager", "torchscript", "compile", "capture", "graph"]
BACKENDS: tuple[str, ...] = get_args(Backend)
COMPILING = ("compile", "graph")
"""Those that torch.compile prepares."""
CAPTURING = ("capture", "graph")
"""Those that replay CUDA graphs."""
Compiler = Callable[..., Any] | None
"""What torch.compile takes as its backend; none: what it takes by itself, Inductor."""
_COMPILATIONS = 256
"""Of one function in one process: every step and every evaluation of every trainer is one (PyTorch's limit: 8)."""
AUTO = "auto"
"""The first of the device's default backends that does not fail."""


class BackendError(UserError):
    """Tracing, compilation or capture failed."""


class Variant(NamedTuple):
    """What distinguishes the steps of a run."""

    whitening_bias: bool
    """The whitening bias is trained."""
    cutmix: bool
    """Squares of other images are pasted in."""
    size: int = 0
    """Side that images are scaled down to; 0: not at all."""
    averaging: bool = True
    """The average moves, where the recipe has one; false before it begins."""
    first_group: bool = True
    """Group 1 is trained."""


def variant_of_step(recipe: Recipe, plan: Plan, step: int) -> Variant:
    """The kind of step number `step` (0-based)."""
    epoch, sizes = step // plan.steps_per_epoch, recipe.augmentation.sizes
    return Variant(
        whitening_bias=recipe.net.whitening_bias and step < plan.whitening_bias_steps,
        cutmix=plan.first_cutmix_epoch is not None and epoch >= plan.first_cutmix_epoch,
        size=sizes[min(epoch, len(sizes) - 1)] if sizes else 0,
        averaging=step >= (plan.first_averaging_step or 0),
        first_group=plan.first_group_steps is None or step < plan.first_group_steps,
    )


def variants_of(recipe: Recipe, plan: Plan) -> list[Variant]:
    """The kinds of steps of a run, in the order of their first step."""
    return list(dict.fromkeys(variant_of_step(recipe, plan, step) for step in range(plan.steps)))


def most_common_variant(recipe: Recipe, plan: Plan) -> Variant:
    """The kind of step that a run takes most often."""
    kinds = Counter(variant_of_step(recipe, plan, step) for step in range(plan.steps))
    return kinds.most_common(1)[0][0]


def default_backends(device: torch.device) -> tuple[str, ...]:
    """What `auto` tries, one after the other; on a CPU compile was slower than eager (bench/LOG.md)."""
    return ("graph", "capture", "eager") if device.type == "cuda" else ("eager",)


def default_backend(device: torch.device) -> str:
    """What `auto` tries first."""
    return default_backends(device)[0]


def backends_of(device: torch.device) -> list[str]:
    """Those that `device` and this PyTorch can run."""
    return [each for each in BACKENDS if backend_obstacle(each, device) is None]


def cpp_compiler() -> str | None:
    """Path of a C++ compiler that torch.compile can use; none where there is none."""
    return next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def backend_obstacle(backend: str, device: torch.device) -> str | None:
    """Why `device` and this PyTorch cannot run `backend`; none if they can."""
    if backend == "compile" and device.type == "cpu" and cpp_compiler() is None:
        return "needs a C++ compiler on a CPU (apt install g++)"
    if backend in CAPTURING and device.type != "cuda":
        return "needs a CUDA GPU"
    return torchscript_obstacle() if backend == "torchscript" else None


def check_backend(backend: str, device: torch.device) -> None:
    """Raise UserError for an unknown backend, or one that this machine cannot run; `auto` is always one that it can."""
    if backend not in (AUTO, *BACKENDS):
        raise UserError(f"unknown backend {backend!r}: choose {', '.join(BACKENDS)} or {AUTO}")
    if backend == AUTO:
        return
    obstacle = backend_obstacle(backend, device)
    if obstacle:
        raise UserError(f"--backend {backend} {obstacle}; use --backend eager")


def make_step(state: TrainingState, backend: str, variant: Variant) -> Callable[[], None]:
    """A function without arguments that moves `state` one step on; `backend` has passed `check_backend`.

    Raises:
        BackendError: from the function's first call, where tracing, compilation or capture fails; it names the place.
    """
    return run_as(backend, step_function(state, backend, variant), state)


def step_function(
    state: TrainingState, backend: str, variant: Variant, compiler: Compiler = None
) -> Callable[[], None]:
    """The step with what `backend` replaces in it; `compiler` is a backend of torch.compile.

    Raises:
        BackendError: a second stream with torchscript.
    """
    if backend == "torchscript" and state.second_stream:
        raise BackendError("torchscript traces net and loss as one, which leaves nothing to a second stream")
    step = functools.partial(training_step, state, **variant._asdict(), regions=regions_of(backend, compiler))
    return (
        functools.partial(step, forward=TracedForward(state, cutmix=variant.cutmix, first_group=variant.first_group))
        if backend == "torchscript"
        else step
    )


def regions_of(backend: str, compiler: Compiler = None) -> Regions:
    """The regions of a step, for `graph` each compiled as one graph when it is first called."""
    return Regions(*(_compiled(region, compiler) for region in Regions())) if backend == "graph" else Regions()


def run_as(backend: str, function: Callable[[], None], state: TrainingState) -> Callable[[], None]:
    """`function`, which changes `state` only, as `backend` runs it: compiled whole, captured, or as it is.

    Raises:
        BackendError: from the first call, see `make_step`.
    """
    function = whole(backend, function)
    if backend in CAPTURING:
        return CapturedStep(state, function, functools.partial(_explaining, backend))
    return function if backend == "eager" else _explained(function, backend)


def whole(backend: str, function: Callable[[], None], compiler: Compiler = None) -> Callable[[], None]:
    """`function`, compiled as one graph if `backend` compiles whole steps."""
    if backend != "compile":
        return function
    torch._dynamo.config.trace_autograd_ops = True
    return _compiled(function, compiler)


def _compiled(function: Callable[..., Any], compiler: Compiler) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = _COMPILATIONS
    backend: dict[str, Any] = {} if compiler is None else {"backend": compiler}
    return torch.compile(function, fullgraph=True, dynamic=False, **backend)


def make_scorer(
    state: TrainingState, backend: str, weights: Mapping[str, Tensor] | None, data: LabelledImages, view: View
) -> Callable[[], dict[str, Tensor]]:
    """A function that evaluates the net of `state` on `data`; see `evaluate.device_scores`.

    Args:
        state: whose net is evaluated, in evaluation mode.
        backend: has passed `check_backend`.
        weights: to use instead of the net's own, by name.
        data: stays where it is; its content may change.
        view: the most views wanted.
    """
    score = uncaptured_scorer(state, backend, weights, data, view)
    if backend in CAPTURING:
        return CapturedFunction(score, memory_of(state), functools.partial(_explaining, backend))
    return _explained(score, backend) if backend in COMPILING else score


def uncaptured_scorer(
    state: TrainingState,
    backend: str,
    weights: Mapping[str, Tensor] | None,
    data: LabelledImages,
    view: View,
    compiler: Compiler = None,
) -> Callable[[], dict[str, Tensor]]:
    """The function that `make_scorer` captures, if it captures one; `compiler` is a backend of torch.compile."""
    settings, folds = state.recipe.evaluation, backend in COMPILING
    values = state.net.state_dict() if weights is None else weights
    net = scoring_net(state.net, folded=folds)

    def logits(given: Mapping[str, Tensor], batch: Tensor) -> Tensor:
        return forward_of(net, given)(batch)

    call: Callable[..., Tensor] = _compiled(logits, compiler) if folds else logits

    @torch.no_grad()
    def score() -> dict[str, Tensor]:
        forward = functools.partial(call, folded_state(net, values) if folds else values)
        return device_scores(forward, data, view=view, batch_size=settings.batch_size, share=settings.share)

    return score


@contextmanager
def _explaining(backend: str) -> Iterator[None]:
    """Within, what a compiler or a capture cannot do becomes one line with the place in our code and the way out.

    Compilers have no common exception: besides those of Dynamo and Inductor there are Triton's CompilationError and
    OutOfResources, which are neither of them nor RuntimeErrors, and plain AssertionErrors and ValueErrors.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, UserError):  # say more than that the backend failed
        raise
    except Exception as error:
        raise BackendError(f"--backend {backend} failed at {_place_and_reason(error)}; use --backend eager") from error


def _place_and_reason(error: BaseException) -> str:
    """Where in our code something failed, and why: the first line of what was said."""
    if isinstance(error, torch.AcceleratorError) and error.__context__:  # raised by the end of a failed capture
        return _place_and_reason(error.__context__)
    package = Path(__file__).resolve().parent.parent
    kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(package)]
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} ({ours[-1].line})" if ours else "PyTorch"
    reason = str(error).strip().splitlines()
    return f"{place}: {kind}{reason[0]}" if reason else f"{place}: {type(error).__name__}"


def _explained(function: Callable[[], Result], backend: str) -> Callable[[], Result]:
    """`function`, whose first call is explained; later ones cost nothing more."""
    first = True

    def call() -> Result:
        nonlocal first
        context: AbstractContextManager[object] = _explaining(backend) if first else nullcontext()
        with context:
            result = function()
        first = False
        return result

    return call
