"""`bench step --dry-run`: counts the graphs torch.compile makes for a run's steps and evaluation, without computing.

Everything runs on the `meta` device, and the compiler given to Dynamo returns its graphs unchanged. So any machine can
tell how often a run on a GPU compiles, and what Dynamo cannot trace fails here as it would there.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, fx

from speedyresnet.engine.backends import step_function, uncaptured_scorer, variants_of, whole
from speedyresnet.engine.device import pick_dtype
from speedyresnet.engine.fit import fitting_plan
from speedyresnet.engine.pack import Pack
from speedyresnet.engine.recipe import Recipe

from .paper import paper_state, paper_test_set


def count_graphs(recipe: Recipe, pack: Pack, backend: str) -> dict[str, Any]:
    """Return, as plain values, the number of `graphs` and how many of them are for the `steps` and the `evaluation`.

    Args:
        recipe: recipe of the run; its operations are plain PyTorch, since our kernels never add a graph.
        pack: the data set; only its shapes matter.
        backend: how a step is executed.

    Raises:
        UserError: the recipe does not fit the data.
    """
    graphs = 0

    def compiler(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return module.forward

    fitting_plan(recipe, pack.facts)
    dtype = pick_dtype(recipe, torch.device("cuda"))
    state = paper_state(recipe, pack, dtype)
    with warnings.catch_warnings():
        # A graph that takes gradients runs as it is here; a compiler would have decomposed it.
        warnings.filterwarnings("ignore", message=".*an autograd kernel was not registered")
        for variant in variants_of(recipe, state.plan):
            whole(backend, step_function(state, backend, variant, compiler), compiler)()
    of_steps, settings = graphs, recipe.evaluation
    state.net.eval()
    weights = state.averaged_state() if settings.weights == "averaged" else None
    uncaptured_scorer(state, backend, weights, paper_test_set(pack, dtype), settings.view, compiler)()
    return {
        "recipe": {"name": recipe.name, "hash": recipe.hash},
        "backend": backend,
        "graphs": graphs,
        "steps": of_steps,
        "evaluation": graphs - of_steps,
    }


def print_graphs(console: Console, result: dict[str, Any]) -> None:
    """Print the result as one line."""
    console.print(
        f"{result['recipe']['name']} with --backend {result['backend']}: {result['graphs']} graphs to compile, "
        f"{result['steps']} for the steps and {result['evaluation']} for the evaluation",
        highlight=False,
        soft_wrap=True,
    )
