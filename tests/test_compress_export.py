"""Shipping: every file computes what the model computes, says so with real images, and is timed beside what it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import pocketzoo as pz
from pocketzoo.commands.export import export_command
from pocketzoo.compress import export
from pocketzoo.compress.export import SUFFIXES, calibrations, export_model
from pocketzoo.errors import InvalidRun, InvalidSetting
from pocketzoo.profiler.export import ExportMismatch, export_onnx, run_onnx
from pocketzoo.profiler.files import measure_files
from pocketzoo.profiler.quantise import least_divergent, quantise_onnx
from pocketzoo.profiler.runner import Protocol
from pocketzoo.training.recipe import Recipe

from digit_tasks import digits  # isort: skip

QUICK = Protocol(warmup=1, settle=0, burst=1, rounds=6, seconds=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "lenet5"
    pz.train("lenet5", digits(256, 64), out, Recipe(epochs=4, batch_size=16, augment=False))
    return out


# -- calibration ------------------------------------------------------------------------------------------------------


def counted(values: npt.NDArray[np.float64]) -> tuple[Any, Any, float, float]:
    """As ONNX Runtime collects them: equal bins from -t to t."""
    most = float(np.abs(values).max())
    histogram, edges = np.histogram(values, 4096, range=(-most, most))
    return histogram, edges, float(values.min()), float(values.max())


def test_the_entropy_keeps_a_range_that_is_used_all_over() -> None:
    """256 levels lose nothing of a uniform distribution, and a narrower range would."""
    values = np.random.default_rng(0).uniform(0, 3, 200_000)
    low, high = least_divergent(*counted(values))
    assert low == values.min() == pytest.approx(0, abs=1e-3)
    assert high > 2.9
    low, high = least_divergent(*counted(np.random.default_rng(0).uniform(-2, 2, 200_000)))
    assert (low, high) == pytest.approx((-2, 2), abs=0.1)


def test_the_entropy_cuts_off_what_is_far_away_and_rare() -> None:
    """Half-normal numbers with one of 100: MinMax would leave 2.5 levels of 256 for the deviation of 1."""
    rng = np.random.default_rng(0)
    values = np.append(np.abs(rng.normal(size=200_000)), 100.0)
    low, high = least_divergent(*counted(values))
    assert low >= 0
    assert high < 20
    with_zeros = np.append(values, np.zeros(200_000))  # what a ReLU leaves says nothing of the range
    assert least_divergent(*counted(with_zeros))[1] == pytest.approx(high)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_integers_compute_nearly_the_same_at_any_batch(calibration: str, tmp_path: Path) -> None:
    model, images = net(), torch.randn(70, 3, 9, 9)
    export_onnx(model, (1, 3, 9, 9), tmp_path / "a.onnx")
    quantise_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", images, calibration)
    with torch.no_grad():
        expected = model(images).numpy()
    step = 2 * np.abs(expected).max() / 255
    assert np.abs(run_onnx(tmp_path / "b.onnx", images) - expected).max() < 8 * step
    kinds = {i.name: (i.data_type, list(i.dims)) for i in onnx.load(tmp_path / "b.onnx").graph.initializer}
    assert (onnx.TensorProto.INT8, [8, 3, 3, 3]) in kinds.values()
    assert (onnx.TensorProto.FLOAT, [8]) in kinds.values()  # a scale per output channel


def test_min_max_takes_the_whole_range_of_real_images(tmp_path: Path) -> None:
    """The image's scale is its range over 255 steps."""
    images = torch.rand(64, 3, 9, 9) * 5 - 2
    export_onnx(net(), (1, 3, 9, 9), tmp_path / "a.onnx")
    quantise_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", images)
    graph = onnx.load(tmp_path / "b.onnx").graph
    values = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "images")
    assert float(values[first.input[1]]) == pytest.approx(float(images.max() - images.min()) / 255, rel=1e-5)


def test_a_calibration_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="expected one of minmax, percentile, entropy"):
        quantise_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", None, "kl")


# -- files ------------------------------------------------------------------------------------------------------------


def test_every_format_is_checked_and_timed(run: Path, tmp_path: Path) -> None:
    data = digits(256, 64)
    table = export_model(run, list(SUFFIXES), data, out=tmp_path, protocol=QUICK)
    rows: dict[str, Any] = {row["format"]: row for row in table.to_dict("records")}
    assert {path.name for path in tmp_path.iterdir()} == {f"best{suffix}" for suffix in SUFFIXES.values()}
    images, model = data.info.normalise(data.val.images), pz.load(run)
    right = (model(images).argmax(1) == data.val.labels).double().mean().item()
    assert {row["pytorch_accuracy"] for row in rows.values()} == {right}
    assert {rows[name]["accuracy"] for name in ("onnx", "safetensors", "pt2")} == {right}
    integers, single = rows["onnx-int8"], rows["onnx"]
    classes = run_onnx(tmp_path / "best.int8.onnx", images).argmax(1)
    assert integers["accuracy"] == (classes == data.val.labels.numpy()).mean() > right - 0.1
    assert rows["safetensors"]["difference"] == 0
    assert max(row["difference"] for row in rows.values()) == integers["difference"] < 0.2
    for row in rows.values():
        assert row["speedup"] * row["after_ms"] == pytest.approx(row["before_ms"])
    assert integers["before_ms"] == single["after_ms"]  # in the same rounds
    assert integers["bytes"] < 0.45 * single["bytes"]
    assert torch.equal(pz.load(tmp_path / "best.safetensors")(images), model(images))
    program = torch.export.load(tmp_path / "best.pt2").module()
    assert torch.allclose(program(images[:3]), model(images[:3]), atol=1e-6)  # a batch of another size


