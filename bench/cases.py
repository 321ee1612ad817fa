"""What can be measured, in one place: each operation of a recipe's step, forward and backward, in its own shape.

`bench kernels` times the cases, `pytest bench` runs each through pytest-benchmark, and `bench kernels --list` documents
them. A new operation is one function under `@operation`; a new way to do an old one is another provider in it.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from speedyresnet.engine.backends import make_step, most_common_variant
from speedyresnet.engine.fit import check_fit
from speedyresnet.engine.init import reset_parameters
from speedyresnet.engine.kernel_choice import pick_kernels
from speedyresnet.engine.nets import BatchNorm, Convolution, last_map_size, make_net, net_operations
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.schedules import plan
from speedyresnet.engine.step import (
    TrainingState,
    average_,
    head_losses,
    optimize_,
    training_batch,
    transforms_of,
    whitened_batch,
)
from speedyresnet.kernels.augment import Batch
from speedyresnet.kernels.contract import (
    REFERENCE,
    Kernel,
    Operation,
    kernel_called,
    outside_providers,
    registered,
)
from speedyresnet.kernels.contract import TRITON as TRITON

from .other_augmentations import masked_crops, torchvision_augmentation
from .traffic import Traffic, tensor_bytes, traffic_of

Direction = Literal["forward", "backward", "dgrad", "wgrad", "step"]
COMPILED = "compile"
"""torch.compile's version of the reference."""
NATIVE = "native"
"""The reference without cuDNN."""
HEURISTIC = "heuristic"
"""A convolution for which cuDNN guesses the algorithm; for the reference on a GPU it tries several, see `device.py`."""
PADDED = {"padded-32": 32, "padded-64": 64}
"""Convolutions of maps whose channels are padded with zeros to a multiple of so many, for cuDNN to choose others."""
EVERYWHERE = (REFERENCE, "eager")
"""Providers that a CPU has too."""
PROVIDERS = (*EVERYWHERE, TRITON, COMPILED, NATIVE, HEURISTIC, *PADDED, "torchvision", "masks")


RANDOM_IMAGES = (50_000, 32, 32, 3)
"""[N, H, W, C] of what cases train on, as many as CIFAR-10 has."""


class Work(NamedTuple):
    """A case made ready on a device."""

    call: Callable[[], object]
    reads: Sequence[Tensor]
    """Each has to be read by a call."""
    writes: Sequence[Tensor]
    """Each has to be written; only their sizes matter."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that can be measured."""

    operation: str
    """Part of the step: augment, stem, convolution, ..."""
    layer: str
    """Where in the net, for example group1.2; empty where there is one only."""
    provider: str
    direction: Direction
    shape: tuple[int, ...]
    """Of the input, [N, C, H, W]; empty where there are many."""
    dtype: str
    paper: TrainingState
    """On the meta device: bytes and FLOPs are counted there."""
    make: Callable[[TrainingState], Work]
    """Makes the case ready on the device of a state like `paper`."""

    @property
    def name(self) -> str:
        """Unique among the cases of a recipe."""
        parts = (self.operation, self.layer, self.direction, "x".join(map(str, self.shape)), self.dtype, self.provider)
        return "-".join(part for part in parts if part)

    @cached_property
    def bytes(self) -> int:
        """What is read counted once, and what is written."""
        work = self.make(self.paper)
        return sum(map(tensor_bytes, [*work.reads, *work.writes]))

    @cached_property
    def flops(self) -> int:
        """Of convolutions and matrix products, two per multiply-add; taps in the padding are not counted."""
        return self._traffic.flops

    @cached_property
    def _traffic(self) -> Traffic:
        return traffic_of(self.make(self.paper).call)


