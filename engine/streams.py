"""A second stream, on which a step does what the rest of its work does not wait for."""

from contextlib import AbstractContextManager, nullcontext

import torch


class SecondStream:
    """A CUDA stream beside the current one; on a CPU there is none, and the same calls are done one after the other.

    PyTorch gives memory that is freed to the next tensor of the stream that it was allocated for. So a tensor of the
    current stream that is read within `begin` has to be referenced until `end`, or else the current stream would write
    to it again while it is being read.

    Args:
        device: whose stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def begin(self) -> AbstractContextManager[object]:
        """A context whose work waits for what the current stream has been given, and for nothing that follows."""
        if self._device.type != "cuda":
            return nullcontext()
        if self._stream is None:  # one for all steps, as memory and workspaces of libraries belong to a stream
            self._stream = torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self._stream)

    def end(self) -> None:
        """Let the current stream wait for what was done within `begin`."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
