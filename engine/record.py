"""The run record, schema speedyresnet.run/1: what a run was, where it ran, what it took and what came out."""

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..kernels.contract import REFERENCE, TRITON
from ..kernels.resources import ptxas_version
from .evaluate import Accuracy
from .files import write_atomically
from .ranks import launched
from .recipe import Recipe

SCHEMA = "speedyresnet.run/1"
COMMIT_VARIABLE = "SPEEDYRESNET_COMMIT"
"""What runs. It comes before what git says."""
KERNEL_PROVIDERS = (TRITON, REFERENCE)
"""What an operation of a run can be computed by, beside kernels from files of the user's own."""
RANKS = "ranks"
"""Where an environment says how many processes of a launcher ran at once, each on a device of its own."""
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(slots=True, kw_only=True)
class Seconds:
    """The four clocks and `total` = prepare + train + evaluate; none where a run did not get that far."""

    build: float | None = None
    prepare: float | None = None
    train: float | None = None
    evaluate: float | None = None
    wall: float | None = None
    """From the start of prepare to the last result of evaluate; none of a run that went on from a checkpoint."""

    @property
    def total(self) -> float | None:
        """Prepare + train + evaluate."""
        if self.prepare is None or self.train is None or self.evaluate is None:
            return None
        return self.prepare + self.train + self.evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRow:
    """One epoch. `loss` and `train_accuracy` are means over its steps; `seconds` is the train clock at its end."""

    epoch: int
    step: int
    loss: float
    lr: float
    seconds: float
    train_accuracy: float
    val_loss: float | None = None
    val_accuracy: float | None = None
    averaged_accuracy: float | None = None


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """Everything known of one run; `to_json` gives the stored form. `train` has an example."""

    status: Literal["finished", "diverged", "interrupted"]
    recipe: Recipe
    data: dict[str, Any]
    seed: int
    device: str
    backend: str
    """What ran."""
    dtype: str
    kernels: dict[str, str]
    """What ran, by operation."""
    requested: dict[str, str]
    """The backend and the kernels that the user asked for, such as `auto`."""
    environment: dict[str, Any]
    model: dict[str, int]
    memory: dict[str, int | None]
    steps: int = 0
    images_seen: int = 0
    seconds: Seconds = field(default_factory=Seconds)
    accuracy: Accuracy
    history: list[HistoryRow] = field(default_factory=list)
    diverged_at_step: int | None = None
    """The first step, counted from 1, whose loss was not finite."""
    resumed_at_steps: list[int] = field(default_factory=list)
    """How many steps were done each time the run went on from a checkpoint; the clocks count them once."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the schema."""
        stored: dict[str, Any] = {"schema": SCHEMA}
        for name in (f.name for f in dataclasses.fields(self)):
            value = getattr(self, name)
            stored[name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        stored["recipe"] = {"name": self.recipe.name, "hash": self.recipe.hash} | stored["recipe"]
        stored["seconds"]["total"] = self.seconds.total
        stored["seconds"]["wall"] = stored["seconds"].pop("wall")  # behind the sum that it is compared with
        stored["history"] = [dataclasses.asdict(row) for row in self.history]
        return stored

    def to_json(self, indent: int | None = 1) -> str:
        """One JSON document; numbers that are not finite become null."""
        return json.dumps(finite_values(self.to_dict()), indent=indent, allow_nan=False)

    def write(self, path: str | Path) -> None:
        """Write the JSON document to `path`, which appears whole or not at all."""
        write_atomically(Path(path), lambda part: part.write_text(self.to_json() + "\n", encoding="utf-8"))


def claim_told(claim: Mapping[str, Any] | None) -> str:
    """A claim, as records have it, in words; empty where there is none."""
    if not claim:
        return ""
    seconds = "" if claim["seconds"] is None else f" in {claim['seconds']} s"
    return f"{100 * claim['accuracy']:.2f} %{seconds}, {claim['hardware']}"


def differences_told(record: Mapping[str, Any]) -> str | None:
    """In words where the backend and kernels that ran are not those asked for; none where they are.

    Args:
        record: has the keys `backend`, `kernels` and `requested` of a run record; older records lack the last.
    """
    requested, parts = record.get("requested"), []
    if requested is None:
        return None
    if requested["backend"] != record["backend"]:
        parts.append(f"backend: {requested['backend']} was asked for, {record['backend']} ran")
    ran = dict.fromkeys((*KERNEL_PROVIDERS, *record["kernels"].values()))
    providers = {each: [name for name, own in record["kernels"].items() if own == each] for each in ran}
    if providers.get(requested["kernels"]) != list(record["kernels"]):
        told = "; ".join(f"{each} ran for {', '.join(names)}" for each, names in providers.items() if names)
        parts.append(f"kernels: {requested['kernels']} was asked for, {told}")
    return ". ".join(parts) or None


def finite_values(value: Any) -> Any:
    """`value` with none in the place of numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _command_output(*command: str, folder: Path | None = None) -> str | None:
    """The first line that a program prints, or none where there is no such program, or it fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:  # a driver in trouble; a run need not end for it
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


@functools.cache  # nvidia-smi takes up to a second, in which the GPU would idle before every run
def _gpu(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"gpu": None, "driver": None, "power_limit_watts": None}
    properties = torch.cuda.get_device_properties(device)
    query = "driver_version,power.limit"
    answer = _command_output(
        "nvidia-smi", f"--id=GPU-{properties.uuid}", f"--query-gpu={query}", "--format=csv,noheader,nounits"
    )
    driver, _, power = (answer or "").partition(", ")
    watts = float(power) if power.replace(".", "", 1).isdigit() else None
    return {"gpu": properties.name, "driver": driver or None, "power_limit_watts": watts}


def _ptxas(device: torch.device) -> str | None:
    """The assembler with which Triton compiles kernels for an NVIDIA GPU, which faults of machine code depend on."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return ptxas_version(10 * major + minor)


def version_of(package: str) -> str | None:
    """Version of an installed package; none where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # triton is missing on macOS and Windows
        return None


@functools.cache
def _commit() -> str | None:
    """The commit that runs, with `+changes` where files of the checkout differ from it.

    The variable SPEEDYRESNET_COMMIT comes first. Without it git is asked, in an editable checkout only. An installed
    wheel and a copy without its git folder have no commit, even if the copy lies inside another repository.
    """
    told = os.environ.get(COMMIT_VARIABLE)
    if told or not (_PACKAGE / "setup.py").is_file():
        return told or None
    # With --git-dir git looks neither into the folders above nor at GIT_DIR, which git itself sets for its hooks.
    git = ("git", "--git-dir=.git", "--work-tree=.")
    commit = _command_output(*git, "rev-parse", "HEAD", folder=_PACKAGE)
    changes = commit and _command_output(*git, "status", "--porcelain", "--untracked-files=no", folder=_PACKAGE)
    return f"{commit}+changes" if changes else commit


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and libraries' settings that a figure depends on; `ranks` only where there are several."""
    cudnn, ranks = torch.backends.cudnn if device.type == "cuda" else None, launched().size
    found = _gpu(device) | {
        "torch": torch.__version__,
        "torchvision": version_of("torchvision"),
        "triton": version_of("triton"),
        "ptxas": _ptxas(device),
        "cuda": torch.version.cuda,
        "cudnn": cudnn and cudnn.version(),
        "cudnn_allow_tf32": cudnn and cudnn.allow_tf32,
        "cudnn_benchmark": cudnn and cudnn.benchmark,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "package": version_of("speedyresnet"),
        "commit": _commit(),
    }
    return found | {RANKS: ranks} if ranks > 1 else found


def machine_name(environment: dict[str, Any]) -> str:
    """What figures of an `environment` can be compared within: GPU or processor, PyTorch's version, and ranks."""
    device = environment["gpu"] or f"{environment['processor']}, {environment['threads']} threads"
    ranks = f", {environment[RANKS]} ranks" if RANKS in environment else ""
    return f"{device}, PyTorch {environment['torch'].partition('+')[0]}{ranks}"


def _processor() -> str:
    """Model name of the CPU, as precisely as the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_bytes(device: torch.device) -> int | None:
    """The most memory in use so far: allocated on a GPU, resident in this process on a CPU.

    None on a CPU where the system does not tell Python, as Windows does not.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
