"""Training-mode batch norm with float32 statistics, fused with what stands around it: residual and activation.

Legend: N images, C channels, H x W pixels, R = N * H * W / groups rows of a group.

    z = (x - mean) / sqrt(variance + epsilon),  u = weight * z + bias,  statistics over the R rows of the image's group
    y = activation(u)                          without a residual
    y = activation(u + residual)               residual before the activation
    y = activation(u) + residual               residual after it

Layout: [N, C, H, W] in channels_last, so a row of C values is one pixel. With `groups` > 1 (ghost batch norm, as
cifar10-fast's) image n is in group n % groups.

Passes over the tensor: forward two reads and a write, backward four reads and a write; plain PyTorch makes three reads
and two writes forward (norm, activation) and five reads and two writes backward, and rounds to the half type between
norm and activation.

Reductions. A thread keeps the sums of its own places of a tile in registers, in float32, over all tiles of its program.
Threads exchange nothing inside the loop, so that several loads of 16 bytes a thread are under way all the time. Behind
the loop a program adds up its places and stores one row of partial results. The last program of a block of channels to
do so, which an atomic counter tells, combines the rows in the order of the programs, so results do not depend on which
one it is. A second launch instead took 4 to 7 us; and if every program of the next kernel combined the rows itself, it
would read up to 64 kB first. Statistics are merged by Chan's formula, never as E[x^2] - E[x]^2, which cancels where the
mean is large.

What the interpreter cannot show. It runs programs one after the other, so not whether their accesses to memory are in
order: a barrier puts all stores of a program before its addition to the counter, which releases them and acquires those
of the others (acq_rel, for the whole GPU), and rows are read past the first-level cache. The last program sets the
counter back to 0 before the next launch on the stream begins, also where a graph is replayed. Launches on two streams
have counters of their own, but two graphs that were captured on one stream must not run at the same time, as with
cuBLAS's workspaces. Masks: a row that does not exist has a count of 0, and its distance from the pivot counts as often.
Reductions: those of a warp have another order than the interpreter's, in float32, and the same order at each launch.
Races: apart from the counter, no two programs of a launch write one address. Offsets of rows are int64. Fused
multiply-adds change the last bit of float32 values.
"""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, library
from torch.nn.modules.batchnorm import _BatchNorm

from .activations import ACTIVATION_CHOICES, ACTIVATIONS, CELU_ALPHA, activated_device, activation_slope_device
from .checks import check_choice, check_integer, check_number
from .contract import (
    CompileCase,
    Kernel,
    Operation,
    Operator,
    RandomTensors,
    common_refusal,
    pointer_type,
)
from .language import INTERPRETED, next_power_of_two, tl, triton

