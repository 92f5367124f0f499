"""Blocks of the inverse Hessian of a layer's weights (Hassibi and Stork 1993, Optimal Brain Surgeon).

The Hessian of a loss is taken as the mean over images of X X^T, X being the derivatives of the outputs by the weights
times a root of the loss's own Hessian by the outputs: exact where the outputs are linear in the weights, and where the
errors are small (their eq. 7). Its inverse is built up image by image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..graph.sparsity import prunable
from ..training.evaluate import evaluating

AT_ONCE = 64  # derivatives that one step of the recursion takes in
LAYERS = (nn.Conv2d, nn.Linear)

Root = Callable[[Tensor], Tensor]  # outputs [N, C] -> columns [K, N, C] of a root of the loss's Hessian


@dataclass(frozen=True)
class Derivatives:
    """Of the outputs by a layer's weights, as the factors that they are sums of products of."""

    inputs: Tensor  # [images, places, groups, columns]
    slopes: Tensor  # [K, images, places, rows]

    def of(self, start: int, stop: int) -> Tensor:
        """[K * images, stop - start] by that stretch of the flattened weight."""
        columns = self.inputs.shape[3]
        rows_a_group = self.slopes.shape[3] // self.inputs.shape[2]
        parts = []
        for row in range(start // columns, (stop - 1) // columns + 1):
            first, last = max(start - row * columns, 0), min(stop - row * columns, columns)
            own = self.inputs[:, :, row // rows_a_group, first:last]
            parts.append(torch.einsum("knl,nlc->knc", self.slopes[..., row], own))
        return torch.cat(parts, 2).flatten(0, 1)


def softmax_root(outputs: Tensor) -> Tensor:
    """Of the cross-entropy: sqrt(p_k) (e_k - p) for each class k; their squares add up to diag(p) - p p^T."""
    p = outputs.softmax(1)
    return p.sqrt().T[..., None] * (torch.eye(p.shape[1], device=p.device)[:, None] - p)


def derivatives(model: nn.Module, inputs: Tensor, root: Root = softmax_root) -> dict[str, Derivatives]:
    """Weight -> derivatives at these images, for 2-D convolutions and linear layers; in eval mode."""
    names = {id(weight): name for name, weight in prunable(model).items()}  # layers may share one
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def keep(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((layer, _columns(layer, given[0].detach()), output))

    hooks = [layer.register_forward_hook(keep) for layer in model.modules() if isinstance(layer, LAYERS)]
    try:
        with evaluating(model), torch.enable_grad():
            outputs = model(inputs.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    slopes = [
        torch.autograd.grad(outputs, [output for _, _, output in calls], column, retain_graph=True)
        for column in root(outputs.detach())
    ]
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for i, (layer, columns, _) in enumerate(calls):
        own = torch.stack([_places(layer, of_column[i]) for of_column in slopes])
        found.setdefault(names[id(layer.weight)], []).append((columns, own))
    return {
        name: Derivatives(torch.cat([a for a, _ in parts], 1), torch.cat([b for _, b in parts], 2))
        for name, parts in found.items()
    }


def inverse(vectors: Tensor, images: int, damping: float) -> Tensor:
    """(damping I + sum of x x^T / images)^-1 of [vectors, n], in float64 (their eq. 9 and 10, several x at a time)."""
    found = torch.eye(vectors.shape[1], dtype=torch.float64, device=vectors.device) / damping
    for x in vectors.double().split(AT_ONCE):
        across = found @ x.T  # [n, some]
        inner = x @ across
        inner.diagonal().add_(images)
        found -= across @ torch.linalg.solve(inner, across.T)
    return found


def elimination(inverses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """In which order blocks of weights go, and what each costs when it goes: both [blocks, n].

    The weight with the smallest w_q^2 / (2 [H^-1]_qq) goes, the others move by -w_q / [H^-1]_qq H^-1 e_q (their eq. 5),
    and the inverse becomes that of the Hessian without it. inverses: [blocks, n, n], weights: [blocks, n].
    """
    inverses, weights = inverses.clone(), weights.double().clone()
    blocks = torch.arange(len(weights), device=weights.device)
    gone = torch.zeros_like(weights, dtype=torch.bool)
    order, costs = [], []
    for _ in range(weights.shape[1]):
        saliency = weights.square() / (2 * inverses.diagonal(dim1=1, dim2=2))
        cost, q = saliency.masked_fill(gone, torch.inf).min(1)
        column = inverses[blocks, :, q].clone()  # [blocks, n]
        pivot = column[blocks, q]
        weights -= (weights[blocks, q] / pivot)[:, None] * column
        inverses.baddbmm_(column[:, :, None], (column / pivot[:, None])[:, None, :], alpha=-1)
        gone[blocks, q] = True
        order.append(q)
        costs.append(cost)
    return torch.stack(order, 1), torch.stack(costs, 1)


def without(inverse: Tensor, weight: Tensor, gone: Tensor) -> Tensor:
    """[n] weights that make up best for those that are gone: all steps of eq. 5 at once."""
    inner = inverse[gone][:, gone]
    moved: Tensor = weight.double() - inverse[:, gone] @ torch.linalg.solve(inner, weight.double()[gone])
    moved[gone] = 0
    return moved.to(weight.dtype)


def _columns(layer: Any, x: Tensor) -> Tensor:
    """What the layer's rows are multiplied with: [images, places, groups, columns]."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, 1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    windows = F.unfold(padded, layer.kernel_size, layer.dilation, stride=layer.stride)  # [N, C * kernel, places]
    grouped: Tensor = windows.mT.unflatten(2, (layer.groups, -1))
    return grouped


def _places(layer: nn.Module, slope: Tensor) -> Tensor:
    """[images, places, rows]."""
    return slope.reshape(len(slope), -1, slope.shape[-1]) if isinstance(layer, nn.Linear) else slope.flatten(2).mT
