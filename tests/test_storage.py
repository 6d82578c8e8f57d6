import io
import itertools
import tracemalloc

import numpy as np
import pytest
from helpers import CONTINUOUS, DISCRETE, STACKED, fragment, steps, stored
from hypothesis import given
from hypothesis import strategies as st

from qwr_rllib.replay.actor import Replay
from qwr_rllib.replay.fragments import Fragment, RefusedFragmentError
from qwr_rllib.replay.layout import Slot, memory_bytes
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.specs import Spec

WALKER = Spec(obs_shape=(17,), obs_dtype="float32", action_dim=6, discrete=False)


def store(*fragments: Fragment, capacity: int = 1000, spec: Spec = CONTINUOUS) -> ReplayStorage:
    storage = ReplayStorage(spec, capacity)
    for each in fragments:
        storage.add(each)
    return storage


def episodes_held(storage: ReplayStorage) -> dict[int, list[int]]:
    """Returns the time steps of the stored rows, by episode."""
    held: dict[int, list[int]] = {}
    for episode, t in storage.columns["obs"][storage.columns["kind"] == Slot.ROW].astype(int):
        held.setdefault(int(episode), []).append(int(t))
    return {episode: sorted(times) for episode, times in held.items()}


def snapshot(storage: ReplayStorage) -> dict[str, np.ndarray]:
    return {name: value.copy() for name, value in storage.state_arrays().items()}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
        assert actual[name].dtype == value.dtype, name


def through_a_file(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


# What is held


def test_transitions_golden():
    storage = store(fragment(7, 0, 2, "terminated"), fragment(8, 0, 1, "truncated"))
    # ((episode, t, mu), action, reward, (episode, t + 1, mu) or None)
    assert stored(storage) == [
        ((7, 0, 0), 0.5, 1, (7, 1, -1)),
        ((7, 1, -1), 1.5, 2, None),
        ((8, 0, 0), 0.5, 1, (8, 1, -1)),
    ]
    assert storage.num_rows == 3
    assert storage.num_episodes == 2
    assert storage.num_rows_inserted_lifetime == 3


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE])
@pytest.mark.parametrize("end", ["terminated", "truncated", ""])
def test_fragments_of_an_episode_join(end, spec):
    storage = store(
        fragment(1, 0, 3, spec=spec),
        fragment(1, 3, 4, spec=spec),
        fragment(1, 4, 9, end, spec=spec),
        spec=spec,
    )
    assert stored(storage) == steps(1, 0, 9, end, spec)
    assert storage.num_episodes == 1
    tails = (storage.columns["kind"] == Slot.TAIL).sum()
    assert tails == (end != "terminated")


@pytest.mark.parametrize("end", ["truncated", ""])
def test_the_state_after_a_cut_keeps_observation_and_mu(end):
    storage = store(fragment(1, 0, 3, end))
    (tail,) = np.flatnonzero(storage.columns["kind"] == Slot.TAIL)
    np.testing.assert_array_equal(storage.columns["obs"][tail], [1, 3])
    np.testing.assert_array_equal(storage.columns["action_dist_inputs"][tail], [-3])


def test_a_state_that_becomes_a_row_takes_the_mu_that_chose_its_action():
    first = fragment(1, 0, 2)
    first.action_dist_inputs[2] = 77  # the policy at the end of the fragment
    storage = store(first, fragment(1, 2, 4, "truncated"))
    assert stored(storage) == steps(1, 0, 4, "truncated")


def test_a_finished_episode_is_not_continued():
    storage = store(fragment(1, 0, 2, "truncated"), fragment(1, 2, 4, "truncated"))
    assert storage.num_episodes == 2
    assert stored(storage) == steps(1, 0, 4, "truncated")


@st.composite
def arrivals(draw):
    """Draws fragments of episodes, in any order that keeps the order within each episode."""
    queues, expected = [], []
    for episode in range(draw(st.integers(1, 4))):
        length = draw(st.integers(1, 7))
        end = draw(st.sampled_from(["terminated", "truncated", ""]))
        cuts = sorted(draw(st.sets(st.integers(1, length - 1)))) if length > 1 else []
        bounds = [0, *cuts, length]
        queues.append(
            [
                fragment(episode, start, stop, end if stop == length else "")
                for start, stop in itertools.pairwise(bounds)
            ]
        )
        expected += steps(episode, 0, length, end)
    order = draw(st.permutations([i for i, queue in enumerate(queues) for _ in queue]))
    return [queues[i].pop(0) for i in order], sorted(expected, key=str)