def test_an_int8_file_names_classes_as_the_run_does(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    data = digits(256, 64)
    export_model(run, ["onnx-int8"], data, out=tmp_path, protocol=QUICK)
    Image.fromarray(data.val.images[0, 0].numpy()).save(tmp_path / "digit.png")
    [own], [theirs] = (pz.predict(at, [tmp_path / "digit.png"]) for at in (run, tmp_path / "best.int8.onnx"))
    assert own.label == theirs.label


def test_a_packed_file_is_shipped_as_it_was_unpacked(run: Path, tmp_path: Path) -> None:
    data = digits(256, 64)
    packed = pz.compress_model(run, "prune(0.5) | fixed(8)", data=data)
    packed.save(tmp_path / "best.pz")
    export_model(tmp_path / "best.pz", ["onnx", "safetensors"], data, protocol=QUICK)
    images = data.info.normalise(data.val.images)
    expected = packed.model()(images).detach()
    assert np.allclose(run_onnx(tmp_path / "best.onnx", images), expected, atol=1e-4)
    assert torch.equal(pz.load(tmp_path / "best.safetensors")(images), expected)


def test_other_layers_survive_every_way_of_saving(run: Path, tmp_path: Path) -> None:
    """Factors in a layer's place: packed, exported, exported again from there, and compressed again from there."""
    data = digits(256, 64)
    packed = pz.compress_model(run, "svd(0.9)", data=data)
    packed.save(tmp_path / "best.pz")
    images = data.info.normalise(data.val.images)
    expected = packed.model()(images).detach()
    assert packed.compression.edits
    export_model(tmp_path / "best.pz", ["safetensors"], data, protocol=QUICK)
    (tmp_path / "again").mkdir()
    export_model(tmp_path / "best.safetensors", ["safetensors"], data, out=tmp_path / "again", protocol=QUICK)
    assert torch.equal(pz.load(tmp_path / "again" / "best.safetensors")(images), expected)
    again = pz.compress_model(tmp_path / "again" / "best.safetensors", "huffman", data=data)
    assert torch.equal(again.model()(images), expected)
    small = {"data": data, "budget": pz.Budget(macs="10k")}
    with pytest.raises(InvalidRun, match="compressed into other layers"):  # their widths are the factors'
        pz.shrink(tmp_path / "best.pz", **small, method="l1")
    with pytest.raises(InvalidRun, match="compressed into other layers"):
        pz.run_search("lenet5", **small, trials=1, out=tmp_path / "search", weights=tmp_path / "best.pz")


def test_a_file_that_differs_is_not_left(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(path: Path, **_: object) -> nn.Module:
        model = pz.load(path)
        with torch.no_grad():
            next(model.parameters()).mul_(1.01)
        return model

    monkeypatch.setattr(export, "load", damaged)
    with pytest.raises(ExportMismatch, match="differs from the model"):
        export_model(run, ["safetensors"], digits(256, 64), out=tmp_path, protocol=QUICK)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(run: Path, tmp_path: Path) -> None:
    data = digits(256, 64)
    for formats, reason in ((["onx"], "did you mean onnx"), ([], "nothing to export"), (["safetensors"], "is what is")):
        with pytest.raises(InvalidSetting, match=reason):
            export_model(run, formats, data, protocol=QUICK)
    with pytest.raises(InvalidSetting, match="there is no folder"):
        export_model(run, ["onnx"], data, out=tmp_path / "no", protocol=QUICK)
    with pytest.raises(InvalidSetting, match="no calibration 'kl'"):
        export_model(run, ["onnx"], data, out=tmp_path, calibration="kl")
    with pytest.raises(InvalidRun):
        export_model(tmp_path, ["onnx"], data)


def test_the_table_of_calibrations(run: Path) -> None:
    data = digits(256, 64)
    table = calibrations(run, data, images=64)
    assert list(table["calibration"]) == ["fp32", "minmax", "percentile", "entropy"]
    assert table["same"].iloc[0] == 1
    assert table["accuracy"].iloc[0] == pz.evaluate_run(run, data, split="val").accuracy
    assert table["same"].min() > 0.8


def test_files_are_timed_side_by_side(tmp_path: Path) -> None:
    """A network beside one that does its work 30 times over."""
    torch.manual_seed(0)
    for name, layers in (("one", 1), ("many", 30)):
        convolutions = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(layers)]
        export_onnx(nn.Sequential(*convolutions), (1, 16, 24, 24), tmp_path / f"{name}.onnx")
    files = {name: tmp_path / f"{name}.onnx" for name in ("one", "many")}
    found = measure_files(files, (1, 16, 24, 24), QUICK)["models"]
    assert found["one"]["ratio"] == 1
    assert found["many"]["ratio"] > 5


def test_the_command(run: Path, tmp_path: Path) -> None:
    given = [str(run), "--to", "pt2", "--data", "digits", "--out", str(tmp_path), "--json"]
    shown = CliRunner().invoke(export_command, given)
    [row] = json.loads(shown.stdout)
    assert (row["format"], row["file"]) == ("pt2", str(tmp_path / "best.pt2"))
    assert row["accuracy"] == row["pytorch_accuracy"]
