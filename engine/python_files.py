"""What a user's own Python file has, named as `my_file.py:function`."""

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
    """The file in `my_file.py:function`; none where `reference` is no such thing."""
    return reference.rpartition(":")[0] if reference is not None and ".py:" in reference else None


def module_of_file(reference: str, what: str, form: str = "my_file.py:function") -> tuple[ModuleType, str]:
    """Run the file in FILE:NAME, and give the module that it makes and the name.

    Args:
        reference: one that has a `file_of`.
        what: it is of, such as a recipe: for messages.
        form: how such a reference looks: for messages.

    Raises:
        UserError: there is no such file, or it fails.
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
    """The function or class that `my_file.py:function` names.

    Args:
        reference: one that has a `file_of`.
        what: it is of, such as a recipe: for messages.

    Raises:
        UserError: there is no such file or function, or the file fails.
    """
    module, name = module_of_file(reference, what)
    functions: dict[str, Callable[..., Any]] = dict(inspect.getmembers(module, callable))
    if name not in functions:
        raise UserError(f"{file_of(reference)} has no function {name!r}; {nearest_names(name, functions)}")
    return functions[name]


@contextlib.contextmanager
def failures_explained(what: str) -> Iterator[None]:
    """Within, whatever the user's own code raises becomes a UserError that names `what`: it is the user's to mend."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} failed: {type(error).__name__}: {error}") from error
