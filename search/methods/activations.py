"""What the layers of a trained network read: the inputs of its convolutions and linear layers, channel by channel.

A channel's activations are what the layers that mix it with others read of it: after activation, pooling,
concatenation and shuffle, and past every depthwise layer, which hands a channel on as the channel it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ...errors import InvalidSetting, UntraceableModel
from ...graph.channel_graph import ChannelGraph
from ...graph.masks import Reader
from ...training.data import DataInfo, Split
from ...training.evaluate import device_of, evaluating

Look = Callable[[Tensor], Tensor | None]  # sees a layer's input; what it returns is read in its place

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
MIXING = ("conv", "grouped conv", "linear", "transposed conv")
PIXELS, MOST = 1 << 19, 256  # of all images of a batch, and images in one: 10 of 224 x 224, 256 of 32 x 32
# Where batches do not change what comes out: 2 of 224 x 224, which take no longer, and 1 where gradients are wanted.
SCORED_PIXELS, GRADIENT_PIXELS = 1 << 17, 1 << 16
OUTPUTS = 16  # channels of a layer's output whose sums are looked at in each batch


def reading_layers(graph: ChannelGraph, model: nn.Module) -> dict[str, Reader]:
    """Every convolution and linear layer that mixes channels in evaluation -> which ones it reads, in running order.

    Raises UntraceableModel where a function reads them instead of a module, whose input could be looked at.
    """
    readers = graph.readers()
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    ran = list(dict.fromkeys(op.name for op in graph.operators() if op.kind in MIXING))
    found: dict[str, Reader] = {}
    hidden = set(readers)
    for path, module in model.named_modules():
        if isinstance(module, LAYERS):
            own = readers.keys() & {name_of[id(parameter)] for parameter in module.parameters()}
            hidden -= own
            if own:
                found[path] = readers[min(own)]
    by_function = [path for path in ran if not isinstance(model.get_submodule(path), LAYERS)]
    if hidden or (by_function and found.keys() - set(ran)):
        what = f"{min(hidden)} is read" if hidden else f"{by_function[0] or type(model).__name__} reads its input"
        raise UntraceableModel(
            f"{what} by a functional call, so that nothing can look at what comes in; make it a module of its own "
            "(nn.Conv2d, nn.Linear)"
        )
    return {path: found[path] for path in ran if path in found}


def batch_size(split: Split, pixels: int = PIXELS) -> int:
    """As many images as a small memory holds."""
    return max(1, min(MOST, pixels // (split.images.shape[-1] * split.images.shape[-2])))


def batches(
    split: Split, info: DataInfo, device: torch.device, pixels: int = PIXELS
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images and labels, `batch_size` at a time."""
    size = batch_size(split, pixels)
    for start in range(0, len(split), size):
        part = slice(start, start + size)
        yield info.normalise(split.images[part].to(device)), split.labels[part].to(device)


