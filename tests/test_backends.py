"""Every way to execute a step does the same step."""

import contextlib
import functools
import gc
import itertools
import types
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from capture_checks import Capturable
from tiers import parametrize
from trainers import trainer_of

from speedyresnet.engine import backends, graphs, recipe, train
from speedyresnet.engine.backends import (
    BACKENDS,
    BackendError,
    Variant,
    backends_of,
    check_backend,
    default_backends,
    make_scorer,
    make_step,
    step_function,
    uncaptured_scorer,
    variant_of_step,
    variants_of,
    whole,
)
from speedyresnet.engine.errors import UserError
from speedyresnet.engine.evaluate import LabelledImages
from speedyresnet.engine.kernel_choice import pick_kernels
from speedyresnet.engine.recipes import registered_recipes
from speedyresnet.engine.schedules import plan
from speedyresnet.engine.step import REFERENCE_KERNELS, training_step
from speedyresnet.engine.streams import SecondStream
from speedyresnet.kernels.language import AVAILABLE

CPU, GPU = torch.device("cpu"), torch.device("cuda")
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


def assert_same_steps(make_state, backend, provider="reference", images=160, *, make=make_step, more=(), kinds=2):
    """One step of `backend` from each state of an eager run of two epochs gives the eager loss and weights.

    Our kernels take no float64. In float32 two values that nearly tie in a max-pool may swap, by the CPU's rounding.
    """
    settings = ["batch_size=16", "epochs=2", "optimizer.whitening_bias_epochs=1", "net.widths=64,256", *more]
    if provider == "reference":
        settings.append("dtype=float64")
    close = {"rtol": 1e-4, "atol": 1e-5} if provider == "triton" else {"rtol": 1e-8, "atol": 1e-10}
    state = make_state("airbench94", *settings, images=images)
    state.use_kernels(dict.fromkeys(REFERENCE_KERNELS, provider))
    steps = {}
    for number in range(state.plan.steps):
        before, variant = copied(state), variant_of_step(state.recipe, state.plan, number)
        if variant not in steps:
            steps[variant] = make(state, backend, variant)
        training_step(state, **variant._asdict())
        eager = copied(state)
        put_back(state, before)
        steps[variant]()
        torch.testing.assert_close(state.loss_log[number], eager["loss_log"][number], rtol=close["rtol"] / 10, atol=0)
        for name, tensor in state.changing_tensors().items():
            torch.testing.assert_close(tensor.detach(), eager[name], **close, msg=lambda m, n=name: f"{n}: {m}")
        put_back(state, eager)
    assert len(steps) == kinds  # with and without the whitening bias


def test_before_the_average_begins_steps_leave_it_out(make_state):
    """Which changes nothing: from its first step on an average of the end of a run is a new copy of the weights."""
    settings = ["batch_size=16", "epochs=2", "dtype=float64"]
    state, other = (make_state("progressive", *settings, "averaging.tail=0.5", images=160) for _ in range(2))
    kinds = [variant_of_step(state.recipe, state.plan, step) for step in range(state.plan.steps)]
    assert [each.averaging for each in kinds] == [False] * 15 + [True] * 5
    for variant in kinds:
        before = [each.clone() for part in state.average for each in part]
        training_step(state, **variant._asdict())
        training_step(other, **(variant._asdict() | {"averaging": True}))
        unmoved = [
            torch.equal(new, old) for new, old in zip((v for part in state.average for v in part), before, strict=True)
        ]
        assert all(unmoved) == (not variant.averaging or int(state.counter) % 4 != 0)
    assert_same(state, other)


def test_the_kinds_of_steps_in_the_order_of_their_first():
    made = recipe("speedy", [])
    kinds = variants_of(made, plan(made, 50_000))
    assert kinds == [
        Variant(True, False, 20, False), Variant(False, False, 20, False), Variant(False, False, 24, False),
        Variant(False, False, 0, False), Variant(False, False, 0, True),
    ]  # fmt: skip
    airbench = recipe("airbench94", [])
    assert variants_of(airbench, plan(airbench, 50_000)) == [Variant(True, False), Variant(False, False)]


@TRACING
def test_torchscript_steps_are_eager_steps(make_state):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody sees that torch.jit is deprecated
        assert_same_steps(make_state, "torchscript")


