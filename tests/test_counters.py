"""Other counters: their figures are theirs, every difference is explained, and the model stays as it was."""

import sys
from typing import Any, get_args

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn import functional as F

import pocketzoo as pz
from pocketzoo.errors import InvalidSetting, MissingExtra, UntraceableModel
from pocketzoo.profiler import counters
from pocketzoo.profiler.counters import UNEXPLAINED, Comparison, Tool, as_counted_by, cross_check
from pocketzoo.zoo import registry

TOOLS = get_args(Tool)
registry.load_families()
FIRST_OF_EACH = [next(iter(family.variants)) for family in registry.FAMILIES.values()]
N_ELEMENTS = 39 * 9 * 17  # of Small's convolution's output


class Small(nn.Module):
    """Every side distinct: a biased convolution, batch norm, ReLU, pools, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(33, 39, (5, 7), stride=(2, 1), groups=3)
        self.norm, self.act = nn.BatchNorm2d(39), nn.ReLU()
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(39, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.act(self.norm(self.conv(x))))
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]


class Functional(nn.Module):
    """A convolution, a linear layer and a ReLU that are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.matrix = nn.Parameter(torch.ones(5, 3, 3, 3)), nn.Parameter(torch.ones(7, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.conv2d(x, self.kernel))
        return F.linear(x.flatten(2).mean(2), self.matrix)


SHAPE = (1, 33, 21, 23)
CONV, LINEAR = 39 * 11 * (5 * 7) * (9 * 17), 39 * 11
SMALL = {  # by the tools' rules, by hand
    "fvcore": {"grouped conv": CONV, "batch norm": 2 * N_ELEMENTS, "activation": 0, "pool": N_ELEMENTS,
               "linear": LINEAR},
    "thop": {"grouped conv": CONV, "batch norm": 4 * N_ELEMENTS, "activation": 0, "pool": N_ELEMENTS + 39,
             "linear": LINEAR},
    "ptflops": {"grouped conv": CONV + N_ELEMENTS, "batch norm": 2 * N_ELEMENTS, "activation": 2 * N_ELEMENTS,
                "pool": 2 * N_ELEMENTS, "linear": LINEAR + 11},
}  # fmt: skip


def compared(model: nn.Module, tool: Any, shape: tuple[int, ...] = SHAPE) -> Comparison:
    return as_counted_by(model, shape, tool)


@pytest.mark.parametrize("tool", TOOLS)
def test_each_kind_by_hand(tool: str) -> None:
    comparison = compared(Small(), tool)
    assert comparison.unexplained == 0
    figures = {kind: n for kind, n in comparison.by_kind["tool"].items() if kind != "view"}
    assert figures == SMALL[tool]
    assert comparison.macs == CONV + LINEAR
    assert comparison.total == sum(SMALL[tool].values())


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", FIRST_OF_EACH)
def test_every_family_is_explained_to_the_unit(name: str, tool: str) -> None:
    arch = pz.Architecture.of(name)
    arch = arch.with_settings(resolution=min(arch.resolution, 96))
    with torch.device("meta"):
        model = arch.build()
    comparison = compared(model, tool, arch.input_shape)
    assert comparison.unexplained == 0
    assert comparison.by_kind["tool"].sum() == comparison.total
    assert comparison.by_kind["ours"].sum() == comparison.macs
    assert all(
        bool(why) == bool(d) for why, d in zip(comparison.by_kind["why"], comparison.by_kind["difference"], strict=True)
    )


@pytest.mark.parametrize("name", FIRST_OF_EACH)
def test_two_other_counters_agree_with_ours(name: str) -> None:
    arch = pz.Architecture.of(name)
    arch = arch.with_settings(resolution=min(arch.resolution, 96))
    check = cross_check(arch.build(), arch.input_shape)
    assert check.agrees, str(check)


def test_what_a_check_compares() -> None:
    check = cross_check(Small(), (5, *SHAPE[1:]))
    assert (check.macs, check.flop_counter, check.conv_and_linear, check.fvcore) == (CONV + LINEAR,) * 4
    assert "agrees" in str(check)
    wrong = counters.CrossCheck(10, 10, 8, 9)
    assert not wrong.agrees
    assert "DISAGREES" in str(wrong)


def test_functional_calls_are_silent_zeros_elsewhere() -> None:
    macs = 5 * 3 * 9 * 6 * 6 + 5 * 7
    for tool, total in (("fvcore", macs), ("thop", 0), ("ptflops", 5 * 6 * 6)):
        comparison = compared(Functional(), tool, (1, 3, 8, 8))
        assert (comparison.macs, comparison.total, comparison.unexplained) == (macs, total, 0)


def test_a_strided_transposed_convolution_is_overcounted_by_thop() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 2, stride=2))
    macs = 3 * 5 * 4 * 7 * 6
    for tool, total in (("fvcore", macs), ("thop", 4 * macs), ("ptflops", macs + 5 * 14 * 12)):
        comparison = compared(model, tool, (1, 3, 7, 6))
        assert (comparison.macs, comparison.total, comparison.unexplained) == (macs, total, 0)


def test_what_the_rules_do_not_cover_is_unexplained() -> None:
    comparison = compared(nn.Sequential(nn.LSTM(8, 6)), "thop", (1, 4, 8))
    assert comparison.by_kind.loc[UNEXPLAINED, "tool"] == comparison.unexplained != 0
    assert comparison.by_kind["tool"].sum() == comparison.total


@pytest.mark.parametrize("tool", TOOLS)
def test_the_model_keeps_nothing_and_nothing_is_printed(tool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = Small().train()
    before, keys = dict(vars(model.conv)), list(model.state_dict())
    compared(model, tool)
    assert model.training
    assert dict(vars(model.conv)) == before
    assert list(model.state_dict()) == keys
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert "flops" not in " ".join(vars(model))
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_fvcore_prints_what_we_say_it_prints() -> None:
    total = FlopCountAnalysis(Small().eval(), torch.zeros(SHAPE)).unsupported_ops_warnings(False).total()
    assert compared(Small(), "fvcore").total == total


def test_records_and_tables() -> None:
    comparison = compared(Small(), "thop")
    record = comparison.to_dict()
    assert sum(row["tool"] for row in record["by_kind"]) == record["total"] == comparison.total
    assert "multiply-accumulate" in comparison.convention
    assert comparison.table() is not None


def test_an_unknown_tool_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="fvcore, thop, ptflops"):
        compared(Small(), "calflops")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_model_that_a_tool_cannot_run_is_refused(tool: Any) -> None:
    with pytest.raises(UntraceableModel, match=tool):
        compared(Small(), tool, (1, 32, 21, 23))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ptflops", None)
    with pytest.raises(MissingExtra, match=r"pocketzoo\[counters\]"):
        compared(Small(), "ptflops")
