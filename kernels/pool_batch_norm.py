"""2x2 max-pooling, training-mode batch norm with float32 statistics, and an activation, without the int64 places.

Legend: N images, C channels, H x W pixels before pooling, h = H // 2, w = W // 2, R = N * h * w / groups.

    p = the largest of x[n, :, 2i + a, 2j + b], a and b in {0, 1}; the first of equals, as PyTorch
    y = activation(weight * (p - mean) / sqrt(variance + epsilon) + bias),  statistics of p over the R rows of a group

Layout: [N, C, H, W] in channels_last. An odd last row or column takes no part and gets a gradient of 0.

Bytes a pooled value in a half type, where x is the widest tensor of the net and 8 to 8.7 bytes of it belong to each p
(31 -> 15 pixels: 8.5):

               PyTorch's pool, then batch_norm_act            this
    forward    x, write p and its place (8 bytes); 2 p, y     x, write p and its place (1 byte); p, y
               8.5 + 2 + 8 + 4 + 2 = 24.5                     8.5 + 2 + 1 + 2 + 2 = 15.5
    backward   2 p, 2 dy, write dp; dp, place, write dx       2 p, 2 dy, place, write dx
               4 + 4 + 2 + 2 + 8 + 8.5 = 28.5                 4 + 4 + 1 + 8.5 = 17.5
    kept       x, place, p: 18.5                              p, place: 3

So 33 instead of 53 bytes, and the convolution's output (126 MB for 1024 images of airbench94) is free as soon as it is
pooled. The statistics come from the pass that pools; the last pass of the backward direction writes each pixel of dx
once, zeros included.

What the interpreter cannot show. Comparisons and places are exact on a device: nothing in them could be fused. Windows
do not overlap, so no two programs write one address, and what an odd last row or column gets is 0 and is written too.
The last program reads the first pooled row, which another one wrote. Partial statistics, reductions, the counter and
offsets are those of `batch_norm`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library

from .batch_norm import (
    REDUCTION_WARPS,
    WARPS,
    BatchNormAct2d,
    Tiles,
    applied,
    argument_types,
    arrivals_like,
    batch_norm_act_backward_reference,
    batch_norm_act_plain,
    batch_norm_act_reference,
    channels_device,
    check_norm,
    check_options,
    check_rows,
    combine_statistics_device,
    gradient_sums,
    input_gradient_device,
    is_last_device,
    merged_device,
    norm_fits,
    norm_inputs,
    nothing_seen_device,
    reduction_tiles,
    seen_device,
    shape_in_words,
    store_partial_device,
    summed_over_groups,
    tile_device,
    tiles_of,
    vectors_device,
    vectors_like,
)
from .contract import CompileCase, Kernel, Operation, Operator, pointer_type
from .language import INTERPRETED, tl, triton

_TILE_VALUES = 1024
"""Pooled values a tile; each comes from four."""
_POOL_DEPTH = 1
"""Rows of a tile that a thread pools at once: four loads."""


# -- device code; `S` is the NormConstants of the pooled tensor, HEIGHT x WIDTH pixels are those of x


@triton.jit
def _windows_device(tile, DOWN: tl.constexpr, ACROSS: tl.constexpr, S: tl.constexpr):
    """Image, row and column of a tile of 2x2 windows of this program's group, DOWN x ACROSS an image."""
    windows = tile * S.block_rows + tl.arange(0, S.block_rows)
    image = windows.to(tl.int64) // (DOWN * ACROSS) * S.groups + tl.program_id(2)
    inside = windows % (DOWN * ACROSS)
    return image, inside // ACROSS, inside % ACROSS


