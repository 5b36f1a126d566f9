"""``pipeline dlq``: dead letters, looked at and sent back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import click
from rich.console import Console
from rich.progress import Progress

from pipeline.cli.moment import moment, utc
from pipeline.cli.output import output_option, plain, print_object, print_rows, say
from pipeline.config import Settings
from pipeline.deadletter import STATES, Place, Selection, State, Summary
from pipeline.redrive import Plan
from pipeline.runtime import deadletters as stage
from pipeline.runtime.load import load_app

__all__ = ["dlq"]

F = TypeVar("F", bound=Callable[..., Any])
_LINE_EVERY = 1000  # letters between two lines of progress where there is no terminal


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_app = click.argument("app", metavar="[MODULE:APP]", required=False)
_sources = _options(
    click.option("--group", help="One group: its full name, or its short one beside MODULE:APP."),
    click.option("--topic", help="One DLQ topic. With --group: the group of letters that do not name theirs."),
    click.option("--no-database", is_flag=True, help="Read the topics alone; nothing is known of states."),
)
_choice = _options(
    click.option("--letter", "places", multiple=True, help="topic[partition]@offset; may be repeated."),
    click.option("--id", "event_ids", multiple=True, help="Event id; may be repeated."),
    click.option("--error-class", "error", help="Class of the error, with or without its module, or its fingerprint."),
    click.option("--type", "kind", help="Full name of the message type."),
    click.option("--since", type=moment, metavar="TIME", help="Died at or after, with a zone: 2026-03-01T09:30:00Z."),
    click.option("--until", type=moment, metavar="TIME", help="Died before."),
)
_execution = _options(
    click.option("--max", "limit", type=click.IntRange(min=1), help="So many letters at most, the oldest first."),
    click.option("--execute", is_flag=True, help="Do it. Without this the plan is printed and nothing is done."),
)


@click.group()
def dlq() -> None:
    """Dead letters: what failed for good, why, and its way back.

    Without MODULE:APP, --group or --topic all topics that end with .dlq are meant.
    """


@dlq.command("list")
@_app
@_sources
@_choice
@click.option("--state", type=click.Choice([*STATES, "all"]), default="open", show_default=True)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Letters on a page.")
@click.option("--after", help="The page after this letter: topic[partition]@offset.")
@output_option
def list_(
    app: str | None,
    group: str | None,
    topic: str | None,
    no_database: bool,
    state: str,
    limit: int,
    after: str | None,
    output: str,
    **choice: Any,
) -> None:
    """List dead letters, the newest of a topic first.

    \b
    Example:
      pipeline dlq list shop:app
      pipeline dlq list --group shop.billing --error-class Declined --since 2026-03-01T00:00:00Z -o json
    """
    states = STATES if state == "all" else (cast(State, state),)
    with _letters(app, group, topic, no_database) as (letters, topics):
        found = letters.page(_selection(topics, states, **choice), Place.parse(after) if after else None, limit)
    print_rows([_row(one) for one in found], output, empty="no dead letters")
    if len(found) == limit and output == "table":
        say(f"there may be more: --after '{found[-1].place}'")


@dlq.command()
@click.argument("letter")
@_app
@_sources
@click.option("--reveal", is_flag=True, help="Show personal data.")
@output_option
def show(
    letter: str,
    app: str | None,
    group: str | None,
    topic: str | None,
    no_database: bool,
    reveal: bool,
    output: str,
) -> None:
    """Show one dead letter: payload, error, attempts, headers. LETTER is topic[partition]@offset or an event id.

    Personal fields are masked unless --reveal. A JSON payload needs MODULE:APP to know which these are; without it
    all its values are masked.

    \b
    Example:
      pipeline dlq show 'shop.billing.dlq[0]@17'
      pipeline dlq show 0197f3a2-5a51-7d1e-9a53-0d2f4b1c7e11 shop:app --reveal
    """
    if "@" in letter and topic is None:
        topic = Place.parse(letter).topic
    with _letters(app, group, topic, no_database) as (letters, _):
        shown = letters.show(letter, load_app(app) if app else None, reveal=reveal)
    details = [_details(one, reveal=reveal) for one in shown]
    if output != "table":
        print_object(details[0], output) if len(details) == 1 else print_rows(details, output)
        return
    for one in details:
        _print_details(one)


@dlq.command()
@_app
@_sources
@_choice
@click.option("--again", is_flag=True, help="Letters that were redriven or discarded before, too.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="So many letters a second at most.")
@_execution
@output_option
@click.pass_context
def redrive(
    context: click.Context,
    /,
    app: str | None,
    group: str | None,
    topic: str | None,
    no_database: bool,
    again: bool,
    rate: float | None,
    limit: int | None,
    execute: bool,
    output: str,
    **choice: Any,
) -> None:
    """Send dead letters back to their group alone. They go to its topic <group>.retry.0s, at their first attempt.

    What the capture side could not publish (<connector>.dlq) goes to its own topic: no group has read it yet.

    Prints the plan; --execute does it. A letter is redriven once its record is acknowledged; one that was redriven or
    discarded is left alone unless --again. Exits with 2 when letters had to be left: the reasons are printed.

    \b
    Example:
      pipeline dlq redrive shop:app --error-class Declined
      pipeline dlq redrive shop:app --error-class Declined --max 100 --rate 20 --execute
    """
    with _letters(app, group, topic, no_database) as (letters, topics):
        selection = _selection(topics, STATES if again else ("open",), **choice)
        plan = letters.plan(selection, limit, destinations=True)
        if not execute or output == "table":
            _print_plan(plan, output)
        if not execute:
            _say_destinations(plan)
            say(_closing("redrive", plan))
            context.exit(2 if plan.kept else 0)
        with _progress(plan.letters) as advance:
            outcome = letters.redrive(selection, limit, rate, advance)
    done = {"redriven": outcome.redriven, "targets": dict(outcome.targets), "kept": dict(outcome.kept)}
    if output != "table":
        print_object(done, output)
    say(f"redriven: {outcome.redriven}")
    for reason, letters_kept in outcome.kept.items():
        say(f"left dead: {letters_kept}: {reason}")
    context.exit(2 if outcome.kept else 0)


@dlq.command()
@_app
@_sources
@_choice
@_execution
@output_option
def discard(
    app: str | None,
    group: str | None,
    topic: str | None,
    no_database: bool,
    limit: int | None,
    execute: bool,
    output: str,
    **choice: Any,
) -> None:
    """Mark dead letters as discarded. They are no longer listed as open, nor redriven; their records stay.

    Prints the plan; --execute does it.

    \b
    Example:
      pipeline dlq discard shop:app --type OrderPlaced --until 2026-01-01T00:00:00Z --execute
    """
    if no_database:
        raise click.UsageError("discard keeps its mark in the database: leave --no-database out")
    with _letters(app, group, topic, no_database) as (letters, topics):
        selection = _selection(topics, ("open",), **choice)
        plan = letters.plan(selection, limit)
        _print_plan(plan, output)
        done = letters.discard(selection, limit) if execute else 0
    say(f"discarded: {done}" if execute else _closing("discard", plan))


@contextmanager
def _letters(
    app: str | None, group: str | None, topic: str | None, no_database: bool
) -> Iterator[tuple[stage.Letters, tuple[str, ...]]]:
    settings = Settings.load()
    groups = stage.sources(settings, load_app(app) if app else None, group, topic)
    with stage.open_letters(settings, groups, database=not no_database) as letters:
        if no_database:
            say("read from the topics alone: what was redriven or discarded before is not known")
        for name, count in letters.forgotten.items():
            say(f"{name} was made anew: {count} letters of the earlier topic were removed from the table")
        yield letters, tuple(groups)


def _selection(
    topics: tuple[str, ...],
    states: tuple[State, ...],
    *,
    places: tuple[str, ...],
    event_ids: tuple[str, ...],
    error: str | None,
    kind: str | None,
    since: datetime | None,
    until: datetime | None,
) -> Selection:
    chosen = tuple(map(Place.parse, places))
    return Selection(topics, states, chosen, event_ids, kind, error, since, until)


def _row(one: Summary) -> dict[str, object]:
    return {
        "letter": str(one.place),
        "state": one.state,
        "type": one.type,
        "error": one.error,
        "died_at": one.died_at.astimezone(UTC).isoformat(timespec="seconds"),
        "id": one.event_id,
        "fingerprint": one.fingerprint,
    }


def _print_plan(plan: Plan, output: str) -> None:
    rows: list[dict[str, object]] = [
        {
            "letters": count.letters,
            "error": count.error,
            "type": count.type,
            "from": count.topic,
            "fingerprint": count.fingerprint,
        }
        for count in plan.counts
    ]
    if output == "table":
        print_rows(rows, output, empty="no such letters")
    elif output:
        ways = {"targets": dict(plan.targets), "kept": dict(plan.kept), "examined": plan.examined}
        print_object({"letters": plan.letters, "plan": rows, **ways}, output)


def _say_destinations(plan: Plan) -> None:
    if plan.examined < plan.letters:
        say(f"of the oldest {plan.examined} letters:")
    for topic, letters in plan.targets.most_common():
        say(f"to {topic}: {letters}")
    for reason, letters in plan.kept.most_common():
        say(f"would be left dead: {letters}: {reason}")


def _closing(verb: str, plan: Plan) -> str:
    movable = plan.letters - plan.kept.total()
    return f"would {verb} {movable} letters: add --execute" if movable else "nothing to do"


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Show progress on stderr: a bar on a terminal, else a line now and then."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console) as bar:
            task = bar.add_task("redrive", total=total)
            yield lambda done: bar.advance(task, done)
        return
    seen = 0

    def advance(done: int) -> None:
        nonlocal seen
        if seen // _LINE_EVERY != (seen + done) // _LINE_EVERY:
            say(f"{seen + done} of {total}")
        seen += done

    yield advance


def _details(shown: stage.Shown, *, reveal: bool) -> dict[str, object]:
    letter, story, record = shown.letter, shown.letter.story, shown.letter.record
    key = None if record.key is None else record.key.decode(errors="replace")
    hidden = not reveal and key in shown.payload.secrets
    origin = (story.origin.topic, story.origin.partition, story.origin.offset, story.origin.timestamp_ms)
    first = story.first_error if story.first_error != story.error else None
    return {
        "letter": str(letter.place),
        "state": shown.state,
        "id": letter.event_id,
        "type": letter.type or shown.payload.name,
        "group": story.group or None,
        "origin": str(Place(*origin[:3])) if origin[0] and min(origin[1:3]) >= 0 else None,
        "topic": origin[0] if letter.captured else None,
        "lsn": story.lsn or None,
        "origin_time": utc(origin[3]) if origin[3] else None,
        "died_at": letter.died_at.isoformat(timespec="milliseconds"),
        "attempts": story.attempts,
        "error": story.error.kind or None,
        "message": story.error.message or None,
        "first_error": first and {"class": first.kind, "message": first.message},
        "fingerprint": letter.fingerprint,
        "alike": shown.alike,
        "flaws": list(letter.flaws),
        "key": "•••" if hidden else key,
        "key_bytes": None if record.key is None else len(record.key),
        "value_bytes": story.value_bytes or (None if record.value is None else len(record.value)),
        "schema_id": shown.payload.schema_id,
        "payload": shown.payload.data,
        "payload_masked": shown.payload.masked,
        "payload_problem": shown.payload.problem,
        "history": [{"attempt": t.attempt, "at": utc(t.at_ms), "error": t.kind} for t in story.history],
        "headers": [{"name": n, "value": None if v is None else v.decode(errors="replace")} for n, v in letter.written],
        "trace": story.error.trace or None,
    }


def _print_details(details: dict[str, object]) -> None:
    blocks = ("payload", "history", "headers", "trace")
    told = {name: value for name, value in details.items() if name not in blocks and value}
    flaws = "; ".join(cast(list[str], details["flaws"]))
    print_object({**told, "flaws": flaws} if flaws else told, "table")
    for name in blocks:
        value = details[name]
        if value:
            click.echo(f"\n{name}")
            text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str, ensure_ascii=False)
            click.echo("\n".join(f"  {plain(line.expandtabs(4))}" for line in text.split("\n")))
    click.echo()
