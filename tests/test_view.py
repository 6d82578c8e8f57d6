import numpy as np
import pytest
import torch
from helpers import CONTINUOUS, DISCRETE, STACKED, filled, fragment, slot_of
from hypothesis import given
from hypothesis import strategies as st

from qwr_rllib.replay.layout import Slot
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.specs import Spec


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def row_names(view: ReplayView, slots: torch.Tensor) -> list[tuple[int, int]]:
    """Returns ``(episode, t)`` of rows."""
    return sorted((int(e), int(t)) for e, t in view.columns["obs"][slots].tolist())


def assert_mirrors(view: ReplayView, storage: ReplayStorage) -> None:
    kind = storage.columns["kind"]
    np.testing.assert_array_equal(view.kind, kind)
    held = kind != Slot.FREE
    for name in storage.spec.columns:
        np.testing.assert_array_equal(view.columns[name][held], storage.columns[name][held])
    np.testing.assert_array_equal(view.next[held], storage.columns["next"][held])
    np.testing.assert_array_equal(view.rows, np.flatnonzero(kind == Slot.ROW))
    assert view.num_rows == storage.num_rows
    assert (view.uid, view.version) == (storage.uid, storage.version)
    assert_stacked(view)


def assert_stacked(view: ReplayView) -> None:
    """Checks that observations stack the frames before them, repeating the episode's first."""
    states = torch.nonzero((view.kind == Slot.ROW) | (view.kind == Slot.TAIL)).squeeze(1)
    observations = view.observations(states)
    names = view.columns["obs"][states].int().tolist()
    for (episode, t), observation in zip(names, observations, strict=True):
        ages = range(view.spec.frame_stack - 1, -1, -1)
        expected = [[episode, max(t - age, 0)] for age in ages]
        assert observation.reshape(-1, 2).tolist() == expected


# Each step adds the next rows of an episode, and may end the episode or update the view.
ADDITIONS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(1, 6),
        st.sampled_from(["", "", "terminated", "truncated"]),
        st.booleans(),
    ),
    max_size=25,
)


@given(ADDITIONS, st.sampled_from([8, 30, 500]), st.sampled_from([DISCRETE, STACKED]))
def test_view_mirrors_the_storage(additions, capacity, spec):
    storage, view = ReplayStorage(spec, capacity), ReplayView(spec, capacity)
    position: dict[int, tuple[int, int]] = {}  # of each environment: episode, t
    pending: list[tuple[int, int]] = []
    for environment, length, end, update in additions:
        episode, t = position.get(environment, (environment, 0))
        storage.add(fragment(episode, t, t + length, end, spec))
        pending += [(episode, step) for step in range(t, t + length)]
        position[environment] = (episode + 10, 0) if end else (episode, t + length)
        if update:
            new = view.update(storage.changes(view.uid, view.version))
            assert_mirrors(view, storage)
            held = set(row_names(view, view.rows))
            assert row_names(view, new) == sorted(held.intersection(pending))
            pending = []
    view.update(storage.changes(view.uid, view.version))
    assert_mirrors(view, storage)


def test_an_update_without_changes_brings_nothing():
    storage, view = ReplayStorage(CONTINUOUS, 100), ReplayView(CONTINUOUS, 100)
    storage.add(fragment(1, 0, 5))
    assert len(view.update(storage.changes(view.uid, view.version))) == 5
    changes = storage.changes(view.uid, view.version)
    assert len(changes.slots) == 0
    assert len(view.update(changes)) == 0
    assert_mirrors(view, storage)


def test_a_reset_brings_no_row_twice():
    storage, view = ReplayStorage(CONTINUOUS, 100), ReplayView(CONTINUOUS, 100)
    storage.add(fragment(1, 0, 5))
    view.update(storage.changes(view.uid, view.version))
    storage.add(fragment(1, 5, 7, "terminated"))
    restored = ReplayStorage(CONTINUOUS, 100)
    restored.load(storage.state_arrays())
    changes = restored.changes(view.uid, view.version)
    assert changes.reset
    assert row_names(view, view.update(changes)) == [(1, 5), (1, 6)]
    assert_mirrors(view, restored)
    restored.add(fragment(2, 0, 2))
    new = view.update(restored.changes(view.uid, view.version))
    assert row_names(view, new) == [(2, 0), (2, 1)]


