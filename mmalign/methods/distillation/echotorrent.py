"""EchoTorrent: distribution matching of the last frames of a video, by several teachers in turn."""

from __future__ import annotations

from collections.abc import Sequence

from mmalign.arguments.ranges import Count, Fraction, NotNegative, Positive
from mmalign.methods.distillation.dmd2 import dmd2
from mmalign.needs import score
from mmalign.objectives.sentences.ascent import ascent
from mmalign.types import Method, UserError


def echotorrent(
    *, teachers: Sequence[str] = ("ref",), turn: Count = 100, tail: Fraction | None = None, guidance: NotNegative = 1.0,
    updates: Count = 5, fake_rate: Positive | None = None, reward: NotNegative = 0.0,
) -> Method:  # fmt: skip
    """``dmd2`` of long videos: only the last frames are pulled, where a student that goes on from its own frames has drifted most.

    With ``pull`` and D as in ``dmd2``, and w of each number of D what the last frames count there, 0 elsewhere and 1 on average::

        loss = mean over rows of  -((w pull_k) . D + reward r(D)),   k = (n // turn) mod the number of teachers

    at step n, where ``pull_k`` is to teacher k. ``fake`` learns all frames, whoever teaches.

    Args:
        teachers: references, experts of a domain each; sets of the student's parameters, or other models.
        turn: steps of each teacher, before the next one's; then the first one comes again.
        tail: the part of a video's frames, the last ones, that is pulled; None: all, as images have to be. Of a video that is made chunk by
            chunk, the chunks that are made last, each as far as it lies in that part.
        guidance, updates, fake_rate, reward: as in ``dmd2``.

    Where it goes: to no one optimum with several teachers, but around between theirs, the nearer to the last one the longer a turn is.

    Paper: EchoTorrent: Towards Swift, Sustained, and Streaming Multi-Modal Video Generation (recalled; a report, whose code is not public).

    Deviations: its teachers and schedule are its own; here both are given. Frames of a latent count by how many of their pixels' frames do.
    """
    if not teachers or isinstance(teachers, str) or len(set(teachers)) < len(teachers):
        raise UserError(f"method.teachers: got {teachers!r}, takes a list of one or more names of references, each once")
    distilled = dmd2(guidance=guidance, updates=updates, fake_rate=fake_rate, reward=reward)
    how = distilled.reward_gradient
    (matched,) = how.differences
    matched = matched._replace(toward=tuple(teachers), turn=turn)
    how = how._replace(differences=(matched,), tail=1.0 if tail is None else tail)
    return ascent(how, needs=frozenset(score(teacher) for teacher in teachers), companions=distilled.companions)
