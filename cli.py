"""The command line: thin commands over the library; results on stdout, progress on stderr, errors in one line."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from .errors import PocketzooError, suggestion

BUDGET_OPTIONS = {
    "macs": "multiply-accumulates an image, such as 2M",
    "params": "parameters, such as 300k",
    "size": "bytes of the weights as 32-bit numbers, such as 500KB",
    "memory": "peak activation memory, such as 256KB",
    "energy": "energy an image by the table of operation energies, such as 2mJ",
    "latency": "not yet: needs a calibrated device",
}
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
COUNT = click.IntRange(min=1)


class Commands(click.Group):
    """Turns wrong input into one line and exit code 2, and Ctrl-C into exit code 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PocketzooError as error:
            _refuse(str(error))
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else f"{ctx.command_path} {ctx.invoked_subcommand}"
            _refuse(f"{error.format_message()} ({command} --help says more)")
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader has seen enough; click ends quietly
                raise
            _refuse(f"cannot use {error.filename or 'the output'}: {error.strerror or error}")
        except KeyboardInterrupt:
            click.echo("pocketzoo: stopped; what was finished is kept, and the same command goes on with it", err=True)
            ctx.exit(130)


def _refuse(reason: str) -> NoReturn:
    click.echo(f"pocketzoo: {' '.join(reason.split())}", err=True)
    raise click.exceptions.Exit(2)


def _example(line: str) -> str:
    return f"\b\nExample:\n  {line}"


@click.group(
    cls=Commands,
    epilog=_example("pocketzoo search mobilenet_v2 --data digits --macs 1M --trials 20 --out runs/first"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="pocketzoo")
def main() -> None:
    """Say what you can afford and get the best compact vision network for it."""


@main.command("list", epilog=_example("pocketzoo list 'shufflenet*'"))
@click.argument("pattern", default="*")
@AS_JSON
def list_command(pattern: str, as_json: bool) -> None:
    """List the models of the zoo with their counts."""
    from .zoo.index import matching

    rows = matching(pattern)
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        near = suggestion(pattern, [row["model"] for row in matching()])
        raise PocketzooError(f"no model matches {pattern!r}{near} (pocketzoo list shows all)")
    click.echo(f"{'model':34} {'family':20} {'pixels':>6} {'classes':>7} {'params (M)':>11} {'MACs (M)':>11}")
    for row in rows:
        click.echo(
            f"{row['model']:34} {row['family']:20} {row['resolution']:6} {row['num_classes']:7} "
            f"{row['params'] / 1e6:11.3f} {row['macs'] / 1e6:11.2f}"
        )


@main.command("profile", epilog=_example("pocketzoo profile mobilenet_v2 --resolution 160"))
@click.argument("model")
@click.option("--resolution", type=COUNT, help="Side of the image in pixels; the model's own by default.")
@click.option("--num-classes", type=COUNT, help="Classes; the model's own by default.")
@click.option("--in-channels", type=COUNT, help="Channels of the image; the model's own by default.")
@click.option("--batch", type=COUNT, default=1, show_default=True, help="Images in the batch.")
@click.option(
    "--by", type=click.Choice(["layer", "kind"]), default="kind", show_default=True, help="Rows of the table."
)
@click.option("--as", "tool", type=click.Choice(["fvcore", "thop", "ptflops"]), help="What that tool prints, and why.")
@click.option("--check", is_flag=True, help="Compare the counts with FlopCounterMode and fvcore.")
@AS_JSON
def profile_command(
    model: str, resolution: int | None, num_classes: int | None, in_channels: int | None, batch: int, by: Any,
    tool: Any, check: bool, as_json: bool,
) -> None:  # fmt: skip
    """Count what a zoo name or module:factory costs."""
    from .profiler.counters import as_counted_by, cross_check
    from .profiler.report import profile
    from .zoo.architecture import Architecture

    given: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "resolution": resolution}
    arch = Architecture.of(model, **{name: value for name, value in given.items() if value is not None})
    if tool:
        comparison = as_counted_by(arch.build(), arch.input_shape, tool)
        _print_json(comparison.to_dict()) if as_json else _print_rich(comparison.table())
    elif check:
        found = cross_check(arch.build(), arch.input_shape)
        _print_json({**asdict(found), "agrees": found.agrees}) if as_json else click.echo(str(found))
    else:
        report = profile(arch, batch=batch)
        _print_json(report.to_dict()) if as_json else _print_rich(report.table(by=by))


def _budget_options(command: Any) -> Any:
    for name, help_text in reversed(BUDGET_OPTIONS.items()):
        command = click.option(f"--{name}", metavar="LIMIT", help=f"At most: {help_text}.")(command)
    return command


