"""Other ways to crop, flip and normalise, to compare the kernel with: torchvision image by image, crops by masks."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from speedyresnet.engine.step import TrainingState


def torchvision_augmentation(state: TrainingState, batch_size: int) -> Callable[[], Tensor]:
    """Return a function that makes a batch with torchvision.transforms.v2, image by image, on the state's device.

    Returns:
        Function without arguments that returns [B, C, H, W] in channels_last.
    """
    from torchvision.transforms import v2  # here: it imports PyTorch's compiler, half the startup time of every command

    settings = state.recipe.augmentation
    mode = "reflect" if settings.padding_mode == "reflect" else "constant"
    crop = v2.RandomCrop(state.window, padding=settings.padding or None, padding_mode=mode)
    flip = [v2.RandomHorizontalFlip()] if settings.flip != "none" else []
    mean, std = [0.5] * state.images.shape[3], [0.25] * state.images.shape[3]
    transform = v2.Compose([crop, *flip, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    images = state.images[:batch_size].permute(0, 3, 1, 2).contiguous()

    def call() -> Tensor:
        batch = torch.stack([transform(image) for image in images])
        return batch.to(state.dtype, memory_format=torch.channels_last)

    return call


def masked_crops(state: TrainingState, batch_size: int) -> Callable[[], Tensor]:
    """Return a function that crops a padded, normalised batch as airbench does: one masked copy for each of the shifts.

    Padding and normalisation (once per run in airbench) and the flip (once per epoch) are not part of it.

    Returns:
        Function without arguments that returns [B, C, H, W] in channels_last.
    """
    pad, (height, width) = state.recipe.augmentation.padding, state.window
    pixels = state.images[:batch_size].permute(0, 3, 1, 2).to(state.dtype) / 64 - 2
    padded = torch.nn.functional.pad(pixels, (pad,) * 4, "reflect") if pad else pixels
    padded = padded.contiguous(memory_format=torch.channels_last)

    def call() -> Tensor:
        result = torch.empty_like(padded[:, :, :height, :width], memory_format=torch.channels_last)
        rows, columns = padded.shape[2] - height + 1, padded.shape[3] - width + 1
        row_shifts, column_shifts = (torch.randint(n, padded.shape[:1], device=padded.device) for n in (rows, columns))
        for row, column in itertools.product(range(rows), range(columns)):
            chosen = (row_shifts == row) & (column_shifts == column)
            result[chosen] = padded[chosen, :, row : row + height, column : column + width]
        return result

    return call
