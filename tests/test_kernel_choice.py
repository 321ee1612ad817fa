"""Which kernels a run uses: pinned for every recipe, and chosen for each place of a net."""

import dataclasses
import functools
import json
from pathlib import Path

import pytest
import torch
from tiers import parametrize

from speedyresnet.engine import kernel_choice
from speedyresnet.engine.fit import expected_data
from speedyresnet.engine.kernel_choice import pick_kernels
from speedyresnet.engine.operations import operations_of, placed_operations
from speedyresnet.engine.recipes import group, recipe, registered_groups, registered_recipes
from speedyresnet.engine.settings import with_settings
from speedyresnet.kernels import contract
from speedyresnet.kernels.contract import registered

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
SITUATIONS = {
    "sm_90 float16": (CUDA, torch.float16, (9, 0), [], "eager"),
    "sm_90 float32": (CUDA, torch.float32, (9, 0), [], "eager"),
    "sm_80 float16": (CUDA, torch.float16, (8, 0), [], "eager"),
    "cpu interpreted": (CPU, torch.float32, None, [], "eager"),
    "contiguous": (CUDA, torch.float16, (9, 0), ["net.memory_format=contiguous"], "eager"),
    "native norm": (CUDA, torch.float16, (9, 0), ["net.batch_norm_precision=native"], "eager"),
    "torchscript": (CUDA, torch.float16, (9, 0), [], "torchscript"),
}
"""Device, dtype, compute capability, settings and backend."""
STORED = json.loads((Path(__file__).with_name("stored") / "kernel_choices.json").read_text())


@functools.cache
def places_of(made, images, dtype):
    """They take a while to find, and do not depend on the setting `kernels`."""
    return placed_operations(made, images, dtype)


@pytest.fixture
def machine(monkeypatch):
    """A function that makes this machine one with Triton and a GPU of that capability, or with the interpreter."""

    def make(device, capability):
        monkeypatch.setattr(kernel_choice, "AVAILABLE", True)
        monkeypatch.setattr(
            kernel_choice, "placed_operations",
            lambda made, images, dtype: places_of(dataclasses.replace(made, kernels="auto"), tuple(images), dtype),
        )  # fmt: skip
        monkeypatch.setattr(kernel_choice, "INTERPRETED", device.type == "cpu")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    return make


@parametrize(
    "name",
    STORED,
    default=["sm_90 float16, auto", "sm_80 float16, auto", "cpu interpreted, triton", "torchscript, auto"],
)
def test_every_recipe_keeps_its_kernels(name, machine):
    situation, kernels = name.split(", ")
    device, dtype, capability, settings, backend = SITUATIONS[situation]
    machine(device, capability)
    members = [each for group_name in registered_groups() for each in group(group_name).members]
    found = {}
    for made in {each.name: each for each in (*map(recipe, registered_recipes()), *members)}.values():
        picked = pick_kernels(with_settings(made, [*settings, f"kernels={kernels}"]), device, dtype, backend)
        told = " ".join(sorted(name for name, provider in picked.items() if provider == "triton")) or "none"
        found.setdefault(told, []).append(made.name)
    assert {told: " ".join(sorted(names)) for told, names in found.items()} == STORED[name]


def test_a_group_that_no_kernel_takes_leaves_the_others_theirs(machine, monkeypatch, make_state):
    """A pooling kernel for up to 16 channels is used in the first of three groups."""
    machine(CPU, None)
    known = registered()["pool_batch_norm_act"]

    def fits(operation):
        return known.fits(operation) or ("takes 16 channels at most" if operation.shape[1] > 16 else None)

    limited = dict(registered()) | {"pool_batch_norm_act": dataclasses.replace(known, fits=fits)}
    monkeypatch.setattr(contract, "registered", lambda: limited)
    monkeypatch.setattr(kernel_choice, "registered", lambda: limited)
    state = make_state("airbench94", "width_multiplier=0.25", "kernels=triton", "batch_size=8")
    picked = pick_kernels(state.recipe, CPU, torch.float32, images=state.images.shape)
    assert set(picked.values()) == {"triton"}
    state.use_kernels(picked)
    assert ["pool_batch_norm_act" in each.kernels for each in state.net.groups] == [True, False, False]
    assert [list(each.norms[1].kernels) for each in state.net.groups] == [["batch_norm_act"]] * 3


def test_auto_is_asked_for_each_place(machine, monkeypatch, make_state):
    """The choice says where plain PyTorch stays, and the net goes by it."""
    machine(CUDA, (9, 0))
    known = registered()["batch_norm_act"]

    def auto(operation, target):
        return target.capability == (9, 0) and operation.shape[2] == 15

    limited = dict(registered()) | {"batch_norm_act": dataclasses.replace(known, auto=auto)}
    monkeypatch.setattr(kernel_choice, "registered", lambda: limited)
    state = make_state("airbench94")
    picked = pick_kernels(state.recipe, CUDA, torch.float32, images=state.images.shape)
    assert picked["batch_norm_act"] == "triton"
    state.use_kernels(picked)
    assert [bool(each.norms[1].kernels) for each in state.net.groups] == [True, False, False]


def test_operations_are_those_of_all_kinds_of_step():
    made = recipe("airbench94", ["augmentation.cutmix=5", "augmentation.sizes=24,0"])
    places = placed_operations(made, expected_data(made).train_shape, torch.float16)
    assert [(each["cutmix"], each["size"]) for each in places["input"]] == [(0, 24), (0, 0), (5, 24), (5, 0)]
    assert {each.name for each in places["groups.0"]} == {"convolution_pool", "pool_batch_norm_act"}
    assert {each.name for each in places["groups.1"]} == {"pool_batch_norm_act"}  # whose input wants a gradient
    assert [each.shape for each in places["groups.2.norms.1"]] == [(1024, 256, 2, 2), (1024, 256, 3, 3)]
    found = operations_of(recipe("airbench96"), expected_data(made).train_shape, torch.float16)
    (last,) = {each["residual"] for each in found if each.name == "batch_norm_act"} - {"none"}
    assert last == recipe("airbench96").net.residual


def test_one_channel_is_what_kernels_are_asked_about(machine):
    machine(CUDA, (9, 0))
    for channels, expected in ((1, "reference"), (3, "triton")):
        made = recipe("airbench94", ["net.whitening_kernel=2"])
        assert pick_kernels(made, CUDA, torch.float16, images=(64, 32, 32, channels))["convolution_pool"] == expected
