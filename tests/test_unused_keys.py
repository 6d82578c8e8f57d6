"""RLlib's settings without effect are refused if a user sets them, and only then."""

import json
import re

import gymnasium as gym
import pytest
from ray import cloudpickle
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.models import MODEL_DEFAULTS

from qwr_rllib import QWR, AWRConfig, QWRConfig
from qwr_rllib.algorithms.unused_keys import UNUSED, UNUSED_MODEL
from qwr_rllib.cli.experiments import Overrides, check_experiment

METHODS = {
    "lr": lambda config: config.training(lr=0.001),
    "minibatch_size": lambda config: config.training(minibatch_size=None),
    "num_epochs": lambda config: config.training(num_epochs=1),
    "train_batch_size_per_learner": (
        lambda config: config.training(train_batch_size_per_learner=32)
    ),
    "learner_class": lambda config: config.training(learner_class=None),
    "num_learners": lambda config: config.learners(num_learners=0),
    "num_gpus_per_learner": lambda config: config.learners(num_gpus_per_learner=1),
    "clip_rewards": lambda config: config.environment(clip_rewards=True),
    "input_": lambda config: config.offline_data(input_="sampler"),
    "callbacks_on_episode_start": lambda config: config.callbacks(on_episode_start=print),
    "model_config": lambda config: config.rl_module(model_config={}),
    "env_to_module_connector": lambda config: config.env_runners(env_to_module_connector=print),
    "offline_evaluation_interval": (
        lambda config: config.evaluation(offline_evaluation_interval=1)
    ),
    "log_gradients": lambda config: config.reporting(log_gradients=False),
    "num_aggregator_actors_per_learner": (
        lambda config: setattr(config, "num_aggregator_actors_per_learner", 0)
    ),
}
INSTEAD = {
    "lr": "set critic_lr and actor_lr; got 0.001",
    "num_gpus_per_learner": "set num_gpus; got 1",
    "clip_rewards": "set reward_clip; got True",
    "input_": "set offline; got 'sampler'",
    "minibatch_size": "set train_batch_size; got None",
}


def test_they_are_settings_of_rllib():
    settings = AlgorithmConfig()
    assert [name for name in UNUSED if not hasattr(settings, name)] == []


@pytest.mark.parametrize("name", METHODS)
def test_a_method_refuses_them_at_their_default_too(name):
    message = f"{name} has no effect, {INSTEAD.get(name, '')}"
    with pytest.raises(ValueError, match=re.escape(message)):
        METHODS[name](QWRConfig())


@pytest.mark.parametrize("name", [name for name in UNUSED if name[0] != "_"])
def test_a_dict_refuses_them_at_their_default_too(name):
    value = getattr(AlgorithmConfig(), name)
    with pytest.raises(ValueError, match=f"^{name} has no effect, {UNUSED[name][:20]}"):
        AWRConfig().update_from_dict({"beta": 1.0, name: value})


@pytest.mark.parametrize("name", UNUSED_MODEL)
def test_a_model_refuses_them_at_their_default_too(name):
    model = {"fcnet_hiddens": [64], name: MODEL_DEFAULTS[name]}
    for give in (QWRConfig().training, lambda **given: QWRConfig().update_from_dict(given)):
        with pytest.raises(ValueError, match=rf"^model\.{name} has no effect, the networks are"):
            give(model=model)


def test_a_model_is_checked_once_more():
    config = QWRConfig().environment("Pendulum-v1")
    config.model["use_lstm"] = True
    with pytest.raises(ValueError, match=r"model\.use_lstm has no effect.* got True"):
        config.validate()


def test_methods_that_are_given_other_settings_refuse_nothing():
    config = QWRConfig().environment("Pendulum-v1", env_config={}).framework("torch")
    config.learners().offline_data(output=None).reporting(min_time_s_per_iteration=1)
    config.callbacks(RLlibCallback).rl_module().multi_agent().fault_tolerance()
    config.resources(num_gpus=0).debugging(seed=1).evaluation(evaluation_interval=1)
    config.env_runners(num_env_runners=1).checkpointing().experimental()
    config.training(model={"fcnet_hiddens": [64]}, train_batch_size=64, grad_clip=1.0)
    config.validate()
    config.get_evaluation_config_object().validate()


def complete():
    return QWRConfig().environment("Pendulum-v1").training(beta=2.0, model={"fcnet_hiddens": [9]})


