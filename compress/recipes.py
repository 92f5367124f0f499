"""Recipes: which passes there are, passes from text, and orders that make sense.

A recipe is a list of passes, text such as `prune(0.9, schedule=iterative) | kmeans(bits=5) | huffman`, or a YAML file
with a list of such steps (`- prune: {sparsity: 0.9}`).
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..errors import InvalidSetting, suggestion
from .compression import Pass

STRUCTURE, SPARSITY, VALUES, CODING, ANY = range(5)
WHY = {
    STRUCTURE: "it changes the layers, and what was pruned or quantised in them would be lost",
    SPARSITY: "it removes weights by their size, and sharing or rounding has to see what is left",
    VALUES: "it changes the values, and coding has to see the last ones",
}


class Entry(NamedTuple):
    """Where a pass is, and at which point of a recipe it may stand."""

    module: str
    class_name: str
    stage: int


PASSES = {
    "sensitivity": Entry("sensitivity", "Sensitivity", ANY),
    "prune": Entry("prune", "Prune", SPARSITY),
    "nm": Entry("nm", "NM", SPARSITY),
    "surgery": Entry("surgery", "Surgery", SPARSITY),
    "obd": Entry("obd", "OptimalBrainDamage", SPARSITY),
    "obs": Entry("obs", "OptimalBrainSurgeon", SPARSITY),
    "kmeans": Entry("kmeans", "KMeans", VALUES),
    "product": Entry("product", "Product", VALUES),
    "residual": Entry("residual", "Residual", VALUES),
    "half": Entry("half", "Half", VALUES),
    "svd": Entry("svd", "SVD", STRUCTURE),
    "lowrank": Entry("lowrank", "LowRank", STRUCTURE),
    "cp": Entry("cp", "CP", STRUCTURE),
    "grebdec": Entry("grebdec", "GreBdec", STRUCTURE),
    "fold": Entry("fold", "Fold", STRUCTURE),
    "fixed": Entry("fixed", "Fixed", VALUES),
    "qat": Entry("qat", "QAT", VALUES),
    "distil": Entry("distil", "Distil", ANY),
    "huffman": Entry("coding", "Huffman", CODING),
}


def passes(recipe: str | Path | Sequence[Pass]) -> list[Pass]:
    """The passes of a recipe in any of its forms, in an order that makes sense; raises InvalidSetting."""
    if isinstance(recipe, str | Path):
        text = str(recipe)
        steps = _from_yaml(Path(text)) if text.endswith((".yaml", ".yml")) else [_from_text(s) for s in text.split("|")]
    else:
        steps = list(recipe)
    if not steps:
        raise InvalidSetting("a recipe without passes; expected such as 'prune(0.9) | kmeans(5) | huffman'")
    _check_order(steps)
    return steps


def make(name: str, settings: Mapping[str, Any], values: Sequence[Any] = ()) -> Pass:
    """A pass by name, settings by name or in their order; raises InvalidSetting."""
    if name not in PASSES:
        raise InvalidSetting(f"no pass {name!r}{suggestion(name, PASSES)}; there are {', '.join(PASSES)}")
    own = _class_of(name)
    known = [field.name for field in fields(own)]
    if len(values) > len(known):
        raise InvalidSetting(f"{name} takes {len(known)} settings ({', '.join(known)}), not {len(values)}")
    given = dict(zip(known, values, strict=False))
    for key, value in settings.items():
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise InvalidSetting(f"{name} has no setting {key!r}{suggestion(key, known)}; {has}")
        if key in given:
            raise InvalidSetting(f"{name}: {key} is given twice")
        given[key] = value
    try:
        made: Pass = own(**given)
    except TypeError as error:
        raise InvalidSetting(f"{name}: {error}") from None
    return made


def summaries() -> list[tuple[str, str, dict[str, Any]]]:
    """(name, what it does, its settings with their defaults) of every pass."""
    found = []
    for name in PASSES:
        own = _class_of(name)
        found.append((name, str(own.__doc__).partition("\n")[0], {f.name: f.default for f in fields(own)}))
    return found


def name_of(step: Pass) -> str:
    """The name of a pass in the table; a user's own pass has its class's."""
    own = type(step).__name__
    return next((name for name, entry in PASSES.items() if entry.class_name == own), own)


def text_of(steps: Sequence[Pass]) -> str:
    """The recipe as text that `passes` reads, settings that are not their defaults included."""
    parts = []
    for step in steps:
        changed = [f"{f.name}={getattr(step, f.name)!r}" for f in fields(step) if getattr(step, f.name) != f.default]  # type: ignore[arg-type]
        parts.append(name_of(step) + (f"({', '.join(changed)})" if changed else ""))
    return " | ".join(parts)


def _class_of(name: str) -> Any:
    return getattr(importlib.import_module(f".passes.{PASSES[name].module}", __package__), PASSES[name].class_name)


def _from_text(step: str) -> Pass:
    try:
        tree = ast.parse(step.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return make(tree.id, {})
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name):
            settings = {str(keyword.arg): _value(keyword.value) for keyword in tree.keywords}
            return make(tree.func.id, settings, [_value(value) for value in tree.args])
    except (SyntaxError, ValueError):
        pass
    raise InvalidSetting(f"{step.strip()!r} is no pass; expected such as prune(0.9, schedule=iterative)")


def _value(node: ast.expr) -> Any:
    """A literal; a bare word is a text."""
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _from_yaml(path: Path) -> list[Pass]:
    try:
        steps = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InvalidSetting(f"{path} cannot be read as YAML ({error})") from None
    if not isinstance(steps, list):
        raise InvalidSetting(f"{path} holds no list of passes")
    return [_from_entry(step, path) for step in steps]


def _from_entry(step: Any, path: Path) -> Pass:
    if isinstance(step, str):
        return _from_text(step)
    if isinstance(step, dict) and len(step) == 1:
        name, settings = next(iter(step.items()))
        if settings is None or isinstance(settings, dict):
            return make(str(name), settings or {})
    raise InvalidSetting(f"{path}: {step!r} is no pass; expected such as '- prune: {{sparsity: 0.9}}'")


def _check_order(steps: Sequence[Pass]) -> None:
    reached, last = STRUCTURE, ""
    for step in steps:
        name = name_of(step)
        stage = PASSES[name].stage if name in PASSES else ANY
        if stage == ANY and reached < CODING:
            continue
        if stage < reached or (stage == ANY and reached == CODING) or (stage == reached == CODING):
            reason = WHY.get(stage, "coding comes last, and once")
            raise InvalidSetting(f"{name} after {last}: {reason}; put {name} before {last}")
        reached, last = stage, name
