"""The search end to end on the digits with a tiny network of the user's own, and its parts on derived numbers."""

import json
import shutil
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pocketzoo import Architecture, BudgetTooSmall, UntraceableModel
from pocketzoo.search.budget import Budget
from pocketzoo.search.compare import paired_difference
from pocketzoo.search.explore import explore, study_of
from pocketzoo.search.inherit import Parent
from pocketzoo.search.objective import Objective, begin
from pocketzoo.search.outcome import Study, pareto, trials_table
from pocketzoo.search.plan import Plan
from pocketzoo.search.projection import ENOUGH, NO_STEP
from pocketzoo.search.run import run_search
from pocketzoo.search.space import Space
from pocketzoo.training.recipe import Recipe
from pocketzoo.training.result import Result
from pocketzoo.training.run import evaluate_run

NETS = """
from torch import nn

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 10, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, num_classes))

def fixed(num_classes, in_channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))
"""
NET = "searchnets:net"
RECIPE = Recipe(epochs=4, batch_size=128, lr=0.05)
BUDGET = Budget(macs="12k")
TRIALS = 5


@pytest.fixture(scope="session", autouse=True)
def nets(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "searchnets.py").write_text(NETS)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def search(out: Path, trials: int = TRIALS, **options: object) -> Study:
    return run_search(NET, "digits", BUDGET, trials, out, recipe=RECIPE, **options)  # type: ignore[arg-type]


def explored(out: Path, trials: int) -> pd.DataFrame:
    """The trials alone, without the final trainings."""
    plan = Plan(NET, "digits", BUDGET, trials, recipe=RECIPE)
    study = study_of(plan, f"sqlite:///{out / 'study.db'}")
    space = Space(plan.base, plan.budget)
    assert explore(plan, study, Objective(space, plan.data_at, plan.short_recipe))
    return trials_table(study)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, nets: None) -> Study:
    return search(tmp_path_factory.mktemp("search") / "run")


def counted(arch: Architecture) -> tuple[int, int]:
    model = arch.build().eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(arch.input_shape))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def test_every_trial_meets_the_budget_and_costs_what_it_says(finished: Study) -> None:
    assert len(finished.trials) == TRIALS
    for _, trial in finished.trials.iterrows():
        arch = Architecture.from_json(trial["architecture"])
        assert counted(arch) == (trial["params"], trial["macs"])
        assert arch.key == trial["key"]
        assert trial["share"] == trial["macs"] / 12_000 <= 1
        assert trial["share"] >= ENOUGH or trial["reason"] == NO_STEP


def test_the_first_trial_is_the_uniform_network(finished: Study) -> None:
    assert finished.uniform.architecture is not None
    assert finished.trials["key"][0] == finished.uniform.architecture.key


def test_the_best_trial_is_trained_to_the_end(finished: Study) -> None:
    trials = finished.trials
    winner = trials[trials["state"] == "complete"]["value"].idxmax()
    assert finished.best.architecture is not None
    assert finished.best.architecture.key == trials["key"][winner]
    assert finished.best.recipe == finished.uniform.recipe == RECIPE
    assert set(trials["epochs"].dropna()) == {1}  # a quarter of 4


def test_the_folder_holds_what_the_readme_promises(finished: Study) -> None:
    out = finished.out
    for name in ("best.json", "best.safetensors", "best.onnx", "result.json", "trials.csv", "pareto.csv", "study.db"):
        assert (out / name).stat().st_size > 0
    assert Result.from_json((out / "result.json").read_text()) == finished.best
    assert Result.from_json((out / "uniform" / "result.json").read_text()) == finished.uniform
    for folder, result in ((out, finished.best), (out / "uniform", finished.uniform)):
        score = evaluate_run(folder, "digits", trust=[NET])
        assert score.accuracy == result.accuracy["test"]
    read = pd.read_csv(out / "trials.csv")
    assert list(read["key"]) == list(finished.trials["key"])


def test_the_record_can_be_rerun(finished: Study) -> None:
    record = finished.best.provenance["search"]
    assert Budget(**record["budget"]) == BUDGET
    assert record["trial_value"] == finished.trials["value"].max()
    assert {"torch", "data_hash", "seed", "command"} <= finished.best.provenance.keys()


def test_the_page_stands_alone(finished: Study) -> None:
    page = (finished.out / "index.html").read_text()
    for title in ("Optimisation history", "Accuracy against MACs", "Accuracy against parameters", "Parallel coord"):
        assert title in page
    assert 'src="http' not in page


def test_the_difference_is_said(finished: Study) -> None:
    text = str(finished)
    if finished.difference is None:
        assert "uniform-width network itself" in text
    else:
        best, uniform = finished.best.accuracy["test"], finished.uniform.accuracy["test"]
        assert finished.difference.difference == pytest.approx(best - uniform)
        assert finished.difference.is_clear or "no clear difference" in text


