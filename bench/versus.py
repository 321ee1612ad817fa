"""`bench versus`: runs scripts of others and ours in one sitting, processes taking turns, by their clocks and ours.

The unit is the round, in which every script and ours run one process each. The runs of one process share its machine
state and are not independent, while a peer's process and ours of one round are neighbours, so that machine drift
cancels in their ratio. Intervals are therefore over rounds, and the order of a round is the reverse of the one before.
A sitting that was cut off resumes with the process that had not ended; the rest of its round then has neighbours from
another time, which can only widen the interval.

Before its first round each contestant does one run that does not count, so that compiling has its own time limit and no
measured process compiles. Compiled code stays in the contestant's working folder, for later rounds and calls.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import Outputs, write_text
from speedyresnet.engine.json_files import Schema, fault_in, read_json
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.record import environment

from .peers import PEERS, Peer, install, source_sha256, start_words
from .pool import check_kind, read_pool
from .processes import exit_code_within
from .record import CLOCKS, VIEWS, clock_seconds
from .smoke import FIRST_STEP
from .statistics import Interval, Ratio, mean_interval, paired_ratio, summary
from .verdicts import told_accuracy

OURS = "ours"
OWN_CLOCK = "own clock"
OUR_CLOCKS = {
    "train": "training with augmentation and averaging",
    "prepare+train": "reset of the weights, whitening, training with augmentation and averaging",
    "total": "reset of the weights, whitening, training with augmentation and averaging, final evaluation in all views",
}
OUR_COMMAND = ["-c", "from speedyresnet.bench.cli import main; main()", "bench", "record"]
LAST_LINES = 20
"""Lines kept of the output of a process that failed."""
SHOWN_LINES = 5
"""Lines of them shown at once."""
WARM_UP = -1
"""Round number of a warm-up."""
COMPILER_CACHES = {"TORCHINDUCTOR_CACHE_DIR": "compiled/inductor", "TRITON_CACHE_DIR": "compiled/triton"}
"""Environment variables of compilers, and the subfolders of a contestant's folder that they name."""
SMOKE_IMAGES = {"train": 6000, "test": 2500}
"""Enough for a first step of all peers: three of their largest batches, and one test batch of hlb."""

Measures = dict[str, list[float]]
"""Values of each run of a process, by clock or view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """Script that is started again in each round."""

    name: str
    folder: Path
    """Folder of its output."""
    starts_in: Path
    """Folder in which it looks for files."""
    words: Callable[[int], list[str]]
    """Returns the arguments for Python in a round."""
    read: Callable[[int, str], Measures]
    """Returns the measures of a round, given its number and standard output."""
    runs: int
    """Number of runs that a process must report."""
    environment: dict[str, str] = field(default_factory=dict)

    def output_files(self, number: int) -> tuple[Path, Path]:
        """Return the files for standard output and standard error of the process of a round, or of WARM_UP."""
        stem = "warm-up" if number == WARM_UP else f"round-{number}"
        return self.folder / f"{stem}.out", self.folder / f"{stem}.err"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Outcome of one process."""

    name: str
    round: int
    wall_seconds: float
    exit_code: int | None
    """None if it was ended after the timeout."""
    measures: Measures
    error: str | None
    """None if it ended well and reported all its runs."""
    last_lines: list[str]
    """The last lines of its standard error if there is an error."""
    last_output: list[str] = field(default_factory=list)
    """The last lines of its standard output if there is an error."""


def run_process(contestant: Contestant, number: int, timeout: float) -> Outcome:
    """Run a contestant's process of round `number` for at most `timeout` seconds; whatever it does is an outcome."""
    out, err = contestant.output_files(number)
    command = [sys.executable, "-u", *contestant.words(number)]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        started = time.perf_counter()
        caches = {name: str(contestant.folder / folder) for name, folder in COMPILER_CACHES.items()}
        variables = os.environ | caches | contestant.environment
        streams: dict[str, Any] = {"stdout": stdout, "stderr": stderr}
        code = exit_code_within(timeout, command, cwd=contestant.starts_in, env=variables, **streams)
        wall_seconds = time.perf_counter() - started
    printed, lines = printed_lines(out), printed_lines(err)
    measures = contestant.read(number, out.read_text(errors="replace"))
    error = _error(code, lines, {len(values) for values in measures.values()}, contestant.runs, timeout)
    return Outcome(
        name=contestant.name,
        round=number,
        wall_seconds=wall_seconds,
        exit_code=code,
        measures=measures,
        error=error,
        last_lines=lines[-LAST_LINES:] if error else [],
        last_output=printed[-LAST_LINES:] if error else [],
    )


