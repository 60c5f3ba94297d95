"""How active a language model is where it says each token: one number, the mean over what all of its layers hold there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.policies.language.models import prefixes
from mmalign.policies.language.models.fitting import Running, Whole
from mmalign.types import UserError


class Averaged(nn.Module):
    """A backbone whose "hidden states" are one number: the mean, over its layers and their width, of what they give."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.config = backbone.config
        self.__dict__["backbone"] = backbone  # not a submodule: its parameters have one name only

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        """``last_hidden_state``: ``[R, L, 1]`` float32 at least. Without ``position_ids``, which a model finds out itself."""
        output = self.__dict__["backbone"](input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, **kwargs)
        states = getattr(output, "hidden_states", None)
        if not states or len(states) < 2:
            name = type(self.__dict__["backbone"]).__name__
            raise UserError(f"policy.model: {name} does not give its layers' states, which masks of activations are made of")
        layers = states[1:]  # the first are the embeddings
        wide = torch.promote_types(layers[0].dtype, torch.float32)
        return SimpleNamespace(last_hidden_state=sum(layer.to(wide).mean(-1, keepdim=True) for layer in layers) / len(layers))


@torch.no_grad()
def mean_activations(running: Running, rows: prefixes.Sequences) -> Tensor:
    """``[R, T]``: at ``[r, t]`` the mean of the states that stand before token t of row r, of every layer, the last one's behind its norm.

    Each row runs with its own prompt: a cache of prompts is filled no further than its keys, and has no states. Cells beyond a row's
    length hold anything. Errors: UserError for a model that does not give its layers' states.
    """
    backbone = running.backbone
    own = backbone.__dict__["model"].base_model if isinstance(backbone, Whole) else backbone
    return prefixes.run(Averaged(own), prefixes.moved(rows, running.device), shared=False).squeeze(-1)
