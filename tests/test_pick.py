"""pick: the best network within a budget, why others fell out, and where each number comes from."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_leaderboard import ZOO, measurement, result

from pocketzoo import Architecture, Budget
from pocketzoo.commands.choose import pick_command
from pocketzoo.errors import InvalidBudget, InvalidData, NothingFits, OutsideCalibration, UnknownDevice, UnknownModel
from pocketzoo.leaderboards import latency, records
from pocketzoo.leaderboards.accuracy import published
from pocketzoo.leaderboards.pick import explain, judge, pick
from pocketzoo.profiler.runner import processor

FIVE = ("lenet5", "shufflenet_v2_x0_5", "mobilenet_v2", "resnet18", "vgg16")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No records but those that a test adds, and no calibration."""
    monkeypatch.setenv("POCKETZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(records, "committed_folder", lambda: tmp_path / "committed")
    monkeypatch.setattr(latency, "_model", lambda device, runtime: None)
    return tmp_path


def add(*measured: Any) -> None:
    records.add([record if isinstance(record, dict) else record.to_dict() for record in measured])


# -- counted limits ----------------------------------------------------------------------------------------------------


def by_hand(macs: float, params: float) -> tuple[float, list[str]]:
    """The highest accuracy of names at their own resolution, and who has it."""
    fits = [
        row for row in published()
        if row.dataset == "imagenet" and not row.settings and row.resolution == ZOO[row.model]["resolution"]
        and ZOO[row.model]["macs"] <= macs and ZOO[row.model]["params"] <= params
    ]  # fmt: skip
    top = max(row.top1_percent for row in fits)
    return top, [row.model for row in fits if row.top1_percent == top]


@pytest.mark.parametrize(("macs", "params"), [(600e6, 4e6), (300e6, 2.5e6), (60e6, 1e9), (1e12, 1e12)])
def test_the_best_is_what_a_search_by_hand_finds(macs: float, params: float) -> None:
    table = pick(Budget(macs=macs, params=params), top=8)
    top, names = by_hand(macs, params)
    assert table["top1_percent"].is_monotonic_decreasing
    assert len(table) == 8
    named = table[table["label"].isin(names)]
    assert set(named["top1_percent"]) == {top} or table["top1_percent"][0] > top  # a published form may be better
    assert (table["macs"] <= macs).all()
    assert (table["params"] <= params).all()
    for _, row in table.iterrows():
        assert row["top1_percent_source"].startswith("published: ")
        assert row["macs_source"].startswith("counted ")
        assert eval(row["create"].replace("pocketzoo.create_model", "Architecture.of")).key


def test_a_limit_is_met_exactly_at_its_bound() -> None:
    macs = ZOO["resnet18"]["macs"]
    within = pick(Budget(macs=macs), top=1000, family="resnet")
    below = pick(Budget(macs=macs - 1), top=1000, min_top1=1, family="*net")
    assert list(within["model"]) == ["resnet18"]
    assert "resnet18" not in set(below["model"])


def test_size_memory_and_energy_are_limits_too() -> None:
    every = pick(Budget(macs="1000G"), top=1000)
    for name, column, unit in (
        ("size", "size_bytes", 1.0),
        ("memory", "peak_memory_bytes", 1.0),
        ("energy", "energy_uj", 1e6),
    ):
        middle = float(every[column].median())
        found = pick(Budget(**{name: middle / unit}), top=1000)
        assert set(found["label"]) == set(every[every[column] <= middle]["label"])
    assert (every["size_bytes"] == 4 * every["params"]).all()


def test_equal_accuracies_are_ranked_by_macs() -> None:
    one, other = Architecture.of("lenet5"), Architecture.of("lenet_300_100")
    for arch, macs in ((one, 300), (other, 200)):
        add({**result(arch, data="mine"), "costs": {"params": 5, "macs": macs}})
    assert list(pick(Budget(params=10**9), dataset="mine")["model"]) == ["lenet_300_100", "lenet5"]


def test_accuracy_family_and_data_set_choose_the_candidates() -> None:
    found = pick(Budget(params="100M"), top=1000, min_top1=75, family="mobilenet_v3*")
    assert (found["top1_percent"] >= 75).all()
    assert {name.rpartition("_")[0][:12] for name in found["model"]} == {"mobilenet_v3"}
    cifar = pick(Budget(params="1M"), dataset="cifar10")
    best = max(r.top1_percent for r in published() if r.dataset == "cifar10" and ZOO[r.model]["params"] <= 1e6)
    assert cifar["top1_percent"][0] == best


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"dataset": "imagnet"}, InvalidData, "did you mean imagenet?"),
        ({"family": "mobilenet_v4"}, UnknownModel, "did you mean mobilenet_v"),
        ({"min_top1": 101}, InvalidBudget, "0 to 100"),
        ({"budget": Budget(latency="5ms", device="pixel9")}, UnknownDevice, "did you mean pixel"),
        ({"budget": Budget(latency="5ms", device="pixel1"), "runtime": "eager"}, UnknownDevice, "with tflite only"),
        ({"records": ["/nowhere/records"]}, Exception, "no folder"),
    ],
)
def test_wrong_questions(arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says.replace("?", r"\?")):
        pick(**{"budget": Budget(macs="1G"), **arguments})


