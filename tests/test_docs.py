"""The documentation: its links, its Python, its numbers.

A Python block is run unless the line before it is ``<!-- not run: why -->``. A line
``<!-- run as: "a" -> "b"; ... -->`` replaces parts of the block, so that it takes seconds. The
blocks of a page share their names, as in one session. Tune is not run: a sweep's blocks are run up
to the point where Tune would start.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray import tune

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"] + [
    page for folder in ("docs", "research", "benchmarks") for page in (ROOT / folder).glob("*.md")
]
BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```python\n(?P<code>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")
REPLACEMENT = re.compile(r'"([^"]*)" -> "([^"]*)"')


def blocks(text: str) -> list[str]:
    """Returns the Python blocks of a page as they are run."""
    found = []
    for block in BLOCK.finditer(text):
        mark, code = block["mark"] or "", block["code"]
        if mark.startswith("not run: "):
            continue
        for old, new in REPLACEMENT.findall(mark.removeprefix("run as: ")):
            assert old in code, f"{old!r} is not in the block"
            code = code.replace(old, new)
        found.append(code)
    return found


def anchors(text: str) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in plain}


def broken_links(page: Path) -> list[str]:
    """Returns the broken relative links of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    broken = []
    for link in LINK.finditer(text):
        target = page.parent / link["path"] if link["path"] else page
        if not target.exists() or (
            link["anchor"]
            and target.suffix == ".md"
            and link["anchor"] not in anchors(target.read_text())
        ):
            broken.append(link[0])
    return broken


def test_every_relative_link_leads_somewhere():
    broken = {str(page.relative_to(ROOT)): broken_links(page) for page in PAGES if page.exists()}
    assert not {page: links for page, links in broken.items() if links}


def test_a_broken_link_and_a_broken_anchor_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A title, so\n[a](#a-title-so) [b](#no) [c](no.md) [d](page.md#a-title-so)\n")
    assert broken_links(page) == ["](#no)", "](no.md)"]


RUN = [page for page in PAGES if page.exists() and blocks(page.read_text())]


@pytest.mark.parametrize("page", RUN, ids=[page.name for page in RUN])
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    best = SimpleNamespace(path="best")
    grid = SimpleNamespace(get_best_result=lambda *arguments: best)
    monkeypatch.setattr(tune.Tuner, "fit", lambda tuner: grid)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for number, code in enumerate(blocks(page.read_text()), 1):
        exec(compile(code, f"{page.name}, block {number}", "exec"), names)


def test_the_tables_of_results_are_those_of_the_script(monkeypatch):
    """docs/results.md has the script's tables, and README.md the first one's scores of QWR."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import results_tables

    text = results_tables.PAGE.read_text()
    assert results_tables.page(text) == text, "run: python scripts/results_tables.py"
    readme = (ROOT / "README.md").read_text()
    for line in results_tables.table1().splitlines():
        if ", here" in line:
            score, interval = line.split("|")[2].split(" ", 2)[1], re.search(r"\[.*?\]", line)[0]
            assert f"**{score}** {interval}" in readme
