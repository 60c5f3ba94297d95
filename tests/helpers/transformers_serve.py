"""``transformers serve``, a real server of chat completions on a CPU, with a model of a thousand numbers that were put in by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2
import torch

from mmalign.distributed.launch import held_port

WORDS = ["<unk>", "<eos>", "1", "5", "A", "B", "good", "bad", "Say"]
FILLER, ANSWERED, GOOD, PAIR = range(4)  # what the first four of eight numbers of a hidden state mean


def write_judge(folder: Path) -> None:
    """A Llama that says 5 where it has read ``good`` more often than ``bad``, else 1; and A, where it has read ``Say``; and then stops.

    Its attention looks at all words alike, and carries two numbers of each to the last one.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), eos_token_id=1, pad_token_id=1, tie_word_embeddings=False, **sizes))
    row = {word: number for number, word in enumerate(WORDS)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        model.model.embed_tokens.weight[:, FILLER] = 1.0
        model.model.embed_tokens.weight[row["good"], GOOD], model.model.embed_tokens.weight[row["bad"], GOOD] = 1.0, -1.0
        model.model.embed_tokens.weight[row["Say"], PAIR] = 1.0
        for word in ("1", "5", "A", "B"):
            model.model.embed_tokens.weight[row[word], ANSWERED] = 1000.0
        attention, head = model.model.layers[0].self_attn, model.lm_head.weight
        for carried in (GOOD, PAIR):
            attention.v_proj.weight[carried, carried] = attention.o_proj.weight[carried, carried] = 1.0
        head[row["5"], FILLER] = head[row["1"], FILLER] = 10.0
        head[row["5"], GOOD], head[row["1"], GOOD] = 100.0, -100.0
        head[row["A"], PAIR], head[row["<eos>"], ANSWERED] = 10_000.0, 1000.0
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class TransformersServe:
    """``url`` ends with ``/v1``, ``model`` is the folder. It is there once this is made."""

    def __init__(self, folder: Path):
        self.model, self.log = str(folder), folder / "server.log"
        self.held = ExitStack()
        port = self.held.enter_context(held_port())
        command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", self.model]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
                stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        self.url = f"http://127.0.0.1:{port}/v1"
        while self.process.poll() is None:
            try:
                httpx2.get(self.url.replace("/v1", "/health"), trust_env=False)
                return
            except httpx2.TransportError:
                time.sleep(0.2)
        raise AssertionError(f"transformers serve did not start: {self.log.read_text()[-500:]}")

    def stop(self) -> None:
        """Ends it, and waits."""
        self.process.terminate()
        self.process.wait(300)
        self.held.close()
