"""What the pages of the site show: files are whole configs and modules, Python blocks run, command lines are ones.

``sh`` is for what takes a real model, a GPU or somebody's data: its words are checked, and its configs. ``bash`` is run as it stands.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.testing import CliRunner

from mmalign.cli import app
from mmalign.lookup.catalogue import configs

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "scripts" / "docs" / "pages"
FENCE = re.compile(r"^( *)```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
COMMAND: Any = typer.main.get_command(app)


class Block(NamedTuple):
    """A fenced block. title: the file that it is, empty for none."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language, title, re.sub(f"^{indent}", "", text, flags=re.M)) for indent, language, title, text in found]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each line that begins with ``mmalign``, its comment taken off."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip().startswith("mmalign "):
            yield shlex.split(line, comments=True)[1:]


def run(words: list[str]) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"mmalign {shlex.join(words)}: {done.output}{done.exception or ''}"
    return done.output


def options(words: list[str]) -> dict[str, Any]:
    """What a command line's words mean to its command. Errors: those of the command line, for an unknown option."""
    return COMMAND.commands[words[0]].make_context(words[0], list(words[1:])).params


def check(words: list[str]) -> None:
    """Whether it is a command with these options; and of one that trains, whether its config has no mistake."""
    given = options(words)
    config = given.get("config") or ""
    if words[0] in ("train", "rehearse", "check", "pairs") and (Path(config).is_file() or config in configs()):
        assert ": no mistakes found" in run(["check", config, *(given.get("overrides") or [])])


OWN = [str(path.relative_to(PAGES)) for path in sorted(PAGES.rglob("*.md"))]
SHOWING = [PAGES / page for page in OWN if blocks(PAGES / page)]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[Block]], None]]:
    """Writes the files that a page shows into a folder of their own, which is where the test then is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(shown: list[Block]) -> None:
        for block in shown:
            if block.title:
                (tmp_path / block.title).write_text(block.text, encoding="utf-8")

    yield write
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", SHOWING, ids=lambda page: page.stem)
def test_what_a_page_shows_works(page, written):
    shown = blocks(page)
    written(shown)
    names: dict[str, Any] = {"__name__": page.stem}
    for language, title, text in shown:
        if title.endswith(".yaml"):
            assert run(["check", "--trust", title]).startswith(f"{title}: no mistakes found")
        elif language == "python" and not title:
            exec(compile(text, str(page), "exec"), names)
        for words in commands(text):
            run(words) if language == "bash" else check(words)


def test_words_of_trl_are_those_of_the_release_that_is_compared_with():
    """What stands in code in the left column of its page: names that TRL 1.16 has, or the trainer and the LoRA under it."""
    pytest.importorskip("trl", minversion="1.16")
    trl, transformers, peft = (Path(str(find_spec(name).origin)).parent for name in ("trl", "transformers", "peft"))  # type: ignore[union-attr]
    sources = [trl / "__init__.py", *(trl / "trainer").glob("*.py"), *(trl / "experimental" / "online_dpo").glob("*.py")]
    sources += [transformers / "training_args.py", transformers / "trainer.py", peft / "tuners" / "lora" / "config.py"]
    known = {word for path in sources for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    page = (PAGES / "migrate" / "trl.md").read_text(encoding="utf-8")
    left = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    words = {word for cell in left for code in re.findall(r"`([^`]+)`", cell) for word in re.findall(r"[A-Za-z_]\w+", code)}
    assert len(words) > 30 and words - known == {"accelerate", "launch", "kwargs"} - known


def test_the_readme_works_on_a_small_model(written, tmp_path, monkeypatch):
    """As it stands, but for the model, which is the digits' in place of one of the hub, its prompts, and the number of steps."""
    monkeypatch.setattr("webbrowser.open", lambda *address: True)
    shown = blocks(ROOT / "README.md")
    written([block for block in shown if block.title])
    (tmp_path / "prompts.txt").write_text("a handwritten two\n", encoding="utf-8")
    (tmp_path / "my_rewards.py").write_text("def brightness(outputs, prompts):\n    return outputs.flatten(1).mean(1)\n", encoding="utf-8")
    assert run(["check", "--trust", "mine.yaml"]).startswith("mine.yaml: no mistakes found")
    names: dict[str, Any] = {"__name__": "readme"}
    for text in (block.text for block in shown if block.language == "python"):
        small = text.replace('"stabilityai/stable-diffusion-3.5-medium"', "mm.worlds.digits()").replace("steps=500", "steps=1")
        small = small.replace("a lighthouse at dusk", "a handwritten two").replace("a fox in the snow", "a handwritten six")
        exec(compile(small.replace("steps=1,", 'steps=1, batch={"prompts": 2, "group": 4},'), "README.md", "exec"), names)
    assert (names["run"].path / "export" / "README.md").is_file() and names["image"].size


def test_mistakes_on_a_page_are_found(written, tmp_path):
    written([Block("yaml", "mine.yaml", "use: online\nstepz: 3\n")])
    for line in ("mmalign train mine.yaml", "mmalign train digits/demo stepz=3"):
        with pytest.raises(AssertionError, match="stepz"):
            check(next(commands(line)))
    with pytest.raises(Exception, match="No such option"):
        check(next(commands("mmalign train digits/demo --resumee")))
    assert [block.title for block in blocks(write_page(tmp_path))] == ["a.yaml", ""]


def write_page(folder: Path) -> Path:
    page = folder / "page.md"
    page.write_text(
        '- a list:\n\n    ```yaml title="a.yaml"\n    use: online\n    ```\n\n```sh\nmmalign check a.yaml\n```\n', encoding="utf-8"
    )
    return page
