import contextlib
import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
from tiers import parametrize

from speedyresnet.engine import recipe
from speedyresnet.engine.backends import Variant, make_step
from speedyresnet.engine.init import whitening_filters
from speedyresnet.engine.kernel_choice import pick_kernels
from speedyresnet.engine.nets import make_net, parameter_counts
from speedyresnet.engine.optim import ParameterGroup, mix_, nesterov_sgd_
from speedyresnet.engine.step import REFERENCE_KERNELS, Regions, average_, optimize_, training_step
from speedyresnet.engine.streams import SecondStream

VARIANTS = [
    ("airbench94", True, False),
    ("airbench94", False, False),
    ("hlb-v0.4", False, False),
    ("hlb-v0.7", False, True),
    ("airbench94-muon", True, False),
    ("hiverge", False, False),
]


def test_the_optimizer_is_torchs_sgd_step_by_step():
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(5, 3, generator=generator, dtype=torch.float64), torch.randn(7, generator=generator).double()]
    theirs = [value.clone().requires_grad_() for value in ours]
    optimizer = torch.optim.SGD(theirs, lr=1.0, momentum=0.85, nesterov=True, weight_decay=0.3)
    group = ParameterGroup(
        parameters=ours,
        learning_rate=1.0,
        weight_decay=0.3,
        momentum_buffers=[torch.zeros_like(value) for value in ours],
    )
    for step in range(10):
        gradients = [torch.randn(value.shape, generator=generator).double() for value in ours]
        rate = 0.1 * (step + 1) * (step != 3)  # also a step at learning rate 0, which still fills the buffers
        optimizer.param_groups[0]["lr"] = rate
        for value, gradient in zip(theirs, gradients, strict=True):
            value.grad = gradient.clone()
        optimizer.step()
        nesterov_sgd_(group, gradients, torch.tensor(rate, dtype=torch.float64), 0.85)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other.detach(), rtol=1e-13, atol=1e-13)


def test_mixing_keeps_and_copies_exactly():
    a, b = torch.randn(1000), 1e4 * torch.randn(1000)
    kept, copied = [a.clone()], [a.clone()]
    mix_(kept, [b], torch.tensor(1.0))
    mix_(copied, [b], torch.tensor(0.0))
    assert torch.equal(kept[0], a)
    assert torch.equal(copied[0], b)


def test_a_step_changes_what_it_should(make_state):
    state = make_state()
    before = copy.deepcopy(state.net.state_dict())
    training_step(state, whitening_bias=True, cutmix=False)
    assert int(state.counter) == 1
    assert state.loss_log[0] > 1
    after = state.net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if "norms" in name and name.endswith("weight")} | {"stem.whitening.weight"}
    assert changed == set(before) - frozen


@parametrize(("kind", "provider"), [("sgd", "reference"), ("muon", "reference"), ("sgd", "triton")], default=2)
def test_squeeze_and_excite_trains_with_a_hundred_classes(make_state, kind, provider):
    """In half precision as on a GPU, at a rate that no rounding swallows: all but what is frozen for ever."""
    settings = ["net.squeeze_excite_ratio=16", "net.residual=before_activation", f"optimizer.kind={kind}"]
    settings += ["dtype=bfloat16", "optimizer.learning_rate=100", "batch_size=8"]
    state = make_state("airbench94", *settings, classes=100)
    state.use_kernels(dict.fromkeys(REFERENCE_KERNELS, provider))
    before = {name: value.detach().clone() for name, value in state.net.named_parameters()}
    training_step(state, whitening_bias=True, cutmix=False)
    after = dict(state.net.named_parameters())
    assert after["head.weight"].shape == (100, 32)
    assert torch.isfinite(state.loss_log[0])
    stayed = {name for name in before if torch.equal(before[name], after[name])}
    assert stayed == {name for name, value in after.items() if not value.requires_grad}
    factors = state.net.groups[0].squeeze_excite
    assert {id(factors.squeeze.weight), id(factors.excite.weight)} < {id(p) for p in state.groups["head"].parameters}
    biases = {id(p) for p in state.groups["batch_norm_biases"].parameters}
    assert {id(factors.squeeze.bias), id(factors.excite.bias)} < biases


