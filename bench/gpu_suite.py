"""`bench gpu-suite`: answers a queue of questions for a GPU, the most valuable first, in calls of a few minutes.

Every command is a separate process, so one that crashes or hangs does not affect the others. Only the commands of an
entry marked `together` run side by side; everything else is timed alone. The results are one archive and a summary,
written after each entry. A later call, also on another machine, resumes from them: a finished entry is not repeated,
and an entry whose command can resume from its own file does so.
"""

import contextlib
import functools
import json
import os
import shlex
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import STDOUT
from typing import Any

import numpy as np
import torch
from rich.console import Console

from speedyresnet.engine.data import cache_folder, pack_path
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.files import Outputs, locked, write_atomically, write_text
from speedyresnet.engine.json_files import Schema, fault_in, read_json
from speedyresnet.engine.pack import make_pack
from speedyresnet.engine.pack_file import read_pack, save_pack
from speedyresnet.engine.record import environment
from speedyresnet.engine.synthetic import make_synthetic

from .gpu_queue import Entry
from .peers import PEERS
from .pool import check_kind
from .processes import Command, exit_codes_within
from .sheets import CIFAR10_IMAGES, add_sheets, check_cifar10, count_images, pack_sheets

ARCHIVE = "results.tar.gz"
"""Archive of the summary and the files of all entries."""
SUMMARY = "suite.json"

_CHECKOUT = Path(__file__).resolve().parent.parent
_CRASHED = 3
_OURS = (
    "-c",
    f"""\
import sys, traceback
try:
    from speedyresnet.bench.cli import main
    main()
except Exception:
    traceback.print_exc()
    sys.exit({_CRASHED})  # Python's own 1 is a target that was missed
""",
)
_UNPACKED = "unpacked"
_GRACE_SECONDS = 5.0
"""Grace time on top of an entry's time; usually unused."""
_OUTPUT_CHARACTERS = 2000
"""Characters of each command's output kept in the summary; the archive has all of it."""
_SMALL_SETTINGS = ("batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32")
_SMALL_VALUES = {"--backend": "eager", "--runs": "2", "--rounds": "2", "--validation": "100"}
_SMALL_WORDS = {
    "step": ("--backend", "eager"),
    "kernels": ("--provider", "reference", "--rounds", "2"),
    "versus": ("--smoke",),
}
"""Extra arguments, by `bench` command, that avoid minutes of compilation and running scripts to their end."""
_NOT_SMALL = ("--target", "--seconds", "-n")
"""Options that a rehearsal drops: it reaches no target, and one machine has few cores."""


@dataclass(frozen=True, slots=True)
class Site:
    """Place where the queue runs."""

    device: torch.device
    values: Mapping[str, str]
    """Values of the names in braces; a name without a value is missing."""
    notes: tuple[str, ...] = ()
    """Instructions for obtaining what is missing."""

    @property
    def rehearses(self) -> bool:
        """Whether everything is made small because the device is a CPU."""
        return self.device.type == "cpu"

    def missing(self, entry: Entry) -> list[str]:
        """Return the names that an entry needs and that have no value."""
        return sorted(entry.places - {"out"} - self.values.keys())

    def least_seconds(self, entry: Entry) -> float:
        """Return the minimum number of seconds that must be left for an entry to start."""
        return 1.0 if self.rehearses else entry.least or entry.seconds

    def limit(self, entry: Entry, left: float) -> float:
        """Return the seconds after which an entry is ended, given the seconds left."""
        return left if self.rehearses or entry.least else min(left, 2 * entry.seconds + 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryResult:
    """Outcome of the last run of an entry."""

    name: str
    exit_codes: list[int | None]
    """Exit codes of its commands; None for a command that was ended when the time was over."""
    seconds: float
    outputs: list[str]
    """End of each command's output."""
    environment: dict[str, Any]

    @property
    def verdict(self) -> str:
        """Outcome in one or two words: done, failed (a check or a target), cut off (the time was over) or crashed."""
        if any(code not in (0, 1, None) for code in self.exit_codes):
            return "crashed"
        return "cut off" if None in self.exit_codes else "failed" if 1 in self.exit_codes else "done"

    @property
    def ended(self) -> bool:
        """Whether the entry finished; a missed target is a result."""
        return self.verdict in ("done", "failed")


# --- Inputs of the commands


def work_folder() -> Path:
    """Return the folder that keeps packs, sheets and the peers' compiled code for later calls on the same machine."""
    return cache_folder() / "gpu-suite"


def make_site(device: torch.device, images: Sequence[Path], peers: Sequence[str]) -> Site:
    """Return a site for the queue, with the packs it needs; on a CPU all of them are the same small one.

    Args:
        device: the GPU, or the CPU for a rehearsal.
        images: folders with a part of CIFAR-10 each, see `sheets`.
        peers: NAME=PATH.

    Raises:
        UserError: the images are not CIFAR-10.
    """
    work, values, notes = work_folder(), dict[str, str](), []
    values["work"] = str(work)
    if (_CHECKOUT / "tests").is_dir():  # an installed wheel has none
        values["tests"] = str(_CHECKOUT / "tests")
    values |= {each.partition("=")[0]: each for each in peers}
    for part in images:
        add_sheets(part, work / "sheets")
    if device.type == "cpu":
        small = work / "small.safetensors"
        save_pack(make_synthetic(train_images=640, test_images=200), small)
        return Site(device, values | dict.fromkeys(("noise", "synthetic", "cifar10", "imagenette"), str(small)))
    values |= {"synthetic": "synthetic", "noise": str(_noise_pack(work))}
    notes += _packed_sheets(work / "sheets")
    values |= {name: name for name in ("cifar10", "imagenette") if pack_path(name).exists()}
    return Site(device, values, tuple(notes))


def _noise_pack(work: Path) -> Path:
    """Return the file of a noise pack in CIFAR-10's shape; create it if it is missing."""
    path, generator = work / "noise.safetensors", np.random.default_rng(0)
    if not path.exists():
        counts, names = CIFAR10_IMAGES.values(), [str(number) for number in range(10)]
        train, test = (generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8) for count in counts)
        train_labels, test_labels = (generator.integers(0, 10, count) for count in counts)
        save_pack(make_pack("noise", names, train, train_labels, test, test_labels), path)
    return path


