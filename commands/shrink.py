"""pocketzoo shrink: a method of pruning as architecture search."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from .options import AS_JSON, COUNT, DATA, budget_options, example, print_json, shows_progress


@click.command(
    "shrink", epilog=example("pocketzoo shrink lenet5 --data digits --macs 40% --method l1 --out runs/small")
)
@click.argument("model")
@DATA
@budget_options
@click.option(
    "--method", default="slimming", show_default=True, help="How widths are found; `--method help` lists all."
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the method.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the model and the record.")
@click.option("--epochs", type=COUNT, help="Epochs of the parent's training; a quarter of them for fine-tuning.")
@click.option("--seed", default=0, show_default=True, help="Seed of all trainings.")
@click.option("--trust", multiple=True, metavar="MODULE:FACTORY", help="Import your own network from here.")
@AS_JSON
def shrink_command(
    model: str, data: str, method: str, settings: Sequence[str], out: Path, epochs: int | None, seed: int,
    trust: Sequence[str], as_json: bool, **limits: str | None,
) -> None:  # fmt: skip
    """Find widths by pruning under a budget, cut and train on; MODEL is a run, a zoo name or your own module:factory.

    A limit may be a share of what the network costs: --macs 40%. Stopped or killed, the same command goes on.
    """
    from ..search.shrink import shrink
    from ..training.data import load_data
    from ..training.recipe import recipe_for

    given = [f"{name}={limit}" for name, limit in limits.items() if limit is not None]
    if not given:
        raise click.UsageError("shrinking needs a limit such as --macs 40%")
    chosen = {} if epochs is None else {"epochs": epochs}
    recipe = recipe_for(len(load_data(data).train), seed=seed, **chosen)
    small = shrink(model, data, ",".join(given), method, settings=_pairs(settings), out=out, recipe=recipe, trust=trust,
                   progress=shows_progress())  # fmt: skip
    if as_json:
        result = json.loads(small.result.to_json())
        print_json({"out": str(out), "widths": small.widths, "validation": dict(small.accuracies), "result": result})
    else:
        click.echo(f"{small}\nin {out}")


def _pairs(settings: Sequence[str]) -> dict[str, str]:
    pairs = dict(setting.partition("=")[::2] for setting in settings)
    if wrong := [setting for setting in settings if "=" not in setting]:
        raise click.BadParameter(f"{wrong[0]!r} is no setting; expected NAME=VALUE", param_hint="--set")
    return pairs
