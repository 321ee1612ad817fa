"""Compare the losses of the first eager steps with Triton kernels and with the reference kernels.

`python -m speedyresnet.bench.kernel_losses --data synthetic --device cuda --out losses.json` exits with 1 if they
differ by more than a recipe's tolerance. On a CPU both use the reference kernels, which only shows that the command
works.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from speedyresnet.engine.cli import DeviceOption, SetOption, run_command_line
from speedyresnet.engine.data import load_data
from speedyresnet.engine.device import pick_device
from speedyresnet.engine.files import check_outputs, write_text
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.recipes import recipe as recipe_called
from speedyresnet.engine.record import environment
from speedyresnet.engine.setup import set_up
from speedyresnet.engine.trainer import Trainer

app = typer.Typer(add_completion=False)
STEPS = 6
TOLERANCES = {"speedy": 4e-3, "airbench94": 2e-4, "hlb-v0.7": 2e-4}
"""Tolerance by recipe: three times the largest loss difference that float16 caused in these steps on an H100."""


def first_losses(name: str, settings: Sequence[str], pack: Pack, device: torch.device) -> list[float]:
    """Return the mean losses of the first STEPS eager steps of a recipe with seed 0."""
    trainer = Trainer(set_up(recipe_called(name, settings), pack.facts, device, "eager"), pack)
    trainer.prepare(0)
    trainer.net.train()
    step, count = trainer.counted_steps[0]
    for _ in range(min(STEPS, count)):
        step()
    losses: list[float] = trainer.state.loss_log[:STEPS].tolist()
    return losses


def compared(name: str, settings: Sequence[str], pack: Pack, device: torch.device) -> dict[str, Any]:
    """Return the losses with both kinds of kernels, their largest difference, and whether the tolerance allows it."""
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


@app.command()
def main(
    data: Annotated[str, typer.Option("--data", help="A name, a pack file or an image folder.")],
    out: Annotated[Path, typer.Option("--out", help="Write the result to this JSON file.")],
    settings: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Compare the losses of all recipes in TOLERANCES, print and store them (exit code 1 if any differ)."""
    check_outputs([out], [data])
    place, pack = pick_device(device), load_data(data)
    rows = [compared(name, settings or (), pack, place) for name in TOLERANCES]
    for row in rows:
        told = "agree" if row["agree"] else "DIFFER"
        print(f"{row['recipe']}: {told}, by {row['difference']:.1e} at most, allowed {row['tolerance']:.0e}")
        for kind, losses in row["losses"].items():
            print(f"  {kind:9s} {' '.join(f'{loss:.5f}' for loss in losses)}")
    write_text(out, json.dumps({"environment": environment(place), "recipes": rows}, indent=1) + "\n")
    raise typer.Exit(0 if all(row["agree"] for row in rows) else 1)


if __name__ == "__main__":
    run_command_line(app)
