"""Second derivatives of the loss by each weight, by a sweep backwards (LeCun et al. 1990, Optimal Brain Damage).

Weights have d2E/dw_ij^2 = d2E/da_i^2 x_j^2 (eq. 8, summed over the uses of a shared weight, eq. 7), and a layer's
inputs d2E/dx_j^2 = sum_i w_ij^2 d2E/da_i^2: what an ordinary backward pass computes of the same layer with squared
inputs and weights. An activation x = f(a) has d2E/da^2 = f'(a)^2 d2E/dx^2 + f''(a) dE/dx (eq. 9), whose last term the
Levenberg-Marquardt form leaves out (eq. 11). Second derivatives between two units of a layer are neglected, as in
the paper, so the sweep is exact for one hidden layer whose outputs enter the loss one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import InvalidSetting
from ..graph.sparsity import prunable
from ..training.evaluate import evaluating
from .granularity import layer_of

Loss = Callable[[Tensor], Tensor]  # outputs [N, ...] -> the sum over N

MAPS = (nn.modules.conv._ConvNd, nn.Linear)
MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
NORMS = (nn.modules.batchnorm._BatchNorm,)
ACTIVATIONS = (
    nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.LeakyReLU, nn.Hardswish,
    nn.Hardsigmoid, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink,
)  # fmt: skip
PASSES_ON = (  # every derivative is 0 or 1: the ordinary backward pass is the sweep
    "AccumulateGrad", "AddBackward", "AliasBackward", "CatBackward", "CloneBackward", "ConstantPadNdBackward",
    "HardtanhBackward", "MaxPool", "PermuteBackward", "ReluBackward", "ReshapeAliasBackward", "SelectBackward",
    "SliceBackward", "SplitBackward", "SplitWithSizesBackward", "SqueezeBackward", "TransposeBackward",
    "UnsafeViewBackward", "UnsqueezeBackward", "ViewBackward", "_RuleBackward",
)  # fmt: skip


def diagonal(model: nn.Module, inputs: Tensor, loss: Loss, *, full: bool = False) -> dict[str, Tensor]:
    """Weight -> d2E/dw^2 of its entries, for convolutions and linear layers; E is the loss, in eval mode.

    `full` keeps the second derivatives of activations (eq. 9). Raises InvalidSetting for a network with operations
    whose second derivatives are not known here.
    """
    found = {name: weight for name, weight in prunable(model).items() if isinstance(layer_of(model, name), MAPS)}
    curvature = {id(weight): torch.zeros_like(weight) for weight in found.values()}
    with evaluating(model):
        slopes = _slopes(model, inputs, loss) if full else None
        with _rules(model, curvature, slopes), torch.enable_grad():
            start = inputs.detach().requires_grad_()
            outputs = model(start)
        _check(outputs)
        torch.autograd.grad(outputs, start, _diagonal_at(outputs.detach(), loss))
    return {name: curvature[id(weight)] for name, weight in found.items()}


def _diagonal_at(outputs: Tensor, loss: Loss) -> Tensor:
    """d2E/do^2 of each output, exactly."""
    outputs = outputs.requires_grad_()
    [slope] = torch.autograd.grad(loss(outputs), outputs, create_graph=True)
    if not slope.requires_grad:
        return torch.zeros_like(outputs)
    columns = []
    for i, column in enumerate(slope.flatten(1).T):
        [row] = torch.autograd.grad(column.sum(), outputs, retain_graph=True)  # images do not meet in the loss
        columns.append(row.flatten(1)[:, i])
    return torch.stack(columns, 1).view(outputs.shape)


def _slopes(model: nn.Module, inputs: Tensor, loss: Loss) -> dict[int, list[Tensor]]:
    """dE/dx of each activation's outputs, in the order of its calls."""
    calls: list[tuple[int, Tensor]] = []

    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        calls.append((id(module), output))

    hooks = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, ACTIVATIONS)]
    try:
        with torch.enable_grad():
            total = loss(model(inputs.detach().requires_grad_()))
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[int, list[Tensor]] = {}
    if calls:
        slopes = torch.autograd.grad(total, [output for _, output in calls])
        for (module, _), slope in zip(calls, slopes, strict=True):
            found.setdefault(module, []).append(slope)
    return found


