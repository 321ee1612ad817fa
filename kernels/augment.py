"""GPU-side augmentation: gather a batch of uint8 images, crop, mirror, cut out, mix and normalise it, shuffle included.

Legend: N images in the data set, B in the batch, H x W pixels, C channels, h x w pixels of the window.

    out[b, :, i, j] = image[id[b], r, c, :] * scale + shift,    r = |i + row[b] - padding| reflected into [0, H),
                                                               c likewise from j, or from w - 1 - j if mirrored
    id[b] = shuffle of 0..N-1 at position (step of the epoch) * B + b

Layout: images uint8 [N, H, W, C], batch [B, C, h, w] in channels_last, so both are rows of w * C values. Cutout and
zero padding zero pixels after normalisation; cutmix takes a square from another image.

The Triton kernel makes one pass in one launch: it reads B*h*w*C bytes and writes B*h*w*C values, 9.2 kB an image of
CIFAR-10 in float16. One program draws and writes one image. Where nothing is fused, PyTorch gathers, converts,
multiplies, adds and masks in passes of their own, and the integer arithmetic of the draws is hundreds of small kernels.
Seed and step counter are read from device memory: a replayed CUDA graph draws anew.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, library, nn

from .language import INTERPRETED, tl, triton
from .random import below, below_device, permuted, permuted_device, random_words, random_words_device, shuffle_rectangle
from .resources import CompileCase

# The independent random draws of an image; a new draw takes a new number, so that old runs keep theirs.
_WINDOW_STREAM, _COIN_STREAM, _SQUARE_STREAM, _PARTNER_STREAM = 0, 1, 2, 3
_SHUFFLE_STREAM = 0  # of shuffles, which are drawn in another way than words


@dataclass(frozen=True, slots=True, kw_only=True)
class Transforms:
    """Which transforms are on; all sizes in pixels, 0 is off."""

    crop: int = 0
    """Side of the window; 0: the image's own height and width."""
    padding: int = 0
    padding_mode: Literal["reflect", "zero"] = "reflect"
    flip: Literal["none", "random", "alternating"] = "none"
    cutout: int = 0
    cutmix: int = 0

    def window(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what comes out of images of `height` x `width` pixels."""
        return (self.crop, self.crop) if self.crop else (height, width)


class Batch(NamedTuple):
    """A batch as a training step takes it."""

    images: Tensor
    """[B, C, h, w] in channels_last."""
    labels: Tensor
    """int64 [B]."""
    pasted_labels: Tensor | None
    """int64 [B], of the squares that cutmix pasted in; none without cutmix."""


class Draws(NamedTuple):
    """What chance decided for each image of a batch; int64 [B] unless said otherwise."""

    row: Tensor
    """First row of the window in the padded image, in [0, H + 2 * padding - h]."""
    column: Tensor
    mirror: Tensor
    """bool [B]: columns of the window run backwards."""
    cutout_row: Tensor
    cutout_column: Tensor
    cutmix_row: Tensor
    cutmix_column: Tensor


# -- device code


@triton.jit
def _window_device(image, seed, epoch, ROW_POSITIONS: tl.constexpr, COLUMN_POSITIONS: tl.constexpr, FLIP: tl.constexpr):
    """First row and column of an image's window, and 1 where it is mirrored."""
    words = random_words_device(seed, epoch, image, 0)  # _WINDOW_STREAM
    row, column = below_device(words[0], ROW_POSITIONS), below_device(words[1], COLUMN_POSITIONS)
    mirror = tl.zeros_like(image)
    if FLIP == "random":
        mirror = words[2] & 1
    if FLIP == "alternating":
        mirror = (random_words_device(seed, tl.zeros_like(epoch), image, 1)[0] ^ epoch) & 1  # _COIN_STREAM
    return row.to(tl.int32), column.to(tl.int32), mirror


@triton.jit
def _reflected_device(index, SIZE: tl.constexpr):
    index = tl.abs(index)
    return tl.where(index >= SIZE, 2 * (SIZE - 1) - index, index)


@triton.jit
def _places_device(
    rows,
    columns,
    channels,
    window,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    PADDING: tl.constexpr,
):
    """Offsets within an image that the rows x columns of a window show, and which of them are no padding."""
    row, column, mirror = window
    place_row = rows + (row - PADDING)
    place_column = tl.where(mirror != 0, WINDOW_WIDTH - 1 - columns, columns) + (column - PADDING)
    source_row, source_column = _reflected_device(place_row, HEIGHT), _reflected_device(place_column, WIDTH)
    places = (source_row * (WIDTH * CHANNELS))[:, None] + (source_column * CHANNELS + channels)[None, :]
    return places, (source_row == place_row)[:, None] & (source_column == place_column)[None, :]


@triton.jit
def _in_square_device(rows, columns, row, column, SIDE: tl.constexpr):
    """Which of the rows x columns lie in the square whose first corner is (row, column)."""
    row, column = row.to(tl.int32), column.to(tl.int32)
    in_rows, in_columns = (rows >= row) & (rows < row + SIDE), (columns >= column) & (columns < column + SIDE)
    return in_rows[:, None] & in_columns[None, :]


@triton.jit
def _cut_out_device(
    rows, columns, square, WINDOW_HEIGHT: tl.constexpr, WINDOW_WIDTH: tl.constexpr, CUTOUT: tl.constexpr
):
    """Which of the rows x columns the cutout of an image hides, whose words are `square`."""
    row, column = (
        below_device(square[0], WINDOW_HEIGHT - CUTOUT + 1),
        below_device(square[1], WINDOW_WIDTH - CUTOUT + 1),
    )
    return _in_square_device(rows, columns, row, column, CUTOUT)


@triton.jit(do_not_specialize=("steps_per_epoch",))
def augment_kernel(
    images_ptr,  # uint8 [COUNT, HEIGHT, WIDTH, CHANNELS]
    labels_ptr,  # int64 [COUNT]
    seed_ptr,  # int64 [1]
    counter_ptr,  # int64 [1]
    scale_ptr,  # float32 [CHANNELS]
    shift_ptr,  # float32 [CHANNELS]
    batch_ptr,  # [B, WINDOW_HEIGHT, WINDOW_WIDTH, CHANNELS]
    batch_labels_ptr,  # int64 [B]
    pasted_labels_ptr,  # int64 [B], untouched without cutmix
    steps_per_epoch,
    COUNT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    WINDOW_HEIGHT: tl.constexpr,
    WINDOW_WIDTH: tl.constexpr,
    PADDING: tl.constexpr,
    ZERO_PADDING: tl.constexpr,
    FLIP: tl.constexpr,
    CUTOUT: tl.constexpr,
    CUTMIX: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
):
    """One program draws and writes one image, or where its rows are long, one block of their values."""
    in_batch, batch_size = tl.program_id(0), tl.num_programs(0)
    seed, counter = tl.load(seed_ptr), tl.load(counter_ptr)
    epoch = (counter // steps_per_epoch).to(tl.uint32)
    position = (counter % steps_per_epoch * batch_size + in_batch).to(tl.uint32)
    image = permuted_device(position, seed, epoch, 0, COUNT, ROWS, COLUMNS)  # _SHUFFLE_STREAM
    ROW_POSITIONS: tl.constexpr = HEIGHT + 2 * PADDING - WINDOW_HEIGHT + 1
    COLUMN_POSITIONS: tl.constexpr = WIDTH + 2 * PADDING - WINDOW_WIDTH + 1
    window = _window_device(image, seed, epoch, ROW_POSITIONS, COLUMN_POSITIONS, FLIP)
    square = random_words_device(seed, epoch, image, 2)  # _SQUARE_STREAM; dropped where nothing uses it
    partner, partner_window, partner_square = image, window, square
    if CUTMIX > 0:
        partner = permuted_device(image, seed, epoch, 3, COUNT, ROWS, COLUMNS)  # _PARTNER_STREAM
        partner_window = _window_device(partner, seed, epoch, ROW_POSITIONS, COLUMN_POSITIONS, FLIP)
        partner_square = random_words_device(seed, epoch, partner, 2)
    if tl.program_id(1) == 0:
        tl.store(batch_labels_ptr + in_batch, tl.load(labels_ptr + image))
        if CUTMIX > 0:
            tl.store(pasted_labels_ptr + in_batch, tl.load(labels_ptr + partner))

    values = tl.program_id(1) * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES)  # of a row: column * CHANNELS + channel
    columns, channels = values // CHANNELS, values % CHANNELS
    in_row = values < WINDOW_WIDTH * CHANNELS  # not by columns: the compiler has to see runs of 8 for wide stores
    scale = tl.load(scale_ptr + channels, mask=in_row, other=0.0)[None, :]
    shift = tl.load(shift_ptr + channels, mask=in_row, other=0.0)[None, :]
    image_start = image.to(tl.int64) * (HEIGHT * WIDTH * CHANNELS)
    partner_start = partner.to(tl.int64) * (HEIGHT * WIDTH * CHANNELS)
    batch_start = in_batch.to(tl.int64) * (WINDOW_HEIGHT * WINDOW_WIDTH * CHANNELS)
    for first_row in range(0, WINDOW_HEIGHT, BLOCK_ROWS):
        rows = first_row + tl.arange(0, BLOCK_ROWS)
        mask = (rows < WINDOW_HEIGHT)[:, None] & in_row[None, :]
        places, inside = _places_device(rows, columns, channels, window, HEIGHT, WIDTH, CHANNELS, WINDOW_WIDTH, PADDING)
        sources = images_ptr + image_start + places
        if CUTMIX > 0:
            corner_row = below_device(square[2], WINDOW_HEIGHT - CUTMIX + 1)
            corner_column = below_device(square[3], WINDOW_WIDTH - CUTMIX + 1)
            from_partner = _in_square_device(rows, columns, corner_row, corner_column, CUTMIX)
            partner_places, partner_inside = _places_device(
                rows, columns, channels, partner_window, HEIGHT, WIDTH, CHANNELS, WINDOW_WIDTH, PADDING
            )
            sources = tl.where(from_partner, images_ptr + partner_start + partner_places, sources)
            inside = tl.where(from_partner, partner_inside, inside)
        result = tl.load(sources, mask=mask, other=0).to(tl.float32) * scale + shift
        if ZERO_PADDING:
            result = tl.where(inside, result, 0.0)
        if CUTOUT > 0:
            hidden = _cut_out_device(rows, columns, square, WINDOW_HEIGHT, WINDOW_WIDTH, CUTOUT)
            if CUTMIX > 0:  # what is pasted in has its own hole
                partner_hidden = _cut_out_device(rows, columns, partner_square, WINDOW_HEIGHT, WINDOW_WIDTH, CUTOUT)
                hidden = tl.where(from_partner, partner_hidden, hidden)
            result = tl.where(hidden, 0.0, result)
        targets = batch_ptr + batch_start + rows[:, None] * (WINDOW_WIDTH * CHANNELS) + values[None, :]
        tl.store(targets, result.to(batch_ptr.dtype.element_ty), mask=mask)


# -- launcher


def _check_augment(images: Tensor, labels: Tensor, scale: Tensor, transforms: Transforms, dtype: torch.dtype) -> None:
    """Raise ValueError for what the kernel does not take."""
    if images.dtype != torch.uint8 or images.dim() != 4 or not images.is_contiguous():
        raise ValueError(
            f"images have to be contiguous uint8 [N, H, W, C], not {images.dtype} {list(images.shape)} "
            f"with strides {list(images.stride())}"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels have to be int64 [{len(images)}], not {labels.dtype} {list(labels.shape)}")
    if scale.dtype != torch.float32 or scale.shape != images.shape[3:]:
        raise ValueError(f"scale has to be float32 [{images.shape[3]}], not {scale.dtype} {list(scale.shape)}")
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"dtype has to be float16, bfloat16 or float32, not {dtype}")
    if images.device != labels.device or images.device != scale.device:
        raise ValueError(f"images are on {images.device}, labels on {labels.device}, scale on {scale.device}")
    height, width = images.shape[1:3]
    if transforms.padding_mode == "reflect" and transforms.padding >= min(height, width):
        raise ValueError(f"padding {transforms.padding} cannot be reflected from images of {height} x {width}")
    window, room = transforms.window(height, width), 2 * transforms.padding
    if window[0] > height + room or window[1] > width + room:
        raise ValueError(f"a crop of {transforms.crop} exceeds images of {height} x {width} padded by {room // 2}")
    if max(transforms.cutout, transforms.cutmix) > min(window):
        raise ValueError(f"cutout {transforms.cutout} or cutmix {transforms.cutmix} exceeds a window of {window}")


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
    """`augmented_batch` as one launch of the kernel."""
    count, height, width, channels = images.shape
    window_height, window_width = transforms.window(height, width)
    shape = batch_size, window_height, window_width, channels
    batch = torch.empty(shape, dtype=dtype, device=images.device)
    batch_labels, pasted_labels = (
        torch.empty(size, dtype=torch.int64, device=images.device)
        for size in (batch_size, batch_size if transforms.cutmix else 0)
    )
    constants = augment_constants(count, height, width, channels, transforms)
    grid = batch_size, -(-window_width * channels // constants["BLOCK_VALUES"])
    augment_kernel[grid](
        images, labels, seed, counter, scale, shift, batch, batch_labels, pasted_labels, steps_per_epoch,
        **constants, num_warps=AUGMENT_WARPS,
    )  # fmt: skip
    return Batch(batch.permute(0, 3, 1, 2), batch_labels, pasted_labels if transforms.cutmix else None)


AUGMENT_WARPS = 1
"""The draws of an image are the same work for every warp of its program."""


def augment_constants(count: int, height: int, width: int, channels: int, transforms: Transforms) -> dict[str, Any]:
    """The compile-time constants of the kernel for such images and transforms."""
    window_height, window_width = transforms.window(height, width)
    rows, columns = shuffle_rectangle(count)
    block_values = min(_next_power_of_two(window_width * channels), 256)
    return {
        "COUNT": count,
        "ROWS": rows,
        "COLUMNS": columns,
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "WINDOW_HEIGHT": window_height,
        "WINDOW_WIDTH": window_width,
        "PADDING": transforms.padding,
        "ZERO_PADDING": transforms.padding_mode == "zero" and transforms.padding > 0,
        "FLIP": transforms.flip,
        "CUTOUT": transforms.cutout,
        "CUTMIX": transforms.cutmix,
        "BLOCK_ROWS": max(512 // block_values, 1),  # twice as many and cutmix spills with Triton 3.6
        "BLOCK_VALUES": block_values,
    }


def _compile_case(batch_size: int, transforms: Transforms) -> CompileCase:
    """The kernel on CIFAR-10 in float16."""
    pixels = 32 * 32 * 3
    written = [f"{name} {value}" for name, value in dataclasses.asdict(transforms).items() if value not in (0, "none")]
    return CompileCase(
        shape=f"{batch_size} of 50000x32x32x3, float16, {', '.join(written)}",
        function=augment_kernel,
        arguments={
            "images_ptr": "*u8",
            "labels_ptr": "*i64",
            "seed_ptr": "*i64",
            "counter_ptr": "*i64",
            "scale_ptr": "*fp32",
            "shift_ptr": "*fp32",
            "batch_ptr": "*fp16",
            "batch_labels_ptr": "*i64",
            "pasted_labels_ptr": "*i64",
            "steps_per_epoch": "i32",
        },
        constants=augment_constants(50_000, 32, 32, 3, transforms),
        warps=AUGMENT_WARPS,
        bytes=batch_size * (3 * pixels + 16),
    )


def _next_power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


# -- reference


def augmentation_draws(
    seed: Tensor, epoch: Tensor, ids: Tensor, transforms: Transforms, height: int, width: int
) -> Draws:
    """The draws of images `ids` (int64 [B]) in `epoch` (int64 [1]) of the run `seed` (int64 [1])."""
    window_height, window_width = transforms.window(height, width)
    words = random_words(seed, epoch, ids, _WINDOW_STREAM)
    squares = transforms.cutout > 0 or transforms.cutmix > 0
    square = random_words(seed, epoch, ids, _SQUARE_STREAM) if squares else [torch.zeros_like(ids)] * 4
    return Draws(
        row=below(words[0], height + 2 * transforms.padding - window_height + 1),
        column=below(words[1], width + 2 * transforms.padding - window_width + 1),
        mirror=_mirrored(seed, epoch, ids, words[2], transforms.flip),
        cutout_row=below(square[0], window_height - transforms.cutout + 1),
        cutout_column=below(square[1], window_width - transforms.cutout + 1),
        cutmix_row=below(square[2], window_height - transforms.cutmix + 1),
        cutmix_column=below(square[3], window_width - transforms.cutmix + 1),
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
        [B, C, h, w] in channels_last.
    """
    height, width = images.shape[1:3]
    window_height, window_width = transforms.window(height, width)
    row = torch.arange(window_height, device=ids.device) + draws.row[:, None] - transforms.padding
    column = torch.arange(window_width, device=ids.device).expand(len(ids), window_width)
    column = torch.where(draws.mirror[:, None], window_width - 1 - column, column)
    column = column + draws.column[:, None] - transforms.padding
    source_row, source_column = _reflected(row, height), _reflected(column, width)
    pixels = images[ids[:, None, None], source_row[:, :, None], source_column[:, None, :]]
    batch = (pixels.to(scale.dtype) * scale + shift).to(dtype)
    if transforms.padding_mode == "zero" and transforms.padding > 0:
        inside = (row == source_row)[:, :, None] & (column == source_column)[:, None, :]
        batch = batch * inside.unsqueeze(-1)
    if transforms.cutout > 0:
        square = _square(draws.cutout_row, draws.cutout_column, transforms.cutout, window_height, window_width)
        batch = batch.masked_fill(square, 0.0)
    # A tensor of shape [B, H, W, C] seen as [B, C, H, W] is in channels_last already.
    return batch.permute(0, 3, 1, 2)


def pasted(batch: Tensor, partners: Tensor, draws: Draws, side: int) -> Tensor:
    """`batch` with a side x side square taken from `partners` in each image; all [B, C, H, W] in channels_last."""
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
    """`augmented_batch` in plain PyTorch, on any device."""
    count, height, width = images.shape[:3]
    epoch = counter // steps_per_epoch
    positions = counter % steps_per_epoch * batch_size + torch.arange(batch_size, device=counter.device)
    ids = permuted(positions, count, seed, epoch, _SHUFFLE_STREAM)

    draws = augmentation_draws(seed, epoch, ids, transforms, height, width)
    batch = augment(images, ids, draws, scale, shift, transforms, dtype)
    if not transforms.cutmix:
        return Batch(batch, labels.index_select(0, ids), None)
    partners = cutmix_partners(seed, epoch, ids, count)
    partner_draws = augmentation_draws(seed, epoch, partners, transforms, height, width)
    others = augment(images, partners, partner_draws, scale, shift, transforms, dtype)
    batch = pasted(batch, others, draws, transforms.cutmix)
    return Batch(batch, labels.index_select(0, ids), labels.index_select(0, partners))


# -- registration

_LIBRARY = library.Library("speedyresnet", "FRAGMENT")
_LIBRARY.define(
    "augment(Tensor images, Tensor labels, Tensor seed, Tensor counter, Tensor scale, Tensor shift, int batch_size, "
    "int steps_per_epoch, ScalarType dtype, int crop, int padding, str padding_mode, str flip, int cutout, int cutmix)"
    " -> (Tensor, Tensor, Tensor)"
)


def _implementation(function: Callable[..., Batch]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """`function` with the operator's plain arguments and results; no pasted labels are an empty tensor."""

    def implementation(
        images: Tensor, labels: Tensor, seed: Tensor, counter: Tensor, scale: Tensor, shift: Tensor,
        batch_size: int, steps_per_epoch: int, dtype: torch.dtype, *transforms: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        made = Transforms(**dict(zip(_TRANSFORM_NAMES, transforms, strict=True)))
        tensors = images, labels, seed, counter, scale, shift
        batch = function(*tensors, made, batch_size, steps_per_epoch, dtype)
        pasted_labels = labels.new_empty(0) if batch.pasted_labels is None else batch.pasted_labels
        return batch.images, batch.labels, pasted_labels

    return implementation


def _augment_fake(
    images: Tensor, labels: Tensor, seed: Tensor, counter: Tensor, scale: Tensor, shift: Tensor,
    batch_size: int, steps_per_epoch: int, dtype: torch.dtype, crop: int, *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    height, width = (crop, crop) if crop else images.shape[1:3]
    batch = images.new_empty((batch_size, height, width, images.shape[3]), dtype=dtype).permute(0, 3, 1, 2)
    return batch, labels.new_empty(batch_size), labels.new_empty(batch_size if others[-1] else 0)


_TRANSFORM_NAMES = tuple(field.name for field in dataclasses.fields(Transforms))
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
    """The batch of step number `counter`: shuffled, augmented, normalised.

    Args:
        images: uint8 [N, H, W, C], contiguous.
        labels: int64 [N].
        seed: int64 [1] on the device of `images`, as all tensors; any value.
        counter: int64 [1], steps done so far.
        scale: float32 [C], see `normalisation`; the reference takes float64 too, and computes in it.
        shift: likewise.
        transforms: what is done to each image.
        batch_size: B.
        steps_per_epoch: an epoch is so many batches of a new shuffle; at most N // B.
        dtype: of the result.
        provider: `triton`, the kernel on a GPU; or `reference`, plain PyTorch.

    Raises:
        ValueError: a dtype, shape or layout that the kernel does not take, or transforms that do not fit the images.
    """
    if provider == "reference":
        return augmented_batch_reference(
            images, labels, seed, counter, scale, shift, transforms, batch_size, steps_per_epoch, dtype
        )
    _check_augment(images, labels, scale, transforms, dtype)
    batch, batch_labels, pasted_labels = torch.ops.speedyresnet.augment(
        images, labels, seed, counter, scale, shift, batch_size, steps_per_epoch, dtype,
        *(getattr(transforms, name) for name in _TRANSFORM_NAMES),
    )  # fmt: skip
    return Batch(batch, batch_labels, pasted_labels if transforms.cutmix else None)


class Augmentation(nn.Module):
    """A data set on a device that gives augmented batches, one a call, epoch after epoch.

    Args:
        images: uint8 [N, H, W, C], contiguous.
        labels: int64 [N].
        batch_size: B; an epoch has N // B batches.
        transforms: what is done to each image.
        mean: of the pixels scaled to [0, 1], one a channel.
        std: likewise.
        seed: of order and augmentation.
        dtype: of the batches.
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
        self.batch_size, self.transforms, self.dtype = batch_size, transforms, dtype
        scale, shift = normalisation(mean, std, torch.float32, images.device)
        tensors = {"images": images, "labels": labels, "scale": scale, "shift": shift}
        for name, value in (("seed", seed), ("counter", 0)):
            tensors[name] = torch.tensor([value], dtype=torch.int64, device=images.device)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=name in ("seed", "counter"))

    def forward(self) -> Batch:
        """The next batch."""
        batch = augmented_batch(
            self.images, self.labels, self.seed, self.counter, self.scale, self.shift, self.transforms,
            batch_size=self.batch_size, steps_per_epoch=len(self.labels) // self.batch_size, dtype=self.dtype,
        )  # fmt: skip
        self.counter.add_(1)
        return batch


COMPILE_CASES = [
    _compile_case(1024, Transforms(padding=2, flip="alternating")),  # airbench94
    _compile_case(1024, Transforms(padding=2, flip="random")),  # hlb-v0.4, hlb-v0.7
    _compile_case(1024, Transforms(padding=2, flip="random", cutmix=3)),  # hlb-v0.7, its last epochs
    _compile_case(256, Transforms(padding=2, flip="alternating")),  # pocket
]
