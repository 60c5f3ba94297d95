"""Pages of the reference: one for each public name, from its docstring, and one for each topic. The words of ``mmalign explain``."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterator
from functools import cache
from itertools import groupby

from examples import uses
from names import PARTS, Named, named, of_topic, page_of

from mmalign.lookup.catalogue import KINDS
from mmalign.lookup.dialects import dialects
from mmalign.lookup.docstrings import Explanation, explanation
from mmalign.lookup.usage import keywords, needs, written

TITLES = {
    "recipes": "Recipes", "methods": "Methods by family", "policies": "Policies", "readers": "Readers of reward models",
    "heads": "Heads of reward models", "segments": "Segments of texts",
    "rewards": "Rewards", "oracles": "Oracles", "metrics": "Metrics", "combinations": "Combinations",
    "transforms": "Transforms of rewards", "guidance": "Guidance", "settings": "Settings", "optimizers": "Optimisers",
    "kernels": "Kernels of denoising steps", "windows": "Windows of trained steps", "branches": "Branches", "merges": "Merges of models",
    "worlds": "Small worlds", "environments": "Environments", "tools": "Tools", "data": "Data", "suites": "Benchmarks",
    "commands": "Commands", PARTS: "Records and functions behind them",
}  # fmt: skip
"""topic -> its title, in the order of the menu."""

FAMILIES = ("methods", "rewards")
"""Topics whose folders part them."""
TOP = "Served and trained"
"""The family of the rewards that stand in no folder of their own."""


def pages() -> Iterator[tuple[str, str]]:
    """(path from the root of the site, markdown) of all of them."""
    for topic in TITLES:
        yield f"api/{topic}.md", "\n".join(_topic(topic))
    for one in named():
        yield one.page, _page(one)


def _topic(topic: str) -> Iterator[str]:
    """A table of what there is, parted by family where there are families."""
    kind = KINDS.get(topic)
    yield f"# {TITLES[topic]}\n"
    what = f"{kind.what[0].upper()}{kind.what[1:]}." if kind else "What the functions of the other pages take and return, and are made of."
    listed = f" On the command line: `mmalign list {topic}`." if kind else ""
    yield f"{what} {len(of_topic(topic))} names.{listed}\n"
    if topic not in FAMILIES:
        yield from _table(of_topic(topic), topic)
        return
    for folder, members in groupby(sorted(of_topic(topic), key=_folder), key=_folder):
        module = importlib.import_module(folder.strip("/").replace("/", "."))
        words = (module.__doc__ or "").partition("\n")[0]
        yield f"## {_family(folder)}\n\n{words if _family(folder) != TOP else ''}\n"
        yield from _table(sorted(members, key=lambda one: one.listing.name), topic)


def _table(rows: list[Named], topic: str) -> Iterator[str]:
    papers = any(one.listing.paper for one in rows)
    yield "| name | what it is |" + (" paper |" if papers else "")
    yield "|---|---|" + ("---|" if papers else "")
    for one in rows:
        name = one.listing.name if one.listing.kind else one.paths[0]
        link = f"[`{name}`]({os.path.relpath(one.page, 'api')})"
        yield f"| {link} | {cell(one.listing.meaning)} |" + (f" {linked(cell(one.listing.paper))} |" if papers else "")
    yield ""


def _folder(one: Named) -> str:
    return one.listing.place.rpartition("/")[0]


def _family(folder: str) -> str:
    """The heading of a folder."""
    name = folder.rpartition("/")[2]
    return TOP if name == "rewards" else name.replace("_", " ").capitalize()


def _page(one: Named) -> str:
    """A name's page: what it is, how it is written, its formula, every keyword, paper, needs, examples, source."""
    made_by = one.load()
    listing = one.listing
    docstring = explanation(made_by) if inspect.isfunction(made_by) or listing.kind else _of_a_class(made_by)
    title = listing.name if listing.setting is None else made_by.__name__
    lines = [f"# {title}\n", f"{prose(docstring.meaning)}\n", _names(one)]
    lines += [f"```{language.lower()}\n{line}\n```\n" for language, line in written(listing, docstring).items()]
    if docstring.formula:
        lines.append(prose(docstring.formula) + "\n")
    lines += _keywords(docstring, made_by)
    lines.append(prose(docstring.remarks) + "\n")
    for head in ("paper", "deviations", "errors"):
        if text := getattr(docstring, head):
            lines.append(f"**{head.capitalize()}.** {linked(prose(text))}\n")
    if asked := needs(listing, made_by):
        lines.append(f"**Needs.** {prose(asked)}.\n")
    lines += _dialects(listing.name, made_by)
    if docstring.examples:
        lines.append(f"## Examples\n\n```pycon\n{docstring.examples}\n```\n")
    lines += _configs(one)
    lines += [f'<details class="quote" data-search-exclude markdown="1"><summary>Source: <code>{listing.place}</code></summary>\n']
    lines += [_source(made_by), "\n</details>\n"]
    return "\n".join(lines)


