"""Tables, figures and a page from Tune's result folders, ours beside the paper's.

``trials`` reads the folders, ``groups`` says which trials are seeds of the same thing,
``statistics`` has means and intervals, ``paper`` the numbers of others; ``tables``, ``figures`` and
``page`` are what comes out.
"""

COMMANDS_FILE = "commands.txt"
"""The file in an experiment's folder that has the commands it was started with."""


def counted(number: int, noun: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{number} {noun}{'s' * (number != 1)}"
