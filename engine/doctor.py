"""What this machine can do, on one screen, and how to get what is missing."""

import shutil
import textwrap
from collections import Counter
from typing import Any

import torch

from ..kernels.language import AVAILABLE
from .backends import BACKENDS, backend_obstacle, cpp_compiler
from .data import cache_folder
from .device import dtype_name
from .errors import UserError
from .files import check_writable
from .record import environment
from .setup import Setup

CACHE_VARIABLE = "SPEEDYRESNET_CACHE"
_COLUMNS = 80
_PACKS_SHOWN = 6


def examination(setup: Setup) -> dict[str, Any]:
    """Everything `doctor` tells, as plain values: sizes in bytes; none where something is missing.

    Args:
        setup: of the recipe and the device that are taken where none is asked for.
    """
    device = setup.device
    facts = {
        "environment": environment(device),
        "gpu_bytes": torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None,
        "compiler": cpp_compiler(),
        "backends": {name: backend_obstacle(name, device) for name in BACKENDS},
        "distributed": _distributed(),
        "default": {
            "recipe": setup.recipe.name,
            "device": str(device),
            "dtype": dtype_name(setup.dtype),
            "backend": setup.backends[0],
            "kernels": setup.kernels,
        },
        "cache": _cache(),
    }
    return facts | {"missing": _missing(facts)}


def _distributed() -> dict[str, list[str]]:
    """What ranks of torchrun have here: the devices, one a rank, and the backends that connect them."""
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    there = torch.distributed.is_available()
    return {
        "devices": devices or ["cpu"],
        "backends": [name for name in ("gloo", "nccl") if there and torch.distributed.is_backend_available(name)],
    }


def _devices_told(distributed: dict[str, list[str]]) -> str:
    """The devices, equal ones together, and the backends."""
    devices = [f"{count} x {name}" for name, count in Counter(distributed["devices"]).items()]
    return f"{', '.join(devices)}; connected by {', '.join(distributed['backends'])}"


def _cache() -> dict[str, Any]:
    """Where downloads and packs are kept, what is there, and what is wrong with it."""
    folder = cache_folder()
    facts: dict[str, Any] = {"folder": str(folder), "variable": CACHE_VARIABLE, "free_bytes": None, "packs": []}
    try:
        files = sorted((folder / "packs").glob("*.safetensors"))
        facts["packs"] = [{"name": file.stem, "bytes": file.stat().st_size} for file in files]
        check_writable(folder / "packs" / "new")
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        return facts | {"free_bytes": shutil.disk_usage(there).free, "problem": None}
    except (OSError, UserError) as error:
        return facts | {"problem": str(error)}


def _missing(facts: dict[str, Any]) -> dict[str, str]:
    """What to do about each thing that is not there."""
    found, cuda = facts["environment"], "PyTorch for CUDA: https://pytorch.org/get-started"
    needing = "backends capture and graph and the Triton kernels"
    gpu = f"the CPU trains instead; {needing} need an NVIDIA GPU, its driver and {cuda}"
    remedies = {
        "triton": (AVAILABLE, "python -m pip install triton (on Linux); without it plain PyTorch does its work"),
        "CUDA": (found["cuda"], f"this PyTorch is for CPUs; {cuda}"),
        "GPU": (found["gpu"], gpu),
        "driver": (
            found["driver"] or not found["gpu"],
            "nvidia-smi does not answer: no driver version, no power limit",
        ),
        "compiler": (
            facts["compiler"],
            "apt install g++ (macOS: xcode-select --install); backend compile needs it on a CPU, Triton on a GPU",
        ),
        "cache": (not facts["cache"]["problem"], f"set {CACHE_VARIABLE} to a folder that you may write"),
    }
    return {thing: remedy for thing, (there, remedy) in remedies.items() if not there}


def _by_provider(default: dict[str, Any]) -> dict[str, list[str]]:
    """The operations that each provider does."""
    made: dict[str, list[str]] = {}
    for operation, provider in default["kernels"].items():
        made.setdefault("plain PyTorch" if provider == "reference" else "Triton", []).append(operation)
    return made


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _packs(packs: list[dict[str, Any]]) -> str:
    names = [f"{pack['name']} ({_size(pack['bytes'])})" for pack in packs[:_PACKS_SHOWN]]
    more = [f"and {len(packs) - _PACKS_SHOWN} more"] if len(packs) > _PACKS_SHOWN else []
    return ", ".join(names + more) or "none yet; cifar10 is downloaded when first wanted, synthetic is drawn"


def examination_text(facts: dict[str, Any]) -> str:
    """The screen: 80 columns, one thing a line, `->` before what to do about it."""
    found, default, cache = facts["environment"], facts["default"], facts["cache"]
    able = [name for name, obstacle in facts["backends"].items() if obstacle is None]
    unable = [f"{name} {obstacle}" for name, obstacle in facts["backends"].items() if obstacle is not None]
    gpu = f"{found['gpu']}, {_size(facts['gpu_bytes'])}" if found["gpu"] else None
    power = found["power_limit_watts"]
    rows = {
        "system": f"{found['platform']}, Python {found['python']}",
        "processor": f"{found['processor']}, {found['threads']} threads",
        "torch": f"{found['torch']}, torchvision {found['torchvision']}",
        "triton": ", ".join(filter(None, (found["triton"], found["ptxas"]))) if AVAILABLE else None,
        "CUDA": found["cuda"],
        "GPU": gpu,
        "driver": found["driver"] and found["driver"] + (f", power limit {power:.0f} W" if power else ""),
        "compiler": facts["compiler"],
        "backends": "; ".join([", ".join(able), *unable]),
        "torchrun": _devices_told(facts["distributed"]) if facts["distributed"]["backends"] else None,
        "kernels": "; ".join(f"{provider}: {', '.join(names)}" for provider, names in _by_provider(default).items()),
        "default": "recipe {recipe} on {device} in {dtype}, backend {backend}".format(**default),
        "packs": _packs(cache["packs"]),
        "cache": cache["problem"] or f"{cache['folder']}, {_size(cache['free_bytes'])} free; {CACHE_VARIABLE} moves it",
    }
    lines = []
    for thing, text in rows.items():
        lines += _wrapped(f"{thing:11s}{text or 'none'}")
        if thing in facts["missing"]:
            lines += _wrapped(f"{'':11s}-> {facts['missing'][thing]}")
    return "\n".join(lines)


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, _COLUMNS, subsequent_indent=" " * 11, break_long_words=False, break_on_hyphens=False)