def _of_a_class(kind: type) -> Explanation:
    text = inspect.cleandoc(kind.__doc__ or "")
    meaning, _, rest = text.partition("\n")
    return Explanation(kind.__name__, meaning, rest.strip("\n").replace("::", ":"), {}, [], "", "", "", "", "", "")


def _names(one: Named) -> str:
    """How Python says it, and the topic it belongs to."""
    here = os.path.dirname(one.page)
    paths = " or ".join(f"`mm.{path}`" for path in one.paths) or f"the key `{_key(one)}` of a config"
    key = f"; the key `{_key(one)}` of a config" if one.listing.setting is not None and one.paths else ""
    return f"{paths}{key}. One of [{TITLES[one.topic].lower()}]({os.path.relpath(f'api/{one.topic}.md', here)}).\n"


def _key(one: Named) -> str:
    setting = one.listing.setting
    return "" if setting is None else ".".join(filter(None, (setting.home, setting.key)))


def _keywords(docstring: Explanation, made_by: object) -> Iterator[str]:
    if not docstring.defaults:
        return
    yield "| keyword | takes | default | meaning |\n|---|---|---|---|"
    for names, takes, default, meaning in keywords(docstring, made_by):  # type: ignore[arg-type]
        yield f"| `{names}` | {cell(takes)} | {f'`{cell(default)}`' if default else ''} | {cell(meaning)} |"
    yield ""


def _dialects(name: str, made_by: object) -> Iterator[str]:
    """What others compute under the name."""
    known = dialects(made_by) if inspect.isfunction(made_by) else []
    if known:
        yield "## In other libraries\n\n| library | the same here | what differs |\n|---|---|---|"
        for dialect in known:
            settings = ", ".join(f"{key}={value!r}" for key, value in dialect.settings.items())
            yield f"| {dialect.who} | {f'`{cell(settings)}`' if settings else 'as it is'} | {cell(dialect.note)} |"
        yield f"\nIn a config: `method: {{use: {name}, like: {known[0].who.split()[0]}}}`.\n"


def _configs(one: Named) -> Iterator[str]:
    """The configs that use it."""
    configs = uses().get(one.listing.name, []) if one.listing.kind not in ("settings", "commands", "") else []
    if configs:
        here = os.path.dirname(one.page)
        links = [f"[`{config}`]({os.path.relpath(f'configs/{os.path.dirname(config)}.md', here)}#{anchor(config)})" for config in configs]
        more = f", and {len(links) - 12} more" if len(links) > 12 else ""
        yield f"**Used in** {', '.join(links[:12])}{more}.\n"


def anchor(config: str) -> str:
    """The anchor of a config on its folder's page."""
    return config.rpartition("/")[2]


def _source(made_by: object) -> str:
    return f"```python\n{inspect.getsource(inspect.unwrap(made_by)).rstrip()}\n```"  # type: ignore[arg-type]


def prose(text: str) -> str:
    """A docstring's prose as Markdown: double backticks are Markdown's too; what looks like a tag or a link outside of them is not one."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(part if part.startswith("    ") else _plain(part) for part in paragraphs)


def _plain(text: str) -> str:
    parts = re.split(r"(``.+?``|`[^`\n]+`)", text, flags=re.DOTALL)
    return "".join(part if place % 2 else re.sub(r"([<*\[\]~])", r"\\\1", part) for place, part in enumerate(parts))


def cell(text: str) -> str:
    """Text as one cell of a table."""
    return prose(" ".join(text.split())).replace("|", "\\|")


@cache
def linked(text: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"\b(?:arXiv )?(\d{4}\.\d{5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def link_of(path: str, here: str) -> str:
    """A link to the page of ``mm.PATH`` from a page of the site. Errors: KeyError where there is none."""
    page = page_of(path)
    if page is None:
        raise KeyError(f"mm.{path} has no page")
    return f"[`{path.rpartition('.')[2]}`]({os.path.relpath(page, os.path.dirname(here))})"
