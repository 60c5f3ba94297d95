from __future__ import annotations

import math

import pytest
import torch

from mmalign.objectives.feedback import advantages
from mmalign.types import UserError

GROUP = torch.tensor([3, 3, 3, 8, 8])


def rewards(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_centred_by_hand() -> None:
    torch.testing.assert_close(advantages.centred(rewards(1, 2, 6, 0, 4), GROUP), rewards(-2, -1, 3, -2, 2))


def test_leave_one_out_by_hand() -> None:
    torch.testing.assert_close(advantages.leave_one_out(rewards(1, 2, 6, 0, 4), GROUP), rewards(-3, -1.5, 4.5, -4, 4))


@pytest.mark.parametrize(("unbiased", "value"), [(True, 1 / math.sqrt(2)), (False, 1.0)])
def test_population_and_unbiased_std_in_a_pair(unbiased: bool, value: float) -> None:
    got = advantages.normalised(rewards(0, 1), torch.tensor([0, 0]), unbiased=unbiased, eps=0)
    torch.testing.assert_close(got, rewards(-value, value))


def test_batch_std_holds_the_differences_between_groups() -> None:
    got = advantages.normalised(rewards(1, 2, 6, 0, 4), GROUP, std="batch", unbiased=False, eps=0.5)
    torch.testing.assert_close(got, rewards(-2, -1, 3, -2, 2) / (rewards(1, 2, 6, 0, 4).std(unbiased=False) + 0.5))


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_ties_are_zero_whatever_rounding_does(std: str) -> None:
    """Equal rewards whose float32 rounding differs in the last place: a std of 1e-8 is not information."""
    tied = torch.tensor([0.1, 0.1 * (1 + 1e-7), 0.1, 1000.0, 1000.0 * (1 + 1e-7)], dtype=torch.float32).double()
    assert tied.unique().numel() > 2
    assert not advantages.normalised(tied, GROUP, std=std, eps=0).any()  # type: ignore[arg-type]
    assert not advantages.leave_one_out(tied, GROUP).any()


def test_a_small_but_real_difference_is_no_tie() -> None:
    got = advantages.normalised(rewards(1, 1.001, 1, 0, 0), GROUP, eps=0)
    assert got[1] > 1 and not got[3:].any()


@pytest.mark.parametrize("of", [advantages.centred, advantages.leave_one_out, advantages.normalised])
def test_a_missing_reward_counts_in_nothing(of) -> None:  # type: ignore[no-untyped-def]
    got = of(rewards(1, math.nan, 6, 0, 4), GROUP)
    torch.testing.assert_close(got[[0, 2, 3, 4]], of(rewards(1, 6, 0, 4), GROUP[[0, 2, 3, 4]]))
    assert got[1] == 0


@pytest.mark.parametrize("of", [advantages.centred, advantages.leave_one_out, advantages.normalised])
def test_a_row_alone_has_no_advantage(of) -> None:  # type: ignore[no-untyped-def]
    assert not of(rewards(5, 7, math.nan), torch.tensor([0, 1, 1])).any()
    assert not of(rewards(math.nan, math.nan), torch.tensor([0, 0])).any()
    assert of(rewards(), torch.tensor([], dtype=torch.int64)).shape == (0,)


def test_informative_rows() -> None:
    got = advantages.informative(rewards(1, math.nan, 0, 2, 2), GROUP)
    assert got.tolist() == [True, False, True, False, False]
    tied = advantages.informative(rewards(0.1, math.nan, 0.1, -2, math.nan), GROUP)
    assert not tied.any(), "a missing reward is no 0, and unties nothing"


def test_clip() -> None:
    assert advantages.clip(rewards(-9, 0.5, 9), largest=5).tolist() == [-5, 0.5, 5]
    assert advantages.clip(rewards(-9), largest=None).tolist() == [-9]


def test_errors_name_what_was_got() -> None:
    with pytest.raises(UserError, match="infinite"):
        advantages.centred(rewards(1, math.inf), torch.tensor([0, 0]))
    with pytest.raises(UserError, match=r"got 'global'.*'group', 'batch' or 'none'"):
        advantages.normalised(rewards(1, 2), torch.tensor([0, 0]), std="global")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"\[2\].*\[3\]"):
        advantages.centred(rewards(1, 2), torch.tensor([0, 0, 0]))
