"""What records and prompts say of a policy before its weights are loaded: what it could do nothing with is refused then.

A recipe's ``FORESEEN`` is asked by ``config.build`` once everything but the policy is built, with what the policy's module says of it
(``types.Adapter``) and the arguments of its node; recipes ask the same again of the policy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from mmalign.conversations import has_media
from mmalign.data.pairs import listed
from mmalign.needs import contrast
from mmalign.records import Choosy, Record, Records, Undecoded, suited
from mmalign.training.settings import RecordBatch
from mmalign.types import Adapter, Method, UserError, contents

LOOK = 256
"""Prompts among which one has to be with a picture, where a method takes pictures away."""
Coming = Callable[[], Iterator[Any]]


def streamed(records: Records | Sequence[Record], *, seed: int) -> tuple[Records, Callable[..., Iterator[Any]]]:
    """Records, and what begins their stream, whose media are not decoded where they can wait."""
    source = listed(records) if isinstance(records, Sequence) else records
    return source, partial(source.undecoded if isinstance(source, Undecoded) else source.stream, seed=seed)


def of_records(adapter: Adapter, policy: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Of an offline recipe's arguments. Errors: UserError as ``refuse_records``, and for a model of words alone asked about pictures."""
    run = arguments.get("run")
    _, coming = streamed(arguments["records"], seed=0 if run is None else run.seed)
    count = arguments.get("batch", RecordBatch()).records
    first = refuse_records(adapter, coming, arguments["method"], count=count)
    _refuse_pictures(adapter, policy, "records", [record.prompt for record in first])


def of_prompts(adapter: Adapter, policy: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Of an online recipe's arguments. Errors: UserError as ``refuse_prompts``, and for a model of words alone asked about pictures."""
    refuse_prompts(adapter, arguments["prompts"], arguments["method"])
    _refuse_pictures(adapter, policy, "prompts", contents(arguments["prompts"]))
    if (mix := arguments.get("mix")) is not None:
        run = arguments.get("run")
        _, coming = streamed(mix.records, seed=0 if run is None else run.seed)
        try:
            first = refuse_records(adapter, coming, mix.method, count=mix.count)
            _refuse_pictures(adapter, policy, "records", [record.prompt for record in first])
        except UserError as error:
            raise UserError(f"mix.{error}") from error


def refuse_records(policy: Any, coming: Coming, method: Method, *, count: int) -> Sequence[Any]:
    """The first ``count`` records. Errors: UserError for those of another kind than the policy learns from, and without a picture where
    the method takes pictures away."""
    first = suited(list(islice(coming(), count)), policy)
    _refuse_unpictured(policy, "records", (record.prompt for record in islice(coming(), LOOK)), method)
    return first


def refuse_prompts(policy: Any, prompts: Sequence[Any], method: Method) -> None:
    """Errors: UserError for prompts without a picture where the method takes pictures away."""
    _refuse_unpictured(policy, "prompts", contents(prompts)[:LOOK], method)


def _refuse_unpictured(policy: Any, key: str, prompts: Iterable[Any], method: Method) -> None:
    """Of a policy that answers in words; one that makes images takes something else away."""
    answers = isinstance(policy, Choosy) and policy.learns_from == "texts"
    if answers and contrast("ablated") in method.needs and not any(map(has_media, prompts)):
        raise UserError(
            f"{key}: none of the first {LOOK} prompts shows an image or a video, and the method compares answers with those behind "
            f"prompts whose images are taken away; takes prompts about pictures (mm.data.picture_texts, picture_prompts)"
        )


def _refuse_pictures(adapter: Adapter, policy: Mapping[str, Any], key: str, prompts: Sequence[Any]) -> None:
    if prompts and all(map(has_media, prompts)) and adapter.sees(policy) is False:
        raise UserError(
            f"{key}: all of the first {len(prompts)} prompts show images or videos, and policy.model ({policy.get('model')}) reads words "
            f"alone; takes a vision-language model, or prompts of words"
        )
