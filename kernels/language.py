"""Triton, or stand-ins that make kernel files importable where it is not available (macOS, Windows).

`INTERPRETED` says whether kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1 in the environment
before the first import. Kernels are tested this way without a GPU.
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
            """Stand-in whose decorator does nothing."""

            @staticmethod
            def jit(function=None, **_options):  # noqa: ANN003, ANN205
                """Return the function itself, which cannot be launched."""
                return (lambda function: function) if function is None else function

        class tl:
            """Stand-in with the annotations of kernels."""

            constexpr = object

        AVAILABLE = False

INTERPRETED = AVAILABLE and os.environ.get("TRITON_INTERPRET", "0") == "1"


def next_power_of_two(value: int) -> int:
    """Return the least power of two that is not below `value`; block sizes must be powers of two."""
    return 1 << (value - 1).bit_length()
