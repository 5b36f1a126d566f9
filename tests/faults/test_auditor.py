"""The judge itself: a good history passes, and each broken promise is found under its name."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from faults import auditor
from faults.auditor import Copy, Entry, Handling, Verdict, audit, digest

TOPIC = "outbox.event.account"


@dataclass
class History:
    """Three events of one key, committed, published and handled in order; the second is to die in ``ledger``."""

    entries: dict[str, Entry] = field(default_factory=dict)
    events: list[Copy] = field(default_factory=list)
    dead: dict[str, list[Copy]] = field(default_factory=lambda: {"ledger": [], "mirror": []})
    handled: list[Handling] = field(default_factory=list)
    effects: list[tuple[str, str, int]] = field(default_factory=list)
    rolled_back: set[str] = field(default_factory=lambda: {"undone"})
    acknowledged: set[str] = field(default_factory=set)
    refused: list[Copy] = field(default_factory=list)
    waiting: dict[str, set[str]] = field(default_factory=dict)
    poison: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for n in (1, 2, 3):
            name = f"e{n}"
            self.entries[name] = Entry(name, "moved", "a1", n, "reject" if n == 2 else "done", digest(name.encode()))
            self.events.append(copy(name, offset=n))
            for group in ("ledger", "mirror"):
                self.handled.append(Handling(n * 10, "start", group, name, "a1", n, 1, 1))
                if (group, n) != ("ledger", 2):
                    self.handled.append(Handling(n * 10 + 1, "done", group, name, "a1", n, 1, 1))
            self.effects.append((name, "a1", n))
        self.dead["ledger"].append(copy("e2", topic="bank.ledger.dlq", error="Reject"))

    def judge(self) -> Verdict:
        return audit(
            entries=self.entries,
            acknowledged=self.acknowledged or set(self.entries),
            rolled_back=self.rolled_back,
            events=self.events,
            dead=self.dead,
            refused=self.refused,
            waiting=self.waiting,
            handled=self.handled,
            done_effects=self.effects,
            poison=self.poison,
            groups=("ledger", "mirror"),
        )

    def done(self, group: str, name: str) -> int:
        """Index of a success in the handlers' log."""
        return next(i for i, h in enumerate(self.handled) if (h.what, h.group, h.id) == ("done", group, name))


def copy(name: str, *, offset: int = 1, topic: str = TOPIC, error: str = "", partition: int = 0) -> Copy:
    return Copy(name, topic, partition, offset, b"a1", digest(name.encode()), 0, 0, error)


def test_the_judge_uses_no_code_of_what_it_judges() -> None:
    tree = ast.parse(Path(auditor.__file__).read_text())
    used = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    used |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in used} - sys.stdlib_module_names == {"psycopg", "confluent_kafka"}


def test_a_good_history_passes_and_is_counted() -> None:
    verdict = History().judge()
    assert verdict.findings == []
    assert (verdict.committed, verdict.published, verdict.handled, verdict.dead) == (3, 3, 5, 1)
    assert (verdict.duplicate_records, verdict.duplicate_handlings) == (0, 0)


def test_copies_and_repeated_handlings_behind_the_first_are_counted_and_break_nothing() -> None:
    history = History()
    history.events.append(copy("e1", offset=9))
    history.handled.append(replace(history.handled[1], at_ns=99))
    verdict = history.judge()
    assert verdict.findings == []
    assert (verdict.duplicate_records, verdict.duplicate_handlings) == (1, 1)


def test_a_lost_record_that_waits_for_a_retry_is_not_lost() -> None:
    history = History()
    del history.handled[history.done("ledger", "e3")]
    history.waiting["ledger"] = {"e3"}
    assert history.judge().findings == []


def _never_published(h: History) -> None:
    h.events.pop()
    h.handled = [x for x in h.handled if x.id != "e3"]
    h.effects.pop()


def _swapped_on_the_topic(h: History) -> None:
    h.events[0], h.events[2] = replace(h.events[0], offset=3), replace(h.events[2], offset=1)


def _handled_backwards(h: History) -> None:
    index = h.done("mirror", "e1")
    h.handled[index] = replace(h.handled[index], at_ns=99)
    h.handled.sort(key=lambda x: x.at_ns)


def _dropped_by_a_handler(h: History) -> None:
    del h.handled[h.done("ledger", "e3")]


def _rolled_back_and_published(h: History) -> None:
    h.events.append(copy("undone", offset=9))


def _healthy_but_dead(h: History) -> None:
    h.dead["ledger"].append(copy("e3", topic="bank.ledger.dlq", error="Timeout"))


BROKEN: list[tuple[Callable[[History], Any], str]] = [
    (_never_published, "nothing committed is lost on the way to its topic"),
    (_swapped_on_the_topic, "first copies of a key are in commit order"),
    (_handled_backwards, "mirror: handlers of a key run in order"),
    (_dropped_by_a_handler, "ledger: nothing published is lost"),
    (_rolled_back_and_published, "nothing rolled back is on a topic"),
    (_rolled_back_and_published, "nothing is invented on a topic"),
    (_healthy_but_dead, "ledger: no healthy record is dead-lettered"),
    (lambda h: h.effects.append(h.effects[-1]), "effects with inbox happen at most once"),
    (lambda h: h.effects.pop(), "effects with inbox happen"),
    (lambda h: h.effects.reverse(), "effects of a key are in order"),
    (lambda h: h.acknowledged.update({*h.entries, "e4"}), "an acknowledged commit is in the database"),
    (lambda h: h.events.append(copy("e3", offset=9, partition=1)), "a key has one partition"),
    (lambda h: h.events.append(replace(copy("e3", offset=9), digest=b"?")), "bytes arrive as written"),
    (lambda h: h.dead["ledger"].clear(), "ledger: what must die is on the DLQ"),
    (lambda h: h.poison.add("00"), "poison is on the DLQ of ledger"),
]


@pytest.mark.parametrize(("breaks", "promise"), BROKEN)
def test_a_broken_promise_is_found(breaks: Callable[[History], Any], promise: str) -> None:
    history = History()
    breaks(history)
    assert promise in [finding.promise for finding in history.judge().findings]