@contextmanager
def _rules(model: nn.Module, curvature: dict[int, Tensor], slopes: dict[int, list[Tensor]] | None) -> Iterator[None]:
    """What the model computes within has backward passes that give second derivatives, and add up the weights'."""
    calls: dict[int, int] = {}

    def put_rule(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, number = given[0].detach(), calls.get(id(module), 0)
        calls[id(module)] = number + 1
        slope = None if slopes is None or id(module) not in slopes else slopes[id(module)][number]

        def rule(d2y: Tensor) -> Tensor:
            if isinstance(module, MAPS):
                d2w, d2x = _through_map(module, x, d2y)
                curvature[id(module.weight)] += d2w
                return d2x
            if isinstance(module, NORMS):
                return _through_norm(module, x, d2y)
            return _through_mean(module, x, d2y) if isinstance(module, MEANS) else _through(module, x, d2y, slope)

        return _Rule.apply(given[0], output.detach(), rule)  # type: ignore[no-any-return,no-untyped-call]

    ruled = [module for module in model.modules() if isinstance(module, (*MAPS, *MEANS, *NORMS, *ACTIVATIONS))]
    overwriting = [module for module in ruled if getattr(module, "inplace", False)]
    hooks = [module.register_forward_hook(put_rule) for module in ruled]
    for module in overwriting:  # the rule needs what was there before
        module.inplace = False
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in overwriting:
            module.inplace = True


class _Rule(torch.autograd.Function):
    """An operation whose backward pass is a rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
        """What the module gave."""
        ctx.rule = rule
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *d2y: Tensor) -> Any:
        """What the rule makes of it."""
        return ctx.rule(d2y[0]), None, None


def _through_map(layer: nn.Module, x: Tensor, d2y: Tensor) -> tuple[Tensor, Tensor]:
    """(of the weight, of the inputs), eq. 8 and the sum in eq. 9."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    squares = x.square().requires_grad_(), weight.detach().square().requires_grad_()
    with torch.enable_grad():
        y = functional_call(layer, {"weight": squares[1]}, squares[0])
    d2x, d2w = torch.autograd.grad(y, squares, d2y)  # a bias adds nothing to these
    return d2w, d2x


def _through_norm(norm: nn.Module, x: Tensor, d2y: Tensor) -> Tensor:
    """Batch norm in eval mode scales each channel."""
    with torch.enable_grad():
        x = x.requires_grad_()
        [scale] = torch.autograd.grad(norm(x).sum(), x)
    return scale.square() * d2y


def _through_mean(pool: nn.Module, x: Tensor, d2y: Tensor) -> Tensor:
    """Means over windows that do not overlap and are all alike: derivatives are 1/k or 0."""
    with torch.enable_grad():
        x = x.requires_grad_()
        y: Tensor = pool(x)
        share = y[0, 0].numel() / x[0, 0].numel()
        [slope] = torch.autograd.grad(y.sum(), x, retain_graph=True)
        if not torch.allclose(slope, torch.full_like(slope, share)):
            raise InvalidSetting(f"no second derivatives through {pool}: its windows overlap or differ")
        [once] = torch.autograd.grad(y, x, d2y)
        return share * once


def _through(activation: nn.Module, x: Tensor, d2y: Tensor, slope: Tensor | None) -> Tensor:
    """Eq. 9 with the slope dE/dy, eq. 11 without."""
    with torch.enable_grad():
        x = x.requires_grad_()
        [first] = torch.autograd.grad(activation(x.clone()).sum(), x, create_graph=True)  # it may overwrite
        if slope is None or not first.requires_grad:
            return first.detach().square() * d2y
        [second] = torch.autograd.grad(first.sum(), x)
    return first.detach().square() * d2y + second * slope


def _check(outputs: Tensor) -> None:
    """Walk back over all operations; raises InvalidSetting for one that the sweep would get wrong."""
    ahead, seen = [outputs.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = type(node).__name__.rstrip("0123456789")
        if not name.startswith(PASSES_ON) or getattr(node, "_saved_alpha", 1) != 1:
            operation = name.removesuffix("Backward")
            raise InvalidSetting(
                f"optimal brain damage has no second derivatives through {operation}; it has them through sums, views,"
                " and the modules of convolutions, linear layers, poolings, batch norms and activations"
            )
        ahead += [inner for inner, _ in node.next_functions]
