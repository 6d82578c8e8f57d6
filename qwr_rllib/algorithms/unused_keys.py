"""RLlib's settings that have no effect here: setting one of them is an error.

QWR runs on RLlib's old API stack with its own learner and networks. Without this check, settings
of the new stack and of RLlib's learners, data readers and models would be silently ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.models import MODEL_DEFAULTS

_OWN_LEARNER = "QWR has a learner of its own, in the main process"
_NEW_STACK = "it is of RLlib's new API stack, QWR is on the old one"

UNUSED: dict[str, str] = {
    # Attribute of an AlgorithmConfig -> what to set instead, or why it has no effect.
    "lr": "set critic_lr and actor_lr",
    "minibatch_size": "set train_batch_size",
    "train_batch_size_per_learner": "set train_batch_size",
    "_train_batch_size_per_learner": "set train_batch_size",
    "num_epochs": "set n_critic_steps and n_actor_steps",
    "shuffle_batch_per_epoch": "minibatches are drawn at random from the replay",
    "optimizer": "set critic_lr, actor_lr and adam_epsilon",
    "num_learners": _OWN_LEARNER,
    "num_gpus_per_learner": "set num_gpus",
    "num_cpus_per_learner": "set num_cpus_for_main_process and learner_threads",
    "custom_resources_per_learner": "set custom_resources_for_main_process",
    "local_gpu_idx": "set CUDA_VISIBLE_DEVICES",
    **dict.fromkeys(
        (
            "num_aggregator_actors_per_learner",
            "max_requests_in_flight_per_aggregator_actor",
            "max_requests_in_flight_per_learner",
            "_learner_connector",
            "add_default_connectors_to_learner_pipeline",
            "learner_config_dict",
            "_learner_class",
            "torch_ddp_kwargs",
            "log_gradients",
            "_torch_grad_scaler_class",
            "_torch_lr_scheduler_classes",
            "algorithm_config_overrides_per_module",
        ),
        _OWN_LEARNER,
    ),
    "torch_skip_nan_gradients": "the replay refuses rows that are not finite",
    **dict.fromkeys(
        (
            "torch_compile_learner",
            "torch_compile_learner_dynamo_backend",
            "torch_compile_learner_dynamo_mode",
            "torch_compile_worker",
            "torch_compile_worker_dynamo_backend",
            "torch_compile_worker_dynamo_mode",
        ),
        "set compile",
    ),
    **dict.fromkeys(
        ("eager_tracing", "eager_max_retraces", "enable_tf1_exec_eagerly"),
        "it is TensorFlow's, QWR is written in PyTorch",
    ),
    "clip_rewards": "set reward_clip",
    "action_mask_key": _NEW_STACK,
    "update_worker_filter_stats": "set normalize_observations",
    "use_worker_filter_stats": "set normalize_observations",
    **dict.fromkeys(
        (
            "gym_env_vectorize_mode",
            "episodes_to_numpy",
            "_env_to_module_connector",
            "add_default_connectors_to_env_to_module_pipeline",
            "_module_to_env_connector",
            "add_default_connectors_to_module_to_env_pipeline",
            "merge_env_runner_states",
            "broadcast_env_runner_states",
            "use_env_runner_state_server",
            "env_runner_state_server_max_concurrency",
            "episode_lookback_horizon",
        ),
        _NEW_STACK,
    ),
    "_model_config": "set model",
    "_rl_module_spec": "set model",
    **dict.fromkeys(
        (name for name in vars(AlgorithmConfig()) if name.startswith("callbacks_on_")),
        "RLlib's old API stack calls the methods of a callbacks_class alone",
    ),
    **dict.fromkeys(
        (
            "input_",
            "offline_data_class",
            "input_read_method",
            "input_read_method_kwargs",
            "input_read_schema",
            "input_read_episodes",
            "input_read_sample_batches",
            "input_read_batch_size",
            "input_filesystem",
            "input_filesystem_kwargs",
            "input_compress_columns",
            "input_spaces_jsonable",
            "materialize_data",
            "materialize_mapped_data",
            "map_batches_kwargs",
            "iter_batches_kwargs",
            "ignore_final_observation",
            "prelearner_class",
            "prelearner_buffer_class",
            "prelearner_buffer_kwargs",
            "prelearner_module_synch_period",
            "prelearner_use_recorded_module_states",
            "dataset_num_iters_per_learner",
            "input_config",
            "actions_in_input_normalized",
            "postprocess_inputs",
            "shuffle_buffer_size",
        ),
        "set offline",
    ),
    **dict.fromkeys(
        (
            "off_policy_estimation_methods",
            "ope_split_batch_by_episode",
            "offline_evaluation_interval",
            "num_offline_eval_runners",
            "offline_evaluation_type",
            "offline_eval_runner_class",
            "offline_loss_for_module_fn",
            "offline_evaluation_duration",
            "offline_evaluation_parallel_to_training",
            "offline_evaluation_timeout_s",
            "num_cpus_per_offline_eval_runner",
            "num_gpus_per_offline_eval_runner",
            "custom_resources_per_offline_eval_runner",
            "restart_failed_offline_eval_runners",
            "ignore_offline_eval_runner_failures",
            "max_num_offline_eval_runner_restarts",
            "offline_eval_runner_restore_timeout_s",
            "max_requests_in_flight_per_offline_eval_runner",
            "validate_offline_eval_runners_after_construction",
            "offline_eval_runner_health_probe_timeout_s",
            "offline_eval_rl_module_inference_only",
            "broadcast_offline_eval_runner_states",
            "offline_eval_batch_size_per_runner",
            "dataset_num_iters_per_eval_runner",
        ),
        "QWR is evaluated in its environment, see evaluation_interval",
    ),
}

MODEL_KEYS = ("fcnet_hiddens", "fcnet_activation", "conv_filters", "post_fcnet_hiddens")
"""The keys of RLlib's ``model`` from which the networks are built."""
UNUSED_MODEL: dict[str, str] = {
    name: f"the networks are made from {', '.join(MODEL_KEYS)}"
    for name in MODEL_DEFAULTS
    if name not in MODEL_KEYS and not name.startswith("_")  # RLlib sets these itself
}


def refuse(name: str, value: Any, unused: Mapping[str, str] = UNUSED, where: str = "") -> None:
    """Raises ``ValueError`` if a setting does nothing, saying what to set instead."""
    if name in unused:
        # A config's methods take `learner_class` and store it as `_learner_class`.
        raise ValueError(f"{where}{name.lstrip('_')} has no effect, {unused[name]}; got {value!r}")


def unchanged(
    given: Mapping[str, Any], now: Mapping[str, Any], unused: Mapping[str, str] = UNUSED
) -> set[str]:
    """Returns the keys of a complete dict whose values equal the config's.

    RLlib and Tune pass complete configs as dicts (``to_dict()``, ``result.json``). A dict with most
    of the unused keys is such a config; for a dict that a user wrote, the result is empty.
    """
    if sum(name in unused for name in given) <= len(unused) / 2:
        return set()
    return {name for name in given if name in now and _text(given[name]) == _text(now[name])}


def _text(value: Any) -> str:
    """Returns a value as JSON; other objects are strings without their memory addresses."""
    return re.sub(r" at 0x\w+", "", json.dumps(value, default=str))
