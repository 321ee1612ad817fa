"""Every way to execute a step does the same step."""

import contextlib
import functools
import types
import warnings

import pytest
import torch

from speedyresnet.engine import backends, graphs, recipe, train
from speedyresnet.engine.backends import (
    BACKENDS,
    BackendError,
    Variant,
    backends_of,
    check_backend,
    default_backend,
    make_scorer,
    make_step,
    variant_of_step,
)
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.evaluate import LabelledImages
from speedyresnet.engine.step import REFERENCE_KERNELS, training_step
from speedyresnet.engine.trainer import Trainer

CPU = torch.device("cpu")
TRACING = pytest.mark.skipif(not hasattr(torch.jit, "trace"), reason="this PyTorch has no torch.jit")


def test_more_trainers_compile_in_one_process_than_pytorch_allows_for(make_state, monkeypatch):
    """Ten steps of one code, each of another state; PyTorch's own limit is eight."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(backends, "training_step", lambda state, **_: state.counter.add_(state.plan.steps))
    for epochs in range(1, 11):
        state = make_state("airbench94", f"epochs={epochs}")
        make_step(state, "compile", Variant(whitening_bias=True, cutmix=False))()
        assert state.counter == 8 * epochs


def copied(state):
    return {name: tensor.detach().clone() for name, tensor in state.changing_tensors().items()}


def put_back(state, tensors):
    with torch.no_grad():
        for name, tensor in state.changing_tensors().items():
            tensor.copy_(tensors[name])


def assert_same_steps(make_state, backend, provider="reference", images=160):
    """One step of `backend` from each state of an eager run of two epochs gives the eager loss and weights."""
    settings = ["batch_size=16", "epochs=2", "optimizer.whitening_bias_epochs=1", "net.widths=64,256"]
    state = make_state("airbench94", *settings, images=images)
    state.use_kernels(dict.fromkeys(REFERENCE_KERNELS, provider))
    steps = {}
    for number in range(state.plan.steps):
        before, variant = copied(state), variant_of_step(state.recipe, state.plan, number)
        if variant not in steps:
            steps[variant] = make_step(state, backend, variant)
        training_step(state, **variant._asdict())
        eager = copied(state)
        put_back(state, before)
        steps[variant]()
        torch.testing.assert_close(state.loss_log[number], eager["loss_log"][number], rtol=1e-5, atol=0)
        for name, tensor in state.changing_tensors().items():
            torch.testing.assert_close(
                tensor.detach(), eager[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
        put_back(state, eager)
    assert len(steps) == 2  # with and without the whitening bias


@TRACING
def test_torchscript_steps_are_eager_steps(make_state):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody sees that torch.jit is deprecated
        assert_same_steps(make_state, "torchscript")


@pytest.mark.slow
def test_compiled_steps_are_eager_steps(make_state):
    torch._dynamo.reset()
    assert_same_steps(make_state, "compile")
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # one for each variant, and none since


@pytest.mark.slow
def test_compiled_steps_with_our_kernels_are_eager_steps(make_state):
    """Inductor around our operators, which take one memory layout only; without a GPU in Triton's interpreter."""
    torch._dynamo.reset()
    assert_same_steps(make_state, "compile", "triton", images=32)


@TRACING
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hlb-v0.4", []),
        ("hlb-v0.7", []),
        ("pocket", []),
        ("pocket", ["net.squeeze_excite_ratio=16"]),
        ("davidnet", []),
        ("bag-of-tricks", []),
    ],
)
def test_torchscript_trains_every_net(make_state, name, settings):
    state = make_state(name, *settings, "batch_size=16", images=64)
    cutmix = state.recipe.augmentation.cutmix > 0
    step = make_step(state, "torchscript", Variant(whitening_bias=False, cutmix=cutmix))
    before = copied(state)
    training_step(state, whitening_bias=False, cutmix=cutmix)
    eager = copied(state)
    put_back(state, before)
    step()
    for key, tensor in state.changing_tensors().items():
        torch.testing.assert_close(tensor.detach(), eager[key], rtol=1e-4, atol=1e-5)
    names = set(state.net.state_dict())
    step()
    assert set(state.net.state_dict()) == names


@TRACING
def test_a_run_with_torchscript_is_recorded_and_learns(small_pack):
    settings = ["batch_size=64", "width_multiplier=0.25", "epochs=6", "dtype=float32", "evaluation.every=0"]
    run = train(recipe("airbench94", settings), small_pack, device="cpu", backend="torchscript")
    assert run.record.backend == "torchscript"
    assert set(run.record.kernels.values()) == {"reference"}
    assert run.record.accuracy.six_view > 0.2


def test_what_a_cpu_has():
    assert default_backend(CPU) == "eager"
    assert default_backend(torch.device("cuda")) == "graph"
    assert "graph" not in backends_of(CPU)
    assert set(backends_of(CPU)) <= set(BACKENDS)
    with pytest.raises(UserError, match="graph needs a CUDA GPU; use --backend eager"):
        check_backend("graph", CPU)
    check_backend("auto", CPU)


def test_without_torch_jit_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(torch, "jit", types.SimpleNamespace())
    assert "torchscript" not in backends_of(CPU)
    with pytest.raises(UserError, match="needs TorchScript, which PyTorch"):
        check_backend("torchscript", CPU)


