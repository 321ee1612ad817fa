"""`bench regress`: finds what got slower between two git revisions, or between two files of pytest-benchmark.

Two revisions are measured in one sitting (see `revisions.py`). Of each round only the ratio of the second measurement
to the first counts: machine drift and any advantage of running second are the same in rounds where head came second and
in rounds where base did, but a slowdown is not. The Mann-Whitney test compares these two groups of ratios; they are
independent of each other, as it requires, and need not be normally distributed. Files have no rounds, so the test
compares their times.

A case is slower if the test is significant with 99 % confidence over all cases together, and the change is at least the
requested effect. The noise floor is half the width of the change's 99 % interval: smaller changes are not visible. If
it is above the effect, the verdict is "cannot tell", unless the whole interval lies beyond the effect.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console
from rich.table import Table

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.json_files import Schema, fault_in, read_json

from .revisions import Samples, Sitting

ROUNDS = 30
QUICK_SECONDS = 95.0
"""Time limit of the measurements with `--quick`; the rest of its two minutes is for starting and cleaning up."""
CONFIDENCE = 0.99
_MOST_SAMPLES = 1000
"""Maximum size of a group, so that all differences between two groups fit into memory."""
DRIFT = "measured one after the other: a drift of the machine between the two sittings cannot be excluded"
_MACHINE = ("gpu", "power_limit_watts", "processor", "threads")
"""Environment keys that must be equal for times to be comparable."""
_MACHINE_INFO = ("node", "machine", "system", "processor", "cpu.brand_raw", "cpu.count")
"""The same for what pytest-benchmark itself stores about a machine."""
_CANNOT_TELL = "cannot tell whether anything got slower"
_NOT_MEASURED = {
    "only_in_base": "not compared, only base has",
    "only_in_head": "not compared, only head has",
    "left_out": "left out, there was no time for",
    "unconfirmed": "not confirmed by new processes, there was no time for",
}

Verdict = Literal["slower", "faster", "same", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Change of one case, in fractions of the base's time: 0.05 is 5 % slower."""

    value: float
    """Hodges-Lehmann estimate: the median of all differences between the two groups."""
    low: float
    high: float
    """The true change is between low and high with 99 % confidence."""
    p: float
    """p value of the Mann-Whitney test: how often equal speeds would look at least this different."""

    @property
    def noise_floor(self) -> float:
        """Half the interval's width; infinite if there are too few samples for an interval."""
        return (self.high - self.low) / 2


def mann_whitney_p(first: ArrayLike, second: ArrayLike) -> float:
    """Return the two-sided p value of the Mann-Whitney test.

    Raises:
        UserError: scipy is not installed.
    """
    try:
        from scipy.stats import mannwhitneyu
    except ModuleNotFoundError as error:
        raise UserError("the Mann-Whitney test needs scipy: pip install 'speedyresnet[bench]'") from error
    return float(mannwhitneyu(first, second).pvalue)


def interleaved_change(samples: Samples) -> Change:
    """Return the change of head against base, measured in turns, base first in even rounds."""
    slower = np.log(np.divide(samples.head, samples.base))
    return _change(slower[0::2], -slower[1::2], times=2)


