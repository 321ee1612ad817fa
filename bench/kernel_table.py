"""Tables of kernels: what ran in a step of each kind, in prepare and in evaluate, as it is stored.

A table knows its recipe, data and ceilings, so that it can be folded on any machine. The first tables did without.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from speedyresnet.engine.backends import BACKENDS, Variant
from speedyresnet.engine.device import DTYPES
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.json_files import json_value
from speedyresnet.engine.nets import MAX_IMAGE_SIDE
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.recipe_checks import recipe_from_dict
from speedyresnet.engine.step import REFERENCE_KERNELS

from .paper import CIFAR10, paper_pack
from .roofline import Ceilings

SCHEMA = "speedyresnet.kernel_profile/1"
_MOST = 10_000_000
"""Images, steps, classes and launches: more than any table has."""
_ROUNDING = 1e-3
"""Microseconds by which the stored time of a kernel may be too small."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel of a step; without an order all launches of that name."""

    name: str
    launches: float
    microseconds: float
    stream: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """The kernels of one kind of step, of prepare or of evaluate."""

    seconds: float
    """By the clock, without the profiler."""
    busy_seconds: float
    """In which at least one kernel ran."""
    kernels: Sequence[Launch]
    ordered: bool
    """An entry a launch, by their start."""
    steps: int = 1
    """How often a run does it."""
    variant: Variant | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTable:
    """What was recorded."""

    backend: str
    kernels: dict[str, str]
    """Provider of each operation."""
    variants: Sequence[Phase]
    prepare: Phase
    evaluate: Phase
    recipe: Recipe | None = None
    dtype: str | None = None
    data: dict[str, Any] = field(default_factory=lambda: dict(CIFAR10))
    """Name, checksum, shapes of the images and number of classes."""
    device: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    ceilings: Ceilings | None = None
    always_averages: bool = False
    """Steps before the average begins move it too, as they did when the first tables were recorded."""

    def kind(self, variant: Variant) -> Variant:
        """The kind of step that took the place of `variant` when the table was recorded."""
        return variant._replace(averaging=True) if self.always_averages else variant

    @property
    def ordered(self) -> bool:
        """Whether the order tells layers."""
        return all(each.ordered for each in self.variants)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; each name of a kernel stands there once."""
        phases = [*self.variants, self.prepare, self.evaluate]
        names = list(dict.fromkeys(each.name for phase in phases for each in phase.kernels))
        places = {name: place for place, name in enumerate(names)}
        *variants, prepare, evaluate = (_phase_dict(phase, places) for phase in phases)
        return {
            "backend": self.backend,
            "kernels": self.kernels,
            "recipe": None if self.recipe is None else asdict(self.recipe),
            "dtype": self.dtype,
            "data": self.data,
            "device": self.device,
            "environment": self.environment,
            "ceilings": None if self.ceilings is None else asdict(self.ceilings),
            "always_averages": self.always_averages,
            "names": names,
            "variants": variants,
            "prepare": prepare,
            "evaluate": evaluate,
        }

    def pack(self) -> Pack:
        """Data of the same shapes on the meta device."""
        return paper_pack(self.data)


def _phase_dict(phase: Phase, places: dict[str, int]) -> dict[str, Any]:
    rows = [
        [places[each.name], each.launches, round(each.microseconds, 3), *([each.stream] if each.stream else [])]
        for each in phase.kernels
    ]
    return {
        "variant": None if phase.variant is None else list(phase.variant),
        "steps": phase.steps,
        "milliseconds": 1e3 * phase.seconds,
        "busy_us": 1e6 * phase.busy_seconds,
        "ordered": phase.ordered,
        "kernels": rows,
    }


# -- reading; what is wrong is a ValueError that says so in a few words


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e15:
        raise ValueError(f"{what} is {str(value)[:40]!r}, not a number from 0 on")
    return float(value)


def _whole(value: Any, what: str, most: int = _MOST) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{what} is {str(value)[:40]!r}, not a whole number from 0 to {most}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} is {str(value)[:40]!r}, not a name")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is no list")
    return value


def _launch(row: Any, names: Sequence[str]) -> Launch:
    name, launches, microseconds, *stream = _list(row, "a row of kernels")
    if len(stream) > 1:
        raise ValueError("a row of kernels has more than four values")
    text = names[_whole(name, "a kernel's name", len(names) - 1)] if names else _text(name, "a kernel's name")
    times = _number(launches, "a number of launches"), _number(microseconds, "a kernel's time")
    return Launch(text, *times, *(_whole(each, "a stream") for each in stream))


def _variant(stored: Any) -> Variant:
    bias, cutmix, size, *later = _list(stored, "a variant")
    if len(later) > 2 or any(type(each) is not bool for each in (bias, cutmix, *later)):
        raise ValueError("a variant is no [whitening bias, cutmix, size, averaging, first group]")
    return Variant(bias, cutmix, _whole(size, "the size of a variant"), *later)


def _phase(stored: Any, names: Sequence[str], variant: Variant | None) -> Phase:
    kernels = [_launch(each, names) for each in _list(stored["kernels"], "the kernels of a step")]
    seconds, own = _number(stored["milliseconds"], "milliseconds") / 1e3, sum(each.microseconds for each in kernels)
    busy = _number(stored.get("busy_us", own), "busy_us")
    ordered = stored.get("ordered", False)
    if type(ordered) is not bool:
        raise ValueError("ordered is neither true nor false")
    if variant is not None and not kernels:
        raise ValueError("a kind of step has no kernels")
    if variant is not None and not (seconds and busy):
        raise ValueError("a kind of step takes no time")
    if kernels and busy > own + _ROUNDING * len(kernels):
        raise ValueError(f"kernels ran for {busy:.1f} us, but those listed for {own:.1f}")
    return Phase(
        seconds=seconds,
        busy_seconds=busy / 1e6,
        kernels=kernels,
        ordered=ordered,
        steps=_whole(stored["steps"], "a number of steps") if variant is not None else 1,
        variant=variant,
    )


def _ceilings(stored: Any) -> Ceilings | None:
    if stored is None:
        return None
    copies = tuple((_whole(size, "bytes", 1 << 50), _number(rate, "a bandwidth")) for size, rate in stored["copies"])
    rates = {_text(name, "a dtype"): _number(rate, "a rate") for name, rate in stored["rates"].items()}
    if not copies or not rates or min(rate for _, rate in copies) <= 0 or min(rates.values()) <= 0:
        raise ValueError("the ceilings are not positive")
    return Ceilings(copies=copies, rates=rates)


def _data(stored: Any) -> dict[str, Any]:
    if stored is None:
        return dict(CIFAR10)
    for split in ("train", "test"):
        count, *sides, channels = _list(stored[f"{split}_images"], "the shape of images")
        limits = zip((count, *sides, channels), (_MOST, MAX_IMAGE_SIDE, MAX_IMAGE_SIDE, 3), strict=True)
        if not all(_whole(value, "the shape of images", most) for value, most in limits):
            raise ValueError("there are no images")
    _text(stored["name"], "the data's name"), _whole(stored["classes"], "the number of classes")
    return dict(stored)


def _providers(stored: Any) -> dict[str, str]:
    known = REFERENCE_KERNELS | {name: stored[name] for name in REFERENCE_KERNELS if name in stored}
    if not set(known.values()) <= {"triton", "reference"}:
        raise ValueError("kernels names a provider other than triton and reference")
    return known


def _first_format(document: dict[str, Any]) -> dict[str, Any]:
    """A table as the first ones were stored, in today's form."""
    return document | {
        "prepare": {"milliseconds": 1e3 * _number(document["prepare_seconds"], "prepare_seconds"),
                    "kernels": document["prepare_kernels"]},
        "evaluate": {"milliseconds": 1e3 * _number(document["evaluate_seconds"], "evaluate_seconds"), "kernels": []},
    }  # fmt: skip


