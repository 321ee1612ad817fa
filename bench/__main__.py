"""The `speedyresnet` command, also `python -m speedyresnet.bench`: signals to stop never end in a traceback.

`python -m speedyresnet.bench record` is `speedyresnet bench record`; the same goes for all commands of `bench`.

No work is in progress before PyTorch is imported or after the command has ended, so a signal then ends the process at
once.
"""

import os
import signal
from types import FrameType


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(128 + signum)


def _end_at_signals() -> None:
    for each in (signal.SIGINT, signal.SIGTERM):  # not with engine.signals: importing it imports PyTorch
        signal.signal(each, _end)


def main(*, in_bench: bool = False) -> None:
    """Entry point of the `speedyresnet` command; `in_bench`: that of this package, see above."""
    _end_at_signals()
    from .cli import main as run

    try:
        run(in_bench=in_bench)
    finally:
        _end_at_signals()


if __name__ == "__main__":
    main(in_bench=True)
