import json
import os
import pickle

import pytest
import torch
from data_checks import CLASSES, assert_is_remedy, assert_same_pack, random_arrays
from safetensors import safe_open
from safetensors.torch import save_file

from speedyresnet.engine.data import load_data
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.model_file import read_model
from speedyresnet.engine.pack import DTYPES, make_pack
from speedyresnet.engine.pack_file import read_pack, save_pack


@pytest.fixture
def pack():
    return make_pack("small", CLASSES, *random_arrays())


def test_pack_round_trip(pack, tmp_path):
    path = tmp_path / "deep" / "small.safetensors"
    save_pack(pack, path)
    assert_same_pack(read_pack(path), pack)
    assert os.listdir(path.parent) == [path.name]
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "speedyresnet.pack/1"


def test_read_pack_does_not_depend_on_the_file_any_more(pack, tmp_path):
    path = tmp_path / "small.safetensors"
    save_pack(pack, path)
    read = read_pack(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same_pack(read, pack)


@pytest.mark.parametrize("part", ["images", "labels", "name of a class", "mean"])
def test_altered_file_is_refused(pack, tmp_path, part):
    path = tmp_path / "small.safetensors"
    save_pack(pack, path)
    content = bytearray(path.read_bytes())
    places = {
        "images": content.find(pack.test_images.numpy().tobytes()),
        "labels": content.find(pack.train_labels.numpy().tobytes()),
        "name of a class": content.find(b"bee"),
        "mean": content.find(b"[0.") + 5,
    }
    content[places[part]] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_pack(path)
    assert_is_remedy(error, str(path), "is damaged", "speedyresnet data pack")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_file_is_refused(pack, tmp_path, kept):
    path = tmp_path / "small.safetensors"
    save_pack(pack, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError) as error:
        read_pack(path)
    assert_is_remedy(error, str(path), "is not a whole data pack", "speedyresnet data pack")


def test_missing_file_and_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no data pack at"):
        read_pack(tmp_path / "nothing")
    (tmp_path / "text").write_text("these are some words and not a pack of images")
    with pytest.raises(UserError, match="is not a whole data pack"):
        read_pack(tmp_path / "text")
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="is not a data pack of format"):
        read_pack(tmp_path / "weights.safetensors")


def rewrite(pack, path, metadata=None, **tensors):
    """Save a pack with some tensors or metadata replaced."""
    save_pack(pack, path)
    with safe_open(path, framework="pt") as file:
        kept = file.metadata()
    stored = {key: getattr(pack, key) for key in DTYPES} | tensors
    save_file({key: value.contiguous() for key, value in stored.items()}, path, kept | (metadata or {}))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda pack: {"train_images": pack.train_images.float()}, "wrong tensors"),
        (lambda pack: {"extra": torch.zeros(3)}, "wrong tensors"),
        (lambda pack: {"train_images": pack.train_images[0]}, r"train images are \[6, 5, 3\]"),
        (lambda pack: {"test_images": pack.test_images[:0]}, "test images are"),
        (lambda pack: {"test_images": pack.test_images[:, 1:]}, "test images"),
        (lambda pack: {"test_labels": pack.test_labels[1:]}, "12 test images and labels of shape"),
        (lambda pack: {"test_labels": pack.test_labels + 1}, r"not all in 0\.\.2"),
        (lambda pack: {"train_labels": pack.train_labels - 1}, r"not all in 0\.\.2"),
        (lambda pack: {"metadata": {"class_names": "ant"}}, "unreadable metadata"),
        (lambda pack: {"metadata": {"class_names": "[1, 2, 3]"}}, "class_names is not a list of names"),
        (lambda pack: {"metadata": {"class_names": "[" * 100_000}}, "unreadable metadata"),
        (lambda pack: {"metadata": {"mean": "9" * 5000}}, "unreadable metadata"),
        (lambda pack: {"metadata": {"mean": "[NaN, NaN, NaN]"}}, "has unreadable metadata"),
        (lambda pack: {"metadata": {"name": "two\nlines"}}, "name is not printable"),
        (lambda pack: {"metadata": {"class_names": '["a", "b", "\\ud800"]'}}, "is not Unicode"),
        (lambda pack: {"metadata": {"format": "speedyresnet.pack/0"}}, "of format speedyresnet.pack/1"),
        (lambda pack: {"metadata": {"sha256": "0" * 64}}, "does not match its checksum"),
        (lambda pack: {"metadata": {"std": "[1.0, 1.0, 1.0]"}}, "does not match its checksum"),
    ],
)
def test_inconsistent_file_is_refused(pack, tmp_path, change, fault):
    path = tmp_path / "small.safetensors"
    rewrite(pack, path)
    read_pack(path)
    rewrite(pack, path, **change(pack))
    with pytest.raises(UserError, match=fault) as error:
        read_pack(path)
    assert_is_remedy(error, str(path), "speedyresnet data pack")


