"""What evaluations measure of the tokens of a policy's own samples: the names of those numbers, and what they are called."""

from __future__ import annotations

PREFIX = "tokens/"

IN_WORDS = {
    "topk_entropy": "H_k, entropy of the 10 likeliest, nats",
    "topk_mass": "M_k, mass of the 10 likeliest",
    "marginal": "marginal: the base's 2nd or 3rd",
    "shifted": "shifted: below the base's 3rd",
}
"""name -> what it is called on the page; ``unshifted`` is the rest of the last two."""
