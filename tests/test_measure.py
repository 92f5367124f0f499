"""Measuring tiny networks for real: each runtime, what is left untouched, what is refused, and the command."""

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import onnx
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler

import pocketzoo as pz
from pocketzoo.cli import main
from pocketzoo.errors import DeviceFailed, InvalidSetting, MissingExtra, UnknownDevice, UnknownModel
from pocketzoo.profiler import measure as measuring
from pocketzoo.profiler import runtimes
from pocketzoo.profiler.export import run_onnx
from pocketzoo.profiler.measure import REFERENCE, in_batches
from pocketzoo.profiler.quantise import quantise_onnx
from pocketzoo.profiler.runner import Protocol
from pocketzoo.profiler.runtimes import FILES, FileRuntime, Network, tried

QUICK = Protocol(warmup=1, settle=1, burst=1, rounds=6, seconds=0.1)
SHAPE = (1, 3, 12, 16)


def tiny(width: int = 4) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, 5),
    )  # fmt: skip


@pytest.fixture
def small_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting and compiling the real one take seconds."""
    monkeypatch.setattr(measuring, "reference", lambda: pz.Architecture.of(f"{__name__}:tiny", resolution=12))


def measured(models: Any, **settings: Any) -> list[pz.Measurement]:
    given: dict[str, Any] = {"protocol": QUICK, **settings}
    found: list[pz.Measurement] = pz.measure(models, **given)
    return found


# -- runtimes ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_reference")
@pytest.mark.parametrize(
    ("runtime", "dtype", "layout", "package"),
    [
        ("eager", "fp32", "nchw", "torch"),
        ("eager-channels-last", "fp32", "nhwc", "torch"),
        pytest.param("compile", "fp32", "nchw", "torch", marks=pytest.mark.slow),  # which takes a C++ compiler a while
        ("onnxruntime", "fp32", "nchw", "onnxruntime"),
        ("onnxruntime-int8", "int8", "nchw", "onnxruntime"),
        pytest.param(
            *("openvino", "fp32", "nchw", "openvino"),
            marks=pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed"),
        ),
    ],
)
def test_every_runtime_measures(runtime: str, dtype: str, layout: str, package: str) -> None:
    (small,) = measured({"small": tiny()}, input_shape=(2, *SHAPE[1:]), runtime=runtime)
    assert small.model == "small"
    assert small.input_shape == (2, *SHAPE[1:])
    assert (small.runtime, small.dtype, small.layout, small.device) == (runtime, dtype, layout, "cpu")
    assert small.versions.keys() == {package}
    assert small.reference == REFERENCE
    assert small.reference_ms > 0
    assert 0 < small.low_ms <= small.median_ms <= small.high_ms
    assert small.rounds >= QUICK.rounds
    assert small.protocol == asdict(QUICK)
    assert pz.Measurement.from_dict(json.loads(small.to_json())) == small


def test_a_resolution_is_enough_for_a_module_of_three_channels() -> None:
    (found,) = measured({"tiny": tiny()}, resolution=9, batch=2)
    assert found.input_shape == (2, 3, 9, 9)
    assert found.architecture is None


def test_names_and_architectures_are_built_with_weights_and_described() -> None:
    arch = pz.Architecture.of("lenet5", num_classes=7)
    by_name, by_record = measured(["lenet5", arch], batch=3)
    assert (by_name.model, by_record.model) == ("lenet5", f"lenet5-{arch.key}")
    assert by_name.input_shape == by_record.input_shape == (3, *arch.input_shape[1:])
    assert pz.Architecture.from_json(json.dumps(by_record.architecture)) == arch


def test_an_architecture_is_called_by_its_family() -> None:
    (found,) = measured([pz.Architecture.of("lenet5", num_classes=7)])
    assert found.model == "lenet5"


def test_architectures_of_one_family_have_names_of_their_own() -> None:
    several = [pz.Architecture.of("lenet5", num_classes=classes) for classes in (2, 3)]
    assert [m.model for m in measured(several)] == [f"lenet5-{arch.key}" for arch in several]


def test_weights_are_those_of_seed_0_and_chance_is_left_alone() -> None:
    network = measuring.network("lenet5", "lenet5", 1)
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    built = network.build()
    assert torch.equal(torch.rand(1), expected_draw)
    torch.manual_seed(0)
    for own, other in zip(built.parameters(), pz.Architecture.of("lenet5").build().parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("runtime", ["eager", "eager-channels-last"])
def test_a_module_and_the_threads_are_left_as_they_were(runtime: str) -> None:
    model = tiny().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    strides = [p.stride() for p in model.parameters()]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measured({"tiny": model}, input_shape=SHAPE, runtime=runtime)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert [p.stride() for p in model.parameters()] == strides
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(torch.zeros(2, *SHAPE[1:])).sum().backward()


class Witness(nn.Module):
    """Notes how it is run."""

    seen: ClassVar[set[Any]] = set()  # of the copies, too

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.is_contiguous(memory_format=torch.channels_last)
        self.seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled(), self.training, flat))
        return images + 1


@pytest.mark.parametrize(("runtime", "channels_last"), [("eager", False), ("eager-channels-last", True)])
def test_how_a_module_is_run(runtime: str, channels_last: bool) -> None:
    Witness.seen.clear()
    measured({"witness": Witness()}, input_shape=SHAPE, runtime=runtime)
    assert Witness.seen == {(1, True, False, channels_last)}


def test_a_second_module_of_a_class_is_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled results are kept per code object; those of several modules must not share one."""
    given: list[Any] = []

    def compiled(function: Any, **settings: Any) -> Any:
        given.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    runs = [runtimes._compiled(tiny(width).eval(), torch.zeros(SHAPE)) for width in (4, 5)]
    first, second = (function.__code__ for function in given)
    assert first is not second
    assert first != second
    assert [tuple(run().shape) for run in runs] == [(1, 5), (1, 5)]  # type: ignore[attr-defined]


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "fp32.onnx"
    FILES["onnxruntime"].write(tiny(16).eval(), (4, *SHAPE[1:]), path)
    return path


