"""Latency models of published devices: the shipped constants give the shipped errors, and prices behave as physics."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import pocketzoo as pz
from pocketzoo.errors import OutsideCalibration, UnknownDevice
from pocketzoo.profiler.physical import CHUNK, OperatorClass, PhysicalModel, Work, milliseconds
from pocketzoo.profiler.published import DEVICES, figures, published, published_latency, published_ms

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "latency.csv"


def traced(name, batch=1, **settings):
    arch = pz.Architecture.of(name, **settings)
    with torch.device("meta"):
        return pz.trace(arch.build(), (batch, *arch.input_shape[1:]))


@pytest.fixture(scope="module")
def mobilenet():
    return traced("mobilenet_v2", resolution=96)


@pytest.mark.parametrize("device", DEVICES)
def test_shipped_constants_give_the_shipped_error(device):
    rows = figures()
    rows = rows[(rows["device"] == device) & (rows["role"] == "judge")]
    assert len(rows) >= 2
    errors = []
    for row in rows.itertuples():
        graph = traced(row.model, row.batch, resolution=row.resolution, **json.loads(row.settings or "{}"))
        errors.append(abs(published(device).predict(graph)[0] / row.latency_ms - 1))
    error = published(device).error
    assert 100 * np.mean(errors) == pytest.approx(error.mape_percent, abs=0.1)
    assert 100 * np.mean(np.array(errors) <= 0.1) == pytest.approx(error.within_10_percent, abs=0.1)
    assert f"{len(rows)} published networks" in error.judged_on


@pytest.mark.parametrize("device", DEVICES)
def test_many_candidates_cost_what_each_costs_when_built(device, mobilenet):
    widths = mobilenet.random_widths(3, seed=1)
    model = published(device)
    for vector, ms in zip(widths, model.predict(mobilenet, widths), strict=True):
        chosen = dict(zip(mobilenet.groups, vector.tolist(), strict=True))
        with torch.device("meta"):
            built = pz.Architecture.of("mobilenet_v2", resolution=96, widths=chosen).build()
        assert ms == pytest.approx(model.predict(pz.trace(built, (1, 3, 96, 96)))[0], rel=1e-9)


def test_more_candidates_than_a_chunk(mobilenet):
    model = published("pixel1")
    widths = np.tile(list(mobilenet.groups.values()), (CHUNK + 1, 1))
    assert model.predict(mobilenet, widths) == pytest.approx(model.predict(mobilenet)[0])
    assert model.predict(mobilenet, widths[:0]).shape == (0,)


@pytest.mark.parametrize("device", DEVICES)
def test_operators_add_up_to_the_network(device, mobilenet):
    model = published(device)
    operators = model.by_operator(mobilenet)
    assert len(operators) == len(mobilenet.operators())
    assert operators.sum() + model.physical.run_us / 1e3 == pytest.approx(model.predict(mobilenet)[0])


@pytest.mark.parametrize("device", DEVICES)
def test_wider_takes_longer(device, mobilenet):
    full = np.array(list(mobilenet.groups.values()))
    for i in range(len(full)):
        wider = full.copy()
        wider[i] *= 2
        narrow, wide = published(device).predict(mobilenet, np.stack([full, wider]))
        assert narrow < wide, list(mobilenet.groups)[i]


@pytest.mark.parametrize("device", ["snapdragon810", "gtx1080ti"])
def test_groups_are_priced(device):
    """At the same widths groups divide the MACs; at the same MACs they cost more (ShuffleNet v2, Table 2)."""

    def ms(c, groups):
        layer = nn.Sequential(nn.Conv2d(c, c, 1, groups=groups, bias=False))
        return published(device).predict(pz.trace(layer, (1, c, 56, 56)))[0]

    assert ms(64, 1) < ms(128, 4)  # 64 * 64 = 128 * 128 / 4 MACs a position
    assert ms(512, 1) != ms(512, 4)
    assert ms(2048, 4) < ms(2048, 1)


class Residual(nn.Module):
    """A 1x1 convolution before and after a residual branch of two."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 1)
        self.branch = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 1))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(x))


@pytest.mark.parametrize("device", ["snapdragon810", "pixel1"])
def test_a_removed_branch_costs_nothing(device):
    model, shape = Residual(), (1, 3, 20, 20)
    graph = pz.trace(model, shape)
    widths = np.array([list(graph.groups.values())] * 2)
    widths[0, list(graph.groups).index("branch.0")] = 0
    removed, whole = published(device).predict(graph, widths)
    inner = published(device).by_operator(graph)[[op.name.startswith("branch") for op in graph.operators()]]
    assert removed == pytest.approx(whole - inner.sum())
    # the addition that is left has one number on its other side: it reads a tensor less than it is priced at
    left = pz.trace(graph.resize(model, {"branch.0": 0}), shape)
    (there,) = (i for i, op in enumerate(graph.operators()) if op.kind == "add")
    addition = published(device).by_operator(graph)[there]
    cheaper = removed - published(device).predict(left)[0]
    assert 0 <= cheaper < addition


