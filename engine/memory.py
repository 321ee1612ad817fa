"""Memory estimate of a training step, counted on the `meta` device without computing or allocating anything."""

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .nets import make_net
from .pack import DataFacts
from .recipe import Augmentation, Recipe
from .schedules import plan
from .step import TrainingState, training_step


class _LiveBytes(TorchDispatchMode):
    """Dispatch mode that counts the bytes of tensors created inside and still referenced; `peak` is the maximum."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        for storage in (each.untyped_storage() for each in tree_leaves(result) if isinstance(each, Tensor)):
            if storage not in self._known:
                self._known.add(storage)
                self._change(storage.nbytes())
                weakref.finalize(storage, self._change, -storage.nbytes())
        return result

    def _change(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)


def estimated_peak_bytes(recipe: Recipe, facts: DataFacts, dtype: torch.dtype) -> int:
    """Return the peak bytes of an eager step with plain PyTorch: data, weights, optimizer, average, activations.

    Not included: the memory of the device itself, cuDNN and cuBLAS, and the allocator's fragmentation.

    Args:
        recipe: recipe of the run; only the crop of its augmentation counts, the rest never determines the peak.
        facts: facts of the data set, all of whose images are on the device.
        dtype: dtype of the activations.
    """
    augmentation = Augmentation(crop=recipe.augmentation.crop, padding=0, flip="none")
    recipe = dataclasses.replace(recipe, augmentation=augmentation)
    count, channels = facts.train_images + facts.test_images, facts.channels
    bytes_in_use = _LiveBytes()
    with torch.device("meta"), bytes_in_use:
        net = make_net(recipe, classes=facts.classes, channels=channels, dtype=dtype, device="meta").train()
        data = (
            torch.empty((count, *facts.image_size, channels), dtype=torch.uint8),
            torch.empty(count, dtype=torch.int64),
        )
        mean_and_std = [0.5] * channels, [0.25] * channels
        state = TrainingState(net, recipe, plan(recipe, count), *data, *mean_and_std, dtype)
        training_step(state, whitening_bias=recipe.net.whitening_bias, cutmix=False)
    return bytes_in_use.peak
