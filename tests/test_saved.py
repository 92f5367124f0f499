"""What a run leaves behind: it loads, evaluates and predicts alike in PyTorch and ONNX, and damage is said."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pocketzoo import Architecture
from pocketzoo.errors import InvalidData, InvalidRun, InvalidSetting, WeightsMismatch
from pocketzoo.training.data import DataInfo, DataSet, load_data
from pocketzoo.training.folder import open_folder, write_text
from pocketzoo.training.recipe import Recipe
from pocketzoo.training.result import Result, provenance
from pocketzoo.training.run import evaluate_run, predict, train
from pocketzoo.training.saved import load, load_with_info, save_model, save_weights

RECIPE = Recipe(epochs=2, batch_size=64, lr=0.02)
CLASSES = ("dark", "light", "red")


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int], noise: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    image.putpixel((noise % size[0], noise % size[1]), (noise % 255, 80, 9))
    image.save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of odd-sized pictures that differ in colour."""
    root = tmp_path_factory.mktemp("pictures")
    for name, colour in zip(CLASSES, ((20, 20, 20), (230, 230, 230), (220, 20, 20)), strict=True):
        for i in range(24):
            paint(root / name / f"{i}.png", colour, (16 + i % 5, 14 + i % 3), i)
    return root


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "first"
    train("lenet5", folder, out, Recipe(epochs=12, batch_size=16, lr=0.02), resolution=14)
    return out


def test_the_folder_says_all_that_a_user_needs(run: Path, folder: Path) -> None:
    assert {"best.json", "best.safetensors", "best.onnx", "result.json", "run.json"} == {p.name for p in run.iterdir()}
    record = json.loads((run / "best.json").read_text())
    assert record["data"]["classes"] == list(CLASSES)
    assert (record["family"], record["num_classes"], record["resolution"]) == ("lenet5", 3, 14)
    model, architecture, info = load_with_info(run)
    assert info == load_data(folder, resolution=14).info
    assert architecture == Architecture.of("lenet5", num_classes=3, in_channels=3, resolution=14)
    (entry,) = (p for p in onnx.load(run / "best.onnx").metadata_props if p.key == "pocketzoo")
    assert json.loads(entry.value) == record
    assert not model.training


def test_the_result_is_what_the_loaded_model_scores(run: Path, folder: Path) -> None:
    result = Result.from_json((run / "result.json").read_text())
    assert result.accuracy["test"] == evaluate_run(run, folder).accuracy > 0.9
    assert Result.from_json(result.to_json()) == result
    assert result.provenance["data_hash"] == load_data(folder, resolution=14).hash
    assert result.provenance["torch"] == torch.__version__


def test_predictions_agree_between_runtimes_and_know_the_class_names(run: Path, tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (225, 25, 25), (50, 31), 3)
    paint(tmp_path / "b.jpg", (10, 15, 10), (14, 14), 5)
    Image.new("L", (20, 40), 240).save(tmp_path / "c.png")  # grey, where the model wants colour
    images = [tmp_path / name for name in ("a.png", "b.jpg", "c.png")]
    by_torch, by_onnx = predict(run, images), predict(run, images, runtime="onnx")
    assert [p.label for p in by_torch] == ["red", "dark", "light"]
    assert [(p.path, p.label) for p in by_onnx] == [(p.path, p.label) for p in by_torch]
    for ours, theirs in zip(by_torch, by_onnx, strict=True):
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-5)
    assert predict(run / "best.onnx", images) == by_onnx
    assert predict(run / "best.safetensors", images) == by_torch


def test_training_again_reads_the_finished_result(run: Path, folder: Path) -> None:
    before = (run / "best.safetensors").stat().st_mtime_ns
    again = train("lenet5", folder, run, Recipe(epochs=12, batch_size=16, lr=0.02), resolution=14)
    assert again == Result.from_json((run / "result.json").read_text())
    assert (run / "best.safetensors").stat().st_mtime_ns == before


