"""The nets of David Page's rungs against plain torch.nn, and what else is theirs alone; their numbers are in
test_recipe_table.py.
"""

import itertools

import pytest
import torch
from torch import nn

from speedyresnet.bench.cases import OPERATIONS, random_state
from speedyresnet.bench.traffic import step_traffic
from speedyresnet.engine import UserError, recipe
from speedyresnet.engine.backends import variant_of_step
from speedyresnet.engine.export import export_model
from speedyresnet.engine.init import reset_parameters
from speedyresnet.engine.kernel_choice import pick_kernels
from speedyresnet.engine.model_file import Model
from speedyresnet.engine.nets import BatchNorm, check_image_size, last_map_size, make_net
from speedyresnet.engine.recipe import group
from speedyresnet.engine.schedules import plan

LADDER = group("page-ladder")
RUNGS = [each.name for each in (LADDER.base, *LADDER.variants)]


class Block(nn.Module):
    """BN, ReLU, then what `branch` makes of it, if anything, on top of the shortcut."""

    def __init__(self, inputs, outputs, stride, branch):
        super().__init__()
        self.start = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.shortcut = nn.Identity()
        if stride == 2 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.branch = self.branch if branch else None

    def forward(self, x):
        x = self.start(x)
        return self.shortcut(x) + (self.branch(x) if self.branch else 0)


def pre_activation_net(branch):
    widths = [8, 8, 16, 32, 32]
    blocks = []
    for stride, (inputs, outputs) in zip((1, 2, 2, 2), itertools.pairwise(widths), strict=True):
        blocks += [Block(inputs, outputs, stride, branch), Block(outputs, outputs, 1, branch)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), *blocks, MaxAndMean(), nn.Linear(64, 10))


class MaxAndMean(nn.Module):
    def forward(self, x):
        return torch.cat([nn.MaxPool2d(4)(x), nn.AvgPool2d(4)(x)], 1).flatten(1)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.branch = nn.Sequential(*unit(width, width), *unit(width, width))

    def forward(self, x):
        return x + self.branch(x)


class Scale(nn.Module):
    def forward(self, x):
        return x * 0.125


def unit(inputs, outputs, kernel=3, stride=1):
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU()


def strided_net(kernel):
    first, second, third = unit(8, 16, kernel, 2), unit(16, 32, kernel, 2), unit(32, 32, kernel, 2)
    return nn.Sequential(*unit(3, 8), *first, *second, *third, MaxAndMean(), nn.Linear(64, 10))


def pooled_net(last, residual=False, head=()):
    layers = [*unit(3, 8)]
    for inputs, outputs in itertools.pairwise((8, 16, 32, last)):
        layers += [*unit(inputs, outputs), nn.MaxPool2d(2)]
        layers += [Residual(outputs)] if residual and outputs != 32 else []
    return nn.Sequential(*layers, *head)


GLOBAL_MAX = nn.MaxPool2d(4), nn.Flatten()
PLAIN = {
    "baseline": lambda: pre_activation_net(branch=True),
    "backbone": lambda: pre_activation_net(branch=False),
    "single-batch-norms": lambda: strided_net(1),
    "3x3": lambda: strided_net(3),
    "max-pool": lambda: pooled_net(32, head=(MaxAndMean(), nn.Linear(64, 10))),
    "global-max-pool": lambda: pooled_net(64, head=(*GLOBAL_MAX, nn.Linear(64, 10))),
    "scale-1": lambda: pooled_net(64, head=(*GLOBAL_MAX, nn.Linear(64, 10, bias=False), Scale())),
    "residual": lambda: pooled_net(64, residual=True, head=(*GLOBAL_MAX, nn.Linear(64, 10, bias=False), Scale())),
}
"""As the notebook describes them, an eighth as wide."""


def tensors_by_layer(net):
    """Parameters of all convolutions, then of all batch norms, then of the head, each in the order of the net."""
    kinds = nn.Conv2d, BatchNorm | nn.BatchNorm2d, nn.Linear
    return [each for kind in kinds for m in net.modules() if isinstance(m, kind) for each in m.parameters()]


@pytest.mark.parametrize("rung", PLAIN)
def test_every_net_is_that_of_plain_pytorch(rung):
    made = recipe(f"page-ladder/{rung}", ["width_multiplier=0.125"])
    net, plain = make_net(made, classes=10, channels=3, dtype=torch.float64, device="cpu"), PLAIN[rung]().double()
    reset_parameters(net, made.net, seed=1)
    ours, theirs = tensors_by_layer(net), tensors_by_layer(plain)
    with torch.no_grad():
        for other, value in zip(theirs, ours, strict=True):
            assert other.shape == value.shape
            other.copy_(value)
    images, gradient = torch.randn(6, 3, 32, 32).double(), torch.randn(6, 10).double()
    found, expected = net(images), plain(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, ours, gradient), torch.autograd.grad(expected, theirs, gradient)
    )
    torch.testing.assert_close(net.eval()(images), plain.eval()(images))  # with the statistics of that batch


def test_the_ladder_ends_below_davidnet():
    last_step = ["epochs=24", f"schedule.knots=0,{5 / 24},1"]
    assert recipe(RUNGS[-1], last_step).hash == recipe("davidnet").hash


