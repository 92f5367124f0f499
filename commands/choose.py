"""pocketzoo pick and leaderboard: which network to take, and the tables behind the answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import AS_JSON, BUDGET_OPTIONS, COUNT, example, print_json

if TYPE_CHECKING:
    from ..leaderboards.pick import Picked, Verdict

RECORDS = click.option(
    "--records", multiple=True, metavar="DIR", help="Folder of records to read instead of pocketzoo's and your own."
)
LIMITS = {**BUDGET_OPTIONS, "latency": "milliseconds an image on --device, such as 20ms"}
LABEL = 50  # characters, at least
SHOWN = {  # figure -> heading, its unit, digits
    "top1_percent": ("top-1, %", 1.0, 1),
    "latency_ms": ("latency, ms", 1.0, 2),
    "macs": ("MACs, M", 1e6, 1),
    "params": ("params, M", 1e6, 2),
    "size_bytes": ("size, MB", 1e6, 2),
}


def limit_options(command: Any) -> Any:
    """The limits of a budget, latency included, as options."""
    for name, help_text in reversed(LIMITS.items()):
        command = click.option(f"--{name}", metavar="LIMIT", help=f"At most: {help_text}.")(command)
    return command


@click.command("pick", epilog=example("pocketzoo pick --latency 20ms --device pixel1 --params 4M --min-top1 60"))
@limit_options
@click.option("--device", metavar="NAME", help="Where the latency holds: cpu, a processor's name, pixel1, ...")
@click.option("--runtime", metavar="NAME", help="The runtime of the latency; the device's usual one by default.")
@click.option("--min-top1", type=click.FloatRange(0, 100), metavar="PERCENT", help="At least: top-1 accuracy.")
@click.option("--family", metavar="PATTERN", help="Only these families, such as 'mobilenet*'.")
@click.option("--dataset", default="imagenet", show_default=True, help="The data set of the accuracy.")
@click.option("--top", type=COUNT, default=5, show_default=True, help="Networks to show.")
@click.option("--why", metavar="NAME", help="Say why this model was or was not taken.")
@RECORDS
@AS_JSON
def pick_command(
    device: str | None, runtime: str | None, min_top1: float | None, family: str | None, dataset: str, top: int,
    why: str | None, records: tuple[str, ...], as_json: bool, **limits: str | None,
) -> None:  # fmt: skip
    """Take the most accurate network that fits a budget."""
    from ..leaderboards.pick import as_dict, best, explain, judge
    from ..search.budget import Budget

    folders = records or None
    budget = Budget(device=device, **limits)
    picked = judge(budget, dataset=dataset, min_top1=min_top1, family=family, runtime=runtime, records=folders)
    if why:
        said = explain(why, picked, folders)
        if as_json:
            print_json([{"network": label, "reasons": reasons} for label, reasons in said])
            return
        for label, reasons in said:
            click.echo(f"{label}: {'; '.join(reasons)}")
        return
    chosen = best(picked)[:top]
    if as_json:
        print_json([as_dict(verdict.row) for verdict in chosen])
        return
    _show(chosen, picked)


def _show(chosen: list[Verdict], picked: Picked) -> None:
    """The winner with the source of each figure, the runners-up, and how the others fell out."""
    first = chosen[0].row
    click.echo(first.network.label)
    for name, (heading, unit, digits) in SHOWN.items():
        if figure := first.cells.get(name):
            click.echo(f"  {heading:12} {_written(figure.value / unit, digits):>9}  {figure}")
    click.echo(f"  {'create':12} {first.network.create}\n")
    columns = {name: shown for name, shown in SHOWN.items() if name in first.cells}
    width = max(LABEL, *(len(verdict.row.network.label) for verdict in chosen))
    click.echo(f"{'rank':4} {'network':{width}}" + "".join(f" {heading:>12}" for heading, _, _ in columns.values()))
    for rank, verdict in enumerate(chosen, 1):
        cells = (verdict.row.cells[name].value / unit for name, (_, unit, _) in columns.items())
        numbers = zip(cells, (digits for _, _, digits in columns.values()), strict=True)
        says = "".join(f" {_written(number, digits):>12}" for number, digits in numbers)
        click.echo(f"{rank:4} {verdict.row.network.label:{width}}{says}")
    total = len(picked.fitting) + len(picked.fallen)
    says = f": {picked.summary} (--why NAME says more)" if picked.fallen else ""
    click.echo(f"\n{len(picked.fitting)} of {total} networks with an accuracy on {picked.dataset} fit{says}")


def _written(number: float, digits: int) -> str:
    """So many decimals, or three digits of what is less than one."""
    return f"{number:.{digits}f}" if number >= 1 else f"{number:.3g}"


@click.group("leaderboard", epilog=example("pocketzoo leaderboard build --out runs/leaderboard"))
def leaderboard_command() -> None:
    """Store records and build tables and a page from them."""


@leaderboard_command.command("build", epilog=example("pocketzoo leaderboard build --out runs/leaderboard"))
@click.option("--out", required=True, metavar="DIR", help="Folder of leaderboard.csv, leaderboard.md, index.html.")
@RECORDS
@AS_JSON
def build_command(out: str, records: tuple[str, ...], as_json: bool) -> None:
    """Make the leaderboard from records, counts and published accuracies."""
    from ..leaderboards.build import build

    written = build(out, records or None)
    if as_json:
        print_json([str(path) for path in written])
        return
    for path in written:
        click.echo(path)


@leaderboard_command.command("add", epilog=example("pocketzoo leaderboard add runs/first"))
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--into", metavar="DIR", help="Folder of records; your own by default.")
@AS_JSON
def add_command(sources: tuple[str, ...], into: str | None, as_json: bool) -> None:
    """Store the result of a run's folder, or measurements of a file or (-) standard input."""
    from ..leaderboards.records import add, parsed, read, user_folder

    given = (parsed(sys.stdin.read(), "standard input") if source == "-" else read(source) for source in sources)
    found = [record for records in given for record in records]
    folder = Path(into) if into else user_folder()
    new = add(found, folder)
    if as_json:
        click.echo(json.dumps({"read": len(found), "added": new, "folder": str(folder)}))
        return
    click.echo(
        f"added {new} of {len(found)} records to {folder}" + ("; the others were there" if new < len(found) else "")
    )
