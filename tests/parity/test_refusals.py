"""What both refuse, and what both end at: Debezium's side of it, and the native relay's where only a run tells."""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from document import OUTCOMES
from outcomes import Fails, Refused
from pairs import SIDES, Capture, Conn
from relays import insert, until
from servers import Database

ROUTER = "transforms.outbox."
# what is wrong → a file's changes, what Debezium says, what the native relay says
ENDS: dict[str, tuple[dict[str, str | None], str, str]] = {
    "no publication": (
        {"publication.name": "nowhere", "publication.autocreate.mode": "disabled"},
        "Publication autocreation is disabled",
        "publication nowhere",
    ),
    "no table": (
        {"publication.autocreate.mode": "filtered", "table.include.list": "public.gone"},
        "No table filters found for filtered publication",
        "there is no table",
    ),
}


def test_debezium_refuses_or_ends_at_it_too(
    tmp_path: Path, prefix: str, database: Database, connect_url: str, cli_environment: Mapping[str, str], conn: Conn
) -> None:
    wrong: dict[str, dict[str, str | None]] = {
        str(one): {one.key: one.value} for one in OUTCOMES if isinstance(one, Refused) and one.like_debezium
    }
    for one in OUTCOMES:
        if isinstance(one, Fails):
            nowhere = "nowhere:header" if one.option.endswith(".placement") else "nowhere"
            wrong[str(one)] = {f"{ROUTER}{one.option}": nowhere}
    assert len(wrong) > 6
    made: dict[str, Capture] = {}

    def capture(name: str, side: str, changes: Mapping[str, str | None]) -> Capture:
        number = f"{prefix}-{len(made)}"
        return Capture(side, number, tmp_path, connect_url, cli_environment, database.name, changes)

    for name, changes in wrong.items():
        made[name] = capture(name, "debezium", changes)
    for name, (changes, _, _) in ENDS.items():
        for side in SIDES:
            made[f"{name}: {side}"] = capture(name, side, changes)

    def end(one: Capture) -> str:
        try:
            one.start()
        except urllib.error.HTTPError as error:
            with error:
                return f"HTTP {error.code}: {error.read().decode()}"
        return until(lambda: insert(conn, "events", "k") and one.failure(), f"{one.name} ends")

    with ThreadPoolExecutor(len(made)) as pool, ExitStack() as stack:
        stack.callback(lambda: list(pool.map(Capture.end, made.values())))
        found = dict(zip(made, pool.map(end, made.values()), strict=True))
    for name in wrong:
        assert re.match("HTTP 400: |.*Exception", found[name])
    for name, (_, debezium, native) in ENDS.items():
        assert debezium in found[f"{name}: debezium"]
        assert native in found[f"{name}: native"]
