"""What the commands share: options, and how they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

BUDGET_OPTIONS = {
    "macs": "multiply-accumulates an image, such as 2M",
    "params": "parameters, such as 300k",
    "size": "bytes of the weights as 32-bit numbers, such as 500KB",
    "memory": "peak activation memory, such as 256KB",
    "energy": "energy an image by the table of operation energies, such as 2mJ",
    "latency": "predicted milliseconds an image on --device, such as 8ms",
}
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
COUNT = click.IntRange(min=1)
DATA = click.option(
    "--data", required=True, metavar="DATA", help="digits, a folder of parquet files or of images, hub:owner/name."
)

MULTIPLE = click.option(
    "--multiple", type=COUNT, default=1, show_default=True,
    help="Widths in multiples of this, where a layer has as many channels; 16 for ONNX Runtime's convolutions.",
)  # fmt: skip


def example(line: str) -> str:
    """A command's epilog."""
    return f"\b\nExample:\n  {line}"


def budget_options(command: Any) -> Any:
    """The limits of a budget as options, each at most once."""
    for name, help_text in reversed(BUDGET_OPTIONS.items()):
        limit = click.option(f"--{name}", metavar="LIMIT", multiple=True, callback=_once, help=f"At most: {help_text}.")
        command = limit(command)
    return command


def _once(context: click.Context, option: click.Parameter, given: Sequence[str]) -> str | None:
    """The one value; click itself would silently take the last of several."""
    if len(given) > 1:
        raise click.UsageError(
            f"--{option.name} is given {len(given)} times ({', '.join(given)}); give one limit", context
        )
    return given[0] if given else None


def shows_progress() -> bool:
    """Whether somebody watches standard error."""
    return sys.stderr.isatty()


def print_json(value: Any) -> None:
    """One line of JSON on standard output."""
    click.echo(json.dumps(value, default=str))


def print_rich(*renderables: Any) -> None:
    """Tables, as wide as the terminal; 120 columns into a file."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    for renderable in renderables:
        console.print(renderable)