def failing(*_, **__):
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_a_failure_names_the_place_and_the_way_out(make_state, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    monkeypatch.setattr("speedyresnet.engine.step.optimize_", failing)
    step = make_step(make_state(), "compile", Variant(whitening_bias=True, cutmix=False))
    with pytest.raises(BackendError, match=r"--backend compile failed at .*\.py:\d+ .*not permitted.*--backend eager"):
        step()


def test_auto_goes_on_eagerly_and_says_so(small_pack, monkeypatch):
    monkeypatch.setattr("speedyresnet.engine.trainer.default_backend", lambda _: "compile")
    monkeypatch.setattr(torch, "compile", lambda step, **_: failing)
    settings = recipe("airbench94", ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32"])
    with pytest.warns(UserWarning, match="Going on with eager"):
        trainer = Trainer(settings, small_pack, CPU, "auto")
    assert trainer.backend == "eager"
    with pytest.raises(BackendError):
        Trainer(settings, small_pack, CPU, "compile")


class StandInGraph:
    """What a CUDA graph does, done by calling `replayed`."""

    replayed = None

    def __init__(self):
        self.replays, self.pool, self.alive = 0, None, True

    def replay(self):
        assert self.alive
        self.replays += 1
        type(self).replayed()

    def reset(self):
        self.alive = False


@pytest.fixture
def captures(monkeypatch):
    """CUDA's part of capturing, on a CPU: a list of the graphs that were made."""
    made = []

    @contextlib.contextmanager
    def graph(graph, pool, stream):
        graph.pool = pool
        made.append(graph)
        yield

    stream = types.SimpleNamespace(wait_stream=lambda _: None)
    for name, value in {
        "CUDAGraph": StandInGraph, "graph": graph, "Stream": lambda _: stream, "current_stream": lambda: stream,
        "stream": lambda _: contextlib.nullcontext(), "synchronize": lambda _: None, "graph_pool_handle": object,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def captured_step(state, monkeypatch):
    def step():
        training_step(state, whitening_bias=True, cutmix=False)

    monkeypatch.setattr(StandInGraph, "replayed", step)
    return graphs.CapturedStep(state, step, contextlib.nullcontext)


def test_a_captured_step_is_one_step_whatever_its_warm_up_did(make_state, captures, monkeypatch):
    state, other = make_state(), make_state()
    step = captured_step(state, monkeypatch)
    for _ in range(3):
        step()
        training_step(other, whitening_bias=True, cutmix=False)
    for (name, one), two in zip(state.changing_tensors().items(), other.changing_tensors().values(), strict=True):
        assert torch.equal(one, two), name
    assert [graph.replays for graph in captures] == [3]


def test_the_graphs_of_a_state_share_their_memory(make_state, captures, monkeypatch):
    state, other = make_state(), make_state()
    for each in (state, state, other):
        captured_step(each, monkeypatch)()
    assert captures[0].pool is captures[1].pool
    assert captures[0].pool is not captures[2].pool


def test_a_closed_graph_is_freed_and_captured_anew(make_state, captures, monkeypatch):
    step = captured_step(make_state(), monkeypatch)
    step()
    step.close()
    assert not captures[0].alive
    step()
    assert [graph.replays for graph in captures] == [1, 1]


def test_a_tensor_that_moved_is_named_in_debug_mode(make_state, captures, monkeypatch):
    monkeypatch.setenv(graphs.CHECK_VARIABLE, "1")
    state = make_state()
    step = captured_step(state, monkeypatch)
    step()
    step()
    state.learning_rate = state.learning_rate.clone()
    with pytest.raises(RuntimeError, match="gone: learning_rate"):
        step()


def test_a_captured_evaluation_is_an_evaluation(make_state, captures, monkeypatch):
    state = make_state()
    state.net.eval()
    data = LabelledImages(
        images=state.images, labels=state.labels, scale=state.scale, shift=state.shift, dtype=torch.float32
    )
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(StandInGraph, "replayed", lambda: None)
    plain, graph = (make_scorer(state, backend, None, data, "mirror") for backend in ("eager", "graph"))
    for name, value in plain().items():
        assert torch.equal(graph()[name], value)
    assert len(captures) == 1
    assert captures[0].pool is state.graph_pool


def test_warm_up_fits_a_run_of_one_step(make_state, captures, monkeypatch):
    state = make_state("airbench94", "epochs=0.1", images=32)
    assert state.plan.steps == 1
    captured_step(state, monkeypatch)()
    assert int(state.counter) == 1


# -- on a GPU


def gpu_state(make_state):
    return make_state("airbench94", "dtype=float16", device="cuda")


@pytest.mark.gpu
def test_a_replayed_graph_is_a_compiled_step(make_state):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        states = [gpu_state(make_state) for _ in range(2)]
        for state, backend in zip(states, ("compile", "graph"), strict=True):
            step = make_step(state, backend, Variant(whitening_bias=True, cutmix=False))
            for _ in range(5):
                step()
    finally:
        torch.use_deterministic_algorithms(False)
    for (name, one), two in zip(
        states[0].changing_tensors().items(), states[1].changing_tensors().values(), strict=True
    ):
        assert torch.equal(one, two), name


@pytest.mark.gpu
def test_twenty_steps_are_twenty_graph_launches_and_nothing_else(make_state):
    state = gpu_state(make_state)
    step = make_step(state, "graph", Variant(whitening_bias=True, cutmix=False))
    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as trace:
        for _ in range(20):
            step()
        torch.cuda.synchronize()
    calls = [event.name for event in trace.events() if event.name.startswith(("cuda", "cu"))]
    assert calls.count("cudaGraphLaunch") == 20
    assert not [name for name in calls if "LaunchKernel" in name or "Memcpy" in name or "Memset" in name]


@pytest.mark.gpu
def test_a_captured_run_learns_and_takes_a_new_seed(small_pack):
    made = recipe("airbench94", ["batch_size=64", "epochs=8", "evaluation.every=0"])
    trainer = Trainer(made, small_pack, torch.device("cuda"), "graph")
    accuracies = [trainer.run(seed).accuracy.six_view for seed in (0, 1)]
    assert min(accuracies) > 0.4
