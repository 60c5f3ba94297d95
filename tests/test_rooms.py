from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import mmalign as mm
from mmalign.arguments.signatures import nearest
from mmalign.rooms import Entry, find, index
from mmalign.types import UserError

FURNISHED = "from mmalign.rooms import furnish\nfurnish(__name__)\n"
JPEG = '''"""Sizes of files.

Paper: DDPO, https://arxiv.org/abs/2305.13301
"""

from os.path import join


def jpeg():
    """Minus the size of a JPEG.

    More words.
    """
    return "jpeg"


def _hidden():
    return None
'''


@pytest.fixture
def room(write_module):
    index.cache_clear()
    write_module("house/__init__.py", "")
    write_module("house/rewards/__init__.py", FURNISHED)
    write_module("house/rewards/jpeg.py", JPEG)
    listed = '__all__ = ["kept"]\ndef kept():\n    "Kept. "\n    return "kept"\ndef left_out(): ...\nclass Big: ...\n'
    write_module("house/rewards/deep/er.py", listed)
    write_module("house/rewards/_private.py", "def secret(): ...\n")
    write_module("house/rewards/broken.py", "import a_package_that_is_not_there\ndef broken(): ...\n")
    yield "house.rewards"
    index.cache_clear()


def test_the_index_is_read_without_importing(room):
    paper = "DDPO, https://arxiv.org/abs/2305.13301"
    assert index(room) == {
        "broken": (Entry("broken", "house.rewards.broken", "", "", True, ""),),
        "jpeg": (Entry("jpeg", "house.rewards.jpeg", "Minus the size of a JPEG.", paper, True, ""),),
        "kept": (Entry("kept", "house.rewards.deep.er", "Kept.", "", True, ""),),
    }
    assert "house" not in sys.modules


def test_a_file_does_not_hide_its_function(room):
    package = importlib.import_module(room)
    assert package.jpeg() == "jpeg"
    file = importlib.import_module("house.rewards.jpeg")
    assert package.jpeg() == "jpeg" and file.jpeg() == "jpeg"
    from house.rewards import jpeg

    assert jpeg() == "jpeg"
    assert {"jpeg", "kept", "broken"} <= set(dir(package))
    assert package.kept() == "kept" and importlib.import_module("house.rewards.deep").__name__ == "house.rewards.deep"


def test_a_room_can_still_be_patched(room, monkeypatch):
    package = importlib.import_module(room)
    with monkeypatch.context() as patch:
        patch.setattr(package, "jpeg", lambda: "patched")
        assert package.jpeg() == "patched"
    assert package.jpeg() == "jpeg"


@pytest.mark.parametrize("name", ["left_out", "Big", "secret", "_hidden", "join", "jpg"])
def test_other_names_are_not_in_the_room(room, name):
    with pytest.raises(AttributeError, match=name):
        getattr(importlib.import_module(room), name)
    with pytest.raises(UserError, match=rf"house.rewards has no '{name}'"):
        find(room, name)


def test_find_names_close_matches(room):
    with pytest.raises(UserError, match=r"house.rewards has no 'jpg'; nearest: jpeg"):
        find(room, "jpg")


def test_find_takes_import_paths(room):
    assert find(room, "house.rewards.jpeg.jpeg")() == "jpeg"
    assert find(room, "house.rewards.jpeg")() == "jpeg"
    assert find("mmalign.methods", "collections.OrderedDict.fromkeys")("ab") == {"a": None, "b": None}
    assert find("mmalign.methods", "samplers.kernels.ode") is mm.kernels.ode.__wrapped__


def test_a_users_package_may_be_called_like_a_folder_of_ours(room, write_module):
    write_module("rewards/__init__.py", "")
    write_module("rewards/mine.py", "def own(): ...\n")
    assert find(room, "rewards.mine.own").__module__ == "rewards.mine"
    with pytest.raises(UserError, match=r"^rewards.mine.owm: no 'owm' there; nearest: own$"):
        find(room, "rewards.mine.owm")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_package.thing", "no module called 'no_such_package'"),
        ("collections.OrderdDict", "no 'OrderdDict' there; nearest: OrderedDict"),
        ("house.rewards.broken.broken", "needs the package a_package_that_is_not_there"),
        ("samplers.kernels.oda", "no 'oda' there; nearest: ode"),
    ],
)
def test_wrong_import_paths_are_one_line(room, path, words):
    with pytest.raises(UserError) as caught:
        find(room, path)
    assert words in str(caught.value) and str(caught.value).startswith(path) and "\n" not in str(caught.value)


def test_two_files_with_one_name_are_refused(room, write_module):
    write_module("house/rewards/other.py", '__all__ = ["jpeg"]\n\n\ndef jpeg(): ...\n')
    index.cache_clear()
    with pytest.raises(ImportError, match=r"'jpeg' is defined in more than one file: house.rewards.jpeg, house.rewards.other"):
        find(room, "jpeg")


@pytest.mark.parametrize("name", [f"mmalign.{name}" for name in mm.ROOMS] + list(mm.FILES.values()))
def test_no_name_of_ours_has_two_homes(name):
    assert {key: entries for key, entries in index(name).items() if len(entries) > 1} == {}


def test_every_room_of_ours_is_furnished():
    for name in mm.ROOMS:
        assert set(index(f"mmalign.{name}")) <= set(dir(getattr(mm, name)))


def test_flat_names():
    assert mm.kernels.flow_sde.__wrapped__ is importlib.import_module("mmalign.samplers.kernels").flow_sde
    assert mm.methods.flow_grpo.__wrapped__ is importlib.import_module("mmalign.methods.denoising.flow_grpo").flow_grpo
    assert set(index("mmalign.recipes")) <= set(dir(mm))
    for name in index("mmalign.recipes"):
        assert getattr(mm, name) is getattr(mm.recipes, name)
    with pytest.raises(AttributeError, match=r"mmalign has no 'methodz'; nearest: methods"):
        _ = mm.methodz


def test_importing_mmalign_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'diffusers', 'transformers', 'yaml', 'omegaconf', 'pydantic', 'typer', 'rich'}"
    code = f"import sys, mmalign; dir(mmalign); mmalign.methods; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nearest_is_empty_where_nothing_is_near():
    assert nearest("zzz", ["flow_grpo"]) == "" and nearest("flow_grop", ["flow_grpo"]) == "; nearest: flow_grpo"


def test_a_file_offers_the_function_of_its_name_or_what_it_lists(write_module):
    write_module("annexe/__init__.py", "from mmalign.rooms import furnish\nfurnish(__name__)\n")
    write_module("annexe/own.py", "def own():\n    return 1\n\n\ndef neighbour():\n    return 2\n")
    write_module("annexe/family.py", '__all__ = ["one", "two"]\n\n\ndef one(): ...\ndef two(): ...\ndef family(): ...\n')
    write_module("annexe/parts/__init__.py", "def parts(): ...\ndef part(): ...\n")
    write_module("annexe/inner.py", "__all__: list[str] = []\n\n\ndef inner(): ...\n")

    assert list(index("annexe")) == ["one", "own", "parts", "two"]
