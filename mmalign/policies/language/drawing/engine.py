"""Sampling by a server that speaks OpenAI's completions with token ids, as vLLM does, instead of by the policy itself.

Start it with the policy's base model, room for its adapter, and log-probabilities at the temperature that is sampled::

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK --logprobs-mode processed_logprobs

Before every rollout the trained adapter is written to a folder that the server can read, and loaded there under a new name; what has not
changed since stays. Where more than a LoRA of the language model is trained, or ``update: weights`` says so, whole weights are handed over
(LoRA added in): the server is started on a folder of its own, a copy of the model that holds weights in ``safetensors``, and reads it
again after each update, which vLLM does in its development mode (``collective_rpc`` of its worker's ``reload_weights``)::

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --served-model-name MODEL --logprobs-mode processed_logprobs

Prompts of words are sent as token ids. Those with images or videos are sent as conversations, which the server puts through its own
chat template and processor (``handover.py``). ``old`` are the policy's own log-probabilities of what the server sampled, not the
server's: a ratio is 1 before the first update, whatever kernels the server has. How far the two are apart is logged
(``engine_difference``).

vLLM itself was not run: the tests' server answers in its words (``tests/policies/test_engine.py``, ``tests/recipes/test_engine_runs.py``),
and ``scripts/engine_parity.py`` is the first thing to ask of a real one. SGLang's words differ, and are not spoken.

``transformers serve`` (5.23) can be a judge, and no engine: it takes no adapter and no weights, leaves ``logprobs`` out, and refuses
``return_token_ids``.

What the server read is compared with what is trained on, token by token: it has to say it (``prompt_token_ids``, which vLLM gives with
``return_token_ids``), and a difference stops the run with the place where it is.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.distributed.meshes import in_processes, whole
from mmalign.media import canonical_bytes
from mmalign.policies.adapters import write_adapter
from mmalign.policies.language.drawing.drawing import Drawing, Drawn
from mmalign.policies.language.drawing.handover import WEIGHTS, media_options, messages, write_weights
from mmalign.policies.language.models.members import members_of
from mmalign.policies.language.prompts.chat import Chat
from mmalign.policies.language.prompts.encoded_prompts import Prompt
from mmalign.policies.language.prompts.templates import adds_special
from mmalign.policies.settings import EngineSettings
from mmalign.types import UserError

LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Sampled(NamedTuple):
    """One completion of a server's. ids: its tokens. log_probs: of each, nats. cut: it came to no end."""

    ids: list[int]
    log_probs: list[float]
    cut: bool


