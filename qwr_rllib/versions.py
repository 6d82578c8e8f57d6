"""Versions of the packages, and the commit, that a trial ran with."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import qwr_rllib

PACKAGES = ("ray", "torch", "numpy", "gymnasium", "mujoco", "ale-py")


def versions() -> dict[str, str]:
    """Returns the versions of this package and its main dependencies, and the commit if known.

    A trial's results contain them, so that a report can state what the trial ran with.
    """
    found = {"qwr-rllib": qwr_rllib.__version__}
    if commit := _commit():
        found["commit"] = commit
    found["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Returns the commit of this package's checkout, with ``-dirty`` if files differ from it.

    For a package that pip installed from a repository, returns the commit that pip recorded.
    """
    folder = Path(qwr_rllib.__file__).parent
    try:
        # The folder may be inside another repository, such as a user's project.
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
        return f"{commit}-dirty" if changed else commit
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        noted = metadata.distribution("qwr-rllib").read_text("direct_url.json")
        commit = json.loads(noted or "{}").get("vcs_info", {}).get("commit_id")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    return str(commit)[:12] if commit else None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()
