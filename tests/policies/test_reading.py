"""Words, phrases, sentences and turns of tokens."""

from __future__ import annotations

import pytest
import torch

from mmalign.policies.language.prompts import reading
from mmalign.types import UserError

PIECES = {0: "", 1: "the", 2: " red", 3: " r", 4: "ed", 5: " cat", 6: " sat", 7: ".", 8: " It", 9: " ran", 10: " dog", 11: "s", 12: "!"}


def decode(ids):
    return "".join(PIECES[token] for token in ids)


def test_spans_are_the_characters_that_each_token_adds():
    text, spans = reading.spans([1, 5, 7, 0], decode)
    assert text == "the cat."
    assert spans == [(0, 3), (3, 7), (7, 8), (8, 8)]


def test_half_a_character_belongs_to_the_token_that_completes_it():
    halves = lambda ids: "a" + "é" if len(ids) == 3 else "a" + "�" * (len(ids) - 1)  # noqa: E731
    assert reading.spans([1, 2, 3], halves)[1] == [(0, 1), (1, 1), (1, 2)]


def test_the_same_words_in_other_tokens_do_not_differ():
    assert reading.phrases([1, 2, 5, 0], [1, 3, 4, 5, 0], decode) == ([0, 0, 0, 0], [0, 0, 0, 0, 0])


def test_phrases_have_one_number_in_both_answers():
    # "the red cat sat." against "the dog sat ran!"
    first, second = reading.phrases([1, 2, 5, 6, 7], [1, 10, 6, 9, 12], decode)
    assert first == [0, 1, 1, 1, 1] and second == [0, 1, 1, 1, 1]
    # "the cat sat It ran" against "the dogs sat It" : cat/dogs, and ran left out
    first, second = reading.phrases([1, 5, 6, 8, 9], [1, 10, 11, 6, 8], decode)
    assert first == [0, 1, 0, 0, 2] and second == [0, 1, 1, 0, 0]
    # "the cat sat" against "the red cat ran": red put in, then another verb
    first, second = reading.phrases([1, 5, 6], [1, 2, 5, 9], decode)
    assert first == [0, 0, 2] and second == [0, 1, 0, 2]


def test_sentences_hold_what_ends_them():
    assert reading.ended([1, 5, 7, 8, 9, 12, 0], decode, "sentence") == [1, 1, 1, 2, 2, 2, 2]


def test_clauses_end_at_punctuation_and_not_in_numbers():
    pieces = ["so", ",", " 1,000", " cats", ";", " and", " 3.5", " dogs", ".", " bye", ""]
    said = lambda ids: "".join(pieces[token] for token in ids)  # noqa: E731
    assert reading.ended(range(11), said, "clause") == [1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4]
    assert reading.ended(range(11), said, "sentence") == [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]


def test_segments_of_ones_own_are_those_that_tokens_end_in():
    # "the cat sat. It ran": the spaces before words are the tokens', the end of the row belongs to the last one
    ids = [1, 5, 6, 7, 8, 9, 0]
    assert reading.within(ids, decode, lambda text: [(0, 7), (8, 12), (13, 19)]) == [1, 1, 2, 2, 3, 3, 3]
    assert reading.within(ids, decode, lambda text: [(8, 11)]) == [1] * 7 == reading.within(ids, decode, lambda text: [])
    for found, line in (([(0, 70)], "returned .0, 70. of a text of 19 characters"), ("ab", "takes a list of"), (None, "returned None")):
        with pytest.raises(UserError, match=f"policy.segments: {line}" if "returned" in line else line):
            reading.within(ids, decode, lambda text, found=found: found)


def test_turns_are_runs_of_trained_tokens():
    assert reading.turns([False, True, True, False, True]) == [0, 1, 1, 0, 2]


def test_rows_have_to_stand_in_pairs():
    tokens, lengths = torch.tensor([[1, 5], [1, 10]]), torch.tensor([2, 2])
    rows = torch.arange(2)
    assert reading.compared(rows, torch.tensor([3, 3]), tokens, lengths, decode).tolist() == [[0, 1], [0, 1]]
    with pytest.raises(UserError, match="stand in pairs"):
        reading.compared(rows, torch.tensor([3, 4]), tokens, lengths, decode)