def test_a_frozen_whitening_bias_stays(make_state):
    state = make_state()
    before = state.net.stem.whitening.bias.detach().clone()
    training_step(state, whitening_bias=False, cutmix=False)
    assert torch.equal(state.net.stem.whitening.bias, before)


@pytest.mark.parametrize("name", ["airbench94", "hlb-v0.3", "hiverge", "davidnet"])
def test_a_frozen_first_group_only_moves_its_statistics_and_its_average(make_state, name):
    """All that is behind it takes the step that it takes beside a first group that is trained."""
    exact = ["dtype=float64", "optimizer.muon.newton_schulz_dtype=float64"]
    average = ["averaging.kind=ema", "averaging.every=1", "averaging.decay=0.9", "averaging.power=0"]
    state, other = (make_state(name, *exact, *average, "averaging.epochs=none") for _ in range(2))
    for each in (state, other):  # so that momentum and averages are no longer what they began with
        training_step(each, whitening_bias=False, cutmix=False)
    before, seen = {key: value.detach().clone() for key, value in state.changing_tensors().items()}, []
    slow = {key: value.detach().clone() for key, value in state.averaged_state().items()}
    state.net.groups[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].requires_grad))
    training_step(state, whitening_bias=False, cutmix=False, first_group=False)
    training_step(other, whitening_bias=False, cutmix=False)
    assert seen == [False]  # so nothing of group 1 is kept for a backward pass

    after, trained = state.changing_tensors(), other.changing_tensors()
    parameters = {id(value): key for key, value in state.net.named_parameters()}
    momentum = {
        f"momentum.{kind}.{index}": parameters[id(parameter)]
        for kind, group in state.groups.items()
        for index, parameter in enumerate(group.parameters)
    }
    for key in (*state.net.state_dict(), *momentum, "loss_log", "correct_log"):
        name_of_parameter = momentum.get(key, key)
        if name_of_parameter.startswith(("stem.", "groups.0.")) and "running" not in key:
            assert torch.equal(after[key], before[key]), key
        else:
            torch.testing.assert_close(after[key], trained[key], rtol=1e-11, atol=1e-13)
    for key in ("groups.0.convolutions.0.weight", "groups.0.norms.0.running_var"):
        torch.testing.assert_close(state.averaged_state()[key], 0.9 * slow[key] + 0.1 * after[key])
    assert not torch.equal(after["groups.0.norms.0.running_var"], before["groups.0.norms.0.running_var"])
    assert not torch.equal(after["groups.1.convolutions.0.weight"], before["groups.1.convolutions.0.weight"])


@pytest.mark.parametrize("whitening_bias", [True, False])
@pytest.mark.parametrize("name", ["airbench94", "davidnet", "bag-of-tricks", "speedy"])
def test_a_step_on_two_streams_is_a_step_on_one(make_state, name, whitening_bias):
    """Muon pads all matrices that it updates at once to one shape, in which sums are rounded in another order."""
    exact = ["dtype=float64", "optimizer.muon.newton_schulz_dtype=float64"]
    one, two = (make_state(name, *exact) for _ in range(2))
    two.second_stream = SecondStream(torch.device("cpu"))
    for _ in range(3):
        for state in (one, two):
            training_step(state, whitening_bias=whitening_bias, cutmix=False)
    for (key, mine), theirs in zip(two.changing_tensors().items(), one.changing_tensors().values(), strict=True):
        if one.recipe.optimizer.kind == "muon":
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
        else:
            assert torch.equal(mine, theirs), key


