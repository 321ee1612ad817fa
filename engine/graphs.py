"""The training step as a CUDA graph: warmed up, captured once, replayed with one launch.

A step needs no host input (see `step.py`), so one graph serves every step: a new seed, new weights or new images are
copied into the tensors that the graph reads, without a new capture.
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
"""Calls before the capture, for compilation and the set-up and workspaces of libraries."""
_FAILED: list[torch.cuda.CUDAGraph] = []
"""Graphs whose capture failed."""
CHECK_VARIABLE = "SPEEDYRESNET_CHECK_GRAPHS"
"""If set to 1, each replay first checks that no tensor of the state has moved since the capture."""


class GraphMemory(NamedTuple):
    """Memory shared by graphs that are not replayed at the same time."""

    pool: Any
    """PyTorch's handle of the pool."""
    stream: torch.cuda.Stream
    """Capture stream of all graphs: memory is shared only within a stream, and libraries keep a workspace for each."""


_MEMORIES: weakref.WeakKeyDictionary[TrainingState, GraphMemory] = weakref.WeakKeyDictionary()
"""Memory shared by the graphs of each state, for as long as the state lives."""


def memory_of(state: TrainingState) -> GraphMemory:
    """Return the memory shared by all graphs of `state`, created on first use."""
    if state not in _MEMORIES:
        _MEMORIES[state] = GraphMemory(torch.cuda.graph_pool_handle(), torch.cuda.Stream(state.images.device))
    return _MEMORIES[state]


def forget_memory(state: TrainingState) -> None:
    """Give later graphs of `state` new memory, since none can be captured into that of a failed capture."""
    _MEMORIES.pop(state, None)


def captured(
    function: Callable[[], Result], memory: GraphMemory, warm_up: Callable[[], object] | None = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Return a graph of `function` and its result, tensors that a replay of any graph of this memory overwrites.

    Args:
        function: must not synchronise.
        memory: shared with other graphs, which are never replayed at the same time.
        warm_up: called beforehand on the capture stream; None calls `function`.
    """
    stream, graph = memory.stream, torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # PyTorch does not leave the stream of a failed capture
        for _ in range(WARM_UP_CALLS):
            (warm_up or function)()
        # A live autograd graph ties a parameter's gradient to the stream of its first use, so none from another stream
        # may remain. Nor may another CUDA graph be destroyed during the capture.
        gc.collect()
        try:
            with torch.cuda.graph(graph, pool=memory.pool, stream=stream):  # synchronises first
                result = function()
        except BaseException:
            leave_failed_capture(graph, memory)
            raise
    return graph, result


def leave_failed_capture(graph: torch.cuda.CUDAGraph, memory: GraphMemory) -> None:
    """Clean up after the failed capture of `graph`, so that this process can continue and capture again.

    CUDA ends an invalidated capture with an error. PyTorch 2.11 raises that error before it updates its own state: the
    allocator keeps recording into the pool and refuses to empty its cache or to record into that pool again, and the
    random generator refuses to draw outside of a capture. PyTorch 2.15 ends the recording in `CUDAGraph.reset`, and its
    generator has no such state.

    Args:
        graph: the graph of the failed capture. It is kept for the life of the process, because PyTorch's allocator of
            pinned memory may ask it which stream it captures.
        memory: memory of the capture. No other graph can be captured into it.
    """
    _FAILED.append(graph)
    graph.reset()
    device = memory.stream.device_index
    try:
        torch._C._cuda_endAllocateToPool(device, memory.pool)
    except RuntimeError as error:
        if "not currently recording" not in str(error):
            raise
    else:  # reset() releases only the memory of captures that were ended
        torch._C._cuda_releasePool(device, memory.pool)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):  # the end of a successful capture resets the generator
        torch.zeros(1, device=memory.stream.device)


class CapturedFunction(Generic[Result]):
    """Function of tensors at fixed addresses, captured on its first call.

    Args:
        function: must not synchronise.
        memory: shared with other graphs.
        explaining: creates a context that converts a failed capture into a message.
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
        """Replay the function and return its result; read it before replaying another graph of the same memory."""
        if self._found is None:
            with self._explaining():
                self._found = captured(self._function, self._memory)
        graph, result = self._found
        graph.replay()
        return result


class CapturedStep:
    """Training step of `state`, captured on its first call; each call runs one step.

    Args:
        state: on a CUDA device; all its graphs share their memory.
        step: runs one step and must not synchronise.
        explaining: creates a context that converts a failed capture into a message.
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
        """Run one step."""
        if self._graph is None:
            with self._explaining():
                self._graph = self._captured()
            self._places = self._pointers()
        if self._checks:
            self._check_pointers()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        """Capture the step. The warm-up trains, so the tensors it changed are restored."""
        changing = self._state.changing_tensors().values()
        before = [tensor.clone() for tensor in changing]

        def warm_up() -> None:
            self._step()
            self._state.counter.zero_()  # the tables end with the run

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
