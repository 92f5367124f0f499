"""After the trials: the finalists and the uniform-width network, trained alike to the end, saved and compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

from ..profiler.measurement import Measurement
from ..training.loop import History, fit
from ..training.result import Result
from ..training.run import tested
from ..training.saved import RESULT_NAME, save_model
from ..zoo.architecture import Architecture
from .compare import Difference, paired_difference
from .inherit import Parent, begin
from .measured import measured, predicted
from .plan import Plan
from .space import Space
from .studies import ARCHITECTURE

UNIFORM = "uniform"  # the folder of the uniform-width network, in the search's
CHECKPOINTS = "checkpoints"  # kept, so that a search with more trials need not train the same network again
EXAMPLES = 32  # validation images on which the ONNX file is compared with PyTorch


@dataclass(frozen=True)
class Finished:
    """The results of the best and the uniform-width network, and the difference, None where they are one network."""

    best: Result
    uniform: Result
    difference: Difference | None


@dataclass(frozen=True)
class _Trained:
    architecture: Architecture
    model: nn.Module
    history: History


@dataclass(frozen=True)
class _Tested:
    model: nn.Module
    result: Result
    correct: Tensor  # bool [test images]


def finish(plan: Plan, space: Space, study: optuna.Study, parent: Parent | None, folder: Path) -> Finished:
    """Train the best trials and the uniform-width network by the final recipe; save, test and compare two of them.

    Of several finalists the best on the validation images is the winner: only it and the uniform one see the test
    images, once. What has been finished is read. Under a latency budget both are measured on its device where it is
    at hand. A training that was stopped goes on at its last epoch. `result.json` is written last. Raises DeviceFailed.
    """
    finalists = _finalists(study, plan.finalists)
    uniform = space.uniform.architecture
    if (finished := _read(folder, list(finalists), uniform)) is not None:
        return finished
    trained = [_train(plan, architecture, parent, folder) for architecture in finalists]
    chosen_one = max(trained, key=lambda one: one.history.val_accuracy)  # of equals the better trial
    best, trial = chosen_one.architecture, finalists[chosen_one.architecture]
    winner = _test(plan, chosen_one)
    plain = winner if best == uniform else _test(plan, _train(plan, uniform, parent, folder))
    timed = measured(space, (best, uniform))
    difference = None if best == uniform else paired_difference(winner.correct, plain.correct)
    record = {
        "study": plan.study_name,
        "budget": plan.budget.to_dict(),
        "trial_recipe": asdict(plan.short_recipe),
        "finalists": {one.architecture.key: one.history.val_accuracy for one in trained},
        "weights": None if plan.weights is None else str(plan.weights),
        "difference": None if difference is None else difference.to_dict(),
    }
    spending = {name: trial.user_attrs[name] for name in ("share", "reason")}
    beside = {"role": "uniform widths", **record, **predicted(space, uniform)}
    _save(plan, plain, folder / UNIFORM, beside, timed)
    chosen = {"role": "best trial", "trial": trial.number, "trial_value": trial.value, **spending, **record}
    chosen |= {"uniform_test_accuracy": plain.result.accuracy["test"], **predicted(space, best)}
    _save(plan, winner, folder, chosen, timed)
    found = _read(folder, list(finalists), uniform)
    assert found is not None
    return found


def _finalists(study: optuna.Study, most: int) -> dict[Architecture, FrozenTrial]:
    """The networks of the best trials, the best first, each with its trial."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found: dict[Architecture, FrozenTrial] = {}
    for trial in sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number)):
        found.setdefault(Architecture.from_json(json.dumps(trial.user_attrs[ARCHITECTURE])), trial)
    return dict(list(found.items())[:most])


def _train(plan: Plan, architecture: Architecture, parent: Parent | None, folder: Path) -> _Trained:
    recipe, data = plan.final_recipe, plan.data_at(architecture.resolution)
    model = begin(architecture, recipe.seed, parent)
    checkpoints = folder / CHECKPOINTS / architecture.key
    return _Trained(architecture, model, fit(model, data, recipe, checkpoint_dir=checkpoints, progress=plan.progress))


def _test(plan: Plan, one: _Trained) -> _Tested:
    data = plan.data_at(one.architecture.resolution)
    result, score = tested(one.model, one.architecture, data, plan.final_recipe, one.history, plan.data_source)
    return _Tested(one.model, result, score.correct)


def _save(plan: Plan, trained: _Tested, folder: Path, search: Mapping[str, Any],
          timed: Mapping[str, Measurement]) -> None:  # fmt: skip
    architecture = trained.result.architecture
    assert architecture is not None
    data = plan.data_at(architecture.resolution)
    own = [timed[architecture.key].to_dict()] if architecture.key in timed else []
    provenance = {**trained.result.provenance, "search": dict(search)}
    result = replace(trained.result, provenance=provenance, measurements=own)
    examples = data.info.normalise(data.val.images[:EXAMPLES])
    save_model(folder, trained.model, architecture, data.info, result, example=examples, overwrite=True)


def _read(folder: Path, finalists: list[Architecture], uniform: Architecture) -> Finished | None:
    """What an earlier run has finished, unless more trials have found other finalists since."""
    files = [folder / RESULT_NAME, folder / UNIFORM / RESULT_NAME]
    if not all(file.exists() for file in files):
        return None
    first, second = (Result.from_json(file.read_text(encoding="utf-8")) for file in files)
    keys = [architecture.key for architecture in finalists]
    if list(first.provenance["search"].get("finalists", ())) != sorted(keys) or second.architecture != uniform:
        return None
    difference = first.provenance["search"]["difference"]
    return Finished(first, second, None if difference is None else Difference.from_dict(difference))
