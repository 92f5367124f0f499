"""Packed files that are damaged, cut off, hostile or too new: a typed error, never a crash or a hang.

Everything runs in a process of its own whose memory is limited, so that what would eat the machine fails here.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pocketzoo as pz
from pocketzoo import Architecture
from pocketzoo.errors import CorruptFile, InvalidRun, PocketzooError
from pocketzoo.packing import container, forms
from pocketzoo.packing.packed import pack_model, unpack_model

MEMORY = 1 << 30  # bytes beyond what a process with torch takes
SECONDS = 0.0055  # of a processor for each file
NAMES = ("lenet5", "lenet_300_100")


def small(name: str = "lenet5", **options: Any) -> bytes:
    """A pruned, shared LeNet for tiny images, with every form of tensor and coder in it."""
    architecture = Architecture.of(name, num_classes=3, in_channels=1, resolution=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = architecture.with_widths(dict.fromkeys(architecture.graph().groups, 4)).build()
    generator = torch.Generator().manual_seed(0)
    hints: dict[str, forms.Hint] = {}
    with torch.no_grad():
        for number, (key, weight) in enumerate(model.named_parameters()):
            weight.copy_(torch.round(weight * 30) / 8)
            weight.mul_(torch.rand(weight.shape, generator=generator) < 0.4).add_(0.0)
            if number == 2:
                weight.copy_(torch.randint(-90, 90, weight.shape, generator=generator) * 0.01)
                hints[key] = forms.Scaled(np.array([0.01], np.float32))
            if number == 4:
                weight.copy_(torch.randn(weight.shape, generator=generator))
    architecture = architecture.with_widths(dict.fromkeys(architecture.graph().groups, 4))
    header = {"recipe": "prune | kmeans", "data": {"classes": ["a", "b", "c"]}}
    return pack_model(model, architecture, hints=hints, header=header, **options).data


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits, changed bytes, cut, spliced, doubled."""
    changed = bytearray(data)
    kind = rng.integers(6)
    a, b = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
    if kind == 0:
        for _ in range(rng.integers(1, 4)):
            changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        changed[rng.integers(len(data))] = rng.integers(256)
    elif kind == 2:
        del changed[a:]
    elif kind == 3:
        del changed[a:b]
    elif kind == 4:
        changed[a:a] = data[a:b][:64]
    else:
        changed[a:b] = rng.integers(0, 256, b - a).astype(np.uint8).tobytes()
    return bytes(changed)


def behind_checksums(data: bytes, rng: np.random.Generator) -> bytes:
    """A header or tensors that are changed and packed again, so that every checksum is right."""
    header, tensors = container.unpack(data)
    if rng.random() < 0.35:
        header = json.loads(json.dumps(header), object_hook=lambda entry: dict(entry))
        place, key = list(_places(header))[int(rng.integers(len(list(_places(header)))))]
        place[key] = STRANGE[int(rng.integers(len(STRANGE)))]
    else:
        number = int(rng.integers(len(tensors)))
        tensors[number] = mutated(tensors[number] or b"\0", rng)
        if rng.random() < 0.2:
            tensors[number] = bytes([int(rng.integers(6))]) + tensors[number][1:]
    return container.pack(header, tensors)


STRANGE: list[Any] = [
    None, True, -1, 0, 10**9, 2**63, 1e300, "", "x" * 100, [], [[]], {}, {"a": 1}, [1, 2], "os:system", 0.5,
    [10**9] * 3,
]  # fmt: skip


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield value, key
        yield from _places(entry)


def attempt(data: bytes) -> str:
    """What reading it says: nothing, or the name of a typed error; any other exception is a failure."""
    try:
        unpack_model(data)
    except PocketzooError as error:
        return type(error).__name__
    return ""


def main() -> None:
    """The fuzzing, in a process with little memory."""
    with Path("/proc/self/statm").open() as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    rng, files = np.random.default_rng(0), [small(name) for name in NAMES]
    files += [small(NAMES[0], coder="huffman"), small(NAMES[0], coder="ans")]
    said: dict[str, int] = {}
    start, slowest = time.process_time(), 0.0
    for number in range(int(sys.argv[1])):
        mutate = mutated if number % 2 else behind_checksums
        data = mutate(files[number % len(files)], rng)
        began = time.process_time()
        outcome = attempt(data)
        slowest = max(slowest, time.process_time() - began)
        said[outcome] = said.get(outcome, 0) + 1
    print(json.dumps({"said": said, "seconds": time.process_time() - start, "slowest": slowest}))


@pytest.mark.parametrize("mutations", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_damaged_files(mutations: int) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(mutations)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["said"]) <= {"", "CorruptFile", "InvalidRun"}
    assert sum(found["said"].values()) == mutations
    assert found["said"]["CorruptFile"] > 0.7 * mutations
    assert found["seconds"] < SECONDS * mutations
    assert found["slowest"] < 2


