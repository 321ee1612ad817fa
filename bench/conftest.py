"""Setup of `pytest bench`: a recipe's cases, this machine in the stored results, no baseline from another machine."""

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
    """Add the options for the device and for the recipe whose operations are measured."""
    group = parser.getgroup("speedyresnet")
    group.addoption("--recipe", help="cases of this recipe (default: the one that suits the device)")
    group.addoption("--device", default="auto", help="auto, cpu, cuda or cuda:0")


def _chosen(config: pytest.Config) -> tuple[Recipe, torch.dtype, torch.device]:
    placed = chosen_recipe(config.getoption("--recipe"), None, config.getoption("--device"))
    return placed.recipe, placed.dtype, placed.device


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Create one test per case."""
    if "case" in metafunc.fixturenames:
        # Only our providers and the reference: a change in others is not a regression.
        cases = [case for case in cases_of(*_chosen(metafunc.config)) if case.provider in (*EVERYWHERE, TRITON)]
        metafunc.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="session")
def state(request: pytest.FixtureRequest) -> TrainingState:
    """Return the training state of the recipe on random images."""
    return random_state(*_chosen(request.config))


@pytest.fixture(scope="session")
def ceilings(request: pytest.FixtureRequest) -> Callable[[], Ceilings]:
    """Return a function that measures the ceilings on its first call."""
    _, dtype, device = _chosen(request.config)
    return functools.cache(lambda: measured_ceilings(device, [dtype]))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Store the GPU, its driver and power limit, and the versions with the results."""
    machine_info["speedyresnet"] = environment(_chosen(config)[2])


def pytest_benchmark_compare_machine_info(
    config: pytest.Config, machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Raise UsageError for a baseline from another machine: its times say nothing about a change."""
    here, there = machine_info["speedyresnet"], compared_benchmark["machine_info"].get("speedyresnet", {})
    key = differing_key(here, there)
    if key:
        raise pytest.UsageError(
            f"the baseline was measured with {key} {there.get(key)}, this machine has {here[key]}: "
            f"save a baseline of this machine first (--benchmark-save)"
        )
