"""Each proxy against a closed form on a small exact case, and the rule by which one is trusted."""

import copy
import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn

from pocketzoo import InvalidSetting, create_model
from pocketzoo.search.correlation import LEAST, rank_correlations, verdict
from pocketzoo.search.proxies import COUNTS, PROXIES, UndefinedProxy, proxy_score, proxy_scores

NO_LABELS = torch.zeros(0, dtype=torch.int64)


def with_weights(module: nn.Module, *weights: Tensor) -> nn.Module:
    with torch.no_grad():
        for parameter, weight in zip(module.parameters(), weights, strict=True):
            parameter.copy_(weight)
    return module


# -- formulas ------------------------------------------------------------------------------------------------------


def test_counts() -> None:
    """Convolution 3x3 of 2 channels into 5 without padding on 8x6, then a classifier of 5*6*4 into 7."""
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(5 * 6 * 4, 7))
    scores = proxy_scores(model, torch.zeros(3, 2, 8, 6), NO_LABELS, COUNTS)
    assert scores == {
        "params": (5 * 2 * 9 + 5) + (120 * 7 + 7),
        "macs": 5 * 2 * 9 * 6 * 4 + 120 * 7,
        "activations": 5 * 6 * 4 + 7,
    }


def test_gradient_norm_and_snip_of_a_linear_layer() -> None:
    """Weights diag(ln 3), one image (1, 0) of class 0: p = (3/4, 1/4), so dL/dW = [[-1/4, 0], [1/4, 0]]."""
    model = with_weights(nn.Linear(2, 2, bias=False), math.log(3) * torch.eye(2))
    image, label = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert proxy_score("grad_norm", model, image, label) == pytest.approx(math.sqrt(2) / 4)
    assert proxy_score("snip", model, image, label) == pytest.approx(math.log(3) / 4)


def test_gradient_norms_are_summed_over_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    images, labels = torch.randn(5, 4), torch.randint(0, 3, (5,))
    nn.functional.cross_entropy(model(images), labels).backward()
    norms = [model[i].weight.grad.norm().item() for i in (0, 2)]
    assert proxy_score("grad_norm", model, images, labels) == pytest.approx(sum(norms))


@pytest.mark.parametrize("rectifier", [nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.GELU()])
def test_synflow_of_a_chain_is_its_product(rectifier: nn.Module) -> None:
    """R = 1'|W3||W2||W1|1, and the entries of each of the three weights have R in all; large enough to saturate."""
    torch.manual_seed(0)
    sizes = (3, 5, 4, 2)
    weights = [20 * torch.randn(b, a) for a, b in pairwise(sizes)]
    layers = [nn.Linear(w.shape[1], w.shape[0], bias=False) for w in weights]
    model = with_weights(nn.Sequential(layers[0], rectifier, layers[1], rectifier, layers[2]), *weights)
    flow = torch.ones(3)
    for weight in weights:
        flow = weight.abs() @ flow
    assert proxy_score("synflow", model, torch.randn(7, 3), NO_LABELS) == pytest.approx(math.log(3 * flow.sum()))


def test_naswot_is_the_determinant_of_the_hamming_kernel() -> None:
    """Codes 1100, 1010, 1111 lie 2 apart, so K is 4 on the diagonal and 2 beside it: det = 4*12 - 2*4 - 2*4 = 32."""
    images = 2 * torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]) - 1
    assert proxy_score("naswot", nn.ReLU(), images, NO_LABELS) == pytest.approx(math.log(32))


def test_naswot_adds_the_kernels_of_all_layers() -> None:
    """The same codes twice: every entry doubles, and so the determinant grows by 2^3."""
    images = 2 * torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]) - 1

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu() + torch.nn.functional.hardtanh(input=x)

    assert proxy_score("naswot", Twice(), images, NO_LABELS) == pytest.approx(math.log(32 * 8))


def test_zen_of_one_layer() -> None:
    """A 1x1 convolution of n channels into m and its batch norm, no rectifier.

    The norm's input has variance |w_j|^2, on average n, and so the second term is ln sqrt(n). The output moves by
    a (w_j . e)/|w_j|, a standard normal number times a, in each of m*h*w places: the first term is ln(a sqrt(m h w)).
    """
    n, m, side = 16, 512, 12
    model = nn.Sequential(nn.Conv2d(n, m, 1, bias=False), nn.BatchNorm2d(m))
    expected = math.log(0.01 * math.sqrt(m * side * side)) + math.log(math.sqrt(n))
    assert proxy_score("zen", model, torch.zeros(1, n, side, side), NO_LABELS) == pytest.approx(expected, abs=0.03)


