"""The benchmark of compression, on digits: what it writes is what its files are, and a second run finds all done."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pocketzoo.compress.run import compress_model
from pocketzoo.training.data import load_data
from pocketzoo.training.evaluate import evaluate
from pocketzoo.training.saved import load

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, str(BENCHMARKS / "compression_evidence.py"), "--quick", "--runs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    return lines_of(folder)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "compression_evidence_quick.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("evidence")
    run(place)
    return place


def file_of(folder: Path, line: dict[str, Any]) -> Path:
    networks = folder / "compression_evidence_quick"
    if line["trial"] == "parent":
        return networks / "parents" / f"{line['model']}-{line['seed']}.safetensors"
    folder_of_model: Path = networks / line["model"]
    return folder_of_model / f"{line['trial'].replace(' ', '-')}-{line['seed']}.pz"


def test_lines_say_what_the_files_are(folder: Path) -> None:
    data = load_data("digits")
    for line in lines_of(folder):
        file = file_of(folder, line)
        network = load(file)
        if line["kind"] != "test":
            assert line["bytes"] == file.stat().st_size
            assert line["val_error"] == pytest.approx(100 * (1 - evaluate(network, data.val, data.info).accuracy))
        else:
            assert line["test_error"] == pytest.approx(100 * (1 - evaluate(network, data.test, data.info).accuracy))
        if line["kind"] == "trial":
            assert line["nonzeros"] == sum(int(p.count_nonzero()) for p in network.parameters())


def test_the_smallest_within_the_error_is_tested_and_nothing_else(folder: Path) -> None:
    trials = [line for line in lines_of(folder) if line["kind"] == "trial"]
    smallest = min((line for line in trials if line["val_error"] <= 30), key=lambda line: line["bytes"])
    tested = [line["trial"] for line in lines_of(folder) if line["kind"] == "test"]
    assert sorted(tested) == sorted(["parent", smallest["trial"]])
    page = (folder / "compression_evidence_quick.md").read_text()
    assert f"{smallest['bytes']:,}" in page


def test_a_run_cut_short_goes_on(folder: Path) -> None:
    """The last line is lost, its stump stays: only that run is done again, and comes out the same."""
    path = folder / "compression_evidence_quick.jsonl"
    before = lines_of(folder)
    text = path.read_text()
    path.write_text(text[:-20])
    after = run(folder)
    volatile = ("date", "seconds")
    assert [without(line, volatile) for line in after] == [without(line, volatile) for line in before]


def without(line: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in names}


def test_columns_of_deep_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve weights in a row of 64: three levels of 6, 3 and 3 take 1, 2 and 2 bits by Huffman, 1.5 on average."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from compression_columns import deep_compression_columns

    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[::2, 0] = torch.tensor([1.0, 2.0, 1.0, 3.0] * 8)
    packed = compress_model(nn.Sequential(nn.Flatten(), layer), "huffman", input_shape=(1, 1, 8, 8))
    [row] = deep_compression_columns(packed)
    assert (row["weights"], row["nonzeros"], row["weight_bits"]) == (64 * 64, 32, 2)
    words = 32 * 1.5 / 8  # bytes of the code words; a table and the coder's number come on top
    assert words <= row["coded_weight_bits"] * 32 / 8 <= words + 16
    fillers = 31 * math.floor(127 / 31)  # 127 zeros between two weights; none before the first
    assert row["pruned_shared_bits"] == (32 + fillers) * (2 + 5)
    assert row["bytes"] == packed.packed.tensors["1.weight"]
