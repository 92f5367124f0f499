"""Coders, masks and forms: what goes in comes out to the bit, near the bound; wrong streams are refused."""

import math
import struct
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pocketzoo.packing import coders, forms, huffman, masks, mixing
from pocketzoo.packing.bytestream import Reader, varint

SKEWED = np.minimum(np.random.default_rng(0).geometric(0.3, 60_000) - 1, 40)


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def entropy(counts: Any) -> float:
    """Bits of a symbol."""
    p = np.asarray(counts)[np.asarray(counts) > 0] / np.sum(counts)
    return float(-(p * np.log2(p)).sum())


# -- coders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coder", [None, *coders.CODERS])
@settings(max_examples=80, deadline=None)
@given(
    symbols=st.one_of(
        st.lists(st.integers(0, 6), max_size=60),
        st.lists(st.integers(0, 40) | st.just(65535), max_size=20),
        st.integers(0, 300).map(lambda n: [3] * n),
    )
)
def test_coders_give_back_what_they_got(coder: str | None, symbols: list[int]) -> None:
    coded = coders.encode(symbols, coder)
    assert coders.decode(coded, len(symbols)).tolist() == symbols


def test_numbers_that_are_no_symbols_are_refused() -> None:
    for symbols in ([-1], [65536]):
        with pytest.raises(ValueError, match="whole numbers"):
            coders.encode(symbols)


@pytest.mark.parametrize("coder", ["ans", "adaptive"])
def test_entropy_coders_reach_the_bound(coder: str) -> None:
    symbols = SKEWED[: coders.ADAPTIVE_LENGTH]
    bound = entropy(np.bincount(symbols)) * len(symbols) / 8
    assert bound <= len(coders.encode(symbols, coder)) < 1.01 * bound + 2 * len(np.bincount(symbols))


def test_ans_is_within_a_percent_of_the_entropy_with_its_table() -> None:
    bound = entropy(np.bincount(SKEWED)) * len(SKEWED) / 8
    assert bound <= len(coders.encode(SKEWED, "ans")) < 1.01 * bound


def test_the_smallest_coder_is_taken() -> None:
    for symbols in ([0] * 100, list(range(16)) * 3, SKEWED.tolist(), [0, 1]):
        own = [coders.encode(symbols, name) for name in coders.CODERS]
        assert len(coders.encode(symbols)) == min(map(len, own))


def kraft(lengths: tuple[int, ...]) -> float:
    return sum(2.0**-length for length in lengths)


@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=6))
def test_no_prefix_code_is_shorter_than_ours(counts: list[int]) -> None:
    best = min(
        sum(count * length for count, length in zip(counts, lengths, strict=True))
        for lengths in product(range(1, len(counts)), repeat=len(counts))
        if kraft(lengths) <= 1
    )
    ours = huffman.code_lengths(np.array(counts))
    assert kraft(tuple(ours)) == 1
    assert int(ours @ np.array(counts)) == best


def test_huffman_words_stay_readable_when_some_symbols_are_very_rare() -> None:
    counts = np.array([round(1.7**n) for n in range(40)])  # unlimited, the rarest would take 39 bits
    lengths = huffman.code_lengths(counts)
    assert lengths.max() <= huffman.LONGEST
    assert kraft(tuple(lengths)) == 1
    assert lengths @ counts / counts.sum() < entropy(counts) + 0.1
    symbols = np.repeat(np.arange(40), np.minimum(counts, 3000))
    assert (coders.decode(coders.encode(symbols, "huffman"), len(symbols)) == symbols).all()


def test_huffman_streams_longer_than_a_block_are_read_across_its_edges() -> None:
    symbols = np.random.default_rng(1).integers(0, 50, 3 * huffman.BLOCK)
    assert (coders.decode(coders.encode(symbols, "huffman"), len(symbols)) == symbols).all()


def test_canonical_words_are_the_textbooks() -> None:
    # Lengths 2, 1, 3, 3: words 10, 0, 110, 111 (RFC 1951, section 3.2.2, has the same rule and example)
    coded = huffman.encode(np.array([0] * 2 + [1] * 4 + [2, 3]))
    assert coded == varint(4) + bytes([2, 1, 3, 3]) + bytes([0b10100000, 0b11011100])


@given(number=st.integers(0, 1 << 62))
def test_varints(number: int) -> None:
    assert Reader(varint(number)).varint() == number


