"""What a search found: its trials as a table, the Pareto front, and the networks trained to the end."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from ..training.result import Result
from .compare import Difference
from .correlation import rank_correlations, verdict
from .latency import COLUMN
from .measured import Latency
from .objective import EXPECTED
from .proxies import COUNTS
from .screening import SCREENED
from .studies import ARCHITECTURE, DUPLICATE_OF, ERROR, KEY

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
ATTRIBUTES = ("params", "macs", "share", "reason", "epochs", "seconds", DUPLICATE_OF, "retry_of", ERROR, KEY)
COSTS = ("macs", "params")
WHOLE = (*COSTS, "epochs", DUPLICATE_OF, "retry_of")  # numbers that some trials lack


@dataclass(frozen=True)
class Study:
    """The best network and the uniform-width one beside it, with every trial.

    `difference` is best minus uniform on the test images; None when the best network is the uniform one.
    `trials` has a row per trial, `pareto` those that no other beats in both validation accuracy and cost. `proxies` has
    each proxy's rank correlation with the accuracy of the networks that this search trained, the best one first; see
    correlation.py.
    """

    out: Path
    best: Result
    uniform: Result
    difference: Difference | None
    trials: pd.DataFrame
    pareto: pd.DataFrame
    proxies: pd.DataFrame

    def __str__(self) -> str:
        best, uniform = self.best.accuracy["test"], self.uniform.accuracy["test"]
        lines = [f"best network: {best:.2%} of the test images, in {self.out}"]
        if self.latency is not None:
            lines.append(str(self.latency))
        if self.difference is None:
            lines.append("it is the uniform-width network itself: no trial was better on the validation images")
        else:
            lines.append(f"uniform widths: {uniform:.2%}, in {self.out / 'uniform'}")
            lines.append(f"difference: {self.difference}")
        lines.append(verdict(self.proxies, COUNTS))
        return "\n".join(lines)

    @property
    def latency(self) -> Latency | None:
        """Of the best network, under a budget of milliseconds."""
        return Latency.of(self.best)


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row per trial; numbers and text only, so that it survives as CSV.

    state, value (validation accuracy), costs (under a latency budget with the predicted `latency_ms`), share of the
    tightest limit and why not more, duplicate_of, seconds, the network's key and JSON with all widths, and Optuna's
    parameters. A trial whose process was lost has state `lost`.
    """
    table = pd.DataFrame([_row(trial) for trial in study.get_trials(deepcopy=False)])
    return table.astype({column: "Int64" for column in WHOLE if column in table})


def pareto(trials: pd.DataFrame, costs: tuple[str, ...] = COSTS) -> pd.DataFrame:
    """Complete trials that no other equals or beats in value and all costs at once, cheapest first."""
    if trials.empty:
        return trials
    complete = trials[(trials["state"] == "complete") & trials[DUPLICATE_OF].isna()]
    points = complete[["value", *costs]].to_numpy(dtype=float)
    points[:, 0] *= -1  # less is better in every column
    kept = [i for i, p in enumerate(points) if not ((points <= p).all(axis=1) & (points < p).any(axis=1)).any()]
    return complete.iloc[kept].sort_values([*costs, "value"], ignore_index=True)


def candidates_table(study: optuna.Study) -> pd.DataFrame:
    """One row per screened candidate, best first within its trial: score, costs, seconds, whether it was chosen."""
    rows = [
        {"trial": trial.number, "chosen": place == 0, **candidate}
        for trial in study.get_trials(deepcopy=False)
        for place, candidate in enumerate(trial.user_attrs.get(SCREENED, []))
    ]
    texts = {ARCHITECTURE: [json.dumps(row[ARCHITECTURE], sort_keys=True) for row in rows]}
    return pd.DataFrame(rows).assign(**texts)


def proxies_table(study: optuna.Study) -> pd.DataFrame:
    """Rank correlations of what was expected of each network with its validation accuracy after its short training.

    Over networks whose training was complete: of those that were pruned the accuracy is not known.
    """
    trained = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if EXPECTED in t.user_attrs]
    scores = pd.DataFrame([trial.user_attrs[EXPECTED] for trial in trained], dtype=float)
    return rank_correlations(scores, [float(trial.value or 0) for trial in trained], COUNTS)


def _row(trial: FrozenTrial) -> dict[str, object]:
    attributes = trial.user_attrs
    failed = trial.state == TrialState.FAIL and ERROR not in attributes
    row: dict[str, object] = {
        "trial": trial.number,
        "state": "lost" if failed else STATES[trial.state],
        "value": trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
    }
    row |= {name: attributes.get(name) for name in ATTRIBUTES}
    if COLUMN in attributes:
        row[COLUMN] = attributes[COLUMN]
    if ARCHITECTURE in attributes:
        row["architecture"] = json.dumps(attributes[ARCHITECTURE], sort_keys=True)
    row |= {f"expected {name}": score for name, score in attributes.get(EXPECTED, {}).items()}
    return row | dict(trial.params)