def printed_lines(path: Path) -> list[str]:
    """Return the lines a process has printed into `path`, without empty ones; an empty list before it has begun."""
    text = path.read_text(errors="replace") if path.exists() else ""
    return [line for line in text.splitlines() if line.strip()]


def _error(code: int | None, lines: list[str], counts: set[int], runs: int, timeout: float) -> str | None:
    if code is None:
        return f"no end after {timeout:g} s"
    if code == 0 and counts == {runs}:
        return None
    reason = f"exit code {code}" if code else f"reported {min(counts, default=0)} of {runs} runs"
    return f"{lines[-1].strip()} ({reason})" if lines else reason


def peer_contestant(name: str, script: Path, folder: Path, runs: int) -> Contestant:
    """Return the contestant for a peer that is installed in `folder` with its data."""
    peer = PEERS[name]

    def read(_number: int, text: str) -> Measures:
        found = peer.read_runs(text)
        return {OWN_CLOCK: [run.seconds for run in found], peer.view: [run.accuracy for run in found]}

    return Contestant(
        name=name,
        folder=folder,
        starts_in=folder,
        words=lambda number: start_words(name, script, runs, seed=max(number, 0) * runs),
        read=read,
        runs=runs,
    )


def our_contestant(options: Sequence[str], data: Path, folder: Path, runs: int) -> Contestant:
    """Return the contestant that runs `bench record` on the pack file `data`, with other seeds in each round.

    `options` are the recipe, device and backend.
    """

    def pool(number: int) -> Path:
        return folder / ("warm-up.jsonl" if number == WARM_UP else f"round-{number}.jsonl")

    def words(number: int) -> list[str]:
        pool(number).unlink(missing_ok=True)  # an existing pool would be taken as done
        seed = max(number, 0) * runs
        own = ["--data", str(data), "--runs", str(runs), "--seed", str(seed), "--out", str(pool(number))]
        return [*OUR_COMMAND, *options, *own]

    def read(number: int, _text: str) -> Measures:
        records = read_pool(pool(number))
        clocks = {clock: [clock_seconds(record, clock) for record in records] for clock in CLOCKS}
        views = {view: [record["accuracy"][view] for record in records] for view in VIEWS}
        return clocks | {view: values for view, values in views.items() if None not in values}

    # Started here, because the recipe may be a file given by a relative path.
    return Contestant(name=OURS, folder=folder, starts_in=Path.cwd(), words=words, read=read, runs=runs)


def round_order(contestants: Sequence[str], number: int) -> list[str]:
    """Return the order of the contestants in a round: the reverse of the round before."""
    return list(contestants if number % 2 == 0 else reversed(contestants))


@dataclass(frozen=True, slots=True)
class Sitting:
    """Configuration of a sitting."""

    recipe: Recipe
    pack: Pack
    device: torch.device
    scripts: dict[str, Path]
    """Paths by the peers' names."""
    options: list[str]
    """Options of `bench record`: recipe, settings, device and backend."""
    runs: int
    """Runs per process."""
    rounds: int
    timeout: float
    """Seconds per process."""
    compile_seconds: float
    """Time limit of the first process of a contestant, which compiles and does one run that does not count."""


def facts(sitting: Sitting) -> dict[str, Any]:
    """Return the description of a sitting before anything has run."""
    return {
        "recipe": {"name": sitting.recipe.name, "hash": sitting.recipe.hash},
        "data": {"name": sitting.pack.name, "sha256": sitting.pack.sha256},
        "environment": environment(sitting.device),
        "options": sitting.options,
        "scripts": {name: source_sha256(name, script) for name, script in sitting.scripts.items()},
        "runs": sitting.runs,
        "rounds": sitting.rounds,
    }


