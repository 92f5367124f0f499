"""Latency as one more cost of a graph, so that a budget of milliseconds is met like one of MACs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from ..errors import OutsideCalibration
from ..graph.channel_graph import ChannelGraph
from ..profiler.latency import LatencyModel, latency_model
from .budget import Budget

COLUMN = "latency_ms"


class TimedGraph:
    """A ChannelGraph whose prices have a column of predicted milliseconds.

    A candidate with an operator beyond what the device's model knows costs infinitely much: it is never chosen.
    """

    def __init__(self, graph: ChannelGraph, model: LatencyModel) -> None:
        self.graph, self.model = graph, model

    @property
    def groups(self) -> Mapping[str, int]:
        """The graph's."""
        return self.graph.groups

    @property
    def steps(self) -> Mapping[str, int]:
        """The graph's."""
        return self.graph.steps

    def valid(self, widths: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """The graph's."""
        return self.graph.valid(widths)

    def price_many(self, widths: npt.NDArray[np.int64], columns: Sequence[str]) -> pd.DataFrame:
        """Costs by column, `latency_ms` among them."""
        counted = [column for column in columns if column != COLUMN]
        costs: dict[str, Any] = {str(c): own.to_numpy() for c, own in self.graph.price_many(widths, counted).items()}
        if COLUMN in columns:
            costs[COLUMN] = self._predicted(widths)
        return pd.DataFrame(costs, columns=list(columns))

    def _predicted(self, widths: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        try:
            return np.nan_to_num(self.model.predict(self.graph, widths), nan=np.inf)
        except OutsideCalibration:  # of every one of them
            return np.full(len(widths), np.inf)


def model_of(budget: Budget) -> LatencyModel | None:
    """The latency model that a budget asks for; raises UnknownDevice."""
    return None if budget.latency is None else latency_model(budget.device or "cpu", budget.runtime)


def priced(graph: ChannelGraph, model: LatencyModel | None) -> ChannelGraph | TimedGraph:
    """The graph, with latencies where there is a model."""
    return graph if model is None else TimedGraph(graph, model)
