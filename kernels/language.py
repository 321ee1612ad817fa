"""Triton, or stand-ins with which kernel files can be imported where there is none (macOS, Windows).

`INTERPRETED` says that kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1 in the environment
before the first import. It is how kernels are tested without a GPU.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    triton: Any
    tl: Any
    AVAILABLE: bool
else:
    try:
        import triton
        import triton.language as tl

        AVAILABLE = True
    except ModuleNotFoundError:

        class triton:
            """Decorates kernels with nothing."""

            @staticmethod
            def jit(function=None, **_options):  # noqa: ANN003, ANN205
                """The function itself, which nobody can launch."""
                return (lambda function: function) if function is None else function

        class tl:
            """Has what kernels are annotated with."""

            constexpr = object

        AVAILABLE = False

INTERPRETED = AVAILABLE and os.environ.get("TRITON_INTERPRET", "0") == "1"


def next_power_of_two(value: int) -> int:
    """The least power of two that is not below `value`; sizes of blocks have to be such."""
    return 1 << (value - 1).bit_length()
