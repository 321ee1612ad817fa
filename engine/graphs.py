"""The training step as a CUDA graph: warmed up, captured once, replayed with one launch.

A step needs no host input (see `step.py`), so a graph of it is the step: a new seed, new weights or new images are
copied into the tensors that the graph reads, never a new capture.
"""

import gc
import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from .step import TrainingState

Result = TypeVar("Result")
WARM_UP_CALLS = 2
"""Before the capture: compilation, libraries' own set-up and their workspaces."""
_FAILED: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed."""
CHECK_VARIABLE = "SPEEDYRESNET_CHECK_GRAPHS"
"""Set to 1: before each replay, every tensor of the state has to lie where it lay when the graph was captured."""


class GraphMemory(NamedTuple):
    """Memory that several graphs use in turns."""

    pool: Any
    """PyTorch's handle of it."""
    stream: torch.cuda.Stream
    """On which all of them are captured: memory is shared within a stream only, and libraries keep a workspace for
    each."""


_MEMORIES: weakref.WeakKeyDictionary[TrainingState, GraphMemory] = weakref.WeakKeyDictionary()
"""What the graphs of each state share, for as long as the state lives."""


def memory_of(state: TrainingState) -> GraphMemory:
    """The memory that all graphs of `state` share, made when it is first asked for."""
    if state not in _MEMORIES:
        _MEMORIES[state] = GraphMemory(torch.cuda.graph_pool_handle(), torch.cuda.Stream(state.images.device))
    return _MEMORIES[state]


def forget_memory(state: TrainingState) -> None:
    """Let later graphs of `state` have a new memory, as none can be captured into that of one that failed."""
    _MEMORIES.pop(state, None)


def captured(
    function: Callable[[], Result], memory: GraphMemory, warm_up: Callable[[], object] | None = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of `function` and what it returned, tensors that a replay of any graph of this memory overwrites.

    Args:
        function: never synchronises.
        memory: shared with other graphs, which are never replayed at the same time.
        warm_up: what is called beforehand, on the stream that is captured; none: the function.
    """
    stream, graph = memory.stream, torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # after a capture that fails PyTorch does not leave its stream
        for _ in range(WARM_UP_CALLS):
            (warm_up or function)()
        # A gradient is taken on the stream where an autograd graph that is still alive first met its parameter: none of
        # another stream may be left. Nor may another CUDA graph be destroyed during the capture.
        gc.collect()
        try:
            with torch.cuda.graph(graph, pool=memory.pool, stream=stream):  # synchronises first
                result = function()
        except BaseException:
            leave_failed_capture(graph, memory)
            raise
    return graph, result


def leave_failed_capture(graph: torch.cuda.CUDAGraph, memory: GraphMemory) -> None:
    """Take PyTorch out of the capture of `graph`, which failed, so that this process can go on and capture again.

    CUDA ends a capture that it has invalidated with an error. PyTorch 2.11 raises that error before it has told its own
    parts: the allocator goes on recording into the pool and refuses to empty its cache or to record into that pool
    again, and the random generator refuses to draw outside of a capture. PyTorch 2.15 ends the first in
    `CUDAGraph.reset`, and its generator has no such state.

    Args:
        graph: what was captured into. It is kept, because PyTorch's allocator of pinned memory may ask it, for as long
            as the process lives, which stream it captures.
        memory: of the capture. No other graph can be captured into it.
    """
    _FAILED.append(graph)
    graph.reset()
    device = memory.stream.device_index
    try:
        torch._C._cuda_endAllocateToPool(device, memory.pool)
    except RuntimeError as error:
        if "not currently recording" not in str(error):
            raise
    else:  # reset() releases the memory of captures that were ended
        torch._C._cuda_releasePool(device, memory.pool)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):  # the end of a capture that works resets the generator
        torch.zeros(1, device=memory.stream.device)


class CapturedFunction(Generic[Result]):
    """A function of tensors that stay where they are, captured when first called.

    Args:
        function: never synchronises.
        memory: shared with other graphs.
        explaining: makes a context that turns a failure of the capture into a message.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        memory: GraphMemory,
        explaining: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self._function, self._memory, self._explaining = function, memory, explaining
        self._found: tuple[torch.cuda.CUDAGraph, Result] | None = None

    def __call__(self) -> Result:
        """What the function returns; read it before any other graph of the same memory is replayed."""
        if self._found is None:
            with self._explaining():
                self._found = captured(self._function, self._memory)
        graph, result = self._found
        graph.replay()
        return result


class CapturedStep:
    """A step of `state` that is captured at its first call; every call is one step.

    Args:
        state: on a CUDA device; all graphs of it share their memory.
        step: moves it one step on, and never synchronises.
        explaining: makes a context that turns a failure of the capture into a message.
    """

    def __init__(
        self,
        state: TrainingState,
        step: Callable[[], None],
        explaining: Callable[[], AbstractContextManager[object]],
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

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Warm-up trains, so what it changed is put back."""
        changing = self._state.changing_tensors().values()
        before = [tensor.clone() for tensor in changing]

        def warm_up() -> None:
            self._step()
            self._state.counter.zero_()  # the tables end where a run ends

        self._state.counter.zero_()
        graph, _ = captured(self._step, memory_of(self._state), warm_up)
        with torch.no_grad():
            for tensor, old in zip(changing, before, strict=True):
                tensor.copy_(old)
        return graph

    def _pointers(self) -> dict[str, int]:
        return {name: tensor.data_ptr() for name, tensor in self._state.all_tensors().items()}

    def _check_pointers(self) -> None:
        moved = [name for name, place in self._pointers().items() if self._places[name] != place]
        if moved:
            raise RuntimeError(f"the captured step reads tensors that are gone: {', '.join(moved)}")
