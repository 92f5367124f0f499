"""The calibrated latency model: layouts, features, prices worked out by hand, files, and a fit of invented costs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import calibrations
import numpy as np
import pytest
import torch
from calibrations import LARGEST, Small, calibrated, graph_of, kind, moving_ms, multiplying_ms
from torch import nn

from pocketzoo import Architecture, InvalidRun, OutsideCalibration, UnknownDevice
from pocketzoo.profiler import fit as fitting
from pocketzoo.profiler.alike import FEW, alike
from pocketzoo.profiler.calibrated import CHUNK, CalibratedModel
from pocketzoo.profiler.fit import LEAST_SAMPLES, fit
from pocketzoo.profiler.latency import (
    calibration_folder,
    calibration_path,
    latency_model,
    read_calibration,
    write_calibration,
)
from pocketzoo.profiler.layouts import Layouts, layouts
from pocketzoo.profiler.operator_features import FAR, KINDS, NAMES, features, light_terms, logs, multiplies
from pocketzoo.profiler.samples import Sample, read_samples

RUNTIMES = ("eager", "onnxruntime")


@pytest.fixture(scope="module")
def graph() -> Any:
    return graph_of(Small())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POCKETZOO_HOME", str(tmp_path))
    return tmp_path


# -- layouts -------------------------------------------------------------------------------------------------------


def laid_out(*layers: nn.Module, channels: int = 16, side: int = 6) -> Layouts:
    return layouts(graph_of(nn.Sequential(*layers), side, channels).operators())


def copied(found: Layouts) -> tuple[list[int], list[int]]:
    return [int(n) for n in found.into], [int(n) for n in found.out_of]


@pytest.mark.parametrize(
    ("layer", "channels", "expected"),
    [
        (nn.Conv2d(3, 17, 3), 3, True),  # fewer than a block: reads the plain image
        (nn.Conv2d(20, 17, 3), 20, True),  # a multiple of four fills blocks
        (nn.Conv2d(18, 16, 3), 18, False),
        (nn.Conv2d(20, 20, 3, groups=20), 20, True),
        (nn.Conv2d(18, 18, 3, groups=18), 18, False),
        (nn.Conv2d(32, 64, 3, groups=2), 32, True),
        (nn.Conv2d(16, 64, 3, groups=2), 16, False),  # eight channels in a group
        (nn.Conv2d(32, 24, 3, groups=2), 32, False),  # twelve channels out of a group
        (nn.ConvTranspose2d(16, 16, 3), 16, False),
        (nn.ReLU(), 16, False),
        (nn.MaxPool2d(2), 16, True),
        (nn.MaxPool2d(2), 20, False),
        (nn.AdaptiveAvgPool2d(1), 16, False),
    ],
)
def test_which_operators_are_blocked(layer: nn.Module, channels: int, expected: bool) -> None:
    assert bool(laid_out(layer, channels=channels).blocked[0]) is expected


def test_an_activation_stays_in_the_layout_before_it() -> None:
    found = laid_out(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.BatchNorm2d(16), nn.ReLU(), channels=16)
    assert [bool(blocked) for blocked in found.blocked] == [True] * 4


def test_every_crossing_is_a_copy_of_the_tensor() -> None:
    """Blocked 20 channels, plain depthwise of 18, blocked again: 36 pixels each."""
    found = laid_out(nn.Conv2d(16, 18, 1), nn.Conv2d(18, 18, 1, groups=18), nn.Conv2d(18, 16, 1), nn.MaxPool2d(1))
    assert [bool(blocked) for blocked in found.blocked] == [True, False, False, True]
    assert copied(found) == ([0, 0, 16 * 36, 0], [18 * 36, 0, 0, 0])


class Added(nn.Module):
    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(32, 32, 1), other

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.other(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("other", "expected"), [(nn.Conv2d(32, 32, 1), True), (nn.Conv2d(32, 32, 1, groups=4), False)])
def test_a_sum_is_blocked_where_both_of_its_inputs_are(other: nn.Module, expected: bool) -> None:
    found = layouts(graph_of(Added(other), 6, 32).operators())
    assert bool(found.blocked[-1]) is expected
    assert copied(found)[1][:2] == ([0, 0] if expected else [32 * 36, 0])


def test_a_concatenation_is_blocked_where_every_part_fills_its_blocks() -> None:
    def blocked(narrow: int) -> bool:
        class Joined(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Conv2d(16, 32, 1), nn.Conv2d(16, narrow, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.cat([self.one(x), self.two(x)], 1)

        return bool(layouts(graph_of(Joined(), 6, 16).operators()).blocked[-1])

    assert blocked(16)
    assert not blocked(20)


# -- features ------------------------------------------------------------------------------------------------------


def test_the_features_of_a_convolution() -> None:
    (operator,) = graph_of(nn.Conv2d(33, 39, (5, 7), stride=2, groups=3), 31, 33).operators()
    made = 14 * 13
    expected = {
        "macs": 39 * 11 * 35 * made, "elements in": 33 * 31 * 31, "elements out": 39 * made,
        "elements weight": 39 * 11 * 35, "channels in a group": 11, "channels out a group": 13, "groups": 3,
        "kernel": 35, "stride": (31 * 31 / made) ** 0.5, "pixels out": made, "columns out": 13,
        "filled in 16": 33 / 48, "filled out 16": 39 / 48, "filled out 64": 39 / 64,
        "filled in 8": 11 / 16, "filled out 8": 13 / 16,
        "uneven in": 1, "uneven out": 1, "small image": 2, "blocked": 1,
    }  # fmt: skip
    assert dict(zip(NAMES, features(operator, False), strict=True)) == pytest.approx(expected)
    assert 2 ** np.array(logs(operator, False)) == pytest.approx([*expected.values()], rel=1e-5)


def test_features_of_many_candidates_are_those_of_each(graph: Any) -> None:
    widths = graph.random_widths(5, seed=0)
    many = graph.operators(widths)
    found = layouts(many)
    heavy = [at for at, operator in enumerate(many) if multiplies(operator)]
    for row, (stem, expand) in enumerate(widths.tolist()):
        alone = graph_of(Small(wide=expand, narrow=stem)).operators()
        own = layouts(alone)
        for at in heavy:
            together = [np.broadcast_to(values, len(widths))[row] for values in logs(many[at], found.blocked[at])]
            np.testing.assert_allclose(together, logs(alone[at], own.blocked[at]), rtol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_light_terms_of_many_candidates_are_those_of_each(graph: Any, runtime: str) -> None:
    widths = graph.random_widths(5, seed=1)
    arrange: Callable[..., Layouts] = calibrations.arranged
    many = graph.operators(widths)
    together = light_terms(many, arrange(runtime, many))
    for row, (stem, expand) in enumerate(widths.tolist()):
        alone = graph_of(Small(wide=expand, narrow=stem)).operators()
        terms = light_terms(alone, arrange(runtime, alone))
        for name, several in together.items():
            own = [float(np.broadcast_to(amount, len(widths))[row]) for amount in several]
            assert own == pytest.approx([float(amount) for amount in terms.get(name, (0.0, 0.0, 0.0))]), name


def test_what_is_far_from_the_core_is_counted_beyond_it() -> None:
    channels, side = 16, 128
    assert (moved := 2 * channels * side * side) > FAR
    operators = graph_of(nn.ReLU(), side, channels).operators()
    (term,) = light_terms(operators, calibrations.arranged("eager", operators)).values()
    assert [float(amount) for amount in term] == [1, moved, moved - FAR]


# -- prices --------------------------------------------------------------------------------------------------------


def test_operators_cost_what_their_lines_say(graph: Any) -> None:
    operators = graph.operators()
    expected = [(multiplying_ms if multiplies(operator) else moving_ms)(operator) for operator in operators]
    model = calibrated(graph)
    assert model.by_operator(graph) == pytest.approx(expected, rel=1e-5)
    assert model.predict(graph) == pytest.approx([sum(expected)], rel=1e-5)


def test_the_network_of_a_kind_is_a_factor(graph: Any) -> None:
    """One hidden unit that reads the MACs' logarithm, doubled for the logarithm of the factor."""
    slope, start = 0.25, -2.0
    hidden = ([[slope]] + [[0.0]] * len(NAMES), [start])
    own = kind(layers=[hidden, ([[2.0]], [-1.0])])
    plain, factored = calibrated(graph), calibrated(graph, kinds=dict.fromkeys(KINDS, own))
    for operator, before, after in zip(
        graph.operators(), plain.by_operator(graph), factored.by_operator(graph), strict=True
    ):
        if multiplies(operator):
            unit = max(slope * np.log2(operator.macs) + start, 0)
            assert after / before == pytest.approx(np.exp(2 * unit - 1), rel=1e-4)
        else:
            assert after == before


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_many_candidates_cost_what_each_costs_when_built(graph: Any, runtime: str) -> None:
    widths = graph.random_widths(6, seed=2)
    model = calibrated(graph, runtime)
    together = model.predict(graph, widths)
    for (stem, expand), ms in zip(widths.tolist(), together, strict=True):
        alone = graph_of(Small(wide=expand, narrow=stem))
        assert ms == pytest.approx(model.predict(alone)[0], rel=1e-5)
        assert ms == pytest.approx(model.by_operator(alone).sum(), rel=1e-5)
    assert len(set(together)) == len({tuple(row) for row in widths.tolist()})


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_candidates_that_are_alike_cost_what_each_costs_alone(graph: Any, runtime: str) -> None:
    """With enough of them, an operator is priced once for each of the widths that it sees."""
    rng = np.random.default_rng(0)
    layers = [(rng.normal(0, 0.1, shape), rng.normal(0, 0.1, shape[1])) for shape in ((len(NAMES) + 1, 5), (5, 1))]
    model = calibrated(graph, runtime, kinds=dict.fromkeys(KINDS, kind(layers=layers)))
    stems, expands = np.meshgrid(np.arange(5, 18), np.arange(3, 20))
    widths = rng.permutation(np.repeat(np.column_stack([stems.ravel(), expands.ravel()]), 2, axis=0))
    together = model.predict(graph, widths)
    assert len(np.unique(together.round(12))) > len(widths) / 4
    for row in range(0, len(widths), 10):
        assert together[row] == pytest.approx(model.predict(graph, widths[row : row + 1])[0], rel=1e-6)


