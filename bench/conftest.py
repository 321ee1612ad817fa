"""What `pytest bench` needs: the cases of a recipe, this machine in the stored results, no other machine's baseline."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from speedyresnet.bench.cases import EVERYWHERE, TRITON, cases_of, random_state
from speedyresnet.bench.regress import differing_key
from speedyresnet.bench.roofline import Ceilings, measured_ceilings
from speedyresnet.engine.recipe import Recipe
from speedyresnet.engine.record import environment
from speedyresnet.engine.setup import chosen_recipe
from speedyresnet.engine.step import TrainingState


def pytest_addoption(parser: pytest.Parser) -> None:
    """The recipe whose operations are measured, and where."""
    group = parser.getgroup("speedyresnet")
    group.addoption("--recipe", help="cases of this recipe (default: the one that suits the device)")
    group.addoption("--device", default="auto", help="auto, cpu, cuda or cuda:0")


def _chosen(config: pytest.Config) -> tuple[Recipe, torch.dtype, torch.device]:
    placed = chosen_recipe(config.getoption("--recipe"), None, config.getoption("--device"))
    return placed.recipe, placed.dtype, placed.device


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a case."""
    if "case" in metafunc.fixturenames:
        # Of ours and the reference only: what others do is no regression.
        cases = [case for case in cases_of(*_chosen(metafunc.config)) if case.provider in (*EVERYWHERE, TRITON)]
        metafunc.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="session")
def state(request: pytest.FixtureRequest) -> TrainingState:
    """The state of the recipe on random images."""
    return random_state(*_chosen(request.config))


@pytest.fixture(scope="session")
def ceilings(request: pytest.FixtureRequest) -> Callable[[], Ceilings]:
    """Measures the ceilings when it is first called."""
    _, dtype, device = _chosen(request.config)
    return functools.cache(lambda: measured_ceilings(device, [dtype]))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Stored results tell the GPU, its driver and power limit, and the versions."""
    machine_info["speedyresnet"] = environment(_chosen(config)[2])


def pytest_benchmark_compare_machine_info(
    config: pytest.Config, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Refuse a baseline from another machine: its times say nothing about a change."""
    here, there = machine_info["speedyresnet"], compared_benchmark["machine_info"].get("speedyresnet", {})
    key = differing_key(here, there)
    if key:
        raise pytest.UsageError(
            f"the baseline was measured with {key} {there.get(key)}, this machine has {here[key]}: "
            f"save a baseline of this machine first (--benchmark-save)"
        )