def _packed_sheets(sheets: Path) -> list[str]:
    """Add the pack `cifar10` to the cache if it is missing and `sheets` is complete; return notes on missing images."""
    if (path := pack_path("cifar10")).exists():
        check_cifar10(read_pack(path), path)
        return []
    counts = count_images(sheets)
    if counts != CIFAR10_IMAGES:
        here = " and ".join(f"{counts[split]} of {count} {split}" for split, count in CIFAR10_IMAGES.items())
        remedy = "give the others with --images FOLDER, or make the pack with `speedyresnet data pack cifar10`"
        return [f"cifar10: {here} images are here; {remedy}"]
    save_pack(pack_sheets(sheets), path)
    return []


# --- Commands


def _made_small(words: Sequence[str]) -> list[str]:
    """Return a command that takes seconds on a CPU: short runs of narrow nets; tests are only collected."""
    found = list[str]()
    for before, word in zip(["", *words], words, strict=False):
        if word in _NOT_SMALL or before in _NOT_SMALL:
            continue
        found.append(_SMALL_VALUES.get(before, word.replace("kernels=triton", "kernels=auto")))
    if found[0] == "pytest":
        return [*found, "--collect-only"]
    settings = [word for each in _SMALL_SETTINGS for word in ("--set", each)]
    return [*found, *_SMALL_WORDS.get(found[2], ()), *settings]


def command_of(text: str, site: Site, files: Path, log: Any = None) -> Command:
    """Return the process for a command of the queue; it prints into `log`.

    Args:
        text: see `gpu_queue`.
        site: where it runs.
        files: the folder that `{out}` stands for.
        log: an open file, or None.
    """
    values = {**site.values, "out": str(files)}
    words = [functools.reduce(_with_value, values.items(), word) for word in shlex.split(text)]
    variables = {"PYTHONUNBUFFERED": "1"}  # output survives when the process is killed
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    words = _made_small(words) if site.rehearses else words
    program, *given = (found for word in words for found in _expanded(word))
    if program == "pytest":
        python = ["-m", "pytest", *given]
    else:
        start = _OURS if program == "speedyresnet" else ()
        python = [*start, *given, "--device", str(site.device)]
    return Command([sys.executable, *python], {"env": os.environ | variables, "stdout": log, "stderr": STDOUT})


def _with_value(word: str, value: tuple[str, str]) -> str:
    return word.replace(f"{{{value[0]}}}", value[1])


def _expanded(word: str) -> list[str]:
    """Return the files that an absolute pattern matches, as in a shell; return other words unchanged."""
    path = Path(word)
    return sorted(map(str, path.parent.glob(path.name))) if "*" in word and path.is_absolute() else [word]


