"""The zoo's registry: families, their named variants, and how a name becomes a network."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import nn

from ..errors import InvalidSetting, UnknownModel, suggestion
from .initialise import initialise

Settings = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """One family: how to build it, its named variants, and the settings a search may vary."""

    name: str
    build: Callable[..., nn.Module]
    variants: Mapping[str, Settings]  # model name -> the settings that differ from the defaults
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # "kernel" or "repeats[2]" -> its options
    multiplier: str | None = None  # the setting that scales every width, where the family has one

    @property
    def defaults(self) -> Settings:
        """Every setting with its default, read from the build function's signature."""
        return {name: p.default for name, p in inspect.signature(self.build).parameters.items()}


FAMILIES: dict[str, Family] = {}


def register(
    variants: Mapping[str, Settings],
    *,
    choices: Mapping[str, tuple[Any, ...]] | None = None,
    multiplier: str | None = None,
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Add the decorated build function as a family of that name; a name taken twice raises ValueError.

    The function takes keywords only, each with a default, `num_classes`, `in_channels` and `resolution` among them.
    """

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        name = build.__name__
        taken = {model for family in FAMILIES.values() for model in family.variants}
        if name in FAMILIES or taken & variants.keys():
            raise ValueError(f"{name}: family or variant is registered twice")
        parameters = inspect.signature(build).parameters
        lacking = {"num_classes", "in_channels", "resolution"} - parameters.keys()
        if lacking or any(p.kind is not p.KEYWORD_ONLY or p.default is p.empty for p in parameters.values()):
            raise ValueError(f"{name}: settings are keyword-only with defaults, and include {sorted(lacking)}")
        FAMILIES[name] = Family(name, build, dict(variants), dict(choices or {}), multiplier)
        return build

    return add


@cache
def load_families() -> None:
    """Import every family file, which registers them."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell pattern, in order."""
    load_families()
    names = sorted(model for family in FAMILIES.values() for model in family.variants)
    return fnmatch.filter(names, pattern)


def find(name: str) -> tuple[Family, Settings]:
    """The family of a model name and the variant's settings; UnknownModel suggests the nearest name."""
    load_families()
    for family in FAMILIES.values():
        if name in family.variants:
            return family, dict(family.variants[name])
    if name in FAMILIES:
        return FAMILIES[name], {}
    known = [*list_models(), *FAMILIES]
    raise UnknownModel(f"no model named {name!r}{suggestion(name, known)} (pocketzoo list shows all)")


def build(family: Family, settings: Settings) -> nn.Module:
    """The family's network at these settings, with fresh weights unless built on meta."""
    if unknown := settings.keys() - family.defaults.keys():
        word = sorted(unknown)[0]
        raise InvalidSetting(
            f"{family.name} has no setting {word!r}{suggestion(word, family.defaults)}"
            f" (it has {sorted(family.defaults)})"
        )
    model = family.build(**settings)
    initialise(model)
    return model


def with_choice(settings: Settings, defaults: Settings, choice: str, value: Any) -> Settings:
    """Settings with one choice set; `repeats[2]` sets the third entry of a tuple setting."""
    name, bracket, index = choice.partition("[")
    if not bracket:
        return {**settings, name: value}
    changed = [*(settings[name] if name in settings else defaults[name])]
    changed[int(index.rstrip("]"))] = value
    return {**settings, name: tuple(changed)}