def test_after_going_back_to_an_older_store_later_rows_are_new():
    storage, view = ReplayStorage(CONTINUOUS, 100), ReplayView(CONTINUOUS, 100)
    storage.add(fragment(1, 0, 5, "truncated"))
    older = storage.state_arrays()
    storage.add(fragment(2, 0, 9, "truncated"))
    view.update(storage.changes(view.uid, view.version))
    storage.load(older)
    assert len(view.update(storage.changes(view.uid, view.version))) == 0
    assert_mirrors(view, storage)
    storage.add(fragment(3, 0, 3, "truncated"))
    new = view.update(storage.changes(view.uid, view.version))
    assert row_names(view, new) == [(3, 0), (3, 1), (3, 2)]


def test_a_reset_forgets_what_is_no_longer_held():
    view = filled([fragment(1, 0, 50)])
    other = ReplayStorage(CONTINUOUS, 1000)
    other.add(fragment(2, 0, 3))
    view.update(other.changes(view.uid, view.version))
    assert row_names(view, view.rows) == [(2, 0), (2, 1), (2, 2)]


def test_rows_evicted_before_the_update_are_not_new():
    storage, view = ReplayStorage(CONTINUOUS, 4), ReplayView(CONTINUOUS, 4)
    for episode in range(10):
        storage.add(fragment(episode, 0, 1, "terminated"))
    new = view.update(storage.changes(view.uid, view.version))
    assert row_names(view, new) == [(6, 0), (7, 0), (8, 0), (9, 0)]


# Sampling


def test_sample_is_uniform_over_rows_only():
    view = filled([fragment(1, 0, 3, "truncated"), fragment(2, 0, 5), fragment(3, 0, 2)])
    slots = view.sample(50_000, generator())
    assert slots.shape == (50_000,)
    assert (view.kind[slots] == Slot.ROW).all()
    counts = torch.bincount(slots, minlength=view.num_slots)[view.rows]
    assert len(counts) == 10
    assert counts.min() > 4700
    assert counts.max() < 5300


def test_sample_never_gives_an_evicted_row():
    storage, view = ReplayStorage(CONTINUOUS, 8), ReplayView(CONTINUOUS, 8)
    for episode in range(6):
        storage.add(fragment(episode, 0, 2, "truncated"))
        view.update(storage.changes(view.uid, view.version))
    names = row_names(view, view.sample(500, generator()).unique())
    assert names == [(e, t) for e in range(2, 6) for t in range(2)]


def test_sample_follows_the_generator():
    view = filled([fragment(1, 0, 50)])
    assert torch.equal(view.sample(20, generator(3)), view.sample(20, generator(3)))
    assert not torch.equal(view.sample(20, generator(3)), view.sample(20, generator(4)))


def test_an_empty_view_cannot_be_sampled():
    with pytest.raises(ValueError, match="the replay holds no rows to sample"):
        ReplayView(CONTINUOUS, 100).sample(1, generator())


# Slices


def slices_from(view, episode, t, length):
    return view.slices(torch.tensor([slot_of(view, episode, t)]), length)


def test_slices_golden_inside_a_trajectory():
    view = filled([fragment(1, 0, 3), fragment(2, 0, 3), fragment(1, 3, 6)])
    slices = slices_from(view, 1, 1, 3)
    assert slices.rewards.tolist() == [[2, 3, 4]]
    assert slices.nonterminals.tolist() == [[1, 1, 1]]
    assert slices.continues.tolist() == [[1, 1, 1]]
    assert view.columns["obs"][slices.next_slots].tolist() == [[[1, 2], [1, 3], [1, 4]]]
    assert view.columns["action_dist_inputs"][slices.next_slots].flatten().tolist() == [-2, -3, -4]


