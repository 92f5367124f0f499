"""SNIP: single-shot pruning by connection sensitivity, before training (Lee et al. 2019, arXiv:1810.02340)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InvalidSetting
from ...graph.importance import l1_importance
from ...graph.sparsity import counts, largest, prunable, surviving_proportions
from ...training.loop import AUXILIARY_WEIGHT
from ..nearest import nearest_widths
from .method import Proposal, Task
from .surviving import DERIVED, check_sparsity, fresh, sparsity_of


@dataclass(frozen=True)
class Snip:
    """Connections to which a fresh network's loss is least sensitive go, before any training.

    `sparsity`: share of all weights that goes, 0: what the budget asks for. `batches`: of the recipe's size, whose
    gradients are summed; the paper takes one. The sensitivity is that of a copy with weights drawn anew from the
    recipe's seed by each layer's `reset_parameters` (variance scaling, as the paper's section 4 advises). What it says
    of a fresh network's channels says nothing of the trained one's: its widths come from SNIP, and the trained
    channels of the largest L1 norm go on in them.
    """

    sparsity: float = DERIVED
    batches: int = 1

    def __post_init__(self) -> None:
        check_sparsity("snip", self.sparsity)
        if self.batches < 1:
            raise InvalidSetting(f"snip: {self.batches} batches; expected at least 1")

    def propose(self, task: Task) -> Proposal:
        """Score every connection of a fresh network once, and project what survives."""
        network = fresh(task.model, task.recipe.seed)
        scores = sensitivity(network, self._batches(task, next(network.parameters()).device), task.recipe.seed)
        masks = largest(scores, sparsity_of(task, self.sparsity))
        widths = nearest_widths(task.graph, surviving_proportions(task.graph, masks), task.budget)
        scores_of_trained = l1_importance(task.graph, task.model)
        return Proposal(widths, scores_of_trained, task.model, layers=counts(network, masks))

    def _batches(self, task: Task, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        train, size = task.data.train, task.recipe.batch_size
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(task.recipe.seed))
        for indices in order[: self.batches * size].split(size):
            yield task.data.info.normalise(train.images[indices].to(device)), train.labels[indices].to(device)


def sensitivity(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], seed: int) -> dict[str, Tensor]:
    """Each prunable weight's share of the absolute sensitivities |dL/dc| at masks c = 1 (eq. 5 and 6).

    With c multiplying the weights, dL/dc = w dL/dw. L is the cross-entropy in training mode: a fresh network has no
    statistics to normalise by.
    """
    weights = prunable(model)
    model.train()
    model.zero_grad()
    devices = [p.device for p in weights.values() if p.is_cuda][:1]
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)  # of dropout
        for images, labels in batches:
            _loss(model(images), labels).backward()
    absolute = {
        name: torch.zeros_like(weight) if weight.grad is None else (weight.detach() * weight.grad).abs()
        for name, weight in weights.items()
    }
    model.zero_grad()
    total = torch.stack([own.sum() for own in absolute.values()]).sum()
    return {name: own.div_(total) for name, own in absolute.items()}


def _loss(outputs: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    logits, *auxiliary = [outputs] if isinstance(outputs, Tensor) else outputs
    loss = F.cross_entropy(logits.float(), labels)
    for extra in auxiliary:
        loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(extra.float(), labels)
    return loss
