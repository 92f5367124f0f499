"""Result: one line of knowledge, with what it takes to get it again."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidRun
from ..zoo.architecture import Architecture
from .data import DataInfo
from .recipe import Recipe

FORMAT = 1


@dataclass(frozen=True)
class Result:
    """A trained network: what it is, how it was trained, how good it is, what it costs, where the numbers come from.

    `accuracy` holds shares of images (`validation`, `test`), `costs` the columns of the graph's Costs, `measurements`
    records of latency. `architecture` is None for a module that no Architecture describes.
    """

    architecture: Architecture | None
    recipe: Recipe
    accuracy: Mapping[str, float]
    costs: Mapping[str, float]
    provenance: Mapping[str, Any]
    measurements: Sequence[Mapping[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """Indented JSON with sorted keys; `from_json` reads it back."""
        record = {
            "format": FORMAT,
            "architecture": json.loads(self.architecture.to_json()) if self.architecture else None,
            "recipe": asdict(self.recipe),
            "accuracy": dict(self.accuracy),
            "costs": dict(self.costs),
            "measurements": [dict(measurement) for measurement in self.measurements],
            "provenance": dict(self.provenance),
        }
        return json.dumps(record, indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Read `to_json`'s text; raises InvalidRun for anything else."""
        try:
            record = json.loads(text)
            version = record.pop("format")
            if version != FORMAT:
                raise InvalidRun(f"result format {version} is not {FORMAT}: written by another pocketzoo")
            architecture, recipe = record.pop("architecture"), record.pop("recipe")
            return cls(
                architecture=Architecture.from_json(json.dumps(architecture)) if architecture else None,
                recipe=Recipe.from_json(json.dumps(recipe)),
                **record,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidRun(f"not a Result in JSON: {error}") from None


def provenance(info: DataInfo, *, seed: int, seconds: float, source: str | Path | None = None) -> dict[str, Any]:
    """Versions, seed, data with its hash, UTC date, command line, device and seconds of one training."""
    from .. import __version__

    return {
        "pocketzoo": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "data": info.name,
        "data_source": str(source or info.name),
        "data_hash": info.hash,
        "seed": seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *map(without_password, sys.argv[1:])],
        "seconds": round(seconds, 3),
    }


def without_password(text: str) -> str:
    """A URL's password as ***: records and messages are shared. Other text stays as it is."""
    return re.sub(r"(://[^:/@\s]*:)[^/\s]*@", r"\1***@", text)
