"""Assignment of a step's kernels to the parts of the step.

A table in the order of the step tells more than names do: the layer of a convolution, because layers follow one
another, and the purpose of a kernel with an uninformative name, from its neighbours. A table of mere launch counts is
grouped by names alone, so all layers together.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from speedyresnet.kernels.contract import registered

from .kernel_names import OWN_KERNELS, PASSES, Kernel, kernel_of
from .kernel_table import Launch
from .kernel_work import GROUPS, PRODUCT, Slot, Work

Row = tuple[str, str]
"""Name of a part and of the group it belongs to."""
UNASSIGNED: Row = ("unassigned", "other")
_OWN_TAIL = re.compile("reduce_kernel|copy|elementwise_kernel<[0-9, ]+, at::native::FillFunctor")
"""PyTorch's kernels after one of ours inside the same operator: they sum partial results and change the type."""
_WITH_TAIL = tuple(name for kernel in registered().values() for name in kernel.followed_by_pytorch)
_RESET = re.compile("fill|zero|distribution|multi_tensor|div|welford")


def pooled_row(work: Work, key: str) -> Row:
    """Return the part that combines all slots of `key`."""
    rows = {(each.name, each.group) for each in work.slots.get(key, ())}
    if len(rows) == 1:
        return rows.pop()
    if key in PASSES:
        return f"convolutions {key}", f"convolution {key}"
    return key.removesuffix("_kernel").replace("combine_", "combine "), OWN_KERNELS[key]


