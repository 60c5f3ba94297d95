"""Sampling by a server that speaks OpenAI's completions with token ids, as vLLM does, instead of by the policy itself.

Start it with the policy's base model, room for its adapter, and log-probabilities at the temperature that is sampled::

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK --logprobs-mode processed_logprobs

Before every rollout the trained adapter is written to a folder that the server can read, and loaded there under a new name; one that has
not changed since stays. ``old`` are the policy's own log-probabilities of what the server sampled, not the server's: a ratio is 1 before
the first update, whatever kernels the server has. How far the two are apart is logged (``engine_difference``).

What the server read is compared with what is trained on, token by token: it has to say it (``prompt_token_ids``, which vLLM gives with
``return_token_ids``), and a difference stops the run with the place where it is.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.media import canonical_bytes
from mmalign.policies.adapters import lora_weights, write_adapter
from mmalign.policies.language.drawing import Drawing, Drawn
from mmalign.policies.language.vision import Prompt
from mmalign.policies.settings import EngineSettings
from mmalign.types import UserError

LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Sampled(NamedTuple):
    """One completion of a server's. ids: its tokens. log_probs: of each, nats. cut: it came to no end."""

    ids: list[int]
    log_probs: list[float]
    cut: bool


class Engine:
    """A server that samples, with the settings of ``EngineSettings``. words: ids -> text, for messages."""

    def __init__(self, settings: EngineSettings, words: Callable[[Sequence[int]], str]):
        import httpx2

        self.url, self.model, self.at_once, self.words = settings.url.rstrip("/"), settings.model, settings.at_once, words
        self.folder = Path(tempfile.mkdtemp(prefix="mmalign-adapters-") if settings.folder is None else settings.folder)
        self.loaded, self.count, self._held = self.model, 0, b""
        self._run = secrets.token_hex(4)  # a server that outlives a run keeps its adapters, and refuses a name that it has
        local = httpx2.URL(self.url).host in LOOPBACK
        limits = httpx2.Limits(max_connections=self.at_once)
        self._client = httpx2.Client(timeout=settings.timeout, trust_env=not local, limits=limits)

    def refresh(self, module: nn.Module) -> None:
        """Hands the module's adapter over where it is not the one that the server has, and takes the one before away."""
        weights = lora_weights(module)
        if (digest := _digest(weights)) == self._held:
            return
        self.count += 1
        name, before = f"mmalign-{self._run}-{self.count}", self.loaded
        place = self.folder / name
        write_adapter(module, place)
        self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(place)})
        self.loaded, self._held = name, digest
        if before != self.model:
            self._post("unload_lora_adapter", {"lora_name": before})
            shutil.rmtree(self.folder / before, ignore_errors=True)

    def draw(self, prompts: Sequence[Prompt], which: Tensor, seeds: Sequence[int], drawing: Drawing) -> Drawn:
        """Completions of prompts. which: ``[R]`` the prompt of each row, rows of one side by side. seeds: one for each prompt.

        Errors: UserError for a server that gives no answer, or another one than was asked for; requests that were not sent yet never are.
        """
        counts = torch.bincount(which, minlength=len(prompts)).tolist()
        with ThreadPoolExecutor(self.at_once) as pool:
            requests = [pool.submit(self._completions, *one, drawing) for one in zip(prompts, counts, seeds, strict=True)]
            try:
                rows = [row for request in requests for row in request.result()]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        width = max(len(row.ids) for row in rows)
        tokens, log_probs = torch.zeros((len(rows), width), dtype=torch.int64), torch.zeros((len(rows), width), dtype=torch.float64)
        for place, row in enumerate(rows):
            tokens[place, : len(row.ids)] = torch.tensor(row.ids)
            log_probs[place, : len(row.ids)] = torch.tensor(row.log_probs, dtype=torch.float64)
        return Drawn(tokens, torch.tensor([len(row.ids) for row in rows]), torch.tensor([row.cut for row in rows]), log_probs)

    def _completions(self, prompt: Prompt, count: int, seed: int, drawing: Drawing) -> list[Sampled]:
        body = {
            "model": self.loaded, "prompt": list(prompt.ids), "n": count, "seed": seed, "max_tokens": drawing.most, "logprobs": 0,
            "temperature": drawing.temperature, "top_p": drawing.top_p, "top_k": drawing.top_k or -1,
            "stop_token_ids": drawing.stops.tolist(), "logit_bias": {str(token): -100 for token in drawing.never.tolist()},
            "return_token_ids": True, "skip_special_tokens": False,
        }  # fmt: skip
        rows = []
        for choice in self._post("completions", body).get("choices", []):
            ids, values = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
            if not ids or values is None or len(values) != len(ids):
                raise UserError(f"policy.engine: {self.url} gives no token ids with log-probabilities; takes a server that does (vLLM)")
            self._same(prompt, choice.get("prompt_token_ids"))
            rows.append(Sampled(list(ids), [float(value) for value in values], choice.get("finish_reason") == "length"))
        if len(rows) != count:
            raise UserError(f"policy.engine: {self.url} gave {len(rows)} completions where {count} were asked for")
        return rows

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
        before = self.words(prompt.ids[max(place - 12, 0) : place])
        raise UserError(
            f"policy.engine: {self.url} read a prompt of {len(prompt)} tokens as {len(ids)}: token {place}{where} is {theirs} there and "
            f"{ours} here, behind {before!r}; takes a server of the policy's model, tokenizer and template"
        )

    def _shown(self, ids: Sequence[int], place: int) -> str:
        return "none" if place >= len(ids) else f"{ids[place]} {self.words([ids[place]])!r}"

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import httpx2

        address = f"{self.url}/{path}"
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
