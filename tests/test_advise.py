"""Advice: the guidelines' figures are the paper's, each sin is found and nothing else, and v2 sins less than v1."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import pocketzoo as pz
from pocketzoo.commands.advise import advise_command
from pocketzoo.errors import InvalidSetting, OutsideCalibration
from pocketzoo.profiler import advise as advising
from pocketzoo.profiler.advise import Advice, advise, examine
from pocketzoo.profiler.guidelines import Finding, least_access, parallel_parts, pointwise_access
from pocketzoo.profiler.physical import LatencyError
from pocketzoo.profiler.savings import changed
from pocketzoo.zoo.layers import channel_shuffle

PIXELS = 56 * 56  # arXiv:1807.11164, Tables 1 and 2


@dataclass(frozen=True)
class Traffic:
    """A device that moves a million elements a millisecond, folds batch norm, and knows no wider convolution."""

    device: str = "traffic"
    runtime: str = "none"
    widest: int = 10_000
    error: LatencyError = field(default_factory=lambda: LatencyError(0.0, 100.0, 1.0, "itself", "this test"))

    def predict(self, graph: pz.ChannelGraph, widths: Any = None) -> Any:
        rows = [None] if widths is None else np.atleast_2d(widths)
        return np.array([self._sum(graph.operators(row)) for row in rows])

    def by_operator(self, graph: pz.ChannelGraph) -> Any:
        return np.array([self._ms(op) for op in graph.operators()])

    def _sum(self, operators: Any) -> float:
        return float(sum(self._ms(op) for op in operators))

    def _ms(self, op: Any) -> float:
        if op.kind in ("conv", "grouped conv") and np.max(op.output[1]) > self.widest:
            raise OutsideCalibration(f"{op.output[1]} channels")
        if op.kind in ("view", "batch norm"):
            return 0.0
        return float(np.max(op.elements_in + op.elements_out + op.elements_weight)) / 1e6


class Blocked(Traffic):
    """The same; convolutions write a layout that norms and activations keep, and that is copied for everything else.

    As in a calibrated model of ONNX Runtime, a copy stands in the line of the operator whose output is copied.
    """

    def predict(self, graph: pz.ChannelGraph, widths: Any = None) -> Any:
        assert widths is None
        return np.array([self.by_operator(graph).sum()])

    def by_operator(self, graph: pz.ChannelGraph) -> Any:
        operators = graph.operators()
        lines, blocked = super().by_operator(graph), []
        for op in operators:
            keeps = op.kind in ("batch norm", "activation")
            blocked.append(op.kind == "conv" or (keeps and blocked[op.sources[0]]))
            if op.kind != "conv" and not keeps:
                for source in op.sources:
                    if source >= 0 and blocked[source]:
                        lines[source] += 2 * operators[source].elements_out / 1e6
        return lines


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(x, 4)


class Gate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x.mean((2, 3), keepdim=True)) * x


def conv(c_in: int, c_out: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 1, groups=groups, bias=False)


class Branches(nn.Module):
    """1x1 convolutions side by side, summed."""

    def __init__(self, channels: int, number: int, after: type[nn.Module] = nn.Identity) -> None:
        super().__init__()
        branches = (nn.Sequential(conv(channels, channels), after()) for _ in range(number))
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches)
        for other in others:
            first = first + other
        return first


def examined(model: nn.Module, channels: int, side: int = 28, **how: Any) -> Advice:
    return examine(pz.trace(model, (1, channels, side, side)), **how)


def guidelines(found: Advice) -> list[str]:
    return [finding.guideline for finding in found.findings]


# -- the paper's figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("c_in", "c_out"), [(128, 128), (90, 180), (52, 312), (36, 432)])  # Table 1
def test_balance_is_table_1(c_in: int, c_out: int) -> None:
    root = math.sqrt(c_in * c_out)
    expected = (PIXELS * (c_in + c_out) + c_in * c_out) / (2 * PIXELS * root + c_in * c_out)
    macs = PIXELS * c_in * c_out
    bound = 2 * math.sqrt(PIXELS * macs) + macs / PIXELS
    assert least_access(PIXELS, c_in, c_out) == pytest.approx(bound)
    assert pointwise_access(PIXELS, c_in, c_out) / bound == pytest.approx(expected)
    found = examined(conv(c_in, c_out), c_in, 56)
    assert guidelines(found) == (["G1 balance"] if c_out / c_in > 2 else [])
    if found.findings:
        (finding,) = found.findings
        equal = 4 * math.ceil(root / 4)
        gone = PIXELS * (c_in + c_out - 2 * equal) + c_in * c_out - equal * equal
        assert finding.cost.access == gone
        assert f"{expected:.2f}x of the least" in finding.figure
        assert f"{equal}:{equal} at no fewer MACs" in finding.remedy


@pytest.mark.parametrize(("groups", "channels"), [(2, 180), (4, 256), (8, 360)])  # Table 2: about 128 sqrt(g)
def test_grouping_is_table_2(groups: int, channels: int) -> None:
    macs = PIXELS * channels * channels // groups
    by_formula = PIXELS * channels + macs * groups / channels + macs / PIXELS  # section 2, equation 2
    assert pointwise_access(PIXELS, channels, channels, groups) == by_formula
    narrow = 128
    assert 0 <= narrow - channels / math.sqrt(groups) < 1
    (finding,) = examined(conv(channels, channels, groups), channels, 56).findings
    assert finding.guideline == "G2 groups"
    assert finding.cost.access == by_formula - (2 * PIXELS * narrow + narrow * narrow)
    ratio = by_formula / (2 * PIXELS * narrow + narrow * narrow)
    assert f"{groups} groups, memory access {ratio:.2f}x" in finding.figure


# -- one sin each -----------------------------------------------------------------------------------------------------


def test_a_clean_net_has_no_findings() -> None:
    found = examined(nn.Sequential(*(conv(64, 64) for _ in range(4))), 64)
    assert found.findings == []
    assert found.elementwise.access == 0


@pytest.mark.parametrize(
    ("sin", "guideline", "layer"),
    [
        (nn.Sequential(conv(64, 16), conv(16, 64)), "G1 balance", "3.0"),
        (conv(64, 64, 4), "G2 groups", "3"),
        (nn.ReLU(), "G4 element-wise", "3"),
        (nn.BatchNorm2d(64), "G4 element-wise", "3"),
        (nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), "G4 element-wise", "3"),
    ],
    ids=["balance", "groups", "relu", "norm", "depthwise"],
)
def test_each_sin_is_found_alone(sin: nn.Module, guideline: str, layer: str) -> None:
    found = examined(nn.Sequential(conv(64, 64), conv(64, 64), conv(64, 64), sin, conv(64, 64)), 64)
    assert set(guidelines(found)) == {guideline}
    assert found.findings[0].layer == layer


def test_small_branches_are_fragments_and_large_ones_are_not() -> None:
    def fragments(side: int) -> list[Finding]:
        found = examined(nn.Sequential(conv(128, 128), Branches(128, 4), conv(128, 128)), 128, side)
        return [f for f in found.findings if f.guideline == "G3 fragments"]

    assert 128 * 128 * 28**2 < 25e6 < 128 * 128 * 56**2
    (finding,) = fragments(28)
    assert finding.layer == "1"
    assert finding.cost.access == 4 * (2 * 128) * 28**2 - (128 + 4 * 128) * 28**2  # the weights are as many
    macs = 4 * 128 * 128 * 28**2
    assert finding.figure.startswith("4 branches, 4 convolutions")
    assert finding.figure.endswith(f"{4e6 / macs:.2g} kernels a million")
    assert fragments(56) == []


def test_one_branch_for_all_is_widened_with_what_follows_its_convolutions() -> None:
    found = examined(nn.Sequential(conv(128, 128), Branches(128, 2, nn.ReLU), conv(128, 128)), 128, latency=Traffic())
    (finding,) = (f for f in found.findings if f.guideline == "G3 fragments")
    two = 2 * (2 * 128 * 28**2 + 128 * 128) + 2 * 2 * 128 * 28**2  # convolutions, ReLUs
    one = (128 + 256) * 28**2 + 128 * 256 + 2 * 256 * 28**2
    assert finding.cost == pytest.approx((two - one, (two - one) / 1e6))


def test_a_shortcut_is_no_branch() -> None:
    with torch.device("meta"):
        operators = pz.trace(pz.Architecture.of("resnet18").build(), (1, 3, 64, 64)).operators()
    joined = [operators[join].name for _, join in parallel_parts(operators)]
    assert joined == ["stages.1.0", "stages.2.0", "stages.3.0"]  # where the shortcut is a convolution


# -- devices ----------------------------------------------------------------------------------------------------------


def test_costs_are_the_devices_and_come_first_to_last() -> None:
    model = nn.Sequential(conv(64, 64), nn.BatchNorm2d(64), nn.ReLU(), conv(64, 16), conv(16, 64), conv(64, 64, 4))
    found = examined(model, 64, latency=Traffic())
    costs = [finding.cost.ms for finding in found.findings]
    assert costs == sorted(costs, reverse=True)
    by_layer = {finding.layer: finding for finding in found.findings}
    assert "1" not in by_layer, "a folded norm costs nothing on this device"
    elements = 64 * 28**2
    assert by_layer["2"].cost.ms == pytest.approx(2 * elements / 1e6)
    gone = 28**2 * (64 + 16 - 32 - 32)
    assert by_layer["3"].cost == pytest.approx((gone, gone / 1e6))
    assert found.total.ms == pytest.approx(Traffic().by_operator(pz.trace(model, (1, 64, 28, 28))).sum())


def test_a_copy_is_saved_with_its_reader() -> None:
    model = nn.Sequential(conv(64, 64), nn.BatchNorm2d(64), Shuffle(), conv(64, 64))
    graph, copied = pz.trace(model, (1, 64, 28, 28)), 2 * 64 * 28**2 / 1e6
    norm = next(i for i, op in enumerate(graph.operators()) if op.kind == "batch norm")
    assert Blocked().by_operator(graph)[norm] == copied, "the line of the norm, which folding it would not save"
    (finding,) = examine(graph, Blocked()).findings
    assert finding.layer == "2"
    assert finding.cost.ms == pytest.approx(copied + copied), "what the shuffle moves, and the copy that it needs"
    total = 2 * (copied + 64 * 64 / 1e6) + 2 * copied  # two convolutions, the shuffle, the copy
    assert f"{100 * 2 * copied / total:.1f} % of the time" in finding.figure
    assert examine(graph, Blocked()).elementwise.ms == pytest.approx(2 * copied)


def test_depthwise_pays_for_its_macs() -> None:
    depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
    (finding,) = examined(nn.Sequential(conv(64, 64), depthwise), 64, latency=Traffic()).findings
    own, dense = 2 * 64 * 28**2 + 64 * 9, 2 * 64 * 28**2 + 64 * 64
    assert finding.cost == pytest.approx((own - 9 / 64 * dense, (own - 9 / 64 * dense) / 1e6))


def test_what_read_an_operator_that_is_gone_reads_its_largest_input() -> None:
    model = nn.Sequential(conv(8, 16), Gate(), conv(16, 8))
    operators = pz.trace(model, (1, 8, 6, 6)).operators()
    first, mean, gate, mul, last = (
        next(i for i, op in enumerate(operators) if op.name == name and op.kind == kind)
        for name, kind in [("0", "conv"), ("1", "pool"), ("1", "activation"), ("1", "mul"), ("2", "conv")]
    )
    assert operators[last].sources == (mul,)
    assert (first, mean, gate) == (0, 1, 2)
    left = changed(operators, {mul: None, mean: None})
    assert [(op.kind, op.sources) for op in left] == [("conv", (-1,)), ("activation", (0,)), ("conv", (0,))]
    assert left[-1].inputs == operators[last].inputs


def test_an_alternative_outside_the_calibration_is_said_to_be_unknown() -> None:
    class Narrow(Traffic):
        def _ms(self, op: Any) -> float:
            if op.output[1] == 32:
                raise OutsideCalibration("32 channels")
            return super()._ms(op)

    found = examined(nn.Sequential(conv(64, 16), conv(16, 64)), 64, latency=Narrow())
    assert [math.isnan(finding.cost.ms) for finding in found.findings] == [True, True]
    assert [row["cost_ms"] for row in found.to_dict()["findings"]] == [None, None]


def test_idle_lanes_and_the_next_multiple() -> None:
    model = nn.Sequential(conv(64, 58), conv(58, 64), conv(64, 64))
    (finding,) = examined(model, 64, latency=Traffic(), lanes=16).findings
    assert (finding.guideline, finding.layer) == ("vectors", "0")
    made = 28**2 * (64 + 58) + 64 * 58
    assert finding.cost.ms == pytest.approx((1 - 58 / 64) * made / 1e6)
    more = (2 * 64 * 64) / (2 * 64 * 58 + 64 * 64) - 1 + 64 * 64 / (2 * 64 * 58 + 64 * 64)
    assert f"64 channels: {100 * more:+.1f} % MACs, +" in finding.remedy
    assert examined(model, 64, latency=Traffic(), lanes=2).findings == []


def test_widening_outside_the_calibration_is_said_to_be_unknown() -> None:
    model = nn.Sequential(conv(64, 58), conv(58, 60))
    (finding,) = examined(model, 64, latency=Traffic(widest=60), lanes=16).findings
    assert "outside the device's calibration" in finding.remedy


def test_lanes_of_devices() -> None:
    assert advising.vector_lanes("snapdragon810") == 4
    assert advising.vector_lanes("gtx1080ti") is None
    assert advising.vector_lanes("cpu") in (4, 8, 16)


# -- whole networks ---------------------------------------------------------------------------------------------------


def test_shufflenet_v2_keeps_the_guidelines_that_v1_breaks() -> None:
    v1, v2 = (advise(name) for name in ("shufflenet_v1_g3_x1_0", "shufflenet_v2_x1_0"))  # 137 and 145 M MACs
    for guideline in ("G1 balance", "G2 groups", "G4 element-wise"):
        assert (v2["guideline"] == guideline).sum() < (v1["guideline"] == guideline).sum(), guideline
    assert not (v2["guideline"] == "G2 groups").any()


def test_published_device_prices_every_finding() -> None:
    pytest.importorskip("pocketzoo.profiler.published")
    from pocketzoo.profiler.published import published

    with torch.device("meta"):
        model = pz.Architecture.of("shufflenet_v2_x0_5").build()
    found = examined(model, 3, 224, latency=published("snapdragon810"), lanes=4)
    assert found.findings
    assert all(finding.cost.ms > 0 for finding in found.findings)


# -- from the outside -------------------------------------------------------------------------------------------------


def test_frame_without_a_device() -> None:
    frame = advise(nn.Sequential(conv(8, 96), conv(96, 96)), input_shape=(1, 8, 28, 28))
    assert list(frame["layer"]) == ["0"]
    assert frame["cost_ms"].isna().all()
    gone = 28**2 * (8 + 96 - 28 - 28) + 8 * 96 - 28 * 28
    total = 28**2 * (8 + 96) + 8 * 96 + 28**2 * (96 + 96) + 96 * 96
    assert frame["access_percent"].tolist() == pytest.approx([100 * gone / total])
    assert frame.attrs["device"] is None


def test_runtime_without_a_device_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="belongs to a device"):
        advise("mobilenet_v2", runtime="onnxruntime")


def test_command_prints_json_and_a_table() -> None:
    ran = CliRunner().invoke(advise_command, ["shufflenet_v1_g3_x0_25", "--json"])
    assert ran.exit_code == 0, ran.output
    record = json.loads(ran.output)
    assert (record["device"], record["total"]["ms"]) == (None, None)
    assert {row["guideline"] for row in record["findings"]} >= {"G1 balance", "G2 groups", "G4 element-wise"}
    shown = CliRunner().invoke(advise_command, ["shufflenet_v1_g3_x0_25", "--top", "2"])
    assert f"2 of {len(record['findings'])} findings" in " ".join(shown.output.split())
    assert "no device was chosen" in " ".join(shown.output.split())
