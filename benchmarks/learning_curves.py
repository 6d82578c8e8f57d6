"""Draws learning curves of Tune results, and keeps their per-iteration numbers as small CSVs.

    python benchmarks/learning_curves.py ~/ray_results/qwr-walker ~/ray_results/qwr-halfcheetah \
        --csv docs/results --out docs/images/learning-curves.png
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import matplotlib as mpl
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt

COLUMNS = {
    "num_env_steps_sampled_lifetime": "env_steps",
    "env_runners/episode_return_mean": "training_return",
    "evaluation/env_runners/episode_return_mean": "evaluation_return",
    "learner/critic_loss": "critic_loss",
    "learner/actor_loss": "actor_loss",
    "learner/q_mean": "q_mean",
    "learner/weight_ess": "weight_ess",
    "time_total_s": "seconds",
}
PAPER = {"Walker2d-v5": 1301, "HalfCheetah-v5": 2323, "Hopper-v5": 1758, "Humanoid-v5": 511}


def curve(experiment: Path) -> tuple[str, pd.DataFrame]:
    """The environment and the rows of the one trial in an experiment's folder."""
    # Not progress.csv: its columns are those of the first iteration, before any evaluation.
    (file,) = experiment.glob("*/result.json")
    results = [json.loads(line) for line in file.read_text().splitlines()]
    frame = pd.json_normalize(results, sep="/")
    return frame["config/env"].iloc[0], frame[list(COLUMNS)].rename(columns=COLUMNS)


@click.command()
@click.argument(
    "experiments", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option("--csv", "csv_dir", type=click.Path(path_type=Path), help="Folder for the numbers.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The picture.")
def main(experiments: tuple[Path, ...], csv_dir: Path | None, out: Path) -> None:
    figure, axes = plt.subplots(
        1, len(experiments), figsize=(4.8 * len(experiments), 3.4), squeeze=False
    )
    for experiment, axis in zip(experiments, axes[0], strict=True):
        env, rows = curve(experiment)
        if csv_dir:
            csv_dir.mkdir(parents=True, exist_ok=True)
            rows.to_csv(csv_dir / f"{experiment.name}.csv", index=False, float_format="%.6g")
        steps = rows.env_steps / 1000
        axis.plot(steps, rows.training_return, color="#0072B2", label="training (noisy policy)")
        evaluated = rows.evaluation_return.notna()
        axis.plot(
            steps[evaluated],
            rows.evaluation_return[evaluated],
            "o-",
            color="#D55E00",
            label="evaluation (mode, 10 episodes)",
        )
        if env in PAPER:
            axis.axhline(PAPER[env], color="0.5", linestyle="--", label="paper, QWR-LSE at 100K")
        axis.set(title=env, xlabel="environment steps (thousands)", ylabel="return")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main()