FREEZING = ["optimizer.first_group_frozen_epochs=0.5"]


@TRACING
def test_torchscript_steps_with_a_frozen_first_group_are_eager_steps(make_state):
    assert_same_steps(make_state, "torchscript", images=64, more=FREEZING, kinds=3)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("backend", "graphs"), [("compile", 3), ("graph", 4)])  # graph: head, average, optimizer twice
def test_compiled_steps_with_a_frozen_first_group_are_eager_steps(make_state, backend, graphs):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def make(state, backend, variant):
        return whole(backend, step_function(state, backend, variant, "aot_eager"), "aot_eager")

    assert_same_steps(make_state, backend, images=64, make=make, more=FREEZING, kinds=3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.exhaustive
@pytest.mark.parametrize(("backend", "graphs"), [("compile", 2), ("graph", 4)])  # graph: the optimizer in two parts
def test_compiled_steps_on_two_streams_are_eager_steps_on_one(make_state, backend, graphs):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def make(state, backend, variant):
        step = whole(backend, step_function(state, backend, variant, "aot_eager"), "aot_eager")

        def on_two_streams():
            state.second_stream = SecondStream(CPU)
            step()
            state.second_stream = None

        return on_two_streams

    assert_same_steps(make_state, backend, images=32, make=make)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_the_second_stream_waits_for_the_first_and_is_waited_for(cuda, monkeypatch):
    waits = []

    def noting(device):
        stream = cuda.Stream(device)
        stream.wait_stream = lambda other: waits.append((id(stream), id(other)))
        return stream

    main, second = noting(GPU), SecondStream(GPU)
    monkeypatch.setattr(torch.cuda, "Stream", noting)
    with torch.cuda.stream(main):
        second.end()  # nothing was begun
        with second.begin():
            own = torch.cuda.current_stream()
        assert torch.cuda.current_stream() is main
        second.end()
        with second.begin():
            assert torch.cuda.current_stream() is own
    assert own is not main
    assert waits == [(id(own), id(main)), (id(main), id(own)), (id(own), id(main))]


def test_a_second_stream_is_not_for_torchscript(make_state):
    state = make_state()
    state.second_stream = SecondStream(CPU)
    with pytest.raises(BackendError, match="torchscript traces net and loss as one"):
        make_step(state, "torchscript", Variant(whitening_bias=True, cutmix=False))


@pytest.mark.exhaustive
def test_compiled_steps_are_eager_steps(make_state):
    """Of a small net whose code the C++ compiler does not optimize: compiling takes all of the time."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    quickly = {"aot_inductor.debug_compile": True, "cpp.simdlen": 1}
    with torch._inductor.config.patch(quickly):
        assert_same_steps(make_state, "compile", more=["net.widths=64,64", "net.group_convolutions=1"])
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # one for each variant, and none since


@pytest.mark.exhaustive
def test_steps_with_compiled_regions_are_eager_steps(make_state):
    """What `graph` captures: three graphs for three kinds of steps, the last of which average."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_same_steps(make_state, "graph", make=step_function, more=["averaging.tail=0.5"], kinds=3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


@pytest.mark.hour
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


@pytest.mark.exhaustive
@TRACING
def test_a_run_with_torchscript_is_recorded_and_learns(small_pack):
    settings = ["batch_size=64", "width_multiplier=0.25", "epochs=6", "dtype=float32", "evaluation.every=0"]
    run = train(recipe("airbench94", settings), small_pack, device="cpu", backend="torchscript")
    assert run.record.backend == "torchscript"
    assert set(run.record.kernels.values()) == {"reference"}
    assert run.record.accuracy.six_view > 0.2


def test_what_a_cpu_has():
    assert default_backends(CPU) == ("eager",)
    assert default_backends(GPU) == ("graph", "capture", "eager")
    assert set(backends_of(CPU)) <= set(BACKENDS) - {"capture", "graph"}
    for backend in ("capture", "graph"):
        with pytest.raises(UserError, match=f"{backend} needs a CUDA GPU; use --backend eager"):
            check_backend(backend, CPU)
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


SMALL = ["batch_size=64", "width_multiplier=0.125", "epochs=1", "dtype=float32"]


def test_auto_goes_on_eagerly_and_says_so(small_pack, monkeypatch):
    monkeypatch.setattr("speedyresnet.engine.setup.default_backends", lambda _: ("compile", "eager"))
    monkeypatch.setattr(torch, "compile", lambda step, **_: failing)
    with pytest.warns(UserWarning, match="Going on with eager"):
        trainer = trainer_of(recipe("airbench94", SMALL), small_pack, backend="auto")
    assert trainer.backend == "eager"
    with pytest.raises(BackendError):
        trainer_of(recipe("airbench94", SMALL), small_pack, backend="compile")


# -- what a CUDA graph holds, on a CPU


def captured_step(state):
    return make_step(state, "capture", Variant(whitening_bias=True, cutmix=False))


def assert_same(one, other):
    for (name, mine), theirs in zip(one.changing_tensors().items(), other.changing_tensors().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_a_captured_step_is_one_step_whatever_its_warm_up_did(make_state, cuda):
    state, other = make_state(), make_state()
    step = captured_step(state)
    for _ in range(3):
        step()
        training_step(other, whitening_bias=True, cutmix=False)
    assert_same(state, other)
    assert [graph.replays for graph in cuda.graphs] == [3]


def test_captured_steps_are_eager_steps(make_state, cuda):
    assert_same_steps(make_state, "capture")


def test_the_graphs_of_a_state_share_their_memory(make_state, cuda):
    """That is, pool and stream: PyTorch shares a pool's memory within a stream only. Warm-up is on that stream too."""
    streams = []
    state, other = make_state(), make_state()
    for each in (state, state, other):
        graphs.CapturedStep(each, lambda: streams.append(torch.cuda.current_stream()), contextlib.nullcontext)()
    first, second, third = cuda.graphs
    assert first.pool is second.pool is graphs.memory_of(state).pool
    assert first.stream is second.stream is graphs.memory_of(state).stream
    assert (third.pool is first.pool, third.stream is first.stream) == (False, False)
    assert all(stream is first.stream for stream in streams[:6])
    assert len(streams) == 9


def test_after_a_capture_that_fails_everything_is_as_before(make_state, cuda):
    before, state = torch.cuda.current_stream(), make_state()
    step = graphs.CapturedStep(state, lambda: cuda.is_capturing() and failing(), contextlib.nullcontext)
    with pytest.raises(torch.AcceleratorError, match="previous error"):
        step()
    assert torch.cuda.current_stream() is before
    assert not cuda.recording
    assert not cuda.generator_captures
    step = captured_step(make_state())
    step()  # a capture that was still under way would refuse another


def test_what_the_allocator_says_of_a_failed_capture_is_not_hidden(make_state, cuda, monkeypatch):
    def broken(device, pool):
        raise RuntimeError("no such device")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", broken)
    step = graphs.CapturedStep(make_state(), lambda: cuda.is_capturing() and failing(), contextlib.nullcontext)
    with pytest.raises(RuntimeError, match="no such device"):
        step()


def test_a_tensor_that_moved_is_named_in_debug_mode(make_state, cuda, monkeypatch):
    monkeypatch.setenv(graphs.CHECK_VARIABLE, "1")
    state = make_state()
    step = captured_step(state)
    step()
    step()
    state.learning_rate = state.learning_rate.clone()
    with pytest.raises(RuntimeError, match="gone: learning_rate"):
        step()


def test_warm_up_fits_a_run_of_one_step(make_state, cuda):
    state = make_state("airbench94", "epochs=0.1", images=32)
    assert state.plan.steps == 1
    captured_step(state)()
    assert int(state.counter) == 1


def labelled(state):
    return LabelledImages(
        images=state.images, labels=state.labels, scale=state.scale, shift=state.shift, dtype=torch.float32
    )


@pytest.mark.parametrize("backend", ["capture", "graph"])
def test_a_captured_evaluation_is_an_evaluation(make_state, cuda, monkeypatch, backend):
    """Also of weights that change later, and with more views for some images only."""
    state = make_state("airbench94", "evaluation.share=0.3")
    state.net.eval()
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    plain, captured = (
        make(state, backend, None, labelled(state), "six_view") for make in (uncaptured_scorer, make_scorer)
    )
    losses = []
    for factor in (1.0, -3.0):
        with torch.no_grad():
            state.net.head.weight.mul_(factor)
        expected, found = plain(), captured()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        losses.append(float(found["loss"]))
    assert losses[0] != losses[1]
    assert len(cuda.graphs) == 1
    assert cuda.graphs[0].pool is graphs.memory_of(state).pool


def run_of(trainer, seed):
    record = trainer.run(seed)
    return record.accuracy, [(row.loss, row.train_accuracy, row.val_loss, row.val_accuracy) for row in record.history]


@pytest.mark.exhaustive
def test_a_captured_run_is_an_eager_run(small_pack, cuda, monkeypatch):
    """Its steps with and without the whitening bias, its validation and its evaluation."""
    monkeypatch.setattr(backends, "backend_obstacle", lambda *_: None)
    settings = "batch_size=128", "epochs=0.4", "optimizer.whitening_bias_epochs=0.2"
    made = recipe("airbench94", [*SMALL, *settings])
    eager, captured = (trainer_of(made, small_pack, backend=backend) for backend in ("eager", "capture"))
    captured.evaluate()
    assert len(cuda.graphs) == 3  # two kinds of steps and the evaluation, before any run
    for seed in (1, 2):
        assert run_of(captured, seed) == run_of(eager, seed)
    assert_same(captured.state, eager.state)
    assert captured.new_record(0).backend == "capture"


class Kept:
    """What a failed attempt leaves in its frames, as a step leaves its tensors."""


@pytest.fixture
def default_of_a_gpu(cuda, monkeypatch):
    """`auto` on a CPU is what it is on a GPU whose torch.compile fails; the list says what was alive at later steps."""
    left, alive = [], []

    def compiled(*_):
        kept = Kept()
        left.append(weakref.ref(kept))
        failing()

    def step(state, **options):
        gc.collect()
        alive.extend(each() is not None for each in left)
        training_step(state, **options)

    monkeypatch.setattr("speedyresnet.engine.setup.default_backends", lambda _: default_backends(GPU))
    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    monkeypatch.setattr(backends, "training_step", step)
    return alive


def warnings_of_auto(small_pack):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer = trainer_of(recipe("airbench94", SMALL), small_pack, backend="auto")
    return trainer, [str(each.message) for each in found if each.category is UserWarning]


def test_where_compilation_fails_auto_captures_the_eager_step(small_pack, default_of_a_gpu):
    trainer, told = warnings_of_auto(small_pack)
    assert (trainer.backend, len(told)) == ("capture", 1)
    assert told[0].startswith("--backend graph failed at ")
    assert told[0].endswith("Going on with capture.")
    assert default_of_a_gpu
    assert not any(default_of_a_gpu)  # a capture must not meet the autograd graph of another stream


@pytest.fixture
def failing_captures(default_of_a_gpu, cuda, monkeypatch):
    """A function that makes the captures of these backends of a GPU fail; compilation changes nothing."""
    attempts, original = itertools.count(), backends.training_step

    def fail(*names):
        def step(state, **options):
            if cuda.is_capturing() and len(cuda.failed) < len(names):
                cuda.failed.append(next(attempts))
                failing()
            original(state, **options)

        cuda.failed = []
        monkeypatch.setattr(torch, "compile", lambda step, **_: step)
        monkeypatch.setattr(backends, "training_step", step)

    return fail


@pytest.mark.exhaustive
def test_where_the_capture_of_graph_fails_auto_captures_the_eager_step(small_pack, failing_captures, cuda):
    failing_captures("graph")
    trainer, told = warnings_of_auto(small_pack)
    assert (trainer.backend, len(told)) == ("capture", 1)
    assert "--backend graph failed at " in told[0]
    assert "not permitted when stream is capturing" in told[0]
    record = trainer.run(seed=1, validate=False)
    assert (record.status, record.backend, record.requested["backend"]) == ("finished", "capture", "auto")
    assert record.accuracy == trainer_of(trainer.recipe, small_pack).run(seed=1, validate=False).accuracy
    captured = [graph for graph in cuda.graphs if graph.replays]
    assert captured
    assert all(graph.pool is graphs.memory_of(trainer.state).pool for graph in captured)
    assert cuda.graphs[0].pool is not graphs.memory_of(trainer.state).pool  # that of the failed capture


@pytest.mark.exhaustive
def test_where_capturing_fails_too_auto_goes_on_eagerly(small_pack, failing_captures, cuda):
    """The message has what failed within the capture, not that the capture could not be ended."""
    failing_captures("graph", "capture")
    trainer, told = warnings_of_auto(small_pack)
    assert (trainer.backend, len(told)) == ("eager", 2)
    assert "--backend capture failed at " in told[1]
    assert "not permitted when stream is capturing" in told[1]
    assert told[1].endswith("Going on with eager.")
    assert not cuda.recording
    assert not cuda.generator_captures


class OutOfResources(Exception):
    """As Triton's, which is no RuntimeError."""


@pytest.mark.parametrize("kind", [AssertionError, ValueError, OutOfResources, KeyError, torch._dynamo.exc.Unsupported])
def test_whatever_a_compiler_raises_is_one_line_and_a_traceback(small_pack, make_state, monkeypatch, caplog, kind):
    def compiled():
        raise kind("out of resource: shared memory\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    step = make_step(make_state(), "compile", Variant(whitening_bias=True, cutmix=False))
    with pytest.raises(BackendError, match=r"--backend compile failed at .*out of resource.*use --backend eager"):
        step()
    monkeypatch.setattr("speedyresnet.engine.setup.default_backends", lambda _: ("compile", "eager"))
    with caplog.at_level("DEBUG", "speedyresnet"), pytest.warns(UserWarning, match="Going on with eager"):
        assert trainer_of(recipe("airbench94", SMALL), small_pack, backend="auto").backend == "eager"
    assert "raise kind(" in caplog.text


@pytest.mark.parametrize("kind", [UserError, MemoryError, torch.OutOfMemoryError])
def test_what_says_more_than_that_a_backend_failed_is_kept(make_state, monkeypatch, kind):
    def compiled():
        raise kind("full")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: compiled)
    step = make_step(make_state(), "compile", Variant(whitening_bias=True, cutmix=False))
    with pytest.raises(kind, match=r"^full$"):
        step()


NAMES = *registered_recipes(), "page-ladder/baseline", "page-ladder/residual"
SEEN_ON_META = pytest.mark.skipif(torch.__version__ < "2.15", reason="on the meta device nothing is copied, nor seen")


@pytest.fixture
def no_launches(monkeypatch):
    """Kernels get tensors on the `meta` device only, and do nothing; a set of those that would be launched."""
    found = set()

    def launcher(kernel, grid):
        found.add(kernel.fn.__name__)
        return lambda *arguments, **_: Capturable.check_device(arguments)

    if AVAILABLE:
        monkeypatch.setattr("triton.runtime.jit.KernelInterface.__getitem__", launcher)
    return found


@pytest.mark.parametrize("provider", ["reference", "triton"])
@parametrize("name", NAMES, default=["airbench94", "hlb-v0.4", "speedy"])
def test_a_graph_can_hold_each_kind_of_step_and_the_evaluation(make_state, no_launches, monkeypatch, name, provider):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    state = make_state(name, "dtype=float16", f"kernels={provider}", device="meta")
    if provider == "triton":
        state.use_kernels(pick_kernels(state.recipe, GPU, state.dtype))
    with Capturable():
        for variant in {variant_of_step(state.recipe, state.plan, step) for step in range(state.plan.steps)}:
            make_step(state, "eager", variant)()
        state.net.eval()
        weights = state.averaged_state() if state.recipe.evaluation.weights == "averaged" else None
        make_scorer(state, "eager", weights, labelled(state), state.recipe.evaluation.view)()
    assert bool(no_launches) == ("triton" in state.kernels.values())


@pytest.mark.parametrize(
    ("complaint", "operation"),
    [
        ("asks the host", lambda x: x.sum().item()),
        ("asks the host", lambda x: x[x.sum().long() :]),
        ("depends on data", lambda x: x.nonzero()),
        ("depends on data", lambda x: x.masked_select(x > 0)),
        ("indexes by a mask", lambda x: x[x > 0]),
        ("indexes by a mask", lambda x: x.index_put_((x > 0,), x.sum())),
        pytest.param("host's numbers", lambda x: torch.tensor(1.0, device=x.device), marks=SEEN_ON_META),
        pytest.param("host's numbers", lambda x: x[[1, 0]], marks=SEEN_ON_META),
        ("host's numbers", lambda x: x * torch.tensor(1.0)),
        ("on the host", lambda x: torch.zeros(4)),
        ("on the host", lambda x: x * torch.zeros(()).sin()),
        ("on the host", lambda x: torch.zeros(4).to(x.device)),
        ("generator", lambda x: torch.rand_like(x)),
        ("generator", lambda x: F.dropout(x)),
    ],
)
def test_what_a_graph_cannot_hold_is_found(complaint, operation):
    x = torch.ones(4, device="meta")
    with pytest.raises(AssertionError, match=complaint), Capturable():
        operation(x)
    with Capturable():
        x[torch.zeros(2, dtype=torch.int64, device="meta")].masked_fill(x[:2] > 0, 0.5).mul_(2.0)


# -- on a GPU


def gpu_state(make_state):
    return make_state("airbench94", "dtype=float16", device="cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["capture", "graph"])
@pytest.mark.parametrize("provider", ["reference", "triton"])
def test_a_replayed_graph_is_the_step_that_was_captured(make_state, backend, provider):
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        states = [gpu_state(make_state) for _ in range(2)]
        for state, make in zip(states, (step_function, make_step), strict=True):
            state.use_kernels(dict.fromkeys(REFERENCE_KERNELS, provider))
            step = make(state, backend, Variant(whitening_bias=True, cutmix=False))
            for _ in range(5):
                step()
    assert_same(*states)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["capture", "graph"])
def test_twenty_steps_are_twenty_graph_launches_and_nothing_else(make_state, backend):
    state = gpu_state(make_state)
    step = make_step(state, backend, Variant(whitening_bias=True, cutmix=False))
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
def test_the_graphs_of_a_state_use_the_same_memory(make_state):
    """A second one needs little more, and in turns both still do what the eager step does."""
    whole = "airbench94", "dtype=float16", "batch_size=1024", "width_multiplier=1"
    state, other = (make_state(*whole, images=1024, device="cuda") for _ in range(2))
    reserved, steps = [], []
    for bias in (False, True):
        steps.append(make_step(state, "capture", Variant(whitening_bias=bias, cutmix=False)))
        steps[-1]()
        training_step(other, whitening_bias=bias, cutmix=False)
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[1] < 1.4 * reserved[0]
    for bias in (True, False, True):
        steps[bias]()
        training_step(other, whitening_bias=bias, cutmix=False)
    torch.testing.assert_close(state.loss_log[:5], other.loss_log[:5], rtol=5e-2, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["capture", "graph"])
def test_a_captured_run_learns_and_takes_a_new_seed(small_pack, backend):
    made = recipe("airbench94", ["batch_size=64", "epochs=8"])
    trainer = trainer_of(made, small_pack, GPU, backend)
    assert trainer.backend == backend
    accuracies = [trainer.run(seed).accuracy.six_view for seed in (0, 1)]
    assert min(accuracies) > 0.4


@pytest.mark.gpu
def test_after_a_real_capture_that_fails_auto_captures_and_trains(small_pack, monkeypatch):
    """The first backend asks the host within its capture, which CUDA forbids and ends with an error."""

    def asking(step, **_):
        def asked():
            step()
            if torch.cuda.is_current_stream_capturing():
                torch.cuda.current_stream().synchronize()

        return asked

    made = recipe("airbench94", ["batch_size=64", "epochs=8"])
    before = trainer_of(made, small_pack, GPU, "capture")
    with monkeypatch.context() as patches:
        patches.setattr(torch, "compile", asking)
        with pytest.warns(UserWarning, match=r"--backend graph failed at .*Going on with capture"):
            trainer = trainer_of(made, small_pack, GPU, "auto")
    assert trainer.backend == "capture"
    torch.cuda.empty_cache()
    torch.rand(1, device=GPU)
    for each in (trainer, before):  # graphs that were captured before are still good
        record = each.run(seed=0, validate=False)
        assert record.accuracy.six_view > 0.4
    assert trainer.run(seed=0, validate=False).requested["backend"] == "auto"
    assert trainer_of(made, small_pack, GPU, "capture").run(seed=1, validate=False).accuracy.six_view > 0.4
