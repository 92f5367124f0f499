"""The networks that the tables know without building them: every name of the zoo, and every other published form.

`python -m pocketzoo.leaderboards.networks` writes leaderboards/networks.json anew; a test fails when it is stale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from .accuracy import Accuracy, published

COSTS = ("params", "macs", "activations", "peak_memory_bytes", "energy_uj")
COMPRESSION = "compression"  # in provenance: what was done; beside an Architecture: its recipes
NAMED_BY = ("family", "settings")  # what a zoo name says of an Architecture; the rest is its input and its widths


@dataclass(frozen=True)
class Network:
    """A network and what it costs; `settings` are those beyond what the name says.

    `architecture` is the Architecture's JSON as a dict (None for a bare module), with the recipes of a compressed one
    as `identity` gives it; `costs` the columns of the graph's Costs (empty where nobody counted), and of a compressed
    one also `effective_macs` and `file_bytes`; `saved` the folder that holds a compressed one.
    """

    model: str
    settings: Mapping[str, Any]
    architecture: Mapping[str, Any] | None
    costs: Mapping[str, float]
    saved: str = ""

    @cached_property
    def key(self) -> str:
        """The Architecture's key, with its recipes' where there are some; the name of a bare module."""
        return key_of(self.architecture) if self.architecture else self.model

    @property
    def recipes(self) -> Sequence[str]:
        """What it was compressed by, one after another."""
        return self.architecture.get(COMPRESSION, ()) if self.architecture else ()

    @property
    def family(self) -> str:
        """The zoo's family, `module:factory` of a user's own network, nothing for a bare module."""
        return str(self.architecture["family"]) if self.architecture else ""

    @property
    def is_zoos(self) -> bool:
        """Whether the zoo builds it as it is: a user's module is not imported for a table, a recipe not repeated."""
        return bool(self.family) and ":" not in self.family and not self.recipes

    @property
    def resolution(self) -> int | None:
        """Side of the image in pixels."""
        return self.architecture["resolution"] if self.architecture else None

    @property
    def num_classes(self) -> int | None:
        """Classes."""
        return self.architecture["num_classes"] if self.architecture else None

    @property
    def label(self) -> str:
        """The name with what differs from it: `mobilenet_v2, resolution 160`, and what it was compressed by."""
        parts = [self.model, *(f"{name} {value}" for name, value in self.settings.items())]
        if self.architecture and self.architecture["widths"]:
            dense = {name: value for name, value in self.architecture.items() if name != COMPRESSION}
            parts.append(f"own widths ({key_of(dense)})")
        return ", ".join([*parts, ", then ".join(self.recipes)] if self.recipes else parts)

    @property
    def create(self) -> str:
        """The Python expression that makes it, or loads a compressed one; nothing for a bare module."""
        if self.architecture is None:
            return ""
        if self.recipes:
            return f"pocketzoo.load({self.saved!r})" if self.saved else ""
        if self.architecture["widths"]:
            return f"pocketzoo.Architecture.from_json({json.dumps(self.architecture)!r}).build()"
        arguments = [repr(self.model), *(f"{name}={value!r}" for name, value in self.settings.items())]
        return f"pocketzoo.create_model({', '.join(arguments)})"


def key_of(architecture: Mapping[str, Any]) -> str:
    """`Architecture.key` of an Architecture's JSON as a dict, without building one."""
    return hashlib.sha256(json.dumps(architecture, sort_keys=True).encode()).hexdigest()[:12]


def identity(architecture: Mapping[str, Any], provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a Result is of: the Architecture's JSON as a dict, and in `compression` the recipes it went through."""
    recipes = _recipes(provenance)
    return {**architecture, COMPRESSION: recipes} if recipes else architecture


def _recipes(provenance: Mapping[str, Any]) -> list[str]:
    """From the first to the last: what was compressed may be compressed again."""
    if COMPRESSION not in provenance:
        return []
    before = provenance.get("parent", {}).get("provenance", {})
    return [*_recipes(before), provenance[COMPRESSION]["recipe"]]


@cache
def networks() -> Mapping[str, Network]:
    """Key -> network, of leaderboards/networks.json."""
    rows = json.loads((files(__package__) / "networks.json").read_text(encoding="utf-8"))
    return {network.key: network for network in (Network(**row) for row in rows)}


def network_of(architecture: Mapping[str, Any], costs: Mapping[str, float], saved: str = "") -> Network:
    """The known network of an Architecture's JSON or an `identity`, or one named after the zoo's nearest name."""
    known = networks().get(key_of(architecture))
    if known:
        return known
    named = next((n for n in networks().values() if not n.settings and _same(n.architecture, architecture)), None)
    if named is None or named.architecture is None:
        given = ("num_classes", "in_channels", "resolution")
        settings = {**architecture["settings"], **{name: architecture[name] for name in given}}
        return Network(architecture["family"], settings, architecture, costs, saved)
    base = named.architecture
    settings = {name: architecture[name] for name in ("resolution", "num_classes", "in_channels")
                if architecture[name] != base[name]}  # fmt: skip
    return Network(named.model, settings, architecture, costs, saved)


def _same(one: Mapping[str, Any] | None, other: Mapping[str, Any]) -> bool:
    return one is not None and all(one[field] == other[field] for field in NAMED_BY)


# -- counting ---------------------------------------------------------------------------------------------------------


def listed() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, settings beyond it) of every network to count: the zoo, then the other published forms."""
    from ..zoo.index import matching

    zoo = {row["model"]: row for row in matching()}
    yield from ((model, {}) for model in zoo)
    seen = set()
    for row in published():
        settings = beyond(row, zoo[row.model])
        if settings and (text := json.dumps([row.model, settings])) not in seen:
            seen.add(text)
            yield row.model, settings


def beyond(row: Accuracy, default: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a published form that its name does not have."""
    given = {"resolution": row.resolution, "num_classes": row.num_classes}
    return {**row.settings, **{name: value for name, value in given.items() if value != default[name]}}


def count(model: str, settings: Mapping[str, Any]) -> Network:
    """Build a zoo model without memory and count it."""
    import torch

    from ..graph.channel_graph import trace
    from ..zoo.architecture import Architecture

    arch = Architecture.of(model, **settings)
    with torch.device("meta"):
        costs = trace(arch.build().eval(), arch.input_shape).price().to_dict()
    return Network(model, dict(settings), json.loads(arch.to_json()), {name: costs[name] for name in COSTS})


def main() -> None:
    """Write the file."""
    counted = (count(model, settings) for model, settings in listed())
    rows = ({"model": n.model, "settings": n.settings, "architecture": n.architecture, "costs": n.costs}
            for n in counted)  # fmt: skip
    lines = ",\n".join(json.dumps(row) for row in rows)
    (Path(__file__).parent / "networks.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