def test_the_second_stream_ends_before_what_it_has_read_is_freed(make_state):
    """And before the average reads what it has written; group 1 is updated while it may still be at work."""
    events, read = [], []

    class Watched(SecondStream):
        @contextlib.contextmanager
        def begin(self):
            events.append("begin")
            yield
            events.append("leave")

        def end(self):
            assert read
            assert all(each() is not None for each in read)
            events.append("end")

    def optimizing(state, groups, gradients):
        events.append(sorted(groups))
        if "head" in groups:
            read.extend(map(weakref.ref, gradients))
        optimize_(state, groups, gradients)

    def averaging(state):
        events.append("average")
        average_(state)

    state = make_state("airbench94", "batch_size=8")
    state.second_stream = Watched(torch.device("cpu"))
    training_step(state, whitening_bias=True, cutmix=False, regions=Regions(optimize_=optimizing, average_=averaging))
    back, front = ["batch_norm_biases", "convolutions", "head"], ["batch_norm_biases", "convolutions"]
    assert events == ["begin", back, "leave", front, "end", "average"]
    assert not any(each() is not None for each in read)
    training_step(state, whitening_bias=False, cutmix=False, first_group=False)
    assert len(events) == 6  # there is nothing that the update could overlap


@pytest.mark.parametrize(("name", "bias", "cutmix"), VARIANTS)
def test_a_step_runs_on_the_meta_device_so_it_never_synchronises(make_state, name, bias, cutmix):
    training_step(make_state(name, device="meta"), whitening_bias=bias, cutmix=cutmix)


