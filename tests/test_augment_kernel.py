"""The augmentation kernel against its reference: in Triton's interpreter without a GPU, on the GPU with one."""

import dataclasses

import pytest
import torch
from kernel_checks import DEVICE, poisoned_memory, shipped
from tiers import parametrize
from torch import library

from speedyresnet.kernels.augment import (
    KERNEL,
    Augmentation,
    Transforms,
    augmented_batch,
    normalisation,
    operation_transforms,
)

EVERYTHING = Transforms(padding=2, flip="alternating", cutout=3, cutmix=4, brightness=0.14, contrast=0.13)


def one(value):
    return torch.tensor([value], dtype=torch.int64, device=DEVICE)


def inputs(count=37, height=8, width=8, channels=3):
    generator = torch.Generator().manual_seed(count + width)
    images = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
    labels = torch.randperm(count, generator=generator)
    mean, std = [0.3 + 0.1 * c for c in range(channels)], [0.2 + 0.05 * c for c in range(channels)]
    return images.to(DEVICE), labels.to(DEVICE), *normalisation(mean, std, torch.float32, DEVICE)


def both(data, transforms, *, seed=3, counter=0, batch_size=9, dtype=torch.float32):
    images, labels, scale, shift = data
    sizes = {"batch_size": batch_size, "steps_per_epoch": len(images) // batch_size, "dtype": dtype}
    arguments = images, labels, one(seed), one(counter), scale, shift, transforms
    with poisoned_memory():
        found = augmented_batch(*arguments, **sizes, provider="triton")
    return found, augmented_batch(*arguments, **sizes, provider="reference"), fused_rounding(scale, shift, transforms)


def fused_rounding(scale, shift, transforms):
    """What multiplications and additions change that a GPU fuses: each the last place of the largest value on the way.

    One is that with scale and shift, two are of the jitter, three interpolate.
    """
    fused = 1 + 2 * bool(transforms.brightness or transforms.contrast) + 3 * bool(transforms.size)
    return fused * torch.finfo(torch.float32).eps * float((255 * scale + shift.abs()).max())


def assert_same(found, expected, rounding):
    """Geometry bit for bit; values to one rounding of their type and to `rounding`."""
    assert torch.equal(found.labels, expected.labels)
    assert (found.pasted_labels is None) == (expected.pasted_labels is None)
    if found.pasted_labels is not None:
        assert torch.equal(found.pasted_labels, expected.pasted_labels)
    assert found.images.shape == expected.images.shape
    assert found.images.dtype == expected.images.dtype
    assert found.images.is_contiguous(memory_format=torch.channels_last)
    # Padding and holes; a pixel whose shift cancels it is 0 or, where both are fused, the rounding of the product.
    assert torch.equal(found.images.abs() <= rounding, expected.images.abs() <= rounding)
    torch.testing.assert_close(found.images, expected.images, rtol=torch.finfo(found.images.dtype).eps, atol=rounding)


@parametrize(
    "transforms",
    [
        Transforms(),
        Transforms(padding=2),
        Transforms(padding=7, padding_mode="reflect"),
        Transforms(padding=3, padding_mode="zero"),
        Transforms(flip="random"),
        Transforms(flip="alternating"),
        Transforms(cutout=3),
        Transforms(cutmix=3),
        Transforms(crop=5),
        Transforms(crop=11, padding=2),
        EVERYTHING,
        Transforms(crop=6, padding=1, padding_mode="zero", flip="random", cutout=2, cutmix=5),
        Transforms(brightness=0.5),
        Transforms(contrast=0.5, padding=1, padding_mode="zero"),
        Transforms(size=6),
        Transforms(crop=6, padding=1, size=5),
        Transforms(size=7, padding=2, flip="random", cutmix=3, cutout=2, brightness=0.1),
    ],
    default=4,
)
def test_every_transform(transforms):
    data = inputs()
    for counter in (0, 3, 4, 9):  # both ends of an epoch, odd and even epochs
        assert_same(*both(data, transforms, counter=counter))


@parametrize(
    "shape",
    [
        (1, 8, 8, 3),  # a data set of one image
        (2, 5, 9, 1),
        (12, 33, 33, 3),  # several blocks of rows, ragged
        (5, 4, 90, 3),  # several blocks of a row's values, ragged
        (7, 3, 260, 1),
        (49, 6, 7, 4),
        (50, 7, 6, 2),
    ],
    default=3,
)
def test_every_shape(shape):
    data = inputs(*shape)
    transforms = Transforms(padding=2, flip="random", cutmix=3)
    for seed in (0, -1, 2**40 + 5):
        assert_same(*both(data, transforms, seed=seed, counter=2, batch_size=min(shape[0], 3)))


def test_one_axis_is_scaled_down_and_the_other_kept():
    assert_same(*both(inputs(9, 8, 13), Transforms(size=8, flip="random")))
    assert_same(*both(inputs(9, 13, 8), Transforms(size=8, flip="random")))


@pytest.mark.exhaustive
@pytest.mark.parametrize("shape", [(8, 64, 64), (8, 40, 33), (4, 33, 70)])
def test_windows_of_large_images(shape):
    """Some of 32 pixels a side reach into the padding on both sides."""
    for transforms in (
        Transforms(crop=32, padding=2, flip="random"),
        Transforms(crop=32, padding=9, padding_mode="zero", flip="alternating", cutout=5, cutmix=20),
    ):
        assert_same(*both(inputs(*shape), transforms, batch_size=4, counter=1))


@parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], default=1)
def test_every_dtype(dtype):
    assert_same(*both(inputs(), EVERYTHING, dtype=dtype, counter=5))


