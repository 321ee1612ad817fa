"""The whole command line: the engine's commands and, under `bench`, what measures them."""

from pathlib import Path
from typing import Annotated

import typer

from speedyresnet.engine.cli import DataOption, DeviceOption, SetOption, app, run_command_line
from speedyresnet.engine.data import load_data
from speedyresnet.engine.files import check_writable
from speedyresnet.engine.trainer import pick_device

from .gpu_suite import run_gpu_suite

bench_app = typer.Typer(help="Measure. Never falls back to other data than asked for.")
app.add_typer(bench_app, name="bench")


@bench_app.callback()
def bench_commands() -> None:
    """Measure. Never falls back to other data than asked for."""


@bench_app.command("gpu-suite")
def gpu_suite_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    minutes: Annotated[float, typer.Option("--minutes", min=0.0, help="Stop starting new work after this.")] = 9.0,
    data: DataOption = "cifar10",
    device: DeviceOption = "auto",
    settings: SetOption = None,
) -> None:
    """GPU tests, time of a step and full runs, each saved as it ends."""
    check_writable(out / "environment.json")
    place = pick_device(device)
    run_gpu_suite(load_data(data or "cifar10"), place, minutes, out, settings or ())


def main() -> None:
    """Entry point of the `speedyresnet` command."""
    run_command_line(app)