def test_every_cut_and_every_flipped_byte_is_noticed() -> None:
    data = small()
    for end in range(0, len(data), 7):
        with pytest.raises(CorruptFile):
            unpack_model(data[:end])
    for place in range(0, len(data), 11):
        with pytest.raises(CorruptFile):
            unpack_model(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
    with pytest.raises(CorruptFile, match="after the last"):
        unpack_model(data + b"\0")


def test_a_newer_version_says_so() -> None:
    data = bytearray(small())
    data[4] = container.VERSION + 1
    with pytest.raises(CorruptFile, match="update pocketzoo"):
        unpack_model(bytes(data))


def hostile(**changes: Any) -> bytes:
    header, tensors = container.unpack(small())
    architecture = {**header["architecture"], **{key: value for key, value in changes.items() if key != "edits"}}
    edits = {"edits": changes["edits"]} if "edits" in changes else {}
    return container.pack({**header, "architecture": architecture, **edits}, tensors)


BY = ["linear", 1 << 20, 1 << 20, True]
HOSTILE = {
    "billions of channels": {"widths": {"conv1": 10**12}},
    "billions of classes": {"num_classes": 10**9},
    "a huge picture": {"resolution": 1 << 30},
    "a depth of a million": {"family": "cifar_resnet", "settings": {"depth": 6_000_002}, "widths": None},
    "a depth of thousands": {"family": "cifar_resnet", "settings": {"depth": 60_002}, "widths": None},
    "a family that is a number": {"family": 3},
    "settings that are a list": {"settings": [1]},
    "no such family": {"family": "lenet6"},
    "a huge layer": {"edits": [{"replace": "hidden", "by": BY}]},
    "huge layers inside each other": {"edits": [{"replace": "hidden", "by": ["sequence", BY, ["sum", BY, BY]]}]},
    "a huge input": {"edits": [{"widths": {"hidden": 2}, "input": [1, 1, 1 << 20, 1 << 20]}]},
    "huge widths": {"edits": [{"widths": {"hidden": 1 << 40}, "input": [1, 1, 8, 8]}]},
    "an edit of nothing": {"edits": [{}]},
    "an edit in no place": {"edits": [{"replace": "nowhere.at.all", "by": ["identity"]}]},
    "a parameter replaced": {"edits": [{"replace": "hidden.weight", "by": ["identity"]}]},
    "the whole model replaced": {"edits": [{"replace": "", "by": ["identity"]}]},
    "a layer of another kind": {"edits": [{"replace": "hidden", "by": ["system", "rm"]}]},
    "edits that are text": {"edits": "widths"},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers(changes: dict[str, Any]) -> None:
    start = time.process_time()
    with pytest.raises(CorruptFile):
        unpack_model(hostile(**changes))
    assert time.process_time() - start < 3


def nested(depth: int) -> list[Any]:
    value: list[Any] = ["identity"]
    for _ in range(depth):
        value = ["sequence", value]
    return value


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"streams":' + b"[" * 100_000, b"\xff", b"7", b"{}", b'{"streams":3}']
)
def test_headers_that_are_no_headers(text: bytes) -> None:
    body = forms.deflate(text, container.DICTIONARY)
    checksum = container.zlib.crc32(body).to_bytes(4, "little")
    with pytest.raises(CorruptFile):
        unpack_model(container.MAGIC + b"\1" + container.varint(len(body)) + checksum + body)


def test_deep_nesting() -> None:
    with pytest.raises(CorruptFile):
        unpack_model(hostile(edits=[{"replace": "hidden", "by": nested(400)}]))
    with pytest.raises(CorruptFile):
        unpack_model(hostile(settings={"kernel": nested(400)}))


def test_a_header_that_inflates_without_end_is_stopped() -> None:
    body = forms.deflate(b" " * (container.MOST_HEADER + 1), container.DICTIONARY)
    checksum = container.zlib.crc32(body).to_bytes(4, "little")
    with pytest.raises(CorruptFile, match="deflated"):
        unpack_model(container.MAGIC + b"\1" + container.varint(len(body)) + checksum + body)


def test_a_few_bytes_do_not_become_gigabytes() -> None:
    big = Architecture.of("vgg16")  # 553 MB
    with torch.device("meta"):
        names = len(big.build().state_dict())
    header = {"architecture": json.loads(big.to_json())}
    with pytest.raises(CorruptFile, match="so small a file"):
        unpack_model(container.pack(header, [b"\0\0\0\0\0"] * names))


def test_a_foreign_networks_code_is_not_imported_unasked() -> None:
    header, tensors = container.unpack(small())
    header["architecture"] |= {"family": "this:does_not_matter", "widths": None}
    with pytest.raises(InvalidRun, match="trust"):
        unpack_model(container.pack(header, tensors))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match="cannot be read"):
        pz.load_packed(tmp_path / "nothing.pz")
    (tmp_path / "empty.pz").write_bytes(b"")
    with pytest.raises(CorruptFile, match=r"empty\.pz"):
        pz.load_packed(tmp_path / "empty.pz")


def test_into_another_module_is_refused() -> None:
    with pytest.raises(CorruptFile):
        unpack_model(small(), into=nn.Linear(3, 3))


if __name__ == "__main__":
    main()
