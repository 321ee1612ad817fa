"""The training step as a CUDA graph: warmed up, captured once, replayed with one launch.

A step needs no host input (see `step.py`), so a graph of it is the step: a new seed, new weights or new images are
copied into the tensors that the graph reads, never a new capture.
"""

import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from .step import TrainingState

WARM_UP_STEPS = 2
"""Before the capture: compilation, libraries' own set-up and their workspaces."""
CHECK_VARIABLE = "SPEEDYRESNET_CHECK_GRAPHS"
"""Set to 1: before each replay, every tensor of the state has to lie where it lay when the graph was captured."""


class CapturedStep:
    """A step of `state` that is captured at its first call; every call is one step.

    Args:
        state: on a CUDA device; all graphs of it share one pool of memory.
        step: moves it one step on, and never synchronises.
        explaining: makes a context that turns a failure of the capture into a message.
    """

    def __init__(
        self, state: TrainingState, step: Callable[[], None], explaining: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self._state, self._step, self._explaining = state, step, explaining
        self._graph: torch.cuda.CUDAGraph | None = None
        self._places: dict[str, int] = {}
        self._checks = os.environ.get(CHECK_VARIABLE) == "1"

    def __call__(self) -> None:
        """One step."""
        if self._graph is None:
            with self._explaining():
                self._graph = self._captured()
            self._places = self._pointers()
        if self._checks:
            self._check_pointers()
        self._graph.replay()

    def close(self) -> None:
        """Free the graph; the next call captures anew."""
        if self._graph is not None:
            self._graph.reset()
        self._graph = None

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Warm-up trains, so what it changed is put back; it runs on the stream that is captured."""
        before = [tensor.clone() for tensor in self._state.changing_tensors().values()]
        stream = torch.cuda.Stream(self._state.images.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._step()
                self._state.counter.zero_()  # the tables end where a run ends
        torch.cuda.current_stream().wait_stream(stream)
        gc.collect()  # nodes of the warm-up's autograd graph belong to other streams
        torch.cuda.synchronize(self._state.images.device)
        graph = torch.cuda.CUDAGraph()
        if self._state.graph_pool is None:
            self._state.graph_pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self._state.graph_pool, stream=stream):
            self._step()
        with torch.no_grad():
            for tensor, old in zip(self._state.changing_tensors().values(), before, strict=True):
                tensor.copy_(old)
        return graph

    def _pointers(self) -> dict[str, int]:
        return {name: tensor.data_ptr() for name, tensor in self._state.all_tensors().items()}

    def _check_pointers(self) -> None:
        moved = [name for name, place in self._pointers().items() if self._places[name] != place]
        if moved:
            raise RuntimeError(f"the captured step reads tensors that are gone: {', '.join(moved)}")
