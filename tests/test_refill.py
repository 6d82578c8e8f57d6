"""A store that is rebuilt from its view equals the lost store."""

import numpy as np
from helpers import CONTINUOUS, STACKED, fragment, stored
from hypothesis import given
from hypothesis import strategies as st

from qwr_rllib.replay.recovery import store_arrays
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.replay.storage import ReplayStorage

# Fragments of a few episodes in any order: they join, leave gaps, repeat, end, evict.
ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 12),
        st.integers(1, 9),
        st.sampled_from(["", "", "terminated", "truncated"]),
    ),
    max_size=12,
)


def arrive(storage: ReplayStorage, arrivals) -> None:
    for version, (episode, start, length, end) in enumerate(arrivals):
        storage.add(
            fragment(
                episode,
                start,
                start + length,
                end,
                storage.spec,
                policy_version=np.array(10 * version),
            )
        )


def refilled(view: ReplayView, outline) -> ReplayStorage:
    other = ReplayStorage(view.spec, 40)
    other.load(store_arrays(view, outline))
    return other


@given(ARRIVALS, ARRIVALS, ARRIVALS, st.sampled_from([CONTINUOUS, STACKED]))
def test_refilled_stores_are_the_same_and_go_on_the_same(first, second, later, spec):
    storage, view = ReplayStorage(spec, 40), ReplayView(spec, 40)
    for arrivals in (first, second):  # the view follows in two steps
        arrive(storage, arrivals)
        view.update(storage.changes(view.uid, view.version))
    other = refilled(view, storage.outline())
    lost, again = storage.state_arrays(), other.state_arrays()
    assert lost.keys() == again.keys()
    for name in lost.keys() - {"free"}:
        np.testing.assert_array_equal(lost[name], again[name], err_msg=name)
    assert set(lost["free"]) == set(again["free"])
    # Later fragments find the same open trajectories and evict the same ones.
    arrive(storage, later)
    arrive(other, later)
    assert stored(storage) == stored(other)
    assert storage.num_rows_inserted_lifetime == other.num_rows_inserted_lifetime


@given(ARRIVALS, ARRIVALS)
def test_what_the_view_lacks_may_be_sent_again(known, unknown):
    """Fragments of episodes that are in the store already are not stored twice."""
    storage, view = ReplayStorage(CONTINUOUS, 1000), ReplayView(CONTINUOUS, 1000)
    arrive(storage, known)
    view.update(storage.changes())
    other = ReplayStorage(CONTINUOUS, 1000)
    other.load(store_arrays(view, storage.outline()))
    arrive(storage, unknown)
    arrive(other, unknown)
    assert stored(storage) == stored(other)
    assert other.num_rows_inserted_lifetime == storage.num_rows_inserted_lifetime


def test_rows_say_which_policy_collected_them():
    storage, view = ReplayStorage(CONTINUOUS, 100), ReplayView(CONTINUOUS, 100)
    storage.add(fragment(0, 0, 3, policy_version=np.array(5)))
    storage.add(fragment(0, 3, 5, policy_version=np.array([6, 7])))
    view.update(storage.changes())
    np.testing.assert_array_equal(view.policy_version[view.rows], [5, 5, 5, 6, 7])
    # Also kept if a checkpoint is loaded into a smaller replay.
    smaller = ReplayStorage(CONTINUOUS, 4)
    smaller.load(storage.state_arrays())
    rows = np.flatnonzero(smaller.columns["kind"] == 1)
    order = np.argsort(smaller.columns["inserted"][rows])
    np.testing.assert_array_equal(smaller.columns["policy_version"][rows[order]], [5, 5, 6, 7])