def test_no_torch_for_counted_limits_and_known_phones() -> None:
    code = (
        "import sys; from pocketzoo.leaderboards.pick import judge; from pocketzoo.search.budget import Budget;"
        "judge(Budget(macs='300M')).fitting[0]; judge(Budget(latency='20ms', device='pixel1')).fitting[0];"
        "assert not {'torch', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- nothing fits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "min_top1"),
    [
        ({"macs": "5M"}, None),
        ({"macs": "300M", "params": "10M"}, 79.0),
        ({"params": "123k"}, None),
        ({"size": "1KB"}, None),
    ],
)
def test_the_limit_to_relax_is_one_that_helps(limits: dict[str, str], min_top1: float | None) -> None:
    with pytest.raises(NothingFits) as raised:
        pick(Budget(**limits), min_top1=min_top1)
    said = str(raised.value)
    name, _, value = said.partition("which fits with ")[2].partition(" and all else")[0].partition("=")
    relaxed: dict[str, Any] = {"budget": Budget(**limits), "min_top1": min_top1}
    if name == "min-top1":
        relaxed["min_top1"] = float(value)
    else:
        relaxed["budget"] = Budget(**{**limits, name: value})
    found = pick(**relaxed)
    assert f"nearest is {found['label'][0]} " in said or f"nearest is {found['label'].iloc[-1]} " in said


# -- why ---------------------------------------------------------------------------------------------------------------


def test_why_says_which_limit_and_by_how_much() -> None:
    picked = judge(Budget(macs="150M", params="4M"), min_top1=60)
    said = dict(explain("mobilenet_v1_x0_75", picked))
    macs = ZOO["mobilenet_v1_x0_75"]["macs"] / 150e6
    assert said["mobilenet_v1_x0_75"] == [f"macs=325.4M is {macs:.3g} times the limit of 150M"]
    rank = 1 + [v.row.network.label for v in picked.fitting].index("mobilenet_v1_x0_75, resolution 128")
    assert said["mobilenet_v1_x0_75, resolution 128"] == [f"fits: rank {rank} of {len(picked.fitting)}"]
    low = dict(explain("squeezenet1_0", picked))["squeezenet1_0"]
    assert [reason for reason in low if reason.endswith("below the least of 60 %")]
    assert "no accuracy on imagenet" in explain("shiftnet_c", picked)[0][1][0]
    with pytest.raises(UnknownModel, match=r"did you mean mobilenet_v2\?"):
        explain("mobilnet_v2", picked)


# -- latency -----------------------------------------------------------------------------------------------------------


def test_published_latency_comes_before_prediction() -> None:
    table = pick(Budget(latency="20ms", device="pixel1"), top=1000).set_index("label")
    assert (table["latency_ms"] <= 20).all()
    assert table.loc["mobilenet_v2, resolution 96", "latency_ms"] == 17.6
    assert table.loc["mobilenet_v2, resolution 96", "latency_ms_source"].startswith("published: ")
    kinds = table["latency_ms_source"].str.split().str[0]
    assert set(kinds) == {"published:", "predicted"}
    assert "mobilenet_v2, resolution 160" not in table.index


