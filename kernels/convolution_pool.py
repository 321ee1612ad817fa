"""3x3 convolution of few channels fused with the 2x2 max-pooling behind it, without storing the map between them.

Legend: N images, C channels in, K filters, H x W pixels, h = H // 2, w = W // 2, P = N * h * w pooled pixels.

    u[n, k, i, j] = sum over r, s in {0, 1, 2} and c of weight[k, c, r, s] * x[n, c, i + r - 1, j + s - 1]
    p[n, k, i, j] = the largest of u[n, k, 2i + a, 2j + b], a and b in {0, 1}; the first of equals, as PyTorch

with zeros around x; u is summed in float32 and rounded to the dtype of x before it is compared. An odd last row or
column of u is ignored.

Layout: x [N, C, H, W], weight [K, C, 3, 3] and p in channels_last, so that a row of filter taps, 3 * C values, is
contiguous, as are the values of a row of x that the window of a pooled pixel sees, 4 * C.

Forward, a program multiplies tiles of pooled pixels with the whole filter bank, which it keeps in shared memory. It has
one sum per window position, and their maximum is a comparison of registers. Each of the four rows that a window sees is
loaded once, cut where the two window columns begin and end so that 24 channels need no padding to 32: [0, 16), [16, 80)
and [80, 96), of which a column multiplies two parts, 80 values of which 72 count. Backward, the gradient of the weight:
the gradient of u is 0 except at the winners, so it takes four selects in registers; sums over all pixels have two
deterministic stages. The gradient of x, which a run needs only while layers before it are trained, is PyTorch's.

Bytes per image of 24 channels and 31 x 31 pixels in a half type, 64 filters:

               conv2d, max-pool (places in uint8)                    this
    forward    x, write u; u, write p and places: 335 kB             x, write p and places: 89 kB
    backward   dp, places, write du; du, x: 335 kB                   dp, places, x: 89 kB
    kept       x, places: 61 kB (but u until it is pooled: 123)      x, places: 61 kB

FLOPs: 24.9 million per image and direction; as multiplied 27.6 forward (80 for 72 values) and 25.8 backward (224 for
216). A step of 1536 images at 31 x 31 takes at least 54 microseconds forward and 50 backward at 790 TFLOP/s; at 4.3
TB/s its bytes take 32 in either direction. Shared memory and the first cache, which feed the tensor cores, are busy
for about as long as these. Made for Hopper, whose tensor cores read shared memory themselves; elsewhere, and
in float32, registers spill.

An infinite value of x next to the nine that a filter sees may produce a NaN, since it is multiplied by 0.

What the interpreter cannot show. Tensor cores: Triton waits for the products of a tile before it stores (`HGMMA` reads
shared memory while code continues); `kernels --check` looks for operands in registers that nothing has set. Masks: all
loads have a value for masked elements, so no tile multiplies what it did not load. Sums: each program writes all of its
partial sums; the last one, whose tiles may have no rows, writes zeros. Races: no two programs write to the same
address, and there are no atomics. Offsets: a tile's first is int64, what is added to it is below the size of two
images. Grid: at most 264 programs by filters / 64. Fused multiply-adds change the last bit of sums, so ties may be
broken differently than in cuDNN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, library
from torch.utils.flop_counter import register_flop_formula

from .contract import (
    CompileCase,
    Kernel,
    Operation,
    Operator,
    RandomTensors,
    Target,
    all_by,
    common_refusal,
    pointer_type,
)
from .language import INTERPRETED, next_power_of_two, tl, triton
from .pool_batch_norm import pooled_and_winners, pooled_like, unpooled

WARPS = 4
MOST_CHANNELS = 24
"""Maximum number of channels; with more, a program's sums do not fit its registers."""
_BLOCK_FILTERS = 64
"""Number of rows that tensor cores multiply at once; further filters go to other programs."""
_PROGRAMS = 264
"""Maximum number of programs: as many as run at once on the 132 multiprocessors of an H200, two on each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvolutionPoolConstants:
    """Compile-time constants of the device code. Values are counted along a row of x from the first in the window."""

    channels: int
    filters: int
    height: int
    """Height of x."""
    width: int
    widened: bool
    """Factors are multiplied in float32, because Triton's interpreter treats bfloat16 as integers."""
    block: int
    """Pooled pixels per tile."""
    block_filters: int
    middle: int
    """First of the values that both columns of a window multiply in the forward pass."""
    middle_values: int
    side_values: int
    """Values on each side of those."""
    main_values: int
    """Values of a row of taps multiplied separately backward; the rest is multiplied for all three rows at once."""
    block_rest: int
    """Tile size for three times the rest."""


