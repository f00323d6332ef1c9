"""Noise from a counter, never from a global generator: the same (seed, step, draw) is the same noise, anywhere.

Normal numbers are read from a table of quantiles by 16 bits of a hash of their key and their place. Integers alone
decide, so that every processor and every device gives the same bits, and all rows are made by some twenty operations
on one tensor. Counter-based generators: Salmon et al. 2011, doi:10.1145/2063384.2063405. The hash is two rounds of
lowbias32, the finalizer of 32 bits with the least bias that a search found (Wellons 2018,
https://nullprogram.com/blog/2018/07/31/).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Draws of play: where sampling begins, what is mixed into the history, noise that all places share, whether an episode
# ends, what is mixed into a finished frame for the cache. Draws of training: where sampling begins, shared noise, the
# history, what corrupts the frames of segments, what corrupts single frames.
SAMPLE, HISTORY, SHARED, END, CACHE = 0, 1, 2, 3, 4
TRAIN_SAMPLE, TRAIN_SHARED, TRAIN_HISTORY, TRAIN_CORRUPT, TRAIN_IMAGE = 16, 17, 18, 19, 20
NEVER = 0.001  # a learned probability below is as good as none: it would end a thousand good steps by chance

LEVELS = 2**16  # quantiles in the table: the largest is 4.3, one in 65,536 is as large
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B  # of lowbias32


def keys_of(seeds: Sequence[int]) -> Tensor:
    """The keys int64 (B,) of seeds, which are any integers; below 2^64 no two have the same."""
    return torch.tensor([_signed(folded(seed), 64) for seed in seeds], dtype=torch.int64)


def row_keys(seed: int, rows: int) -> Tensor:
    """The keys int64 (rows,) of the rows of a training run's batches: row b is the same in any number of rows."""
    return torch.arange(rows) + _signed(seed << 32, 64)


def normal(keys: Tensor, steps: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise float32 (B, *shape), row b from (keys[b], steps[b], draw), on the keys' device.

    Args:
        keys: int64 (B,), see `keys_of`.
        steps: integers (B,), counted modulo 2^32.
        draw: which noise of a step, such as SAMPLE.
        shape: of a row.
    """
    count = math.prod(shape)
    words = _words(keys, steps, draw, (count + 1) // 2)  # (B, n / 2), two numbers from each
    places = words.view(torch.int16).to(torch.int32).add_(LEVELS // 2)
    noise = torch.index_select(_quantiles(keys.device), 0, places.view(-1))
    return noise.view(len(keys), 2 * words.shape[1])[:, :count].reshape(len(keys), *shape)


def uniform(keys: Tensor, steps: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Even noise float32 (B, *shape) of 0 to below 1, keyed as `normal`."""
    words = _words(keys, steps, draw, math.prod(shape))
    return ((words >> 8) & 0xFFFFFF).float().mul_(2**-24).reshape(len(keys), *shape)


def ends(probability: Tensor, keys: Tensor, steps: Tensor) -> Tensor:
    """Whether episodes end with the frames of `steps`, with these probabilities (none below `NEVER`), bool (B,).

    The end of many games cannot be seen coming, such as that of a player who slowly loses health: there the probability
    stays far below a half at every step, and only a draw ends an episode as often as in the game.
    """
    return uniform(keys, steps, END, ()) < possible(probability)


def possible(probability: Tensor) -> Tensor:
    """Probabilities of an end with those below `NEVER` as none."""
    return probability.where(probability >= NEVER, 0.0)


def share_places(noise: Tensor, shared: Tensor) -> Tensor:
    """Noise (..., C, h, w) whose first k channels are `shared` (..., k, 1, 1), the same at every place.

    Noise of its own decides what happens at one place and not at the next; noise that all places have decides what must
    fit together, such as how far the camera turned.
    """
    count = shared.shape[-3]
    return torch.cat([shared.expand(*shared.shape[:-2], *noise.shape[-2:]), noise[..., count:, :, :]], dim=-3)


def shared_channels(channels: int, share: float) -> int:
    """How many of the noise's channels all places share."""
    return round(channels * share)


def _words(keys: Tensor, steps: Tensor, draw: int, count: int) -> Tensor:
    """Random words int32 (B, count)."""
    moment = steps.to(keys.device, torch.int32) + _signed(draw << 24, 32)  # apart for the first 2^24 steps
    halves = keys.view(torch.int32).view(-1, 2) ^ moment.unsqueeze(1)
    first, second = _mixed(halves).split(1, dim=1)
    places = torch.arange(count, dtype=torch.int32, device=keys.device)
    return _mixed(_mixed(places ^ first).add_(second))


def _mixed(words: Tensor) -> Tensor:
    """lowbias32 of words int32, in place where that is possible: a bijection that spreads every bit over all 32."""
    words ^= (words >> 16) & 0xFFFF  # shifts of signed integers repeat the sign
    words *= _signed(_FIRST, 32)
    words ^= (words >> 15) & 0x1FFFF
    words *= _signed(_SECOND, 32)
    words ^= (words >> 16) & 0xFFFF
    return words


def _signed(number: int, bits: int) -> int:
    """The last bits of a number as a signed integer of so many."""
    number %= 2**bits
    return number - 2**bits if number >> (bits - 1) else number


def folded(seed: int) -> int:
    """Any integer in 64 bits, which has the same noise; one that fits stays as it is."""
    if -(2**63) <= seed < 2**64:
        return seed
    digits = (str if abs(seed) < 2**256 else hex)(seed)  # Python writes no decimals of thousands of digits
    return int.from_bytes(hashlib.blake2b(digits.encode(), digest_size=8).digest(), "big")


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    """Quantiles of the normal distribution in the middle of LEVELS equal parts, scaled to a variance of 1."""
    middles = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    found = torch.special.ndtri(middles)
    return (found / found.square().mean().sqrt()).float().to(device)