class Assignment:
    """Parts of the kernels of a step or of an evaluation.

    Args:
        launches: in the order of the step if `ordered`.
        work: the work to be done; if it is empty, only names are used.
        ordered: whether `launches` has one entry per launch, in order.
        compiled: whether torch.compile made the step.
        by_layer: whether to name layers as far as the order identifies them.
    """

    def __init__(
        self, launches: Sequence[Launch], work: Work, *, ordered: bool, compiled: bool, by_layer: bool = True
    ) -> None:
        self._launches, self._work, self._compiled = launches, work, compiled
        self._kinds = [kernel_of(each.name) for each in launches]
        counts = Counter(kind.what for kind in self._kinds if kind.role in ("own", "convolution"))
        fits = (key for key, count in counts.items() if count == len(work.slots.get(key, ())))
        self._exact = set(fits) if ordered and by_layer else set()
        self._convolutions = [
            (place, self._pass_of(kind)) for place, kind in enumerate(self._kinds) if self._pass_of(kind)
        ]
        rows = self._main_rows(ordered)
        self.rows: list[Row] = [each or UNASSIGNED for each in (self._in_order if ordered else self._by_names)(rows)]
        """One row for each of `launches`."""

    def slots(self) -> Iterator[tuple[Row, Slot]]:
        """Yield all work with the part it belongs to."""
        for key, slots in self._work.slots.items():
            for slot in slots:
                own = key == PRODUCT or key in self._exact
                yield (slot.name, slot.group) if own else pooled_row(self._work, key), slot
        for part, slot in self._work.parts.items():
            yield self._part_row(part), slot

    @staticmethod
    def _pass_of(kind: Kernel) -> str:
        """Return the pass of a convolution kernel, or an empty string for other kernels."""
        if kind.role == "own":
            return OWN_KERNELS[kind.what].removeprefix("convolution ") if "convolution" in kind.what else ""
        return kind.what if kind.role == "convolution" else ""

    def _part_row(self, part: str) -> Row:
        if part in ("optimizer", "averaging") and self._compiled and "averaging" in self._work.parts:
            return "optimizer+averaging", "optimizer"  # one kernel does both, and its name may mention neither
        if part == "pool" and "pool" not in self._work.parts:
            part = "head+loss"  # the maximum over each channel
        if part == "augment" and "augment+stem" in self._work.parts:
            part = "augment+stem"
        return part, GROUPS[part]

    def _main_rows(self, ordered: bool) -> list[Row | None]:
        """Return the parts of kernels that do one operation each, or whose names identify them."""
        seen = Counter[str]()
        rows: list[Row | None] = []
        for kind, launch in zip(self._kinds, self._launches, strict=True):
            row: Row | None = None
            if kind.role in ("own", "convolution"):
                slot = self._work.slots[kind.what][seen[kind.what]] if kind.what in self._exact else None
                row = (slot.name, slot.group) if slot else pooled_row(self._work, kind.what)
                seen[kind.what] += 1
            elif kind.role == "product":
                row = self._product_row(launch, seen[PRODUCT] if ordered else None)
                seen[PRODUCT] += 1
            elif kind.role == "words":
                row = self._part_row(kind.what)
            rows.append(row)
        return rows

    def _product_row(self, launch: Launch, index: int | None) -> Row:
        """Return the part of product `index`: the head's come first; without an order, repeated ones are Muon's."""
        slots = self._work.slots.get(PRODUCT, ())
        iterates = not slots or self._work.head_products < len(slots)
        again = launch.launches >= 2 if index is None else index >= self._work.head_products
        return ("optimizer products", "optimizer") if iterates and again else ("head+loss", "head+loss")

    # -- in order

    def _in_order(self, rows: list[Row | None]) -> list[Row | None]:
        streams: defaultdict[int, list[int]] = defaultdict(list)
        for place, launch in enumerate(self._launches):
            streams[launch.stream].append(place)
        for places in streams.values():
            self._attach_helpers(places, rows)
        averaging = self._first_of_averaging()
        for place, kind in enumerate(self._kinds):
            if kind.role == "words" or (rows[place] is None and kind.role != "fill"):
                rows[place] = self._row_by_position(place, kind, averaging)
        for places in streams.values():
            self._attach_fills(places, rows)
        return rows

    def _attach_helpers(self, places: Sequence[int], rows: list[Row | None]) -> None:
        """Assign kernels that run before or after a convolution or product on the same stream to its part."""
        for index, place in enumerate(places):
            kind = self._kinds[place]
            if kind.role in ("before", "after"):
                others = places[index + 1 :] if kind.role == "before" else places[:index][::-1]
                fits = (
                    other for other in others
                    if self._kinds[other].role == "convolution" and kind.what in ("", self._kinds[other].what)
                )  # fmt: skip
                rows[place] = next((rows[other] for other in fits), None)
            elif kind.role == "after_product":
                products = (other for other in places[:index][::-1] if self._kinds[other].role == "product")
                rows[place] = next((rows[other] for other in products), None)
            elif kind.role == "native":
                rows[place] = self._row_of_tail(places[:index], place, rows)

    def _row_of_tail(self, earlier: Sequence[int], place: int, rows: Sequence[Row | None]) -> Row | None:
        """Return the part of a PyTorch kernel that follows an operator of ours or a convolution, or None.

        A compiler fuses PyTorch's own operations, so in compiled code such a kernel is inside the operator before it.
        """
        previous = next((each for each in reversed(earlier) if self._kinds[each].role != "native"), None)
        if previous is None or self._kinds[previous].role not in ("own", "convolution"):
            return None
        if self._compiled:
            return rows[previous]
        between = [self._launches[each].name for each in (*earlier[earlier.index(previous) + 1 :], place)]
        is_tail = self._kinds[previous].what in _WITH_TAIL and all(map(_OWN_TAIL.search, between))
        return rows[previous] if is_tail else None

    def _first_of_averaging(self) -> int:
        """Return where averaging begins: it makes the last table lookups. Past the end if unknown."""
        reads, end = self._work.averaging_reads, len(self._launches)
        lookups = [place for place, each in enumerate(self._launches) if "indexselect" in each.name.lower()]
        return lookups[-reads] if reads and not self._compiled and len(lookups) >= reads else end

    def _row_by_position(self, place: int, kind: Kernel, averaging: int) -> Row | None:
        """Return the part of a kernel by its place among the convolutions and, where unambiguous, words in its name."""
        what = kind.what if kind.role == "words" else ""
        forward = [each for each, which in self._convolutions if which == "forward"]
        backward = [each for each, which in self._convolutions if which != "forward"]
        if forward and place < forward[0]:
            return self._part_row("augment")
        if forward and backward and forward[-1] < place < backward[0] and what in ("", "pool"):
            return self._part_row("head+loss")
        if place >= averaging:
            return self._part_row("averaging")
        if what or not forward:
            return self._part_row(what) if what else None
        if not backward:
            return self._part_row("norm+activation" if place < forward[-1] else "head+loss")
        return self._part_row("norm+activation" if place < backward[-1] else "optimizer")

    def _attach_fills(self, places: Sequence[int], rows: list[Row | None]) -> None:
        """Assign fills and copies to the part that runs next on the same stream, or at the end to the last one."""
        following: Row | None = None
        for place in reversed(places):
            if self._kinds[place].role == "fill":
                rows[place] = following
            following = rows[place] or following
        last = next((rows[place] for place in reversed(places) if rows[place]), None)
        for place in places:
            rows[place] = rows[place] or last

    # -- by names

    def _by_names(self, rows: list[Row | None]) -> list[Row | None]:
        """Assign parts by names alone; cuDNN fills memory and reduces for weight gradients."""
        found = {kind.what for kind in self._kinds}
        # Without the tails of norms, which only ghost batch norm has and which are few.
        tails = [name for name in reversed(_WITH_TAIL) if name in found and OWN_KERNELS[name] != "norm+pool"]
        for place, kind in enumerate(self._kinds):
            which = kind.what or ("wgrad" if "wgrad" in found else "forward")
            if kind.role in ("before", "after", "fill") and which in found:
                rows[place] = pooled_row(self._work, which)
            elif kind.role == "after_product":
                rows[place] = self._product_row(self._launches[place], None)
            elif kind.role == "native" and self._compiled and tails:
                rows[place] = pooled_row(self._work, tails[0])
            elif kind.role == "inductor":
                rows[place] = self._row_by_number(kind.number)
        return rows

    def _row_by_number(self, number: int) -> Row | None:
        """Return the part of an Inductor kernel with an uninformative name: that of the last informative one."""
        told = sorted((each.number, each.what) for each in self._kinds if each.role == "words" and each.number)
        earlier = [what for other, what in told if other < number] or [what for _, what in told[:1]]
        return self._part_row(earlier[-1]) if earlier else None


def prepare_rows(launches: Sequence[Launch]) -> list[Row]:
    """Return the parts of prepare: reset of the weights and the optimizer's state, and whitening, which is all else."""
    return [("reset" if _RESET.search(each.name.lower()) else "whitening", "prepare") for each in launches]
