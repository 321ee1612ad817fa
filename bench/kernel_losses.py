"""Losses of the first eager steps with Triton kernels beside those with the reference kernels.

`python -m speedyresnet.bench.kernel_losses --data synthetic --device cuda --out losses.json`; exit code 1: they differ
by more than a recipe's tolerance. On a CPU both are the reference kernels, which only shows that the command works.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from speedyresnet.engine.data import Pack, load_data
from speedyresnet.engine.files import check_outputs, write_text
from speedyresnet.engine.recipe import recipe as recipe_called
from speedyresnet.engine.record import environment
from speedyresnet.engine.trainer import Trainer, pick_device

STEPS = 6
TOLERANCES = {"speedy": 4e-3, "airbench94": 2e-4, "hlb-v0.7": 2e-4}
"""By recipe: three times the largest difference of two losses of these steps that float16 made on an H100."""


def first_losses(name: str, settings: Sequence[str], pack: Pack, device: torch.device) -> list[float]:
    """The mean losses of the first STEPS eager steps of a recipe with seed 0."""
    trainer = Trainer(recipe_called(name, settings), pack, device, "eager")
    trainer.prepare(0)
    trainer.net.train()
    step, count = trainer.counted_steps[0]
    for _ in range(min(STEPS, count)):
        step()
    losses: list[float] = trainer.state.loss_log[:STEPS].tolist()
    return losses


def compared(name: str, settings: Sequence[str], pack: Pack, device: torch.device) -> dict[str, Any]:
    """The losses of both kinds of kernels, their largest difference, and whether it is within the tolerance."""
    ours = "triton" if device.type == "cuda" else "auto"
    losses = {kind: first_losses(name, [*settings, f"kernels={kind}"], pack, device) for kind in (ours, "reference")}
    difference = max(abs(one - other) for one, other in zip(*losses.values(), strict=True))
    return {
        "recipe": name,
        "losses": losses,
        "difference": difference,
        "tolerance": TOLERANCES[name],
        "agree": difference <= TOLERANCES[name],  # false for NaN
    }


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    found = argparse.ArgumentParser(prog="python -m speedyresnet.bench.kernel_losses", description=__doc__)
    found.add_argument("--data", required=True)
    found.add_argument("--device", default="auto")
    found.add_argument("--set", dest="settings", action="append", default=[])
    found.add_argument("--out", type=Path, required=True)
    return found


def main() -> None:
    """Compare all recipes of TOLERANCES, print and store the losses, and exit with 1 where some differ."""
    given = parser().parse_args()
    check_outputs([given.out], [given.data])
    device, pack = pick_device(given.device), load_data(given.data)
    rows = [compared(name, given.settings, pack, device) for name in TOLERANCES]
    for row in rows:
        told = "agree" if row["agree"] else "DIFFER"
        print(f"{row['recipe']}: {told}, by {row['difference']:.1e} at most, allowed {row['tolerance']:.0e}")
        for kind, losses in row["losses"].items():
            print(f"  {kind:9s} {' '.join(f'{loss:.5f}' for loss in losses)}")
    write_text(given.out, json.dumps({"environment": environment(device), "recipes": rows}, indent=1) + "\n")
    sys.exit(0 if all(row["agree"] for row in rows) else 1)


if __name__ == "__main__":
    main()
