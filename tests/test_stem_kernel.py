"""The stem kernel against augment, conv2d, activation: in Triton's interpreter without a GPU, on the GPU with one."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import DEVICE, error, poisoned_memory, shipped
from tiers import parametrize
from torch import library

from speedyresnet.kernels.activations import ACTIVATIONS
from speedyresnet.kernels.augment import (
    TRANSFORM_NAMES,
    Transforms,
    augmented_batch,
    normalisation,
    operation_transforms,
)
from speedyresnet.kernels.stem import KERNEL, StemAugmentation, stem

EVERYTHING = Transforms(padding=2, flip="alternating", cutout=3, cutmix=4, brightness=0.14, contrast=0.13)


def one(value):
    return torch.tensor([value], dtype=torch.int64, device=DEVICE)


def inputs(count=37, height=12, width=13, channels=3, kernel=2, filters=24, bias=True):
    generator = torch.Generator().manual_seed(count + width)
    images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
    labels = torch.randperm(count, generator=generator)
    mean, std = [0.3 + 0.1 * c for c in range(channels)], [0.2 + 0.05 * c for c in range(channels)]
    weight = torch.randn(filters, channels, kernel, kernel, generator=generator) / kernel
    own_bias = torch.randn(filters, generator=generator).to(DEVICE).requires_grad_() if bias else None
    return {
        "images": images.to(DEVICE), "labels": labels.to(DEVICE),
        **dict(zip(("scale", "shift"), normalisation(mean, std, torch.float32, DEVICE), strict=True)),
        "weight": weight.to(DEVICE).to(memory_format=torch.channels_last), "bias": own_bias,
    }  # fmt: skip


def both(data, transforms, *, activation="gelu", seed=3, counter=0, batch_size=4, dtype=torch.float32):
    """(batch, bias gradient) of the kernel and of what it stands for, both in `dtype`; then the latter in float64."""
    sizes = {"batch_size": batch_size, "steps_per_epoch": len(data["images"]) // batch_size}
    at = {"seed": one(seed), "counter": one(counter)}
    with poisoned_memory():
        found = stem(**data, **at, **sizes, transforms=transforms, activation=activation, dtype=dtype)
    generator = torch.Generator().manual_seed(5)
    slope = torch.randn(found.images.shape, generator=generator).to(DEVICE)
    made = []

    def gradient(y, bias):
        if bias is None:
            return None
        with poisoned_memory():
            return torch.autograd.grad(y, bias, slope.to(y.dtype))[0]

    made.append((found, gradient(found.images, data["bias"])))
    pixels = {name: data[name] for name in ("images", "labels", "scale", "shift")}
    for kind in (dtype, torch.float64):
        batch = augmented_batch(**pixels, **at, **sizes, transforms=transforms, dtype=dtype, provider="reference")
        bias = None if data["bias"] is None else data["bias"].detach().to(kind).requires_grad_()
        u = F.conv2d(batch.images.to(kind), data["weight"].to(dtype).to(kind), None if bias is None else bias)
        y = u if activation == "none" else ACTIVATIONS[activation](u)
        made.append((batch._replace(images=y), gradient(y, bias)))
    return made


def assert_same(found, native, exact, allowed=1.1):
    for name in ("labels", "pasted_labels"):
        ours, theirs = getattr(found[0], name), getattr(native[0], name)
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert found[0].images.shape == exact[0].images.shape
    assert found[0].images.dtype == native[0].images.dtype
    assert found[0].images.is_contiguous(memory_format=torch.channels_last)
    assert error(found[0].images, exact[0].images) <= allowed * error(native[0].images, exact[0].images) + 1e-6
    if found[1] is not None:
        assert error(found[1], exact[1]) <= allowed * error(native[1], exact[1]) + 1e-6


@parametrize(
    ("transforms", "bias"),
    [
        (Transforms(), True),
        (Transforms(padding=2, flip="random"), True),
        (Transforms(padding=3, padding_mode="zero", flip="alternating", cutout=4), True),
        (Transforms(cutmix=3, crop=9), True),
        (Transforms(size=8, padding=1), True),
        (EVERYTHING, True),
        (EVERYTHING, False),
    ],
    default=1,
)
def test_every_transform(transforms, bias):
    data = inputs(bias=bias)
    for counter in (0, 8, 9):  # both ends of an epoch, odd and even epochs
        assert_same(*both(data, transforms, counter=counter))


@parametrize("activation", ["none", *ACTIVATIONS], default=1)
def test_every_activation(activation):
    assert_same(*both(inputs(), Transforms(padding=1), activation=activation))


@parametrize(
    "sizes",
    [
        {"count": 1, "height": 5, "width": 4, "channels": 1, "filters": 8},
        {"channels": 1, "filters": 3, "kernel": 1},
        {"kernel": 3, "filters": 54},
        {"kernel": 5, "filters": 50, "channels": 1, "height": 9, "width": 20},
        {"count": 11, "height": 32, "width": 32, "filters": 12},
        {"count": 5, "height": 2, "width": 40},
    ],
    default=1,
)
def test_every_shape(sizes):
    data = inputs(**sizes)
    assert_same(*both(data, Transforms(flip="random"), counter=2, batch_size=min(len(data["images"]), 3)))


@parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], default=1)
def test_every_dtype_is_as_exact_as_pytorch(dtype):
    # Triton's interpreter rounds bfloat16 towards zero: all values of the batch one way, then the results.
    truncates = dtype == torch.bfloat16 and DEVICE.type == "cpu"
    assert_same(*both(inputs(), EVERYTHING, dtype=dtype, counter=5), allowed=5 if truncates else 1.1)


@pytest.mark.exhaustive
def test_the_counter_may_move_on_before_the_backward_pass():
    data = inputs()
    sizes = {"batch_size": 3, "steps_per_epoch": 12, "dtype": torch.float32}
    gradients = []
    for moves in (False, True):
        seed, counter = one(4), one(2)
        batch = stem(**data, seed=seed, counter=counter, transforms=EVERYTHING, activation="silu", **sizes)
        if moves:
            counter.add_(1)
            seed.add_(1)
        gradients.append(torch.autograd.grad(batch.images.square().sum(), data["bias"])[0])
    assert torch.equal(*gradients)


@pytest.mark.exhaustive
def test_the_share_of_a_rank_is_every_other_image_of_the_batch():
    data = inputs()
    at = {"seed": one(3), "counter": one(5), "activation": "gelu", "steps_per_epoch": 4, "dtype": torch.float32}
    with torch.no_grad():
        whole = stem(**data, **at, transforms=EVERYTHING, batch_size=8)
        for rank in range(2):
            transforms = dataclasses.replace(EVERYTHING, ranks=2, rank=rank)
            share = stem(**data, **at, transforms=transforms, batch_size=4)
            for part, all_of_it in zip(share, whole, strict=True):
                assert torch.equal(part, all_of_it[rank::2])


@pytest.mark.exhaustive
def test_offsets_beyond_2_to_the_31():
    """Windows of 8 x 8 pixels out of 50 images of 55 million bytes each."""
    size = 7400 * 7400
    pattern = torch.randint(0, 256, (1_000_003,), dtype=torch.uint8, device=DEVICE)  # a prime: no offset is another's
    data = inputs(count=50, height=1, width=1, channels=1, kernel=1, filters=4)
    data["images"] = pattern.repeat(50 * size // len(pattern) + 1)[: 50 * size].view(50, 7400, 7400, 1)
    data["weight"] = torch.rand(4, 1, 2, 2, device=DEVICE).to(memory_format=torch.channels_last)
    data["labels"] = torch.arange(50, device=DEVICE)
    found, native, exact = both(data, Transforms(crop=8), counter=1, batch_size=10)
    assert (found[0].labels * size > 2**31).any()
    assert_same(found, native, exact)


@pytest.mark.exhaustive
def test_the_module_gives_batches_and_trains_its_bias():
    data = inputs(count=20)
    make = StemAugmentation(
        data["images"], data["labels"], 5, Transforms(flip="random"), mean=(0.5,) * 3, std=(0.25,) * 3,
        dtype=torch.float32, weight=data["weight"], bias=data["bias"], activation="relu",
    )  # fmt: skip
    labels = torch.cat([make().labels for _ in range(4)])
    assert torch.equal(labels.sort().values, torch.arange(20, device=DEVICE))
    batch = make()
    assert batch.images.shape == (5, 24, 11, 12)
    batch.images.sum().backward()
    assert make.bias.grad.abs().sum() > 0
    assert int(make.counter) == 5
    assert set(make.state_dict()) == {"seed", "counter", "weight", "bias"}


@pytest.mark.exhaustive
def test_the_operators_pass_pytorchs_checks():
    data = inputs()
    settings = tuple(getattr(EVERYTHING, name) for name in TRANSFORM_NAMES)
    tensors = data["images"], data["labels"], one(1), one(2), data["scale"], data["shift"], data["weight"]
    bias = data["bias"].detach()
    for given in (bias, None):
        arguments = *tensors, given, 2, 18, torch.float16, "gelu", *settings
        library.opcheck(torch.ops.speedyresnet.stem.default, arguments)
    y, _, _, drawn_at = torch.ops.speedyresnet.stem(*tensors, bias, 2, 18, torch.float16, "gelu", *settings)
    assert drawn_at.tolist() == [1, 2]
    backward = y, tensors[0], drawn_at, *tensors[4:], bias, 18, "gelu", *settings
    library.opcheck(torch.ops.speedyresnet.stem_backward.default, backward)


@pytest.mark.exhaustive
def test_a_graph_with_the_function_gives_the_same():
    data = inputs()
    sizes = {"batch_size": 2, "steps_per_epoch": 18, "dtype": torch.float32}

    def loss_and_gradient(counter):
        batch = stem(**data, seed=one(1), counter=counter, transforms=EVERYTHING, activation="gelu", **sizes)
        loss = (batch.images * 2).square().sum() + batch.labels.sum() + batch.pasted_labels.sum()
        return batch.labels, torch.autograd.grad(loss, data["bias"])[0]

    torch._dynamo.config.trace_autograd_ops = True
    compiled = torch.compile(loss_and_gradient, fullgraph=True, backend="aot_eager")
    for counter in (0, 18):
        for found, expected in zip(compiled(one(counter)), loss_and_gradient(one(counter)), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": lambda x: x.float()}, "contiguous uint8"),
        ({"dtype": lambda _: torch.float64}, "float16, bfloat16 or float32"),
        ({"weight": lambda w: w.contiguous()}, "channels_last"),
        ({"weight": lambda w: w.clone().requires_grad_()}, "frozen"),
        ({"weight": lambda w: w[:, :2]}, r"\[F, 3, k, k\]"),
        ({"weight": lambda w: w[..., :1]}, r"\[F, 3, k, k\]"),
        ({"weight": lambda w: w.int()}, r"\[F, 3, k, k\]"),
        ({"weight": lambda w: w.to("meta")}, "on cpu|on cuda"),
        ({"weight": lambda w: w.tile(6, 1, 1, 1).to(memory_format=torch.channels_last), "bias": lambda _: None},
         "64 filters"),
        ({"bias": lambda b: b[:3]}, r"bias has to be \[24\]"),
        ({"activation": lambda _: "tanh"}, "choose none, gelu"),
        ({"batch_size": lambda _: 10_000}, "batch_size 10000"),
        ({"transforms": lambda _: Transforms(crop=1)}, "exceed the augmented images"),
    ],
)  # fmt: skip
def test_what_it_does_not_take_is_refused(change, message):
    arguments = inputs() | {
        "seed": one(0), "counter": one(0), "transforms": Transforms(), "activation": "gelu", "batch_size": 9,
        "steps_per_epoch": 4, "dtype": torch.float32,
    }  # fmt: skip
    changed = {name: function(arguments[name]) for name, function in change.items()}
    with pytest.raises(ValueError, match=message):
        stem(**(arguments | changed))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "tanh"}, "choose none, gelu"),
        ({"batch_size": 1000}, "batch_size 1000: give an integer from 1 to"),
        ({"transforms": Transforms(crop=1)}, "exceed the augmented images"),
        ({"bias": torch.zeros(3, device=DEVICE)}, r"bias has to be \[24\]"),
    ],
)
def test_a_module_is_refused_when_it_is_made(options, words):
    data = inputs()
    arguments = {name: data[name] for name in ("images", "labels", "weight", "bias")}
    arguments |= {"batch_size": 8, "transforms": Transforms(), "mean": (0.5,) * 3, "std": (0.25,) * 3}
    with pytest.raises(ValueError, match=words):
        StemAugmentation(**(arguments | options))


@pytest.mark.gpu
def test_a_replayed_graph_draws_anew():
    data = inputs()
    make = StemAugmentation(
        data["images"], data["labels"], 8, EVERYTHING, mean=(0.5,) * 3, std=(0.25,) * 3, seed=1,
        weight=data["weight"].half(), bias=data["bias"].half(),
    )  # fmt: skip
    with torch.no_grad():
        expected = [make() for _ in range(3)]
        make.counter.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            batch = make()
        make.counter.zero_()
        for each in expected:
            graph.replay()
            assert torch.equal(batch.images, each.images)
            assert torch.equal(batch.labels, each.labels)


def check_shipped(operation, batch_size):
    """The second batch of a data set of three, and the gradient of the bias, in the dtype that recipes launch."""
    side, biased = operation.shape[1], operation["biased"]
    data = inputs(3 * batch_size, side, side, filters=operation["filters"], bias=biased)
    options = {"activation": operation["activation"], "batch_size": batch_size}
    made = both(data, operation_transforms(operation), **options, counter=1, dtype=torch.float16)
    assert_same(*made)


@pytest.mark.gpu
@pytest.mark.parametrize("operation", shipped(KERNEL), ids=str)
def test_every_shipped_shape(operation):
    check_shipped(operation, operation["batch_size"])


@pytest.mark.exhaustive
def test_shipped_shapes_with_few_images():
    for operation in shipped(KERNEL)[::5]:
        check_shipped(operation, 2)


MUTATIONS = {
    "kernels/stem.py": [
        ("filters[None, :] * T.taps + taps[:, None]", "taps[:, None] * T.filters + filters[None, :]"),
        ("(taps < T.taps)[:, None] & (filters < T.filters)[None, :]", "(taps < T.taps)[:, None] & (filters < T.filters - 1)[None, :]"),
        ("row + down, column + across", "row + across, column + down"),
        ("patches // T.width, patches % T.width", "patches // T.height, patches % T.height"),
        ("scale[channel], shift[channel]", "scale[channel], shift[0]"),
        ("(columns[index], columns[index + HALF])", "(columns[2 * index], columns[2 * index + 1])"),
        ("patches < T.height * T.width\n", "patches < T.height * T.width - 1\n"),
        ("+ weights[1][None, :]", ""),
        ("(patches < T.height * T.width)[:, None] & (filters < T.filters)[None, :]", "(patches < T.height * T.width - 1)[:, None] & (filters < T.filters)[None, :]"),
        ("in_batch.to(tl.int64) * (T.height * T.width * T.filters)", "in_batch.to(tl.int64) * (T.width * T.width * T.filters)"),
        ("tl.store(drawn_at_ptr + 1, tl.load(counter_ptr))", "tl.store(drawn_at_ptr + 1, tl.load(seed_ptr))"),
        ("if in_batch == 0:", "if in_batch == 100:"),
        ("gradient * activation_slope_device(u, KIND, T.alpha)", "gradient"),
        ("drawn_device(drawn_at_ptr, drawn_at_ptr + 1,", "drawn_device(drawn_at_ptr + 1, drawn_at_ptr,"),
        ("tl.store(bias_sums_ptr + in_batch * T.filters + filters", "tl.store(bias_sums_ptr + in_batch * T.block_filters + filters"),
        ("values, weight = values.to(like.dtype.element_ty)", "values, weight = values.to(tl.float16).to(like.dtype.element_ty)"),
        ("if T.biased:", "if False:"),
    ],
}  # fmt: skip
"""Lines of kernels, each with a mistake in its place that these tests have to catch: `python tests/mutations.py`."""
