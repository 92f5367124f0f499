"""pocketzoo compress and unpack, from a training to files that every other command reads."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

import pocketzoo as pz
from pocketzoo.cli import main
from pocketzoo.leaderboards import records
from pocketzoo.training.result import Result

STRONG, WEAK = "prune(0.9) | kmeans(4)", "svd(0.99) | half | huffman"


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    place = tmp_path_factory.mktemp("compress")
    pz.train("lenet_300_100", "digits", place / "run", pz.Recipe(epochs=2), resolution=8)
    return place / "run", place / "small", json.loads(compress(place / "run", place / "small"))


def compress(parent: Path, out: Path) -> str:
    return run("compress", str(parent), "--recipe", STRONG, "--recipe", WEAK, "--data", "digits", "--out", str(out),
               "--json")  # fmt: skip


def test_the_smallest_file_within_the_tolerance_is_kept_and_tested(folders: tuple[Path, Path, Any]) -> None:
    parent, out, said = folders
    recipes = pd.read_csv(out / "recipes.csv")
    good = recipes[recipes["validation"] >= recipes["parent_validation"] - 0.01]
    kept = recipes[recipes["chosen"]].iloc[0]
    assert len(recipes[recipes["chosen"]]) == 1
    assert kept["bytes"] == (good["bytes"].min() if len(good) else kept["bytes"]) == (out / "best.pz").stat().st_size
    result = Result.from_json((out / "result.json").read_text())
    score = pz.evaluate_run(out, "digits", split="test")
    assert result.accuracy == {"validation": kept["validation"], "test": score.accuracy}
    assert result.costs["file_bytes"] == kept["bytes"]
    before = Result.from_json((parent / "result.json").read_text())
    assert result.provenance["parent"]["accuracy"] == before.accuracy
    assert result.provenance["compression"]["recipe"] == kept["recipe"]
    assert said["result"] == json.loads(result.to_json())


def test_a_finished_run_is_not_computed_again(folders: tuple[Path, Path, Any]) -> None:
    parent, out, said = folders
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert json.loads(compress(parent, out)) == said
    assert files == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_what_was_stopped_goes_on(folders: tuple[Path, Path, Any]) -> None:
    parent, out, said = folders
    (out / "result.json").unlink()
    first = (out / "recipes/1/steps.csv").stat().st_mtime_ns
    (out / "recipes/2/steps.csv").unlink()
    again = json.loads(compress(parent, out))
    assert (out / "recipes/1/steps.csv").stat().st_mtime_ns == first
    assert again["recipes"] == said["recipes"]
    other = run("compress", str(parent), "--recipe", "huffman", "--data", "digits", "--out", str(out), code=2)
    assert "another run" in other


def test_layers_add_up_to_the_file(folders: tuple[Path, Path, Any]) -> None:
    _, out, _ = folders
    layers = pd.read_csv(out / "report.csv").set_index("layer")
    total, parts = layers.loc["all"], layers.drop("all")
    for column in ("params", "nonzeros", "macs", "effective_macs"):
        assert parts[column].sum() == total[column]
    assert parts["bytes"].sum() < total["bytes"] == (out / "best.pz").stat().st_size


def test_the_leaderboard_takes_it(folders: tuple[Path, Path, Any], tmp_path: Path) -> None:
    _, out, _ = folders
    assert records.add(records.read(out), tmp_path) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_unpacked_files_compute_the_same(folders: tuple[Path, Path, Any], tmp_path: Path, number: int) -> None:
    _, out, _ = folders
    packed = out / f"recipes/{number}/best.pz"  # the second has other layers than its parent
    expected = pz.load(packed)
    run("unpack", str(packed), "--to", str(tmp_path / "model.safetensors"))
    again = pz.load(tmp_path / "model.safetensors")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(again(x), expected(x))
    run("unpack", str(packed), "--to", str(tmp_path / "model.onnx"))
    assert (tmp_path / "model.onnx").stat().st_size > 0
    refused = run("unpack", str(packed), "--to", str(tmp_path / "model.onnx"), code=2)
    assert "there already" in refused
    assert "expected a name" in run("unpack", str(packed), "--to", str(tmp_path / "model.pt"), code=2)


def test_help_lists_the_passes() -> None:
    listed = run("compress", "--recipe", "help")
    assert "prune" in listed
    assert "sparsity=0.9" in listed
