"""The `speedyresnet` command, which is also `python -m speedyresnet.bench`: Ctrl-C never ends in a traceback.

Nothing is done before PyTorch is imported or after the command has ended, so then Ctrl-C ends the process at once.
"""

import os
import signal
from types import FrameType


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(130)


def main() -> None:
    """Entry point of the `speedyresnet` command."""
    signal.signal(signal.SIGINT, _end)
    from .cli import main as run

    try:
        run()
    finally:
        signal.signal(signal.SIGINT, _end)


if __name__ == "__main__":
    main()
