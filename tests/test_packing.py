"""Packing: every coder, mask and form gives back what it got, bit by bit, in as few bytes as theory allows."""

import json
import math
import re
import struct
import zlib
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pocketzoo as pz
from pocketzoo import Architecture
from pocketzoo.errors import CorruptFile, InvalidRun, InvalidSetting
from pocketzoo.packing import coders, container, forms, huffman, masks, mixing
from pocketzoo.packing.bytestream import Reader, varint
from pocketzoo.packing.edits import Sum, replaced
from pocketzoo.packing.packed import pack_model, unpack_model
from pocketzoo.training.packed_file import load_packed, write_packed
from pocketzoo.zoo import registry

registry.load_families()
PACKAGE = Path(pz.__file__).parent
SKEWED = np.minimum(np.random.default_rng(0).geometric(0.3, 60_000) - 1, 40)


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Names, kinds, shapes and every bit."""
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert (tensor.dtype, tensor.shape) == (second[name].dtype, second[name].shape), name
        assert bits(tensor) == bits(second[name]), name


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


def test_one_integer_scale_of_a_tensor_without_dimensions() -> None:
    coded = forms.encode(torch.tensor(0.75), forms.Scaled(np.array([0.25], np.float32)))
    assert float(forms.decode(coded, (), torch.float32)) == 0.75


# -- models ------------------------------------------------------------------------------------------------------------


def packed_and_back(model: nn.Module, architecture: Architecture | None = None, **options: Any) -> nn.Module:
    into = options.pop("into", None)
    return unpack_model(pack_model(model, architecture, **options).data, into=into).model


@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_a_model_of_every_family(family: str) -> None:
    name = min(registry.FAMILIES[family].variants, key=lambda name: (len(name), name))
    fields = {"num_classes": 3, "resolution": 64} if family != "googlenet" else {"num_classes": 3}
    architecture = Architecture.of(name, **fields)
    if family == "vgg":  # as it is, half a gigabyte of equal numbers would be taken for an attack
        architecture = architecture.with_widths({name: w // 8 for name, w in architecture.graph().groups.items()})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architecture.build().eval()
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            if weight.numel() > 10_000:  # otherwise the largest networks take minutes
                weight.fill_(number / 7)
    assert_same(packed_and_back(model, architecture), model)


def test_a_zoo_model_as_it_was_trained() -> None:
    architecture = Architecture.of("mobilenet_v3_small", num_classes=10, resolution=32)
    model = architecture.build().eval()
    again = packed_and_back(model, architecture)
    assert_same(again, model)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))


class Tied(nn.Module):
    """Two layers that share a weight, a shared buffer, and buffers of other kinds."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("steps", torch.tensor(3_000_000_000))
        self.register_buffer("mask", torch.tensor([True, False] * 3))
        self.register_buffer("again", self.mask)
        self.scale = nn.Parameter(torch.randn(2).bfloat16())
        self.register_buffer("hidden", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) * self.hidden[0]


def test_tied_weights_are_stored_once_and_stay_tied() -> None:
    model = Tied().eval()
    packed = pack_model(model)
    assert [name for name in packed.tensors if "weight" in name] == ["first.weight"]
    given = Tied()
    again = unpack_model(packed.data, into=given).model
    assert_same(again, model)
    assert isinstance(again, Tied)
    assert again.first.weight is again.second.weight
    assert torch.equal(again.hidden, torch.ones(2))
    assert given.training  # the module that was given stays as it is


