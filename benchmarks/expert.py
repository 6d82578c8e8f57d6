"""Trains an expert with Stable-Baselines3 and records it as a Minari data set.

    pip install -e '.[offline]' 'stable-baselines3>=2.4,<3'
    python benchmarks/expert.py HalfCheetah-v5 --dataset-id halfcheetah/expert-v0

``--library sbx`` (``pip install sbx-rl``) uses the same algorithms in JAX, whose compiled steps
take half the time on a CPU. Neither library is a dependency of the package. The expert is the
policy with the best evaluation during training (10 episodes, every 5 % of the steps). It is saved
in ``--folder``, from where ``--record-only`` loads it. The data set holds ``--episodes`` episodes
of the expert, with the mode action or with its own noise (for MuJoCo, 1000 steps each unless it
falls). ``offline`` reads the data set.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.monitor import Monitor


def train(args: argparse.Namespace, algorithm: type[BaseAlgorithm]) -> None:
    """Trains an expert and saves the best policy in ``best_model.zip``."""
    freq = max(1, args.steps // 20)
    evaluation = EvalCallback(
        Monitor(gym.make(args.env)),
        n_eval_episodes=10,
        eval_freq=freq,
        best_model_save_path=str(args.folder),
        log_path=str(args.folder),
        callback_on_new_best=StopTrainingOnRewardThreshold(args.enough),
    )
    model = algorithm(
        "MlpPolicy",
        args.env,
        learning_starts=min(10_000, args.steps // 10),
        batch_size=args.batch_size,
        policy_kwargs={"net_arch": [args.width, args.width]},
        seed=args.seed,
        verbose=0,
    )
    model.learn(args.steps, callback=evaluation, progress_bar=args.progress)


def play(args: argparse.Namespace, model: BaseAlgorithm) -> list[EpisodeBuffer]:
    """Plays episodes of a policy, with seeds that the training did not use."""
    env = gym.make(args.env)
    buffers = []
    for i in range(args.episodes):
        seed = 10_000 + i
        observation, _ = env.reset(seed=seed)
        columns: dict[str, list] = {
            name: []
            for name in ("observations", "actions", "rewards", "terminations", "truncations")
        }
        columns["observations"].append(observation)
        over = False
        while not over:
            action, _ = model.predict(observation, deterministic=not args.explore)
            observation, reward, terminated, truncated, _ = env.step(action)
            values = (observation, action, float(reward), terminated, truncated)
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
            over = terminated or truncated
        buffers.append(EpisodeBuffer(id=i, seed=seed, infos={}, **columns))
    return buffers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", help="a Gymnasium id with continuous actions")
    parser.add_argument("--dataset-id", required=True, help="such as hopper/expert-v0")
    parser.add_argument(
        "--library", choices=["stable_baselines3", "sbx"], default="stable_baselines3"
    )
    parser.add_argument("--algo", choices=["SAC", "TD3"], default="SAC")
    parser.add_argument("--steps", type=int, default=1_000_000, help="of training, at most")
    parser.add_argument("--enough", type=float, default=np.inf, help="an evaluation that ends it")
    parser.add_argument("--width", type=int, default=256, help="of the two hidden layers")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--episodes", type=int, default=50, help="recorded")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="default experts/ENV-ALGO")
    parser.add_argument("--explore", action="store_true", help="record with the policy's own noise")
    parser.add_argument("--record-only", action="store_true", help="the expert is there already")
    parser.add_argument("--progress", action="store_true", help="a bar; needs tqdm and rich")
    args = parser.parse_args()
    args.folder = args.folder or Path("experts") / f"{args.env}-{args.algo}"
    if args.dataset_id in minari.list_local_datasets():
        parser.error(f"there is a data set {args.dataset_id} already")
    if args.record_only and not (args.folder / "best_model.zip").exists():
        parser.error(f"there is no {args.folder}/best_model.zip")
    library = import_module(args.library)
    algorithm = getattr(library, args.algo)
    if not args.record_only:
        train(args, algorithm)
    model = algorithm.load(args.folder / "best_model.zip", device="cpu")
    buffers = play(args, model)
    returns = [sum(buffer.rewards) for buffer in buffers]
    lengths = [len(buffer.rewards) for buffer in buffers]
    score = (
        f"{args.algo} of {args.library} {library.__version__}, best of its "
        f"training at {model.num_timesteps} steps, seed {model.seed}: "
        f"return {np.mean(returns):.1f} ± {np.std(returns):.1f} over "
        f"{len(returns)} episodes of {np.mean(lengths):.0f} steps"
    )
    minari.create_dataset_from_buffers(
        args.dataset_id,
        buffers,
        env=args.env,
        algorithm_name=f"{args.library} {args.algo}",
        description=score,
        data_format="hdf5",
    )
    print(f"{args.env}: {score}")


if __name__ == "__main__":
    main()
