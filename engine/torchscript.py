"""TorchScript, which PyTorch calls deprecated: everything that touches torch.jit is here.

As a backend it trains net and loss traced, as plain PyTorch operations; `export.py` writes traced nets.
"""

import functools
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .step import TrainingState, batch_losses, first_map_of, pasted_share


def torchscript_obstacle() -> str | None:
    """Why this PyTorch cannot trace; none if it can."""
    if all(hasattr(getattr(torch, "jit", None), name) for name in ("trace", "save")):
        return None
    return f"needs TorchScript, which PyTorch {torch.__version__} no longer has"


@contextmanager
def _quiet() -> Iterator[None]:
    """Nobody has to read that torch.jit is deprecated."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning, torch.jit.TracerWarning):  # type: ignore[attr-defined]
            warnings.simplefilter("ignore", kind)
        yield


def trace(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """`module` as TorchScript for inputs like these."""
    with _quiet():
        return torch.jit.trace(module, inputs, check_trace=False)


def saved(traced: Any, documents: dict[str, str]) -> bytes:
    """The content of a file with what `trace` made, and named documents beside it."""
    file = io.BytesIO()
    with _quiet():
        torch.jit.save(traced, file, _extra_files=documents)
    return file.getvalue()


class _NetAndLoss(nn.Module):
    """[B, C, H, W], int64 [B], int64 [B] -> losses [B] and logits [B, classes]."""

    def __init__(self, state: TrainingState, *, cutmix: bool, first_group: bool) -> None:
        super().__init__()
        self.net, self._first_map = state.net, functools.partial(first_map_of, state, first_group=first_group)
        self._recipe, self._precision = state.recipe, state.scale.dtype
        self._share = pasted_share(state) if cutmix else 0.0

    def forward(self, images: Tensor, labels: Tensor, pasted_labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each image, and the logits."""
        first_map = self._first_map(images)
        logits = self.net.logits_of(self.net.features_behind(first_map))
        others = pasted_labels if self._share else None
        return batch_losses(self._recipe, logits.to(self._precision), labels, others, self._share), logits


class TracedForward:
    """Net and loss as TorchScript, traced when first called; it trains the net's own parameters.

    TorchScript knows nothing of our kernels: `state` has to use the reference for what is in the net.
    """

    def __init__(self, state: TrainingState, *, cutmix: bool, first_group: bool = True) -> None:
        self._state, self._kind = state, {"cutmix": cutmix, "first_group": first_group}
        self._traced: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def __call__(self, images: Tensor, labels: Tensor, pasted_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Losses [B] and logits [B, classes]."""
        inputs = images, labels, labels if pasted_labels is None else pasted_labels
        if self._traced is None:
            self._traced = self._trace(inputs)
        return self._traced(*inputs)

    def _trace(self, inputs: tuple[Tensor, ...]) -> Any:
        """Tracing runs the net once, which would move its statistics: they are put back."""
        statistics = {name: value.clone() for name, value in self._state.net.named_buffers()}
        traced = trace(_NetAndLoss(self._state, **self._kind), inputs)
        with torch.no_grad():
            for name, value in self._state.net.named_buffers():
                value.copy_(statistics[name])
        return traced
