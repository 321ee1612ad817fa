from collections import Counter

import pytest
import torch

from speedyresnet.engine import UserError, recipe, setup
from speedyresnet.engine.fit import expected_data
from speedyresnet.engine.pack import DataFacts
from speedyresnet.engine.pack_file import save_pack
from speedyresnet.engine.setup import chosen_recipe, place_recipe, set_up

CPU = torch.device("cpu")
TINY = ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32"]
SMALL_IMAGES = DataFacts(image_size=(16, 24), channels=1, classes=3, train_images=640, test_images=7)


def test_a_setup_holds_what_was_asked_for_and_what_comes_of_it():
    made = recipe("airbench94", TINY)
    found = set_up(made, SMALL_IMAGES, CPU)
    assert (found.recipe, found.data, found.device, found.backend) == (made, SMALL_IMAGES, CPU, "auto")
    assert (found.backends, found.dtype, found.plan.steps) == (("eager",), torch.float32, 10)
    assert set(found.kernels.values()) == {"reference"}
    assert found.requested == {"backend": "auto", "kernels": "auto"}
    assert set_up(made, SMALL_IMAGES, CPU, "torchscript").backends == ("torchscript",)


def test_without_a_name_the_recipe_suits_the_device():
    assert chosen_recipe(None, ["epochs=2"], "cpu").recipe == recipe("pocket", ["epochs=2"])
    assert setup.default_recipe(torch.device("cuda")) == "airbench94"


def test_expected_data_is_that_of_the_download_and_else_of_cifar10():
    facts = expected_data(recipe("imagenette"))
    assert (facts.image_size, facts.train_images, facts.test_images) == ((64, 64), 9469, 3925)
    assert expected_data(recipe("hlb-v0.7-cifar100")).classes == 100
    assert expected_data(recipe("pocket")).train_images == 50_000


def test_a_pack_knows_its_facts(small_pack):
    facts = DataFacts(image_size=(32, 32), channels=3, classes=10, train_images=640, test_images=200)
    assert small_pack.facts == facts


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "nothing"}, "unknown recipe 'nothing'"),
        ({"settings": ["epoch=2"]}, "did you mean epochs"),
        ({"device": "tpu"}, "choose auto, cpu, cuda or cuda:0"),
        ({"backend": "fast"}, "unknown backend 'fast': choose eager"),
        ({"backend": "capture"}, "--backend capture needs a CUDA GPU; use --backend eager"),
        ({"settings": ["kernels=triton", "dtype=float64"]}, "kernels=triton .*; use kernels=auto"),
    ],
)
def test_what_needs_no_data_is_found_without_it(choice, message):
    words = {"name": "pocket", "settings": [], "device": "cpu"} | choice
    with pytest.raises(UserError, match=message):
        chosen_recipe(**words)


def test_a_recipe_that_does_not_fit_the_images_is_refused():
    placed = place_recipe(recipe("airbench94", ["augmentation.padding=16"]), CPU)
    with pytest.raises(UserError, match="must be smaller than images of 16 pixels"):
        placed.with_data(SMALL_IMAGES)


def test_a_run_is_set_up_once(small_pack, tmp_path, monkeypatch, speedyresnet):
    calls, names = Counter(), ("pick_device", "pick_dtype", "check_backend", "pick_kernels", "fitting_plan")

    def counted(name):
        function = getattr(setup, name)

        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        return call

    for name in names:
        monkeypatch.setattr(setup, name, counted(name))
    save_pack(small_pack, tmp_path / "small.safetensors")
    words = [word for each in [*TINY, "evaluation.every=0"] for word in ("--set", each)]
    done = speedyresnet("train", *words, "--device", "cpu", "--data", tmp_path / "small.safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert calls == dict.fromkeys(names, 1)
