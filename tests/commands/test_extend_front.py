"""The archive of policies: what is measured, and whose parameters, objective and floors come next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.types import UserError

FIRST = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}]


def runs(folder: Path, points: list[tuple[float, float]]) -> list[str]:
    for number, (a, b) in enumerate(points):
        (folder / str(number)).mkdir(exist_ok=True)
        (folder / str(number) / "summary.json").write_text(json.dumps({"a_after": a, "b_after": b}))
    return [str(folder / str(number)) for number in range(len(points))]


def planned(folder: Path, points: list[tuple[float, float]], **more: Any) -> dict[str, Any]:
    out = folder / f"plan_{len([*folder.glob('plan_*')])}.json"
    mm.commands.extend_front(runs(folder, points), out=str(out), corner={"a": 0.0, "b": -2.0}, first=FIRST, parents=1, **more)
    return json.loads(out.read_text())


def test_weights_come_first_and_then_every_objective_of_who_has_most_room(tmp_path: Path) -> None:
    points = [(4.0, -1.0), (0.0, 3.0), (3.0, 2.0), (2.9, 1.9)]
    assert [planned(tmp_path, points[:n])["weights"] for n in (0, 1)] == FIRST
    first = planned(tmp_path, points[:2])  # both are ends: the first of them
    assert (first["weights"], first["parent"], first["objective"]) == (None, str(tmp_path / "0"), "a")
    assert first["floors"] == pytest.approx({"b": -1.1})  # a tenth of its size below, though it is below 0
    second = planned(tmp_path, points[:3])  # the same generation: the archive as it stood before it
    assert (second["parent"], second["objective"], second["floors"]) == (str(tmp_path / "0"), "b", {"a": pytest.approx(3.6)})
    assert planned(tmp_path, [*points[:2], (5.0, 2.0)])["parent"] == str(tmp_path / "0")  # also where that beats it
    points.append((1.0, 2.5))
    after = planned(tmp_path, points[:4], keep=0.5)
    assert after["front"] == [0, 1, 2] and after["floors"] == {"b": -1.5}
    assert after["measures"]["hypervolume"] == pytest.approx(3 * 4 + 1 * 1)  # a up to 3 and b from -2 to 2; to 4 up to -1; to 0: nothing


def test_what_was_planned_is_what_is_trained_on(tmp_path: Path) -> None:
    parts, group = {"a": torch.tensor([1.0, 2.0]).double(), "b": torch.tensor([4.0, 0.0]).double()}, torch.zeros(2).long()
    for number, points in enumerate(([], [(4.0, -1.0), (0.0, 3.0)])):
        planned(tmp_path, points)
        total = mm.combinations.front_member(plan=str(tmp_path / f"plan_{number}.json"), strength=0.5)(parts, group, ["x"] * 2, learn=True)
        expected = [parts["a"], parts["a"] + 0.5 / (2.0 + 1.1) * parts["b"]][number]
        torch.testing.assert_close(total, expected)
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(UserError, match="holds no plan"):
        mm.combinations.front_member(plan=str(tmp_path / "odd.json"))


def test_what_cannot_be_an_archive_is_refused(tmp_path: Path) -> None:
    for odd, line in (
        ({"corner": {"a": 0.0}}, "two objectives"), ({"first": [{"c": 1.0}]}, "'c'"), ({"runs": [str(tmp_path)]}, "no evaluation"),
        ({"runs": runs(tmp_path, [(float("nan"), 1.0)])}, "no number for a"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line):
            mm.commands.extend_front(**{"runs": [], "out": str(tmp_path / "x"), "corner": {"a": 0.0, "b": 0.0}, "first": FIRST, **odd})