def separate_change(samples: Samples) -> Change:
    """Return the change of head against base, measured one after the other; large samples are thinned out evenly."""
    head, base = (np.log(values[:: 1 + len(values) // _MOST_SAMPLES]) for values in (samples.head, samples.base))
    return _change(head, base, times=1)


def _change(first: ArrayLike, second: ArrayLike, times: int) -> Change:
    """Return the change from two groups of logarithms whose locations differ by `times` its logarithm."""
    differences = np.sort(np.subtract.outer(first, second).ravel()) / times
    n, m = len(np.atleast_1d(first)), len(np.atleast_1d(second))
    spread = (n * m * (n + m + 1) / 12) ** 0.5  # of the test's statistic if both groups have the same distribution
    outside = int(n * m / 2 - NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * spread)
    inside = (differences[outside - 1], differences[-outside]) if outside > 0 else (-np.inf, np.inf)
    value, low, high = (float(np.expm1(each)) for each in (np.median(differences), *inside))
    return Change(value=value, low=low, high=high, p=mann_whitney_p(first, second))


def verdict(change: Change, effect: float, cases: int) -> Verdict:
    """Return the verdict on one of `cases` changes measured together.

    Args:
        change: change of the case.
        effect: smallest change that matters, 0.03 for 3 %.
        cases: number of cases; p values are multiplied by it (Bonferroni), so that none is flagged by chance.
    """
    quiet = change.noise_floor <= effect
    if change.p * cases < 1 - CONFIDENCE:
        if change.value >= effect and (quiet or change.low > effect):
            return "slower"
        if change.value <= -effect and (quiet or change.high < -effect):
            return "faster"
    return "same" if quiet else "cannot tell"


def changed_cases(samples: Mapping[str, Samples], effect: float) -> list[str]:
    """Return the names of the cases that got slower or faster in one sitting."""
    changes = {name: interleaved_change(each) for name, each in samples.items()}
    verdicts = {name: verdict(change, effect, len(changes)) for name, change in changes.items()}
    return [name for name, each in verdicts.items() if each in ("slower", "faster")]


def _rows(samples: Mapping[str, Samples], of: Callable[[Samples], Change], effect: float) -> dict[str, dict[str, Any]]:
    """Return what is reported of each case, by name."""
    return {name: _row(name, each, of(each), effect, len(samples)) for name, each in samples.items()}


def _row(name: str, samples: Samples, change: Change, effect: float, cases: int) -> dict[str, Any]:
    numbers = {"change": change.value, "low": change.low, "high": change.high, "noise_floor": change.noise_floor}
    medians = {"base_seconds": float(np.median(samples.base)), "head_seconds": float(np.median(samples.head))}
    return {
        "name": name,
        "verdict": verdict(change, effect, cases),
        **medians,
        **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
        "p": change.p,
        **asdict(samples),
    }


def sitting_report(sitting: Sitting, effect: float) -> dict[str, Any]:
    """Return the comparison of two revisions as plain values.

    The verdict on a change that new processes do not confirm is "cannot tell".
    """
    rows, again = (_rows(samples, interleaved_change, effect) for samples in (sitting.samples, sitting.again))
    for name, row in again.items():
        rows[name]["again"] = row
        if row["verdict"] != rows[name]["verdict"]:
            rows[name]["verdict"] = "cannot tell"
    told = {key: value for key, value in asdict(sitting).items() if key not in ("samples", "again")}
    return {"mode": "interleaved", "effect": effect, **told, "cases": list(rows.values())}


def files_report(base: Path, head: Path, effect: float) -> dict[str, Any]:
    """Return the comparison of two files of pytest-benchmark as plain values.

    For files from two machines every verdict is "cannot tell", and `machines` says how the machines differ.

    Raises:
        UserError: a file cannot be read, holds no data or has no case in common with the other, or both are from
            `pytest bench` on two machines.
    """
    one, other = (_read_benchmarks(path) for path in (base, head))
    key = differing_key(one.environment, other.environment)
    if key:
        here, there = (each.environment.get(key) for each in (one, other))
        raise UserError(f"{base} was measured with {key} {here}, {head} with {there}: measure both on one machine")
    both = {name: Samples(values, other.data[name]) for name, values in one.data.items() if name in other.data}
    if not both:
        raise UserError(f"{base} and {head} have no case in common: measure the same ones")
    rows, apart = list(_rows(both, separate_change, effect).values()), _machines_apart(one.machine, other.machine)
    return {
        "mode": "files",
        "warning": DRIFT,
        "effect": effect,
        "base": {"file": str(base)},
        "head": {"file": str(head)},
        "machines": apart,
        "cases": [row | {"verdict": "cannot tell"} for row in rows] if apart else rows,
        "only_in_base": [name for name in one.data if name not in both],
        "only_in_head": [name for name in other.data if name not in both],
        "left_out": [],
        "unconfirmed": [],
    }


class _Benchmarks(NamedTuple):
    """Content of a file of pytest-benchmark."""

    machine: dict[str, Any]
    """pytest-benchmark's `machine_info`."""
    environment: dict[str, Any]
    """Empty if the file is not from `pytest bench`."""
    data: dict[str, list[float]]
    """Seconds by case."""


_BENCHMARK_FILE: Schema = {
    "machine_info": dict | None,
    "benchmarks": [{"name": str, "fullname": str | None, "stats": dict}],
}


def _read_benchmarks(path: Path) -> _Benchmarks:
    remedy = "it is no file of pytest-benchmark; --benchmark-json writes one"
    found = read_json(path, remedy)
    fault = fault_in(found, _BENCHMARK_FILE)
    if fault:
        raise UserError(f"{path}: {fault}; {remedy}")
    machine = found.get("machine_info") or {}
    environment = machine.get("speedyresnet") or {}
    if not isinstance(environment, dict):
        raise UserError(f"{path}: machine_info.speedyresnet is not an object; {remedy}")
    cases = {each.get("fullname") or each["name"]: each["stats"].get("data") for each in found["benchmarks"]}
    for name, values in cases.items():
        if values is None or values == []:
            raise UserError(f"{path} has no data of {name}: save it with --benchmark-json or --benchmark-save-data")
        fault = fault_in(values, [float], f"stats.data of {name}")
        if fault or min(values) <= 0:
            raise UserError(f"{path}: {fault or f'stats.data of {name} is not above 0'}; measure it again")
    return _Benchmarks(machine, environment, {name: list(map(float, values)) for name, values in cases.items()})


def _machines_apart(here: Mapping[str, Any], there: Mapping[str, Any]) -> str | None:
    """Return how the machines of two files differ by their `machine_info`, in words; None if they do not."""
    for key in _MACHINE_INFO:
        first, second = (reprlib.repr(_inner(machine, key)) for machine in (here, there))
        if first != second:
            return f"base was measured with {key} {first}, head with {second}: measure both on one machine"
    return None


def _inner(document: Any, key: str) -> Any:
    """Return the value under a dotted key; None if there is none."""
    for part in key.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def differing_key(here: Mapping[str, Any], there: Mapping[str, Any]) -> str | None:
    """Return the key that makes times of two environments (see `engine.record.environment`) incomparable, or None."""
    return next((key for key in _MACHINE if here.get(key) != there.get(key)), None)


def percent_text(value: float | None, form: str) -> str:
    """Return a fraction in percent, in the format `form`; a question mark for None."""
    return "?" if value is None else f"{100 * value:{form}}"


def print_regress(console: Console, result: dict[str, Any]) -> None:
    """Print the result as a table, followed by the conclusion."""
    table = Table(title="head against base, milliseconds a call")
    table.add_column("case")
    for column in ("base", "head", "change, %", "noise floor, %", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in result["cases"]:
        times = [f"{1e3 * row[key]:.4g}" for key in ("base_seconds", "head_seconds")]
        change, floor = percent_text(row["change"], "+.1f"), percent_text(row["noise_floor"], ".1f")
        table.add_row(row["name"], *times, change, floor, f"{row['p']:.1g}", row["verdict"])
    console.print(table)
    for line in conclusion(result):
        console.print(line, highlight=False, markup=False)


def conclusion(result: dict[str, Any]) -> list[str]:
    """Return the conclusion of the result, in lines."""
    lines = [f"{text}: {', '.join(result[key])}" for key, text in _NOT_MEASURED.items() if result[key]]
    if "warning" in result:
        lines.append(result["warning"])
    effect, rows = f"{100 * result['effect']:g} %", result["cases"]
    if result.get("machines"):
        return [*lines, result["machines"], _CANNOT_TELL]
    fickle = [row["name"] for row in rows if row["verdict"] == "cannot tell" and "again" in row]
    if fickle:
        lines.append(f"cannot tell, new processes did not show it again: {', '.join(fickle)}")
    noisy = [row["noise_floor"] for row in rows if row["verdict"] == "cannot tell" and "again" not in row]
    if noisy:
        highest = "unknown" if None in noisy else f"up to {percent_text(max(noisy), '.1f')} %"
        lines.append(f"cannot tell in {len(noisy)} of {len(rows)} cases: noise floor {highest}, above {effect}")
    slower = [f"{row['name']} by {percent_text(row['change'], '.1f')} %" for row in slower_cases(result)]
    told = any(row["verdict"] != "cannot tell" for row in rows)
    last = f"slower: {', '.join(slower)}" if slower else f"nothing seen to be slower by {effect} or more"
    return [*lines, last if told else _CANNOT_TELL]


def slower_cases(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the cases that got slower."""
    return [row for row in result["cases"] if row["verdict"] == "slower"]
