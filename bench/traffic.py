"""Bytes and FLOPs of a step, operation by operation, counted on the `meta` device: nothing is computed.

An operation moves its input tensors once and its results once. One that picks rows or pixels out of a larger tensor
reads what it returns. Of a convolution only the taps inside the image count: nothing has to be multiplied with the
zeros around it (`forward_flops_per_image` follows the field's custom and counts those too). So this is the least that
the operations as they are have to do, not what a kernel that fuses them would.
"""

from collections import Counter, defaultdict
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
from speedyresnet.engine.evaluate import device_scores
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.parts import listening
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.scoring import scoring_net
from speedyresnet.kernels.contract import Operator, registered

from .net_parts import parts_of_net
from .paper import paper_state, paper_test_set
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
    reads: tuple[int, ...] = ()
    """Bytes of each tensor that it is given."""
    writes: tuple[int, ...] = ()
    """Bytes of each tensor that it makes."""
    wanted: tuple[bool, ...] = ()
    """Of the backward pass of a convolution: whether the gradients of input, weight and bias are wanted."""

    @property
    def has_own_kernel(self) -> bool:
        """Whether no compiler can fuse it with its neighbours: it is a convolution, a product, or a kernel of ours."""
        return self.name.startswith(("speedyresnet.", "convolution", "mm.", "bmm.", "addmm.", "baddbmm."))


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


def own_operator(name: str) -> Operator | None:
    """What a kernel says of the registered operator `name`, as in `Operation`; none of PyTorch's own."""
    namespace, _, rest = name.partition(".")
    operators = (kernel.operators.get(rest.partition(".")[0]) for kernel in registered().values())
    return next(filter(None, operators), None) if namespace == "speedyresnet" else None


def _changed_tensors(function: Any, arguments: Sequence[Any]) -> list[Tensor]:
    """The arguments of an aten operation that it changes in place."""
    changed: list[Tensor] = []
    for position, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write and position < len(arguments):
            changed += _tensors(arguments[position])
    return changed


def _operation(function: Any, arguments: Any, options: Any, result: Any) -> Operation | None:
    """What a call of an aten operation moves; none where it only makes a view or an empty tensor."""
    name = str(function).removeprefix("aten.")
    wanted: tuple[bool, ...] = ()
    if function.is_view or name.startswith(("empty", "detach", "_unsafe_view", "new_empty")):
        return None
    inputs, results = _tensors((arguments, options)), _tensors(result)
    written = [each for each in results if all(each is not other for other in inputs)]
    changed = _changed_tensors(function, arguments)
    if name.startswith(_PICKS):
        inputs = inputs[1:] + written
    if name.startswith("convolution_backward"):  # an input gradient needs no input, a weight gradient no weight
        gradient, image, weight = inputs[:3]
        wanted = tuple(arguments[-1])
        wants_input, wants_weight = wanted[:2]
        inputs = [gradient, *([image] if wants_weight else []), *([weight] if wants_input else [])]
    own = own_operator(name)
    if own and own.reads:
        inputs = own.reads(arguments, written)
    if name.startswith("index_copy_"):  # writes as much as it is given, not the whole table
        inputs, changed = inputs[1:], inputs[2:]
    count = flop_registry.get(function._overloadpacket)
    flops = count(*arguments, **options, out_val=result) if count else 0
    if name.startswith("convolution"):
        flops = round(flops * _share_of_taps_inside(*arguments[int("backward" in name) :][:6]))
    floating = [each for each in inputs + written if each.is_floating_point()]
    dtype = str(floating[0].dtype).removeprefix("torch.") if floating else "float32"
    reads, writes = (tuple(map(tensor_bytes, each)) for each in (inputs, written))
    return Operation(name, sum((*reads, *writes, *map(tensor_bytes, changed))), flops, dtype, reads, writes, wanted)