@given(arrivals())
def test_any_interleaving_gives_the_same_transitions(arrivals):
    fragments, expected = arrivals
    storage = store(*fragments)
    assert stored(storage) == expected
    assert storage.num_episodes == len({each.episode for each in fragments})


@given(arrivals(), st.integers(7, 30))
def test_what_is_left_after_evictions_is_right(arrivals, capacity):
    fragments, expected = arrivals
    storage = ReplayStorage(CONTINUOUS, capacity)
    inserted = 0
    for each in fragments:
        assert storage.add(each) == len(each)
        inserted += len(each)
        rows = stored(storage)
        assert len(rows) == storage.num_rows <= capacity
        assert storage.num_rows_inserted_lifetime == inserted
    assert set(map(str, stored(storage))) <= set(map(str, expected))
    last = fragments[-1]
    assert last.start + len(last) - 1 in episodes_held(storage)[last.episode]


def test_rows_delivered_again_are_left_out():
    storage = store(fragment(1, 0, 4), fragment(2, 0, 2))
    before = stored(storage)
    assert storage.add(fragment(1, 0, 4)) == 0
    assert storage.add(fragment(1, 1, 3)) == 0
    assert stored(storage) == before
    assert storage.num_rows_inserted_lifetime == 6
    assert storage.add(fragment(1, 2, 6, "terminated")) == 2
    assert stored(storage) == sorted(steps(1, 0, 6, "terminated") + steps(2, 0, 2), key=str)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_the_end_of_an_episode_delivered_again_is_left_out(end):
    storage = store(fragment(1, 0, 2), fragment(1, 2, 4, end))
    assert storage.add(fragment(1, 2, 4, end)) == 0
    assert stored(storage) == steps(1, 0, 4, end)


def test_after_a_gap_a_new_trajectory_begins():
    storage = store(fragment(1, 0, 3), fragment(1, 5, 7, "terminated"))
    assert storage.num_episodes == 2
    assert stored(storage) == sorted(steps(1, 0, 3) + steps(1, 5, 7, "terminated"), key=str)


# Capacity


def test_the_oldest_trajectories_leave_whole():
    storage = store(*(fragment(i, 0, 4, "truncated") for i in range(5)), capacity=40)
    storage.add(fragment(5, 0, 4, "terminated"))
    assert storage.num_rows == 24
    for i in range(6, 10):
        storage.add(fragment(i, 0, 4, "truncated"))
    assert storage.num_rows == 40
    storage.add(fragment(10, 0, 1, "truncated"))
    assert episodes_held(storage) == {i: [0, 1, 2, 3] for i in range(1, 10)} | {10: [0]}
    assert storage.num_rows == 37
    assert storage.num_episodes == 10
    assert storage.num_rows_inserted_lifetime == 41


def test_the_oldest_is_the_one_that_began_first():
    storage = store(fragment(1, 0, 2), fragment(2, 0, 3, "truncated"), capacity=50)
    storage.add(fragment(1, 2, 5))
    for i in range(3, 12):
        storage.add(fragment(i, 0, 5, "truncated"))
    assert 1 not in episodes_held(storage)
    assert episodes_held(storage)[2] == [0, 1, 2]


def test_an_episode_goes_on_after_its_beginning_was_evicted():
    storage = store(fragment(1, 0, 2), capacity=20)
    for i in range(2, 12):
        storage.add(fragment(i, 0, 2, "truncated"))
    assert 1 not in episodes_held(storage)
    assert storage.add(fragment(1, 2, 4, "truncated")) == 2
    assert episodes_held(storage)[1] == [2, 3]
    assert storage.num_rows == 20


def test_an_episode_longer_than_the_capacity_keeps_its_end():
    storage = ReplayStorage(CONTINUOUS, 20)
    for start in range(0, 50, 5):
        storage.add(fragment(1, start, start + 5))
        assert storage.num_rows <= 20
    (times,) = episodes_held(storage).values()
    assert times == list(range(50 - len(times), 50))
    assert len(times) >= 18
    assert stored(storage) == steps(1, 50 - len(times), 50)


