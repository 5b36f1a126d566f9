"""Headers beside those of the event, as Debezium 3.7 gives them: of the connector's run, and of the row's trace."""

from __future__ import annotations

from pairs import TRACE, Conn, Start, normal, published

PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
CONTEXTS = (
    None, f"traceparent={PARENT}", f"# a comment\ntraceparent: {PARENT}\ntracestate=a=b,c=d\nbaggage=k=v\nother=x",
    f"traceparent={PARENT[:-1]}0", f"traceparent=00-{'0' * 32}-b7ad6b7169203331-01", "garbage", "", "traceparent=no",
    f"Traceparent={PARENT}", f"traceparent=ff{PARENT[2:]}", f"traceparent={PARENT}\ntracestate=bad;;",
    f"traceparent=no\ntraceparent=\\u0030{PARENT[1:]}",
)  # fmt: skip
JSON = "org.apache.kafka.connect.json.JsonConverter"
SPANS = {"OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider"}


def insert(conn: Conn) -> str:
    conn.execute("ALTER TABLE pipeline.outbox ADD COLUMN IF NOT EXISTS tracingspancontext text")
    conn.execute("ALTER TABLE pipeline.outbox ADD COLUMN IF NOT EXISTS context jsonb")
    for text in CONTEXTS:
        row = conn.execute(
            "INSERT INTO pipeline.outbox (id, aggregatetype, aggregateid, type, payload, topic, tracingspancontext,"
            " context) VALUES (gen_random_uuid(), 'order', 'k', 'T', 'x', 'events', %s, to_jsonb(%s::text))"
            " RETURNING id",
            (text, text),
        ).fetchone()
    return str(row and row[0])


def test_both_give_the_headers_of_run_and_trace(start: Start, conn: Conn, bootstrap_servers: str) -> None:
    router = "transforms.outbox."
    pairs = {
        "by default": start(
            "-a", SPANS, **{"extended.headers.enabled": None, router + "table.fields.additional.placement": None}
        ),
        "each row": start(
            "-b", SPANS, **{
                "extended.headers.enabled": "true", "header.converter": JSON,
                router + "tracing.with.context.field.only": "false", router + "tracing.operation.name": "read",
            },
        ),
        "another column": start(
            "-c", SPANS, **{
                router + "tracing.span.context.field": "traceparent", router + "tracing.with.context.field.only": "true"
            },
        ),
    }  # fmt: skip
    last = insert(conn)
    for case, pair in pairs.items():
        found = {
            side: [normal(side, message) for message in messages]
            for side, messages in published(bootstrap_servers, pair, last).items()
        }
        assert found["native"] == found["debezium"], case
        traces = [sum(name.startswith("trace") for name, _ in headers) for headers in found["native"]]
        assert len(traces) == len(CONTEXTS)
        assert {"by default": traces[0] == 0, "each row": traces[0] > 1, "another column": True}[case]
