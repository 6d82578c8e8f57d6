"""Fragments, the unit that the replay stores: their contents, making and checks.

Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from qwr_rllib.specs import Spec


class RefusedFragmentError(ValueError):
    """Raised if a fragment cannot be stored; the message states what is wrong."""


@dataclass(frozen=True)
class Fragment:
    """``k`` consecutive steps of one episode, as a rollout worker collected them."""

    episode: int
    """Number of the episode, unique over all workers."""
    start: int
    """Time step of the first row in the episode; shows whether rows are missing or repeated."""
    obs: np.ndarray
    """``(k + 1, ...)``, or ``(k, ...)`` if the episode terminated: raw observations; of a stack of
    frames, the newest."""
    action_dist_inputs: np.ndarray
    """``(k + 1, m)`` or ``(k, m)``: parameters of ``mu`` in these states."""
    actions: np.ndarray
    """``(k, ...)``."""
    rewards: np.ndarray
    """``(k,)``."""
    terminated: bool
    """Whether the last row led to a terminal state, whose value is 0."""
    done: bool
    """Whether the episode is over: terminated, or cut by a time limit."""
    context: np.ndarray | None = None
    """``(c, ...)``, if observations are stacks: the frames before the first row, oldest first."""
    policy_version: int | np.ndarray = 0
    """Number of actor updates of the acting policy; one number or ``(k,)``."""

    def __len__(self) -> int:
        return len(self.rewards)

    def part(self, start: int, stop: int, frame_stack: int) -> Fragment:
        """Returns the rows from ``start`` up to ``stop``, with the state after them.

        The part's trajectory is cut at ``stop``, unless this is the fragment's end.

        Args:
            start: the part's first row, counted from the fragment's first row.
            stop: the row after the part's last.
            frame_stack: frames per observation; the older ones become the part's context.
        """
        last = stop == len(self)
        terminated = last and self.terminated
        states = slice(start, stop + (not terminated))
        context = self.context
        if context is not None:
            frames = np.concatenate([context, self.obs[:start]])
            context = frames[max(0, len(frames) - frame_stack + 1) :]
        version = self.policy_version
        return Fragment(
            episode=self.episode,
            start=self.start + start,
            obs=self.obs[states],
            action_dist_inputs=self.action_dist_inputs[states],
            actions=self.actions[start:stop],
            rewards=self.rewards[start:stop],
            terminated=terminated,
            done=self.done or not last,
            context=context,
            policy_version=version if isinstance(version, int) else version[start:stop],
        )


def make_fragment(
    spec: Spec,
    *,
    episode: int,
    start: int,
    obs: np.ndarray,
    action_dist_inputs: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminated: bool,
    done: bool,
    reward_clip: float | None,
) -> Fragment:
    """Makes a fragment from whole observations: clips rewards and splits stacks into frames.

    Args:
        spec: shapes of the columns.
        episode: unique number of the episode.
        start: time step of the first row.
        obs: ``(k + 1, *obs_shape)``, or ``(k, *obs_shape)`` if the episode terminated.
        action_dist_inputs: ``(k + 1, m)`` or ``(k, m)``.
        actions: ``(k, ...)``.
        rewards: ``(k,)``.
        terminated: whether the last row led to a terminal state.
        done: whether the episode is over.
        reward_clip: the largest absolute reward that is kept; ``None`` keeps all.

    Raises:
        ValueError: if observations are not the stacks of frames that ``spec`` says they are.
    """
    context = None
    if spec.frame_stack > 1:
        # A NaN is ignored here: the replay refuses its rows later.
        if not np.array_equal(obs[1:, :-1], obs[:-1, 1:], equal_nan=True):
            raise ValueError(
                f"frame_stack is {spec.frame_stack}, but the observations are not stacks of the "
                "last frames, newest last"
            )
        context, obs = obs[0, :-1], obs[:, -1]
    if reward_clip is not None:
        rewards = rewards.clip(-reward_clip, reward_clip)
    return Fragment(
        episode=episode,
        start=start,
        obs=obs,
        action_dist_inputs=action_dist_inputs,
        actions=actions,
        rewards=rewards,
        terminated=terminated,
        done=done,
        context=context,
    )


def split_steps(
    spec: Spec,
    *,
    episodes: np.ndarray,
    times: np.ndarray,
    obs: np.ndarray,
    next_obs: np.ndarray,
    action_dist_inputs: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    dist_inputs: Callable[[np.ndarray], np.ndarray],
    reward_clip: float | None = None,
) -> list[Fragment]:
    """Splits ``k`` steps into fragments, one for each run of an episode's consecutive steps.

    Args:
        spec: shapes of the columns.
        episodes: ``(k,)``, unique number of each step's episode.
        times: ``(k,)``, each step's number in its episode.
        obs: ``(k, *obs_shape)``, raw observations, whole stacks of frames.
        next_obs: ``(k, *obs_shape)``, observations after each step.
        action_dist_inputs: ``(k, m)``, parameters of ``mu``.
        actions: ``(k, ...)``.
        rewards: ``(k,)``.
        terminated: ``(k,)``; later steps of the same episode are a trajectory of their own.
        truncated: ``(k,)``.
        dist_inputs: computes ``mu``'s parameters ``(j, m)`` in observations ``(j, *obs_shape)``,
            for the state after an unfinished or cut fragment.
        reward_clip: the largest absolute reward that is kept; ``None`` keeps all.

    Raises:
        ValueError: if observations are not the stacks of frames that ``spec`` says they are.
    """
    consecutive = (episodes[1:] == episodes[:-1]) & (times[1:] == times[:-1] + 1)
    starts = np.append(0, np.flatnonzero(~consecutive | terminated[:-1]) + 1)
    ends = np.append(starts[1:], len(episodes))
    last_obs = next_obs[ends - 1]
    last_mu = dist_inputs(last_obs)

    fragments = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        rows = slice(start, end)
        states, params = obs[rows], action_dist_inputs[rows]
        if not terminated[end - 1]:
            states = np.append(states, last_obs[i : i + 1], axis=0)
            params = np.append(params, last_mu[i : i + 1], axis=0)
        fragments.append(
            make_fragment(
                spec,
                episode=int(episodes[start]),
                start=int(times[start]),
                obs=states,
                action_dist_inputs=params,
                actions=actions[rows],
                rewards=rewards[rows],
                terminated=bool(terminated[end - 1]),
                done=bool(terminated[end - 1] or truncated[end - 1]),
                reward_clip=reward_clip,
            )
        )
    return fragments


@dataclass(frozen=True)
class Refusal:
    """Consecutive rows that were not stored."""

    num_rows: int
    message: str
    """The reason and the time steps of the rows."""


@dataclass(frozen=True)
class Fault:
    """A bad value and the rows that it makes unusable; these may lie outside the fragment."""

    first_row: int
    last_row: int
    message: str


def check_form(fragment: Fragment, spec: Spec, capacity: int) -> None:
    """Checks a fragment's length, shapes and dtypes.

    Raises:
        RefusedFragmentError: naming the column, its shape or dtype and what is allowed.
    """
    rows = len(fragment)
    if not 1 <= rows <= capacity:
        raise RefusedFragmentError(
            f"a fragment has 1 to {capacity} rows (the replay's capacity), got {rows}"
        )
    states = rows + (not fragment.terminated)
    values = [
        ("obs", fragment.obs, states),
        ("action_dist_inputs", fragment.action_dist_inputs, states),
        ("actions", fragment.actions, rows),
        ("rewards", fragment.rewards, rows),
    ]
    if fragment.context is not None:
        values.append(("obs", fragment.context, len(fragment.context)))
    for name, value, length in values:
        shape, dtype = spec.columns[name]
        if value.shape != (length, *shape):
            raise RefusedFragmentError(
                f"{name} must have shape {(length, *shape)}, got {value.shape}"
            )
        if not np.can_cast(value.dtype, dtype, "same_kind"):
            raise RefusedFragmentError(f"{name} must be {dtype}, got {value.dtype}")


def faults(fragment: Fragment, spec: Spec) -> Iterator[Fault]:
    """Yields the bad values of a fragment that passed :func:`check_form`, column by column."""
    frames, before = fragment.obs, 0
    if fragment.context is not None:
        frames, before = np.concatenate([fragment.context, frames]), len(fragment.context)
    # A bad frame is part of all states until it leaves the stack. A bad state makes two rows
    # unusable: the row of its action and the row that led to it.
    for name, values, offset, first, last in (
        ("obs", frames, -before, -1, spec.frame_stack - 1),
        ("action_dist_inputs", fragment.action_dist_inputs, 0, -1, 0),
        ("actions", fragment.actions, 0, 0, 0),
        ("rewards", fragment.rewards, 0, 0, 0),
    ):
        with np.errstate(over="ignore"):  # values too large for float32 become infinite
            finite = np.isfinite(values.astype(spec.columns[name][1]))
        for i in np.flatnonzero(~finite.reshape(len(values), -1).all(axis=1)).tolist():
            row = i + offset
            message = f"{name} has a NaN or infinite value at step {fragment.start + row}"
            yield Fault(row + first, row + last, message)
    if spec.discrete:
        limit = spec.action_dim
        for row in np.flatnonzero((fragment.actions < 0) | (fragment.actions >= limit)).tolist():
            message = f"actions must be in [0, {limit}), got {fragment.actions[row]}"
            yield Fault(row, row, message)
