"""Labels of each of a reward model's scores by itself: values, gradients and metrics, cell by cell."""

import math

import pytest
import torch

import mmalign as mm
from mmalign.objectives.terms import embedded, rated, uncertain
from mmalign.types import Feedback, Steps, UserError

NAN = math.nan
STRENGTHS = [[1.0, 0.0, NAN], [0.3, NAN, NAN], [0.5, 0.9, 1.0]]


def labelled(strengths=STRENGTHS, rows=6):
    table = torch.tensor(strengths, dtype=torch.float64)
    pairs = torch.tensor([[0, 1], [3, 2], [4, 5]])
    nothing = torch.full((rows,), NAN, dtype=torch.float64)
    return Feedback(nothing, torch.arange(rows) // 2, pairs=pairs, strengths=table, strength=torch.ones(3).double())


def scores(rows=6, width=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=rng, dtype=torch.float64).requires_grad_()


def loss_of(method, table, feedback):
    steps = Steps(table, torch.ones_like(table, dtype=torch.bool), kind="score")
    return (method.weigh(steps.mask) * method.loss(steps, method.signal(feedback)).values).sum()


def expected(table, cost, strengths=STRENGTHS):
    """Mean over pairs, and over their scores, of what a label costs; 0 where there is none."""
    total = table.sum() * 0
    for (first, second), labels in zip([(0, 1), (3, 2), (4, 5)], strengths, strict=True):
        for column, p in enumerate(labels):
            if not math.isnan(p):
                total = total + p * cost(first, second, column, p) + (1 - p) * cost(second, first, column, p)
    return total / len(strengths) / table.shape[1]


def _bradley_terry(table):
    return lambda up, down, column, p: -torch.sigmoid(table[up, column] - table[down, column]).log()


def _with_ties(table):
    def cost(up, down, column, p):
        better, worse = table[up, column].exp(), table[down, column].exp()
        win, loss = better / (better + 5 * worse), worse / (worse + 5 * better)
        return -((24 * win * loss) if p == 0.5 else win).log()

    return cost


@pytest.mark.parametrize(("name", "cost"), [("bradley_terry", _bradley_terry), ("bradley_terry_ties", _with_ties)])
def test_each_score_is_compared_by_its_own_label(name, cost):
    ours, theirs = scores(), scores()
    got, wanted = loss_of(getattr(mm.methods, name)(), ours, labelled()), expected(theirs, cost(theirs))
    got.backward()
    wanted.backward()
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_mean_and_a_variance_have_the_label_of_their_dimension():
    both = [[1.0, 1.0, 0.2, 0.2], [NAN, NAN, 0.5, 0.5], [0.0, 0.0, NAN, NAN]]
    table = scores(width=4)
    grid = torch.linspace(-12, 12, 40001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])

    def cost(up, down, column, p):
        mean, spread = column // 2 * 2, column // 2 * 2 + 1
        std = (table[up, spread].exp() + table[down, spread].exp()) ** 0.5
        return -(density * torch.sigmoid(table[up, mean] - table[down, mean] + std * grid)).sum().log()

    torch.testing.assert_close(loss_of(mm.methods.bradley_terry_gaussian(), table, labelled(both)), expected(table, cost, both))


def test_metrics_count_the_scores_that_have_a_label():
    table = torch.tensor([[2.0, 5.0, 9.0], [1.0, 7.0, 0.0], [1.0, 0.0, 0.0], [0.0, 9.0, 9.0], [0.0, 1.0, 3.0], [0.0, 3.0, 1.0]]).double()
    steps = Steps(table, torch.ones_like(table, dtype=torch.bool), kind="score")
    method = mm.methods.bradley_terry()
    metrics = method.loss(steps, method.signal(labelled())).metrics
    assert metrics["accuracy"] == pytest.approx((1 + 1 + (0.5 + 0 + 1) / 3) / 3)  # a margin of 0 counts one half
    assert metrics["margin"] == pytest.approx(((1 + 2) / 2 + 1 + (0 - 2 + 2) / 3) / 3)
    assert method.keep(labelled([[NAN] * 3, *STRENGTHS[1:]])).tolist() == [False, False, True, True, True, True]


def test_ratings_by_score_with_holes():
    table, rating = scores(rows=3), torch.tensor([[1.0, NAN, 4.0], [NAN, NAN, NAN], [0.0, 2.0, NAN]]).double()
    feedback = Feedback(torch.full((3,), 7.0).double(), torch.arange(3), ratings=rating)
    method = mm.methods.score_regression()
    known = [(0, 0), (0, 2), (2, 0), (2, 1)]
    torch.testing.assert_close(loss_of(method, table, feedback), sum((table[cell] - rating[cell]) ** 2 for cell in known) / 3 / 3)
    steps = Steps(table, torch.ones(3, 3).bool(), kind="score")
    loss = method.loss(steps, method.signal(feedback))
    assert loss.metrics["error"].item() == pytest.approx(sum((table[cell] - rating[cell]).abs().item() for cell in known) / 4)
    assert (loss.over, method.keep(feedback).tolist()) == (4, [True, False, True])


