"""The verdict: its arms end to end on the digits, its statistics on derived numbers, and the sentence they lead to."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import pocketzoo as pz
from pocketzoo.search import arms
from pocketzoo.search.findings import ARMS, Difference, findings, over_seeds, recommendation
from pocketzoo.search.verdict import SCRATCH, Verdict, verdict
from pocketzoo.training.recipe import Recipe

RECIPE = Recipe(epochs=2, batch_size=128, seed=3)
NET = """
from torch import nn

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 10, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, num_classes))
"""


@pytest.fixture(scope="module", autouse=True)
def net(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "verdictnets.py").write_text(NET)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def run(out: Path, seeds: int = 2) -> Verdict:
    return verdict("verdictnets:net", "digits", "macs=40%", "l1", out=out, seeds=seeds, recipe=RECIPE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, net: None) -> tuple[Verdict, Path]:
    out = tmp_path_factory.mktemp("verdict") / "run"
    return run(out), out


def test_every_arm_meets_the_budget_and_trains_as_it_says(finished: tuple[Verdict, Path]) -> None:
    found, out = finished
    table = found.trainings
    assert set(zip(table["arm"], table["seed"], strict=True)) == {(arm, seed) for arm in ARMS for seed in (3, 4)}
    parent_macs = 4 * 4 * 9 * 6 + 2 * 2 * 9 * 6 * 10 + 10 * 10
    by_arm = table[table["seed"] == 3].set_index("arm")
    assert by_arm["macs"]["parent"] == parent_macs
    small = by_arm.drop(index="parent")
    assert (small["macs"] <= 0.4 * parent_macs).all()
    assert by_arm["epochs"]["finetuned"] == 1
    assert by_arm["epochs"]["scratch_e"] == 2
    for arm in ("scratch_b", "uniform", "random"):
        assert by_arm["epochs"][arm] == round(2 * parent_macs / by_arm["macs"][arm])
    assert by_arm["macs"]["scratch_e"] == by_arm["macs"]["scratch_b"] == by_arm["macs"]["finetuned"]

    images = len(pz.load_data("digits").train) // 128 * 128
    own = by_arm["macs"] * by_arm["epochs"] * images
    before = own["parent"] + found.small.method_macs
    expected = own.copy()
    expected["finetuned"] += before
    pd.testing.assert_series_equal(by_arm["training_macs"], expected, check_names=False)
    charged = {arm: before if arm in ("scratch_e", "scratch_b") else 0 for arm in ARMS}
    assert by_arm["widths_macs"].to_dict() == charged

    written = pd.read_csv(out / "verdict" / "verdict.csv").set_index("arm")
    assert written["test"].to_dict() == pytest.approx(table.groupby("arm")["test"].mean().to_dict())
    assert written["deviation"].to_dict() == pytest.approx(table.groupby("arm")["test"].std().to_dict())
    page = (out / "index.html").read_text(encoding="utf-8")
    assert [title for title in ("Verdict", "Widths") if f"<h2>{title}</h2>" in page] == ["Verdict", "Widths"]


def test_the_same_call_reads_what_there_is(finished: tuple[Verdict, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found, out = finished

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained or tested again")

    monkeypatch.setattr(arms, "fit", refuse)
    monkeypatch.setattr(arms, "tested", refuse)
    again = run(out)
    pd.testing.assert_frame_equal(again.trainings, found.trainings)
    assert str(again) == str(found)


def test_killed_between_and_within_trainings_it_goes_on_to_the_same(
    finished: tuple[Verdict, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth call of the training stops in its second epoch, until the run is through."""
    found, _ = finished
    real, calls = arms.fit, 0

    def interrupted(*args: object, **options: object) -> object:
        nonlocal calls
        calls += 1

        def stop(epoch: int, accuracy: float) -> None:
            if calls % 4 == 0 and epoch == 1:
                raise KeyboardInterrupt

        return real(*args, **options, on_epoch=stop)  # type: ignore[arg-type]

    monkeypatch.setattr(arms, "fit", interrupted)
    stops = 0
    while True:
        try:
            again = run(tmp_path / "run")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 2
    pd.testing.assert_frame_equal(again.trainings, found.trainings)


