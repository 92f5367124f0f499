"""The channel graph's five properties, as checks that tests apply to any model."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import pocketzoo as pz

Shape = tuple[int, ...]


def counted(model: nn.Module, shape: Shape) -> tuple[int, int]:
    """(params, MACs) by an independent counter: on meta, unless the model holds tensors that cannot go there."""
    holds = any(isinstance(v, Tensor) for module in model.modules() for v in vars(module).values())
    device = "cpu" if holds else "meta"
    bare = _without_what_is_not_counted(copy.deepcopy(model).to(device).eval())
    with torch.no_grad(), torch.device(device), FlopCounterMode(display=False) as counter:
        bare(torch.empty(shape).zero_())
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def _without_what_is_not_counted(model: nn.Module) -> nn.Module:
    """Normalisation and activations taken out: they cost no MACs, and running them on meta takes most of the time."""
    free = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.LeakyReLU, nn.Dropout)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, free):
                setattr(parent, name, nn.Identity())
    return model


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch-norm statistics and affine parameters that a mistake would show in."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5),
                                      (module.weight, 0.5, 1.5), (module.bias, -0.2, 0.2)):  # fmt: skip
                if tensor is not None:
                    tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def first_output(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def random_scores(graph: pz.ChannelGraph, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    scores: dict[str, Any] = {}
    for group, layers in graph.members.items():
        each = {layer: rng.random(len(graph._channel_list(layer))) for layer in layers}
        scores[group] = each if len(layers) > 1 else each[group]
    return scores


def check_counts(model: nn.Module, shape: Shape) -> pz.ChannelGraph:
    """1: the price is what an independent counter counts, and asking at the present widths changes nothing."""
    graph = pz.trace(model, shape)
    costs = graph.price()
    assert (costs.params, costs.macs) == counted(model, shape)
    assert graph.price(graph.widths) == costs
    return graph


def check_widths(graph: pz.ChannelGraph, model: nn.Module, shape: Shape, n: int, seed: int = 0) -> None:
    """2: at random valid widths the resized model runs and costs its price, to the unit.

    Counted by tracing the resized model, and by an independent counter for the first three.
    """
    widths = graph.random_widths(n, seed=seed)
    assert graph.valid(widths).all()
    prices = graph.price_many(widths)
    for i, (row, price) in enumerate(zip(widths, prices.itertuples(), strict=True)):
        resized = graph.resize(model, dict(zip(graph.groups, row.tolist(), strict=True)))
        if i < 3:
            assert (price.params, price.macs) == counted(resized, shape)
        again = pz.trace(resized, shape).price()
        assert (again.params, again.macs, again.peak_memory_bytes) == (
            price.params,
            price.macs,
            price.peak_memory_bytes,
        )
        assert (again.activations, again.memory_access) == (price.activations, price.memory_access)


def check_pruning(graph: pz.ChannelGraph, model: nn.Module, shape: Shape, n: int, seed: int = 0) -> None:
    """3: the pruned model computes what the masked original computes."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for i, row in enumerate(graph.random_widths(n, seed=seed + 1)):
        widths = dict(zip(graph.groups, row.tolist(), strict=True))
        keep = graph.select(random_scores(graph, seed + i), widths)
        with torch.no_grad():
            masked = first_output(graph.mask(model, keep).eval()(x))
            pruned = first_output(graph.resize(model, keep=keep).eval()(x))
        assert masked.std() > 0
        torch.testing.assert_close(pruned, masked, rtol=1e-5, atol=1e-5 * float(masked.abs().max().clamp(min=1)))


def check_identity(graph: pz.ChannelGraph, model: nn.Module, shape: Shape) -> None:
    """4: resizing to the present widths changes nothing."""
    same = graph.resize(model, graph.widths)
    assert same is not model
    before, after = model.state_dict(), same.state_dict()
    assert before.keys() == after.keys()
    assert all(before[k].shape == after[k].shape for k in before)
    if not next(model.parameters()).is_meta:
        assert all(torch.equal(before[k], after[k]) for k in before)


def check_all(model: nn.Module, shape: Shape, n: int = 4) -> pz.ChannelGraph:
    """All of them, with real numbers."""
    randomise(model)
    graph = check_counts(model, shape)
    check_identity(graph, model, shape)
    if graph.groups:
        check_widths(graph, model, shape, n)
        check_pruning(graph, model, shape, n)
    return graph
