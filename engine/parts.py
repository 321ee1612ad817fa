"""Names for the parts of a training step, so that whoever listens (a profile) can say in words where time goes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

Listener = Callable[[str], AbstractContextManager[object]]
"""Gets the name of a part and returns what is entered and left with it."""

_listeners: list[Listener] = []


def part(name: str) -> AbstractContextManager[object]:
    """A context for the operations of the part `name`; it does nothing unless somebody listens, or when compiled."""
    if torch.compiler.is_compiling() or not _listeners:
        return nullcontext()
    return _listeners[-1](name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let `listener` make the contexts of all parts entered within."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()
