"""Adds a policy that a training saved to the package's pretrained policies.

    python benchmarks/in_process.py Walker2d-v5 --save walker.safetensors --out walker.json
    python benchmarks/pretrained.py walker walker.safetensors \\
        --command "python benchmarks/in_process.py Walker2d-v5 --save walker.safetensors"

Plays episodes and writes the policy and its card below ``qwr_rllib/pretrained/``, where ``rllib
evaluate pretrained:walker`` finds it, and a film of the first episode below ``docs/images/``.
Needs the extra ``video``.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import click
from moviepy import VideoFileClip
from rich.console import Console

from qwr_rllib.cli.evaluation import filmed, opened, play
from qwr_rllib.cli.exporting import read_policy
from qwr_rllib.cli.policies import POLICY_FILE, PRETRAINED
from qwr_rllib.cli.publishing import card

IMAGES = Path("docs/images")
WIDTH, FPS = 160, 15


def write_gif(film: Path, out: Path, seconds: float) -> None:
    with VideoFileClip(str(film)) as clip:
        small = clip.subclipped(0, min(seconds, clip.duration)).resized(width=WIDTH)
        small.write_gif(str(out), fps=FPS, logger=None)


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--command", required=True, help="That trained the policy, for the card.")
@click.option("--note", help="A row of the card.")
@click.option("--episodes", default=20, show_default=True)
@click.option("--seconds", default=6.0, show_default=True, help="Of the GIF.")
def main(
    name: str, file: Path, command: str, note: str | None, episodes: int, seconds: float
) -> None:
    folder, gif = PRETRAINED / name, IMAGES / f"pretrained-{name}.gif"
    console = Console()
    _, _, _, agent, env = opened(console, file, None, None, None, render=True)
    with contextlib.closing(env), tempfile.TemporaryDirectory() as films:
        first = filmed(env, Path(films))
        list(play(agent, first, 0, 1, None))
        first.close()
        write_gif(Path(films, "rl-video-episode-0.mp4"), gif, seconds)
    _, _, _, agent, env = opened(console, file, None, None, None)
    with contextlib.closing(env):
        results = list(play(agent, env, 0, episodes, None))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / POLICY_FILE)
    rows = {"command": f"`{command}`"}
    if note:
        rows["note"] = note
    text = card(read_policy(file).about, results, f"pretrained:{name}", rows)
    (folder / "README.md").write_text(f"{text}\n![The first seconds](../../../{gif})\n")
    click.echo(text)


if __name__ == "__main__":
    main()