ResidualPlace = Literal["none", "before_activation", "after_activation"]
_RESIDUAL_PLACES = get_args(ResidualPlace)  # here, because torch.compile does not look into typing
WARPS = 4
REDUCTION_WARPS = 16
_PROGRAMS = 128
"""Of a reduction, all channels together: about one for each of the 132 multiprocessors of an H100, few enough that the
last reads what all leave at once. The same on every GPU, so that the order of sums is."""
_STATISTICS_DEPTH, _SUMS_DEPTH = 4, 2
"""Rows of a tile that a thread reads at once: four loads each."""
_ARRIVALS: dict[tuple[torch.device, int, int], Tensor] = {}
"""Counters by device, stream and size; never freed, since captured graphs have their addresses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormConstants:
    """What the device code is compiled for."""

    channels: int
    pixels: int
    """Of an image."""
    groups: int
    block_rows: int
    """Of a tile."""
    block_channels: int
    depth: int = 1
    """Rows of a tile that a thread of a reduction has under way at once."""
    activation: str = "none"
    alpha: float = CELU_ALPHA
    residual: str = "none"


# -- device code; `S` is a NormConstants


@triton.jit
def channels_device(S: tl.constexpr):
    """The channels of a program whose second axis goes over blocks of them."""
    return tl.program_id(1) * S.block_channels + tl.arange(0, S.block_channels)


@triton.jit
def tile_device(tile, channels, ROWS, S: tl.constexpr):
    """Offsets of a tile of the rows of this program's group and of channels, and which of them exist."""
    rows = tile * S.block_rows + tl.arange(0, S.block_rows)
    places = rows.to(tl.int64)
    if S.groups > 1:  # image n of a group is image n * groups + group of the batch
        places = (places // S.pixels * S.groups + tl.program_id(2)) * S.pixels + places % S.pixels
    return places[:, None] * S.channels + channels[None, :], (rows < ROWS)[:, None] & (channels < S.channels)[None, :]


@triton.jit
def vector_device(vector_ptr, channels, S: tl.constexpr):
    """Values of a float32 [channels] for a tile."""
    return tl.load(vector_ptr + channels, mask=channels < S.channels, other=0.0)[None, :]


@triton.jit
def pivot_device(x_ptr, channels, group, S: tl.constexpr):
    """The first row of a group; sums are of distances to it, since sums of large values lose the spread."""
    first = x_ptr + group * S.pixels * S.channels
    return tl.load(first + channels, mask=channels < S.channels, other=0.0, cache_modifier=".cg").to(tl.float32)


@triton.jit
def nothing_seen_device(S: tl.constexpr):
    """Zeros to sum up in: [block_rows // depth, 1], and twice [block_rows // depth, block_channels]."""
    LANES: tl.constexpr = S.block_rows // S.depth
    CHANNELS: tl.constexpr = S.block_channels
    zeros = tl.zeros((LANES, CHANNELS), tl.float32)
    return tl.zeros((LANES, 1), tl.float32), zeros, zeros


@triton.jit
def in_lanes_device(tile, S: tl.constexpr):
    """A tile as [depth, block_rows // depth, block_channels]: a thread adds up the first axis without the others."""
    DEPTH: tl.constexpr = S.depth
    LANES: tl.constexpr = S.block_rows // S.depth
    CHANNELS: tl.constexpr = S.block_channels
    return tl.reshape(tile, (DEPTH, LANES, CHANNELS))


@triton.jit
def merged_device(total, count, mean, squares):
    """Mean and squared deviations of `total` values from those of parts along the first axis, by Chan's formula."""
    centre = tl.sum(mean * count, 0) / tl.maximum(total, 1.0)
    steps = mean - centre[None]
    return centre, tl.sum(squares + steps * steps * count, 0)


@triton.jit
def seen_device(count, mean, squares, x, tile, ROWS, S: tl.constexpr):
    """Statistics of the values that each place has seen and of those of one more tile: shapes of `nothing_seen_device`.

    Rows that do not exist count nothing.
    """
    LANES: tl.constexpr = S.block_rows // S.depth
    lane = tl.arange(0, LANES)[:, None]
    left = ROWS - tile * S.block_rows
    own_count = tl.minimum(tl.maximum((left - lane + LANES - 1) // LANES, 0), S.depth).to(tl.float32)
    exists = (tl.arange(0, S.depth)[:, None, None] * LANES + lane[None] < left).to(tl.float32)
    own_mean, own_squares = merged_device(own_count, exists, in_lanes_device(x, S), 0.0)
    total = count + own_count
    share = own_count / tl.maximum(total, 1.0)
    step = own_mean - mean
    return total, mean + step * share, squares + own_squares + step * step * (count * share)


@triton.jit
def store_partial_device(partial, first, second, channels, S: tl.constexpr):
    """Write this program's row of two float32 [programs, groups, channels], to which `partial` are pointers."""
    place = (tl.program_id(0) * S.groups + tl.program_id(2)) * S.channels + channels
    tl.store(partial[0] + place, first, mask=channels < S.channels)
    tl.store(partial[1] + place, second, mask=channels < S.channels)


@triton.jit
def is_last_device(arrivals_ptr):
    """Whether all other programs of this block of channels have stored their partial results; leaves the counter at 0.

    The barrier puts the stores of all threads before the atomic operation, which releases them to the program that
    sees the highest count and acquires them for it.
    """
    tl.debug_barrier()
    arrivals = arrivals_ptr + tl.program_id(1)
    last = tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) * tl.num_programs(2) - 1
    if last:
        tl.store(arrivals, 0)
    return last


@triton.jit
def _partials_device(partial, group, channels, PROGRAMS: tl.constexpr, S: tl.constexpr):
    """What the programs of a group left with `store_partial_device`, [PROGRAMS, block_channels]; 0 beyond the last."""
    program = tl.arange(0, PROGRAMS)
    places = ((program * S.groups + group) * S.channels)[:, None] + channels[None, :]
    mask = (program < tl.num_programs(0))[:, None] & (channels < S.channels)[None, :]
    # Other multiprocessors wrote them: not from the cache of this one.
    first = tl.load(partial[0] + places, mask=mask, other=0.0, cache_modifier=".cg")
    return first, tl.load(partial[1] + places, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def combine_statistics_device(
    x_ptr, partial, found, running, channels, rows_each, ROWS, momentum, epsilon, PROGRAMS: tl.constexpr,
    S: tl.constexpr,
):  # fmt: skip
    """Statistics of each group from those of its programs; running statistics move towards their mean over groups.

    `x_ptr` is what is normalised. `partial` are pointers to what `store_partial_device` stored, `found` to mean and
    inverse deviation, float32 [groups, channels], `running` to running mean and variance, float32 [channels]. Each
    program has read `rows_each` rows, the last perhaps fewer.
    """
    exists = channels < S.channels
    counts = tl.minimum(ROWS - tl.arange(0, PROGRAMS) * rows_each, rows_each)
    counts = tl.maximum(counts, 0).to(tl.float32)[:, None]
    batch_mean = tl.zeros_like(channels).to(tl.float32)
    batch_variance = tl.zeros_like(channels).to(tl.float32)
    for group in range(S.groups):
        means, own_squares = _partials_device(partial, group, channels, PROGRAMS, S)
        distance, squares = merged_device(ROWS, counts, means, own_squares)
        mean = distance + pivot_device(x_ptr, channels, group, S)
        place = group * S.channels + channels
        tl.store(found[0] + place, mean, mask=exists)
        tl.store(found[1] + place, 1.0 / tl.sqrt_rn(squares / ROWS + epsilon), mask=exists)
        batch_mean += mean / S.groups
        batch_variance += squares / tl.maximum(ROWS - 1, 1) / S.groups
    old_mean = tl.load(running[0] + channels, mask=exists)
    old_variance = tl.load(running[1] + channels, mask=exists)
    tl.store(running[0] + channels, old_mean + momentum * (batch_mean - old_mean), mask=exists)
    tl.store(running[1] + channels, old_variance + momentum * (batch_variance - old_variance), mask=exists)


@triton.jit(do_not_specialize=("ROWS", "momentum", "epsilon"))
def statistics_kernel(
    x_ptr,  # [N, H, W, channels]
    means_ptr,  # float32 [programs, groups, channels], less the pivot
    squares_ptr,  # float32, likewise: sums of squared deviations from those means
    arrivals_ptr,  # int32 [blocks of channels], 0 before and after
    mean_ptr,  # float32 [groups, channels]
    inverse_deviation_ptr,  # likewise
    running_mean_ptr,  # float32 [channels]
    running_variance_ptr,  # likewise
    ROWS,
    momentum,
    epsilon,
    TILES_EACH: tl.constexpr,
    PROGRAMS: tl.constexpr,
    S: tl.constexpr,
):
    """Mean and squared deviations of the rows that one program reads; the last program combines those of all."""
    channels = channels_device(S)
    pivot = pivot_device(x_ptr, channels, tl.program_id(2).to(tl.int64), S)
    count, mean, squares = nothing_seen_device(S)
    for index in range(TILES_EACH):  # the last program may have tiles without rows
        tile = tl.program_id(0) * TILES_EACH + index
        places, mask = tile_device(tile, channels, ROWS, S)
        x = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32) - pivot[None, :]
        count, mean, squares = seen_device(count, mean, squares, x, tile, ROWS, S)
    mean, squares = merged_device(tl.sum(count, 0), count, mean, squares)
    partial = means_ptr, squares_ptr
    store_partial_device(partial, mean, squares, channels, S)
    if is_last_device(arrivals_ptr):
        combine_statistics_device(
            x_ptr, partial, (mean_ptr, inverse_deviation_ptr), (running_mean_ptr, running_variance_ptr), channels,
            TILES_EACH * S.block_rows, ROWS, momentum, epsilon, PROGRAMS, S,
        )  # fmt: skip


@triton.jit
def vectors_device(mean_ptr, inverse_deviation_ptr, weight_ptr, bias_ptr, channels, S: tl.constexpr):
    """For a tile of this program's group: mean, inverse deviation, weight / deviation, and bias."""
    group = tl.program_id(2) * S.channels
    inverse = vector_device(inverse_deviation_ptr + group, channels, S)
    scale = vector_device(weight_ptr, channels, S) * inverse
    return vector_device(mean_ptr + group, channels, S), inverse, scale, vector_device(bias_ptr, channels, S)


@triton.jit
def _normalised_device(x, residual, vectors, S: tl.constexpr):
    """Distances to the mean, and what the activation gets, in float32; `vectors` are those of `vectors_device`."""
    centred = x.to(tl.float32) - vectors[0]
    u = centred * vectors[2] + vectors[3]
    if S.residual == "before_activation":
        u += residual.to(tl.float32)
    return centred, u


@triton.jit(do_not_specialize=("ROWS",))
def apply_kernel(
    x_ptr,  # [N, H, W, channels]
    residual_ptr,  # likewise; not read without a residual
    y_ptr,  # likewise
    mean_ptr,  # float32 [groups, channels]
    inverse_deviation_ptr,  # likewise
    weight_ptr,  # float32 [channels]
    bias_ptr,  # likewise
    ROWS,
    S: tl.constexpr,
):
    """One tile of the result."""
    channels = channels_device(S)
    places, mask = tile_device(tl.program_id(0), channels, ROWS, S)
    vectors = vectors_device(mean_ptr, inverse_deviation_ptr, weight_ptr, bias_ptr, channels, S)
    x = tl.load(x_ptr + places, mask=mask, other=0.0)
    residual = x
    if S.residual != "none":
        residual = tl.load(residual_ptr + places, mask=mask, other=0.0)
    _, u = _normalised_device(x, residual, vectors, S)
    KIND: tl.constexpr = S.activation  # Triton 3.6 takes a text as an argument only under a name
    y = activated_device(u, KIND, S.alpha)
    if S.residual == "after_activation":
        y += residual.to(tl.float32)
    tl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _loaded_device(gradient_ptr, x_ptr, residual_ptr, places, mask, S: tl.constexpr):
    """A tile of the gradient of y, of x, and of a residual before the activation (else x again)."""
    gradient = tl.load(gradient_ptr + places, mask=mask, other=0.0)
    x = tl.load(x_ptr + places, mask=mask, other=0.0)
    residual = x
    if S.residual == "before_activation":
        residual = tl.load(residual_ptr + places, mask=mask, other=0.0)
    return gradient, x, residual


@triton.jit
def _activation_gradient_device(loaded, vectors, S: tl.constexpr):
    """Gradient before the activation, and distances to the mean, of what `_loaded_device` has loaded."""
    centred, u = _normalised_device(loaded[1], loaded[2], vectors, S)
    KIND: tl.constexpr = S.activation
    return loaded[0].to(tl.float32) * activation_slope_device(u, KIND, S.alpha), centred


@triton.jit(do_not_specialize=("ROWS",))
def gradient_sums_kernel(
    gradient_ptr,  # of y: [N, H, W, channels]
    x_ptr,  # likewise
    residual_ptr,  # likewise; only read where it stands before the activation
    mean_ptr,  # float32 [groups, channels]
    inverse_deviation_ptr,  # likewise
    weight_ptr,  # float32 [channels]
    bias_ptr,  # likewise
    bias_sums_ptr,  # float32 [programs, groups, channels]
    weight_sums_ptr,  # likewise
    arrivals_ptr,  # int32 [blocks of channels], 0 before and after
    bias_sum_ptr,  # float32 [groups, channels]
    weight_sum_ptr,  # likewise
    ROWS,
    TILES_EACH: tl.constexpr,
    PROGRAMS: tl.constexpr,
    S: tl.constexpr,
):
    """Sums of du and of du * z, where du is the gradient before the activation; the last program adds those of all."""
    channels = channels_device(S)
    vectors = vectors_device(mean_ptr, inverse_deviation_ptr, weight_ptr, bias_ptr, channels, S)
    _, bias_sum, weight_sum = nothing_seen_device(S)
    for index in range(TILES_EACH):  # the last program may have tiles without rows
        places, mask = tile_device(tl.program_id(0) * TILES_EACH + index, channels, ROWS, S)
        loaded = _loaded_device(gradient_ptr, x_ptr, residual_ptr, places, mask, S)
        du, centred = _activation_gradient_device(loaded, vectors, S)
        bias_sum += tl.sum(in_lanes_device(du, S), 0)  # beyond the mask the gradient is 0
        weight_sum += tl.sum(in_lanes_device(du * centred, S), 0)
    weight_sum *= vectors[1]
    partial = bias_sums_ptr, weight_sums_ptr
    store_partial_device(partial, tl.sum(bias_sum, 0), tl.sum(weight_sum, 0), channels, S)
    if is_last_device(arrivals_ptr):
        for group in range(S.groups):
            bias_sums, weight_sums = _partials_device(partial, group, channels, PROGRAMS, S)
            place = group * S.channels + channels
            tl.store(bias_sum_ptr + place, tl.sum(bias_sums, 0), mask=channels < S.channels)
            tl.store(weight_sum_ptr + place, tl.sum(weight_sums, 0), mask=channels < S.channels)


@triton.jit
def input_gradient_device(
    gradient_ptr, x_ptr, residual_ptr, vectors, bias_sum_ptr, weight_sum_ptr, places, mask, channels, ROWS,
    S: tl.constexpr,
):  # fmt: skip
    """The gradients of x, weight / deviation * (du - mean(du) - z * mean(du * z)), and du before the activation."""
    loaded = _loaded_device(gradient_ptr, x_ptr, residual_ptr, places, mask, S)
    du, centred = _activation_gradient_device(loaded, vectors, S)
    group = tl.program_id(2) * S.channels
    bias_mean = vector_device(bias_sum_ptr + group, channels, S) / ROWS
    weight_mean = vector_device(weight_sum_ptr + group, channels, S) / ROWS
    return vectors[2] * (du - bias_mean - centred * (vectors[1] * weight_mean)), du


@triton.jit(do_not_specialize=("ROWS",))
def input_gradient_kernel(
    gradient_ptr,  # of y: [N, H, W, channels]
    x_ptr,  # likewise
    residual_ptr,  # likewise; only read where it stands before the activation
    x_gradient_ptr,  # likewise
    residual_gradient_ptr,  # likewise; only written where it stands before the activation
    mean_ptr,  # float32 [groups, channels]
    inverse_deviation_ptr,  # likewise
    weight_ptr,  # float32 [channels]
    bias_ptr,  # likewise
    bias_sum_ptr,  # float32 [groups, channels]
    weight_sum_ptr,  # likewise
    ROWS,
    S: tl.constexpr,
):
    """One tile of the gradients of x and of a residual before the activation."""
    channels = channels_device(S)
    places, mask = tile_device(tl.program_id(0), channels, ROWS, S)
    vectors = vectors_device(mean_ptr, inverse_deviation_ptr, weight_ptr, bias_ptr, channels, S)
    dx, du = input_gradient_device(
        gradient_ptr, x_ptr, residual_ptr, vectors, bias_sum_ptr, weight_sum_ptr, places, mask, channels, ROWS, S
    )
    if S.residual == "before_activation":
        tl.store(residual_gradient_ptr + places, du.to(residual_gradient_ptr.dtype.element_ty), mask=mask)
    tl.store(x_gradient_ptr + places, dx.to(x_gradient_ptr.dtype.element_ty), mask=mask)


# -- launchers


class Tiles(NamedTuple):
    """How a tensor is cut up."""

    constants: NormConstants
    rows: int
    """Of a group."""
    tiles: int
    """Of the rows of a group."""
    each: int
    """Tiles that a program of the first stages reads."""
    programs: int
    """Of the first stages, for a block of channels of a group."""
    channel_blocks: int

    def reducing(self, **changes: Any) -> dict[str, Any]:
        """Constants of a reduction, with changes of its NormConstants."""
        constants = dataclasses.replace(self.constants, **changes)
        return {"TILES_EACH": self.each, "PROGRAMS": next_power_of_two(self.programs), "S": constants}


def tiles_of(x: Tensor, groups: int, values: int = 2048) -> Tiles:
    """Tiles of `values` values of x, [N, C, H, W] in channels_last: runs of channels first."""
    channels = x.shape[1]
    block_channels = min(max(next_power_of_two(channels), 8), 64)
    constants = NormConstants(
        channels=channels,
        pixels=x.shape[2] * x.shape[3],
        groups=groups,
        block_rows=values // block_channels,
        block_channels=block_channels,
    )
    rows, channel_blocks = x.numel() // channels // groups, -(-channels // block_channels)
    tiles = -(-rows // constants.block_rows)
    each = -(-tiles // max(_PROGRAMS // (channel_blocks * groups), 1))
    return Tiles(constants, rows, tiles, each, -(-tiles // each), channel_blocks)


def reduction_tiles(x: Tensor, groups: int, depth: int, warps: int = REDUCTION_WARPS) -> Tiles:
    """Tiles of a reduction: `depth` loads of 16 bytes a thread where values have two."""
    cut = tiles_of(x, groups, depth * warps * 32 * 8)
    return cut._replace(constants=dataclasses.replace(cut.constants, depth=depth))


def vectors_like(x: Tensor, groups: int, programs: int | None = None) -> tuple[Tensor, Tensor]:
    """Two float32 [groups, C], or [programs, groups, C], to be filled."""
    shape = (groups, x.shape[1]) if programs is None else (programs, groups, x.shape[1])
    first, second = (torch.empty(shape, dtype=torch.float32, device=x.device) for _ in range(2))
    return first, second


def arrivals_like(x: Tensor, channel_blocks: int) -> Tensor:
    """int32 zeros, at least one a block of channels, in which the programs of a reduction of x count themselves.

    Each launch leaves them at 0 for the next on the same stream, so every stream keeps its own. Where a capture comes
    first there are none yet, and the graph that is captured sets its own to 0.
    """
    stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
    key = x.device, stream.cuda_stream if stream else 0, next_power_of_two(channel_blocks)
    if key not in _ARRIVALS and stream and torch.cuda.is_current_stream_capturing():
        return _zeros(key[2], x.device, stream)
    if key not in _ARRIVALS:
        # What torch.compile(mode="reduce-overhead") allocates while it warms up lies in the memory of its graphs, where
        # nothing may stay. That holds for the thread that warms up, hence another one.
        with ThreadPoolExecutor(1) as other:
            _ARRIVALS[key] = other.submit(_zeros, key[2], x.device, stream).result()
    return _ARRIVALS[key]


def _zeros(count: int, device: torch.device, stream: torch.cuda.Stream | None) -> Tensor:
    """int32 [count], set to 0 on a stream; None on a CPU."""
    with torch.cuda.stream(stream):
        return torch.zeros(count, dtype=torch.int32, device=device)


def batch_norm_act_triton(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_variance: Tensor, residual: Tensor | None,
    activation: str, residual_place: str, momentum: float, epsilon: float, groups: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Result, mean and inverse deviation [groups, C]; running statistics are changed in place."""
    cut = reduction_tiles(x, groups, _STATISTICS_DEPTH)
    means, squares = vectors_like(x, groups, cut.programs)
    mean, inverse_deviation = vectors_like(x, groups)
    statistics_kernel[cut.programs, cut.channel_blocks, groups](
        x, means, squares, arrivals_like(x, cut.channel_blocks), mean, inverse_deviation, running_mean,
        running_variance, cut.rows, momentum, epsilon, **cut.reducing(), num_warps=REDUCTION_WARPS,
    )  # fmt: skip
    y = applied(x, mean, inverse_deviation, weight, bias, residual, activation, residual_place)
    return y, mean, inverse_deviation


def applied(
    x: Tensor, mean: Tensor, inverse_deviation: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None,
    activation: str, residual_place: str,
) -> Tensor:  # fmt: skip
    """Last pass: normalisation, residual, activation."""
    cut, y = tiles_of(x, len(mean)), torch.empty_like(x)
    apply_kernel[cut.tiles, cut.channel_blocks, len(mean)](
        x, x if residual is None else residual, y, mean, inverse_deviation, weight, bias, cut.rows,
        S=dataclasses.replace(cut.constants, activation=activation, residual=residual_place), num_warps=WARPS,
    )  # fmt: skip
    return y


def gradient_sums(
    gradient: Tensor, x: Tensor, mean: Tensor, inverse_deviation: Tensor, weight: Tensor, bias: Tensor,
    residual: Tensor, activation: str, residual_place: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sums of du and of du * z over the rows of each group, [groups, C]."""
    groups = len(mean)
    cut = reduction_tiles(x, groups, _SUMS_DEPTH)
    bias_sum, weight_sum = vectors_like(x, groups)
    gradient_sums_kernel[cut.programs, cut.channel_blocks, groups](
        gradient, x, residual, mean, inverse_deviation, weight, bias, *vectors_like(x, groups, cut.programs),
        arrivals_like(x, cut.channel_blocks), bias_sum, weight_sum, cut.rows,
        **cut.reducing(activation=activation, residual=residual_place), num_warps=REDUCTION_WARPS,
    )  # fmt: skip
    return bias_sum, weight_sum


def summed_over_groups(sums: Tensor) -> Tensor:
    """[groups, C] -> [C]; of one group without a launch."""
    return sums[0] if len(sums) == 1 else sums.sum(0)


def batch_norm_act_backward_triton(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, mean: Tensor,
    inverse_deviation: Tensor, activation: str, residual_place: str, groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, bias and of a residual before the activation (else an empty tensor)."""
    cut, source = tiles_of(x, groups), x if residual is None else residual
    constants = dataclasses.replace(cut.constants, activation=activation, residual=residual_place)
    bias_sum, weight_sum = gradient_sums(
        gradient, x, mean, inverse_deviation, weight, bias, source, activation, residual_place
    )
    x_gradient = torch.empty_like(x)
    before = residual is not None and residual_place == "before_activation"
    residual_gradient = torch.empty_like(x) if before else x.new_empty(0)
    input_gradient_kernel[cut.tiles, cut.channel_blocks, groups](
        gradient, x, source, x_gradient, residual_gradient, mean, inverse_deviation, weight, bias, bias_sum,
        weight_sum, cut.rows, S=constants, num_warps=WARPS,
    )  # fmt: skip
    return x_gradient, summed_over_groups(weight_sum), summed_over_groups(bias_sum), residual_gradient


# -- reference


def batch_norm_act_reference(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_variance: Tensor, residual: Tensor | None,
    activation: str, residual_place: str, momentum: float, epsilon: float, groups: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`batch_norm_act_triton` in plain PyTorch, in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    grouped = x.to(wide).reshape(-1, groups, *x.shape[1:])
    variance, mean = torch.var_mean(grouped, dim=(0, 3, 4), correction=0)
    inverse_deviation = (variance + epsilon).rsqrt()
    count = grouped.numel() // groups // x.shape[1]
    running_mean.lerp_(mean.mean(0).to(running_mean.dtype), momentum)
    running_variance.lerp_((variance.mean(0) * (count / max(count - 1, 1))).to(running_variance.dtype), momentum)
    z = (grouped - mean[:, :, None, None]) * inverse_deviation[:, :, None, None]
    u = (z * weight[:, None, None] + bias[:, None, None]).reshape(x.shape)
    y = with_activation(u, residual, activation, residual_place).to(x.dtype)
    return y.contiguous(memory_format=torch.channels_last), mean, inverse_deviation


def with_activation(u: Tensor, residual: Tensor | None, activation: str, residual_place: str) -> Tensor:
    """Activation and residual in plain PyTorch."""
    if residual is not None and residual_place == "before_activation":
        u = u + residual
    y = u if activation == "none" else ACTIVATIONS[activation](u)
    return y + residual if residual is not None and residual_place == "after_activation" else y


def batch_norm_act_plain(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_place: ResidualPlace = "none",
    momentum: float = 0.1,
    epsilon: float = 1e-5,
    groups: int = 1,
) -> Tensor:
    """`batch_norm_act` with PyTorch's own batch norm, for any layout and floating dtype."""
    vectors = running_mean, running_variance, weight, bias
    if groups == 1:
        u = F.batch_norm(x, *vectors, training=True, momentum=momentum, eps=epsilon)
    else:
        u = _normalised_by_group(x, vectors, momentum, epsilon, groups)
    return with_activation(u, residual, activation, residual_place)


def _normalised_by_group(
    x: Tensor, vectors: tuple[Tensor, ...], momentum: float, epsilon: float, groups: int
) -> Tensor:
    """Ghost batch norm [N, C, H, W] -> the same: the channels of each group are channels of their own."""
    mean, variance, weight, bias = (each.repeat(groups) for each in vectors)
    u = F.batch_norm(
        x.reshape(-1, groups * x.shape[1], *x.shape[2:]), mean, variance, weight, bias,
        training=True, momentum=momentum, eps=epsilon,
    ).reshape(x.shape)  # fmt: skip
    running_mean, running_variance, *_ = vectors
    running_mean.copy_(mean.view(groups, -1).mean(0))
    running_variance.copy_(variance.view(groups, -1).mean(0))
    channels_last = x.is_contiguous(memory_format=torch.channels_last)
    return u.contiguous(memory_format=torch.channels_last) if channels_last else u


def batch_norm_act_backward_reference(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, mean: Tensor,
    inverse_deviation: Tensor, activation: str, residual_place: str, groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`batch_norm_act_backward_triton` in plain PyTorch, by the formulas of the kernels."""
    wide = torch.promote_types(x.dtype, torch.float32)
    grouped = x.to(wide).reshape(-1, groups, *x.shape[1:])
    z = (grouped - mean[:, :, None, None]) * inverse_deviation[:, :, None, None]
    with torch.enable_grad():
        u = (z * weight[:, None, None] + bias[:, None, None]).reshape(x.shape).detach().requires_grad_()
        own = residual if residual_place == "before_activation" else None
        y = with_activation(u, own, activation, residual_place)
        (du,) = torch.autograd.grad(y, u, gradient.to(wide))
    du_grouped = du.reshape(grouped.shape)
    bias_sum, weight_sum = du_grouped.sum((0, 3, 4)), (du_grouped * z).sum((0, 3, 4))
    count = grouped.numel() // groups // x.shape[1]
    centred = du_grouped - (bias_sum / count)[:, :, None, None] - z * (weight_sum / count)[:, :, None, None]
    x_gradient = ((weight * inverse_deviation)[:, :, None, None] * centred).reshape(x.shape).to(x.dtype)
    before = residual is not None and residual_place == "before_activation"
    residual_gradient = du.to(x.dtype).contiguous(memory_format=torch.channels_last) if before else x.new_empty(0)
    x_gradient = x_gradient.contiguous(memory_format=torch.channels_last)
    return x_gradient, weight_sum.sum(0), bias_sum.sum(0), residual_gradient


# -- registration

_LIBRARY = library.Library("speedyresnet", "FRAGMENT")
_LIBRARY.define(
    "batch_norm_act(Tensor x, Tensor weight, Tensor bias, Tensor(a!) running_mean, Tensor(b!) running_variance, "
    "Tensor? residual, str activation, str residual_place, float momentum, float epsilon, int groups) "
    "-> (Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "batch_norm_act_backward(Tensor gradient, Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor mean, "
    "Tensor inverse_deviation, str activation, str residual_place, int groups) -> (Tensor, Tensor, Tensor, Tensor)"
)
for _name, _kernel, _plain in (
    ("batch_norm_act", batch_norm_act_triton, batch_norm_act_reference),
    ("batch_norm_act_backward", batch_norm_act_backward_triton, batch_norm_act_backward_reference),
):
    _LIBRARY.impl(_name, _kernel, "CUDA")
    _LIBRARY.impl(_name, _kernel if INTERPRETED else _plain, "CPU")


@library.register_fake("speedyresnet::batch_norm_act", lib=_LIBRARY)
def _forward_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, inverse_deviation = (x.new_empty((arguments[-1], x.shape[1]), dtype=torch.float32) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.channels_last), mean, inverse_deviation


@library.register_fake("speedyresnet::batch_norm_act_backward", lib=_LIBRARY)
def _backward_fake(gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None,
                   mean: Tensor, inverse_deviation: Tensor, activation: str, residual_place: str,
                   groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    like_x = torch.empty_like(x, memory_format=torch.channels_last)
    before = residual is not None and residual_place == "before_activation"
    residual_gradient = torch.empty_like(like_x) if before else x.new_empty(0)
    return like_x, torch.empty_like(weight), torch.empty_like(bias), residual_gradient


# -- autograd


class _BatchNormAct(torch.autograd.Function):
    """The operators as one differentiable function."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, running_mean: Tensor,
        running_variance: Tensor, activation: str, residual_place: str, momentum: float, epsilon: float, groups: int,
    ) -> Tensor:  # fmt: skip
        result: Tensor
        result, mean, inverse_deviation = torch.ops.speedyresnet.batch_norm_act(
            x, weight, bias, running_mean, running_variance, residual, activation, residual_place, momentum, epsilon,
            groups,
        )  # fmt: skip
        own = residual if residual_place == "before_activation" else None  # the other place needs no residual later
        ctx.save_for_backward(x, weight, bias, own, mean, inverse_deviation)
        ctx.settings = activation, residual_place, groups
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, residual, mean, inverse_deviation = ctx.saved_tensors
        activation, residual_place, groups = ctx.settings
        gradient = gradient.contiguous(memory_format=torch.channels_last)  # autograd promises no layout
        place = "none" if residual is None else residual_place
        x_gradient, weight_gradient, bias_gradient, residual_gradient = torch.ops.speedyresnet.batch_norm_act_backward(
            gradient, x, weight, bias, residual, mean, inverse_deviation, activation, place, groups
        )
        after = residual_place == "after_activation"
        return (
            x_gradient if ctx.needs_input_grad[0] else None,
            weight_gradient if ctx.needs_input_grad[1] else None,
            bias_gradient if ctx.needs_input_grad[2] else None,
            (gradient if after else residual_gradient) if ctx.needs_input_grad[3] else None,
            *(None,) * 7,
        )


# -- public


def _check_layout(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.shape != x.shape or tensor.dtype != x.dtype or tensor.device != x.device:
        raise ValueError(
            f"{name} has to be {x.dtype} {list(x.shape)} on {x.device}, not {tensor.dtype} {list(tensor.shape)} "
            f"on {tensor.device}"
        )
    # The strides of convolutions on the meta device are not those of real ones.
    if tensor.device.type != "meta" and not tensor.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(
            f"{name} has to be in channels_last, its strides are {list(tensor.stride())}: "
            f"use .to(memory_format=torch.channels_last)"
        )


def check_options(activation: str, groups: int, momentum: float, epsilon: float) -> None:
    """Raise ValueError for an option of a norm that there is not."""
    check_choice("activation", activation, ACTIVATION_CHOICES)
    check_integer("groups", groups, 1)
    check_number("momentum", momentum, 1)
    check_number("epsilon", epsilon)


def check_rows(images: int, pixels: int, groups: int) -> None:
    """Raise ValueError where a channel has one value only, whose variance is no estimate; nn.BatchNorm2d refuses it."""
    if images // groups * pixels < 2:
        raise ValueError(
            f"training needs more than one value per channel and group to normalise, and {images} images of {pixels} "
            f"pixels in {groups} groups have one: give larger batches or images"
        )


def check_norm(x: Tensor, vectors: dict[str, Tensor], residual: Tensor | None, place: str, groups: int) -> None:
    """Raise ValueError for tensors that the kernels do not take."""
    if x.dim() != 4 or x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"x has to be float16, bfloat16 or float32 [N, C, H, W], not {x.dtype} {list(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x is empty: {list(x.shape)}")
    _check_layout("x", x, x)
    for name, vector in vectors.items():
        if vector.dtype != torch.float32 or vector.shape != x.shape[1:2] or vector.device != x.device:
            raise ValueError(
                f"{name} has to be float32 [{x.shape[1]}] on {x.device}, not {vector.dtype} {list(vector.shape)} "
                f"on {vector.device}"
            )
    check_choice("residual_place", place, _RESIDUAL_PLACES)
    if (residual is None) != (place == "none"):
        raise ValueError(f"residual_place is {place!r} but there is {'no' if residual is None else 'a'} residual")
    if residual is not None:
        _check_layout("residual", residual, x)
    if x.shape[0] % groups:
        raise ValueError(f"{x.shape[0]} images do not make {groups} equal groups")


def batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    residual_place: ResidualPlace = "none",
    momentum: float = 0.1,
    epsilon: float = 1e-5,
    groups: int = 1,
) -> Tensor:
    """Batch norm with the batch's own statistics, and what stands behind it; running statistics change in place.

    Args:
        x: float16, bfloat16 or float32 [N, C, H, W] in channels_last.
        weight: float32 [C], as the other vectors; frozen where it wants no gradient.
        bias: likewise.
        running_mean: moves by `momentum` towards the batch's mean (with groups: towards their mean).
        running_variance: likewise, towards the unbiased variance.
        activation: none, gelu, gelu_tanh, silu, relu or celu.
        residual: like x.
        residual_place: before or after the activation.
        momentum: 1 keeps nothing of the old running statistics.
        epsilon: added to the variance.
        groups: of ghost batch norm; image n is in group n % groups.

    Returns:
        Like x.

    Raises:
        ValueError: another layout, dtype, shape or device, an option that there is not, or one value per channel and
            group.
    """
    check_options(activation, groups, momentum, epsilon)
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_variance": running_variance}
    check_norm(x, vectors, residual, residual_place, groups)
    check_rows(x.shape[0], x.shape[2] * x.shape[3], groups)
    result: Tensor = _BatchNormAct.apply(
        x, weight, bias, residual, running_mean, running_variance, activation, residual_place, momentum, epsilon, groups
    )
    return result


class BatchNormAct2d(_BatchNorm):
    """nn.BatchNorm2d with float32 parameters and statistics, fused with the activation and residual behind it.

    It counts batches and averages statistics as nn.BatchNorm2d does, so `torch.optim.swa_utils.update_bn` works, and
    `state_dict` has the same keys: either loads the other's. But it is not an nn.BatchNorm2d. Functions that take it
    for one, such as `nn.SyncBatchNorm.convert_sync_batchnorm` and `torch.nn.utils.fusion.fuse_conv_bn_eval`, would drop
    all that is fused with the norm; they get a TypeError instead. To convert or fuse, put plain modules in its place:

        plain = nn.Sequential(nn.BatchNorm2d(64, eps=norm.epsilon, momentum=norm.momentum), nn.GELU())
        plain[0].load_state_dict(norm.state_dict())

    Args:
        channels: C.
        activation: none, gelu, gelu_tanh, silu, relu or celu.
        residual_place: where a residual given to `forward` is added, before_activation or after_activation; with none
            it is refused.
        groups: of ghost batch norm.
        eps: added to the variance; the attribute is `epsilon`.
        momentum: weight of a batch in the running statistics; None averages all batches since the last
            `reset_running_stats` equally.
        freeze_weight: the scale stays 1.

    Raises:
        ValueError: an option that there is not.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    __constants__ = ["momentum", "num_features"]  # noqa: RUF012 - for torch.jit; without eps, which cannot be read
    __jit_unused_properties__ = ["eps"]  # noqa: RUF012 - likewise

    def __init__(
        self,
        channels: int,
        activation: str = "gelu",
        *,
        residual_place: ResidualPlace = "before_activation",
        groups: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        freeze_weight: bool = False,
    ) -> None:
        check_integer("channels", channels, 1)
        check_options(activation, groups, 0.0 if momentum is None else momentum, eps)
        check_choice("residual_place", residual_place, _RESIDUAL_PLACES)
        super().__init__(channels, eps=eps, momentum=momentum, dtype=torch.float32)
        self.activation, self.residual_place, self.groups = activation, residual_place, groups
        self.weight.requires_grad_(not freeze_weight)

    @property
    def eps(self) -> float:
        """Raise TypeError: whoever reads it takes the module for a plain norm; `epsilon` is the value."""
        raise TypeError(
            f"{type(self).__name__} is no plain batch norm: to convert or fuse it as one would drop what is fused with "
            f"it ({self.extra_repr()}). Put nn.BatchNorm2d with its state_dict and what follows it in its place first; "
            f"the value of eps is .epsilon"
        )

    @eps.setter
    def eps(self, value: float) -> None:
        self.epsilon = value

    def __dir__(self) -> list[str]:
        """Without `eps`, so that what looks at all attributes, as torch.jit does, does not read it."""
        return [name for name in super().__dir__() if name != "eps"]

    def extra_repr(self) -> str:
        """All options."""
        return (
            f"{self.num_features}, activation={self.activation!r}, residual_place={self.residual_place!r}, "
            f"groups={self.groups}, epsilon={self.epsilon}, momentum={self.momentum}"
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[N, C, H, W] in channels_last -> the same; a running average of the statistics serves in evaluation."""
        if residual is not None and self.residual_place == "none":
            raise ValueError("residual_place is 'none' but there is a residual")
        place = "none" if residual is None else self.residual_place
        if not self.training:
            u = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.epsilon)
            return with_activation(u, residual, self.activation, place)
        return self._counted(
            lambda mean, variance, momentum: batch_norm_act(
                x, self.weight, self.bias, mean, variance, activation=self.activation, residual=residual,
                residual_place=place, momentum=momentum, epsilon=self.epsilon, groups=self.groups,
            )
        )  # fmt: skip

    def _counted(self, normalise: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
        """What `normalise` makes of a batch, given the statistics that it moves and by how much; counts the batch."""
        if not self.track_running_stats:  # as nn.BatchNorm2d after somebody has switched it off
            return normalise(self.running_mean, self.running_var, 0.0)
        if self.momentum is not None:
            y = normalise(self.running_mean, self.running_var, float(self.momentum))
            self.num_batches_tracked.add_(1)
            return y
        # Only the device knows how many batches there were, and the kernels take a number: they leave the statistics of
        # this batch in tensors of their own.
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = normalise(mean, variance, 1.0)
        share = self.num_batches_tracked.add_(1).to(torch.float32).reciprocal()
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)
        return y


_TENSORS = ("x_ptr", "y_ptr", "residual_ptr", "gradient_ptr", "x_gradient_ptr", "residual_gradient_ptr")


def argument_types(
    function: Any, constants: dict[str, Any], dtype: torch.dtype, others: dict[str, str]
) -> dict[str, str]:
    """Triton types of the arguments of a kernel for tensors of `dtype`; float32 vectors and integers unless named."""
    names = [name for name in getattr(function, "arg_names", []) if name not in constants]
    known = dict.fromkeys(_TENSORS, pointer_type(dtype)) | {"momentum": "fp32", "epsilon": "fp32"}
    known |= {"arrivals_ptr": "*i32"} | others
    return {name: known.get(name, "*fp32" if name.endswith("_ptr") else "i32") for name in names}


def shape_in_words(operation: Operation) -> str:
    """The tensor that is normalised, the activation behind it, and the groups that it is normalised in."""
    dtype, groups = str(operation.dtype).removeprefix("torch."), operation["groups"]
    words = "x".join(map(str, operation.shape)), dtype, operation["activation"]
    return ", ".join(words) + (f", {groups} groups" if groups > 1 else "")


def norm_fits(operation: Operation) -> str | None:
    """Why the norms here cannot do `operation`; None where they can."""
    if operation["precision"] != "float32":
        return "takes parameters and statistics in float32 only"
    return common_refusal(operation)


def norm_inputs(operation: Operation, device: torch.device, seed: int) -> dict[str, Any]:
    """Inputs of a norm without a residual: x, [C] vectors whose statistics have a past, and options."""
    draw, channels = RandomTensors(device, seed), operation.shape[1]
    dtype = torch.float32 if operation["precision"] == "float32" else operation.dtype
    return {
        "x": draw.normal(*operation.shape, dtype=operation.dtype, mean=0.5).requires_grad_(),
        "weight": draw.uniform(channels, least=0.5).to(dtype).requires_grad_(),
        "bias": draw.normal(channels, dtype=dtype).requires_grad_(),
        "running_mean": draw.normal(channels, dtype=dtype),
        "running_variance": draw.uniform(channels, least=0.5).to(dtype),
        "activation": operation["activation"],
        "momentum": 0.5,
        "groups": operation["groups"],
    }


def _inputs(operation: Operation, device: torch.device, seed: int) -> dict[str, Any]:
    made, place = norm_inputs(operation, device, seed), operation["residual"]
    if place == "none":
        return made
    residual = RandomTensors(device, seed + 1).normal(*operation.shape, dtype=operation.dtype).requires_grad_()
    return made | {"residual": residual, "residual_place": place}


def _compile_cases(operation: Operation) -> list[CompileCase]:
    """All kernels for what `shape_in_words` says; with a residual they have one more load of the same tile."""
    x = torch.empty(operation.shape, dtype=operation.dtype, device="meta")
    groups, activation, channels = operation["groups"], operation["activation"], operation.shape[1]
    cut, sums = reduction_tiles(x, groups, _STATISTICS_DEPTH), reduction_tiles(x, groups, _SUMS_DEPTH)
    tile = {"S": dataclasses.replace(tiles_of(x, groups).constants, activation=activation)}
    size, partial = x.nbytes, 4 * cut.programs * groups * channels
    return [
        CompileCase(
            shape=shape_in_words(operation), function=function,
            arguments=argument_types(function, made, x.dtype, {}), constants=made, warps=warps, bytes=moved,
            wide_loads=channels % 8 == 0,
            streams=warps == REDUCTION_WARPS and groups == 1,  # else the last program has a loop over groups, too
        )
        for function, made, moved, warps in (
            (statistics_kernel, cut.reducing(), size + 4 * partial, REDUCTION_WARPS),
            (apply_kernel, tile, 2 * size, WARPS),
            (gradient_sums_kernel, sums.reducing(activation=activation), 2 * size + 4 * partial, REDUCTION_WARPS),
            (input_gradient_kernel, tile, 3 * size, WARPS),
        )
    ]  # fmt: skip


def _activations(sizes: Sequence[int], least: int) -> int:
    """Bytes of the tensors of at least so many: activations, not vectors of channels."""
    return sum(size for size in sizes if size >= least)


def _forward_bytes(reads: Sequence[int], writes: Sequence[int]) -> dict[str, int]:
    return {"statistics_kernel": reads[0], "apply_kernel": _activations(reads, reads[0]) + writes[0]}


def _backward_bytes(reads: Sequence[int], writes: Sequence[int]) -> dict[str, int]:
    given = _activations(reads, reads[0])
    return {"gradient_sums_kernel": given, "input_gradient_kernel": given + _activations(writes, reads[0])}


KERNEL = Kernel(
    operation="batch_norm_act",
    function=batch_norm_act,
    reference=batch_norm_act_plain,
    fits=norm_fits,
    inputs=_inputs,
    read_backward=("x", "bias"),
    compile_cases=_compile_cases,
    samples=(
        Operation(
            "batch_norm_act", (1024, 32, 31, 31), torch.float16,
            options=(("activation", "gelu"), ("groups", 1), ("precision", "float32"), ("residual", "none")),
        ),
    ),
    gpu_functions=dict.fromkeys(
        ("statistics_kernel", "apply_kernel", "gradient_sums_kernel", "input_gradient_kernel"), "norm+pool"
    ),
    operators={
        "batch_norm_act": Operator(bytes=_forward_bytes),
        "batch_norm_act_backward": Operator(bytes=_backward_bytes),
    },
)  # fmt: skip
