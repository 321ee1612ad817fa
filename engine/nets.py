"""SpeedyResNet: one configurable net for the whole line from David Page's over hlb-CIFAR10 to airbench.

Legend: N images, C channels, H x W pixels. Activations are [N, C, H, W] in channels_last.
"""

import dataclasses
import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..kernels.activations import ACTIVATIONS
from ..kernels.batch_norm import ResidualPlace, batch_norm_act_plain, with_activation
from ..kernels.contract import Operation
from .errors import UserError
from .recipe import Net, Recipe

MAX_IMAGE_SIDE = 4096
"""Pixels; with a larger one even the first activations of an image take gigabytes."""


class KernelPlace(nn.Module):
    """A module that asks for kernels: whoever has one for it puts it into `kernels`, and `TrainingState` does."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.layout = net.memory_format
        self.kernels: dict[str, Callable[..., Tensor]] = {}
        """What does which operation in training; plain PyTorch does all others."""
        self.scores = False
        """The module belongs to a net of `scoring.scoring_net`: kernels without statistics serve in evaluation too."""
        self.noted: list[Operation] | None = None
        """Gets all operations that are asked for, where it is a list."""

    def kernel(self, name: str, x: Tensor, **options: object) -> Callable[..., Tensor] | None:
        """The kernel that does an operation here; none: plain PyTorch does it.

        In evaluation there is one only in a net that scores, and a caller asks only for operations without statistics.

        Args:
            name: of the operation.
            x: its first input.
            options: all else that describes the operation, see `kernels.contract.Operation`.
        """
        if self.noted is not None:
            self.noted.append(Operation(name, tuple(x.shape), x.dtype, self.layout, tuple(options.items())))
        return self.kernels.get(name) if self.training or self.scores else None


class BatchNorm(KernelPlace):
    """Batch norm and activation; unless the recipe says otherwise its scale stays 1, and parameters and statistics are
    never below float32.

    Takes and returns the dtype of its input; with half-precision input the arithmetic is float32 all the same.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, net: Net) -> None:
        super().__init__(net)
        self.momentum = net.batch_norm_momentum
        self.epsilon = net.batch_norm_epsilon
        self.groups = net.batch_norm_groups
        """Of ghost batch norm, in training."""
        self.activation = net.activation
        self.precision = net.batch_norm_precision
        self.folded = False
        """In evaluation, weight and bias are those of `scoring.folded_state`, which puts the statistics into them."""
        self.weight = nn.Parameter(torch.ones(channels), requires_grad=net.batch_norm_scale == "learned")
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, residual: Tensor | None = None, residual_place: ResidualPlace = "none") -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]; `residual`, of that shape too, is added before or after the activation."""
        if not self.training:
            return with_activation(self._evaluated(x), residual, self.activation, residual_place)
        function = self.kernel("batch_norm_act", x, **self.options, residual=residual_place) or batch_norm_act_plain
        return self.normalised(function, x, residual=residual, residual_place=residual_place)

    def _evaluated(self, x: Tensor) -> Tensor:
        """Normalise x with the running statistics; the result has the dtype of x."""
        if self.folded:
            return (x * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        vectors = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(x, *vectors, momentum=self.momentum, eps=self.epsilon)

    @property
    def options(self) -> dict[str, object]:
        """What describes an operation that ends with this norm."""
        return {"activation": self.activation, "groups": self.groups, "precision": self.precision}

    def normalised(self, function: Callable[..., Tensor], x: Tensor, **options: object) -> Tensor:
        """What `function`, which ends with a norm, makes of x with the parameters of this one."""
        return function(
            x, self.weight, self.bias, self.running_mean, self.running_var, activation=self.activation,
            momentum=self.momentum, epsilon=self.epsilon, groups=self.groups, **options,
        )  # fmt: skip


class Convolution(nn.Conv2d):
    """nn.Conv2d whose weights are cast to the dtype of the input, so that they may be kept in a wider one."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H', W']."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        result: Tensor = self._conv_forward(x, self.weight.to(x.dtype), bias)
        return result


class Linear(nn.Linear):
    """nn.Linear whose weights are cast to the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs] -> [N, outputs]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> Convolution:
    return Convolution(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


class SqueezeExcite(nn.Module):
    """Mean of each channel - linear - activation - linear - sigmoid: a factor in (0, 1) for each channel.

    Source: Hu, Shen and Sun, "Squeeze-and-Excitation Networks" (2018).
    """

    def __init__(self, channels: int, net: Net) -> None:
        super().__init__()
        hidden = max(channels // net.squeeze_excite_ratio, 1)
        self.squeeze, self.excite = Linear(channels, hidden), Linear(hidden, channels)
        self.activation = ACTIVATIONS[net.activation]

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, 1, 1]."""
        hidden = self.activation(self.squeeze(x.mean((2, 3))))
        factors: Tensor = self.excite(hidden).sigmoid()
        return factors[:, :, None, None]