def test_zen_does_not_see_what_follows_the_last_map() -> None:
    body = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    scores = [
        proxy_score("zen", copy.deepcopy(nn.Sequential(*body, *more)), torch.zeros(1, 3, 8, 8), NO_LABELS)
        for more in ([], head)
    ]
    assert scores[0] == scores[1]


# -- what they leave, and what they refuse -------------------------------------------------------------------------


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = create_model("mobilenet_v2", num_classes=10, resolution=32)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    state = torch.get_rng_state()
    first, second = (proxy_scores(model, images, labels) for _ in range(2))
    assert first == second
    assert all(math.isfinite(score) for score in first.values())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_a_network_lacks() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.randn(3, 1, 2, 2)
    with pytest.raises(UndefinedProxy, match="zen needs batch norm"):
        proxy_score("zen", model, images, NO_LABELS)
    with pytest.raises(UndefinedProxy, match="naswot needs rectifiers"):
        proxy_score("naswot", model, images, NO_LABELS)
    scores = proxy_scores(model, images, torch.tensor([0, 1, 0]))
    assert list(scores) == list(PROXIES)
    assert {name for name, score in scores.items() if math.isnan(score)} == {"zen", "naswot"}


def test_an_unknown_proxy() -> None:
    with pytest.raises(InvalidSetting, match="did you mean synflow"):
        proxy_score("sinflow", nn.ReLU(), torch.zeros(1, 1), NO_LABELS)


# -- correlation ---------------------------------------------------------------------------------------------------


def test_tau_and_rho_are_scipys_with_ties() -> None:
    rng = np.random.default_rng(0)
    accuracy = rng.integers(0, 6, 20) / 10
    scores = pd.DataFrame({"params": rng.integers(0, 5, 20), "zen": rng.normal(size=20)}, dtype=float)
    table = rank_correlations(scores, list(accuracy), COUNTS).set_index("proxy")
    for name in scores:
        assert table.loc[name, "tau"] == pytest.approx(kendalltau(scores[name], accuracy).statistic)
        assert table.loc[name, "spearman"] == pytest.approx(spearmanr(scores[name], accuracy).statistic)
        assert table.loc[name, "low"] < table.loc[name, "tau"] < table.loc[name, "high"]


def ordered(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n).astype(float)


def test_a_proxy_that_orders_networks_far_better_than_counts_is_trusted() -> None:
    accuracy = np.arange(20) / 20
    scores = pd.DataFrame(
        {"params": ordered(20, 1), "macs": ordered(20, 2), "zen": accuracy**3, "snip": ordered(20, 3)}
    )
    table = rank_correlations(scores, list(accuracy), COUNTS)
    assert list(table[table["trusted"]]["proxy"]) == ["zen"]
    assert tuple(table.loc[0, ["proxy", "tau", "low", "high"]]) == ("zen", 1, 1, 1)
    assert verdict(table, COUNTS).startswith("proxies: zen (Kendall's tau 1.00, 95 % interval 1.00 to 1.00) is trusted")


def test_a_proxy_that_only_repeats_a_count_is_not() -> None:
    """Also where the count orders them the wrong way round: whoever turns it does as well."""
    accuracy = np.arange(20) / 20
    for sign in (1, -1):
        scores = pd.DataFrame({"params": sign * accuracy, "zen": accuracy})
        table = rank_correlations(scores, list(accuracy), COUNTS)
        assert not table["trusted"].any()
        assert table.set_index("proxy").loc["zen", "lead"] == pytest.approx(0)
        assert "none is trusted for this budget: the nearest is zen" in verdict(table, COUNTS)


def test_too_few_networks() -> None:
    scores = pd.DataFrame({"params": range(LEAST - 1), "zen": range(LEAST - 1)}, dtype=float)
    table = rank_correlations(scores, list(range(LEAST - 1)), COUNTS)
    assert table.empty
    assert f"too few trained networks to tell; {LEAST} are needed" in verdict(table, COUNTS)


@pytest.mark.filterwarnings("error")
def test_counts_that_are_all_equal_and_proxies_that_are_not_defined() -> None:
    accuracy = np.arange(10) / 10
    scores = pd.DataFrame({"macs": np.ones(10), "zen": np.nan, "snip": accuracy})
    table = rank_correlations(scores, list(accuracy), COUNTS).set_index("proxy")
    assert table.loc["macs", "tau"] == 0
    assert math.isnan(table.loc["zen", "tau"])
    assert table.loc["snip", "trusted"]
    assert not table.loc["zen", "trusted"]