def test_place_that_cannot_be_written(pack, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "pack.safetensors", tmp_path):
        with pytest.raises(UserError, match="cannot write"):
            save_pack(pack, path)
    assert os.listdir(tmp_path) == ["file"]


# --- Hostile headers


def write_header(path, header, content=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def entry(shape, start, end, dtype="I64"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"train_labels": entry([2**60], 0, 8)},
        {"train_labels": entry([2**40, 2**40], 0, 8)},
        {"train_labels": entry([2], 0, 8)},
        {"train_labels": entry([-1], 0, 8)},
        {"train_labels": entry([1.5], 0, 8)},
        {"train_labels": entry([1], 0, 8, "I65")},
        {"train_labels": entry([1], 0, 8), "test_labels": entry([1], 0, 8)},
        {"train_labels": entry([1], 4, 12)},
        {"train_labels": entry([0], 8, 0)},
        {"__metadata__": {"format": 1}, "train_labels": entry([1], 0, 8)},
        b"[" * 100_000,
        b"\xff" * 100,
        b"",
    ],
    ids=lambda header: repr(header)[:60],
)
def test_header_that_contradicts_itself_or_the_file_is_refused(tmp_path, header):
    path = tmp_path / "hostile.safetensors"
    write_header(path, header, bytes(8))
    with pytest.raises(UserError) as error:
        read_pack(path)
    assert_is_remedy(error, "is not a whole data pack", "speedyresnet data pack")


@pytest.mark.parametrize("length", [2**63, 2**40, 10**8 + 1, 101])
def test_header_longer_than_the_file_is_refused(tmp_path, length):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + bytes(100))
    with pytest.raises(UserError, match="is not a whole data pack"):
        read_pack(path)


@pytest.mark.parametrize(
    ("key", "shape", "dtype", "words"),
    [
        ("train_images", [2**50, 0, 2, 3], "U8", r"train images are \[1125899906842624, 0"),
        ("train_images", [0] * 1000, "U8", "train images are"),
        ("test_labels", [0, 2**62], "I64", "test labels are"),
        ("test_labels", [0], "F4", "wrong tensors"),
        ("extra", [0], "U8", "wrong tensors"),
    ],
)
def test_no_tensor_is_made_before_its_header_is_judged(tmp_path, headers_only, key, shape, dtype, words):
    """Of no bytes, so that a shape may be as large as it likes."""
    path, tensors, end = tmp_path / "hostile.safetensors", {key: entry(shape, 0, 0, dtype)}, 0
    for name in set(DTYPES) - {key}:
        images = name.endswith("images")
        size = 1 if images else 8
        tensors[name] = entry([1] * (4 if images else 1), end, end + size, "U8" if images else "I64")
        end += size
    write_header(path, {"__metadata__": {"format": "speedyresnet.pack/1"}, **tensors}, bytes(end))
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(tensors)  # as a safetensors file it is whole
    with pytest.raises(UserError, match=words):
        read_pack(path)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, write):
    path, trap = tmp_path / "trap", tmp_path / "trapped"
    write(Payload(trap), path)
    for read in (read_pack, read_model, load_data):
        with pytest.raises(UserError):
            read(path)
    assert not trap.exists()
    if write is torch.save:
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert trap.exists()  # it would have worked
