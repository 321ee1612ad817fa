"""`bench step --dry-run` counts what torch.compile compiles, on any machine."""

import json

from tiers import parametrize

from speedyresnet.bench.graph_count import count_graphs
from speedyresnet.bench.paper import CIFAR10, paper_pack
from speedyresnet.engine import recipe


@parametrize(
    ("name", "backend", "steps", "evaluation"),
    [
        ("hlb-v0.7", "graph", 4, 1),  # cutmix gives the head another label, and the average is evaluated
        ("hiverge", "compile", 2, 1),  # a graph for each kind of step
        ("hiverge", "capture", 0, 0),
    ],
    default=1,
)
def test_graphs_of_a_run(name, backend, steps, evaluation):
    found = count_graphs(recipe(name, []), paper_pack(CIFAR10), backend)
    assert (found["steps"], found["evaluation"], found["graphs"]) == (steps, evaluation, steps + evaluation)


def test_the_command_needs_neither_a_gpu_nor_data(speedyresnet):
    done = speedyresnet("bench", "step", "--recipe", "speedy", "--backend", "graph", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)  # head, optimizer and averaging, whatever the size of the images
    assert (found["graphs"], found["steps"], found["evaluation"]) == (4, 3, 1)
    done = speedyresnet("bench", "step", "--recipe", "speedy", "--backend", "fast", "--dry-run")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "choose eager, torchscript, compile, capture, graph" in done.stderr
