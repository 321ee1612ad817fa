import numpy as np
import pytest
import torch

from speedyresnet.kernels.augment import Draws, Transforms, augment, augmentation_draws, augmented_batch, pasted

ONE, ZERO = torch.ones(3), torch.zeros(3)


def one(value):
    return torch.tensor([value], dtype=torch.int64)


def draws_of(transforms, epoch=0, images=2000, seed=1, size=32):
    return augmentation_draws(one(seed), one(epoch), torch.arange(images), transforms, size, size)


def random_images(count, height=8, width=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def by_hand(image, draw, transforms):
    """Crop, mirror and cutout of one image with NumPy's own padding."""
    pad, (height, width) = transforms.padding, transforms.window(*image.shape[:2])
    mode = "reflect" if transforms.padding_mode == "reflect" else "constant"
    padded = np.pad(image.astype(np.float32), ((pad, pad), (pad, pad), (0, 0)), mode=mode)
    window = padded[draw["row"] : draw["row"] + height, draw["column"] : draw["column"] + width]
    window = window[:, ::-1].copy() if draw["mirror"] else window.copy()
    if transforms.cutout:
        first, second = draw["cutout_row"], draw["cutout_column"]
        window[first : first + transforms.cutout, second : second + transforms.cutout] = 0
    return window.transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["reflect", "zero"])
@pytest.mark.parametrize(("padding", "cutout"), [(0, 0), (2, 0), (4, 3)])
@pytest.mark.parametrize(("shape", "crop"), [((8, 8), 0), ((7, 10), 0), ((7, 10), 4), ((10, 7), 7)])
def test_pixels_are_those_of_padding_cropping_and_mirroring_by_hand(mode, padding, cutout, shape, crop):
    images = random_images(40, *shape)
    transforms = Transforms(crop=crop, padding=padding, padding_mode=mode, flip="random", cutout=cutout)
    ids = torch.arange(40).flip(0)
    draws = augmentation_draws(one(1), one(0), ids, transforms, *shape)
    result = augment(images, ids, draws, ONE, ZERO, transforms)
    assert result.shape == (40, 3, *((crop, crop) if crop else shape))
    assert result.is_contiguous(memory_format=torch.channels_last)
    for index, image_id in enumerate(ids.tolist()):
        draw = {name: int(value[index]) for name, value in draws._asdict().items()}
        assert np.array_equal(result[index].numpy(), by_hand(images[image_id].numpy(), draw, transforms))


def test_normalisation_multiplies_and_adds():
    images, ids = random_images(3), torch.arange(3)
    scale, shift = torch.tensor([0.5, 2.0, 3.0]), torch.tensor([1.0, 0.0, -4.0])
    transforms = Transforms()
    draws = draws_of(transforms, images=3, size=8)
    result = augment(images, ids, draws, scale, shift, transforms)
    assert torch.equal(result.permute(0, 2, 3, 1), images.float() * scale + shift)


def test_padding_with_zeros_pads_after_normalisation():
    transforms = Transforms(padding=2, padding_mode="zero")
    corner = Draws(*(torch.zeros(1, dtype=torch.int64) for _ in Draws._fields))._replace(mirror=torch.tensor([False]))
    result = augment(random_images(1), one(0), corner, ONE, 7 * torch.ones(3), transforms)
    assert (result[:, :, :2] == 0).all()
    assert (result[:, :, :, :2] == 0).all()
    assert (result[:, :, 2:, 2:] >= 7).all()


@pytest.mark.parametrize(
    ("crop", "shape", "rows", "columns", "limit"),
    [
        (0, (32, 32), 5, 5, 62),  # 24 degrees of freedom, p = 3e-5
        (32, (64, 64), 37, 37, 1582),  # 1368 degrees of freedom, p = 4e-5
        (32, (64, 40), 37, 13, 615),  # 480 degrees of freedom, p = 3e-5
    ],
)
def test_every_crop_position_comes_equally_often(crop, shape, rows, columns, limit):
    draws = augmentation_draws(one(1), one(0), torch.arange(50_000), Transforms(crop=crop, padding=2), *shape)
    counts = torch.bincount(draws.row * columns + draws.column, minlength=rows * columns).double()
    assert int(draws.row.max()) == rows - 1
    assert len(counts) == rows * columns
    expected = 50_000 / (rows * columns)
    assert ((counts - expected) ** 2 / expected).sum() < limit