def random_state(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> TrainingState:
    """A state ready to step on 50,000 random images of CIFAR-10's size; UserError where they do not fit."""
    check_fit(recipe, 32, 32)
    net = make_net(recipe, classes=10, channels=3, dtype=dtype, device=device).train()
    images = torch.randint(0, 256, RANDOM_IMAGES, dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, RANDOM_IMAGES[:1], device=device)
    # On the meta device, where bytes and FLOPs are counted, everything is plain PyTorch, whatever a GPU would run.
    kernels = None if device.type == "meta" else pick_kernels(recipe, device, dtype, images=RANDOM_IMAGES)
    data = images, labels, (0.5,) * 3, (0.25,) * 3
    state = TrainingState(net, recipe, plan(recipe, len(labels)), *data, dtype, kernels)
    if device.type != "meta":
        reset_parameters(net, recipe.net, seed=0)
        state.restart(seed=0)
    return state


Cases = Callable[[TrainingState], Iterator[Case]]
OPERATIONS: dict[str, Cases] = {}
"""Functions that yield the cases of a recipe's operation, given its state on the meta device."""


def operation(name: str) -> Callable[[Cases], Cases]:
    """Decorator that registers a function that yields the cases of the operation `name`."""

    def register(function: Cases) -> Cases:
        OPERATIONS[name] = function
        return function

    return register


def cases_of(recipe: Recipe, dtype: torch.dtype, device: torch.device) -> list[Case]:
    """All cases of `recipe` with activations of `dtype` on `device`, in the order of the step; nothing is computed."""
    paper = random_state(recipe, dtype, torch.device("meta"))
    found = [case for function in OPERATIONS.values() for case in function(paper)]
    return [case for case in found if case.provider in EVERYWHERE or device.type == "cuda" or _is_file(case.provider)]


def _is_file(provider: str) -> bool:
    """Whether a provider is a kernel from a file of the user's own."""
    return provider not in PROVIDERS


def _case(operation: str, paper: TrainingState, make: Callable[[TrainingState], Work], **settings: object) -> Case:
    """A case of the reference with the dtype of `paper`, unless `settings` say otherwise."""
    defaults = {"layer": "", "provider": REFERENCE, "shape": (), "dtype": str(paper.dtype).removeprefix("torch.")}
    return Case(operation=operation, paper=paper, make=make, **(defaults | settings))  # type: ignore[arg-type]


def _random_like(shape: Sequence[int], state: TrainingState) -> Tensor:
    """Normal values on the state's device that want a gradient, in channels_last."""
    made = torch.randn(*shape, device=state.images.device).to(state.dtype)
    return made.to(memory_format=torch.channels_last).requires_grad_()


class Subject(NamedTuple):
    """A differentiable operation and its inputs on a device."""

    function: Callable[..., Tensor]
    inputs: list[Tensor]


MakeSubject = Callable[[TrainingState], Subject]
Gradients = dict[Direction, tuple[list[int], list[int]]]
"""For each backward case the numbers of the inputs whose gradients it computes, and of those it has to read for it."""


def _forward(make: MakeSubject, state: TrainingState) -> Work:
    """The function as training calls it: what the backward pass needs is kept."""
    function, inputs = make(state)
    call = functools.partial(function, *inputs)
    return Work(call, inputs, [call()])


def _backward(make: MakeSubject, wanted: list[int], read: list[int], state: TrainingState) -> Work:
    """Gradients of some inputs; the forward pass is done once, beforehand."""
    function, inputs = make(state)
    result = function(*inputs)
    gradient, targets = torch.randn_like(result), [inputs[index] for index in wanted]
    call = functools.partial(torch.autograd.grad, result, targets, gradient, retain_graph=True)
    return Work(call, [gradient, *(inputs[index] for index in read)], targets)


def _passes(
    operation: str, paper: TrainingState, make: MakeSubject, gradients: Gradients, **settings: object
) -> Iterator[Case]:
    """The forward case of a subject and its backward ones."""
    yield _case(operation, paper, functools.partial(_forward, make), direction="forward", **settings)
    for direction, numbers in gradients.items():
        backward = functools.partial(_backward, make, *numbers)
        yield _case(operation, paper, backward, direction=direction, **settings)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as one graph; every case makes its own, more than the compiler's default allows."""
    torch._dynamo.config.recompile_limit = 1000
    torch._functorch.config.donated_buffer = False  # backward passes are repeated
    return torch.compile(function, fullgraph=True, dynamic=False)


def _without_cudnn(function: Callable[..., object], *arguments: object, **options: object) -> object:
    with torch.backends.cudnn.flags(enabled=False):
        return function(*arguments, **options)


def _by(
    provider: str, state: TrainingState, reference: Callable[..., Any], kernel: Callable[..., Any]
) -> Callable[..., Any]:
    """How `provider` does what `reference` does in plain PyTorch and `kernel` in a kernel of ours.

    On the meta device, where bytes and FLOPs are counted, all are the reference.
    """
    if provider == REFERENCE or state.images.device.type == "meta":
        return reference
    if provider == COMPILED:
        return _compiled(reference)
    return functools.partial(_without_cudnn, reference) if provider == NATIVE else kernel


def provided(operation: str, provider: str) -> Callable[..., Any]:
    """What a provider that is a kernel does `operation` with; for all others the kernel of this package."""
    return kernel_called(operation, TRITON if provider in PROVIDERS else provider).function


def _modules(paper: TrainingState, kind: type[nn.Module]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(path, input shape, layer) of the modules of `kind` in the groups of the net, found without computing."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, given, path=path: shapes.__setitem__(path, tuple(given[0].shape)))
        for path, module in paper.net.named_modules()
    ]
    batch = paper.recipe.batch_size, paper.images.shape[3], *paper.window
    paper.net(torch.empty(batch, dtype=paper.dtype, device="meta"))
    for handle in handles:
        handle.remove()
    for path, shape in shapes.items():
        if isinstance(paper.net.get_submodule(path), kind) and path.startswith("groups."):
            yield path, shape, layer_of(path)


def layer_of(path: str) -> str:
    """A module's place in its net, counted from 1: groups.0.convolutions.1 is group1.2."""
    names = [each for each in path.split(".") if each not in ("groups", "convolutions", "norms", "pool")]
    return "group" + ".".join(str(int(each) + 1) if each.isdigit() else each for each in names)


def _augmented(state: TrainingState, provider: str, batch_size: int) -> Callable[[], Batch]:
    """A function that makes the next batch of the run, of any size."""
    arguments = {name: getattr(state, name) for name in ("images", "labels", "seed", "counter", "scale", "shift")}
    call = functools.partial(
        _by(provider, state, registered()["augment"].reference, provided("augment", provider)),
        **arguments, transforms=transforms_of(state.recipe, cutmix=False), batch_size=batch_size,
        steps_per_epoch=len(state.images) // batch_size, dtype=state.dtype,
    )  # fmt: skip
    return call


def _pixels_read(state: TrainingState, batch_size: int) -> Tensor:
    """uint8 [B, H, W, C], as many as a batch is made from: those of the windows, of which padding is no part."""
    height, width = state.window
    return state.images[:batch_size, :height, :width].clone()


@operation("augment")
def _augment(paper: TrainingState) -> Iterator[Case]:
    """Shuffle, random draws, and a batch from uint8 to normalised images; all images at once as layer `epoch`."""

    def make(provider: str, batch_size: int, state: TrainingState) -> Work:
        others = {"torchvision": torchvision_augmentation, "masks": masked_crops}
        on_paper = state.images.device.type == "meta"
        call: Callable[[], object] = _augmented(state, provider, batch_size)
        if provider in others and not on_paper:
            call = others[provider](state, batch_size)
        pixels = _pixels_read(state, batch_size)
        batch = torch.empty(batch_size, *state.window, state.images.shape[3], dtype=state.dtype, device=pixels.device)
        return Work(call, [pixels], [batch, state.labels[:batch_size].clone()])

    batch_size, images = paper.recipe.batch_size, len(paper.images)
    for provider in (REFERENCE, TRITON, COMPILED, "torchvision", "masks", *outside_providers("augment")):
        case = functools.partial(make, provider, batch_size)
        yield _case("augment", paper, case, direction="forward", provider=provider)
    for provider in (TRITON, COMPILED, "masks"):
        case = functools.partial(make, provider, images)
        yield _case("augment", paper, case, direction="forward", provider=provider, layer="epoch")


@operation("augment+stem")
def _augment_and_stem(paper: TrainingState) -> Iterator[Case]:
    """From uint8 images to what the whitening and its activation make of them; backward to the whitening's bias."""
    bias = paper.net.stem.whitening.bias

    def apart(state: TrainingState, *_: Tensor) -> Tensor:
        return state.net.stem.whitened(training_batch(state, cutmix=False).images)

    def fused(state: TrainingState, *_: Tensor) -> Tensor:
        return whitened_batch(state, cutmix=False).images

    def subject(provider: str, state: TrainingState) -> Subject:
        own = copy.copy(state)
        own.functions = {"augment": registered()["augment"].reference, "stem": provided("stem", provider)}
        pixels = _pixels_read(state, state.recipe.batch_size)
        function = functools.partial(_by(provider, state, apart, fused), own)
        return Subject(function, [pixels, *state.net.stem.whitening.parameters()])

    gradients: Gradients = {} if bias is None else {"backward": ([2], [0, 1, 2])}
    for provider in (REFERENCE, TRITON, COMPILED, *outside_providers("stem")):
        where = {"provider": provider, "shape": (paper.recipe.batch_size, *paper.window, paper.images.shape[3])}
        yield from _passes("augment+stem", paper, functools.partial(subject, provider), gradients, **where)


@operation("stem")
def _stem(paper: TrainingState) -> Iterator[Case]:
    """Whitening, activation and what else stands before the groups; the images want no gradient."""
    shape = paper.recipe.batch_size, paper.images.shape[3], *paper.window

    def subject(state: TrainingState) -> Subject:
        images = _random_like(shape, state).detach()
        return Subject(lambda image, *_: state.net.stem(image), [images, *state.net.stem.parameters()])

    inputs = subject(paper).inputs
    trained = [index for index, each in enumerate(inputs) if each.requires_grad]
    gradients: Gradients = {"backward": (trained, list(range(len(inputs))))} if trained else {}
    yield from _passes("stem", paper, subject, gradients, shape=shape)


def _convolution_subject(path: str, shape: Sequence[int], multiple: int, state: TrainingState) -> Subject:
    """A convolution of normal values whose input channels zeros fill up to a multiple.

    A net with such maps would get them from the layer before and keep its weights as wide, so neither padding nor
    cutting is in the times, and both gradients have all channels. On the meta device nothing is padded: bytes and FLOPs
    are those of the work that counts.
    """
    module = state.net.get_submodule(path)
    assert isinstance(module, Convolution)
    function = functools.partial(nn.functional.conv2d, stride=module.stride, padding=module.padding)
    tensors = [_random_like(shape, state), _random_like(module.weight.shape, state)]
    if state.images.device.type == "meta":
        return Subject(function, tensors)
    return Subject(function, [_with_padded_channels(each, multiple) for each in tensors])


def _with_padded_channels(tensor: Tensor, multiple: int) -> Tensor:
    """[N, C, H, W] -> a leaf [N, C', H, W] in channels_last, C' the next multiple."""
    with torch.no_grad():
        padded = nn.functional.pad(tensor, (0, 0, 0, 0, 0, -tensor.shape[1] % multiple))
    return padded.contiguous(memory_format=torch.channels_last).requires_grad_()


def _by_heuristics(make: Callable[[TrainingState], Work], state: TrainingState) -> Work:
    """The case with algorithms that cuDNN has not tried."""
    work = make(state)

    def call() -> object:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=torch.backends.cudnn.allow_tf32):
            return work.call()

    return work._replace(call=call)


