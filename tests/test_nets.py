import dataclasses

import pytest
import torch
import torch.nn.functional as F

from speedyresnet.engine import UserError, recipe
from speedyresnet.engine.init import _fill_identity, patch_covariance, reset_parameters, whitening_filters
from speedyresnet.engine.kernel_choice import pick_kernels
from speedyresnet.engine.memory import _LiveBytes
from speedyresnet.engine.nets import BatchNorm, global_max_pool, make_net, parameter_counts
from speedyresnet.engine.step import REFERENCE_KERNELS, training_step
from speedyresnet.kernels.augment import normalisation
from speedyresnet.kernels.batch_norm import batch_norm_act
from speedyresnet.kernels.pool_batch_norm import pool_batch_norm_act


def net_of(name, *settings, dtype=torch.float32, device="cpu", classes=10):
    return make_net(recipe(name, settings), classes=classes, channels=3, dtype=dtype, device=device)


def airbench96_logits(net, x, squeeze_excite):
    """legacy/airbench96.py in training mode, in plain PyTorch, on the weights of `net`; hlb v0.3's factors on request.

    The residual is what leaves the first activation, and comes in before the last.
    """

    def normalised(x, norm):
        return F.batch_norm(x, None, None, bias=norm.bias, training=True, eps=1e-12)

    x = F.gelu(F.conv2d(x, net.stem.whitening.weight, net.stem.whitening.bias))
    for group in net.groups:
        first, second, third = (convolution.weight for convolution in group.convolutions)
        residual = F.gelu(normalised(F.max_pool2d(F.conv2d(x, first, padding=1), 2), group.norms[0]))
        x = F.gelu(normalised(F.conv2d(residual, second, padding=1), group.norms[1]))
        x = F.conv2d(x, third, padding=1)
        if squeeze_excite:
            squeeze, excite = group.squeeze_excite.squeeze, group.squeeze_excite.excite
            hidden = F.gelu(F.linear(residual.mean((2, 3)), squeeze.weight, squeeze.bias))
            x = x * F.linear(hidden, excite.weight, excite.bias).sigmoid()[..., None, None]
        x = F.gelu(normalised(x, group.norms[2]) + residual)
    return F.linear(F.max_pool2d(x, 3).flatten(1), net.head.weight) / 9


