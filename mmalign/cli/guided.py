"""Commands that sample under guidance, and compare ways of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmalign.cli.app import Processes, Shared, Trust, app, echo, mistakes_as_lines, several

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A run, a config, a world (digits), a class of diffusers (then a tiny twin), a folder or hub id."),
]
Rewards = Annotated[list[str] | None, typer.Option("--reward", help="A name of mm.rewards, or {use: NAME, key: value}; summed if several.")]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; may be given more than once.")]
Call = Annotated[list[str] | None, typer.Option("--call", metavar="KEY=VALUE", help="An argument of the pipeline's call.")]


@app.command(cls=Shared)
def compare(  # the options of a command
    context: typer.Context,
    model: Model,
    guidance: Annotated[list[str], typer.Option("--guidance", help='A way to guide, as "dps scale=5"; may be given more than once.')],
    reward: Rewards = None,
    judge: Annotated[str | None, typer.Option(help="What guidance does not see; the reward by default, or the config's judge.")] = None,
    prompt: Prompts = None,
    call: Call = None,
    samples: Annotated[int, typer.Option(min=1, help="Outputs of each prompt and seed.")] = 4,
    seeds: Annotated[int, typer.Option(min=2, help="How often all of it is done.")] = 3,
    out: Annotated[Path, typer.Option(help="A folder for the table, the numbers and the picture.")] = Path("comparison"),
    trust: Trust = False,
    processes: Processes = "1",
) -> None:
    """Set guidance beside best-of-N at equal cost: a table, a picture, and whether they beat it."""
    with mistakes_as_lines(context):
        from mmalign.commands._models import keywords, model_of, reward_of
        from mmalign.rooms import find
        from mmalign.types import UserError

        several(context, processes)
        setup = model_of(model, trust=trust)
        rewards = _rewards(reward or []) or setup.rewards
        judged = reward_of(judge, "judge") if judge is not None else next(iter(setup.judges.values()), None)
        prompts = prompt or setup.prompts
        if not rewards or not prompts:
            raise UserError("compare: takes --reward and --prompt, or a config that has both")
        with setup.using:
            comparison = find("mmalign.commands", "compare")(
                setup.pipe, rewards, guidance=guidance, prompts=prompts, judge=judged, weights=None if reward else setup.weights,
                call={**setup.call, **keywords(call or [])}, conditions=setup.conditions, samples=samples, seeds=seeds, out=out,
                say=echo,
            )  # fmt: skip
        echo(comparison.table())
        echo(f"table, numbers and picture: {out}")


def guided(  # the options of a command
    model: str, *, reward: list[str], guidance: str | None, prompt: list[str], count: int, seed: int, call: list[str], out: Path | None,
    trust: bool,
) -> str:  # fmt: skip
    """What ``mmalign sample`` does where it is given a reward or a guidance; a line for the end."""
    from mmalign.commands._models import keywords
    from mmalign.rooms import find

    samples: Any = find("mmalign.commands", "guided_sample")(
        model, reward=_rewards(reward) or None, guidance=guidance, prompts=prompt or None, count=count, seed=seed, call=keywords(call),
        out=out or Path("sampled.png"), trust=trust,
    )  # fmt: skip
    each = "".join(f"{name} {float(scores.nanmean()):.4g}; " for name, scores in samples.parts.items())
    scored = "" if samples.scores is None else f"mean reward {float(samples.scores.nanmean()):.4g}; "
    return f"samples: {samples.path}\n{scored}{each}{samples.ledger}".rstrip()


def _rewards(words: list[str]) -> dict[str, Any]:
    from mmalign.commands._models import reward_of

    return {word: reward_of(word) for word in words}