def test_the_exported_file_has_the_batch_as_a_constant(exported: Path) -> None:
    (images,) = onnx.load(exported).graph.input
    assert [side.dim_value for side in images.type.tensor_type.shape.dim] == [4, *SHAPE[1:]]


@pytest.mark.parametrize("given", [True, False])
def test_int8_is_int8_and_near(exported: Path, tmp_path: Path, given: bool) -> None:
    images = torch.randn(9, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    quantise_onnx(exported, tmp_path / "int8.onnx", images if given else None)  # two batches of four; one is left out
    graph = onnx.load(tmp_path / "int8.onnx").graph
    sizes = {entry.name: list(entry.dims) for entry in graph.initializer}
    read = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert any(node.op_type == "QuantizeLinear" for node in graph.node)
    assert [16] in [sizes.get(node.input[1]) for node in read], "a scale per output channel"
    expected, actual = (run_onnx(file, images[:4]) for file in (exported, tmp_path / "int8.onnx"))
    assert 0 < abs(actual - expected).max() < 0.05 * abs(expected).max()


def test_a_file_runtime_gets_one_job_for_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = []

    class Board:
        name = "ssh://board"

        def run(self, job: Any, files: Any, progress: Any, timeout_s: float) -> Any:
            assert {model["file"] for model in job["models"].values()} == files.keys()
            assert all(path.is_file() for path in files.values())
            jobs.append((job, timeout_s))
            progress(6, 0.5)
            raise DeviceFailed("ssh://board: the connection broke")

    monkeypatch.setattr(runtimes, "host", lambda device: Board())
    nothing = FileRuntime("onnxruntime", lambda module, shape, path: path.touch())
    monkeypatch.setitem(FILES, "onnxruntime", nothing)
    told: list[str] = []
    with pytest.raises(DeviceFailed, match="connection broke"):
        measured({"tiny": tiny()}, input_shape=SHAPE, device="ssh://board", threads=3, progress=told.append)
    ((job, timeout_s),) = jobs
    assert job["runtime"] == "onnxruntime"
    assert job["protocol"]["threads"] == 3
    assert job["reference"] == REFERENCE
    assert {name: model["shape"][0] for name, model in job["models"].items()} == {REFERENCE: 1, "tiny": 1}
    assert timeout_s > QUICK.seconds
    assert told == [
        f"preparing {REFERENCE} (1 of 2)",
        "preparing tiny (2 of 2)",
        "round 6 of at least 6, 0 s left at most",
    ]


def test_the_time_limit_grows_with_what_is_run() -> None:
    least = runtimes.time_limit_s(QUICK, 2)
    assert runtimes.time_limit_s(QUICK, 6) - least == 4 * runtimes.RUN_S * (1 + 6 * (1 + 1))
    assert runtimes.time_limit_s(replace(QUICK, seconds=1e4), 2) > 1e4
    assert all(runtimes.time_limit_s(replace(QUICK, **{name: 50}), 2) > least for name in ("settle", "burst", "rounds"))


# -- what fits together ------------------------------------------------------------------------------------------------


def sized(*weight_bytes: int) -> list[Network]:
    return [Network(str(number), tiny, SHAPE, size) for number, size in enumerate(weight_bytes)]


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [((), []), ((4, 6), [[4, 6]]), ((4, 7), [[4], [7]]), ((12, 1, 9, 1), [[12], [1, 9], [1]]), ((1, 30), [[1], [30]])],
)
def test_models_are_measured_in_parts_that_fit(sizes: tuple[int, ...], parts: list[list[int]]) -> None:
    assert [[network.weight_bytes for network in part] for part in in_batches(sized(*sizes), 10)] == parts


