"""What a user's own Python file has, named as `my_file.py:function`."""

import contextlib
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import UserError, nearest_names


def file_of(reference: str | None) -> str | None:
    """The file in `my_file.py:function`; none where `reference` is no such thing."""
    return reference.rpartition(":")[0] if reference is not None and ".py:" in reference else None


def function_of(reference: str, what: str) -> Callable[..., Any]:
    """Run the file in `my_file.py:function`, and give its function or class of that name.

    Args:
        reference: one that has a `file_of`.
        what: it is of, such as a recipe: for messages.

    Raises:
        UserError: there is no such file or function, or the file fails.
    """
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not os.path.isfile(path):
        raise UserError(f"{what} file {file} does not exist; give my_file.py:function")
    spec = importlib.util.spec_from_file_location(f"speedyresnet_{what}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{what} file {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    with failures_explained(reference, what):
        spec.loader.exec_module(module)
    functions: dict[str, Callable[..., Any]] = dict(inspect.getmembers(module, callable))
    if name not in functions:
        raise UserError(f"{file} has no function {name!r}; {nearest_names(name, functions)}")
    return functions[name]


@contextlib.contextmanager
def failures_explained(reference: str, what: str) -> Iterator[None]:
    """Within, whatever the user's own code raises becomes a UserError: it is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} {reference} failed: {type(error).__name__}: {error}") from error
