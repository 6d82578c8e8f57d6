"""Experiment for Theorem 1 of the paper: AWR and QWR on a replay with one action per state.

A replay satisfies *state-determines-action* if no state in it has two different actions. AWR
weighs logged actions only, so on such a replay its loss is minimal for the policy that clones
them, whatever the rewards. QWR weighs actions that it draws from ``mu`` and can do better.
``docs/theorem.md`` explains it. Everything runs in this process, with the learner, storage and
view of the algorithms; needs numpy and torch only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from qwr_rllib.learning.config import LearnerConfig
from qwr_rllib.learning.learner import Learner
from qwr_rllib.learning.networks import QWRNetworks
from qwr_rllib.replay.fragments import Fragment
from qwr_rllib.replay.layout import Slot
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.specs import Spec

Algorithm = Literal["AWR", "QWR"]

DIMENSIONS = 4
STRIDE = 0.3
HORIZON = 10
ACTION_STD = 0.4
GAMMA = 0.9


class Reach:
    """An environment that rewards a point in four dimensions for approaching the origin.

    Deterministic. The start is uniform in [-1, 1]^4. The state is the point's place and the time,
    so that no state occurs twice. A continuous action in [-1, 1]^4 moves the point by 0.3 times
    the action, one of 8 discrete actions moves it by 0.3 along an axis. The reward is the decrease
    of the distance to the origin; episodes are truncated after 10 steps.

    Args:
        discrete: whether actions are discrete.
        sign: factor of the rewards; -1 rewards moving away.
    """

    def __init__(self, discrete: bool, sign: float = 1.0) -> None:
        self.spec = Spec((DIMENSIONS + 1,), "float32", DIMENSIONS * (1 + discrete), discrete)
        self.sign = sign

    def reset(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Returns ``count`` start states, ``(count, 5)``."""
        places = rng.uniform(-1, 1, (count, DIMENSIONS))
        return np.pad(places, ((0, 0), (0, 1))).astype(np.float32)

    def step(self, states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns next states and rewards of states ``(k, 5)``, actions ``(k,)`` or ``(k, 4)``."""
        if self.spec.discrete:
            axes = np.eye(DIMENSIONS, dtype=np.float32)
            moves = np.concatenate([axes, -axes])[actions]
        else:
            moves = np.clip(actions, -1, 1)
        places, times = states[:, :-1], states[:, -1:]
        moved = places + STRIDE * moves
        closer = np.linalg.norm(places, axis=-1) - np.linalg.norm(moved, axis=-1)
        after = np.concatenate([moved, times + 1 / HORIZON], axis=1).astype(np.float32)
        return after, (self.sign * closer).astype(np.float32)

    def behaviour(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Samples actions of ``mu``, the same in each state: uniform, or ``N(0, 0.4^2)``."""
        if self.spec.discrete:
            return rng.integers(self.spec.action_dim, size=count)
        return rng.normal(0, ACTION_STD, (count, DIMENSIONS)).astype(np.float32)


def log_episodes(env: Reach, rng: np.random.Generator, count: int) -> list[Fragment]:
    """Plays ``count`` episodes with ``mu``; each of their states has one action."""
    states = [env.reset(rng, count)]
    actions, rewards = [], []
    for _ in range(HORIZON):
        actions.append(env.behaviour(rng, count))
        after, reward = env.step(states[-1], actions[-1])
        states.append(after)
        rewards.append(reward)
    return [
        _fragment(
            env,
            episode,
            np.stack([state[episode] for state in states]),
            np.stack([action[episode] for action in actions]),
            np.stack([reward[episode] for reward in rewards]),
        )
        for episode in range(count)
    ]


def second_actions(
    env: Reach, rng: np.random.Generator, logged: Sequence[Fragment], share: float
) -> list[Fragment]:
    """Samples a second action of ``mu`` for a ``share`` of the logged states."""
    states = np.concatenate([each.obs[:-1] for each in logged])
    taken = np.concatenate([each.actions for each in logged])
    chosen = rng.permutation(len(states))[: round(share * len(states))]
    made: list[Fragment] = []
    for slot in chosen:
        action = env.behaviour(rng, 1)
        while env.spec.discrete and action[0] == taken[slot]:
            action = env.behaviour(rng, 1)
        after, reward = env.step(states[slot][None], action)
        obs = np.stack([states[slot], after[0]])
        made.append(_fragment(env, len(logged) + len(made), obs, action, reward))
    return made


def _fragment(
    env: Reach, episode: int, obs: np.ndarray, actions: np.ndarray, rewards: np.ndarray
) -> Fragment:
    # Parameters of mu: logits of 0 are uniform, means of 0 are centred.
    mu = np.zeros((len(obs), env.spec.action_dim), np.float32)
    return Fragment(episode, 0, obs, mu, actions, rewards, terminated=False, done=True)


@dataclass(frozen=True)
class Trial:
    """The settings of one training run."""

    algorithm: Algorithm
    discrete: bool
    seed: int
    share: float = 0.0
    """Share of the states that get a second action."""
    sign: float = 1.0
    """Factor of the rewards in training: -1 trains on opposite rewards."""
    num_episodes: int = 16
    iterations: int = 14
    steps: int = 200
    """Actor minibatches per iteration; the critic has half as many."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial. Returns are those of :class:`Reach` with ``sign`` 1."""

    trial: Trial
    cloning: tuple[float, ...]
    """After 0, 1, 2, ... iterations, over the states with one action. Discrete: the mean
    probability of that action. Gaussian: 1 minus the mean distance of the policy's mean from that
    action, divided by the mean distance of ``mu``'s mean. A clone has 1."""
    prefers_better: float
    """Share of the states with two actions where the better rewarded is likelier; NaN if none."""
    logged_return: float
    """Mean return of the logged episodes."""
    policy_return: float
    """Mean return of the policy's mode from the starts of the logged episodes."""
    greedy_return: float
    """Mean return, from the same starts, of the action with the highest reward in each state."""


def run_trial(trial: Trial) -> Outcome:
    """Builds the replay, trains on it and measures the policy."""
    rng = np.random.default_rng(trial.seed)
    env = Reach(trial.discrete, trial.sign)
    logged = log_episodes(env, rng, trial.num_episodes)
    fragments = logged + second_actions(env, rng, logged, trial.share)

    torch.manual_seed(trial.seed)
    awr = trial.algorithm == "AWR"
    networks = QWRNetworks(
        env.spec,
        hiddens=(128, 128),
        q_scale=1 / (1 - GAMMA),
        action_std=ACTION_STD,
        critic_type="v" if awr else "q",
    )
    config = LearnerConfig(
        critic_type="v" if awr else "q",
        actor_actions="replay" if awr else "mu",
        margin=HORIZON if awr else 3,
        train_batch_size=64,
        n_critic_steps=trial.steps // 2,
        n_actor_steps=trial.steps,
        gamma=GAMMA,
        actor_lr=2e-3,
        # Smaller than the defaults, so that QWR moves away from mu in fewer steps.
        beta=1.0 if awr else 0.5,
        backup_temperature=0.1,
        q_spread="none",
        advantage_scaling="minibatch",
    )
    learner = Learner(networks, config, trial.seed)
    capacity = 20 * sum(map(len, fragments))  # nothing is evicted or cut
    storage, view = ReplayStorage(env.spec, capacity), ReplayView(env.spec, capacity)
    for fragment in fragments:
        storage.add(fragment)
    new = view.update(storage.changes())
    learner.update_normalizer(view.columns["obs"][new])

    measure = _Measure(view)
    cloning = [measure.cloning(networks)]
    for _ in range(trial.iterations):
        learner.train(view)
        cloning.append(measure.cloning(networks))
    starts = np.stack([each.obs[0] for each in logged])
    plain = Reach(trial.discrete)
    return Outcome(
        trial,
        tuple(cloning),
        measure.prefers_better(networks),
        trial.sign * float(np.mean([each.rewards.sum() for each in logged])),
        _play(plain, starts, lambda states: _mode(networks, states)),
        _play(plain, starts, lambda states: _greedy(plain, states)),
    )


class _Measure:
    """Measurements of the policy in the states of a replay."""

    def __init__(self, view: ReplayView) -> None:
        rows = (view.kind == Slot.ROW).nonzero().squeeze(1)
        obs, actions = view.columns["obs"][rows], view.columns["actions"][rows]
        rewards = view.columns["rewards"][rows]
        _, inverse, counts = torch.unique(obs, dim=0, return_inverse=True, return_counts=True)
        single = counts[inverse] == 1
        self._single = obs[single], actions[single]
        order = torch.argsort(inverse)
        pairs = order[~single[order]].view(-1, 2)
        better = rewards[pairs[:, 0]] >= rewards[pairs[:, 1]]
        ranked = torch.where(better.unsqueeze(1), pairs, pairs.flip(1))
        self._pairs = obs[ranked[:, 0]], actions[ranked[:, 0]], actions[ranked[:, 1]]

    @torch.no_grad()
    def cloning(self, networks: QWRNetworks) -> float:
        obs, actions = self._single
        if not len(obs):
            return float("nan")
        params = networks.dist_inputs(obs)
        if not actions.is_floating_point():
            return networks.actor.log_prob(params, actions).exp().mean().item()
        distances = (params - actions).norm(dim=-1)
        return 1 - (distances.mean() / actions.norm(dim=-1).mean()).item()

    @torch.no_grad()
    def prefers_better(self, networks: QWRNetworks) -> float:
        obs, better, worse = self._pairs
        if not len(obs):
            return float("nan")
        params = networks.dist_inputs(obs)

        def likely(actions: Tensor) -> Tensor:
            return networks.actor.log_prob(params, actions)

        return (likely(better) > likely(worse)).float().mean().item()


def _mode(networks: QWRNetworks, states: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return networks.actor.mode(networks.dist_inputs(torch.from_numpy(states))).numpy()


def _greedy(env: Reach, states: np.ndarray) -> np.ndarray:
    if not env.spec.discrete:
        return np.clip(-states[:, :-1] / STRIDE, -1, 1)
    choices = range(env.spec.action_dim)
    rewards = [env.step(states, np.full(len(states), each))[1] for each in choices]
    return np.argmax(rewards, axis=0)


def _play(env: Reach, states: np.ndarray, act) -> float:
    total = np.zeros(len(states))
    for _ in range(HORIZON):
        states, rewards = env.step(states, act(states))
        total += rewards
    return float(total.mean())


def trials(num_seeds: int, shares: Sequence[float], first: Trial) -> list[Trial]:
    """Returns all trials of the experiment, for both kinds of actions.

    Both algorithms run on every share. AWR also runs on opposite rewards, with one action per
    state. ``first`` gives the sizes.
    """
    made = []
    for discrete, seed in itertools.product((True, False), range(num_seeds)):
        base = replace(first, discrete=discrete, seed=seed)
        for share in shares:
            made += [replace(base, algorithm=name, share=share) for name in ("AWR", "QWR")]
        made.append(replace(base, algorithm="AWR", share=0.0, sign=-1.0))
    return made
