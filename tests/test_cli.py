from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmalign import cli
from mmalign.cli import demos
from mmalign.cli.app import mistakes_as_lines
from mmalign.rooms import index

ROOT = Path(__file__).parents[1]

RECIPES = """
from pathlib import Path

from mmalign.arguments import calls
from mmalign.training.settings import RunSettings


class Run:
    def __init__(self, path):
        self.path, self.summary = path, {}


def recipe(*, steps: int = 3, run: RunSettings = RunSettings(name="one"), resume: bool = False):
    folder, config = Path(run.folder) / run.name, calls.described()
    folder.mkdir(parents=True, exist_ok=resume)
    (folder / "config.yaml").write_text(repr(config))
    print(f"recipe: steps={steps} resume={resume} config={config}")
    return Run(folder)


def mute(*, steps: int = 3):
    return None


def crashes(*, steps: int = 3):
    raise RuntimeError("something\\nunforeseen")
"""


@pytest.fixture
def folder(tmp_path: Path, write_module: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's, with a module and configs, to stand in."""
    write_module("mine.py", RECIPES)
    write_module("c.yaml", "use: mine.recipe\nsteps: 5\n")
    write_module("crash.yaml", "use: mine.crashes\n")
    write_module("mute.yaml", "use: mine.mute\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def but_for_imports(lines: str) -> str:
    """What a command says on stderr, but for the line that names what it imports from outside of mmalign."""
    return "".join(line for line in lines.splitlines(keepends=True) if "imports code from outside of mmalign" not in line)


def process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "mmalign", *words], capture_output=True, text=True, cwd=cwd, env=environment)


def imported(code: str) -> set[str]:
    words = [sys.executable, "-c", f"import sys\n{code}\nprint('MODULES', *sys.modules)"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split("MODULES ")[1].split())


HEAVY = {"torch", "numpy", "diffusers", "transformers", "omegaconf", "matplotlib", "sklearn"}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["list"], ["list", "methods"], ["--version"]])
def test_help_and_lists_import_nothing_heavy(words):
    code = f"sys.argv = ['mmalign', *{words!r}]\nfrom mmalign.cli import main\ntry: main()\nexcept SystemExit as end: assert end.code == 0"
    assert imported(code) & HEAVY == set()


def test_list_has_every_method_with_meaning_and_paper(folder, mmalign):
    done = mmalign("list", "methods")
    assert (done.code, done.err) == (0, "")
    for name, (entry, *_) in index("mmalign.methods").items():
        if entry.function:
            assert name in done.out and entry.meaning[:20] in done.out and entry.paper[:15] in done.out


def test_train_runs_a_config_and_says_where_things_are(folder, mmalign):
    done = mmalign("train", "c.yaml", "run.name=two", "steps=7")
    assert done.code == 0, done.err
    config = {"use": "mine.recipe", "steps": 7, "run": {"name": "two"}}
    assert f"recipe: steps=7 resume=False config={config}" in done.out
    assert f"run:    {folder / 'runs' / 'two'}" in done.out and f"report: {folder / 'runs' / 'two' / 'report.html'}" in done.out
    again = mmalign("train", "c", "run.name=two", "--resume")
    assert again.code == 0 and "resume=True" in again.out


MISTAKES = [
    (["train", "nope"], "nope: no such config"),
    (["train", "c.yaml", "stepz=1"], "stepz: unknown key of mine.recipe; nearest: steps"),
    (["train", "c.yaml", "steps=x"], "steps: got 'x', takes int"),
    (["train", "c.yaml", "steps"], "steps: takes key.sub=value"),
    (["train", "mute.yaml", "--resume"], "--resume: the recipe mine.mute takes no such thing"),
    (["check", "c.yaml", "use=mine.recipes", "--trust"], "use: mine.recipes: no 'recipes' there; nearest: recipe"),
    (["report", "nope"], "nope: no run there"),
    (["sample", "nope"], "nope: no run there"),
]


