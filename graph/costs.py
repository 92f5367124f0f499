"""Costs of a network: one convention, stated once, for everything that pocketzoo counts.

- MACs: multiply-accumulates of convolutions, linear layers, matrix products and attention, for the traced batch
  (one image by default); squeeze-excite included; biases, normalisation, activations, pooling and additions are not
  counted. FLOPs = 2 MACs.
- Parameters: every trainable number, batch-norm scale and shift and biases included, buffers not.
- Activations: elements that convolutions, linear layers and matrix products put out (Radosavovic et al. 2020,
  arXiv:2003.13678, section 3.1).
- Peak memory: the most bytes of activations alive at once, in the traced order, 4 bytes each; in-place operators and
  views take none of their own, parameters are not counted.
- Memory access cost: elements that convolutions and linear layers read (input, weights) and write (output)
  (Ma et al. 2018, arXiv:1807.11164, section 2, guideline G1).
- Energy: MACs, weight reads and activation traffic times a table of operation energies (energy.json).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files

BYTES = 4  # of a 32-bit number


@dataclass(frozen=True)
class Costs:
    """What one forward pass costs."""

    params: int
    macs: int
    activations: int
    peak_memory_bytes: int
    memory_access: int
    energy_uj: float

    @property
    def flops(self) -> int:
        """Floating-point operations: two a multiply-accumulate."""
        return 2 * self.macs

    @property
    def size_bytes(self) -> int:
        """Bytes of the parameters as 32-bit numbers."""
        return BYTES * self.params

    def to_dict(self) -> dict[str, float]:
        """All figures by name, units in the names."""
        return {**asdict(self), "flops": self.flops, "size_bytes": self.size_bytes}


@dataclass(frozen=True)
class EnergyTable:
    """Energy of one 32-bit operation in picojoules, and where each kind of number is read from."""

    mac_pj: float  # one multiplication and one addition
    weight_read_pj: float  # each parameter once a forward pass
    activation_access_pj: float  # each element that a counted operator reads or writes


@cache
def default_energy() -> EnergyTable:
    """The table that opens the lecture slides: Horowitz, ISSCC 2014, 45 nm; its assumptions are in energy.json."""
    table = json.loads((files(__package__) / "energy.json").read_text())
    operations = table["operations_pj"]
    return EnergyTable(
        mac_pj=operations["float multiplication"] + operations["float addition"],
        weight_read_pj=operations[table["weights are read from"]],
        activation_access_pj=operations[table["activations are read from"]],
    )
