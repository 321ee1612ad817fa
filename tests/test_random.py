import numpy as np
import pytest
import torch
from tiers import parametrize

from speedyresnet.kernels.random import below, permuted, philox, random_words


def one(value):
    return torch.tensor([value], dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # known answers of the Random123 distribution (kat_vectors, philox4x32-10)
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, words):
    result = philox(tuple(map(one, counter)), tuple(map(one, key)))
    assert [int(word) for word in result] == words


def test_words_depend_on_seed_epoch_image_and_stream_and_on_nothing_else():
    images = torch.arange(1000)
    first = torch.stack(random_words(one(5), one(2), images, 1))
    order = torch.randperm(1000)
    again = torch.stack(random_words(one(5), one(2), images[order], 1))
    assert torch.equal(first[:, order], again)
    for other in (
        random_words(one(6), one(2), images, 1),
        random_words(one(5 + 2**32), one(2), images, 1),
        random_words(one(-5), one(2), images, 1),
        random_words(one(5), one(3), images, 1),
        random_words(one(5), one(2), images + 1000, 1),
        random_words(one(5), one(2), images, 2),
    ):
        assert (torch.stack(other) == first).double().mean() < 0.001


def test_below_is_uniform():
    words = random_words(one(1), one(0), torch.arange(50_000), 0)[0]
    counts = torch.bincount(below(words, 5), minlength=5).double()
    assert len(counts) == 5
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 23.5  # 4 degrees of freedom, p = 1e-4


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 64, 97, 1000, 4001, 50_000])
def test_a_shuffle_is_a_bijection(count):
    for seed in (0, 1, -7, 2**40 + 3):
        result = permuted(torch.arange(count), count, one(seed), one(4), 0)
        assert torch.equal(result.sort().values, torch.arange(count))


def test_shuffles_differ_by_seed_epoch_and_stream():
    positions = torch.arange(5000)
    base = permuted(positions, 5000, one(0), one(0), 0)
    for seed, epoch, stream in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0)):
        other = permuted(positions, 5000, one(seed), one(epoch), stream)
        assert (base == other).sum() < 15  # expected: 1 by chance


@parametrize("count", [97, 1000], default=1)
def test_shuffles_put_every_image_everywhere_equally_often(count):
    """Chi-square over position blocks, for images at the start, the middle and the end of the set."""
    rounds = 4000
    placed = torch.stack(
        [permuted(torch.arange(count), count, one(7), one(epoch), 0) for epoch in range(rounds)]
    ).numpy()
    for position in (0, 1, count // 2, count - 1):
        counts = np.bincount(placed[:, position] * 10 // count, minlength=10)
        shares = np.bincount(np.arange(count) * 10 // count, minlength=10) / count
        chi_square = ((counts - rounds * shares) ** 2 / (rounds * shares)).sum()
        assert chi_square < 33.7  # 9 degrees of freedom, p = 1e-4


def test_neighbours_do_not_stay_neighbours():
    """Distances between the places of neighbours are those of a true shuffle: |x - y| has mean (n + 1) / 3."""
    count = 50_000
    placed = permuted(torch.arange(count), count, one(3), one(9), 0).double()
    mean_distance = (placed[1:] - placed[:-1]).abs().mean()
    assert abs(mean_distance / ((count + 1) / 3) - 1) < 0.02
    serial = np.corrcoef(placed[:-1], placed[1:])[0, 1]
    assert abs(serial) < 0.02
