"""Writes the tables of docs/settings.md: the settings of QWR, QWRPlus, AWR and AWAC.

    python scripts/settings_table.py

Names, types and descriptions come from :mod:`qwr_rllib.learning.config`, defaults from the three
algorithms' configs. A setting that no group below names is an error, so that none is forgotten.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_type_hints

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from qwr_rllib import AWACConfig, AWRConfig, QWRConfig, QWRPlusConfig
from qwr_rllib.learning import config

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
BEGIN, END = "<!-- begin: scripts/settings_table.py -->\n", "<!-- end -->\n"
GROUPS = {
    "How much is collected and trained": [
        "n_interactions", "batch_mode", "n_critic_steps", "n_actor_steps", "train_batch_size",
        "replay_capacity",
    ],
    "Critic": [
        "gamma", "margin", "lambda_", "backup", "backup_temperature", "q_spread",
        "target_update_freq", "tau", "critic_lr", "q_scale", "critic_type", "num_critics",
        "critic_network", "critic_post_gate_layer",
    ],
    "Actor": [
        "beta", "max_weight", "advantage_scaling", "n_action_samples", "action_std", "actor_lr",
        "actor_actions", "samples_from", "sample_ascent",
    ],
    "Both": ["adam_epsilon", "grad_clip", "model", "normalize_observations"],
    "Images": ["image_network", "image_precision", "image_shift", "frame_stack", "reward_clip"],
    "Data": ["offline", "max_refused_fraction"],
    "Speed": [
        "learner_threads", "critic_precision", "compile", "cuda_graphs", "overlap_sampling",
    ],
}  # fmt: skip
# What RLlib's config has too, so that neither of the two sources describes it.
RLLIB = {
    "model": (
        "dict",
        "Networks: `fcnet_hiddens` and `fcnet_activation` for vectors, `conv_filters` and "
        "`post_fcnet_hiddens` for images.",
    ),
}


def described() -> dict[str, tuple[str, str]]:
    """The type and the description of each setting."""
    hints, texts = get_type_hints(config.QWRSettings), config.descriptions()
    qualifier = re.compile(r"\b[a-z]\w*\.|<class '|'>")
    return RLLIB | {name: (qualifier.sub("", str(hints[name])), texts[name]) for name in texts}


def markdown(text: str) -> str:
    """One line of Markdown for a docstring's paragraph."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", r"\|")


def shown(value: Any) -> str:
    """A default as it stands in a YAML file."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:g}".partition("e")
        return f"{float(mantissa)}e{int(exponent)}" if exponent else str(value)
    return str(value)


def default(of: AlgorithmConfig, name: str) -> str:
    if name == "model":
        return ", ".join(f"{key}: {shown(of.model[key])}" for key in config.MODEL)
    return shown(getattr(of, name))


def tables() -> str:
    """The Markdown between the two marks of the page.

    Raises:
        KeyError: naming settings that no group names.
    """
    configs = {"AWR": AWRConfig(), "AWAC": AWACConfig(), "QWRPlus": QWRPlusConfig()}
    base = QWRConfig()
    own = config.defaults(config.QWRSettings)
    if missing := own.keys() - {name for group in GROUPS.values() for name in group}:
        raise KeyError(f"settings in no group of {__file__}: {sorted(missing)}")
    about, lines = described(), []
    for group, names in GROUPS.items():
        lines += [f"### {group}", "", "| setting | default | type | |", "| --- | --- | --- | --- |"]
        for name in names:
            value = f"`{default(base, name)}`"
            for algorithm, changed in configs.items():
                if (other := default(changed, name)) != default(base, name):
                    value += f"; {algorithm} `{other}`"
            kind, text = about[name]
            kind = kind.replace("|", r"\|")
            lines.append(f"| `{name}` | {value} | `{kind}` | {markdown(text)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + tables() + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
