"""Pages that stand beside what they describe, in the repository, brought to the site: their links lead to pages of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mmalign.lookup.catalogue import configs

ROOT = Path(__file__).parents[2]

PAGES = {
    "README.md": "index.md",
    ".github/CONTRIBUTING.md": "contributing.md",
    ".github/CHANGELOG.md": "changelog.md",
    "configs/README.md": "configs/index.md",
    "configs/text/README.md": "configs/text_results.md",
    "configs/text/TUNED.md": "configs/text_tuned.md",
    "configs/text_small/README.md": "configs/text_small_results.md",
    "mmalign/data/README.md": "pages/data.md",
    "mmalign/distributed/README.md": "pages/distributed.md",
    "mmalign/environments/README.md": "pages/environments.md",
    "mmalign/evaluation/README.md": "pages/evaluation.md",
    "mmalign/labelling/README.md": "pages/labelling.md",
    "mmalign/guidance/README.md": "pages/guidance.md",
    "mmalign/lookup/COVERAGE.md": "pages/coverage.md",
    "mmalign/merges/README.md": "pages/merges.md",
    "mmalign/methods/ROLES.md": "pages/roles.md",
    "mmalign/policies/inspecting/README.md": "pages/memory.md",
    "mmalign/policies/language/codes/README.md": "pages/image_tokens.md",
    "mmalign/policies/pipelines/CONFORMANCE.md": "pages/conformance.md",
    "mmalign/report/README.md": "pages/report.md",
    "mmalign/rewards/README.md": "pages/rewards.md",
    "mmalign/runs/README.md": "pages/runs.md",
    "mmalign/serving/README.md": "pages/serving.md",
    "mmalign/training/README.md": "pages/training.md",
    "mmalign/worlds/calculator/README.md": "pages/calculator.md",
    "mmalign/worlds/tabular/README.md": "pages/tabular.md",
    "mmalign/worlds/digit_scenes/README.md": "pages/digit_scenes.md",
    "scripts/examples/README.md": "pages/examples.md",
    "scripts/bench/README.md": "bench/index.md",
    "scripts/bench/LEAGUE.md": "bench/league.md",
    "scripts/bench/SCALING.md": "bench/scaling.md",
}
"""file of the repository -> page of the site."""
PAGES |= {
    str(path.relative_to(ROOT)): f"pages/{path.parent.name}.md"
    for path in sorted((ROOT / "mmalign").rglob("README.md"))
    if str(path.relative_to(ROOT)) not in PAGES
}
PAGES |= {
    str(path.relative_to(ROOT)): f"configs/{path.parent.name}_results.md"
    for path in sorted((ROOT / "configs").glob("*/README.md"))
    if str(path.relative_to(ROOT)) not in PAGES
}

OWN = "scripts/docs/pages/"
"""The pages that are the site's own."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
SHOWN = {".png", ".svg", ".jpg", ".gif"}


def text(source: str) -> str:
    """A borrowed page's Markdown. Errors: FileNotFoundError for a link to nothing."""
    return moved((ROOT / source).read_text(encoding="utf-8"), source, PAGES[source])


def moved(markdown: str, source: str, page: str) -> str:
    """A page's Markdown, its links to files of the repository moved to their pages.

    source: its file in the repository. page: its place on the site. Links of the site's own pages to pages that are made stay as they are.
    """

    def link(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        address, _, place = target.partition("#")
        file = os.path.normpath(os.path.join(os.path.dirname(source), address))
        if not address or re.match(r"[a-z]+:", address) or (file.startswith(OWN) and not (ROOT / file).exists()):
            return match.group(0)
        there = _page_of(file, place)
        return f"{mark}[{words}]({os.path.relpath(there, os.path.dirname(page))})" if there else f"{words} (`{file}`)"

    return LINK.sub(link, markdown)


def pictures() -> Iterator[tuple[str, Path]]:
    """(path on the site, file) of the pictures of all pages."""
    for source in PAGES:
        for _, _, target in LINK.findall((ROOT / source).read_text(encoding="utf-8")):
            file = os.path.normpath(os.path.join(os.path.dirname(source), target.partition("#")[0]))
            if Path(file).suffix in SHOWN and ":" not in target:
                yield file, ROOT / file


def _page_of(file: str, place: str) -> str:
    """Where a file of the repository is on the site; empty for what has no page."""
    if not (ROOT / file).exists():
        raise FileNotFoundError(f"{file}: a page links to it, and there is no such file")
    if file.startswith(OWN):
        return f"{file.removeprefix(OWN)}{'#' * bool(place)}{place}"
    config = file.removeprefix("configs/").removesuffix(".yaml")
    if file.startswith("configs/") and config in configs():
        return f"configs/{os.path.dirname(config)}.md#{os.path.basename(config)}"
    if Path(file).suffix in SHOWN:
        return file
    return f"{PAGES[file]}{'#' * bool(place)}{place}" if file in PAGES else ""
