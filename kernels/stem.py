"""Augmentation, frozen patch whitening and an activation in one pass: from uint8 images to the first feature maps.

Legend: N images in the data set, B in the batch, C channels, k x k pixels of a patch, F filters, h x w patches.

    y[b, f, i, j] = activation(bias[f] + sum over c, down, across of weight[f, c, down, across]
                                                                     * batch[b, c, i + down, j + across])

where `batch` is what `augmented_batch` gives, rounded to the result's dtype. Filters are any F, so also the pairs of a
filter and its negative. The weight is frozen; the bias may be trained.

Layout: images uint8 [N, H, W, C], y [B, F, h, w] and weight [F, C, k, k] in channels_last, so that a filter is a row of
k * k * C values, and a tile of patches a matrix to multiply it with. One program makes one image; a thread gathers all
values of a patch, and tensor cores get them from there.

Bytes an image of CIFAR-10 in a half type, 24 filters, 31 x 31 patches:

               augment, conv2d, activation                    this
    forward    3 + 6, 6 + 46, 46 + 46 = 153 kB                3 + 46 = 49 kB
    backward   dy, u, write du; du: 4 * 46 = 185 kB           dy and the image again: 46 + 3 = 49 kB
    kept       u (and the batch): 52 kB                       seed and counter

The backward direction, which only the bias needs, draws the batch anew. Its sums have two deterministic stages.

What the interpreter cannot show. The product pads taps to what tensor cores multiply; both factors are 0 there, so no
NaN comes in. Partial sums of the bias are one row an image, each written by one program. The first program alone writes
what the backward pass draws from. Draws, fused multiply-adds and offsets are those of `augment`.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, library, nn

from .activations import ACTIVATION_CHOICES, ACTIVATIONS, CELU_ALPHA, activated_device, activation_slope_device
from .augment import (
    TRANSFORM_NAMES,
    TRANSFORM_SCHEMA,
    Augmentation,
    AugmentConstants,
    Batch,
    Transforms,
    augment_argument_types,
    augment_constants,
    augment_inputs,
    augmented_batch_reference,
    check_augment,
    drawn_device,
    operation_in_words,
    operation_transforms,
    store_labels_device,
    transforms_from,
    values_device,
    windows_read,
)
from .checks import check_choice
from .contract import CompileCase, Kernel, Operation, Operator, RandomTensors, all_by, common_refusal
from .language import INTERPRETED, next_power_of_two, tl, triton

WARPS = 4
MOST_TAPS, MOST_FILTERS = 32, 64
"""Values of a patch and filters that fit a program's registers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StemConstants:
    """What the device code is compiled for, beside the AugmentConstants."""

    kernel: int
    """Side of a patch."""
    taps: int
    """Values of a patch."""
    filters: int
    height: int
    """Of the result."""
    width: int
    biased: bool
    activation: str
    alpha: float = CELU_ALPHA
    widened: bool = INTERPRETED
    """Factors are multiplied in float32, since Triton's interpreter takes bfloat16 for integers."""
    block_patches: int
    """One a thread."""
    block_taps: int
    block_filters: int


# -- device code; `S` is an AugmentConstants, `T` a StemConstants


@triton.jit
def _weights_device(weight_ptr, bias_ptr, T: tl.constexpr):
    """Filters as a matrix [taps, filters], and their biases in float32."""
    taps, filters = tl.arange(0, T.block_taps), tl.arange(0, T.block_filters)
    exists = (taps < T.taps)[:, None] & (filters < T.filters)[None, :]
    weight = tl.load(weight_ptr + filters[None, :] * T.taps + taps[:, None], mask=exists, other=0.0)
    bias = tl.zeros_like(filters).to(tl.float32)
    if T.biased:
        bias = tl.load(bias_ptr + filters, mask=filters < T.filters, other=0.0).to(tl.float32)
    return weight, bias


