import copy
import dataclasses
import io
import math
import shutil

import numpy as np
import pytest
import torch
from helpers import CONTINUOUS, DISCRETE, filled, fragment
from torch.nn.utils import clip_grad_norm_, parameters_to_vector

from qwr_rllib.learning import evaluation
from qwr_rllib.learning import learner as learner_module
from qwr_rllib.learning.accel import threads as threads_module
from qwr_rllib.learning.config import LearnerConfig
from qwr_rllib.learning.learner import Learner, NonFiniteLossError
from qwr_rllib.learning.networks import QWRNetworks
from qwr_rllib.replay.replica import ReplayView
from qwr_rllib.replay.storage import ReplayStorage
from qwr_rllib.specs import Spec

SMALL = {"train_batch_size": 16, "n_critic_steps": 7, "n_actor_steps": 7, "target_update_freq": 3}
FAST = {"critic_lr": 1e-2, "actor_lr": 1e-2}
ENDS = ["terminated", "truncated", "", "terminated", "truncated"]


def networks_for(spec, seed=0, hiddens=(16, 16), **kwargs):
    torch.manual_seed(seed)
    networks = QWRNetworks(spec, hiddens=hiddens, q_scale=1 / (1 - 0.9), **kwargs)
    # Heads of order 1: Q-values and policies that differ from state to state.
    torch.nn.init.normal_(networks.actor.head.weight, 0.0, 0.3)
    if networks.critic is not None:
        torch.nn.init.normal_(networks.critic.head.weight, 0.0, 0.3)
    return networks


def learner_for(spec, seed=0, networks=None, **kwargs):
    config = LearnerConfig(**({"gamma": 0.9} | SMALL | FAST | kwargs))
    learner = Learner(networks or networks_for(spec), config, seed)
    where = learner.actor.head.weight.device
    learner.update_normalizer(torch.tensor([[0.0, 0.0], [4.0, 8.0]], device=where))
    return learner


def episodes(spec, ends=ENDS):
    """Returns fragments whose observation names the row, with random rewards, actions and mu."""
    rng = np.random.default_rng(0)
    made = []
    for episode, end in enumerate(ends):
        plain = fragment(episode, 0, 3 + episode, end, spec)
        rows, states = len(plain), len(plain.obs)
        actions = rng.normal(0, 1, (rows, spec.action_dim)).astype(np.float32)
        if spec.discrete:
            actions = rng.integers(0, spec.action_dim, rows)
        made.append(
            fragment(
                episode,
                0,
                rows,
                end,
                spec,
                actions=actions,
                rewards=rng.normal(0, 3, rows).astype(np.float32),
                action_dist_inputs=rng.normal(0, 1, (states, spec.action_dim)).astype(np.float32),
            )
        )
    return made


PICTURES = Spec((3, 20, 20), "uint8", action_dim=3, discrete=True, frame_stack=3)


def films():
    """Returns episodes of random frames, whose first two pixels name the row."""
    rng = np.random.default_rng(1)
    made = []
    for each in episodes(DISCRETE):
        frames = rng.integers(0, 256, (len(each.obs), 20, 20), np.uint8)
        frames[:, 0, :2] = each.obs
        made.append(dataclasses.replace(each, obs=frames, context=frames[[0, 0]]))
    return made


def view_of(spec):
    return filled(episodes(spec), spec)


class ScriptedView(ReplayView):
    """A view that draws from one fixed sequence of rows, whatever the size of each draw."""

    def __init__(self, fragments, spec):
        super().__init__(spec, 1000)
        storage = ReplayStorage(spec, 1000)
        for each in fragments:
            storage.add(each)
        self.update(storage.changes())
        generator = torch.Generator().manual_seed(0)
        self.script = self.rows[torch.randint(self.num_rows, (4096,), generator=generator)]
        self.position = 0

    def sample(self, count, generator):
        self.position += count
        return self.script[self.position - count : self.position]


def evenly(params, n, generator=None, std=None):
    """Returns actions at fixed distances from the mean, in place of samples."""
    distances = torch.linspace(-0.7, 1.1, n, device=params.device)
    return params.unsqueeze(-2) + distances.unsqueeze(-1), None


def scripted(spec, networks=None, fragments=None, **kwargs):
    """Returns a learner and a view without randomness."""
    learner = learner_for(spec, networks=networks, **kwargs)
    if not spec.discrete:
        learner.actor.proposals = evenly
    return learner, ScriptedView(fragments or episodes(spec), spec)


def weights(module):
    return parameters_to_vector(module.parameters()).detach().clone()


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_the_losses_of_a_minibatch_are_those_of_its_step(spec):
    learner, view = scripted(spec, n_critic_steps=1, n_actor_steps=1)
    critic_loss, actor_loss = learner.losses(view, view.script[:16])
    # Train the actor first: its weights depend on the critic, which must not change before.
    assert learner.train_actor(view)["actor_loss"] == pytest.approx(actor_loss.item(), rel=1e-4)
    view.position = 0
    assert learner.train_critic(view)["critic_loss"] == pytest.approx(critic_loss.item(), rel=1e-4)