_OUTCOME: Schema = {
    "name": str, "round": int, "wall_seconds": float, "exit_code": int | None, "measures": dict, "error": str | None,
    "last_lines": [str],
}  # fmt: skip
_SITTING: Schema = {
    "recipe": {"hash": str}, "data": {"sha256": str}, "environment": {"gpu": str | None, "torch": str},
    "options": [str], "runs": int, "rounds": int, "scripts": dict, "processes": [_OUTCOME],
}  # fmt: skip
"""Fields that a stored sitting needs to resume."""


def _identity(found: dict[str, Any]) -> dict[str, Any]:
    """Return what a resumed sitting must have in common with the stored one, by the words a user knows it by."""
    return {
        "recipe hash": found["recipe"]["hash"],
        "data": found["data"]["sha256"],
        "GPU": found["environment"]["gpu"],
        "torch": found["environment"]["torch"],
        "options": " ".join(found["options"]),
        "--runs": found["runs"],
        "--rounds": found["rounds"],
    } | {f"--peer {name}": found["scripts"].get(name) for name in PEERS}


def earlier_outcomes(out: Path | None, known: dict[str, Any]) -> tuple[list[Outcome], list[Outcome]]:
    """Return the outcomes of rounds and of warm-ups of the sitting `known` in `out`, none without such a file.

    Raises:
        UserError: the file holds something else, or another sitting.
    """
    if out is None or not out.exists():
        return [], []
    found = read_json(out, "give another --out")
    if fault := fault_in(found, _SITTING) or fault_in(found.get("warm_ups", []), [_OUTCOME], "warm_ups"):
        raise UserError(f"{out} is no sitting of bench versus ({fault}); give another --out")
    check_kind(out, "a sitting", _identity(found), _identity(known))
    outcomes, warm_ups = (
        [Outcome(**{key: each[key] for key in Outcome.__dataclass_fields__ if key in each}) for each in processes]
        for processes in (found["processes"], found.get("warm_ups", []))
    )
    return outcomes, warm_ups


@dataclass(slots=True, kw_only=True)
class Course:
    """State of a sitting: where it is held, and what of it has ended."""

    sitting: Sitting
    known: dict[str, Any]
    """See `facts`."""
    work: Path
    out: Path | None
    outputs: Outputs
    console: Console
    outcomes: list[Outcome]
    """Outcomes of the rounds' processes that have ended."""
    warm_ups: dict[str, Outcome]
    """Last warm-up process of each contestant."""
    changes: dict[str, str] = field(default_factory=dict)
    """Changes to the peers' scripts."""
    interrupted: dict[str, Any] | None = None
    """Output of the process that Ctrl-C ended."""

    def write_data(self) -> None:
        """Write the data that each contestant looks for."""
        sitting = self.sitting
        for name in sitting.scripts:
            PEERS[name].write_data(sitting.pack, self.work / name, sitting.device)
        if sitting.device.type == "cuda":
            torch.cuda.empty_cache()  # hlb's data were made there
        save_pack(sitting.pack, self._our_data)

    @property
    def _our_data(self) -> Path:
        return self.work / OURS / "pack.safetensors"

    def contestant(self, name: str, runs: int) -> Contestant:
        """Return the contestant called `name`, set to `runs` per process."""
        folder, sitting = self.work / name, self.sitting
        if name == OURS:
            return our_contestant(sitting.options, self._our_data, folder, runs)
        self.changes[name] = install(name, sitting.scripts[name], folder, runs)
        return peer_contestant(name, sitting.scripts[name], folder, runs)

    def run(self, contestant: Contestant, number: int, limit: float) -> Outcome:
        """Run a process for at most `limit` seconds; keep its output if Ctrl-C ends it."""
        try:
            outcome = run_process(contestant, number, limit)
        except KeyboardInterrupt:
            output, errors = (printed_lines(path)[-LAST_LINES:] for path in contestant.output_files(number))
            self.interrupted = {"name": contestant.name, "round": number, "last_output": output, "last_lines": errors}
            self.save()
            raise
        _print_outcome(self.console, outcome)
        return outcome

    def warm_up(self, name: str) -> bool:
        """Return whether a contestant has compiled, in an earlier call or by a process that does one run now."""
        mark, by = self.work / name / "compiled" / "by.json", json.dumps(self._compiled_by(name))
        if mark.exists() and mark.read_text() == by:
            return True
        outcome = self.run(self.contestant(name, 1), WARM_UP, self.sitting.compile_seconds)
        self.warm_ups[name] = outcome
        if outcome.error is None:
            write_text(mark, by)
        self.contestant(name, self.sitting.runs)
        self.save()
        return outcome.error is None

    def _compiled_by(self, name: str) -> dict[str, Any]:
        """Return what compiled code depends on."""
        about = self.known["environment"]
        ours = [self.known["recipe"]["hash"], *self.known["options"], about["commit"]]
        code = ours if name == OURS else self.known["scripts"][name]
        return {"code": code} | {key: about[key] for key in ("gpu", "torch", "triton")}

    def take_turn(self, name: str, number: int) -> None:
        """Run the process of a contestant in a round."""
        contestant = self.contestant(name, self.sitting.runs)
        self.outcomes.append(self.run(contestant, number, self.sitting.timeout))
        self.save()

    def save(self) -> None:
        """Write the result so far to `out`."""
        if self.out is not None:
            out, text = self.out, json.dumps(report(self), indent=1) + "\n"
            self.outputs.attempt(out, lambda: write_text(out, text), again=True)


