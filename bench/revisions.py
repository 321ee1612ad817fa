"""Measurement of two git revisions in one sitting: each in its own environment, their processes taking turns.

A revision gets a worktree and a virtual environment with only this package; every library, including torch, is the
caller's. Both processes are alive at the same time, and in each round each case is timed once in both: base first in
even rounds, head first in odd ones, so that neither the order nor machine drift favours one of them.
"""

import json
import math
import os
import select
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from speedyresnet.engine.errors import UserError

from .processes import end_session

FEWEST_ROUNDS = 24
"""Minimum number of rounds when time is short; a change of 5 % is still visible under noise of 2 %."""
_WORKER = Path(__file__).with_name("revision_worker.py")
_NOT_PASSED_ON = ("PYTHONPATH", "THP_MEM_ALLOC_ENABLE")
"""Environment variables that the workers do not inherit.

The first would expose the caller's package; the second is set by importing the engine, as each revision does.
"""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing printed"


def commit_of(revision: str) -> str:
    """Return the commit that `revision` names in the repository of the current folder.

    Raises:
        UserError: there is no such commit, or the repository is not this package's.
    """
    command = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip() or "git knows no such commit here"
        raise UserError(f"revision {revision}: {reason}; give two revisions of this checkout, or two .json files")
    commit = done.stdout.strip()
    if _run_git("cat-file", "-e", f"{commit}:engine/step.py").returncode:  # only the repository around a copy
        raise UserError(f"revision {revision} is not of SpeedyResNet; start in a checkout, or give two .json files")
    return commit


@dataclass(frozen=True, slots=True)
class Installed:
    """Revision in its own environment."""

    revision: str
    commit: str
    environment: Path

    @property
    def python(self) -> Path:
        """Path of its interpreter."""
        return self.environment / "bin" / "python"


@contextmanager
def installed(revision: str, commit: str) -> Iterator[Installed]:
    """Install `commit` in a new worktree and a new environment; remove both afterwards.

    Raises:
        UserError: it cannot be checked out or installed.
    """
    with TemporaryDirectory(prefix="speedyresnet-regress-") as folder, ExitStack() as cleaning:
        worktree, environment = Path(folder, "worktree"), Path(folder, "environment")
        cleaning.callback(_run_git, "worktree", "remove", "--force", str(worktree))
        done = _run_git("worktree", "add", "--detach", str(worktree), commit)
        if done.returncode:
            raise UserError(f"{revision} cannot be checked out: {_last_line(done.stderr)}")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        _install(revision, worktree, environment)
        yield Installed(revision, commit, environment)


def _run_git(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False)


def _install(revision: str, worktree: Path, environment: Path) -> None:
    """Put the package of `worktree` into `environment`, with the caller's libraries after it on the path."""
    scheme = {"base": str(environment), "platbase": str(environment)}
    site = sysconfig.get_path("purelib", "venv", scheme)
    # Folders in a .pth file provide their modules but, unlike site-packages, not the editable packages in them.
    Path(site, "libraries.pth").write_text("".join(f"{folder}\n" for folder in sys.path if os.path.isdir(folder)))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--no-build-isolation", "--target", site, str(worktree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = [line.strip() for line in done.stderr.splitlines() if line.strip().lower().startswith("error")]
        reason = ", ".join(told) or _last_line(done.stderr)
        remedy = "it takes pip and setuptools>=77: pip install 'speedyresnet[bench]'"
        raise UserError(f"{revision} cannot be installed: {reason}; {remedy}")


class Worker:
    """Process of a revision that measures on request."""

    def __init__(self, source: Installed, process: "subprocess.Popen[bytes]", errors: Path) -> None:
        self.source = source
        self._process = process
        self._errors = errors

    def ask(self, request: object, deadline: float) -> Any:
        """Return the answer to `request`.

        Args:
            request: see `revision_worker.main`.
            deadline: by time.monotonic.

        Raises:
            TimeoutError: no answer came before the deadline.
            UserError: the process ended.
        """
        left = deadline - time.monotonic()
        if left <= 0:  # else a late answer to an earlier request would be taken for the answer to this one
            raise TimeoutError
        given, output = self._process.stdin, self._process.stdout
        assert given is not None
        assert output is not None
        with suppress(BrokenPipeError):  # it has ended; the missing answer says so
            given.write(json.dumps(request).encode() + b"\n")
            given.flush()
        if not select.select([output], [], [], None if left == math.inf else left)[0]:
            raise TimeoutError
        line = output.readline()
        if not line:
            reason = _last_line(self._errors.read_text(errors="replace"))
            reason = reason.removeprefix(f"{UserError.__module__}.UserError: ")
            raise UserError(f"{self.source.revision} cannot be measured: {reason}")
        return json.loads(line)


@contextmanager
def _started(source: Installed) -> Iterator[Worker]:
    variables = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
    errors = source.environment / "stderr.txt"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [str(source.python), "-P", str(_WORKER)],  # -P: the worker's folder also has a statistics.py
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=variables, start_new_session=True,
        )  # fmt: skip
        try:
            yield Worker(source, process, errors)
        finally:  # also after Ctrl-C
            end_session(process)