def _nodes_made() -> int:
    """Number of the next autograd node."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


class _Dataflow:
    """Counts what each part would move if all its operations in one direction were one kernel.

    Such a kernel reads once what others have made and writes once what others read; what it makes and uses itself
    stays in registers. A tensor is known by its storage, whose number a later tensor may get.
    """

    def __init__(self) -> None:
        self.bytes = Counter[str]()
        self._maker: dict[int, tuple[str, bool]] = {}
        self._seen: defaultdict[int, set[tuple[Any, ...]]] = defaultdict(set)

    def note(
        self, kernel: tuple[str, bool], inputs: Sequence[Tensor], results: Sequence[Tensor], changed: Sequence[Tensor]
    ) -> None:
        """Count an operation of the part kernel[0], in its backward pass if kernel[1]."""
        for tensor in inputs:
            storage, size = tensor.untyped_storage()._cdata, tensor_bytes(tensor)
            maker = self._maker.get(storage)
            if maker != kernel:
                self._count(kernel, storage, size, ("read", kernel, tensor.storage_offset()))
                if maker is not None:
                    self._count(maker, storage, size, ("written",))
        for tensor in changed:
            storage = tensor.untyped_storage()._cdata
            if self._maker.get(storage) != kernel:
                self._count(kernel, storage, tensor_bytes(tensor), ("changed", kernel))
        given = {each.untyped_storage()._cdata for each in inputs}
        for storage in {each.untyped_storage()._cdata for each in results} - given:
            self._maker[storage] = kernel
            self._seen.pop(storage, None)

    def _count(self, kernel: tuple[str, bool], storage: int, size: int, access: tuple[Any, ...]) -> None:
        if access not in self._seen[storage]:
            self._seen[storage].add(access)
            self.bytes[kernel[0]] += size


class _Counter(TorchDispatchMode):
    """Notes the operations of each part, in their order.

    A backward operation belongs to the part whose forward operation made its autograd node: nodes are numbered as
    they are made, so every part notes the numbers between its beginning and its end.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[str, Operation]] = []
        self.dataflow = _Dataflow()
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
            part = self._current_part()
            self.operations.append((part, operation))
            kernel = f"{part}, {operation.name}" if operation.has_own_kernel else part
            backward = torch._C._current_autograd_node() is not None
            changed = _changed_tensors(func, args)
            self.dataflow.note((kernel, backward), _tensors((args, kwargs)), _tensors(result), changed)
        return result

    @property
    def traffic(self) -> dict[str, Traffic]:
        """The operations by part."""
        found: defaultdict[str, Traffic] = defaultdict(Traffic)
        for part, operation in self.operations:
            found[part].operations.append(operation)
        return dict(found)


def backward_part(forward: str) -> str:
    """The part that backward operations of the part `forward` belong to, where they do not say so themselves."""
    return forward.removesuffix(" forward") + " wgrad" if forward.endswith(" forward") else forward


def traffic_of(function: Callable[[], object]) -> Traffic:
    """Of all operations of a call of `function`, whatever their part."""
    counter = _Counter()
    with counter:
        function()
    return Traffic([operation for _, operation in counter.operations])


@dataclass(frozen=True, slots=True)
class OrderedWork:
    """The operations of a step or of an evaluation, each with its part, in their order."""

    operations: list[tuple[str, Operation]]
    fused_bytes: dict[str, int]
    """Bytes that the operations of a part would move as one kernel, those left out that have a kernel of their own."""


def _counted_step(
    recipe: Recipe, pack: Pack, dtype: torch.dtype, variant: Variant, kernels: Mapping[str, str] | None
) -> _Counter:
    state = paper_state(recipe, pack, dtype, kernels)
    counter = _Counter()
    with listening(counter.part), parts_of_net(state.net, whitening_bias=variant.whitening_bias), counter:
        make_step(state, "eager", variant)()
    return counter


def step_traffic(
    recipe: Recipe, pack: Pack, dtype: torch.dtype, variant: Variant, kernels: Mapping[str, str] | None = None
) -> dict[str, Traffic]:
    """Traffic by part of one step of `recipe` on data like `pack`, with convolutions split as `net_parts` does."""
    return _counted_step(recipe, pack, dtype, variant, kernels).traffic


def step_operations(
    recipe: Recipe, pack: Pack, dtype: torch.dtype, variant: Variant, kernels: Mapping[str, str] | None = None
) -> OrderedWork:
    """What `step_traffic` counts, in the order of the step."""
    counter = _counted_step(recipe, pack, dtype, variant, kernels)
    return OrderedWork(counter.operations, dict(counter.dataflow.bytes))


def evaluation_operations(
    recipe: Recipe, pack: Pack, dtype: torch.dtype, kernels: Mapping[str, str] | None = None
) -> OrderedWork:
    """The same of the final evaluation on the test images of data like `pack`, as the scorer of a run does it."""
    net = scoring_net(paper_state(recipe, pack, dtype, kernels).net, folded=False)
    data = paper_test_set(pack, dtype)
    counter, settings = _Counter(), recipe.evaluation
    with listening(counter.part), parts_of_net(net, whitening_bias=True), counter:
        device_scores(net, data, view=settings.view, batch_size=settings.batch_size, share=settings.share)
    return OrderedWork(counter.operations, dict(counter.dataflow.bytes))
