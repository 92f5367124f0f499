"""The table: a row per network and data set, each cell a figure with its provenance."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .accuracy import Accuracy, published
from .figure import Figure
from .networks import COMPRESSION, Network, identity, network_of, networks
from .places import key_measured
from .records import Record, Records

TOP1, TOP5, EFFECTIVE = "top1_percent", "top5_percent", "effective_macs"
WEIGHT_BYTES = 4  # of a 32-bit number
PACKED = "from the packed file: its bytes on disk"
COUNTED = "from its operators, one image"
COUNTS = {  # column -> how it was counted
    "params": "from its tensors: every trainable number",
    "macs": COUNTED,
    EFFECTIVE: f"{COUNTED}: those of weights that are not zero",
    "size_bytes": "from its tensors: parameters of 4 bytes",
    "peak_memory_bytes": f"{COUNTED}: most bytes of activations alive at once, 4 bytes each",
    "energy_uj": f"{COUNTED}, with published energies of single operations (graph/energy.json)",
}


@dataclass(frozen=True)
class Row:
    """A network on a data set; `cells` are its figures by column, `others` what else was said of its top-1 accuracy."""

    network: Network
    dataset: str  # nothing where no accuracy is known
    cells: Mapping[str, Figure]
    others: tuple[Figure, ...] = ()

    def value(self, column: str) -> float | None:
        """The number in a column, None where there is none."""
        figure = self.cells.get(column)
        return None if figure is None else figure.value


@dataclass(frozen=True)
class Said:
    """What one source says of a network's accuracy."""

    network: Network
    dataset: str
    top1: Figure
    top5: Figure | None


def rows(records: Records, measured: Mapping[str, Network] | None = None) -> list[Row]:
    """The known networks, those of results, and `measured` ones besides; most accurate first within a data set.

    Where several sources give an accuracy, the highest is the network's, and the others are kept beside it.
    """
    said: dict[tuple[str, str], list[Said]] = defaultdict(list)
    for one in (*_published(), *_trained(records)):
        said[one.network.key, one.dataset].append(one)
    table = [_row(same) for same in said.values()]
    accurate = {row.network.key for row in table}
    rest = {**networks(), **(measured or {})}
    table += [Row(network, "", counts(network)) for key, network in rest.items() if key not in accurate]
    return sorted(table, key=_order)


def _order(row: Row) -> tuple[bool, bool, str, float, float, str]:
    top1, macs = row.value(TOP1), row.value("macs")
    return (not row.dataset, row.dataset != "imagenet", row.dataset, -(top1 or 0), macs or 0, row.network.label)


def _row(said: list[Said]) -> Row:
    best, *others = sorted(said, key=lambda one: -one.top1.value)
    cells = {TOP1: best.top1, **({TOP5: best.top5} if best.top5 else {}), **counts(best.network)}
    return Row(best.network, best.dataset, cells, tuple(one.top1 for one in others))


def counts(network: Network) -> dict[str, Figure]:
    """The counted cells of a network; none where nobody counted it. The size of a compressed one is its file's."""
    costs, ways = dict(network.costs), dict(COUNTS)
    if "file_bytes" in costs:
        costs["size_bytes"], ways["size_bytes"] = costs["file_bytes"], PACKED
    elif "params" in costs:
        costs["size_bytes"] = WEIGHT_BYTES * costs["params"]
    return {name: Figure(costs[name], "counted", how) for name, how in ways.items() if name in costs}


def _published() -> Iterator[Said]:
    by_form = {(n.model, _form(n)): n for n in networks().values()}
    for row in published():
        settings = {**row.settings, "resolution": row.resolution, "num_classes": row.num_classes}
        source = f"{row.source} ({row.note})" if row.note else row.source
        yield Said(by_form[row.model, json.dumps(settings, sort_keys=True)], row.dataset,
                   Figure(row.top1_percent, "published", source), _top5(row, source))  # fmt: skip


def _form(network: Network) -> str:
    """Settings beyond the name's with the input always stated, as text."""
    settings = {**network.settings, "resolution": network.resolution, "num_classes": network.num_classes}
    return json.dumps(settings, sort_keys=True)


def _top5(row: Accuracy, source: str) -> Figure | None:
    return None if row.top5_percent is None else Figure(row.top5_percent, "published", source)


def _trained(records: Records) -> Iterator[Said]:
    for result in _with_parents(records.results):
        provenance, accuracy = result["provenance"], result["accuracy"]
        split = "test" if "test" in accuracy else "validation"
        top1 = Figure(100 * accuracy[split], "measured", _training(result, split))
        saved = provenance.get(COMPRESSION, {}).get("folder", "")
        network = network_of(identity(result["architecture"], provenance), result["costs"], saved)
        yield Said(network, str(provenance["data"]), top1, None)


def _with_parents(results: Sequence[Record]) -> Iterator[Record]:
    """Every result, and after a compressed one those that it was made from, where they are not there themselves."""
    known = [result["provenance"] for result in results]
    for result in results:
        yield result
        while "recipe" in (parent := result["provenance"].get("parent", {})) and parent["provenance"] not in known:
            result = {"architecture": result["architecture"], **parent}
            known.append(result["provenance"])
            yield result


def _training(result: Record, split: str) -> str:
    provenance = result["provenance"]
    return (
        f"on the {split} images of {provenance['data']} after {_work(result, split)},"
        f" {str(provenance['date'])[:10]}, seed {provenance['seed']}, pocketzoo {provenance['pocketzoo']}"
    )


def _work(result: Record, split: str) -> str:
    """What was done to the network: epochs of training, or a recipe and how good its parent was."""
    provenance = result["provenance"]
    if COMPRESSION not in provenance:
        return f"{result['recipe']['epochs']} epochs"
    before = provenance.get("parent", {}).get("accuracy", {}).get(split)
    return f"{provenance[COMPRESSION]['recipe']}" + (f" ({before:.2%} before)" if before is not None else "")


def measured_networks(records: Records) -> dict[str, Network]:
    """Key -> network of every measurement whose network nothing else names; counted where the zoo can build it."""
    from .phones import traced

    found: dict[str, Network] = {}
    for m in records.measurements:
        key = key_measured(m)
        if key in networks() or key in found:
            continue
        if m.architecture is None:
            found[key] = Network(m.model, {}, None, {})
            continue
        network = network_of(m.architecture, {})
        if network.is_zoos:
            network = network_of(m.architecture, traced(network).price().to_dict())
        found[key] = network
    return found
