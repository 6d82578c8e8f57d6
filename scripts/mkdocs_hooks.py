"""Lets pages of docs/ link to files elsewhere in the repository.

On the web site a link to such a file leads to ``repo_url``; where none is set, it becomes the path
of the file as text. A picture is copied into the site, so that each is in the repository once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = re.compile(
    r"(?P<image>!?)\[(?P<text>[^\]]*)\]\(\.\./(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
)


def on_files(files: Files, config: Any) -> None:
    """Adds the pictures outside of docs/ that pages show."""
    root = Path(config.docs_dir).parent
    for page in list(files.documentation_pages()):
        for link in OUTSIDE.finditer(page.content_string):
            path = link["path"]
            if link["image"] and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(root / path)))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrites the links that leave docs/."""

    def rewritten(link: re.Match[str]) -> str:
        text, path = link["text"], link["path"]
        if link["image"]:
            return f"![{text}]({path})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path}{link['anchor'] or ''})"
        named = text.strip("`").rstrip("/").endswith(path.rstrip("/").rpartition("/")[2])
        return f"`{path}`" if named else f"{text} (`{path}`)"

    return OUTSIDE.sub(rewritten, markdown)