@main.command(
    "search", epilog=_example("pocketzoo search mobilenet_v2 --data digits --macs 1M --trials 20 --out runs/first")
)
@click.argument("model")
@click.option(
    "--data", required=True, metavar="DATA", help="digits, a folder of parquet files or of images, hub:owner/name."
)
@_budget_options
@click.option("--budgets", help="Several MAC budgets, such as 1M,2M,4M: one search each, one Pareto front.")
@click.option("--trials", type=COUNT, default=20, show_default=True, help="Networks to try.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the model and the record.")
@click.option(
    "--weights", metavar="SOURCE", help="Start from a trained parent: a run, a .safetensors of ours, hf_hub:org/repo."
)
@click.option("--storage", metavar="URL", help="Any Optuna storage; SQLite in the folder by default.")
@click.option("--resolutions", help="Image sides to search over, such as 24,32.")
@click.option("--timeout", type=float, metavar="SECONDS", help="No trial begins after that.")
@click.option("--epochs", type=COUNT, help="Epochs of the final training; a quarter of them for each trial.")
@click.option("--seed", default=0, show_default=True, help="Seed of sampling and training.")
@AS_JSON
def search_command(
    model: str, data: str, trials: int, out: Path, budgets: str | None, weights: str | None, storage: str | None,
    resolutions: str | None, timeout: float | None, epochs: int | None, seed: int, as_json: bool, **limits: str | None,
) -> None:  # fmt: skip
    """Search the best network of a family under a budget; MODEL is a zoo name or your own module:factory.

    Stopped or killed, the same command goes on where it was.
    """
    from .search.budget import Budget
    from .search.run import run_search
    from .training.data import load_data
    from .training.recipe import recipe_for

    chosen = {name: limit for name, limit in limits.items() if limit is not None}
    if not chosen and not budgets:
        raise click.UsageError("a search needs a limit such as --macs 2M, or several as --budgets 1M,2M")
    recipe = None if epochs is None else recipe_for(len(load_data(data).train), epochs=epochs)
    study = run_search(
        model, data, Budget(**chosen) if chosen else None, trials, out, weights=weights, storage=storage, seed=seed,
        recipe=recipe, timeout=timeout, budgets=budgets.split(",") if budgets else None,
        resolutions=_sides(resolutions), progress=_shows_progress(),
    )  # fmt: skip
    if as_json:
        difference = study.difference.to_dict() if study.difference else None
        _print_json({
            "out": str(study.out), "best": json.loads(study.best.to_json()),
            "uniform": json.loads(study.uniform.to_json()), "difference": difference,
            "pareto": json.loads(study.pareto.to_json(orient="records")),
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


@main.command("train", epilog=_example("pocketzoo train lenet5 --data data/mnist --epochs 12 --out runs/lenet5"))
@click.argument("model")
@click.option(
    "--data", required=True, metavar="DATA", help="digits, a folder of parquet files or of images, hub:owner/name."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the model and its record.")
@click.option("--resolution", type=COUNT, help="Side of the image in pixels; the data's own by default.")
@click.option("--epochs", type=COUNT, help="Epochs.")
@click.option("--lr", type=float, help="Learning rate at its peak.")
@click.option("--batch-size", type=COUNT, help="Images in a batch.")
@click.option("--seed", type=int, help="Seed.")
@AS_JSON
def train_command(model: str, data: str, out: Path, resolution: int | None, as_json: bool, **settings: Any) -> None:
    """Train a zoo name, module:factory or best.json; stopped, the same command goes on."""
    from .training.data import load_data
    from .training.recipe import recipe_for
    from .training.run import train

    given = {name: value for name, value in settings.items() if value is not None}
    dataset = load_data(data, resolution=resolution)
    result = train(_architecture(model), dataset, out, recipe_for(len(dataset.train), **given), resolution=resolution,
                   progress=_shows_progress())  # fmt: skip
    if as_json:
        click.echo(result.to_json())
    else:
        test, validation = result.accuracy["test"], result.accuracy["validation"]
        click.echo(f"{test:.2%} of the test images, {validation:.2%} of the validation images; in {out}")


def _architecture(model: str) -> Any:
    """A zoo name or module:factory as it is, the record in a best.json as the Architecture it holds."""
    if not model.endswith(".json"):
        return model
    from .training.saved import read_description

    try:
        return read_description(Path(model).read_text(encoding="utf-8"), Path(model))[0]
    except OSError as error:
        raise PocketzooError(f"{model} cannot be read ({error.strerror}); expected the best.json of a run") from None


@main.command("evaluate", epilog=_example("pocketzoo evaluate runs/first --data digits"))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="DATA", help="Data with the classes that the model was trained on.")
@click.option("--split", type=click.Choice(["test", "val", "train"]), default="test", show_default=True)
@click.option("--trust", multiple=True, metavar="MODULE:FACTORY", help="Import your own network from here.")
@AS_JSON
def evaluate_command(run: Path, data: str, split: str, trust: Sequence[str], as_json: bool) -> None:
    """Accuracy of what a search or training left."""
    from .training.run import evaluate_run

    score = evaluate_run(run, data, split=split, trust=trust)
    if as_json:
        _print_json({"accuracy": score.accuracy, "loss": score.loss, "images": len(score.correct), "split": split})
    else:
        click.echo(f"{score.accuracy:.2%} of {len(score.correct)} {split} images")


@main.command("predict", epilog=_example("pocketzoo predict runs/first pictures/*.png"))
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("--runtime", type=click.Choice(["torch", "onnx"]), default="torch", show_default=True)
@click.option("--trust", multiple=True, metavar="MODULE:FACTORY", help="Import your own network from here.")
@AS_JSON
def predict_command(model: str, images: Sequence[str], runtime: str, trust: Sequence[str], as_json: bool) -> None:
    """Name the class of image files."""
    from .training.run import predict

    predictions = predict(model, images, runtime=runtime, trust=trust)
    if as_json:
        _print_json([p._asdict() for p in predictions])
    else:
        for p in predictions:
            click.echo(f"{p.path}\t{p.label}\t{p.probability:.1%}")


def _shows_progress() -> bool:
    return sys.stderr.isatty()


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, default=str))


def _print_rich(*renderables: Any) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    for renderable in renderables:
        console.print(renderable)


if __name__ == "__main__":
    main()
