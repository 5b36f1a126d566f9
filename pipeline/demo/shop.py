"""A small shop: orders in, payments and receipts out. Read it as a tutorial; ``pipeline demo`` runs it.

Placing an order writes three rows in one transaction: the order, an event, a job. Either all of them exist or none.
Two groups of workers take it from there: ``billing`` handles the event, the queue ``email`` the job.
"""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg

from pipeline import Context, Event, Job, Money, Personal, Pipeline, Reject, RetryPolicy

# The name goes before groups, queues and internal topics.
app = Pipeline("shop")

# The shop's own tables; the pipeline's come from `pipeline db migrate`.
TABLES = """
CREATE TABLE orders   (id text PRIMARY KEY, customer text NOT NULL, total numeric NOT NULL);
CREATE TABLE payments (event_id text, order_id text, attempt int, started_at timestamptz NOT NULL);
CREATE TABLE receipts (event_id text, order_id text, attempt int, started_at timestamptz NOT NULL);
CREATE TABLE bank     (closed_for text PRIMARY KEY);  -- customers whose payments fail, until somebody mends it
"""


# ── Messages ───────────────────────────────────────────────────────────────────────────────────────────────────────
# What happened: goes to topic outbox.event.order, keyed by the order, so that one order's events keep their order.


class OrderPlaced(Event, aggregate="order", key="order_id"):
    """A customer placed an order."""

    order_id: str
    customer: str
    total: Money
    placed_at: datetime


# What should be done: goes to the queue's topic, shop.jobs.email. The address is masked wherever people look.


class SendReceipt(Job, queue="email"):
    """Mail the receipt of an order."""

    order_id: str
    address: Personal[str]


# ── Writing: in your own transaction ───────────────────────────────────────────────────────────────────────────────


def place_order(conn: psycopg.Connection[Any], order_id: str, customer: str, total: Money) -> list[UUID]:
    """Store an order, its event and its job in the caller's transaction; return the ids of event and job."""
    conn.execute("INSERT INTO orders VALUES (%s, %s, %s)", (order_id, customer, total))
    event = OrderPlaced(order_id=order_id, customer=customer, total=total, placed_at=datetime.now(UTC))
    job = SendReceipt(order_id=order_id, address=f"{customer}@example.org")
    return [app.publish(conn, event), app.enqueue(conn, job)]


# ── Handling: in worker processes ──────────────────────────────────────────────────────────────────────────────────
# Events of one key are handled in order. A failing one is tried again in place, while other keys go on.


@app.consumer(OrderPlaced, group="billing", retry=RetryPolicy(attempts=3, first_s=0.3, factor=2))
def take_payment(event: OrderPlaced, ctx: Context) -> None:
    """Charge the customer. An exception is a failed attempt; after the last one the event is a dead letter."""
    started_at = datetime.now(UTC)
    if event.customer.startswith("hasty") and ctx.attempt == 1:
        raise TimeoutError("the bank did not answer")
    conn = connection()
    if conn.execute("SELECT 1 FROM bank WHERE closed_for = %s", (event.customer,)).fetchone():
        raise PermissionError("the bank refuses this customer")
    conn.execute(
        "INSERT INTO payments VALUES (%s, %s, %s, %s)", (str(ctx.event_id), event.order_id, ctx.attempt, started_at)
    )


# Jobs need no order: a failing one waits on a retry topic and nothing waits for it.


@app.job(SendReceipt, retry=RetryPolicy(attempts=4, first_s=1, factor=1))
def send_receipt(job: SendReceipt, ctx: Context) -> None:
    """Mail the receipt. ``Reject`` means: this will never work, no retries."""
    started_at = datetime.now(UTC)
    if job.address.startswith("nobody"):
        raise Reject("no such mailbox")
    if job.address.startswith("hasty") and ctx.attempt == 1:
        raise ConnectionError("the mail server is busy")
    connection().execute(
        "INSERT INTO receipts VALUES (%s, %s, %s, %s)", (str(ctx.event_id), job.order_id, ctx.attempt, started_at)
    )


_local = threading.local()


def connection() -> psycopg.Connection[Any]:
    """Return this thread's connection, in autocommit mode."""
    if getattr(_local, "conn", None) is None or _local.conn.broken:
        _local.conn = psycopg.connect(os.environ["SHOP_DSN"], autocommit=True)
    return _local.conn  # type: ignore[no-any-return]
