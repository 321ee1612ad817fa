"""Loading of objects from the user's own Python files, named as `my_file.py:function`."""

import contextlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import UserError, nearest_names


def file_of(reference: str | None) -> str | None:
    """Return the file in `my_file.py:function`; None if `reference` has another form."""
    return reference.rpartition(":")[0] if reference is not None and ".py:" in reference else None


def module_of_file(reference: str, what: str, form: str = "my_file.py:function") -> tuple[ModuleType, str]:
    """Run the file in FILE:NAME; return its module and the name.

    Args:
        reference: FILE:NAME, see `file_of`.
        what: kind of the named object, such as a recipe, for messages.
        form: form of such a reference, for messages.

    Raises:
        UserError: the file does not exist, or it fails.
    """
    file, _, name = reference.rpartition(":")
    if not os.path.isfile(file):
        raise UserError(f"{what} file {file} does not exist; give {form}")
    spec = importlib.util.spec_from_file_location(f"speedyresnet_{what}_{Path(file).stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{what} file {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    with failures_explained(f"{what} {reference}"):
        spec.loader.exec_module(module)
    return module, name


def function_of(reference: str, what: str) -> Callable[..., Any]:
    """Return the function or class that `my_file.py:function` names.

    Args:
        reference: FILE:NAME, see `file_of`.
        what: kind of the function, such as a recipe, for messages.

    Raises:
        UserError: the file or function does not exist, or the file fails.
    """
    module, name = module_of_file(reference, what)
    functions: dict[str, Callable[..., Any]] = dict(inspect.getmembers(module, callable))
    if name not in functions:
        raise UserError(f"{file_of(reference)} has no function {name!r}; {nearest_names(name, functions)}")
    return functions[name]


@contextlib.contextmanager
def failures_explained(what: str) -> Iterator[None]:
    """Convert errors in the user's own code to a UserError that names `what`, because the user has to fix them."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} failed: {type(error).__name__}: {error}") from error
