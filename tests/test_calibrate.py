"""Calibrating: the plan, real measurements of tiny networks, where a pass's time goes, and the command."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calibrations import Branches, graph_of
from click.testing import CliRunner
from torch import nn

from pocketzoo import Architecture, DeviceFailed, InvalidRun, UnknownDevice
from pocketzoo.cli import main
from pocketzoo.profiler import fit as fitting
from pocketzoo.profiler import joint
from pocketzoo.profiler import samples as measuring
from pocketzoo.profiler.calibration import calibrate
from pocketzoo.profiler.latency import calibration_folder, latency_model
from pocketzoo.profiler.operator_features import multiplies
from pocketzoo.profiler.plan import MOST_MACS, probes
from pocketzoo.profiler.samples import read_samples, samples
from pocketzoo.profiler.timeline import eager_timeline, onnx_timeline

SHORT, LONG = 10, 1e6  # networks; seconds or minutes


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POCKETZOO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def tiny(seed: int, first: int = 0) -> Iterator[tuple[Architecture, Any]]:
    """A plan of networks that take microseconds; no two alike."""
    for number in range(first, 10_000):
        base = Architecture.of("calibrations:small", num_classes=10, in_channels=3, resolution=8 + number % 5)
        arch = base.with_widths({"stem": 4 + number % 7, "expand": 4 + number // 7})
        yield arch, arch.graph()


def short(seed: int, first: int = 0) -> Iterator[tuple[Architecture, Any]]:
    """A plan that ends by itself, however slow the machine."""
    return islice(tiny(seed, first), SHORT - first)


@pytest.fixture
def tiny_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "probes", tiny)
    monkeypatch.setattr(fitting, "LEAST_SAMPLES", 8)
    monkeypatch.setattr(joint, "LEAST_OPERATORS", 4)
    monkeypatch.setattr(fitting, "FOLDS", 2)


# -- the plan ------------------------------------------------------------------------------------------------------


def test_the_plan_is_valid_varied_and_the_same_every_time() -> None:
    first = list(islice(probes(3), 4))
    again = next(probes(3, first=2))
    assert again[0] == first[2][0]  # what stopped goes on where it was
    assert len({arch.family for arch, _ in first}) > 1
    for arch, graph in first:
        assert arch.widths is not None
        assert graph.price().macs <= MOST_MACS
        assert all(width >= 1 for width in arch.widths.values())


# -- measuring -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_plan")
@pytest.mark.parametrize("runtime", ["eager", "onnxruntime"])
def test_a_stopped_calibration_goes_on_where_it_was(tmp_path: Path, runtime: str) -> None:
    path = tmp_path / "samples.jsonl"
    told: list[int] = []
    for count in (1, 2):
        found = samples("cpu", runtime, 1, 0.0, path, tell=lambda networks, seconds: told.append(networks))
        assert [sample.number for sample in found] == list(range(count))
    assert told == [1, 2]
    assert [sample.number for sample in read_samples(path)] == [0, 1]
    for sample, (arch, graph) in zip(found, tiny(0), strict=False):
        assert sample.architecture == arch
        operators = graph.operators()
        assert len(sample.operator_ms) == len(operators)
        assert all(ms > 0 for ms, op in zip(sample.operator_ms, operators, strict=True) if multiplies(op))
        assert sample.total_ms > 0 < sample.reference_ms


@pytest.mark.usefixtures("tiny_plan")
def test_a_calibration_prices_what_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "probes", short)
    model, path = calibrate("cpu", "eager", seconds=LONG)
    assert path.parent == calibration_folder()
    assert model.error.judged_on.startswith("cross-validation over")
    assert model.versions == {"torch": torch.__version__}
    found = latency_model("cpu")
    assert found.runtime == "eager"
    _, graph = next(tiny(0))
    assert found.predict(graph)[0] == pytest.approx(model.predict(graph)[0])
    assert found.predict(graph)[0] > 0
    assert len(read_samples(path.with_suffix(".samples.jsonl"))) == SHORT
    monkeypatch.setattr(measuring, "probes", tiny)
    calibrate("cpu", "eager", seconds=0.0)
    assert len(read_samples(path.with_suffix(".samples.jsonl"))) == SHORT + 1
    with pytest.raises(InvalidRun, match="1 networks were measured"):
        calibrate("cpu", "eager", seconds=0.0, again=True)
    assert path.exists()


@pytest.mark.parametrize(
    ("device", "runtime", "says"),
    [
        ("cpu", "openvino", "no calibration for 'openvino'"),
        ("pixel1", None, "names no machine"),
        ("cuda", "onnxruntime", "no calibration of onnxruntime on cuda"),
        ("ssh://pi@board", "eager", "no calibration of eager on ssh://pi@board"),
    ],
)
def test_what_cannot_be_calibrated(device: str, runtime: str | None, says: str) -> None:
    with pytest.raises(UnknownDevice, match=says) as caught:
        calibrate(device, runtime, seconds=0.0)
    assert "\n" not in str(caught.value)


# -- where the time goes -------------------------------------------------------------------------------------------


def node(name: str, output: list[int], weight: list[int] | None, ms: float, op: str = "Conv") -> dict[str, Any]:
    inputs = [[1, 3, 6, 6]] if weight is None else [[1, 3, 6, 6], weight]
    return {"op": op, "name": name, "inputs": inputs, "output": output, "ms": ms}


NODES = {
    "one": node("one", [1, 8, 6, 6], [8, 3, 1, 1], 1.0),
    "first": node("first", [1, 8, 6, 6], [8, 3, 3, 3], 2.0),
    "second": node("second", [1, 8, 6, 6], [8, 3, 3, 3], 3.0),
    "wide": node("wide", [1, 16, 6, 6], [16, 3, 3, 3], 4.0),  # twelve channels, padded to a block
    "head": node("head", [1, 10], [36, 10], 5.0, "Gemm"),
}


def of_modules(graph: Any, operator_ms: Any) -> dict[str, float]:
    named = zip(graph.operators(), operator_ms, strict=True)
    return {operator.name: float(ms) for operator, ms in named if multiplies(operator)}


@pytest.mark.parametrize(
    "order", ["one first second wide head", "wide first one second head", "first second wide one head"]
)
def test_branches_that_run_in_another_order_keep_their_times(order: str) -> None:
    """Which is which follows from the shapes; the two that are alike stand in their order."""
    graph = graph_of(Branches(), 6)
    nodes = [NODES[name] for name in order.split()]
    timeline = onnx_timeline(nodes, graph, total_ms=20.0, reference_ms=1.0)
    assert of_modules(graph, timeline.operator_ms) == {name: own["ms"] for name, own in NODES.items()}
    assert (timeline.total_ms, timeline.reference_ms) == (20.0, 1.0)


def test_packed_weights_and_what_the_runtime_adds() -> None:
    """A node whose weight is not listed, copies between layouts, a normalisation run as a depthwise convolution."""
    graph = graph_of(Branches(), 6)
    packed = {**NODES, "one": {**NODES["one"], "inputs": [[1, 3, 6, 6]]}}
    extra = [
        node("reorder", [1, 16, 6, 6], None, 0.25, "ReorderOutput"),
        node("norm", [1, 36, 6, 6], [36, 1, 1, 1], 0.5),
    ]
    timeline = onnx_timeline([*packed.values(), *extra], graph, 20.0, 1.0)
    assert of_modules(graph, timeline.operator_ms) == {name: own["ms"] for name, own in NODES.items()}
    assert sum(timeline.besides.values()) == pytest.approx(0.75)


def test_a_pass_that_is_not_the_traced_one_is_refused() -> None:
    graph = graph_of(Branches(), 6)
    fewer = [own for name, own in NODES.items() if name != "one"]
    with pytest.raises(DeviceFailed, match="4 convolutions and linear layers, not 5"):
        onnx_timeline(fewer, graph, 20.0, 1.0)
    other = [*fewer, node("other", [1, 8, 3, 3], [8, 3, 1, 1], 1.0)]
    with pytest.raises(DeviceFailed, match=r"other with output .* is no traced operator"):
        onnx_timeline(other, graph, 20.0, 1.0)


def test_the_eager_pass_is_cut_into_the_traced_operators() -> None:
    model = Branches().eval()
    timeline = eager_timeline(model, graph_of(model, 6), lambda: 1.0, 1, rounds=1)
    assert len(timeline.operator_ms) == len(timeline.operators)
    assert (np.asarray(timeline.operator_ms) > 0).all()


def test_another_eager_pass_is_refused() -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()).eval()
    with pytest.raises(DeviceFailed, match=r"runs sigmoid .* where relu was traced"):
        eager_timeline(other, graph_of(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())), lambda: 1.0, 1, rounds=1)


# -- the command ---------------------------------------------------------------------------------------------------


def command(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["calibrate", *arguments])


def test_help() -> None:
    text = command("--help").stdout
    assert text.rstrip().splitlines()[-1].strip().startswith("pocketzoo calibrate --device cpu")
    for option in ("--device", "--runtime", "--threads", "--minutes", "--again", "--json"):
        assert option in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device", "pixel1"], "names no machine"),
        (["--runtime", "tflite"], "no calibration for 'tflite'"),
        (["--minutes", "0"], "0 is not in the range"),
        (["--threads", "0"], "0 is not in the range"),
    ],
)
def test_wrong_words_are_one_line(arguments: list[str], says: str) -> None:
    result = command(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("tiny_plan")
def test_the_command_says_how_good_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "probes", short)
    result = command("--device", "cpu", "--runtime", "eager", "--minutes", str(LONG), "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert Path(record["path"]).exists()
    assert record["error"] == pytest.approx(latency_model("cpu").error.__dict__, nan_ok=True)
    assert "networks measured" in result.stderr
