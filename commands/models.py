"""pocketzoo list and profile: what there is, and what it counts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from ..errors import InvalidSetting, PocketzooError, suggestion
from .options import AS_JSON, COUNT, example, print_json, print_rich
from .saved_model import TRUST, SavedModel, saved_model

if TYPE_CHECKING:
    from ..profiler.report import Profile
    from ..zoo.architecture import Architecture


@click.command("list", epilog=example("pocketzoo list 'shufflenet*'"))
@click.argument("pattern", default="*")
@AS_JSON
def list_command(pattern: str, as_json: bool) -> None:
    """List the models of the zoo with their counts."""
    from ..zoo.index import matching

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


@click.command("profile", epilog=example("pocketzoo profile mobilenet_v2 --resolution 160 --device cpu"))
@click.argument("model")
@click.option("--resolution", type=COUNT, help="Side of the image in pixels; the model's own by default.")
@click.option("--num-classes", type=COUNT, help="Classes; the model's own by default.")
@click.option("--in-channels", type=COUNT, help="Channels of the image; the model's own by default.")
@click.option("--batch", type=COUNT, default=1, show_default=True, help="Images in the batch.")
@click.option(
    "--by", type=click.Choice(["layer", "kind"]), default="kind", show_default=True, help="Rows of the table."
)
@click.option("--device", help="Also measure the latency there: cpu, cuda, ssh://user@host or adb.")
@click.option("--runtime", help="What runs the model there, as for measure; the device's own by default.")
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Threads of the runtime.")
@click.option("--as", "tool", type=click.Choice(["fvcore", "thop", "ptflops"]), help="What that tool prints, and why.")
@click.option("--check", is_flag=True, help="Compare the counts with FlopCounterMode and fvcore.")
@TRUST
@AS_JSON
def profile_command(
    model: str, resolution: int | None, num_classes: int | None, in_channels: int | None, batch: int, by: Any,
    device: str | None, runtime: str | None, threads: int, tool: Any, check: bool, trust: Sequence[str], as_json: bool,
) -> None:  # fmt: skip
    """Count what a network costs, and measure it where a device is named.

    MODEL is a zoo name, module:factory, or what a run left: its folder, a safetensors or a packed file.
    """
    from ..profiler.counters import as_counted_by, cross_check

    if (tool or check) and (device or runtime):
        raise PocketzooError("--as and --check only count: leave out --device and --runtime")
    network = _network(model, num_classes, in_channels, resolution, trust)
    if tool:
        comparison = as_counted_by(network.build(), network.input_shape, tool)
        print_json(comparison.to_dict()) if as_json else print_rich(comparison.table())
    elif check:
        found = cross_check(network.build(), network.input_shape)
        print_json({**asdict(found), "agrees": found.agrees}) if as_json else click.echo(str(found))
    else:
        report = _report(network, device=device, runtime=runtime, threads=threads, batch=batch)
        print_json(report.to_dict()) if as_json else print_rich(report.table(by=by))


def _network(
    model: str, num_classes: int | None, in_channels: int | None, resolution: int | None, trust: Sequence[str]
) -> Architecture | SavedModel:
    """What is saved there, or the Architecture of that name."""
    from ..zoo.architecture import Architecture

    saved = saved_model(model, trust)
    if saved and (num_classes or in_channels):
        raise InvalidSetting(f"{model} has its classes and channels: leave out --num-classes and --in-channels")
    if saved:
        return saved.at(resolution)
    given: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "resolution": resolution}
    return Architecture.of(model, **{name: value for name, value in given.items() if value is not None})


def _report(network: Architecture | SavedModel, **where: Any) -> Profile:
    from ..profiler.report import profile

    if not isinstance(network, SavedModel):
        return profile(network, **where)
    report = profile(network.build(), input_shape=network.input_shape, **where)
    measurement = network.said_in(report.measurement) if report.measurement else None
    return replace(report, name=network.name, measurement=measurement)