def test_each_part_has_the_reference_and_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "WEIGHT_BYTES", 1)  # each alone
    told: list[str] = []
    found = measured({"a": tiny(), "b": tiny(5)}, input_shape=SHAPE, progress=told.append)
    assert [m.model for m in found] == ["a", "b"]
    assert [m.protocol["seconds"] for m in found] == [QUICK.seconds / 2] * 2
    assert found[0].reference_ms != found[1].reference_ms
    assert told[0] == f"part 1 of 2: preparing {REFERENCE} (1 of 2)"
    assert any(text.startswith("part 2 of 2: round 6") for text in told)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "settings", "error", "words"),
    [
        (["lenet5"], {"runtime": "egaer"}, UnknownDevice, "did you mean eager.*there: eager, .*openvino"),
        (["lenet5"], {"device": "sssh://x"}, UnknownDevice, "sssh"),
        (["lenet5"], {"device": "ssh://x", "runtime": "eager"}, UnknownDevice, "there: onnxruntime"),
        (["lenet5"], {"dtype": "fp16"}, InvalidSetting, "computes in fp32"),
        (["lenet5"], {"runtime": "onnxruntime-int8", "dtype": "fp32"}, InvalidSetting, "computes in int8"),
        (["lenet5"], {"threads": 0}, InvalidSetting, "threads is 0"),
        (["lenet5"], {"threads": 9999}, InvalidSetting, "threads is 9999"),
        (["lenet5"], {"protocol": Protocol(rounds=5)}, InvalidSetting, "at least 6"),
        (["lenet5"], {"protocol": Protocol(burst=0)}, InvalidSetting, "burst is 0"),
        (["lenet5", "lenet5"], {}, InvalidSetting, "twice"),
        ([], {}, InvalidSetting, "at least one model"),
        ({REFERENCE: "lenet5"}, {}, InvalidSetting, "reference"),
        (["lenet55"], {}, UnknownModel, "lenet5"),
        ([tiny()], {}, InvalidSetting, "needs a name"),
        ({"tiny": tiny()}, {}, InvalidSetting, "input_shape"),
        ({"tiny": tiny()}, {"input_shape": (3, 8, 8)}, InvalidSetting, r"\[3, 8, 8\]"),
        ({"tiny": tiny()}, {"input_shape": (1, 2, 8, 8)}, DeviceFailed, "tiny does not run on input 1x2x8x8.*channels"),
    ],
)
def test_wrong_input_is_refused(models: Any, settings: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        measured(models, **settings)


def test_an_engine_that_is_missing_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pocketzoo\[openvino\]"):
        measured(["lenet5"], runtime="openvino")


def test_a_missing_compiler_is_said() -> None:
    def run() -> None:
        raise InvalidCxxCompiler

    with pytest.raises(DeviceFailed, match="install g"):
        tried(sized(1)[0], run)


# -- profile and the command -------------------------------------------------------------------------------------------


def test_a_profile_measures_where_a_device_is_named() -> None:
    report = pz.profile("lenet5", device="cpu", batch=2, protocol=QUICK)
    assert report.measurement is not None
    assert report.measurement.input_shape == report.input_shape
    assert report.to_dict()["measurement"]["median_ms"] == report.measurement.median_ms
    assert pz.profile("lenet5").measurement is None
    by_module = pz.profile(tiny(), input_shape=(1, 3, 9, 11), runtime="eager", protocol=QUICK)
    assert by_module.measurement is not None
    assert by_module.measurement.input_shape == (1, 3, 9, 11)
    with pytest.raises(InvalidSetting, match="name a device"):
        pz.profile("lenet5", threads=2)


def test_the_profile_command_measures_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    real = measuring.measure

    def noted(models: Any, **settings: Any) -> list[pz.Measurement]:
        given.append(settings)
        return real(models, **{**settings, "protocol": QUICK})

    monkeypatch.setattr(measuring, "measure", noted)
    asked = ["profile", "lenet5", "--device", "cpu", "--runtime", "eager-channels-last", "--threads", "1", "--json"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["measurement"]["runtime"] == "eager-channels-last"
    ((device, runtime, threads),) = [(s["device"], s["runtime"], s["threads"]) for s in given]
    assert (device, runtime, threads) == ("cpu", "eager-channels-last", 1)
    for refused in (["--check", "--device", "cpu"], ["--threads", "2"]):
        done = CliRunner().invoke(main, ["profile", "lenet5", *refused])
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)


def test_the_report_shows_the_latency(capsys: pytest.CaptureFixture[str]) -> None:
    from pocketzoo.commands.options import print_rich

    report = pz.profile("lenet5", device="cpu", protocol=QUICK)
    print_rich(report.table())
    assert report.measurement is not None
    shown = capsys.readouterr().out
    assert f"{report.measurement.median_ms:.4g} ms" in shown
    assert "on cpu with eager, fp32, 1 thread(s), measured" in " ".join(shown.split())


@pytest.fixture
def command() -> Callable[..., Any]:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["measure", "--seconds", "0.05", "--rounds", "6", *arguments])

    return run