def test_cpu_is_this_machine_and_a_processor_is_called_by_its_name() -> None:
    for number, name in enumerate(FIVE, 1):
        add(measurement(name, number, processor=processor()), measurement(name, 10 * number, processor="Elsewhere"))
    here = pick(Budget(latency="3.5ms", device="cpu"))
    assert list(here["model"]) == ["mobilenet_v2", "shufflenet_v2_x0_5"]
    assert list(here["latency_ms"]) == [3, 2]
    assert here["latency_ms_source"].str.startswith(f"measured on {processor()}, onnxruntime").all()
    there = pick(Budget(latency="30ms", device="Elsewhere"))
    assert list(there["latency_ms"]) == [30, 20]
    with pytest.raises(UnknownDevice, match="known are Elsewhere"):
        pick(Budget(latency="1s", device="Nowhere at all"))


def test_only_one_thread_one_image_and_the_runtime_asked_for_count() -> None:
    add(
        measurement("mobilenet_v2", 1.0, processor="P", threads=4),
        measurement("mobilenet_v2", 2.0, processor="P", input_shape=(8, 3, 224, 224)),
        measurement("mobilenet_v2", 3.0, processor="P", runtime="eager"),
        measurement("mobilenet_v2", 4.0, processor="P"),
        measurement("mobilenet_v2", 5.0, processor="P", arch=Architecture.of("mobilenet_v2", resolution=64)),
    )
    budget = Budget(latency="1s", device="P")
    assert list(pick(budget)["latency_ms"]) == [4.0]
    assert list(pick(budget, runtime="eager")["latency_ms"]) == [3.0]
    with pytest.raises(UnknownDevice, match="with eager, onnxruntime only"):
        pick(budget, runtime="openvino")


class Calibrated:
    """A latency model of a millisecond per 100 M MACs that has never seen a squeeze-excite."""

    device, runtime = "cpu", "onnxruntime"

    class error:
        mape_percent, judged_on = 4.4, "20 networks"

    def predict(self, graph: Any, widths: Any = None) -> Any:
        if any(op.kind == "mul" for op in graph.operators()):
            raise OutsideCalibration("no figures for operator 'mul'")
        return [graph.price().macs / 1e8]


def test_what_was_not_measured_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    add(measurement("mobilenet_v2", 1.5, processor=processor()))
    monkeypatch.setattr(latency, "_model", lambda device, runtime: Calibrated())
    budget = Budget(latency="2ms", params="3.6M", device="cpu")
    table = pick(budget, top=4, family="*net_v[23]*", min_top1=71.5).set_index("model")
    assert table.loc["mobilenet_v2", "latency_ms"] == 1.5
    fast = ZOO["shufflenet_v2_x1_5"]["macs"] / 1e8
    assert fast > 2
    assert "shufflenet_v2_x1_5" not in table.index
    wider = pick(Budget(latency="3ms", params="3.6M", device="cpu"), family="shufflenet_v2", min_top1=71.5)
    assert wider["latency_ms"].max() == pytest.approx(ZOO["shufflenet_v2_authors_x1_5"]["macs"] / 1e8)
    assert wider["latency_ms_source"][0] == "predicted for cpu, onnxruntime, with mean error 4 % (20 networks)"
    picked = judge(budget, family="mobilenet_v3_small", min_top1=60)
    assert "latency unknown: no figures for operator 'mul'" in str(explain("mobilenet_v3_small", picked))


# -- command -----------------------------------------------------------------------------------------------------------


def run(*arguments: str) -> Any:
    return CliRunner().invoke(pick_command, arguments)


def test_the_command_prints_the_winner_with_its_sources() -> None:
    said = run("--latency", "20ms", "--device", "pixel1", "--params", "4M", "--min-top1", "60").output
    best = pick(Budget(latency="20ms", device="pixel1", params="4M"), min_top1=60)
    assert said.splitlines()[0] == best["label"][0]
    for column in ("top1_percent", "latency_ms", "macs", "params"):
        assert best[f"{column}_source"][0] in said
    assert best["create"][0] in said
    assert "fit: " in said.splitlines()[-1]


def test_the_command_speaks_json_and_says_why() -> None:
    rows = json.loads(run("--macs", "300M", "--top", "3", "--json").output)
    assert [row["label"] for row in rows] == list(pick(Budget(macs="300M"), top=3)["label"])
    assert (
        run("--macs", "300M", "--why", "resnet18").output == "resnet18: macs=1.814G is 6.05 times the limit of 300M\n"
    )
    assert json.loads(run("--macs", "300M", "--why", "resnet18", "--json").output)[0]["network"] == "resnet18"
    assert isinstance(run().exception, InvalidBudget)
    assert isinstance(run("--macs", "1").exception, NothingFits)