def test_a_finished_search_is_read_not_repeated(finished: Study, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished.out, tmp_path / "run"))
    before = (out / "best.safetensors").stat().st_mtime_ns
    again = search(out)
    assert (out / "best.safetensors").stat().st_mtime_ns == before
    assert (again.best, again.uniform, again.difference) == (finished.best, finished.uniform, finished.difference)


def test_more_trials_go_on_where_it_was(finished: Study, tmp_path: Path) -> None:
    out = Path(shutil.copytree(finished.out, tmp_path / "run"))
    more = search(out, TRIALS + 2).trials
    assert len(more) == TRIALS + 2
    columns = ["state", "value", "key", "seconds"]
    pd.testing.assert_frame_equal(more[columns][:TRIALS], finished.trials[columns])


def test_of_several_finalists_the_best_on_the_validation_images_wins(tmp_path: Path) -> None:
    study = search(tmp_path, finalists=3)
    judged = study.best.provenance["search"]["finalists"]
    complete = study.trials[study.trials["state"] == "complete"].sort_values("value", ascending=False, kind="stable")
    assert set(judged) == set(complete["key"].drop_duplicates()[:3])
    assert study.best.accuracy["validation"] == max(judged.values()) == judged[study.best.architecture.key]  # type: ignore[union-attr]
    again = search(tmp_path, finalists=3)
    assert again.best == study.best


def test_two_halves_are_the_whole(tmp_path: Path) -> None:
    """A search stopped after two trials proposes what an unbroken one does."""
    (tmp_path / "halves").mkdir()
    (tmp_path / "whole").mkdir()
    explored(tmp_path / "halves", 2)
    halves, whole = explored(tmp_path / "halves", 4), explored(tmp_path / "whole", 4)
    pd.testing.assert_frame_equal(halves.drop(columns="seconds"), whole.drop(columns="seconds"))


def test_duplicates_are_not_trained_again(tmp_path: Path) -> None:
    plan = Plan(NET, "digits", BUDGET, 4, recipe=RECIPE)
    study = study_of(plan, f"sqlite:///{tmp_path / 'study.db'}")
    for _ in range(3):  # proportions that differ by a factor are one network
        study.enqueue_trial({"width 0": 1.0, "width 3": 1.0})
    study.enqueue_trial({"width 0": 2.0, "width 3": 2.0})
    explore(plan, study, Objective(Space(plan.base, plan.budget), plan.data_at, plan.short_recipe))
    trials = trials_table(study)
    assert trials["key"].nunique() == 1
    assert list(trials["duplicate_of"][1:]) == [0, 0, 0]
    assert trials["value"].nunique() == 1
    assert trials["epochs"].count() == 1
    assert len(pareto(trials)) == 1


def test_several_budgets_make_one_front(tmp_path: Path) -> None:
    budgets = {"6k": 6_000, "9k": 9_000}
    study = run_search(NET, "digits", trials=2, out=tmp_path / "sweep", recipe=RECIPE, budgets=list(budgets))
    assert len(study.trials) == 4
    for name, limit in budgets.items():
        rows = study.trials[study.trials["budget"] == name]
        assert (rows["macs"] <= limit).all()
        assert (tmp_path / "sweep" / name / "best.safetensors").exists()
    front = study.pareto
    assert front["macs"].is_monotonic_increasing
    table = pd.read_csv(tmp_path / "sweep" / "budgets.csv")
    assert list(table["budget"]) == list(budgets)
    assert study.best.accuracy["validation"] == max(
        json.loads((tmp_path / "sweep" / name / "result.json").read_text())["accuracy"]["validation"]
        for name in budgets
    )


# -- the space -----------------------------------------------------------------------------------------------------


def lenet() -> Architecture:
    return Architecture.of("lenet5", num_classes=10, in_channels=1, resolution=28)


def narrowest(arch: Architecture) -> int:
    graph = arch.graph()
    return int(graph.price_many([list(graph.steps.values())], ("macs",))["macs"][0])