def test_candidates_are_alike_where_all_sizes_are_the_same() -> None:
    first, second = np.tile([7.0, 5, 7, 7, 5, 7], FEW), np.tile([2.0, 2, 3, 2, 2, 3], FEW)
    found = alike([first, second])
    assert found is not None
    of_each, which = found
    assert len(of_each) == 3  # (7, 2), (5, 2), (7, 3)
    assert (first[of_each][which] == first).all()
    assert (second[of_each][which] == second).all()
    assert alike([np.append(first, 4.0 + len(first)), np.append(second, 2.0)]) is None  # more sizes than candidates
    assert alike([]) is None


def test_more_candidates_than_a_chunk(graph: Any) -> None:
    model = calibrated(graph)
    widths = np.tile([*graph.groups.values()], (CHUNK + 1, 1))
    widths[-1] = [*graph.steps.values()]
    found = model.predict(graph, widths)
    assert found.shape == (CHUNK + 1,)
    assert found[0] == found[-2] == pytest.approx(model.predict(graph)[0])
    assert found[-1] == pytest.approx(model.predict(graph, widths[-1:])[0])


@pytest.mark.filterwarnings("error")
def test_a_removed_branch_costs_nothing(graph: Any) -> None:
    removed, whole = graph.operators(np.array([[8, 0], [8, 12]])), graph.operators()
    inside = [at for at, operator in enumerate(removed) if operator.present is not None]
    assert inside
    model = calibrated(graph)
    without, everything = model.predict(graph, [[8, 0], [8, 12]])
    branch = model.by_operator(graph)[inside].sum()
    assert everything - without == pytest.approx(branch, rel=1e-4)
    assert len(removed) == len(whole)


