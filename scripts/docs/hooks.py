"""What mkdocs asks while it builds: pages that are made from names, docstrings and configs, and those that stand beside the code."""

from __future__ import annotations

import logging

import borrowed
import examples
import reference
import tables
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mmalign.lookup import coverage

log = logging.getLogger("mkdocs.hooks.mmalign")
FIRST = ("index.md", "faq.md", "jobs/", "migrate/")
"""Pages that a search finds before those of single names: who asks for a learning rate wants to set one, and there are 20 optimisers."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is generated and what is borrowed."""
    made = [*reference.pages(), *examples.pages(), *((page, borrowed.text(source)) for source, page in borrowed.PAGES.items())]
    made.append(("pages/coverage.md", coverage.page(coverage.systems())))
    for page, content in made:
        files.append(File.generated(config, page, content=content))
    for place, picture in dict(borrowed.pictures()).items():
        files.append(File.generated(config, place, abs_src_path=str(picture)))
    log.info("%d pages were made", len(made))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills what a page leaves to a table, ``<!-- table: NAME -->``, and moves the links of the site's own pages."""
    place = page.file.src_uri
    if place.startswith(FIRST):
        page.meta["search"] = {"boost": 4}
    own = (borrowed.ROOT / borrowed.OWN / place).is_file()
    return tables.filled(borrowed.moved(markdown, borrowed.OWN + place, place) if own else markdown, place)
