"""A parent that is trained to be cut: its cuts are the network's own, and hold up where an ordinary parent's fail."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from pocketzoo import Architecture, Recipe, Result, load_data, trace
from pocketzoo.search.evaluators import ByInheritance
from pocketzoo.search.inherit import SUPERNET, Parent, begin
from pocketzoo.search.space import Candidate
from pocketzoo.search.supernet import RANDOM_CUTS, Cut, Sandwich, train_supernet
from pocketzoo.training.data import DataSet
from pocketzoo.training.loop import fit

NETS = """
from torch import nn

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1, groups=16), nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))
"""
RECIPE = Recipe(epochs=5, batch_size=32, lr=0.05)


@pytest.fixture(scope="module", autouse=True)
def nets(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "supernets.py").write_text(NETS)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    return Architecture.of("supernets:net", num_classes=10, in_channels=1, resolution=8)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits")


@pytest.fixture(scope="module")
def supernet(architecture: Architecture, data: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_supernet(architecture, data, RECIPE, tmp_path_factory.mktemp("run") / "supernet")


def quarter(architecture: Architecture) -> Candidate:
    widths = {name: width // 4 for name, width in architecture.graph().groups.items()}
    return Candidate(architecture.with_widths(widths), 1.0, "", 0, 0)


@pytest.mark.parametrize("family", ["mobilenet_v2", "shufflenet_v2_x1_0", "mobilenet_v3_small", "googlenet", "lenet5"])
def test_a_cut_computes_what_the_resized_network_computes(family: str) -> None:
    """In training mode, with batch statistics; and only the kept weights get gradients."""
    resolution = 28 if family == "lenet5" else 32
    model = Architecture.of(family, num_classes=10, in_channels=3, resolution=resolution).build().train()
    graph = trace(model, (1, 3, resolution, resolution))
    widths = dict(zip(graph.groups, graph.random_widths(1, seed=1)[0].tolist(), strict=True))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    cut = Cut.of(model, graph, widths)
    resized = graph.resize(model, keep=graph.select({}, widths)).train()
    images = torch.randn(8, 3, resolution, resolution)
    expected = resized(images)
    found = cut(dict(model.named_parameters()), images)
    torch.testing.assert_close(found, expected if isinstance(expected, torch.Tensor) else expected[0])
    found.sum().backward()
    touched = sum(int((p.grad != 0).sum()) for p in model.parameters() if p.grad is not None)
    assert 0 < touched <= sum(p.numel() for p in resized.parameters())


def test_a_step_trains_the_whole_network_and_its_cuts(architecture: Architecture) -> None:
    model = begin(architecture, 0, None)
    graph = trace(model, architecture.input_shape)
    alone = copy.deepcopy(model).train()
    sandwich = Sandwich.of(model, graph, seed=0).train()
    images = torch.randn(16, 1, 8, 8)
    torch.manual_seed(0)
    logits = sandwich(images)
    assert torch.equal(logits, alone(images))
    # statistics are the whole network's own: no cut has touched them
    assert torch.equal(model[1].running_var, alone[1].running_var)
    # at least the entropy of what the whole network says, once for each cut
    taught = logits.detach().softmax(1)
    entropy = -(taught * taught.log()).sum(1).mean()
    assert sandwich.distance >= (1 + RANDOM_CUTS) * entropy
    assert {name.removeprefix("network.") for name, _ in sandwich.named_parameters()} == {
        name for name, _ in model.named_parameters()
    }
    sandwich.distance.backward()  # from the cuts alone
    assert model[0].weight.grad[:4].abs().sum() > 0  # the smallest one's channels


def test_cut_without_training_it_beats_an_ordinary_parent_by_far(
    architecture: Architecture, data: DataSet, supernet: Path
) -> None:
    ordinary = begin(architecture, RECIPE.seed, None)
    whole = fit(ordinary, data, RECIPE).val_accuracy
    parents = Parent.load(supernet, architecture), Parent(ordinary, architecture)
    cut, ordinary_cut = (ByInheritance(parent, lambda _: data, 0).score(quarter(architecture)) for parent in parents)
    assert whole > 0.8
    assert cut > ordinary_cut + 0.2


def test_its_descendants_take_its_first_channels(architecture: Architecture, supernet: Path) -> None:
    parent = Parent.load(supernet, architecture)
    child = begin(architecture.with_widths({"0": 4, "4": 32, "7": 32}), 0, parent)
    assert torch.equal(child[0].weight, parent._model[0].weight[:4])


def test_the_record(supernet: Path) -> None:
    result = Result.from_json((supernet / "result.json").read_text())
    assert set(result.accuracy) == {"validation"}  # the test split is for final networks
    assert result.provenance[SUPERNET]["random_cuts"] == RANDOM_CUTS
    assert json.loads((supernet / "run.json").read_text())["kind"] == SUPERNET
    assert not (supernet / "checkpoint.safetensors").exists()


def test_a_finished_one_is_kept(architecture: Architecture, data: DataSet, supernet: Path) -> None:
    before = (supernet / "best.safetensors").stat().st_mtime_ns
    assert train_supernet(architecture, data, RECIPE, supernet) == supernet
    assert (supernet / "best.safetensors").stat().st_mtime_ns == before


def test_a_stopped_one_goes_on(architecture: Architecture, data: DataSet, tmp_path: Path) -> None:
    """Two epochs and a stop, then the rest: the same weights as without the stop."""
    recipe = RECIPE.with_settings(epochs=3, batch_size=128)

    def trained(stops: int | None) -> dict[str, torch.Tensor]:
        model = begin(architecture, 0, None)
        sandwich = Sandwich.of(model, trace(model, architecture.input_shape), seed=0)

        def stop(epoch: int, accuracy: float) -> None:
            if epoch == stops:
                raise KeyboardInterrupt

        folder = tmp_path / ("halves" if stops else "whole")
        fit(sandwich, data, recipe, extra_loss=lambda s: s.distance, checkpoint_dir=folder, on_epoch=stop)
        return model.state_dict()

    with pytest.raises(KeyboardInterrupt):
        trained(2)
    whole = trained(None)
    model = begin(architecture, 0, None)
    sandwich = Sandwich.of(model, trace(model, architecture.input_shape), seed=0)
    fit(sandwich, data, recipe, extra_loss=lambda s: s.distance, checkpoint_dir=tmp_path / "halves")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())