class Net(nn.Module):
    """A user's own network: a stem, a residual branch, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1))
        self.head = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.branch(x)).mean((2, 3)))


INPUT = (1, 3, 12, 12)


def resized(widths: dict[str, int]) -> Callable[[], tuple[nn.Module, dict[str, Any]]]:
    def make() -> tuple[nn.Module, dict[str, Any]]:
        model = pz.trace(Net(), INPUT).resize(Net(), widths)
        return model, {"widths": widths, "input": list(INPUT)}

    return make


def factorised() -> tuple[nn.Module, dict[str, Any]]:
    model = Net()
    by = nn.Sequential(nn.Linear(8, 3, bias=False), nn.Linear(3, 20))
    model.head[0] = by
    return model, dict(replaced("head.0", by))


def summed() -> tuple[nn.Module, dict[str, Any]]:
    model = Net()
    by = Sum([nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 8, (1, 1), bias=False))])
    model.stem = by
    return model, dict(replaced("stem", by))


@pytest.mark.parametrize(
    "edited", [resized({"stem": 5, "branch.0": 7, "head.0": 9}), resized({"branch.0": 0}), factorised, summed],
    ids=["widths", "removed branch", "factorised", "sum"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["into", "trust"])
def test_edits_are_done_again(edited: Callable[[], tuple[nn.Module, dict[str, Any]]], how: str) -> None:
    model, edit = edited()
    architecture = Architecture.of(f"{__name__}:Net") if how == "trust" else None
    data = pack_model(model.eval(), architecture, edits=[edit]).data
    with pytest.raises(InvalidRun, match=r"trust|into"):
        unpack_model(data)
    again = unpack_model(data, into=Net()) if how == "into" else unpack_model(data, trust=[f"{__name__}:Net"])
    assert_same(again.model, model)
    assert again.edits == (json.loads(json.dumps(edit)),)
    x = torch.randn(2, *INPUT[1:])
    assert torch.equal(again.model(x), model(x))


def test_edits_follow_each_other() -> None:
    model = pz.trace(Net(), INPUT).resize(Net(), {"head.0": 6})
    by = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 6))
    model.head[0] = by
    edits = [{"widths": {"head.0": 6}, "input": list(INPUT)}, replaced("head.0", by)]
    assert_same(packed_and_back(model, edits=edits, into=Net()), model)
    narrower = pz.trace(model, INPUT).resize(model, {"stem": 4})
    edits.append({"widths": {"stem": 4}, "input": list(INPUT)})
    assert_same(packed_and_back(narrower, edits=edits, into=Net()), narrower)


def test_a_layer_without_description_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="Bilinear"):
        replaced("head.0", nn.Bilinear(2, 2, 2))


@pytest.mark.parametrize("known", [True, False])
def test_tensors_that_training_registered_in_another_order_find_their_places(known: bool) -> None:
    architecture = Architecture.of("lenet5", num_classes=3)
    model = architecture.build().eval()
    weight = model.conv1.weight
    del model.conv1.weight
    model.conv1.weight = weight  # now after the bias
    assert list(model.state_dict())[:2] == ["conv1.bias", "conv1.weight"]
    back = packed_and_back(model, architecture) if known else packed_and_back(model, into=architecture.build())
    assert {name: bits(t) for name, t in back.state_dict().items()} == {
        n: bits(t) for n, t in model.state_dict().items()
    }


def test_a_model_that_is_not_its_architecture_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="in one of them only"):
        pack_model(Architecture.of("lenet5").build(), Architecture.of("lenet_300_100"))


def test_another_module_than_the_one_that_was_packed_is_refused() -> None:
    data = pack_model(Net()).data
    with pytest.raises(CorruptFile, match="not those of the module"):
        unpack_model(data, into=nn.Linear(2, 2))


def test_the_file_is_read_by_every_door(tmp_path: Path) -> None:
    architecture = Architecture.of("lenet5", resolution=16, in_channels=1)
    model = architecture.build().eval()
    size = write_packed(tmp_path / "model.pz", pack_model(model, architecture).data)
    assert size == (tmp_path / "model.pz").stat().st_size
    assert_same(load_packed(tmp_path / "model.pz"), model)
    assert_same(pz.load(tmp_path / "model.pz"), model)


def test_a_small_models_header_is_small() -> None:
    architecture = Architecture.of("lenet5", num_classes=10, in_channels=1, resolution=28)
    header = {"recipe": "prune(sparsity=0.9, epochs=4) | kmeans | huffman"}
    packed = pack_model(architecture.build(), architecture, header=header)
    streams = sum(packed.tensors.values())
    assert packed.header_bytes == len(packed.data) - streams < 120


def test_files_hold_no_pickle_and_no_code_reads_one() -> None:
    told = re.compile(r"torch\.load\(|torch\.save\(|\bpickle\b")
    packed = pack_model(nn.Linear(2, 2)).data
    assert packed.startswith(container.MAGIC)
    for folder in ("packing", "compress", "training", "commands"):
        for path in (PACKAGE / folder).rglob("*.py"):
            code = "\n".join(line.partition("#")[0] for line in path.read_text(encoding="utf-8").splitlines())
            assert not told.search(code), path


# -- another decoder, from the documentation alone ---------------------------------------------------------------------


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at, number, shift = at + 1, number | (byte & 127) << shift, shift + 7
        if byte < 128:
            return number, at


def quantised(weights: list[float]) -> list[int]:
    """Cumulative numbers of 2^24: docs/packed-format.md, "Chances"."""
    scale, total, found = ((1 << 24) - len(weights)) / sum(weights), 0.0, []
    for i, weight in enumerate(weights):
        found.append(int(total * scale) + i)
        total += weight
    return [*found, 1 << 24]


def ans_symbols(data: bytes, count: int) -> list[int]:
    size, at = read_varint(data, 0)
    counts = []
    for _ in range(size):
        number, at = read_varint(data, at)
        counts.append(float(number))
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(at, len(data), 4)]
    state = words.pop()
    if words:
        state = state << 32 | words.pop()
    edges, found = quantised(counts), []
    for _ in range(count):
        place = state & 0xFFFFFF
        symbol = next(i for i in range(size) if edges[i] <= place < edges[i + 1])
        state = (state >> 24) * (edges[symbol + 1] - edges[symbol]) + place - edges[symbol]
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
        found.append(symbol)
    return found


class RangeReader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.lower, self.size = data + bytes(12), 8, 0, (1 << 64) - 1
        self.point = int.from_bytes(self.data[:8], "big")

    def symbol(self, edges: list[int]) -> int:
        scale = self.size >> 24
        place = ((self.point - self.lower) % (1 << 64)) // scale
        symbol = next(i for i in range(len(edges) - 1) if edges[i] <= place < edges[i + 1])
        self.lower = (self.lower + scale * edges[symbol]) % (1 << 64)
        self.size = scale * (edges[symbol + 1] - edges[symbol])
        if self.size < 1 << 32:
            self.lower, self.size = self.lower << 32 & (1 << 64) - 1, self.size << 32
            self.point = (self.point << 32 & (1 << 64) - 1) | int.from_bytes(self.data[self.at : self.at + 4], "big")
            self.data, self.at = self.data + bytes(4), self.at + 4
        return symbol


def adaptive_symbols(data: bytes, count: int) -> list[int]:
    size, at = read_varint(data, 0)
    reader, weights, found = RangeReader(data[at:]), [0.4] * size, []
    for _ in range(count):
        found.append(reader.symbol(quantised(weights)))
        weights[found[-1]] += 1
    return found


@pytest.mark.parametrize("length", [1, 5, 300])
def test_the_documented_arithmetic_reads_our_streams(length: int) -> None:
    for seed in range(5):
        symbols = np.minimum(np.random.default_rng(seed).geometric(0.4, length), 9)
        ans, adaptive = coders.encode(symbols, "ans"), coders.encode(symbols, "adaptive")
        assert coders.coder_of(ans) == "ans"
        assert ans_symbols(ans[1:], length) == symbols.tolist()
        assert adaptive_symbols(adaptive[1:], length) == symbols.tolist()


def test_the_documented_layout_of_a_file() -> None:
    model = nn.Linear(3, 2)
    data = pack_model(model, header={"note": "ü"}).data
    assert data[:5] == b"PZOO\1"
    length, at = read_varint(data, 5)
    body = data[at + 4 : at + 4 + length]
    assert int.from_bytes(data[at : at + 4], "little") == zlib.crc32(body)
    header = json.loads(zlib.decompressobj(-15, zdict=container.DICTIONARY).decompress(body))
    stream = data[at + 4 + length :]
    assert header == {"note": "ü", "streams": [[len(stream), zlib.crc32(stream)]], "tensors": ["weight", "bias"]}
    size, at = read_varint(stream, 0)
    assert stream[at] == forms.RAW
    assert len(stream) == at + size + 1 + stream[at + size]
