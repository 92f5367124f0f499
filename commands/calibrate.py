"""pocketzoo calibrate: measure a device's operators and fit the model that predicts latencies there."""

from __future__ import annotations

import time

import click

from .options import AS_JSON, COUNT, example, print_json


@click.command("calibrate", epilog=example("pocketzoo calibrate --device cpu --runtime onnxruntime --minutes 12"))
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, ssh://user@host or adb.")
@click.option("--runtime", help="eager (cpu, cuda) or onnxruntime; eager by default where it runs.")
@click.option("--threads", type=COUNT, default=1, show_default=True, help="Threads of the runtime.")
@click.option("--minutes", type=click.FloatRange(min=0.1), default=12.0, show_default=True, help="To measure for.")
@click.option("--again", is_flag=True, help="Forget what an earlier calibration measured; otherwise it is added to.")
@AS_JSON
def calibrate_command(
    device: str, runtime: str | None, threads: int, minutes: float, again: bool, as_json: bool
) -> None:
    """Measure networks of the zoo at random widths, operator by operator, and fit a latency model to them.

    Stopped, the same command goes on where it was. `search --latency`, `pick` and `advise` use the model.
    """
    from ..profiler.calibration import calibrate

    start = time.monotonic()

    def tell(networks: int, seconds: float) -> None:
        left = max(0.0, 60 * minutes - seconds)
        click.echo(f"\r{networks} networks measured, {left / 60:.1f} minutes to go ", nl=False, err=True)

    model, path = calibrate(device, runtime, threads=threads, seconds=60 * minutes, again=again, tell=tell)
    error = model.error
    if as_json:
        print_json({"path": str(path), "device": device, "runtime": model.runtime, "error": error.__dict__})
        return
    click.echo("", err=True)
    click.echo(
        f"{device}, {model.runtime}: {error.within_10_percent:.0f} % of networks within 10 %, mean error"
        f" {error.mape_percent:.1f} %, Spearman {error.spearman:.3f} ({error.judged_on});"
        f" {(time.monotonic() - start) / 60:.1f} minutes, in {path}"
    )
