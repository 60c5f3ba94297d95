"""Commands that measure models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmalign.cli.app import Processes, Shared, Trust, app, echo, mistakes_as_lines, run_folder, several
from mmalign.cli.raters import SUITES, Rater, as_values, is_of_rewards

REVIEW = 2048  # tokens of a judge's review at most

Options = Annotated[list[str] | None, typer.Argument(metavar="key=value", help="Further arguments of the suite, as in its docstring.")]


@app.command("eval", cls=Shared)
def evaluate(  # the options of a command
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="RUN_OR_MODEL", help="A run, or a hub id or folder of a model.")] = None,
    options: Options = None,
    suite: Annotated[str | None, typer.Option(help="A benchmark (mmalign list suites); else a run's own judges.")] = None,
    annotations: Annotated[Path | None, typer.Option("--annotations", "--data", help="The benchmark's own file or folder.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of its images, or videos.")] = None,
    answers: Annotated[
        Path | None, typer.Option("--answers", "--scores", help="Score these answers, and generate none; of rewards, these scores.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="For a benchmark of rewards: a reward's name, or its node, {use: pickscore, ...}; or give a run.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for answers and results.")] = None,
    parameters: Annotated[str | None, typer.Option("--set", help="Of a run: ref, trained, ema or best; the best by default.")] = None,
    batch: Annotated[int, typer.Option(help="Questions at once.")] = 8,
    limit: Annotated[int | None, typer.Option(help="Only the first questions.")] = None,
    samples: Annotated[int | None, typer.Option(help="Without a suite: samples of each prompt.")] = None,
    judge: Annotated[
        str | None,
        typer.Option(help="The URL of an OpenAI-compatible server that judges: mmhal, refomb, red_team, and benchmarks of rewards."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's name on that server.")] = None,
    judge_key_env: Annotated[str | None, typer.Option(help="The environment variable that holds its key.")] = None,
    trust: Trust = False,
    processes: Processes = "1",
) -> None:
    """Measure a model, or a reward, with a published benchmark over local files; or ask a run's own judges again."""
    with mistakes_as_lines(context):
        from mmalign.types import UserError

        several(context, processes)
        if model is not None and "=" in model and not Path(model).exists():  # the model was left out
            options = [model, *(options or [])]
            model = None
        if suite is None:
            if model is None:
                raise UserError("eval: got neither a run nor --suite, takes one of them or both")
            _own(run_folder(model), samples, trust)
            return
        known = {"url": judge, "model": judge_model, "key_env": judge_key_env}
        server = {key: value for key, value in known.items() if value is not None}
        if is_of_rewards(suite):
            rater = Rater(model, reward, server, answers, parameters, trust)
            _of_rewards(suite, rater, options or [], annotations, images, out, batch, limit)
            return
        if reward is not None:
            raise UserError(f"--reward: {suite} measures what a model answers; takes a run or a model in place of it")
        _suite(suite, model, options or [], annotations, images, answers, out, parameters, batch, limit, server, trust)


def _own(run: Path, samples: int | None, trust: bool) -> None:
    from mmalign.cli.printing import print_rows
    from mmalign.commands._reevaluation import reevaluated
    from mmalign.distributed.team import joined
    from mmalign.training.evaluations.summary import read_by_people

    results = reevaluated(run, samples=samples, trust=trust)
    if not joined().main:
        return
    names = [name for name in read_by_people(next(iter(results.values()))) if not name.endswith("_se")]
    rows = [(name, *(_with_error(numbers.get(name), numbers.get(f"{name}_se")) for numbers in results.values())) for name in names]
    print_rows(str(run), ("", *results), rows, head=True)


def _suite(  # the options of a command
    name: str, model: str | None, options: list[str], annotations: Path | None, images: Path | None, answers: Path | None,
    out: Path | None, parameters: str | None, batch: int, limit: int | None, server: dict[str, str], trust: bool,
) -> None:  # fmt: skip
    from mmalign.distributed.team import joined
    from mmalign.rooms import find
    from mmalign.types import UserError

    if model is None and answers is None:
        raise UserError("eval: got neither a model nor --answers, takes one of them")
    if answers is not None and not answers.is_file():
        raise UserError(f"--answers: {answers} is not there, takes a file of answers")
    who = model or f"answers of {answers.name if answers else ''}"
    place = out or _place(name, model, answers, parameters)
    chosen = _built(name, as_values(options), annotations, images, server, place).first(limit)
    policy, using = (None, "current") if answers is not None or model is None else _policy(model, parameters, trust)
    evaluated = find("mmalign.commands", "evaluate")(policy, chosen, out=place, answers=answers, batch=batch, using=using, who=who)
    if joined().main:
        _print(evaluated, who)
    echo(f"results: {evaluated.path / 'results.json'}")


