"""Reading of JSON that anybody may have written: what cannot be used is refused before anything is done with it.

`json_value` parses what comes from outside of the process; `read_json` and `read_json_lines` read files with it, and
`fault_in` holds what they give against a schema.
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
"""Deepest nesting that is read; whatever walks through a document is far from Python's recursion limit then."""
_TYPE_NAMES = {dict: "an object", list: "a list", str: "text", int: "an integer", float: "a number", bool: "a boolean"}

Schema = type | UnionType | dict[str, Any] | list[Any]
"""What a value has to be: a type, where `float` takes integers too; a union of types; `{key: schema}` of an object that
has at least these keys; or `[schema]` of a list whose items all fit."""


def json_value(content: bytes | str) -> Any:
    """Parse one JSON document.

    Args:
        content: text, or its bytes in UTF-8.

    Raises:
        ValueError: it is not UTF-8, no JSON, nested more than MOST_LEVELS deep, has numbers that are not finite as a
            float, or text with half a surrogate pair, which cannot be written anywhere.
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
    """Raise ValueError where `value`, from JSON, is nested too deeply or has text that is not Unicode."""
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
    """The bytes of a file; UserError, which ends with `remedy`, where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {remedy}") from error


def read_json(path: Path, remedy: str) -> Any:
    """The JSON document in `path`.

    Args:
        path: of the file.
        remedy: what to do where it cannot be read or is none, for the end of the message.

    Raises:
        UserError: it cannot be read, or `json_value` refuses it.
    """
    try:
        return json_value(read_content(path, remedy))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is no JSON document ({error}); {remedy}") from error


def read_json_lines(path: Path, remedy: str) -> list[Any]:
    """The JSON documents in `path`, one a line; arguments and errors as of `read_json`."""
    return json_lines(path, read_content(path, remedy).splitlines(), remedy)


def json_lines(path: Path, lines: Iterable[bytes], remedy: str) -> list[Any]:
    """The JSON documents in the `lines` of `path`; UserError that names the line that is none."""
    documents = []
    for number, line in enumerate(lines, start=1):
        try:
            documents.append(json_value(line))
        except ValueError as error:
            raise UserError(f"{path}: line {number} is no JSON document ({error}); {remedy}") from error
    return documents


def fault_in(value: Any, schema: Schema, name: str = "it") -> str | None:
    """What is wrong with `value`, from JSON, in words; none where it is as `schema` says.

    Args:
        value: of `json_value`.
        schema: what it has to be.
        name: of the value, for the words.
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
    """Whether `value` is of a type or of one of a union; true and false are no numbers."""
    kinds = schema.__args__ if isinstance(schema, UnionType) else (schema,)
    return type(value) in kinds or (float in kinds and type(value) is int)


def _in_words(schema: type | UnionType) -> str:
    kinds = schema.__args__ if isinstance(schema, UnionType) else (schema,)
    return " or ".join(_TYPE_NAMES.get(kind, "null") for kind in kinds)
