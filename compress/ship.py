"""compress_run: what a search or training left goes through recipes; the smallest good file is tested and kept.

A folder gets `best.pz` and `result.json` of the recipe that was chosen, `steps.csv`, `report.csv`, `recipes.csv`,
`index.html`, and in `recipes/` what every recipe left. Stopped, the same call goes on after the last finished recipe.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import InvalidRun
from ..graph.channel_graph import trace
from ..training.data import DataSet, load_data
from ..training.evaluate import evaluate
from ..training.folder import open_folder, write_text, write_with
from ..training.packed_file import read_packed
from ..training.recipe import Recipe, recipe_for
from ..training.result import Result, provenance
from ..training.saved import PACKED_NAME, RESULT_NAME, load_with_info, weights_file
from .page import write_page
from .recipes import passes, text_of
from .report import TOTAL
from .run import compress_model

TOO_MUCH = "every recipe costs more accuracy than --tolerance: prune and round less, or train longer (epochs=)"
RECIPES, STEPS, REPORT, CHOICE, PAGE = "recipes", "steps.csv", "report.csv", "recipes.csv", "index.html"
TOLERANCE = 0.01  # accuracy on the validation images that a recipe may cost, if nobody says otherwise
WEIGHT_BYTES = 4


@dataclass(frozen=True)
class Compressed:
    """The chosen recipe's Result, and tables: a row per recipe; per pass and recipe; per layer of the chosen model.

    `tolerance` is the accuracy that a recipe might cost.
    """

    result: Result
    recipes: pd.DataFrame
    steps: pd.DataFrame
    layers: pd.DataFrame
    tolerance: float

    def __str__(self) -> str:
        record = self.result.provenance["compression"]
        is_good = self.result.accuracy["validation"] >= record["parent_validation"] - self.tolerance
        return (
            f"{record['recipe']}\n{record['bytes']:,} bytes, {record['rate']:.1f} times less than"
            f" {record['parent_bytes']:,}; {self.result.accuracy['test']:.2%} of the test images,"
            f" {self.result.accuracy['validation']:.2%} of the validation images"
            f" ({record['parent_validation']:.2%} before)" + ("" if is_good else f"\n{TOO_MUCH}")
        )


def compress_run(
    run: str | Path,
    recipes: Sequence[str | Path],
    data: str | Path | DataSet,
    out: str | Path,
    *,
    tolerance: float = TOLERANCE,
    training: Recipe | None = None,
    trust: Sequence[str] = (),
    progress: bool = False,
) -> Compressed:
    """Send a run's model through each recipe and keep the smallest that costs at most `tolerance` of accuracy.

    Chosen on the validation images (the most accurate, where all cost more); the test images are read once, for the
    model that the chosen file gives. Raises InvalidRun when `out` holds something else, and what the passes raise.
    """
    texts = [text_of(passes(recipe)) for recipe in recipes]
    _, architecture, _ = load_with_info(run, trust=trust)
    dataset = data if isinstance(data, DataSet) else load_data(data, resolution=architecture.resolution)
    training = training or recipe_for(len(dataset.train))
    folder = open_folder(out, {
        "kind": "compress", "run": str(run), "weights": weights_file(run).stat().st_size, "data": dataset.hash,
        "recipes": texts, "tolerance": tolerance, "training": asdict(training),
    })  # fmt: skip
    for number, recipe in enumerate(recipes, 1):
        _carry_out(folder / RECIPES / str(number), run, recipe, dataset, training, trust, progress)
    tables = [_table(folder / RECIPES / str(number) / STEPS) for number in range(1, len(texts) + 1)]
    if not (folder / RESULT_NAME).exists():
        choice = _choice(texts, tables, tolerance)
        source = str(data) if isinstance(data, str | Path) else dataset.name
        _keep(folder, choice, tables, run, dataset, training, source, trust, tolerance)
    result = Result.from_json((folder / RESULT_NAME).read_text(encoding="utf-8"))
    return Compressed(result, _table(folder / CHOICE), _table(folder / STEPS), _table(folder / REPORT), tolerance)


def _carry_out(
    folder: Path, run: str | Path, recipe: str | Path, data: DataSet, training: Recipe, trust: Sequence[str],
    progress: bool,
) -> None:  # fmt: skip
    """One recipe, unless it is finished: steps.csv is written last."""
    if (folder / STEPS).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    packed = compress_model(run, recipe, data, training=training, trust=trust, progress=progress)
    packed.save(folder / PACKED_NAME)
    _write_table(folder / REPORT, packed.layers)
    steps = packed.timed_steps()
    _write_table(folder / STEPS, steps.assign(recipe=packed.recipe, seconds=time.perf_counter() - start))


def _choice(texts: Sequence[str], tables: Sequence[pd.DataFrame], tolerance: float) -> pd.DataFrame:
    """A row per recipe: what came out, and which one is chosen."""
    rows = []
    for text, steps in zip(texts, tables, strict=True):
        first, last = steps.iloc[0], steps.iloc[-1]
        dense = int(first["params"]) * WEIGHT_BYTES
        rows.append({
            "recipe": text, "bytes": int(last["bytes"]), "rate": dense / last["bytes"], "params": int(last["params"]),
            "nonzeros": int(last["nonzeros"]), "validation": float(last["accuracy"]),
            "parent_validation": float(first["accuracy"]), "parent_bytes": dense,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    good = table[table["validation"] >= table["parent_validation"] - tolerance]
    chosen = good["bytes"].idxmin() if len(good) else table["validation"].idxmax()
    return table.assign(chosen=table.index == chosen)


def _keep(
    folder: Path, choice: pd.DataFrame, tables: Sequence[pd.DataFrame], run: str | Path, data: DataSet,
    training: Recipe, source: str, trust: Sequence[str], tolerance: float,
) -> None:  # fmt: skip
    """Test the chosen recipe's file and write what the folder is for; result.json last."""
    number = int(choice["chosen"].to_numpy().argmax())
    own, steps = folder / RECIPES / str(number + 1), pd.concat(tables, ignore_index=True)
    row = choice.iloc[number]
    unpacked = read_packed(own / PACKED_NAME, trust=trust)
    layers = _table(own / REPORT)
    final = layers[layers["step"] == layers["step"].max()].drop(columns=["step", "pass"])
    total = final[final["layer"] == TOTAL].iloc[0]
    assert unpacked.architecture is not None  # load_with_info had one
    costs = asdict(trace(unpacked.model, unpacked.architecture.input_shape).price())
    seconds = float(tables[number]["seconds"].iloc[0])
    record = {
        **json.loads(row.drop("chosen").to_json()), "recipes_tried": len(choice), "folder": str(folder),
        "steps": json.loads(tables[number].to_json(orient="records")),
    }  # fmt: skip
    result = Result(
        unpacked.architecture,
        training,
        {"validation": float(row["validation"]), "test": evaluate(unpacked.model, data.test, data.info).accuracy},
        {**costs, "nonzeros": int(total["nonzeros"]), "effective_macs": int(total["effective_macs"]),
         "file_bytes": (own / PACKED_NAME).stat().st_size},
        {**provenance(data.info, seed=training.seed, seconds=seconds, source=source), "compression": record,
         "parent": parent_of(run)},
    )  # fmt: skip
    write_with(folder / PACKED_NAME, lambda path: shutil.copyfile(own / PACKED_NAME, path))
    _write_table(folder / CHOICE, choice)
    _write_table(folder / STEPS, steps)
    _write_table(folder / REPORT, final)
    title = f"{unpacked.architecture.family} on {data.name}, compressed"
    write_page(folder / PAGE, title, str(Compressed(result, choice, steps, final, tolerance)), choice, steps, layers)
    write_text(folder / RESULT_NAME, result.to_json() + "\n")


def parent_of(run: str | Path) -> Mapping[str, Any]:
    """Recipe, accuracy, costs and provenance of the run that is compressed, where it has a Result."""
    path = weights_file(run).with_name(RESULT_NAME)
    if not path.exists():
        return {"run": str(run)}
    parent = Result.from_json(path.read_text(encoding="utf-8"))
    return {"run": str(run), "recipe": asdict(parent.recipe), "accuracy": dict(parent.accuracy),
            "costs": dict(parent.costs), "provenance": dict(parent.provenance)}  # fmt: skip


def _write_table(path: Path, table: pd.DataFrame) -> None:
    write_with(path, lambda temporary: table.to_csv(temporary, index=False))


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InvalidRun(f"{path} cannot be read ({error}); remove its folder, and the same command goes on") from None
