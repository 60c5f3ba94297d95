"""The site: it builds without a warning, every public name has a page, every link and every anchor of it leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

import mmalign as mm

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scripts" / "docs"
LINK = re.compile(r'<(?:a|img|link|script)\b[^>]*?\s(?:href|src)="?([^"\s>]+)')
ANCHOR = re.compile(r'\s(?:id|name)="?([^"\s>]+)')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, as one command builds it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(FOLDER / "build.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr, done.stdout + done.stderr
    return out


def public() -> Iterator[str]:
    """Every name behind ``mm.``, as Python finds it."""
    rooms = (*mm.ROOMS, *mm.FILES)
    yield from (name for name in dir(mm) if not name.startswith("_") and name not in rooms)
    for room in rooms:
        yield from (f"{room}.{name}" for name in dir(getattr(mm, room)) if not name.startswith("_"))


def broken(site: Path) -> list[str]:
    """Links of the site that lead to no file of it, or to no anchor."""
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html") if path.name != "404.html"}
    anchors = {path: {unquote(anchor) for anchor in ANCHOR.findall(text)} for path, text in pages.items()}
    wrong = []
    for path, text in pages.items():
        for link in set(LINK.findall(text)):
            address, _, place = unquote(link).replace("&amp;", "&").partition("#")
            if re.match(r"[a-z]+:", address):
                continue
            there = Path(os.path.normpath(path.parent / address)) if address else path
            if not there.is_file() or (place and there in anchors and place not in anchors[there]):
                wrong.append(f"{path.relative_to(site)}: {link}")
    return wrong


def test_every_public_name_has_a_page(site):
    headings = {}
    for page in (site / "api").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for path in re.findall(r"<code>mm\.([\w.]+)</code>", text.partition("</h1>")[2][:4000]):
            if path.rpartition(".")[2] == page.stem.removesuffix("_class"):
                headings[path] = page
    wanted = set(public())
    assert len(wanted) > 480 and sorted(wanted - headings.keys()) == []


def test_every_link_leads_somewhere(site):
    assert broken(site) == []


def test_a_link_that_leads_nowhere_is_found(site, tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<h2 id="here"></h2><a href="#here">a</a><a href="#there">b</a><a href="other.html">c</a><a href="https://x.org">d</a>')
    assert [line.partition(": ")[2] for line in sorted(broken(tmp_path))] == ["#there", "other.html"]


def test_nothing_is_loaded_from_elsewhere(site):
    loaded = re.compile(r'<(?:script|img|iframe)\b[^>]*?\ssrc="?(?:https?:)?//|<link\b[^>]*?rel="?stylesheet"?[^>]*?href="?(?:https?:)?//')
    assert [str(page) for page in site.rglob("*.html") if loaded.search(page.read_text(encoding="utf-8"))] == []
    assert (site / "search" / "search_index.js").is_file()


def test_a_page_says_what_explain_says(site):
    page = re.sub(r"<[^>]+>", "", (site / "api" / "methods" / "kto.html").read_text(encoding="utf-8"))
    for words in ("Thumbs up or down on single rows", "w_D and w_U", "arXiv 2402.01306", "contrast:mismatched", "TRL 1.16", "def kto("):
        assert words in page