def test_labels_of_other_scores_are_refused():
    method = mm.methods.bradley_terry()
    with pytest.raises(UserError, match="takes 1 or 2 labels"):
        loss_of(method, scores(width=2), labelled())
    with pytest.raises(UserError, match=r"Feedback.strengths: got values outside 0..1"):
        labelled([[1.0, 2.0, NAN], *STRENGTHS[1:]])
    with pytest.raises(UserError, match=r"Feedback.ratings: got shape \[2, 2\], takes \[3, 2\]"):
        Feedback(torch.zeros(3).double(), torch.arange(3), ratings=torch.zeros(2, 2).double())


def test_chances_by_hand():
    own, other = torch.tensor([[1.0, 2.0]]).double(), torch.tensor([[0.0, 2.0]]).double()
    assert rated.wins(own, other).tolist()[0] == pytest.approx([1 / (1 + math.exp(-1)), 0.5])
    k, e = 3.0, math.e
    win, loss = e / (e + k), 1 / (1 + k * e)
    tie = (k**2 - 1) * win * loss
    assert win + loss + tie == pytest.approx(1)
    assert rated.wins_or_ties(own, other, log_k=math.log(k))[0, 0].item() == pytest.approx(win + tie / 2)
    assert embedded.wins(own, other, temperature=0.5, normalised=False).item() == pytest.approx(1 / (1 + math.exp(-(1 * 2 - 2 * 0) / 0.5)))
    assert uncertain.log_wins(own, other).exp().item() == pytest.approx(0.6, abs=0.05)


def _fitted(method, width, wins, *, spread=0.5, seed=0):
    """Scores ``[items, width]`` that maximise the likelihood of endless comparisons, and the chances that they give."""
    items = len(wins)
    first, second = torch.triu_indices(items, items, offset=1)
    rows = torch.stack([first, second], 1).flatten()
    pairs = torch.arange(len(rows)).view(-1, 2)
    feedback = Feedback(torch.zeros(len(rows)).double(), pairs[:, 0].repeat_interleave(2), pairs=pairs, strength=wins[first, second])
    numbers = (spread * torch.randn(items, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).requires_grad_()
    solver = torch.optim.LBFGS([numbers], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def again():
        solver.zero_grad()
        loss = loss_of(method, numbers[rows], feedback)
        loss.backward()
        return loss

    solver.step(again)
    fitted = numbers.detach()
    every = torch.arange(items)
    return fitted, method.wins(fitted[every.repeat_interleave(items)], fitted[every.repeat(items)])[:, 0].view(items, items)


ROCK_PAPER_SCISSORS = torch.tensor([[0.5, 0.1, 0.9], [0.9, 0.5, 0.1], [0.1, 0.9, 0.5]], dtype=torch.float64)


def test_preferences_in_a_circle_have_an_embedding_and_no_order():
    _, chances = _fitted(mm.methods.general_preference(), 2, ROCK_PAPER_SCISSORS)
    torch.testing.assert_close(chances, ROCK_PAPER_SCISSORS, atol=1e-4, rtol=0)
    _, chances = _fitted(mm.methods.bradley_terry(), 1, ROCK_PAPER_SCISSORS)
    torch.testing.assert_close(chances, torch.full((3, 3), 0.5).double(), atol=1e-6, rtol=0)


def test_means_and_variances_of_gaussian_utilities_come_back():
    mean, variance = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5]).double(), torch.tensor([0.2, 4.0, 0.5, 1.0, 9.0]).double()
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    std = (variance[:, None] + variance[None, :]).sqrt()
    wins = (density * torch.sigmoid((mean[:, None] - mean[None, :])[..., None] + std[..., None] * grid)).sum(-1)
    fitted, chances = _fitted(mm.methods.bradley_terry_gaussian(), 2, wins)
    torch.testing.assert_close(chances, wins, atol=1e-4, rtol=0)
    torch.testing.assert_close(fitted[:, 0] - fitted[0, 0], mean - mean[0], atol=0.1, rtol=0)  # of which the chances depend little
    assert fitted[:, 1].argsort().tolist() == variance.argsort().tolist()
    _, sure = _fitted(mm.methods.bradley_terry(), 1, wins)
    assert (sure - wins).abs().max() > 0.02  # one number cannot say how sure it is


def test_attributes_with_holes_in_their_labels_have_their_weights_back():
    rng = torch.Generator().manual_seed(0)
    features, weights = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((60, 4), (4, 3)))
    ratings = torch.where(torch.rand(60, 3, generator=rng) < 0.6, NAN, features @ weights)
    feedback, fitted = Feedback(torch.zeros(60).double(), torch.arange(60), ratings=ratings), torch.zeros(4, 3).double().requires_grad_()
    solver, method = torch.optim.LBFGS([fitted], max_iter=100, line_search_fn="strong_wolfe"), mm.methods.score_regression()

    def again():
        solver.zero_grad()
        loss = loss_of(method, features @ fitted, feedback)
        loss.backward()
        return loss

    solver.step(again)
    torch.testing.assert_close(fitted.detach(), weights, atol=1e-4, rtol=0)
    holes_as_0 = torch.linalg.lstsq(features, ratings.nan_to_num(0.0)).solution
    assert (holes_as_0 - weights).abs().max() > 0.3
