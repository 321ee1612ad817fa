"""GPU augmentation in one pass: gather uint8 images, crop, mirror, jitter, cut out, mix, scale and normalise them.

Legend: N images in the data set, B in the batch, H x W pixels, C channels, h x w pixels of the window.

    window[b, :, i, j] = image[id[b], r, c, :] * scale + shift,    r = |i + row[b] - padding| reflected into [0, H),
                                                                   c likewise from j, or from w - 1 - j if mirrored
    id[b] = shuffle of 0..N-1 at position (step of the epoch) * B + b

If `ranks` processes share a batch of ranks * B images, process number `rank` takes every ranks-th of them:

    id[b] = shuffle of 0..N-1 at position ((step of the epoch) * B + b) * ranks + rank

then, if enabled: zero padding, (window + brightness[b]) * contrast[b], a hole of zeros (cutout), a square of another
image's window (cutmix), bilinear down-scaling of the whole.

Layout: images uint8 [N, H, W, C], batch [B, C, h, w] in channels_last, so both consist of rows of w * C values.

The Triton kernel makes one pass in one launch: it reads B*h*w*C bytes and writes B*h*w*C values, 9.2 kB per CIFAR-10
image in float16. One program draws and writes one image. Without fusion, PyTorch gathers, converts, multiplies, adds
and masks in separate passes, and the integer arithmetic of the draws takes hundreds of small kernels. Seed and step
counter are read from device memory, so a replayed CUDA graph draws anew.

What the interpreter cannot show. Draws and addresses are integers of a fixed width, the same on a device. A device
fuses pixel times scale plus shift, so a value that the shift cancels becomes the rounding error of the product instead
of 0; padding and holes are selected and exactly 0. Masked addresses are not read. Offsets of images are int64. No two
programs write to the same address, and nothing is summed across threads.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn

from .checks import check_choice, check_integer, check_number
from .contract import (
    HALF_AND_SINGLE,
    CompileCase,
    Kernel,
    Operation,
    Operator,
    RandomTensors,
    all_by,
    pointer_type,
)
from .language import INTERPRETED, next_power_of_two, tl, triton
from .random import (
    below,
    below_device,
    between_device,
    between_minus_and_plus_one,
    permuted,
    permuted_device,
    random_words,
    random_words_device,
    shuffle_rectangle,
)

# Independent random draws of an image; a new draw gets a new number, so that existing ones do not change.
_WINDOW_STREAM, _COIN_STREAM, _SQUARE_STREAM, _PARTNER_STREAM, _JITTER_STREAM = 0, 1, 2, 3, 4
_SHUFFLE_STREAM = 0  # stream of shuffles, which are drawn differently from words


PaddingMode = Literal["reflect", "zero"]
Flip = Literal["none", "random", "alternating"]
# Evaluated here, because torch.compile does not trace typing.
_PADDING_MODES, _FLIPS = get_args(PaddingMode), get_args(Flip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """Settings of the transforms; all sizes in pixels, 0 disables. Raises ValueError for an invalid value."""

    crop: int = 0
    """Side of the window; 0 uses the image's own height and width."""
    padding: int = 0
    padding_mode: PaddingMode = "reflect"
    flip: Flip = "none"
    cutout: int = 0
    cutmix: int = 0
    brightness: float = 0.0
    """A number drawn from [-brightness, brightness) is added to an image, in normalised units."""
    contrast: float = 0.0
    """The image is then multiplied by a number drawn from [1 - contrast, 1 + contrast)."""
    size: int = 0
    """Side that the whole window is scaled down to, bilinearly and without antialiasing; 0 disables scaling."""
    ranks: int = 0
    """Number of processes that share each batch; 0: it is not shared."""
    rank: int = 0
    """Number of this process, whose images are number rank, rank + ranks, ... of the shared batch."""

    def __post_init__(self) -> None:
        check_choice("padding_mode", self.padding_mode, _PADDING_MODES)
        check_choice("flip", self.flip, _FLIPS)
        for name in ("crop", "padding", "cutout", "cutmix", "size", "ranks"):
            check_integer(name, getattr(self, name), 0)
        check_integer("rank", self.rank, 0, self.shares - 1)
        for name in ("brightness", "contrast"):
            check_number(name, getattr(self, name))

    @property
    def shares(self) -> int:
        """Into how many parts each batch is divided; 1: it is not shared."""
        return max(self.ranks, 1)

    def window(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the window cut out of images of `height` x `width` pixels."""
        return (self.crop, self.crop) if self.crop else (height, width)

    def result(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the result for images of `height` x `width` pixels."""
        return (self.size, self.size) if self.size else self.window(height, width)


TRANSFORM_NAMES = tuple(field.name for field in dataclasses.fields(Transforms))
TRANSFORM_SCHEMA = (
    "int crop, int padding, str padding_mode, str flip, int cutout, int cutmix, "
    "float brightness, float contrast, int size, int ranks, int rank"
)
"""The same names with their types, as arguments of an operator."""


def transforms_from(settings: Sequence[Any]) -> Transforms:
    """Return Transforms from the values of TRANSFORM_NAMES, as passed to operators."""
    return Transforms(**dict(zip(TRANSFORM_NAMES, settings, strict=True)))


class Batch(NamedTuple):
    """Batch for a training step."""

    images: Tensor
    """[B, C, h, w] in channels_last."""
    labels: Tensor
    """int64 [B]."""
    pasted_labels: Tensor | None
    """int64 [B], labels of the squares pasted by cutmix; None without cutmix."""


class Draws(NamedTuple):
    """Random draws for each image of a batch; int64 [B] unless stated otherwise."""

    row: Tensor
    """First row of the window in the padded image, in [0, H + 2 * padding - h]."""
    column: Tensor
    mirror: Tensor
    """bool [B]: columns of the window are reversed."""
    cutout_row: Tensor
    cutout_column: Tensor
    cutmix_row: Tensor
    cutmix_column: Tensor
    brightness: Tensor
    """float32 [B], added to the normalised image."""
    contrast: Tensor
    """float32 [B], factor applied after the brightness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConstants:
    """Compile-time constants of the device code: `Transforms` and sizes."""

    count: int
    shuffle_rows: int
    shuffle_columns: int
    height: int
    width: int
    channels: int
    window_height: int
    window_width: int
    out_height: int
    out_width: int
    padding: int
    zero_padding: bool
    flip: str
    cutout: int
    cutmix: int
    brightness: float
    contrast: float
    ranks: int
    rank: int


# -- device code; `S` is an AugmentConstants


@triton.jit
def _draws_device(image, seed, epoch, S: tl.constexpr):
    """Compute `Draws` of one image."""
    words = random_words_device(seed, epoch, image, 0)  # _WINDOW_STREAM
    row = below_device(words[0], S.height + 2 * S.padding - S.window_height + 1).to(tl.int32)
    column = below_device(words[1], S.width + 2 * S.padding - S.window_width + 1).to(tl.int32)
    mirror = tl.zeros_like(image)
    if S.flip == "random":
        mirror = words[2] & 1
    if S.flip == "alternating":
        mirror = (random_words_device(seed, tl.zeros_like(epoch), image, 1)[0] ^ epoch) & 1  # _COIN_STREAM
    squares = random_words_device(seed, epoch, image, 2)  # _SQUARE_STREAM; dropped where nothing uses it
    cutout_row = below_device(squares[0], S.window_height - S.cutout + 1).to(tl.int32)
    cutout_column = below_device(squares[1], S.window_width - S.cutout + 1).to(tl.int32)
    cutmix_row = below_device(squares[2], S.window_height - S.cutmix + 1).to(tl.int32)
    cutmix_column = below_device(squares[3], S.window_width - S.cutmix + 1).to(tl.int32)
    jitter = random_words_device(seed, epoch, image, 4)  # _JITTER_STREAM
    brightness, contrast = between_device(jitter[0]) * S.brightness, 1.0 + between_device(jitter[1]) * S.contrast
    return row, column, mirror, cutout_row, cutout_column, cutmix_row, cutmix_column, brightness, contrast


@triton.jit
def drawn_device(seed_ptr, counter_ptr, steps_per_epoch, in_batch, batch_size, S: tl.constexpr):
    """Return the image at a place of the batch, its draws, the image pasted into it, and that image's draws."""
    seed, counter = tl.load(seed_ptr), tl.load(counter_ptr)
    epoch = (counter // steps_per_epoch).to(tl.uint32)
    position = counter % steps_per_epoch * batch_size + in_batch
    if S.ranks > 1:
        position = position * S.ranks + S.rank
    image = permuted_device(
        position.to(tl.uint32), seed, epoch, 0, S.count, S.shuffle_rows, S.shuffle_columns
    )  # _SHUFFLE_STREAM
    draws = _draws_device(image, seed, epoch, S)
    partner, partner_draws = image, draws
    if S.cutmix > 0:
        partner = permuted_device(image, seed, epoch, 3, S.count, S.shuffle_rows, S.shuffle_columns)  # _PARTNER_STREAM
        partner_draws = _draws_device(partner, seed, epoch, S)
    return image, draws, partner, partner_draws


@triton.jit
def _reflected_device(index, SIZE: tl.constexpr):
    index = tl.abs(index)
    return tl.where(index >= SIZE, 2 * (SIZE - 1) - index, index)


@triton.jit
def _in_square_device(rows, columns, row, column, SIDE: tl.constexpr):
    """Return the mask of rows and columns in the square whose first corner is (row, column)."""
    return ((rows >= row) & (rows < row + SIDE)) & ((columns >= column) & (columns < column + SIDE))


@triton.jit
def _image_values_device(images_ptr, image, draws, rows, columns, channels, scale, shift, mask, S: tl.constexpr):
    """Compute `_window_values_device` of one image, without pasting."""
    place_row = rows + (draws[0] - S.padding)
    place_column = tl.where(draws[2] != 0, S.window_width - 1 - columns, columns) + (draws[1] - S.padding)
    row, column = _reflected_device(place_row, S.height), _reflected_device(place_column, S.width)
    start = images_ptr + image.to(tl.int64) * (S.height * S.width * S.channels)
    pixels = tl.load(start + row * (S.width * S.channels) + (column * S.channels + channels), mask=mask, other=0)
    values = pixels.to(tl.float32) * scale + shift
    if S.zero_padding:
        values = tl.where((row == place_row) & (column == place_column), values, 0.0)
    if S.brightness > 0 or S.contrast > 0:
        values = (values + draws[7]) * draws[8]
    if S.cutout > 0:
        values = tl.where(_in_square_device(rows, columns, draws[3], draws[4], S.cutout), 0.0, values)
    return values


@triton.jit
def _window_values_device(images_ptr, drawn, rows, columns, channels, scale, shift, mask, S: tl.constexpr):
    """Compute `values_device` before scaling: (rows, columns) refer to the window."""
    image, draws, partner, partner_draws = drawn
    if S.cutmix > 0:
        pasted = _in_square_device(rows, columns, draws[5], draws[6], S.cutmix)
        others = _image_values_device(
            images_ptr, partner, partner_draws, rows, columns, channels, scale, shift, mask & pasted, S
        )
        own_mask = mask & (pasted == 0)
        own = _image_values_device(images_ptr, image, draws, rows, columns, channels, scale, shift, own_mask, S)
        values = tl.where(pasted, others, own)
    else:
        values = _image_values_device(images_ptr, image, draws, rows, columns, channels, scale, shift, mask, S)
    return values


@triton.jit
def _taps_device(index, SIZE: tl.constexpr, OUT_SIZE: tl.constexpr):
    """Return the two source positions around a scaled position, and the weight of the second."""
    place = (index.to(tl.float32) + 0.5) * (SIZE / OUT_SIZE) - 0.5
    first = place.to(tl.int32)
    return first, tl.minimum(first + 1, SIZE - 1), place - first.to(tl.float32)


@triton.jit
def values_device(images_ptr, drawn, rows, columns, channels, scale, shift, mask, S: tl.constexpr):
    """Return augmented and normalised float32 values of an image from `drawn_device` at (rows, columns, channels).

    Positions refer to the result. Rows, columns, channels, scale and shift may have any shapes that broadcast to that
    of the mask.
    """
    if S.out_height == S.window_height and S.out_width == S.window_width:
        values = _window_values_device(images_ptr, drawn, rows, columns, channels, scale, shift, mask, S)
    else:
        top, bottom, down = _taps_device(rows, S.window_height, S.out_height)
        left, right, along = _taps_device(columns, S.window_width, S.out_width)
        first = _window_values_device(images_ptr, drawn, top, left, channels, scale, shift, mask, S)
        second = _window_values_device(images_ptr, drawn, top, right, channels, scale, shift, mask, S)
        upper = first + along * (second - first)
        first = _window_values_device(images_ptr, drawn, bottom, left, channels, scale, shift, mask, S)
        second = _window_values_device(images_ptr, drawn, bottom, right, channels, scale, shift, mask, S)
        values = upper + down * (first + along * (second - first) - upper)
    return values


@triton.jit
def store_labels_device(labels_ptr, batch_labels_ptr, pasted_labels_ptr, drawn, in_batch, S: tl.constexpr):
    """Write the label of an image and that of the image pasted into it."""
    tl.store(batch_labels_ptr + in_batch, tl.load(labels_ptr + drawn[0]))
    if S.cutmix > 0:
        tl.store(pasted_labels_ptr + in_batch, tl.load(labels_ptr + drawn[2]))


@triton.jit(do_not_specialize=("steps_per_epoch",))
def augment_kernel(
    images_ptr,  # uint8 [count, height, width, channels]
    labels_ptr,  # int64 [count]
    seed_ptr,  # int64 [1]
    counter_ptr,  # int64 [1]
    scale_ptr,  # float32 [channels]
    shift_ptr,  # float32 [channels]
    batch_ptr,  # [B, out_height, out_width, channels]
    batch_labels_ptr,  # int64 [B]
    pasted_labels_ptr,  # int64 [B], untouched without cutmix
    steps_per_epoch,
    S: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
):
    """Draw and write one image per program, or one block of values of its rows if they are long."""
    in_batch = tl.program_id(0)
    drawn = drawn_device(seed_ptr, counter_ptr, steps_per_epoch, in_batch, tl.num_programs(0), S)
    if tl.program_id(1) == 0:
        store_labels_device(labels_ptr, batch_labels_ptr, pasted_labels_ptr, drawn, in_batch, S)
    values = tl.program_id(1) * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES)  # of a row: column * channels + channel
    columns, channels = (values // S.channels)[None, :], values % S.channels
    in_row = values < S.out_width * S.channels  # not by columns: the compiler has to see runs of 8 for wide stores
    scale = tl.load(scale_ptr + channels, mask=in_row, other=0.0)[None, :]
    shift = tl.load(shift_ptr + channels, mask=in_row, other=0.0)[None, :]
    batch_start = batch_ptr + in_batch.to(tl.int64) * (S.out_height * S.out_width * S.channels)
    for first_row in range(0, S.out_height, BLOCK_ROWS):
        rows = (first_row + tl.arange(0, BLOCK_ROWS))[:, None]
        mask = (rows < S.out_height) & in_row[None, :]
        result = values_device(images_ptr, drawn, rows, columns, channels[None, :], scale, shift, mask, S)
        targets = batch_start + rows * (S.out_width * S.channels) + values[None, :]
        tl.store(targets, result.to(batch_ptr.dtype.element_ty), mask=mask)


# -- launcher


def check_augment(
    images: Tensor, labels: Tensor, seed: Tensor, counter: Tensor, scale: Tensor, shift: Tensor,
    transforms: Transforms, batch_size: int, steps_per_epoch: int, dtype: torch.dtype, provider: str = "triton",
) -> None:  # fmt: skip
    """Raise ValueError for arguments that `augmented_batch` does not support; its reference also supports float64."""
    check_choice("provider", provider, ("triton", "reference"))
    wide = (torch.float64,) if provider == "reference" else ()
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
        raise ValueError(
            f"images have to be contiguous uint8 [N, H, W, C], not {images.dtype} {list(images.shape)} "
            f"with strides {list(images.stride())}"
        )
    integers, factors, channels = (torch.int64,), (torch.float32, *wide), images.shape[3]
    for name, tensor, dtypes, length in (
        ("labels", labels, integers, len(images)),
        ("seed", seed, integers, 1),
        ("counter", counter, integers, 1),
        ("scale", scale, factors, channels),
        ("shift", shift, factors, channels),
    ):
        if tensor.dtype not in dtypes or list(tensor.shape) != [length]:
            raise ValueError(f"{name} has to be {dtypes[0]} [{length}], not {tensor.dtype} {list(tensor.shape)}")
        if tensor.device != images.device:
            raise ValueError(f"images are on {images.device}, {name} on {tensor.device}")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, *wide):
        raise ValueError(f"dtype has to be float16, bfloat16 or float32, not {dtype}")
    check_batches(len(images), batch_size * transforms.shares, steps_per_epoch)
    height, width = images.shape[1:3]
    check_transforms(height, width, transforms)


def check_batches(count: int, batch_size: int, steps_per_epoch: int = 1) -> None:
    """Raise ValueError if `count` images do not make this number of batches of this size."""
    check_integer("batch_size", batch_size, 1, count)
    check_integer("steps_per_epoch", steps_per_epoch, 1, count // batch_size)


def check_transforms(height: int, width: int, transforms: Transforms) -> None:
    """Raise ValueError for transforms that do not fit images of `height` x `width` pixels."""
    if transforms.padding_mode == "reflect" and transforms.padding >= min(height, width):
        raise ValueError(f"padding {transforms.padding} cannot be reflected from images of {height} x {width}")
    window, room = transforms.window(height, width), 2 * transforms.padding
    if window[0] > height + room or window[1] > width + room:
        raise ValueError(f"a crop of {transforms.crop} exceeds images of {height} x {width} padded by {room // 2}")
    if max(transforms.cutout, transforms.cutmix) > min(window):
        raise ValueError(f"cutout {transforms.cutout} or cutmix {transforms.cutmix} exceeds a window of {window}")
    if transforms.size > min(window):
        raise ValueError(f"size {transforms.size} exceeds a window of {window}: windows are only scaled down")


def augmented_batch_triton(
    images: Tensor,
    labels: Tensor,
    seed: Tensor,
    counter: Tensor,
    scale: Tensor,
    shift: Tensor,
    transforms: Transforms,
    batch_size: int,
    steps_per_epoch: int,
    dtype: torch.dtype,
) -> Batch:
    """Compute `augmented_batch` in one launch of the kernel."""
    count, height, width, channels = images.shape
    out_height, out_width = transforms.result(height, width)
    batch = torch.empty((batch_size, out_height, out_width, channels), dtype=dtype, device=images.device)
    batch_labels, pasted_labels = (
        torch.empty(size, dtype=torch.int64, device=images.device)
        for size in (batch_size, batch_size if transforms.cutmix else 0)
    )
    blocks = _blocks(out_width * channels)
    grid = batch_size, -(-out_width * channels // blocks["BLOCK_VALUES"])
    augment_kernel[grid](
        images, labels, seed, counter, scale, shift, batch, batch_labels, pasted_labels, steps_per_epoch,
        augment_constants(count, height, width, channels, transforms), **blocks, num_warps=AUGMENT_WARPS,
    )  # fmt: skip
    return Batch(batch.permute(0, 3, 1, 2), batch_labels, pasted_labels if transforms.cutmix else None)


AUGMENT_WARPS = 1
"""Every additional warp of a program would repeat the draws of its image."""


def augment_constants(count: int, height: int, width: int, channels: int, transforms: Transforms) -> AugmentConstants:
    """Return the compile-time constants for these images and transforms."""
    window_height, window_width = transforms.window(height, width)
    out_height, out_width = transforms.result(height, width)
    rows, columns = shuffle_rectangle(count)
    return AugmentConstants(
        count=count,
        shuffle_rows=rows,
        shuffle_columns=columns,
        height=height,
        width=width,
        channels=channels,
        window_height=window_height,
        window_width=window_width,
        out_height=out_height,
        out_width=out_width,
        padding=transforms.padding,
        zero_padding=transforms.padding_mode == "zero" and transforms.padding > 0,
        flip=transforms.flip,
        cutout=transforms.cutout,
        cutmix=transforms.cutmix,
        brightness=transforms.brightness,
        contrast=transforms.contrast,
        ranks=transforms.ranks,
        rank=transforms.rank,
    )


def _blocks(row_values: int) -> dict[str, int]:
    """Return tile sizes for rows of so many values."""
    block_values = min(next_power_of_two(row_values), 256)
    # With twice as many values per tile, cutmix spills registers in Triton 3.6.
    return {"BLOCK_ROWS": max(512 // block_values, 1), "BLOCK_VALUES": block_values}


def transforms_in_words(transforms: Transforms) -> str:
    """Describe the enabled transforms."""
    written = dataclasses.asdict(transforms).items()
    return ", ".join(f"{name} {value}" for name, value in written if value not in (0, "none"))


# -- reference


def augmentation_draws(
    seed: Tensor, epoch: Tensor, ids: Tensor, transforms: Transforms, height: int, width: int
) -> Draws:
    """Return the draws of images `ids` (int64 [B]) in `epoch` (int64 [1]) of the run `seed` (int64 [1])."""
    window_height, window_width = transforms.window(height, width)
    words = random_words(seed, epoch, ids, _WINDOW_STREAM)
    none = [torch.zeros_like(ids)] * 4
    squares = transforms.cutout > 0 or transforms.cutmix > 0
    square = random_words(seed, epoch, ids, _SQUARE_STREAM) if squares else none
    jitters = transforms.brightness > 0 or transforms.contrast > 0
    jitter = random_words(seed, epoch, ids, _JITTER_STREAM) if jitters else none
    return Draws(
        row=below(words[0], height + 2 * transforms.padding - window_height + 1),
        column=below(words[1], width + 2 * transforms.padding - window_width + 1),
        mirror=_mirrored(seed, epoch, ids, words[2], transforms.flip),
        cutout_row=below(square[0], window_height - transforms.cutout + 1),
        cutout_column=below(square[1], window_width - transforms.cutout + 1),
        cutmix_row=below(square[2], window_height - transforms.cutmix + 1),
        cutmix_column=below(square[3], window_width - transforms.cutmix + 1),
        brightness=between_minus_and_plus_one(jitter[0]) * transforms.brightness,
        contrast=1 + between_minus_and_plus_one(jitter[1]) * transforms.contrast,
    )


def _mirrored(seed: Tensor, epoch: Tensor, ids: Tensor, words: Tensor, flip: str) -> Tensor:
    """Return which images are mirrored, bool [B]; `words` are 32 random bits per image, drawn anew each epoch."""
    if flip == "none":
        return torch.zeros_like(ids, dtype=torch.bool)
    if flip == "random":
        return words & 1 == 1
    # The coin of alternating flips is tossed once per run, in epoch 0; each later epoch turns it over.
    coin = random_words(seed, torch.zeros_like(epoch), ids, _COIN_STREAM)[0] & 1
    return coin ^ (epoch & 1) == 1


def cutmix_partners(seed: Tensor, epoch: Tensor, ids: Tensor, count: int) -> Tensor:
    """Return the image pasted into each image of `ids`, int64 [B]: a shuffle of all `count` images."""
    return permuted(ids, count, seed, epoch, _PARTNER_STREAM)


def _square(row: Tensor, column: Tensor, side: int, height: int, width: int) -> Tensor:
    """Return bool [B, H, W, 1]: true inside the side x side square whose first corner is (row, column)."""
    rows = torch.arange(height, device=row.device) - row[:, None]
    columns = torch.arange(width, device=row.device) - column[:, None]
    inside_rows, inside_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).unsqueeze(-1)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Reflect indices outside [0, size) at the first and the last pixel, which are not repeated."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def normalisation(
    mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and shift, [C] each, that map pixel values 0..255 to (value / 255 - mean) / std.

    Args:
        mean: mean of the pixels scaled to [0, 1], one value per channel.
        std: standard deviation of the same; 0 for a channel that is constant over the whole data set, which becomes 0.
        dtype: float32 or float64; computed in float64.
        device: device of the result.

    Raises:
        ValueError: the lengths differ, a value is not finite, or `std` is negative.
    """
    if len(mean) != len(std) or not all(map(math.isfinite, mean)) or not all(0 <= each < math.inf for each in std):
        raise ValueError(f"mean {mean} and std {std} have to be finite, one of each a channel, std 0 or more")
    center = torch.tensor(mean, dtype=torch.float64)
    spread = torch.tensor(std, dtype=torch.float64)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    return (1 / (255 * spread)).to(device, dtype), (-center / spread).to(device, dtype)


def augment(images: Tensor, ids: Tensor, draws: Draws, scale: Tensor, shift: Tensor, transforms: Transforms) -> Tensor:
    """Return the augmented and normalised windows of the images `ids`, without cutmix (see `pasted`) and down-scaling.

    Args:
        images: uint8 [N, H, W, C], contiguous.
        ids: int64 [B].
        draws: draws of the same B images.
        scale: [C], factor of the pixel values 0..255; float32 or float64.
        shift: [C], added after scaling.
        transforms: settings of the transforms.

    Returns:
        [B, C, h, w] in channels_last, in the dtype of `scale`.
    """
    height, width = images.shape[1:3]
    window_height, window_width = transforms.window(height, width)
    row = torch.arange(window_height, device=ids.device) + draws.row[:, None] - transforms.padding
    column = torch.arange(window_width, device=ids.device).expand(len(ids), window_width)
    column = torch.where(draws.mirror[:, None], window_width - 1 - column, column)
    column = column + draws.column[:, None] - transforms.padding
    source_row, source_column = _reflected(row, height), _reflected(column, width)
    pixels = images[ids[:, None, None], source_row[:, :, None], source_column[:, None, :]]
    batch = pixels.to(scale.dtype) * scale + shift
    if transforms.padding_mode == "zero" and transforms.padding > 0:
        inside = (row == source_row)[:, :, None] & (column == source_column)[:, None, :]
        batch = batch * inside.unsqueeze(-1)
    if transforms.brightness > 0 or transforms.contrast > 0:
        both = draws.brightness.to(scale.dtype), draws.contrast.to(scale.dtype)
        batch = (batch + both[0][:, None, None, None]) * both[1][:, None, None, None]
    if transforms.cutout > 0:
        square = _square(draws.cutout_row, draws.cutout_column, transforms.cutout, window_height, window_width)
        batch = batch.masked_fill(square, 0.0)
    # A contiguous [B, H, W, C] tensor viewed as [B, C, H, W] is in channels_last.
    return batch.permute(0, 3, 1, 2)


def pasted(batch: Tensor, partners: Tensor, draws: Draws, side: int) -> Tensor:
    """Return `batch` with a side x side square of `partners` in each image; all [B, C, H, W] in channels_last."""
    square = _square(draws.cutmix_row, draws.cutmix_column, side, *batch.shape[2:])
    mixed = torch.where(square, partners.permute(0, 2, 3, 1), batch.permute(0, 2, 3, 1))
    return mixed.permute(0, 3, 1, 2)


def augmented_batch_reference(
    images: Tensor,
    labels: Tensor,
    seed: Tensor,
    counter: Tensor,
    scale: Tensor,
    shift: Tensor,
    transforms: Transforms,
    batch_size: int,
    steps_per_epoch: int,
    dtype: torch.dtype,
) -> Batch:
    """Compute `augmented_batch` in plain PyTorch, on any device."""
    count, height, width = images.shape[:3]
    epoch = counter // steps_per_epoch
    positions = counter % steps_per_epoch * batch_size + torch.arange(batch_size, device=counter.device)
    positions = positions * transforms.shares + transforms.rank
    ids = permuted(positions, count, seed, epoch, _SHUFFLE_STREAM)

    draws = augmentation_draws(seed, epoch, ids, transforms, height, width)
    batch, pasted_labels = augment(images, ids, draws, scale, shift, transforms), None
    if transforms.cutmix:
        partners = cutmix_partners(seed, epoch, ids, count)
        partner_draws = augmentation_draws(seed, epoch, partners, transforms, height, width)
        others = augment(images, partners, partner_draws, scale, shift, transforms)
        batch, pasted_labels = pasted(batch, others, draws, transforms.cutmix), labels.index_select(0, partners)
    if transforms.size:
        batch = F.interpolate(batch, size=(transforms.size, transforms.size), mode="bilinear", align_corners=False)
        batch = batch.contiguous(memory_format=torch.channels_last)
    return Batch(batch.to(dtype), labels.index_select(0, ids), pasted_labels)


# -- registration

_LIBRARY = library.Library("speedyresnet", "FRAGMENT")
_LIBRARY.define(
    "augment(Tensor images, Tensor labels, Tensor seed, Tensor counter, Tensor scale, Tensor shift, int batch_size, "
    f"int steps_per_epoch, ScalarType dtype, {TRANSFORM_SCHEMA}) -> (Tensor, Tensor, Tensor)"
)


def _implementation(function: Callable[..., Batch]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Adapt `function` to the operator's plain arguments and results; missing pasted labels become an empty tensor."""

    def implementation(
        images: Tensor, labels: Tensor, seed: Tensor, counter: Tensor, scale: Tensor, shift: Tensor,
        batch_size: int, steps_per_epoch: int, dtype: torch.dtype, *transforms: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        made = transforms_from(transforms)
        tensors = images, labels, seed, counter, scale, shift
        batch = function(*tensors, made, batch_size, steps_per_epoch, dtype)
        pasted_labels = labels.new_empty(0) if batch.pasted_labels is None else batch.pasted_labels
        return batch.images, batch.labels, pasted_labels

    return implementation


def _augment_fake(
    images: Tensor, labels: Tensor, seed: Tensor, counter: Tensor, scale: Tensor, shift: Tensor,
    batch_size: int, steps_per_epoch: int, dtype: torch.dtype, *transforms: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    made = transforms_from(transforms)
    shape = batch_size, *made.result(*images.shape[1:3]), images.shape[3]
    batch = images.new_empty(shape, dtype=dtype).permute(0, 3, 1, 2)
    return batch, labels.new_empty(batch_size), labels.new_empty(batch_size if made.cutmix else 0)


_LIBRARY.impl("augment", _implementation(augmented_batch_triton), "CUDA")
_LIBRARY.impl("augment", _implementation(augmented_batch_triton if INTERPRETED else augmented_batch_reference), "CPU")
library.register_fake("speedyresnet::augment", _augment_fake, lib=_LIBRARY)


# -- public


def augmented_batch(
    images: Tensor,
    labels: Tensor,
    seed: Tensor,
    counter: Tensor,
    scale: Tensor,
    shift: Tensor,
    transforms: Transforms,
    *,
    batch_size: int,
    steps_per_epoch: int,
    dtype: torch.dtype,
    provider: str = "triton",
) -> Batch:
    """Return the batch of step `counter`: shuffled, augmented, normalised.

    Args:
        images: uint8 [N, H, W, C], contiguous.
        labels: int64 [N].
        seed: int64 [1], any value; like all tensors on the device of `images`.
        counter: int64 [1], number of steps done so far.
        scale: float32 [C], see `normalisation`; the reference also supports float64, and computes in it.
        shift: as `scale`.
        transforms: transforms of each image.
        batch_size: B.
        steps_per_epoch: batches per shuffle; at most N // B.
        dtype: dtype of the result.
        provider: `triton`, the kernel on a GPU; or `reference`, plain PyTorch.

    Raises:
        ValueError: an invalid dtype, shape, layout or option, transforms that do not fit the images, or more batches
            per epoch than the images make.
    """
    check_augment(images, labels, seed, counter, scale, shift, transforms, batch_size, steps_per_epoch, dtype, provider)
    if provider == "reference":
        return augmented_batch_reference(
            images, labels, seed, counter, scale, shift, transforms, batch_size, steps_per_epoch, dtype
        )
    batch, batch_labels, pasted_labels = torch.ops.speedyresnet.augment(
        images, labels, seed, counter, scale, shift, batch_size, steps_per_epoch, dtype,
        *(getattr(transforms, name) for name in TRANSFORM_NAMES),
    )  # fmt: skip
    return Batch(batch, batch_labels, pasted_labels if transforms.cutmix else None)


class Augmentation(nn.Module):
    """Data set on a device that returns one augmented batch per call, epoch after epoch.

    Args:
        images: uint8 [N, H, W, C], contiguous.
        labels: int64 [N].
        batch_size: B; an epoch has N // B batches.
        transforms: transforms of each image.
        mean: mean of the pixels scaled to [0, 1], one value per channel.
        std: standard deviation of the same.
        seed: seed of order and augmentation.
        dtype: dtype of the batches.

    Raises:
        ValueError: as in `augmented_batch`.
    """

    images: Tensor
    labels: Tensor
    seed: Tensor
    counter: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        transforms: Transforms,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__()
        check_batches(len(images), batch_size)
        check_integer("seed", seed, -(2**63), 2**63 - 1)
        self.batch_size, self.transforms, self.dtype = batch_size, transforms, dtype
        scale, shift = normalisation(mean, std, torch.float32, images.device)
        tensors = {"images": images, "labels": labels, "scale": scale, "shift": shift}
        for name, value in (("seed", seed), ("counter", 0)):
            tensors[name] = torch.tensor([value], dtype=torch.int64, device=images.device)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=name in ("seed", "counter"))
        check_augment(
            self.images, self.labels, self.seed, self.counter, self.scale, self.shift, transforms, batch_size,
            len(images) // batch_size, dtype,
        )  # fmt: skip

    def forward(self) -> Batch:
        """Return the next batch."""
        batch = augmented_batch(
            self.images, self.labels, self.seed, self.counter, self.scale, self.shift, self.transforms,
            batch_size=self.batch_size, steps_per_epoch=len(self.labels) // self.batch_size, dtype=self.dtype,
        )  # fmt: skip
        self.counter.add_(1)
        return batch


def operation_transforms(operation: Operation) -> Transforms:
    """Return the transforms among the options of an operation."""
    return transforms_from([operation[name] for name in TRANSFORM_NAMES])


def _fits(operation: Operation) -> str | None:
    return None if operation.dtype in HALF_AND_SINGLE else f"makes float16, bfloat16 or float32, not {operation.dtype}"


def augment_inputs(operation: Operation, device: torch.device, seed: int) -> dict[str, Any]:
    """Make inputs of `augmented_batch`: a data set of random images, in its second epoch."""
    draw, (count, _, _, channels) = RandomTensors(device, seed), operation.shape
    steps_per_epoch = count // operation["batch_size"]
    scale, shift = normalisation((0.5,) * channels, (0.25,) * channels, torch.float32, device)
    return {
        "images": draw.integers(*operation.shape, below=256, dtype=torch.uint8),
        "labels": draw.integers(count, below=10),
        "seed": torch.full((1,), seed, device=device),
        "counter": torch.full((1,), steps_per_epoch, device=device),
        "scale": scale,
        "shift": shift,
        "transforms": operation_transforms(operation),
        "batch_size": operation["batch_size"],
        "steps_per_epoch": steps_per_epoch,
        "dtype": operation.dtype,
    }


_TYPES = {
    "images_ptr": "*u8", "labels_ptr": "*i64", "seed_ptr": "*i64", "counter_ptr": "*i64", "drawn_at_ptr": "*i64",
    "batch_labels_ptr": "*i64", "pasted_labels_ptr": "*i64", "steps_per_epoch": "i32",
}  # fmt: skip


def augment_argument_types(
    function: Any, constants: dict[str, Any], dtype: torch.dtype, activations: Sequence[str]
) -> dict[str, str]:
    """Return the Triton types of a drawing kernel's arguments; `activations` have `dtype`, the rest float32."""
    names = [name for name in getattr(function, "arg_names", []) if name not in constants]
    known = _TYPES | dict.fromkeys(activations, pointer_type(dtype))
    return {name: known.get(name, "*fp32") for name in names}


def operation_in_words(operation: Operation) -> str:
    """Describe the batch, its source images and the transforms."""
    dtype, images = str(operation.dtype).removeprefix("torch."), "x".join(map(str, operation.shape))
    return f"{operation['batch_size']} of {images}, {dtype}, {transforms_in_words(operation_transforms(operation))}"


def _compile_cases(operation: Operation) -> list[CompileCase]:
    transforms, (count, rows, columns, channels) = operation_transforms(operation), operation.shape
    window, (height, width) = transforms.window(rows, columns), transforms.result(rows, columns)
    written = operation.dtype.itemsize * channels * height * width
    drawn: dict[str, Any] = {"S": augment_constants(count, rows, columns, channels, transforms)}
    constants = drawn | _blocks(width * channels)
    return [
        CompileCase(
            shape=operation_in_words(operation),
            function=augment_kernel,
            arguments=augment_argument_types(augment_kernel, constants, operation.dtype, ["batch_ptr"]),
            constants=constants,
            warps=AUGMENT_WARPS,
            bytes=operation["batch_size"] * (channels * math.prod(window) + written + 16),
        )
    ]


def windows_read(arguments: Sequence[Any], results: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors of the size of what is read: the windows of a batch, and the gradient if there is one."""
    tensors = [each for each in arguments if isinstance(each, Tensor)]
    gradients = tensors[:1] if tensors[0].is_floating_point() else []
    images = next(each for each in tensors if each.dtype == torch.uint8)
    window = transforms_from(arguments[-len(TRANSFORM_NAMES) :]).window(*images.shape[1:3])
    read = map(min, window, images.shape[1:3])  # a window may reach into the padding, where pixels repeat
    return [*gradients, images.new_empty((len((gradients or results)[0]), *read, images.shape[3]))]


KERNEL = Kernel(
    operation="augment",
    function=augmented_batch,
    reference=augmented_batch_reference,
    fits=_fits,
    inputs=augment_inputs,
    compile_cases=_compile_cases,
    gpu_functions={"augment_kernel": "stem"},
    operators={"augment": Operator(bytes=all_by("augment_kernel"), reads=windows_read)},
)
