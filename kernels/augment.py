"""GPU-side augmentation: gather a batch of uint8 images, crop, mirror, cut out, mix and normalise it.

Legend: N images in the data set, B in the batch, H x W pixels, C channels.

    out[b, :, i, j] = image[id[b], r, c, :] * scale + shift,    r = |i + row[b] - padding| reflected into [0, H),
                                                               c likewise from j, or from W - 1 - j if mirrored

The window has the image's own size. Cutout zeroes a square after normalisation. This file is plain PyTorch: one
gather of B*H*W*C bytes, one multiply-add, and a masked write for each of zero padding, cutout and cutmix.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .random import below, permuted, random_words

# The independent random draws of an image; a new draw takes a new number, so that old runs keep theirs.
_WINDOW_STREAM, _COIN_STREAM, _SQUARE_STREAM, _PARTNER_STREAM = 0, 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """Which transforms are on; all sizes in pixels, 0 is off."""

    padding: int = 0
    padding_mode: Literal["reflect", "zero"] = "reflect"
    flip: Literal["none", "random", "alternating"] = "none"
    cutout: int = 0
    cutmix: int = 0


class Draws(NamedTuple):
    """What chance decided for each image of a batch; int64 [B] unless said otherwise."""

    row: Tensor
    """First row of the window in the padded image, in [0, 2 * padding]."""
    column: Tensor
    mirror: Tensor
    """bool [B]: columns of the window run backwards."""
    cutout_row: Tensor
    cutout_column: Tensor
    cutmix_row: Tensor
    cutmix_column: Tensor


def augmentation_draws(
    seed: Tensor, epoch: Tensor, ids: Tensor, transforms: Transforms, height: int, width: int
) -> Draws:
    """The draws of images `ids` (int64 [B]) in `epoch` (int64 [1]) of the run `seed` (int64 [1])."""
    positions = 2 * transforms.padding + 1
    window = random_words(seed, epoch, ids, _WINDOW_STREAM)
    squares = transforms.cutout > 0 or transforms.cutmix > 0
    square = random_words(seed, epoch, ids, _SQUARE_STREAM) if squares else [torch.zeros_like(ids)] * 4
    return Draws(
        row=below(window[0], positions),
        column=below(window[1], positions),
        mirror=_mirrored(seed, epoch, ids, window[2], transforms.flip),
        cutout_row=below(square[0], height - transforms.cutout + 1),
        cutout_column=below(square[1], width - transforms.cutout + 1),
        cutmix_row=below(square[2], height - transforms.cutmix + 1),
        cutmix_column=below(square[3], width - transforms.cutmix + 1),
    )


def _mirrored(seed: Tensor, epoch: Tensor, ids: Tensor, words: Tensor, flip: str) -> Tensor:
    """Which images are mirrored, bool [B]; `words` are 32 random bits an image, drawn anew each epoch."""
    if flip == "none":
        return torch.zeros_like(ids, dtype=torch.bool)
    if flip == "random":
        return words & 1 == 1
    # The coin of alternating flips is tossed once a run, in epoch 0; later epochs turn it over.
    coin = random_words(seed, torch.zeros_like(epoch), ids, _COIN_STREAM)[0] & 1
    return coin ^ (epoch & 1) == 1


def cutmix_partners(seed: Tensor, epoch: Tensor, ids: Tensor, count: int) -> Tensor:
    """The image that is pasted into each image of `ids`: a shuffle of all `count` images; int64 [B]."""
    return permuted(ids, count, seed, epoch, _PARTNER_STREAM)


def _square(row: Tensor, column: Tensor, side: int, height: int, width: int) -> Tensor:
    """Bool [B, H, W, 1]: true inside the side x side square whose first corner is (row, column)."""
    rows = torch.arange(height, device=row.device) - row[:, None]
    columns = torch.arange(width, device=row.device) - column[:, None]
    inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(-1)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Indices outside [0, size) mirrored at the first and the last pixel, which are not repeated."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def normalisation(
    mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Scale and shift, [C] each, that turn pixel values 0..255 into (value / 255 - mean) / std.

    Args:
        mean: of the pixels scaled to [0, 1], one a channel.
        std: likewise; a channel that is constant over the whole data set has 0 and becomes 0.
        dtype: float32 or float64; computed in float64.
        device: of the result.
    """
    center = torch.tensor(mean, dtype=torch.float64)
    spread = torch.tensor(std, dtype=torch.float64)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    return (1 / (255 * spread)).to(device, dtype), (-center / spread).to(device, dtype)


def augment(
    images: Tensor,
    ids: Tensor,
    draws: Draws,
    scale: Tensor,
    shift: Tensor,
    transforms: Transforms,
    dtype: torch.dtype,
) -> Tensor:
    """The augmented and normalised images `ids`, cutmix left out (see `pasted`).

    Args:
        images: uint8 [N, H, W, C], contiguous.
        ids: int64 [B].
        draws: of the same B images.
        scale: [C], what a pixel value 0..255 is multiplied with, in float32 or float64.
        shift: [C], what is then added.
        transforms: which transforms are on.
        dtype: of the result; the arithmetic is done in that of `scale`.

    Returns:
        [B, C, H, W] in channels_last.
    """
    height, width = images.shape[1:3]
    row = torch.arange(height, device=ids.device) + draws.row[:, None] - transforms.padding
    column = torch.arange(width, device=ids.device).expand(len(ids), width)
    column = torch.where(draws.mirror[:, None], width - 1 - column, column)
    column = column + draws.column[:, None] - transforms.padding
    source_row, source_column = _reflected(row, height), _reflected(column, width)
    pixels = images[ids[:, None, None], source_row[:, :, None], source_column[:, None, :]]
    batch = (pixels.to(scale.dtype) * scale + shift).to(dtype)
    if transforms.padding_mode == "zero" and transforms.padding > 0:
        inside = (row == source_row)[:, :, None] & (column == source_column)[:, None, :]
        batch = batch * inside.unsqueeze(-1)
    if transforms.cutout > 0:
        square = _square(draws.cutout_row, draws.cutout_column, transforms.cutout, height, width)
        batch = batch.masked_fill(square, 0.0)
    # A tensor of shape [B, H, W, C] seen as [B, C, H, W] is in channels_last already.
    return batch.permute(0, 3, 1, 2)


def pasted(batch: Tensor, partners: Tensor, draws: Draws, side: int) -> Tensor:
    """`batch` with a side x side square taken from `partners` in each image; all [B, C, H, W] in channels_last."""
    square = _square(draws.cutmix_row, draws.cutmix_column, side, *batch.shape[2:])
    mixed = torch.where(square, partners.permute(0, 2, 3, 1), batch.permute(0, 2, 3, 1))
    return mixed.permute(0, 3, 1, 2)
