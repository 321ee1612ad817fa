import dataclasses
import json
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiers import parametrize

from speedyresnet.engine import UserError, recipe, train
from speedyresnet.engine.checkpoint import CheckpointFile, read_checkpoint
from speedyresnet.engine.evaluator import Evaluator
from speedyresnet.engine.pack import make_pack
from speedyresnet.engine.watching import Silent

TINY = [
    "batch_size=64",
    "width_multiplier=0.125",
    "epochs=2.5",
    "dtype=float32",
    "augmentation.crop=16",
]  # 10 steps an epoch, 25 in all
WHOLE = ["augmentation.crop=0"]  # whole images, which progressive scales down to 20 pixels


class InterruptAt(Silent):
    def __init__(self, at):
        self.at = at

    def step(self, step):
        if step == self.at:
            signal.raise_signal(signal.SIGINT)


def trained(pack, name="airbench94", settings=(), **options):
    return train(recipe(name, [*TINY, *settings]), pack, device="cpu", **{"seed": 5} | options)


def assert_same_run(run, expected):
    def without_clock(row):
        return dataclasses.replace(row, seconds=0.0)

    assert run.record.status == expected.record.status == "finished"
    assert run.record.steps == expected.record.steps == 25
    assert run.record.images_seen == expected.record.images_seen
    assert list(map(without_clock, run.record.history)) == list(map(without_clock, expected.record.history))
    assert run.record.accuracy == expected.record.accuracy
    assert all(torch.equal(run.state[name], value) for name, value in expected.state.items())


@pytest.fixture(scope="module")
def whole(small_pack):
    return trained(small_pack)


@pytest.fixture(scope="module")
def content(small_pack, tmp_path_factory):
    """Of a checkpoint of the run `whole` after 13 steps."""
    path = tmp_path_factory.mktemp("interrupted") / "run.checkpoint"
    trained(small_pack, display=InterruptAt(13), checkpoint=path)
    return path.read_bytes()


@pytest.fixture
def file(content, tmp_path):
    path = tmp_path / "run.checkpoint"
    path.write_bytes(content)
    return path


@parametrize(
    ("name", "settings", "at"),
    [
        ("hlb-v0.7", [], 13),
        ("airbench94-muon", [], 20),
        ("progressive", [*WHOLE, "augmentation.sizes=24,28,0"], 7),
        ("airbench94", ["optimizer.first_group_frozen_epochs=1"], 18),
        ("progressive", [*WHOLE, "averaging.momentum=0.6", "averaging.blend=0.5", "averaging.tail=1.5"], 21),
        ("pocket", ["dtype=bfloat16"], 24),
    ],
    default=1,
)
def test_a_run_that_goes_on_gives_the_same_bits(name, settings, at, small_pack, tmp_path):
    expected = trained(small_pack, name, settings)
    path = tmp_path / "run.checkpoint"
    first = trained(small_pack, name, settings, display=InterruptAt(at), checkpoint=path)
    assert (first.record.status, first.record.steps) == ("interrupted", at)
    second = trained(small_pack, name, settings, resume=path)
    assert_same_run(second, expected)
    assert second.record.resumed_at_steps == [at]
    assert second.record.seconds.prepare == first.record.seconds.prepare
    assert second.record.seconds.train > first.record.seconds.train


@pytest.mark.exhaustive
def test_every_checkpoint_on_the_way_leads_to_the_same_end(small_pack, whole, tmp_path, monkeypatch):
    copies = []
    write = CheckpointFile.write

    def copying(self, state, record):
        write(self, state, record)
        copies.append(self.path.rename(tmp_path / f"{record.steps}.checkpoint"))

    calls = iter(range(10**6))
    monkeypatch.setattr(CheckpointFile, "is_due", lambda self: next(calls) % 10 == 9)  # seen before every step
    monkeypatch.setattr(CheckpointFile, "write", copying)
    assert_same_run(trained(small_pack, checkpoint=tmp_path / "run.checkpoint"), whole)
    monkeypatch.undo()
    assert [path.stem for path in copies] == ["9", "18", "25"]
    for path in copies[1:]:
        assert_same_run(trained(small_pack, resume=path), whole)


