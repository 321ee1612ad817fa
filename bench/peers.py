"""Scripts that `bench versus` runs against: the data they look for, how they start, what they print and time.

Their code is not included; a checkout of their repository is needed.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from speedyresnet.engine.errors import UserError
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.recipe import View

from .record import Clock

RUN_COUNT = re.compile(rb"for run(?:_num)? in range\((\d+)\)")
"""Pattern of the only place in a script that sets how often it trains."""

TABLE_ROW = re.compile(r"\| *(warmup|\d*) *\| *(?:\d+|eval) *\|[^|\n]*\|[^|\n]*\| *([\d.]*) *\| *([\d.]*) *\|")
"""Row of airbench and hiverge: run, epoch, train_acc, val_acc, tta_val_acc, time_seconds."""

HLB_LAST_ROW = re.compile(r"^\| *\d+ *\|(?:[^|\n]*\|){4} *([\d.]+) *\| *([\d.]+) *\|\n-", re.MULTILINE)
"""Row of hlb above a line: epoch, four more columns, ema_val_acc, total_time_seconds."""

E1_TRIAL = re.compile(r"^\[trial [^\]]*\] train=[\d.]+s honest=([\d.]+)s acc=([\d.]+)", re.MULTILINE)

NOT_COPIED = ("results", "__pycache__")
"""Names that are not copied from the folder of a script with a launcher."""

E1_START = """\
import sys

from runners import harness, targets

harness.sxm_single_gpu_or_exit = harness.gpu_name
runs, seed = map(int, sys.argv[1:])
target = targets.get("e1").cls()
options = dict(data_path="cifar10", overrides={}, seed_base=seed, container_id=0)
harness.run_trials(target, trial_ids=list(range(runs)), **options)
"""
"""Calls E1's harness as its own worker does, but without the service Modal and not only on an A100-SXM."""


@dataclass(frozen=True, slots=True)
class PeerRun:
    """Report of a peer on one run."""

    seconds: float
    """Time by the peer's own clock."""
    accuracy: float
    """Fraction of its test images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A script that trains on CIFAR-10 and times itself."""

    script: str
    """Path of the script in a checkout of its repository."""
    write_data: Callable[[Pack, Path, torch.device], None]
    """Writes its input files into its working folder: all pixels and labels of the pack, in the pack's order."""
    read_runs: Callable[[str], list[PeerRun]]
    """Finds its runs in its standard output, without those that it does not count itself, such as a warm-up."""
    launcher: str | None = None
    """Source of a script that starts it, given the runs and a seed; None if it can start itself."""
    clock: Clock
    """Our clock that covers everything its own clock contains."""
    contains: str
    view: View
    accuracy_of: str


def write_uint8(pack: Pack, folder: Path, _device: torch.device) -> None:
    """Write `cifar10/{train,test}.pt`: images uint8 [N, H, W, C] and labels int64 [N], as in torchvision."""
    (folder / "cifar10").mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        data = {"images": getattr(pack, f"{split}_images"), "labels": getattr(pack, f"{split}_labels")}
        torch.save(data | {"classes": list(pack.class_names)}, folder / "cifar10" / f"{split}.pt")


def write_hlb(pack: Pack, folder: Path, device: torch.device) -> None:
    """Write `data.pt`: images float16 [N, C, H, W], normalised, and targets float16 [N, classes], one-hot.

    The tensors are on `device`, because hlb loads them to where they were saved and works with them there. Mean and
    (sample) standard deviation are of the training images in float32, as in hlb's own preparation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scaled = {
        split: images.permute(0, 3, 1, 2).contiguous().to(device).float().div_(255)
        for split, images in (("train", pack.train_images), ("eval", pack.test_images))
    }
    std, mean = (value.view(1, -1, 1, 1) for value in torch.std_mean(scaled["train"], dim=(0, 2, 3)))
    data = {}
    for split, labels in (("train", pack.train_labels), ("eval", pack.test_labels)):
        targets = F.one_hot(labels.to(device), pack.num_classes).half()
        data[split] = {"images": scaled[split].sub_(mean).div_(std).half(), "targets": targets}
    torch.save(data, folder / "data.pt")


def read_table(text: str) -> list[PeerRun]:
    """Return the runs in the table of airbench or hiverge, without the one called warmup."""
    runs, name = [], ""
    for run, accuracy, seconds in TABLE_ROW.findall(text):
        name = run or name  # airbench names a run only in its first row and reports this accuracy only in its last
        if name != "warmup" and accuracy and seconds:
            runs.append(PeerRun(float(seconds), float(accuracy)))
    return runs


def read_hlb(text: str) -> list[PeerRun]:
    """Return the runs in the tables of hlb."""
    return [PeerRun(float(seconds), float(accuracy)) for accuracy, seconds in HLB_LAST_ROW.findall(text)]


def read_e1(text: str) -> list[PeerRun]:
    """Return the runs in the lines of E1's harness."""
    return [PeerRun(float(seconds), float(accuracy)) for seconds, accuracy in E1_TRIAL.findall(text)]