# -- device code; `S` is a ConvolutionPoolConstants


@triton.jit
def _zeros_device(DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Return initial sums; Triton 3.6 does not accept attributes of S in a shape."""
    return tl.zeros((DOWN, ACROSS), tl.float32)


@triton.jit
def _filters_device(S: tl.constexpr):
    """Return the filters of this program."""
    return tl.program_id(1) * S.block_filters + tl.arange(0, S.block_filters)


@triton.jit
def _window_device(tile, ROWS, S: tl.constexpr):
    """Return for a tile of windows: offset of x's first image, relative offsets of first values, row, column and mask.

    A first value is that of the pixel above and to the left of the window, which may be outside the image.
    """
    AN_IMAGE: tl.constexpr = (S.height // 2) * (S.width // 2)
    windows = tile * S.block + tl.arange(0, S.block)
    first = tile * S.block // AN_IMAGE
    row = windows % AN_IMAGE // (S.width // 2)
    column = windows % (S.width // 2)
    pixel = ((windows // AN_IMAGE - first) * S.height + 2 * row - 1) * S.width + 2 * column - 1
    start = first.to(tl.int64) * (S.height * S.width * S.channels)
    return start, pixel * S.channels, row, column, windows < ROWS


@triton.jit
def _row_exists_device(row, exists, INDEX: tl.constexpr, S: tl.constexpr):
    """Return whether row INDEX of the four that a window sees is inside the image."""
    if INDEX == 0:
        exists = exists & (row > 0)
    if INDEX == 3 and S.height % 2 == 0:
        exists = exists & (row < S.height // 2 - 1)
    return exists


@triton.jit
def _inside_device(column, exists, values, S: tl.constexpr):
    """Return the mask of values in existing rows that a window sees and that are inside the image."""
    mask = exists & ((values >= 0) & (values < 4 * S.channels))[None, :]
    mask = mask & ((column > 0)[:, None] | (values >= S.channels)[None, :])
    if S.width % 2 == 0:
        mask = mask & ((column < S.width // 2 - 1)[:, None] | (values < 3 * S.channels)[None, :])
    return mask


@triton.jit
def _row_device(x_ptr, places, column, exists, first, VALUES: tl.constexpr, S: tl.constexpr):
    """Load VALUES values of a row from number `first` on, [windows, VALUES]."""
    values = first + tl.arange(0, VALUES)
    mask = _inside_device(column, exists[:, None], values, S)
    factors = tl.load(x_ptr + (places[:, None] + values[None, :]), mask=mask, other=0.0)
    return factors.to(tl.float32) if S.widened else factors


@triton.jit
def _taps_device(weight_ptr, ROW: tl.constexpr, SHIFT: tl.constexpr, VALUES: tl.constexpr, S: tl.constexpr):
    """Load [VALUES, filters] of row ROW of the taps, from tap value SHIFT on; 0 where there are none."""
    filters = _filters_device(S)
    values = SHIFT + tl.arange(0, VALUES)
    mask = ((values >= 0) & (values < 3 * S.channels))[:, None] & (filters < S.filters)[None, :]
    places = (ROW * 3 * S.channels + values)[:, None] + (filters * 9 * S.channels)[None, :]
    taps = tl.load(weight_ptr + places, mask=mask, other=0.0)
    return taps.to(tl.float32) if S.widened else taps


@triton.jit
def _column_taps_device(weight_ptr, ROW: tl.constexpr, COLUMN: tl.constexpr, S: tl.constexpr):
    """Load row ROW of the taps as column COLUMN of a window multiplies it: the middle and its own side."""
    FIRST: tl.constexpr = S.middle - COLUMN * S.channels
    OUTER: tl.constexpr = FIRST + S.middle_values if COLUMN else FIRST - S.side_values
    middle = _taps_device(weight_ptr, ROW, FIRST, S.middle_values, S)
    return middle, _taps_device(weight_ptr, ROW, OUTER, S.side_values, S)


@triton.jit
def _with_row_device(sums, taps, left, middle, right, INDEX: tl.constexpr):
    """Return the sums of the four window positions plus the products of row INDEX of the four that a window sees."""
    grown = ()
    for position in tl.static_range(4):
        total = sums[position]
        if position // 2 <= INDEX and INDEX - position // 2 < 3:
            own = taps[2 * position % 4 + 4 * (INDEX - position // 2)]
            total = tl.dot(middle, own, total, input_precision="ieee")
            own = taps[2 * position % 4 + 4 * (INDEX - position // 2) + 1]
            total = tl.dot(right if position % 2 else left, own, total, input_precision="ieee")
        grown += (total,)  # type: ignore[assignment]
    return grown


@triton.jit
def _pooled_places_device(tile, exists, S: tl.constexpr):
    """Return the offset of a tile in a pooled tensor, relative offsets of its values, and the mask of existing ones."""
    filters = _filters_device(S)
    places = (tl.arange(0, S.block) * S.filters)[:, None] + filters[None, :]
    return tile.to(tl.int64) * (S.block * S.filters), places, exists[:, None] & (filters < S.filters)[None, :]


@triton.jit
def _store_largest_device(pooled_ptr, winners_ptr, sums, tile, exists, S: tl.constexpr):
    """Store the largest of four sums, rounded, and the index of the winner."""
    largest = sums[0].to(pooled_ptr.dtype.element_ty).to(tl.float32)
    winner = tl.zeros_like(largest).to(tl.uint8)
    for index in tl.static_range(1, 4):
        value = sums[index].to(pooled_ptr.dtype.element_ty).to(tl.float32)
        better = (value > largest) | (value != value)  # NaN wins, as in PyTorch
        largest = tl.where(better, value, largest)
        winner = tl.where(better, index, winner).to(tl.uint8)
    start, places, mask = _pooled_places_device(tile, exists, S)
    tl.store(pooled_ptr + start + places, largest.to(pooled_ptr.dtype.element_ty), mask=mask)
    tl.store(winners_ptr + start + places, winner, mask=mask)


@triton.jit(do_not_specialize=("ROWS",))
def convolution_pool_kernel(
    x_ptr,  # [N, height, width, channels]
    weight_ptr,  # [filters, 3, 3, channels]
    pooled_ptr,  # [N, height // 2, width // 2, filters]
    winners_ptr,  # uint8, same shape: which of the four
    ROWS,
    TILES_EACH: tl.constexpr,
    S: tl.constexpr,
):
    """Compute the pooled convolution for the tiles of one program."""
    taps = ()
    for index in tl.static_range(6):
        taps += _column_taps_device(weight_ptr, index // 2, index % 2, S)
    # The last program may have tiles without rows. Loads that run a tile ahead would bypass the first cache, which has
    # three of four values, and need so much shared memory that a multiprocessor holds one program, not two.
    for number in tl.range(TILES_EACH, num_stages=1):
        tile = tl.program_id(0) * TILES_EACH + number
        start, places, row, column, exists = _window_device(tile, ROWS, S)
        nothing = _zeros_device(S.block, S.block_filters)
        sums = (nothing, nothing, nothing, nothing)
        for index in tl.static_range(4):
            seen = _row_exists_device(row, exists, index, S)
            first = x_ptr + start + index * S.width * S.channels
            # Computed operands reach the tensor cores from registers, so that shared memory, whose rate is the limit,
            # is read once for all products; adding 0 changes only the sign of zero.
            middle = 0.0 + _row_device(first, places, column, seen, S.middle, S.middle_values, S)
            left = 0.0 + _row_device(first, places, column, seen, S.middle - S.side_values, S.side_values, S)
            right = 0.0 + _row_device(first, places, column, seen, S.middle + S.middle_values, S.side_values, S)
            sums = _with_row_device(sums, taps, left, middle, right, index)
        _store_largest_device(pooled_ptr, winners_ptr, sums, tile, exists, S)


@triton.jit
def _rests_device(x_ptr, places, row, column, exists, DOWN: tl.constexpr, across, S: tl.constexpr):
    """Load the rests of the three rows of taps at one position of the windows, [windows, block_rest]."""
    REST: tl.constexpr = 3 * S.channels - S.main_values
    rests = tl.arange(0, S.block_rest)
    rows, values = DOWN + rests // REST, across * S.channels + S.main_values + rests % REST
    seen = exists[:, None] & (rests < 3 * REST)[None, :] & ((row > 0)[:, None] | (rows > 0)[None, :])
    if S.height % 2 == 0:
        seen = seen & ((row < S.height // 2 - 1)[:, None] | (rows < 3)[None, :])
    mask = _inside_device(column, seen, values, S)
    places = places[:, None] + (rows * (S.width * S.channels) + values)[None, :]
    factors = tl.load(x_ptr + places, mask=mask, other=0.0)
    return factors.to(tl.float32) if S.widened else factors


@triton.jit
def _with_rests_device(sums, upper, lower, x_ptr, places, row, column, exists, across, S: tl.constexpr):
    """Return `sums` plus the products of both rows of a window's gradients with the rests."""
    for down in tl.static_range(2):
        rests = _rests_device(x_ptr, places, row, column, exists, down, across, S)
        sums = tl.dot(lower if down else upper, rests, sums, input_precision="ieee")
    return sums


@triton.jit
def _with_product_device(sums, INDEX: tl.constexpr, gradient, factors):
    """Return three sums, with gradient times factors added to number INDEX."""
    grown = ()
    for index in tl.static_range(3):
        total = sums[index]
        if index == INDEX:
            total = tl.dot(gradient, factors, total, input_precision="ieee")
        grown += (total,)  # type: ignore[assignment]
    return grown


@triton.jit
def _store_sums_device(sums_ptr, main, rest, S: tl.constexpr):
    """Store the weight gradient of one program's pixels, float32 [3, filters, 3 * channels]."""
    REST: tl.constexpr = 3 * S.channels - S.main_values
    filters = _filters_device(S)[:, None]
    for index in tl.static_range(3):
        places = (index * S.filters + filters) * (3 * S.channels) + tl.arange(0, S.main_values)[None, :]
        tl.store(sums_ptr + places, main[index], mask=filters < S.filters)
    rests = tl.arange(0, S.block_rest)[None, :]
    places = (rests // REST * S.filters + filters) * (3 * S.channels) + S.main_values + rests % REST
    tl.store(sums_ptr + places, rest, mask=(filters < S.filters) & (rests < 3 * REST))


@triton.jit(do_not_specialize=("ROWS",))
def convolution_pool_gradient_kernel(
    gradient_ptr,  # of pooled: [N, height // 2, width // 2, filters]
    winners_ptr,  # uint8, same shape: which of the four
    x_ptr,  # [N, height, width, channels]
    sums_ptr,  # float32 [programs, 3, filters, 3 * channels]
    ROWS,
    TILES_EACH: tl.constexpr,
    S: tl.constexpr,
):
    """Compute the weight gradient of the tiles of one program."""
    nothing = _zeros_device(S.block_filters, S.main_values)
    sums = (nothing, nothing, nothing)
    rest_sums = _zeros_device(S.block_filters, S.block_rest)
    # A step is one column of a tile's windows; both at once would spill registers.
    for step in tl.range(2 * TILES_EACH, num_stages=1):
        tile, across = tl.program_id(0) * TILES_EACH + step // 2, step % 2
        start, places, row, column, exists = _window_device(tile, ROWS, S)
        first_pooled, pooled, mask = _pooled_places_device(tile, exists, S)
        gradient = tl.load(gradient_ptr + first_pooled + pooled, mask=mask, other=0.0)
        winner = tl.load(winners_ptr + first_pooled + pooled, mask=mask, other=4)
        if S.widened:
            gradient = gradient.to(tl.float32)
        upper = tl.trans(tl.where(winner == across, gradient, 0.0))
        lower = tl.trans(tl.where(winner == across + 2, gradient, 0.0))
        # The products of the narrower tile come first. For 24 channels those are the rests, which would spill registers
        # in second place. For 8 and 16 channels they are the main values: ptxas 12.8.93, which Triton 3.6 ships, takes
        # operands of narrower products behind wider ones from uniform registers that nothing has set.
        if S.block_rest < S.main_values:
            rest_sums = _with_rests_device(
                rest_sums, upper, lower, x_ptr + start, places, row, column, exists, across, S
            )
        for index in tl.static_range(4):
            seen = _row_exists_device(row, exists, index, S)
            first = x_ptr + start + index * S.width * S.channels
            factors = _row_device(first, places, column, seen, across * S.channels, S.main_values, S)
            if index < 3:
                sums = _with_product_device(sums, index, upper, factors)
            if index > 0:
                sums = _with_product_device(sums, index - 1, lower, factors)
        if S.block_rest >= S.main_values:
            rest_sums = _with_rests_device(
                rest_sums, upper, lower, x_ptr + start, places, row, column, exists, across, S
            )
    _store_sums_device(sums_ptr + tl.program_id(0).to(tl.int64) * (9 * S.filters * S.channels), sums, rest_sums, S)


# -- launchers


class _Cut(NamedTuple):
    """Division of the work into programs and tiles."""

    constants: ConvolutionPoolConstants
    rows: int
    """Number of pooled pixels."""
    each: int
    """Tiles per program."""
    programs: int
    filter_blocks: int


def _cut(x: Tensor, filters: int) -> _Cut:
    count, channels, height, width = x.shape
    # float32 is multiplied without tensor cores and needs far more registers.
    block = 64 if x.dtype != torch.float32 or INTERPRETED else 16
    middle_values = max(next_power_of_two(2 * channels), 16)  # 16: minimum of tensor cores
    middle = channels - (middle_values - 2 * channels) // 2
    main_values = next_power_of_two(3 * channels + 1) // 2
    constants = ConvolutionPoolConstants(
        channels=channels, filters=filters, height=height, width=width, widened=INTERPRETED, block=block,
        block_filters=_BLOCK_FILTERS, middle=middle, middle_values=middle_values,
        side_values=max(next_power_of_two(middle), 16), main_values=main_values,
        block_rest=max(next_power_of_two(3 * (3 * channels - main_values)), 16),
    )  # fmt: skip
    rows = count * (height // 2) * (width // 2)
    tiles = -(-rows // constants.block)
    each = -(-tiles // _PROGRAMS)
    return _Cut(constants, rows, each, -(-tiles // each), -(-filters // _BLOCK_FILTERS))


def convolution_pool_triton(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return pooled values and the index of each winner (0 to 3)."""
    cut = _cut(x, len(weight))
    pooled, winners = pooled_like(x, channels=len(weight)), pooled_like(x, torch.uint8, len(weight))
    convolution_pool_kernel[cut.programs, cut.filter_blocks](
        x, weight, pooled, winners, cut.rows, TILES_EACH=cut.each, S=cut.constants, num_warps=WARPS
    )
    return pooled, winners


def convolution_pool_backward_triton(gradient: Tensor, winners: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of the weight."""
    filters, channels = gradient.shape[1], x.shape[1]
    cut = _cut(x, filters)
    sums = torch.empty((cut.programs, 3, filters, 3, channels), dtype=torch.float32, device=x.device)
    convolution_pool_gradient_kernel[cut.programs, cut.filter_blocks](
        gradient, winners, x, sums, cut.rows, TILES_EACH=cut.each, S=cut.constants, num_warps=WARPS
    )
    weight_gradient = torch.empty((filters, 3, 3, channels), dtype=x.dtype, device=x.device)
    return weight_gradient.copy_(sums.sum(0).transpose(0, 1)).permute(0, 3, 1, 2)


# -- reference


def convolution_pool_reference(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `convolution_pool_triton` in plain PyTorch."""
    return pooled_and_winners(F.conv2d(x, weight, padding=1))


def convolution_pool_plain(x: Tensor, weight: Tensor) -> Tensor:
    """Compute `convolution_pool` with PyTorch's own convolution and max-pooling."""
    return F.max_pool2d(F.conv2d(x, weight, padding=1), 2)


def _convolution_gradients(
    gradient: Tensor, winners: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the weight, where wanted, in plain PyTorch."""
    full = unpooled(gradient, winners, *x.shape[2:])
    found = torch.ops.aten.convolution_backward(
        full, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    return found[0], found[1]


def convolution_pool_backward_reference(gradient: Tensor, winners: Tensor, x: Tensor) -> Tensor:
    """Compute `convolution_pool_backward_triton` in plain PyTorch."""
    weight = x.new_empty((gradient.shape[1], 3, 3, x.shape[1])).permute(0, 3, 1, 2)
    _, weight_gradient = _convolution_gradients(gradient, winners, x, weight, [False, True])
    return weight_gradient.contiguous(memory_format=torch.channels_last)


# -- registration

_LIBRARY = library.Library("speedyresnet", "FRAGMENT")
_LIBRARY.define("convolution_pool(Tensor x, Tensor weight) -> (Tensor, Tensor)")
_LIBRARY.define("convolution_pool_backward(Tensor gradient, Tensor winners, Tensor x) -> Tensor")
for _name, _kernel, _plain in (
    ("convolution_pool", convolution_pool_triton, convolution_pool_reference),
    ("convolution_pool_backward", convolution_pool_backward_triton, convolution_pool_backward_reference),
):
    _LIBRARY.impl(_name, _kernel, "CUDA")
    _LIBRARY.impl(_name, _kernel if INTERPRETED else _plain, "CPU")


@library.register_fake("speedyresnet::convolution_pool", lib=_LIBRARY)
def _forward_fake(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return pooled_like(x, channels=len(weight)), pooled_like(x, torch.uint8, len(weight))


@library.register_fake("speedyresnet::convolution_pool_backward", lib=_LIBRARY)
def _backward_fake(gradient: Tensor, winners: Tensor, x: Tensor) -> Tensor:
    return x.new_empty((gradient.shape[1], 3, 3, x.shape[1])).permute(0, 3, 1, 2)


def _flops(pooled: Sequence[int], channels: int, height: int, width: int) -> int:
    """Return the FLOPs of the convolution at the four pixels of each pooled one, without taps in the padding."""
    share = (3 * height - 2) * (3 * width - 2) / (9 * height * width)
    return round(2 * 4 * 9 * channels * math.prod(pooled) * share)


@register_flop_formula(torch.ops.speedyresnet.convolution_pool)
def _forward_flops(x: Sequence[int], _weight: Sequence[int], *, out_shape: Any, **_: Any) -> int:
    return _flops(out_shape[0], *x[1:])


@register_flop_formula(torch.ops.speedyresnet.convolution_pool_backward)
def _backward_flops(gradient: Sequence[int], _winners: Sequence[int], x: Sequence[int], **_: Any) -> int:
    return _flops(gradient, *x[1:])


# -- autograd


class _ConvolutionPool(torch.autograd.Function):
    """Differentiable function of the two operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        pooled: Tensor
        pooled, winners = torch.ops.speedyresnet.convolution_pool(x, weight)
        ctx.save_for_backward(winners, x, weight)
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        winners, x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)  # autograd guarantees no layout
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient, _ = _convolution_gradients(gradient, winners, x, weight, [True, False])
        if ctx.needs_input_grad[1]:
            weight_gradient = torch.ops.speedyresnet.convolution_pool_backward(gradient, winners, x)
        return x_gradient, weight_gradient


# -- public


def takes_convolution_pool(channels: int, filters: int) -> bool:
    """Return whether the kernels support this number of channels and filters."""
    return channels % 8 == 0 < channels <= MOST_CHANNELS and filters % 16 == 0 < filters


def _check(x: Tensor, weight: Tensor) -> None:
    """Raise ValueError for input that the kernels do not support."""
    if x.dim() != 4 or x.dtype not in (torch.float16, torch.bfloat16, torch.float32) or x.numel() == 0:
        raise ValueError(f"x has to be float16, bfloat16 or float32 [N, C, H, W], not {x.dtype} {list(x.shape)}")
    if min(x.shape[2:]) < 2:
        raise ValueError(f"x has to have at least 2 x 2 pixels to be pooled, not {list(x.shape[2:])}")
    if weight.dtype != x.dtype or weight.device != x.device or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"weight has to be {x.dtype} [K, {x.shape[1]}, 3, 3] on {x.device}, not {weight.dtype} "
            f"{list(weight.shape)} on {weight.device}"
        )
    if not takes_convolution_pool(x.shape[1], len(weight)):
        raise ValueError(
            f"{x.shape[1]} channels and {len(weight)} filters: channels have to be a multiple of 8, at most "
            f"{MOST_CHANNELS}, and filters one of 16"
        )
    for name, tensor in (("x", x), ("weight", weight)):
        # Convolutions on the meta device return other strides than real ones.
        if tensor.device.type != "meta" and not tensor.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"{name} has to be in channels_last, its strides are {list(tensor.stride())}")


def convolution_pool(x: Tensor, weight: Tensor) -> Tensor:
    """Apply a 3x3 convolution with a border of zeros, then 2x2 max-pooling.

    Args:
        x: float16, bfloat16 or float32 [N, C, H, W] in channels_last, at least 2 x 2 pixels; C 8, 16 or 24.
        weight: [K, C, 3, 3] in channels_last, of the dtype of x; K a multiple of 16.

    Returns:
        [N, K, H // 2, W // 2] in channels_last, of the dtype of x.

    Raises:
        ValueError: the layout, dtype, shape or device of an input is not supported.
    """
    _check(x, weight)
    result: Tensor = _ConvolutionPool.apply(x, weight)
    return result


def shape_in_words(operation: Operation) -> str:
    """Describe the convolved tensor and the filters."""
    dtype, shape = str(operation.dtype).removeprefix("torch."), "x".join(map(str, operation.shape))
    return f"{shape}, {dtype}, {operation['filters']} filters"


def _fits(operation: Operation) -> str | None:
    channels, filters = operation.shape[1], operation["filters"]
    if operation["kernel"] != 3:
        return f"takes filters of 3 x 3 pixels, not of {operation['kernel']}"
    if not takes_convolution_pool(channels, filters):
        return f"takes 8, 16 or 24 channels and a multiple of 16 filters, not {channels} and {filters}"
    return common_refusal(operation)


def _runs_on(operation: Operation, target: Target) -> bool:
    """Return whether Hopper's tensor cores support the operation, or the interpreter runs it."""
    half = operation.dtype in (torch.float16, torch.bfloat16)
    return target.device != "cuda" or (half and target.capability == (9, 0))


def _auto(operation: Operation, target: Target) -> bool:
    """Return whether the benefit has been measured: with 24 whitening filters a run of `speedy` on an H100 takes 0.839
    instead of 0.907 seconds (sum of its steps, backend `capture`).
    """
    return target.device == "cuda" and operation.shape[1] == 24


def _inputs(operation: Operation, device: torch.device, seed: int) -> dict[str, Any]:
    draw, channels = RandomTensors(device, seed), operation.shape[1]
    weight = draw.normal(operation["filters"], channels, 3, 3, dtype=operation.dtype)
    return {"x": draw.normal(*operation.shape, dtype=operation.dtype), "weight": weight.requires_grad_()}


_TYPES = {"winners_ptr": "*u8", "sums_ptr": "*fp32", "ROWS": "i32"}


def _compile_cases(operation: Operation) -> list[CompileCase]:
    """Return both kernels for the given operation."""
    x, filters = torch.empty(operation.shape, dtype=operation.dtype, device="meta"), operation["filters"]
    cut, pointer = _cut(x, filters), pointer_type(x.dtype)
    constants = {"TILES_EACH": cut.each, "S": cut.constants}
    moved, weights = x.nbytes + (x.itemsize + 1) * cut.rows * filters, 9 * x.shape[1] * filters
    return [
        CompileCase(
            shape=shape_in_words(operation), function=function,
            arguments={
                name: _TYPES.get(name, pointer) for name in getattr(function, "arg_names", []) if name not in constants
            },
            constants=constants, warps=WARPS, bytes=moved + own, flops=8 * cut.rows * weights, wide_loads=True,
            hopper_only=True,
        )
        for function, own in (
            (convolution_pool_kernel, x.itemsize * weights),
            (convolution_pool_gradient_kernel, 4 * cut.programs * weights),
        )
    ]  # fmt: skip


KERNEL = Kernel(
    operation="convolution_pool",
    function=convolution_pool,
    reference=convolution_pool_plain,
    fits=_fits,
    inputs=_inputs,
    read_backward=("x",),
    runs_on=_runs_on,
    auto=_auto,
    compile_cases=_compile_cases,
    samples=tuple(
        Operation("convolution_pool", (1024, channels, 31, 31), dtype, options=(("filters", 64), ("kernel", 3)))
        for channels in (24, 16, 8)  # each is multiplied in tiles of another size
        for dtype in (torch.float16, torch.bfloat16)
    ),
    gpu_functions={
        "convolution_pool_kernel": "convolution forward",
        "convolution_pool_gradient_kernel": "convolution wgrad",
    },
    followed_by_pytorch=("convolution_pool_gradient_kernel",),
    operators={
        "convolution_pool": Operator(bytes=all_by("convolution_pool_kernel")),
        "convolution_pool_backward": Operator(bytes=all_by("convolution_pool_gradient_kernel")),
    },
)
