"""Unstructured magnitude pruning: one threshold for all weights, widths from what survives of each layer."""

from pathlib import Path

import pytest
import torch

from digit_tasks import check_proposal, task_of
from pocketzoo.errors import InvalidSetting
from pocketzoo.graph.sparsity import prunable
from pocketzoo.search.methods.magnitude import Magnitude

NETWORKS = ["lenet5", "cifar_resnet20", "mobilenet_v2_x0_35", "shufflenet_v1_g3_x0_25", "googlenet"]


@pytest.mark.parametrize("name", NETWORKS)
def test_widths_meet_the_budget(name: str) -> None:
    task = task_of(name)
    before = {key: tensor.clone() for key, tensor in task.model.state_dict().items()}
    check_proposal(task, Magnitude().propose(task))
    assert all(torch.equal(tensor, before[key]) for key, tensor in task.model.state_dict().items())


def test_the_smallest_weights_of_the_whole_network_go() -> None:
    task = task_of("cifar_resnet20")
    layers = Magnitude(sparsity=0.7).propose(task).layers.set_index("layer")
    flat = torch.cat([weight.detach().abs().flatten() for weight in prunable(task.model).values()])
    threshold = flat.sort().values[-round(0.3 * len(flat))]
    assert layers["surviving"].sum() == round(0.3 * len(flat))
    for name, weight in prunable(task.model).items():
        assert layers["surviving"][name.removesuffix(".weight")] == int((weight.abs() >= threshold).sum())


def test_layers_whose_weights_survive_stay_wide() -> None:
    task = task_of("lenet5")
    with torch.no_grad():
        task.model.get_submodule("conv2").weight.mul_(100)
    widths = Magnitude(sparsity=0.9).propose(task).widths
    kept = {group: widths[group] / width for group, width in task.graph.groups.items()}
    assert max(kept, key=kept.__getitem__) == "conv2"


def test_rounds_prune_the_same_share_of_what_is_left(tmp_path: Path) -> None:
    task = task_of("lenet5", folder=tmp_path)
    proposal = Magnitude(sparsity=0.875, rounds=3, epochs=1).propose(task)
    n = sum(weight.numel() for weight in prunable(task.model).values())
    assert proposal.history["sparsity"].tolist() == pytest.approx([0.5, 0.75])
    assert proposal.layers["surviving"].sum() == round(0.125 * n)
    held = sum(int((weight == 0).sum()) for weight in prunable(proposal.model).values())
    assert held == n - round(0.25 * n)  # what the second training held at zero goes on so
    check_proposal(task, proposal)
    again = Magnitude(sparsity=0.875, rounds=3, epochs=1).propose(task)  # from the checkpoints
    assert again.widths == proposal.widths


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(InvalidSetting, match="0 rounds with 0 epochs"):
        Magnitude(rounds=0)
