"""The page of compression_evidence.py, from its lines."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from compression_structures import HEAD, structure_rows
from compression_studies import Curve, Study, Trial

Line = dict[str, Any]
NAMES = {"lenet5": "LeNet-5", "lenet_300_100": "LeNet-300-100"}
PARENT = "parent"
COMMAND = "python benchmarks/compression_evidence.py"
SUMMARY = (
    "| table | to reach or beat | bytes in the file | times smaller | weights that are not zero | times fewer |"
    " validation error % | test error % | recipes tried |"
)
PROTOCOL = (
    "Recipes, ranks and stopping points were chosen with seed 0 on 5,001 images held out of train (a twelfth of every"
    " class): of those tried, the smallest within the paper's error (LeNet-5's smallest file: within 0.75 %, a margin"
    " for the other seeds, set before its test split was read). The chosen recipe then ran from the parents of all"
    " seeds, and the test split was read once for each network that is given a test error below; trainings and choices"
    " had no access to it. Figures separated by commas are of the seeds in their order. Images are shifted by up to 2"
    " pixels in training, except where a recipe says `augment False`."
)
TABLES = (
    "Errors in the second column are the paper's, on the test split. Bytes are of the packed file as it lies on disk,"
    " header included, which gives the weights back to the bit; times smaller is against 32 bits for every parameter of"
    " the dense network, times fewer against all of them, biases included."
    " In the tables by layer, weight and index bits and the rate are those of pruning and sharing alone, with gaps of 5"
    " bits and padding zeros; coded is by Huffman, for each weight that is left (P+Q and P+Q+H in Deep Compression).\n"
)
CURVE = "On the held-out images only; means over the seeds where one figure is given.\n"
PER_LAYER = (
    "| layer | weights | density | weight bits | coded | index bits | coded | rate, not coded | rate in the file |"
)


def page(studies: Sequence[Study], curves: Sequence[Curve], trials: Sequence[Trial], lines: list[Line]) -> str:
    """All that there is so far."""
    last = max(lines, key=lambda line: line["date"])
    seeds = sorted({line["seed"] for line in lines})
    parts = [
        "# Compression on MNIST, beside the papers\n",
        f"{last['date']}; seeds {', '.join(map(str, seeds))}; {last['versions']}; {last['machine']}; `{COMMAND}`\n",
        PROTOCOL,
        *parents_table(lines),
        "\n## The tables\n",
        TABLES,
        SUMMARY,
        ruler(SUMMARY),
        *(row for study in studies if (row := summary_row(study, trials, lines))),
    ]
    for study in studies:
        parts += details(study, trials, lines)
    for curve in curves:
        parts += curve_table(curve, trials, lines)
    return "\n".join(parts) + "\n"


def candidates(table: Study | Curve, trials: Sequence[Trial]) -> list[Trial]:
    """The trials of a table."""
    return [trial for trial in trials if trial.model == table.model and trial.name.startswith(table.among)]


def chosen(study: Study, trials: Sequence[Trial], lines: list[Line]) -> Line:
    """The line of seed 0 that goes to the test: the smallest within the error, or else the one with the least error."""
    first = tried(study, trials, lines)
    within = [line for line in first if line["val_error"] <= study.most_error]
    return (
        min(within, key=lambda line: line[study.smallest]) if within else min(first, key=lambda line: line["val_error"])
    )


def tried(table: Study | Curve, trials: Sequence[Trial], lines: list[Line]) -> list[Line]:
    """The lines of seed 0 of a table's trials."""
    names = {trial.name for trial in candidates(table, trials)}
    own = [line for line in of(lines, table.model, "trial") if line["seed"] == 0]
    return [line for line in own if line["trial"] in names]


def parents_table(lines: list[Line]) -> list[str]:
    """The dense networks."""
    head = "| dense network | parameters | bytes of 32-bit weights | validation error % | test error % | training |"
    rows = []
    for model, name in NAMES.items():
        if own := of(lines, model, "parent"):
            epochs, rate = own[0]["training"]["epochs"], own[0]["training"]["lr"]
            rows.append(
                f"| {name} | {own[0]['params']:,} | {4 * own[0]['params']:,} | {each(own, 'val_error')} |"
                f" {each(of(lines, model, 'test', PARENT), 'test_error')} | {epochs} epochs, peak rate {rate:g} |"
            )
    return ["\n## Where they begin\n", head, ruler(head), *rows]


def summary_row(study: Study, trials: Sequence[Trial], lines: list[Line]) -> str:
    """What was chosen, over the seeds; nothing before there is any."""
    first = tried(study, trials, lines)
    if not first:
        return ""
    best = chosen(study, trials, lines)["trial"]
    own, tested = of(lines, study.model, "trial", best), of(lines, study.model, "test", best)
    dense = dense_params(study, lines)
    size, weights = (statistics.mean(line[key] for line in own) for key in ("bytes", "nonzeros"))
    return (
        f"| {study.name} | {study.paper} | {each(own, 'bytes', ',d')} | {4 * dense / size:.0f} |"
        f" {each(own, 'nonzeros', ',d')} | {dense / weights:.0f} | {each(own, 'val_error')} |"
        f" {each(tested, 'test_error')} | {len(first)} |"
    )


