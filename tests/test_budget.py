"""Budget: every unit, both ways, and what it says about the ones it cannot read."""

from pathlib import Path

import pytest

from pocketzoo.errors import InvalidBudget, UnknownDevice
from pocketzoo.search.budget import Budget, human_costs
from pocketzoo.search.latency import model_of


@pytest.mark.parametrize(
    ("limit", "text", "expected"),
    [
        ("macs", "30M", 30_000_000),
        ("macs", "1.1M", 1_100_000),
        ("macs", "2.5e6", 2_500_000),
        ("macs", "0.3 G", 300_000_000),
        ("params", "750k", 750_000),
        ("params", "750K", 750_000),
        ("size", "500KB", 500_000),
        ("size", "500KiB", 512_000),
        ("memory", "1MiB", 1_048_576),
        ("memory", "17B", 17),
        ("energy", "2mJ", 0.002),
        ("energy", "640pJ", 6.4e-10),
        ("latency", "8ms", 0.008),
        ("latency", "120µs", 1.2e-4),
    ],
)
def test_units(limit: str, text: str, expected: float) -> None:
    assert getattr(Budget(**{limit: text}), limit) == pytest.approx(expected, rel=1e-12)
    assert Budget(**{limit: text}) == Budget(**{limit: expected})


def test_limits_are_columns_of_the_price() -> None:
    budget = Budget(macs="30M", size="500KB", memory="256KiB", energy="2mJ", latency="8ms")
    assert budget.limits == {
        "macs": 30_000_000,
        "params": 125_000,  # 500,000 bytes / 4 bytes a float32 weight
        "peak_memory_bytes": 262_144,
        "energy_uj": pytest.approx(2000),
        "latency_ms": pytest.approx(8),
    }


def test_the_tighter_of_params_and_size_binds() -> None:
    assert Budget(params="100k", size="500KB").limits == {"params": 100_000}
    assert Budget(params="200k", size="500KB").limits == {"params": 125_000}


@pytest.mark.parametrize(
    "text",
    [
        "macs=30M,params=1.5M",
        "size=500KB,memory=1.234MB,energy=2mJ",
        "macs=1234567",
        "macs=1M,latency=8ms,device=ssh://pi@board:22?python=/usr/bin/python3,runtime=onnxruntime",
    ],
)
def test_text_both_ways(text: str) -> None:
    budget = Budget.parse(text)
    assert Budget.parse(str(budget)) == budget
    assert Budget(**budget.to_dict()) == budget  # type: ignore[arg-type]
    assert text == "macs=1234567" or str(budget) == text


def test_replaced() -> None:
    assert Budget(macs="2M", params="1M").replaced(macs="1M") == Budget(macs=1e6, params=1e6)


def test_costs_read_like_a_budget() -> None:
    assert human_costs({"macs": 1_234_567, "peak_memory_bytes": 2048, "energy_uj": 12.5, "latency_ms": 0.75}) == (
        "macs=1.235M, memory=2.048KB, energy=12.5uJ, latency=750us"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("macs=30Q", "no unit 'Q'"),
        ("macs=30m", "did you mean 30M?"),
        ("size=500kib", "did you mean 500KiB?"),
        ("macs=thirty", "expected a number with a unit, such as 30M"),
        ("macs=-3M", "above 0"),
        ("macs=0", "above 0"),
        ("macs=1e400", "above 0"),
        ("mac=30M", "did you mean macs?"),
        ("30M", "expected name=value"),
        ("macs=1M,macs=2M", "given twice"),
        ("device=cpu", "at least one limit"),
        ("macs=1M,device=cpu", "for a latency"),
        ("macs=1M,runtime=eager", "for a latency"),
        ("energy=3MB", "expected one of pJ"),
    ],
)
def test_what_cannot_be_read(text: str, says: str) -> None:
    with pytest.raises(InvalidBudget, match=r".") as caught:
        Budget.parse(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_limit_of_the_wrong_type() -> None:
    with pytest.raises(InvalidBudget, match="expected a number or text"):
        Budget(macs=True)


def test_a_latency_is_one_of_a_device() -> None:
    budget = Budget(latency="8ms")
    assert (budget.device, budget.runtime) == ("cpu", None)
    assert Budget(macs="1M").device is None
    assert budget.replaced(device="pixel1") == Budget(latency=0.008, device="pixel1")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "pocketzoo calibrate --device cpu makes one"),
        ({"runtime": "eager"}, "pocketzoo calibrate --device cpu --runtime eager makes one"),
        ({"device": "pixel11"}, "did you mean pixel1?"),
        ({"device": "pixel1", "runtime": "eager"}, "not for eager"),
    ],
)
def test_a_latency_without_a_model(
    asked: dict[str, str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETZOO_HOME", str(tmp_path))
    with pytest.raises(UnknownDevice) as caught:
        model_of(Budget(latency="8ms", **asked))  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_model_without_a_latency() -> None:
    assert model_of(Budget(macs="1M")) is None
