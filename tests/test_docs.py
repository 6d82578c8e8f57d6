"""The documentation: its links and its numbers."""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"] + [
    page for folder in ("docs", "research", "benchmarks") for page in (ROOT / folder).glob("*.md")
]
LINK = re.compile(r"\]\((?!https?:|mailto:)(?P<path>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in plain}


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
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


def test_the_table_of_results_is_that_of_the_report():
    """docs/results.md and README.md state what results/table1 has, rounded."""
    report = (ROOT / "results/table1/report/tables/final_scores.csv").read_text()
    rows = [row for row in csv.DictReader(report.splitlines()) if "logsumexp" in row["group"]]
    assert len(rows) == 4
    for page in ("README.md", "docs/results.md"):
        text = (ROOT / page).read_text()
        for row in rows:
            score, low, high = (float(row[f"evaluation_{part}"]) for part in ("iqm", "low", "high"))
            assert f"**{score:.0f}** [{low:.0f}, {high:.0f}]" in text
