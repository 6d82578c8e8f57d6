"""Collects the wheels that benchmarks/gpu/run.sh installs on a machine without a registry.

python benchmarks/gpu/wheels.py --python 3.12
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click

# torch and numpy must be installed there; OpenCV has a stand-in.
NAMES = (
    *("gymnasium", "farama-notifications", "cloudpickle", "ale-py", "mujoco", "mujoco-core"),
    *("glfw", "pyopengl"),  # `import mujoco` needs them
    *("click", "pyyaml", "safetensors", "pandas", "python-dateutil", "six", "typing-extensions"),
)
BOUNDS = {"gymnasium": ">=1.1,<1.3", "ale-py": ">=0.11,<0.13"}
# The two must be of one release: that which is installed here.
BOUNDS |= {name: f"=={version(name)}" for name in ("mujoco", "mujoco-core")}


@click.command()
@click.option("--python", default="3.12", show_default=True, help="The version over there.")
@click.option("--platform", default="manylinux_2_28_x86_64", show_default=True)
@click.option("--without", multiple=True, type=click.Choice(NAMES))
def main(python: str, platform: str, without: tuple[str, ...]) -> None:
    folder = Path(__file__).with_name("wheels")
    folder.mkdir(exist_ok=True)
    names = [name for name in NAMES if name not in without]
    places = [platform, platform.replace("_2_28", "_2_27"), "manylinux2014_x86_64"]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary", ":all:", "--python-version", python, "--dest", str(folder)),
            *(option for place in places for option in ("--platform", place)),
            *(name + BOUNDS.get(name, "") for name in names),
        ],
        check=True,
    )
    (folder / "names.txt").write_text(" ".join(names) + "\n")
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
    click.echo(f"{len(names)} wheels, {size / 1e6:.0f} MB, in {folder}")


if __name__ == "__main__":
    main()