def test_a_removed_branch_need_not_be_known(graph: Any) -> None:
    known = {name: kind() for name in KINDS if name != "depthwise conv"}
    found = calibrated(graph, kinds=known).predict(graph, [[8, 0], [8, 12]])
    assert np.isnan(found).tolist() == [False, True]


# -- refusals ------------------------------------------------------------------------------------------------------


def largest(name: str, value: float) -> dict[str, Any]:
    high = [LARGEST] * len(NAMES)
    high[NAMES.index(name)] = np.log2(value)
    return dict.fromkeys(KINDS, kind(high=high))


def test_sizes_beyond_the_margin_are_refused_by_name(graph: Any) -> None:
    """The stem's 13,824 MACs are the most: a calibration that saw more than a quarter is believed, no other is."""
    calibrated(graph, kinds=largest("macs", 3_500)).predict(graph)
    model = calibrated(graph, kinds=largest("macs", 13_824 / 5))
    for ask in (model.predict, model.by_operator, lambda g: model.predict(g, [[*g.groups.values()]])):
        with pytest.raises(OutsideCalibration, match=r"stem \(conv\): macs is 1.382e\+04.*at most 2765") as caught:
            ask(graph)
        assert "measure it on cpu" in str(caught.value)


def test_rows_outside_are_nan_among_good_ones(graph: Any) -> None:
    model = calibrated(graph, kinds=largest("channels out a group", 4))
    found = model.predict(graph, [[8, 12], [17, 12], [8, 16], [8, 17]])
    assert np.isnan(found).tolist() == [False, True, False, True]
    assert found[0] == pytest.approx(calibrated(graph).predict(graph)[0])


