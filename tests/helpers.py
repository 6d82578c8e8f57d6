"""Episodes whose numbers follow from formulas, and naive ways to read a replay."""

from __future__ import annotations

import dataclasses

import numpy as np

from qwr_rllib.replay.fragments import Fragment
from qwr_rllib.replay.layout import Slot
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.specs import Spec

CONTINUOUS = Spec(obs_shape=(2,), obs_dtype="float32", action_dim=1, discrete=False)
DISCRETE = Spec(obs_shape=(2,), obs_dtype="float32", action_dim=3, discrete=True)
STACKED = dataclasses.replace(DISCRETE, obs_shape=(3, 2), frame_stack=3)


def fragment(
    episode: int,
    start: int,
    stop: int,
    end: str = "",
    spec: Spec = CONTINUOUS,
    **columns: np.ndarray,
) -> Fragment:
    """Returns steps ``start`` to ``stop`` of an episode; ``end`` as "terminated", "truncated", "".

    Observation (or newest frame) ``(episode, t)``, action ``t + 0.5`` (discrete: ``t`` modulo the
    actions), reward ``t + 1``, all parameters of mu ``-t``.
    """
    times = np.arange(start, stop)
    states = np.arange(start, stop + (end != "terminated"))
    actions: np.ndarray = times % spec.action_dim
    if not spec.discrete:
        actions = np.repeat(times[:, None] + 0.5, spec.action_dim, 1).astype(np.float32)
    context = np.arange(start - spec.frame_stack + 1, start).clip(0)
    made = Fragment(
        episode=episode,
        start=start,
        obs=np.stack([np.full(len(states), episode), states], 1).astype(np.float32),
        action_dist_inputs=np.repeat(-states[:, None], spec.action_dim, 1).astype(np.float32),
        actions=actions,
        rewards=(times + 1).astype(np.float32),
        terminated=end == "terminated",
        done=end != "",
        context=np.stack([np.full(len(context), episode), context], 1).astype(np.float32),
    )
    return dataclasses.replace(made, **columns)


def steps(episode: int, start: int, stop: int, end: str = "", spec: Spec = CONTINUOUS) -> list:
    """Returns the transitions of :func:`fragment` with the same arguments, as :func:`stored`."""
    transitions = []
    for t in range(start, stop):
        action = t % spec.action_dim if spec.discrete else t + 0.5
        terminal = end == "terminated" and t == stop - 1
        after = None if terminal else (episode, t + 1, -(t + 1))
        transitions.append(((episode, t, -t), action, t + 1, after))
    return sorted(transitions, key=str)


def stored(storage: ReplayStorage) -> list:
    """Returns all stored ``((*obs, mu), action, reward, (*next obs, next mu) or None)``."""
    columns = storage.columns

    def state(slot: int) -> tuple:
        return (*columns["obs"][slot], columns["action_dist_inputs"][slot][0])

    transitions = []
    for slot in np.flatnonzero(columns["kind"] == Slot.ROW):
        after = None if columns["terminateds"][slot] else state(columns["next"][slot])
        action = columns["actions"][slot].reshape(-1)[0]
        transitions.append((state(slot), action, columns["rewards"][slot], after))
    return sorted(_plain(transitions), key=str)


def _plain(value):
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if value is None:
        return None
    value = float(value)
    return int(value) if value == int(value) else value


def filled(fragments, spec: Spec = CONTINUOUS, capacity: int = 1000) -> ReplayView:
    """Returns a view of a store that holds the fragments."""
    storage = ReplayStorage(spec, capacity)
    for each in fragments:
        storage.add(each)
    view = ReplayView(spec, capacity)
    view.update(storage.changes())
    return view


def slot_of(view: ReplayView, episode: int, t: int) -> int:
    """Returns the slot of a row."""
    obs = view.columns["obs"][view.rows].tolist()
    return int(view.rows[obs.index([episode, t])])
