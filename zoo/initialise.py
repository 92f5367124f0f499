"""Fresh weights: one rule for every layer kind, so that networks built at any width start alike."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """Draw fresh weights in place; a no-op for what lies on meta.

    Convolutions: He et al. 2015 (arXiv:1502.01852), fan-out, normal; linear layers: fan-in, uniform;
    biases 0; normalisation scale 1 and shift 0.
    """
    for module in model.modules():
        if any(p.is_meta for p in module.parameters(recurse=False)):
            continue
        if isinstance(module, nn.modules.conv._ConvNd):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_parameters()
            continue
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
