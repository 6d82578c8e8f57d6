"""The commands ``rllib`` and ``qwr``.

Ray had a command ``rllib`` until 2.41. This one reads the same YAML and Python files, has the same
options, trains any of RLlib's algorithms, and checks everything before Ray starts.

Exit codes: 0 done, 1 the run failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

import qwr_rllib
from qwr_rllib.cli import commands


class CommandGroup(click.Group):
    """A group whose commands return their exit code and whose errors are one line."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Runs the command line and exits; ``--help`` and no arguments at all show the help."""
        try:
            sys.exit(super().main(*args, **{**kwargs, "standalone_mode": False}))
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            click.echo(f"Error: {error.format_message()}", err=True)
            sys.exit(error.exit_code)
        except click.Abort:
            sys.exit(130)


@click.group(cls=CommandGroup)
@click.version_option(qwr_rllib.__version__, prog_name="qwr-rllib", message="%(prog)s %(version)s")
def rllib() -> None:
    """Train and evaluate RLlib's algorithms and Q-Value Weighted Regression."""


@click.group(cls=CommandGroup)
@click.version_option(qwr_rllib.__version__, prog_name="qwr-rllib", message="%(prog)s %(version)s")
def qwr() -> None:
    """Q-Value Weighted Regression on Ray RLlib."""


for _group in (rllib, qwr):
    _group.add_command(commands.train)
    _group.add_command(commands.evaluate)
    _group.add_command(commands.check)
qwr.add_command(commands.report)
qwr.add_command(commands.export)
qwr.add_command(commands.push)
qwr.add_command(commands.record)
qwr.add_command(commands.theorem)
