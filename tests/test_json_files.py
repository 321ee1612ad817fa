import json

import pytest

from speedyresnet.engine import UserError
from speedyresnet.engine.json_files import MOST_LEVELS, fault_in, json_value, read_json, read_json_lines

HOSTILE = {
    "deep list": "[" * 100_000,
    "deep and whole": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 100_000,
    "one level too deep": "[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1),
    "NaN": '{"a": [NaN]}',
    "infinity": "[-Infinity]",
    "a number that no float holds": "[1e999]",
    "an integer that no float holds": "[" + 400 * "9" + "]",
    "an integer of 5,000 digits": "[" + 5000 * "9" + "]",
    "half a surrogate pair": '["\\ud800"]',
    "half a surrogate pair as a key": '{"\\udc00": 1}',
    "UTF-16": "[1]".encode("utf-16"),
    "binary": bytes(range(256)),
    "a byte order mark": b"\xef\xbb\xbf[1]",
    "nothing": "",
    "half": '{"a": 1',
    "two documents": "1 2",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_cannot_be_used_is_refused(content, tmp_path):
    path = tmp_path / "given.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError):  # noqa: PT011 - each says something else
        json_value(content)
    with pytest.raises(UserError, match="give another") as refused:
        read_json(path, "give another")
    assert str(path) in str(refused.value)
    assert len(str(refused.value)) < 300


def test_plain_json_is_read_as_python_reads_it(tmp_path):
    document = {"a": [1, 2.5, None, True, "ä\U0001f600"], "b": {"c": [[]]}, "big": 2**70}
    assert json_value(json.dumps(document)) == document
    assert json_value(json.dumps(document, ensure_ascii=False).encode()) == document
    assert json_value("[" * MOST_LEVELS + "]" * MOST_LEVELS) is not None
    path = tmp_path / "lines.jsonl"
    path.write_text("1\n[2]\n")
    assert read_json_lines(path, "") == [1, [2]]
    path.write_text("1\n[2\n")
    with pytest.raises(UserError, match=r"lines\.jsonl: line 2 is no JSON document .*; begin anew"):
        read_json_lines(path, "begin anew")
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path, "")


@pytest.mark.parametrize(
    ("value", "schema", "fault"),
    [
        ({"a": 1, "more": 2}, {"a": float}, None),
        ({"a": True}, {"a": float}, "a is not a number but True"),
        ({"a": 1.0}, {"a": int}, "a is not an integer but 1.0"),
        ({}, {"a": str}, "a is not text but None"),
        ({}, {"a": str | None}, None),
        ({"a": []}, {"a": str | None}, "a is not text or null but []"),
        ([], {"a": str}, "it is not an object"),
        ({"a": {"b": "c"}}, {"a": {"b": list}}, "a.b is not a list but 'c'"),
        ({"a": "text"}, {"a": [str]}, "a is not a list"),
        ({"a": [1.5, None]}, {"a": [float]}, "a[1] is not a number but None"),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": int}]}, None),
    ],
)
def test_a_document_is_held_against_its_schema(value, schema, fault):
    assert fault_in(value, schema) == fault
