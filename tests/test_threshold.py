"""One threshold for all channels, against brute force over thresholds; and branches that go while others are cut."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

import pocketzoo as pz
from pocketzoo.search.budget import Budget
from pocketzoo.search.threshold import widths_by_score
from properties import counted, first_output, random_scores, randomise

Ints = npt.NDArray[np.int64]


class Chain:
    """Groups a, b, c in a row; the MACs of a network that reads an image of 1 and gives 10 classes."""

    groups: Mapping[str, int] = MappingProxyType({"a": 4, "b": 6, "c": 8})
    removable: frozenset[str] = frozenset()
    branches: tuple[frozenset[str], ...] = ()

    def __init__(self, **steps: int) -> None:
        self.steps = {name: steps.get(name, 1) for name in self.groups}

    def macs(self, widths: Ints) -> Ints:
        a, b, c = np.atleast_2d(widths).T
        return np.asarray(9 * a + 5 * a * b + 3 * b * c + 10 * c)

    def valid(self, widths: Ints) -> npt.NDArray[np.bool_]:
        return np.ones(len(widths), dtype=bool)

    def price_many(self, widths: Ints, columns: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame({"macs": self.macs(widths)}, columns=list(columns))


def scores_of(graph: Chain, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(width) for name, width in graph.groups.items()}


def above(scores: dict[str, npt.NDArray[np.float64]], threshold: float) -> Ints:
    """Channels above the threshold, at least one of each group."""
    return np.array([[max(1, int((own >= threshold).sum())) for own in scores.values()]])


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_the_lowest_that_fits(seed: int) -> None:
    graph, limit = Chain(), 150
    scores = scores_of(graph, seed)
    every = np.concatenate([above(scores, t) for t in np.concatenate([*scores.values(), [np.inf]])])
    fitting = every[graph.macs(every) <= limit]
    lowest = fitting[fitting.sum(axis=1).argmax()]

    widths = np.array(list(widths_by_score(graph, scores, Budget(macs=limit)).values()))  # type: ignore[arg-type]
    assert (widths >= lowest).all()
    assert graph.macs(widths)[0] <= limit
    room = widths + np.eye(3, dtype=np.int64)
    possible = (room <= np.array(list(graph.groups.values()))).all(axis=1)
    assert (graph.macs(room[possible]) > limit).all()  # nothing that fits is left


def test_the_next_best_channel_that_fits_takes_what_is_left() -> None:
    """By hand: 9a + 5ab + 3bc + 10c <= 60 with scores a > c > b."""
    scores = {"a": np.array([9.0, 8, 7, 6]), "b": np.full(6, 0.1), "c": np.array([5.0, 4, 3, 2, 1, 1, 1, 1])}
    # (1,1,1)=27, (2,1,1)=41, (3,1,1)=55 fit, (4,1,1)=69 does not; then c: (3,1,2)=68 and b: (3,2,1)=73 do not either
    assert widths_by_score(Chain(), scores, Budget(macs=60)) == {"a": 3, "b": 1, "c": 1}  # type: ignore[arg-type]
    # 68: the fourth of a (69) does not fit, the second of c does
    assert widths_by_score(Chain(), scores, Budget(macs=68)) == {"a": 3, "b": 1, "c": 2}  # type: ignore[arg-type]


class WideChain(Chain):
    """A layer of forty channels between narrow ones."""

    groups = MappingProxyType({"a": 4, "b": 40, "c": 8})


def test_a_tenth_of_a_wide_layer_stays_where_the_budget_has_room() -> None:
    """By hand: 9a + 5ab + 3bc + 10c with scores a > c > b; (1, 4, 1), the tenths, costs 51."""
    scores = {"a": np.full(4, 9.0), "b": np.full(40, 0.1), "c": np.full(8, 5.0)}
    # of 60, neither the second of a (80) nor of c (73) fits, the fifth of b (59) does
    assert widths_by_score(WideChain(), scores, Budget(macs=60)) == {"a": 1, "b": 5, "c": 1}  # type: ignore[arg-type]
    # of 50, one of each (27) and the second of a (41); no more of a (55), c (54) or b (54)
    assert widths_by_score(WideChain(), scores, Budget(macs=50)) == {"a": 2, "b": 1, "c": 1}  # type: ignore[arg-type]


def test_steps_are_taken_whole_and_judged_by_their_mean() -> None:
    """Blocks of two of b: (9 + 1)/2 = 5, (3 + 3)/2 = 3 and (2 + 2)/2 = 2; c's single channels 4, 2.5, ... between."""
    scores = {"a": np.full(4, 0.01), "b": np.array([9.0, 1, 3, 3, 2, 2]), "c": np.array([4.5, 4, 2.5, 0.1, 0, 0, 0, 0])}
    # one step of each is given: 9 + 10 + 6 + 10 = 35; then c (4): 51, b (3): 73, c (2.5): 95; b (2) and a make 95, 102
    assert widths_by_score(Chain(b=2), scores, Budget(macs=94)) == {"a": 1, "b": 4, "c": 2}  # type: ignore[arg-type]
    assert widths_by_score(Chain(b=2), scores, Budget(macs=95)) == {"a": 1, "b": 4, "c": 3}  # type: ignore[arg-type]