def test_another_run_is_never_overwritten(run: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRun, match="holds another run: its recipe"):
        train("lenet5", folder, run, RECIPE, resolution=14)
    model, architecture, info = load_with_info(run)
    with pytest.raises(InvalidRun, match="already holds a trained model"):
        save_model(run, model, architecture, info)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidRun, match=r"holds 'notes\.txt'"):
        open_folder(tmp_path, {"kind": "train"})


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRun, match="Not a directory"):
        open_folder(tmp_path / "file" / "out", {})

    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "kept.json", "old")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InvalidRun, match="No space left on device"):
        write_text(tmp_path / "kept.json", "new")
    assert (tmp_path / "kept.json").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "kept.json"]


class TestDamage:
    def test_truncated_weights(self, run: Path, tmp_path: Path) -> None:
        content = (run / "best.safetensors").read_bytes()
        for length in (0, 5, 200, len(content) - 7):
            file = tmp_path / "cut.safetensors"
            file.write_bytes(content[:length])
            with pytest.raises(WeightsMismatch, match="is damaged"):
                load(file)

    def test_weights_of_another_model(self, run: Path, tmp_path: Path) -> None:
        _, architecture, info = load_with_info(run)
        other = Architecture.of("lenet5", num_classes=3, in_channels=3, resolution=16).build()
        save_weights(tmp_path / "wrong.safetensors", other, architecture, info)
        with pytest.raises(WeightsMismatch, match=r"'hidden\.weight' is \[500, .*\], the model's is \[500, "):
            load(tmp_path / "wrong.safetensors")

    def test_files_of_others(self, tmp_path: Path) -> None:
        save_file({"w": torch.ones(3)}, tmp_path / "theirs.safetensors")
        with pytest.raises(InvalidRun, match="not written by pocketzoo"):
            load(tmp_path / "theirs.safetensors")
        with pytest.raises(InvalidRun, match=r"no best\.safetensors"):
            load(tmp_path)
        with pytest.raises(InvalidRun, match="there is no"):
            load(tmp_path / "nowhere")

    def test_corrupt_onnx(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "best.onnx").write_bytes((run / "best.onnx").read_bytes()[:99])
        with pytest.raises(InvalidRun, match="not a readable ONNX file"):
            predict(tmp_path, [], runtime="onnx")

    def test_images_and_runtimes_that_are_not(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "text.png").write_text("hello")
        for name in ("text.png", "missing.png"):
            with pytest.raises(InvalidData, match=name):
                predict(run, [tmp_path / name])
        with pytest.raises(InvalidSetting, match="no runtime 'tflite'"):
            predict(run, [], runtime="tflite")


def test_data_of_other_classes_is_refused(run: Path) -> None:
    with pytest.raises(InvalidData, match="digits has 10 classes"):
        evaluate_run(run, load_data("digits", resolution=14))


def linear(num_classes: int, in_channels: int, resolution: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * resolution**2, num_classes))


def test_foreign_code_is_imported_only_when_trusted(tmp_path: Path) -> None:
    digits: DataSet = load_data("digits")
    architecture = Architecture.of(f"{__name__}:linear", num_classes=10, in_channels=1, resolution=8)
    model = architecture.build()
    save_weights(tmp_path / "own.safetensors", model, architecture, digits.info)
    with pytest.raises(InvalidRun, match="if you trust it"):
        load(tmp_path / "own.safetensors")
    loaded = load(tmp_path / "own.safetensors", trust=[f"{__name__}:linear"])
    images = digits.info.normalise(digits.val.images)
    torch.testing.assert_close(loaded(images), model(images))


def test_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = load_data("digits", subset=300)
    with monkeypatch.context() as patch:
        patch.setattr(
            "pocketzoo.training.run.save_model", lambda *args, **settings: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            train("lenet_300_100", digits, tmp_path / "out", RECIPE)
    assert (tmp_path / "out" / "checkpoint.safetensors").exists()
    result = train("lenet_300_100", digits, tmp_path / "out", RECIPE)
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()
    assert result.provenance["seconds"] > 0


def test_descriptions_travel() -> None:
    info = DataInfo("x", ("a", "b"), 3, 32, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert DataInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert provenance(info, seed=4, seconds=1.5)["seed"] == 4
    with pytest.raises(InvalidRun):
        Result.from_json("{}")
