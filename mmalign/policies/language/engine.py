"""Sampling by a server that speaks OpenAI's completions with token ids, as vLLM does, instead of by the policy itself.

Start it with the policy's base model, room for its adapter, and log-probabilities at the temperature that is sampled::

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK --logprobs-mode processed_logprobs

Before every rollout the trained adapter is written to a folder that the server can read, and loaded there under a new name. ``old`` are
the policy's own log-probabilities of what the server sampled, not the server's: a ratio is 1 before the first update, whatever
kernels the server has. How far the two are apart is logged (``engine_difference``).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.policies.language.drawing import Drawing, Drawn
from mmalign.policies.settings import EngineSettings
from mmalign.types import UserError


class Engine:
    """A server that samples, with the settings of ``EngineSettings``."""

    def __init__(self, settings: EngineSettings):
        self.url, self.model, self.at_once, self.timeout = settings.url.rstrip("/"), settings.model, settings.at_once, settings.timeout
        self.folder = Path(tempfile.mkdtemp(prefix="mmalign-adapters-") if settings.folder is None else settings.folder)
        self.loaded, self.count = self.model, 0

    def refresh(self, module: nn.Module) -> None:
        """Hands the module's adapter over, and takes the one before away."""
        from mmalign.policies.adapters import write_adapter

        self.count += 1
        name, before = f"mmalign-{self.count}", self.loaded
        place = self.folder / name
        write_adapter(module, place)
        self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(place)})
        self.loaded = name
        if before != self.model:
            self._post("unload_lora_adapter", {"lora_name": before})
            shutil.rmtree(self.folder / before, ignore_errors=True)

    def draw(self, prompts: Sequence[Sequence[int]], which: Tensor, seeds: Sequence[int], drawing: Drawing) -> Drawn:
        """Completions of prompts. which: ``[R]`` the prompt of each row, rows of one side by side. seeds: one for each prompt."""
        counts = torch.bincount(which, minlength=len(prompts)).tolist()
        with ThreadPoolExecutor(self.at_once) as pool:
            requests = [pool.submit(self._completions, *one, drawing) for one in zip(prompts, counts, seeds, strict=True)]
            rows = [row for answer in requests for row in answer.result()]
        width = max(len(ids) for ids, _, _ in rows)
        tokens, log_probs = torch.zeros((len(rows), width), dtype=torch.int64), torch.zeros((len(rows), width), dtype=torch.float64)
        for place, (ids, values, _) in enumerate(rows):
            tokens[place, : len(ids)] = torch.tensor(ids)
            log_probs[place, : len(ids)] = torch.tensor(values, dtype=torch.float64)
        lengths = torch.tensor([len(ids) for ids, _, _ in rows])
        return Drawn(tokens, lengths, torch.tensor([cut for _, _, cut in rows]), log_probs)

    def _completions(self, prompt: Sequence[int], count: int, seed: int, drawing: Drawing) -> list[tuple[list[int], list[float], bool]]:
        body = {
            "model": self.loaded, "prompt": list(prompt), "n": count, "seed": seed, "max_tokens": drawing.most, "logprobs": 0,
            "temperature": drawing.temperature, "top_p": drawing.top_p, "top_k": drawing.top_k or -1,
            "stop_token_ids": drawing.stops.tolist(), "logit_bias": {str(token): -100 for token in drawing.never.tolist()},
            "return_token_ids": True, "skip_special_tokens": False,
        }  # fmt: skip
        rows = []
        for choice in self._post("completions", body).get("choices", []):
            ids, values = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
            if not ids or values is None or len(values) != len(ids):
                raise UserError(f"policy.engine: {self.url} gives no token ids with log-probabilities; takes a server that does (vLLM)")
            prompt_ids = choice.get("prompt_token_ids")  # newer servers say it
            if prompt_ids is not None and list(prompt_ids) != list(prompt):
                mismatch = f"read a prompt of {len(prompt)} tokens as {len(prompt_ids)} others"
                raise UserError(f"policy.engine: {self.url} {mismatch}; takes a server of the policy's model and tokenizer")
            rows.append((list(ids), [float(value) for value in values], choice.get("finish_reason") == "length"))
        if len(rows) != count:
            raise UserError(f"policy.engine: {self.url} gave {len(rows)} completions where {count} were asked for")
        return rows

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", data=data, headers=kind)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            raise UserError(f"policy.engine: {self.url}/{path} answered {error.code}: {error.read().decode()[:200]}") from error
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            raise UserError(f"policy.engine: no answer from {self.url}/{path}: {error}") from error
        try:
            payload: Any = json.loads(text)
        except ValueError:
            return {}  # loading an adapter answers with a sentence
        return payload if isinstance(payload, dict) else {}