def hold_sitting(
    sitting: Sitting, work: Path, out: Path | None, console: Console, outputs: Outputs | None = None
) -> dict[str, Any]:
    """Hold a sitting in the folder `work` and return its result, which is also written to `out` after every process.

    It resumes where `out` ends: a process that has ended there, well or not, is not started again. A contestant that
    does not compile in time is left out, and continues compiling in the next call.

    Args:
        sitting: what is compared.
        work: folder for scripts, data and the output of the processes.
        out: the JSON file; None: nothing is written.
        console: prints a line about each process.
        outputs: the command's outputs; an `out` that cannot be written does not end the sitting. None: only a note says
            so.

    Raises:
        UserError: a script is not the known one, or `out` holds something else.
    """
    known = facts(sitting)
    outcomes, warm_ups = earlier_outcomes(out, known)
    course = Course(
        sitting=sitting,
        known=known,
        work=work,
        out=out,
        outputs=outputs or Outputs(),
        console=console,
        outcomes=outcomes,
        warm_ups={each.name: each for each in warm_ups},
    )
    names = [*sitting.scripts, OURS]
    for name in names:
        course.contestant(name, sitting.runs)
    for name, change in course.changes.items():
        console.print(f"{name}: changed {change}", highlight=False, markup=False)
    course.write_data()
    ended = {(outcome.name, outcome.round) for outcome in outcomes}
    turns = [(name, number) for number in range(sitting.rounds) for name in round_order(names, number)]
    console.print(f"{len(ended)} of {len(turns)} processes have ended", highlight=False)
    waiting = [turn for turn in turns if turn not in ended]
    ready = _ready(course, dict.fromkeys(name for name, _ in waiting))
    for name, number in waiting:
        if name in ready:
            course.take_turn(name, number)
    course.save()
    return report(course)


def _ready(course: Course, names: Iterable[str]) -> set[str]:
    """Return those of `names` that have compiled; an empty set if nothing is left to compare."""
    compiled = {name: course.warm_up(name) for name in names}
    peers = [done for name, done in compiled.items() if name != OURS]
    if not compiled.get(OURS, True) or (peers and not any(peers)):
        return set()
    return {name for name, done in compiled.items() if done}


def _print_outcome(console: Console, outcome: Outcome) -> None:
    told = outcome.error or "done"
    which = "warm-up" if outcome.round == WARM_UP else f"round {outcome.round + 1}"
    line = f"{which}, {outcome.name}: {told}, {outcome.wall_seconds:.1f} s"
    console.print(line, highlight=False, markup=False)
    for printed in (outcome.last_output or outcome.last_lines)[-SHOWN_LINES:]:
        console.print(f"  | {printed}", highlight=False, markup=False)


def report(course: Course) -> dict[str, Any]:
    """Return the whole result so far as plain values."""
    failed = [each for each in course.warm_ups.values() if each.error is not None]
    outcomes, scripts = [*course.outcomes, *failed], course.sitting.scripts
    return course.known | {
        "passed": all(outcome.error is None for outcome in outcomes),
        "ours": _own_row(OURS, outcomes),
        "peers": [
            {"script": str(script), "changed": course.changes[name]} | peer_row(name, PEERS[name], outcomes)
            for name, script in scripts.items()
        ],
        "processes": [asdict(outcome) for outcome in course.outcomes],
        "warm_ups": [asdict(outcome) for outcome in course.warm_ups.values()],
        "interrupted": course.interrupted,
    }