@parametrize(("name", "bias", "cutmix"), VARIANTS, default=1)
def test_a_step_compiles_as_one_graph_and_computes_the_same(make_state, name, bias, cutmix):
    torch._dynamo.reset()
    torch._dynamo.config.trace_autograd_ops = True
    compiled = torch.compile(training_step, fullgraph=True, dynamic=False, backend="aot_eager")
    eager, other = make_state(name, "net.widths=64,256"), make_state(name, "net.widths=64,256")
    for _ in range(2):
        training_step(eager, whitening_bias=bias, cutmix=cutmix)
        compiled(other, whitening_bias=bias, cutmix=cutmix)
    torch.testing.assert_close(other.loss_log[:2], eager.loss_log[:2], rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(other.net.parameters(), eager.net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_an_epoch_shows_every_image_once(make_state, monkeypatch):
    state = make_state(images=100)  # 3 steps of 32, 4 images dropped
    seen = []
    original = torch.Tensor.index_select

    def spy(self, dim, index):
        if self is state.labels:
            seen.append(index.clone())
        return original(self, dim, index)

    monkeypatch.setattr(torch.Tensor, "index_select", spy)
    for _ in range(6):
        training_step(state, whitening_bias=True, cutmix=False)
    epochs = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    for ids in epochs:
        assert len(set(ids.tolist())) == 96
    assert not torch.equal(epochs[0], epochs[1])


def test_the_loss_is_torchs_label_smoothing_loss(make_state, monkeypatch):
    state = make_state("airbench94", "dtype=float64", "augmentation.padding=0", "augmentation.flip=none")
    seen = {}
    state.net.head.register_forward_hook(lambda module, inputs, output: seen.update(output=output.detach()))
    labels = []
    original = torch.Tensor.index_select

    def spy(self, dim, index):
        result = original(self, dim, index)
        if self is state.labels:
            labels.append(result)
        return result

    monkeypatch.setattr(torch.Tensor, "index_select", spy)
    training_step(state, whitening_bias=True, cutmix=False)
    expected = F.cross_entropy(seen["output"] * state.recipe.net.logit_scale, labels[0], label_smoothing=0.2)
    torch.testing.assert_close(state.loss_log[0], expected)


def test_batch_norm_biases_learn_faster_with_the_same_decay(make_state):
    state = make_state("airbench94")
    weights, biases = state.groups["convolutions"], state.groups["batch_norm_biases"]
    assert len(biases.parameters) == len(weights.parameters) == 6
    assert biases.learning_rate == pytest.approx(64 * weights.learning_rate)
    assert biases.learning_rate * biases.weight_decay == pytest.approx(weights.learning_rate * weights.weight_decay)


def test_the_original_learning_rates_come_out_at_the_original_batch_size(make_state):
    airbench = make_state("airbench94", "batch_size=1024", images=1024).groups
    for name in ("convolutions", "head", "whitening_bias"):
        assert airbench[name].learning_rate == pytest.approx(1.464844e-3, rel=1e-6)
        assert airbench[name].weight_decay == pytest.approx(1.362365, rel=1e-6)
    hlb = make_state("hlb-v0.7", "batch_size=1024", images=1024).groups
    assert hlb["convolutions"].learning_rate == pytest.approx(2.978516e-3, rel=1e-6)
    assert hlb["convolutions"].weight_decay == pytest.approx(0.684749, rel=1e-6)
    assert hlb["batch_norm_biases"].learning_rate == pytest.approx(0.190625, rel=1e-6)
    assert hlb["batch_norm_biases"].weight_decay == pytest.approx(0.0106992, rel=1e-4)
    assert "whitening_bias" not in hlb
    muon = make_state("airbench94-muon", "batch_size=2000", images=2000).groups
    assert (muon["convolutions"].learning_rate, muon["convolutions"].weight_decay) == (0.24, 0.0)
    assert muon["head"].learning_rate == pytest.approx(0.67)
    assert muon["head"].weight_decay == pytest.approx(0.00597015, rel=1e-6)
    for name in ("whitening_bias", "batch_norm_biases"):
        assert muon[name].learning_rate == pytest.approx(0.053)
        assert muon[name].weight_decay == pytest.approx(0.0754717, rel=1e-6)
    hiverge = make_state("hiverge", "batch_size=1536", images=1536).groups
    assert hiverge["convolutions"].learning_rate == 0.205
    assert hiverge["convolutions"].weight_decay == pytest.approx(1.60020e-3, rel=1e-5)
    assert hiverge["head"].learning_rate == pytest.approx(0.5415)
    assert hiverge["head"].weight_decay == pytest.approx(0.00295513, rel=1e-5)
    for name in ("whitening_bias", "batch_norm_biases"):
        assert hiverge[name].learning_rate == pytest.approx(0.0573)
        assert hiverge[name].weight_decay == pytest.approx(0.0279267, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "batch_size", "steps", "rates"),
    [
        ("airbench94-muon", 2000, 200, {  # step: convolutions, head, batch-norm biases, whitening bias
            0: (0.24, 0.67, 0.053, 0.053),
            1: (0.2388, 0.66665, 0.052735, 0.053 * 74 / 75),
            74: (0.1512, 0.4221, 0.03339, 0.053 / 75),
            75: (0.15, 0.41875, 0.033125, 0.0),
            199: (0.0012, 0.00335, 0.000265, 0.0),
        }),
        ("hiverge", 1536, 245, {
            0: (0.205, 0.5415, 0.0573, 0.0573),
            1: (0.205 * 244 / 245, 0.5415 * 244 / 245, 0.0573 * 244 / 245, 0.0573 * 6 / 7),
            6: (0.205 * 239 / 245, 0.5415 * 239 / 245, 0.0573 * 239 / 245, 0.0573 / 7),
            7: (0.205 * 34 / 35, 0.5415 * 34 / 35, 0.0573 * 34 / 35, 0.0),
            244: (0.205 / 245, 0.5415 / 245, 0.0573 / 245, 0.0),
        }),
    ],
)  # fmt: skip
def test_the_muon_recipes_have_the_published_rates_at_every_step(make_state, name, batch_size, steps, rates):
    state = make_state(name, f"batch_size={batch_size}", "dtype=float64", images=50_000, device="meta")
    made = state.plan
    assert made.steps == steps
    assert parameter_counts(make_net(recipe(name), classes=10, channels=3, dtype=torch.float16, device="meta")) == (
        1_972_792, 1_971_352,
    )  # fmt: skip
    groups = [state.groups[group] for group in ("convolutions", "head", "batch_norm_biases", "whitening_bias")]
    for step, expected in rates.items():
        tables = [made.learning_rate] * 3 + [made.own_learning_rates["whitening_bias"]]
        found = [table[step] * group.learning_rate for table, group in zip(tables, groups, strict=True)]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_group_of_parameters_may_have_a_schedule_of_its_own(make_state):
    """Whose first learning rate is 0: biases of batch norm stay where they are, all else goes on as without it."""
    states = [make_state("davidnet", "schedule.kind=cosine", f"schedule.batch_norm_biases={kind}")
              for kind in ("shared", "one_cycle")]  # fmt: skip
    before = [bias.detach().clone() for bias in states[0].groups["batch_norm_biases"].parameters]
    for state in states:
        training_step(state, whitening_bias=False, cutmix=False)
    for name in states[0].groups:
        one, other = (state.groups[name].parameters for state in states)
        same = [torch.equal(*pair) for pair in zip(one, other, strict=True)]
        assert not any(same) if name == "batch_norm_biases" else all(same)
    for bias, initial in zip(states[1].groups["batch_norm_biases"].parameters, before, strict=True):
        assert torch.equal(bias, initial)
    assert states[1].all_tensors().keys() - states[0].all_tensors().keys() == {"learning_rate.batch_norm_biases"}


@pytest.mark.parametrize("name", ["airbench94-muon", "hiverge"])
def test_muon_recipes_learn(make_state, name):
    """At an eighth of the width, with its logit scale; the rate of the summed loss is that of the whole batch."""
    state = make_state(name, "epochs=20", "net.logit_scale=0.03125", "optimizer.learning_rate=1.75", images=64)
    for step in range(40):
        training_step(state, whitening_bias=step < state.plan.whitening_bias_steps, cutmix=False)
    losses = state.loss_log
    assert losses.isfinite().all()
    assert losses[-5:].mean() < losses[:5].mean() - 0.6  # 64 images are learnt by heart


@pytest.mark.exhaustive
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted where there is a GPU")
def test_a_step_of_bag_of_tricks_is_the_same_with_triton_kernels(make_state):
    small = ["batch_size=8", "width_multiplier=0.0625", "net.batch_norm_groups=4"]
    states = [make_state("bag-of-tricks", *small, f"kernels={name}") for name in ("reference", "triton")]
    for state in states:
        picked = pick_kernels(state.recipe, torch.device("cpu"), torch.float32)
        state.use_kernels(picked | {"augment": "reference"})
        training_step(state, whitening_bias=False, cutmix=False)
    assert states[1].kernels == REFERENCE_KERNELS | dict.fromkeys(
        ("batch_norm_act", "pool_batch_norm_act"), "triton"
    )  # every first convolution of a group is behind weights that are trained
    torch.testing.assert_close(states[1].loss_log[0], states[0].loss_log[0])
    for ours, expected in zip(states[1].net.parameters(), states[0].net.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_lookahead_writes_the_slow_weights_back(make_state):
    state = make_state("airbench94", "averaging.every=2", "epochs=5")
    start = state.net.head.weight.detach().clone()
    training_step(state, whitening_bias=True, cutmix=False)
    assert torch.equal(state.averaged_state()["head.weight"], start)
    training_step(state, whitening_bias=True, cutmix=False)
    slow = state.averaged_state()["head.weight"]
    assert torch.equal(slow, state.net.head.weight)
    assert not torch.equal(slow, start)


def test_the_last_step_blends_the_average_into_what_the_run_ends_with(make_state):
    settings = ["dtype=float64", "averaging.every=2", "epochs=0.25"]  # two steps, the second of which moves
    plain, whole, blended = (
        make_state("airbench94", *settings, f"averaging.{each}") for each in ("kind=ema", "blend=1", "blend=0.25")
    )
    plain.averaging_write_back.zero_()
    for state in (plain, whole, blended):
        for _ in range(2):
            training_step(state, whitening_bias=True, cutmix=False)
    live, slow = plain.net.state_dict(), plain.averaged_state()
    for name, value in blended.net.state_dict().items():
        torch.testing.assert_close(value, 0.75 * live[name] + 0.25 * slow[name], rtol=1e-13, atol=1e-13)
        assert torch.equal(whole.net.state_dict()[name], slow[name])
    assert not torch.equal(live["head.weight"], slow["head.weight"])


def test_a_lookahead_may_carry_its_slow_weights_on(make_state):
    """Three moves of every second step, each from what the step before has left; the first only copies."""
    settings = ["dtype=float64", "epochs=1", "averaging.every=2", "averaging.decay=0.5", "averaging.power=0"]
    state = make_state("airbench94", *settings, "averaging.tail=0.8", "averaging.momentum=0.9")
    assert [step for step, keep in enumerate(state.plan.averaging_keep) if keep < 1] == [1, 3, 5, 7]
    weights = {name for name, value in state.net.named_parameters() if value.requires_grad}
    velocity = {name: torch.zeros_like(value) for name, value in state.net.named_parameters()}
    for step in range(8):
        training_step(state, whitening_bias=True, cutmix=False, averaging=False)
        state.counter.sub_(1)
        live, slow = ({k: v.detach().clone() for k, v in each.items()} for each in
                      (state.net.state_dict(), state.averaged_state()))  # fmt: skip
        with torch.no_grad():
            average_(state)
        state.counter.add_(1)
        for name, value in state.averaged_state().items():
            if name in weights and step in (3, 5, 7):
                ahead = slow[name] - live[name]
                velocity[name] = 0.9 * velocity[name] + ahead
                expected = slow[name] - 0.75 * (ahead + 0.9 * velocity[name])
            elif "running" in name and step in (3, 5, 7):
                expected = slow[name] - 0.75 * (slow[name] - live[name])
            else:
                expected = live[name] if step == 1 else slow[name]
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
            if step in (3, 5, 7):
                assert torch.equal(state.net.state_dict()[name], value)
    moved = [each for part in state.velocity for each in part]
    assert len(moved) == len(weights)
    state.restart(seed=3)
    assert not any(each.any() for each in moved)


def test_running_statistics_are_averaged_too(make_state):
    state = make_state("hlb-v0.4", "averaging.every=1", "averaging.epochs=none", "averaging.decay=0.9")
    training_step(state, whitening_bias=False, cutmix=False)
    live = state.net.groups[0].norms[0].running_mean
    averaged = state.averaged_state()["groups.0.norms.0.running_mean"]
    torch.testing.assert_close(averaged, 0.1 * live)  # it began at zero


def test_ema_leaves_the_live_weights_alone(make_state):
    with_ema, without = make_state("hlb-v0.4", "epochs=10"), make_state("hlb-v0.4", "averaging.kind=none")
    for _ in range(20):
        training_step(with_ema, whitening_bias=False, cutmix=False)
        training_step(without, whitening_bias=False, cutmix=False)
    assert torch.equal(with_ema.net.head.weight, without.net.head.weight)
    assert not torch.equal(with_ema.averaged_state()["head.weight"], with_ema.net.head.weight)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_trains(make_state, dtype):
    state = make_state("airbench94", f"dtype={dtype}", "epochs=30", images=32)
    for _ in range(25):
        training_step(state, whitening_bias=True, cutmix=False)
    losses = state.loss_log[:25]
    assert losses.isfinite().all()
    assert losses[-5:].mean() < losses[:5].mean() - 0.05  # 32 images are learnt by heart


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "bias", "cutmix"), VARIANTS)
def test_a_step_on_the_gpu_is_that_on_the_cpu(make_state, name, bias, cutmix):
    exact = "dtype=float64", "optimizer.muon.newton_schulz_dtype=float64"
    on_cpu, on_gpu = make_state(name, *exact), make_state(name, *exact, device="cuda")
    on_gpu.net.load_state_dict(on_cpu.net.state_dict())
    on_gpu.restart(seed=3)
    for state in (on_cpu, on_gpu):
        training_step(state, whitening_bias=bias, cutmix=cutmix)
    torch.testing.assert_close(on_gpu.loss_log[:1].cpu(), on_cpu.loss_log[:1], rtol=1e-9, atol=0)
    for mine, theirs in zip(on_gpu.net.parameters(), on_cpu.net.parameters(), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["eager", "capture"])
