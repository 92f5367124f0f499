"""Run time by kind of operator: every operator once, shares that add up, both runtimes, the command and its picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import pocketzoo as pz
from pocketzoo.cli import main
from pocketzoo.commands.latency import kind_table
from pocketzoo.errors import InvalidSetting, UnknownDevice
from pocketzoo.profiler import breakdown as cutting
from pocketzoo.profiler.breakdown import GROUP, OUTSIDE, breakdown, figure, node_parts

SIDE = 12


class Every(nn.Module):
    """Each kind of operator that our table names, in numbers that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=8) for _ in range(2))
        self.grouped = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, groups=2) for _ in range(3))
        self.pointwise = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(4))
        self.head = nn.Linear(16, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(images)))
        for layer in [*self.depthwise, *self.grouped, *self.pointwise]:
            x = layer(x)
        x = torch.cat([x * torch.sigmoid(x), x + x], 1)
        logits: torch.Tensor = self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


MULTIPLYING = {"conv": 1, "depthwise conv": 2, "grouped conv": 3, "1x1 conv": 4, "linear": 1}


def counted(table: pd.DataFrame) -> dict[str, int]:
    return dict(zip(table["kind"], table["operators"], strict=True))


@pytest.fixture(scope="module")
def eager() -> pd.DataFrame:
    torch.manual_seed(0)
    return breakdown(Every(), resolution=SIDE)


def test_eager_counts_every_operator_by_its_kind(eager: pd.DataFrame) -> None:
    light = {"batch norm": 1, "activation": 2, "add": 1, "mul": 1, "concatenation": 1, "pool": 1, "view": 1}
    assert counted(eager) == {**MULTIPLYING, **light, OUTSIDE: 0}
    assert list(eager["group"]) == [GROUP[kind] for kind in eager["kind"]]


def test_onnx_runtime_has_the_convolutions_and_what_it_did_not_fuse() -> None:
    torch.manual_seed(0)
    found = counted(breakdown(Every(), resolution=SIDE, runtime="onnxruntime"))
    assert {kind: found.get(kind) for kind in MULTIPLYING} == MULTIPLYING
    assert "batch norm" not in found, "folded into the convolution before it"
    assert found["concatenation"] == found["pool"] == 1
    assert found[OUTSIDE] == 0


def test_shares_add_up_and_are_the_milliseconds(eager: pd.DataFrame) -> None:
    assert eager["share"].sum() == pytest.approx(1)
    assert eager["kind"].iloc[-1] == OUTSIDE
    assert (eager["ms"] >= 0).all()
    assert list(eager["share"] * eager["ms"].sum()) == pytest.approx(list(eager["ms"]))


@pytest.mark.parametrize(("total_ms", "outside", "conv"), [(10.0, 0.4, 0.5), (4.0, 0.0, 5 / 6)])
def test_the_rest_of_the_pass_is_named(total_ms: float, outside: float, conv: float) -> None:
    """Two convolutions of 3 and 2 ms, and 1 ms of pooling; a cut pass may take longer than the uncut one."""
    table = cutting._table([("conv", 3.0), ("pool", 1.0), ("conv", 2.0)], total_ms).set_index("kind")
    assert table.loc[OUTSIDE, "share"] == pytest.approx(outside)
    assert table.loc["conv", "share"] == pytest.approx(conv)
    assert table.loc["conv", "operators"] == 2
    assert table["share"].sum() == pytest.approx(1)


def node(op: str, ms: float, output: list[int], *inputs: list[int]) -> dict[str, Any]:
    return {"name": f"{op} {ms}", "op": op, "inputs": list(inputs), "output": output, "ms": ms}


def test_nodes_are_told_apart_by_weight_and_name() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1, groups=6))
    image = [1, 6, 8, 8]
    nodes = [
        node("ReorderInput", 0.25, image, image),
        node("FusedConv", 4.0, image, [1, 3, 8, 8], [6, 3, 1, 1]),
        node("Conv", 0.5, image, image, [6, 1, 1, 1]),  # the batch norm, where it cannot be folded
        node("Conv", 2.0, image, image, [6, 1, 3, 3]),
        node("HardSwish", 0.125, image, image),
        node("Unheard", 0.0625, image, image),
    ]
    parts = node_parts(nodes, pz.trace(module.eval(), (1, 3, 8, 8)), 9.0)
    assert sorted(parts) == [
        ("1x1 conv", 4.0), ("activation", 0.125), ("batch norm", 0.5), ("depthwise conv", 2.0),
        ("layout change", 0.25), ("other", 0.0625),
    ]  # fmt: skip