@pytest.mark.parametrize(
    "again",
    [
        lambda config: QWRConfig().update_from_dict(config.to_dict()),
        lambda config: QWRConfig().update_from_dict(config),
        lambda config: QWRConfig().update_from_dict(json.loads(dumped(config))),
        lambda config: config.copy(copy_frozen=False).update_from_dict(json.loads(dumped(config))),
        lambda config: QWRConfig().update_from_dict(config.get_state()),
        lambda config: QWRConfig.from_state(config.get_state()),
        lambda config: cloudpickle.loads(cloudpickle.dumps(config)),
        lambda config: config.copy(copy_frozen=False),
    ],
    ids=["dict", "config", "JSON", "JSON over itself", "checkpoint", "state", "pickle", "copy"],
)
def test_complete_configs_are_passed_around(again):
    config = again(complete())
    config.validate()
    assert (config.env, config.beta, config.model["fcnet_hiddens"]) == ("Pendulum-v1", 2.0, [9])


def test_a_checkpoint_that_was_written_with_them_is_read():
    state = complete().get_state() | {"minibatch_size": 64, "num_epochs": 3}
    state["model"] = state["model"] | {"vf_share_layers": False}
    config = QWRConfig().update_from_dict(state)
    config.validate()
    assert (config.beta, config.model["fcnet_hiddens"], config.num_epochs) == (2.0, [9], 1)


def dumped(config):
    """Returns a config as in Tune's ``result.json``."""
    return json.dumps(config.to_dict(), default=str)


def test_the_config_of_a_result_is_an_experiments(tmp_path):
    """Like ``rllib train --algo QWR --config "$(jq .config result.json)"``."""
    of_tune = {"__stdout_file__": None, "__trial_info__": {"trial_id": "1"}}
    config = json.loads(dumped(complete())) | of_tune
    overrides = Overrides(storage_path=str(tmp_path))
    experiment = check_experiment("again", {"run": "QWR", "config": config}, overrides)
    assert experiment.tune_spec["config"]["beta"] == 2.0
    assert experiment.resources == {"CPU": 2.0}
    assert not any(key.startswith("__") for key in experiment.tune_spec["config"])


def test_what_was_changed_in_a_complete_config_is_refused():
    with pytest.raises(ValueError, match=r"lr has no effect, .* got 0\.01"):
        QWRConfig().update_from_dict(complete().to_dict() | {"lr": 0.01})
    changed = complete().to_dict()
    changed["model"]["use_lstm"] = True
    with pytest.raises(ValueError, match=r"model\.use_lstm has no effect"):
        QWRConfig().update_from_dict(changed)


def test_what_algorithms_hand_to_tune_needs_no_change():
    request = QWR.default_resource_request(complete().to_dict())
    assert request.required_resources == {"CPU": 2.0}


@pytest.mark.parametrize(
    "config",
    [
        QWRConfig().api_stack(
            enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True
        ),
        QWRConfig().update_from_dict({"enable_rl_module_and_learner": True}),
        QWRConfig().update_from_dict({"enable_env_runner_and_connector_v2": True}),
    ],
)
def test_the_new_api_stack_is_refused_with_the_reason(config):
    with pytest.raises(ValueError, match="QWR runs on RLlib's old API stack: its rollout workers"):
        config.environment("Pendulum-v1").validate()


def test_another_framework_is_refused():
    config = QWRConfig().environment("Pendulum-v1").update_from_dict({"framework": "tf2"})
    with pytest.raises(ValueError, match="framework must be 'torch', got 'tf2'"):
        config.validate()


VECTOR, IMAGE = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(0, 255, (36, 36, 1), "uint8")
BOX, DISCRETE = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)


@pytest.mark.parametrize(
    ("spaces", "training", "message"),
    [
        ((VECTOR, DISCRETE), {"action_std": 0.3}, "action_std has no effect with discrete actions"),
        ((VECTOR, DISCRETE), {"action_std": 0.4}, "action_std has no effect with discrete actions"),
        ((VECTOR, BOX), {"image_network": "mnih2013"}, "image_network has no effect with"),
        ((IMAGE, BOX), {"model": {"fcnet_hiddens": [9]}},
         "model.fcnet_hiddens has no effect with images: set model.post_fcnet_hiddens"),
        ((VECTOR, BOX), {"model": {"post_fcnet_hiddens": [9]}},
         "model.post_fcnet_hiddens has no effect with .* vectors: set model.fcnet_hiddens"),
        ((VECTOR, BOX), {"model": {"conv_filters": [[16, 8, 4]]}},
         "model.conv_filters has no effect with observations that are vectors"),
    ],
)  # fmt: skip
def test_what_the_environment_makes_no_use_of_is_refused(spaces, training, message):
    config = QWRConfig().training(**training)
    with pytest.raises(ValueError, match=message):
        config.check_spaces(*spaces)
    with pytest.raises(ValueError, match=message):
        QWRConfig().update_from_dict(training).copy(copy_frozen=True).check_spaces(*spaces)
    assert "chosen" not in config.to_dict()
    QWRConfig().update_from_dict(QWRConfig().to_dict()).check_spaces(VECTOR, DISCRETE)
    for other in ((VECTOR, BOX), (IMAGE, BOX), (VECTOR, DISCRETE)):
        QWRConfig().check_spaces(*other)