def test_a_long_episode_is_cut_into_tenths_of_the_capacity():
    storage = store(fragment(1, 0, 35, "truncated"), capacity=100)
    assert storage.num_episodes == 4
    assert stored(storage) == steps(1, 0, 35, "truncated")


def test_many_cut_episodes_of_one_row_never_run_out_of_slots():
    storage = ReplayStorage(CONTINUOUS, 200)
    for i in range(600):
        storage.add(fragment(i, 0, 1, "truncated"))
    held = episodes_held(storage)
    assert sorted(held) == list(range(600 - len(held), 600))
    assert len(held) > 100


def test_reused_slots_keep_nothing_of_what_they_held():
    storage, rng, arguments = ReplayStorage(CONTINUOUS, 30), np.random.default_rng(0), []
    for i in range(90):
        arguments.append((i, 0, rng.integers(1, 4), rng.choice(["terminated", "truncated", ""])))
        storage.add(fragment(*arguments[i]))
        held = episodes_held(storage)
        assert stored(storage) == sorted((s for e in held for s in steps(*arguments[e])), key=str)


def test_capacity_of_one_row():
    storage = store(fragment(1, 0, 1), fragment(1, 1, 2, "terminated"), capacity=1)
    assert stored(storage) == steps(1, 1, 2, "terminated")


def test_capacity_must_be_positive():
    with pytest.raises(ValueError, match="capacity must be >= 1, got 0"):
        ReplayStorage(CONTINUOUS, 0)


# Refusals


def spoiled(name, where, value, dtype=np.float32):
    good = fragment(9, 10, 14)
    column = getattr(good, name).astype(dtype)
    column[where] = value
    return fragment(9, 10, 14, **{name: column})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (spoiled("obs", 1, np.nan), "obs has a NaN or infinite value at step 11"),
        (spoiled("obs", 4, np.inf), "obs has a NaN or infinite value at step 14"),
        (spoiled("rewards", 3, -np.inf), "rewards has a NaN or infinite value at step 13"),
        (spoiled("actions", 0, np.nan), "actions has a NaN or infinite value at step 10"),
        (
            spoiled("action_dist_inputs", 2, np.nan),
            "action_dist_inputs has a NaN or infinite value at step 12",
        ),
        (spoiled("rewards", 0, 1e300, np.float64), "rewards has a NaN or infinite value"),
        (
            fragment(9, 0, 4, obs=np.zeros((4, 2), np.float32)),
            r"obs must have shape \(5, 2\), got \(4, 2\)",
        ),
        (
            fragment(9, 0, 4, "terminated", obs=np.zeros((5, 2), np.float32)),
            r"obs must have shape \(4, 2\), got \(5, 2\)",
        ),
        (
            fragment(9, 0, 4, actions=np.zeros(4, np.float32)),
            r"actions must have shape \(4, 1\), got \(4,\)",
        ),
        (
            fragment(9, 0, 4, action_dist_inputs=np.zeros((5, 3), np.float32)),
            r"action_dist_inputs must have shape \(5, 1\), got \(5, 3\)",
        ),
        (
            fragment(9, 0, 4, rewards=np.zeros((4, 1), np.float32)),
            r"rewards must have shape \(4,\), got \(4, 1\)",
        ),
        (
            fragment(9, 0, 4, rewards=np.array(["1", "2", "3", "4"])),
            "rewards must be float32, got <U1",
        ),
        (fragment(9, 0, 0), "a fragment has 1 to 20 rows .*, got 0"),
        (fragment(9, 0, 21), "a fragment has 1 to 20 rows .*, got 21"),
    ],
)
def test_a_refused_fragment_leaves_the_store_untouched(bad, message):
    storage = store(fragment(1, 0, 2), fragment(9, 0, 2), capacity=20)
    before, version = snapshot(storage), storage.version
    with pytest.raises(RefusedFragmentError, match=message):
        storage.add(bad)
    assert_same(storage.state_arrays(), before)
    assert storage.version == version
    storage.add(fragment(1, 2, 3, "terminated"))
    assert storage.num_rows == 5


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 1, 3]), r"actions must be in \[0, 3\), got 3"),
        (np.array([0, -1, 2]), r"actions must be in \[0, 3\), got -1"),
        (np.array([0.0, 1.0, 2.0]), "actions must be int64, got float64"),
        (np.array([[0], [1], [2]]), r"actions must have shape \(3,\), got \(3, 1\)"),
    ],
)
def test_impossible_discrete_actions_are_refused(actions, message):
    storage = ReplayStorage(DISCRETE, 20)
    with pytest.raises(RefusedFragmentError, match=message):
        storage.add(fragment(1, 0, 3, spec=DISCRETE, actions=actions))
    assert storage.num_rows == 0


