"""The records of settings by the keys that they stand under: what ``mmalign explain batch`` and ``mmalign list settings`` look up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """A record under one key. home: the key around it, empty at the top of a config. record: its class, as ``room.file.Name``.

    By name: ``{key: {NAME: {...}}}`` where it is ``by_name``.
    """

    key: str
    home: str
    record: str
    by_name: bool = False

    @property
    def place(self) -> str:
        """Its file."""
        return f"mmalign/{self.record.rpartition('.')[0].replace('.', '/')}.py"

    @property
    def meaning(self) -> str:
        """The first line of its docstring; nothing is imported for it."""
        return _meanings(Path(__file__).parents[2] / self.place)[self.record.rpartition(".")[2]]

    def load(self) -> Any:
        """The class, imported."""
        module, _, name = self.record.rpartition(".")
        return getattr(import_module(f"mmalign.{module}"), name)


SETTINGS = (
    Setting("batch", "", "training.settings.Batch"),
    Setting("batch", "", "training.settings.RecordBatch"),
    Setting("references", "", "training.settings.Reference", by_name=True),
    Setting("mix", "", "training.settings.Mix"),
    Setting("evaluation", "", "training.settings.Evaluation"),
    Setting("stop", "evaluation", "training.settings.Stop"),
    Setting("devices", "", "training.settings.Devices"),
    Setting("run", "", "training.settings.RunSettings"),
    Setting("run", "", "recipes.rounds.RoundsSettings"),
    Setting("ema", "optimizer", "training.optimizers.Ema"),
    Setting("decay", "optimizer", "training.optimizers.Decay"),
    Setting("lora", "policy", "policies.settings.Lora"),
    Setting("train", "policy", "policies.settings.Train"),
    Setting("schedule", "policy", "policies.settings.Schedule"),
    Setting("memory", "policy", "policies.settings.Memory"),
    Setting("memory", "policy", "policies.settings.TextMemory"),
    Setting("compile", "policy.memory", "policies.settings.Compile"),
    Setting("media", "policy", "media.limits.Limits"),
    Setting("engine", "policy", "policies.settings.EngineSettings"),
    Setting("turns", "policy", "policies.settings.Turns"),
    Setting("ablation", "policy", "policies.language.prompts.ablation.Ablation"),
    Setting("server", "rewards.judge", "serving.chat.ServerSettings"),
    Setting("asking", "rewards.served", "serving.asking.Asking"),
    Setting("start", "rewards.served", "serving.started.Start"),
    Setting("rows", "rewards.served", "rewards.served.Rows"),
    Setting("parts", "", "merges.settings.Part", by_name=True),
    Setting("search", "", "merges.settings.Search"),
    Setting("serve", "", "serving.app.Serve"),
)
"""Every record of settings there is; a test finds those that are missing here."""


def matching(word: str) -> list[Setting]:
    """The records that a key, a dotted key of a config, or a class's name means: ``batch``, ``policy.lora.rank``, ``mm.RecordBatch``."""
    classes = [setting for setting in SETTINGS if setting.record.rpartition(".")[2] == word.removeprefix("mm.")]
    if classes or "." not in word:
        return classes or [setting for setting in SETTINGS if setting.key == word]
    parts = word.split(".")
    deepest = max((place for place, part in enumerate(parts) if any(setting.key == part for setting in SETTINGS)), default=None)
    if deepest is None or len(parts) - deepest > 3:
        return []
    fits = [setting for setting in SETTINGS if setting.key == parts[deepest] and ".".join(parts[:deepest]) in ("", setting.home)]
    leaf = parts[-1] if deepest < len(parts) - 1 else None
    return [setting for setting in fits if leaf is None or leaf in keys(setting)]


def keys(setting: Setting) -> list[str]:
    """The keys of a record; imports it."""
    from mmalign.arguments.signatures import parameters

    return list(parameters(setting.load())[0])


def holding(word: str) -> Iterator[Setting]:
    """The records that have a key of that name; imports them."""
    return (setting for setting in SETTINGS if word in keys(setting))


@cache
def _meanings(path: Path) -> dict[str, str]:
    """class -> the first line of its docstring, of a file."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in nodes if isinstance(node, ast.ClassDef)}