def test_what_is_smaller_than_all_that_was_seen_costs_as_much_as_the_smallest(graph: Any) -> None:
    model = calibrated(
        graph, kinds=dict.fromkeys(KINDS, kind(low=[float(np.log2(20_000))] + [-LARGEST] * (len(NAMES) - 1)))
    )
    dearer = calibrations.MAC_MS * sum(20_000 - op.macs for op in graph.operators() if multiplies(op))
    assert model.predict(graph)[0] - calibrated(graph).predict(graph)[0] == pytest.approx(dearer, rel=1e-3)


def test_an_unseen_kind_is_refused_by_name(graph: Any) -> None:
    model = calibrated(graph, kinds={name: kind() for name in KINDS if name != "depthwise conv"})
    with pytest.raises(OutsideCalibration, match=r"depthwise \(depthwise conv\): the calibration saw no such operator"):
        model.predict(graph)


def test_an_unseen_light_operator_is_refused_by_name(graph: Any) -> None:
    model = calibrated(graph_of(nn.Conv2d(3, 4, 1)))
    with pytest.raises(OutsideCalibration, match=r"batch_norm: the calibration saw no such operator"):
        model.predict(graph)
    with pytest.raises(OutsideCalibration, match="saw no such operator"):
        model.predict(graph, [[*graph.groups.values()]])


def test_a_light_operator_that_was_not_seen_costs_its_nearest_line() -> None:
    """The same company in the other layout, else a plain convolution in its company's place, else the dearest."""
    graph = graph_of(nn.Sequential(nn.Conv2d(4, 8, 1, groups=2), nn.BatchNorm2d(8)), 6, 4)
    prefix = "batch norm: batch_norm after"
    lines = {"grouped conv, blocked": 3e-4, "conv, plain": 2e-4, "conv, blocked": 1e-4, "add, plain": 5e-4,
             "pool, plain": 4e-4}  # fmt: skip
    expected = [3e-4, 2e-4, 1e-4, 5e-4, 4e-4]
    for ms in expected:
        light = {f"{prefix} {company}": (call, call * 1e-6, 0.0) for company, call in lines.items()}
        found = calibrated(graph, light=light).by_operator(graph)[1]
        assert found == pytest.approx(ms + ms * 1e-6 * 2 * 8 * 6 * 6)
        del lines[next(company for company, call in lines.items() if call == ms)]


