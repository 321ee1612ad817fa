"""Capturing without a GPU: what a CUDA graph cannot hold, and a stand-in that records and replays operations."""

import contextlib
import types

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNFIT = {
    torch.Tag.data_dependent_output: "asks the host",
    torch.Tag.dynamic_output_shape: "has a result whose shape depends on data",
    torch.Tag.nondeterministic_seeded: "draws from PyTorch's generator",
}
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_")


def tensors_in(*values):
    """Return all tensors in nested lists, tuples and dictionaries."""
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]


def obstacle(function, arguments):
    """Return why a CUDA graph cannot hold the operation, or None if it can."""
    name = function._schema.name
    if name in INDEXING:  # indices are allowed, but a mask's entries have to be counted
        masks = any(each.dtype in (torch.bool, torch.uint8) for each in tensors_in(arguments[1]))
        return "indexes by a mask" if masks else None
    if name == "aten::lift_fresh":
        return "makes a tensor of the host's numbers"
    return next((reason for tag, reason in UNFIT.items() if tag in function.tags), None)


class Capturable(TorchDispatchMode):
    """Dispatch mode that fails at the first operation on the `meta` device that a CUDA graph on a GPU could not hold.

    Our operators run as on a GPU, including the launchers.
    """

    @staticmethod
    def check_device(*values):
        """Fail if one of the tensors is on the host."""
        host = [each for each in tensors_in(values) if each.device.type != "meta"]
        assert not host, f"a tensor is on the host: {host}"

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options, name = options or {}, function._schema.name
        assert obstacle(function, arguments) is None, f"{name} {obstacle(function, arguments)}"
        if function.namespace == "speedyresnet":
            with self:
                result = function.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments, **options)
        else:
            result = function(*arguments, **options)
        self.check_device(arguments, options, result)
        return result


class _Recorder(TorchDispatchMode):
    """Dispatch mode that records every operation with its tensors."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.operations.append((function, arguments, options or {}, result))
        return result


class StandInGraph:
    """CUDA graph on a CPU: the same operations on the same tensors, without the Python code between them."""

    def __init__(self):
        self.replays, self.alive, self.pool, self.stream, self.recorder = 0, True, None, None, _Recorder()

    @torch.no_grad()
    def replay(self):
        """Repeat all operations and write their results to where they were."""
        assert self.alive
        self.replays += 1
        for function, arguments, options, old in self.recorder.operations:
            for before, now in zip(tensors_in(old), tensors_in(function(*arguments, **options)), strict=True):
                if now.data_ptr() != before.data_ptr():  # else it is a view, or was changed in place
                    before.copy_(now)

    def reset(self):
        """Free the graph."""
        self.alive = False


class StandInCuda:
    """Names in `torch.cuda` and `torch._C` that capturing needs, with the faults of PyTorch 2.11."""

    CUDAGraph = StandInGraph
    graph_pool_handle = object

    def __init__(self):
        self.graphs = []
        """Graphs that were captured, or should have been."""
        self.recording = []
        """Pools that the allocator records into; not empty after a failed capture."""
        self.generator_captures = False
        """Whether the random generator assumes that a capture is in progress; also after a failed one."""
        self._current = self.Stream(None)

    def Stream(self, device):
        """Return a new stream; on a CPU nothing has to wait."""
        return types.SimpleNamespace(device=device, device_index=-1, wait_stream=lambda _: None)

    def current_stream(self):
        """Return the stream set by `stream` and `graph`."""
        return self._current

    @contextlib.contextmanager
    def stream(self, wanted):
        """Make `wanted` the current stream within the context."""
        before, self._current = self._current, wanted
        try:
            yield
        finally:
            self._current = before

    def is_capturing(self):
        """Return whether the allocator records into a pool."""
        return bool(self.recording)

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None):
        """Record the operations within the context. As in PyTorch, a failure leaves everything as it is."""
        if self.recording:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        graph.pool, graph.stream = pool, stream
        self.graphs.append(graph)
        self.recording.append(pool)
        self.generator_captures = True
        before, self._current = self._current, stream
        try:
            with graph.recorder:
                yield
        except Exception:
            reason = "CUDA error: operation failed due to a previous error during capture"
            raise torch.AcceleratorError(reason)  # noqa: B904 - as PyTorch raises it, in the context of the first error
        self.recording.remove(pool)
        self.generator_captures = False
        self._current = before

    def end_allocate_to_pool(self, device, pool):
        """Stop the allocator's recording into `pool`."""
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id 0, 1")
        self.recording.remove(pool)

    def release_pool(self, device, pool):
        """Allow the memory of `pool` to be freed."""
        assert pool not in self.recording
