"""Parsing of untrusted JSON: unusable documents are rejected before anything is done with them.

`json_value` parses input from outside the process; `read_json` and `read_json_lines` use it on files, and `fault_in`
checks the result against a schema.
"""

import json
import math
import reprlib
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any

from .errors import UserError

MOST_LEVELS = 64
"""Maximum nesting, so that code that walks a document stays far from Python's recursion limit."""
_TYPE_NAMES = {dict: "an object", list: "a list", str: "text", int: "an integer", float: "a number", bool: "a boolean"}

Schema = type | UnionType | dict[str, Any] | list[Any]
"""Expected form of a value: a type, where `float` includes integers; a union of types; `{key: schema}` for an object
with at least these keys; or `[schema]` for a list whose items all match.
"""


def json_value(content: bytes | str) -> Any:
    """Parse one JSON document.

    Args:
        content: text, or its bytes in UTF-8.

    Raises:
        ValueError: the content is not UTF-8, not JSON, nested more than MOST_LEVELS deep, or has numbers that are not
            finite as a float, or text with half a surrogate pair, which cannot be encoded.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, parse_float=_finite, parse_int=_integer, parse_constant=_finite)
    except UnicodeDecodeError as error:
        raise ValueError("it is not text in UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_levels(value)
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{reprlib.repr(text)} is not a finite number")
    return value


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


def _check_levels(value: Any) -> None:
    """Raise ValueError if `value`, from JSON, is nested too deeply or contains text that is not Unicode."""
    level = [value]
    for _ in range(MOST_LEVELS):
        below: list[Any] = []
        for each in level:
            if isinstance(each, str):
                _check_text(each)
            elif isinstance(each, dict):
                below += [*each, *each.values()]
            elif isinstance(each, list):
                below += each
        level = below
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text {reprlib.repr(text)} is not Unicode") from error


def read_content(path: Path, remedy: str = "give another file") -> bytes:
    """Return the bytes of a file; raise UserError, ending in `remedy`, if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {remedy}") from error


def read_json(path: Path, remedy: str) -> Any:
    """Return the JSON document in `path`.

    Args:
        path: the file.
        remedy: end of the error message that says what to do.

    Raises:
        UserError: the file cannot be read, or `json_value` rejects it.
    """
    try:
        return json_value(read_content(path, remedy))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is no JSON document ({error}); {remedy}") from error


def read_json_lines(path: Path, remedy: str) -> list[Any]:
    """Return the JSON documents in `path`, one per line; arguments and errors as in `read_json`."""
    return json_lines(path, read_content(path, remedy).splitlines(), remedy)


def json_lines(path: Path, lines: Iterable[bytes], remedy: str) -> list[Any]:
    """Parse the `lines` of `path` as JSON documents; raise UserError that names the first invalid line."""
    documents = []
    for number, line in enumerate(lines, start=1):
        try:
            documents.append(json_value(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is no JSON document ({error}); {remedy}") from error
    return documents


def fault_in(value: Any, schema: Schema, name: str = "it") -> str | None:
    """Describe what is wrong with `value`, from JSON; None if it matches `schema`.

    Args:
        value: a result of `json_value`.
        schema: the expected form.
        name: name of the value in the message.
    """
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"{name} is not an object"
        parts = ((key if name == "it" else f"{name}.{key}", value.get(key), inner) for key, inner in schema.items())
        return next(filter(None, (fault_in(part, inner, called) for called, part, inner in parts)), None)
    if isinstance(schema, list):
        if not isinstance(value, list):
            return f"{name} is not a list"
        return next(filter(None, (fault_in(each, schema[0], f"{name}[{i}]") for i, each in enumerate(value))), None)
    return None if _fits(value, schema) else f"{name} is not {_in_words(schema)} but {reprlib.repr(value)}"


def _fits(value: Any, schema: type | UnionType) -> bool:
    """Return whether `value` has the type or one of the union; true and false are not numbers."""
    kinds = schema.__args__ if isinstance(schema, UnionType) else (schema,)
    return type(value) in kinds or (float in kinds and type(value) is int)


def _in_words(schema: type | UnionType) -> str:
    kinds = schema.__args__ if isinstance(schema, UnionType) else (schema,)
    return " or ".join(_TYPE_NAMES.get(kind, "null") for kind in kinds)
