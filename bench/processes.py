"""Processes that are measured or that measure: they end when their time is over, with all they have started."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any


def exit_code_within(seconds: float, command: Sequence[str], *, grace: float = 0.0, **options: Any) -> int | None:
    """Run `command` for at most `seconds`; its exit code, or none where it had to be ended.

    Whatever it started, such as a compiler's workers, is ended with it: it would disturb the next measurement.

    Args:
        seconds: of wall-clock time.
        command: a program and its arguments.
        grace: seconds that it has after Ctrl-C, before it is killed, to end what leads a session of its own.
        options: of subprocess.Popen.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # after Ctrl-C too
        if grace and process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=grace)
        end_session(process)


def end_session(process: "subprocess.Popen[Any]") -> None:
    """Kill a process that leads a session of its own, and whatever it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all of it has ended
        return
    process.wait()