class Engine:
    """A server that samples, with the settings of ``EngineSettings``.

    chat: of the policy. module: its model. lora: whether all that is trained is LoRA. Errors: UserError for an adapter of what is no
    adapter, and for a folder that no server of whole weights can have been started on.
    """

    def __init__(self, settings: EngineSettings, chat: Chat, module: nn.Module, *, lora: bool):
        import httpx2

        self.url, self.model, self.at_once, self.chat = settings.url.rstrip("/"), settings.model, settings.at_once, chat
        self.adapter = lora and _spoken(module) if settings.update is None else settings.update == "adapter"
        if self.adapter and not lora:
            raise UserError("policy.engine.update: got adapter, and more is trained than LoRA; takes weights")
        if not self.adapter:
            _refuse_folder(settings.folder)
        self.folder = Path(tempfile.mkdtemp(prefix="mmalign-adapters-") if settings.folder is None else settings.folder)
        self.loaded, self.count, self._held = self.model, 0, b""
        self._run = secrets.token_hex(4)  # a server that outlives a run keeps its adapters, and refuses a name that it has
        local = httpx2.URL(self.url).host in LOOPBACK
        limits = httpx2.Limits(max_connections=self.at_once)
        self._client = httpx2.Client(timeout=settings.timeout, trust_env=not local, limits=limits)

    def refresh(self, module: nn.Module) -> None:
        """Hands over what is trained of the module where it is not what the server has."""
        digest = _digest({name: whole(p.detach()) for name, p in module.named_parameters() if p.requires_grad or "lora_" in name})
        if digest == self._held:
            return
        if self.adapter:
            self._load_adapter(module)
        else:
            write_weights(module, self.folder)
            root = self.url.removesuffix("/v1")
            self._post("collective_rpc", {"method": "reload_weights"}, root=root)
            self._post("reset_prefix_cache", {}, root=root)
        self._held = digest

    def _load_adapter(self, module: nn.Module) -> None:
        """Under a new name; the one before is taken away."""
        self.count += 1
        name, before = f"mmalign-{self._run}-{self.count}", self.loaded
        place = self.folder / name
        write_adapter(module, place)
        self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(place)})
        self.loaded = name
        if before != self.model:
            self._post("unload_lora_adapter", {"lora_name": before})
            shutil.rmtree(self.folder / before, ignore_errors=True)

    def draw(self, prompts: Sequence[Prompt], sources: Sequence[Any], which: Tensor, seeds: Sequence[int], drawing: Drawing) -> Drawn:
        """Completions of prompts, rows of one side by side.

        sources: strings or conversations that the prompts were made of. which: ``[R]`` the prompt of each row. seeds: one for each prompt.

        Errors: UserError for a server that gives no answer, or another one than was asked for; requests that were not sent yet never are.
        """
        counts = torch.bincount(which, minlength=len(prompts)).tolist()
        with ThreadPoolExecutor(self.at_once) as pool:
            requests = [pool.submit(self._completions, *one, drawing) for one in zip(prompts, sources, counts, seeds, strict=True)]
            try:
                rows = [row for request in requests for row in request.result()]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        width = max(len(row.ids) for row in rows)
        tokens, log_probs = torch.zeros((len(rows), width), dtype=torch.int64), torch.zeros((len(rows), width), dtype=torch.float64)
        for place, row in enumerate(rows):
            tokens[place, : len(row.ids)] = torch.tensor(row.ids)
            log_probs[place, : len(row.ids)] = torch.tensor(row.log_probs, dtype=torch.float64)
        lengths, cut = torch.tensor([len(row.ids) for row in rows]), torch.tensor([row.cut for row in rows])
        return Drawn(tokens, lengths, cut, log_probs, torch.zeros((*tokens.shape, 0), dtype=torch.uint8))

    def _completions(self, prompt: Prompt, source: Any, count: int, seed: int, drawing: Drawing) -> list[Sampled]:
        body = {
            "model": self.loaded, "n": count, "seed": seed, "max_tokens": drawing.most,
            "temperature": drawing.temperature, "top_p": drawing.top_p, "top_k": drawing.top_k or -1,
            "stop_token_ids": drawing.stops.tolist(), "logit_bias": {str(token): -100 for token in drawing.never.tolist()},
            "return_token_ids": True, "skip_special_tokens": False,
        }  # fmt: skip
        if prompt.media:
            answer = self._post("chat/completions", body | self._conversation(prompt, source))
        else:
            answer = self._post("completions", body | {"prompt": list(prompt.ids), "logprobs": 0})
        rows = []
        for choice in answer.get("choices", []):
            logged = choice.get("logprobs") or {}
            ids, values, read = choice.get("token_ids"), logged.get("token_logprobs"), choice.get("prompt_token_ids")
            if prompt.media:
                values, read = [token.get("logprob") for token in logged.get("content") or ()], answer.get("prompt_token_ids")
            if not ids or values is None or len(values) != len(ids):
                raise UserError(f"policy.engine: {self.url} gives no token ids with log-probabilities; takes a server that does (vLLM)")
            self._same(prompt, read)
            rows.append(Sampled(list(ids), [float(value) for value in values], choice.get("finish_reason") == "length"))
        if len(rows) != count:
            raise UserError(f"policy.engine: {self.url} gave {len(rows)} completions where {count} were asked for")
        return rows

    def _conversation(self, prompt: Prompt, source: Any) -> dict[str, Any]:
        """A prompt with media, for the server's own template. Errors: UserError where the policy has none."""
        vision = self.chat.vision
        if vision is None or not self.chat.template or self.chat.arrives_rendered(source):
            raise UserError(
                "policy.engine: got a prompt with an image or a video that goes through no chat template, as it does at a server; "
                "takes conversations, and a policy with a template"
            )
        return {
            "messages": messages(self.chat.turns(source), vision), "logprobs": True, "top_logprobs": 0,
            "add_special_tokens": adds_special(self.chat.tokenizer, prompt.text), **media_options(prompt.media, vision),
        }  # fmt: skip

    def _same(self, prompt: Prompt, ids: Sequence[int] | None) -> None:
        """UserError where the server read another prompt than the one that is trained on, and the place where they part."""
        if ids is None:
            raise UserError(
                f"policy.engine: {self.url} does not say what it read; takes a server with prompt_token_ids (vLLM 0.10.2 or newer)"
            )
        if tuple(ids) == prompt.ids:
            return
        place = next((number for number, pair in enumerate(zip(ids, prompt.ids, strict=False)) if pair[0] != pair[1]), None)
        if place is None:
            place = min(len(ids), len(prompt))
        theirs, ours = (self._shown(some, place) for some in (ids, prompt.ids))
        where = next((f", in {prompt.media[n].kind} {n}" for n, (first, last) in enumerate(prompt.spans) if first <= place < last), "")
        before = self.chat.words(prompt.ids[max(place - 12, 0) : place])
        raise UserError(
            f"policy.engine: {self.url} read a prompt of {len(prompt)} tokens as {len(ids)}: token {place}{where} is {theirs} there and "
            f"{ours} here, behind {before!r}; takes a server of the policy's model, tokenizer and template"
        )

    def _shown(self, ids: Sequence[int], place: int) -> str:
        return "none" if place >= len(ids) else f"{ids[place]} {self.chat.words([ids[place]])!r}"

    def _post(self, path: str, body: dict[str, Any], *, root: str | None = None) -> dict[str, Any]:
        import httpx2

        address = f"{self.url if root is None else root}/{path}"
        try:
            answer = self._client.post(address, json=body)
        except httpx2.HTTPError as error:
            why = str(error) or type(error).__name__
            raise UserError(f"policy.engine: no answer from {address}: {why}; takes a server that runs, and then resume") from error
        if answer.status_code >= 400:
            raise UserError(f"policy.engine: {address} answered {answer.status_code}: {' '.join(answer.text.split())[:200]}")
        try:
            payload: Any = answer.json()
        except ValueError:
            return {}  # loading an adapter answers with a sentence
        return payload if isinstance(payload, dict) else {}


def _digest(weights: Mapping[str, Tensor]) -> bytes:
    hasher = hashlib.blake2b(digest_size=16)
    for name, value in sorted(weights.items()):
        hasher.update(name.encode())
        hasher.update(canonical_bytes(value))
    return hasher.digest()


def _spoken(module: nn.Module) -> bool:
    """Whether every LoRA is in the language model: servers leave out what adapters say of encoders of pictures."""
    language = set(members_of(module).get("language", ()))
    return all(name in language for name, _ in module.named_parameters() if "lora_" in name)


def _refuse_folder(folder: str | None) -> None:
    if in_processes():
        raise UserError("policy.engine: whole weights are written by one process, and there are several; takes lora, or one process")
    if folder is None or not any(file for pattern in WEIGHTS for file in Path(folder).glob(pattern)):
        raise UserError(
            f"policy.engine.folder: got {folder!r}, takes the folder that the server was started on, with weights in safetensors: more is "
            f"trained than a LoRA of the language model, so that whole weights are handed over"
        )
