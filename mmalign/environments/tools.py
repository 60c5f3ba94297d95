"""Functions that a model may call, as an environment."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from mmalign.arguments.ranges import Count, Positive
from mmalign.conversations import Turn, media_of
from mmalign.environments._parts import PICTURES, Environment, Tool, calls_of, looks, schema, shown
from mmalign.media import Broken, Limits, picture
from mmalign.rewards._shared.patience import wait
from mmalign.types import UserError


def tools(tools: dict[str, Callable[..., Any]], *, seconds: Positive = 10.0, letters: Count = 2000, at_once: Count = 8) -> Environment:
    """Calls in the policy's last turn are answered by the tools; a turn that calls none ends the conversation.

    Calls are read in the form of the model's own chat template, where it has one (its prompts then list the tools), and else as tags:
    ``<calculate>13 * 14</calculate>``, or ``<search>{"words": "fox", "most": 3}</search>``. Each is answered by a turn ``{"role": "tool",
    "name": ..., "content": ...}``. What a tool raises, a call that cannot be read, and a tool that takes too long are answers too:
    ``error: ...``, with ``error: true`` in the turn, and counted (``environment_errors`` of a run).

    Tools run in threads of this process. One that hangs is left behind in its thread, and asked no more while ``at_once`` of its calls
    hang. Answers are words, ``str`` of what a tool returns, or pictures: one that returns a PIL image, a tensor ``[3, H, W]`` in 0..1,
    or a list with some among its words, shows them to a vision-language model, through the model's own processor. A tool with a
    parameter ``pictures`` is given those of the conversation so far, as PIL has them, in their order.

    Args:
        tools: name -> function of what the model writes.
        seconds: for one call, by the clock; one that stands while this process is stopped, or has no processor.
        letters: of an answer; what is more is cut off, and said.
        at_once: calls under way.

    Errors: UserError for no tool, and for names that are no tags.

    Examples:
        >>> environment = mm.environments.tools({"calculate": mm.environments.calculator()})
        >>> asked = [{"role": "user", "content": "13 * 14?"}, {"role": "assistant", "content": "<calculate>13 * 14</calculate>"}]
        >>> environment([asked, [{"role": "assistant", "content": "182"}]])
        [[{'role': 'tool', 'name': 'calculate', 'content': '182'}], None]
    """
    if not tools:
        raise UserError("tools: got none, takes functions by name: {calculate: {use: calculator}}")
    for name, tool in tools.items():
        if not re.fullmatch(r"\w[\w-]*", name) or not callable(tool):
            raise UserError(f"tools.{name}: got a {type(tool).__name__}, takes a function, under a name of letters, digits, _ and -")
    return Tools(dict(tools), seconds, letters, at_once)


class Tools:
    """See ``tools``. schemas: of each tool, as chat templates take them. looks: names of tools that are given pictures."""

    def __init__(self, functions: Mapping[str, Tool], seconds: float, letters: int, at_once: int) -> None:
        self.functions, self.seconds, self.letters, self.at_once = functions, seconds, letters, at_once
        self.schemas = [schema(name, tool) for name, tool in functions.items()]
        self.looks = [name for name, tool in functions.items() if looks(tool)]
        self.hanging: dict[str, list[Future[Any]]] = {name: [] for name in functions}

    def __call__(self, conversations: Sequence[Sequence[Turn]]) -> list[Any]:
        calls = [[self._with_pictures(call, talk) for call in calls_of(talk[-1], list(self.functions))] for talk in conversations]
        every = [call for some in calls for call in some]
        answers = [answer for start in range(0, len(every), self.at_once) for answer in self._wave(every[start : start + self.at_once])]
        replies, start = list[Any](), 0
        for some in calls:
            replies.append(answers[start : start + len(some)] or None)
            start += len(some)
        return replies

    def _with_pictures(self, call: Mapping[str, Any], talk: Sequence[Turn]) -> Mapping[str, Any]:
        """A call of a tool that looks, with what there is to look at."""
        if call.get("name") not in self.looks:
            return call
        return {**call, PICTURES: [picture(medium.source, Limits()) for medium in media_of(talk) if medium.kind == "image"]}

    def _wave(self, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answers of calls that run at the same time."""
        begun = [self._begun(call) for call in calls]
        wait([future for future in begun if future is not None], self.seconds)
        return [self._answer(call, future) for call, future in zip(calls, begun, strict=True)]

    def _begun(self, call: Mapping[str, Any]) -> Future[Any] | None:
        """A call under way; None for one that is not tried."""
        name = str(call.get("name"))
        if "error" in call or name not in self.functions:
            return None
        self.hanging[name] = [future for future in self.hanging[name] if not future.done()]
        if len(self.hanging[name]) >= self.at_once:
            return None
        tool, arguments, answer = self.functions[name], call.get("arguments"), Future[Any]()
        beside = {PICTURES: call[PICTURES]} if PICTURES in call else {}

        def work() -> None:
            try:
                answer.set_result(tool(**{**arguments, **beside}) if isinstance(arguments, Mapping) else _alone(tool, arguments, beside))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        self.hanging[name].append(answer)
        return answer

    def _answer(self, call: Mapping[str, Any], future: Future[Any] | None) -> dict[str, Any]:
        turn = {"role": "tool", "name": str(call.get("name"))}
        if future is None:
            missing = call.get("error") or f"no tool is called {call.get('name')!r}; there are {', '.join(self.functions)}"
            busy = call.get("name") in self.functions and "error" not in call
            return _failed(turn, f"still at work on {self.at_once} calls before" if busy else missing)
        if not future.done():
            return _failed(turn, f"no answer in {self.seconds:g} s")
        error = future.exception()
        if error is not None:
            return _failed(turn, f"{type(error).__name__}: {' '.join(str(error).split())[: self.letters]}")
        try:
            return turn | {"content": shown(future.result()) or self._words(future.result())}
        except Broken as broken:
            return _failed(turn, f"a picture that cannot be shown: {broken}")

    def _words(self, result: Any) -> str:
        text = "done" if result is None or result == "" else str(result)
        return text if len(text) <= self.letters else f"{text[: self.letters]} ... ({len(text) - self.letters} letters more)"


def _alone(tool: Tool, text: Any, beside: Mapping[str, Any]) -> Any:
    """A tool called with one text; without any where it takes nothing else."""
    return tool(text, **beside) if text or inspect.signature(tool).parameters.keys() - beside.keys() else tool(**beside)


def _failed(turn: dict[str, Any], why: str) -> dict[str, Any]:
    return turn | {"content": f"error: {why}", "error": True}