def _own_row(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return how the processes of `name` ended, and what those that ended well measured."""
    own = [outcome for outcome in outcomes if outcome.name == name]
    whole = [outcome for outcome in own if outcome.error is None]
    errors = [outcome.error for outcome in own if outcome.error is not None]
    keys = whole[0].measures if whole else {}
    measured = {key: [value for outcome in whole for value in outcome.measures[key]] for key in keys}
    return {
        "name": name,
        "status": "crashed" if errors else "finished" if own else "not run yet",
        "error": errors[0] if errors else None,
        "wall_seconds": asdict(summary([outcome.wall_seconds for outcome in whole])) if whole else None,
    } | {key: asdict(summary(values)) for key, values in measured.items()}


def _pairs(
    name: str, outcomes: Sequence[Outcome], of: Callable[[Outcome], float], of_ours: Callable[[Outcome], float]
) -> list[tuple[float, float]]:
    """Return the peer's value and ours for the rounds in which both processes ended well."""
    whole = [outcome for outcome in outcomes if outcome.error is None]
    ours = {outcome.round: of_ours(outcome) for outcome in whole if outcome.name == OURS}
    theirs = {outcome.round: of(outcome) for outcome in whole if outcome.name == name}
    return [(theirs[number], ours[number]) for number in theirs if number in ours]


def _mean_of(key: str) -> Callable[[Outcome], float]:
    return lambda outcome: fmean(outcome.measures[key])


def _verdict(name: str, clock: str, ratio: Ratio, more: Interval) -> str:
    """Return in words how much faster ours is, and how much more accurate."""
    between = "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    speed = f"{ratio.value:.2f}{between} times as fast as {name} by our {clock}"
    return f"{speed}; accuracy {told_accuracy(more)}" + "; one round has no interval" * (ratio.n == 1)


def peer_row(name: str, peer: Peer, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return a peer against ours: its clock by ours that covers it, whole processes, accuracies with their views."""
    ours, own = _own_row(OURS, outcomes), _own_row(name, outcomes)
    measured = [view for view in VIEWS if view in ours]
    our_view = peer.view if peer.view in measured else measured[-1] if measured else None
    clock = paired_ratio(_pairs(name, outcomes, _mean_of(OWN_CLOCK), _mean_of(peer.clock)))
    process = paired_ratio(_pairs(name, outcomes, lambda each: each.wall_seconds, lambda each: each.wall_seconds))
    accuracies = _pairs(name, outcomes, _mean_of(peer.view), _mean_of(our_view)) if our_view else []
    more = mean_interval([our - their for their, our in accuracies]) if accuracies else None
    return own | {
        "clock": {
            "theirs": peer.contains,
            "ours": peer.clock,
            "ours_contains": OUR_CLOCKS[peer.clock],
            "ratio": clock and asdict(clock),
        },
        "process": {"ratio": process and asdict(process)},
        "accuracy": {
            "theirs": peer.accuracy_of,
            "view": peer.view,
            "our_view": our_view,
            "difference": more and asdict(more),
        },
        "verdict": _verdict(name, peer.clock, clock, more) if clock and more else None,
    }


def versus_rows(peer: dict[str, Any], ours: dict[str, Any]) -> list[list[str]]:
    """Return the rows that compare a peer with ours: label, theirs, ours, the ratio and its interval."""
    clock, accuracy = peer["clock"], peer["accuracy"]
    views = " against ".join(dict.fromkeys([accuracy["view"], accuracy["our_view"] or accuracy["view"]]))
    theirs, our = _mean(peer, accuracy["view"], 100, 2), _mean(ours, accuracy["our_view"], 100, 2)
    return [
        [f"{peer['name']}: {peer['status']}", "", "", "", ""],
        [f"s its clock, our {clock['ours']}", *_times(peer, OWN_CLOCK, ours, clock["ours"], clock)],
        ["s whole process", *_times(peer, "wall_seconds", ours, "wall_seconds", peer["process"])],
        [f"% {views}", theirs, our, "", ""],
    ]


def print_versus(console: Console, result: dict[str, Any]) -> None:
    """Print the result as one table, and below it what each clock contains."""
    recipe, ours = result["recipe"]["name"], result["ours"]
    table = Table(title=f"{recipe} against its peers; rounds: {result['rounds']}, runs a process: {result['runs']}")
    table.add_column("", no_wrap=True)
    for column in ("theirs", "ours", "ratio", "95 %"):
        table.add_column(column, justify="right", no_wrap=True)
    for peer in result["peers"]:
        for row in versus_rows(peer, ours):
            table.add_row(*row)
        table.add_section()
    console.print(table)
    for peer in result["peers"]:
        clock, changed = peer["clock"], peer["changed"]
        told = f"clock: {clock['theirs']}. Accuracy: {peer['accuracy']['theirs']}. Changed: {changed}"
        console.print(f"{peer['name']}: {told}", highlight=False, markup=False)
    for clock in dict.fromkeys(peer["clock"]["ours"] for peer in result["peers"]):
        console.print(f"our {clock}: {OUR_CLOCKS[clock]}", highlight=False, markup=False)
    console.print("ratio: theirs over ours, geometric mean of the rounds; 95 %: its interval, Student's t over rounds")
    for peer in result["peers"]:
        if peer["verdict"]:
            console.print(peer["verdict"], highlight=False, markup=False)
    for row in (ours, *result["peers"]):
        if row["error"]:
            console.print(f"{row['name']} crashed: {row['error']}", highlight=False, markup=False)


def _mean(row: dict[str, Any], key: str | None, factor: float, digits: int) -> str:
    value = row.get(key) if key else None
    return f"{factor * value['mean']:.{digits}f}" if value else ""


def _times(peer: dict[str, Any], key: str, ours: dict[str, Any], our_key: str, found: dict[str, Any]) -> list[str]:
    """Return the cells of both means, their ratio and its interval, empty where there is none."""
    ratio = found["ratio"]
    cells = [_mean(peer, key, 1, 3), _mean(ours, our_key, 1, 3), f"{ratio['value']:.3f}" if ratio else ""]
    has_interval = ratio and ratio["low"] is not None
    return [*cells, f"{ratio['low']:.3f}–{ratio['high']:.3f}" if has_interval else ""]


def smoke_sitting(
    sitting: Sitting, work: Path, out: Path | None, console: Console, outputs: Outputs | None = None
) -> dict[str, Any]:
    """Only start each script, on the CPU and part of the data, until its optimizers have made a first step.

    The arguments are those of `hold_sitting`.
    """
    part = _part(sitting.pack)
    rows = []
    for name, script in sitting.scripts.items():
        install(name, script, work / name, runs=1)
        PEERS[name].write_data(part, work / name, torch.device("cpu"))
        plain = peer_contestant(name, script, work / name, runs=1)
        outcome = run_process(_smoked(plain), 0, sitting.timeout)
        told = "starts" if outcome.error is None else f"does not start: {outcome.error}"
        console.print(f"{name}: {told} ({outcome.wall_seconds:.1f} s)", highlight=False, markup=False)
        rows.append(
            {"name": name, "script": str(script), "starts": outcome.error is None, "error": outcome.error}
            | {"seconds": outcome.wall_seconds, "last_lines": outcome.last_lines}
        )
    result = {"torch": torch.__version__, "passed": all(row["starts"] for row in rows), "peers": rows}
    if out is not None:
        text = json.dumps(result, indent=1) + "\n"
        (outputs or Outputs()).attempt(out, lambda: write_text(out, text), again=outputs is None)
    return result


def _smoked(contestant: Contestant) -> Contestant:
    """Return a contestant that stops at its first optimizer steps; reaching them is the one run it reports."""
    return dataclasses.replace(
        contestant,
        words=lambda number: ["-m", "speedyresnet.bench.smoke", *contestant.words(number)],
        read=lambda _number, text: {FIRST_STEP: [1.0] * (FIRST_STEP in text)},
        environment={"CUDA_VISIBLE_DEVICES": ""},
    )


def _part(pack: Pack) -> Pack:
    parts = {
        f"{split}_{kind}": getattr(pack, f"{split}_{kind}")[:count].clone()  # a view would be saved with all its data
        for split, count in SMOKE_IMAGES.items()
        for kind in ("images", "labels")
    }
    return dataclasses.replace(pack, **parts)
