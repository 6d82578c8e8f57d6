"""Writes the tables of docs/settings.md: the settings of QWR, AWR and AWAC.

    python scripts/settings_table.py

Names, types and descriptions come from ``QWRConfig.training`` and :class:`LearnerConfig`, defaults
from the three configs. A setting that no group below names is an error, so that none is forgotten.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from pathlib import Path
from typing import Any, get_type_hints

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from qwr_rllib import AWACConfig, AWRConfig, QWRConfig, settings
from qwr_rllib.learner import LearnerConfig

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
BEGIN, END = "<!-- begin: scripts/settings_table.py -->\n", "<!-- end -->\n"
GROUPS = {
    "How much is collected and trained": [
        "n_interactions", "n_critic_steps", "n_actor_steps", "train_batch_size", "replay_capacity",
    ],
    "Critic": [
        "gamma", "margin", "lambda_", "backup", "backup_temperature", "q_spread",
        "target_update_freq", "critic_lr", "critic_type", "critic_post_gate_layer",
    ],
    "Actor": [
        "beta", "max_weight", "advantage_scaling", "n_action_samples", "action_std", "actor_lr",
        "actor_actions",
    ],
    "Both": ["adam_epsilon", "grad_clip", "model", "normalize_observations"],
    "Images": ["image_network", "image_precision", "frame_stack", "reward_clip"],
    "Data": ["offline", "max_refused_fraction"],
    "Speed": ["learner_threads", "compile", "cuda_graphs", "overlap_sampling"],
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
    hints = get_type_hints(LearnerConfig) | get_type_hints(QWRConfig.training)
    qualifier = re.compile(r"\b[a-z]\w*\.|<class '|'>")
    types = {name: qualifier.sub("", str(hint)) for name, hint in hints.items()}
    found = dict(RLLIB)
    body = ast.parse(textwrap.dedent(inspect.getsource(LearnerConfig))).body[0].body
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            found[field.target.id] = (types[field.target.id], inspect.cleandoc(text.value.value))
    arguments = inspect.cleandoc(QWRConfig.training.__doc__)
    arguments = arguments[arguments.index("Args:") : arguments.index("Returns:")]
    for entry in re.split(r"\n    (?=\S)", arguments)[1:]:
        name, _, text = entry.partition(": ")
        if not name.startswith("*"):
            found[name] = (types[name], text)
    return found


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


def default(config: AlgorithmConfig, name: str) -> str:
    if name == "model":
        return ", ".join(f"{key}: {shown(config.model[key])}" for key in settings.MODEL)
    return shown(getattr(config, name))


def tables() -> str:
    """The Markdown between the two marks of the page.

    Raises:
        KeyError: naming settings that no group names.
    """
    configs = {"AWR": AWRConfig(), "AWAC": AWACConfig()}
    base = QWRConfig()
    own = vars(base).keys() - vars(AlgorithmConfig()).keys()
    if missing := own - {name for group in GROUPS.values() for name in group}:
        raise KeyError(f"settings in no group of {__file__}: {sorted(missing)}")
    about, lines = described(), []
    for group, names in GROUPS.items():
        lines += [f"### {group}", "", "| setting | default | type | |", "| --- | --- | --- | --- |"]
        for name in names:
            value = f"`{default(base, name)}`"
            for algorithm, config in configs.items():
                if (other := default(config, name)) != default(base, name):
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
