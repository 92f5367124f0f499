"""A map of bits priced one by one: several opinions of each bit's chance, mixed as they prove right.

Logistic mixing (Mahoney 2005, "Adaptive weighing of context models for lossless data compression"), here over what
tells of a weight that survives pruning: how many its output keeps, how many its input keeps, how far back the last
one stands, and the same output's weights at the neighbouring inputs where these lie in a picture. All of it is whole
numbers, so that every machine reads the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log

import constriction
import numpy as np
import numpy.typing as npt

from ..errors import CorruptFile
from .bytestream import Reader
from .coders import opened, sealed

Mask = npt.NDArray[np.bool_]

ONE = 1 << 16  # probability 1
UNIT = 256  # of log odds, in nats
LIMIT = 8 * UNIT - 1
STRETCHED = [round(UNIT * log((i + 0.5) / (4095.5 - i))) for i in range(4096)]  # log odds of (i + 1/2) / 4096
SQUASHED = [min(max(round(ONE / (1 + exp(-x / UNIT))), 16), ONE - 16) for x in range(-LIMIT, LIMIT + 1)]
LOGARITHMS = [round(UNIT * log(max(n, 1) / 16)) for n in range(257)]  # of n / 16
RATES = [2 * ONE // (2 * n + 3) for n in range(256)]  # how far a chance moves after n bits
TRUST = 4  # inputs that the density of all outputs counts for against an output's own
PRIOR = 4  # weights that the neighbours' density counts for against an input's own
FAR = 9
FIRST_WEIGHT = 3 * ONE // 10
OPINIONS = 6
MEETINGS = 1.5  # times as often as chance has it: a picture

Code = Callable[[int], int]  # the chance of a weight, of ONE -> whether there is one


def encode(mask: Mask, side: int) -> bytes:
    """A mask [outputs, inputs] whose inputs lie in rows of `side` (0: in no order)."""
    outputs, inputs = mask.shape
    bits, prices = mask.T.astype(np.int32).ravel(), []
    ahead = iter(bits.tolist())

    def code(chance: int) -> int:
        prices.append(chance)
        return next(ahead)

    _walk(outputs, inputs, side, code)
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(bits, constriction.stream.model.Bernoulli(perfect=False), np.array(prices, np.float64) / ONE)
    return sealed(coder)


def decode(reader: Reader, outputs: int, inputs: int) -> Mask:
    """`encode`'s mask after a byte that holds the side; raises CorruptFile."""
    side = reader.byte()
    coder, bernoulli = opened(reader.rest()), constriction.stream.model.Bernoulli

    def code(chance: int) -> int:
        bit: int = coder.decode(bernoulli(chance / ONE, perfect=False))
        return bit

    try:
        rows = _walk(outputs, inputs, side, code)
    except (AssertionError, ValueError) as error:
        raise CorruptFile(f"a map that is damaged ({error})") from None
    return np.array(rows, dtype=bool).reshape(inputs, outputs).T


def _walk(outputs: int, inputs: int, side: int, code: Code) -> list[list[int]]:
    """All bits, input after input; the encoder's `code` knows them, the decoder's finds them."""
    rows: list[list[int]] = []  # [inputs, outputs]
    found: list[int] = []  # weights of each input,
    expected: list[int] = []  # and how many its outputs let expect, of ONE
    taken, total = [0] * outputs, 0  # weights of each output
    by_density: dict[tuple[int, int], list[int]] = {}  # context -> [chance, bits seen]
    by_distance: dict[tuple[int, int], list[int]] = {}
    by_neighbours: dict[tuple[int, int], list[int]] = {}
    weights = [FIRST_WEIGHT] * (OPINIONS - 1) + [0]
    nowhere = [0] * outputs
    for i in range(inputs):
        places = neighbours(i, side)
        left, above, above_right, above_left = (nowhere if place is None else rows[place] for place in places)
        there = [place for place in places if place is not None]
        around = (sum(found[place] for place in there) + 1) * ONE
        prior = 16 * PRIOR * around // (sum(expected[place] for place in there) + ONE)
        density = (2 * total + 1) * ONE // (2 * i * outputs + 2)
        row, own, own_expected, distance = [0] * outputs, 0, 0, FAR
        for j in range(outputs):
            chance = (taken[j] * ONE + TRUST * density) // (i + TRUST)
            odds = STRETCHED[chance >> 4]
            ratio = LOGARITHMS[min(256, (16 * own + prior) * ONE // (own_expected + PRIOR * ONE))]
            level = odds >> 7
            beside = left[j] | above[j] << 1 | above_right[j] << 2 | above_left[j] << 3
            contexts = (
                by_density.setdefault((level, ratio >> 7), [chance, 0]),
                by_distance.setdefault((level, distance << 8 | ratio >> 8), [chance, 0]),
                by_neighbours.setdefault((level, beside), [chance, 0]),
            )
            first, second, third = contexts
            opinions = (
                odds, min(max(odds + ratio, -LIMIT), LIMIT),
                STRETCHED[first[0] >> 4], STRETCHED[second[0] >> 4], STRETCHED[third[0] >> 4], UNIT,
            )  # fmt: skip
            mixed = sum(map(int.__mul__, weights, opinions)) >> 16
            price = SQUASHED[min(max(mixed, -LIMIT), LIMIT) + LIMIT]
            bit = code(price)
            error = bit * ONE - price
            weights = [weight + (error * opinion >> 16) for weight, opinion in zip(weights, opinions, strict=True)]
            goal = bit * (ONE - 1)
            for context in contexts:
                likely, seen = context
                context[0] = likely + ((goal - likely) * RATES[seen] >> 16)
                context[1] = min(seen + 1, 255)
            own_expected += chance
            if bit:
                row[j], own, distance = 1, own + 1, 0
                taken[j] += 1
            elif distance < FAR:
                distance += 1
        rows.append(row)
        found.append(own)
        expected.append(own_expected)
        total += own
    return rows


def neighbours(i: int, side: int) -> tuple[int | None, ...]:
    """The inputs left of, above, above right and above left of one in a picture `side` wide, read row by row."""
    if side == 0:
        return (None,) * 4
    at_left, at_right = i % side == 0, (i + 1) % side == 0
    places = (i - 1, at_left), (i - side, False), (i - side + 1, at_right), (i - side - 1, at_left)
    return tuple(None if beyond or place < 0 else place for place, beyond in places)


def likely_sides(mask: Mask) -> tuple[int, ...]:
    """0, and how wide the picture may be that inputs lie in: the distance at which an output's weights meet most."""
    if not mask.any():
        return (0,)
    inputs = mask.shape[1]
    met = {
        side: float((mask[:, side:] & mask[:, :-side]).mean()) / float(mask.mean()) ** 2
        for side in range(2, min(inputs // 2, 1 << 8))
    }
    side = max(met, key=lambda side: met[side], default=0)
    return (0, side) if met.get(side, 0.0) > MEETINGS else (0,)