@pytest.mark.parametrize("ratio", [0, 16])
def test_airbench96_with_and_without_squeeze_and_excite_is_that_in_plain_pytorch(ratio):
    settings = "width_multiplier=0.125", f"net.squeeze_excite_ratio={ratio}"
    net = net_of("airbench96", *settings, dtype=torch.float64)
    reset_parameters(net, recipe("airbench96").net, seed=0)
    x, gradient = torch.randn(4, 3, 32, 32).double(), torch.randn(4, 10).double()
    trained = [p for p in net.parameters() if p.requires_grad]
    found, expected = net(x), airbench96_logits(net, x, squeeze_excite=bool(ratio))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(logits, trained, gradient) for logits in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_squeeze_and_excite_has_a_sixteenth_as_hidden_units():
    without, ratio = net_of("airbench94", device="meta"), "net.squeeze_excite_ratio=16"
    extra = parameter_counts(net_of("airbench94", ratio, device="meta"))[0] - parameter_counts(without)[0]
    assert extra == sum(2 * width * (width // 16) + width // 16 + width for width in (64, 256, 256))
    with pytest.raises(UserError, match="group_convolutions of 2 or more"):
        recipe("airbench94", [ratio, "net.group_convolutions=1"])


@pytest.mark.parametrize(
    ("name", "stem", "groups"),
    [
        ("hlb-v0.4", (32, 31), [(128, 15), (256, 7), (512, 3)]),
        ("hlb-v0.7", (24, 31), [(64, 15), (256, 7), (512, 3)]),
        ("airbench94", (24, 31), [(64, 15), (256, 7), (256, 3)]),
        ("davidnet", (64, 32), [(128, 16), (256, 8), (512, 4)]),
        ("bag-of-tricks", (64, 32), [(128, 16), (256, 8), (512, 4)]),
    ],
)
def test_maps_have_the_published_shapes_and_stay_in_channels_last(name, stem, groups):
    net = net_of(name)
    x = torch.randn(16, 3, 32, 32).to(memory_format=torch.channels_last)
    x = net.stem(x)
    shapes = [(x.shape[1], x.shape[2])]
    for group in net.groups:
        x = group(x)
        assert x.is_contiguous(memory_format=torch.channels_last)
        shapes.append((x.shape[1], x.shape[2]))
    assert shapes == [stem, *groups]
    assert net(torch.randn(16, 3, 32, 32)).shape == (16, 10)


def test_width_multiplier_scales_every_layer():
    net = net_of("hlb-v0.4", "width_multiplier=0.25", device="meta")
    assert net.stem.projection.weight.shape[0] == 8
    assert [group.convolutions[0].weight.shape[0] for group in net.groups] == [32, 64, 128]


@pytest.mark.parametrize("residual", ["none", "after_activation", "before_activation"])
@pytest.mark.parametrize("convolutions", [1, 2, 3])
def test_a_group_is_what_its_description_says(residual, convolutions):
    net = net_of("airbench94", f"net.residual={residual}", f"net.group_convolutions={convolutions}").eval()
    group = net.groups[1]
    x = torch.randn(2, 64, 9, 9)

    def normalised(index, x):
        norm = group.norms[index]
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.epsilon)

    expected = first = F.gelu(normalised(0, F.max_pool2d(group.convolutions[0](x), 2)))
    for index in range(1, convolutions):
        expected = normalised(index, group.convolutions[index](expected))
        if residual == "before_activation" and index == convolutions - 1:
            expected = expected + first
        expected = F.gelu(expected)
    if residual == "after_activation" and convolutions > 1:
        expected = expected + first
    torch.testing.assert_close(group(x), expected)


def ghost_norms(groups):
    """A norm of 8 channels with so many groups, and a plain one for each group."""
    settings = dataclasses.replace(recipe("airbench94").net, batch_norm_groups=groups, activation="celu")
    norms = [BatchNorm(8, each) for each in (settings, *[dataclasses.replace(settings, batch_norm_groups=1)] * groups)]
    for norm in norms:
        norm.bias.data = torch.linspace(-1, 1, 8)
        norm.running_mean.fill_(0.5)
    return norms


@pytest.mark.parametrize(("provider", "pooled"), [("reference", False), ("triton", False), ("triton", True)])
def test_ghost_batch_norm_is_a_batch_norm_for_every_third_image(provider, pooled):
    ghost, *plain = ghost_norms(3)
    if provider == "triton":
        ghost.kernels = {"batch_norm_act": batch_norm_act}
    x = (3 * torch.randn(12, 8, 6, 6) + torch.arange(12)[:, None, None, None]).to(memory_format=torch.channels_last)
    residual = torch.randn(12, 8, 6, 6).to(memory_format=torch.channels_last)
    rest = (None, "none") if pooled else (residual, "after_activation")
    found = ghost.normalised(pool_batch_norm_act, x) if pooled else ghost(x, *rest)
    assert found.is_contiguous(memory_format=torch.channels_last)
    seen = F.max_pool2d(x, 2) if pooled else x
    for group, norm in enumerate(plain):
        own = None if pooled else residual[group::3]
        torch.testing.assert_close(found[group::3], norm(seen[group::3], own, rest[1]), rtol=1e-4, atol=1e-5)
    for name in ("running_mean", "running_var"):
        expected = torch.stack([getattr(norm, name) for norm in plain]).mean(0)
        torch.testing.assert_close(getattr(ghost, name), expected)
    evaluated = F.batch_norm(x, ghost.running_mean, ghost.running_var, ghost.weight, ghost.bias, eps=ghost.epsilon)
    torch.testing.assert_close(ghost.eval()(x), F.celu(evaluated, 0.3))


def test_single_groups_have_one_convolution_and_no_squeeze_and_excite():
    settings = ["net.group_convolutions=3", "net.single_groups=0,2", "net.squeeze_excite_ratio=16"]
    groups = net_of("airbench94", *settings, device="meta").groups
    assert [len(group.convolutions) for group in groups] == [1, 3, 1]
    assert [group.squeeze_excite is None for group in groups] == [True, False, True]


def test_pointwise_groups_keep_their_first_convolution():
    settings = ["net.group_convolutions=3", "net.pointwise_groups=0,2", "net.first_kernel=5"]
    made = recipe("airbench94", settings)
    groups = net_of("airbench94", *settings, device="meta").groups
    sides = [[each.kernel_size[0] for each in group.convolutions] for group in groups]
    assert sides == [[5, 1, 1], [5, 3, 3], [5, 1, 1]]
    assert made.net.convolution_init == "dirac"
    x = torch.randn(2, 24, 6, 6)
    identity = torch.zeros(64, 64, 1, 1)
    identity[range(64), range(64)] = 1
    net = net_of("airbench94", *settings)
    reset_parameters(net, made.net, seed=0)
    torch.testing.assert_close(net.groups[0].convolutions[1].weight, identity)
    assert net.groups[0](x).shape == (2, 64, 3, 3)


def test_a_group_that_pools_behind_its_norm():
    group = net_of("airbench94", "net.pool=after_norm").eval().groups[1]
    x = torch.randn(2, 64, 9, 9)
    expected = group.norms[1](group.convolutions[1](F.max_pool2d(group.norms[0](group.convolutions[0](x)), 2)))
    torch.testing.assert_close(group(x), expected)


@pytest.mark.parametrize(
    ("settings", "stem"),
    [
        (["net.whitening_kernel=3", "net.whitening_padding=1"], (54, 32)),
        (["net.whitening_kernel=0"], (3, 32)),
        (["net.whitening_kernel=0", "net.project_width=16"], (16, 32)),
    ],
)
def test_another_whitening_or_none(settings, stem, make_state):
    net, images = net_of("airbench94", *settings), torch.randn(2, 3, 32, 32)
    x = net.stem(images)
    assert (x.shape[1], x.shape[2]) == stem
    assert [group(x).shape for group in net.groups[:1]] == [(2, 64, 16, 16)]
    if settings == ["net.whitening_kernel=0"]:
        assert torch.equal(x, images)
    state = make_state("airbench94", *settings)
    training_step(state, whitening_bias=True, cutmix=False)
    assert state.loss_log[0].isfinite()


def test_the_memory_format_changes_no_loss(make_state):
    states = [make_state("airbench94", f"net.memory_format={name}") for name in ("channels_last", "contiguous")]
    states[1].net.load_state_dict(states[0].net.state_dict())  # weights are drawn in the order of their memory
    for state in states:
        training_step(state, whitening_bias=True, cutmix=False)
    weights = [state.net.groups[0].convolutions[1].weight for state in states]
    assert [weight.is_contiguous() for weight in weights] == [False, True]
    torch.testing.assert_close(states[0].loss_log, states[1].loss_log)
    seen = []
    states[1].net.groups[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    training_step(states[1], whitening_bias=True, cutmix=False)
    assert seen == [True]


@pytest.mark.parametrize("scale", ["frozen", "learned"])
def test_only_a_learned_scale_moves(scale, make_state):
    state = make_state("airbench94", f"net.batch_norm_scale={scale}")
    training_step(state, whitening_bias=True, cutmix=False)
    moved = [bool((module.weight != 1).any()) for module in state.net.modules() if isinstance(module, BatchNorm)]
    assert moved == [scale == "learned"] * 6


@pytest.mark.parametrize(
    ("setting", "reference"),
    [
        ("net.batch_norm_scale=learned", set()),
        ("net.pool=after_norm", {"pool_batch_norm_act", "convolution_pool"}),
        ("net.pool=none", {"pool_batch_norm_act", "convolution_pool"}),
        ("net.first_kernel=1", {"convolution_pool"}),
        ("kernels=auto", set() if torch.cuda.is_available() else set(REFERENCE_KERNELS)),
        ("net.batch_norm_precision=native", {"batch_norm_act", "pool_batch_norm_act"}),
        ("net.memory_format=contiguous", {"stem", "batch_norm_act", "pool_batch_norm_act", "convolution_pool"}),
        ("net.whitening_kernel=0", {"stem", "convolution_pool"}),  # 3 channels
        ("net.whitening_padding=1", {"stem"}),
    ],
)
def test_what_the_kernels_do_not_take_is_left_to_pytorch(setting, reference):
    made = recipe("airbench94", ["kernels=triton", setting])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernels = pick_kernels(made, device, torch.float16)
    if device.type == "cuda" and torch.cuda.get_device_capability()[0] != 9:
        reference = reference | {"convolution_pool"}  # which is made for Hopper
    assert {name for name, provider in kernels.items() if provider == "reference"} == reference


@pytest.mark.parametrize(
    ("settings", "dtype", "capability", "channels", "provider"),
    [
        (["kernels=auto"], torch.float16, (9, 0), 3, "triton"),
        (["kernels=auto"], torch.bfloat16, (9, 0), 3, "triton"),
        (["kernels=auto"], torch.float32, (9, 0), 3, "reference"),
        (["kernels=auto"], torch.float16, (8, 0), 3, "reference"),
        (["kernels=auto"], torch.float16, (10, 0), 3, "reference"),
        (["kernels=auto"], torch.float16, (12, 0), 3, "reference"),
        (["kernels=auto"], torch.float16, (9, 0), 1, "reference"),  # 8 channels
        (["kernels=auto", "net.whitening_kernel=1"], torch.float16, (9, 0), 3, "reference"),  # 6
        (["kernels=auto", "net.whitening_sign_pairs=false"], torch.float16, (9, 0), 3, "reference"),  # 12
        (["kernels=auto", "net.project_width=24"], torch.float16, (9, 0), 3, "reference"),  # learned, so want gradients
        (["kernels=reference"], torch.float16, (9, 0), 3, "reference"),
        (["kernels=triton"], torch.float16, (9, 0), 3, "triton"),
        (["kernels=triton"], torch.float16, (9, 0), 1, "triton"),
        (["kernels=triton"], torch.float32, (9, 0), 3, "reference"),
        (["kernels=triton"], torch.float16, (8, 0), 3, "reference"),
    ],
)
def test_the_convolution_with_pooling_is_for_hopper(monkeypatch, settings, dtype, capability, channels, provider):
    """`auto` takes it where it has been measured: 24 channels in half precision on compute capability 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found = pick_kernels(recipe("airbench94", settings), torch.device("cuda"), dtype, images=(50_000, 32, 32, channels))
    assert found["convolution_pool"] == provider
    assert (found["pool_batch_norm_act"] == "triton") == ("kernels=reference" not in settings)


def test_the_convolution_with_pooling_is_for_inputs_that_want_no_gradient():
    group, seen = net_of("airbench94", "width_multiplier=0.25").groups[0].train(), []

    def noted(x, weight):
        seen.append(x.requires_grad)
        return F.max_pool2d(F.conv2d(x, weight, padding=1), 2)

    group.kernels = {"convolution_pool": noted}
    for wants in (False, True):
        assert group(torch.randn(2, 24, 7, 6).requires_grad_(wants)).shape == (2, 16, 3, 3)
    group.eval()(torch.randn(2, 24, 7, 6))
    assert seen == [False]


def test_native_batch_norm_has_the_dtype_of_the_net():
    norm = net_of("airbench94", "net.batch_norm_precision=native", dtype=torch.bfloat16).groups[0].norms[0]
    assert {t.dtype for t in (norm.weight, norm.bias, norm.running_mean)} == {torch.bfloat16}
    assert norm(torch.randn(4, 64, 3, 3).bfloat16()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_batch_norm_is_float32_inside_half_precision_nets(dtype):
    net = net_of("airbench94", dtype=dtype)
    norms = [module for module in net.modules() if isinstance(module, BatchNorm)]
    assert {t.dtype for norm in norms for t in (norm.weight, norm.bias, norm.running_mean)} == {torch.float32}
    assert net.head.weight.dtype == dtype
    settings = dataclasses.replace(recipe("airbench94").net, batch_norm_momentum=0.4)
    norm, x = BatchNorm(8, settings), torch.randn(64, 8, 5, 5).to(dtype)
    result = norm(x)
    assert result.dtype == dtype
    torch.testing.assert_close(norm.running_mean, 0.4 * x.float().mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, 0.6 + 0.4 * x.float().var((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_batch_norm_stays_float64_in_a_float64_net():
    assert net_of("airbench94", dtype=torch.float64).groups[0].norms[0].running_var.dtype == torch.float64


@torch.no_grad()
@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (3, 8, 3, 3), (5, 5, 1, 1), (4, 6, 2, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_identity_taps_are_those_of_pytorchs_dirac(shape, layout):
    weight = torch.randn(shape).to(memory_format=layout)
    expected = torch.nn.init.dirac_(weight.clone())
    assert torch.equal(_fill_identity(weight), expected)


def test_dirac_makes_the_first_filters_identities():
    net = net_of("airbench94")
    reset_parameters(net, recipe("airbench94").net, seed=0)
    first, second = (convolution.weight for convolution in net.groups[0].convolutions)
    x = torch.randn(1, 24, 6, 6)
    torch.testing.assert_close(F.conv2d(x, first, padding=1)[:, :24], x)
    assert first[24:].abs().max() <= 1 / (24 * 9) ** 0.5
    assert float(first[24:].std()) == pytest.approx((1 / (24 * 9) ** 0.5) / 3**0.5, rel=0.05)
    y = torch.randn(1, 64, 6, 6)
    torch.testing.assert_close(F.conv2d(y, second, padding=1), y)


@torch.no_grad()
def test_dirac_blend_keeps_mean_and_deviation():
    net = net_of("hlb-v0.7")
    reset_parameters(net, recipe("hlb-v0.7").net, seed=0)
    for group, tap in zip(net.groups, (0.69, 0.75, 0.63), strict=True):
        first, second = (convolution.weight for convolution in group.convolutions)
        inputs = first.shape[1]
        assert first.std() == pytest.approx((1 / (inputs * 9)) ** 0.5 / 3**0.5, rel=0.02)
        diagonal = first[range(inputs), range(inputs), 1, 1]
        assert diagonal.mean() == pytest.approx(tap, abs=0.03)  # field measurements of the original
        y = torch.randn(1, second.shape[1], 5, 5)
        torch.testing.assert_close(F.conv2d(y, second, padding=1), y)


@torch.no_grad()
def test_head_and_whitening_bias_of_the_muon_recipes():
    net = net_of("airbench94-muon")
    reset_parameters(net, recipe("airbench94-muon").net, seed=0)
    assert net.head.weight.std() == pytest.approx(1, rel=1e-5)
    assert net.head.weight.abs().max() == pytest.approx(3**0.5, rel=0.05)  # uniform still
    bias, bound = net.stem.whitening.bias, 12**-0.5
    assert bias.abs().max() <= bound
    assert bias.std() == pytest.approx(bound / 3**0.5, rel=0.3)
    reset_parameters(net, recipe("airbench94").net, seed=0)
    assert not net.stem.whitening.bias.any()
    assert net.head.weight.abs().max() <= 256**-0.5


def test_the_activation_behind_the_whitening_is_its_own():
    net = net_of("hiverge")
    assert net.stem.whitening_activation == "gelu"
    assert {module.activation for module in net.modules() if isinstance(module, BatchNorm)} == {"silu"}
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(net.stem(images), F.gelu(net.stem.whitening(images)))


def test_the_same_seed_gives_the_same_weights():
    nets = [net_of("airbench94") for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        reset_parameters(net, recipe("airbench94").net, seed)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not torch.equal(nets[0].head.weight, nets[2].head.weight)


def some_pixels(pack, count, seed=0):
    """uint8 [N, H, W, C] with scale and shift, as `patch_covariance` takes them."""
    chosen = torch.randperm(len(pack.train_labels), generator=torch.Generator().manual_seed(seed))[:count]
    return pack.train_images[chosen], *normalisation(pack.mean, pack.std, torch.float32, torch.device("cpu"))


def normalised(pixels, scale, shift):
    return (pixels * scale + shift).permute(0, 3, 1, 2)


def covariance_of_channels(maps, centered):
    flat = maps.double().permute(1, 0, 2, 3).flatten(1)
    return torch.cov(flat, correction=0) if centered else flat @ flat.T / flat.shape[1]


def check_whitening(pack, name):
    """The output has covariance diag(lambda / (lambda + epsilon)) within 1e-5, on the images the filters come from."""
    settings = recipe(name).net
    pixels = some_pixels(pack, 600)
    filters, images = whitening_filters(*pixels, settings), normalised(*pixels)
    assert filters.shape == (24, 3, 2, 2)
    assert torch.equal(filters[12:], -filters[:12])
    measured = covariance_of_channels(F.conv2d(images.double(), filters[:12]), settings.whitening_centered)
    covariance = patch_covariance(*pixels, 2, centered=settings.whitening_centered)
    eigenvalues = torch.linalg.eigvalsh(covariance).flip(0)
    expected = torch.diag(eigenvalues / (eigenvalues + settings.whitening_epsilon))
    torch.testing.assert_close(measured, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["airbench94", "hlb-v0.7"])
def test_whitened_real_images_have_the_covariance_that_epsilon_leaves(name, real_pack):
    check_whitening(real_pack, name)


@pytest.mark.parametrize("name", ["airbench94", "hlb-v0.7"])
def test_whitened_synthetic_images_have_the_covariance_that_epsilon_leaves(name, small_pack):
    check_whitening(small_pack, name)


def test_whitening_of_one_sample_whitens_another(real_pack):
    """Filters of 500 real images, on 500 others: within 0.15 for the leading six channels."""
    settings = recipe("airbench94").net
    pixels, *scale_and_shift = some_pixels(real_pack, 1000)
    filters = whitening_filters(pixels[:500], *scale_and_shift, settings)
    images = normalised(pixels, *scale_and_shift)
    measured = covariance_of_channels(F.conv2d(images[500:].double(), filters[:6]), centered=False)
    torch.testing.assert_close(measured, torch.eye(6).double(), rtol=0, atol=0.15)


def test_patch_covariance_does_not_depend_on_the_chunks(monkeypatch):
    pixels = torch.randint(0, 256, (50, 8, 9, 3), dtype=torch.uint8)
    scale, shift = torch.rand(3) / 64, torch.randn(3)
    images = normalised(pixels, scale, shift)
    whole = patch_covariance(pixels, scale, shift, 2, centered=True)
    monkeypatch.setattr("speedyresnet.engine.init._VALUES_AT_ONCE", 2_000)
    with _LiveBytes() as memory:
        torch.testing.assert_close(patch_covariance(pixels, scale, shift, 2, centered=True), whole)
    assert memory.peak < 4 * images.numel()  # the images are never normalised all at once
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    torch.testing.assert_close(whole, torch.cov(patches.double().T, correction=0), rtol=1e-5, atol=1e-6)


def test_the_global_max_pool_has_a_gradient_where_it_is_compiled_with_what_is_before_it():
    x = torch.randn(4, 16, 3, 5).bfloat16().to(memory_format=torch.channels_last).requires_grad_()

    def pooled_and_gradient(x):
        y = global_max_pool(F.gelu(x))
        return y, *torch.autograd.grad(y.sum(), x)

    expected = pooled_and_gradient(x)
    assert torch.equal(expected[0], F.gelu(x).amax((2, 3)))
    assert expected[1].is_contiguous(memory_format=torch.channels_last)
    for found, wanted in zip(torch.compile(pooled_and_gradient)(x), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_first_of_equal_maxima_gets_the_gradient_and_recipes_whose_original_shares_it_say_so():
    x = torch.tensor([[[[3.0, 1.0], [3.0, 2.0]]]], requires_grad=True)
    global_max_pool(x).sum().backward()
    assert x.grad.flatten().tolist() == [1, 0, 0, 0]
    for name in ("hlb-v0.3", "hlb-v0.3-long", "hlb-v0.4", "hlb-v0.7", "hlb-v0.7-long", "imagenette"):
        assert any("equal maxima" in line for line in recipe(name).mended), name
