"""The modules of the batch-norm kernels beside nn.BatchNorm2d: statistics, checkpoints, conversion, options."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import DEVICE, channels_last, vectors
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.optim.swa_utils import update_bn

from speedyresnet.kernels.batch_norm import BatchNormAct2d
from speedyresnet.kernels.pool_batch_norm import PoolBatchNormAct2d

MODULES = [BatchNormAct2d, PoolBatchNormAct2d]
CHANNELS = 8


def plain_norm(ours, **options):
    """nn.BatchNorm2d of what a module of ours normalises."""
    norm = nn.BatchNorm2d(CHANNELS, **options).to(DEVICE)
    return nn.Sequential(nn.MaxPool2d(2), norm) if ours is PoolBatchNormAct2d else nn.Sequential(norm)


def batches(count=4):
    return [channels_last(6, CHANNELS, 6, 4, seed=seed, mean=2.0).detach() for seed in range(count)]


def assert_same_statistics(ours, plain):
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=1e-5, atol=1e-5)
    assert int(ours.num_batches_tracked) == int(plain.num_batches_tracked)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("momentum", [None, 0.1, 1, 0.0])
def test_statistics_and_the_count_are_those_of_batch_norm(module, momentum):
    ours, plain = module(CHANNELS, "none", momentum=momentum).to(DEVICE), plain_norm(module, momentum=momentum)
    for x in batches(3):
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)
        assert_same_statistics(ours, plain[-1])
    ours.reset_running_stats(), plain[-1].reset_running_stats()
    ours(batches()[3]), plain(batches()[3])
    assert_same_statistics(ours, plain[-1])


@pytest.mark.parametrize("module", MODULES)
def test_update_bn_gives_the_mean_of_all_batches(module):
    ours, plain = nn.Sequential(module(CHANNELS).to(DEVICE)), plain_norm(module)
    data = [channels_last(32, CHANNELS, 6, 6, seed=seed, mean=2.0).detach() for seed in range(4)]
    for net in (ours, plain):
        net(data[0] - 5)  # which the statistics have to forget
        update_bn(data, net)
    assert_same_statistics(ours[0], plain[-1])
    assert ours[0].momentum == 0.1
    if module is BatchNormAct2d:
        torch.testing.assert_close(ours[0].running_mean.mean().item(), 2.0, rtol=0, atol=0.05)
        torch.testing.assert_close(ours[0].running_var.mean().item(), 1.0, rtol=0, atol=0.05)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("momentum", [None, 0.3])
def test_statistics_that_are_not_tracked_stay(module, momentum):
    ours, plain = module(CHANNELS, "none", momentum=momentum).to(DEVICE), plain_norm(module, momentum=momentum)
    for tracked, x in zip((True, False, True), batches(3), strict=True):
        ours.track_running_stats = plain[-1].track_running_stats = tracked
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)
        assert_same_statistics(ours, plain[-1])


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_a_compiled_module_counts_and_averages_in_one_graph(momentum):
    ours = BatchNormAct2d(CHANNELS, momentum=momentum).to(DEVICE)
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager")
    for x in batches(3):
        torch.testing.assert_close(compiled(x), ours(x), rtol=1e-5, atol=1e-5)
        assert_same_statistics(compiled, ours)
    assert int(ours.num_batches_tracked) == 3


@pytest.mark.parametrize("momentum", [None, 0.3])
def test_a_step_never_asks_the_device(momentum):
    """A number that the host reads would raise on the meta device."""
    ours = BatchNormAct2d(CHANNELS, momentum=momentum).to("meta")
    assert ours(torch.empty(2, CHANNELS, 4, 4, device="meta")).shape == (2, CHANNELS, 4, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("momentum", [None, 0.3])
def test_a_replayed_graph_counts_and_averages(module, momentum):
    ours, x = module(CHANNELS, momentum=momentum).to(DEVICE), batches()[0]
    eager = copy.deepcopy(ours)
    with torch.no_grad():
        ours(x)
        ours.reset_running_stats()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ours(x)
        ours.reset_running_stats()
        for batch in batches():
            x.copy_(batch)
            graph.replay()
            eager(batch)
    assert_same_statistics(ours, eager)


@pytest.mark.parametrize("module", MODULES)
def test_checkpoints_of_batch_norm_load_and_load_back(module):
    ours, plain = module(CHANNELS, "none").to(DEVICE), plain_norm(module)
    plain(batches()[0])
    with torch.no_grad():
        plain[-1].weight.copy_(vectors(CHANNELS)[0])
    ours.load_state_dict(plain[-1].state_dict(), strict=True)
    x = batches()[1]
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)
    back = plain_norm(module)
    back[-1].load_state_dict(ours.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(plain[-1].state_dict())
    torch.testing.assert_close(back.eval()(x), plain(x))
    assert int(back[-1].num_batches_tracked) == 1


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("activation", ["gelu", "none"])
def test_converting_and_fusing_is_an_error(module, activation):
    ours = module(CHANNELS, activation)
    net = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), ours).eval()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(TypeError, match=f"{module.__name__} is no plain batch norm"):
        nn.SyncBatchNorm.convert_sync_batchnorm(net)
    with pytest.raises(TypeError, match="is no plain batch norm"):
        nn.SyncBatchNorm.convert_sync_batchnorm(ours)
    with pytest.raises(TypeError, match="is no plain batch norm"):
        fuse_conv_bn_eval(*net)
    with pytest.raises(TypeError, match="is no plain batch norm"):
        fuse_linear_bn_eval(nn.Linear(3, CHANNELS).eval(), ours)
    with pytest.raises((AssertionError, NotImplementedError)):  # versions of PyTorch differ
        torch.ao.quantization.fuse_modules(net, [["0", "1"]])
    torch.testing.assert_close(dict(net.state_dict()), dict(before))
    assert type(net[1]) is module


@pytest.mark.parametrize("module", MODULES)
def test_fusing_by_tracing_gives_the_same_function(module):
    from torch.fx.experimental.optimization import fuse

    net = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), module(CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 1)).eval()
    net[1].running_mean.fill_(0.5)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(fuse(net)(x), net(x))
    torch.testing.assert_close(torch.jit.trace(net, x)(x), net(x))


def test_plain_modules_in_its_place_are_the_same_function_as_the_documentation_says():
    norm = BatchNormAct2d(CHANNELS, "gelu", eps=1e-3).to(DEVICE)
    norm(batches()[0])
    plain = nn.Sequential(nn.BatchNorm2d(CHANNELS, eps=norm.epsilon, momentum=norm.momentum), nn.GELU()).to(DEVICE)
    plain[0].load_state_dict(norm.state_dict())
    x = batches()[1]
    torch.testing.assert_close(plain.eval()(x), norm.eval()(x), rtol=1e-5, atol=1e-5)
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(plain)[0]) is nn.SyncBatchNorm


def test_eps_can_be_set_and_a_copy_keeps_it():
    norm = BatchNormAct2d(CHANNELS, eps=0.5)
    norm.eps = 0.25
    assert copy.deepcopy(norm).epsilon == 0.25
    for word in ("'gelu'", "epsilon=0.25", "groups=1", "before_activation"):
        assert word in repr(norm)


@pytest.mark.parametrize(
    ("module", "shape", "groups"),
    [
        (BatchNormAct2d, (1, CHANNELS, 1, 1), 1),
        (BatchNormAct2d, (4, CHANNELS, 1, 1), 4),
        (PoolBatchNormAct2d, (1, CHANNELS, 2, 2), 1),
        (PoolBatchNormAct2d, (1, CHANNELS, 3, 3), 1),
        (PoolBatchNormAct2d, (3, CHANNELS, 2, 2), 3),
    ],
)
def test_one_value_per_channel_is_refused_in_training_and_changes_nothing(module, shape, groups):
    norm, x = module(CHANNELS, groups=groups).to(DEVICE), channels_last(*shape).detach()
    before = copy.deepcopy(dict(norm.state_dict()))
    with pytest.raises(ValueError, match="more than one value per channel"):
        norm(x)
    torch.testing.assert_close(dict(norm.state_dict()), before)
    assert norm.eval()(x).isfinite().all()
    two = channels_last(2 * shape[0], *shape[1:]).detach()
    assert norm.train()(two).isfinite().all()


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "tanh"}, "activation 'tanh': choose none, gelu"),
        ({"activation": None}, "activation None: choose"),
        ({"residual_place": "after"}, "residual_place 'after': choose none, before_activation, after_activation"),
        ({"groups": 0}, "groups 0: give an integer at least 1"),
        ({"groups": 2.0}, "groups 2.0"),
        ({"momentum": 1.5}, "momentum 1.5: give a finite number from 0 to 1"),
        ({"momentum": "0.1"}, "momentum '0.1'"),
        ({"eps": -1e-5}, "epsilon -1e-05: give a finite number of 0 or more"),
        ({"eps": float("nan")}, "epsilon nan"),
        ({"channels": 0}, "channels 0"),
    ],
)
def test_options_that_there_are_not_are_refused(module, options, words):
    with pytest.raises(ValueError, match=words):
        module(**({"channels": CHANNELS} | options))


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_is_added_or_refused(training):
    x, residual = batches(2)
    none = BatchNormAct2d(CHANNELS, residual_place="none").to(DEVICE).train(training)
    with pytest.raises(ValueError, match="there is a residual"):
        none(x, residual)
    pooling = PoolBatchNormAct2d(CHANNELS).to(DEVICE).train(training)
    with pytest.raises(ValueError, match="takes no residual"):
        pooling(x, residual)
    after = BatchNormAct2d(CHANNELS, residual_place="after_activation").to(DEVICE).train(training)
    statistics = (None, None) if training else (torch.zeros(CHANNELS), torch.ones(CHANNELS))
    expected = F.gelu(F.batch_norm(x.cpu(), *statistics, training=training)) + residual.cpu()
    torch.testing.assert_close(after(x, residual).cpu(), expected, rtol=1e-5, atol=1e-5)