def test_options_that_cannot_fit_are_left_out() -> None:
    small, large = (narrowest(lenet().with_settings(kernel=kernel)) for kernel in (3, 5))
    assert small != large
    between = Budget(macs=(small + large) // 2)
    cheaper = 3 if small < large else 5
    space = Space(lenet(), between)
    assert space.options == {"kernel": (cheaper,)}
    assert space.uniform.architecture.settings["kernel"] == cheaper


def test_choices_are_suggested_with_the_widths() -> None:
    space = Space(lenet(), Budget(macs="100k"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    candidates = [space.suggest(study.ask()) for _ in range(12)]
    assert {c.architecture.settings["kernel"] for c in candidates} == {3, 5}
    for candidate in candidates:
        assert counted(candidate.architecture) == (candidate.params, candidate.macs)
        assert candidate.macs <= 100_000


def test_resolutions_are_searched_when_asked() -> None:
    space = Space(lenet(), Budget(macs="100k"), resolutions=(20, 28))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    candidates = [space.suggest(study.ask()) for _ in range(12)]
    assert {c.architecture.resolution for c in candidates} == {20, 28}
    for candidate in candidates:
        assert counted(candidate.architecture) == (candidate.params, candidate.macs)


def test_a_budget_below_the_family_says_the_least() -> None:
    least = min(narrowest(lenet().with_settings(kernel=kernel)) for kernel in (3, 5))
    with pytest.raises(BudgetTooSmall, match=f"narrowest network costs macs={least / 1000:.4g}k"):
        Space(lenet(), Budget(macs=least - 1))
    Space(lenet(), Budget(macs=least))


def test_a_network_without_free_channels_is_refused() -> None:
    fixed = Architecture.of("searchnets:fixed", num_classes=10, in_channels=1, resolution=8)
    with pytest.raises(UntraceableModel, match="no channels whose number can vary"):
        Space(fixed, Budget(macs="1M"))


# -- a pretrained parent -------------------------------------------------------------------------------------------


@pytest.fixture
def parent() -> Parent:
    arch = Architecture.of(NET, num_classes=10, in_channels=1, resolution=8)
    torch.manual_seed(0)
    return Parent(arch.build().eval(), arch)


def test_children_begin_with_the_parents_channels(parent: Parent) -> None:
    child = parent.architecture.with_widths({"0": 4, "3": 5})
    ours, theirs = begin(child, 0, parent).state_dict(), parent._model.state_dict()
    norms = theirs["0.weight"].abs().sum((1, 2, 3))
    strongest = sorted(norms.argsort(descending=True)[:4].tolist())
    assert torch.equal(ours["0.weight"], theirs["0.weight"][strongest])
    assert torch.equal(ours["1.running_var"], theirs["1.running_var"][strongest])


def test_a_child_of_the_same_widths_is_the_parent(parent: Parent) -> None:
    child = begin(parent.architecture.with_widths({"0": 6, "3": 10}), 1, parent).eval()
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(child(images), parent._model(images))


def test_other_classes_get_a_fresh_classifier(parent: Parent) -> None:
    child = Architecture.of(NET, num_classes=4, in_channels=1, resolution=8).with_widths({"0": 6, "3": 10})
    inherited, fresh = begin(child, 0, parent).state_dict(), begin(child, 0, None).state_dict()
    assert torch.equal(inherited["3.weight"], parent._model.state_dict()["3.weight"])
    assert torch.equal(inherited["7.weight"], fresh["7.weight"])


def test_another_structure_begins_fresh(parent: Parent) -> None:
    arch = lenet().with_widths(lenet().graph().groups)
    first, second = begin(arch, 0, parent).state_dict(), begin(arch, 0, None).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_of_a_finished_search_serve_as_parent(finished: Study, tmp_path: Path) -> None:
    base = Architecture.of(NET, num_classes=10, in_channels=1, resolution=8)
    parent = Parent.load(finished.out, base)
    assert parent.fits(base)
    assert parent.architecture == finished.best.architecture


# -- numbers -------------------------------------------------------------------------------------------------------


def test_paired_difference() -> None:
    """100 images: 9 only the first gets right, 3 only the second; the rest do not matter."""
    first = torch.tensor([True] * 9 + [False] * 3 + [True] * 88)
    second = torch.tensor([False] * 9 + [True] * 3 + [True] * 88)
    found = paired_difference(first, second)
    p, q = 10 / 102, 4 / 102
    half = 1.959964 * ((p + q - (p - q) ** 2) / 102) ** 0.5
    assert found.difference == pytest.approx(0.06)
    assert (found.low, found.high) == pytest.approx((p - q - half, p - q + half))
    assert not found.is_clear
    assert "no clear difference" in str(found)


def test_a_clear_difference() -> None:
    found = paired_difference(torch.ones(200, dtype=torch.bool), torch.arange(200) % 5 > 0)
    assert found.is_clear
    assert "no clear" not in str(found)
    assert found.low < 0.2 < found.high + 0.01


def test_equal_networks_still_have_an_interval() -> None:
    right = torch.ones(50, dtype=torch.bool)
    found = paired_difference(right, right)
    assert found.low == -found.high < 0


def test_the_front() -> None:
    rows = [("complete", 0.9, 10, 10), ("complete", 0.8, 10, 10), ("complete", 0.8, 5, 20), ("complete", 0.7, 5, 20)]
    rows += [("pruned", 0.99, 1, 1), ("complete", 0.95, 30, 30)]
    trials = pd.DataFrame(rows, columns=["state", "value", "macs", "params"]).assign(duplicate_of=pd.NA)
    assert list(pareto(trials)["value"]) == [0.8, 0.9, 0.95]
    assert list(pareto(trials, ("macs",))["value"]) == [0.8, 0.9, 0.95]
    assert list(pareto(trials, ("params",))["value"]) == [0.9, 0.95]
