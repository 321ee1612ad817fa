"""Processes that measure or are measured: they end when their time is over, with everything they started."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Command:
    """A program and its arguments, with options of subprocess.Popen."""

    words: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)


def exit_code_within(seconds: float, words: Sequence[str], *, grace: float = 0.0, **options: Any) -> int | None:
    """Run one command; see `exit_codes_within`."""
    return exit_codes_within(seconds, [Command(words, options)], grace=grace)[0]


def exit_codes_within(seconds: float, commands: Sequence[Command], *, grace: float = 0.0) -> list[int | None]:
    """Run `commands` side by side for at most `seconds`; return their exit codes, None for those that had to be ended.

    Everything they started, such as a compiler's workers, is ended with them: it would disturb the next measurement.

    Args:
        seconds: wall-clock time limit.
        commands: what to run.
        grace: seconds between Ctrl-C and the kill, for ending processes that lead a session of their own.
    """
    deadline, processes = time.monotonic() + seconds, list["subprocess.Popen[Any]"]()
    try:
        for each in commands:
            options = {"stdin": subprocess.DEVNULL, "start_new_session": True, **each.options}
            processes.append(subprocess.Popen(each.words, **options))
        return [_code_before(deadline, process) for process in processes]
    finally:  # also after Ctrl-C or SIGTERM
        try:
            _interrupt(processes, grace)
        finally:  # also if a second signal ends the wait
            for process in processes:
                end_session(process)


def _code_before(deadline: float, process: "subprocess.Popen[Any]") -> int | None:
    try:
        return process.wait(timeout=max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        return None


def _interrupt(processes: Sequence["subprocess.Popen[Any]"], grace: float) -> None:
    """Send Ctrl-C to the processes that are still running and wait for them for `grace` seconds in total."""
    running = [process for process in processes if grace and process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + grace
    for process in running:
        _code_before(deadline, process)


def end_session(process: "subprocess.Popen[Any]") -> None:
    """Kill a process that leads its own session, and everything it started."""
    with contextlib.suppress(ProcessLookupError):  # everything has ended
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