def global_max_pool(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C], the largest value of each channel; the first of equal ones gets the gradient.

    x.amax((2, 3)) would share it. Its gradient looks for the values that equal their maximum: in half precision
    torch.compile compares a rounded maximum with values that it has not rounded, finds none, and divides by how many
    there are.
    """
    return F.max_pool2d(x, x.shape[2:]).flatten(1)


class ConvolutionGroup(KernelPlace):
    """conv - max-pool - norm - activation, then (conv - norm - activation) for the others; halves the map.

    Without a pool the first convolution has a stride of 2, which rounds up an odd side that a pool would round down.
    Squeeze-and-excite, where wanted, scales what the last convolution gives, before its norm, by what it makes of the
    group's first activation; so hlb-CIFAR10 v0.3 has it.
    """

    def __init__(self, place: int, inputs: int, outputs: int, net: Net) -> None:
        super().__init__(net)
        single, kernel = place in net.single_groups, 1 if place in net.pointwise_groups else 3
        first = _convolution(inputs, outputs, net.first_kernel, stride=2 if net.pool == "none" else 1)
        others = (_convolution(outputs, outputs, kernel) for _ in range(0 if single else net.group_convolutions - 1))
        self.convolutions = nn.ModuleList([first, *others])
        self.norms = nn.ModuleList(BatchNorm(outputs, net) for _ in self.convolutions)
        self.pool = nn.Identity() if net.pool == "none" else nn.MaxPool2d(2)
        self.pool_place = net.pool
        self.residual = net.residual
        self.squeeze_excite = SqueezeExcite(outputs, net) if net.squeeze_excite_ratio and not single else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, outputs, H // 2, W // 2], or (H + 1) // 2 and (W + 1) // 2 without a pool."""
        x = first = self._first(x)
        last = len(self.convolutions) - 1
        for index in range(1, last + 1):
            ends = index == last and self.residual != "none"
            x = self.convolutions[index](x)
            if index == last and self.squeeze_excite is not None:
                x = x * self.squeeze_excite(first)
            x = self.norms[index](x, first if ends else None, self.residual if ends else "none")
        return x

    def _first(self, x: Tensor) -> Tensor:
        """The first convolution with its pooling, norm and activation, in as few kernels as there are for them."""
        convolution, norm = self.convolutions[0], self.norms[0]
        pooled: Tensor
        if self.pool_place == "after_norm":
            pooled = self.pool(norm(convolution(x)))
            return pooled
        if not (self.training or self.scores):  # where an export has put plain modules in their places
            pooled = norm(self.pool(convolution(x)))
            return pooled
        assert isinstance(convolution, Convolution)
        assert isinstance(norm, BatchNorm)
        weight, pools = convolution.weight, self.pool_place == "before_norm"
        sizes = {"filters": len(weight), "kernel": weight.shape[2]}
        # The kernel leaves a gradient of x to PyTorch, so it is for an x that wants none.
        if pools and not x.requires_grad and (function := self.kernel("convolution_pool", x, **sizes)):
            pooled = norm(function(x, weight.to(x.dtype)))
            return pooled
        x = convolution(x)
        if pools and self.training and (function := self.kernel("pool_batch_norm_act", x, **norm.options)):
            return norm.normalised(function, x)
        pooled = norm(self.pool(x))
        return pooled


class PreActivationBlock(nn.Module):
    """norm - activation, and the sum of two ways from there: conv - norm - activation - conv, and a shortcut.

    The shortcut is a 1x1 convolution where widths or sides change, else nothing. Source: cifar10-fast's baseline; He et
    al., "Identity Mappings in Deep Residual Networks" (2016), have shortcuts before the activation.
    """

    def __init__(self, inputs: int, outputs: int, net: Net, *, stride: int = 1) -> None:
        super().__init__()
        self.norm = BatchNorm(inputs, net)
        changes = stride > 1 or inputs != outputs
        self.shortcut = _convolution(inputs, outputs, 1, stride) if changes else nn.Identity()
        branch = OrderedDict(
            conv1=_convolution(inputs, outputs, stride=stride),
            norm=BatchNorm(outputs, net),
            conv2=_convolution(outputs, outputs),
        )
        self.branch = nn.Sequential(branch) if net.pre_activation_branches else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H', W'] with H' = (H + stride - 1) // stride."""
        x = self.norm(x)
        shortcut: Tensor = self.shortcut(x)
        return shortcut if self.branch is None else shortcut + self.branch(x)


