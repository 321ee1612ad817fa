"""The training step: everything that changes in a run lives on the device, and one call moves it one step on.

    pick images -> augment -> forward -> loss -> backward -> optimizer -> averaging -> counter + 1

Which images, which random draws, which learning rate: all of it is read at the device's own step counter. A step
takes nothing from the host and tells it nothing; losses go to a log on the device that is read when an epoch ends.
So the same step runs eagerly, compiles as one graph, and runs on the `meta` device.

With a second stream (`TrainingState.second_stream`) the optimizer updates what is behind group 1 of the net while the
backward pass goes on through group 1.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.augment import Batch, Transforms, normalisation
from ..kernels.contract import REFERENCE, kernel_called, registered
from .nets import BatchNorm, KernelPlace, Linear, SpeedyResNet, net_operations
from .optim import ParameterGroup, mix_, muon_, nesterov_mix_, nesterov_sgd_
from .parts import part
from .ranks import ALONE, Ranks, summed
from .recipe import Recipe
from .schedules import Plan
from .streams import SecondStream

REFERENCE_KERNELS = dict.fromkeys(registered(), REFERENCE)
"""Every operation that has a kernel, by the plain PyTorch that is its reference."""


class KernelChoice(dict[str, str]):
    """The provider of each operation, and where in the net plain PyTorch does it all the same."""

    refused: frozenset[tuple[str, str]] = frozenset()
    """(path of a module, name of an operation)."""


class TrainingState:
    """All tensors of a run: weights, optimizer, average, data, counter, seed, tables and logs.

    Args:
        net: on its device; trained in place.
        recipe: what to do.
        plan: the recipe's steps and tables.
        images: uint8 [N, H, W, C] on the device of `net`.
        labels: int64 [N], likewise.
        mean: of the training pixels scaled to [0, 1], one a channel.
        std: likewise.
        dtype: of the activations.
        kernels: the provider of each operation; none: all by the reference.
        ranks: the processes that train the net together; each has a state of its own, and the same weights.
    """

    def __init__(
        self,
        net: SpeedyResNet,
        recipe: Recipe,
        plan: Plan,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype,
        kernels: Mapping[str, str] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        device = net.head.weight.device
        precision = torch.promote_types(dtype, torch.float32)
        self.net, self.recipe, self.plan, self.dtype = net, recipe, plan, dtype
        self.images, self.labels = images, labels
        self.ranks, self.share = ranks, ranks.share_of(recipe)
        self.use_kernels(kernels or REFERENCE_KERNELS)
        self.scale, self.shift = normalisation(mean, std, precision, device)
        self.seed = torch.zeros(1, dtype=torch.int64, device=device)
        self.counter = torch.zeros(1, dtype=torch.int64, device=device)
        self._make_tables(precision, device)
        self.groups = self._parameter_groups()
        """By what they hold: convolutions, head, batch_norm_biases, batch_norm_scales and whitening_bias where they are
        trained.

        Weights of squeeze-and-excite are with the head, its biases and the head's with those of batch norm.
        """
        front = {id(p) for module in (net.stem, net.groups[0]) for p in module.parameters()}
        self.front_groups = _only(self.groups, lambda parameter: id(parameter) in front)
        """What of `groups` is in group 1 of the net, or in front of it."""
        self.back_groups = _only(self.groups, lambda parameter: id(parameter) not in front)
        """The rest of `groups`."""
        self.second_stream: SecondStream | None = None
        """Where a step updates `back_groups` while its backward pass goes on; none: after it, with all the others."""
        self.averages = recipe.averaging.kind != "none"
        self._make_averages()

    def _make_tables(self, precision: torch.dtype, device: torch.device) -> None:
        """Make the tables that a step reads at its counter and the logs that it writes there."""

        def table(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=precision, device=device)

        self.learning_rate = table(self.plan.learning_rate)
        self.own_learning_rates = {name: table(values) for name, values in self.plan.own_learning_rates.items()}
        self.renormalise = table(self.plan.renormalise)
        self.averaging_keep = table(self.plan.averaging_keep)
        self.averaging_write_back = table(self.plan.averaging_write_back)
        self.loss_log = torch.zeros(self.plan.steps, dtype=precision, device=device)
        self.correct_log = torch.zeros(self.plan.steps, dtype=torch.int64, device=device)

    def _make_averages(self) -> None:
        """Make the averages of all live tensors, and velocities for those that move with momentum."""
        # What is frozen for ever stays out: mixing a half-precision tensor with itself would still round it.
        live = [*(p for p in self.net.parameters() if p.requires_grad), *self.net.buffers()]
        # One list a dtype: a foreach operation takes its fast path only then. Statistics have no momentum, which could
        # carry a running variance below zero.
        momentum = self.recipe.averaging.momentum > 0
        kinds = [(v.dtype, momentum and isinstance(v, nn.Parameter)) for v in live]
        self.live = [
            [v for v, other in zip(live, kinds, strict=True) if other == kind] for kind in dict.fromkeys(kinds)
        ]
        self.average = [[torch.empty_like(v, requires_grad=False) for v in part] for part in self.live]
        self.velocity = [
            [torch.zeros_like(v, requires_grad=False) for v in part] if moved else []
            for part, (_, moved) in zip(self.live, dict.fromkeys(kinds), strict=True)
        ]
        """Of the averages, list by list; empty where they move without momentum."""

    @property
    def whitens_batches(self) -> bool:
        """A kernel picks, augments and whitens the images of a step at once."""
        return self.kernels["stem"] != REFERENCE

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of what is cropped out of the images."""
        return training_window(self.recipe, *self.images.shape[1:3])

    def use_kernels(self, kernels: Mapping[str, str]) -> None:
        """From now on let the named providers do the operations, wherever in the net they can."""
        self.kernels = kernels
        known = registered()
        self.functions = {
            name: known[name].reference if provider == REFERENCE else kernel_called(name, provider).function
            for name, provider in kernels.items()
        }
        for module in self.net.modules():
            if isinstance(module, KernelPlace):
                module.kernels = {}
        if any(provider != REFERENCE for provider in kernels.values()):
            self._place_kernels(getattr(kernels, "refused", frozenset()))

    def _place_kernels(self, refused: frozenset[tuple[str, str]]) -> None:
        """Give each module of the net the kernels that do all that it asks them for in any kind of step."""
        batches = batch_shapes(self.share, tuple(self.images.shape))
        for path, operations in net_operations(self.share, batches, self.dtype).items():
            module = self.net.get_submodule(path)
            assert isinstance(module, KernelPlace)
            for name in dict.fromkeys(each.name for each in operations if (path, each.name) not in refused):
                provider = self.kernels.get(name, REFERENCE)
                own = [each for each in operations if each.name == name]
                if provider != REFERENCE and not any(map(kernel_called(name, provider).fits, own)):
                    module.kernels[name] = self.functions[name]

    def _parameter_groups(self) -> dict[str, ParameterGroup]:
        settings, net = self.recipe.optimizer, self.net
        # The backward pass runs on scale * (sum of losses), that is on batch_size * scale mean losses.
        mean_losses = self.recipe.batch_size * self.recipe.loss.scale

        def group(parameters: list[Tensor], learning_rate: float, weight_decay: float) -> ParameterGroup:
            buffers = [torch.zeros_like(p, requires_grad=False) for p in parameters]
            return ParameterGroup(parameters, learning_rate, weight_decay, buffers)

        def sgd(parameters: list[Tensor], faster: float = 1.0) -> ParameterGroup:
            rate = settings.learning_rate * faster / mean_losses
            return group(parameters, rate, settings.weight_decay / faster * mean_losses)

        convolutions: list[Tensor] = [p for p in net.parameters() if p.requires_grad and p.dim() == 4]
        linear: list[Tensor] = [p for p in net.parameters() if p.dim() == 2]
        biases: list[Tensor] = [
            m.bias for m in net.modules() if isinstance(m, BatchNorm | Linear) and m.bias is not None
        ]
        scales: list[Tensor] = [m.weight for m in net.modules() if isinstance(m, BatchNorm) and m.weight.requires_grad]
        muon = settings.muon if settings.kind == "muon" else None
        groups = {
            "convolutions": group(convolutions, muon.learning_rate, muon.weight_decay) if muon else sgd(convolutions),
            "head": sgd(linear, settings.head_scale),
            "batch_norm_biases": sgd(biases, settings.batch_norm_bias_scale),
        }
        if scales:
            groups["batch_norm_scales"] = sgd(scales)
        whitening_bias = net.stem.whitening.bias
        return groups if whitening_bias is None else groups | {"whitening_bias": sgd([whitening_bias])}

    def trained_groups(self, *, whitening_bias: bool, first_group: bool = True) -> dict[str, ParameterGroup]:
        """What a step trains; see `training_step`."""
        groups = self.groups if first_group else self.back_groups
        return groups if whitening_bias else without_whitening_bias(groups)

    @torch.no_grad()
    def restart(self, seed: int) -> None:
        """Start a run with `seed` from the weights the net now has: counter, momentum, average and logs anew."""
        self.seed.fill_(seed)
        self.counter.zero_()
        self.loss_log.zero_()
        self.correct_log.zero_()
        for group in self.groups.values():
            torch._foreach_zero_(group.momentum_buffers)
        for average, live, velocity in zip(self.average, self.live, self.velocity, strict=True):
            torch._foreach_copy_(average, live)
            if velocity:
                torch._foreach_zero_(velocity)

    def now(self, table: Tensor) -> Tensor:
        """The entry of a table [steps] at the step counter, 0-d."""
        return table.index_select(0, self.counter).squeeze(0)

    def changing_tensors(self) -> dict[str, Tensor]:
        """Everything that a step changes, by name."""
        momentum = {
            f"momentum.{name}.{index}": buffer
            for name, group in self.groups.items()
            for index, buffer in enumerate(group.momentum_buffers)
        }
        slow = {
            f"{name}.{i}.{j}": each
            for name, parts in (("average", self.average), ("velocity", self.velocity))
            for i, part in enumerate(parts)
            for j, each in enumerate(part)
        }
        own = {"counter": self.counter, "loss_log": self.loss_log, "correct_log": self.correct_log}
        return {**self.net.state_dict(), **momentum, **slow, **own}

    def all_tensors(self) -> dict[str, Tensor]:
        """Everything that a step reads or changes, by name."""
        names = (
            "images", "labels", "scale", "shift", "seed", "learning_rate", "renormalise", "averaging_keep",
            "averaging_write_back",
        )  # fmt: skip
        own = {f"learning_rate.{name}": table for name, table in self.own_learning_rates.items()}
        return self.changing_tensors() | {name: getattr(self, name) for name in names} | own

    def averaged_state(self) -> dict[str, Tensor]:
        """The average, by the names that `net.state_dict()` has."""
        slow = {
            id(live): average
            for part in zip(self.live, self.average, strict=True)
            for live, average in zip(*part, strict=True)
        }
        return {name: slow.get(id(value), value) for name, value in self.net.state_dict(keep_vars=True).items()}


