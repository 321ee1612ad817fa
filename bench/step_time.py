"""`bench step`: the time of a step by backend, and the host's share of it."""

import json
import logging
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from speedyresnet.engine.backends import LOG, BackendError
from speedyresnet.engine.cli import show_tracebacks
from speedyresnet.engine.compiler_cache import FOLDER_VARIABLE
from speedyresnet.engine.data import load_data
from speedyresnet.engine.device import pick_device, synchronize
from speedyresnet.engine.errors import UserError, one_line
from speedyresnet.engine.fit import fitting_plan
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.record import differences_told, peak_bytes
from speedyresnet.engine.setup import chosen_recipe, set_up
from speedyresnet.engine.signals import handled
from speedyresnet.engine.trainer import Trainer

from .trace import launches_and_idle_seconds, recorded_trace


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Times of one backend; medians over rounds."""

    backend: str
    dtype: str
    milliseconds: float
    """Milliseconds per step, from the first issue until the device has finished."""
    quartiles: tuple[float, float]
    """Quartiles of the rounds' milliseconds."""
    images_per_second: float
    host_milliseconds: float
    """Time until the host has issued a step; on a CPU the host does the work itself."""
    idle_milliseconds: float | None
    """Time per step in which the GPU runs nothing; None on a CPU, or if the profiler does not work."""
    launches: float | None
    """Kernels or graphs launched per step; None in the same cases."""
    peak_bytes: int | None
    """Peak memory while this backend was built and stepped, of the device or, on a CPU, its process.

    See `record.peak_bytes`.
    """
    build_seconds: float
    kernels: dict[str, str]
    """Kernels that ran, by operation."""
    requested: dict[str, str]
    """Backend and kernels that were requested."""


_SECONDS_TO_END = 3.0
"""Time given to a process that has nothing left to do."""
_REASON_CHARACTERS = 400
"""Maximum length of the message of an unforeseen failure."""


