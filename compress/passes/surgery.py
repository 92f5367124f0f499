"""Dynamic network surgery (Guo et al. 2016, arXiv:1608.04493): weights go and come back while the network trains."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import InvalidSetting
from ...graph.sparsity import Masks, apply_masks, hold, prunable
from ..compression import Compression
from ..granularity import by_weight, layer_of

LOWER, UPPER = 0.9, 1.1  # a_k and b_k in parts of the threshold, as in the authors' code


@dataclass(frozen=True)
class Surgery:
    """Train with masks that follow the weights: below a_k they go, above b_k they come back, between nothing changes.

    `c_rate` sets a layer's threshold: mean + c_rate * deviation of its absolute weights before the surgery; or a
    mapping from layers to theirs, where layers that it does not name keep their masks. Masks are looked at in a step
    with probability (1 + gamma * step)^-power, and no more after the share `stop` of the steps (14,000 of the authors'
    16,000 for LeNet-5). Pruned weights go on learning from the gradient at the masked ones (eq. 2).
    `turns`: convolutions first and then all others, each for `epochs`, as the paper does; otherwise all at once.
    `biases`: those of the layers too, by the same thresholds, as the authors' code has it.
    """

    c_rate: float | Mapping[str, float] = 4.0
    epochs: int = 10
    lr: float | None = None  # None: the recipe's
    gamma: float = 1e-4
    power: float = 1.0
    stop: float = 0.875
    turns: bool = True
    biases: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.gamma < 0 or self.power < 0 or not 0 < self.stop <= 1:
            raise InvalidSetting(
                f"surgery: epochs {self.epochs}, gamma {self.gamma}, power {self.power}, stop {self.stop}; expected at"
                " least 1, 0 and 0, and a share of the steps"
            )

    def apply(self, compression: Compression) -> Compression:
        """One training or two; each starts from what the one before left."""
        compression.the_data("surgery")
        thresholds = self.thresholds(compression.model)
        for part in self._parts(compression.model, thresholds):
            compression = self._operate(compression, part)
        return compression

    def thresholds(self, model: nn.Module) -> dict[str, float]:
        """Parameter -> what a_k and b_k lie around, never negative: of the absolute values that are not zero."""
        weights = prunable(model)
        found = {}
        for name, rate in by_weight(model, self.c_rate).items():
            values = weights[name].detach().abs()
            values = values[values > 0]
            found[name] = max(0.0, float(values.mean() + rate * values.std(correction=0))) if len(values) else 0.0
            bias = name.replace("weight", "bias")
            if self.biases and bias in dict(model.named_parameters()):
                found[bias] = found[name]
        return found

    def _parts(self, model: nn.Module, thresholds: Mapping[str, float]) -> list[dict[str, float]]:
        if not self.turns:
            return [dict(thresholds)]
        convolutions: dict[str, float] = {}
        others: dict[str, float] = {}
        for name, threshold in thresholds.items():
            is_convolution = isinstance(layer_of(model, name), nn.modules.conv._ConvNd)
            (convolutions if is_convolution else others)[name] = threshold
        return [part for part in (convolutions, others) if part]

    def _operate(self, compression: Compression, thresholds: Mapping[str, float]) -> Compression:
        operation = _Operation(compression.model, compression.masks, thresholds)
        held = {name: mask for name, mask in compression.masks.items() if name not in thresholds}
        hold_others = hold(held)
        draw = random.Random(compression.recipe.seed)

        def after_step(model: nn.Module, optimizer: torch.optim.Optimizer, done: int, steps: int) -> None:
            hold_others(model, optimizer, done, steps)
            chance = (1 + self.gamma * done) ** -self.power if done < self.stop * steps else 0.0
            operation.after_step(model, [name for name in thresholds if draw.random() < chance])

        model = compression.copied()
        operation.begin(model)
        decay = compression.recipe.weight_decay
        trained = compression.changed(model=model).finetuned(
            self.epochs, self.lr, after_step=after_step, extra_loss=lambda model: decay * operation.decay(model)
        )
        return trained.changed(masks={**held, **{name: mask.cpu() for name, mask in operation.masks.items()}})


class _Operation:
    """The whole weights W_k and their masks T_k, while the model that is trained has W_k * T_k."""

    def __init__(self, model: nn.Module, masks: Masks, thresholds: Mapping[str, float]) -> None:
        self.thresholds = thresholds
        self.weights = {name: model.get_parameter(name).detach().clone() for name in thresholds}
        self.masks = {
            name: masks.get(name, torch.ones_like(own, dtype=torch.bool)) for name, own in self.weights.items()
        }

    def begin(self, model: nn.Module) -> None:
        """Before the first step all masks are looked at."""
        self._look(self.thresholds)
        apply_masks(model, self.masks)

    def decay(self, model: nn.Module) -> Tensor:
        """Zero, with the pruned weights as its gradient: where they are, the optimiser's own decay sees zeros."""
        total = torch.zeros((), device=next(model.parameters()).device)
        for name, mask in self.masks.items():
            own = self.weights[name].to(total.device)
            if own.dim() > 1:  # biases are not decayed
                total = total + (model.get_parameter(name) * own.masked_fill(mask.to(total.device), 0)).sum()
        return total

    @torch.no_grad()
    def after_step(self, model: nn.Module, awake: Iterable[str]) -> None:
        """Take the step over into the whole weights, look at these parameters' masks, and mask the model again."""
        for name, mask in self.masks.items():
            stepped = model.get_parameter(name)
            mask, own = mask.to(stepped.device), self.weights[name].to(stepped.device)
            self.masks[name] = mask
            self.weights[name] = torch.where(mask, stepped, own + stepped)  # a pruned one stepped from zero
        self._look(awake)
        for name, mask in self.masks.items():
            model.get_parameter(name).copy_(torch.where(mask, self.weights[name], 0.0))

    def _look(self, names: Iterable[str]) -> None:
        for name in names:
            self.masks[name] = looked_at(self.masks[name], self.weights[name], self.thresholds[name])


def looked_at(mask: Tensor, weight: Tensor, threshold: float) -> Tensor:
    """Eq. 3: which weights stay from now on."""
    size = weight.abs()
    return (mask & (size >= LOWER * threshold)) | (size >= UPPER * threshold)
