"""Import time of the engine, which is part of the clock `build` of every run.

The package imports this module before any other and calls `stop` after the last one.
"""

import time

_STARTED = time.perf_counter()
_seconds = 0.0


def stop() -> None:
    """Stop the clock at the end of the import."""
    global _seconds
    _seconds = time.perf_counter() - _STARTED


def import_seconds() -> float:
    """Return the duration of the import in seconds, including PyTorch's unless it was imported before."""
    return _seconds
