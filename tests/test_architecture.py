"""The walls of the house: who may import whom, how long things may be, what is never written."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mmalign"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(file.relative_to(PACKAGE)) for file in FILES]

# folder or file of mmalign -> what of mmalign it may import, besides itself and rooms.py
ARROWS: dict[str, set[str]] = {
    "__init__": {"arguments"},
    "rooms": {"types", "arguments"},
    "arguments": {"types"},
    "lookup": {"types", "needs", "arguments"},
    "config": {"types", "needs", "arguments", "lookup"},
    "merges": {"types", "arguments"},
    "migration": {"types", "files", "arguments", "config"},
    "stacking": set(),
    "types": {"stacking"},
    "abilities": {"types"},
    "needs": {"types"},
    "records": {"types"},
    "files": {"types"},
    "fetching": {"types"},
    "matching": {"types"},
    "media": {"types", "arguments", "fetching", "matching"},
    "conversations": {"types", "media"},
    "reference_scores": {"types", "conversations"},
    "objectives": {"types", "needs", "arguments"},
    "samplers": {"types", "arguments"},
    "methods": {"types", "needs", "objectives", "samplers", "arguments"},
    "policies": {
        *(
            "types",
            "abilities",
            "needs",
            "stacking",
            "arguments",
            "samplers",
            "media",
            "conversations",
            "files",
            "runs",
            "matching",
            "records",
            "devices",
            "distributed",
        )
    },
    "serving": {"types", "arguments", "files", "media", "records", "config"},
    "labelling": {"types", "files", "records", "conversations", "runs"},
    "combinations": {"types", "arguments", "files", "conversations", "reference_scores", "evaluation"},
    "rewards": {
        *("types", "arguments", "records", "media", "conversations", "files", "serving", "combinations", "matching", "devices", "runs")
    },
    "data": {"types", "arguments", "files", "records", "media", "conversations", "reference_scores"},
    "worlds": {"types", "arguments", "conversations", "needs", "stacking", "records", "samplers", "objectives", "policies", "evaluation"},
    "guidance": {"types", "arguments", "samplers", "policies", "combinations"},
    "environments": {"types", "arguments", "conversations", "media", "rewards", "serving"},
    "evaluation": {"types", "arguments", "media", "conversations", "records", "data", "objectives"},
    "runs": {"types", "arguments", "config", "files", "media", "conversations", "matching", "distributed"},
    "distributed": {"types", "stacking"},
    "selftest": {"types", "files", "runs", "config", "distributed"},
    "devices": set(),
    "training": {
        "types",
        "abilities",
        "needs",
        "records",
        "stacking",
        "samplers",
        "arguments",
        "files",
        "conversations",
        "runs",
        "distributed",
    },
    "report": {"types", "files", "runs", "evaluation"},
    "recipes": {
        *("types", "needs", "arguments", "records", "samplers", "objectives", "data", "distributed", "training", "report", "commands"),
        *("config", "files", "runs", "conversations"),
    },
    "commands": {"*"},
    "cli": {"*"},
    "__main__": {"cli"},
}
# folder or file inside of one of those -> what beside it, of the same room, it may import; a row "*" is for all that have none
INSIDE: dict[str, dict[str, set[str]]] = {
    "arguments": {
        "ranges": set(),
        "renamed": set(),
        "environment": set(),
        "columns": set(),
        "parameters": {"ranges", "columns"},
        "places": set(),
        "signatures": {"parameters", "ranges", "renamed"},
        "facts": set(),
        "reads": {"signatures", "facts"},
        "calls": {"signatures", "renamed", "environment", "places"},
    },
    "lookup": {
        "external_code": set(),
        "docstrings": set(),
        "dialects": {"docstrings"},
        "settings": set(),
        "catalogue": {"external_code", "settings"},
        "usage": {"catalogue", "docstrings"},
        "coverage": {"catalogue"},
    },
    "config": {
        "parsing": set(),
        "overrides": {"parsing"},
        "nodes": set(),
        "own_methods": set(),
        "instantiate": {"nodes", "parsing", "own_methods"},
        "prompt_columns": {"instantiate"},
        "crosschecks": {"instantiate", "parsing", "prompt_columns"},
        "stages": {"nodes", "instantiate", "crosschecks"},
    },
    "objectives": {
        "*": {"parts", "ratios"},
        "parts": set(),
        "feedback": {"parts"},
        "terms": {"parts", "links", "ratios", "scores", "state", "feedback"},
        "sentences": {"parts", "links", "ratios", "scores", "state", "feedback", "terms", "penalties", "surrogates", "weights"},
        "state": set(),
    },
    "policies": {
        "settings": set(),
        "parameters": {"adapters", "settings"},
        "adapters": {"settings"},
        "pipelines": {"settings", "parameters", "adapters"},
        "language": {"settings", "parameters", "adapters", "transformers"},  # the last one in codes/, a policy around it
        "diffusers": {"settings", "parameters", "pipelines"},
        "forward": {"settings", "diffusers", "pipelines"},
        "transformers": {"settings", "parameters", "language"},
        "scorers": {"settings", "parameters", "language", "transformers", "pipelines", "diffusers"},
        "twins": {"pipelines", "language"},
        "exports": {"adapters", "pipelines", "language", "diffusers", "transformers", "scorers"},
        "inspecting": {"settings", "adapters", "pipelines", "diffusers", "twins", "language", "transformers"},
    },
    "training": {
        "settings": set(),
        "seeds": set(),
        "optimizer_state": set(),
        "optimizers": {"settings", "optimizer_state"},
        "references": {"settings"},
        "kept_references": set(),
        "updates": {"settings", "optimizers", "optimizer_state", "references", "kept_references"},
        "rollouts": {"settings", "seeds", "optimizers", "updates"},
        "records": {"settings", "seeds", "updates", "rollouts"},
        "evaluations": {"settings", "seeds", "updates", "rollouts"},
        "journal": {"settings", "updates", "rollouts", "evaluations"},
    },
    "policies/pipelines": {
        "loading": set(),
        "calls": {"loading"},
        "rollouts": {"loading", "calls"},
        "denoising": {"loading", "calls", "rollouts"},
    },
    "policies/language": {
        "models": set(),
        "prompts": {"models"},
        "drawing": {"models", "prompts"},
        "scoring": {"models", "prompts", "drawing"},
        "codes": {"models", "prompts", "drawing", "scoring"},
    },
    "rewards": {"*": {"_shared", "_models"}, "_shared": set(), "_models": {"_shared"}, "videos": {"_shared", "_models", "pictures"}},
}
MODELS = {"diffusers", "transformers"}
MODELS_ARE_KNOWN_TO = {"policies", "guidance", "rewards", "worlds"}
OPTIMISERS = {"training/optimizers.py": "transformers.optimization"}
"""What knows no models, and takes this alone of a library that has them."""
HEAVY = {
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "sklearn",
    "scipy",
    "matplotlib",
    "datasets",
    "open_clip",
    "timm",
    "tensorboard",
}
# these define subclasses of classes of diffusers and transformers, and nothing imports them before they are wanted
MAY_BE_HEAVY = {
    "worlds/digits/model.py",
    "worlds/digits/pipeline.py",
    "guidance/_adapter_guidance.py",
    "policies/language/models/caches.py",
}
LIGHT = {
    "__init__",
    "__main__",
    "rooms",
    "arguments",
    "lookup",
    "config",
    "cli",
}  # torch and numpy are heavy there
MAX_ENTRIES = 12  # of a room whose walls are held inside, too
MAX_PARAMETERS = 8  # without a comment beside the name that says why
MAX_FUNCTION, MAX_FILE = 60, 400  # lines; of a function, those of its body without the docstring


@cache
def source(name: str) -> str:
    return (PACKAGE / name).read_text(encoding="utf-8")


@cache
def tree(name: str) -> ast.Module:
    """A file as it is; to be looked at by many, and changed by none."""
    return ast.parse(source(name), filename=name)


@cache
def nodes(name: str) -> tuple[ast.AST, ...]:
    """All of a file's tree."""
    return tuple(ast.walk(tree(name)))


