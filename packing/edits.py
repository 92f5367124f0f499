"""Changes of a model's structure as data: what a pass did to it is written down and done again to another copy.

An edit puts a small network in a module's place. The network is a nested list of plain values, read off the real
modules (`described`) and built again (`built`): linear and convolutional layers, one after another or side by side and
added. A second kind of edit gives the whole model other widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CorruptFile, InvalidSetting
from ..graph.channel_graph import trace

# {"replace": path, "by": network} or {"widths": {...}, "input": [1, C, H, W]}, the latter with "whole_groups": [path,
# ...] where these grouped convolutions have fewer groups instead of narrower ones.
Edit = Mapping[str, Any]
MOST_LAYERS = 64  # of one network
MOST_SIDE = 1 << 20
MOST_DIMENSIONS, MOST_INPUT = 6, 1 << 26  # of an input, and its numbers
PARAMETER_BYTES = 4


class Sum(nn.Module):
    """The sum of several networks' outputs for one input."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Any input that all parts take."""
        total: Tensor = self.parts[0](x)
        for part in self.parts[1:]:
            total = total + part(x)
        return total


def replaced(path: str, network: nn.Module) -> Edit:
    """The edit that puts a network like this one in a module's place."""
    return {"replace": path, "by": described(network)}


def apply(model: nn.Module, edits: Sequence[Edit], most_bytes: int) -> nn.Module:
    """The model with all edits done in their order; replaced parts hold no numbers yet.

    Raises CorruptFile for what is no edit or asks for more parameters than fit into so many bytes.
    """
    for edit in edits:
        if set(edit) == {"replace", "by"}:
            with torch.device("meta"):
                put(model, str(edit["replace"]), built(edit["by"]))
        elif {"widths", "input"} <= set(edit) <= {"widths", "input", "whole_groups"}:
            model = _resized(model, edit["widths"], edit["input"], edit.get("whole_groups", []), most_bytes)
        else:
            raise CorruptFile(f"an edit of {sorted(edit)}")
    return model


def _resized(model: nn.Module, widths: Any, inputs: Any, whole_groups: Any, most_bytes: int) -> nn.Module:
    is_shape = isinstance(inputs, list) and 2 <= len(inputs) <= MOST_DIMENSIONS
    if not is_shape or not all(type(n) is int and n > 0 for n in inputs) or prod(inputs) > MOST_INPUT:
        raise CorruptFile("an edit for inputs that are none")
    if not isinstance(widths, dict) or not all(type(n) is int and 0 <= n <= MOST_SIDE for n in widths.values()):
        raise CorruptFile("an edit with widths that are none")
    if not isinstance(whole_groups, list) or not all(isinstance(path, str) for path in whole_groups):
        raise CorruptFile("an edit with whole groups of no layers")
    graph = trace(model, tuple(inputs), whole_groups=whole_groups)
    if graph.price(widths).params * PARAMETER_BYTES > most_bytes:
        raise CorruptFile("an edit with widths of another, much larger network")
    return graph.resize(model, widths)


def put(model: nn.Module, path: str, network: nn.Module) -> None:
    """Put a network in the place of the module at a path, in the same mode; raises CorruptFile where there is none."""
    parent, _, name = path.rpartition(".")
    try:
        holder = model.get_submodule(parent)
        network.train(holder.get_submodule(name or "nothing").training)
    except AttributeError:
        raise CorruptFile(f"there is no module {path!r} to replace") from None
    setattr(holder, name, network)


def described(network: nn.Module) -> list[Any]:
    """A network as plain values; raises InvalidSetting for a layer that has no description."""
    if isinstance(network, nn.Identity):
        return ["identity"]
    if isinstance(network, nn.Linear):
        return ["linear", network.in_features, network.out_features, network.bias is not None]
    if isinstance(network, nn.Conv2d) and not isinstance(network.padding, str):
        sides = [list(side) for side in (network.kernel_size, network.stride, network.padding, network.dilation)]
        return ["conv", network.in_channels, network.out_channels, *sides, network.groups, network.bias is not None]
    if isinstance(network, nn.Sequential):
        return ["sequence", *(described(layer) for layer in network)]
    if isinstance(network, Sum):
        return ["sum", *(described(layer) for layer in network.parts)]
    raise InvalidSetting(f"a {type(network).__name__} cannot be written down as an edit")


def built(network: Any) -> nn.Module:
    """`described`'s network with fresh weights; raises CorruptFile for what is none."""
    try:
        kind, *values = network
        if kind in ("sequence", "sum"):
            if not 0 < len(values) <= MOST_LAYERS:
                raise ValueError(f"{len(values)} layers")
            layers = [built(layer) for layer in values]
            return nn.Sequential(*layers) if kind == "sequence" else Sum(layers)
        _check_sides(values)
        if kind == "identity" and not values:
            return nn.Identity()
        if kind == "linear":
            n_in, n_out, bias = values
            return nn.Linear(n_in, n_out, bias)
        n_in, n_out, kernel, stride, padding, dilation, groups, bias = values
        if kind == "conv":
            return nn.Conv2d(n_in, n_out, kernel, stride, padding, dilation, groups, bias)
        raise ValueError(f"no layer {kind!r}")
    except (ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise CorruptFile(f"an edit that describes no network ({error})") from None


def _check_sides(values: Sequence[Any]) -> None:
    flat = [n for value in values for n in (value if isinstance(value, list) else [value])]
    if not all(isinstance(n, int) and 0 <= n <= MOST_SIDE for n in flat):
        raise ValueError("sizes that are no sizes")
