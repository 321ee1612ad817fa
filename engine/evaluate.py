"""Accuracy of a net with one, two or six views of every image, logits averaged.

Views as airbench has them: the image and its mirror image; six views add the crops one pixel up-left and down-right
of the reflect-padded image and their mirror images. Weights: 1; 1/2, 1/2; 1/4, 1/4 and four times 1/8.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .recipe import View


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Fractions of test images classified right; none where not measured."""

    weights: str
    single_view: float | None = None
    mirror: float | None = None
    six_view: float | None = None


def view_logits(net: nn.Module, images: Tensor, view: View, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Averaged logits [N, classes] by view, for `view` and those with fewer views.

    Args:
        net: in evaluation mode.
        images: [N, C, H, W], normalised.
        view: the most views wanted.
        state: parameters and buffers to use instead of the net's own, by name; may be empty.
    """

    def logits(batch: Tensor) -> Tensor:
        result: Tensor = functional_call(net, dict(state), (batch,))
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
    crops = [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    shifted = [0.5 * logits(crop) + 0.5 * logits(crop.flip(-1)) for crop in crops]
    found["six_view"] = 0.5 * mirror + 0.25 * shifted[0] + 0.25 * shifted[1]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one pass over a labelled set gives."""

    accuracy: dict[str, float]
    """By view."""
    loss: float
    """Mean cross-entropy of the single view, without label smoothing."""


@torch.no_grad()
def scores(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    view: View,
    batch_size: int,
    dtype: torch.dtype,
    state: Mapping[str, Tensor] | None = None,
) -> Scores:
    """Accuracies and loss of `net` on uint8 images [N, H, W, C] and labels [N]; leaves the net in evaluation mode.

    Args:
        net: on the device of the images.
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        scale: [C], multiplies pixel values.
        shift: [C], is then added.
        view: the most views wanted.
        batch_size: images evaluated at once.
        dtype: of the net.
        state: parameters and buffers to use instead of the net's own.
    """
    net.eval()
    correct: dict[str, Tensor] = {}
    loss = torch.zeros((), dtype=torch.float64, device=images.device)
    for pixels, targets in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        batch = (pixels.to(scale.dtype) * scale + shift).to(dtype).permute(0, 3, 1, 2)
        logits = view_logits(net, batch, view, state or {})
        for name, values in logits.items():
            correct[name] = correct.get(name, 0) + (values.argmax(1) == targets).sum()
        loss += F.cross_entropy(logits["single_view"], targets, reduction="sum")
    count = len(labels)
    return Scores(accuracy={name: int(value) / count for name, value in correct.items()}, loss=float(loss) / count)
