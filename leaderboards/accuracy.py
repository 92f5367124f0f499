"""Published accuracy: accuracy.csv, a row per figure and source. A figure that nobody could read again is not in it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Accuracy:
    """What a paper, or the makers of a set of weights, say that a network reaches on a data set's held-out images."""

    model: str  # name in the zoo
    resolution: int
    num_classes: int
    settings: Mapping[str, Any]  # of the published form, where the zoo's name stands for another
    dataset: str  # "imagenet", "cifar10", "cifar100", "svhn", "mnist"
    top1_percent: float
    top5_percent: float | None
    source: str  # paper and table, or the page that prints it
    note: str


@cache
def published() -> tuple[Accuracy, ...]:
    """All rows of accuracy.csv."""
    text = (files(__package__) / "accuracy.csv").read_text(encoding="utf-8")
    return tuple(_read(row) for row in csv.DictReader(text.splitlines()))


def _read(row: Mapping[str, str]) -> Accuracy:
    return Accuracy(
        model=row["model"],
        resolution=int(row["resolution"]),
        num_classes=int(row["num_classes"]),
        settings=json.loads(row["settings"] or "{}"),
        dataset=row["dataset"],
        top1_percent=float(row["top1_percent"]),
        top5_percent=float(row["top5_percent"]) if row["top5_percent"] else None,
        source=row["source"],
        note=row["note"],
    )