@pytest.mark.parametrize("name", ["airbench94", "speedy"])
def test_a_step_on_two_streams_of_the_gpu_is_a_step_on_one(make_state, name, backend):
    exact = "dtype=float64", "optimizer.muon.newton_schulz_dtype=float64"
    one, two = (make_state(name, *exact, device="cuda") for _ in range(2))
    two.second_stream = SecondStream(torch.device("cuda"))
    steps = [make_step(state, backend, Variant(whitening_bias=True, cutmix=False)) for state in (one, two)]
    for _ in range(5):
        for step in steps:
            step()
    for (key, mine), theirs in zip(two.changing_tensors().items(), one.changing_tensors().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9, msg=lambda m, n=key: f"{n}: {m}")


@pytest.mark.gpu
def test_a_step_on_the_gpu_never_synchronises(make_state):
    state = make_state(device="cuda")
    training_step(state, whitening_bias=True, cutmix=False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(state, whitening_bias=True, cutmix=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_trace_of_a_step_shows_our_kernels(make_state):
    state = make_state("airbench94", device="cuda")
    state.use_kernels(dict.fromkeys(REFERENCE_KERNELS, "triton"))
    training_step(state, whitening_bias=True, cutmix=False)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as trace:
        training_step(state, whitening_bias=True, cutmix=False)
        torch.cuda.synchronize()
    names = {event.name for event in trace.events()}
    assert names >= {
        "stem_kernel", "stem_gradient_kernel", "pool_statistics_kernel", "unpool_gradient_kernel", "statistics_kernel",
        "apply_kernel", "gradient_sums_kernel", "input_gradient_kernel",
    }  # fmt: skip


@parametrize(
    ("name", "crop", "size", "width", "first_group"),
    [
        ("pocket", 0, 0, 0.125, True), ("hlb-v0.4", 0, 0, 0.125, True), ("hlb-v0.7", 0, 0, 0.125, True),
        ("airbench94", 0, 24, 0.125, True),
        ("hlb-v0.7", 20, 0, 0.25, True),  # a quarter of 64 filters, which the convolution with pooling takes
        ("hlb-v0.7", 20, 0, 0.25, False),
    ],
    default=1,
)  # fmt: skip
def test_a_step_gives_the_same_loss_and_weights_with_kernels_and_without(
    make_state, name, crop, size, width, first_group
):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = "batch_size=4", f"augmentation.crop={crop}", f"width_multiplier={width}"
    states = [make_state(name, *settings, device=device) for _ in range(2)]
    states[1].use_kernels(dict.fromkeys(REFERENCE_KERNELS, "triton"))
    for state in states:
        with torch.no_grad():
            filters = whitening_filters(state.images, state.scale, state.shift, state.recipe.net)
            state.net.stem.whitening.weight.copy_(filters)
        kind = {"whitening_bias": size > 0, "cutmix": state.recipe.augmentation.cutmix > 0, "size": size}
        training_step(state, **kind, first_group=first_group)
    torch.testing.assert_close(states[0].loss_log[0], states[1].loss_log[0], rtol=1e-6, atol=0)
    for one_way, other_way in zip(states[0].net.parameters(), states[1].net.parameters(), strict=True):
        torch.testing.assert_close(one_way, other_way, rtol=1e-5, atol=1e-6)


@parametrize(
    ("name", "whitening_bias", "cutmix"),
    [("airbench94", True, False), ("hlb-v0.4", False, False), ("hlb-v0.7", False, True), ("hiverge", False, False)],
    default=1,
)
def test_a_step_with_kernels_runs_on_the_meta_device_and_is_one_graph(make_state, name, whitening_bias, cutmix):
    """Of two groups and four images: the interpreter is slow, and optimizers know nothing of kernels."""
    kernels, small = dict.fromkeys(REFERENCE_KERNELS, "triton"), ["batch_size=4", "net.widths=64,256"]
    on_paper = make_state(name, device="meta")
    on_paper.use_kernels(kernels)
    training_step(on_paper, whitening_bias=whitening_bias, cutmix=cutmix)
    torch._dynamo.config.trace_autograd_ops = True
    eager, compiled = make_state(name, *small), make_state(name, *small)
    step = torch.compile(training_step, fullgraph=True, backend="aot_eager")
    for state, function in ((eager, training_step), (compiled, step)):
        state.use_kernels(kernels)
        function(state, whitening_bias=whitening_bias, cutmix=cutmix)
    torch.testing.assert_close(eager.loss_log[0], compiled.loss_log[0], rtol=1e-5, atol=0)
    for one, other in zip(eager.net.parameters(), compiled.net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
