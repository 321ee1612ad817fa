"""Bytes and FLOPs of a step, operation by operation, counted on the `meta` device: nothing is computed.

An operation moves its input tensors once and its results once. One that picks rows or pixels out of a larger tensor
reads what it returns. Of a convolution only the taps inside the image count: nothing has to be multiplied with the
zeros around it (`forward_flops_per_image` follows the field's custom and counts those too). So this is the least that
the operations as they are have to do, not what a kernel that fuses them would.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from speedyresnet.engine.backends import Variant, make_step
from speedyresnet.engine.data import Pack
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.parts import listening
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.schedules import plan
from speedyresnet.engine.step import TrainingState
from speedyresnet.kernels.augment import TRANSFORM_NAMES, transforms_from

from .net_parts import parts_of_net
from .roofline import Ceilings

OTHER = "other"
_PICKS = ("index.Tensor", "index_select", "gather", "embedding")


@dataclass(frozen=True, slots=True)
class Operation:
    """What one operation moves and computes."""

    name: str
    bytes: int
    flops: int
    dtype: str
    """Of its first floating-point tensor; float32 where it has none."""


@dataclass(slots=True)
class Traffic:
    """The operations of one part."""

    operations: list[Operation] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Moved by all of them."""
        return sum(each.bytes for each in self.operations)

    @property
    def flops(self) -> int:
        """Of all convolutions and matrix products, two per multiply-add; taps in the padding are not counted."""
        return sum(each.flops for each in self.operations)

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds that they take at least, one after the other."""
        return sum(ceilings.floor(each.bytes, each.flops, each.dtype) for each in self.operations)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that `tensor` occupies in memory; an expanded one occupies no more than what it was made from."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def _share_of_taps_inside(
    image: Tensor, weight: Tensor, _: Any, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> float:
    """Share of a convolution's multiplications that meet a pixel and not the zeros around the image."""
    share = 1.0
    for size, taps, step, border, spread in zip(
        image.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
    ):
        outputs = (size + 2 * border - spread * (taps - 1) - 1) // step + 1
        places = [output * step - border + tap * spread for output in range(outputs) for tap in range(taps)]
        share *= sum(0 <= place < size for place in places) / len(places)
    return share


def _pooled_convolution_flops(pooled: Tensor, image: Tensor) -> int:
    """Of a 3x3 convolution at the four pixels of each pooled one, or of its weight gradient."""
    share = _share_of_taps_inside(image, image.new_empty((1, 1, 3, 3)), None, (1, 1), (1, 1), (1, 1))
    return round(2 * 4 * 9 * image.shape[1] * pooled.numel() * share)


def _operation(function: Any, arguments: Any, options: Any, result: Any) -> Operation | None:
    """What a call of an aten operation moves; none where it only makes a view or an empty tensor."""
    name = str(function).removeprefix("aten.")
    if function.is_view or name.startswith(("empty", "detach", "_unsafe_view", "new_empty")):
        return None
    inputs, results = _tensors((arguments, options)), _tensors(result)
    written = [each for each in results if all(each is not other for other in inputs)]
    changed: list[Tensor] = []
    for position, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write and position < len(arguments):
            changed += _tensors(arguments[position])
    if name.startswith(_PICKS):
        inputs = inputs[1:] + written
    if name.startswith("convolution_backward"):  # an input gradient needs no input, a weight gradient no weight
        gradient, image, weight = inputs[:3]
        wants_input, wants_weight = arguments[-1][:2]
        inputs = [gradient, *([image] if wants_weight else []), *([weight] if wants_input else [])]
    if name.startswith(("speedyresnet.augment", "speedyresnet.stem")):  # read the windows of a batch, nothing else
        given = inputs[:1] if "backward" in name else []  # a gradient
        images = next(each for each in inputs if each.dtype == torch.uint8)
        window = transforms_from(arguments[-len(TRANSFORM_NAMES) :]).window(*images.shape[1:3])
        read = map(min, window, images.shape[1:3])  # a window reaches into the padding, where pixels come again
        inputs = [*given, images.new_empty((len((given or written)[0]), *read, images.shape[3]))]
    if name.startswith("index_copy_"):  # writes as much as it is given, not the whole table
        inputs, changed = inputs[1:], inputs[2:]
    count = flop_registry.get(function._overloadpacket)
    flops = count(*arguments, **options, out_val=result) if count else 0
    if name.startswith("convolution"):
        flops = round(flops * _share_of_taps_inside(*arguments[int("backward" in name) :][:6]))
    if name.startswith("speedyresnet.convolution_pool"):
        flops = _pooled_convolution_flops(*((inputs[0], inputs[2]) if "backward" in name else (written[0], inputs[0])))
    floating = [each for each in inputs + written if each.is_floating_point()]
    dtype = str(floating[0].dtype).removeprefix("torch.") if floating else "float32"
    return Operation(name, sum(map(tensor_bytes, inputs + written + changed)), flops, dtype)


def _nodes_made() -> int:
    """Number of the next autograd node."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


class _Counter(TorchDispatchMode):
    """Notes the operations of each part.

    A backward operation belongs to the part whose forward operation made its autograd node: nodes are numbered as
    they are made, so every part notes the numbers between its beginning and its end.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic: defaultdict[str, Traffic] = defaultdict(Traffic)
        self._open: list[str] = []
        self._nodes: list[tuple[int, int, str]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A listener of `engine.parts`."""
        first = _nodes_made()
        position = len(self._nodes)
        self._nodes.append((first, first, name))
        self._open.append(name)
        yield
        self._open.pop()
        self._nodes[position] = (first, _nodes_made(), name)

    def _current_part(self) -> str:
        if self._open:
            return self._open[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return OTHER
        number = node._sequence_nr()
        inside = [name for first, end, name in self._nodes if first <= number < end]
        return backward_part(inside[-1]) if inside else OTHER

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = _operation(func, args, kwargs or {}, result)
        if operation is not None:
            self.traffic[self._current_part()].operations.append(operation)
        return result


def backward_part(forward: str) -> str:
    """The part that backward operations of the part `forward` belong to, where they do not say so themselves."""
    return forward.removesuffix(" forward") + " wgrad" if forward.endswith(" forward") else forward


def traffic_of(function: Callable[[], object]) -> Traffic:
    """Of all operations of a call of `function`, whatever their part."""
    counter = _Counter()
    with counter:
        function()
    return Traffic([operation for part in counter.traffic.values() for operation in part.operations])


def step_traffic(
    recipe: Recipe, pack: Pack, dtype: torch.dtype, variant: Variant, kernels: Mapping[str, str] | None = None
) -> dict[str, Traffic]:
    """Traffic by part of one step of `recipe` on data like `pack`, with convolutions split as `net_parts` does."""
    net = make_net(recipe, classes=pack.num_classes, channels=pack.channels, dtype=dtype, device="meta").train()
    images = torch.empty(pack.train_images.shape, dtype=torch.uint8, device="meta")
    labels = torch.empty(len(pack.train_labels), dtype=torch.int64, device="meta")
    schedule = plan(recipe, len(labels))
    state = TrainingState(net, recipe, schedule, images, labels, pack.mean, pack.std, dtype, kernels)
    counter = _Counter()
    with listening(counter.part), parts_of_net(net, whitening_bias=variant.whitening_bias), counter:
        make_step(state, "eager", variant)()
    return dict(counter.traffic)
