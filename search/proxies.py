"""Proxies: what an untrained network and one batch say about how well it will train, each by its paper's formula.

Every proxy is for comparing networks on the same batch: more is taken for better. The plain counts are the bar that
the others have to beat (White et al. 2021, "How powerful are performance predictors"; Ning et al. 2021,
arXiv:2008.03064: counts are hard to beat). Abdelfattah et al. 2021 (arXiv:2101.08134), section 3.1, sum what SNIP,
SynFlow and gradient norm say of single weights over the network, which is what is done here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import InvalidSetting, suggestion
from ..graph.channel_graph import trace
from ..graph.costs import Costs

Proxy = Callable[[nn.Module, Tensor, Tensor], float]
RECTIFIERS = {F.relu, F.relu6, F.hardtanh, F.leaky_relu, F.prelu, F.elu, F.gelu, F.silu, F.hardswish, F.mish}
RECTIFIERS |= {torch.relu, torch.relu_, torch.prelu, Tensor.relu, Tensor.relu_, F.relu_, F.leaky_relu_, F.elu_}
RECTIFIERS |= {F.hardtanh_, F.celu, F.selu, F.rrelu, torch.celu, torch.selu, torch.selu_}
ZEN_STEP, ZEN_IMAGES, ZEN_DRAWS = 0.01, 16, 4  # alpha of Lin et al.; images in a draw, draws whose mean is taken
NORMS = nn.modules.batchnorm._BatchNorm
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class UndefinedProxy(InvalidSetting):
    """A proxy that says nothing about a network of this kind."""


def proxy_scores(model: nn.Module, images: Tensor, labels: Tensor, names: Iterable[str] | None = None,
                 *, seed: int = 0) -> dict[str, float]:  # fmt: skip
    """The proxies (all by default) of one untrained network, from normalised images [N, C, H, W] and labels [N].

    The model is left as it is. Draws are seeded; the caller's random state is left as it was. A proxy that is not
    defined for the network is NaN; see `proxy_score`.
    """
    scores = {}
    for name in PROXIES if names is None else names:
        try:
            scores[name] = proxy_score(name, model, images, labels, seed=seed)
        except UndefinedProxy:
            scores[name] = math.nan
    return scores


def proxy_score(name: str, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0) -> float:
    """One proxy; raises InvalidSetting for an unknown one, UndefinedProxy where the network lacks what it reads."""
    proxy = PROXIES[known_proxy(name)]
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return proxy(copy.deepcopy(model).train(), images, labels)


def known_proxy(name: str) -> str:
    """The name, if there is such a proxy; raises InvalidSetting with a suggestion."""
    if name not in PROXIES:
        raise InvalidSetting(f"no proxy named {name!r}{suggestion(name, PROXIES)} (there are {', '.join(PROXIES)})")
    return name


# -- counts --------------------------------------------------------------------------------------------------------


def params(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Parameters."""
    return float(_costs(model, images).params)