def _only(groups: Mapping[str, ParameterGroup], wanted: Callable[[Tensor], bool]) -> dict[str, ParameterGroup]:
    """The wanted parameters of each group that has any."""
    found = {name: group.only(wanted) for name, group in groups.items()}
    return {name: group for name, group in found.items() if group.parameters}


def without_whitening_bias(groups: Mapping[str, ParameterGroup]) -> dict[str, ParameterGroup]:
    """All groups but that of the whitening bias, which is the last one where there is one."""
    return {name: group for name, group in groups.items() if name != "whitening_bias"}


def parameters_of(groups: Mapping[str, ParameterGroup]) -> list[Tensor]:
    """The parameters of all groups, one group after the other."""
    return [parameter for group in groups.values() for parameter in group.parameters]


def _smoothed_losses(log_probabilities: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of each image against its label, smoothed over all classes: [B]."""
    # A comparison fuses with what is around it; the gradient of a gather would be filled and scattered, two launches.
    is_label = labels[:, None] == torch.arange(log_probabilities.shape[1], device=labels.device)
    right = -torch.where(is_label, log_probabilities, 0.0).sum(1)
    return (1 - label_smoothing) * right - label_smoothing * log_probabilities.mean(1)


def transforms_of(recipe: Recipe, *, cutmix: bool, size: int = 0, ranks: Ranks = ALONE) -> Transforms:
    """What is done to each image of a step, and which images of a batch that `ranks` share are those of this rank."""
    settings = recipe.augmentation
    return Transforms(
        crop=settings.crop,
        padding=settings.padding,
        padding_mode=settings.padding_mode,
        flip=settings.flip,
        cutout=settings.cutout,
        cutmix=settings.cutmix if cutmix else 0,
        size=size,
        brightness=settings.brightness,
        contrast=settings.contrast,
        ranks=ranks.size if ranks.size > 1 else 0,
        rank=ranks.rank,
    )


def training_window(recipe: Recipe, height: int, width: int) -> tuple[int, int]:
    """Height and width of what training crops out of images of `height` x `width` pixels."""
    return transforms_of(recipe, cutmix=False).window(height, width)


def batch_shapes(recipe: Recipe, images: Sequence[int]) -> tuple[tuple[int, int, int, int], ...]:
    """[N, C, H, W] of the images of each kind of step, made from uint8 [N, H, W, C]."""
    sides = (transforms_of(recipe, cutmix=False, size=size).result(*images[1:3]) for size in step_sizes(recipe))
    return tuple((recipe.batch_size, images[3], height, width) for height, width in sides)


def step_sizes(recipe: Recipe) -> tuple[int, ...]:
    """Sides that the images of the steps are scaled down to; 0: not at all."""
    return tuple(dict.fromkeys(recipe.augmentation.sizes or (0,)))


def _batch_inputs(state: TrainingState, *, cutmix: bool, size: int) -> dict[str, Any]:
    """Arguments that `augmented_batch` and `stem` have in common."""
    names = "images", "labels", "seed", "counter", "scale", "shift", "dtype"
    return {name: getattr(state, name) for name in names} | {
        "transforms": transforms_of(state.recipe, cutmix=cutmix, size=size, ranks=state.ranks),
        "batch_size": state.share.batch_size,
        "steps_per_epoch": state.plan.steps_per_epoch,
    }


def training_batch(state: TrainingState, *, cutmix: bool, size: int = 0) -> Batch:
    """The batch of this step."""
    batch: Batch = state.functions["augment"](**_batch_inputs(state, cutmix=cutmix, size=size))
    return batch


def whitened_batch(state: TrainingState, *, cutmix: bool, size: int = 0) -> Batch:
    """The batch of this step behind the whitening and its activation, in the fused kernel."""
    whitening, activation = state.net.stem.whitening, state.net.stem.whitening_activation
    inputs = _batch_inputs(state, cutmix=cutmix, size=size)
    batch: Batch = state.functions["stem"](
        **inputs, weight=whitening.weight, bias=whitening.bias, activation=activation
    )
    return batch


def step_batch(state: TrainingState, *, whitening_bias: bool, cutmix: bool, size: int) -> Batch:
    """The batch of this step, behind the whitening where a kernel does both; see `training_step`."""
    with part("augment+stem" if state.whitens_batches else "augment"):
        batch = (whitened_batch if state.whitens_batches else training_batch)(state, cutmix=cutmix, size=size)
    # A kernel's backward pass could not see that nobody asks for this gradient.
    return batch if whitening_bias else batch._replace(images=batch.images.detach())


Forward = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""Images [B, C, H, W], labels and pasted labels [B] -> losses [B] and logits [B, classes]."""


def pasted_share(state: TrainingState) -> float:
    """Share of a window's pixels that cutmix pastes in."""
    return state.recipe.augmentation.cutmix**2 / math.prod(state.window)


def head_losses(
    state: TrainingState, features: Tensor, labels: Tensor, pasted_labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Loss of each image, [B], and logits, [B, classes], of pooled features [B, F]."""
    logits = state.net.logits_of(features)
    precise = logits.to(state.scale.dtype)
    return batch_losses(state.recipe, precise, labels, pasted_labels, pasted_share(state)), logits


HeadLosses = Callable[[TrainingState, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
"""See `head_losses`."""


def first_map_of(state: TrainingState, images: Tensor, *, first_group: bool) -> Tensor:
    """The map behind group 1, [B, C, H, W], where the backward pass ends unless group 1 is trained.

    Args:
        state: of the run.
        images: of `step_batch`, [B, C, H, W].
        first_group: group 1 is trained.
    """
    first_map = state.net.first_map(images, state.whitens_batches)
    return first_map if first_group else first_map.detach()


def losses_and_logits(
    state: TrainingState, first_map: Tensor, batch: Batch, head: HeadLosses = head_losses
) -> tuple[Tensor, Tensor]:
    """Loss of each image, [B], and logits, [B, classes], from what `first_map_of` makes of the images of a batch."""
    with part("head+loss"):  # groups are parts of their own within it
        features = state.net.features_behind(first_map)
        return head(state, features, batch.labels, batch.pasted_labels)


def batch_losses(
    recipe: Recipe, logits: Tensor, labels: Tensor, pasted_labels: Tensor | None = None, pasted_share: float = 0.0
) -> Tensor:
    """Loss of each image, [B]; `pasted_share` of its pixels have the pasted label."""
    log_probabilities = F.log_softmax(logits, dim=1)
    losses = _smoothed_losses(log_probabilities, labels, recipe.loss.label_smoothing)
    if pasted_labels is None:
        return losses
    others = _smoothed_losses(log_probabilities, pasted_labels, recipe.loss.label_smoothing)
    return (1 - pasted_share) * losses + pasted_share * others


def logged_over_ranks_(
    state: TrainingState, losses: Tensor, logits: Tensor, labels: Tensor, gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Log this step, and turn the gradients of this rank's share into those of the whole batch.

    The running statistics of batch norm become their means over the ranks in the same exchange.

    Args:
        state: of the run.
        losses: of the share, [B].
        logits: of the share, [B, classes].
        labels: of the share, [B].
        gradients: of the share.
    """
    with part("head+loss"):
        loss, correct = losses.mean(), (logits.argmax(1) == labels).sum()
        size, buffers, count = state.ranks.size, list(state.net.buffers()), len(gradients)
        if size > 1:
            means = torch._foreach_div([loss, *buffers], size)
            found = summed([*gradients, correct, *means], state.loss_log.dtype)
            gradients, correct, loss = found[:count], found[count], found[count + 1]
            torch._foreach_copy_(buffers, found[count + 2 :])
        state.loss_log.index_copy_(0, state.counter, loss.reshape(1))
        state.correct_log.index_copy_(0, state.counter, correct.reshape(1))
    return list(gradients)


def optimize_(state: TrainingState, groups: Mapping[str, ParameterGroup], gradients: list[Tensor]) -> None:
    """The optimizer's update of `groups` in this step, by gradients in the order of `parameters_of`."""
    settings, left = state.recipe.optimizer, iter(gradients)
    for name, group in groups.items():
        own = list(itertools.islice(left, len(group.parameters)))
        rate = state.now(state.own_learning_rates.get(name, state.learning_rate)) * group.learning_rate
        if name == "convolutions" and settings.kind == "muon":
            muon_(group, own, rate, state.now(state.renormalise), settings.muon)
        else:
            nesterov_sgd_(group, own, rate, settings.momentum, rate_inside=settings.learning_rate_inside)


def average_(state: TrainingState) -> None:
    """Averaging and lookahead of this step."""
    keep, write_back = state.now(state.averaging_keep), state.now(state.averaging_write_back)
    for average, live, velocity in zip(state.average, state.live, state.velocity, strict=True):
        if velocity:
            moves = ((keep < 1) & (write_back > 0)).to(keep.dtype)  # the copy that begins a late average is none
            nesterov_mix_(average, live, velocity, keep, moves, state.recipe.averaging.momentum)
        else:
            mix_(average, live, keep)
        mix_(live, average, 1 - write_back)


class Regions(NamedTuple):
    """Parts of a step that depend neither on the kind of step nor on the size of the images.

    torch.compile fuses well what is in them, and compiles each of them once for all steps of a run.
    """

    head_losses: HeadLosses = head_losses
    optimize_: Callable[[TrainingState, Mapping[str, ParameterGroup], list[Tensor]], None] = optimize_
    average_: Callable[[TrainingState], None] = average_


def _optimize_in_regions_(
    state: TrainingState, groups: Mapping[str, ParameterGroup], gradients: list[Tensor], regions: Regions
) -> None:
    """`optimize_` by `regions`, and as it is for the whitening bias, so that it compiles once."""
    always = without_whitening_bias(groups)
    count = len(parameters_of(always))
    regions.optimize_(state, always, gradients[:count])
    optimize_(state, {name: group for name, group in groups.items() if name not in always}, gradients[count:])


Log = Callable[[Sequence[Tensor]], list[Tensor]]
"""See `logged_over_ranks_`, of which it takes the gradients."""


def _train_(
    state: TrainingState,
    loss: Tensor,
    groups: Mapping[str, ParameterGroup],
    regions: Regions,
    log: Log,
) -> None:
    """Take the gradients of `groups`, log the step, and update the groups."""
    gradients = torch.autograd.grad(loss, parameters_of(groups))
    with torch.no_grad():
        summed_gradients = log(gradients)
        with part("optimizer"):
            _optimize_in_regions_(state, groups, summed_gradients, regions)


def _train_on_two_streams_(
    state: TrainingState,
    loss: Tensor,
    first_map: Tensor,
    groups: Mapping[str, ParameterGroup],
    regions: Regions,
    log: Log,
) -> None:
    """`_train_` of one rank, but what is behind group 1 is updated while the backward pass goes on through group 1.

    That pass reads no weight from behind group 1: all it needs from there is the gradient of the map between the two.
    """
    second = state.second_stream
    assert second is not None
    *early, map_gradient = torch.autograd.grad(loss, [*parameters_of(state.back_groups), first_map])
    with torch.no_grad(), second.begin(), part("optimizer"):
        _optimize_in_regions_(state, state.back_groups, early, regions)
    front = {name: group for name, group in state.front_groups.items() if name in groups}
    late = torch.autograd.grad(first_map, parameters_of(front), map_gradient)
    with torch.no_grad():
        late_gradients = log(late)
        with part("optimizer"):
            _optimize_in_regions_(state, front, late_gradients, regions)
        second.end()
    del early  # only now: the second stream has read these gradients until here


def training_step(
    state: TrainingState,
    *,
    whitening_bias: bool,
    cutmix: bool,
    size: int = 0,
    averaging: bool = True,
    first_group: bool = True,
    forward: Forward | None = None,
    regions: Regions = Regions(),  # noqa: B008 - immutable
) -> None:
    """Train one batch, in place.

    Args:
        state: of the run.
        whitening_bias: still train the whitening bias; once frozen, the first 3x3 convolution needs no input
            gradient.
        cutmix: paste squares from other images.
        size: side that images are scaled down to; 0: not at all.
        averaging: move the average, where the recipe has one; before its first move that would change nothing.
        first_group: still train group 1; once frozen, the backward pass ends behind it.
        forward: computes losses and logits in another way.
        regions: functions that do parts of the step in another way.
    """
    batch = step_batch(state, whitening_bias=whitening_bias, cutmix=cutmix, size=size)
    first_map = None
    if forward:
        losses, logits = forward(*batch)
    else:
        first_map = first_map_of(state, batch.images, first_group=first_group)
        losses, logits = losses_and_logits(state, first_map, batch, regions.head_losses)
    with part("head+loss"):
        loss = losses.sum() * state.recipe.loss.scale
    groups = state.trained_groups(whitening_bias=whitening_bias, first_group=first_group)
    log = functools.partial(logged_over_ranks_, state, losses, logits, batch.labels)
    if state.second_stream and first_map is not None and first_group:
        _train_on_two_streams_(state, loss, first_map, groups, regions, log)
    else:
        _train_(state, loss, groups, regions, log)
    with torch.no_grad():
        if averaging and state.averages:
            with part("averaging"):
                regions.average_(state)
        state.counter.add_(1)
