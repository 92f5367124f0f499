"""A parent trained to be cut: every step trains the whole network and some of its cuts, which it teaches.

The sandwich rule and in-place distillation of Yu and Huang 2019 (arXiv:1903.05134, sections 3.2 and 3.3): the largest,
the smallest and n random widths in every step, the largest from the labels and the others from what it says. Their
widths are uniform; here each group has its own, as in once-for-all networks (Cai et al. 2020, arXiv:1908.09791).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..graph.channel_graph import ChannelGraph, Widths, trace
from ..training.checkpoint import NAME as CHECKPOINT_NAME
from ..training.data import DataSet
from ..training.folder import open_folder
from ..training.loop import fit
from ..training.recipe import Recipe
from ..training.result import Result, provenance
from ..training.saved import RESULT_NAME, save_model
from ..zoo.architecture import Architecture
from .inherit import SUPERNET, begin

SMALLEST = 0.25  # of every width
RANDOM_CUTS = 2  # in a step, beside the whole network and its smallest cut
POOL = 32  # random cuts to draw from: making one takes as long as several steps
LOCK = ".supernet.lock"
EXAMPLES = 32  # validation images on which the ONNX file is compared with PyTorch


@dataclass(frozen=True)
class Cut:
    """A narrower network without weights of its own: where each entry of them lies in the whole network's."""

    network: nn.Module
    positions: Mapping[str, Tensor]  # parameter -> int64, its shape

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, widths: Widths) -> Cut:
        """The first channels of every group, as far as joint constraints allow; raises InvalidWidths."""
        numbered = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in numbered.parameters():  # integers travel as the bits of floats: a float's value is exact
                numbers = torch.arange(parameter.numel(), dtype=torch.int32)  # to 2^24 only
                parameter.copy_(numbers.view(torch.float32).view(parameter.shape))
        network = graph.resize(numbered, keep=graph.select({}, widths))
        positions = {name: p.detach().contiguous().view(torch.int32).long() for name, p in network.named_parameters()}
        return cls(network.train(), positions)

    def __call__(self, weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """Logits [N, classes], differentiable in the whole network's weights."""
        own = {name: weights[name].flatten().index_select(0, where.to(images.device).flatten()).view(where.shape)
               for name, where in self.positions.items()}  # fmt: skip
        return _logits(functional_call(self.network.to(images.device), own, (images,)))


class Sandwich(nn.Module):
    """The whole network; a forward pass in training also leaves, in `distance`, how far its cuts are from it."""

    def __init__(self, network: nn.Module, smallest: Cut, pool: list[Cut]) -> None:
        super().__init__()
        self.network = network
        self.distance = torch.zeros(())
        self._cuts = [smallest, *pool]  # in a list: their parameters are not for the optimiser

    @classmethod
    def of(cls, network: nn.Module, graph: ChannelGraph, seed: int) -> Sandwich:
        """With the smallest cut and a pool of random ones."""
        quarter = {name: max(s, round(SMALLEST * graph.groups[name] / s) * s) for name, s in graph.steps.items()}
        drawn = [dict(zip(graph.groups, row, strict=True)) for row in graph.random_widths(POOL, seed).tolist()]
        smallest, *pool = (Cut.of(network, graph, widths) for widths in (quarter, *drawn))
        return cls(network, smallest, pool)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the whole network says."""
        outputs: Tensor | tuple[Tensor, ...] = self.network(images)
        if self.training:
            weights = dict(self.network.named_parameters())
            taught = F.softmax(_logits(outputs).detach().float(), 1)
            drawn = [0, *(1 + torch.randperm(len(self._cuts) - 1)[:RANDOM_CUTS]).tolist()]
            cuts = [F.cross_entropy(self._cuts[i](weights, images).float(), taught) for i in drawn]
            self.distance = torch.stack(cuts).sum()
        return outputs


def train_supernet(architecture: Architecture, data: DataSet, recipe: Recipe, out: str | Path, *,
                   progress: bool = False) -> Path:  # fmt: skip
    """Train the network from scratch to be cut, and leave it in `out` as a run for `weights`; what is there is kept.

    A step takes as long as its four networks; a stopped training goes on at its last epoch. The test split is not read.
    Raises InvalidRun when `out` holds something else, DivergedTraining.
    """
    record = {"architecture": json.loads(architecture.to_json()), "data": data.hash, "recipe": asdict(recipe)}
    folder = open_folder(out, {"kind": SUPERNET, **record})
    with FileLock(folder / LOCK):
        if (folder / RESULT_NAME).exists():
            return folder
        network = begin(architecture, recipe.seed, None)
        graph = trace(network, architecture.input_shape, whole_groups=architecture.whole_groups)
        sandwich = Sandwich.of(network, graph, recipe.seed)
        history = fit(sandwich, data, recipe, extra_loss=_distance, checkpoint_dir=folder, progress=progress)
        origin = provenance(data.info, seed=recipe.seed, seconds=history.seconds)
        origin[SUPERNET] = {"smallest": SMALLEST, "random_cuts": RANDOM_CUTS, "pool": POOL}
        result = Result(architecture, recipe, {"validation": history.val_accuracy}, asdict(graph.price()), origin)
        examples = data.info.normalise(data.val.images[:EXAMPLES])
        save_model(folder, network.cpu(), architecture, data.info, result, example=examples, overwrite=True)
        (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
    return folder


def _distance(sandwich: nn.Module) -> Tensor:
    assert isinstance(sandwich, Sandwich)
    return sandwich.distance


def _logits(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The classifier's output, without those of auxiliary classifiers."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]
