"""Rank correlation of what networks were expected to be with what they became, and which expectation to trust."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]

LEAST = 8  # networks; with fewer, an interval says nothing
RESAMPLES = 2000
ERROR = 0.05  # of the intervals, and of trusting any proxy that is no better than the counts
COLUMNS = ("proxy", "tau", "low", "high", "spearman", "lead", "lead_low", "networks", "trusted")


def rank_correlations(scores: pd.DataFrame, accuracy: Sequence[float], counts: Sequence[str]) -> pd.DataFrame:
    """A row for each column of `scores` (networks x proxies), best first; empty for fewer than 8 networks.

    Kendall's tau-b with its 95 % bootstrap interval over the networks (percentiles, 2000 resamples, the same ones for
    all), and Spearman's rho. `lead` is tau minus the best plain count's |tau|, which is chosen anew in every resample,
    and `lead_low` its lower bound at 5 % over as many proxies as there are (Bonferroni). A proxy is `trusted` when it
    is no count and that bound is above 0. A proxy that is not defined for every network has no correlation.
    """
    if len(scores) < LEAST:
        return pd.DataFrame(columns=list(COLUMNS))
    values = scores.to_numpy(dtype=np.float64)
    defined = np.isfinite(values).all(axis=0)
    taus = np.full((RESAMPLES + 1, values.shape[1]), np.nan)
    taus[:, defined] = _resampled_tau(values[:, defined], np.asarray(accuracy, dtype=np.float64))
    is_count = np.array([name in counts for name in scores.columns])
    bar = np.nanmax(np.abs(taus[:, is_count]), axis=1, keepdims=True) if is_count.any() else np.zeros((len(taus), 1))
    leads = taus - bar
    rivals = max(1, int((defined & ~is_count).sum()))
    ranks = scores.rank().corrwith(pd.Series(list(accuracy), index=scores.index).rank())  # Spearman's rho
    table = pd.DataFrame(
        {
            "proxy": list(scores.columns),
            "tau": taus[0],
            "low": _percentile(taus[1:], ERROR / 2),
            "high": _percentile(taus[1:], 1 - ERROR / 2),
            "spearman": ranks.to_numpy(),
            "lead": np.where(is_count, np.nan, leads[0]),
            "lead_low": np.where(is_count, np.nan, _percentile(leads[1:], ERROR / rivals)),
            "networks": len(scores),
        }
    )
    table["trusted"] = table["lead_low"] > 0
    return table.sort_values("tau", ascending=False, ignore_index=True)


def verdict(table: pd.DataFrame, counts: Sequence[str]) -> str:
    """Which proxy is trusted, or none, in one line."""
    if table.empty:
        return f"proxies: too few trained networks to tell; {LEAST} are needed"
    trusted = table[table["trusted"]]
    rivals = table[~table["proxy"].isin(counts)].dropna(subset="tau")
    bar = table[table["proxy"].isin(counts)].sort_values("tau", key=abs).iloc[-1]
    over = f"over {table['networks'][0]} trained networks; the best plain count is {_said(bar)}"
    if trusted.empty:
        nearest = f": the nearest is {_said(rivals.iloc[0])}" if len(rivals) else ""
        return f"proxies: none is trusted for this budget{nearest} {over}"
    return f"proxies: {_said(trusted.iloc[0])} is trusted for this budget, {over}"


def _said(row: pd.Series) -> str:
    return f"{row['proxy']} (Kendall's tau {row['tau']:.2f}, 95 % interval {row['low']:.2f} to {row['high']:.2f})"


def _resampled_tau(values: Floats, accuracy: Floats) -> Floats:
    """[1 + resamples, proxies]: tau-b of all networks, then of each resample.

    A resample is how often it holds each network, c: tau-b is c' (X * Y) c / sqrt(c' X^2 c  c' Y^2 c), X and Y the
    signs of all pairs' differences.
    """
    n = len(accuracy)
    rng = np.random.default_rng(0)
    held = np.vstack([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)])
    y = _signs(accuracy)
    taus = []
    for column in values.T:
        x = _signs(column)
        together, alone, other = (((held @ pairs) * held).sum(axis=1) for pairs in (x * y, x * x, y * y))
        taus.append(together / np.sqrt(np.maximum(alone * other, 1)))  # all tied: 0
    return np.stack(taus, axis=1)


def _signs(values: Floats) -> Floats:
    return np.asarray(np.sign(values[:, None] - values[None, :]))


def _percentile(resampled: Floats, share: float) -> Floats:
    return np.asarray(np.quantile(resampled, share, axis=0))
