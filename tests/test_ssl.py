"""Structured sparsity learning: the regulariser and its proximal step, and structures that die of it."""

import pytest
import torch
from torch import Tensor, nn

import pocketzoo as pz
from digit_tasks import check_proposal, task_of
from pocketzoo.errors import InvalidSetting
from pocketzoo.graph.sparsity import prunable
from pocketzoo.search.methods.ssl import KINDS, Groups, StructuredSparsity, channel_scores


class Net(nn.Module):
    """A residual branch of 1x1, depthwise 3x3 and 1x1 beside an identity, between a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.expand = nn.Conv2d(4, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.project = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)).relu())
        return self.head(x.mean((2, 3)))


def norms(*weights: Tensor) -> float:
    """Root of the sum of all squares."""
    return float(sum(weight.detach().square().sum() for weight in weights)) ** 0.5


def test_the_regulariser_is_the_sum_over_all_that_writes_and_all_that_reads_a_channel() -> None:
    torch.manual_seed(0)
    net = Net()
    graph = pz.trace(net, (1, 1, 32, 32))
    stem, expand, depthwise, project, head = (own.weight for own in net.children())
    tied, hidden = range(4), range(6)
    by_hand = {
        "filters": sum(norms(stem[c], project[c]) for c in tied) + sum(norms(expand[c], depthwise[c]) for c in hidden),
        "channels": sum(norms(expand[:, c], head[:, c]) for c in tied) + sum(norms(project[:, c]) for c in hidden),
        "shapes": sum(norms(stem[:, 0, i, j]) for i in range(3) for j in range(3))
        + sum(norms(own[:, c]) for own in (expand, project, head) for c in range(own.shape[1])),
        "layers": norms(expand) + norms(depthwise) + norms(project),
    }
    found = {kind: make(graph, net).lasso(prunable(net)) for kind, make in KINDS.items()}
    assert found == pytest.approx(by_hand, rel=1e-5)


def test_grouped_and_transposed_layers_are_read_by_group() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.grouped = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 4, 3, groups=2)
            self.up, self.head = nn.ConvTranspose2d(4, 5, 2), nn.Conv2d(5, 10, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.up(self.grouped(self.first(x)))).mean((2, 3))

    torch.manual_seed(0)
    net = Mixed()
    graph = pz.trace(net, (1, 1, 16, 16))
    grouped, up, head = net.grouped.weight, net.up.weight, net.head.weight
    read = {
        "first": sum(norms(grouped[2 * (c // 3) : 2 * (c // 3) + 2, c % 3]) for c in range(6)),
        "grouped": sum(norms(up[c]) for c in range(4)),
        "up": sum(norms(head[:, c]) for c in range(5)),
    }
    assert KINDS["channels"](graph, net).lasso(prunable(net)) == pytest.approx(sum(read.values()), rel=1e-5)
    columns = sum(
        norms(grouped[2 * g : 2 * g + 2, c, i, j]) for g in (0, 1) for c in range(3) for i in range(3) for j in range(3)
    )
    columns += sum(norms(up[c, :, i, j]) for c in range(4) for i in range(2) for j in range(2))
    columns += norms(net.first.weight) + read["up"]
    assert KINDS["shapes"](graph, net).lasso(prunable(net)) == pytest.approx(columns, rel=1e-5)


def test_the_proximal_step_shortens_each_group_by_the_threshold() -> None:
    groups = Groups(2, (("a", torch.tensor([[0], [1]])), ("b", torch.tensor([[0, 1]]))))
    weights = {"a": torch.tensor([[3.0], [0.3]]), "b": torch.tensor([[4.0, 0.4]])}
    groups.shrink(weights, 1.0)  # norms 5 and 0.5: times 1 - 1/5, and gone
    assert weights["a"].tolist() == [[pytest.approx(2.4)], [0]]
    assert weights["b"].tolist() == [[pytest.approx(3.2), 0]]
    groups.shrink(weights, 0.0)  # at the end of a schedule the rate is 0, and an empty group has no norm
    assert weights["b"].tolist() == [[pytest.approx(3.2), 0]]


def test_the_proximal_step_is_the_minimum_it_stands_for() -> None:
    torch.manual_seed(0)
    groups = Groups(3, (("w", torch.tensor([[0], [1], [2]])),))
    given = torch.randn(3, 8)
    found = {"w": given.clone()}
    groups.shrink(found, 0.7)
    objective = lambda w: 0.5 * (w - given).square().sum() + 0.7 * w.norm(dim=1).sum()
    best = objective(found["w"])
    assert all(objective(found["w"] + 1e-2 * torch.randn(3, 8)) > best for _ in range(50))


def test_a_layer_of_noise_dies_and_an_informative_one_lives() -> None:
    class TwoEyes(nn.Module):
        """One half looks at the image, the other at noise of the same size."""

        def __init__(self) -> None:
            super().__init__()
            self.image, self.noise = nn.Conv2d(1, 8, 5, stride=3), nn.Conv2d(1, 8, 5, stride=3)
            self.head = nn.Linear(2 * 8 * 100, 10)

        def forward(self, x: Tensor) -> Tensor:
            seen = torch.cat([self.image(x), self.noise(torch.randn_like(x))], 1)
            return self.head(seen.relu().flatten(1))

    torch.manual_seed(0)
    task = task_of(TwoEyes(), epochs=40, weight_decay=0.0, augment=False)
    layers = StructuredSparsity(on="filters", strength=0.2).propose(task).layers.set_index("layer")
    assert layers["dead_filters"]["noise"] == 8
    assert layers["surviving"]["noise"] == 0
    assert layers["dead_filters"]["image"] <= 5


def test_a_dead_branch_is_removed() -> None:
    task = task_of("cifar_resnet20", lr=1e-6)
    inner = next(iter(task.graph.removable))
    with torch.no_grad():
        task.model.get_parameter(task.graph.makers()[inner][0]).zero_()
    assert channel_scores(task.graph, task.model, task.model)[inner].max() == 0
    proposal = StructuredSparsity(strength=0.1).propose(task)
    assert proposal.widths[inner] == 0
    assert proposal.layers["surviving"].eq(0).sum() == 1
    check_proposal(task, proposal)


def test_by_itself_the_strength_halves_an_average_group(monkeypatch: pytest.MonkeyPatch) -> None:
    # without gradients each step only shrinks: norms lose what the thresholds add up to, half of their mean
    task = task_of("lenet5", epochs=3, warmup=0.0, weight_decay=0.0, momentum=0.0)
    with torch.no_grad():
        for weight in prunable(task.model).values():
            weight.fill_(weight[0].numel() ** -0.5)  # filters of norm 1
            weight[::2] *= 0.4
            weight[1::2] *= 1.6
    for parameter in task.model.parameters():
        parameter.requires_grad_(False)
    task.model.get_parameter("classifier.bias").requires_grad_(True)  # something to train
    recipe = task.recipe
    rates = [recipe.lr_at(step, 12) for step in range(12)]
    seen: list[float] = []
    step = Groups.shrink

    def watched(groups: Groups, weights: dict[str, Tensor], threshold: float) -> None:
        seen.append(threshold)
        step(groups, weights, threshold)

    monkeypatch.setattr(Groups, "shrink", watched)
    proposal = StructuredSparsity(on="filters").propose(task)
    assert seen == pytest.approx([rate * 0.5 / sum(rates) for rate in rates])
    filters = [weight for name, weight in prunable(proposal.model).items() if "classifier" not in name]
    assert all(weight[::2].eq(0).all() for weight in filters)  # the classifier's outputs are not channels
    left = torch.cat([weight[1::2].flatten(1).norm(dim=1) for weight in filters])
    assert left.tolist() == pytest.approx([1.1] * len(left), rel=1e-4)


@pytest.mark.parametrize("name", ["lenet5", "mobilenet_v2_x0_35", "shufflenet_v1_g3_x0_25"])
def test_widths_meet_the_budget(name: str) -> None:
    task = task_of(name, epochs=1)
    check_proposal(task, StructuredSparsity(on="filters,channels,shapes,layers", strength=0.1).propose(task))


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(InvalidSetting, match="on has 'filter'"):
        StructuredSparsity(on="filter,layers")
    with pytest.raises(InvalidSetting, match=r"strength is -0\.1"):
        StructuredSparsity(strength=-0.1)
    with pytest.raises(InvalidSetting, match="no groups of layers"):  # no shortcut, no layer that may go
        StructuredSparsity(on="layers").propose(task_of("lenet5"))