def test_a_light_operator_in_other_company_costs_its_dearest_line(graph: Any) -> None:
    model = calibrated(graph)
    lines = {name: line for name, line in model.light.items() if ": relu after" not in name}
    cheap, dear = (1e-4, 1e-7, 0.0), (2e-4, 2e-7, 0.0)
    lines |= {"activation: relu after linear, plain": cheap, "activation: relu after add, plain": dear}
    elsewhere = calibrated(graph, light=lines)
    for operator, ms in zip(graph.operators(), elsewhere.by_operator(graph), strict=True):
        if operator.aten == "relu":
            assert ms == pytest.approx(dear[0] + dear[1] * 2 * int(operator.elements_out))


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_calibration_is_found_again(graph: Any, home: Path) -> None:
    for runtime in RUNTIMES:
        write_calibration(calibrated(graph, runtime), calibration_path("cpu", runtime))
        found = latency_model("cpu", runtime)
        assert (found.device, found.runtime) == ("cpu", runtime)
        assert found.error == calibrated(graph).error
        assert found.predict(graph) == pytest.approx(calibrated(graph, runtime).predict(graph), rel=1e-12)
    assert latency_model("cpu").runtime == "onnxruntime"
    assert not [path for path in calibration_folder().iterdir() if path.name.startswith(".")]


def test_each_number_of_threads_has_a_calibration_of_its_own(graph: Any, home: Path) -> None:
    for threads in (1, 2):
        write_calibration(calibrated(graph, threads=threads), calibration_path("cpu", "eager", threads))
    for threads in (1, 2):
        assert latency_model("cpu", "eager", threads).threads == threads  # type: ignore[attr-defined]
    with pytest.raises(UnknownDevice, match=r"of cpu with eager on 3 threads.*--runtime eager --threads 3 makes one"):
        latency_model("cpu", "eager", 3)


@pytest.mark.parametrize("device", ["ssh://pi@board:22?python=/usr/bin/python3", "adb://SERIAL", "../../up"])
def test_a_device_by_address_has_a_file_of_its_own(graph: Any, home: Path, device: str) -> None:
    path = calibration_path(device, "onnxruntime")
    assert path.parent == calibration_folder()
    write_calibration(calibrated(graph, "onnxruntime", device=device), path)
    assert latency_model(device).device == device