# -- masks -------------------------------------------------------------------------------------------------------------


def test_gaps_are_deep_compressions_own_example() -> None:
    # Figure 2 of arXiv:1510.00149: weights at 1, 4 and 15 of 16, three bits: the last gap exceeds them, so that a
    # padding zero stands between. The figure counts differences (1, 3, 8 + 3); gaps between weights are one less.
    assert masks.gap_symbols(np.array([1, 4, 15]), 3).tolist() == [1, 2, 7, 3]


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 9), st.integers(0, 40)), density=st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 9), coder=st.sampled_from([None, "huffman", "ans"]),
)  # fmt: skip
def test_masks_give_back_what_they_got(shape: tuple[int, int], density: float, seed: int, coder: str | None) -> None:
    mask = np.random.default_rng(seed).random(shape) < density
    assert (masks.decode(masks.encode(mask, coder), *shape) == np.flatnonzero(mask)).all()


@pytest.mark.parametrize("bits_of_a_gap", masks.GAP_BITS)
def test_gaps_of_any_length(bits_of_a_gap: int) -> None:
    positions = np.array([0, 1, 5000, 5001, 19_999])
    symbols = masks.gap_symbols(positions, bits_of_a_gap)
    coded = bytes([masks.GAPS, bits_of_a_gap]) + varint(len(symbols)) + coders.encode(symbols)
    assert masks.decode(coded, 2, 10_000).tolist() == positions.tolist()


def test_the_large_maps_price_by_column() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((700, 1000)) < rng.random(1000) ** 8  # some inputs matter
    coded = masks.encode(mask)
    assert coded[0] == masks.MAP
    assert (masks.decode(coded, 700, 1000) == np.flatnonzero(mask)).all()
    share = mask.mean()
    assert 8 * len(coded) < 0.8 * mask.size * entropy([share, 1 - share])


def test_the_mixed_map_finds_structure_and_costs_little_without() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.random(400) ** 4
    structured = rng.random((100, 400)) < inputs * rng.random((100, 1))
    without = rng.random((100, 400)) < structured.mean()
    for mask, most in ((structured, 0.92), (without, 1.02)):
        share = mask.mean()
        assert len(masks.encode(mask)) < most * mask.size * entropy([share, 1 - share]) / 8


def test_a_picture_of_inputs_is_found_and_used() -> None:
    y, x = np.mgrid[:20, :20]
    centre = np.hypot(y - 9.5, x - 9.5) < 6
    mask = (np.random.default_rng(0).random((40, 400)) < 0.4) & centre.reshape(-1)
    assert mixing.likely_sides(mask) == (0, 20)
    assert len(mixing.encode(mask, 20)) < len(mixing.encode(mask, 0))


def test_tables_are_the_same_on_every_machine() -> None:
    """The formulas are rounded far from where an error in a logarithm's last place would show."""
    for i in range(4096):
        exact = mixing.UNIT * math.log((i + 0.5) / (4095.5 - i))
        assert abs(exact - math.floor(exact) - 0.5) > 1e-6
    for x in range(-mixing.LIMIT, mixing.LIMIT + 1):
        exact = mixing.ONE / (1 + math.exp(-x / mixing.UNIT))
        assert abs(exact - math.floor(exact) - 0.5) > 1e-6 or x == 0


# -- forms -------------------------------------------------------------------------------------------------------------