def test_slices_golden_at_a_termination():
    view = filled([fragment(1, 0, 3, "terminated"), fragment(2, 0, 9)])
    slices = slices_from(view, 1, 1, 4)
    assert slices.rewards[0, :2].tolist() == [2, 3]
    assert slices.nonterminals[0, :2].tolist() == [1, 0]
    assert slices.continues.tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("end", ["truncated", ""])
def test_slices_golden_at_a_cut(end):
    view = filled([fragment(1, 0, 3, end), fragment(2, 0, 9)])
    slices = slices_from(view, 1, 1, 4)
    assert slices.rewards[0, :2].tolist() == [2, 3]
    assert slices.nonterminals[0, :2].tolist() == [1, 1]
    assert slices.continues.tolist() == [[1, 0, 0, 0]]
    # The slice bootstraps from the state after the cut.
    assert view.columns["obs"][slices.next_slots[0, 1]].tolist() == [1, 3]


def test_slices_go_on_when_the_episode_does():
    storage, view = ReplayStorage(CONTINUOUS, 100), ReplayView(CONTINUOUS, 100)
    storage.add(fragment(1, 0, 2))
    view.update(storage.changes(view.uid, view.version))
    assert slices_from(view, 1, 1, 2).continues.tolist() == [[0, 0]]
    storage.add(fragment(1, 2, 4))
    view.update(storage.changes(view.uid, view.version))
    assert slices_from(view, 1, 1, 2).continues.tolist() == [[1, 1]]
    assert slices_from(view, 1, 1, 2).rewards.tolist() == [[2, 3]]


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from(["terminated", "truncated", ""])),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 5),
)
def test_slices_equal_a_naive_walk(episodes, length):
    view = filled([fragment(i, 0, stop, end) for i, (stop, end) in enumerate(episodes)])
    slices = view.slices(view.rows, length)
    for k, (episode, t) in enumerate(view.columns["obs"][view.rows].int().tolist()):
        stop, end = episodes[episode]
        for j in range(min(length, stop - t)):
            last = t + j == stop - 1
            terminal = last and end == "terminated"
            assert slices.rewards[k, j] == t + j + 1
            assert slices.nonterminals[k, j] == (not terminal)
            assert slices.continues[k, j] == (not last)
            if not terminal:
                after = view.columns["obs"][slices.next_slots[k, j]].tolist()
                assert after == [episode, t + j + 1]
        # Nothing continues beyond the end.
        assert not slices.continues[k, stop - t :].any()


def test_frames_are_stacked_after_a_gap_a_termination_and_reloads():
    storage = ReplayStorage(STACKED, 60)
    storage.add(fragment(1, 0, 5, spec=STACKED))
    storage.add(fragment(1, 7, 9, "terminated", STACKED))  # steps 5 and 6 were lost
    storage.add(fragment(1, 9, 12, spec=STACKED))  # same episode, as after a lost life
    storage.add(fragment(2, 0, 15, "truncated", STACKED))  # longer than a trajectory may be
    for capacity in (60, 80, 20):
        reloaded, view = ReplayStorage(STACKED, capacity), ReplayView(STACKED, capacity)
        reloaded.load(storage.state_arrays())
        view.update(reloaded.changes())
        assert_stacked(view)
        assert view.num_rows == min(5 + 2 + 3 + 15, capacity)


def test_num_bytes_is_what_the_columns_take():
    view = ReplayView(CONTINUOUS, 1600)
    # 1700 slots of 2 + 1 + 1 + 1 floats, a bool, int64 next, prev and inserted, int8 kind and
    # int32 policy version.
    assert view.num_bytes == 1700 * (5 * 4 + 1 + 3 * 8 + 1 + 4)


def test_a_view_that_does_not_fit_a_gpu_is_refused_with_the_figure(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    spec = Spec((4, 84, 84), "uint8", 6, discrete=True, frame_stack=4)
    with pytest.raises(ValueError, match=r"fit the memory of cpu: 1000000 rows .* take 7\.\d GB"):
        ReplayView(spec, 1_000_000)