LATER = fragment(9, 14, 16, "truncated")


@pytest.mark.parametrize(
    ("bad", "refused", "cuts"),
    [
        # A bad state also removes the row that led to it: its return cannot continue from there.
        (spoiled("obs", 2, np.nan), {11: 2}, [(10, 11), (13, 16)]),
        (spoiled("obs", 0, np.nan), {10: 1}, [(11, 16)]),
        (spoiled("obs", 4, np.inf), {13: 1}, [(10, 13), (14, 16)]),
        (spoiled("action_dist_inputs", 2, np.nan), {11: 2}, [(10, 11), (13, 16)]),
        (spoiled("actions", 2, np.nan), {12: 1}, [(10, 12), (13, 16)]),
        (spoiled("rewards", 2, -np.inf), {12: 1}, [(10, 12), (13, 16)]),
        (spoiled("rewards", [0, 2], np.nan), {10: 1, 12: 1}, [(11, 12), (13, 16)]),
        (spoiled("rewards", [0, 1, 2, 3], np.nan), {10: 4}, [(14, 16)]),
    ],
)
def test_rows_around_a_bad_one_are_stored(bad, refused, cuts):
    storage = store(fragment(9, 8, 10))
    for _ in range(2):  # sent twice, as after the loss of a replay actor
        num_rows, refusals = storage.add_intact(bad)
        for refusal, (first, count) in zip(refusals, refused.items(), strict=True):
            assert refusal.num_rows == count
            steps_refused = f"step {first}" + (f" to {first + count - 1}" if count > 1 else "")
            assert refusal.message.endswith(f"; refused: {steps_refused}")
    assert num_rows == 0
    storage.add_intact(LATER)
    # Earlier rows join the fragment's first part, unless that begins after a gap.
    first_stop = cuts[0][1] if cuts[0][0] == 10 else 10
    pieces = [(8, first_stop), *(cut for cut in cuts if cut[0] != 10)]
    assert storage.num_episodes == len(pieces)
    expected = [row for start, stop in pieces for row in steps(9, start, stop)]
    assert stored(storage) == sorted(expected, key=str)
    for name in ("obs", "action_dist_inputs", "actions", "rewards"):
        assert np.isfinite(storage.columns[name]).all()
    # No trajectory spans the gap.
    rows = np.flatnonzero(storage.columns["kind"] == Slot.ROW)
    nexts = storage.columns["next"][rows]
    times = storage.columns["obs"][:, 1]
    np.testing.assert_array_equal(times[nexts], times[rows] + 1)


@pytest.mark.parametrize("row", [0, 3])
def test_a_bad_row_at_the_end_of_an_episode(row):
    ended = fragment(9, 10, 14, "terminated")
    ended.rewards[row] = np.nan
    storage = store()
    assert storage.add_intact(ended)[0] == 3
    start, stop, end = (11, 14, "terminated") if row == 0 else (10, 13, "truncated")
    assert stored(storage) == steps(9, start, stop, end)
    assert (storage.columns["kind"] == Slot.TAIL).sum() == (row == 3)


def test_a_bad_frame_spoils_every_stack_that_it_is_in():
    bad = fragment(9, 10, 20, spec=STACKED)
    bad.obs[4] = np.nan  # in the observations of steps 14, 15 and 16
    storage = ReplayStorage(STACKED, 100)
    num_rows, (refusal,) = storage.add_intact(bad)
    assert (num_rows, refusal.num_rows) == (6, 4)
    assert refusal.message.endswith("at step 14; refused: step 13 to 16")
    assert np.isfinite(storage.columns["obs"]).all()
    view = ReplayView(STACKED, 100)
    view.update(storage.changes())
    stacks = view.observations(view.rows)[:, :, 1]
    expected = [[t - 2, t - 1, t] for t in (10, 11, 12, 17, 18, 19)]
    assert sorted(stacks.tolist()) == expected
    # Frames before the fragment count as well.
    bad = fragment(8, 10, 20, spec=STACKED)
    bad.context[1] = np.inf
    num_rows, (refusal,) = storage.add_intact(bad)
    assert (num_rows, refusal.num_rows) == (8, 2)
    assert "at step 9; refused: step 10 to 11" in refusal.message


