"""pocketzoo shrink: a method of pruning as architecture search, and the verdict on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import AS_JSON, COUNT, DATA, MULTIPLE, budget_options, example, print_json, shows_progress

if TYPE_CHECKING:
    from ..search.shrink import Shrunk
    from ..search.verdict import Verdict


def _list_methods(context: click.Context, option: click.Parameter, method: str) -> str:
    """`--method help` lists all methods with their settings, and ends there."""
    if method == "help":
        _print_methods()
        context.exit()
    return method


def _print_methods() -> None:
    from ..search.methods.method import METHODS, settings_of, summary

    for name in METHODS:
        click.echo(f"{name:16} {summary(name)}")
        if settings := settings_of(name):
            click.echo(" " * 17 + " ".join(f"--set {key}={value}" for key, value in settings.items()))


@click.command(
    "shrink", epilog=example("pocketzoo shrink lenet5 --data digits --macs 40% --method l1 --out runs/small")
)
@click.argument("model")
@DATA
@budget_options
@click.option("--device", help="Whose latency: cpu (after pocketzoo calibrate) or a published device such as pixel1.")
@click.option("--runtime", help="Of that device: eager or onnxruntime.")
@click.option(
    "--method", default="slimming", show_default=True, is_eager=True, callback=_list_methods,
    help="How widths are found; `--method help` lists all, with their settings.",
)  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the method.")
@MULTIPLE
@click.option(
    "--verdict", "asks_verdict", is_flag=True,
    help="Train what the outcome must be held against as well: fresh weights, uniform widths, random widths.",
)  # fmt: skip
@click.option("--seeds", type=COUNT, default=3, show_default=True, help="Seeds of a verdict, from --seed up.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the model and the record.")
@click.option("--epochs", type=COUNT, help="Epochs of the parent's training; a quarter of them for fine-tuning.")
@click.option("--seed", default=0, show_default=True, help="Seed of all trainings.")
@click.option("--trust", multiple=True, metavar="MODULE:FACTORY", help="Import your own network from here.")
@AS_JSON
def shrink_command(
    model: str, data: str, method: str, settings: Sequence[str], multiple: int, asks_verdict: bool, seeds: int,
    out: Path, epochs: int | None, seed: int, trust: Sequence[str], as_json: bool, **limits: str | None,
) -> None:  # fmt: skip
    """Find widths by pruning under a budget, cut and train on; MODEL is a run, a zoo name or your own module:factory.

    A limit may be a share of what the network costs: --macs 40%. Stopped or killed, the same command goes on; done, it
    prints what there is.
    """
    from ..search.origin import recipe_of, resolution_of
    from ..search.shrink import shrink
    from ..search.verdict import verdict
    from ..training.data import load_data

    given = ",".join(f"{name}={limit}" for name, limit in limits.items() if limit is not None)
    if not given:
        raise click.UsageError("shrinking needs a limit such as --macs 40%")
    pairs = _pairs(settings)
    chosen = {} if epochs is None else {"epochs": epochs}
    recipe = recipe_of(model, load_data(data, resolution=resolution_of(model, trust)), seed=seed, **chosen)
    options: dict[str, Any] = {"settings": pairs, "out": out, "recipe": recipe, "multiple": multiple, "trust": trust}
    if asks_verdict:
        found = verdict(model, data, given, method, seeds=seeds, progress=shows_progress(), **options)
        _show(found, found.small, out, as_json, json.loads(found.findings.to_json()))
    else:
        small = shrink(model, data, given, method, progress=shows_progress(), **options)
        _show(small, small, out, as_json, None)


def _show(outcome: Shrunk | Verdict, small: Shrunk, out: Path, as_json: bool, found: Any) -> None:
    if not as_json:
        click.echo(f"{outcome}\nin {out}; index.html there shows it")
        return
    result = json.loads(small.result.to_json())
    record = {"out": str(out), "widths": small.widths, "validation": dict(small.accuracies), "result": result}
    print_json(record if found is None else {**record, "verdict": found})


def _pairs(settings: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.BadParameter(f"{setting!r} is no setting; expected NAME=VALUE", param_hint="--set")
        if name in pairs:
            raise click.BadParameter(f"{name} is given twice; give each setting once", param_hint="--set")
        pairs[name] = value
    return pairs
