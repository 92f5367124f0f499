"""A pattern of pruning as a design rule: the share of its channels that each stage of a network keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InvalidSetting
from ..graph.channel_graph import ChannelGraph

INNER, STAGE = "inner", "stage"  # channels that one layer writes; that several do, tied by additions
FILE = "pattern.json"  # in the folder of a shrink run
Points = tuple[tuple[float, float], ...]  # relative depth from 0 to 1, proportion kept (above 1: widened)


@dataclass(frozen=True)
class Pattern:
    """Kind of channels -> a point per stage: its relative depth, and the mean proportion that it keeps.

    As in guided pruning (Liu et al. 2019, arXiv:1810.05270, section 5), a stage is all layers whose feature maps have
    one size; JSON both ways.
    """

    points: Mapping[str, Points]

    def __post_init__(self) -> None:
        points = [point for own in self.points.values() for point in own]
        fine = all(0 <= depth <= 1 and 0 <= share < math.inf for depth, share in points)
        if not points or not set(self.points) <= {INNER, STAGE} or not fine:
            raise InvalidSetting(
                f"not a pattern: {dict(self.points)!r}; expected inner or stage with points [depth from 0 to 1,"
                " proportion of the channels from 0]"
            )

    def proportions(self, graph: ChannelGraph) -> dict[str, float]:
        """Group -> the pattern at the relative depth of its stage; above 0, a width of which is left to the budget.

        Between two of the pattern's stages it is interpolated, beyond the outermost it is theirs. Channels of a kind
        that the pattern does not have follow all its points.
        """
        stages = _stages(graph)
        kept = [self._at(kind, depth) for kind, depth in zip(stages["kind"], stages["stage_depth"], strict=True)]
        return {group: max(share, 1 / graph.groups[group]) for group, share in zip(stages.index, kept, strict=True)}

    def _at(self, kind: str, depth: float) -> float:
        points = self.points.get(kind) or [point for own in self.points.values() for point in own]
        depths, shares = zip(*sorted(points), strict=True)
        return float(np.interp(depth, depths, shares))

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it back."""
        return json.dumps(dict(self.points), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Pattern:
        """Read `to_json`'s text; raises InvalidSetting for anything else."""
        try:
            read = {kind: tuple((float(d), float(p)) for d, p in points) for kind, points in json.loads(text).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidSetting(f"not a pattern in JSON: {error}") from None
        return cls(read)

    @classmethod
    def load(cls, path: str | Path) -> Pattern:
        """From a JSON file, or the folder of a shrink run; raises InvalidSetting."""
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            return cls.from_json(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, InvalidSetting) as error:
            why = error.strerror or error if isinstance(error, OSError) else error
            raise InvalidSetting(f"{file}: {why}; give a pattern's JSON file or the folder of a shrink run") from None


def pattern_of(graph: ChannelGraph, widths: Mapping[str, int]) -> Pattern:
    """The pattern of a method's widths: what each stage of the network keeps on average."""
    stages = _stages(graph)
    stages["kept"] = [widths[group] / width for group, width in graph.groups.items()]
    means = stages.groupby(["kind", "stage_depth"], as_index=False)["kept"].mean()
    return Pattern({
        str(kind): tuple(zip(own["stage_depth"].tolist(), own["kept"].tolist(), strict=True))
        for kind, own in means.groupby("kind")
    })  # fmt: skip


def _stages(graph: ChannelGraph) -> pd.DataFrame:
    """A row per group: its kind, and the mean relative depth of its stage's groups of that kind."""
    makers = graph.makers()
    writers = np.zeros(graph.n_channels)
    for maker in makers:
        np.add.at(writers, graph.channels_of(maker), 1)
    areas = {op.name: math.prod(op.output[2:]) for op in graph.operators()}
    path = {group: makers[group][0].rpartition(".")[0] for group in graph.groups}
    stages = pd.DataFrame({
        "kind": [STAGE if (writers[graph.channels_of(group)] > 1).all() else INNER for group in graph.groups],
        "area": [areas.get(path[group], 0) for group in graph.groups],  # 0: runs in training only
        "depth": np.linspace(0, 1, len(graph.groups)),
    }, index=list(graph.groups))  # fmt: skip
    stages["stage_depth"] = stages.groupby(["kind", "area"])["depth"].transform("mean")
    return stages