# Against Algorithm 2, step by step


class PlainQWR:
    """Algorithm 2, one minibatch and one state at a time, with autograd."""

    def __init__(self, learner, view, fragments):
        self.config = learner.config
        self.networks = copy.deepcopy(learner.networks)
        self.spec = view.spec
        self.data = {each.episode: each for each in fragments}
        self.drawn = iter(view.columns["obs"][view.script].flatten(1)[:, :2].int().tolist())
        self.critic_losses, self.targets, self.q_values = [], [], []
        self.actor_losses, self.used_weights, self.used_probs = [], [], []

    def minibatch(self):
        return [next(self.drawn) for _ in range(self.config.train_batch_size)]

    def obs(self, episode, t):
        frames = self.data[episode].obs
        if self.spec.frame_stack == 1:
            return self.networks.normalize(torch.from_numpy(frames[t]))
        stack = [frames[max(0, t - age)] for age in range(self.spec.frame_stack - 1, -1, -1)]
        return self.networks.normalize(torch.from_numpy(np.stack(stack)))[0]

    def proposals(self, episode, t):
        """Returns actions at a state and their probabilities."""
        mu = torch.from_numpy(self.data[episode].action_dist_inputs[t])
        if self.spec.discrete:
            return torch.arange(self.spec.action_dim), mu.softmax(-1)
        n = self.config.n_action_samples
        return evenly(mu, n)[0], torch.full((n,), 1 / n)

    def values(self, critic, episode, t):
        actions, probs = self.proposals(episode, t)
        with torch.no_grad():
            q_values = critic(torch.stack([self.obs(episode, t)] * len(actions)), actions)
        return q_values / (1 - self.config.gamma), probs

    def backup(self, q_values, probs, scale):
        tau = self.config.backup_temperature * scale
        if self.config.backup == "mean":
            return sum(p * q for p, q in zip(probs, q_values, strict=True)).item()
        if self.config.backup == "max":
            return max(q_values).item()
        terms = zip(probs, q_values, strict=True)
        return tau * math.log(sum(p * math.exp(q / tau) for p, q in terms))

    def target(self, target_critic, episode, t, scale):
        config, data = self.config, self.data[episode]
        length = min(config.margin, len(data) - t)
        mixed = 0.0
        for k in range(1, length + 1):
            k_step = sum(config.gamma**i * float(data.rewards[t + i]) for i in range(k))
            if not (data.terminated and t + k == len(data)):
                values = self.values(target_critic, episode, t + k)
                k_step += config.gamma**k * self.backup(*values, scale)
            share = config.lambda_ ** (k - 1) * (1 - config.lambda_ if k < length else 1)
            mixed += share * k_step
        return mixed

    def scale(self, target_critic, minibatch):
        """Returns the spread of all next Q-values of a minibatch."""
        if self.config.q_spread == "none":
            return 1.0
        values = []
        for e, t in minibatch:
            # A slice that ends early counts its last state again.
            last = len(self.data[e]) - self.data[e].terminated
            for k in range(1, self.config.margin + 1):
                values.append(self.values(target_critic, e, min(t + k, last)))
        q_values, probs = (torch.cat(column) for column in zip(*values, strict=True))
        probs = probs / len(values)
        deviations = q_values - (probs * q_values).sum()
        if self.config.q_spread == "abs":
            return (probs * deviations.abs()).sum().item()
        return (probs * deviations**2).sum().sqrt().item()

    def step(self, optimizer, module, loss):
        optimizer.zero_grad()
        loss.backward()
        if self.config.grad_clip is not None:
            clip_grad_norm_(module.parameters(), self.config.grad_clip)
        optimizer.step()

    def train_critic(self):
        config, critic = self.config, self.networks.critic
        adam = torch.optim.Adam(critic.parameters(), config.critic_lr, eps=config.adam_epsilon)
        self.average = copy.deepcopy(critic)
        for step in range(config.n_critic_steps):
            if step % config.target_update_freq == 0:
                target_critic = copy.deepcopy(critic if config.tau == 1 else self.average)
            minibatch = self.minibatch()
            scale = self.scale(target_critic, minibatch)
            targets = [self.target(target_critic, e, t, scale) for e, t in minibatch]
            obs = torch.stack([self.obs(e, t) for e, t in minibatch])
            actions = np.stack([self.data[e].actions[t] for e, t in minibatch])
            predicted = critic(obs, torch.from_numpy(actions))
            loss = ((predicted - torch.tensor(targets) * (1 - config.gamma)) ** 2).mean()
            self.step(adam, critic, loss)
            with torch.no_grad():
                for average, new in zip(
                    self.average.parameters(), critic.parameters(), strict=True
                ):
                    average.copy_((1 - config.tau) * average + config.tau * new)
            self.critic_losses.append(loss.item())
            self.targets += targets
            self.q_values += (predicted.detach() / (1 - config.gamma)).tolist()

    def train_actor(self):
        config, actor = self.config, self.networks.actor
        adam = torch.optim.Adam(actor.parameters(), config.actor_lr, eps=config.adam_epsilon)
        for _ in range(config.n_actor_steps):
            minibatch = self.minibatch()
            # With tau = 1, the average is the critic.
            values = [self.values(self.average, e, t) for e, t in minibatch]
            q_values, probs = (torch.stack(column) for column in zip(*values, strict=True))
            advantages = q_values - (probs * q_values).sum(-1, keepdim=True)
            variances = (probs * advantages**2).sum(-1, keepdim=True)
            if config.advantage_scaling == "minibatch":
                variances = variances.mean()
            if config.advantage_scaling == "median":
                variances = sorted(variances.flatten())[(len(minibatch) - 1) // 2]
            if config.advantage_scaling != "none":
                advantages = advantages / (variances.sqrt() + 1e-5)
            weights = torch.exp(advantages / config.beta).clamp(max=config.max_weight)
            loss = torch.zeros(())
            for (e, t), p, w in zip(minibatch, probs, weights, strict=True):
                params = actor(self.obs(e, t).unsqueeze(0)).squeeze(0)
                if self.spec.discrete:
                    policy = torch.distributions.Categorical(logits=params)
                else:
                    normal = torch.distributions.Normal(params, actor.action_std)
                    policy = torch.distributions.Independent(normal, 1)
                log_probs = policy.log_prob(self.proposals(e, t)[0])
                loss = loss - (p * w * log_probs).sum() / len(minibatch)
            self.step(adam, actor, loss)
            self.actor_losses.append(loss.item())
            self.used_weights.append(weights)
            self.used_probs.append(probs)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"backup": "max", "margin": 1, "advantage_scaling": "none", "beta": 0.5},
        {"backup": "mean", "margin": 5, "lambda_": 0.6, "grad_clip": None, "max_weight": 1.2},
        {"backup_temperature": 0.2, "margin": 2, "grad_clip": 0.05, "adam_epsilon": 1e-3},
        {"q_spread": "std", "margin": 2},
        {"q_spread": "abs", "backup_temperature": 0.3, "margin": 3, "advantage_scaling": "state"},
        {"q_spread": "none", "backup_temperature": 0.3, "advantage_scaling": "median"},
        {"compile": False},
        {"tau": 0.1, "target_update_freq": 1},
        {"tau": 0.1, "target_update_freq": 3},
    ],
    ids=[
        "defaults",
        "max",
        "mean",
        "clipped",
        "std",
        "abs",
        "none",
        "not compiled",
        "average",
        "average seen rarely",
    ],
)
def test_training_is_algorithm_2(spec, kwargs, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_TILE", 4)  # several tiles, the last one incomplete
    learner, view = scripted(spec, **kwargs)
    plain = PlainQWR(learner, view, episodes(spec))
    before = weights(learner.critic), weights(learner.actor)

    metrics = learner.train(view)
    plain.train_critic()
    plain.train_actor()

    for module, reference, start in (
        (learner.critic, plain.networks.critic, before[0]),
        (learner.actor, plain.networks.actor, before[1]),
    ):
        torch.testing.assert_close(weights(module), weights(reference), rtol=1e-3, atol=1e-4)
        assert (weights(module) - start).abs().max() > 0.01
    assert metrics["critic_loss"] == pytest.approx(np.mean(plain.critic_losses), rel=1e-3)
    assert metrics["q_mean"] == pytest.approx(np.mean(plain.q_values), rel=1e-3, abs=1e-3)
    assert metrics["target_mean"] == pytest.approx(np.mean(plain.targets), rel=1e-3, abs=1e-3)
    assert metrics["actor_loss"] == pytest.approx(np.mean(plain.actor_losses), rel=1e-3, abs=1e-4)
    used = torch.stack(plain.used_weights)
    assert metrics["weight_max"] == pytest.approx(used.max().item(), rel=1e-3)
    clipped = (used >= learner.config.max_weight - 1e-6).float().mean().item()
    assert metrics["weight_clip_fraction"] == pytest.approx(clipped, abs=1e-3)
    probs = torch.stack(plain.used_probs)
    total, squares = (probs * used).sum(-1), (probs * used**2).sum(-1)
    ess = (used.shape[-1] * total**2 / squares).mean().item()
    assert metrics["weight_ess"] == pytest.approx(ess, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a compiler")
def test_training_by_torch_compile_is_algorithm_2():
    learner, view = scripted(CONTINUOUS, compile=True)
    plain = PlainQWR(learner, view, episodes(CONTINUOUS))
    learner.train(view)
    plain.train_critic()
    plain.train_actor()
    for module, reference in (
        (learner.critic, plain.networks.critic),
        (learner.actor, plain.networks.actor),
    ):
        torch.testing.assert_close(weights(module), weights(reference), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize(
    "kwargs",
    [
        {"critic_post_gate_layer": True},
        {"critic_network": "joint"},
        {"critic_network": "joint", "hiddens": (24,)},
        {"activation": "tanh"},
        {"activation": "silu", "critic_post_gate_layer": True},
        {"hiddens": (24,)},
        {"hiddens": (24, 8, 16), "critic_post_gate_layer": True},
        {"normalize_observations": False},
        {"action_std": 0.1},
    ],
    ids=str,
)
def test_training_of_any_network_is_algorithm_2(spec, kwargs):
    learner, view = scripted(spec, networks_for(spec, **kwargs), margin=1)
    plain = PlainQWR(learner, view, episodes(spec))
    learner.train(view)
    plain.train_critic()
    plain.train_actor()
    for name, value in plain.networks.named_parameters():
        torch.testing.assert_close(
            learner.networks.get_parameter(name), value, rtol=1e-3, atol=1e-4
        )


AWR = {"critic_type": "v", "actor_actions": "replay", "advantage_scaling": "minibatch"}


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("settings", [{}, AWR], ids=["qwr", "awr"])
def test_threads_change_nothing(spec, settings, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_TILE", 4)
    monkeypatch.setattr(threads_module, "STEPS_ALONE", 1)
    monkeypatch.setattr(threads_module, "PATIENCE_S", math.inf)
    found = []
    for threads in (1, 2, 3):
        # Large enough for threads to share the work.
        networks = networks_for(
            spec, hiddens=(256, 256), critic_type=settings.get("critic_type", "q")
        )
        learner = learner_for(spec, networks=networks, train_batch_size=256, **settings)
        learner.threads = threads
        view = view_of(spec)
        metrics = [learner.train(view) for _ in range(2)]
        losses = [(each["critic_loss"], each["actor_loss"]) for each in metrics]
        found.append((losses, parameters_to_vector(networks.parameters()), learner.state_dict()))
    for losses, parameters, state in found[1:]:
        assert losses == found[0][0]
        assert torch.equal(parameters, found[0][1])
        assert torch.equal(state["generator"], found[0][2]["generator"])


def test_training_on_images_is_algorithm_2(monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_TILE_ELEMENTS", 3 * 20 * 20 * 5)  # five at once
    networks = networks_for(PICTURES, conv_filters=[[4, 8, 4], [8, 4, 2]], conv_hiddens=[16])
    learner, view = scripted(PICTURES, networks, films())
    plain = PlainQWR(learner, view, films())
    learner.train(view)
    plain.train_critic()
    plain.train_actor()
    for name, value in plain.networks.named_parameters():
        torch.testing.assert_close(
            learner.networks.get_parameter(name), value, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    "spec",
    [
        PICTURES,
        Spec((20, 16, 3), "uint8", action_dim=3, discrete=True),
        Spec((3, 16, 20), "uint8", action_dim=3, discrete=True),
    ],
    ids=["stacked", "channels last", "channels first"],
)
@pytest.mark.parametrize("image_shift", [0, 4])
def test_the_image_kernel_gives_what_the_networks_normalise(spec, image_shift):
    learner = learner_for_images(spec, image_shift=image_shift)
    generator = torch.Generator().manual_seed(0)  # as the learner's
    plain = evaluation.NetworkInputs(learner.networks, None, image_shift, generator)
    view = ReplayView(spec, 10)
    frames = view.columns["obs"]
    frames.copy_(torch.randint(0, 256, frames.shape))
    view.prev = torch.randint(0, len(frames), (len(frames),))
    for count in (7, 3):  # the second uses the memory of the first
        slots = torch.randint(0, len(frames), (count,))
        found = learner._inputs.of(view, slots)
        expected = plain.of(view, slots)
        assert torch.equal(found, expected)
        unchanged = torch.equal(found, learner.networks.normalize(view.observations(slots)))
        assert unchanged == (image_shift == 0)
        assert found.is_contiguous(memory_format=torch.channels_last)


def learner_for_images(spec, **kwargs):
    networks = networks_for(spec, conv_filters=[[4, 4, 4]], conv_hiddens=[16])
    return Learner(networks, LearnerConfig(**(SMALL | kwargs)), seed=0)


def test_bfloat16_without_instructions_for_it_warns_and_trains_in_float32(monkeypatch, caplog):
    monkeypatch.setattr(evaluation, "computes_bfloat16", lambda device: False)
    learner = learner_for_images(PICTURES, image_precision="bfloat16")
    assert "image_precision is 'bfloat16'" in caplog.text
    assert learner.actor.body.precision == torch.float32
    monkeypatch.setattr(evaluation, "computes_bfloat16", lambda device: True)
    learner = learner_for_images(PICTURES, image_precision="bfloat16")
    parts = [learner.actor.body, learner.critic.body[0], learner.target_critic.body[0]]
    assert {part.precision for part in parts} == {torch.bfloat16}


def test_bfloat16_of_a_joint_critic(monkeypatch, caplog):
    monkeypatch.setattr(evaluation, "computes_bfloat16", lambda device: False)
    networks = networks_for(Spec((5,), "float32", 2, False), critic_network="joint")
    Learner(networks, LearnerConfig(critic_precision="bfloat16"))
    assert "critic_precision is 'bfloat16'" in caplog.text
    assert networks.critic.post.precision == torch.float32
    monkeypatch.setattr(evaluation, "computes_bfloat16", lambda device: True)
    learner = Learner(networks, LearnerConfig(critic_precision="bfloat16"))
    parts = [learner.critic.post, learner.target_critic.post]
    assert {part.precision for part in parts} == {torch.bfloat16}


def test_target_features_are_computed_once_a_sync_where_chunks_would_repeat_them(monkeypatch):
    monkeypatch.setattr(learner_module, "MAX_CHUNK_STEPS", 2)
    found = {}
    for name, once in (("each chunk", False), ("once", True)):
        learner, view = scripted(CONTINUOUS, target_update_freq=6, n_critic_steps=13)
        assert learner._visits_states_again(view)  # 3 chunks of 32 draws, of 25 rows
        if not once:
            monkeypatch.setattr(learner, "_visits_states_again", lambda view: False)
        passed = []
        (body,) = learner._by_target.bodies
        learner._by_target.bodies[0] = lambda obs, body=body, passed=passed: (
            passed.append(len(obs)) or body(obs)
        )
        learner.train_critic(view)
        found[name] = weights(learner.critic), sum(passed)
    torch.testing.assert_close(found["once"][0], found["each chunk"][0], rtol=1e-5, atol=1e-6)
    assert found["once"][1] < found["each chunk"][1]


def test_target_features_are_of_the_chunks_alone_where_they_have_fewer_states():
    learner, view = scripted(CONTINUOUS, target_update_freq=3)
    assert not learner._visits_states_again(view)


# Chunks


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_calls_of_a_few_steps_are_one_of_many(spec):
    one, view = scripted(spec, n_critic_steps=12, n_actor_steps=12, target_update_freq=4)
    one.train_critic(view)
    one.train_actor(view)
    many, view = scripted(spec, n_critic_steps=3, n_actor_steps=3, target_update_freq=4)
    for train in (many.train_critic, many.train_actor):
        for _ in range(4):
            train(view)
    torch.testing.assert_close(weights(many.critic), weights(one.critic), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights(many.actor), weights(one.actor), rtol=1e-4, atol=1e-5)
    assert many.num_critic_updates == one.num_critic_updates == 12
    assert many.num_target_updates == one.num_target_updates == 3


def test_the_actor_does_not_depend_on_the_length_of_a_chunk():
    trained = []
    for freq in (1, 5, 100):
        learner, view = scripted(CONTINUOUS, n_actor_steps=12, target_update_freq=freq)
        learner.train_actor(view)
        trained.append(weights(learner.actor))
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(trained[2], trained[0], rtol=1e-4, atol=1e-5)


def test_a_target_synced_rarely_is_that_of_long_chunks(monkeypatch):
    trained = []
    for steps, chunks in ((100, [8, 4]), (3, [3, 3, 2, 3, 1])):
        monkeypatch.setattr(learner_module, "MAX_CHUNK_STEPS", steps)
        learner, view = scripted(CONTINUOUS, n_critic_steps=12, target_update_freq=8)
        assert learner._chunks(12, 0) == chunks
        learner.train_critic(view)
        assert learner.num_target_updates == 2
        trained.append(weights(learner.critic))
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-4, atol=1e-5)


def test_the_actor_does_not_depend_on_the_features_being_cached(monkeypatch):
    trained = []
    for limit in (2**28, 0):
        monkeypatch.setattr(evaluation, "MAX_CACHED_FEATURES_BYTES", limit)
        learner, view = scripted(CONTINUOUS)
        assert (learner._by_critic.all_features(view) is None) == (limit == 0)
        learner.train_actor(view)
        trained.append(weights(learner.actor))
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("critic_steps", "freq", "syncs"),
    [(300, 100, 3), (250, 100, 3), (7, 100, 1), (100, 100, 1), (101, 100, 2), (5, 1, 5), (0, 5, 0)],
)
def test_update_counts(critic_steps, freq, syncs):
    learner = learner_for(
        DISCRETE,
        n_critic_steps=critic_steps,
        n_actor_steps=11,
        target_update_freq=freq,
        train_batch_size=2,
    )
    learner.train(view_of(DISCRETE))
    assert learner.num_critic_updates == critic_steps
    assert learner.num_target_updates == syncs
    assert learner.num_actor_updates == 11


def test_the_target_is_the_critic_of_the_last_sync():
    learner, view = learner_for(DISCRETE, n_critic_steps=2, target_update_freq=6), view_of(DISCRETE)
    at_sync = weights(learner.critic)
    for updates in range(0, 20, 2):
        if updates % 6 == 0:
            at_sync = weights(learner.critic)
        learner.train_critic(view)
        assert torch.equal(weights(learner.target_critic), at_sync)
        assert not torch.equal(weights(learner.critic), at_sync)
        learner.train_actor(view)
        assert torch.equal(weights(learner.target_critic), at_sync)


def test_a_moving_average_is_seen_at_every_chunk(monkeypatch):
    learner, view = scripted(CONTINUOUS, n_critic_steps=12, target_update_freq=12, tau=0.1)
    monkeypatch.setattr(learner_module, "MAX_CHUNK_STEPS", 4)
    assert learner._visits_states_again(view)  # a copy's features would be cached
    seen, targets = [], learner._targets

    def spy(view, rows, steps, features):
        assert features is None
        seen.append(weights(learner.target_critic))
        return targets(view, rows, steps, features)

    monkeypatch.setattr(learner, "_targets", spy)
    learner.train_critic(view)
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


# What each phase touches


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_each_phase_trains_its_own_network_only(spec):
    learner, view = learner_for(spec), view_of(spec)
    critic, actor = weights(learner.critic), weights(learner.actor)
    statistics = copy.deepcopy(learner.networks.normalizer.state_dict())
    columns = {name: column.clone() for name, column in view.columns.items()}

    learner.train_critic(view)
    assert torch.equal(weights(learner.actor), actor)
    assert not torch.equal(weights(learner.critic), critic)
    critic, target = weights(learner.critic), weights(learner.target_critic)
    learner.train_actor(view)
    assert torch.equal(weights(learner.critic), critic)
    assert torch.equal(weights(learner.target_critic), target)
    assert not torch.equal(weights(learner.actor), actor)

    for name, value in learner.networks.normalizer.state_dict().items():
        assert torch.equal(value, statistics[name])
    for name, column in view.columns.items():
        assert torch.equal(column, columns[name])


def test_every_parameter_is_trained():
    learner, view = (
        learner_for(CONTINUOUS, n_critic_steps=50, n_actor_steps=50),
        view_of(CONTINUOUS),
    )
    before = copy.deepcopy(dict(learner.networks.named_parameters()))
    learner.train(view)
    for name, parameter in learner.networks.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_all_actions_are_enumerated_where_the_samples_cover_them():
    trained = []
    for n in (3, 8, "all"):
        learner = learner_for(DISCRETE, n_action_samples=n)
        learner.train(view_of(DISCRETE))
        trained.append(weights(learner.networks))
    assert torch.equal(trained[0], trained[1])
    assert torch.equal(trained[0], trained[2])
    sampled = learner_for(DISCRETE, n_action_samples=2)
    sampled.train(view_of(DISCRETE))
    assert not torch.equal(weights(sampled.networks), trained[0])


def test_all_actions_cannot_be_enumerated_where_they_are_continuous():
    with pytest.raises(ValueError, match=r"n_action_samples .*'all'"):
        learner_for(CONTINUOUS, n_action_samples="all")


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_large_beta_shows_as_behaviour_cloning(spec):
    metrics = learner_for(spec, beta=1e6, n_action_samples=3).train(view_of(spec))
    assert metrics["weight_ess"] == pytest.approx(3, rel=1e-4)
    assert metrics["weight_max"] == pytest.approx(1, rel=1e-4)
    assert metrics["weight_clip_fraction"] == 0


def test_small_beta_shows_as_greedy():
    learner = learner_for(CONTINUOUS, beta=1e-4, n_action_samples=4, max_weight=20.0)
    learner.actor.proposals = evenly
    metrics = learner.train(view_of(CONTINUOUS))
    assert metrics["weight_max"] == pytest.approx(20, rel=1e-4)
    assert metrics["weight_ess"] < 2.5
    assert metrics["weight_clip_fraction"] > 0.2


def test_metrics_are_those_promised():
    assert set(learner_for(CONTINUOUS).train(view_of(CONTINUOUS))) == {
        "critic_loss",
        "q_mean",
        "target_mean",
        "critic_updates_per_s",
        "actor_loss",
        "weight_ess",
        "weight_clip_fraction",
        "weight_max",
        "actor_updates_per_s",
    }


def test_observe_feeds_the_normalizer():
    learner = Learner(networks_for(CONTINUOUS), LearnerConfig(), 0)
    learner.update_normalizer(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert learner.networks.normalizer.mean.tolist() == [2, 4]
    learner.update_normalizer(torch.zeros(0, 2))
    assert learner.networks.normalizer.mean.tolist() == [2, 4]


def test_observe_does_nothing_without_a_normalizer():
    networks = networks_for(CONTINUOUS, normalize_observations=False)
    learner = Learner(networks, LearnerConfig(**SMALL), 0)
    learner.update_normalizer(torch.ones(3, 2))
    learner.train(view_of(CONTINUOUS))
    assert learner.num_actor_updates == 7


# Random state and checkpoints


def test_the_same_seed_gives_the_same_weights():
    trained = []
    for seed in (1, 1, 2, None):
        learner = learner_for(CONTINUOUS, seed=seed)
        learner.train(view_of(CONTINUOUS))
        trained.append(weights(learner.networks))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])
    assert not torch.equal(trained[0], trained[3])


def test_training_does_not_use_the_global_generator():
    learner, view = learner_for(CONTINUOUS), view_of(CONTINUOUS)
    before = torch.get_rng_state()
    learner.train(view)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
def test_a_loaded_learner_goes_on_exactly(spec):
    saved, view = learner_for(spec, n_action_samples=2), view_of(spec)
    saved.train(view)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded = learner_for(spec, 99, networks_for(spec, seed=99), n_action_samples=2)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for learner in (saved, loaded):
        learner.update_normalizer(torch.tensor([[3.0, 9.0]]))
    metrics = [learner.train(view) for learner in (saved, loaded)]
    for name, value in saved.networks.state_dict().items():
        assert torch.equal(loaded.networks.state_dict()[name], value), name
    assert torch.equal(weights(loaded.target_critic), weights(saved.target_critic))
    assert loaded.num_critic_updates == saved.num_critic_updates == 14
    assert loaded.num_actor_updates == saved.num_actor_updates == 14
    assert loaded.num_target_updates == saved.num_target_updates == 5
    for name in metrics[0]:
        assert name.endswith("per_s") or metrics[0][name] == metrics[1][name]


def test_learners_share_nothing_after_an_exchange_in_memory():
    saved, view = learner_for(CONTINUOUS), view_of(CONTINUOUS)
    saved.train(view)
    loaded = learner_for(CONTINUOUS, 99, networks_for(CONTINUOUS, seed=99))
    loaded.load_state_dict(saved.state_dict())
    saved.train(view)
    loaded.train(view)
    assert torch.equal(weights(loaded.networks), weights(saved.networks))


def test_a_state_does_not_follow_the_learner():
    learner, view = learner_for(CONTINUOUS), view_of(CONTINUOUS)
    learner.train(view)
    state = learner.state_dict()
    before = weights(learner.networks)
    learner.train(view)
    after = weights(learner.networks)
    learner.load_state_dict(state)
    assert torch.equal(weights(learner.networks), before)
    learner.train(view)
    assert torch.equal(weights(learner.networks), after)


def test_learning_rates_stay_the_configured_ones_on_loading():
    saved, view = learner_for(CONTINUOUS), view_of(CONTINUOUS)
    saved.train(view)
    loaded = learner_for(CONTINUOUS, critic_lr=1e-9, actor_lr=1e-9)
    loaded.load_state_dict(saved.state_dict())
    before = weights(loaded.networks)
    loaded.train(view)
    assert (weights(loaded.networks) - before).abs().max() < 1e-6


# Failures


def test_networks_without_critic_cannot_be_trained():
    with pytest.raises(ValueError, match="networks must have a critic"):
        Learner(networks_for(CONTINUOUS, with_critic=False), LearnerConfig())


def test_an_empty_view_cannot_be_trained_on():
    learner, view = learner_for(CONTINUOUS), ReplayView(CONTINUOUS, 10)
    with pytest.raises(ValueError, match="no rows to sample"):
        learner.train_critic(view)
    with pytest.raises(ValueError, match="no rows to sample"):
        learner.train_actor(view)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_critic_loss_is_an_error(value):
    learner, view = learner_for(CONTINUOUS), view_of(CONTINUOUS)
    view.columns["rewards"][view.rows[0]] = value
    with pytest.raises(NonFiniteLossError, match=r"critic_loss is (nan|inf) after 7 updates"):
        learner.train(view)


def test_a_non_finite_actor_loss_is_an_error():
    learner, view = learner_for(CONTINUOUS), view_of(CONTINUOUS)
    view.columns["action_dist_inputs"].fill_(math.nan)
    with pytest.raises(NonFiniteLossError, match="actor_loss is nan after 7 updates"):
        learner.train_actor(view)


# Config

BAD = [
    ("train_batch_size", [0, -1, 2.5, "256", None, True], "an integer >= 1"),
    ("target_update_freq", [0, 1.5, None], "an integer >= 1"),
    ("tau", [0, -0.1, 1.1, math.nan, None, True], r"a number in \(0, 1\]"),
    ("margin", [0, -3, 3.0, "3"], "an integer >= 1"),
    ("n_critic_steps", [-1, 0.5, "many"], "an integer >= 0"),
    ("n_actor_steps", [-1, 0.5, None], "an integer >= 0"),
    ("n_action_samples", [0, -8, 1.5, "every", None], "an integer >= 1 or 'all'"),
    ("lambda_", [-0.1, 1.1, math.nan, "0.9", None, True], r"a number in \[0, 1\]"),
    (
        "gamma",
        [
            1,
            1.5,
            -0.1,
            math.nan,
            None,
            False,
            "0.9",
            [],
            [0, 0.9],
            [[0]],
            [[5, 0.9]],
            [[0, 1]],
            [[0, 0.9], [0, 0.95]],
            [[0, 0.9], [1.5, 0.95]],
        ],
        r"a number in \[0, 1\), or \[\[0, number\], \[env steps, number\], ...\] with rising steps",
    ),
    ("backup", ["median", None, 3, ["max"]], "one of 'mean', 'max', 'logsumexp'"),
    ("backup_temperature", [0, -1, math.nan, math.inf, "1", True], "a number > 0"),
    ("q_spread", ["iqr", None, 1], "one of 'none', 'std', 'abs'"),
    ("beta", [0, -1, math.nan, math.inf, None, True], "a number > 0"),
    ("max_weight", [0, -20, math.nan, None, True], "a number > 0"),
    ("advantage_scaling", [True, "batch", None], "one of 'median', 'state', 'minibatch', 'none'"),
    ("critic_lr", [0, -1e-3, math.inf, None, True], "a number > 0"),
    ("actor_lr", [0, -1e-3, math.inf, None, True], "a number > 0"),
    ("adam_epsilon", [0, -1e-8, math.inf, None, True], "a number > 0"),
    ("grad_clip", [0, -1, math.nan, "50", True], "a number > 0 or None"),
    ("compile", ["yes", 1, None], "true, false or 'auto'"),
]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [(key, value, allowed) for key, values, allowed in BAD for value in values],
)
def test_impossible_settings_are_refused(key, value, allowed):
    with pytest.raises(ValueError, match=rf"^{key} must be {allowed}, got ") as error:
        LearnerConfig(**{key: value})
    assert str(error.value).endswith(repr(value))


@pytest.mark.parametrize(
    "settings",
    [
        {"n_critic_steps": 0, "n_actor_steps": 0},
        {"lambda_": 0, "gamma": 0},
        {"lambda_": 1, "gamma": 0.999},
        {"n_action_samples": "all", "margin": 1},
        {"grad_clip": None, "compile": False},
        {"backup": "max", "q_spread": "abs", "beta": 5},
    ],
)
def test_possible_settings_are_taken(settings):
    config = LearnerConfig(**settings)
    assert all(getattr(config, name) == value for name, value in settings.items())


@pytest.mark.parametrize(
    ("gamma", "env_steps", "expected"),
    [
        (0.9, 0, 0.9),
        (0.9, 10**9, 0.9),
        ([[0, 0.9]], 5, 0.9),
        ([[0, 0.9], [10, 0.9], [30, 0.98]], 10, 0.9),
        ([[0, 0.9], [10, 0.9], [30, 0.98]], 15, 0.92),
        ([[0, 0.9], [10, 0.9], [30, 0.98]], 30, 0.98),
        ([[0, 0.9], [10, 0.9], [30, 0.98]], 1000, 0.98),
    ],
)
def test_the_discount_follows_its_schedule(gamma, env_steps, expected):
    assert LearnerConfig(gamma=gamma).gamma_at(env_steps) == pytest.approx(expected, abs=1e-12)


def test_targets_have_the_discount_of_the_moment():
    learner, view = learner_for(CONTINUOUS, margin=1), view_of(CONTINUOUS)
    random_state = learner._generator.get_state()
    next_values = []
    for gamma in (0.9, 0.6):
        learner.gamma = gamma
        learner._generator.set_state(random_state)
        targets = learner._targets(view, view.rows, 1).squeeze(0)
        next_values.append((targets - view.columns["rewards"][view.rows]) / gamma)
    assert next_values[0].abs().max() > 1
    torch.testing.assert_close(*next_values)


def test_the_defaults_are_the_documented_ones():
    config = LearnerConfig()
    assert (config.train_batch_size, config.n_critic_steps, config.n_actor_steps) == (
        256,
        3000,
        3000,
    )
    assert (config.target_update_freq, config.n_action_samples, config.margin) == (100, 8, 1)
    assert (config.critic_lr, config.actor_lr, config.grad_clip) == (5e-4, 1e-4, 50.0)
    assert config.gamma == ((0, 0.99), (30_000, 0.99), (70_000, 0.997))
    assert config.lambda_ == 0.95
    assert (config.beta, config.max_weight) == (1.0, 20.0)
    assert (config.backup, config.backup_temperature, config.q_spread) == ("logsumexp", 1.0, "abs")
    assert (config.advantage_scaling, config.adam_epsilon) == ("minibatch", 2e-6)