PEERS = {
    "airbench94_muon": Peer(
        script="airbench94_muon.py",
        write_data=write_uint8,
        read_runs=read_table,
        clock="total",
        contains="whitening (5,000 images), training with augmentation, final 6-view evaluation; not: compilation, a "
        "warm-up run, reset of the weights, loading, evaluation after each epoch",
        view="six_view",
        accuracy_of="6 views, weighted",
    ),
    "hlb": Peer(
        script="main.py",
        write_data=write_hlb,
        read_runs=read_hlb,
        clock="train",
        contains="training with augmentation and averaging; not: reset of the weights, whitening (50,000 images), "
        "loading, normalising, evaluation after each epoch; its first run, unwarmed, counts",
        view="mirror",
        accuracy_of="2 views (mirror), averaged weights",
    ),
    "hiverge": Peer(
        script="cifar10_speedrun.py",
        write_data=write_uint8,
        read_runs=read_table,
        clock="total",
        contains="whitening (960 images), training with augmentation, final evaluation; not: compilation, a warm-up "
        "run, reset of the weights, loading, 6e9 clock ticks of rest of the GPU before each run",
        view="six_view",
        accuracy_of="1 view, 6 for the 25 % of test images it is least sure of",
    ),
    "e1": Peer(
        script="runners/harness.py",
        write_data=write_uint8,
        read_runs=read_e1,
        launcher=E1_START,
        clock="prepare+train",
        contains="reset of the weights, whitening (5,000 images), augmentation of all epochs, training; not: "
        "compilation, graph capture, loading, normalising, padding and the first flip, evaluation",
        view="six_view",
        accuracy_of="6 views, weighted, of the test images after the first 2,000 only",
    ),
}


def parse_peers(given: list[str]) -> dict[str, Path]:
    """Return the script of each peer given as NAME=PATH; PATH is the script or a checkout of its repository.

    Raises:
        UserError: the form is wrong, a name is unknown or repeated, or the script is not at the path.
    """
    scripts: dict[str, Path] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not equals or name not in PEERS:
            raise UserError(f"--peer {each}: give NAME=PATH with one of {', '.join(PEERS)}")
        if name in scripts:
            raise UserError(f"--peer {name} is given twice; give it once")
        scripts[name] = _find_script(name, Path(os.path.expanduser(path)))
    return scripts


def _find_script(name: str, path: Path) -> Path:
    script = path if path.is_file() else path / PEERS[name].script
    if not script.is_file():
        raise UserError(f"--peer {name}: no {script}; give the path of {PEERS[name].script} or of its checkout")
    return script.absolute()


def check_data(pack: Pack) -> None:
    """Raise UserError for a pack that the peers, written for CIFAR-10, cannot train on."""
    if (*pack.image_size, pack.channels, pack.num_classes) != (32, 32, 3, 10):
        raise UserError(f"--data {pack.name}: the peers take ten classes of 32 x 32 colour images only")


def install(name: str, script: Path, folder: Path, runs: int) -> str:
    """Copy a peer into `folder`, set to train `runs` times, and return the change as one line.

    Raises:
        UserError: the script does not set its number of runs in exactly one place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if launcher := PEERS[name].launcher:
        ignored = shutil.ignore_patterns(*NOT_COPIED)
        shutil.copytree(script.parent, folder / script.parent.name, ignore=ignored, dirs_exist_ok=True)
        (folder / "start.py").write_text(launcher)
        return "nothing; its check for an A100-SXM is skipped when it is started"
    source = script.read_bytes()
    found = list(RUN_COUNT.finditer(source))
    if len(found) != 1:
        raise UserError(f"{script} sets its number of runs in {len(found)} places, not in one: not the script known")
    start, end = found[0].span(1)
    changed = source[:start] + str(runs).encode() + source[end:]
    (folder / script.name).write_bytes(changed)
    line = source.count(b"\n", 0, start)
    before, after = (text.splitlines()[line].decode().strip() for text in (source, changed))
    return f"line {line + 1}: -{before} +{after}"


def source_sha256(name: str, script: Path) -> str:
    """Return the checksum of what `install` copies, including the names of the files."""
    beside = sorted(script.parent.rglob("*")) if PEERS[name].launcher else [script]
    digest = hashlib.sha256()
    for path in beside:
        inside = path.relative_to(script.parent)
        if path.is_file() and not {*NOT_COPIED}.intersection(inside.parts):
            digest.update(f"{inside.as_posix()}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def start_words(name: str, script: Path, runs: int, seed: int) -> list[str]:
    """Return the arguments for Python that start an installed peer in its folder; only launchers take a seed."""
    return ["start.py", str(runs), str(seed)] if PEERS[name].launcher else [script.name]