def test_alternating_flips_show_each_image_both_ways_in_two_epochs():
    transforms = Transforms(flip="alternating")
    flips = torch.stack([draws_of(transforms, epoch).mirror for epoch in range(6)])
    assert (flips[0::2] ^ flips[1::2]).all()
    assert torch.equal(flips[0], flips[2])
    assert 0.45 < flips[0].double().mean() < 0.55


def test_random_flips_are_tossed_anew():
    flips = torch.stack([draws_of(Transforms(flip="random"), epoch).mirror for epoch in range(2)])
    assert (flips.double().mean(1) - 0.5).abs().max() < 0.05
    assert 0.45 < (flips[0] == flips[1]).double().mean() < 0.55


def test_no_flip_is_none():
    assert not draws_of(Transforms(flip="none")).mirror.any()


def test_cutout_stays_inside_and_reaches_every_corner():
    transforms = Transforms(cutout=12)
    draws = draws_of(transforms, images=5000)
    for value in (draws.cutout_row, draws.cutout_column):
        assert set(value.tolist()) == set(range(21))
    images = torch.full((200, 32, 32, 3), 9, dtype=torch.uint8)
    first = Draws(*(value[:200] for value in draws))
    result = augment(images, torch.arange(200), first, ONE, ZERO, transforms)
    assert torch.equal((result == 0).sum((1, 2, 3)), torch.full((200,), 12 * 12 * 3))


def test_cutmix_squares_reach_every_position():
    draws = draws_of(Transforms(cutmix=3), images=5000)
    for value in (draws.cutmix_row, draws.cutmix_column):
        assert set(value.tolist()) == set(range(30))
    assert abs(np.corrcoef(draws.cutmix_row, draws.cutmix_column)[0, 1]) < 0.06


def test_cutmix_pastes_one_square_of_the_partner():
    transforms = Transforms(cutmix=3)
    draws = draws_of(transforms, images=50)
    own = torch.zeros(50, 3, 32, 32).to(memory_format=torch.channels_last)
    result = pasted(own, own + 1, draws, 3)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result.sum((2, 3)), torch.full((50, 3), 9.0))
    row, column = int(draws.cutmix_row[4]), int(draws.cutmix_column[4])
    assert (result[4, :, row : row + 3, column : column + 3] == 1).all()


def test_jitter_adds_and_multiplies_by_numbers_of_its_range():
    transforms = Transforms(brightness=0.14, contrast=0.13)
    draws = draws_of(transforms, images=5000)
    for values, middle, reach in ((draws.brightness, 0.0, 0.14), (draws.contrast, 1.0, 0.13)):
        assert abs(float(values.double().mean()) - middle) < 0.1 * reach
        assert float(values.double().std()) == pytest.approx(reach / 3**0.5, rel=0.03)
        assert middle - reach <= float(values.min()) < middle - 0.99 * reach
        assert middle + 0.99 * reach < float(values.max()) <= middle + reach
    images, ids = random_images(20), torch.arange(20)
    first = Draws(*(each[:20] for each in draws))
    plain, result = (augment(images, ids, first, ONE, ZERO, each) for each in (Transforms(), transforms))
    brightness, contrast = (each[:, None, None, None] for each in (first.brightness, first.contrast))
    torch.testing.assert_close(result, (plain + brightness) * contrast)
    assert not torch.equal(draws.brightness, draws_of(transforms, epoch=1, images=5000).brightness)


def test_scaling_down_takes_the_two_nearest_pixels_each_way():
    images, labels = random_images(6, 32, 32), torch.arange(6)
    arguments = images, labels, one(0), one(0), ONE, ZERO
    sizes = {"batch_size": 6, "steps_per_epoch": 1, "dtype": torch.float32, "provider": "reference"}
    whole = augmented_batch(*arguments, Transforms(), **sizes).images
    small = augmented_batch(*arguments, Transforms(size=24), **sizes).images
    assert small.shape == (6, 3, 24, 24)
    assert small.is_contiguous(memory_format=torch.channels_last)
    weights = torch.zeros(24, 32)  # period 3 into 4: (5/6, 1/6), (1/2, 1/2), (1/6, 5/6)
    for index in range(24):
        place, share = divmod(index, 3)
        weights[index, 4 * place + share] = (5 - 2 * share) / 6
        weights[index, 4 * place + share + 1] = (1 + 2 * share) / 6
    torch.testing.assert_close(small, weights @ whole @ weights.T, rtol=1e-5, atol=1e-5)
