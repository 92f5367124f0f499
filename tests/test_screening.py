"""Searches whose candidates are judged before, or instead of, being trained."""

import json
import shutil
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch

from pocketzoo import Architecture, Budget, InvalidSetting, PocketzooError, WeightsMismatch, load_data, train
from pocketzoo.search.evaluators import INHERIT, ByInheritance, Stages
from pocketzoo.search.explore import explore, study_of
from pocketzoo.search.inherit import Parent
from pocketzoo.search.objective import Objective
from pocketzoo.search.outcome import Study, candidates_table, pareto, trials_table
from pocketzoo.search.plan import Plan
from pocketzoo.search.run import run_search
from pocketzoo.search.screening import ScreeningSampler
from pocketzoo.search.space import Candidate, Space
from pocketzoo.search.studies import quiet
from pocketzoo.training.recipe import Recipe

NETS = """
from torch import nn

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 20, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, num_classes))

def plain(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 12, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, num_classes))
"""
NET = "screenednets:net"
RECIPE = Recipe(epochs=4, batch_size=128)
BUDGET = Budget(macs="20k")


@pytest.fixture(scope="module", autouse=True)
def nets(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "screenednets.py").write_text(NETS)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.fixture(scope="module")
def parent_run(nets: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("parent") / "run"
    architecture = Architecture.of(NET, num_classes=10, in_channels=1, resolution=8)
    train(architecture, "digits", run, RECIPE)
    return run


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory, nets: None) -> Study:
    return search(tmp_path_factory.mktemp("search") / "run", 4, evaluate="proxy:synflow,train", screen=3)


def search(out: Path, trials: int, **options: object) -> Study:
    return run_search(NET, "digits", BUDGET, trials, out, recipe=RECIPE, **options)  # type: ignore[arg-type]


class Parameters:
    """The plainest evaluator, whose number the table shows as well."""

    name = "parameters"

    def score(self, candidate: Candidate) -> float:
        return float(candidate.params)


