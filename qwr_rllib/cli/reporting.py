"""``qwr report``."""

from __future__ import annotations

from pathlib import Path

import click

from qwr_rllib.cli.errors import ConfigError


@click.command()
@click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--out",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The report's folder.",
)
@click.option(
    "--interval",
    "kind",
    type=click.Choice(["iqr", "mean-ci"]),
    default="iqr",
    show_default=True,
    help="What curves show over seeds: median and interquartile range, "
    "or mean and 95 % bootstrap interval.",
)
@click.option("--title", default="Report", help="The page's title.")
def report(paths: tuple[Path, ...], out: Path, kind: str, title: str) -> int:  # fmt: skip
    """Tables and figures of Tune's results, beside the paper's.

    PATH is the folder of a trial, of an experiment, or one with several experiments.
    """
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
    return 0
