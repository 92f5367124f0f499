"""A model's state as plain tensors, each once, and back with every mismatch named."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import WeightsMismatch


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, on the CPU; one that is shared comes once, under its first name."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach().cpu().contiguous()
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state_of`'s tensors into a model of the same form; raises WeightsMismatch naming the first difference."""
    own = {name: tensor.shape for name, tensor in state_of(model).items()}
    for name in [*own, *state]:
        if name not in own or name not in state:
            side = "lacks" if name in own else "has no place in the model for"
            raise WeightsMismatch(f"{source} {side} {name!r}; it holds {len(state)} tensors, the model {len(own)}")
        if state[name].shape != own[name]:
            raise WeightsMismatch(f"{source}: {name!r} is {list(state[name].shape)}, the model's is {list(own[name])}")
    targets = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, tensor in state.items():
            targets[name].copy_(tensor)