def odd(of: Callable[[str], object]) -> dict[str, object]:
    """What is wrong with each file in which something is."""
    return {name: wrong for name in NAMES if (wrong := of(name))}


def docstring_lines(name: str) -> int:
    """How many lines of a file are docstrings: what types.py is made of, which is one file on purpose."""
    owners = (node for node in ast.walk(tree(name)) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
    texts = (node.body[0] for node in owners if ast.get_docstring(node))
    return sum(text.end_lineno - text.lineno + 1 for text in texts)


def home(name: str) -> str:
    """The folder of mmalign that a file is in, or the file's own name at the top."""
    return name.split("/")[0].removesuffix(".py")


def imports(nodes: Iterable[ast.AST], name: str) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import among the nodes of a file; relative ones made absolute."""
    package = ["mmalign", *Path(name).parent.parts]
    for child in nodes:
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) + 1 - child.level] if child.level else []
            module = ".".join([*base, *([child.module] if child.module else [])])
            # `from mmalign import rooms` imports mmalign.rooms
            yield from ((child.lineno, f"{module}.{alias.name}" if module == "mmalign" else module) for alias in child.names)


@cache
def edges(name: str, code: str | None = None) -> set[str]:
    """The files of mmalign that a file imports, those inside functions included, and those that only a type checker reads."""
    targets = set()
    for child in ast.walk(ast.parse(code)) if code is not None else nodes(name):
        if not isinstance(child, ast.ImportFrom) or not (child.module or "").startswith("mmalign"):
            continue
        for alias in child.names:
            whole = "/".join([*child.module.split(".")[1:], alias.name]) + ".py"
            home = "/".join(child.module.split(".")[1:]) + ".py" if child.module != "mmalign" else "__init__.py"
            targets.add(whole if whole in NAMES else home if home in NAMES else home.removesuffix(".py") + "/__init__.py")
    return targets & {*NAMES} - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Every set of files that import each other, directly or through others (Tarjan's strongly connected components)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    rings: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for target in sorted(graph.get(name, ())):
            if target not in number:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], number[target])
        if low[name] == number[name]:
            part = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            rings.extend([sorted(part)] if len(part) > 1 else [])

    for name in graph:
        if name not in number:
            visit(name)
    return rings


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What of a file runs when it is imported: neither what only a type checker reads nor the bodies of functions."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from at_import(child)


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in nodes(name) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_import_arrows():
    assert {home(name) for name in NAMES} - ARROWS.keys() == set(), "new: give it a line in ARROWS"

    def forbidden(name: str) -> list[tuple[int, str]]:
        here = home(name)
        allowed = ARROWS[here] | {here, "rooms", "__version__"}
        inside = [(line, module.split(".")[1]) for line, module in imports(nodes(name), name) if module.startswith("mmalign.")]
        if here == "commands":
            return [(line, module) for line, module in inside if module == "cli"]
        return [(line, module) for line, module in inside if module not in allowed and "*" not in allowed]

    assert odd(forbidden) == {}


@pytest.mark.parametrize("room", INSIDE)
def test_walls_inside_of_a_room(room):
    over, depth = [], room.count("/") + 1
    for name in (name for name in NAMES if name.startswith(f"{room}/") and name != f"{room}/__init__.py"):
        here = name.split("/")[depth].removesuffix(".py")
        allowed = INSIDE[room].get(here, INSIDE[room].get("*", set())) | {here}
        targets = {target.split("/")[depth].removesuffix(".py") for target in edges(name) if target.startswith(f"{room}/")}
        over.extend((name, target) for target in sorted(targets - allowed - {"__init__"}))
    assert over == []


@pytest.mark.parametrize("room", INSIDE)
def test_a_room_can_be_overseen(room):
    entries = [path.name for path in (PACKAGE / room).iterdir() if path.name not in ("__init__.py", "__init__.pyi", "__pycache__")]
    assert len(entries) <= MAX_ENTRIES, f"{room} has {len(entries)} entries: {', '.join(sorted(entries))}"


def test_the_ground_floor_can_be_overseen():
    files = sorted(path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__"))
    assert len(files) <= MAX_ENTRIES, f"{len(files)} files belong to no room: {', '.join(files)}"


def conditionals_inside_others(tree: ast.Module) -> list[int]:
    """Lines of ``a if b else c`` that hold another one, at any depth: statements say the same."""
    outer = [node for node in ast.walk(tree) if isinstance(node, ast.IfExp)]
    return [node.lineno for node in outer if any(isinstance(inner, ast.IfExp) for inner in ast.walk(node) if inner is not node)]


def test_no_conditional_inside_another():
    assert conditionals_inside_others(ast.parse("a = 1 if b else 2\nc = 1 if b else [x if x else 0 for x in d]")) == [2]
    assert odd(lambda name: conditionals_inside_others(tree(name))) == {}


def test_no_circles():
    assert circles({name: edges(name) for name in NAMES}) == []


def test_only_some_know_diffusers_and_transformers():
    def known(name: str) -> list[tuple[int, str]]:
        if home(name) in MODELS_ARE_KNOWN_TO:
            return []
        models = [(line, module) for line, module in imports(nodes(name), name) if module.split(".")[0] in MODELS]
        return [(line, module) for line, module in models if not module.startswith(OPTIMISERS.get(name, "-"))]

    assert odd(known) == {}


def test_nothing_heavy_at_top_level():
    def loaded(name: str) -> list[tuple[int, str]]:
        light = home(name) in LIGHT or name.endswith("__init__.py")
        heavy = HEAVY | {"torch", "numpy", "omegaconf", "pydantic", "yaml"} if light else HEAVY
        first = imports(at_import(tree(name)), name)
        return [(line, module) for line, module in first if name not in MAY_BE_HEAVY and module.split(".")[0] in heavy]

    assert odd(loaded) == {}


def test_lengths():
    def length(name: str) -> int:
        return len(source(name).splitlines()) - (docstring_lines(name) if name == "types.py" else 0)

    def long(name: str) -> dict[str, int]:
        lengths = {}
        for node in functions(name):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lengths[node.name] = node.end_lineno - body[0].lineno + 1 if body else 0
        return {function: lines for function, lines in lengths.items() if lines > MAX_FUNCTION}

    assert {name: length(name) for name in NAMES if length(name) > MAX_FILE} == {}
    assert odd(long) == {}


def test_more_than_eight_parameters_have_a_reason_beside_them():
    def many(name: str) -> dict[str, int]:
        long, lines = {}, source(name).splitlines()
        for node in functions(name):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in given)
            if count > MAX_PARAMETERS and "  # " not in lines[node.lineno - 1]:
                long[node.name] = count
        return long

    assert odd(many) == {}


def test_public_things_have_docstrings():
    assert [name for name in NAMES if not ast.get_docstring(tree(name))] == [], "they do not say what they are"

    def silent(name: str) -> list[str]:
        public = [node for node in tree(name).body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")]
        commands = home(name) == "cli"  # a callback's docstring would be the help text of the command
        return [node.name for node in public if not ast.get_docstring(node) and not commands]

    assert odd(silent) == {}


def test_never_written():
    def written(name: str) -> list[tuple[int, str]]:
        found = [(line, module) for line, module in imports(nodes(name), name) if module.split(".")[0] in ("pickle", "dill", "marshal")]
        for node in nodes(name):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "hasattr"):
                found.append((node.lineno, node.func.id))
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append((node.lineno, "bare except"))
        return found

    assert odd(written) == {}


def test_the_top_level_of_the_repository():
    done = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in done.stdout.splitlines()}
    allowed = {"pyproject.toml", "mmalign", "configs", "tests", "scripts", "assets", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} - allowed == set()


# ---- the checks themselves see what they should


def test_imports_are_seen_wherever_they_are():
    inside = "def f():\n    from .x import y\n    from .. import z\n    import torch\n"
    code = f"import a.b\nfrom mmalign import rooms\n{inside}class C:\n    import np\n"
    seen = [module for _, module in imports(ast.walk(ast.parse(code)), "worlds/digits/model.py")]
    assert sorted(seen) == ["a.b", "mmalign.rooms", "mmalign.worlds", "mmalign.worlds.digits.x", "np", "torch"]
    assert sorted(module for _, module in imports(at_import(ast.parse(code)), "x.py")) == ["a.b", "mmalign.rooms", "np"]


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    lazy = "def f():\n    from mmalign.policies.transformers import transformers\n"
    graph = {name: edges(name) for name in NAMES}
    graph["policies/language/prompts/chat.py"] = edges("policies/language/prompts/chat.py", lazy)
    assert ["policies/language/prompts/chat.py", "policies/transformers.py"] in [
        [name for name in circle if name.endswith(("chat.py", "policies/transformers.py"))] for circle in circles(graph)
    ]