def timed_round(trainer: Trainer, steps: int, step: Callable[[], None] | None = None) -> tuple[float, float]:
    """Return the seconds per step, total and of the host alone, over `steps` steps issued without waiting in between.

    Without `step`, the most frequent kind of step of a run is timed.
    """
    step = step or trainer.main_step
    trainer.state.counter.zero_()  # the tables are only as long as a run
    synchronize(trainer.device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    issued = time.perf_counter()
    synchronize(trainer.device)
    return (time.perf_counter() - started) / steps, (issued - started) / steps


def launches_and_idle(trainer: Trainer, steps: int) -> tuple[float | None, float | None]:
    """Return launches per step, and milliseconds per step between its first and last kernel in which none runs."""
    if trainer.device.type != "cuda":
        return None, None
    try:
        trace = recorded_trace(lambda: timed_round(trainer, steps), trainer.device)
    except UserError as error:  # the times are useful even so
        warnings.warn(f"no launches and idle time: {error}", stacklevel=2)
        return None, None
    launches, idle = launches_and_idle_seconds(trace)
    return launches / steps, 1e3 * idle / steps


class BackendProcess:
    """Process that builds one backend and times it on request.

    Args:
        arguments: arguments of `serve` after the connection.
    """

    def __init__(self, *arguments: Any) -> None:
        spawning = multiprocessing.get_context("spawn")  # a fork would share the parent's CUDA context, which breaks
        self._connection, others = spawning.Pipe()
        self._process = spawning.Process(target=serve, args=(others, *arguments))
        # The child inherits that a terminal's Ctrl-C, which reaches all processes, is ignored: the parent ends it.
        with handled(signal.SIG_IGN, signal.SIGINT):
            self._process.start()
        others.close()  # so that the end of the process closes the pipe

    def ask(self, name: str, *arguments: Any) -> Any:
        """Return the answer to a request; see `serve`.

        Raises:
            BackendError: the process failed or has ended; the message is the reason.
        """
        try:
            self._connection.send((name, arguments))
            found, failure = self._connection.recv()
        except (EOFError, ConnectionError):  # it ended without an answer
            self._process.join()
            raise BackendError(ended_told(self._process.exitcode or 0)) from None
        if failure is not None:
            raise BackendError(failure)
        return found

    def end(self) -> None:
        """Close the connection, wait for the process to end, and kill it if it does not."""
        self._connection.close()
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def ended_told(code: int) -> str:
    """Describe, by its exit code, how a process ended that gave no reason."""
    if code >= 0:
        return f"its process ended with exit code {code}"
    memory = ", as the system does where memory is full" * (code == -signal.SIGKILL)
    return f"its process was ended by {signal.Signals(-code).name}{memory}"


def failure_told(error: Exception) -> str:
    """Describe why a backend failed, in one line."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full: lower --set batch_size"
    return one_line(f"{type(error).__name__}: {error}"[:_REASON_CHARACTERS])


def serve(connection: Connection, recipe: Recipe, data: str, device: str, backend: str, debug: bool) -> None:
    """Answer requests until the connection is closed; runs in a `BackendProcess`.

    A request is the name of a method of `_Measured` and its arguments. An answer is a pair: the return value and None,
    or None and the reason of the failure.

    Args:
        connection: connection to the process that asks.
        recipe: what to step.
        data: name or path of the data set.
        device: where to step.
        backend: name of the backend.
        debug: whether to print the traceback of a failure.
    """
    os.dup2(2, 1)  # standard output is reserved for the result, whatever prints here
    if debug:
        show_tracebacks()
    measured: _Measured | None = None
    with suppress(EOFError):
        while True:
            name, arguments = connection.recv()
            answer: tuple[Any, str | None]
            try:
                measured = measured or _Measured(recipe, load_data(data), pick_device(device), backend)
                answer = getattr(measured, name)(*arguments), None
            except Exception as error:
                LOG.debug("%s failed", backend, exc_info=error)
                answer = None, failure_told(error)
            connection.send(answer)


class _Measured:
    """Backend in its own process; the methods answer the requests of `serve`."""

    def __init__(self, recipe: Recipe, pack: Pack, device: torch.device, backend: str) -> None:
        self._trainer = Trainer(set_up(recipe, pack.facts, device, backend), pack)
        self._trainer.prepare(seed=0)
        self._trainer.net.train()

    def build(self, steps: int) -> dict[str, Any]:
        """Return what is known about a backend once it is built and has made `steps` steps."""
        trainer = self._trainer
        timed_round(trainer, steps)
        return {
            "backend": trainer.backend,
            "dtype": str(trainer.dtype).removeprefix("torch."),
            "kernels": trainer.kernels,
            "requested": trainer.requested,
            "peak_bytes": peak_bytes(trainer.device),
            "build_seconds": trainer.build_seconds,
        }

    def round(self, steps: int) -> tuple[float, float]:
        """Return the seconds of a round; see `timed_round`."""
        return timed_round(self._trainer, steps)

    def launches(self, steps: int) -> tuple[float | None, float | None]:
        """Return launches and idle time; see `launches_and_idle`."""
        return launches_and_idle(self._trainer, steps)


def measure_steps(
    recipe: Recipe, pack: Pack, device: torch.device, backends: Sequence[str], *, rounds: int = 10, steps: int = 10
) -> tuple[list[StepTime], dict[str, str]]:
    """Time `backends`, each in its own process, so that one that fails does not affect the others.

    The processes are built one after the other and stay alive. Then they take turns, one round at a time, so that a
    slow moment of the machine affects all of them.

    Args:
        recipe: what to step; the most frequent kind of step of a run is timed.
        pack: the data set.
        device: where to step.
        backends: names of the backends.
        rounds: number of rounds for the medians, after one that is discarded.
        steps: steps per round, at most those of a run.

    Returns:
        The times, and the reasons why backends could not be built or measured, by name.

    Raises:
        UserError: the recipe does not fit the data, or none of the backends can be measured.
    """
    steps = min(steps, fitting_plan(recipe, pack.facts).steps)
    failed = dict[str, str]()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        data = str(Path(folder, "pack.safetensors"))
        save_pack(pack, Path(data))
        processes, facts = dict[str, BackendProcess](), dict[str, dict[str, Any]]()
        for backend in backends:
            debug = LOG.isEnabledFor(logging.DEBUG)
            processes[backend] = BackendProcess(recipe, data, str(device), backend, debug)
            stack.callback(processes[backend].end)
            facts |= _answers({backend: processes[backend]}, failed, "build", steps)
        rows = _measured_rounds({name: processes[name] for name in facts}, failed, rounds, steps)
    if not rows:
        raise UserError("; ".join(dict.fromkeys(failed.values())))
    found = [_step_time(facts[name], recipe.batch_size, *row) for name, row in rows.items()]
    return found, failed


def _answers(
    processes: Mapping[str, BackendProcess], failed: dict[str, str], request: str, steps: int
) -> dict[str, Any]:
    """Return the answers of all processes that have not failed, one after the other; add to `failed`."""
    found = dict[str, Any]()
    for name, process in processes.items():
        if name not in failed:
            try:
                found[name] = process.ask(request, steps)
            except BackendError as error:
                failed[name] = str(error)
                process.end()  # frees its memory for the others
    return found


def _measured_rounds(
    processes: Mapping[str, BackendProcess], failed: dict[str, str], rounds: int, steps: int
) -> dict[str, tuple[list[tuple[float, float]], tuple[float | None, float | None]]]:
    """Return the seconds of each round, and launches and idle time, of processes that never fail; add to `failed`."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    for number in range(rounds):
        order = list(processes.items())[:: 1 if number % 2 == 0 else -1]
        for name, seconds in _answers(dict(order), failed, "round", steps).items():
            times[name].append(seconds)
    launches = _answers(processes, failed, "launches", steps)
    return {name: (times[name], launches[name]) for name in processes if name not in failed}


def _step_time(
    facts: dict[str, Any],
    batch_size: int,
    rounds: Sequence[tuple[float, float]],
    launches_and_idle: tuple[float | None, float | None],
) -> StepTime:
    whole = [1e3 * seconds for seconds, _ in rounds]
    low, middle, high = statistics.quantiles(whole, n=4) if len(whole) > 1 else whole * 3
    launches, idle = launches_and_idle
    return StepTime(
        milliseconds=middle,
        quartiles=(low, high),
        images_per_second=1e3 * batch_size / middle,
        host_milliseconds=statistics.median(1e3 * host for _, host in rounds),
        idle_milliseconds=idle,
        launches=launches,
        **facts,
    )


def cold_and_warm_build_seconds(
    recipe: str, settings: Sequence[str], data: str, device: str, backend: str
) -> tuple[float, float]:
    """Return the build seconds of a new process with an empty compiler cache, and of the next with the filled one.

    Raises:
        BackendError: a process failed; its messages are on standard error.
    """
    code = "import sys; from speedyresnet.bench.step_time import print_build_seconds; print_build_seconds(sys.argv[1])"
    arguments = json.dumps([recipe, list(settings), data, device, backend])
    with TemporaryDirectory() as cache:
        environment = os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TRITON_CACHE_DIR": f"{cache}/triton",
            FOLDER_VARIABLE: f"{cache}/kept",
        }
        seconds = list[float]()
        for _ in range(2):
            command = [sys.executable, "-c", code, arguments]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                raise BackendError(f"with an empty compiler cache {ended_told(done.returncode)}")
            seconds.append(float(done.stdout.split()[-1]))
    return seconds[0], seconds[1]


