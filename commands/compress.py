"""pocketzoo compress and unpack: a finished model through recipes into one small file, and out of it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from .options import AS_JSON, DATA, example, print_json, print_rich, shows_progress


def _list_passes(context: click.Context, option: click.Parameter, recipes: Sequence[str]) -> Sequence[str]:
    """`--recipe help` lists all passes with their settings, and ends there."""
    if "help" in recipes:
        from ..compress.recipes import summaries

        for name, summary, settings in summaries():
            click.echo(f"{name:12} {summary}")
            if settings:
                click.echo(" " * 13 + ", ".join(f"{key}={value!r}" for key, value in settings.items()))
        context.exit()
    return recipes


@click.command(
    "compress",
    epilog=example(
        'pocketzoo compress runs/first --recipe "prune(0.7, epochs=4) | kmeans | huffman" --data digits --out runs/c'
    ),
)
@click.argument("run")
@click.option(
    "--recipe", "recipes", multiple=True, required=True, is_eager=True, callback=_list_passes, metavar="RECIPE",
    help="Passes as text or a YAML file; may be given several times. `--recipe help` lists the passes.",
)  # fmt: skip
@DATA
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the file and the record.")
@click.option(
    "--tolerance", type=click.FloatRange(0, 1), default=0.01, show_default=True,
    help="Share of the validation images that the smallest file may get wrong beyond what RUN does.",
)  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Seed of all trainings.")
@click.option("--trust", multiple=True, metavar="MODULE:FACTORY", help="Import your own network from here.")
@AS_JSON
def compress_command(
    run: str, recipes: Sequence[str], data: str, out: Path, tolerance: float, seed: int, trust: Sequence[str],
    as_json: bool,
) -> None:  # fmt: skip
    """Compress what a search, shrinking or training left in RUN; the smallest good file of all recipes is kept.

    Stopped or killed, the same command goes on; done, it prints what there is.
    """
    from ..compress.ship import compress_run
    from ..training.data import load_data
    from ..training.recipe import recipe_for
    from ..training.saved import load_with_info

    resolution = load_with_info(run, trust=trust)[1].resolution
    training = recipe_for(len(load_data(data, resolution=resolution).train), seed=seed)
    made = compress_run(
        run, recipes, data, out, tolerance=tolerance, training=training, trust=trust, progress=shows_progress()
    )
    if as_json:
        tables = {"recipes": made.recipes, "steps": made.steps, "layers": made.layers}
        record = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        print_json({"out": str(out), **record, "result": json.loads(made.result.to_json())})
        return
    from ..compress.report import PASS_COLUMNS, printed

    steps = [(str(text), own.reindex(columns=PASS_COLUMNS)) for text, own in made.steps.groupby("recipe", sort=False)]
    passes = [printed(text, own.dropna(axis="columns", how="all")) for text, own in steps]
    print_rich(*passes, printed("recipes", made.recipes), printed("layers of the file that is kept", made.layers))
    click.echo(f"{made}\nin {out}; index.html there shows it, `pocketzoo leaderboard add {out}` ranks it")


@click.command("unpack", epilog=example("pocketzoo unpack runs/small/best.pz --to model.onnx"))
@click.argument("packed")
@click.option(
    "--to", "target", required=True, type=click.Path(path_type=Path), metavar="FILE",
    help="File to write, by its ending: .safetensors or .onnx.",
)  # fmt: skip
@click.option("--trust", multiple=True, metavar="MODULE:FACTORY", help="Import your own network from here.")
@AS_JSON
def unpack_command(packed: str, target: Path, trust: Sequence[str], as_json: bool) -> None:
    """Write the model of a packed file, or of the folder of a compression, in a form that others read."""
    from ..training.saved import unpack_to

    written = unpack_to(packed, target, trust=trust)
    if as_json:
        print_json({"file": str(target), "bytes": written})
    else:
        click.echo(f"{target}: {written:,} bytes")
