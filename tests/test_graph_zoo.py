"""The five properties on every model of the zoo; a new family is tested by registering it."""

import json

import numpy as np
import pytest
import torch

import pocketzoo as pz
from pocketzoo.zoo import registry
from pocketzoo.zoo.index import matching
from properties import check_counts, check_identity, check_pruning, check_widths, randomise

NAMES = pz.list_models()
FAMILIES = {}
for name in NAMES:  # the cheapest model of each family at its smallest sensible resolution
    family, _ = registry.find(name)
    FAMILIES.setdefault(family.name, []).append(name)
SLOW = pytest.mark.slow


def architecture(name: str, smallest: bool = True) -> pz.Architecture:
    arch = pz.Architecture.of(name)
    return arch.with_settings(resolution=32) if smallest and arch.resolution > 32 else arch


def on_meta(arch: pz.Architecture) -> torch.nn.Module:
    with torch.device("meta"):
        return arch.build().eval()


MACS = {row["model"]: row["macs"] for row in matching()}


def cheapest(names: list[str]) -> str:
    return min(names, key=MACS.__getitem__)


@pytest.mark.parametrize("name", NAMES)
class TestEveryModel:
    def test_counts_identity_and_two_widths(self, name: str) -> None:
        arch = architecture(name)
        model = on_meta(arch)
        graph = check_counts(model, arch.input_shape)
        assert not graph.unknown
        check_identity(graph, model, arch.input_shape)
        check_widths(graph, model, arch.input_shape, 2)


@pytest.mark.parametrize("names", FAMILIES.values(), ids=FAMILIES.keys())
class TestEveryFamily:
    def test_twenty_widths_on_meta(self, names: list[str]) -> None:
        arch = architecture(cheapest(names))
        model = on_meta(arch)
        check_widths(pz.trace(model, arch.input_shape), model, arch.input_shape, 20, seed=1)

    def test_three_prunings_compute_what_the_masked_original_computes(self, names: list[str]) -> None:
        arch = architecture(cheapest(names))
        model = randomise(arch.build())
        check_pruning(pz.trace(model, arch.input_shape), model, arch.input_shape, 3)

    def test_five_resized_models_run_with_numbers(self, names: list[str]) -> None:
        arch = architecture(cheapest(names))
        model = randomise(arch.build())
        graph = pz.trace(model, arch.input_shape)
        x = torch.randn(arch.input_shape)
        for row in graph.random_widths(5, seed=2):
            resized = graph.resize(model, dict(zip(graph.groups, row.tolist(), strict=True))).eval()
            with torch.no_grad():
                assert resized(x).isfinite().all()

    def test_building_at_widths_is_resizing(self, names: list[str]) -> None:
        arch = architecture(cheapest(names))
        model = arch.build().eval()
        graph = pz.trace(model, arch.input_shape)
        widths = dict(zip(graph.groups, graph.random_widths(1, seed=3)[0].tolist(), strict=True))
        built = randomise(arch.with_widths(widths).build())
        resized = graph.resize(model, widths).eval()
        assert {k: v.shape for k, v in built.state_dict().items()} == {
            k: v.shape for k, v in resized.state_dict().items()
        }
        resized.load_state_dict(built.state_dict())
        x = torch.randn(arch.input_shape)
        with torch.no_grad():
            assert torch.equal(built(x), resized(x))
        one, other = pz.trace(built, arch.input_shape), pz.trace(resized, arch.input_shape)
        assert one.groups == other.groups
        assert one.groups == {name: widths[name] for name in one.groups}  # names are stable under resizing
        assert one.layers().equals(other.layers())

    def test_architecture_travels_as_json(self, names: list[str]) -> None:
        arch = architecture(names[0])
        again = pz.Architecture.from_json(arch.to_json())
        assert again == arch
        assert again.key == arch.key
        assert json.loads(arch.to_json())["family"] == arch.family
        assert again.with_widths({"x": 3}).key != arch.key


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
class TestEveryModelAtLength:
    def test_a_hundred_widths_on_meta(self, name: str) -> None:
        arch = architecture(name)
        model = on_meta(arch)
        check_widths(pz.trace(model, arch.input_shape), model, arch.input_shape, 100, seed=1)

    def test_five_prunings(self, name: str) -> None:
        arch = architecture(name)
        model = randomise(arch.build())
        check_pruning(pz.trace(model, arch.input_shape), model, arch.input_shape, 5)


def test_removed_branches_are_priced_as_counted() -> None:
    arch = architecture("mobilenet_v2")
    model = on_meta(arch)
    graph = pz.trace(model, arch.input_shape)
    assert len(graph.removable) == 10  # the blocks with a residual: n - 1 a stage of Table 2
    for names in ([sorted(graph.removable)[0]], sorted(graph.removable)):
        widths = dict.fromkeys(names, 0)
        price = graph.price(widths)
        built = on_meta(arch.with_widths(widths))
        again = pz.trace(built, arch.input_shape).price()
        assert (again.params, again.macs) == (price.params, price.macs)


def test_two_scales_of_a_family_price_alike() -> None:
    """The graph of MobileNet v2 1.0 at the widths of 0.5 costs what MobileNet v2 0.5 costs."""
    big, small = (pz.trace(on_meta(architecture(n)), (1, 3, 32, 32)) for n in ("mobilenet_v2", "mobilenet_v2_x0_5"))
    assert big.groups.keys() == small.groups.keys()
    assert big.price(small.widths) == small.price()
    prices = big.price_many(np.array([list(small.widths.values()), list(big.widths.values())]))
    assert prices.macs.tolist() == [small.price().macs, big.price().macs]
