"""AMC-style search of layer ratios, without training (He et al. 2018, "AMC: AutoML for model compression")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import optuna
import pandas as pd

from ...errors import InvalidSetting
from ...graph.channel_graph import Scores, Widths
from ...graph.importance import l1_importance
from ...training.evaluate import evaluate, reestimate_batchnorm
from ...training.progress import Bar
from ..latency import model_of, priced
from ..projection import project
from ..studies import quiet
from .activations import drawn
from .method import Proposal, Task


@dataclass(frozen=True)
class AMC:
    """Each layer's ratio is searched for by the accuracy of what it leaves, without training.

    arXiv:1802.03494: as there, a candidate meets the budget by construction (here by projection), keeps the channels
    with the largest weights, is not trained, and its reward is its accuracy on held-out images (equation 4's
    resource-constrained case, reward = -error); batch-norm statistics are estimated anew. In place of the paper's
    DDPG agent Optuna's TPE, drawn with `seed`, proposes for each group a proportion between `low` (0.2 in the paper's
    code) and 1. The first of the `trials` is uniform, so that the best on the `images` of the validation split is
    never worse than uniform there. Ctrl-C ends the search with the best so far. The history has a row for each trial.
    """

    trials: int = 100
    images: int = 500
    low: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("trials", "images"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"{name} is {getattr(self, name)}; expected a positive number")
        if not 0 < self.low < 1:
            raise InvalidSetting(f"low is {self.low}; expected a proportion between 0 and 1")

    def propose(self, task: Task) -> Proposal:
        """Search; raises KeyboardInterrupt only where not even the uniform network was judged."""
        scores = l1_importance(task.graph, task.model)
        judge = _Judge(task, self, scores)
        names = list(task.graph.groups)
        rows: list[dict[str, float]] = []
        best: tuple[float, Widths] | None = None
        with quiet(), Bar(task.progress, "searching") as bar:
            study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self.seed))
            study.enqueue_trial(dict.fromkeys(names, 1.0))
            try:
                for number in range(self.trials):
                    trial = study.ask()
                    proportions = [trial.suggest_float(name, self.low, 1.0) for name in names]
                    widths = judge.widths(proportions)
                    accuracy = judge.accuracy(widths)
                    study.tell(trial, accuracy)
                    if best is None or accuracy > best[0]:
                        best = accuracy, widths
                    rows.append({"trial": number, "accuracy": accuracy, "best": best[0], **widths})
                    bar.advance(self.trials, number + 1)
                    bar.note(f"best {best[0]:.2%}")
            except KeyboardInterrupt:
                if best is None:
                    raise
        assert best is not None
        return Proposal(best[1], scores, task.model, pd.DataFrame(rows))


class _Judge:
    """Widths from proportions, and the accuracy of what they leave of the network."""

    def __init__(self, task: Task, settings: AMC, scores: Scores) -> None:
        self._task, self._scores = task, scores
        self._val = drawn(task.data.val, settings.images, settings.seed)
        train = drawn(task.data.train, settings.images, settings.seed)
        self._train = task.data.info.normalise(train.images)
        self._known: dict[tuple[int, ...], float] = {}

    def widths(self, proportions: list[float]) -> Widths:
        """Within the budget."""
        graph = self._task.graph
        found = project(priced(graph, model_of(self._task.budget)), proportions, self._task.budget, cap=1.0)
        return dict(zip(graph.groups, found.widths[0].tolist(), strict=True))

    def accuracy(self, widths: Mapping[str, int]) -> float:
        """A share of the validation images looked at."""
        key = tuple(widths.values())
        if key not in self._known:
            graph = self._task.graph
            keep = graph.select(self._scores, widths, strict=False)
            cut = graph.resize(self._task.model, widths, keep=keep)
            reestimate_batchnorm(cut, self._train)
            self._known[key] = evaluate(cut, self._val, self._task.data.info).accuracy
        return self._known[key]
