"""What a method asks of a policy, and reads of a rollout, as records: the words of ``Method.needs``, ``survey_needs`` and ``reads``.

Tables of one reference, or of one condition, have its name: ``refs("ref")``, ``contrast("ablated")``; those that there is one of are
constants. ``str(refs("ref"))`` is ``refs:ref``, as messages and tables show it. What each holds is said at ``types.Steps``; ``MASK``
and ``REWARDS`` (of single steps) are what is read of a rollout alone.
"""

from __future__ import annotations

from mmalign.types import Method, Need, Policy

OLD, MASK, REWARDS = Need("old"), Need("mask"), Need("rewards")
STD, SLOPE, DT, NOISE = Need("std"), Need("slope"), Need("dt"), Need("noise")
CHANGED, PHRASE, SEGMENT = Need("changed"), Need("phrase"), Need("segment")
ENTROPY, COLLISION, VALUE = Need("entropy"), Need("collision"), Need("value")
Q1, Q2, V1, V2 = Need("q1"), Need("q2"), Need("v1"), Need("v2")
TOPK_ENTROPY, TOPK_MASS = Need("topk_entropy"), Need("topk_mass")
REWARD_MASK, KL_MASK, DEGREE = Need("reward_mask"), Need("kl_mask"), Need("degree")
DEAD_END, DEAD_END_BEST = Need("dead_end"), Need("dead_end_best")  # the second comes with the first where refs("start") is asked for
ACTIVATION = Need("activation")  # the reference's
REALISM, REALISM_OF_GIVEN = Need("realism"), Need("realism_of_given")
DRIFT, ADJOINT, ADJOINT_SIZE = Need("drift"), Need("adjoint"), Need("adjoint_size")


def refs(name: str) -> Need:
    """Log-probabilities under the reference of that name.

    Examples:
        >>> str(refs("ref"))
        'refs:ref'
    """
    return Need("refs", name)


def kls(name: str) -> Need:
    """Exact KL of each step's distribution to that reference's."""
    return Need("kls", name)


def reverse_kls(name: str) -> Need:
    """Exact KL of that reference's distribution to each step's."""
    return Need("reverse_kls", name)


def rank(name: str) -> Need:
    """The rank, 1 for the likeliest, that each step's likeliest outcome has in that reference's distribution."""
    return Need("rank", name)


def absolute(name: str, share: float) -> Need:
    """Mean absolute error of a mixture of predictions: ``share`` of the current one, the rest that reference's.

    Examples:
        >>> str(absolute("previous", -0.5))
        'absolute:previous:-0.5'
    """
    return Need("absolute", name, share)


def score(name: str) -> Need:
    """No table: what that reference says of noised samples, which differences of scores are made of."""
    return Need("score", name)


def of_set(need: Need, name: str) -> Need:
    """What a head says where the parameters, its own among them, are those of the set of that name; for ``Method.reads``.

    Examples:
        >>> str(of_set(V1, "target"))
        'v1:target'
    """
    return Need(need.kind, name)


def called(word: str) -> Need:
    """The need that ``str`` wrote as this word, of those without a share.

    Examples:
        >>> called("v1:target") == of_set(V1, "target"), called("value") == VALUE
        (True, True)
    """
    kind, _, name = word.partition(":")
    return Need(kind, name)


def contrast(name: str) -> Need:
    """The same rows under another condition."""
    return Need("contrast", name)


def kinds(needs: frozenset[Need]) -> set[str]:
    """The kinds of tables that are asked for, whatever their names."""
    return {need.kind for need in needs}


def named(kind: str, needs: frozenset[Need]) -> list[str]:
    """The names of one kind of table that are asked for."""
    return sorted(need.name for need in needs if need.kind == kind and need.name)


def lacking(method: Method, gives: frozenset[str]) -> list[str]:
    """What a method asks of a policy that ``gives`` these kinds and not that one, as messages name it."""
    needs = method.needs | method.survey_needs | (method.reads - {MASK, OLD, REWARDS})
    masking = ["masking"] if method.masking is not None and "masking" not in gives else []
    return [str(need) for need in sorted(needs) if need.kind not in gives] + masking


def needed(policy: Policy, method: Method, *, kl: bool = True) -> frozenset[Need]:
    """What a method's steps hold: what it asks for, ``old``, and, where ``kl``, the exact KL of denoising steps to ``ref`` for the log."""
    more = {OLD, Need("kls")} if kl and policy.kind == "transition" else {OLD}  # of tokens, it sums over the vocabulary
    return method.needs | {need for need in more if need.kind in policy.gives}


def as_bound(policy: str) -> str:
    """The line that makes the policy of that name, which learns from steps that it samples, one that learns from finished outputs."""
    return f"takes policy: {{use: forward, of: {{use: {policy}, ...}}}}, in Python mm.policies.forward(policy)"