def table_from(document: Any) -> KernelTable:
    """The table in what a file holds: a result of `bench profile`, or a table alone.

    Raises:
        ValueError, LookupError, TypeError, AttributeError, ArithmeticError, UserError: it is none, or is damaged.
    """
    if not isinstance(document, dict) or document.get("schema") not in (None, SCHEMA):
        raise ValueError(f"it holds no {SCHEMA}")
    stored = document["table"] if "schema" in document else _first_format(document)
    names = [_text(each, "a kernel's name") for each in _list(stored.get("names", []), "names")]
    variants = [_phase(each, names, _variant(each["variant"])) for each in _list(stored["variants"], "variants")]
    if not sum(each.steps for each in variants):
        raise ValueError("there are no steps")
    if stored["backend"] not in BACKENDS or stored.get("dtype") not in (None, *DTYPES):
        raise ValueError("the backend or the dtype is unknown")
    return KernelTable(
        backend=stored["backend"],
        kernels=_providers(stored["kernels"]),
        variants=variants,
        prepare=_phase(stored["prepare"], names, None),
        evaluate=_phase(stored["evaluate"], names, None),
        recipe=None if stored.get("recipe") is None else recipe_from_dict(stored["recipe"]),
        dtype=stored.get("dtype"),
        data=_data(stored.get("data")),
        device=stored.get("device"),
        environment=dict(stored.get("environment") or {}),
        ceilings=_ceilings(stored.get("ceilings")),
        always_averages=bool(
            stored.get("always_averages", all(len(each["variant"]) == 3 for each in stored["variants"]))
        ),
    )


def explained(read: Callable[[], KernelTable], place: str) -> KernelTable:
    """What `read` returns; what is wrong with it becomes one line that begins with `place`."""
    try:
        return read()
    except OSError as error:
        raise UserError(f"{place}: {error.strerror}; make it with bench profile --backend graph --out") from error
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, UserError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        reason = said.splitlines()[0][:200] if said else type(error).__name__
        remedy = "make one with bench profile --backend graph --out"
        raise UserError(f"{place}: this is no table of kernels, or a damaged one ({reason}); {remedy}") from error


def read_table(path: Path, option: str) -> KernelTable:
    """The table stored at `path`, which the user gave as `option`.

    Raises:
        UserError: no such file, or no table in it.
    """
    return explained(lambda: table_from(json_value(path.read_bytes())), f"{option} {path}")