def test_the_command_measures_each_runtime_and_batch(command: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "found.csv"
    done = command("lenet5", "--runtime", "eager,eager-channels-last", "--batch", "1,2", "--csv", str(file), "--json")
    assert done.exit_code == 0, done.output
    found = [pz.Measurement.from_dict(record) for record in json.loads(done.stdout)]
    keys = [(m.runtime, m.input_shape[0]) for m in found]
    assert keys == [("eager", 1), ("eager", 2), ("eager-channels-last", 1), ("eager-channels-last", 2)]
    table = pd.read_csv(file)
    assert list(table["median_ms"]) == [m.median_ms for m in found]
    assert list(table["percentiles_ms.p95"]) == [m.percentiles_ms["p95"] for m in found]
    assert list(tmp_path.iterdir()) == [file]
    again = command("lenet5", "--csv", str(file))
    assert (again.exit_code, again.stdout) == (2, "")
    assert "is there already" in again.stderr


def test_the_table_shows_the_figures_and_what_to_know(command: Callable[..., Any]) -> None:
    done = command("lenet5", "--tolerance", "0.01%")
    assert done.exit_code == 0, done.output
    assert "1x1x28x28" in done.stdout
    assert f"torch {torch.__version__}" in " ".join(done.stdout.split())
    assert "models are not known to 0.0%" in done.stdout
    assert time.strftime("%Y-%m-", time.gmtime()) in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "no model named"),
        (["lenet5", "--runtime", "eager,onnx"], "did you mean onnxruntime"),
        (["lenet5", "--batch", "1,x"], "'x' is not a valid"),
        (["lenet5", "--tolerance", "200%"], "between 0% and 100%"),
        (["lenet5", "--tolerance", "a bit"], "no share"),
        (["lenet5", "--csv", "no/such/folder/x.csv"], "no folder"),
    ],
)
def test_the_command_refuses_in_one_line(command: Callable[..., Any], arguments: list[str], words: str) -> None:
    refused = command(*arguments)
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1
    assert words in refused.stderr


def test_stopped_by_hand_what_is_finished_is_printed(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "WEIGHT_BYTES", 1)
    real, parts = runtimes.run_torch, []

    def stopping(*arguments: Any) -> Any:
        parts.append(arguments)
        if len(parts) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(measuring, "run_torch", stopping)
    done = command("lenet5", "mobilenet_v2", "--json")
    assert done.exit_code == 130
    assert [record["model"] for record in json.loads(done.stdout)] == ["lenet5"]
    assert "1 of 2 measurements were finished" in done.stderr