def drawn(split: Split, images: int, seed: int) -> Split:
    """So many images of a split, all of it where it has fewer."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    return split.take(order[:images])


@contextmanager
def looking(model: nn.Module, looks: Mapping[str, Look]) -> Iterator[None]:
    """The model in eval mode, with the input of each of these layers shown before it is read."""

    def before(look: Look) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
            instead = look(inputs[0])
            return None if instead is None else (instead, *inputs[1:])

        return hook

    hooks = [model.get_submodule(path).register_forward_pre_hook(before(look)) for path, look in looks.items()]
    try:
        with evaluating(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()


# -- channels, image by image ----------------------------------------------------------------------------------------


def image_means(
    graph: ChannelGraph, model: nn.Module, split: Split, info: DataInfo, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """[images, channels] means of `measure` (element-wise) over all places at which a channel is read."""

    def looker(reader: Reader, module: nn.Module, total: Tensor, places: Tensor) -> Look:
        channels = torch.from_numpy(reader.channels).to(total.device)

        def look(x: Tensor) -> None:
            x = by_position(module, x)
            total.index_add_(1, channels, measure(x).sum(2).to(total.dtype))
            places.index_add_(0, channels, places.new_full(channels.shape, x.shape[2]))

        return look

    layers = reading_layers(graph, model)
    means = []
    for images, _ in batches(split, info, device_of(model), SCORED_PIXELS):
        total = torch.zeros(len(images), graph.n_channels, device=images.device)
        places = torch.zeros(graph.n_channels, device=images.device)
        looks = {path: looker(own, model.get_submodule(path), total, places) for path, own in layers.items()}
        with looking(model, looks), torch.no_grad():
            model(images)
        means.append((total / places.clamp(min=1)).cpu())
    return torch.cat(means)


def loss_changes(graph: ChannelGraph, model: nn.Module, split: Split, info: DataInfo) -> Tensor:
    """[images, channels] activation times gradient of the image's loss, summed over all places of a channel.

    To first order that is what the loss (cross-entropy) falls by when nothing reads the channel any more.
    """

    def looker(reader: Reader, module: nn.Module, total: Tensor) -> Look:
        channels = torch.from_numpy(reader.channels).to(total.device)
        add = lambda x: total.index_add_(1, channels, by_position(module, x).sum(2).to(total.dtype))
        return lambda x: _Product.apply(x, add)  # type: ignore[no-untyped-call]

    layers = reading_layers(graph, model)
    changes = []
    for images, labels in batches(split, info, device_of(model), GRADIENT_PIXELS):
        total = torch.zeros(len(images), graph.n_channels, device=images.device)
        looks = {path: looker(own, model.get_submodule(path), total) for path, own in layers.items()}
        images.requires_grad_()  # so that the weights' own gradients need not be worked out
        with looking(model, looks):
            torch.autograd.grad(F.cross_entropy(model(images), labels, reduction="sum"), images)
        changes.append(total.cpu())
    return torch.cat(changes)


class _Product(torch.autograd.Function):
    """Hands an activation on, and on the way back its product with this reader's share of the gradient to `add`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, add: Callable[[Tensor], object]) -> Tensor:
        """The activation as it is."""
        ctx.save_for_backward(x)
        ctx.add = add
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient as it is."""
        (x,) = ctx.saved_tensors
        ctx.add(x * gradient)
        return gradient, None


def by_position(module: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as [N, positions along its channel side, places]."""
    x = x.movedim(-1, 1) if isinstance(module, nn.Linear) else x
    return x.reshape(*x.shape[:2], -1)


# -- samples of what a layer reads -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampled:
    """Settings of what is sampled: training images, random places of each layer's output, the seed of both."""

    images: int = 256
    locations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "locations"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"{name} is {getattr(self, name)}; expected a positive number")

    def check(self, graph: ChannelGraph) -> None:
        """Raises UntraceableModel for a network with a layer whose input cannot be sampled."""
        for path in reading_layers(graph, graph.model):
            check_sampled(path, graph.model.get_submodule(path))


class Sampler:
    """Keeps what layers read at random places of their outputs, [samples, positions, kernel], pass after pass.

    At each of the images `locations` places are drawn, all of them where there are no more. The same seed draws the
    same places in every network whose images are of the same size.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str], locations: int, seed: int) -> None:
        self.model, self.paths, self.locations, self.seed = model, list(paths), locations, seed

    @torch.no_grad()
    def read(self, images: Tensor, number: int) -> dict[str, Tensor]:
        """The samples of each layer in batch `number`; one that runs several times is looked at the first time."""
        found: dict[str, Tensor] = {}
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + number)

        def looker(path: str) -> Look:
            def look(x: Tensor) -> None:
                if path not in found:
                    found[path] = sampled(path, self.model.get_submodule(path), x, self.locations, draw)
                if len(found) == len(self.paths):
                    raise _Seen

            return look

        with looking(self.model, {path: looker(path) for path in self.paths}), suppress(_Seen):
            self.model(images)
        return found


class _Seen(Exception):
    """Ends a forward pass whose rest nobody looks at."""


def check_sampled(path: str, module: nn.Module) -> None:
    """Raises UntraceableModel for a layer that is not Conv2d or Linear."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        raise UntraceableModel(f"{path} is a {type(module).__name__}; what it reads is sampled of Conv2d and Linear")


