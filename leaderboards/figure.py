"""Figure: a number and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counted", "measured", "predicted", "published"]


@dataclass(frozen=True)
class Figure:
    """A number in its column's unit; `str` of it says whether it was counted, measured, predicted or published."""

    value: float
    kind: Kind
    source: str  # follows the kind: "on AMD EPYC, ...", "for pixel1 with ...", the paper and its table

    def __str__(self) -> str:
        return f"{self.kind}{': ' if self.kind == 'published' else ' '}{self.source}"
