"""The report: totals equal the costs, whatever is profiled, and what cannot be done is said."""

import io
import json
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import pocketzoo as pz
from pocketzoo.errors import InvalidSetting, UnknownModel
from pocketzoo.profiler.report import TRAINING_ONLY, Profile, human
from pocketzoo.profiler.runner import Protocol

SUMS = ("params", "macs", "activations", "memory_access")


def shown(profile: Profile, by: Any) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120).print(profile.table(by))
    return stream.getvalue()


class Odd(nn.Module):
    """A convolution, then an operator that no tracer rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        distances: torch.Tensor = torch.special.i0(torch.cdist(self.conv(x), self.conv(x)))
        return distances


class Auxiliary(nn.Module):
    """A head that only training reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 2, 1)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.body(x)
        return (x, self.extra(x)) if self.training else x


def test_a_name_is_counted_as_published() -> None:
    profile = pz.profile("mobilenet_v2")
    assert (profile.costs.params, profile.costs.macs) == (3_504_872, 300_774_272)
    assert profile.by_kind.loc["depthwise conv", "macs"] == 20_716_416
    assert profile.by_kind.loc["batch norm", "params"] == 34_112
    assert profile.by_kind["share"].sum() == pytest.approx(1)


@pytest.mark.parametrize("name", ["mobilenet_v2", "googlenet", "shufflenet_v2_x1_0"])
def test_rows_add_up_to_the_costs(name: str) -> None:
    profile = pz.profile(name, resolution=64, num_classes=10)
    for column in SUMS:
        assert profile.by_kind[column].sum() == getattr(profile.costs, column)
    assert profile.layers["macs"].sum() == profile.costs.macs
    assert profile.by_kind["count"].sum() == len(profile.layers)


def test_parameters_of_training_have_their_own_row() -> None:
    profile = pz.profile(Auxiliary(), input_shape=(1, 3, 4, 4))
    assert profile.by_kind.loc[TRAINING_ONLY, "params"] == 7 * 2 + 2
    assert profile.by_kind["params"].sum() == profile.costs.params == 3 * 7 + 7 + 7 * 2 + 2
    assert profile.costs.macs == 3 * 7 * 4 * 4


def test_batch_counts_every_image() -> None:
    one, three = pz.profile("lenet5"), pz.profile("lenet5", batch=3)
    assert three.input_shape == (3, *one.input_shape[1:])
    assert three.costs.macs == 3 * one.costs.macs
    assert three.costs.params == one.costs.params


def test_name_architecture_and_module_agree() -> None:
    arch = pz.Architecture.of("mobilenet_v2", num_classes=10, resolution=32)
    by_name = pz.profile("mobilenet_v2", num_classes=10, resolution=32)
    assert pz.profile(arch).costs == by_name.costs
    assert pz.profile(arch.build(), input_shape=(1, 3, 32, 32)).costs == by_name.costs
    assert pz.profile(arch.build(), resolution=32).costs == by_name.costs
    assert pz.profile(arch, num_classes=20).costs.params > by_name.costs.params


def test_the_module_is_not_touched() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pz.profile(model, input_shape=(2, 3, 8, 8))
    assert model.training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_everything_goes_through_json() -> None:
    profile = pz.profile("lenet5")
    record = json.loads(json.dumps(profile.to_dict()))
    assert record["costs"]["macs"] == profile.costs.macs
    assert sum(row["macs"] for row in record["layers"]) == profile.costs.macs
    assert record["groups"] == profile.groups
    assert record["input_shape"] == [1, 1, 28, 28]


def test_tables_show_totals_in_human_units() -> None:
    profile = pz.profile("mobilenet_v2")
    for text in (shown(profile, "kind"), shown(profile, "layer")):
        assert "300.77 M" in text
        assert "3.50 M" in text
        assert "14.02 MB" in text
    assert "depthwise conv" in shown(profile, "kind")
    assert "classifier" in shown(profile, "layer")


def test_unknown_operators_are_named_with_their_place() -> None:
    profile = pz.profile(Odd(), input_shape=(1, 3, 6, 6))
    assert len(profile.notes) == len(profile.unknown) >= 1
    for name, where in profile.unknown.items():
        assert name in shown(profile, "kind")
        assert "test_report.py" in where


@pytest.mark.parametrize("wanted", [{"threads": 2}, {"protocol": Protocol(rounds=6)}])
def test_measuring_needs_a_device(wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match="name a device"):
        pz.profile("lenet5", **wanted)


@pytest.mark.parametrize("where", [{"device": "cpu"}, {"runtime": "eager"}])
def test_a_device_is_measured_on(where: dict[str, str]) -> None:
    quick = Protocol(warmup=1, rounds=6, seconds=0.1, tolerance=0.9)
    profile = pz.profile("lenet5", protocol=quick, **where)
    measurement = profile.measurement
    assert measurement is not None
    assert (measurement.model, measurement.device, measurement.runtime) == ("lenet5", "cpu", "eager")
    assert measurement.input_shape == profile.input_shape
    assert f"{measurement.median_ms:.4g} ms" in shown(profile, "kind")
    assert profile.to_dict()["measurement"] == measurement.to_dict()


def test_wrong_input_is_refused() -> None:
    with pytest.raises(UnknownModel, match="mobilenet_v2"):
        pz.profile("mobilenet_v22")
    with pytest.raises(InvalidSetting, match="input_shape"):
        pz.profile(nn.Conv2d(3, 4, 3))
    with pytest.raises(InvalidSetting, match="no settings"):
        pz.profile(nn.Conv2d(3, 4, 3), input_shape=(1, 3, 8, 8), num_classes=10)
    with pytest.raises(InvalidSetting, match="positive whole numbers"):
        pz.profile("lenet5", batch=0)
    with pytest.raises(InvalidSetting, match="'kind' or by 'layer'"):
        pz.profile("lenet5").table("module")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(300_774_272, "", "300.77 M"), (0, "", "0"), (999, "", "999"), (14_019_488, "B", "14.02 MB"),
     (0.0036720796, "J", "3.67 mJ"), (2.5e-5, "J", "25.00 uJ"), (512, "B", "512 B")],
)  # fmt: skip
def test_human_units(value: float, unit: str, text: str) -> None:
    assert human(value, unit) == text
