"""pocketzoo compress and unpack, from a training to files that every other command reads."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import pocketzoo as pz
from pocketzoo.cli import main
from pocketzoo.training.data import load_data
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


def test_it_says_when_every_recipe_costs_too_much(folders: tuple[Path, Path, Any], tmp_path: Path) -> None:
    parent, _, _ = folders
    common = ["compress", str(parent), "--data", "digits", "--recipe"]
    said = run(*common, "prune(0.99)", "--recipe", "prune(0.995)", "--out", str(tmp_path / "dead"))
    recipes = pd.read_csv(tmp_path / "dead" / "recipes.csv")
    assert (recipes["validation"] < recipes["parent_validation"] - 0.01).all()
    assert recipes["validation"][recipes["chosen"]].item() == recipes["validation"].max()
    assert "every recipe costs more accuracy than --tolerance" in said
    assert "--tolerance" not in run(*common, "half", "--out", str(tmp_path / "alive"))


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


def test_the_leaderboard_shows_it_beside_its_parent(folders: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """From its own record alone: the parent's is in it."""
    parent, out, _ = folders
    run("leaderboard", "add", str(out), "--into", str(tmp_path / "records"))
    run("leaderboard", "build", "--records", str(tmp_path / "records"), "--out", str(tmp_path / "out"))
    with (tmp_path / "out" / "leaderboard.csv").open() as file:
        mine = [row for row in csv.DictReader(file) if row["dataset"] == "digits"]
    dense, small = (json.loads((folder / "result.json").read_text()) for folder in (parent, out))
    name = "lenet_300_100, resolution 8"
    label = f"{name}, {small['provenance']['compression']['recipe']}"
    by_label = {row["network"]: row for row in mine}
    assert set(by_label) == {name, label}
    for column in ("params", "macs", "effective_macs"):
        assert float(by_label[label][column]) == small["costs"][column]
    assert float(by_label[label]["size_bytes"]) == (out / "best.pz").stat().st_size
    assert float(by_label[name]["size_bytes"]) == 4 * dense["costs"]["params"]
    assert float(by_label[label]["top1_percent"]) == pytest.approx(100 * small["accuracy"]["test"], rel=1e-5)
    assert float(by_label[name]["top1_percent"]) == pytest.approx(100 * dense["accuracy"]["test"], rel=1e-5)
    assert f"({dense['accuracy']['test']:.2%} before)" in by_label[label]["top1_percent_source"]
    assert label.replace("|", "\\|") in (tmp_path / "out" / "leaderboard.md").read_text()
    assert json.dumps(label) in (tmp_path / "out" / "index.html").read_text()


def test_a_file_that_is_not_the_records_is_refused(folders: tuple[Path, Path, Any], tmp_path: Path) -> None:
    _, out, _ = folders
    shutil.copytree(out, tmp_path / "copy", ignore=shutil.ignore_patterns("recipes"))
    with (tmp_path / "copy" / "best.pz").open("ab") as file:
        file.write(b"more")
    size = (out / "best.pz").stat().st_size
    said = run("leaderboard", "add", str(tmp_path / "copy"), "--into", str(tmp_path / "records"), code=2)
    assert f"has {size + 4:,} bytes, its result.json says {size:,}" in said
    assert not (tmp_path / "records").exists()


@pytest.fixture(scope="module")
def models(folders: tuple[Path, Path, Any], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run's folder, a compression's, its file, and a file of its own with factors in a layer's place."""
    parent, out, _ = folders
    lone = tmp_path_factory.mktemp("lone") / "lone.pz"
    packed = pz.compress_model(parent, "svd(0.9) | half", data="digits")
    assert packed.compression.edits
    packed.save(lone)
    return [str(parent), str(out), str(out / "best.pz"), str(lone)]


def test_runs_and_packed_files_are_measured_as_what_they_are(
    folders: tuple[Path, Path, Any], models: list[str]
) -> None:
    found = json.loads(run("measure", *models, "--seconds", "0.05", "--rounds", "6", "--json"))
    assert [record["model"] for record in found] == models
    assert {tuple(record["input_shape"]) for record in found} == {(1, 1, 8, 8)}
    dense = json.loads((folders[0] / "result.json").read_text())["architecture"]
    recipe = json.loads((folders[1] / "result.json").read_text())["provenance"]["compression"]["recipe"]
    small = {**dense, "compression": [recipe]}
    assert [record["architecture"] for record in found] == [dense, small, small, None]


def test_runs_and_packed_files_are_counted(models: list[str]) -> None:
    counted = {path: json.loads(run("profile", path, "--json")) for path in models}
    for path, said in counted.items():
        expected = pz.trace(pz.load(path), (1, 1, 8, 8)).price()
        assert (said["name"], said["costs"]["macs"], said["costs"]["params"]) == (path, expected.macs, expected.params)
    assert counted[models[3]]["costs"]["macs"] < counted[models[0]]["costs"]["macs"]
    assert "leave out --num-classes" in run("profile", models[2], "--num-classes", "3", code=2)


def test_runs_and_packed_files_name_classes(models: list[str], tmp_path: Path) -> None:
    data = load_data("digits", resolution=8)
    Image.fromarray(data.test.images[0, 0].numpy()).save(tmp_path / "digit.png")
    for path in models:
        [said] = json.loads(run("predict", path, str(tmp_path / "digit.png"), "--json"))
        shares = pz.load(path)(data.info.normalise(data.test.images[:1])).softmax(1)[0].detach()
        assert said["label"] == data.classes[int(shares.argmax())]
        assert said["probability"] == pytest.approx(float(shares.max()), rel=1e-4)


@pytest.mark.parametrize("command", ["measure", "profile", "predict"])
def test_what_is_no_run_is_said_in_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    more = ["a.png"] if command == "predict" else []
    assert "there is no runs/none" in run(command, "runs/none", *more, code=2)
    said = run(command, str(tmp_path / "empty"), *more, code=2)
    assert "holds no best.safetensors" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_unpacked_files_compute_the_same(folders: tuple[Path, Path, Any], tmp_path: Path, number: int) -> None:
    _, out, _ = folders
    packed = out / f"recipes/{number}/best.pz"
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


def test_onnx_runtime_is_told_to_unpack_first(folders: tuple[Path, Path, Any], tmp_path: Path) -> None:
    packed = tmp_path / "best.pz"
    shutil.copyfile(folders[1] / "best.pz", packed)
    picture = tmp_path / "a.png"
    Image.new("L", (8, 8)).save(picture)
    for model in (tmp_path, packed):
        said = run("predict", str(model), str(picture), "--runtime", "onnx", code=2)
        assert f"unpack {packed} --to {packed.with_suffix('.onnx')}" in said
    run("unpack", str(packed), "--to", str(packed.with_suffix(".onnx")))
    assert run("predict", str(packed), str(picture), "--runtime", "onnx")


def test_help_lists_the_passes() -> None:
    listed = run("compress", "--recipe", "help")
    assert "prune" in listed
    assert "sparsity=0.9" in listed