def damaged(text: str) -> dict[str, str]:
    record = json.loads(text)
    first = next(iter(record["kinds"]))

    def but(**changes: Any) -> str:
        return json.dumps({**record, **changes})

    def but_kind(**changes: Any) -> str:
        return but(kinds={**record["kinds"], first: {**record["kinds"][first], **changes}})

    missing = {name: value for name, value in record.items() if name != "light"}
    return {
        "empty": "", "cut off": text[: len(text) // 2], "a list": "[]", "a number": "3", "not text": "\udcff",
        "another format": but(format=99), "without light": json.dumps(missing), "with more": but(colour="blue"),
        "light is short": but(light={"a": [1, 2]}), "light is words": but(light={"a": ["x", "y", "z"]}),
        "time is a word": but(reference_ms="long"), "layers do not fit": but_kind(layers=[[[[1.0]], [0.0]]]),
        "other features": but_kind(low=[0.0], high=[0.0]), "a short line": but_kind(physical=[1.0]),
        "kinds is a list": but(kinds=[]), "error is short": but(error={}),
    }  # fmt: skip


def test_damaged_files_are_refused(graph: Any, home: Path) -> None:
    path = calibration_path("cpu", "eager")
    write_calibration(calibrated(graph), path)
    for name, text in damaged(path.read_text()).items():
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(InvalidRun, match="calibrate anew") as caught:
            read_calibration(path)
        assert "\n" not in str(caught.value), name


def test_an_unknown_device_says_what_there_is(graph: Any, home: Path) -> None:
    with pytest.raises(UnknownDevice, match="pocketzoo calibrate --device cpu makes one") as caught:
        latency_model("cpu")
    assert "pixel1" in str(caught.value)
    write_calibration(calibrated(graph), calibration_path("cpu", "eager"))
    with pytest.raises(UnknownDevice, match=r"cpu-eager.*pocketzoo calibrate --device cpu --runtime onnxruntime"):
        latency_model("cpu", "onnxruntime")
    with pytest.raises(UnknownDevice, match="did you mean pixel1"):
        latency_model("pixel11")
    with pytest.raises(UnknownDevice, match="not for eager"):
        latency_model("pixel1", "eager")


# -- a fit ---------------------------------------------------------------------------------------------------------

Law = Callable[[Any], float]


def line(operator: Any) -> float:
    return multiplying_ms(operator) if multiplies(operator) else moving_ms(operator)


def stepped(operator: Any) -> float:
    """As `line`, but convolutions into channels that vectors of eight do not divide take half as long again."""
    uneven = operator.aten == "convolution" and operator.output[1] % 8 != 0
    return line(operator) * (1.5 if uneven else 1.0)


def drawn(count: int, seed: int) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    networks = []
    for _ in range(count):
        stem, expand = np.exp(rng.uniform(np.log(4), np.log(200), 2)).astype(int).tolist()
        if rng.random() < 0.5:
            stem, expand = max(8, stem // 8 * 8), max(8, expand // 8 * 8)
        arch = Architecture.of("calibrations:small", num_classes=10, in_channels=3, resolution=int(rng.integers(8, 48)))
        networks.append(arch.with_widths({"stem": stem, "expand": expand}))
    return networks


def invented(count: int, law: Law, seed: int = 0) -> list[Sample]:
    """Samples that cost what a law says, on a machine whose speed changes by up to a factor of two."""
    rng = np.random.default_rng(seed)
    found = []
    for number, arch in enumerate(drawn(count, seed)):
        ms = rng.uniform(1, 2) * np.array([*map(law, arch.graph().operators()), 1.0])
        found.append(Sample(number, arch, tuple(ms[:-1].tolist()), {}, float(ms[:-1].sum()), float(ms[-1])))
    return found


def fitted(samples: list[Sample]) -> CalibratedModel:
    return fit(samples, "cpu", "eager", 1, {"processor": "one", "date": "today"}, {"torch": "2"})


@pytest.mark.parametrize(("law", "count", "percent"), [(line, 40, 3.0), (stepped, 120, 6.0)])
def test_a_fit_recovers_invented_costs(law: Law, count: int, percent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "FOLDS", 2)
    samples = invented(count, law)
    model = fitted(samples)
    nominal = float(np.median([sample.reference_ms for sample in samples]))
    assert model.reference_ms == nominal
    off = []
    for arch in drawn(20, seed=7):
        graph = arch.graph()
        try:
            ms = model.predict(graph)[0]
        except OutsideCalibration:
            continue
        off.append(abs(ms / (nominal * sum(map(law, graph.operators()))) - 1))
    assert len(off) > 10
    assert 100 * np.mean(off) < percent
    assert model.error.mape_percent < percent
    assert model.error.spearman > 0.98
    assert model.error.judged_on.startswith(f"cross-validation over {count} networks")


def test_a_fit_needs_enough_samples() -> None:
    with pytest.raises(InvalidRun, match=f"{LEAST_SAMPLES - 1} networks.*needs {LEAST_SAMPLES}: calibrate for longer"):
        fitted([*invented(1, line)] * (LEAST_SAMPLES - 1))


def test_samples_of_another_version_are_refused() -> None:
    (sample,) = invented(1, line)
    other = Sample(0, sample.architecture, (*sample.operator_ms, 1.0), {}, sample.total_ms, sample.reference_ms)
    with pytest.raises(InvalidRun, match="calibrate anew"):
        fitted([other] * LEAST_SAMPLES)


# -- the samples' file ---------------------------------------------------------------------------------------------


def test_a_sample_survives_its_file(tmp_path: Path) -> None:
    samples = invented(3, line)
    path = tmp_path / "samples.jsonl"
    assert read_samples(path) == []
    path.write_text("".join(sample.to_json() + "\n" for sample in samples))
    for before, after in zip(samples, read_samples(path), strict=True):
        assert (after.number, after.architecture) == (before.number, before.architecture)
        assert after.operator_ms == pytest.approx(before.operator_ms, abs=1e-6)
        assert after.total_ms == pytest.approx(before.total_ms, abs=1e-6)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    lines = [sample.to_json() + "\n" for sample in invented(2, line)]
    path = tmp_path / "samples.jsonl"
    for cut in (1, len(lines[1]) // 2, len(lines[1]) - 1):
        path.write_text(lines[0] + lines[1][:cut])
        assert len(read_samples(path)) == 1
        assert path.read_text() == lines[0]


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"number": 1}', "words"])
def test_a_damaged_line_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(f"{text}\n")
    with pytest.raises(InvalidRun, match="not a line of a calibration's samples"):
        read_samples(path)
