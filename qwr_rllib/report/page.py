"""The files of a report: tables, figures, one Markdown file, one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure

from qwr_rllib.report import counted, figures, tables, trials
from qwr_rllib.report.figures import Drawing
from qwr_rllib.report.groups import group
from qwr_rllib.report.tables import Table
from qwr_rllib.report.trials import FINISHED, NoResultsError, Trial

STATISTICS = (
    "IQM is the interquartile mean over seeds (the plain mean of fewer than four); brackets are "
    "95 % stratified bootstrap intervals, percentiles of 10 000 draws of the seeds, by SciPy. Of "
    "a single seed there is no interval. Trials that are unfinished or failed are in no average."
)


@dataclass(frozen=True)
class Summary:
    """The outcome of a report."""

    num_trials: int
    num_finished: int
    files: tuple[Path, ...]
    unreadable: tuple[str, ...] = ()
    """One text for each trial with unreadable lines."""


def write(paths: Sequence[Path], out: Path, kind: str = "iqr", title: str = "Report") -> Summary:
    """Writes a report on the trials in Tune's folders at ``paths`` into the folder ``out``.

    Args:
        paths: Folders of trials, of experiments, or of several of these.
        out: Is created if missing; files of an earlier report in it are replaced.
        kind: What curves show: "iqr", median and interquartile range, or "mean-ci", mean and 95 %
            bootstrap interval.
        title: The page's title.

    Raises:
        NoResultsError: naming the path without results.
        OSError: ``out`` cannot be written.
    """
    found = trials.read(paths)
    groups = group(found)
    if not groups:
        raise NoResultsError(f"{paths[0]}: no trial's results have a config")
    all_tables = [
        tables.final_scores(groups),
        tables.beside_the_paper(groups),
        tables.human_normalized(groups),
        tables.left_out(found, groups),
        tables.all_trials(found),
    ]
    shown = [table for table in all_tables if table is not None]
    drawings = figures.draw(groups, kind)

    written: list[Path] = []
    for folder in ("tables", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for table in shown:
        for suffix, text in (
            ("csv", table.frame.to_csv(index=False, float_format="%.6g")),
            ("md", table.markdown + "\n"),
        ):
            written.append(out / "tables" / f"{table.name}.{suffix}")
            written[-1].write_text(text)
    written.append(out / "tables" / "results.csv")
    tables.results(found).to_csv(written[-1], index=False, float_format="%.6g")
    pictures = []
    for drawing in drawings:
        files = {suffix: _image(drawing.figure, suffix) for suffix in ("png", "svg")}
        pictures.append(files["svg"])
        for suffix, data in files.items():
            written.append(out / "figures" / f"{drawing.name}.{suffix}")
            written[-1].write_bytes(data)
    finished = sum(trial.status == FINISHED for trial in found)
    lead = (
        f"{counted(len(found), 'trial')}, {finished} of them finished, "
        f"{counted(len(groups), 'group')}."
    )
    unreadable = tuple(
        f"{trial.name}: {trials.unreadable_text(trial.unreadable)}"
        for trial in found
        if trial.unreadable
    )
    if unreadable:
        lead += f" Left out: {'; '.join(unreadable)}."
    for name, text in (
        ("report.md", _markdown(title, lead, found, shown, drawings)),
        ("report.html", _html(title, lead, found, shown, drawings, pictures)),
    ):
        written.append(out / name)
        written[-1].write_text(text)
    return Summary(len(found), finished, tuple(written), unreadable)


def _image(figure: Figure, suffix: str) -> bytes:
    file = io.BytesIO()
    # No date, so that the same results give the same file.
    metadata = {"Date": None} if suffix == "svg" else {}
    with mpl.rc_context(figures.STYLE):
        figure.savefig(file, format=suffix, dpi=130, metadata=metadata)
    # The layout takes a third of the time and is the same for the next format.
    figure.set_layout_engine("none")
    return file.getvalue()


def _versions(found: Sequence[Trial]) -> list[str]:
    """Returns one line for each set of versions that trials were made with."""
    sets: dict[str, int] = {}
    for trial in found:
        text = ", ".join(f"{name} {version}" for name, version in trial.versions.items())
        if len(trial.rows):
            sets[text or "not recorded"] = sets.get(text or "not recorded", 0) + 1
    return [f"{text} ({counted(count, 'trial')})" for text, count in sets.items()]


def _markdown(
    title: str,
    lead: str,
    found: Sequence[Trial],
    shown: Sequence[Table],
    drawings: Sequence[Drawing],
) -> str:
    parts = [f"# {title}", lead, STATISTICS]
    for table in shown:
        if table.name != "trials":
            parts += [f"## {table.title}", table.markdown, *table.notes]
    for drawing in drawings:
        image = f"![{drawing.title}](figures/{drawing.name}.png)"
        parts += [f"## {drawing.title}", image, drawing.caption]
    parts.append("## How it was made")
    noted = trials.commands(found)
    parts.append("\n".join(["```", *noted, "```"]) if noted else "Commands: not recorded.")
    parts.append("\n".join(f"- {line}" for line in _versions(found)))
    parts.append("All trials are in [tables/trials.md](tables/trials.md).")
    return "\n\n".join(parts) + "\n"


def _html(
    title: str,
    lead: str,
    found: Sequence[Trial],
    shown: Sequence[Table],
    drawings: Sequence[Drawing],
    pictures: Sequence[bytes],
) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    source = resources.files("qwr_rllib.report").joinpath("page.html.jinja").read_text()
    return environment.from_string(source).render(
        title=title,
        lead=lead,
        statistics=STATISTICS,
        made=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        tables=[
            {
                "title": table.title,
                "columns": [str(name).replace("**", "") for name in table.text.columns],
                "rows": table.text.astype(str).values.tolist(),
                "notes": table.notes,
                "folded": table.name == "trials",
            }
            for table in shown
        ],
        figures=[
            {
                "title": drawing.title,
                "caption": drawing.caption,
                "data": base64.b64encode(picture).decode(),
            }
            for drawing, picture in zip(drawings, pictures, strict=True)
        ],
        commands=trials.commands(found),
        versions=_versions(found),
    )
