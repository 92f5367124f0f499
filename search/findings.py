"""What a verdict's trainings say: means, deviations, paired tests, and the arm to take, in a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import stats
from torch import Tensor

from .compare import paired_difference

ARMS = {  # arm -> title; the parent is there to be compared with, the others compete
    "parent": "parent",
    "finetuned": "fine-tuned",
    "scratch_e": "Scratch-E",
    "scratch_b": "Scratch-B",
    "uniform": "uniform widths",
    "random": "random widths",
}
QUESTIONS = (  # what is asked, and the two arms whose difference answers it
    ("the method's weights against fresh ones", "finetuned", "scratch_b"),
    ("the method's widths against uniform ones", "scratch_b", "uniform"),
    ("the method's widths against random ones", "scratch_b", "random"),
)
CONTROL = "random"
SAME_COST = 1.05
MEANS = ("validation", "macs", "params", "epochs", "training_macs", "widths_macs")

Correct = Mapping[tuple[str, int], Tensor]  # (arm, seed) -> which test images are right, bool [N]


@dataclass(frozen=True)
class Difference:
    """Test accuracy of one arm minus another's, as shares: the mean over paired seeds and its 95 % interval.

    With several seeds interval and p are Student's t over them; with one, the interval is that of the test images
    (search/compare.py) and there is no p. `images` says in how many seeds the test images alone tell the two apart.
    """

    mean: float
    low: float
    high: float
    p: float | None
    images: int
    seeds: int

    @classmethod
    def of(cls, first: str, second: str, correct: Correct) -> Difference:
        """First minus second, paired by seed and then by image."""
        seeds = [seed for arm, seed in correct if arm == first]
        each = [paired_difference(correct[first, seed], correct[second, seed]) for seed in seeds]
        images = sum(own.is_clear for own in each)
        if len(each) == 1:
            return cls(each[0].difference, each[0].low, each[0].high, None, images, 1)
        return cls(*over_seeds([own.difference for own in each]), images, len(each))

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        p = "" if self.p is None else f", p = {self.p:.2g}"
        text = f"{100 * self.mean:+.2f} points ({100 * self.low:+.2f} to {100 * self.high:+.2f}{p})"
        return text if self.is_clear else f"{text}: no clear difference"


def over_seeds(differences: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean, 95 % interval and p (that the mean is 0) of two or more paired differences, by Student's t."""
    values, n = np.array(differences), len(differences)
    mean, error = float(values.mean()), float(values.std(ddof=1)) / n**0.5
    half = float(stats.t.ppf(0.975, n - 1)) * error
    t = abs(mean) / error if error else (np.inf if mean else 0.0)
    return mean, mean - half, mean + half, float(2 * stats.t.sf(t, n - 1))


@dataclass(frozen=True)
class Findings:
    """`table` has a row per arm with means over the seeds and its difference to the best arm; `recommended` an arm."""

    table: pd.DataFrame
    answers: Mapping[str, Difference]  # to QUESTIONS
    recommended: str
    sentence: str

    def to_json(self) -> str:
        """One line: `arms`, `answers`, `recommended`, `sentence`."""
        arms = json.loads(self.table.to_json(orient="records"))
        answers = {question: asdict(difference) for question, difference in self.answers.items()}
        record = {"arms": arms, "answers": answers, "recommended": self.recommended, "sentence": self.sentence}
        return json.dumps(record)

    def __str__(self) -> str:
        lines = [f"{'':15} {'test accuracy':>15} {'less the best':>15} {'MACs':>13} {'epochs':>7} {'training':>10}"]
        for row in self.table.to_dict("records"):
            accuracy = f"{100 * row['test']:.2f} ± {100 * row['deviation']:.2f} %"
            less = (
                "" if np.isnan(row["difference"]) else f"{100 * row['difference']:+.2f}{' *' if row['clear'] else '  '}"
            )
            lines.append(
                f"{ARMS[row['arm']]:15} {accuracy:>15} {less:>15} {row['macs']:13,.0f} {row['epochs']:7.0f} "
                f"{row['training_macs'] + row['widths_macs']:10.2e}"
            )
        seeds = int(self.table["seeds"].max())
        lines.append(f"{seeds} seed{'s' * (seeds > 1)}; * clear in a paired test; training: forward MACs x images,")
        lines.append("those that its widths needed included")
        lines += [f"{question}: {difference}" for question, difference in self.answers.items()]
        return "\n".join([*lines, self.sentence])


def findings(trainings: pd.DataFrame, correct: Correct) -> Findings:
    """Compare the arms; `trainings` has a row per arm and seed, `correct` an entry for every arm but the parent."""
    grouped = trainings.groupby("arm", sort=False)
    table = pd.DataFrame({
        "test": grouped["test"].mean(), "deviation": grouped["test"].std().fillna(0.0),
        "seeds": grouped["seed"].count(), **{name: grouped[name].mean() for name in MEANS},
    })  # fmt: skip
    table = table.reindex([arm for arm in ARMS if arm in table.index])
    rivals = table.drop(index="parent", errors="ignore")
    best = str(rivals["test"].idxmax())
    less = {str(arm): Difference.of(str(arm), best, correct) for arm in rivals.index if arm != best}
    for name in ("mean", "low", "high", "p", "images"):
        column = "difference" if name == "mean" else name
        table[column] = pd.Series({arm: getattr(own, name) for arm, own in less.items()}, dtype=float)
    table["clear"] = [arm in less and less[arm].is_clear for arm in table.index]
    recommended, sentence = recommendation(rivals, best, less)
    answers = {question: Difference.of(first, second, correct) for question, first, second in QUESTIONS}
    return Findings(table.reset_index(names="arm"), answers, recommended, sentence)


def recommendation(rivals: pd.DataFrame, best: str, less: Mapping[str, Difference]) -> tuple[str, str]:
    """Of the best arm and those that no test tells from it, the one that took the least training; and why.

    Random widths are a control: they are recommended only where they are clearly better than all others. Costs within
    5 % are the same; the higher mean decides between these.
    """
    level = [best, *(arm for arm, difference in less.items() if not difference.is_clear)]
    cost = rivals["training_macs"] + rivals["widths_macs"]
    eligible = [arm for arm in level if arm != CONTROL] or level
    cheap = [arm for arm in eligible if cost[arm] <= SAME_COST * min(cost[eligible])]
    chosen = max(cheap, key=lambda arm: float(rivals["test"][arm]))
    seeds = int(rivals["seeds"].max())
    over = f"over {seeds} seeds" if seeds > 1 else "on the test images, from one seed"
    named = f"{ARMS[chosen]} ({rivals['test'][chosen]:.2%})"
    if len(level) == 1:
        return chosen, f"Take {named}: clearly better than every other arm {over}."
    if len(level) == len(rivals):
        return chosen, f"No other arm is clearly less than the best {over}: take the cheapest to train, {named}."
    worse = ", ".join(ARMS[arm] for arm in rivals.index if arm not in level)
    why = f"of the arms that no test tells from the best {over} the cheapest to train; clearly less than the best"
    return chosen, f"Take {named}: {why}: {worse}."