def macs(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Multiply-accumulates of one image."""
    return float(_costs(model, images).macs)


def activations(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Output elements of convolutions and linear layers of one image (Radosavovic et al. 2020, arXiv:2003.13678)."""
    return float(_costs(model, images).activations)


def _costs(model: nn.Module, images: Tensor) -> Costs:
    return trace(model, (1, *images.shape[1:])).price()


# -- one backward pass ---------------------------------------------------------------------------------------------


def grad_norm(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Sum over weights of the Euclidean norm of the loss's gradient (Abdelfattah et al. 2021, section 3.1)."""
    _, gradients = _loss_gradients(model, images, labels)
    return float(sum(gradient.norm() for gradient in gradients))


def snip(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Sum of |weight x gradient of the loss| (Lee et al. 2019, arXiv:1810.02340, equation 3 before normalisation)."""
    weights, gradients = _loss_gradients(model, images, labels)
    return float(sum((w.detach() * g).abs().sum() for w, g in zip(weights, gradients, strict=True)))


def _loss_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    weights = _weights(model)
    loss = F.cross_entropy(_logits(model, images), labels)
    return weights, torch.autograd.grad(loss, weights, materialize_grads=True)


def _weights(model: nn.Module) -> list[Tensor]:
    """Of convolutions and linear layers: what is pruned in SNIP and SynFlow."""
    return [parameter for parameter in model.parameters() if parameter.ndim > 1]


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """The classifier's output, without those of auxiliary classifiers."""
    outputs = model(images)
    logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
    return logits


# -- SynFlow -------------------------------------------------------------------------------------------------------


def synflow(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """ln of the sum of weight x dR/dweight, R the output for an image of ones with |weights| (Tanaka et al. 2020).

    arXiv:2006.05467, section 5 and algorithm 1; in double precision. The paper's network is piecewise linear: on what
    is never negative a rectifier is the identity, and ReLU6 or Hardswish, which would saturate, are taken for that
    too. Batch norms apply their initial statistics.
    """
    model.eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    weights = _weights(model)
    ones = torch.ones((1, *images.shape[1:]), dtype=torch.float64, device=images.device)
    with _Linear():
        flow = _logits(model, ones).sum()
    gradients = torch.autograd.grad(flow, weights, materialize_grads=True)
    total = sum((w.detach() * g).sum() for w, g in zip(weights, gradients, strict=True))
    return float(torch.as_tensor(total).log())


class _Linear(TorchFunctionMode):
    """Rectifiers are the identity within."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _input(args, kwargs) if func in RECTIFIERS else func(*args, **(kwargs or {}))


# -- NASWOT --------------------------------------------------------------------------------------------------------


def naswot(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """ln |det K|, K_ij the rectifiers that agree on images i and j (Mellor et al. 2021, arXiv:2006.04647, section 3).

    K_ij = N - Hamming distance of the two binary codes, which say where the input of a rectifier is positive.
    """
    with _Codes() as codes, torch.no_grad():
        model(images)
    if codes.kernel is None:
        raise UndefinedProxy("naswot needs rectifiers (ReLU and the like), and the network has none")
    return float(torch.linalg.slogdet(codes.kernel).logabsdet)


class _Codes(TorchFunctionMode):
    """Sums the kernel of all rectifiers met within, [N, N]."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel: Tensor | None = None

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in RECTIFIERS:
            positive = (_input(args, kwargs) > 0).flatten(1).float()  # [N, units]
            signs = 2 * positive - 1  # their products count agreements less the others
            agreeing = ((signs @ signs.T).double() + signs.shape[1]) / 2
            self.kernel = agreeing if self.kernel is None else self.kernel + agreeing
        return func(*args, **(kwargs or {}))


# -- Zen -----------------------------------------------------------------------------------------------------------


def zen(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """ln E||f(x) - f(x + a e)|| + sum over batch norms of ln of the channels' mean deviation (Lin et al. 2021).

    arXiv:2102.01063, algorithm 1: weights, x and e are standard normal, a is 0.01, and f ends before the pooling: at
    the last map that a convolution, norm or rectifier makes. Residual additions stay, where the paper takes them out:
    a network as such does not say which of two sides is the branch.
    """
    if not any(isinstance(module, NORMS) for module in model.modules()):
        raise UndefinedProxy("zen needs batch norm, and the network has none; take another proxy")
    draws = [_zen_draw(model, (ZEN_IMAGES, *images.shape[1:]), images.device) for _ in range(ZEN_DRAWS)]
    return sum(draws) / ZEN_DRAWS


@torch.no_grad()
def _zen_draw(model: nn.Module, shape: tuple[int, ...], device: torch.device) -> float:
    _draw_normal(model)
    x = torch.randn(shape, device=device)
    near = x + ZEN_STEP * torch.randn(shape, device=device)
    plain, moved = _Features(), _Features()
    with plain:
        model(x)
    with moved:
        model(near)
    assert plain.map is not None
    assert moved.map is not None
    distance = (plain.map - moved.map).flatten(1).norm(dim=1).mean()
    return float(distance.log()) + plain.log_deviations


def _draw_normal(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, WEIGHTED):
            module.weight.normal_()
        elif isinstance(module, NORMS) and module.affine:
            module.weight.fill_(1)
        if isinstance(module, (*WEIGHTED, NORMS)) and module.bias is not None:
            module.bias.zero_()


class _Features(TorchFunctionMode):
    """Keeps the last map met within, and sums ln sqrt(mean channel variance) over all batch norms' inputs."""

    MAKERS = RECTIFIERS | {F.batch_norm, F.conv2d, torch.conv2d}

    def __init__(self) -> None:
        super().__init__()
        self.map: Tensor | None = None
        self.log_deviations = 0.0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is F.batch_norm:
            channels = _input(args, kwargs).transpose(0, 1).flatten(1)
            self.log_deviations += channels.var(1, correction=0).mean().log().item() / 2
        result = func(*args, **(kwargs or {}))
        if func in self.MAKERS and result.ndim == 4:
            self.map = result.clone()  # what follows may write into it
        return result


def _input(args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Tensor:
    """A function's first argument, by position or by name."""
    tensor: Tensor = args[0] if args else (kwargs or {})["input"]
    return tensor


PROXIES: dict[str, Proxy] = {
    proxy.__name__: proxy for proxy in (params, macs, activations, grad_norm, snip, synflow, naswot, zen)
}
COUNTS = ("params", "macs", "activations")
