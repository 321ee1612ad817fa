"""Random numbers without state: a value is a function of (seed, epoch, image, stream), whatever the batch order.

`philox` is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), `permuted` a keyed
bijection. Everything is int64 arithmetic on tensors that hold unsigned 32-bit words, so it runs on any device,
compiles, never synchronises, and gives the same bits everywhere.
"""

import math

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_GOLDEN_RATIO = 0x9E3779B9


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Four words of 32 random bits, int64 tensors of the broadcast shape of `counter` and `key`.

    Args:
        counter: four int64 tensors with values in [0, 2**32).
        key: two int64 tensors with values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product wraps modulo 2**64, which leaves all 64 bits right; the shift's sign extension is masked off.
        first, second = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c2 = (second >> 32) & _WORD ^ c1 ^ k0, (first >> 32) & _WORD ^ c3 ^ k1
        c1, c3 = second & _WORD, first & _WORD
        k0, k1 = (k0 + _PHILOX_KEY_STEPS[0]) & _WORD, (k1 + _PHILOX_KEY_STEPS[1]) & _WORD
    return [c0, c1, c2, c3]


def random_words(seed: Tensor, epoch: Tensor, image: Tensor, stream: int) -> list[Tensor]:
    """Four int64 tensors of 32 random bits for each image id.

    Args:
        seed: int64 [1], any value.
        epoch: int64 [1], values in [0, 2**32).
        image: int64 [N], image ids in [0, 2**32).
        stream: which of the independent draws of an image this is.
    """
    streams = torch.full_like(epoch, stream)
    key = (seed & _WORD, (seed >> 32) & _WORD)
    return philox((image, torch.zeros_like(epoch), epoch, streams), key)


def below(words: Tensor, count: int) -> Tensor:
    """Integers in [0, count) from 32-bit words, int64; the bias is at most count / 2**32."""
    return (words * count) >> 32


def _scrambled(words: Tensor) -> Tensor:
    """A bijection of 32-bit words that changes half of the bits when one changes (Chris Wellons' lowbias32)."""
    words = (words ^ (words >> 16)) * 0x7FEB352D & _WORD
    words = (words ^ (words >> 15)) * 0x846CA68B & _WORD
    return words ^ (words >> 16)


def permuted(position: Tensor, count: int, seed: Tensor, epoch: Tensor, stream: int) -> Tensor:
    """Where a shuffle of 0..count-1 puts each position: a bijection for every (seed, epoch, stream).

    A Feistel network over a rows x columns rectangle of nearly `count` cells. The fewer than sqrt(count) positions
    outside keep their place, so the whole is rotated by a random offset and done twice. No table, no sort, no loop
    whose length depends on data.

    Args:
        position: int64 [N], values in [0, count).
        count: size of what is shuffled, at least 1.
        seed: int64 [1].
        epoch: int64 [1].
        stream: which of the independent shuffles of an epoch this is.

    Returns:
        int64 [N], values in [0, count).
    """
    rows = math.isqrt(count)
    columns = count // rows
    key = _scrambled((seed & _WORD) ^ _scrambled((seed >> 32) & _WORD ^ _scrambled(epoch & _WORD ^ stream << 24)))
    for _ in range(2):
        key = _scrambled(key + _GOLDEN_RATIO & _WORD)
        position = (position + below(key, count)) % count
        row, column = position // columns, position % columns
        for _ in range(2):
            key = _scrambled(key + _GOLDEN_RATIO & _WORD)
            row = (row + _scrambled(column ^ key)) % rows
            key = _scrambled(key + _GOLDEN_RATIO & _WORD)
            column = (column + _scrambled(row ^ key)) % columns
        position = torch.where(position < rows * columns, row * columns + column, position)
    return position
