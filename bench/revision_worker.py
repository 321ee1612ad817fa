"""Worker that `bench regress` runs in the environment of each revision: prepares cases and times them.

The worker and the stopwatch belong to the caller, so that both revisions are measured with one instrument; cases, step
and recipes are the revision's own. Standard input and output alternate: one JSON request per line, one JSON answer per
line.
"""

import copy
import gc
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from speedyresnet.bench.cases import EVERYWHERE, TRITON, cases_of, random_state
from speedyresnet.engine.backends import default_backend, make_step, most_common_variant
from speedyresnet.engine.step import TrainingState

try:
    from speedyresnet.engine.device import pick_device, pick_dtype
    from speedyresnet.engine.kernel_choice import pick_kernels
    from speedyresnet.engine.recipes import recipe
except ImportError:  # a revision that has these functions elsewhere
    from speedyresnet.engine.recipe import recipe  # type: ignore[attr-defined, no-redef]
    from speedyresnet.engine.trainer import (  # type: ignore[attr-defined, no-redef]
        pick_device,
        pick_dtype,
        pick_kernels,
    )

Calls = dict[str, Callable[[], object]]
STEP = "step"


class Subject:
    """Recipe on a device with its cases, each made on request."""

    def __init__(self, name: str, settings: list[str], device: str, backend: str) -> None:
        torch.manual_seed(0)
        self.device = pick_device(device)
        self._backend = default_backend(self.device) if backend == "auto" else backend
        made = recipe(name, settings)
        dtype = pick_dtype(made, self.device)
        found = cases_of(made, dtype, self.device)
        # Only our providers and the reference: a change in others is not a regression.
        self._cases = [case for case in found if case.provider in (*EVERYWHERE, TRITON) and case.operation != STEP]
        self._step_name = f"{STEP}-{self._backend}"
        self._state = random_state(made, dtype, self.device)

    def cases(self) -> dict[str, str]:
        """Return the operations by the names of their cases, the whole step first."""
        return {self._step_name: STEP} | {case.name: case.operation for case in self._cases}

    def calls(self, names: list[str]) -> Calls:
        """Return the cases called `names`, ready to be called."""
        found: Calls = {}
        if self._step_name in names:
            found[self._step_name] = _step_call(self._state, self._backend)
        return found | {case.name: case.make(self._state).call for case in self._cases if case.name in names}


def _step_call(state: TrainingState, backend: str) -> Callable[[], None]:
    """Return a call of the whole training step."""
    own = copy.copy(state)
    own.kernels = pick_kernels(state.recipe, state.images.device, state.dtype, backend)
    step = make_step(own, backend, most_common_variant(state.recipe, state.plan))

    def call() -> None:
        own.counter.zero_()  # the tables are only as long as a run
        step()

    return call


def _requests() -> Iterator[dict[str, Any]]:
    return map(json.loads, iter(sys.stdin.readline, ""))


def main() -> None:
    """Answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # only answers go to standard output, whatever else is printed

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    stopwatch = runpy.run_path(str(Path(__file__).with_name("timers.py")))["stopwatch"]
    subject = Subject(**next(_requests()))
    loaded = [module.__file__ for name, module in sys.modules.items() if name.startswith("speedyresnet.")]
    path = sys.modules["speedyresnet.engine"].__file__
    answer({"path": path, "loaded": [each for each in loaded if each], "cases": subject.cases()})
    calls: Calls = {}
    watches: dict[str, Any] = {}
    for request in _requests():
        if "make" in request:
            calls, watches = {}, {}
            gc.collect()
            torch.cuda.empty_cache()  # the other revision may need it
            calls = subject.calls(request["make"])
            watches = {name: stopwatch(call, subject.device) for name, call in calls.items()}
            answer(None)
        else:
            calls[request["time"]]()  # not counted: it finds the caches as the other revision left them
            answer(watches[request["time"]].sample())


if __name__ == "__main__":
    main()
