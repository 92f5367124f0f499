"""pocketzoo measure: what models really take on a device."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import InvalidRun, InvalidSetting, PocketzooError
from .options import AS_JSON, COUNT, example, print_json, print_rich, shows_progress
from .saved_model import TRUST, saved_model

if TYPE_CHECKING:
    import pandas as pd

    from ..profiler.measure import Model
    from ..profiler.measurement import Measurement

Cut = tuple[str, str, int]  # model, runtime, batch
CUTTING_COSTS = 0.1  # by which a cut pass may be longer than the whole one before we say so
WHOLE_PASS = ("dtype", "seconds", "tolerance", "rounds", "csv")


class Listed(click.ParamType[Any]):
    """Values between commas."""

    def __init__(self, kind: click.ParamType[Any], name: str) -> None:
        self.kind, self.name = kind, name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Each value, by its own kind."""
        if not isinstance(value, str):
            return value
        return [self.kind.convert(part.strip(), param, ctx) for part in value.split(",")]


class Share(click.ParamType[float]):
    """A share of one: 2% or 0.02."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{value!r} is no share such as 2%", param, ctx)
        if not 0 < share < 1:
            self.fail(f"{value!r} is not between 0% and 100%", param, ctx)
        return share


@click.command(
    "measure", epilog=example("pocketzoo measure mobilenet_v2 resnet18 --runtime eager,onnxruntime --threads 1")
)
@click.argument("models", nargs=-1, metavar="MODEL...")
@click.option("--zoo", is_flag=True, help="Every model of the zoo.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, ssh://user@host or adb.")
@click.option("--runtime", type=Listed(click.STRING, "name,..."), help="eager, eager-channels-last, compile, "
              "onnxruntime, onnxruntime-int8, openvino; graph on cuda.")  # fmt: skip
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Threads of the runtime.")
@click.option("--batch", type=Listed(COUNT, "count,..."), default="1", show_default=True, help="Images in a batch.")
@click.option("--resolution", type=COUNT, help="Side of the image in pixels; the model's own by default.")
@click.option("--dtype", type=Listed(click.STRING, "name,..."), help="fp32; on cuda also tf32, fp16, bf16.")
@click.option("--seconds", type=click.FloatRange(min=0), default=30, show_default=True,
              help="At most, for each runtime, batch and dtype; the least rounds are finished first.")  # fmt: skip
@click.option("--tolerance", type=Share(), default="2%", show_default=True,
              help="Half the 95 % interval over the median at which a model is known well enough.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=6), default=10, show_default=True, help="At least.")
@click.option("--csv", "csv", type=click.Path(dir_okay=False, path_type=Path), help="Also write a table to a new file.")
@click.option("--by-kind", is_flag=True, help="Cut each pass by kind of operator instead (eager, onnxruntime).")
@TRUST
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE.html",
              help="With --by-kind: also draw a stacked bar for each model into a new page.")  # fmt: skip
@AS_JSON
@click.pass_context
def measure_command(
    context: click.Context, models: Sequence[str], device: str, runtime: Sequence[str] | None, threads: int,
    batch: Sequence[int], resolution: int | None, dtype: Sequence[str] | None, seconds: float, tolerance: float,
    rounds: int, csv: Path | None, by_kind: bool, picture: Path | None, as_json: bool, zoo: bool, trust: Sequence[str],
) -> None:  # fmt: skip
    """Measure the latency of networks.

    A MODEL is a zoo name, module:factory, or what a run left: its folder, a safetensors or a packed file.
    """
    from ..profiler.measure import checked, default_runtime, measure_in_batches
    from ..profiler.runner import Protocol

    models = _wanted(models, zoo)
    _check_new(csv)
    _check_new(picture)
    saved = {name: there.at(resolution) for name in models if (there := saved_model(name, trust))}
    given = {name: saved[name].with_shape if name in saved else name for name in models}
    if by_kind:
        _refuse(context, WHOLE_PASS, "belongs to whole passes, not to --by-kind")
        cuts = list(itertools.product(models, runtime or [default_runtime(device)], batch))
        _by_kind(cuts, given, device, threads, resolution, picture, as_json)
        return
    _refuse(context, ("picture",), "needs --by-kind")
    protocol = Protocol(threads=threads, rounds=rounds, seconds=seconds, tolerance=tolerance)
    precisions: Sequence[str | None] = dtype or [None]
    runs = list(itertools.product(runtime or [default_runtime(device)], precisions, batch))
    for name, precision, _ in runs:
        checked(device, name, precision)  # all of them, before the first is measured
    found: list[Measurement] = []
    with _Progress() as progress:
        for name, precision, images in runs:
            parts = measure_in_batches(
                given, device=device, runtime=name, threads=threads, batch=images, resolution=resolution,
                input_shape=None, dtype=precision, protocol=protocol,
                progress=partial(progress.tell, f"{name}, batch {images}"),
            )  # fmt: skip
            try:
                for part in parts:
                    found += [saved[m.model].said_in(m) if m.model in saved else m for m in part]
            except KeyboardInterrupt:
                progress.stopped = f"{len(found)} of {len(runs) * len(models)} measurements were finished"
                break
    if csv is not None:
        _write_csv(csv, found)
    if as_json:
        print_json([measurement.to_dict() for measurement in found])
    elif found:
        print_rich(*measurement_table(found))
    if progress.stopped:
        click.echo(f"pocketzoo: stopped; {progress.stopped} and are above", err=True)
        raise click.exceptions.Exit(130)


def _refuse(context: click.Context, options: Sequence[str], why: str) -> None:
    given = [name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise InvalidSetting(f"--{given[0]} {why}")


def _by_kind(cuts: Sequence[Cut], given: Mapping[str, Model], device: str, threads: int, resolution: int | None,
             picture: Path | None, as_json: bool) -> None:  # fmt: skip
    from ..profiler.breakdown import breakdown, check, figure
    from ..training.folder import write_text

    for _, runtime, _ in cuts:
        check(device, runtime)  # all of them, before the first is measured
    tables: dict[Cut, pd.DataFrame] = {}
    with _Progress() as progress:
        for model, runtime, batch in cuts:
            progress.tell(f"{runtime}, batch {batch}", f"cutting {model} ({len(tables) + 1} of {len(cuts)})")
            tables[model, runtime, batch] = breakdown(
                given[model], runtime=runtime, device=device, threads=threads, resolution=resolution, batch=batch
            )
    if picture is not None:
        named = {f"{model}, {runtime}, batch {batch}": table for (model, runtime, batch), table in tables.items()}
        write_text(picture, figure(named).to_html(include_plotlyjs=True, config={"displaylogo": False}))
    if as_json:
        print_json([
            {"model": model, "runtime": runtime, "batch": batch, "device": device, "threads": threads,
             "total_ms": table.attrs["total_ms"], "kinds": table.to_dict("records")}
            for (model, runtime, batch), table in tables.items()
        ])  # fmt: skip
    else:
        print_rich(*(shown for cut, table in tables.items() for shown in kind_table(cut, table)))


def kind_table(cut: Cut, breakdown: pd.DataFrame) -> list[Any]:
    """A row for each kind of operator, in the order of the groups; below, what a reader must know of the sum."""
    from rich.box import SIMPLE
    from rich.table import Table

    model, runtime, batch = cut
    table = Table(title=f"{model}, {runtime}, batch {batch}: {breakdown.attrs['total_ms']:.4g} ms", box=SIMPLE,
                  padding=(0, 1, 0, 0))  # fmt: skip
    for heading in ("group", "kind"):
        table.add_column(heading, no_wrap=True)
    for heading in ("operators", "ms", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in breakdown.to_dict("records"):
        alone = row["kind"] == row["group"]
        table.add_row("" if alone else row["group"], row["kind"], str(row["operators"] or ""), f"{row['ms']:.4g}",
                      f"{row['share']:.1%}")  # fmt: skip
    more = breakdown["ms"].sum() / breakdown.attrs["total_ms"] - 1
    if more <= CUTTING_COSTS:
        return [table]
    warning = (
        f"warning: cut, the pass took {more:.0%} longer than whole: cutting costs time, and turns of other programs "
        "count in operators; repeat on a quiet machine before trusting the shares"
    )
    return [table, warning]


class _Progress:
    """One line on standard error, where somebody watches it."""

    stopped = ""

    def __enter__(self) -> _Progress:
        from rich.console import Console

        self._status = Console(stderr=True).status("starting") if shows_progress() else None
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self, run: str, text: str) -> None:
        """Replace the line."""
        if self._status is not None:
            self._status.update(f"{run}: {text}")


def measurement_table(found: Sequence[Measurement]) -> list[Any]:
    """A row for each measurement; below, what a reader must know of them."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for heading in ("input", "runtime", "dtype"):
        table.add_column(heading, no_wrap=True)
    for heading in ("median", "±", "p95", "images/s", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for m in found:
        half = (m.high_ms - m.low_ms) / 2 / m.median_ms
        table.add_row(
            m.model, "x".join(map(str, m.input_shape)), m.runtime, m.dtype, f"{m.median_ms:.4g} ms", f"{half:.1%}",
            f"{m.percentiles_ms['p95']:.4g} ms", f"{m.images_per_second:.4g}", f"{m.ratio:.3f}",
        )  # fmt: skip
    return [table, *_notes(found)]


def _notes(found: Sequence[Measurement]) -> list[str]:
    """Machine, versions and date, what the columns mean, and every warning once."""
    stamp = found[0].stamp
    versions = {name: version for m in found for name, version in m.versions.items()}
    place = stamp.get("accelerator", stamp["processor"])
    lines = [
        f"{found[0].device}: {place}, {stamp['cores']} processors, {stamp['system']}; {found[0].threads} thread(s); "
        f"{', '.join(f'{name} {version}' for name, version in versions.items())}; {stamp['date']}",
        f"±: half the 95 % interval of the median; ratio: to {found[0].reference} in the same rounds",
    ]
    warned = dict.fromkeys((m.runtime, m.input_shape[0], warning) for m in found for warning in m.warnings)
    return [*lines, *(f"warning ({runtime}, batch {batch}): {text}" for runtime, batch, text in warned)]


def _wanted(models: Sequence[str], zoo: bool) -> Sequence[str]:
    """The models that were named, or all of them."""
    from ..zoo.registry import list_models

    if zoo == bool(models):
        raise click.UsageError("name models to measure, or say --zoo for every one")
    if len(set(models)) < len(models):
        raise InvalidSetting("a model is there twice; give each once")
    return list_models("*") if zoo else models


def _check_new(file: Path | None) -> None:
    if file is None:
        return
    if file.exists():
        raise InvalidRun(f"{file} is there already; give a new name, or move it away")
    if not file.absolute().parent.is_dir():
        raise PocketzooError(f"{file} cannot be written: there is no folder {file.parent}")


def _write_csv(file: Path, found: Sequence[Measurement]) -> None:
    import pandas as pd

    from ..training.folder import write_with

    rows = [
        {**m.to_dict(), "architecture": json.dumps(m.architecture), "input_shape": "x".join(map(str, m.input_shape)),
         "warnings": "; ".join(m.warnings), "images_per_second": m.images_per_second}
        for m in found
    ]  # fmt: skip
    table = pd.json_normalize(rows, sep=".")
    write_with(file, lambda temporary: table.to_csv(temporary, index=False))
