"""pocketzoo train, evaluate and predict: one network, and what a run has left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import PocketzooError
from .options import AS_JSON, COUNT, DATA, example, print_json, shows_progress


@click.command("train", epilog=example("pocketzoo train lenet5 --data data/mnist --epochs 12 --out runs/lenet5"))
@click.argument("model")
@DATA
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the model and its record.")
@click.option("--resolution", type=COUNT, help="Side of the image in pixels; the data's own by default.")
@click.option("--epochs", type=COUNT, help="Epochs.")
@click.option("--lr", type=float, help="Learning rate at its peak.")
@click.option("--batch-size", type=COUNT, help="Images in a batch.")
@click.option("--seed", type=int, help="Seed.")
@AS_JSON
def train_command(model: str, data: str, out: Path, resolution: int | None, as_json: bool, **settings: Any) -> None:
    """Train a zoo name, module:factory or best.json; stopped, the same command goes on."""
    from accelerate import PartialState

    from ..training.data import load_data
    from ..training.recipe import recipe_for
    from ..training.run import train

    given = {name: value for name, value in settings.items() if value is not None}
    dataset = load_data(data, resolution=resolution)
    result = train(_architecture(model), dataset, out, recipe_for(len(dataset.train), **given), resolution=resolution,
                   progress=shows_progress())  # fmt: skip
    if not PartialState().is_main_process:
        return
    if as_json:
        click.echo(result.to_json())
    else:
        test, validation = result.accuracy["test"], result.accuracy["validation"]
        click.echo(f"{test:.2%} of the test images, {validation:.2%} of the validation images; in {out}")


def _architecture(model: str) -> Any:
    """A zoo name or module:factory as it is, the record in a best.json as the Architecture it holds."""
    if not model.endswith(".json"):
        return model
    from ..training.saved import read_description

    try:
        return read_description(Path(model).read_text(encoding="utf-8"), Path(model))[0]
    except OSError as error:
        raise PocketzooError(f"{model} cannot be read ({error.strerror}); expected the best.json of a run") from None


@click.command("evaluate", epilog=example("pocketzoo evaluate runs/first --data digits"))
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="DATA", help="Data with the classes that the model was trained on.")
@click.option("--split", type=click.Choice(["test", "val", "train"]), default="test", show_default=True)
@click.option("--trust", multiple=True, metavar="MODULE:FACTORY", help="Import your own network from here.")
@AS_JSON
def evaluate_command(run: Path, data: str, split: str, trust: Sequence[str], as_json: bool) -> None:
    """Accuracy of what a search or training left."""
    from ..training.run import evaluate_run

    score = evaluate_run(run, data, split=split, trust=trust)
    if as_json:
        print_json({"accuracy": score.accuracy, "loss": score.loss, "images": len(score.correct), "split": split})
    else:
        click.echo(f"{score.accuracy:.2%} of {len(score.correct)} {split} images")


@click.command("predict", epilog=example("pocketzoo predict runs/first pictures/*.png"))
@click.argument("model")
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("--runtime", type=click.Choice(["torch", "onnx"]), default="torch", show_default=True)
@click.option("--trust", multiple=True, metavar="MODULE:FACTORY", help="Import your own network from here.")
@AS_JSON
def predict_command(model: str, images: Sequence[str], runtime: str, trust: Sequence[str], as_json: bool) -> None:
    """Name the class of image files."""
    from ..training.run import predict

    predictions = predict(model, images, runtime=runtime, trust=trust)
    if as_json:
        print_json([p._asdict() for p in predictions])
    else:
        for p in predictions:
            click.echo(f"{p.path}\t{p.label}\t{p.probability:.1%}")
