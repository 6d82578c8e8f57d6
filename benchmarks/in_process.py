"""Training that starts no Ray: see :mod:`qwr_rllib.local.trainer`.

    python benchmarks/in_process.py Hopper-v5 --config '{"backup_temperature": 0.1}'
    python benchmarks/in_process.py --like results/table1/awr/AWR_Hopper-v5_seed0 --device cuda
    python benchmarks/in_process.py --file tuned_examples/qwr-atari.yaml --device cuda \\
        --checkpoint pong --out pong/result.json --evaluate-every 15 --final-episodes 100

For comparing many settings quickly, and for machines without Ray: an iteration takes about the
learner's time. With ``--checkpoint``, the same command continues a run that was stopped.

Writes a line for each iteration, with the keys of RLlib's ``result.json`` that reports read. The
training return is that of the noisy policy, the evaluation that of its mode. Additional keys:

    learner/q_std        standard deviation of Q over the actions of a state, median of 512 states
    learner/moved        how far the policy moved in the new states: see LocalTrainer.train
    learner/entropy      mean entropy of a policy of discrete actions in 512 states, in nats
    learner/dead_units   share of the critic's last hidden units that are 0 in all of 512 states
    versions/in_process  the device; only runs of this script have it
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import yaml

from qwr_rllib import deployment
from qwr_rllib.learning.config import ALGORITHMS, defaults_of, steps_per_result
from qwr_rllib.local.trainer import REPLAY_FILE, STATE_FILE, LocalTrainer
from qwr_rllib.validation import did_you_mean
from qwr_rllib.versions import versions

# Config keys that are ignored here.
IGNORED = {
    "evaluation_interval", "evaluation_duration", "evaluation_duration_unit", "num_env_runners",
    "num_envs_per_env_runner", "num_gpus", "learner_threads",
}  # fmt: skip


@torch.no_grad()
def diagnostics(trainer: LocalTrainer) -> dict[str, float]:
    """Returns diagnostics of critic and actor in the newest 512 rows."""
    learner, view = trainer.learner, trainer.view
    rows = view.rows[view.inserted[view.rows].argsort()[-512:]]
    obs = learner.networks.normalize(view.observations(rows))
    found = {}
    if learner.config.critic_type == "q":
        critic: Any = learner.critic
        features = critic.features(obs)
        actions, _ = learner.actor.proposals(view.columns["action_dist_inputs"][rows], 8)
        found["q_std"] = critic.q_values(features, actions).std(-1).median().item()
        hidden = critic.body[0](obs)
        found["dead_units"] = (hidden <= 0).all(0).float().mean().item()
    if trainer.spec.discrete:
        logs = learner.actor(obs).log_softmax(-1)
        found["entropy"] = -(logs.exp() * logs).sum(-1).mean().item()
    return found


def json_object(text: str) -> dict[str, Any]:
    """Parses an option's JSON object; the package's own option type needs Ray."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f'expected an object such as {{"key": 1}}, got {text}')
    return value


def settings_of(
    trial: Path | None, file: Path | None, algorithm: str
) -> tuple[dict[str, Any], int | None]:
    """Reads the config of a trial's results or of a YAML file, or an algorithm's defaults.

    Returns:
        The config, and when the file says to stop: environment steps, or the iterations of
        logged data times the environment steps of a result.

    Raises:
        click.UsageError: if the file is not one experiment.
    """
    if trial:
        results = (trial / "result.json").read_text().splitlines()
        config = json.loads(results[-1])["config"]
        return defaults_of("QWR") | config, None  # a later release may have more keys
    if not file:
        return defaults_of(algorithm) | {"env": None}, None
    experiments = list(yaml.safe_load(file.read_text()).values())
    if len(experiments) != 1 or experiments[0].get("run") not in ALGORITHMS:
        raise click.UsageError(f"{file}: expected one experiment of {', '.join(ALGORITHMS)}")
    (spec,) = experiments
    config = defaults_of(spec["run"]) | {"env": spec["env"]}
    config = changed(config, spec.get("config", {}), str(file))
    stop = spec.get("stop", {})
    if "training_iteration" in stop:
        return config, stop["training_iteration"] * steps_per_result(config)
    return config, stop.get("num_env_steps_sampled_lifetime")


