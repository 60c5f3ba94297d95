"""Who scores a benchmark of rewards, as the command line says it: a run, a reward, a judge on a server, or a file of scores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUITES = "mmalign.evaluation.suites"


def is_of_rewards(name: str) -> bool:
    """Whether a suite of that name measures rewards, and not what a model answers."""
    from mmalign.rooms import index

    return any(entry.returns == "RewardSuite" for entry in index(SUITES).get(name, ()))


def as_values(options: list[str]) -> dict[str, Any]:
    """``key=value`` words as a mapping, values as YAML. Errors: UserError for a word of another form."""
    import yaml

    from mmalign.types import UserError

    values = {}
    for word in options:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UserError(f"{word}: takes key=value")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"{key}: {value!r} is no YAML") from error
    return values


@dataclass(frozen=True)
class Rater:
    """model: a run. reward: a name or a node as YAML. server: of a judge of pairs. scores: a file. parameters, trust: of a run."""

    model: str | None
    reward: str | None
    server: dict[str, str]
    scores: Path | None
    parameters: str | None
    trust: bool

    @property
    def who(self) -> str:
        """What to call it, also as a part of a folder's name."""
        if self.scores is not None and self.model is None:
            return f"scores of {self.scores.name}"
        name = self.model or self.server.get("model") or self.node().get("use", "")
        return str(name) if self.model else re.sub(r"[^\w.-]+", "-", str(name))

    def node(self) -> dict[str, Any]:
        """The reward as a node of a config. Errors: UserError for what is none."""
        import yaml

        from mmalign.types import UserError

        try:
            node = yaml.safe_load(self.reward or "")
        except yaml.YAMLError:
            node = None
        if isinstance(node, str):
            node = {"use": node}
        if not isinstance(node, dict) or "use" not in node:
            raise UserError(f"--reward: got {self.reward!r}, takes a reward's name, or a node such as {{use: pickscore}}")
        return node

    def built(self, options: dict[str, Any]) -> dict[str, Any]:
        """``reward``, ``oracle`` or ``scores``, and ``part``, as `evaluate_reward` takes them.

        options: ``part``; of a judge further keywords of `judge_pairs`. Errors: UserError for none or several of them, and other options.
        """
        from mmalign.types import UserError

        self._one_rater()
        part = options.pop("part", None)
        if self.server and part is not None:
            raise UserError(f"part: got {part!r}, and a judge compares outputs as a whole; takes none")
        if self.server:
            return {"oracle": self._pairs(options)}
        if options:
            raise UserError(f"{next(iter(options))}: no such argument of the suite, or part=NAME; a judge (--judge) has others")
        if self.scores is not None:
            if not self.scores.is_file():
                raise UserError(f"--scores: {self.scores} is not there, takes a file of scores")
            return {"scores": self.scores}
        return {"reward": self._of_run(part)} if self.model is not None else {**self._reward(), "part": part}

    def is_examined(self, options: dict[str, Any]) -> bool:
        """Whether it is a judge whose biases are asked for: by templates, or repetitions."""
        return bool(self.server) and bool({"templates", "repetitions"} & options.keys())

    def examined(self, options: dict[str, Any]) -> dict[str, Any]:
        """``judges`` and ``repetitions`` as `evaluate_judge` takes them.

        options: templates (name -> criterion), repetitions, by_principle, and further keywords of `judge_in_order`.

        Errors: UserError for others.
        """
        from mmalign.types import UserError

        self._one_rater()
        templates = options.pop("templates", None) or {"": options.pop("criterion", None)}
        if not isinstance(templates, dict):
            raise UserError(f'templates: got {templates!r}, takes {{name: criterion, ...}}, as they complete "Say ..."')
        repetitions, by_principle = options.pop("repetitions", 1), options.pop("by_principle", False)
        judges = {
            str(name): self._in_order({**options, **({} if words is None else {"criterion": words})}) for name, words in templates.items()
        }
        return {"judges": judges, "repetitions": repetitions, "by_principle": by_principle}

    def _in_order(self, options: dict[str, Any]) -> Any:
        from mmalign.arguments.signatures import nearest, parameters
        from mmalign.rewards import judge_in_order
        from mmalign.types import UserError

        takes = parameters(judge_in_order)[0]
        if strange := next((key for key in options if key not in takes), None):
            raise UserError(f"{strange}: no such argument of the suite or of judge_in_order{nearest(strange, takes)}")
        return judge_in_order(server=self._server(), **options)

    def _server(self) -> Any:
        from mmalign.types import UserError

        if not {"url", "model"} <= self.server.keys():
            raise UserError("--judge: takes the URL of an OpenAI-compatible server, and --judge-model its name there")
        return self.server

    def _pairs(self, options: dict[str, Any]) -> Any:
        from mmalign.config import build_part

        return build_part({"oracle": {"use": "judge_pairs", "server": self._server(), **options}}, "oracle")

    def _one_rater(self) -> None:
        from mmalign.types import UserError

        said = {"a run": self.model, "--reward": self.reward, "--judge": self.server or None, "--scores": self.scores}
        given = [name for name, value in said.items() if value is not None]
        if len(given) != 1:
            raise UserError(f"eval: got {' and '.join(given) or 'nothing that scores'}, takes one of {', '.join(said)}")

    def _of_run(self, part: str | None) -> Any:
        from mmalign.cli.app import run_folder
        from mmalign.rooms import find
        from mmalign.types import UserError

        if self.parameters is not None:
            raise UserError("--set: a run scores by the parameters that its evaluations found best")
        return find("mmalign.rewards", "trained")(str(run_folder(self.model or "")), part=part, trust=self.trust)

    def _reward(self) -> dict[str, Any]:
        from mmalign.config import build_part
        from mmalign.rooms import index

        node = self.node()
        if any(entry.returns == "Oracle" for entry in index("mmalign.rewards").get(str(node["use"]), ())):
            return {"oracle": build_part({"oracle": node}, "oracle")}
        return {"reward": build_part({"rewards": {"reward": node}}, "rewards")["reward"]}
