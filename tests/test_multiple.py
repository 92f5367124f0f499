"""Widths in multiples: what a graph's steps become, and that search, shrink and verdict keep to them."""

from math import lcm
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import pocketzoo as pz
from pocketzoo import Architecture, InvalidRun, InvalidSetting, InvalidWidths
from pocketzoo.cli import main
from pocketzoo.search.plan import Plan
from pocketzoo.search.space import Space
from pocketzoo.search.verdict import random_widths, uniform_widths
from pocketzoo.training.recipe import Recipe

FORM = {"num_classes": 10, "in_channels": 1, "resolution": 8}
NET = Architecture.of("mobilenet_v2_x0_35", repeats=(1, 1, 1, 1, 1, 1, 1), **FORM)


@pytest.mark.parametrize("multiple", [1, 8, 16])
@pytest.mark.parametrize("name", ["mobilenet_v2_x0_35", "shufflenet_v1_g3_x0_25", "cifar_resnet20"])
def test_a_step_is_the_multiple_where_there_are_as_many_channels(name: str, multiple: int) -> None:
    architecture = Architecture.of(name)
    plain, stepped = architecture.graph(), architecture.graph(multiple=multiple)
    for group, width in plain.groups.items():
        both = lcm(plain.steps[group], multiple)
        assert stepped.steps[group] == (both if both <= width else plain.steps[group])


def test_every_candidate_of_a_search_keeps_to_the_multiple() -> None:
    budget = pz.Budget(macs="100k")
    space = Space(NET, budget, multiple=8)
    rng = np.random.default_rng(0)
    steps = NET.graph(multiple=8).steps
    assert set(steps.values()) == {8}
    for _ in range(10):
        candidate = space.candidate({}, {name: float(rng.uniform(0.4, 2.5)) for name in steps})
        assert candidate.architecture.widths is not None
        assert all(width % 8 == 0 for width in candidate.architecture.widths.values())
        assert candidate.macs <= 100_000


def test_a_search_in_multiples_is_another_search() -> None:
    plain, stepped = (
        Plan(NET, pz.load_data("digits", subset=100), pz.Budget(macs="100k"), 1, multiple=m) for m in (1, 8)
    )
    assert plain.study_name != stepped.study_name
    assert "multiple" not in plain.fingerprint  # searches that were begun before there were multiples go on


@pytest.mark.parametrize("multiple", [0, -8])
def test_a_multiple_below_one_is_refused(multiple: int) -> None:
    with pytest.raises(InvalidWidths, match="at least 1"):
        NET.graph(multiple=multiple)
    with pytest.raises(InvalidSetting, match="at least 1"):
        Plan(NET, "digits", pz.Budget(macs="100k"), 1, multiple=multiple)


def test_shrinking_keeps_to_the_multiple_and_its_folder_to_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data, recipe = pz.load_data("digits", subset=300), Recipe(epochs=1, batch_size=64)
    small = pz.shrink(NET, data, "macs=50%", "random", out=tmp_path / "run", recipe=recipe, multiple=8)
    default = NET.graph().groups
    for widths in (small.widths, uniform_widths(small, 0), random_widths(small, 0)):
        assert all(width % 8 == 0 or width == default[group] == 0 for group, width in widths.items()), widths
    assert small.result.costs["macs"] <= 0.5 * NET.graph().price().macs
    with pytest.raises(InvalidRun, match="multiple"):
        pz.shrink(NET, data, "macs=50%", "random", out=tmp_path / "run", recipe=recipe, multiple=16)


def test_the_commands_take_a_multiple(tmp_path: Path) -> None:
    command = ["search", "lenet5", "--data", "digits", "--macs", "60k", "--trials", "1", "--epochs", "1"]
    outcome = CliRunner().invoke(main, [*command, "--multiple", "4", "--out", str(tmp_path / "run"), "--json"])
    assert outcome.exit_code == 0, outcome.output
    best = Architecture.from_json((tmp_path / "run" / "best.json").read_text())
    assert best.widths is not None
    assert all(width % 4 == 0 for width in best.widths.values())
    refused = CliRunner().invoke(main, [*command, "--multiple", "0", "--out", str(tmp_path / "other")])
    assert refused.exit_code == 2