def run_entry(entry: Entry, limit: float, site: Site, files: Path, about: dict[str, Any]) -> EntryResult:
    """Run the commands of an entry for at most `limit` seconds; `about` is the environment.

    Their output goes to NAME-NUMBER.log in `files`. Consecutive commands stop after one that crashes or is ended.
    """
    started, codes = time.monotonic(), list[int | None]()
    paths = [files / f"{entry.name}-{number}.log" for number in range(1, len(entry.commands) + 1)]
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(path.open("wb")) for path in paths]
        commands = [command_of(text, site, files, log) for text, log in zip(entry.commands, logs, strict=True)]
        for group in [commands] if entry.together else [[command] for command in commands]:
            left = limit - (time.monotonic() - started)
            codes += exit_codes_within(left, group, grace=_GRACE_SECONDS)
            if any(code not in (0, 1) for code in codes):
                break
    outputs = [path.read_text(errors="replace")[-_OUTPUT_CHARACTERS:] for path in paths]
    spent = time.monotonic() - started
    return EntryResult(name=entry.name, exit_codes=codes, seconds=spent, outputs=outputs, environment=about)


# --- Results


@contextlib.contextmanager
def unpacked_results(out: Path, asked: Mapping[str, Any], outputs: Outputs) -> Iterator[Path]:
    """Provide the results in `out` as a folder for the duration of the context; pack it on exit, also after Ctrl-C.

    A folder left behind by a killed call contains everything that the archive does, and more. The folder is also kept
    if the archive or the summary cannot be written.

    Args:
        out: where the results are kept.
        asked: see `read_results`.
        outputs: the command's outputs.

    Raises:
        UserError: `out` holds something else; its content is kept.
    """
    files, part = out / _UNPACKED, out / f"{_UNPACKED}.part"
    if not files.exists():
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if (out / ARCHIVE).exists():
            _unpack(out / ARCHIVE, part)
        elif (out / SUMMARY).exists():
            shutil.copyfile(out / SUMMARY, part / SUMMARY)
        part.rename(files)
    read_results(files / SUMMARY, asked)
    try:
        yield files
    finally:
        keep_results(files, out, outputs)
        if not outputs.refused:
            shutil.rmtree(files)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} is no archive of bench gpu-suite ({error}); give another --out") from None


def keep_results(files: Path, out: Path, outputs: Outputs) -> None:
    """Try to write the archive and the summary of the results in `files` to `out`, each atomically."""

    def write(path: Path) -> None:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(files, ".")

    outputs.attempt(out / ARCHIVE, lambda: write_atomically(out / ARCHIVE, write), again=True)
    if (files / SUMMARY).exists():
        text = (files / SUMMARY).read_text(encoding="utf-8")
        outputs.attempt(out / SUMMARY, lambda: write_text(out / SUMMARY, text), again=True)


_SUITE: Schema = {
    "asked": dict,
    "entries": [
        {"name": str, "exit_codes": [int | None], "seconds": float, "outputs": [str], "environment": dict},
    ],
}


def read_results(path: Path, asked: Mapping[str, Any] | None = None) -> list[EntryResult]:
    """Return the entry results in the summary `path`, or an empty list if there is no summary.

    Args:
        path: path of the summary.
        asked: values, by option, that must not change from call to call; None: not checked.

    Raises:
        UserError: the file holds something else.
    """
    if not path.exists():
        return []
    found = read_json(path, "give another --out")
    if fault := fault_in(found, _SUITE):
        raise UserError(f"{path} is no result of bench gpu-suite ({fault}); give another --out")
    fields, earlier = EntryResult.__dataclass_fields__, found["asked"]
    results = [EntryResult(**{key: each[key] for key in fields}) for each in found["entries"]]
    check_kind(path, "entries", earlier, earlier if asked is None else asked)
    return results


def _write_summary(
    path: Path, asked: Mapping[str, Any], entries: Sequence[Entry], results: Sequence[EntryResult]
) -> None:
    """Write how entries ended, with the question and prediction of those still in the queue."""
    known = {entry.name: {"question": entry.question, "prediction": entry.prediction} for entry in entries}
    rows = [{"verdict": each.verdict} | known.get(each.name, {}) | asdict(each) for each in results]
    write_text(path, json.dumps({"asked": dict(asked), "entries": rows}, indent=1) + "\n")


def waiting_entries(entries: Sequence[Entry], results: Sequence[EntryResult], files: Path) -> list[Entry]:
    """Return the entries that have not finished or have lost their files, in order; those to be repeated come last."""
    found = {each.name: each for each in results}

    def ended(entry: Entry) -> bool:
        files_are_there = all((files / name).exists() for name in entry.files)
        return entry.name in found and found[entry.name].ended and files_are_there

    def failed_before(entry: Entry) -> bool:
        return entry.name in found and not (found[entry.name].verdict == "cut off" and entry.least)

    return sorted((entry for entry in entries if not ended(entry)), key=failed_before)


