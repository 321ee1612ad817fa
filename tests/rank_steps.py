"""Steps of a narrow recipe in float64, alone or as a rank of torchrun; see `test_ranks`.

As a script: rank_steps.py OUT BACKEND RECIPE SETTING..., writes what each step leaves into OUT-RANK.
"""

import sys

import torch

from speedyresnet.engine.backends import Variant, step_function, variant_of_step, whole
from speedyresnet.engine.init import reset_parameters
from speedyresnet.engine.nets import make_net
from speedyresnet.engine.ranks import ALONE, connected, launched
from speedyresnet.engine.recipes import recipe
from speedyresnet.engine.schedules import plan
from speedyresnet.engine.step import TrainingState

NARROW = ("batch_size=16", "width_multiplier=0.0625", "dtype=float64", "epochs=3")
IMAGES, STEPS = 64, 9
CPU = torch.device("cpu")


def rank_state(name, settings, ranks=ALONE):
    """The state of a rank before its first step, on images and weights that do not depend on the rank."""
    made = recipe(name, [*NARROW, *settings])
    net = make_net(ranks.share_of(made), classes=10, channels=3, dtype=torch.float64, device=CPU).train()
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8, generator=generator)
    data = pixels, torch.randint(0, 10, (IMAGES,), generator=generator), (0.5,) * 3, (0.25,) * 3
    state = TrainingState(net, made, plan(made, IMAGES), *data, torch.float64, ranks=ranks)
    reset_parameters(net, made.net, 3)
    state.restart(3)
    return state


def all_steps(state, backend="eager"):
    """What each step leaves: all that it changes, by name."""
    left, functions = [], {}
    for number in range(STEPS):
        variant: Variant = variant_of_step(state.recipe, state.plan, number)
        if variant not in functions:
            functions[variant] = whole(backend, step_function(state, backend, variant), "aot_eager")
        functions[variant]()
        left.append({key: value.clone() for key, value in state.changing_tensors().items()})
    return left


if __name__ == "__main__":
    out, chosen, called, *changes = sys.argv[1:]
    with connected(launched(), CPU):
        torch.save(all_steps(rank_state(called, changes, launched()), chosen), f"{out}-{launched().rank}")
