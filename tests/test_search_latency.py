"""Searching under a budget of milliseconds: by a published device's model, and by a calibration of this machine."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import calibrations
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from pocketzoo import Architecture, BudgetTooSmall, OutsideCalibration
from pocketzoo.cli import main
from pocketzoo.profiler import measure as measuring
from pocketzoo.profiler.latency import LatencyModel, calibration_path, latency_model, write_calibration
from pocketzoo.profiler.measurement import Measurement
from pocketzoo.profiler.runner import Protocol
from pocketzoo.search.budget import Budget
from pocketzoo.search.latency import TimedGraph
from pocketzoo.search.outcome import Study
from pocketzoo.search.projection import ENOUGH
from pocketzoo.search.run import run_search
from pocketzoo.search.space import Space
from pocketzoo.training.recipe import Recipe
from pocketzoo.training.result import Result

NET = "calibrations:small"
RECIPE = Recipe(epochs=1, batch_size=256, lr=0.05)
TRIALS = 3
QUICK = Protocol(warmup=1, settle=1, burst=1, rounds=6, seconds=0.1, tolerance=0.9)


def base() -> Architecture:
    return Architecture.of(NET, num_classes=10, in_channels=1, resolution=8)


def halfway_ms(model: LatencyModel) -> float:
    """Between the narrowest network and the base itself."""
    graph = base().graph()
    return float(model.predict(graph, [list(graph.steps.values()), list(graph.groups.values())]).mean())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder with a calibration of this machine."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_HOME", str(folder))
        write_calibration(calibrations.calibrated(base().graph()), calibration_path("cpu", "eager"))
        yield folder


def search(budget: Budget, out: Path) -> Study:
    return run_search(NET, "digits", budget, TRIALS, out, recipe=RECIPE)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Study:
    limit = halfway_ms(latency_model("pixel1"))
    return search(Budget(latency=limit / 1e3, device="pixel1"), tmp_path_factory.mktemp("published") / "run")


@pytest.fixture(scope="module")
def calibrated(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    def quickly(models: object, **options: object) -> list[Measurement]:
        return measure(models, **options, protocol=QUICK)  # type: ignore[arg-type]

    measure = measuring.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "measure", quickly)
        limit = halfway_ms(latency_model("cpu"))
        return search(Budget(latency=limit / 1e3), tmp_path_factory.mktemp("calibrated") / "run")


@pytest.mark.parametrize("name", ["published", "calibrated"])
def test_every_trial_is_within_the_limit(name: str, request: pytest.FixtureRequest) -> None:
    study: Study = request.getfixturevalue(name)
    assert study.latency is not None
    model = latency_model(study.latency.device)
    table = pd.read_csv(study.out / "trials.csv")
    assert len(table) == TRIALS
    for _, trial in table.iterrows():
        predicted = model.predict(Architecture.from_json(trial["architecture"]).graph())[0]
        assert trial["latency_ms"] == pytest.approx(predicted, rel=1e-5)
        assert predicted <= study.latency.limit_ms * (1 + 1e-5)
        assert trial["share"] == pytest.approx(predicted / study.latency.limit_ms, rel=1e-5)
        assert trial["share"] >= ENOUGH or trial["reason"] != "within 97-100 %"


def test_a_published_device_is_predicted_only(published: Study) -> None:
    latency, model = published.latency, latency_model("pixel1")
    assert latency is not None
    for folder in (published.out, published.out / "uniform"):
        result = Result.from_json((folder / "result.json").read_text())
        assert not result.measurements
        record = result.provenance["search"]["latency"]
        assert record["predicted_ms"] == pytest.approx(model.predict(result.architecture.graph())[0])  # type: ignore[arg-type]
        assert record["error"]["mape_percent"] == model.error.mape_percent
    text = str(published)
    assert f"predicted {latency.predicted_ms:.4g} ms" in text
    assert f"mean error {model.error.mape_percent:.1f} %" in text
    assert "nothing was measured" in text


def test_the_winner_is_measured_on_a_device_at_hand(calibrated: Study) -> None:
    for folder in (calibrated.out, calibrated.out / "uniform"):
        result = Result.from_json((folder / "result.json").read_text())
        record = result.provenance["search"]["latency"]
        measurement = Measurement.from_dict(result.measurements[0])
        assert result.architecture is not None
        assert measurement.architecture == json.loads(result.architecture.to_json())
        assert (measurement.device, measurement.runtime, measurement.threads) == ("cpu", "eager", 1)
        assert (record["device"], record["runtime"]) == ("cpu", "eager")
        assert record["predicted_ms"] <= record["limit_ms"] * (1 + 1e-5)


def test_both_figures_are_said(calibrated: Study) -> None:
    latency = calibrated.latency
    assert latency is not None
    assert latency.measurement is not None
    assert f"predicted {latency.predicted_ms:.4g} ms" in str(calibrated)
    assert f"measured {latency.measurement.median_ms:.4g} ms on cpu, eager" in str(calibrated)
    assert latency.to_dict()["measured_ms"] == latency.measurement.median_ms


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_measurement_beyond_the_limit_is_said(calibrated: Study, factor: float) -> None:
    latency = calibrated.latency
    assert latency is not None
    assert latency.measurement is not None
    measurement = replace(latency.measurement, median_ms=factor * latency.limit_ms)
    text = str(replace(latency, measurement=measurement))
    assert ("which the measured one exceeds" in text) == (factor > 1)


def test_a_finished_search_is_read_with_its_latency(calibrated: Study) -> None:
    again = search(Budget(**calibrated.best.provenance["search"]["budget"]), calibrated.out)
    assert again.latency == calibrated.latency


def test_the_command_prints_both(published: Study) -> None:
    limit = Budget(**published.best.provenance["search"]["budget"]).latency
    arguments = ["search", NET, "--data", "digits", "--latency", f"{limit}s", "--device", "pixel1", "--trials", "1",
                 "--epochs", "1", "--out", str(published.out.parent / "command")]  # fmt: skip
    first = CliRunner().invoke(main, [*arguments, "--json"])
    assert first.exit_code == 0, first.stderr
    latency = json.loads(first.stdout)["latency"]
    assert latency["measured_ms"] is None
    assert latency["predicted_ms"] <= latency["limit_ms"] * (1 + 1e-5)
    assert f"predicted {latency['predicted_ms']:.4g} ms" in CliRunner().invoke(main, arguments).stdout


def test_other_budgets_say_nothing_of_latency(published: Study) -> None:
    macs = Budget(macs=int(published.best.costs["macs"]))
    study = run_search(NET, "digits", macs, 1, published.out.parent / "macs", recipe=RECIPE)
    assert study.latency is None
    assert "latency" not in str(study)
    assert "latency_ms" not in study.trials


# -- the space -----------------------------------------------------------------------------------------------------


def test_the_tighter_of_latency_and_macs_binds(home: Path) -> None:
    space = Space(base(), Budget(latency=halfway_ms(latency_model("cpu")) / 1e3, macs="1G"))
    within = space.uniform
    tighter = Space(base(), replaced := Budget(**space.budget.replaced(macs=within.macs - 1).to_dict())).uniform  # type: ignore[arg-type]
    assert tighter.macs <= replaced.limits["macs"] < within.macs
    assert tighter.latency_ms is not None
    assert within.latency_ms is not None
    assert tighter.latency_ms < within.latency_ms


def test_a_limit_below_the_narrowest_says_the_least(home: Path) -> None:
    graph = base().graph()
    least = latency_model("cpu").predict(graph, [list(graph.steps.values())])[0]
    with pytest.raises(BudgetTooSmall, match=f"latency={1e3 * least:.4g}us"):
        Space(base(), Budget(latency=0.9 * least / 1e3))


def test_what_cannot_be_priced_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = calibrations.calibrated(base().graph(), kinds={"conv": calibrations.kind()})
    write_calibration(known, calibration_path("cpu", "onnxruntime"))
    with pytest.raises(OutsideCalibration, match="saw no such operator"):
        Space(base(), Budget(latency="8ms", runtime="onnxruntime"))
    calibration_path("cpu", "onnxruntime").unlink()


def test_candidates_beyond_the_calibration_are_never_chosen() -> None:
    """Some too large, or all: they cost infinitely much, and pricing goes on."""
    graph = base().graph()
    limit = float(np.log2(graph.price().macs))
    seen = calibrations.kind(high=[limit] + [calibrations.LARGEST] * (len(calibrations.NAMES) - 1))
    timed = TimedGraph(graph, calibrations.calibrated(graph, kinds=dict.fromkeys(calibrations.KINDS, seen)))
    narrow, wide = np.array([*graph.steps.values()]), np.array([1000 * width for width in graph.groups.values()])
    some, every = (timed.price_many(np.stack(rows), ("macs", "latency_ms")) for rows in ((narrow, wide), (wide, wide)))
    assert np.isfinite(some["latency_ms"]).tolist() == [True, False]
    assert np.isinf(every["latency_ms"]).all()
    assert every["macs"].nunique() == 1
