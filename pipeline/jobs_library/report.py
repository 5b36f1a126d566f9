"""A schedule and a query in, a mail with the query's rows to each recipient out, once for each tick.

The tick's inbox row, the query and the mails are of one transaction: a tick that is delivered again mails nothing.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.app import Pipeline
from pipeline.errors import ConfigError
from pipeline.jobs_library.email import Attachment, SendEmail

if TYPE_CHECKING:
    from pipeline.context import Context
    from pipeline.schedule import Missed, Tick

__all__ = ["scheduled_report"]

_SHOWN = 50  # rows in the mail itself; all of them are in the file
_MOST_ROWS = 50_000
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def scheduled_report(
    app: Pipeline,
    name: str,
    *,
    cron: str,
    timezone: str,
    query: str,
    sender: str,
    to: Sequence[str],
    subject: str,
    missed: Missed = "once",
) -> None:
    """Declare a report: at each tick ``query`` runs, and its rows are mailed, as a table and as a CSV file.

    ``query`` may use ``%(tick)s``, the tick's time. The mails are SendEmail jobs: declare ``send_emails`` too. More
    than 50,000 rows are an error: such a report belongs into a file. Raises ConfigError for no recipient.
    """
    if not to:
        raise ConfigError(f"report {name}: nobody gets it", remedy="to=[…]")
    app.register(SendEmail)

    @app.schedule(cron, name=name, timezone=timezone, missed=missed, queue="reports", inbox=True)
    def report(tick: Tick, ctx: Context) -> None:
        cursor = ctx.conn.execute(query, {"tick": tick.at})
        columns = [column.name for column in cursor.description or ()]
        rows = cursor.fetchmany(_MOST_ROWS + 1)
        if len(rows) > _MOST_ROWS:
            raise ValueError(f"report {name}: more than {_MOST_ROWS} rows")
        file = Attachment(name=f"{name}-{tick.at:%Y-%m-%d}.csv", content_type="text/csv", content=_csv(columns, rows))
        for recipient in to:
            mail = SendEmail(
                sender=sender,
                to=recipient,
                subject=f"{subject}, {tick.at:%Y-%m-%d}",
                text=_text(columns, rows),
                html=_html(columns, rows),
                attachments=[file],
            )
            app.enqueue(ctx.conn, mail)
        ctx.result({"rows": len(rows), "mails": len(to)})


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([_inert(name) for name in columns])
    writer.writerows([_inert(value) for value in row] for row in rows)
    return text.getvalue().encode()


def _inert(value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula; numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def _text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    shown = [columns, *([_cell(value) for value in row] for row in rows[:_SHOWN])]
    widths = [max(len(row[n]) for row in shown) for n in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    return "\n".join([*lines, *_more(len(rows))]) + "\n"


def _html(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(_cell(value))}</td>' for value in row)}</tr>" for row in rows[:_SHOWN]
    )
    return f"<table><tr>{head}</tr>{body}</table>{''.join(f'<p>{line}</p>' for line in _more(len(rows)))}"


def _more(count: int) -> list[str]:
    return [f"{count - _SHOWN} more rows are in the file."] if count > _SHOWN else []


def _cell(value: object) -> str:
    return "" if value is None else str(value)