@operation("convolution")
def _convolutions(paper: TrainingState) -> Iterator[Case]:
    """Each convolution, its input gradient and its weight gradient; padded where that changes its input channels."""
    for path, shape, layer in _modules(paper, Convolution):
        widths = {provider: shape[1] + -shape[1] % multiple for provider, multiple in PADDED.items()}
        padded = {width: provider for provider, width in reversed(widths.items()) if width > shape[1]}
        for provider in (REFERENCE, *sorted(padded.values())):
            subject = functools.partial(_convolution_subject, path, shape, PADDED.get(provider, 1))
            gradients: Gradients = {"dgrad": ([0], [1]), "wgrad": ([1], [0])}
            where = {"shape": shape, "layer": layer, "provider": provider}
            for case in _passes("convolution", paper, subject, gradients, **where):
                yield case
                if provider == REFERENCE:
                    yield replace(case, provider=HEURISTIC, make=functools.partial(_by_heuristics, case.make))


def _pool_subject(path: str, shape: Sequence[int], state: TrainingState) -> Subject:
    return Subject(state.net.get_submodule(path), [_random_like(shape, state)])


@operation("pool")
def _pools(paper: TrainingState) -> Iterator[Case]:
    """Max-pooling; the gradient also needs the places of the maxima, which PyTorch keeps as int64."""
    for path, shape, layer in _modules(paper, nn.MaxPool2d):
        subject = functools.partial(_pool_subject, path, shape)
        yield from _passes("pool", paper, subject, {"backward": ([0], [])}, shape=shape, layer=layer)


