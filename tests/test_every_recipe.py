"""Every recipe as one would first try it: narrow, two epochs, 4,000 drawn or real images.

Takes too long for each time the tests are run: `pytest -n 2 -m hour`.
"""

import dataclasses

import pytest
import torch

from speedyresnet.engine import recipe, train
from speedyresnet.engine.recipes import registered_groups, registered_recipes
from speedyresnet.engine.synthetic import make_synthetic

pytestmark = pytest.mark.hour

SHRUNK = ["width_multiplier=0.25", "epochs=2"]
MEMBERS = {made.name for function in registered_groups().values() for made in function().members}
VARIANTS = sorted(MEMBERS - set(registered_recipes()))
NUMBERS = dict.fromkeys(
    ("widths", "project_width", "whitening_images", "whitening_epsilon", "whitening_centered", "whitening_bias_init",
     "batch_norm_momentum", "batch_norm_epsilon", "convolution_init", "head_init", "logit_scale")
)  # fmt: skip
"""Settings of a net that change no operation of a step."""


def structure(name):
    """What two recipes have in common whose steps do the same operations."""
    made = recipe(name)
    net = {key: value for key, value in dataclasses.asdict(made.net).items() if key not in NUMBERS}
    augmentation, optimizer = made.augmentation, made.optimizer
    mixed, resized = augmentation.cutmix > 0, len(set(augmentation.sizes))
    return repr((net, mixed, resized, optimizer.kind, optimizer.learning_rate_inside, made.averaging.kind))


STRUCTURES = list({structure(name): name for name in reversed([*registered_recipes(), *VARIANTS])}.values())


@pytest.fixture(scope="session")
def larger_synthetic_pack():
    return make_synthetic(train_images=4000, test_images=200)


def check(name, pack, backend):
    run = train(recipe(name, SHRUNK), pack, device="cpu", backend=backend)
    record = run.record
    assert (record.status, record.backend) == ("finished", backend)
    assert record.history[-1].loss < record.history[0].loss
    assert all(torch.isfinite(each).all() for each in run.state.values() if each.is_floating_point())


@pytest.mark.parametrize("backend", ["eager", "torchscript"])
@pytest.mark.parametrize("images", ["larger_synthetic_pack", "larger_real_pack"])
@pytest.mark.parametrize("name", registered_recipes())
def test_a_recipe_trains(name, images, backend, request):
    check(name, request.getfixturevalue(images), backend)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_a_group_trains(name, larger_synthetic_pack):
    check(name, larger_synthetic_pack, "eager")


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_of_a_step_compiles(name, larger_synthetic_pack):
    check(name, larger_synthetic_pack, "compile")
