"""pocketzoo search: from a budget to a trained network."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import AS_JSON, COUNT, DATA, MULTIPLE, budget_options, example, print_json, shows_progress


@click.command(
    "search", epilog=example("pocketzoo search mobilenet_v2 --data digits --macs 1M --trials 20 --out runs/first")
)
@click.argument("model")
@DATA
@budget_options
@click.option("--device", help="Whose latency: cpu (after pocketzoo calibrate) or a published device such as pixel1.")
@click.option("--runtime", help="Of that device: eager or onnxruntime.")
@click.option("--budgets", help="Several MAC budgets, such as 1M,2M,4M: one search each, one Pareto front.")
@click.option("--trials", type=COUNT, default=20, show_default=True, help="Networks to try.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the model and the record.")
@click.option(
    "--weights", metavar="SOURCE", help="Start from a trained parent: a run, a .safetensors of ours, hf_hub:org/repo."
)
@click.option("--supernet", is_flag=True, help="Train a parent first that is made to be cut, and start from it.")
@click.option(
    "--evaluate",
    default="train",
    show_default=True,
    metavar="HOW",
    help="train, inherit, or one of them after a screen: inherit,train or proxy:synflow,train.",
)
@click.option("--screen", type=COUNT, default=10, show_default=True, help="Candidates screened for each trial.")
@click.option("--finalists", type=COUNT, default=1, show_default=True, help="Best trials trained to the end.")
@click.option("--storage", metavar="URL", help="Any Optuna storage; SQLite in the folder by default.")
@click.option("--resolutions", help="Image sides to search over, such as 24,32.")
@MULTIPLE
@click.option("--timeout", type=float, metavar="SECONDS", help="No trial begins after that.")
@click.option("--epochs", type=COUNT, help="Epochs of the final training; a quarter of them for each trial.")
@click.option("--seed", default=0, show_default=True, help="Seed of sampling and training.")
@AS_JSON
def search_command(
    model: str, data: str, trials: int, out: Path, budgets: str | None, weights: str | None, supernet: bool,
    evaluate: str, screen: int, finalists: int, storage: str | None, resolutions: str | None, multiple: int,
    timeout: float | None, epochs: int | None, seed: int, as_json: bool, **limits: str | None,
) -> None:  # fmt: skip
    """Search the best network of a family under a budget; MODEL is a zoo name or your own module:factory.

    Stopped or killed, the same command goes on where it was. Proxies are params, macs, activations, grad_norm, snip,
    synflow, naswot and zen; the result says which of them this search would have done well to trust.
    """
    from ..search.budget import Budget
    from ..search.run import run_search
    from ..training.data import load_data
    from ..training.recipe import recipe_for

    chosen = {name: limit for name, limit in limits.items() if limit is not None}
    if not chosen and not budgets:
        raise click.UsageError("a search needs a limit such as --macs 2M, or several as --budgets 1M,2M")
    recipe = None if epochs is None else recipe_for(len(load_data(data).train), epochs=epochs)
    study = run_search(
        model, data, Budget(**chosen) if chosen else None, trials, out, weights=weights, supernet=supernet,
        evaluate=evaluate, screen=screen, finalists=finalists, storage=storage, seed=seed, recipe=recipe,
        timeout=timeout, budgets=budgets.split(",") if budgets else None,
        resolutions=_sides(resolutions), multiple=multiple, progress=shows_progress(),
    )  # fmt: skip
    if as_json:
        difference = study.difference.to_dict() if study.difference else None
        print_json({
            "out": str(study.out), "best": json.loads(study.best.to_json()),
            "uniform": json.loads(study.uniform.to_json()), "difference": difference,
            "latency": study.latency.to_dict() if study.latency else None,
            "pareto": json.loads(study.pareto.to_json(orient="records")),
            "proxies": json.loads(study.proxies.to_json(orient="records")),
        })  # fmt: skip
    else:
        click.echo(str(study))


def _sides(text: str | None) -> list[int]:
    sides = text.split(",") if text else []
    if wrong := [side for side in sides if not side.strip().isdecimal()]:
        raise click.BadParameter(
            f"{wrong[0]!r} is no number of pixels; expected such as 24,32", param_hint="--resolutions"
        )
    return [int(side) for side in sides]
