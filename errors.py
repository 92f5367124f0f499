"""Every error that wrong input can cause; the command line prints one line and exits with code 2.

PocketzooError
 ├── UnknownModel         no such zoo name, or a `module:factory` that cannot be imported
 ├── InvalidSetting       a family's setting or an Architecture field that does not exist or cannot hold
 ├── InvalidWidths        widths, or kept channels, that break a constraint of the graph
 ├── InvalidBudget        a unit or limit that cannot be read
 ├── BudgetTooSmall       a budget below the least that the model can reach
 ├── UntraceableModel     the forward pass depends on values, or failed
 ├── WeightsMismatch      a state dict that does not fit the model
 ├── InvalidData          a data set that is unknown, missing, corrupt or of the wrong form
 ├── CorruptFile          a packed file that is damaged, cut off, hostile or too new
 ├── InvalidRun           an output folder that is unusable or holds something else
 ├── UnknownDevice        no device, runtime or calibration of that name
 ├── DeviceFailed         a device that cannot be reached, or what runs there failed
 ├── OutsideCalibration   a latency asked of a model that never saw such an operator
 ├── NothingFits          no network meets every limit of a pick
 └── MissingExtra         an optional dependency that is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PocketzooError(Exception):
    """Base of all errors that say what was wrong, what was expected and what to do."""


class UnknownModel(PocketzooError):
    """No model of that name can be built."""


class InvalidSetting(PocketzooError):
    """A setting that the family does not have, or a value that it cannot take."""


class InvalidWidths(PocketzooError):
    """Widths or kept channels that break a constraint."""


class InvalidBudget(PocketzooError):
    """A budget that cannot be read."""


class BudgetTooSmall(PocketzooError):
    """A budget below what the model can reach."""


class UntraceableModel(PocketzooError):
    """A model whose forward pass cannot be followed without values."""


class WeightsMismatch(PocketzooError):
    """Weights that do not fit the model."""


class InvalidData(PocketzooError):
    """Data that is unknown, missing, corrupt or of the wrong form."""


class CorruptFile(PocketzooError):
    """A packed file that cannot be read: damaged, cut off, not ours, or written by a later version."""


class InvalidRun(PocketzooError):
    """An output folder that cannot be used."""


class UnknownDevice(PocketzooError):
    """A device, runtime or calibration that does not exist."""


class DeviceFailed(PocketzooError):
    """A device that cannot be reached or used, or a run there that failed."""


class OutsideCalibration(PocketzooError):
    """An operator outside what a latency model was fitted to."""


class NothingFits(PocketzooError):
    """No network meets every limit."""


class MissingExtra(PocketzooError):
    """A feature whose optional dependency is absent."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
