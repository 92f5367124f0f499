"""Fixed point: weights as whole multiples of a power of two, in one format or in each tensor's own.

A format <IL, FL> has IL integer bits, sign included, and FL fractional bits: multiples of epsilon = 2^-FL from
-2^(IL-1) to 2^(IL-1) - epsilon (Gupta et al. 2015, arXiv:1502.02551, section 3). Dynamic fixed point gives each tensor
the fewest integer bits that hold its largest magnitude (Courbariaux et al. 2014, arXiv:1412.7024, section 5; Gysel et
al. 2016, arXiv:1604.03168, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import InvalidSetting
from ...graph.sparsity import LAYERS, apply_masks
from ...packing.forms import Scaled
from ..compression import Compression
from ..tied import Codebook

ROUNDINGS = ("nearest", "stochastic")
MOST_BITS = 16  # that the packed file stores as whole numbers


@dataclass(frozen=True)
class Fixed:
    """Put weights and biases of convolutions, linear and recurrent layers on fixed-point grids of `bits` bits.

    With `il` integer bits, sign included, the format is <il, bits - il> for all; without, each tensor has its own
    (dynamic fixed point). Training, if any, keeps them on the grid: each step's outcome is rounded, so that nearest
    rounding loses updates below half an epsilon and stochastic rounding keeps them on average (Gupta et al., 4).
    """

    bits: int = 8
    il: int | None = None
    rounding: str = "nearest"
    epochs: int = 0
    lr: float | None = None  # None: the recipe's

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= MOST_BITS:
            raise InvalidSetting(f"fixed: bits is {self.bits}; expected 2 to {MOST_BITS}")
        if self.rounding not in ROUNDINGS:
            raise InvalidSetting(f"fixed: rounding is {self.rounding!r}; expected one of {', '.join(ROUNDINGS)}")
        if self.epochs < 0:
            raise InvalidSetting(f"fixed: epochs is {self.epochs}; expected 0 or more")

    def apply(self, compression: Compression) -> Compression:
        """Formats are chosen once, before training."""
        if self.epochs and compression.shared():
            raise InvalidSetting("fixed: tied weights are trained by their own pass; leave out epochs")
        model = compression.copied()
        generator = torch.Generator().manual_seed(compression.recipe.seed)
        numbers = _numbers(model)
        formats = {name: self.bits - self._integer_bits(values) for name, values in numbers.items()}
        codebooks = {
            name: Codebook(self._rounded(book.levels, formats[name], generator), book.assigned)
            for name, book in compression.codebooks.items()
        }
        with torch.no_grad():
            for name, values in numbers.items():
                tied = name in codebooks
                values.copy_(
                    codebooks[name].weight() if tied else self._rounded(values.detach(), formats[name], generator)
                )
        hints = {name: Scaled(np.array([2.0**-fl], dtype=np.float32)) for name, fl in formats.items()}
        rounded = compression.changed(model=model, codebooks=codebooks, hints={**compression.hints, **hints})
        return rounded.finetuned(self.epochs, self.lr, after_step=self._after_step(rounded, formats, generator))

    def _integer_bits(self, values: Tensor) -> int:
        return integer_bits(float(values.detach().abs().max())) if self.il is None else self.il

    def _rounded(self, values: Tensor, fl: int, generator: torch.Generator) -> Tensor:
        return to_fixed(values, self.bits - fl, fl, generator if self.rounding == "stochastic" else None)

    def _after_step(
        self, compression: Compression, formats: dict[str, int], generator: torch.Generator
    ) -> Callable[..., None]:
        masks = compression.masks

        def after_step(model: nn.Module, *_: object) -> None:
            apply_masks(model, masks)
            for name, values in _numbers(model).items():
                values.copy_(self._rounded(values, formats[name], generator))

        return after_step


def to_fixed(values: Tensor, il: int, fl: int, generator: torch.Generator | None = None) -> Tensor:
    """Values on the grid <il, fl>, saturated at its ends (Gupta et al., section 3).

    Rounded to the nearest multiple of epsilon = 2^-fl, halves upwards; with a generator stochastically: up with
    probability (x - floor(x)) / epsilon, so that the mean is x.
    """
    steps = values.double() * 2.0**fl
    between = 0.5 if generator is None else torch.rand(values.shape, generator=generator).to(values.device)
    most = 2 ** (il + fl - 1)
    return ((steps + between).floor().clamp(-most, most - 1) * 2.0**-fl).to(values.dtype)


def integer_bits(largest: float) -> int:
    """The fewest integer bits, sign included, of a format that reaches a magnitude; may be 0 or less for small ones.

    ceil(log2(largest)) + 1: a magnitude that is itself a power of two is reached by the negative end only.
    """
    return math.ceil(math.log2(largest)) + 1 if largest > 0 else 1


def _numbers(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases of the layers that multiply."""
    own = {id(values) for layer in model.modules() if isinstance(layer, LAYERS) for values in layer.parameters(False)}
    return {name: values for name, values in model.named_parameters() if id(values) in own}