def all_build_seconds(
    recipe: str, settings: Sequence[str], data: str, device: str, backends: Sequence[str]
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """Return `cold_and_warm_build_seconds` of each backend, and the reasons of those that failed, by name."""
    found, failed = dict[str, tuple[float, float]](), dict[str, str]()
    for backend in backends:
        try:
            found[backend] = cold_and_warm_build_seconds(recipe, settings, data, device, backend)
        except BackendError as error:
            failed[backend] = str(error)
    return found, failed


def print_build_seconds(arguments: str) -> None:
    """Print build seconds; runs in the processes of `cold_and_warm_build_seconds`."""
    recipe, settings, data, device, backend = json.loads(arguments)
    pack = load_data(data)
    trainer = Trainer(chosen_recipe(recipe, settings, device, backend).with_data(pack.facts), pack)
    print(trainer.build_seconds)


def step_report(
    recipe: Recipe,
    pack: Pack,
    environment: dict[str, Any],
    times: Sequence[StepTime],
    failed: dict[str, str],
    builds: dict[str, Any],
) -> dict[str, Any]:
    """Return the whole result as plain values.

    Args:
        recipe: what was stepped.
        pack: the data set.
        environment: where it was stepped.
        times: times of the backends that could be built.
        failed: reasons why the others could not be built, by name.
        builds: (cold, warm) build seconds of backends that compile, by name.
    """
    rows = []
    for each in times:
        cold, warm = builds.get(each.backend, (None, None))
        rows.append(asdict(each) | {"cold_build_seconds": cold, "warm_build_seconds": warm})
    return {
        "recipe": {"name": recipe.name, "hash": recipe.hash, "batch_size": recipe.batch_size},
        "data": {"name": pack.name, "sha256": pack.sha256},
        "environment": environment,
        "backends": rows,
        "failed": [{"backend": name, "reason": reason} for name, reason in failed.items()],
    }


def print_steps(console: Console, result: dict[str, Any]) -> None:
    """Print the result as a table."""
    recipe = result["recipe"]
    table = Table(title=f"{recipe['name']} on {result['data']['name']}, batch {recipe['batch_size']}")
    table.add_column("", no_wrap=True)
    for row in result["backends"]:
        table.add_column(row["backend"], justify="right", no_wrap=True)
    lines: list[tuple[str, str, float]] = [
        ("ms/step", "milliseconds", 1.0),
        ("images/s", "images_per_second", 1.0),
        ("host ms/step", "host_milliseconds", 1.0),
        ("idle GPU ms/step", "idle_milliseconds", 1.0),
        ("launches/step", "launches", 1.0),
        ("peak memory, GB", "peak_bytes", 1e-9),
        ("build, s", "build_seconds", 1.0),
        ("build, cold cache, s", "cold_build_seconds", 1.0),
        ("build, warm cache, s", "warm_build_seconds", 1.0),
    ]
    for title, key, factor in lines:
        values = [row[key] for row in result["backends"]]
        table.add_row(title, *("" if value is None else f"{factor * value:,.2f}" for value in values))
    console.print(table)
    for row in result["backends"]:
        if told := differences_told(row):
            console.print(f"{row['backend']}: {told}", markup=False, highlight=False, soft_wrap=True)
    for each in result["failed"]:
        console.print(f"{each['backend']}: {each['reason']}", markup=False, highlight=False, soft_wrap=True)