def test_an_interrupted_validation_is_done_again(small_pack, whole, tmp_path, monkeypatch):
    scores, path = Evaluator.scores, tmp_path / "run.checkpoint"

    def interrupting(self, weights, *view):
        if weights == "live":
            signal.raise_signal(signal.SIGINT)
        return scores(self, weights, *view)

    monkeypatch.setattr(Evaluator, "scores", interrupting)
    first = trained(small_pack, checkpoint=path)
    assert (first.record.status, first.record.steps, len(first.record.history)) == ("interrupted", 10, 1)
    monkeypatch.undo()
    assert_same_run(trained(small_pack, resume=path), whole)


def test_the_minutes_count_from_the_last_checkpoint(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("speedyresnet.engine.checkpoint.time.monotonic", lambda: now[0])
    file = CheckpointFile(tmp_path / "run.checkpoint", minutes=2)
    assert not file.is_due()
    file.wait()
    for moment, due in ((219.0, False), (220.0, True)):
        now[0] = moment
        assert file.is_due() == due
    with pytest.raises(UserError, match="at least"):
        CheckpointFile(tmp_path / "run.checkpoint", minutes=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 6}, "seed 5, not 6"),
        ({"settings": ["epochs=3"]}, "recipe hash"),
        ({"name": "hlb-v0.7"}, "recipe hash"),
        ({"backend": "torchscript"}, "backend eager, not torchscript"),
    ],
)
def test_another_run_is_refused(options, words, small_pack, file):
    with pytest.raises(UserError, match=words):
        trained(small_pack, resume=file, **options)


def test_other_data_are_refused(small_pack, file):
    images, labels = small_pack.train_images.numpy(), small_pack.train_labels.numpy()
    other = make_pack("synthetic", small_pack.class_names, images, (labels + 1) % 10, images, labels)
    with pytest.raises(UserError, match=small_pack.sha256):
        trained(other, resume=file)


def changed(path, change):
    """The checkpoint written again after `change(progress, tensors)`."""
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    progress = json.loads(metadata["progress"])
    change(progress, tensors)
    save_file(tensors, path, metadata | {"progress": json.dumps(progress)})


@parametrize(
    "change",
    [
        lambda progress, tensors: progress.update(steps="13"),
        lambda progress, tensors: progress.update(steps=14),
        lambda progress, tensors: progress.update(history=[]),
        lambda progress, tensors: progress["history"][0].update(step=9),
        lambda progress, tensors: progress["recipe"].update(batch_size=0),
        lambda progress, tensors: progress.pop("sha256"),
        lambda progress, tensors: tensors.pop("counter"),
        lambda progress, tensors: tensors.update(counter=torch.tensor([26])),
        lambda progress, tensors: tensors.update({"head.weight": tensors["head.weight"].double()}),
        lambda progress, tensors: tensors.update({"head.weight": tensors["head.weight"][:, :-1].contiguous()}),
    ],
    default=3,
)
def test_a_damaged_checkpoint_is_one_line(change, small_pack, file):
    changed(file, change)
    with pytest.raises(UserError, match="damaged") as error:
        trained(small_pack, resume=file)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_refused(whole, file, tmp_path):
    whole.save(tmp_path / "model.safetensors")
    (tmp_path / "half").write_bytes(file.read_bytes()[:-100])
    for name, words in (("none", "does not exist"), ("half", "damaged"), ("model.safetensors", "not a checkpoint")):
        with pytest.raises(UserError, match=words):
            read_checkpoint(tmp_path / name)


def test_writing_checkpoints_is_on_no_clock(small_pack, whole, tmp_path, monkeypatch):
    moments = iter(range(10**6))

    class StoppedClock:
        """Time passes only while a checkpoint is being written."""

        now = 0.0
        perf_counter = staticmethod(lambda: StoppedClock.now)

    def slow(self, state, record):
        StoppedClock.now += 1000

    for module in ("trainer", "evaluator"):
        monkeypatch.setattr(f"speedyresnet.engine.{module}.time", StoppedClock)
    monkeypatch.setattr(CheckpointFile, "is_due", lambda self: next(moments) % 4 == 3)
    monkeypatch.setattr(CheckpointFile, "write", slow)
    run = trained(small_pack, checkpoint=tmp_path / "run.checkpoint")
    assert StoppedClock.now >= 5000
    assert run.record.seconds.total == 0