def changed(config: dict[str, Any], changes: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the config with changes.

    Raises:
        click.UsageError: for a key that has no effect here.
    """
    changes = {key: value for key, value in changes.items() if key not in IGNORED}
    known = config.keys() - {"env"}
    for key in changes:
        if key not in known:
            raise click.UsageError(f"{where}: unknown config key {key!r}{did_you_mean(key, known)}")
    merged = {key: config[key] | changes.get(key, {}) for key in ("env_config", "model")}
    return config | changes | merged


def evaluation_of(returns: list[float]) -> dict[str, Any]:
    return {
        "env_runners": {
            "episode_return_mean": float(np.mean(returns)),
            "hist_stats": {"episode_reward": returns},
        }
    }


def lines_until(out: Path, iteration: int) -> list[dict[str, Any]]:
    """Returns the lines of an earlier run up to an iteration."""
    if not out.exists():
        return []
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return [row for row in rows if row["training_iteration"] <= iteration]


@click.command()
@click.argument("env_id", metavar="[ENV]", required=False)
@click.option(
    "--like",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A trial's folder, which has the environment, seed and settings.",
)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An experiment in YAML, which has them.",
)
@click.option(
    "--run",
    type=click.Choice(list(ALGORITHMS)),
    default="QWR",
    show_default=True,
    help="The algorithm whose defaults hold without --like and --file.",
)
@click.option("--iterations", type=click.IntRange(1), help="Default: the file's stop, or 100.")
@click.option("--seed", type=int, show_default="the trial's or file's, or 0")
@click.option(
    "--config",
    "given",
    type=json_object,
    default="{}",
    metavar="JSON",
    help="Changes to the settings of learner, replay, networks and environment.",
)
@click.option(
    "--evaluate-every",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Results, each of n_interactions environment steps or min_sample_timesteps_per_iteration.",
)
@click.option(
    "--episodes", type=click.IntRange(1), default=10, show_default=True, help="Of an evaluation."
)
@click.option(
    "--final-episodes",
    type=click.IntRange(0),
    show_default="as the others",
    help="Of the last evaluation; 0 for none.",
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Default: stdout.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the trained policy here, as safetensors.",
)
@click.option(
    "--checkpoint",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep checkpoints here, and go on from the one that is there.",
)
@click.option(
    "--checkpoint-every", type=click.IntRange(1), default=5, show_default=True, help="Iterations."
)
def main(
    env_id: str | None,
    like: Path | None,
    file: Path | None,
    run: str,
    iterations: int | None,
    seed: int | None,
    given: dict[str, Any],
    evaluate_every: int,
    episodes: int,
    final_episodes: int | None,
    device: str,
    threads: int,
    out: Path | None,
    save: Path | None,
    checkpoint: Path | None,
    checkpoint_every: int,
) -> None:  # fmt: skip
    if like and file:
        raise click.UsageError("--like and --file do not go together")
    if checkpoint and not out:
        raise click.UsageError("--checkpoint needs --out, whose lines it goes on with")
    config, until = settings_of(like, file, run)
    config = changed(config, given, "--config")
    config["env"] = env_id or config["env"]
    if not config["env"]:
        raise click.UsageError("needs an environment, --like or --file")
    config["seed"] = (config["seed"] or 0) if seed is None else seed
    per_iteration = steps_per_result(config)
    if iterations or not until:
        until = (iterations or 100) * per_iteration
    torch.set_num_threads(threads)
    try:
        trainer = LocalTrainer(config, device, threads)
    except (ValueError, RuntimeError) as error:
        raise click.UsageError(str(error)) from error
    on_gpu = device.startswith("cuda")
    made_with = versions() | {"in_process": torch.cuda.get_device_name() if on_gpu else device}

    def progress() -> int:
        """Returns the environment steps, which iterations on logged data count as if they were."""
        return trainer.num_env_steps if trainer.collects else trainer.iteration * per_iteration

    before: list[dict[str, Any]] = []
    if checkpoint and out and (checkpoint / STATE_FILE).exists():
        # A finished run has no replay and can still be evaluated.
        finished = not (checkpoint / REPLAY_FILE).exists()
        trainer.restore(checkpoint, replay=not finished)
        if finished and progress() < until:
            raise click.UsageError(
                f"checkpoint {checkpoint} has no {REPLAY_FILE} to go on from: its run ended at "
                f"{progress()} steps, so that {until} steps need a new run"
            )
        before = lines_until(out, trainer.iteration)
        click.echo(f"goes on after iteration {trainer.iteration}", err=True)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(json.dumps(row, default=str) + "\n" for row in before))
    earlier = before[-1]["time_total_s"] if before else 0.0
    started = time.perf_counter()

    def emit(row: dict[str, Any]) -> None:
        line = json.dumps(row, default=str)
        if out:
            with open(out, "a") as lines:
                lines.write(line + "\n")
        else:
            click.echo(line)

    row: dict[str, Any] = {}
    evaluated = progress() // (evaluate_every * per_iteration)
    while progress() < until:
        metrics = trainer.train()
        steps = progress()
        done = steps >= until
        row = {
            "training_iteration": trainer.iteration,
            "num_env_steps_sampled_lifetime": trainer.num_env_steps,
            "time_total_s": earlier + time.perf_counter() - started,
            "env_runners": {
                "episode_return_mean": float(np.mean(trainer.runner.returns or [np.nan])),
            },
            "learner": metrics | diagnostics(trainer),
            "done": done,
        }
        due = steps // (evaluate_every * per_iteration)
        if due > evaluated and not done:
            row["evaluation"] = evaluation_of(trainer.evaluate(episodes))
        evaluated = due
        if done:
            row["env_runners"]["hist_stats"] = {"episode_reward": list(trainer.runner.returns)}
            row |= {"config": config, "versions": made_with}
            row["date"] = time.strftime("%Y-%m-%d_%H-%M-%S")
        if out or not done:  # without a file, the last line is printed after its evaluation
            emit(row)
        if checkpoint and (done or trainer.iteration % checkpoint_every == 0):
            # After the end only the evaluation is left, which needs no replay.
            trainer.save(checkpoint, replay=not done)
    row = row or before[-1]
    if "evaluation" not in row and (
        count := episodes if final_episodes is None else final_episodes
    ):
        row["evaluation"] = evaluation_of(trainer.evaluate(count))
        if out:
            rows = [*lines_until(out, trainer.iteration - 1), row]
            out.write_text("".join(json.dumps(each, default=str) + "\n" for each in rows))
        else:
            emit(row)
    if save:
        spaces = trainer.runner.env.observation_space, trainer.runner.env.action_space
        about = deployment.describe(trainer.spec, *spaces, config, trainer.num_env_steps)
        deployment.save(save, trainer.acting_state(), about)


if __name__ == "__main__":
    main()
