"""Stop requests: Ctrl-C (SIGINT) and SIGTERM, which schedulers send to end a process, are handled alike.

Both raise KeyboardInterrupt, so that temporary files and child processes are cleaned up; the training loop finishes its
step first. Only the exit code differs: 130 after Ctrl-C, 143 after SIGTERM.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Protocol

STOPPING = (signal.SIGINT, signal.SIGTERM)

AGREEMENT_STEPS = 8
"""From one step at which ranks agree on whether to stop to the next."""

_last_signal: int = signal.SIGINT


def stop_code() -> int:
    """Return the exit code of a stopped process: 128 plus the number of the last signal."""
    return 128 + _last_signal


def stop_at_once(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; a handler for the signals in STOPPING."""
    _remember(signum)
    raise KeyboardInterrupt


def handle_stopping() -> None:
    """Make both signals raise KeyboardInterrupt, even in a background job of a shell, which ignores Ctrl-C."""
    _remember(signal.SIGINT)  # a KeyboardInterrupt without a signal counts as Ctrl-C
    for each in STOPPING:
        signal.signal(each, stop_at_once)


def _remember(signum: int) -> None:
    global _last_signal
    _last_signal = signum


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], Any] | signal.Handlers, *signals: int) -> Iterator[None]:
    """Let `handler` handle `signals` inside; outside the main thread, where Python delivers none, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {each: signal.signal(each, handler) for each in signals}
    try:
        yield
    finally:
        for each, before in previous.items():
            signal.signal(each, before)


@contextlib.contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """Provide an event that Ctrl-C or SIGTERM sets, so that no step is cut short; a second one stops at once.

    Outside the main thread, where Python delivers no signals, the event is never set.
    """
    flag = threading.Event()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if flag.is_set():
            stop_at_once(signum, frame)
        _remember(signum)
        flag.set()

    with handled(interrupt, *STOPPING):
        yield flag


class Stop(Protocol):
    """Says whether to stop, as an event does."""

    def is_set(self) -> bool:
        """Whether it is time."""


class AgreedStop:
    """A request to stop that all ranks of a launcher see at the same step, as none may wait for another in vain.

    Args:
        event: the request on this rank, which the others may get later or never.
        agreed: whether a value is true on any rank.
        step: the number of steps done, the same on all ranks whenever they ask.
    """

    def __init__(self, event: Stop, agreed: Callable[[bool], bool], step: Callable[[], int]) -> None:
        self._event, self._agreed, self._step = event, agreed, step
        self._asked_at, self._stops = -1, False

    def is_set(self) -> bool:
        """Whether any rank was asked to stop before the last step at which the ranks spoke about it."""
        step = self._step()
        if step % AGREEMENT_STEPS == 0 and step != self._asked_at:
            self._asked_at, self._stops = step, self._agreed(self._event.is_set())
        return self._stops
