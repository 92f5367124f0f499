"""The command line: thin commands over the library; results on stdout, progress on stderr, errors in one line."""

from __future__ import annotations

import errno
from typing import Any, NoReturn

import click

from .commands import advise, calibrate, choose, compress, export, latency, models, runs, search, shrink
from .commands.options import example
from .errors import PocketzooError


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


@click.group(
    cls=Commands,
    epilog=example("pocketzoo search mobilenet_v2 --data digits --macs 1M --trials 20 --out runs/first"),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="pocketzoo")
def main() -> None:
    """Say what you can afford and get the best compact vision network for it."""


COMMANDS = (
    models.list_command, models.profile_command, search.search_command, runs.train_command, runs.evaluate_command,
    runs.predict_command, latency.measure_command, calibrate.calibrate_command, advise.advise_command,
    choose.pick_command, choose.leaderboard_command, shrink.shrink_command,
    compress.compress_command, compress.unpack_command, export.export_command,
)  # fmt: skip
for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main()