@pytest.mark.parametrize(("words", "line"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(folder, mmalign, words, line):
    done = mmalign(*words)
    err = but_for_imports(done.err)
    assert (done.code, done.out) == (2, "") and err.startswith(line) and err.count("\n") == 1
    assert not (folder / "runs").exists()


def test_two_mistakes_are_two_lines(folder, mmalign):
    done = mmalign("check", "c.yaml", "stepz=1", "steps=x", "--trust")
    assert done.code == 2 and [line.split(":")[0] for line in done.err.splitlines()] == ["steps", "stepz"]


def test_check_builds_nothing(folder, mmalign):
    done = mmalign("check", "c.yaml")
    assert done.code == 0 and done.out.startswith("c.yaml: no mistakes found\n") and not (folder / "runs").exists()


def test_other_errors_are_one_line_and_exit_code_1(folder, mmalign):
    code, out, err = mmalign("train", "crash.yaml")
    assert (code, out, but_for_imports(err)) == (1, "", "RuntimeError: something unforeseen (--debug shows where)\n")


@pytest.mark.parametrize("words", [["--debug", "train", "crash.yaml"], ["train", "crash.yaml", "--debug"]])
def test_debug_shows_the_traceback(folder, monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["mmalign", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    lines = capsys.readouterr().err
    assert end.value.code == 1 and "in crashes" in lines and lines.endswith("RuntimeError: something\nunforeseen\n")


def test_no_secret_is_in_a_traceback(folder, write_module, mmalign, monkeypatch):
    """Neither in the error, nor in those that it came from, nor in their notes."""
    monkeypatch.setenv("JUDGE_API_KEY", "sk-0123456789")
    write_module(
        "leaks.py",
        """
def leak(*, key):
    try:
        try:
            {}[f"401 of {key}"]
        except KeyError as error:
            error.add_note(f"asked with {key}")
            raise
    except KeyError as error:
        raise ConnectionError(f"https://judge/?key={key}") from error
""",
    )
    write_module("leak.yaml", "use: leaks.leak\nkey: ${oc.env:JUDGE_API_KEY}\n")
    for words in (["--debug"], []):
        done = mmalign(*words, "train", "leak.yaml")
        assert done.code == 1 and "sk-0" not in done.err
        assert done.err.count("${oc.env:JUDGE_API_KEY}") == (3 if words else 1)


def test_exit_codes_and_tracebacks_of_the_real_process(folder):
    mistake, crash, debug = (process("train", *words, cwd=folder) for words in (["nope"], ["crash.yaml"], ["--debug", "crash.yaml"]))
    assert (mistake.returncode, mistake.stdout, mistake.stderr.count("\n")) == (2, "", 1)
    assert (crash.returncode, crash.stdout, but_for_imports(crash.stderr).count("\n")) == (1, "", 1)
    assert debug.returncode == 1 and "Traceback" in debug.stderr and "something" in debug.stderr


def test_unknown_commands_and_options_are_exit_code_2(folder, mmalign):
    assert mmalign("trian").code == 2
    assert mmalign("train", "c.yaml", "--no-such-option").code == 2


COSTLY = """
use: online
policy: {use: diffusers, pipeline: {use: costly.pipeline}}
method: {use: flow_grpo, ratio: per_step, clip: 0.2, beta: 0.0, std: none}
prompts: [a, b]
rewards: {small: {use: jpeg}}
steps: 1
"""


def test_a_run_that_is_there_or_is_not_is_said_before_a_model_is_built(tmp_path, mmalign, write_module, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_module("costly.py", "def pipeline():\n    raise RuntimeError('was built')\n")
    for run, name in (("", "runs/online"), ("run: {seed: 1}", "runs/run"), ("run: {name: x, folder: y}", "y/x")):
        (tmp_path / "c.yaml").write_text(COSTLY + run)
        code, _, err = mmalign("train", "c.yaml", "--resume")
        assert code == 2 and err.splitlines()[1:] == [
            f"{name}: got --resume (in Python resume=True), but there is no run here (no config.yaml)"
        ]
        assert "was built" in mmalign("train", "c.yaml").err
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "config.yaml").write_text("steps: 1")
        code, _, err = mmalign("train", "c.yaml")
        assert code == 2 and err.splitlines()[1].startswith(
            f"{name} exists: resume it (--resume; in Python resume=True), or give this run another name"
        )


def test_advice_of_torchvision_reaches_no_terminal(monkeypatch):
    def speak(args):
        warnings.warn("Failed to load image Python extension: 'no such file'. If you don't plan on using image functionality", stacklevel=1)
        warnings.warn("what concerns the user", stacklevel=1)

    monkeypatch.setattr(cli, "app", speak)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        cli.main()
    assert [str(warning.message) for warning in shown] == ["what concerns the user"]


def test_a_warning_of_mmalign_is_a_line_and_one_of_a_library_says_whose_it_is(monkeypatch, capsys):
    def both(args):
        warnings.warn_explicit("records: nobody reads column x", UserWarning, cli.__file__, 3)
        warnings.warn_explicit("advice", UserWarning, "/elsewhere/library.py", 3)

    monkeypatch.setattr(cli, "app", both)
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        before = warnings.showwarning
        cli.main()
        assert warnings.showwarning is before
    assert capsys.readouterr().err == "warning: records: nobody reads column x\n"
    assert [str(warning.message) for warning in others] == ["advice"]


def test_fresh_names_never_meet_an_old_run(tmp_path):
    assert demos.fresh_name(tmp_path, "demo") == "demo"
    (tmp_path / "demo").mkdir()
    assert demos.fresh_name(tmp_path, "demo") == "demo-2"
    (tmp_path / "demo-2").mkdir()
    assert demos.fresh_name(tmp_path, "demo") == "demo-3"


def test_demo_makes_a_run_for_each_seed_and_overwrites_none(folder, mmalign, monkeypatch, write_module):
    demo = write_module("demo.yaml", "use: mine.recipe\nrun: {name: demo, seed: 4}\n")
    write_module("mine.py", RECIPES.replace("steps={steps}", "seed={run.seed}"))
    monkeypatch.setitem(demos.DEMOS, "digits", demos.Demo(str(demo)))
    for _ in range(2):
        assert mmalign("demo", "--seeds", "2").code == 0
    kept = {path.name: path.joinpath("config.yaml").read_text() for path in (folder / "runs").iterdir()}
    assert sorted(kept) == ["demo", "demo-2", "demo-3", "demo-4"]
    assert ["'seed': 4" in kept[name] for name in sorted(kept)] == [True, False, True, False]


def completed(words: str, cwd: Path) -> list[str]:
    """What bash would offer behind some words."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_MMALIGN_COMPLETE": "complete_bash"}
    environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    code = "import sys; sys.argv = ['mmalign']\nfrom mmalign.cli import app\napp(prog_name='mmalign')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment)
    return done.stdout.split()


def test_a_shell_completes_commands_configs_runs_and_names(folder):
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "config.yaml").touch()
    assert sorted(completed("mmalign exp", folder)) == ["explain", "export"]
    assert "digits/demo" in completed("mmalign train digits/d", folder) and completed("mmalign check cra", folder) == ["crash.yaml"]
    assert completed("mmalign report mi", folder) == ["mine"]
    assert "kernels" in completed("mmalign list k", folder) and "kto" in completed("mmalign explain kt", folder)


def test_a_shell_completes_keys_of_a_config(folder):
    assert completed("mmalign train digits/lora batch.gr", folder) == ["batch.group="]
    assert completed("mmalign train digits/lora policy.lora.r", folder) == ["policy.lora.rank="]
    assert completed("mmalign train digits/lora evaluation.st", folder) == ["evaluation.stop."]
    assert completed("mmalign train digits/lora step", folder) == ["steps="]
    assert completed("mmalign check no_such_config ba", folder) == []


def test_configs_that_help_names_are_there(mmalign):
    from mmalign.cli.app import app
    from mmalign.lookup.catalogue import KINDS, configs

    pages = [
        mmalign("--help").out,
        *(mmalign(command.name or command.callback.__name__, "--help").out for command in app.registered_commands),
    ]
    folders = {name.split("/")[0] for name in configs()}
    named = {word for page in pages for word in re.findall(r"\b(\w+/\w+)\b", page) if word.split("/")[0] in folders}
    assert named and named <= set(configs()) and "methods" in KINDS


def test_lists_in_a_pipe_are_lines_of_columns(mmalign):
    for kind in ("methods", "configs", "kernels"):
        lines = mmalign("list", kind).out.splitlines()
        from mmalign.lookup.catalogue import everything

        assert [line.split("\t")[0] for line in lines] == [named.name for named in everything(kind)]
    assert all(len(line.split("\t")) == 3 for line in mmalign("list").out.splitlines())


def test_whoever_reads_the_lines_may_have_seen_enough_of_them():
    """As `mmalign inspect MODEL | head -3`: no line of it, and the command line's library ends the process."""
    with pytest.raises(BrokenPipeError), mistakes_as_lines(SimpleNamespace(obj=False)):
        raise BrokenPipeError(32, "Broken pipe")
