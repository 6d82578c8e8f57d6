"""``qwr push``: publishes a policy, a card and optionally a film on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from qwr_rllib.cli.errors import ConfigError
from qwr_rllib.cli.evaluation import EpisodeResult, filmed, opened, play
from qwr_rllib.cli.exporting import read_policy
from qwr_rllib.cli.policies import NO_HUB, POLICY_FILE
from qwr_rllib.deployment import save_safetensors
from qwr_rllib.report.statistics import interval

CARD = """
# {algorithm} on {env}

A policy that was trained by Q-Value Weighted Regression or a baseline of it (qwr-rllib).

| | |
| --- | --- |
| task | {env} |
| algorithm | {algorithm} |
| trained | {trained} |
| evaluation | {evaluation} |
| made with | {versions} |
{more}
It takes the most likely action, without noise. The interval is over the episodes of this one
policy: policies of other training seeds differ more. Watch it with

```
rllib evaluate {name} --video DIR
```
"""


def card(
    about: dict[str, Any], results: Sequence[EpisodeResult], name: str, more: dict[str, str]
) -> str:
    """Returns a model card in the Hub's format.

    Args:
        about: see :func:`qwr_rllib.deployment.describe`.
        results: the evaluation's episodes.
        name: the policy's name for ``rllib evaluate``.
        more: further rows of the table.
    """
    returns = [result.episode_return for result in results]
    mean, limits = np.mean(returns), interval([returns], np.mean)
    evaluation = f"{mean:.1f}"
    if limits:
        evaluation += f" [{limits.low:.1f}, {limits.high:.1f}]"
    steps = "an unknown number of" if about["env_steps"] is None else about["env_steps"]
    head = {
        "library_name": "qwr-rllib",
        "tags": ["reinforcement-learning", about["algorithm"], about["env"]],
        "model-index": [
            {
                "name": f"{about['algorithm']}-{about['env']}",
                "results": [
                    {
                        "task": {"type": "reinforcement-learning"},
                        "dataset": {"name": about["env"], "type": about["env"]},
                        "metrics": [
                            {
                                "type": "mean_reward",
                                "value": f"{mean:.2f} +/- {np.std(returns):.2f}",
                            }
                        ],
                    }
                ],
            }
        ],
    }
    body = CARD.format(
        algorithm=about["algorithm"],
        env=about["env"],
        trained=f"{steps} environment steps, seed {about['seed']}",
        evaluation=f"**{evaluation}** mean return and its 95 % bootstrap interval, {len(returns)} "
        f"episodes (reset seeds {results[0].seed} to {results[-1].seed}, lowest "
        f"{min(returns):.1f}, highest {max(returns):.1f})",
        versions=", ".join(f"{key} {value}" for key, value in about["versions"].items()),
        more="".join(f"| {key} | {value} |\n" for key, value in more.items()),
        name=name,
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{body}"


def push(
    checkpoint: Path,
    repo: str,
    episodes: int,
    private: bool,
    video: bool,
    algo: str | None,
    env: str | None,
    seed: int,
    modules_file: Path | None,
) -> None:
    """Runs ``qwr push``."""
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise ConfigError(NO_HUB) from error
    console = Console()
    found, _, _, agent, made = opened(console, checkpoint, algo, env, modules_file, render=video)
    policy = read_policy(found)
    with contextlib.closing(made), tempfile.TemporaryDirectory() as name:
        folder = Path(name, "repo")
        folder.mkdir()
        environment = filmed(made, Path(name)) if video else made
        results = list(play(agent, environment, seed, episodes, None))
        environment.close()  # writes the last episode's video
        for film in Path(name).glob("*-episode-0.mp4"):
            film.rename(folder / "replay.mp4")  # the Hub shows it beside the card
        save_safetensors(policy, folder / POLICY_FILE)
        (folder / "README.md").write_text(card(policy.about, results, f"hf:{repo}", {}))
        try:
            api = HfApi()
            url = api.create_repo(repo, private=private or None, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Add a policy")
        except Exception as error:  # from the client, its HTTP library or the connection
            raise ConfigError(f"cannot push to {repo!r}: {error}") from error
    console.print(f"Pushed to {url}", highlight=False, soft_wrap=True)