def test_the_formula():
    """2 MMACs at 4 GMAC/s are 0.5 ms; 6 MB at 8 GB/s are 0.75 ms, 4 MB of them beyond the cache at 5 GB/s are 0.8."""
    constants = OperatorClass(4, 8, overhead_us=10, group_us=20, cache_mb=2, beyond_gb_per_s=5)
    work = Work(2e6, 6e6, 4)
    fixed = 0.010 + 3 * 0.020
    assert milliseconds(work, constants, "sum") == pytest.approx(fixed + 0.5 + 0.75 + 0.8)
    assert milliseconds(work, constants, "max") == pytest.approx(fixed + 1.55)
    assert milliseconds(work, constants, "norm") == pytest.approx(fixed + (0.5**2 + 1.55**2) ** 0.5)


def test_compute_only_and_memory_only_machines_count():
    """Ideal machines give back the costs: MACs at 1 GMAC/s, and bytes at 1 GB/s."""
    graph = traced("shufflenet_v2_x0_5")
    labels = {"1x1 conv", "3x3 conv", "conv", "depthwise conv", "linear", "batch norm", "relu", "pool", "concatenation"}
    labels |= {"copy", "view"}
    compute = PhysicalModel("ideal", "sum", {"any": OperatorClass(1)}, dict.fromkeys(labels, "any"))
    memory = PhysicalModel("ideal", "sum", {"any": OperatorClass(None, 1)}, dict.fromkeys(labels, "any"))
    assert compute.predict(graph)[0] == pytest.approx(graph.price().macs / 1e6)
    elements = sum(op.elements_in + op.elements_out + op.elements_weight for op in graph.operators())
    assert memory.predict(graph)[0] == pytest.approx(4 * elements / 1e6)


def test_what_no_figure_covers_is_refused_by_name():
    with pytest.raises(OutsideCalibration, match=r"snapdragon810 has no figures for operator '3x3 conv' .* at stages"):
        published("snapdragon810").predict(traced("resnet18"))
    with pytest.raises(OutsideCalibration, match="'grouped conv'"):
        published("pixel1").predict(traced("shufflenet_v1_g3_x1_0"))


def test_unknown_device_suggests():
    with pytest.raises(UnknownDevice, match="did you mean pixel1"):
        published("pixle1")


def test_published_figures_of_zoo_networks():
    assert published_latency("mobilenet_v2", "pixel1") == (73.8, figures_source("mobilenet_v2", 73.8))
    assert published_latency("mobilenet_v2", "pixel1", resolution=96)[0] == 17.6
    assert published_latency("mobilenet_v2", "gtx1080ti") is None  # published at batch 8 alone
    assert published_latency("mobilenet_v2", "gtx1080ti", batch=8)[0] == pytest.approx(1000 / 180, abs=1e-3)
    assert published_latency("mobilenet_v3_small_x0_75", "pixel1") is None  # TensorFlow's widths are not the zoo's
    assert set(published_ms("pixel1")["model"]) <= set(pz.list_models())


def figures_source(model, ms):
    rows = figures()
    return rows[(rows["model"] == model) & (rows["latency_ms"] == ms)]["source"].iloc[0]


def test_carried_figures_are_the_reference():
    if not REFERENCE.exists():
        pytest.skip(f"no {REFERENCE.name} beside the checkout")
    with REFERENCE.open() as file:
        reference = [
            (row["source"].replace(" (seed 002)", ""), row["value"], row["unit"]) for row in csv.DictReader(file)
        ]
    known = {(source, float(value), unit) for source, value, unit in reference}
    for row in figures().itertuples():
        value, unit = row.printed.split()
        assert (row.source, float(value), unit) in known
        assert row.latency_ms == pytest.approx(float(value) if unit == "ms" else 1000 / float(value), rel=1e-3)


def test_the_split_of_the_pixel_rows_is_the_hash_that_the_report_states():
    rows = figures()
    for row in rows[rows["device"].str.startswith("pixel") & (rows["role"] != "left out")].itertuples():
        even = hashlib.sha256(f"{row.model}@{row.resolution}".encode()).digest()[0] % 2 == 0
        assert row.role == ("fit" if even else "judge")