def test_scales_begin_where_pytorch_0_4_drew_them_until_they_begin_at_1():
    for name in RUNGS:
        made = recipe(name, ["width_multiplier=0.25"])
        net = make_net(made, classes=10, channels=3, dtype=torch.float32, device="cpu")
        reset_parameters(net, made.net, seed=0)
        scales = torch.cat([each.weight for each in net.modules() if isinstance(each, BatchNorm)]).detach()
        if name in RUNGS[-2:]:
            assert (scales == 1).all()
        else:
            assert 0 <= scales.min() < 0.1 < 0.9 < scales.max() < 1
            assert scales.mean() == pytest.approx(0.5, abs=0.1)
        assert (net.head.bias is None) == (name in RUNGS[-2:])


@pytest.mark.parametrize("rung", ["baseline", "3x3", "max-pool"])
@pytest.mark.parametrize("size", [(33, 18), (17, 24), (9, 15)])
def test_the_last_map_is_as_large_as_announced(rung, size):
    made = recipe(f"page-ladder/{rung}", ["width_multiplier=0.125"])
    net = make_net(made, classes=10, channels=3, dtype=torch.float32, device="cpu").eval()
    found = []
    net.groups[-1].register_forward_hook(lambda _, inputs, output: found.append(tuple(output.shape[2:])))
    net(torch.zeros(1, 3, *size))
    assert found == [last_map_size(made.net, *size)]


def test_only_pools_need_images_of_a_size():
    check_image_size(recipe("page-ladder/baseline").net, 1, 1)
    check_image_size(recipe("page-ladder/3x3").net, 1, 1)
    with pytest.raises(UserError, match="too small for 3 groups"):
        check_image_size(recipe("page-ladder/max-pool").net, 7, 8)


@pytest.mark.parametrize(
    "setting", ["residual=before_activation", "pool=none", "group_convolutions=3", "single_groups=1",
                "pointwise_groups=0", "first_kernel=1", "squeeze_excite_ratio=4", "convolution_init=dirac"]
)  # fmt: skip
def test_blocks_are_not_mixed_with_settings_of_convolutions(setting):
    name = setting.partition("=")[0]
    with pytest.raises(UserError, match=rf"net\.pre_activation_blocks=2 needs net\.{name}=") as caught:
        recipe("page-ladder/baseline", [f"net.{setting}"])
    assert "\n" not in str(caught.value)


def test_blocks_are_not_exported(tmp_path):
    made = recipe("page-ladder/baseline", ["width_multiplier=0.125", "net.whitening_kernel=2"])
    net = make_net(made, classes=2, channels=3, dtype=torch.float32, device="cpu")
    numbers = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "dtype": torch.float32, "image_size": (32, 32)}
    with pytest.raises(UserError, match="batch norms in front of convolutions cannot be folded"):
        export_model(Model(net=net, recipe=made, class_names=("a", "b"), **numbers), tmp_path / "net.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_kernels_normalise_but_do_not_pool_where_there_is_no_pool_to_fuse():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in RUNGS:
        kernels = pick_kernels(recipe(name, ["kernels=triton"]), device, torch.float32)
        native = name in RUNGS[:2]
        assert kernels["batch_norm_act"] == ("reference" if native else "triton")
        assert kernels["pool_batch_norm_act"] == kernels["stem"] == "reference"


def test_a_profile_names_blocks_and_counts_their_flops(small_pack):
    made = recipe("page-ladder/baseline", ["width_multiplier=0.125", "batch_size=4", "dtype=float32"])
    variant = variant_of_step(made, plan(made, 640), 0)
    traffic = step_traffic(made, small_pack, torch.float32, variant)
    shortcut, branch = traffic["group2.block1.shortcut 32x32 forward"], traffic["group2.block2.conv2 16x16 dgrad"]
    assert shortcut.flops == 2 * 4 * 8 * 16 * 16 * 16
    assert branch.flops == pytest.approx(2 * 4 * 16 * 16 * 9 * 16 * 16 * (46 / 48) ** 2)
    assert traffic["group4.block2.conv1 4x4 wgrad"].flops > 0
    assert sum(name.endswith(" forward") for name in traffic) == 4 * 2 * 2 + 3  # 3x3, and shortcuts of groups 2 to 4


def test_a_convolution_that_strides_does_so_when_it_is_measured_alone(small_pack):
    made = recipe("page-ladder/3x3", ["width_multiplier=0.125", "batch_size=4", "dtype=float32"])
    traffic = step_traffic(made, small_pack, torch.float32, variant_of_step(made, plan(made, 640), 0))
    paper = random_state(made, torch.float32, torch.device("meta"))
    alone = {each.layer: each.flops for each in OPERATIONS["convolution"](paper) if each.direction == "forward"}
    sides = {"group1": 32, "group2": 16, "group3": 8}
    assert alone == {f"{name}.1": traffic[f"{name}.conv1 {n}x{n} forward"].flops for name, n in sides.items()}
    assert alone["group1.1"] == round(2 * 4 * 8 * 16 * 9 * 16 * 16 * (47 / 48) ** 2)