@dataclass(slots=True)
class Samples:
    """Seconds per call of one case, one value per round and revision."""

    base: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Plan of a measurement."""

    subject: dict[str, Any]
    """Recipe, settings, device and backend; see `revision_worker.Subject`."""
    operations: Sequence[str]
    """Empty: all."""
    rounds: int
    """Rounds per case."""
    deadline: float
    """By time.monotonic; what is not done by then is left out."""


@dataclass(slots=True)
class Sitting:
    """Result of a sitting."""

    base: dict[str, str]
    """Revision, commit, and the path of its engine."""
    head: dict[str, str]
    only_in_base: list[str]
    """Cases that head lacks."""
    only_in_head: list[str]
    left_out: list[str] = field(default_factory=list)
    """Operations for which there was no time."""
    samples: dict[str, Samples] = field(default_factory=dict)
    """Samples by case."""
    again: dict[str, Samples] = field(default_factory=dict)
    """Samples of new processes for the cases that changed in the first."""
    unconfirmed: list[str] = field(default_factory=list)
    """Operations that changed but were not confirmed by new processes, because there was no time."""


def measure_revisions(
    revisions: Sequence[str], plan: Plan, changed: Callable[[Mapping[str, Samples]], list[str]], console: Console
) -> Sitting:
    """Install base and head and time their cases in turns; time what changed again in new processes.

    A process keeps its memory locations for as long as it lives, and they alone can make it faster or slower.

    Args:
        revisions: base and head.
        plan: the first processes get 60 % of its time.
        changed: returns the names of the cases that changed.
        console: for notes.

    Raises:
        UserError: a revision cannot be installed, does not import its own package, or cannot make its cases.
    """
    commits = [commit_of(revision) for revision in revisions]
    with ExitStack() as stack:
        sources = [stack.enter_context(installed(*each)) for each in zip(revisions, commits, strict=True)]
        with _workers(sources) as workers:
            told = [worker.ask(plan.subject, math.inf) for worker in workers]
            for source, each in zip(sources, told, strict=True):
                console.print(f"{source.revision} imports {each['path']}", highlight=False, markup=False)
            check_imports(sources, told)
            sitting, cases = _begun(sources, told)
            wanted = {name: each for name, each in cases.items() if each in plan.operations or not plan.operations}
            now = time.monotonic()
            first = replace(plan, deadline=now + 0.6 * (plan.deadline - now))
            sitting.samples = _measured(workers, wanted, first, sitting.left_out, console)
        suspects = changed(sitting.samples)
        if suspects:
            console.print("changed, timed again in new processes:", highlight=False, markup=False)
            with _workers(sources) as workers:
                for worker in workers:
                    worker.ask(plan.subject, math.inf)
                wanted = {name: cases[name] for name in suspects}
                sitting.again = _measured(workers, wanted, plan, sitting.unconfirmed, console)
    return sitting


@contextmanager
def _workers(sources: Sequence[Installed]) -> Iterator[list[Worker]]:
    """Start a process for each source."""
    with ExitStack() as stack:
        yield [stack.enter_context(_started(source)) for source in sources]


def check_imports(sources: Sequence[Installed], told: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError unless each revision loaded its own package and nothing of another.

    Args:
        sources: where they are installed.
        told: for each, the `path` of its engine and the files of the package that it has `loaded`.
    """
    one, other = (each["path"] for each in told)
    if one == other:
        raise UserError(f"both revisions import {one}: there is nothing to compare")
    for source, each in zip(sources, told, strict=True):
        own = source.environment.resolve()
        for path in each["loaded"]:
            if not Path(path).resolve().is_relative_to(own):
                raise UserError(f"{source.revision} lacks what is measured and would take the caller's {path}")


def _begun(sources: Sequence[Installed], told: Sequence[Mapping[str, Any]]) -> tuple[Sitting, dict[str, str]]:
    """Return a sitting without measurements, and the operations of the cases that both have, by case."""
    base, head = (
        {"revision": source.revision, "commit": source.commit, "path": each["path"]}
        for source, each in zip(sources, told, strict=True)
    )
    ours, theirs = (each["cases"] for each in told)
    sitting = Sitting(base, head, [name for name in ours if name not in theirs], [n for n in theirs if n not in ours])
    return sitting, {name: operation for name, operation in ours.items() if name in theirs}


def _measured(
    workers: Sequence[Worker], cases: Mapping[str, str], plan: Plan, left_out: list[str], console: Console
) -> dict[str, Samples]:
    """Return the samples of `cases` (operations by name), one operation after the other; add to `left_out`."""
    found: dict[str, Samples] = {}
    for operation in dict.fromkeys(cases.values()):
        names = [name for name, each in cases.items() if each == operation]
        try:
            for worker in workers:
                worker.ask({"make": names}, plan.deadline)
            found |= _samples(workers, names, plan.rounds, plan.deadline)
        except TimeoutError:
            left_out.append(operation)
        else:
            console.print(f"{operation}: {len(names)} measured", highlight=False, markup=False)
    return found


def _samples(workers: Sequence[Worker], names: Sequence[str], rounds: int, deadline: float) -> dict[str, Samples]:
    """Return the samples of the cases called `names`: all rounds, or FEWEST_ROUNDS or more if half of the time is used.

    Raises:
        TimeoutError: there is not even time for FEWEST_ROUNDS.
    """
    found = {name: Samples() for name in names}
    started = time.monotonic()
    for number in range(rounds):
        now = time.monotonic()
        if number == 1 and now + (min(rounds, FEWEST_ROUNDS) - 1) * (now - started) > deadline:
            raise TimeoutError
        if number >= FEWEST_ROUNDS and now > (started + deadline) / 2:
            break
        for name in names:
            lists = list(zip(workers, (found[name].base, found[name].head), strict=True))
            for worker, values in lists if number % 2 == 0 else reversed(lists):
                values.append(worker.ask({"time": name}, deadline))
    return found
