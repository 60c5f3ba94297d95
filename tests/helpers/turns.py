"""Turns of conversations, as files of preference data write them."""

from __future__ import annotations


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def human(text):
    return {"from": "human", "value": text}