def details(study: Study, trials: Sequence[Trial], lines: list[Line]) -> list[str]:
    """The chosen recipe, its layers, and all that was tried."""
    first = tried(study, trials, lines)
    if not first:
        return []
    best = chosen(study, trials, lines)
    dense = dense_params(study, lines)
    head = "| recipe tried | validation error % | bytes | weights not zero |"
    return [
        f"\n## {study.name}\n",
        f"Chosen: {steps(best, lines)}.\n",
        *(structures_table(study, trials, lines) if study.smallest == "macs" else layers_table(best, dense)),
        f"\nAll with seed 0; chosen from those with a validation error of at most {study.most_error:.2f} %:\n",
        head,
        ruler(head),
        *(
            f"| {steps(line, lines)} | {line['val_error']:.2f} | {line['bytes']:,} | {line['nonzeros']:,} |"
            for line in sorted(first, key=lambda line: line[study.smallest])
        ),
    ]


def steps(line: Line, lines: list[Line]) -> str:
    """A recipe with those that it goes on from."""
    own = f"`{line['recipe']}`".replace("|", r"\|")
    training = ", ".join(f"`{key} {value}`" for key, value in line["training"].items())
    own += f" ({training})" if training else ""
    own += f" taught by {NAMES[line['teacher']]}" if line["teacher"] else ""
    if line["after"]:
        before = of(lines, line["model"], "trial", line["after"])[0]
        return f"{steps(before, lines)}, then {own}"
    return f"shrunk by `{line['shrunk']}` to {shape(line)}, then {own}" if line["shrunk"] else own


def shape(line: Line) -> str:
    """Channels of the network."""
    return "-".join(str(width) for width in line["widths"].values())


def layers_table(line: Line, dense: int) -> list[str]:
    """Deep Compression's columns for one network."""
    rows = [layer_row(own) for own in line["layers"]]
    rate = f"{line['bytes'] / (4 * dense):.2%}"
    total = f"| file, biases and {line['header_bytes']} bytes of header included | {dense:,} | | | | | | | {rate} |"
    return [PER_LAYER, ruler(PER_LAYER), *rows, total]


def structures_table(study: Study, trials: Sequence[Trial], lines: list[Line]) -> list[str]:
    """Structured sparsity learning's columns for all networks of a study."""
    own = [line for trial in candidates(study, trials) for line in of(lines, study.model, "trial", trial.name)]
    return [HEAD, ruler(HEAD), *structure_rows(own, of(lines, study.model, "test"))]


def layer_row(own: Line) -> str:
    """One layer; rates are parts of 32 bits for each of the layer's weights."""
    coded = "-" if own["coded_weight_bits"] is None else f"{own['coded_weight_bits']:.1f}"
    return (
        f"| {own['layer']} | {own['weights']:,} | {own['nonzeros'] / own['weights']:.1%} | {own['weight_bits']} |"
        f" {coded} |"
        f" {own['index_bits']} | {own['coded_index_bits']:.1f} |"
        f" {own['pruned_shared_bits'] / (32 * own['weights']):.1%} | {own['bytes'] / (4 * own['weights']):.1%} |"
    )


def curve_table(curve: Curve, trials: Sequence[Trial], lines: list[Line]) -> list[str]:
    """Every trial over all seeds, in their order."""
    if not tried(curve, trials, lines):
        return []
    head = "| recipe | bytes | times smaller | weights not zero | validation error %, each seed | mean |"
    parts = [f"\n## {curve.name}\n", CURVE, head, ruler(head)]
    dense = dense_params(curve, lines)
    for trial in candidates(curve, trials):
        if own := of(lines, curve.model, "trial", trial.name):
            size, error, weights = (statistics.mean(e[key] for e in own) for key in ("bytes", "val_error", "nonzeros"))
            parts.append(
                f"| {steps(own[0], lines)} | {size:,.0f} | {4 * dense / size:.1f} | {weights:,.0f} |"
                f" {each(own, 'val_error')} | {error:.2f} |"
            )
    return parts


def of(lines: list[Line], model: str, kind: str, trial: str | None = None) -> list[Line]:
    """A network's lines of one kind, of one trial, in the order of the seeds."""
    own = [line for line in lines if (line["model"], line["kind"]) == (model, kind)]
    return sorted((line for line in own if trial in (None, line["trial"])), key=lambda line: line["seed"])


def dense_params(table: Study | Curve, lines: list[Line]) -> int:
    """Parameters of the network before all compression."""
    return int(of(lines, table.model, "parent")[0]["params"])


def each(lines: Iterable[Line], key: str, form: str = ".2f") -> str:
    """A figure for each seed."""
    return ", ".join(f"{line[key]:{form}}" for line in lines)


def ruler(head: str) -> str:
    """The line below a table's head."""
    return "|---" * (head.count("|") - 1) + "|"
