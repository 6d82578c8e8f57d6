"""The command ``qwr report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from qwr_rllib.cli.errors import ConfigError
from qwr_rllib.report import counted


def report(paths: Sequence[Path], out: Path, kind: str, title: str) -> None:
    """Runs ``qwr report``."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: expected a folder, {out} is a file")
    try:
        # Imported here because matplotlib is an optional dependency.
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
    trials = counted(summary.num_trials, "trial")
    click.echo(f"{trials}, {left} of them not finished{' (listed in the report)' * bool(left)}")
    for line in summary.unreadable:
        click.echo(f"Left out: {line}")
    click.echo(f"Report: {out / 'report.html'}")