def _of_rewards(
    name: str, rater: Rater, options: list[str], data: Path | None, images: Path | None, out: Path | None, batch: int, limit: int | None
) -> None:
    """A benchmark of rewards. Options that the suite does not have are those of the judge, or ``part``."""
    from mmalign.arguments.signatures import parameters
    from mmalign.distributed.team import joined
    from mmalign.rooms import find

    of_suite = {word: value for word, value in as_values(options).items() if word in parameters(find(SUITES, name))[0]}
    others = {word: value for word, value in as_values(options).items() if word not in of_suite}
    if others.pop("ranking", False):
        _ranking(name, rater, others, of_suite, data, images, out, batch, limit)
        return
    command = "evaluate_judge" if rater.is_examined(others) else "evaluate_reward"
    scores = rater.examined(others) if rater.is_examined(others) else rater.built(others)
    own = rater.who if rater.model is None and rater.scores is None else None
    place = out or _place(name if command == "evaluate_reward" else f"{name}-judge", rater.model, rater.scores, own)
    suite = _built(name, of_suite, data, images, {}, place).first(limit)
    evaluated = find("mmalign.commands", command)(suite, out=place, batch=batch, who=rater.who, **scores)
    if joined().main:
        _print(evaluated, rater.who)
        echo(f"results: {evaluated.path / 'results.json'}, report: {evaluated.path / 'report.html'}")


def _ranking(  # the options of a command
    name: str, rater: Rater, others: dict[str, Any], of_suite: dict[str, Any], data: Path | None, images: Path | None, out: Path | None,
    batch: int, limit: int | None,
) -> None:  # fmt: skip
    """Likelihoods of a run's language model on a benchmark's pairs."""
    from mmalign.distributed.team import joined
    from mmalign.rooms import find
    from mmalign.types import UserError

    if rater.model is None or {*others} - {"beta"}:
        raise UserError(f"ranking: got {rater.model or 'no run'} and {', '.join(others) or 'no more'}, takes a run, and beta=NUMBER")
    folder = run_folder(rater.model)
    suite = _built(name, of_suite, data, images, {}, folder).first(limit)
    place = out or folder / "evaluations" / f"{name}-ranking"
    evaluated = find("mmalign.commands", "evaluate_ranking")(folder, suite, out=place, batch=batch, trust=rater.trust, **others)
    if joined().main:
        _print(evaluated, rater.who)
        echo(f"results: {evaluated.path / 'results.json'}, report: {evaluated.path / 'report.html'}")


def _built(name: str, options: dict[str, Any], annotations: Path | None, images: Path | None, server: dict[str, str], out: Path) -> Any:
    """The suite, its arguments checked against its signature."""
    from mmalign.arguments.signatures import parameters
    from mmalign.config import build_part
    from mmalign.rooms import find, index
    from mmalign.types import UserError

    if name not in index(SUITES):
        raise UserError(f"--suite: got {name!r}, takes {', '.join(index(SUITES))}")
    takes = parameters(find(SUITES, name))[0]
    file = "data" if "data" in takes else "annotations"
    if annotations is None or not annotations.exists():
        raise UserError(f"--{file}: got {annotations}, takes the file or folder of {name} (mmalign explain {name})")
    node: dict[str, Any] = {"use": name, file: annotations}
    if images is not None:
        node["images"] = images
    node |= options
    if "judge" in takes and (takes["judge"].required or server):
        if not {"url", "model"} <= server.keys():
            raise UserError(f"--judge: {name} is judged; takes the URL of an OpenAI-compatible server, and --judge-model its name there")
        node["judge"] = find("mmalign.evaluation", "remembering")(_judge(server), out / "reviews.jsonl", who=server["model"])
    return build_part({"suite": node}, "suite")


def _judge(settings: dict[str, Any]) -> Any:
    """A server as a callable: messages -> its words, or None where it gave none."""
    from mmalign.serving.chat import connect

    server = connect("judge", settings)
    return lambda messages: server.ask([messages], lambda answer: answer.text, max_tokens=REVIEW)[0]


