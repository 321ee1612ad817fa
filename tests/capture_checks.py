"""Capturing without a GPU: what a CUDA graph cannot hold, and a stand-in that records operations and replays them."""

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
    """All tensors in nested lists, tuples and dictionaries."""
    return [each for each in tree_leaves(values) if isinstance(each, torch.Tensor)]


def obstacle(function, arguments):
    """Why a CUDA graph cannot hold the operation; none if it can."""
    name = function._schema.name
    if name in INDEXING:  # by numbers it can, not by a mask, whose places have to be counted
        masks = any(each.dtype in (torch.bool, torch.uint8) for each in tensors_in(arguments[1]))
        return "indexes by a mask" if masks else None
    if name == "aten::lift_fresh":
        return "makes a tensor of the host's numbers"
    return next((reason for tag, reason in UNFIT.items() if tag in function.tags), None)


class Capturable(TorchDispatchMode):
    """Fails at the first operation on the `meta` device that a CUDA graph on a GPU could not hold.

    Of our operators that is run which a GPU would run, launchers included.
    """

    @staticmethod
    def check_device(*values):
        """Fail where one of the tensors is on the host."""
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
    """Keeps every operation with its tensors."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.operations.append((function, arguments, options or {}, result))
        return result


class StandInGraph:
    """A CUDA graph on a CPU: the same operations on the same tensors, and nothing of what Python did between them."""

    def __init__(self):
        self.replays, self.alive, self.pool, self.stream, self.recorder = 0, True, None, None, _Recorder()

    @torch.no_grad()
    def replay(self):
        """Do all operations anew and put what they make where it was."""
        assert self.alive
        self.replays += 1
        for function, arguments, options, old in self.recorder.operations:
            for before, now in zip(tensors_in(old), tensors_in(function(*arguments, **options)), strict=True):
                if now.data_ptr() != before.data_ptr():  # else it is a view, or was changed in place
                    before.copy_(now)

    def reset(self):
        """Free it."""
        self.alive = False


class StandInCuda:
    """The names in `torch.cuda` and `torch._C` that capturing needs, with the faults of PyTorch 2.11."""

    CUDAGraph = StandInGraph
    graph_pool_handle = object

    def __init__(self):
        self.graphs = []
        """That were captured, or should have been."""
        self.recording = []
        """Pools that the allocator records into; not empty after a capture that failed."""
        self.generator_captures = False
        """Whether the random generator takes it that there is a capture; so too after one that failed."""
        self._current = self.Stream(None)

    def Stream(self, device):
        """A new one; nothing has to wait on a CPU."""
        return types.SimpleNamespace(device=device, device_index=-1, wait_stream=lambda _: None)

    def current_stream(self):
        """Set by `stream` and `graph`."""
        return self._current

    @contextlib.contextmanager
    def stream(self, wanted):
        """Within, `wanted` is the current one."""
        before, self._current = self._current, wanted
        try:
            yield
        finally:
            self._current = before

    def is_capturing(self):
        """Whether a capture is under way that has not failed."""
        return bool(self.recording)

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None):
        """Record what is done within. As with PyTorch's, all stays as it is where that fails."""
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
        """The allocator records into `pool` no longer."""
        if pool not in self.recording:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id 0, 1")
        self.recording.remove(pool)

    def release_pool(self, device, pool):
        """Its memory may be freed."""
        assert pool not in self.recording
