"""Accuracy of a net from averaged logits of one, two or six views of every image.

Views are those of airbench: the image and its mirror image; six views add the crops one pixel up-left and down-right of
the reflect-padded image and their mirror images. Weights: 1; 1/2, 1/2; 1/4, 1/4 and four times 1/8. Extra views can be
restricted to the images with the least confident single view (as in hiverge).

Nothing synchronises before the counts are read, so an evaluation can be captured as a CUDA graph.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .recipe import VIEWS, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Fractions of test images classified correctly; None if not measured. See `evaluate` for an example."""

    weights: str
    single_view: float | None = None
    mirror: float | None = None
    six_view: float | None = None


Forward = Callable[[Tensor], Tensor]
"""Map normalised images [N, C, H, W] to logits [N, classes]."""


def forward_of(net: nn.Module, state: Mapping[str, Tensor] | None = None) -> Forward:
    """Return the net as a function, with its parameters and buffers replaced by `state`, if given."""
    return (lambda batch: functional_call(net, dict(state), (batch,))) if state else net


def view_logits(forward: Forward, images: Tensor, view: View) -> dict[str, Tensor]:
    """Return averaged logits [N, classes] by view, for `view` and all views below it.

    Args:
        forward: forward pass of a net in evaluation mode.
        images: [N, C, H, W], normalised.
        view: the largest set of views.
    """

    def logits(batch: Tensor) -> Tensor:
        result = forward(batch)
        return result.to(torch.promote_types(result.dtype, torch.float32))

    single = logits(images)
    found = {"single_view": single}
    if view == "single_view":
        return found
    found["mirror"] = mirror = 0.5 * single + 0.5 * logits(images.flip(-1))
    if view == "mirror":
        return found
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), "reflect")
    # Copied, so that a compiled forward pass sees only one memory layout.
    crops = [
        crop.contiguous(memory_format=torch.channels_last)
        for crop in (padded[:, :, :height, :width], padded[:, :, 2:, 2:])
    ]
    shifted = [0.5 * logits(crop) + 0.5 * logits(crop.flip(-1)) for crop in crops]
    found["six_view"] = 0.5 * mirror + 0.25 * shifted[0] + 0.25 * shifted[1]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Result of one pass over a labelled set."""

    accuracy: dict[str, float]
    """Accuracy by view."""
    loss: float
    """Mean cross-entropy of the single view, without label smoothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImages:
    """Test set on a device, with the normalisation and dtype that a net needs."""

    images: Tensor
    """uint8 [N, H, W, C]."""
    labels: Tensor
    """int64 [N]."""
    scale: Tensor
    """[C], factor of the pixel values; float32 or float64."""
    shift: Tensor
    """[C], added after scaling."""
    dtype: torch.dtype
    """Dtype of the net."""

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return [N, C, H, W] from uint8 [N, H, W, C]."""
        return (pixels.to(self.scale.dtype) * self.scale + self.shift).to(self.dtype).permute(0, 3, 1, 2)


def logits_in_batches(
    forward: Forward, data: LabelledImages, images: Tensor, view: View, batch_size: int
) -> dict[str, Tensor]:
    """Return `view_logits` of uint8 `images`; batches have equal sizes, so the last may overlap the one before."""
    size, parts = min(batch_size, len(images)), []
    for start in range(0, len(images), size):
        first = min(start, len(images) - size)
        found = view_logits(forward, data.normalised(images[first : first + size]), view)
        parts.append({name: logits[start - first :] for name, logits in found.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def all_logits(
    forward: Forward, data: LabelledImages, *, view: View, batch_size: int, share: float = 1.0
) -> dict[str, Tensor]:
    """Return averaged logits [N, classes] of all images by view; only the least confident `share` gets extra views."""
    doubtful = int(share * len(data.images))
    if view == "single_view" or doubtful == len(data.images):
        return logits_in_batches(forward, data, data.images, view, batch_size)
    single = logits_in_batches(forward, data, data.images, "single_view", batch_size)["single_view"]
    if doubtful == 0:
        return dict.fromkeys(VIEWS[: VIEWS.index(view) + 1], single)
    chosen = single.softmax(1).amax(1).topk(doubtful, largest=False).indices
    more = logits_in_batches(forward, data, data.images[chosen], view, batch_size)
    return {name: single.index_copy(0, chosen, logits) for name, logits in more.items()}


@torch.no_grad()
def device_scores(
    forward: Forward, data: LabelledImages, *, view: View, batch_size: int, share: float = 1.0
) -> dict[str, Tensor]:
    """Return the number of correct images by view, int64 [], and the single view's `loss`, without synchronising.

    Args:
        forward: forward pass of a net in evaluation mode.
        data: the labelled images.
        view: the largest set of views.
        batch_size: images per batch.
        share: fraction of the images, those with the least confident single view, that get extra views.
    """
    logits = all_logits(forward, data, view=view, batch_size=batch_size, share=share)
    found = {name: (values.argmax(1) == data.labels).sum() for name, values in logits.items()}
    return found | {"loss": F.cross_entropy(logits["single_view"].double(), data.labels)}


def read_scores(found: Mapping[str, Tensor], count: int) -> Scores:
    """Copy the result of `device_scores` to the host."""
    correct = {name: int(value) / count for name, value in found.items() if name != "loss"}
    return Scores(accuracy=correct, loss=float(found["loss"]))
