"""How long the import of the engine took, which is part of the clock `build` of every run.

The package imports this module before any other and calls `stop` after the last one.
"""

import time

_STARTED = time.perf_counter()
_seconds = 0.0


def stop() -> None:
    """The import ends here."""
    global _seconds
    _seconds = time.perf_counter() - _STARTED


def import_seconds() -> float:
    """Seconds that the import took, that of PyTorch included where nothing had imported it before."""
    return _seconds