def _group(place: int, inputs: int, outputs: int, net: Net) -> nn.Module:
    """The group of number `place`, from 0: convolutions, or pre-activation blocks, of which its first may stride."""
    if not net.pre_activation_blocks:
        return ConvolutionGroup(place, inputs, outputs, net)
    first = PreActivationBlock(inputs, outputs, net, stride=2 if place else 1)
    others = (PreActivationBlock(outputs, outputs, net) for _ in range(net.pre_activation_blocks - 1))
    return nn.Sequential(first, *others)


class NoWhitening(nn.Identity):
    """In the place of the whitening where a net has none."""

    bias = None


class Stem(nn.Module):
    """Frozen patch whitening, an activation, and the optional projection with norm and activation.

    Pre-activation blocks begin with norm and activation themselves.
    """

    def __init__(self, net: Net, channels: int, project_width: int) -> None:
        super().__init__()
        filters = channels * net.whitening_kernel**2 * (2 if net.whitening_sign_pairs else 1)
        if net.whitening_kernel:
            self.whitening = Convolution(
                channels, filters, net.whitening_kernel, stride=net.whitening_stride, padding=net.whitening_padding,
                bias=net.whitening_bias,
            )  # fmt: skip
            self.whitening.weight.requires_grad_(False)
        else:
            self.whitening, filters = NoWhitening(), channels  # type: ignore[assignment]
        self.projection = _convolution(filters, project_width, net.project_kernel) if project_width else None
        if not net.project_ghost_norm:
            net = dataclasses.replace(net, batch_norm_groups=1)
        self.norm = BatchNorm(project_width, net) if project_width and not net.pre_activation_blocks else None
        self.activation_name = net.whitening_activation if net.whitening_kernel else "none"
        self.activation = ACTIVATIONS.get(self.activation_name, nn.Identity())
        self.outputs = project_width or filters

    def forward(self, x: Tensor, whitened: bool = False) -> Tensor:
        """[N, C, H, W] -> [N, outputs, H', W'] with H' = (H + 2 * padding - kernel) // stride + 1.

        Args:
            x: normalised images; or with `whitened` what the whitening and its activation make of them.
            whitened: that is done already.
        """
        if not whitened:
            x = self.whitened(x)
        if self.projection is not None:
            x = self.projection(x)
        return x if self.norm is None else self.norm(x)

    def whitened(self, x: Tensor) -> Tensor:
        """Normalised images -> whitening and the activation right behind it; none where a projection follows."""
        x = self.whitening(x)
        return x if self.projection is not None else self.activation(x)

    @property
    def whitening_activation(self) -> str:
        """Name of the activation in `whitened`."""
        return "none" if self.projection is not None else self.activation_name


class SpeedyResNet(nn.Module):
    """Whitening stem, groups of convolutions or of pre-activation blocks, global pool, linear head.

    Sources: davidcpage/cifar10-fast, tysam-code/hlb-CIFAR10 and KellerJordan/cifar10-airbench, whose nets are settings
    of this one.
    """

    def __init__(self, net: Net, *, classes: int = 10, channels: int = 3, width_multiplier: float = 1.0) -> None:
        super().__init__()

        def scaled(width: int) -> int:
            return max(round(width * width_multiplier), 1) if width else 0

        self.stem = Stem(net, channels, scaled(net.project_width))
        widths = [self.stem.outputs, *map(scaled, net.widths)]
        self.groups = nn.ModuleList(_group(place, *pair, net) for place, pair in enumerate(itertools.pairwise(widths)))
        self.concatenates_mean = net.head_pool == "max_and_mean"
        features = 2 * widths[-1] if self.concatenates_mean else widths[-1]
        self.head = Linear(features, classes, bias=net.head_bias)
        self.logit_scale = net.logit_scale
        self.contiguous = net.memory_format == "contiguous"

    def forward(self, x: Tensor, whitened: bool = False) -> Tensor:
        """[N, C, H, W] normalised images -> [N, classes] logits, both in the dtype to compute in.

        Args:
            x: the images, or with `whitened` what the whitening and its activation make of them, see `Stem`.
            whitened: the images have passed the whitening.
        """
        return self.logits_of(self.features_behind(self.first_map(x, whitened)))

    def first_map(self, x: Tensor, whitened: bool = False) -> Tensor:
        """What `forward` takes -> [N, C', H', W'], the map behind group 1."""
        first: Tensor = self.groups[0](self.stem(x.contiguous() if self.contiguous else x, whitened))
        return first

    def features_behind(self, first_map: Tensor) -> Tensor:
        """[N, C', H', W'], the map behind group 1 -> [N, F], the pooled features that `logits_of` takes."""
        x = first_map
        for group in itertools.islice(self.groups, 1, None):
            x = group(x)
        return self.features_of(x)

    def features_of(self, x: Tensor) -> Tensor:
        """[N, C, H, W], the map of the last group -> [N, F], pooled."""
        features = global_max_pool(x)
        return torch.cat([features, x.mean((2, 3))], 1) if self.concatenates_mean else features

    def logits_of(self, features: Tensor) -> Tensor:
        """[N, F], pooled features -> [N, classes]."""
        logits: Tensor = self.head(features)
        return logits * self.logit_scale


