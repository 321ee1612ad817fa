"""Stateless random numbers: a value is a function of (seed, epoch, image, stream), whatever the batch order.

`philox` is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), `permuted` a keyed
bijection. The PyTorch functions use int64 arithmetic on tensors of unsigned 32-bit words, so they run on any device,
compile, never synchronise, and give the same bits everywhere. The device functions, for use in kernels, give the same
bits in uint32 arithmetic.
"""

import math

import torch
from torch import Tensor

from .language import tl, triton

_WORD = 0xFFFFFFFF
_PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_GOLDEN_RATIO = 0x9E3779B9


@triton.jit
def scrambled_device(words):
    """Compute `_scrambled` of uint32 words."""
    words = (words ^ (words >> 16)) * 0x7FEB352D
    words = (words ^ (words >> 15)) * 0x846CA68B
    return words ^ (words >> 16)


@triton.jit
def below_device(words, COUNT: tl.constexpr):
    """Compute `below` of uint32 words."""
    return tl.umulhi(words, tl.full((), COUNT, tl.uint32))


@triton.jit
def between_device(words):
    """Compute `between_minus_and_plus_one` of uint32 words."""
    return (words >> 8).to(tl.float32) * (2.0 / 16777216.0) - 1.0


@triton.jit
def random_words_device(seed, epoch, image, STREAM: tl.constexpr):
    """Compute `random_words` of an int64 seed, and of a uint32 epoch and image."""
    return tl.philox(seed, image, tl.zeros_like(image), epoch, tl.full((), STREAM, tl.uint32))


@triton.jit
def permuted_device(
    position, seed, epoch, STREAM: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Compute `permuted` of a uint32 position; `shuffle_rectangle` gives ROWS and COLUMNS. COUNT is below 2**31."""
    low, high = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    key = scrambled_device(epoch ^ tl.full((), STREAM << 24, tl.uint32))
    key = scrambled_device(low ^ scrambled_device(high ^ key))
    for _ in tl.static_range(2):
        key = scrambled_device(key + 0x9E3779B9)
        position = (position + below_device(key, COUNT)) % COUNT
        row, column = position // COLUMNS, position % COLUMNS
        for _ in tl.static_range(2):
            key = scrambled_device(key + 0x9E3779B9)
            row = (row + scrambled_device(column ^ key) % ROWS) % ROWS  # reduced first: the sum must fit 32 bits
            key = scrambled_device(key + 0x9E3779B9)
            column = (column + scrambled_device(row ^ key) % COLUMNS) % COLUMNS
        position = tl.where(position < ROWS * COLUMNS, row * COLUMNS + column, position)
    return position


def shuffle_rectangle(count: int) -> tuple[int, int]:
    """Return rows and columns of the rectangle of nearly `count` cells that `permuted` works on."""
    rows = math.isqrt(count)
    return rows, count // rows


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Return four words of 32 random bits: int64 tensors of the broadcast shape of `counter` and `key`.

    Args:
        counter: four int64 tensors with values in [0, 2**32).
        key: two int64 tensors with values in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product wraps modulo 2**64, which keeps all 64 bits correct; the shift's sign extension is masked off.
        first, second = c0 * _PHILOX_MULTIPLIERS[0], c2 * _PHILOX_MULTIPLIERS[1]
        c0, c2 = (second >> 32) & _WORD ^ c1 ^ k0, (first >> 32) & _WORD ^ c3 ^ k1
        c1, c3 = second & _WORD, first & _WORD
        k0, k1 = (k0 + _PHILOX_KEY_STEPS[0]) & _WORD, (k1 + _PHILOX_KEY_STEPS[1]) & _WORD
    return [c0, c1, c2, c3]


def random_words(seed: Tensor, epoch: Tensor, image: Tensor, stream: int) -> list[Tensor]:
    """Return four int64 tensors of 32 random bits for each image id.

    Args:
        seed: int64 [1], any value.
        epoch: int64 [1], values in [0, 2**32).
        image: int64 [N], image ids in [0, 2**32).
        stream: number of the image's independent draw.
    """
    streams = torch.full_like(epoch, stream)
    key = (seed & _WORD, (seed >> 32) & _WORD)
    return philox((image, torch.zeros_like(epoch), epoch, streams), key)


def below(words: Tensor, count: int) -> Tensor:
    """Map 32-bit words to integers in [0, count), int64; the bias is at most count / 2**32."""
    return (words * count) >> 32


def between_minus_and_plus_one(words: Tensor) -> Tensor:
    """Map 32-bit words to float32 in [-1, 1), from their upper 24 bits, which float32 represents exactly."""
    return (words >> 8).to(torch.float32) * (2.0 / 16777216.0) - 1.0


def _scrambled(words: Tensor) -> Tensor:
    """Apply a bijection of 32-bit words in which changing one bit changes half of them (Chris Wellons' lowbias32)."""
    words = (words ^ (words >> 16)) * 0x7FEB352D & _WORD
    words = (words ^ (words >> 15)) * 0x846CA68B & _WORD
    return words ^ (words >> 16)


def permuted(position: Tensor, count: int, seed: Tensor, epoch: Tensor, stream: int) -> Tensor:
    """Return the place of each position in a shuffle of 0..count-1: a bijection for every (seed, epoch, stream).

    A Feistel network over a rows x columns rectangle of nearly `count` cells. The fewer than sqrt(count) positions
    outside keep their place, so the whole is rotated by a random offset, and both are done twice. No table, no sort, no
    loop of data-dependent length.

    Args:
        position: int64 [N], values in [0, count).
        count: number of shuffled elements, at least 1.
        seed: int64 [1].
        epoch: int64 [1].
        stream: number of the epoch's independent shuffle.

    Returns:
        int64 [N], values in [0, count).
    """
    rows, columns = shuffle_rectangle(count)
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