def test_impossible_actions_are_refused_one_by_one():
    storage = ReplayStorage(DISCRETE, 20)
    num_rows, (refusal,) = storage.add_intact(
        fragment(1, 0, 3, spec=DISCRETE, actions=np.array([0, 7, 2]))
    )
    assert (num_rows, refusal.num_rows) == (2, 1)
    assert refusal.message == "actions must be in [0, 3), got 7; refused: step 1"


def test_other_precisions_are_taken():
    storage = store(fragment(1, 0, 3, rewards=np.arange(1.0, 4.0)))
    assert stored(storage) == steps(1, 0, 3)
    assert storage.columns["rewards"].dtype == np.float32


# Checkpoints


def worn_store() -> ReplayStorage:
    """Returns a store with finished, cut and open trajectories, some of them evicted."""
    storage = ReplayStorage(CONTINUOUS, 60)
    for i in range(12):
        storage.add(fragment(i, 0, 4))
        storage.add(fragment(i, 4, 6, ["terminated", "truncated", ""][i % 3]))
    assert storage.num_rows_inserted_lifetime == 72
    return storage


def test_repeated_rows_are_counted_and_the_count_is_kept():
    replay = Replay(CONTINUOUS, 100)
    replay.add([fragment(1, 0, 4)])
    # Two of them are new, two are not, and a fragment of three is refused.
    bad = fragment(2, 0, 3, rewards=np.full(3, np.nan))
    assert replay.add([fragment(1, 2, 6), bad]).num_rows_stored == 2
    counts = {"num_rows_refused_lifetime": 3, "num_rows_repeated_lifetime": 2}
    arrays = replay.state_arrays()
    other = Replay(CONTINUOUS, 100)
    for each in (replay, other):
        each.load(through_a_file(arrays))
        assert counts.items() <= each.metrics().items()
        assert counts == {name: each.update(0, -1).outline[name] for name in counts}
    # Older files lack this number.
    other.load({name: arrays[name] for name in arrays.keys() - {"num_rows_repeated_lifetime"}})
    assert other.metrics()["num_rows_repeated_lifetime"] == 0


def test_a_loaded_store_goes_on_exactly_like_the_saved_one():
    saved = worn_store()
    loaded = store(fragment(77, 0, 5), capacity=60)
    loaded.load(through_a_file(saved.state_arrays()))
    assert_same(loaded.state_arrays(), saved.state_arrays())
    for storage in (saved, loaded):
        storage.add(fragment(11, 6, 9))  # continues a trajectory, and evicts
        storage.add(fragment(20, 0, 6, "truncated"))
    assert_same(loaded.state_arrays(), saved.state_arrays())
    assert stored(loaded) == stored(saved)


def test_an_empty_store_can_be_saved():
    loaded = worn_store()
    loaded.load(through_a_file(ReplayStorage(CONTINUOUS, 60).state_arrays()))
    assert loaded.num_rows == loaded.num_episodes == loaded.num_rows_inserted_lifetime == 0
    assert stored(loaded) == []
    assert loaded.add(fragment(11, 6, 9)) == 3


def test_saved_arrays_do_not_follow_the_store():
    storage = worn_store()
    arrays = storage.state_arrays()
    before = {name: value.copy() for name, value in arrays.items()}
    for i in range(20, 24):
        storage.add(fragment(i, 0, 6, "terminated"))
    assert_same(arrays, before)


def test_loading_into_a_larger_store_keeps_everything():
    saved = worn_store()
    loaded = ReplayStorage(CONTINUOUS, 600)
    loaded.load(through_a_file(saved.state_arrays()))
    assert stored(loaded) == stored(saved)
    assert loaded.num_episodes == saved.num_episodes
    assert loaded.num_rows_inserted_lifetime == 72
    assert loaded.add(fragment(11, 6, 9)) == 3  # was open
    assert loaded.num_episodes == saved.num_episodes


