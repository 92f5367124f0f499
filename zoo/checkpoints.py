"""How the modules of other libraries' networks answer to ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def tensor_names(model: nn.Module, modules: Mapping[str, str]) -> dict[str, str]:
    """{our tensor: their tensor} of a whole model from {our leaf module: their leaf module}; KeyError if one lacks."""
    names = {}
    for key in model.state_dict():
        module, _, tensor = key.rpartition(".")
        names[key] = f"{modules[module]}.{tensor}"
    return names


def conv_norm(ours: str, conv: str, norm: str) -> dict[str, str]:
    """The two modules of a ConvNorm."""
    return {f"{ours}.conv": conv, f"{ours}.norm": norm}