def explored(folder: Path, *totals: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trials and candidates, gone on with by a new process's objects at every total."""
    for trials in totals:
        plan = Plan(NET, "digits", BUDGET, trials, recipe=RECIPE)
        space = Space(plan.base, plan.budget)
        study = study_of(plan, f"sqlite:///{folder / 'study.db'}")
        study.sampler = ScreeningSampler(study.sampler, space, Parameters(), 5)
        assert explore(plan, study, Objective(space, plan.data_at, plan.short_recipe))
    return trials_table(study), candidates_table(study)


# -- screening -----------------------------------------------------------------------------------------------------


def test_a_trial_gets_the_candidate_that_the_screen_likes_best(tmp_path: Path) -> None:
    trials, candidates = explored(tmp_path, 4)
    assert set(candidates["trial"]) == {1, 2, 3}  # the uniform network is queued, not drawn
    seen = {trials["key"][0]}
    for number, drawn in candidates.groupby("trial"):
        assert len(drawn) == 5
        assert (drawn["macs"] <= 20_000).all()
        assert (drawn["score"] == drawn["params"]).all()
        fresh = drawn[~drawn["key"].isin(seen)]
        assert drawn["key"][drawn["chosen"]].tolist() == [fresh["key"][fresh["score"].idxmax()]]
        assert trials["key"][number] == drawn["key"][drawn["chosen"]].item()
        seen.add(trials["key"][number])


def test_two_halves_of_a_screened_search_are_the_whole(tmp_path: Path) -> None:
    (tmp_path / "halves").mkdir()
    (tmp_path / "whole").mkdir()
    halves, whole = explored(tmp_path / "halves", 2, 4), explored(tmp_path / "whole", 4)
    for half, entire in zip(halves, whole, strict=True):
        pd.testing.assert_frame_equal(half.drop(columns="seconds"), entire.drop(columns="seconds"))


def test_a_queued_trial_keeps_its_parameters(tmp_path: Path) -> None:
    plan = Plan(NET, "digits", BUDGET, 1, recipe=RECIPE)
    space = Space(plan.base, plan.budget)
    study = study_of(plan, f"sqlite:///{tmp_path / 'study.db'}")
    study.sampler = ScreeningSampler(study.sampler, space, Parameters(), 5)
    study.enqueue_trial({"width 0": 2.0, "width 3": 0.5})
    with quiet():
        study.optimize(Objective(space, plan.data_at, plan.short_recipe), n_trials=1)
    assert study.trials[0].params == {"width 0": 2.0, "width 3": 0.5}
    assert candidates_table(study).empty


def test_choices_are_screened_with_the_widths(tmp_path: Path) -> None:
    architecture = Architecture.of("lenet5", num_classes=10, in_channels=1, resolution=28)
    space = Space(architecture, Budget(macs="100k"))
    study = optuna.create_study(sampler=ScreeningSampler(optuna.samplers.RandomSampler(0), space, Parameters(), 8))
    trial = study.ask()
    candidate = space.suggest(trial)
    drawn = study.sampler.screened(trial.number)
    assert {each["architecture"]["settings"]["kernel"] for each in drawn} == {3, 5}
    assert candidate.architecture.key == drawn[0]["key"]
    assert candidate.params == max(each["params"] for each in drawn)


def test_a_screened_search_end_to_end(screened: Study, tmp_path: Path) -> None:
    candidates = pd.read_csv(screened.out / "candidates.csv")
    assert list(candidates["trial"]) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert candidates["key"][candidates["chosen"]].tolist() == screened.trials["key"][1:].tolist()
    assert {"expected params", "expected synflow", "expected zen"} <= set(screened.trials.columns)
    assert (screened.trials["expected params"] == screened.trials["params"]).all()
    assert "proxies: too few trained networks to tell" in str(screened)
    out = Path(shutil.copytree(screened.out, tmp_path / "run"))
    more = search(out, 5, evaluate="proxy:synflow,train", screen=3).trials
    columns = ["state", "value", "key", "seconds"]
    pd.testing.assert_frame_equal(more[columns][:4], screened.trials[columns])


def test_a_folder_of_another_evaluation(screened: Study) -> None:
    with pytest.raises(PocketzooError, match="holds another run: its evaluate is 'proxy:synflow,train', not None"):
        search(screened.out, 4)
    with pytest.raises(PocketzooError, match="its screen is 3, not 4"):
        search(screened.out, 4, evaluate="proxy:synflow,train", screen=4)


def test_enough_trained_networks_get_a_verdict(tmp_path: Path) -> None:
    study = search(tmp_path / "run", 14, pruner=optuna.pruners.NopPruner())
    trained = study.trials[study.trials["duplicate_of"].isna()]
    table = study.proxies.set_index("proxy")
    assert set(table["networks"]) == {len(trained)}
    expected = trained["expected synflow"].rank().corr(trained["value"].rank())
    assert table.loc["synflow", "spearman"] == pytest.approx(expected)
    pd.testing.assert_frame_equal(pd.read_csv(study.out / "proxies.csv"), study.proxies, check_dtype=False)
    assert "trusted for this budget" in str(study)


# -- inheritance ---------------------------------------------------------------------------------------------------


def test_the_parent_at_its_own_widths_scores_what_it_does(parent_run: Path) -> None:
    """But for statistics from 1024 of its training images instead of a moving average: a few images differ."""
    data = load_data("digits")
    architecture = Architecture.of(NET, num_classes=10, in_channels=1, resolution=8)
    judge = ByInheritance(Parent.load(parent_run, architecture), lambda _: data, 0)
    accuracy = json.loads((parent_run / "result.json").read_text())["accuracy"]["validation"]
    whole = Candidate(architecture.with_widths({"0": 12, "3": 20}), 1.0, "", 0, 0)
    assert judge.score(whole) == pytest.approx(accuracy, abs=0.05)
    wider = Candidate(architecture.with_widths({"0": 24, "3": 20}), 1.0, "", 0, 0)
    assert judge.score(wider) == judge.score(whole)  # what the parent lacks adds nothing
    alone = Candidate(architecture.with_widths({"0": 1, "3": 1}), 1.0, "", 0, 0)
    assert judge.score(alone) < 0.5


def test_inherit_alone_trains_nothing_but_the_final_networks(parent_run: Path, tmp_path: Path) -> None:
    study = search(tmp_path / "run", 3, evaluate="inherit", weights=parent_run)
    assert study.trials["epochs"].isna().all()
    base = Architecture.of(NET, num_classes=10, in_channels=1, resolution=8)
    judge = ByInheritance(Parent.load(parent_run, base), lambda _: load_data("digits"), 0)
    for _, trial in study.trials.iterrows():
        architecture = Architecture.from_json(trial["architecture"])
        assert trial["value"] == judge.score(Candidate(architecture, 1.0, "", 0, 0))
    assert study.best.recipe == RECIPE


def test_inherit_then_train(parent_run: Path, tmp_path: Path) -> None:
    study = search(tmp_path / "run", 3, evaluate="inherit,train", screen=3, weights=parent_run)
    assert study.trials["epochs"].notna().all()
    chosen = pd.read_csv(study.out / "candidates.csv").query("chosen")
    assert chosen["score"].tolist() == study.trials[f"expected {INHERIT}"][1:].tolist()


def test_a_parent_keeps_its_structure(tmp_path: Path) -> None:
    architecture = Architecture.of("lenet5", num_classes=10, in_channels=1, resolution=8)
    train(architecture, "digits", tmp_path / "parent", Recipe(epochs=1))
    study = run_search(
        "lenet5", "digits", Budget(macs="60k"), 4, tmp_path / "run", recipe=Recipe(epochs=1), evaluate="inherit",
        weights=tmp_path / "parent",
    )  # fmt: skip
    kernels = {json.loads(text)["settings"]["kernel"] for text in study.trials["architecture"]}
    assert kernels == {architecture.settings["kernel"]}
    with pytest.raises(WeightsMismatch, match=f"the parent does not fit: its family is lenet5, the search needs {NET}"):
        search(tmp_path / "other", 1, evaluate="inherit", weights=tmp_path / "parent")
    assert not (tmp_path / "other").exists()


# -- several budgets -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_budgets_share_a_supernet_prune_each_and_make_one_front(tmp_path: Path) -> None:
    """Pruned networks, which Optuna has only for one objective, are in every study; none is on the front."""
    study = run_search(
        NET, "digits", trials=6, out=tmp_path / "sweep", budgets=["12k", "20k"], recipe=RECIPE,
        trial_recipe=RECIPE.with_settings(epochs=3), evaluate="inherit,train", screen=2, supernet=True,
        pruner=optuna.pruners.PercentilePruner(30.0, n_startup_trials=2, n_warmup_steps=0),
    )  # fmt: skip
    for name, limit in (("12k", 12_000), ("20k", 20_000)):
        rows = study.trials[study.trials["budget"] == name]
        pruned = rows[rows["state"] == "pruned"]
        assert len(pruned) > 0
        assert pruned["epochs"].dropna().max() < 3
        assert (rows["macs"] <= limit).all()
        assert (tmp_path / "sweep" / name / "candidates.csv").exists()
        assert not (tmp_path / "sweep" / name / "supernet").exists()
    assert (tmp_path / "sweep" / "supernet" / "best.safetensors").exists()
    complete = study.trials[(study.trials["state"] == "complete") & study.trials["duplicate_of"].isna()]
    front = {(row.macs, row.params, row.value) for row in study.pareto.itertuples()}
    for row in complete.itertuples():
        beaten = any(
            other.macs <= row.macs and other.params <= row.params and other.value >= row.value
            and (other.macs, other.params, other.value) != (row.macs, row.params, row.value)
            for other in complete.itertuples()
        )  # fmt: skip
        assert ((row.macs, row.params, row.value) in front) == (not beaten)
    assert list(pareto(study.trials)["key"]) == list(study.pareto["key"])


# -- wrong input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["train", "inherit", "inherit,train", "proxy:naswot,train", "proxy:zen,inherit"])
def test_stages_are_read_as_they_are_written(text: str) -> None:
    assert str(Stages.parse(text.replace(",", " , "))) == text


@pytest.mark.parametrize(
    ("kind", "says", "options"),
    [
        (InvalidSetting, "did you mean inherit?", {"evaluate": "inherti"}),
        (InvalidSetting, "did you mean synflow?", {"evaluate": "proxy:sinflow,train"}),
        (InvalidSetting, "end with train: proxy:zen,train", {"evaluate": "proxy:zen"}),
        (InvalidSetting, "after one cheaper screen", {"evaluate": "train,inherit"}),
        (InvalidSetting, "after one cheaper screen", {"evaluate": "inherit,inherit"}),
        (InvalidSetting, "after one cheaper screen", {"evaluate": "proxy:zen,inherit,train"}),
        (InvalidSetting, "needs a parent", {"evaluate": "inherit,train"}),
        (InvalidSetting, "one parent", {"weights": "somewhere", "supernet": True}),
        (InvalidSetting, "at least 2", {"evaluate": "proxy:zen,train", "screen": 1}),
        (InvalidSetting, "zen needs batch norm", {"evaluate": "proxy:zen,train", "model": "screenednets:plain",
                                                  "budget": Budget(macs="1k")}),
    ],
)  # fmt: skip
def test_wrong_input_writes_nothing(
    kind: type[PocketzooError], says: str, options: dict[str, object], tmp_path: Path
) -> None:
    defaults = {"model": NET, "data": "digits", "budget": BUDGET, "trials": 1}
    with pytest.raises(kind) as caught:
        run_search(**{**defaults, **options}, out=tmp_path / "run")  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