# --- Running


def run_queue(
    entries: Sequence[Entry],
    chosen: Sequence[Entry],
    site: Site,
    minutes: float,
    out: Path,
    console: Console,
    outputs: Outputs | None = None,
) -> list[EntryResult]:
    """Run the pending entries of `chosen` for `minutes` in total, and store in `out` how each ended.

    An entry starts only if its expected seconds are left, or its `least` seconds if it can resume.

    Returns:
        Results of the entries that were started. A file that `outputs`, those of the command, cannot write ends
        nothing.

    Raises:
        UserError: `out` holds something else, or another suite runs on this machine.
    """
    outputs = outputs or Outputs()
    deadline, asked = time.monotonic() + 60 * minutes, {"--device": site.device.type}
    ran, about = list[EntryResult](), environment(site.device)
    with _alone(), unpacked_results(out.absolute(), asked, outputs) as files:
        results = read_results(files / SUMMARY, asked)
        for entry in waiting_entries(chosen, results, files):
            left = deadline - time.monotonic()
            if site.missing(entry) or left < site.least_seconds(entry):
                continue
            console.print(f"{entry.name}: about {entry.seconds:.0f} s; {left:.0f} s are left")
            ran.append(run_entry(entry, site.limit(entry, left), site, files, about))
            results = [*(each for each in results if each.name != entry.name), ran[-1]]
            write = functools.partial(_write_summary, files / SUMMARY, asked, entries, results)
            outputs.attempt(files / SUMMARY, write, again=True)
            keep_results(files, out.absolute(), outputs)
            _print_result(ran[-1], console)
        _print_waiting(waiting_entries(chosen, results, files), site, console)
    return ran


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Raise UserError if another suite is running: the timings of both would be meaningless."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(work_folder() / "lock", wait=False))
        except BlockingIOError:
            raise UserError("another bench gpu-suite runs on this machine; wait until it has ended") from None
        yield


def _print_result(result: EntryResult, console: Console) -> None:
    console.print(f"{result.name}: {result.verdict} after {result.seconds:.0f} s")
    if result.verdict != "done":
        for code, output in zip(result.exit_codes, result.outputs, strict=False):
            last = output.strip().splitlines()[-1:] or ["printed nothing"]
            console.print(f"  {'ended' if code is None else f'exit code {code}'}: {last[0]}")


def _print_waiting(waiting: Sequence[Entry], site: Site, console: Console) -> None:
    for entry in waiting:
        missing = site.missing(entry)
        reason = f"needs {', '.join(missing)}" if missing else f"needs {site.least_seconds(entry):.0f} s"
        console.print(f"waits: {entry.name}, {reason}")
    for note in site.notes:
        console.print(note)
    absent = {name for entry in waiting for name in site.missing(entry)} & PEERS.keys()
    if absent:
        console.print(f"give --peer NAME=PATH for {', '.join(sorted(absent))}")
    console.print("the same command goes on" if waiting else "all have ended")


def failures(ran: Sequence[EntryResult], entries: Sequence[Entry]) -> list[str]:
    """Return the names of entries that failed; being cut off is not a failure of an entry that can resume."""
    goes_on = {entry.name for entry in entries if entry.least}
    return [
        each.name for each in ran if each.verdict != "done" and not (each.verdict == "cut off" and each.name in goes_on)
    ]


# --- Listing


def listed(entries: Sequence[Entry], out: Path) -> list[dict[str, Any]]:
    """Return the queue, with the state of each entry in `out`, as plain values.

    Raises:
        UserError: `out` holds something else.
    """
    unpacked = out / _UNPACKED / SUMMARY  # exists, and is newer, if the last call could not write its results
    verdicts = {each.name: each.verdict for each in read_results(unpacked if unpacked.exists() else out / SUMMARY)}
    return [
        asdict(entry)
        | {"files": list(entry.files), "needs": sorted(entry.places - {"out", "work"})}
        | {"state": verdicts.get(entry.name, "waits")}
        for entry in entries
    ]


def print_list(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Print the queue, a few lines per entry."""
    for row in rows:
        console.print(
            f"{row['value']:3d}  {row['name']}: {row['state']}; about {row['seconds']:.0f} s", highlight=False
        )
        console.print(f"     {row['question']}", highlight=False)
        console.print(f"     Prediction: {row['prediction']}", highlight=False)
        for command in row["commands"]:
            console.print(f"     $ {command}", highlight=False)
    waiting = [row["seconds"] for row in rows if row["state"] not in ("done", "failed")]
    console.print(f"{len(waiting)} of {len(rows)} wait, about {sum(waiting) / 60:.0f} minutes", highlight=False)