def test_branches_without_a_channel_are_removed_whole() -> None:
    """The scores of one block of a ResNet-20 are far below the rest: it goes, and the rest meets the budget."""
    arch = pz.Architecture.of("cifar_resnet20", in_channels=1, num_classes=10)
    graph = arch.graph()
    (first, *_) = graph.branches
    scores = {name: np.linspace(1, 2, width) - 5 * (name in first) for name, width in graph.groups.items()}
    limit = 0.6 * graph.price().macs
    widths = widths_by_score(graph, scores, Budget(macs=limit))
    assert all(widths[name] == 0 for name in first)
    assert 0.97 * limit <= graph.price(widths).macs <= limit


FAMILIES = [  # every family with residual branches beside an identity, its smallest member
    ("cifar_resnet20", 32), ("cifar_resnet20_b", 32), ("mobilenet_v2_x0_35", 32), ("mobilenet_v3_small_x0_35", 32),
    ("shift_resnet20_e1", 32), ("shufflenet_v1_g2_x0_25", 32), ("resnet18", 32),
    *(pytest.param(name, 32, marks=pytest.mark.slow) for name in ("preresnet56", "resnext50_32x4d", "wide_resnet16_8")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "resolution"), FAMILIES)
def test_branches_go_while_other_groups_are_cut(name: str, resolution: int) -> None:
    """Priced as counted, and equal to the masked original in which the removed branches give zeros."""
    arch = pz.Architecture.of(name, num_classes=10, resolution=resolution)
    model = randomise(arch.build())
    graph = pz.trace(model, arch.input_shape)
    rng = np.random.default_rng(0)
    x = torch.randn(arch.input_shape, generator=torch.Generator().manual_seed(0))
    for i, row in enumerate(graph.random_widths(2, seed=1)):
        gone = [branch for branch in graph._branches if rng.random() < 0.5] or graph._branches[:1]
        widths = dict(zip(graph.groups, row.tolist(), strict=True))
        widths |= {graph._names[symbol]: 0 for branch in gone for symbol in branch.emptied_by}
        keep = graph.select(random_scores(graph, i), widths)
        cut = graph.resize(model, widths, keep=keep).eval()
        price = graph.price(widths)
        assert (price.params, price.macs) == counted(cut, arch.input_shape)
        masked = graph.mask(model, keep).eval()
        for branch in gone:
            last = masked.get_submodule(branch.modules[-1])
            last.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
        with torch.no_grad():
            expected, found = first_output(masked(x)), first_output(cut(x))
        assert expected.std() > 0
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max().clamp(min=1)))
