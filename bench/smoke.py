"""Run a script written for CUDA on the CPU until each of its optimizers has made its first step.

`python -m speedyresnet.bench.smoke SCRIPT [ARGUMENTS]`, run in the folder the script expects, shows that the script
starts: its imports, data, network, loss, gradients and optimizers fit the installed PyTorch. It does not show that it
compiles, captures graphs, evaluates or learns. The exit code is 0, after the line FIRST_STEP, or else 1 or the
script's.
"""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.nn import functional as F
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode

FIRST_STEP = "every optimizer has made its first step"


class FirstStep(BaseException):
    """Raised to end the script; not an Exception, which a script may catch."""


class OnCPU(TorchFunctionMode):
    """Mode that replaces CUDA by the CPU: in torch calls with `device="cuda"`, in `Tensor.cuda`, and so in modules."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` with its devices replaced."""
        if func is torch.Tensor.cuda:
            return args[0]
        kwargs = kwargs or {}
        if func is F.conv2d and args[0].dtype is torch.float16:
            # Most CPUs convolve in float16 about eight times slower than in float32.
            widened: list[Any] = [value.float() if isinstance(value, torch.Tensor) else value for value in args]
            return F.conv2d(*widened, **kwargs).half()
        return func(*map(_placed, args), **{key: _placed(value) for key, value in kwargs.items()})


def _placed(value: Any) -> Any:
    # A string is enough: torch.device("cuda") is a call of torch as well.
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value


class NoEvent:
    """Replacement for torch.cuda.Event, which cannot be made without a GPU."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self) -> None:
        """Do nothing."""

    def elapsed_time(self, _end: "NoEvent") -> float:
        """Return 0."""
        return 0.0


def _uncompiled(model: Any = None, **_options: Any) -> Any:
    return model if model is not None else _uncompiled


def patch_torch() -> None:
    """Replace what fails without a GPU and does not pass through OnCPU, for the rest of the process."""
    patched: Any = torch
    patched.compile = _uncompiled  # takes minutes, and compiles for another processor
    patched.cuda.Event = NoEvent
    patched.cuda.synchronize = lambda *_: None


def stop_after_first_steps() -> None:
    """Raise FirstStep as soon as every optimizer made so far has stepped once."""
    made, stepped = set(), set()
    make = Optimizer.__init__

    def counted(optimizer: Optimizer, *words: Any, **options: Any) -> None:
        made.add(id(optimizer))
        make(optimizer, *words, **options)

    def after_step(optimizer: Optimizer, *_: object) -> None:
        stepped.add(id(optimizer))
        if stepped == made:
            raise FirstStep

    patched: Any = Optimizer
    patched.__init__ = counted
    register_optimizer_step_post_hook(after_step)


def main() -> NoReturn:
    """Run the script given on the command line."""
    del sys.argv[0]  # a script may read its own source by the name in sys.argv[0]
    script = sys.argv[0]
    sys.path.insert(0, str(Path(script).absolute().parent))
    patch_torch()
    stop_after_first_steps()
    try:
        with OnCPU():
            runpy.run_path(script, run_name="__main__")
    except FirstStep:
        print(FIRST_STEP)
        sys.exit(0)
    except SystemExit as end:
        if end.code:
            raise
    sys.exit("the script ended before every optimizer had made a step")


if __name__ == "__main__":
    main()
