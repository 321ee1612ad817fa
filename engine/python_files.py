"""Python files of the user's own, whose failures are told in one line."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from .errors import UserError


@contextmanager
def failures_explained(what: str) -> Iterator[None]:
    """Within, whatever the user's own code raises becomes a UserError that names `what`."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # is the user's to mend
        raise UserError(f"{what} failed: {type(error).__name__}: {error}") from error


def module_of_file(reference: str, kind: str, form: str) -> tuple[ModuleType, str]:
    """The module that a file makes, and the name in it.

    Args:
        reference: FILE:NAME.
        kind: what the file is for, as in "recipe".
        form: what such a reference looks like.

    Raises:
        UserError: no such file, or one that fails.
    """
    file, _, name = reference.rpartition(":")
    if not os.path.isfile(file):
        raise UserError(f"{kind} file {file} does not exist; give {form}")
    spec = importlib.util.spec_from_file_location(f"speedyresnet_{kind}_{Path(file).stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{kind} file {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    with failures_explained(f"{kind} {reference}"):
        spec.loader.exec_module(module)
    return module, name
