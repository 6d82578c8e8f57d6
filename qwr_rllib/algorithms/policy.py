"""The RLlib policy: acts, exchanges weights and state, owns a learner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.models.modelv2 import ModelV2
from ray.rllib.models.torch.torch_action_dist import TorchCategorical, TorchDistributionWrapper
from ray.rllib.models.torch.torch_modelv2 import TorchModelV2
from ray.rllib.policy.policy import Policy, PolicyState
from ray.rllib.policy.sample_batch import SampleBatch
from ray.rllib.policy.torch_policy_v2 import TorchPolicyV2
from ray.rllib.policy.view_requirement import ViewRequirement
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    LEARNER_STATS_KEY,
    NUM_AGENT_STEPS_TRAINED,
    NUM_GRAD_UPDATES_LIFETIME,
)
from torch import Tensor, nn

from qwr_rllib.algorithms.resources import learner_threads
from qwr_rllib.deployment import DeployedPolicy, describe, save_onnx, save_torchscript
from qwr_rllib.envs.atari import frame_stack_of
from qwr_rllib.envs.spaces import check_actions, spec_of
from qwr_rllib.learning.config import learner_config
from qwr_rllib.learning.learner import Learner
from qwr_rllib.learning.networks import GaussianActor, QWRNetworks, networks_of
from qwr_rllib.replay.replica import TransitionView
from qwr_rllib.sampling.worker import COLLECTED, NEXT_INFOS


class QWRTorchModel(TorchModelV2, nn.Module):
    """An RLlib model around the networks; its outputs are the parameters of ``pi(.|s)``."""

    def __init__(self, obs_space, action_space, num_outputs, model_config, networks: QWRNetworks):
        TorchModelV2.__init__(self, obs_space, action_space, num_outputs, model_config, "qwr")
        nn.Module.__init__(self)
        self.networks = networks

    def forward(self, input_dict, state, seq_lens):
        return self.networks.dist_inputs(input_dict[SampleBatch.OBS]), state


class ConstantStdGaussian(TorchDistributionWrapper):
    """An RLlib distribution for a :class:`GaussianActor`; its inputs are the mean."""

    def __init__(self, inputs: Tensor, model: QWRTorchModel):
        super().__init__(inputs, model)
        actor = model.networks.actor
        assert isinstance(actor, GaussianActor)
        self.actor = actor
        self.dist = torch.distributions.Normal(inputs, actor.action_std)

    @override(TorchDistributionWrapper)
    def logp(self, actions: Tensor) -> Tensor:
        return self.actor.log_prob(self.inputs, actions)

    @override(TorchDistributionWrapper)
    def entropy(self) -> Tensor:
        return super().entropy().sum(-1)

    @override(TorchDistributionWrapper)
    def kl(self, other) -> Tensor:
        return super().kl(other).sum(-1)

    @override(TorchDistributionWrapper)
    def deterministic_sample(self) -> Tensor:
        self.last_sample = self.inputs
        return self.inputs

    @staticmethod
    @override(TorchDistributionWrapper)
    def required_model_output_shape(action_space, model_config):
        return int(np.prod(action_space.shape))


class QWRTorchPolicy(TorchPolicyV2):
    """A policy that acts; in the Algorithm's local worker it also owns the :class:`Learner`.

    The weights that RLlib exchanges are only those needed to act (actor and normaliser). The
    policy's state also holds critic, target, optimizers, counters and random state.
    """

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: dict[str, Any]
    ) -> None:
        self.spec = spec_of(observation_space, action_space, frame_stack_of(config))
        check_actions(action_space, config)
        self.learner: Learner | None = None
        self.episodes: dict[int, int] = {}
        """The running episode's name in the replay, by sub-environment."""
        super().__init__(observation_space, action_space, config, max_seq_len=1)
        defaults = self._get_default_view_requirements()
        self.view_requirements = {name: defaults[name] for name in COLLECTED} | {
            SampleBatch.ACTION_DIST_INPUTS: ViewRequirement(
                space=gym.spaces.Box(-np.inf, np.inf, (self.spec.action_dim,)),
                used_for_compute_actions=False,
            ),
            SampleBatch.ENV_ID: ViewRequirement(),
            NEXT_INFOS: ViewRequirement(SampleBatch.INFOS, shift=1),
        }
        for name, requirement in self.view_requirements.items():
            requirement.used_for_compute_actions = name == SampleBatch.OBS
        if not config.get("worker_index"):
            seed = config.get("seed")
            self.learner = Learner(
                self.networks, learner_config(config), seed, learner_threads(config)
            )

    @property
    def networks(self) -> QWRNetworks:
        return self.model.networks

    @override(TorchPolicyV2)
    def make_model_and_action_dist(self) -> tuple[ModelV2, type]:
        networks = networks_of(
            self.spec, self.config, with_critic=not self.config.get("worker_index")
        )
        model = QWRTorchModel(
            self.observation_space,
            self.action_space,
            self.spec.action_dim,
            self.config["model"],
            networks,
        )
        return model, TorchCategorical if self.spec.discrete else ConstantStdGaussian

    @override(TorchPolicyV2)
    def optimizer(self) -> list:
        return []  # the learner has its own, over flat vectors that RLlib cannot track

    @override(TorchPolicyV2)
    def compute_actions_from_input_dict(
        self, input_dict, explore=None, timestep=None, episodes=None, **kwargs
    ):
        """Computes actions as the parent, without recurrent state, exploration objects and logp."""
        explore = self.config["explore"] if explore is None else explore
        actor = self.networks.actor
        with torch.inference_mode():
            params = self._params(input_dict[SampleBatch.OBS])
            # On a NaN observation the environment still gets an action; the replay refuses the row.
            finite = params.nan_to_num()
            actions = actor.sample(finite) if explore else actor.mode(finite)
        if not self.spec.discrete:
            actions = actions.reshape(-1, *self.action_space.shape)
        self.global_timestep += len(actions)
        return (
            actions.cpu().numpy(),
            [],
            {SampleBatch.ACTION_DIST_INPUTS: params.cpu().numpy()},
        )

    @override(TorchPolicyV2)
    def compute_actions(self, obs_batch, state_batches=None, explore=None, **kwargs):
        return self.compute_actions_from_input_dict({SampleBatch.OBS: obs_batch}, explore)

    def dist_inputs(self, obs: np.ndarray) -> np.ndarray:
        """Returns parameters ``(k, d)`` of ``pi(.|s)`` at raw observations ``(k, ...)``."""
        with torch.inference_mode():
            return self._params(obs).cpu().numpy()

    def _params(self, obs: np.ndarray | Tensor) -> Tensor:
        if not isinstance(obs, Tensor):
            obs = np.asarray(obs)
        return self.networks.dist_inputs(torch.as_tensor(obs, device=self.device))

    @override(TorchPolicyV2)
    def loss(self, model: ModelV2, dist_class: type, train_batch: SampleBatch) -> list[Tensor]:
        """Returns the critic's and the actor's loss on a batch of transitions, for autograd.

        Unlike those from the replay, targets here have one step only.

        Raises:
            ValueError: if the policy belongs to a rollout worker, which has no critic.
        """
        view = self._transitions(train_batch)
        return list(self._own_learner().losses(view, view.rows))

    @override(Policy)
    def learn_on_batch(self, samples: SampleBatch) -> dict[str, Any]:
        """Trains the critic and the actor for one step each on a batch of transitions.

        :meth:`QWR.training_step` trains from the replay instead, thousands of steps at a time.

        Raises:
            ValueError: if the policy belongs to a rollout worker, which has no critic.
        """
        learner = self._own_learner()
        custom_metrics: dict[str, Any] = {}
        self.callbacks.on_learn_on_batch(policy=self, train_batch=samples, result=custom_metrics)
        view = self._transitions(samples)
        stats = learner.step(view, view.rows)
        self.num_grad_updates += 1
        return {
            LEARNER_STATS_KEY: stats,
            "custom_metrics": custom_metrics,
            NUM_AGENT_STEPS_TRAINED: samples.count,
            NUM_GRAD_UPDATES_LIFETIME: self.num_grad_updates,
        }

    def _own_learner(self) -> Learner:
        if self.learner is None:
            raise ValueError("only the local worker's policy has a critic and a learner")
        return self.learner

    def _transitions(self, batch: SampleBatch) -> TransitionView:
        """Makes a view of a batch that has the columns of transitions and mu's parameters."""

        def column(name: str, *shape: int) -> Tensor:
            values = torch.as_tensor(batch[name], device=self.device).detach()
            return values.reshape(len(values), *shape)

        spec = self.spec
        states = [column(name, *spec.obs_shape) for name in (SampleBatch.OBS, SampleBatch.NEXT_OBS)]
        with torch.no_grad():
            mu_after = self._params(states[1])
        mu = column(SampleBatch.ACTION_DIST_INPUTS, spec.action_dim)
        columns = {
            SampleBatch.OBS: torch.cat(states),
            SampleBatch.ACTION_DIST_INPUTS: torch.cat([mu, mu_after]),
            SampleBatch.ACTIONS: column(SampleBatch.ACTIONS, *spec.action_shape),
            SampleBatch.REWARDS: column(SampleBatch.REWARDS).float(),
            SampleBatch.TERMINATEDS: column(SampleBatch.TERMINATEDS).bool(),
        }
        if spec.discrete:
            columns[SampleBatch.ACTIONS] = columns[SampleBatch.ACTIONS].long()
        return TransitionView(spec, columns)

    @override(TorchPolicyV2)
    def export_model(
        self, export_dir: str, onnx: int | None = None, env_steps: int | None = None
    ) -> None:
        """Writes the policy as ``qwr export`` does: raw observations to environment actions.

        Args:
            export_dir: The folder; it is created if it is missing.
            onnx: Version of the ONNX operators of ``model.onnx``; ``None`` writes ``model.pt``,
                in TorchScript.
            env_steps: Environment steps of the training, for the file's metadata.

        Raises:
            ModuleNotFoundError: if ``onnx`` is given and the package is missing.
        """
        folder = Path(export_dir)
        folder.mkdir(parents=True, exist_ok=True)
        spaces = self.observation_space, self.action_space
        about = describe(self.spec, *spaces, self.config, env_steps)
        policy = DeployedPolicy(self.networks.acting_state(), about)
        if onnx:
            save_onnx(policy, folder / "model.onnx", onnx)
        else:
            save_torchscript(policy, folder / "model.pt")

    @override(TorchPolicyV2)
    def get_weights(self) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in self.networks.acting_state().items()}

    @override(TorchPolicyV2)
    def set_weights(self, weights: dict[str, np.ndarray]) -> None:
        state = {name: torch.tensor(value) for name, value in weights.items()}
        # Exchanged weights have no critic: keep our own, if there is one.
        self.networks.load_state_dict(self.networks.state_dict() | state)

    @override(TorchPolicyV2)
    def get_state(self) -> PolicyState:
        state = super().get_state()
        if self.learner is not None:
            state["learner"] = self.learner.state_dict()
        return state

    @override(TorchPolicyV2)
    def set_state(self, state: PolicyState) -> None:
        # The parent would replace our config, and so the learning rates, by the checkpoint's.
        spec = state.get("policy_spec")
        super().set_state(
            state | {"policy_spec": spec | {"config": self.config}} if spec else state
        )
        if self.learner is not None and "learner" in state:
            self.learner.load_state_dict(state["learner"])
