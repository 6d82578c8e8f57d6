"""The learner on a GPU, if there is one, gives the numbers of the CPU in every form.

Needs no Ray: without it, run ``pytest --noconftest tests/test_gpu.py``.
"""

import itertools

import pytest
import torch
from test_learner import (
    CONTINUOUS,
    DISCRETE,
    PICTURES,
    episodes,
    films,
    networks_for,
    scripted,
    weights,
)

from qwr_rllib.learning.learner import Learner
from qwr_rllib.replay.replica import ReplayView

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

KINDS = {"continuous": CONTINUOUS, "discrete": DISCRETE, "images": PICTURES, "awr": CONTINUOUS}
AWR = {"critic_type": "v", "actor_actions": "replay", "margin": 4}
FORMS = {
    "eager": {"compile": False, "cuda_graphs": False},
    "compiled": {"compile": True, "cuda_graphs": False},
    "graphs": {"compile": False, "cuda_graphs": True},
    "compiled graphs": {"compile": True, "cuda_graphs": True},
}


def pair(kind, **kwargs):
    """Returns the same learner and rows on the CPU and on the GPU."""
    spec = KINDS[kind]
    fragments = films() if kind == "images" else episodes(spec)
    networks = {}
    if kind == "images":
        networks = {"conv_filters": [(4, 6, 3), (8, 3, 1)], "conv_hiddens": (16,)}
    if kind == "awr":
        networks, kwargs = {"critic_type": "v"}, AWR | kwargs
    made = []
    for device in ("cpu", "cuda"):
        options = kwargs if device == "cuda" else {**kwargs, "compile": False}
        view: ReplayView
        learner, view = scripted(
            spec, networks_for(spec, **networks).to(device), fragments, **options
        )
        for name, value in vars(view).items():
            if isinstance(value, torch.Tensor):
                setattr(view, name, value.to(device))
        view.columns = {name: value.to(device) for name, value in view.columns.items()}
        view.device = torch.device(device)
        made.append((learner, view))
    return made


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize(("kind", "form"), list(itertools.product(KINDS, FORMS)))
def test_a_gpu_trains_as_a_cpu_does(kind, form):
    (ours, our_view), (theirs, their_view) = pair(kind, **FORMS[form], n_critic_steps=20)
    start = weights(ours.critic), weights(ours.actor)
    expected, got = (each.train(view) for each, view in ((ours, our_view), (theirs, their_view)))
    for begun, module, reference in zip(
        start, (theirs.critic, theirs.actor), (ours.critic, ours.actor), strict=True
    ):
        torch.testing.assert_close(weights(module).cpu(), weights(reference), rtol=1e-3, atol=1e-3)
        assert (weights(reference) - begun).abs().max() > 0.01
    for name in expected.keys() - {"critic_updates_per_s", "actor_updates_per_s"}:
        assert got[name] == pytest.approx(expected[name], rel=1e-2, abs=1e-3), name


def trained(learner: Learner, view: ReplayView) -> torch.Tensor:
    learner.train(view)
    return torch.cat([weights(learner.critic), weights(learner.actor)]).cpu()


@pytest.mark.parametrize("form", FORMS)
def test_a_restored_learner_goes_on_as_if_nothing_had_been(form):
    (_, _), (learner, view) = pair("continuous", **FORMS[form])
    learner.train(view)
    state = learner.state_dict()
    position = view.position
    expected = trained(learner, view)
    learner.train(view)  # its graphs stay; they must use the state loaded below
    learner.load_state_dict(state)
    view.position = position
    torch.testing.assert_close(trained(learner, view), expected)
    (_, _), (fresh, view) = pair("continuous", **FORMS[form])
    fresh.load_state_dict(state)
    view.position = position
    torch.testing.assert_close(trained(fresh, view), expected)


def test_checkpoints_go_to_a_cpu_and_back(caplog):
    (there, their_view), (here, view) = pair("continuous")
    here.train(view)
    state = here.state_dict()
    tensors = [*state["networks"].values(), *state["target_critic"].values()]
    for optimizer in ("critic_optimizer", "actor_optimizer"):
        (moments,) = state[optimizer]["state"].values()
        tensors += moments.values()
    assert {each.device.type for each in tensors} == {"cpu"}
    there.load_state_dict(state)
    assert "another kind of device" in caplog.text
    torch.testing.assert_close(weights(there.critic), weights(here.critic).cpu())
    there.train(their_view)
    here.load_state_dict(there.state_dict())
    their_view.position = view.position
    expected = trained(there, their_view)
    torch.testing.assert_close(trained(here, view), expected, rtol=1e-3, atol=1e-3)
