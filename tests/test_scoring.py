"""The net as the scorer of a run evaluates it gives what the net itself gives."""

import dataclasses

import pytest
import torch
from trainers import trainer_of

from speedyresnet.engine import recipe
from speedyresnet.engine.backends import uncaptured_scorer
from speedyresnet.engine.evaluate import LabelledImages, device_scores, forward_of
from speedyresnet.engine.nets import BatchNorm, KernelPlace
from speedyresnet.engine.recipes import registered_groups, registered_recipes
from speedyresnet.engine.scoring import folded_state, scoring_net
from speedyresnet.engine.step import REFERENCE_KERNELS
from speedyresnet.kernels.convolution_pool import convolution_pool_plain


def structure(name):
    """What decides which modules a net has, and how they are called."""
    numbers = ("widths", "project_width", "head_init", "convolution_init", "logit_scale")
    net = dataclasses.asdict(recipe(name).net)
    kept = {key: value for key, value in net.items() if key not in numbers}
    return repr({key: value for key, value in kept.items() if not key.startswith(("whitening_", "batch_norm_m"))})


NAMES = [*registered_recipes(), *(made.name for group in registered_groups().values() for made in group().variants)]
STRUCTURES = list({structure(name): name for name in reversed(NAMES)}.values())
"""A recipe for each net that differs from others in more than numbers and whitening."""


def spoilt_(state):
    """`state` with scales of both signs, and variances of which the first of each norm is as small as its epsilon."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in state.net.modules():
            if isinstance(module, BatchNorm):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.1)
                module.running_var[0] = module.epsilon
        for average, live in zip(state.average, state.live, strict=True):
            for one, other in zip(average, live, strict=True):
                one.copy_(other * 1.1)
    return state


def largest_difference(state, weights):
    """Of the logits of a folded net and of the net itself, relative to the largest logit."""
    values = state.averaged_state() if weights == "averaged" else state.net.state_dict()
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = forward_of(state.net.eval(), values)(x)
        net = scoring_net(state.net, folded=True)
        found = torch.func.functional_call(net, folded_state(net, values), (x,))
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_folded_net_is_the_net(make_state, name):
    """Of live and of averaged weights."""
    state = spoilt_(make_state(name, "dtype=float64", images=32))
    assert all(largest_difference(state, weights) < 1e-10 for weights in ("live", "averaged"))


def scored(state, backend, weights=None, graphs=None):
    """Two evaluations of `state` on its own images, as `backend` scores without capture; compiled graphs are listed."""
    data = LabelledImages(
        images=state.images, labels=state.labels, scale=state.scale, shift=state.shift, dtype=state.dtype
    )
    found = [] if graphs is None else graphs

    def compiler(module, _):
        found.append(module)
        return module.forward

    score = uncaptured_scorer(state, backend, weights, data, "six_view", compiler)
    return score(), score()


@pytest.mark.parametrize("name", ["airbench94", "hlb-v0.7"])
def test_compiled_scorers_fold_and_count_the_same(make_state, name):
    state, graphs = spoilt_(make_state(name, "evaluation.batch_size=32", images=96)), []
    weights = state.averaged_state() if name == "hlb-v0.7" else None
    state.net.eval()
    (expected, _), (found, again) = scored(state, "eager", weights), scored(state, "graph", weights, graphs)
    assert len(graphs) == 1
    for measure, value in expected.items():
        assert torch.equal(found[measure], again[measure])
        torch.testing.assert_close(found[measure], value, rtol=1e-5, atol=0)
    assert found["single_view"] > 0


def test_only_scorers_use_kernels_in_evaluation(make_state):
    """And only the one that needs no statistics of a batch."""
    state, seen = spoilt_(make_state("airbench94", "evaluation.batch_size=32", images=64)), []

    def counted(x, weight):
        seen.append(x.shape)
        return convolution_pool_plain(x, weight)

    def wrong(*_, **__):
        raise AssertionError("normalises with the statistics of a batch")

    before = scored(state, "eager")[0]
    for module in state.net.modules():
        if isinstance(module, KernelPlace):
            module.kernels = {"pool_batch_norm_act": wrong, "batch_norm_act": wrong}
    state.net.groups[0].kernels["convolution_pool"] = counted
    state.net.eval()(torch.randn(2, 3, 32, 32))
    assert seen == []
    after = scored(state, "eager")[0]
    assert seen == [(32, 24, 31, 31)] * (2 * 2 * 6)  # evaluations, batches and views
    for measure, value in before.items():
        torch.testing.assert_close(after[measure], value)


def test_a_compiled_scorer_has_the_kernel_in_its_graph(make_state):
    """Nothing is computed: everything is on the meta device."""
    state, graphs = make_state("airbench94", "width_multiplier=0.25", "dtype=float16", device="meta"), []
    state.use_kernels(REFERENCE_KERNELS | {"convolution_pool": "triton"})
    scored(state, "graph", None, graphs)
    (graph,) = graphs
    parts = [each for each in graph.modules() if isinstance(each, torch.fx.GraphModule)]
    targets = [str(node.target) for each in parts for node in each.graph.nodes]
    assert sum("speedyresnet.convolution_pool" in target for target in targets) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["capture", "graph"])
def test_on_a_gpu_the_counts_are_those_of_plain_pytorch(small_pack, backend):
    """In float16; an image that is on the edge between two classes may go the other way."""
    device = torch.device("cuda")
    trainer = trainer_of(recipe("airbench94", ["batch_size=64", "epochs=8"]), small_pack, device, backend)
    record = trainer.run(seed=0, validate=False)
    state = trainer.state
    data = LabelledImages(
        images=small_pack.test_images.to(device), labels=small_pack.test_labels.to(device), scale=state.scale,
        shift=state.shift, dtype=state.dtype,
    )  # fmt: skip
    plain = device_scores(forward_of(state.net.eval(), trainer.reported_state()), data, view="six_view", batch_size=200)
    for view in ("single_view", "mirror", "six_view"):
        assert abs(round(200 * getattr(record.accuracy, view)) - int(plain[view])) <= 1


MUTATIONS = {
    "engine/scoring.py": [
        ("(variance + module.epsilon).rsqrt()", "variance.rsqrt()"),
        ("bias - mean * scale", "bias - mean"),
        ("bias - mean * scale", "bias + mean * scale"),
        ("weight * (variance", "(variance"),
        ("module.folded = folded", "pass"),
        ("module.scores = True", "pass"),
    ],
    "engine/nets.py": [
        ("self.weight[:, None, None] + self.bias[:, None, None]", "self.weight[:, None] + self.bias[:, None, None]"),
        ("if pools and self.training and", "if pools and"),
    ],
}
"""See tests/mutations.py."""
