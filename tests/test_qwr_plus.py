"""QWRPlus: QWR with other defaults, on RLlib."""

import pytest
from ray.tune.registry import get_trainable_cls

from qwr_rllib import QWRConfig, QWRPlus, QWRPlusConfig
from qwr_rllib.learning.config import ALGORITHMS
from qwr_rllib.learning.networks import JointCritic

FEW = {"n_interactions": 20, "n_critic_steps": 3, "n_actor_steps": 2, "train_batch_size": 16}


def test_its_defaults_differ_from_qwrs_as_the_list_says():
    own, qwr = (config.to_dict() for config in (QWRPlusConfig(), QWRConfig()))
    assert own.keys() == qwr.keys()
    differing = {key: own[key] for key in own if own[key] != qwr[key]}
    assert differing == ALGORITHMS["QWRPlus"]
    assert not QWRPlusConfig().chosen  # by the user
    assert get_trainable_cls("QWRPlus") is QWRPlus


@pytest.mark.ray
def test_a_result_is_of_several_iterations(local_ray, tmp_path):
    config = (
        QWRPlusConfig()
        .environment("Pendulum-v1")
        .env_runners(num_env_runners=0)
        .debugging(seed=1)
        .training(**FEW)
        .reporting(min_sample_timesteps_per_iteration=50)
    )
    algo = config.build_algo()
    try:
        result = algo.train()
        assert result["num_env_steps_sampled_lifetime"] == 60
        assert result["learner"]["num_critic_updates_lifetime"] == 9
        assert result["learner"]["num_actor_updates_lifetime"] == 6
        assert [type(each) for each in algo.learner.critics] == [JointCritic, JointCritic]
        path = algo.save(str(tmp_path / "saved")).checkpoint.path
    finally:
        algo.stop()
    restored = QWRPlus.from_checkpoint(path)
    try:
        assert restored.train()["learner"]["num_critic_updates_lifetime"] == 18
    finally:
        restored.stop()


@pytest.mark.ray
def test_discrete_actions_need_another_setting(local_ray):
    config = QWRPlusConfig().environment("CartPole-v1").env_runners(num_env_runners=0)
    with pytest.raises(ValueError, match="sample_ascent must be 0 where actions are discrete"):
        config.training(**FEW).build_algo()