@pytest.mark.exhaustive
def test_offsets_beyond_2_to_the_31():
    """Windows of 8 x 8 pixels out of 50 images of 55 million bytes each."""
    size = 7400 * 7400
    pattern = torch.randint(0, 256, (1_000_003,), dtype=torch.uint8, device=DEVICE)  # a prime: no offset is another's
    images = pattern.repeat(50 * size // len(pattern) + 1)[: 50 * size].view(50, 7400, 7400, 1)
    data = images, torch.arange(50, device=DEVICE), torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    found, *others = both(data, Transforms(crop=8), counter=1, batch_size=10)
    assert (found.labels * size > 2**31).any()
    assert_same(found, *others)


@pytest.mark.parametrize("provider", ["triton", "reference"])
def test_the_shares_of_ranks_are_every_so_manieth_image_of_the_batch(provider):
    """The third batch of the second epoch, with all draws of each image; 12 images for three ranks."""
    images, labels, scale, shift = inputs(count=40)
    arguments = images, labels, one(3), one(5), scale, shift
    sizes = {"steps_per_epoch": 3, "dtype": torch.float32, "provider": provider}
    whole = augmented_batch(*arguments, EVERYTHING, batch_size=12, **sizes)
    for rank in range(3):
        transforms = dataclasses.replace(EVERYTHING, ranks=3, rank=rank)
        share = augmented_batch(*arguments, transforms, batch_size=4, **sizes)
        for part, all_of_it in zip(share, whole, strict=True):
            assert torch.equal(part, all_of_it[rank::3])


def test_an_epoch_shows_every_image_once_and_the_next_in_another_order():
    images, labels, *_ = inputs(count=20)
    make = Augmentation(images, labels, 5, Transforms(), mean=(0.5,) * 3, std=(0.25,) * 3, dtype=torch.float32)
    epochs = [torch.cat([make().labels for _ in range(4)]) for _ in range(2)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(20, device=DEVICE))
    assert not torch.equal(*epochs)
    assert int(make.counter) == 8
    assert set(make.state_dict()) == {"seed", "counter"}


def test_the_operator_passes_pytorchs_checks():
    images, labels, scale, shift = inputs()
    transforms = (0, 2, "reflect", "alternating", 3, 4, 0.1, 0.2, 5, 0, 0)
    arguments = images, labels, one(1), one(2), scale, shift, 2, 18, torch.float16, *transforms
    library.opcheck(torch.ops.speedyresnet.augment.default, arguments)
    library.opcheck(torch.ops.speedyresnet.augment.default, (*arguments[:9], 6, *transforms[1:5], 0, 0.0, 0.0, 0, 3, 1))


@pytest.mark.exhaustive
def test_a_graph_with_the_operator_gives_the_same():
    images, labels, scale, shift = inputs()

    def double(counter):
        batch = augmented_batch(
            images, labels, one(1), counter, scale, shift, EVERYTHING, batch_size=9, steps_per_epoch=4,
            dtype=torch.float32,
        )  # fmt: skip
        return batch.images * 2, batch.labels

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    for counter in (0, 3, 6):
        for found, expected in zip(compiled(one(counter)), double(one(counter)), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": lambda x: x.float()}, "contiguous uint8"),
        ({"images": lambda x: x.permute(0, 3, 1, 2)}, "contiguous uint8"),
        ({"images": lambda x: x[0]}, "contiguous uint8"),
        ({"labels": lambda x: x.int()}, r"int64 \[37\]"),
        ({"labels": lambda x: x[:5]}, r"int64 \[37\]"),
        ({"scale": lambda x: x.double()}, r"float32 \[3\]"),
        ({"scale": lambda x: x[:2]}, r"float32 \[3\]"),
        ({"scale": lambda x: x.to("meta")}, "images are on"),
        ({"dtype": lambda _: torch.float64}, "float16, bfloat16 or float32"),
        ({"shift": lambda x: x.double()}, r"shift has to be torch.float32 \[3\]"),
        ({"seed": lambda x: x.int()}, r"seed has to be torch.int64 \[1\]"),
        ({"counter": lambda x: x[0]}, r"counter has to be torch.int64 \[1\]"),
        ({"batch_size": lambda _: 38}, "batch_size 38: give an integer from 1 to 37"),
        ({"batch_size": lambda _: 0}, "batch_size 0"),
        ({"steps_per_epoch": lambda _: 5}, "steps_per_epoch 5: give an integer from 1 to 4"),
        ({"provider": lambda _: "kernel"}, "provider 'kernel': choose triton, reference"),
        ({"transforms": lambda _: Transforms(padding=8)}, "cannot be reflected"),
        ({"transforms": lambda _: Transforms(crop=13, padding=2)}, "exceeds images"),
        ({"transforms": lambda _: Transforms(cutout=9)}, "exceeds a window"),
        ({"transforms": lambda _: Transforms(crop=4, cutmix=5)}, "exceeds a window"),
        ({"transforms": lambda _: Transforms(crop=4, size=5)}, "only scaled down"),
        ({"transforms": lambda _: Transforms(ranks=2)}, "steps_per_epoch 4"),
    ],
)
def test_what_it_does_not_take_is_refused(change, message):
    images, labels, scale, shift = inputs()
    arguments = {
        "images": images, "labels": labels, "seed": one(0), "counter": one(0), "scale": scale, "shift": shift,
        "transforms": Transforms(), "batch_size": 9, "steps_per_epoch": 4, "dtype": torch.float32,
        "provider": "triton",
    }  # fmt: skip
    ((name, function),) = change.items()
    changed = arguments | {name: function(arguments[name])}
    with pytest.raises(ValueError, match=message):
        augmented_batch(**changed)
    wide = [value for value in changed.values() if torch.float64 in (value, getattr(value, "dtype", None))]
    if not wide and name != "provider":
        with pytest.raises(ValueError, match=message):
            augmented_batch(**(changed | {"provider": "reference"}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"padding_mode": "zeros"}, "padding_mode 'zeros': choose reflect, zero"),
        ({"flip": "horizontal"}, "flip 'horizontal': choose none, random, alternating"),
        ({"flip": True}, "flip True"),
        ({"padding": -1}, "padding -1: give an integer at least 0"),
        ({"crop": 2.0}, "crop 2.0"),
        ({"cutout": True}, "cutout True"),
        ({"cutmix": "3"}, "cutmix '3'"),
        ({"size": None}, "size None"),
        ({"ranks": 2, "rank": 2}, "rank 2: give an integer from 0 to 1"),
        ({"brightness": -0.1}, "brightness -0.1: give a finite number of 0 or more"),
        ({"contrast": float("inf")}, "contrast inf"),
        ({"contrast": float("nan")}, "contrast nan"),
    ],
)
def test_transforms_that_there_are_not_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Transforms(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 38}, "batch_size 38: give an integer from 1 to 37"),
        ({"seed": 1.5}, "seed 1.5: give an integer from -9223372036854775808 to 9223372036854775807"),
        ({"seed": 2**63}, "seed 9223372036854775808: give"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": 9.0}, "batch_size 9.0"),
        ({"transforms": Transforms(padding=8)}, "cannot be reflected"),
        ({"dtype": torch.float64}, "float16, bfloat16 or float32"),
        ({"mean": (0.5,)}, "one of each a channel"),
        ({"mean": (0.5,), "std": (0.5,)}, r"scale has to be torch.float32 \[3\]"),
        ({"std": (0.5, -0.5, 0.5)}, "std 0 or more"),
        ({"mean": (0.5, float("nan"), 0.5)}, "have to be finite"),
        ({"labels": torch.arange(36)}, "labels has to be"),
    ],
)
def test_a_module_is_refused_when_it_is_made(options, words):
    images, labels, *_ = inputs()
    arguments = {
        "images": images, "labels": labels, "batch_size": 9, "transforms": Transforms(), "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        Augmentation(**(arguments | options))


@pytest.mark.gpu
def test_a_replayed_graph_draws_anew():
    images, labels, *_ = inputs(count=40)
    make = Augmentation(images, labels, 8, EVERYTHING, mean=(0.5,) * 3, std=(0.25,) * 3, seed=1)
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
    """The second batch of a data set of three, in the dtype that recipes launch."""
    data, transforms = inputs(3 * batch_size, *operation.shape[1:3]), operation_transforms(operation)
    assert_same(*both(data, transforms, batch_size=batch_size, counter=1, dtype=torch.float16))


@pytest.mark.gpu
@pytest.mark.parametrize("operation", shipped(KERNEL), ids=str)
def test_every_shipped_shape(operation):
    check_shipped(operation, operation["batch_size"])


def test_shipped_shapes_with_few_images():
    for operation in shipped(KERNEL)[::6]:
        check_shipped(operation, 2)


MUTATIONS = {
    "kernels/augment.py": [
        ("mask = (rows < S.out_height) & in_row[None, :]", "mask = in_row[None, :] & (rows >= 0)"),
        ("in_row = values < S.out_width * S.channels", "in_row = values < S.out_width * S.channels - 1"),
        ("return tl.where(index >= SIZE, 2 * (SIZE - 1) - index, index)",
         "return tl.where(index >= SIZE, 2 * SIZE - 1 - index, index)"),
        ("tl.where(draws[2] != 0, S.window_width - 1 - columns, columns)",
         "tl.where(draws[2] != 0, S.window_width - columns, columns)"),
        ("tl.where(draws[2] != 0, S.window_width - 1 - columns, columns)",
         "tl.where(draws[2] != 0, S.width - 1 - columns, columns)"),
        ("S.height + 2 * S.padding - S.window_height + 1", "S.height + 2 * S.padding - S.window_height"),
        ("S.width + 2 * S.padding - S.window_width + 1", "S.width + 2 * S.padding - S.window_width"),
        ("_reflected_device(place_row, S.height)", "_reflected_device(place_row, S.window_height)"),
        ("_reflected_device(place_column, S.width)", "_reflected_device(place_column, S.height)"),
        ("row * (S.width * S.channels)", "row * (S.window_width * S.channels)"),
        ("squares[0], S.window_height - S.cutout + 1", "squares[0], S.height - S.cutout + 1"),
        ("squares[3], S.window_width - S.cutmix + 1", "squares[3], S.width - S.cutmix + 1"),
        ("_taps_device(rows, S.window_height, S.out_height)", "_taps_device(rows, S.height, S.out_height)"),
        ("words[2] & 1", "words[3] & 1"),
        ("(random_words_device(seed, tl.zeros_like(epoch), image, 1)[0] ^ epoch) & 1",
         "random_words_device(seed, tl.zeros_like(epoch), image, 1)[0] & 1"),
        ("(rows >= row) & (rows < row + SIDE)", "(rows > row) & (rows < row + SIDE)"),
        ("partner = permuted_device(image, seed, epoch, 3,", "partner = permuted_device(position, seed, epoch, 3,"),
        ("images_ptr, partner, partner_draws, rows", "images_ptr, partner, draws, rows"),
        ("own_mask = mask & (pasted == 0)", "own_mask = mask & pasted"),
        ("image.to(tl.int64) * (S.height * S.width * S.channels)",
         "(image.to(tl.int32) * (S.height * S.width * S.channels)).to(tl.int64)"),
        ("(counter % steps_per_epoch * batch_size + in_batch)", "(counter * batch_size + in_batch)"),
        ("position = position * S.ranks + S.rank", "position = position + S.rank * tl.num_programs(0)"),
        ("(row == place_row) & (column == place_column)", "(row == place_row) & (column == column)"),
        ("tl.load(labels_ptr + drawn[2])", "tl.load(labels_ptr + drawn[0])"),
        ("values % S.channels\n", "values % 3\n"),
        (".to(tl.float32) * scale + shift", ".to(tl.float16).to(tl.float32) * scale.to(tl.float16) + shift"),
        ("(values + draws[7]) * draws[8]", "values * draws[8] + draws[7]"),
        ("between_device(jitter[1])", "between_device(jitter[0])"),
        ("tl.minimum(first + 1, SIZE - 1)", "first"),
        ("(SIZE / OUT_SIZE) - 0.5", "(SIZE / OUT_SIZE)"),
        ("_taps_device(columns, S.window_width, S.out_width)", "_taps_device(columns, S.window_width - 1, S.out_width)"),
        ("upper = first + along * (second - first)", "upper = first + down * (second - first)"),
    ],
    "kernels/random.py": [
        ("for _ in tl.static_range(2):\n        key", "for _ in tl.static_range(1):\n        key"),
        ("row = (row + scrambled_device(column ^ key) % ROWS) % ROWS", "row = (row + scrambled_device(row ^ key) % ROWS) % ROWS"),
        ("tl.where(position < ROWS * COLUMNS, row * COLUMNS + column, position)", "row * COLUMNS + column"),
        ("scrambled_device(low ^ scrambled_device(high ^ key))", "scrambled_device(low ^ scrambled_device(key))"),
    ],
}  # fmt: skip
"""Lines of kernels, each with a mistake in its place that these tests have to catch: `python tests/mutations.py`."""
