"""Damaged and invented packs, models, recipes and settings must cause nothing but a UserError of one line.

The examples are the same each time; `SPEEDYRESNET_FUZZ_EXAMPLES=20000 pytest tests/test_fuzz.py` tries that many
others.
"""

import contextlib
import dataclasses
import io
import json
import operator
import os
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speedyresnet.bench.cli import main
from speedyresnet.engine import UserError, read_model, recipe, schedules
from speedyresnet.engine.fit import check_fit
from speedyresnet.engine.init import reset_parameters
from speedyresnet.engine.model_file import save_model
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.pack import make_pack
from speedyresnet.engine.pack_file import read_pack, save_pack
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.recipe_checks import recipe_from_dict
from speedyresnet.engine.settings import setting_names

EXAMPLES = os.environ.get("SPEEDYRESNET_FUZZ_EXAMPLES")
fuzzed = settings(
    max_examples=int(EXAMPLES or 150),
    derandomize=EXAMPLES is None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module", autouse=True)
def short_tables():
    """Plans of a million steps are valid, but too slow for these tests."""
    with mock.patch.object(schedules, "MAX_STEPS", 10_000):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def pack():
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8) for count in (6, 4)]
    labels = [np.arange(len(each)) % 3 for each in images]
    return make_pack("small", ("ant", "bee", "cow"), images[0], labels[0], images[1], labels[1])


@pytest.fixture(scope="module")
def pack_bytes(pack, folder):
    save_pack(pack, folder / "pack")
    return (folder / "pack").read_bytes()


@pytest.fixture(scope="module")
def model_bytes(pack, folder):
    made = recipe("airbench94", ["width_multiplier=0.01", "dtype=float32", "net.widths=64,256"])
    net = make_net(made, classes=3, channels=3, dtype=torch.float32, device="cpu")
    reset_parameters(net, made.net, 0)
    save_model(folder / "model", net.state_dict(), made, pack, torch.float32)
    return (folder / "model").read_bytes()


# --- Strategies

TEXTS = st.text(max_size=20) | st.text(st.characters(), max_size=5)
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 1, 2, 10**6, 2**31, 2**63, 10**400, 0.5, 1e-300, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def places_in(document):
    """Yield every (container, key) of nested dictionaries and lists."""
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        yield document, key
        if isinstance(value, dict | list):
            yield from places_in(value)


def like(value):
    """Return a strategy for values of the same type, most of which are valid in its place."""
    if isinstance(value, list):
        return st.lists(st.integers(1, 40), min_size=1, max_size=5)
    if isinstance(value, str):
        return st.sampled_from(["none", "relu", "float16", "ema", "mirror", "linear", "zero", "dirac", "muon"])
    kinds = {bool: st.booleans(), int: st.integers(0, 40), float: st.floats(0, 2)}
    return kinds.get(type(value), st.integers(1, 4))


@st.composite
def changed(draw, document):
    """Draw `document` with up to five values replaced, removed or added."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.sampled_from([1, 1, 2, 5]))):
        if not document:
            break
        container, key = draw(st.sampled_from(list(places_in(document))))
        action = draw(st.sampled_from(["vary", "vary", "vary", "replace", "repeat", "remove", "add"]))
        if action == "vary" and not isinstance(container[key], dict):
            container[key] = draw(like(container[key]))
        elif action == "replace":
            container[key] = draw(VALUES)
        elif action == "repeat" and isinstance(container, dict):
            container[key] = [container[key]] * draw(st.integers(0, 40))
        elif action == "remove":
            del container[key]
        elif action == "add" and isinstance(container, dict):
            container[draw(TEXTS)] = draw(VALUES)
    return document


@st.composite
def damaged(draw, content):
    """Draw `content` with bytes flipped, inserted, deleted or cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, 2000) | st.integers(0, len(content)))
        action = draw(st.sampled_from(["flip", "insert", "delete", "truncate"]))
        if action == "flip" and place < len(content):
            content[place] ^= draw(st.integers(1, 255))
        elif action == "insert":
            content[place:place] = draw(st.binary(max_size=9))
        elif action == "delete":
            del content[place : place + draw(st.integers(1, 64))]
        elif action == "truncate":
            del content[place:]
    return bytes(content)