def test_loading_into_a_smaller_store_keeps_the_newest():
    saved = worn_store()
    loaded = ReplayStorage(CONTINUOUS, 12)
    loaded.load(through_a_file(saved.state_arrays()))
    newest = [*steps(10, 0, 6, "truncated"), *steps(11, 0, 6)]
    assert stored(loaded) == sorted(newest, key=str)
    assert loaded.num_rows_inserted_lifetime == 72


def test_loading_into_a_store_smaller_than_a_trajectory_keeps_its_end():
    saved = store(fragment(1, 0, 30, "truncated"), capacity=300)
    loaded = ReplayStorage(CONTINUOUS, 20)
    loaded.load(through_a_file(saved.state_arrays()))
    assert stored(loaded) == steps(1, 10, 30, "truncated")


def test_a_view_of_the_replaced_content_is_reset():
    storage = worn_store()
    uid, version = storage.uid, storage.version
    storage.load(worn_store().state_arrays())
    changes = storage.changes(uid, version)
    assert changes.reset
    assert (changes.columns["kind"] == Slot.ROW).sum() == storage.num_rows


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("counters", None),
        ("trajectories", None),
        ("free", None),
        ("slots", None),
        ("column_obs", None),
        ("column_next", None),
        ("column_obs", lambda a: a[:-1]),
        ("column_obs", lambda a: a[:, :1]),
        ("column_rewards", lambda a: a.astype(np.float64)),
        ("column_next", lambda a: a + 10_000),
        ("counters", lambda a: a[:2]),
        ("counters", lambda a: a[:0]),
        ("counters", lambda a: a + 10**12),
        ("slots", lambda a: a[:-1]),
        ("slots", lambda a: a + 10_000),
        ("free", lambda a: a[:-1]),
        ("free", lambda a: a + 10_000),
        ("trajectories", lambda a: a[:-1]),
        ("trajectories", lambda a: a[:, :4]),
        ("trajectory_slots", lambda a: a[:-1]),
        ("trajectory_slots", lambda a: a + 10_000),
        *(
            (name, lambda a: a.astype(float))
            for name in ("counters", "slots", "free", "trajectories", "trajectory_slots")
        ),
        ("slots", lambda a: a[0]),
        ("counters", lambda a: a[0]),
    ],
)
def test_broken_arrays_are_refused_and_change_nothing(name, spoil):
    arrays = through_a_file(worn_store().state_arrays())
    if spoil is None:
        del arrays[name]
    else:
        arrays[name] = spoil(arrays[name])
    storage = store(fragment(1, 0, 2), fragment(2, 0, 3, "truncated"), capacity=60)
    before, uid = snapshot(storage), storage.uid
    with pytest.raises(ValueError, match=r"\w"):
        storage.load(arrays)
    assert_same(storage.state_arrays(), before)
    assert storage.uid == uid


def test_a_missing_array_is_named():
    arrays = worn_store().state_arrays()
    del arrays["column_rewards"]
    with pytest.raises(ValueError, match="lacks the array 'column_rewards'"):
        ReplayStorage(CONTINUOUS, 60).load(arrays)


def test_arrays_of_other_observations_are_refused():
    with pytest.raises(ValueError, match=r"obs must be float32 \(17,\) .* float32 \(2,\)"):
        ReplayStorage(WALKER, 60).load(worn_store().state_arrays())


# Memory


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE, WALKER])
@pytest.mark.parametrize("capacity", [10_000, 50_000])
def test_memory_bytes_is_what_is_allocated(spec, capacity):
    tracemalloc.start()
    storage = ReplayStorage(spec, capacity)
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory_bytes(spec, capacity) == pytest.approx(allocated, rel=0.05)
    assert storage.num_bytes <= allocated


def test_images_are_stored_as_they_are():
    atari = Spec(obs_shape=(84, 84, 4), obs_dtype="uint8", action_dim=18, discrete=True)
    assert memory_bytes(atari, 1000) == pytest.approx(1064 * 84 * 84 * 4, rel=0.05)


def test_walker_needs_little():
    storage, view = ReplayStorage(WALKER, 50_000), ReplayView(WALKER, 50_000)
    assert storage.num_bytes + view.num_bytes < 60e6
    # At least the 17 + 6 + 6 + 1 floats of each row.
    assert storage.num_bytes > 50_000 * 30 * 4
    assert view.num_bytes > 50_000 * 30 * 4