def test_the_batch_and_the_resolution_reach_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def eager(module: nn.Module, graph: Any, device: str, protocol: Any) -> Any:
        shapes.append((graph.inputs[0], protocol.threads))
        return [("conv", 1.0)], 2.0

    monkeypatch.setattr(cutting, "_eager", eager)
    table = breakdown("squeezenet1_1", resolution=64, batch=3, threads=1)
    assert shapes == [((3, 3, 64, 64), 1)]
    assert table.attrs["total_ms"] == 2.0


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"runtime": "compile"}, UnknownDevice, "compile cannot be cut.*eager or onnxruntime"),
        ({"runtime": "egaer"}, UnknownDevice, "did you mean eager"),
        ({"device": "ssh://x", "runtime": "eager"}, UnknownDevice, "no runtime 'eager'"),
        ({"threads": 0}, InvalidSetting, "threads is 0"),
    ],
)
def test_what_cannot_be_cut_is_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        breakdown("lenet5", **settings)


# -- the picture and the command ---------------------------------------------------------------------------------------


def test_a_bar_is_whole() -> None:
    tables = {"a": cutting._table([("conv", 3.0), ("add", 1.0)], 5.0), "b": cutting._table([("pool", 1.0)], 2.0)}
    plot = figure(tables)
    drawn = {bar.name: list(bar.x) for bar in plot.data}
    assert drawn == {"conv": [60.0, 0.0], "add": [20.0, 0.0], "pool": [0.0, 50.0], OUTSIDE: [20.0, 50.0]}
    assert {tuple(bar.y) for bar in plot.data} == {("a", "b")}
    assert len({bar.marker.color for bar in plot.data}) == len(drawn)


@pytest.fixture
def command() -> Callable[..., Any]:
    return lambda *arguments: CliRunner().invoke(main, ["measure", *arguments])


def test_the_command_prints_and_draws(command: Callable[..., Any], tmp_path: Path) -> None:
    page = tmp_path / "kinds.html"
    done = command("lenet5", "squeezenet1_1", "--resolution", "32", "--by-kind", "--picture", str(page), "--json")
    assert done.exit_code == 0, done.output
    records = json.loads(done.stdout)
    assert [record["model"] for record in records] == ["lenet5", "squeezenet1_1"]
    for record in records:
        assert sum(row["share"] for row in record["kinds"]) == pytest.approx(1)
    text = page.read_text(encoding="utf-8")
    assert "squeezenet1_1, eager, batch 1" in text
    assert "Plotly.newPlot" in text
    assert '<script src="http' not in text, "the page opens without a network"


def test_the_table_names_groups_and_kinds(command: Callable[..., Any]) -> None:
    done = command("lenet5", "--by-kind")
    assert done.exit_code == 0, done.output
    shown = " ".join(done.stdout.split())
    assert "lenet5, eager, batch 1" in shown
    assert "convolution conv 2 " in shown
    assert "convolution linear 2 " in shown
    assert OUTSIDE in shown


@pytest.mark.parametrize(("total_ms", "warned"), [(9.0, False), (4.8, False), (4.0, True)])
def test_shares_of_a_pass_that_was_disturbed_are_told(total_ms: float, warned: bool) -> None:
    """Operators of 5 ms in all: 4 % more than 4.8 ms is what cutting costs, 25 % more than 4 ms is not."""
    _, *notes = kind_table(("m", "eager", 1), cutting._table([("conv", 3.0), ("pool", 2.0)], total_ms))
    assert bool(notes) == warned
    assert not notes or "25% longer than whole" in notes[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--picture", "x.html"], "--picture needs --by-kind"),
        (["--by-kind", "--rounds", "9"], "--rounds belongs to whole passes"),
        (["--by-kind", "--runtime", "eager,openvino"], "openvino cannot be cut"),
        (["--by-kind", "--picture", "no/such/folder/x.html"], "no folder"),
    ],
)
def test_the_command_refuses_in_one_line(command: Callable[..., Any], arguments: list[str], words: str) -> None:
    refused = command("lenet5", *arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1
    assert words in refused.stderr