def test_a_module_cannot_be_begun_anew(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with pytest.raises(pz.InvalidSetting, match="module:factory"):
        verdict(model, "digits", "macs=40%", "l1", out=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(pz.InvalidSetting, match="seeds is 0"):
        verdict("lenet5", "digits", "macs=40%", "l1", out=tmp_path, seeds=0)


def test_widths_of_the_controls(finished: tuple[Verdict, Path]) -> None:
    small = finished[0].small
    graph = small.origin.graph
    first, second = (SCRATCH["random"][0](small, seed) for seed in (0, 1))
    assert first != second
    assert first == SCRATCH["random"][0](small, 0)
    uniform = SCRATCH["uniform"][0](small, 0)
    ratios = [uniform[name] / width for name, width in graph.groups.items()]
    assert max(ratios) / min(ratios) < 1.6  # as near to one factor as 6 and 10 channels allow
    for widths in (first, second, uniform):
        assert graph.price(widths).macs <= 0.4 * graph.price().macs


def test_the_interval_is_the_paired_t_tests() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.9, 0.01, 5), rng.normal(0.88, 0.01, 5)
    mean, low, high, p = over_seeds((a - b).tolist())
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert (mean, low, high, p) == pytest.approx((float((a - b).mean()), interval.low, interval.high, expected.pvalue))
    assert over_seeds([0.25, 0.25, 0.25]) == (0.25, 0.25, 0.25, 0.0)
    assert over_seeds([0.0, 0.0])[3] == 1.0


def right(*counts: int) -> dict[int, torch.Tensor]:
    """Seed -> the first so many of 1000 images are right."""
    return {seed: torch.arange(1000) < count for seed, count in enumerate(counts)}


def trainings(accuracies: dict[str, tuple[int, ...]], cost: dict[str, float]) -> tuple[pd.DataFrame, dict]:
    correct = {(arm, seed): own for arm, counts in accuracies.items() for seed, own in right(*counts).items()}
    rows = [
        {"arm": arm, "seed": seed, "test": float(own.float().mean()), "validation": 0.5, "macs": 100, "params": 10,
         "epochs": 1, "training_macs": cost.get(arm, 1.0), "widths_macs": 0}
        for (arm, seed), own in correct.items()
    ]  # fmt: skip
    return pd.DataFrame(rows), correct


LEVEL = {"finetuned": (900, 905, 893), "scratch_e": (897, 903, 901), "scratch_b": (902, 899, 905)}
SIMILAR = {**LEVEL, "uniform": (901, 898, 900), "random": (899, 897, 899)}


def test_no_clear_difference_means_the_cheapest() -> None:
    found = findings(*trainings(SIMILAR, {"scratch_e": 0.4, "random": 0.1}))
    assert found.recommended == "scratch_e"  # random widths, cheaper still, are a control
    assert "No other arm is clearly less than the best over 3 seeds" in found.sentence


def test_a_clear_winner_is_taken_whatever_it_costs() -> None:
    found = findings(*trainings({**SIMILAR, "finetuned": (950, 955, 953)}, {"finetuned": 9.0}))
    assert found.recommended == "finetuned"
    assert "clearly better than every other arm" in found.sentence
    answer = found.answers["the method's weights against fresh ones"]
    assert answer.is_clear
    assert answer.mean == pytest.approx((48 + 56 + 48) / 3000)
    assert answer.images == 3  # 48 images of 1000, all one way
    table = found.table.set_index("arm")
    assert table["clear"].to_dict() == {arm: arm != "finetuned" for arm in SIMILAR}
    assert math.isnan(table["difference"]["finetuned"])
    assert table["difference"]["uniform"] == pytest.approx((-49 - 57 - 53) / 3000)
    record = json.loads(found.to_json())
    assert record["recommended"] == "finetuned"


def test_the_clearly_worse_are_named_and_not_taken_however_cheap() -> None:
    accuracies = {**SIMILAR, "scratch_e": (801, 799, 803), "random": (780, 782, 777)}
    found = findings(*trainings(accuracies, {"scratch_e": 0.01, "uniform": 0.5}))
    assert found.recommended == "uniform"
    assert "clearly less than the best: Scratch-E, random widths" in found.sentence


def test_one_seed_has_the_test_images_interval_and_no_p() -> None:
    found = findings(*trainings({arm: counts[:1] for arm, counts in SIMILAR.items()}, {}))
    answer = found.answers["the method's widths against uniform ones"]
    assert answer.p is None
    assert answer.mean == pytest.approx(0.001)
    assert answer.low < 0 < answer.high
    assert "on the test images, from one seed" in found.sentence


def test_equal_costs_are_decided_by_the_mean() -> None:
    rivals = pd.DataFrame(
        {"test": [0.90, 0.91], "training_macs": [1.0, 1.04], "widths_macs": 0.0, "seeds": 3}, ["uniform", "scratch_b"]
    )
    unclear = Difference(-0.01, -0.05, 0.03, 0.4, 0, 3)
    assert recommendation(rivals, "scratch_b", {"uniform": unclear})[0] == "scratch_b"