def _kernel_subject(kernel: Kernel, described: Operation, provider: str, state: TrainingState) -> Subject:
    """What `provider` makes of inputs that the kernel draws."""
    given = kernel.inputs(described, state.images.device, 0)
    names = _read_names(kernel, given)
    function = _by(provider, state, kernel.reference, provided(kernel.operation, provider))

    def call(*tensors: Tensor) -> Tensor:
        result: Tensor = function(**(given | dict(zip(names, tensors, strict=True))))
        return result

    return Subject(call, [given[name] for name in names])


def _read_names(kernel: Kernel, given: Mapping[str, Any]) -> list[str]:
    """The inputs that want gradients, and those that the backward pass reads."""
    trained = (name for name, value in given.items() if isinstance(value, Tensor) and value.requires_grad)
    return list(dict.fromkeys([*kernel.read_backward, *trained]))


def _kernel_cases(kernel: Kernel, paper: TrainingState) -> Iterator[Case]:
    """What the groups of the net ask a kernel for, forward and backward."""
    batch = paper.recipe.batch_size, paper.images.shape[3], *paper.window
    for path, operations in net_operations(paper.recipe, (batch,), paper.dtype).items():
        for described in (each for each in operations if each.name == kernel.operation and path.startswith("groups.")):
            given = kernel.inputs(described, paper.images.device, 0)
            names = _read_names(kernel, given)
            wanted = [number for number, name in enumerate(names) if given[name].requires_grad]
            gradients: Gradients = {"backward": (wanted, list(range(len(kernel.read_backward))))}
            ours = () if kernel.fits(described) else (TRITON, *outside_providers(kernel.operation))
            for provider in (REFERENCE, NATIVE, COMPILED, *ours):
                subject = functools.partial(_kernel_subject, kernel, described, provider)
                where = {"shape": described.shape, "layer": layer_of(path), "provider": provider}
                yield from _passes(kernel.operation, paper, subject, gradients, **where)


