"""What the kernels of a step, of an evaluation and of prepare have to move and compute, from the recipe alone.

A kernel that does one operation, such as a convolution or a pass of ours over a tensor, gets a slot of its own, in the
order of the step. All other operations of a part could be one kernel, so they count what the part reads from and
writes for others.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field

import torch

from speedyresnet.engine.backends import Variant
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.recipe import Recipe

from .roofline import Ceilings
from .traffic import Operation, OrderedWork, evaluation_operations, own_operator, step_operations

_LAYER = re.compile(r"(?P<layer>\S+?)(\+pool)? \d+x\d+ (?P<which>forward|dgrad|wgrad)")
PRODUCT = "product"
GROUPS = {
    "augment": "stem",
    "augment+stem": "stem",
    "stem": "stem",
    "norm+activation": "norm+pool",
    "pool": "norm+pool",
    "head+loss": "head+loss",
    "optimizer": "optimizer",
    "averaging": "averaging",
}
"""Groups of parts that no compiler and no kernel divides further."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Work of one launch, or of all launches of a part."""

    name: str
    group: str
    bytes: int
    flops: int = 0
    dtype: str = "float32"

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds that it takes at least."""
        return ceilings.floor(self.bytes, self.flops, self.dtype)


@dataclass(slots=True)
class Work:
    """What is to be done, in the order in which it is done."""

    slots: defaultdict[str, list[Slot]] = field(default_factory=lambda: defaultdict(list))
    """By who does it: a pass of convolutions, one of our kernels by its name, or `product`."""
    parts: dict[str, Slot] = field(default_factory=dict)
    """What is left of each part."""
    averaging_reads: int = 0
    """How many tables the part `averaging` looks up."""

    @property
    def head_products(self) -> int:
        """Products of the head and its gradients, which come before those of the optimizer."""
        return sum(each.group == "head+loss" for each in self.slots[PRODUCT])


def own_kernel_bytes(operation: Operation) -> dict[str, int]:
    """Bytes that each of our kernels moves for `operation`, by the kernel's name; empty if it has none."""
    own = own_operator(operation.name)
    return own.bytes(operation.reads, operation.writes) if own else {}


def _convolution_slots(part: str, operation: Operation) -> list[tuple[str, Slot]]:
    """The pass and the work of each kernel of a convolution; one that computes two gradients halves the work."""
    found = _LAYER.fullmatch(part)
    if found:
        which = found["which"]
        name = f"{found['layer']} {which}"
        return [(which, Slot(name, f"convolution {which}", operation.bytes, operation.flops, operation.dtype))]
    if "backward" not in operation.name:
        return [("forward", Slot(part, GROUPS[part], operation.bytes, operation.flops, operation.dtype))]
    passes = [which for which, wanted in zip(("dgrad", "wgrad"), operation.wanted, strict=False) if wanted]
    share = len(passes) or 1
    slot = Slot(part, GROUPS[part], operation.bytes // share, operation.flops // share, operation.dtype)
    return [(which, slot) for which in passes]


def _product_slot(part: str, operation: Operation) -> Slot:
    name = "optimizer products" if part == "optimizer" else part
    return Slot(name, GROUPS.get(part, "other"), operation.bytes, operation.flops, operation.dtype)


def _own_slot(layer: str, part: str, kernel: str, size: int, operation: Operation) -> Slot:
    """The work of one of our kernels; those of batch norm and pooling are called after the convolution before them."""
    short = kernel.removesuffix("_kernel")
    if found := _LAYER.fullmatch(part):
        name, group = f"{found['layer']} {found['which']}", f"convolution {found['which']}"
    else:
        group = GROUPS[part]
        name = f"{layer} {short}" if group == "norm+pool" else short
    return Slot(name, group, size, operation.flops, operation.dtype)


def work_of(ordered: OrderedWork) -> Work:
    """The slots of all operations in order, and what is left of each part."""
    work, layer, behind = Work(), "stem", list[str]()
    for part, operation in ordered.operations:
        if operation.name.startswith("convolution"):
            for which, slot in _convolution_slots(part, operation):
                work.slots[which].append(slot)
        elif operation.name.startswith("speedyresnet."):
            in_backward = "_backward" in operation.name
            if "norm" in operation.name and not in_backward:
                behind.append(layer)
            place = behind.pop() if "norm" in operation.name and in_backward else layer
            for kernel, size in own_kernel_bytes(operation).items():
                work.slots[kernel].append(_own_slot(place, part, kernel, size, operation))
        elif operation.has_own_kernel:
            work.slots[PRODUCT].append(_product_slot(part, operation))
        if (found := _LAYER.fullmatch(part)) and found["which"] == "forward":
            layer = found["layer"]
        work.averaging_reads += part == "averaging" and operation.name.startswith("index_select")
    work.parts = {part: Slot(part, GROUPS[part], size) for part, size in ordered.fused_bytes.items() if part in GROUPS}
    return work


def step_work(recipe: Recipe, pack: Pack, dtype: torch.dtype, variant: Variant, kernels: dict[str, str]) -> Work:
    """The work of one step of the kind `variant` on data like `pack`."""
    return work_of(step_operations(recipe, pack, dtype, variant, kernels))


def evaluation_work(recipe: Recipe, pack: Pack, dtype: torch.dtype, kernels: dict[str, str]) -> Work:
    """The work of the final evaluation."""
    return work_of(evaluation_operations(recipe, pack, dtype, kernels))


def prepare_work(recipe: Recipe, pack: Pack, dtype: torch.dtype) -> Work:
    """The least that prepare moves: it reads the pixels to whiten, and fills weights, momenta and averages."""
    net = make_net(recipe, classes=pack.num_classes, channels=pack.channels, dtype=dtype, device="meta")
    pixels = min(recipe.net.whitening_images, len(pack.train_labels)) * pack.train_images[0].numel()
    weights = sum(each.numel() * each.element_size() for each in (*net.parameters(), *net.buffers()))
    copies = 2 + (recipe.averaging.kind != "none")
    parts = {"reset": Slot("reset", "prepare", copies * weights)}
    return Work(
        parts=parts | ({"whitening": Slot("whitening", "prepare", pixels)} if recipe.net.whitening_kernel else {})
    )