def _policy(model: str, parameters: str | None, trust: bool) -> tuple[Any, str]:
    """The policy of a run, or of a model, and which of its parameters are wanted."""
    from mmalign.rooms import find
    from mmalign.runs.folder import found
    from mmalign.runs.trained import trained
    from mmalign.types import UserError

    if (folder := found(model)) is not None:
        run = trained(folder, trust=trust, builds=("policy",))
        wanted = parameters or run.best
        return run.policy(), "current" if wanted == "trained" else wanted
    if parameters is not None:
        raise UserError(f"--set: {model} is a model and no run, so it has one set of parameters")
    return find("mmalign.policies", "transformers")(model), "current"


def _place(name: str, model: str | None, answers: Path | None, parameters: str | None) -> Path:
    from mmalign.runs.folder import found
    from mmalign.types import UserError

    if model is None and answers is None and parameters is not None:  # a reward, or a judge, by its name
        return Path("evaluations") / f"{parameters}-{name}"
    if model is None:
        return Path("evaluations") / f"{answers.stem if answers else 'answers'}-{name}"
    if (folder := found(model)) is not None:
        return folder / "evaluations" / (name if parameters is None else f"{name}-{parameters}")
    plain = "-".join(part for part in Path(model).parts if part not in ("/", ".", ".."))
    if not plain:
        raise UserError(f"--out: got none, and {model} gives it no name; takes a folder")
    return Path("evaluations") / f"{plain}-{name}"


def _print(evaluated: Any, who: str) -> None:
    from mmalign.cli.printing import print_rows

    suite, scores = evaluated.suite, evaluated.scores
    first = [name for name in suite.headline if name in scores.values]
    named = [(name, scores.values[name]) for name in [*first, *(name for name in scores.values if name not in first)]]
    rows = [(name, _number(value.value), f"{_number(value.low)} … {_number(value.high)}") for name, value in named]
    print_rows(f"{suite.name}: {who}", ("", "value", "95 % interval"), rows, head=True)
    echo("  ".join(f"{key} {number}" for key, number in scores.counts.items()))
    if unread := scores.counts.get("unparsed"):
        echo(f"note: {unread} of {scores.counts['answers']} answers are not of the form that {suite.name} reads; see answers.jsonl first")
    if scores.published:
        echo("as the script prints it: " + "  ".join(f"{key} {number:.4g}" for key, number in scores.published.items()))
    for note in suite.notes:
        echo(f"note: {note}")


def _with_error(value: float | None, error: float | None) -> str:
    known = error is not None and error == error
    return _number(value) + (f" ± {_number(error)}" if known else "")


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3f}"


@app.command()
def table(  # the options of a command
    context: typer.Context,
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Runs, and folders that mmalign eval wrote.")],
    number: Annotated[list[str] | None, typer.Option(help='A column, as "SUITE: NUMBER"; may be given more than once.')] = None,
    inside: Annotated[str | None, typer.Option(help="A suite like the data that rewards were trained on.")] = None,
    outside: Annotated[str | None, typer.Option(help="A suite unlike them: the drop is a column.")] = None,
    own: Annotated[list[str] | None, typer.Option(help='What runs were to improve, as "judge NAME"; their rewards by default.')] = None,
    less: Annotated[list[str] | None, typer.Option(help="A column of which less is better; may be given more than once.")] = None,
    out: Annotated[Path, typer.Option(help="A folder for the table, the numbers and the picture.")] = Path("table"),
) -> None:
    """Set evaluations beside each other: reward models, rewards and judges over runs, with rank correlations, and what training cost."""
    with mistakes_as_lines(context):
        from mmalign.cli.printing import print_rows
        from mmalign.rooms import find

        options: dict[str, Any] = {"numbers": number, "inside": inside, "outside": outside, "own": own, "less": less or ()}
        made = find("mmalign.commands", "tabulate")(folders, out=out, **options)
        shown = [(name, *(_number(row.get(column)) for column in made.columns)) for name, row in made.rows.items()]
        print_rows("evaluations", ("", *made.columns), shown, head=True)
        found = [(one.first, one.second, str(one.rows), _number(one.spearman), _number(one.spearman_p)) for one in made.correlations]
        if found:
            print_rows("rank correlations", ("", "", "rows", "Spearman", "p"), found, head=True)
        if made.drifts:
            moved = [
                (run, name, *map(_number, one[:4]), f"{one.time:g}".replace("nan", "–"))
                for run, its in made.drifts.items()
                for name, one in its.items()
            ]
            print_rows("drift over evaluations", ("drift of", "", "first", "last", "M", "SE of M", "tau"), moved, head=True)
        head, rows = made.changed()
        if rows:
            print_rows("after training - before", ("after - before", *head), rows, head=True)
        echo(f"written: {made.path / 'table.md'}")