for _kernel in registered().values():
    if _kernel.operation not in OPERATIONS:
        OPERATIONS[_kernel.operation] = functools.partial(_kernel_cases, _kernel)


@operation("head+loss")
def _head(paper: TrainingState) -> Iterator[Case]:
    """Global pool, linear layer, smoothed cross-entropy."""
    *_, (_, last, _) = _modules(paper, BatchNorm)
    shape = *last[:2], *last_map_size(paper.recipe.net, *paper.images.shape[1:3])

    def subject(state: TrainingState) -> Subject:
        labels = torch.zeros(shape[0], dtype=torch.int64, device=state.images.device)

        def loss(x: Tensor, _: Tensor) -> Tensor:
            losses, _ = head_losses(state, state.net.features_of(x), labels, None)
            return losses.sum()

        return Subject(loss, [_random_like(shape, state), state.net.head.weight])

    yield from _passes("head+loss", paper, subject, {"backward": ([0, 1], [0, 1])}, shape=shape)


@operation("optimizer")
def _optimizer(paper: TrainingState) -> Iterator[Case]:
    """The update of all trained parameters."""

    def make(state: TrainingState) -> Work:
        groups = state.groups.values()
        changed = [each for group in groups for each in (*group.parameters, *group.momentum_buffers)]
        parameters = [each for group in groups for each in group.parameters]
        # Random, as a GPU multiplies zeros faster; small, that weights stay finite however often they are updated.
        gradients = [1e-3 * torch.randn_like(each) for each in parameters]

        def call() -> None:
            with torch.no_grad():
                optimize_(state, state.groups, gradients)

        return Work(call, [*changed, *gradients], changed)

    yield _case("optimizer", paper, make, direction="step")


@operation("averaging")
def _averaging(paper: TrainingState) -> Iterator[Case]:
    """Averaging and lookahead of parameters and statistics."""

    def make(state: TrainingState) -> Work:
        changed = [each for part in (*state.average, *state.live) for each in part]

        def call() -> None:
            with torch.no_grad():
                average_(state)

        return Work(call, changed, changed)

    if paper.averages:
        yield _case("averaging", paper, make, direction="step")


@operation("step")
def _step(paper: TrainingState) -> Iterator[Case]:
    """The whole training step, eager; `bench step` compares the backends."""

    def make(state: TrainingState) -> Work:
        step = make_step(state, "eager", most_common_variant(state.recipe, state.plan))

        def call() -> None:
            state.counter.zero_()  # the tables end where a run ends
            step()

        groups = state.groups.values()
        changed = [each for group in groups for each in (*group.parameters, *group.momentum_buffers)]
        return Work(call, [state.images[: state.recipe.batch_size].clone(), *changed], changed)

    yield _case("step", paper, make, direction="step", provider="eager")
