"""Tables, figures and a page from Tune's result folders, ours beside the paper's.

``trials`` reads the folders, ``groups`` groups trials that differ only in their seed,
``statistics`` computes means and intervals, and ``paper`` has published scores. ``tables``,
``figures`` and ``page`` make the output.
"""

COMMANDS_FILE = "commands.txt"
"""The file in an experiment's folder with the commands that started it."""


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun: ``1 seed``, ``2 seeds``."""
    return f"{number} {noun}{'s' * (number != 1)}"
