"""Names for the parts of a training step, so that a listener (a profile) can attribute time to them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

Listener = Callable[[str], AbstractContextManager[object]]
"""Map the name of a part to the context that is entered for it."""

_listeners: list[Listener] = []


def part(name: str) -> AbstractContextManager[object]:
    """Return a context for the operations of the part `name`; it does nothing without a listener or when compiled."""
    if torch.compiler.is_compiling() or not _listeners:
        return nullcontext()
    return _listeners[-1](name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let `listener` make the contexts of all parts entered inside."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()