SHAPES = [(), (0,), (1,), (3, 0), (5,), (4, 6), (3, 2, 2, 2)]
KINDS = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool,
    torch.complex64, torch.float8_e4m3fn,
]  # fmt: skip
SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 1.0, 65504.0, 65520.0, 2**-24, 2**-25, 3.1]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_kind_and_shape(kind: torch.dtype, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    size = torch.empty(0, dtype=kind).element_size() * math.prod(shape)
    for content in (bytes(size), rng.integers(0, 2 if kind == torch.bool else 256, size, np.uint8).tobytes()):
        tensor = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[:size].view(kind).reshape(shape)
        back = forms.decode(forms.encode(tensor), shape, kind)
        assert (back.dtype, back.shape) == (kind, shape)
        assert bits(back) == content


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.sampled_from(SPECIAL) | st.floats(width=32), max_size=40),
    rows=st.integers(1, 4), coder=st.sampled_from([None, "huffman", "ans"]),
)  # fmt: skip
def test_every_number_keeps_its_bits(values: list[float], rows: int, coder: str | None) -> None:
    values = values[: len(values) // rows * rows]
    tensor = torch.tensor(values, dtype=torch.float32).reshape(rows, -1)
    assert bits(forms.decode(forms.encode(tensor, coder=coder), tuple(tensor.shape), torch.float32)) == bits(tensor)


def test_nans_keep_their_payload() -> None:
    patterns = [0x7FC00000, 0x7F800001, 0xFFC12345, 0x7FFFFFFF, 0x80000000, 0]
    tensor = torch.frombuffer(bytearray(struct.pack("<6I", *patterns) * 50), dtype=torch.float32)
    assert bits(forms.decode(forms.encode(tensor), (300,), torch.float32)) == bits(tensor)


def form_of(data: bytes) -> int:
    return data[0]


def test_each_form_is_found_by_itself_or_by_its_hint() -> None:
    rng = torch.Generator().manual_seed(0)
    dense = torch.randn(40, 50, generator=rng)
    sparse = dense * (torch.rand(40, 50, generator=rng) < 0.1)
    shared = torch.round(sparse * 4) / 4 + 0.0  # no -0.0
    scales = np.linspace(0.01, 0.05, 40, dtype=np.float32)
    whole = torch.randint(-128, 128, (40, 50), generator=rng)
    integers = whole.float() * torch.from_numpy(scales)[:, None]
    book = forms.Book(
        np.random.default_rng(0).normal(size=(5, 8, 10)).astype(np.float32),
        np.random.default_rng(1).integers(0, 8, (40, 5)),
    )
    sums = forms.Books((book, forms.Book(book.vectors[:, :4] / 3, book.indices % 4)))
    cases: list[tuple[int, Tensor, forms.Hint, float]] = [  # form, tensor, hint, at most so many bytes
        (forms.FILL, torch.full((40, 50), 0.1), None, 5),
        (forms.RAW, dense, None, 0.9 * 4 * 2000),
        (forms.RAW, dense.half().float(), None, 0.95 * 2 * 2000),
        (forms.LEVELS, shared, None, 300),
        (forms.INTEGERS, integers, forms.Scaled(scales), 2000 + 4 * 40 + 30),
        (forms.PRODUCT, torch.from_numpy(book.assembled()), forms.Books((book,)), 4 * 400 + 40 * 5 * 3 / 8 + 40),
        (forms.PRODUCT, torch.from_numpy(sums.assembled()), sums, 4 * 600 + 40 * 5 * 5 / 8 + 80),
    ]
    for form, tensor, hint, most in cases:
        coded = forms.encode(tensor, hint)
        assert form_of(coded) == form
        assert len(coded) <= most
        assert bits(forms.decode(coded, tuple(tensor.shape), tensor.dtype)) == bits(tensor)


def test_a_wrong_hint_is_not_used() -> None:
    tensor = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    wrong = [
        forms.Scaled(np.full(6, 0.1, np.float32)), forms.Scaled(np.full(5, 0.1, np.float32)),
        forms.Scaled(np.zeros(1, np.float32)), forms.Scaled(np.array([np.nan], np.float32)),
        forms.Books((forms.Book(np.zeros((2, 1, 2), np.float32), np.zeros((6, 2), np.int64)),)),
    ]  # fmt: skip
    for hint in wrong:
        assert bits(forms.decode(forms.encode(tensor, hint), (6, 4), torch.float32)) == bits(tensor)


@pytest.mark.parametrize("edge", [-(2**15), 2**15 - 1])
def test_integers_of_sixteen_bits_keep_their_edges(edge: int) -> None:
    tensor = torch.full((3, 4), 0.5 * edge) - 0.5 * torch.arange(12).reshape(3, 4) * (1 if edge > 0 else -1)
    coded = forms.encode(tensor, forms.Scaled(np.array([0.5], np.float32)))
    assert bits(forms.decode(coded, (3, 4), torch.float32)) == bits(tensor)
    assert form_of(coded) == forms.INTEGERS


def test_one_integer_scale_of_a_tensor_without_dimensions() -> None:
    coded = forms.encode(torch.tensor(0.75), forms.Scaled(np.array([0.25], np.float32)))
    assert float(forms.decode(coded, (), torch.float32)) == 0.75
