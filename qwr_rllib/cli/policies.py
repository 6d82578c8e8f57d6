"""The names of policies to play: checkpoints, and files that `qwr export` or a training wrote.

Imports nothing slow.
"""

from __future__ import annotations

from pathlib import Path

import qwr_rllib
from qwr_rllib.cli.errors import ConfigError, require_file, require_folder
from qwr_rllib.validation import did_you_mean

POLICY_FILE = "policy.safetensors"
PRETRAINED = Path(qwr_rllib.__file__).with_name("pretrained")
"""Each policy that comes with this package has a folder in it: the policy and its card."""
NO_HUB = "hf: and `push` need the package huggingface_hub: pip install 'qwr-rllib[hub]'"


def located(name: Path) -> Path:
    """Finds a policy: its file, or the folder of a checkpoint, trial or experiment.

    Args:
        name: a folder, ``FILE.safetensors``, ``pretrained:NAME`` or ``hf:OWNER/REPO[@REVISION]``,
            which is downloaded into the hub's cache.

    Raises:
        ConfigError: There is no such policy.
    """
    kind, _, rest = str(name).partition(":")
    if kind == "pretrained":
        return _pretrained(rest)
    if kind == "hf":
        return _downloaded(rest)
    if name.suffix == ".safetensors":
        require_file(name)
    else:
        require_folder(name, "checkpoint")
    return name


def _pretrained(name: str) -> Path:
    known = sorted(folder.parent.name for folder in PRETRAINED.glob(f"*/{POLICY_FILE}"))
    if name not in known:
        raise ConfigError(
            f"no policy pretrained:{name}{did_you_mean(name, known)}; there are {', '.join(known)}"
        )
    return PRETRAINED / name / POLICY_FILE


def _downloaded(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise ConfigError(NO_HUB) from error
    repo, _, revision = name.partition("@")
    try:
        return Path(hf_hub_download(repo, POLICY_FILE, revision=revision or None))
    except Exception as error:  # from the client, its HTTP library or the connection
        raise ConfigError(f"cannot get {POLICY_FILE} of hf:{name}: {error}") from error