@triton.jit
def _corners_device(x_ptr, corners, mask, WIDTH: tl.constexpr, S: tl.constexpr):
    """The four values of each 2x2 window, as four tensors."""
    loaded = ()
    for index in tl.static_range(4):
        pixel = (index // 2) * WIDTH + index % 2
        value = tl.load(x_ptr + (corners + pixel * S.channels), mask=mask, other=0.0)
        loaded = loaded + (value,)  # type: ignore[assignment]  # noqa: RUF005 - Triton takes no star
    return loaded


@triton.jit
def _largest_device(values):
    """The largest of four values, in float32, and which one it is."""
    largest = values[0].to(tl.float32)
    winner = tl.zeros_like(largest).to(tl.uint8)
    for index in tl.static_range(1, 4):
        value = values[index].to(tl.float32)
        better = (value > largest) | (value != value)  # NaN wins, as in PyTorch
        largest = tl.where(better, value, largest)
        winner = tl.where(better, index, winner).to(tl.uint8)
    return largest, winner


@triton.jit(do_not_specialize=("ROWS", "momentum", "epsilon"))
def pool_statistics_kernel(
    x_ptr,  # [N, HEIGHT, WIDTH, channels]
    pooled_ptr,  # [N, HEIGHT // 2, WIDTH // 2, channels]
    winners_ptr,  # uint8, likewise: which of the four
    means_ptr,  # float32 [programs, groups, channels], less the first pooled row of the group
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
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Pooled values, their places, and their statistics, as `statistics_kernel` makes them."""
    channels = channels_device(S)
    exists = channels < S.channels
    first = tl.program_id(2).to(tl.int64) * (HEIGHT * WIDTH * S.channels) + channels
    pivot, _ = _largest_device(_corners_device(x_ptr, first, exists, WIDTH, S))
    count, mean, squares = nothing_seen_device(S)
    for index in range(TILES_EACH):  # the last program may have tiles without rows
        tile = tl.program_id(0) * TILES_EACH + index
        image, row, column = _windows_device(tile, HEIGHT // 2, WIDTH // 2, S)
        corners = ((image * HEIGHT + 2 * row) * WIDTH + 2 * column)[:, None] * S.channels + channels[None, :]
        places, mask = tile_device(tile, channels, ROWS, S)
        largest, winner = _largest_device(_corners_device(x_ptr, corners, mask, WIDTH, S))
        tl.store(pooled_ptr + places, largest.to(pooled_ptr.dtype.element_ty), mask=mask)
        tl.store(winners_ptr + places, winner, mask=mask)
        distances = largest - pivot[None, :]
        count, mean, squares = seen_device(count, mean, squares, distances, tile, ROWS, S)
    mean, squares = merged_device(tl.sum(count, 0), count, mean, squares)
    partial = means_ptr, squares_ptr
    store_partial_device(partial, mean, squares, channels, S)
    if is_last_device(arrivals_ptr):
        combine_statistics_device(
            pooled_ptr, partial, (mean_ptr, inverse_deviation_ptr), (running_mean_ptr, running_variance_ptr), channels,
            TILES_EACH * S.block_rows, ROWS, momentum, epsilon, PROGRAMS, S,
        )  # fmt: skip


@triton.jit(do_not_specialize=("ROWS", "WINDOWS"))
def unpool_gradient_kernel(
    gradient_ptr,  # of y: [N, HEIGHT // 2, WIDTH // 2, channels]
    pooled_ptr,  # likewise
    winners_ptr,  # uint8, likewise
    x_gradient_ptr,  # [N, HEIGHT, WIDTH, channels]
    mean_ptr,  # float32 [groups, channels]
    inverse_deviation_ptr,  # likewise
    weight_ptr,  # float32 [channels]
    bias_ptr,  # likewise
    bias_sum_ptr,  # float32 [groups, channels]
    weight_sum_ptr,  # likewise
    ROWS,
    WINDOWS,  # of a group, those that an odd last row or column cuts short included
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    S: tl.constexpr,
):
    """The gradient of x in one tile of windows: each of its pixels is written once."""
    channels = channels_device(S)
    exists = (channels < S.channels)[None, :]
    image, row, column = _windows_device(tl.program_id(0), (HEIGHT + 1) // 2, (WIDTH + 1) // 2, S)
    in_group = tl.program_id(0) * S.block_rows + tl.arange(0, S.block_rows) < WINDOWS
    whole = in_group & (row < HEIGHT // 2) & (column < WIDTH // 2)
    places = ((image * (HEIGHT // 2) + row) * (WIDTH // 2) + column)[:, None] * S.channels + channels[None, :]
    mask = whole[:, None] & exists
    vectors = vectors_device(mean_ptr, inverse_deviation_ptr, weight_ptr, bias_ptr, channels, S)
    dp, _ = input_gradient_device(
        gradient_ptr, pooled_ptr, pooled_ptr, vectors, bias_sum_ptr, weight_sum_ptr, places, mask, channels, ROWS, S
    )
    winner = tl.load(winners_ptr + places, mask=mask, other=4)
    corners = ((image * HEIGHT + 2 * row) * WIDTH + 2 * column)[:, None] * S.channels + channels[None, :]
    for index in tl.static_range(4):
        inside = in_group & (2 * row + index // 2 < HEIGHT) & (2 * column + index % 2 < WIDTH)
        value = tl.where(winner == index, dp, 0.0).to(x_gradient_ptr.dtype.element_ty)
        pixel = (index // 2) * WIDTH + index % 2
        tl.store(x_gradient_ptr + (corners + pixel * S.channels), value, mask=inside[:, None] & exists)


# -- launchers


def _tiles(pooled: Tensor, groups: int) -> Tiles:
    return tiles_of(pooled, groups, _TILE_VALUES)


def _pooling_warps(groups: int) -> int:
    return REDUCTION_WARPS if groups == 1 else 8  # with the images of groups 16 warps spill, with Triton 3.9


def _pooling_tiles(pooled: Tensor, groups: int) -> Tiles:
    return reduction_tiles(pooled, groups, _POOL_DEPTH, _pooling_warps(groups))


def pool_batch_norm_act_triton(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_variance: Tensor,
    activation: str, momentum: float, epsilon: float, groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Result, pooled values, their places (0 to 3), mean and inverse deviation; running statistics change in place."""
    pooled, winners = pooled_like(x), pooled_like(x, torch.uint8)
    cut = _pooling_tiles(pooled, groups)
    mean, inverse_deviation = vectors_like(x, groups)
    pool_statistics_kernel[cut.programs, cut.channel_blocks, groups](
        x, pooled, winners, *vectors_like(x, groups, cut.programs), arrivals_like(x, cut.channel_blocks), mean,
        inverse_deviation, running_mean, running_variance, cut.rows, momentum, epsilon, HEIGHT=x.shape[2],
        WIDTH=x.shape[3], **cut.reducing(), num_warps=_pooling_warps(groups),
    )  # fmt: skip
    y = applied(pooled, mean, inverse_deviation, weight, bias, None, activation, "none")
    return y, pooled, winners, mean, inverse_deviation


def pooled_like(x: Tensor, dtype: torch.dtype | None = None, channels: int | None = None) -> Tensor:
    """[N, C, H // 2, W // 2] in channels_last, to be filled; x's dtype and channels unless given."""
    shape = x.shape[0], channels or x.shape[1], x.shape[2] // 2, x.shape[3] // 2
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=torch.channels_last)


def pool_batch_norm_act_backward_triton(
    gradient: Tensor, pooled: Tensor, winners: Tensor, weight: Tensor, bias: Tensor, mean: Tensor,
    inverse_deviation: Tensor, height: int, width: int, activation: str, groups: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight and bias."""
    bias_sum, weight_sum = gradient_sums(
        gradient, pooled, mean, inverse_deviation, weight, bias, pooled, activation, "none"
    )
    cut = _tiles(pooled, groups)
    x_gradient = torch.empty(
        (*pooled.shape[:2], height, width), dtype=pooled.dtype, device=pooled.device, memory_format=torch.channels_last
    )
    windows = len(pooled) // groups * (-(-height // 2) * -(-width // 2))
    unpool_gradient_kernel[-(-windows // cut.constants.block_rows), cut.channel_blocks, groups](
        gradient, pooled, winners, x_gradient, mean, inverse_deviation, weight, bias, bias_sum, weight_sum,
        cut.rows, windows, HEIGHT=height, WIDTH=width,
        S=dataclasses.replace(cut.constants, activation=activation), num_warps=WARPS,
    )  # fmt: skip
    return x_gradient, summed_over_groups(weight_sum), summed_over_groups(bias_sum)


# -- reference


def pooled_and_winners(x: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max-pooling in plain PyTorch: values and their places (0 to 3, uint8), both in channels_last."""
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    winners = (places // x.shape[3] % 2 * 2 + places % x.shape[3] % 2).to(torch.uint8)
    layout = torch.channels_last
    return pooled.contiguous(memory_format=layout), winners.contiguous(memory_format=layout)


def unpooled(gradient: Tensor, winners: Tensor, height: int, width: int) -> Tensor:
    """Gradient of `pooled_and_winners` in plain PyTorch: [N, C, h, w] -> [N, C, height, width] in channels_last."""
    result = gradient.new_zeros((*gradient.shape[:2], height, width)).contiguous(memory_format=torch.channels_last)
    whole = result[:, :, : height // 2 * 2, : width // 2 * 2]
    for index in range(4):
        whole[:, :, index // 2 :: 2, index % 2 :: 2] = gradient * (winners == index)
    return result


def pool_batch_norm_act_reference(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_variance: Tensor,
    activation: str, momentum: float, epsilon: float, groups: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`pool_batch_norm_act_triton` in plain PyTorch, in float32 or wider."""
    pooled, winners = pooled_and_winners(x)
    y, mean, inverse_deviation = batch_norm_act_reference(
        pooled, weight, bias, running_mean, running_variance, None, activation, "none", momentum, epsilon, groups
    )
    return y, pooled, winners, mean, inverse_deviation


def pool_batch_norm_act_plain(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_variance: Tensor, **options: Any
) -> Tensor:
    """`pool_batch_norm_act` with PyTorch's own max-pooling and batch norm."""
    return batch_norm_act_plain(F.max_pool2d(x, 2), weight, bias, running_mean, running_variance, **options)


def pool_batch_norm_act_backward_reference(
    gradient: Tensor, pooled: Tensor, winners: Tensor, weight: Tensor, bias: Tensor, mean: Tensor,
    inverse_deviation: Tensor, height: int, width: int, activation: str, groups: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`pool_batch_norm_act_backward_triton` in plain PyTorch."""
    dp, weight_gradient, bias_gradient, _ = batch_norm_act_backward_reference(
        gradient, pooled, weight, bias, None, mean, inverse_deviation, activation, "none", groups
    )
    return unpooled(dp, winners, height, width), weight_gradient, bias_gradient


# -- registration

_LIBRARY = library.Library("speedyresnet", "FRAGMENT")
_LIBRARY.define(
    "pool_batch_norm_act(Tensor x, Tensor weight, Tensor bias, Tensor(a!) running_mean, Tensor(b!) running_variance, "
    "str activation, float momentum, float epsilon, int groups) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "pool_batch_norm_act_backward(Tensor gradient, Tensor pooled, Tensor winners, Tensor weight, Tensor bias, "
    "Tensor mean, Tensor inverse_deviation, int height, int width, str activation, int groups) "
    "-> (Tensor, Tensor, Tensor)"
)
for _name, _kernel, _plain in (
    ("pool_batch_norm_act", pool_batch_norm_act_triton, pool_batch_norm_act_reference),
    ("pool_batch_norm_act_backward", pool_batch_norm_act_backward_triton, pool_batch_norm_act_backward_reference),
):
    _LIBRARY.impl(_name, _kernel, "CUDA")
    _LIBRARY.impl(_name, _kernel if INTERPRETED else _plain, "CPU")


@library.register_fake("speedyresnet::pool_batch_norm_act", lib=_LIBRARY)
def _forward_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    mean, inverse_deviation = (x.new_empty((arguments[-1], x.shape[1]), dtype=torch.float32) for _ in range(2))
    return pooled_like(x), pooled_like(x), pooled_like(x, torch.uint8), mean, inverse_deviation


@library.register_fake("speedyresnet::pool_batch_norm_act_backward", lib=_LIBRARY)
def _backward_fake(
    gradient: Tensor, pooled: Tensor, winners: Tensor, weight: Tensor, bias: Tensor, mean: Tensor,
    inverse_deviation: Tensor, height: int, width: int, activation: str, groups: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x_gradient = pooled.new_empty((*pooled.shape[:2], height, width)).contiguous(memory_format=torch.channels_last)
    return x_gradient, torch.empty_like(weight), torch.empty_like(bias)


# -- autograd


class _PoolBatchNormAct(torch.autograd.Function):
    """The operators as one differentiable function."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_variance: Tensor,
        activation: str, momentum: float, epsilon: float, groups: int,
    ) -> Tensor:  # fmt: skip
        result: Tensor
        result, *kept = torch.ops.speedyresnet.pool_batch_norm_act(
            x, weight, bias, running_mean, running_variance, activation, momentum, epsilon, groups
        )
        pooled, winners, mean, inverse_deviation = kept
        ctx.save_for_backward(pooled, winners, weight, bias, mean, inverse_deviation)
        ctx.settings = x.shape[2], x.shape[3], activation, groups
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient.contiguous(memory_format=torch.channels_last)  # autograd promises no layout
        gradients = torch.ops.speedyresnet.pool_batch_norm_act_backward(gradient, *ctx.saved_tensors, *ctx.settings)
        wanted = (each if needed else None for each, needed in zip(gradients, ctx.needs_input_grad, strict=False))
        return *wanted, *(None,) * 6


# -- public


def pool_batch_norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    *,
    activation: str = "none",
    momentum: float = 0.1,
    epsilon: float = 1e-5,
    groups: int = 1,
) -> Tensor:
    """2x2 max-pooling, then `batch_norm_act` of what is left; running statistics change in place.

    Args:
        x: float16, bfloat16 or float32 [N, C, H, W] in channels_last, at least 2 x 2 pixels.
        weight: float32 [C], as the other vectors; frozen where it wants no gradient.
        bias: likewise.
        running_mean: moves by `momentum` towards the mean of the pooled batch (with groups: towards their mean).
        running_variance: likewise, towards the unbiased variance.
        activation: none, gelu, gelu_tanh, silu, relu or celu.
        momentum: 1 keeps nothing of the old running statistics.
        epsilon: added to the variance.
        groups: of ghost batch norm; image n is in group n % groups.

    Returns:
        [N, C, H // 2, W // 2] in channels_last, of the dtype of x.

    Raises:
        ValueError: another layout, dtype, shape or device, an option that there is not, or one pooled value per channel
            and group.
    """
    check_options(activation, groups, momentum, epsilon)
    vectors = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_variance": running_variance}
    check_norm(x, vectors, None, "none", groups)
    if min(x.shape[2:]) < 2:
        raise ValueError(f"x has to have at least 2 x 2 pixels to be pooled, not {list(x.shape[2:])}")
    check_rows(x.shape[0], (x.shape[2] // 2) * (x.shape[3] // 2), groups)
    result: Tensor = _PoolBatchNormAct.apply(
        x, weight, bias, running_mean, running_variance, activation, momentum, epsilon, groups
    )
    return result


class PoolBatchNormAct2d(BatchNormAct2d):
    """`BatchNormAct2d` with 2x2 max-pooling before it; the same arguments, but no residual."""

    def forward(self, x: Tensor, residual: None = None) -> Tensor:  # type: ignore[override]
        """[N, C, H, W] in channels_last -> [N, C, H // 2, W // 2]."""
        if residual is not None:
            raise ValueError("PoolBatchNormAct2d takes no residual; use BatchNormAct2d behind the pooling")
        if not self.training:
            return super().forward(F.max_pool2d(x, 2))
        return self._counted(
            lambda mean, variance, momentum: pool_batch_norm_act(
                x, self.weight, self.bias, mean, variance, activation=self.activation, momentum=momentum,
                epsilon=self.epsilon, groups=self.groups,
            )
        )  # fmt: skip


def _compile_cases(operation: Operation) -> list[CompileCase]:
    """Both kernels for what `shape_in_words` says."""
    x = torch.empty(operation.shape, dtype=operation.dtype, device="meta")
    pooled, (_, channels, height, width) = pooled_like(x), operation.shape
    groups, activation = operation["groups"], operation["activation"]
    cut = _pooling_tiles(pooled, groups)
    unpooling = dataclasses.replace(_tiles(pooled, groups).constants, activation=activation)
    sizes, partial = {"HEIGHT": height, "WIDTH": width}, 4 * cut.programs * groups * channels
    places, others = pooled.numel(), {"winners_ptr": "*u8", "pooled_ptr": pointer_type(x.dtype)}
    return [
        CompileCase(
            shape=shape_in_words(operation), function=function,
            arguments=argument_types(function, made, x.dtype, others),
            constants=made, warps=warps, bytes=moved, wide_loads=channels % 8 == 0,
            streams=function is pool_statistics_kernel and groups == 1,
        )
        for function, made, moved, warps in (
            (pool_statistics_kernel, cut.reducing() | sizes,
             x.nbytes + pooled.nbytes + places + 4 * partial, _pooling_warps(groups)),
            (unpool_gradient_kernel, sizes | {"S": unpooling}, x.nbytes + 2 * pooled.nbytes + places, WARPS),
        )
    ]  # fmt: skip


def _forward_bytes(reads: Sequence[int], writes: Sequence[int]) -> dict[str, int]:
    first = reads[0] + writes[1] + writes[2]
    return {"pool_statistics_kernel": first, "apply_kernel": 2 * writes[1]}


def _backward_bytes(reads: Sequence[int], writes: Sequence[int]) -> dict[str, int]:
    return {"gradient_sums_kernel": 2 * reads[0], "unpool_gradient_kernel": sum(reads[:3]) + writes[0]}


KERNEL = Kernel(
    operation="pool_batch_norm_act",
    function=pool_batch_norm_act,
    reference=pool_batch_norm_act_plain,
    fits=norm_fits,
    inputs=norm_inputs,
    read_backward=("x", "bias"),
    compile_cases=_compile_cases,
    gpu_functions=dict.fromkeys(("pool_statistics_kernel", "unpool_gradient_kernel"), "norm+pool"),
    operators={
        "pool_batch_norm_act": Operator(bytes=_forward_bytes),
        "pool_batch_norm_act_backward": Operator(bytes=_backward_bytes),
    },
)