def make_net(
    recipe: Recipe, *, classes: int, channels: int, dtype: torch.dtype, device: torch.device | str
) -> SpeedyResNet:
    """The net of `recipe` on `device` in its memory format, for inputs of `dtype`.

    Weights are kept in `dtype`, or in float32 where the recipe asks for master weights; batch norm is at least float32,
    unless the recipe wants it native.
    """
    with torch.device(device):
        net = SpeedyResNet(recipe.net, classes=classes, channels=channels, width_multiplier=recipe.width_multiplier)
    wide = torch.promote_types(dtype, torch.float32)
    layout = torch.contiguous_format if net.contiguous else torch.channels_last
    net = net.to(wide if recipe.optimizer.master_weights else dtype).to(memory_format=layout)
    for module in net.modules():
        if isinstance(module, BatchNorm) and recipe.net.batch_norm_precision == "float32":
            module.to(wide)
    return net


@functools.cache
def net_operations(
    recipe: Recipe, batches: tuple[tuple[int, int, int, int], ...], dtype: torch.dtype
) -> Mapping[str, Sequence[Operation]]:
    """What the modules of a net ask kernels for in training, by their paths; nothing is computed.

    Args:
        recipe: of the net.
        batches: [N, C, H, W] of the images of each kind of step.
        dtype: of the activations.
    """
    net = make_net(recipe, classes=10, channels=batches[0][1], dtype=dtype, device="meta").train()
    if net.stem.whitening.bias is not None:
        net.stem.whitening.bias.requires_grad_(False)  # as it is in most steps; then more kernels can be used
    found: dict[str, list[Operation]] = {}
    for path, module in net.named_modules():
        if isinstance(module, KernelPlace):
            module.noted = found.setdefault(path, [])
    for shape in batches:
        net(torch.empty(shape, dtype=dtype, device="meta"))
    return {path: list(dict.fromkeys(operations)) for path, operations in found.items()}


def last_map_size(net: Net, height: int, width: int) -> tuple[int, int]:
    """Height and width of the map that the last group makes of an image."""
    sides = height, width
    if net.whitening_kernel:
        around = 2 * net.whitening_padding - net.whitening_kernel
        sides = (height + around) // net.whitening_stride + 1, (width + around) // net.whitening_stride + 1
    blocks = net.pre_activation_blocks > 0
    factor, up = 2 ** (len(net.widths) - blocks), blocks or net.pool == "none"
    rows, columns = (-(-side // factor) if up else side // factor for side in sides)
    return rows, columns


def check_image_size(net: Net, height: int, width: int) -> None:
    """Raises UserError where images are too small for the stem and the poolings of `net`, or far too large."""
    if max(height, width) > MAX_IMAGE_SIDE:
        raise UserError(f"images of {height} x {width} pixels are too large; give at most {MAX_IMAGE_SIDE} a side")
    if min(last_map_size(net, height, width)) < 1:
        raise UserError(
            f"images of {height} x {width} pixels are too small for {len(net.widths)} groups, each of which halves "
            f"them; give larger ones (data pack --size, augmentation.crop or sizes), or fewer net.widths"
        )


def parameter_counts(net: nn.Module) -> tuple[int, int]:
    """All parameters, and those that are trained."""
    parameters = list(net.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


@functools.cache
def forward_flops_per_image(recipe: Recipe, *, classes: int, channels: int, height: int, width: int) -> int:
    """Two per multiply-add of convolutions and head for one image, zero-padded taps counted.

    Raises:
        UserError: images too small for the net.
    """
    check_image_size(recipe.net, height, width)
    net = make_net(recipe, classes=classes, channels=channels, dtype=torch.float32, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, channels, height, width, device="meta"))
    return int(counter.get_total_flops())
