"""What ``qwr report`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from qwr_rllib.cli.errors import ConfigError


def report(paths: Sequence[Path], out: Path, kind: str, title: str) -> None:
    """``qwr report``."""
    try:
        # Here, as matplotlib is not installed with the package itself.
        from qwr_rllib.report.page import write
        from qwr_rllib.report.trials import NoResultsError
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("matplotlib", "jinja2", "pandas", "scipy"):
            raise
        raise ConfigError(
            f"`report` needs {error.name}: pip install 'qwr-rllib[report]'"
        ) from error
    try:
        summary = write(paths, out, kind, title)
    except (NoResultsError, OSError) as error:
        raise ConfigError(error) from error
    left = summary.num_trials - summary.num_finished
    click.echo(f"{summary.num_trials} trials, {left} of them not finished (listed in the report)")
    click.echo(f"Report: {out / 'report.html'}")