@st.composite
def rewritten(draw, content):
    """Draw a safetensors file with changes in its header or in the JSON of its metadata."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header["__metadata__"]
    inner = draw(st.sampled_from(["", *(key for key, value in metadata.items() if value[:1] in "[{")]))
    if inner:
        metadata[inner] = json.dumps(draw(changed(json.loads(metadata[inner]))))
    else:
        header = draw(changed(header))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[end:]


def files_like(content):
    return damaged(content) | rewritten(content) | st.binary(max_size=64)


# --- Requirements


def result_or_one_line(function, *arguments):
    """Return the result of `function`, or None if it refuses as it should."""
    try:
        return function(*arguments)
    except UserError as error:
        message = str(error)
    assert message
    assert message.isprintable()
    return None


def assert_usable(made):
    """Assert that an accepted recipe can be stored, laid out and planned, or that what prevents it is said."""
    assert recipe_from_dict(json.loads(json.dumps(dataclasses.asdict(made)))) == made
    make_net(made, classes=10, channels=3, dtype=torch.float32, device="meta")
    plan = result_or_one_line(schedules.plan, made, 2000)
    if plan is not None:
        assert np.isfinite([plan.learning_rate, plan.averaging_keep, *plan.own_learning_rates.values()]).all()
    result_or_one_line(check_fit, made, 32, 32)


@fuzzed
@given(data=st.data())
def test_packs(data, pack_bytes, folder):
    path = folder / "changed"
    path.write_bytes(data.draw(files_like(pack_bytes)))
    found = result_or_one_line(read_pack, path)
    if found is not None:
        assert (found.num_classes, found.image_size, found.channels) == (3, (16, 16), 3)


@fuzzed
@given(data=st.data())
def test_models(data, model_bytes, pack, folder):
    path = folder / "changed"
    path.write_bytes(data.draw(files_like(model_bytes)))
    found = result_or_one_line(read_model, path)
    if found is not None:
        result_or_one_line(found.evaluate, pack, torch.device("cpu"))


@fuzzed
@given(data=st.data(), name=st.sampled_from(["airbench94", "hiverge", "hlb-v0.7", "pocket"]))
def test_stored_recipes(data, name):
    made = result_or_one_line(recipe_from_dict, data.draw(changed(dataclasses.asdict(recipe(name))) | VALUES))
    if made is not None:
        assert_usable(made)


KEYS = st.sampled_from(setting_names(Recipe))
WORDS = st.sampled_from(["none", "true", "False", "nan", "-inf", "1e400", "1_0", "٣", "", "float16", "muon", "\0"])
ODD_VALUES = NUMBERS.map(repr) | WORDS | TEXTS | st.lists(NUMBERS.map(repr), max_size=20).map(",".join)


def fitting(key):
    """Return a strategy for settings of `key`, most of which a recipe can have."""
    value = operator.attrgetter(key)(recipe("hlb-v0.7"))
    return like(list(value) if isinstance(value, tuple) else value).map(f"{key}={{}}".format)


FITTING = KEYS.flatmap(fitting)
ANY = FITTING | st.builds("{}={}".format, KEYS, ODD_VALUES) | TEXTS
SETTINGS = st.lists(FITTING, max_size=4) | st.lists(ANY, max_size=4)


@fuzzed
@given(chosen=SETTINGS, name=st.sampled_from(["airbench94-muon", "hlb-v0.4", "pocket"]))
def test_settings(chosen, name):
    made = result_or_one_line(recipe, name, chosen)
    if made is not None:
        assert_usable(made)


@settings(fuzzed, max_examples=fuzzed.max_examples // 3)
@given(chosen=SETTINGS, as_json=st.booleans())
def test_command_line(chosen, as_json):
    words = ["recipes", "pocket", *(word for each in chosen for word in ("--set", each))] + ["--json"] * as_json
    out, error = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["speedyresnet", *words]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    out.flush()
    assert ended.value.code in (0, 2)
    assert len(error.getvalue().splitlines()) == ended.value.code // 2
    assert bool(out.buffer.getvalue()) == (ended.value.code == 0)