def sampled(path: str, module: nn.Module, x: Tensor, locations: int, draw: torch.Generator) -> Tensor:
    """[samples, positions, kernel] that a layer's output at random places is made of; see `weight_of`."""
    if isinstance(module, nn.Linear):
        rows = x.reshape(len(x), -1, x.shape[-1])
        at = _places(len(rows), rows.shape[1], locations, draw).to(x.device)
        return rows.gather(1, at[:, :, None].expand(-1, -1, rows.shape[2])).flatten(0, 1)[:, :, None]
    check_sampled(path, module)
    assert isinstance(module, nn.Conv2d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode)
    reach = [module.dilation[d] * (module.kernel_size[d] - 1) for d in (0, 1)]
    high, wide = ((x.shape[2 + d] - reach[d] - 1) // module.stride[d] + 1 for d in (0, 1))
    at = _places(len(x), high * wide, locations, draw).to(x.device)
    image = torch.arange(len(x), device=x.device).repeat_interleave(at.shape[1])[:, None, None]
    inside = [torch.arange(module.kernel_size[d], device=x.device) * module.dilation[d] for d in (0, 1)]
    row = (at.flatten() // wide * module.stride[0])[:, None] + inside[0]
    column = (at.flatten() % wide * module.stride[1])[:, None] + inside[1]
    return x[image, :, row[:, :, None], column[:, None, :]].flatten(1, 2).mT  # [samples, kernel, C] turned


def _places(images: int, places: int, locations: int, draw: torch.Generator) -> Tensor:
    """[images, places] without repetition."""
    return torch.rand(images, places, generator=draw).argsort(1)[:, :locations]


def weight_of(module: nn.Module) -> Tensor:
    """[outputs, positions of a group, kernel]: what `sampled` times it, summed, is the output without its bias."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().reshape(*weight.shape[:2], -1)


@torch.no_grad()
def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Give a layer the weight [outputs, positions of a group, kernel]."""
    own = module.weight
    assert isinstance(own, Tensor)
    if parametrize.is_parametrized(module):
        module.weight = weight.view_as(own)
    else:
        own.copy_(weight.view_as(own))


def outputs_of(samples: Tensor, weight: Tensor, groups: int) -> Tensor:
    """[samples, outputs] of a layer that reads these samples, without its bias."""
    parts = zip(samples.chunk(groups, 1), weight.chunk(groups), strict=True)
    return torch.cat([x.flatten(1) @ w.flatten(1).T for x, w in parts], 1)


def some_outputs(module: nn.Module, number: int) -> Tensor:
    """Which of a layer's outputs are looked at in batch `number`: up to 16, without repetition."""
    order = torch.randperm(weight_of(module).shape[0], generator=torch.Generator().manual_seed(number))
    return order[:OUTPUTS]


def contributions(samples: Tensor, weight: Tensor, reader: Reader, outputs: Tensor) -> Tensor:
    """What each channel adds to these outputs of a layer: [samples, outputs, channels], channels as `read_by` lists.

    Their sum over channels is the output without its bias (Luo et al. 2017, arXiv:1707.06342, equations 3 and 4).
    """
    channels, index = np.unique(reader.channels, return_inverse=True)
    added = samples.new_zeros(len(samples), len(outputs), len(channels))
    per_group, group = samples.shape[1] // reader.groups, outputs // (len(weight) // reader.groups)
    for own in group.unique().tolist():
        chosen = (group == own).nonzero().flatten().to(samples.device)
        part = slice(own * per_group, (own + 1) * per_group)
        where = torch.from_numpy(index[part]).to(samples.device)
        rows = weight[outputs[group == own].to(weight.device)]
        products = torch.einsum("spk,opk->sop", samples[:, part], rows)
        added[:, chosen] = torch.zeros_like(added[:, chosen]).index_add_(2, where, products)
    return added


def read_by(reader: Reader) -> npt.NDArray[np.int64]:
    """The channels that a layer reads, each once, in order."""
    return np.unique(reader.channels)
