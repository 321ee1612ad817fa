"""Processes that are measured or that measure: they end when their time is over, with all they have started."""

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
    """Run `commands` side by side for at most `seconds`; their exit codes, none for those that had to be ended.

    Whatever they started, such as a compiler's workers, is ended with them: it would disturb the next measurement.

    Args:
        seconds: of wall-clock time.
        commands: what to run.
        grace: seconds that they have after Ctrl-C, before they are killed, to end what leads a session of its own.
    """
    deadline, processes = time.monotonic() + seconds, list["subprocess.Popen[Any]"]()
    try:
        for each in commands:
            options = {"stdin": subprocess.DEVNULL, "start_new_session": True, **each.options}
            processes.append(subprocess.Popen(each.words, **options))
        return [_code_before(deadline, process) for process in processes]
    finally:  # after Ctrl-C or SIGTERM too
        try:
            _interrupt(processes, grace)
        finally:  # where a second one ends the wait
            for process in processes:
                end_session(process)


def _code_before(deadline: float, process: "subprocess.Popen[Any]") -> int | None:
    try:
        return process.wait(timeout=max(deadline - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        return None


def _interrupt(processes: Sequence["subprocess.Popen[Any]"], grace: float) -> None:
    """Send Ctrl-C to those that still run, and wait for them for `grace` seconds altogether."""
    running = [process for process in processes if grace and process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + grace
    for process in running:
        _code_before(deadline, process)


def end_session(process: "subprocess.Popen[Any]") -> None:
    """Kill a process that leads a session of its own, and whatever it has started."""
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
