"""pz.shrink and its command: stages, folders, what is read and what goes on, one line for each kind of bad input."""

import copy
import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import pocketzoo as pz
from pocketzoo.cli import main
from pocketzoo.search import arms
from pocketzoo.search.methods.l1 import L1Norm
from pocketzoo.search.methods.method import METHODS, Proposal, Task
from pocketzoo.search.origin import recipe_of
from pocketzoo.search.shrink import Shrunk, absolute, finetune_recipe, shrink
from pocketzoo.search.shrink_page import write_shrink_page
from pocketzoo.training.recipe import Recipe

RECIPE = Recipe(epochs=4, batch_size=128)
NETS = """
from torch import nn

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 10, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, num_classes))

def plain(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(96, num_classes))

def fixed(num_classes, in_channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))
"""


@pytest.fixture(scope="session", autouse=True)
def nets(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "shrinknets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def run(out: Path | None) -> Shrunk:
    return shrink("shrinknets:net", "digits", "macs=40%", "l1", out=out, recipe=RECIPE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, nets: None) -> tuple[Shrunk, Path]:
    out = tmp_path_factory.mktemp("shrink") / "run"
    return run(out), out


def test_what_is_left_is_the_network_that_was_tested(finished: tuple[Shrunk, Path]) -> None:
    small, out = finished
    assert small.result.costs["macs"] <= 0.4 * small.origin.graph.price().macs
    assert small.architecture is not None
    assert small.architecture.widths == small.widths
    assert {name: len(kept) for name, kept in small.keep.items()} == small.widths
    assert pz.evaluate_run(out, "digits", trust=["shrinknets:net"]).accuracy == small.result.accuracy["test"]
    assert small.correct.double().mean() == small.result.accuracy["test"]
    assert small.result.recipe == RECIPE.with_settings(epochs=1, lr=0.01, warmup=0.0) == finetune_recipe(RECIPE)
    assert set(small.accuracies) == {"before", "cut", "after"}
    assert not (out / "finetune").exists()  # checkpoints go when the network is there
    assert not (out / "method").exists()


def test_a_finished_run_is_read_not_trained(finished: tuple[Shrunk, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    small, out = finished

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained or tested again")

    monkeypatch.setattr(arms, "fit", refuse)
    monkeypatch.setattr(arms, "tested", refuse)
    monkeypatch.setattr(L1Norm, "propose", refuse)
    again = run(out)
    assert (again.widths, again.result, again.accuracies) == (small.widths, small.result, small.accuracies)
    x = torch.zeros(2, 1, 8, 8)
    torch.testing.assert_close(again.model.eval()(x), small.model.eval()(x))
    with pytest.raises(pz.InvalidRun, match="another run: its budget"):
        shrink("shrinknets:net", "digits", "macs=50%", "l1", out=out, recipe=RECIPE)


def test_stopped_at_every_epoch_it_comes_to_the_same(
    finished: tuple[Shrunk, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketzoo.training import run as training

    for module in (arms, training):
        real = module.fit

        def interrupted(*args: object, real: object = real, **options: object) -> object:
            def stop(epoch: int, accuracy: float) -> None:
                raise KeyboardInterrupt

            return real(*args, **options, on_epoch=stop)  # type: ignore[operator]

        monkeypatch.setattr(module, "fit", interrupted)
    stops = 0
    while True:
        try:
            small = run(tmp_path / "run")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == RECIPE.epochs + 1
    assert small.widths == finished[0].widths
    assert small.result.accuracy == finished[0].result.accuracy


def test_a_saved_parent_keeps_its_recipe_and_its_lost_branches(tmp_path: Path) -> None:
    arch = pz.Architecture.of("cifar_resnet20", in_channels=1, num_classes=10, resolution=8, repeats=(1, 2, 1))
    graph = arch.graph()
    gone = dict.fromkeys(graph.branches[0], 0)
    recipe = Recipe(epochs=1, batch_size=256, lr=0.03)
    pz.train(arch.with_widths(gone), "digits", tmp_path / "parent", recipe)
    data = pz.load_data("digits")
    assert recipe_of(tmp_path / "parent", data, seed=5) == replace(recipe, seed=5)
    assert recipe_of("lenet5", data).epochs == 30
    small = shrink(tmp_path / "parent", data, "macs=60%", "l1")
    assert small.architecture is not None
    assert {**(small.architecture.widths or {}), **gone} == small.architecture.widths
    assert small.architecture.build()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert small.result.costs["macs"] == arch.graph().price(small.architecture.widths).macs


def test_a_bare_module_stays_as_it_is_and_has_no_folder(tmp_path: Path) -> None:
    model = pz.create_model("lenet5", in_channels=1, resolution=8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    small = shrink(model, "digits", "params=30%", "l1", recipe=RECIPE)
    assert small.architecture is None
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert small.result.costs["params"] == sum(p.numel() for p in small.model.parameters())
    with pytest.raises(pz.InvalidSetting, match="module:factory"):
        shrink(model, "digits", "params=30%", "l1", out=tmp_path / "run")


def test_relative_limits_name_their_device() -> None:
    graph = pz.Architecture.of("lenet5", in_channels=1, resolution=28).graph()
    limit = absolute("macs=50%,params=100k", graph)
    assert limit.limits == {"macs": 0.5 * graph.price().macs, "params": 100_000}
    with pytest.raises(pz.UnknownDevice, match="nophone"):
        absolute("latency=50%,device=nophone", graph)


class Trains:
    """Trains a stage of two epochs and keeps all widths within the budget by L1."""

    def propose(self, task: Task) -> Proposal:
        task.train(copy.deepcopy(task.model), "stage", task.recipe.with_settings(epochs=2))
        return L1Norm().propose(task)


def test_the_methods_training_is_accounted_for(nets: None) -> None:
    data = pz.load_data("digits")
    model = pz.Architecture.of("shrinknets:net", in_channels=1, num_classes=10, resolution=8).build()
    small = shrink(model, data, "macs=40%", Trains(), recipe=RECIPE)
    assert small.method_macs == 2 * (len(data.train) // 128 * 128) * small.origin.graph.price().macs


# -- the page ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("history", "titles"),
    [
        (pd.DataFrame(), ["Widths"]),
        (pd.DataFrame({"step": [1, 2], "regulariser": [3.0, 2.0], "macs": [5, 4]}), ["Widths", "The method's history"]),
        (pd.DataFrame({"group": ["a", "a"], "ratio": [0.1, 0.2], "accuracy": [0.9, 0.8]}), ["Widths", "Sensitivity"]),
        (pd.DataFrame({"trial": [0], "note": ["text"]}), ["Widths"]),
    ],
)
def test_the_page_shows_what_the_history_holds(history: pd.DataFrame, titles: list[str], tmp_path: Path) -> None:
    write_shrink_page(tmp_path / "p.html", "a <b>", "summary", {"a": 4, "b": 6}, {"a": 2, "b": 0}, history)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert [title for title in ("Widths", "The method's history", "Sensitivity") if f"<h2>{title}" in page] == titles
    assert "a &lt;b&gt;" in page


# -- the command ---------------------------------------------------------------------------------------------------


def invoke(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["shrink", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_method_help_lists_every_method() -> None:
    code, out, _ = invoke("--method", "help")
    assert code == 0
    lines = [line for line in out.splitlines() if not line.startswith(" ")]
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert all(len(line) > 30 for line in lines)


def test_json_is_the_finished_run(tmp_path: Path) -> None:
    line = ("shrinknets:net", "--data", "digits", "--macs", "40%", "--method", "l1", "--epochs", 2, "--seed", 4)
    code, out, err = invoke(*line, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["result"]["recipe"]["seed"] == 4
    assert set(record) == {"out", "widths", "validation", "result"}
    again = invoke(*line, "--out", tmp_path / "run", "--json")
    assert json.loads(again[1]) == record


def pictures(folder: Path) -> Path:
    """Three classes by name, of which the middle one has no training images."""
    rng = np.random.default_rng(0)
    for split, label, count in (("train", "a", 4), ("train", "b", 0), ("train", "c", 4), ("test", "a", 2)):
        (folder / split / label).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
    return folder


L1 = ("--method", "l1")
WRONG = {
    "all channels frozen": (("shrinknets:fixed", "--macs", "50%", *L1), "no channels whose number can vary"),
    "below the least": (("lenet5", "--macs", "1k", *L1), "below what the model can reach"),
    "met already": (("lenet5", "--macs", "100M", *L1), "as it is; give less"),
    "twice": (("lenet5", "--macs", "40%", "--macs", "2M", *L1), r"--macs is given 2 times (40%, 2M)"),
    "no limit": (("lenet5", *L1), "needs a limit such as --macs 40%"),
    "unknown method": (
        ("lenet5", "--macs", "40%", "--method", "sliming"),
        "no method 'sliming'; did you mean slimming",
    ),
    "unknown setting": (("lenet5", "--macs", "40%", *L1, "--set", "speed=1"), "l1 has no setting 'speed'"),
    "no setting": (("lenet5", "--macs", "40%", *L1, "--set", "speed"), "expected NAME=VALUE"),
    "setting twice": (("lenet5", "--macs", "40%", *L1, "--set", "a=1", "--set", "a=2"), "a is given twice"),
    "no share": (("lenet5", "--macs", "140%", *L1), "is no share of what the network costs"),
    "no batch norm": (("shrinknets:plain", "--macs", "50%", "--method", "slimming", "--epochs", "1"), "batch"),
    "unknown network": (("lenet6", "--macs", "40%", *L1), "lenet6"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(case: str, tmp_path: Path) -> None:
    arguments, expected = WRONG[case]
    code, out, err = invoke(*arguments, "--data", "digits", "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert line.startswith("pocketzoo: ")
    assert expected in line
    assert case == "no batch norm" or not (tmp_path / "run").exists()  # the right command may use it


def test_data_with_a_class_missing_is_one_line(tmp_path: Path) -> None:
    data = pictures(tmp_path / "pictures")
    code, _, err = invoke("lenet5", "--data", data, "--macs", "40%", *L1, "--out", tmp_path / "run")
    assert code == 2
    (line,) = err.strip().splitlines()
    assert "no training image of class 'b'" in line
    assert not (tmp_path / "run").exists()


def test_a_limit_is_given_once_to_a_search_too(tmp_path: Path) -> None:
    arguments = ["search", "lenet5", "--data", "digits", "--macs", "1M", "--macs", "2M", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "--macs is given 2 times" in result.stderr


def test_a_module_of_one_layer_says_what_is_frozen() -> None:
    with pytest.raises(pz.UntraceableModel, match="nothing can shrink"):
        shrink(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "digits", "macs=50%", "l1")


@pytest.mark.parametrize(
    ("model", "method", "settings", "said"),
    [
        ("lenet5", "slimming", {}, "batch-norm scales"),
        ("lenet5", "morphnet", {}, "batch-norm scales"),
        ("lenet5", "sss", {"on": "blocks"}, "take on=channels"),
        ("lenet5", "sss", {"on": "groups"}, "take on=channels"),
        ("lenet5", "ssl", {"on": "layers"}, "no groups of layers"),
        ("test_criteria:Functional", "taylor", {}, "functional call"),
        ("test_criteria:Functional", "thinet", {}, "functional call"),
        ("test_criteria:Functional", "reconstruction", {}, "functional call"),
    ],
)  # fmt: skip
def test_a_method_that_does_not_suit_a_network_says_so_before_anything_is_trained(
    model: str, method: str, settings: dict[str, str], said: str, tmp_path: Path
) -> None:
    base = pz.Architecture.of(model, num_classes=10, in_channels=1, resolution=16)
    data = pz.load_data("digits", resolution=16)
    with pytest.raises(pz.PocketzooError, match=said):
        shrink(base, data, "macs=50%", method, settings=settings, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