@triton.jit
def _by_channel_device(vector_ptr, COUNT: tl.constexpr):
    """The values of a float32 [COUNT], one by one."""
    values = ()
    for channel in tl.static_range(COUNT):
        values = values + (tl.load(vector_ptr + channel),)  # type: ignore[assignment]  # noqa: RUF005 - Triton takes no star
    return values


@triton.jit
def _stacked_device(columns, COUNT: tl.constexpr):
    """COUNT tensors [patches], a power of two -> [patches, 2, ..., 2], row-major; a thread keeps what it has."""
    HALF: tl.constexpr = COUNT // 2
    pairs = ()
    for index in tl.static_range(HALF):
        pairs = pairs + (tl.join(columns[index], columns[index + HALF]),)  # type: ignore[assignment]  # noqa: RUF005
    return pairs[0] if HALF == 1 else _stacked_device(pairs, HALF)  # type: ignore[misc]


@triton.jit
def _patches_device(images_ptr, drawn, scale, shift, patches, S: tl.constexpr, T: tl.constexpr):
    """Values of patches, float32 [patches, block_taps].

    Each tap is a tensor [patches] of its own, so that the compiler sees what the channels of a pixel have in common:
    where it lies. `scale` and `shift` are those of each channel.
    """
    CHANNELS: tl.constexpr = S.channels
    KERNEL: tl.constexpr = T.kernel
    PADDING: tl.constexpr = T.block_taps - T.taps
    PATCHES: tl.constexpr = T.block_patches
    TAPS: tl.constexpr = T.block_taps
    row, column, exists = patches // T.width, patches % T.width, patches < T.height * T.width
    taps = ()
    for down in tl.static_range(KERNEL):
        for across in tl.static_range(KERNEL):
            for channel in tl.static_range(CHANNELS):
                values = values_device(
                    images_ptr, drawn, row + down, column + across, channel, scale[channel], shift[channel], exists, S
                )
                taps = taps + (values,)  # type: ignore[assignment]  # noqa: RUF005
    for _ in tl.static_range(PADDING):
        taps = taps + (tl.zeros_like(patches).to(tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    return tl.reshape(_stacked_device(taps, TAPS), (PATCHES, TAPS))


@triton.jit
def _preactivation_device(images_ptr, drawn, scale, shift, weights, patches, like, S: tl.constexpr, T: tl.constexpr):
    """What the activation gets, float32 [patches, filters]; factors are rounded to the dtype of the pointer `like`."""
    values = _patches_device(images_ptr, drawn, scale, shift, patches, S, T)
    # Rounded behind the reshape: where nothing stands between it and a product, Triton 3.9 fails for Blackwell.
    values, weight = values.to(like.dtype.element_ty), weights[0].to(like.dtype.element_ty)
    if T.widened:
        values, weight = values.to(tl.float32), weight.to(tl.float32)
    return tl.dot(values, weight, input_precision="ieee") + weights[1][None, :]


@triton.jit
def _targets_device(in_batch, patches, T: tl.constexpr):
    """Offsets of patches and filters in the result, and which of them exist."""
    filters = tl.arange(0, T.block_filters)
    start = in_batch.to(tl.int64) * (T.height * T.width * T.filters)
    mask = (patches < T.height * T.width)[:, None] & (filters < T.filters)[None, :]
    return start + patches[:, None] * T.filters + filters[None, :], mask


@triton.jit(do_not_specialize=("steps_per_epoch",))
def stem_kernel(
    images_ptr,  # uint8 [N, H, W, C]
    labels_ptr,  # int64 [N]
    seed_ptr,  # int64 [1]
    counter_ptr,  # int64 [1]
    scale_ptr,  # float32 [C]
    shift_ptr,  # float32 [C]
    weight_ptr,  # [filters, k, k, C]
    bias_ptr,  # [filters]; not read without one
    y_ptr,  # [B, height, width, filters]
    batch_labels_ptr,  # int64 [B]
    pasted_labels_ptr,  # int64 [B], untouched without cutmix
    drawn_at_ptr,  # int64 [2]: seed and counter
    steps_per_epoch,
    S: tl.constexpr,
    T: tl.constexpr,
):
    """One program draws an image and writes its feature maps."""
    in_batch = tl.program_id(0)
    drawn = drawn_device(seed_ptr, counter_ptr, steps_per_epoch, in_batch, tl.num_programs(0), S)
    store_labels_device(labels_ptr, batch_labels_ptr, pasted_labels_ptr, drawn, in_batch, S)
    if in_batch == 0:
        tl.store(drawn_at_ptr, tl.load(seed_ptr))
        tl.store(drawn_at_ptr + 1, tl.load(counter_ptr))
    weights = _weights_device(weight_ptr, bias_ptr, T)
    CHANNELS: tl.constexpr = S.channels
    scale, shift = _by_channel_device(scale_ptr, CHANNELS), _by_channel_device(shift_ptr, CHANNELS)
    KIND: tl.constexpr = T.activation
    for first in range(0, T.height * T.width, T.block_patches):
        patches = first + tl.arange(0, T.block_patches)
        u = _preactivation_device(images_ptr, drawn, scale, shift, weights, patches, y_ptr, S, T)
        targets, mask = _targets_device(in_batch, patches, T)
        tl.store(y_ptr + targets, activated_device(u, KIND, T.alpha).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("steps_per_epoch",))
def stem_gradient_kernel(
    gradient_ptr,  # of y: [B, height, width, filters]
    images_ptr,  # uint8 [N, H, W, C]
    drawn_at_ptr,  # int64 [2]: seed and counter
    scale_ptr,  # float32 [C]
    shift_ptr,  # float32 [C]
    weight_ptr,  # [filters, k, k, C]
    bias_ptr,  # [filters]
    bias_sums_ptr,  # float32 [B, filters]
    steps_per_epoch,
    S: tl.constexpr,
    T: tl.constexpr,
):
    """One program sums the bias gradient of one image, which it draws again."""
    in_batch = tl.program_id(0)
    drawn = drawn_device(drawn_at_ptr, drawn_at_ptr + 1, steps_per_epoch, in_batch, tl.num_programs(0), S)
    weights = _weights_device(weight_ptr, bias_ptr, T)
    CHANNELS: tl.constexpr = S.channels
    scale, shift = _by_channel_device(scale_ptr, CHANNELS), _by_channel_device(shift_ptr, CHANNELS)
    KIND: tl.constexpr = T.activation
    filters = tl.arange(0, T.block_filters)
    total = tl.zeros_like(filters).to(tl.float32)
    for first in range(0, T.height * T.width, T.block_patches):
        patches = first + tl.arange(0, T.block_patches)
        u = _preactivation_device(images_ptr, drawn, scale, shift, weights, patches, gradient_ptr, S, T)
        targets, mask = _targets_device(in_batch, patches, T)
        gradient = tl.load(gradient_ptr + targets, mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(gradient * activation_slope_device(u, KIND, T.alpha), 0)  # beyond the mask the gradient is 0
    tl.store(bias_sums_ptr + in_batch * T.filters + filters, total, mask=filters < T.filters)


# -- launchers


def _constants(
    images: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: str, transforms: Transforms
) -> dict[str, AugmentConstants | StemConstants]:
    count, height, width, image_channels = images.shape
    drawn = augment_constants(count, height, width, image_channels, transforms)
    filters, channels, kernel, _ = weight.shape
    taps = kernel * kernel * channels
    stem = StemConstants(
        kernel=kernel,
        taps=taps,
        filters=filters,
        height=drawn.out_height - kernel + 1,
        width=drawn.out_width - kernel + 1,
        biased=bias is not None,
        activation=activation,
        block_patches=32 * WARPS,
        block_taps=max(next_power_of_two(taps), 16),  # at least what tensor cores multiply at once
        block_filters=max(next_power_of_two(filters), 16),
    )
    return {"S": drawn, "T": stem}


def _features(images: Tensor, weight: Tensor, batch_size: int, dtype: torch.dtype, transforms: Transforms) -> Tensor:
    """[B, F, h, w] in channels_last, to be filled."""
    height, width = (side - weight.shape[2] + 1 for side in transforms.result(*images.shape[1:3]))
    shape = batch_size, height, width, weight.shape[0]
    return torch.empty(shape, dtype=dtype, device=images.device).permute(0, 3, 1, 2)


def stem_triton(
    images: Tensor, labels: Tensor, seed: Tensor, counter: Tensor, scale: Tensor, shift: Tensor, weight: Tensor,
    bias: Tensor | None, batch_size: int, steps_per_epoch: int, dtype: torch.dtype, activation: str, *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Feature maps, labels, pasted labels (empty without cutmix), and seed and counter that they were drawn at."""
    transforms = transforms_from(settings)
    y = _features(images, weight, batch_size, dtype, transforms)
    batch_labels, pasted_labels, drawn_at = (
        torch.empty(size, dtype=torch.int64, device=images.device)
        for size in (batch_size, batch_size if transforms.cutmix else 0, 2)
    )
    stem_kernel[(batch_size,)](
        images, labels, seed, counter, scale, shift, weight, weight if bias is None else bias, y, batch_labels,
        pasted_labels, drawn_at, steps_per_epoch, **_constants(images, weight, bias, dtype, activation, transforms),
        num_warps=WARPS,
    )  # fmt: skip
    return y, batch_labels, pasted_labels, drawn_at


def stem_backward_triton(
    gradient: Tensor, images: Tensor, drawn_at: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor,
    steps_per_epoch: int, activation: str, *settings: Any,
) -> Tensor:  # fmt: skip
    """Gradient of the bias."""
    bias_sums = torch.empty(len(gradient), len(bias), dtype=torch.float32, device=gradient.device)
    stem_gradient_kernel[(len(gradient),)](
        gradient, images, drawn_at, scale, shift, weight, bias, bias_sums, steps_per_epoch,
        **_constants(images, weight, bias, gradient.dtype, activation, transforms_from(settings)), num_warps=WARPS,
    )  # fmt: skip
    return bias_sums.sum(0).to(bias.dtype)


# -- reference


def _preactivation(batch: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(batch, weight.to(batch.dtype), None if bias is None else bias.to(batch.dtype))


def stem_reference(
    images: Tensor, labels: Tensor, seed: Tensor, counter: Tensor, scale: Tensor, shift: Tensor, weight: Tensor,
    bias: Tensor | None, batch_size: int, steps_per_epoch: int, dtype: torch.dtype, activation: str, *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`stem_triton` in plain PyTorch."""
    batch, own, pasted = augmented_batch_reference(
        images, labels, seed, counter, scale, shift, transforms_from(settings), batch_size, steps_per_epoch, dtype
    )
    u = _preactivation(batch, weight, bias)
    y = u if activation == "none" else ACTIVATIONS[activation](u)
    y = y.contiguous(memory_format=torch.channels_last)
    return y, own, labels.new_empty(0) if pasted is None else pasted, torch.cat([seed, counter])


def stem_plain(
    images: Tensor, labels: Tensor, seed: Tensor, counter: Tensor, scale: Tensor, shift: Tensor,
    transforms: Transforms, weight: Tensor, bias: Tensor | None, *, activation: str, batch_size: int,
    steps_per_epoch: int, dtype: torch.dtype,
) -> Batch:  # fmt: skip
    """`stem` in plain PyTorch."""
    settings = batch_size, steps_per_epoch, dtype, activation, *(getattr(transforms, name) for name in TRANSFORM_NAMES)
    y, own, pasted, _ = stem_reference(images, labels, seed, counter, scale, shift, weight, bias, *settings)
    return Batch(y, own, pasted if transforms.cutmix else None)


def stem_backward_reference(
    gradient: Tensor, images: Tensor, drawn_at: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor,
    steps_per_epoch: int, activation: str, *settings: Any,
) -> Tensor:  # fmt: skip
    """`stem_backward_triton` in plain PyTorch."""
    labels = torch.empty(len(images), dtype=torch.int64, device=images.device)
    with torch.enable_grad():
        own = bias.detach().requires_grad_()
        y, *_ = stem_reference(
            images, labels, drawn_at[:1], drawn_at[1:], scale, shift, weight, own, len(gradient), steps_per_epoch,
            gradient.dtype, activation, *settings,
        )  # fmt: skip
        (found,) = torch.autograd.grad(y, own, gradient)
    return found


# -- registration

_LIBRARY = library.Library("speedyresnet", "FRAGMENT")
_LIBRARY.define(
    "stem(Tensor images, Tensor labels, Tensor seed, Tensor counter, Tensor scale, Tensor shift, Tensor weight, "
    f"Tensor? bias, int batch_size, int steps_per_epoch, ScalarType dtype, str activation, {TRANSFORM_SCHEMA}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "stem_backward(Tensor gradient, Tensor images, Tensor drawn_at, Tensor scale, Tensor shift, Tensor weight, "
    f"Tensor bias, int steps_per_epoch, str activation, {TRANSFORM_SCHEMA}) -> Tensor"
)
for _name, _kernel, _plain in (
    ("stem", stem_triton, stem_reference),
    ("stem_backward", stem_backward_triton, stem_backward_reference),
):
    _LIBRARY.impl(_name, _kernel, "CUDA")
    _LIBRARY.impl(_name, _kernel if INTERPRETED else _plain, "CPU")


@library.register_fake("speedyresnet::stem", lib=_LIBRARY)
def _stem_fake(
    images: Tensor, labels: Tensor, seed: Tensor, counter: Tensor, scale: Tensor, shift: Tensor, weight: Tensor,
    bias: Tensor | None, batch_size: int, steps_per_epoch: int, dtype: torch.dtype, activation: str, *settings: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    transforms = transforms_from(settings)
    y = _features(images, weight, batch_size, dtype, transforms)
    pasted = labels.new_empty(batch_size if transforms.cutmix else 0)
    return y, labels.new_empty(batch_size), pasted, labels.new_empty(2)


@library.register_fake("speedyresnet::stem_backward", lib=_LIBRARY)
def _backward_fake(gradient: Tensor, images: Tensor, drawn_at: Tensor, scale: Tensor, shift: Tensor, weight: Tensor,
                   bias: Tensor, *others: Any) -> Tensor:  # fmt: skip
    return torch.empty_like(bias)


# -- autograd


class _Stem(torch.autograd.Function):
    """The operators as one function, differentiable in the bias."""

    @staticmethod
    def forward(
        ctx: Any, bias: Tensor | None, tensors: tuple[Tensor, ...], settings: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        y, labels, pasted_labels, drawn_at = torch.ops.speedyresnet.stem(*tensors, bias, *settings)
        images, _, _, _, scale, shift, weight = tensors
        _, steps_per_epoch, _, *others = settings
        ctx.settings = steps_per_epoch, *others
        if bias is not None:
            ctx.save_for_backward(images, drawn_at, scale, shift, weight, bias)
        ctx.mark_non_differentiable(labels, pasted_labels)
        return y, labels, pasted_labels

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous(memory_format=torch.channels_last)  # autograd promises no layout
        found: Tensor = torch.ops.speedyresnet.stem_backward(gradient, *ctx.saved_tensors, *ctx.settings)
        return found, None, None


# -- public


def takes_stem(taps: int, filters: int, stride: int) -> bool:
    """Whether the kernel computes such a convolution: `taps` values a patch, unpadded."""
    return taps <= MOST_TAPS and filters <= MOST_FILTERS and stride == 1


def _check(images: Tensor, weight: Tensor, bias: Tensor | None, activation: str, transforms: Transforms) -> None:
    """Raise ValueError for what the kernels do not take, beyond what `augmented_batch` refuses."""
    square = weight.dim() == 4 and weight.shape[2] == weight.shape[3]
    if not square or weight.shape[1] != images.shape[3] or not weight.is_floating_point():
        raise ValueError(f"weight has to be [F, {images.shape[3]}, k, k], not {weight.dtype} {list(weight.shape)}")
    if weight.requires_grad:
        raise ValueError("weight has to be frozen: the stem computes no gradient of it")
    meta = weight.device.type == "meta"  # whose strides are not those of real tensors
    if weight.device != images.device or not (meta or weight.is_contiguous(memory_format=torch.channels_last)):
        raise ValueError(f"weight has to be in channels_last on {images.device}: strides {list(weight.stride())}")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.device != images.device):
        raise ValueError(f"bias has to be [{len(weight)}] on {images.device}, not {list(bias.shape)} on {bias.device}")
    if not takes_stem(weight[0].numel(), len(weight), 1):
        raise ValueError(f"weight {list(weight.shape)} exceeds {MOST_TAPS} values a filter or {MOST_FILTERS} filters")
    if weight.shape[2] > min(transforms.result(*images.shape[1:3])):
        raise ValueError(f"filters of {weight.shape[2]} pixels exceed the augmented images")
    check_choice("activation", activation, ACTIVATION_CHOICES)


def stem(
    images: Tensor,
    labels: Tensor,
    seed: Tensor,
    counter: Tensor,
    scale: Tensor,
    shift: Tensor,
    transforms: Transforms,
    weight: Tensor,
    bias: Tensor | None,
    *,
    activation: str,
    batch_size: int,
    steps_per_epoch: int,
    dtype: torch.dtype,
) -> Batch:
    """The batch of step number `counter`, convolved with frozen filters and activated.

    Args:
        images: uint8 [N, H, W, C], contiguous.
        labels: int64 [N].
        seed: int64 [1] on the device of `images`, as all tensors; any value.
        counter: int64 [1], steps done so far; may change before the backward pass.
        scale: float32 [C], see `normalisation`.
        shift: likewise.
        transforms: what is done to each image first.
        weight: [F, C, k, k] in channels_last, frozen, any floating dtype; no padding, stride 1.
        bias: [F], any floating dtype, or none.
        activation: none, gelu, gelu_tanh, silu, relu or celu.
        batch_size: B.
        steps_per_epoch: an epoch is so many batches of a new shuffle; at most N // B.
        dtype: of the result; factors are rounded to it, sums are float32.

    Returns:
        Batch whose images are [B, F, h, w] in channels_last.

    Raises:
        ValueError: a dtype, shape or layout that the kernel does not take.
    """
    check_augment(images, labels, seed, counter, scale, shift, transforms, batch_size, steps_per_epoch, dtype)
    _check(images, weight, bias, activation, transforms)
    settings = batch_size, steps_per_epoch, dtype, activation, *(getattr(transforms, name) for name in TRANSFORM_NAMES)
    tensors = images, labels, seed, counter, scale, shift, weight
    y, batch_labels, pasted_labels = _Stem.apply(bias, tensors, settings)
    return Batch(y, batch_labels, pasted_labels if transforms.cutmix else None)


class StemAugmentation(Augmentation):
    """`Augmentation` whose batches have passed frozen filters and an activation.

    Args:
        weight: [F, C, k, k], for example whitening filters.
        bias: [F], trained; none: none.
        activation: none, gelu, gelu_tanh, silu, relu or celu.
        others: as `Augmentation`.

    Raises:
        ValueError: as `stem`.
    """

    weight: Tensor

    def __init__(
        self, *others: Any, weight: Tensor, bias: Tensor | None = None, activation: str = "gelu", **options: Any
    ) -> None:
        super().__init__(*others, **options)
        self.activation = activation
        weight = weight.detach().contiguous(memory_format=torch.channels_last)
        _check(self.images, weight, bias, activation, self.transforms)
        self.register_buffer("weight", weight)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self) -> Batch:
        """The next batch, [B, F, h, w]."""
        batch = stem(
            self.images, self.labels, self.seed, self.counter, self.scale, self.shift, self.transforms, self.weight,
            self.bias, activation=self.activation, batch_size=self.batch_size,
            steps_per_epoch=len(self.labels) // self.batch_size, dtype=self.dtype,
        )  # fmt: skip
        self.counter.add_(1)
        return batch


def _fits(operation: Operation) -> str | None:
    taps, filters = operation.shape[3] * operation["kernel"] ** 2, operation["filters"]
    if operation["whitening_padding"]:
        return "takes filters without padding only"
    if operation["kernel"] > min(operation_transforms(operation).result(*operation.shape[1:3])):
        return "takes images that are not smaller than its filters"
    if not takes_stem(taps, filters, operation["stride"]):
        return f"takes {MOST_TAPS} values a filter, {MOST_FILTERS} filters and a stride of 1 at most"
    return common_refusal(operation)


def _inputs(operation: Operation, device: torch.device, seed: int) -> dict[str, Any]:
    draw, channels, dtype = RandomTensors(device, seed + 1), operation.shape[3], operation.dtype
    filters, kernel = operation["filters"], operation["kernel"]
    bias = draw.normal(filters, dtype=dtype).requires_grad_() if operation["biased"] else None
    return augment_inputs(operation, device, seed) | {
        "weight": draw.normal(filters, channels, kernel, kernel, dtype=dtype),
        "bias": bias,
        "activation": operation["activation"],
    }


def _compile_cases(operation: Operation) -> list[CompileCase]:
    """The kernels for an operation; the second only where there is a bias."""
    transforms, (_, height, width, channels) = operation_transforms(operation), operation.shape
    dtype, filters, kernel, biased = operation.dtype, operation["filters"], operation["kernel"], operation["biased"]
    images = torch.empty(operation.shape, dtype=torch.uint8, device="meta")
    weight = torch.empty((filters, channels, kernel, kernel), dtype=dtype, device="meta")
    activation, batch_size = operation["activation"], operation["batch_size"]
    bias = weight[:, 0, 0, 0] if biased else None
    constants = _constants(images, weight, bias, dtype, activation, transforms)
    features = _features(images, weight, batch_size, dtype, transforms)
    written = [operation_in_words(operation), f"{filters} filters", *(["bias"] if biased else []), activation]
    activations = "weight_ptr", "bias_ptr", "y_ptr", "gradient_ptr"
    return [
        CompileCase(
            shape=", ".join(written),
            function=function,
            arguments=augment_argument_types(function, constants, dtype, activations),
            constants=dict(constants),
            warps=WARPS,
            bytes=batch_size * channels * math.prod(transforms.window(height, width)) + features.nbytes,
            flops=2 * features.numel() * weight[0].numel(),
        )
        for function in ((stem_kernel, stem_gradient_kernel) if biased else (stem_kernel,))
    ]


KERNEL = Kernel(
    operation="stem",
    function=stem,
    reference=stem_plain,
    fits=_fits,
    inputs=_inputs,
    compile_cases=_compile_cases,
    gpu_functions=dict.fromkeys(("stem_kernel", "stem_gradient_kernel"), "stem"),
    followed_by_pytorch=("stem_gradient_kernel",),
    operators={
        "stem": Operator(bytes=all_by("stem_kernel"), reads=windows_read),
        "stem_backward": Operator(bytes=all_by("stem_gradient_kernel"), reads=windows_read),
    },
)
