"""Packed models: every family, edits and ties come back bit by bit, through every door; what cannot is refused."""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pocketzoo as pz
from pocketzoo import Architecture
from pocketzoo.errors import CorruptFile, InvalidRun, InvalidSetting
from pocketzoo.packing import coders, container, forms
from pocketzoo.packing.edits import Sum, replaced
from pocketzoo.packing.packed import pack_model, unpack_model
from pocketzoo.training.packed_file import load_packed, write_packed
from pocketzoo.zoo import registry

registry.load_families()
PACKAGE = Path(pz.__file__).parent


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


def assert_same(one: nn.Module, other: nn.Module) -> None:
    """Names, kinds, shapes and every bit."""
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert (tensor.dtype, tensor.shape) == (second[name].dtype, second[name].shape), name
        assert bits(tensor) == bits(second[name]), name


def packed_and_back(model: nn.Module, architecture: Architecture | None = None, **options: Any) -> nn.Module:
    into = options.pop("into", None)
    return unpack_model(pack_model(model, architecture, **options).data, into=into).model


@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_a_model_of_every_family(family: str) -> None:
    name = min(registry.FAMILIES[family].variants, key=lambda name: (len(name), name))
    fields = {"num_classes": 3, "resolution": 64} if family != "googlenet" else {"num_classes": 3}
    architecture = Architecture.of(name, **fields)
    if family in ("vgg", "alexnet", "alexnet_caffe"):  # half a gigabyte of equal numbers is taken for an attack
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
