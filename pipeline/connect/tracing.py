"""The trace that a row was written in, in; the headers that carry it on, out: Debezium's ActivateTracingSpan.

With OpenTelemetry and a provider of tracers in this process there are Debezium's two spans, and the header names the
first. Without, the context goes on as it came: no span that nobody would see comes between writer and consumer.
Nothing in a row makes it fail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.connect.references import properties

__all__ = ["Traced", "Tracing", "traced"]

_FIRST_SPAN = "db-log-write"
_W3C = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_MEMBER = r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[!-+\--<>-~ ]{0,255}[!-+\--<>-~]"
_STATE = re.compile(rf"{_MEMBER}(?:[ \t]*,[ \t]*{_MEMBER}){{0,31}}")

Traced = Callable[[str | bytes | None], list[tuple[str, str]]]
"""From the text of a row's context to headers."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """``field`` is the column with Java properties as text; ``required``: a row without it is not traced."""

    field: str = "tracingspancontext"
    operation: str = "debezium-read"
    required: bool = True


def traced(tracing: Tracing) -> Traced:
    """Return what makes the headers of a row."""
    carry = _spans(tracing.operation) or _as_it_came

    def headers(text: str | bytes | None) -> list[tuple[str, str]]:
        if text is None and tracing.required:
            return []
        written = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
        found = dict(reversed(list(properties(written))))
        return list(carry({name: found[name] for name in ("traceparent", "tracestate") if name in found}).items())

    return headers


def _as_it_came(context: Mapping[str, str]) -> dict[str, str]:
    if not _W3C.fullmatch(context.get("traceparent", "")):
        return {}
    state = context.get("tracestate", "")
    return {"traceparent": context["traceparent"]} | ({"tracestate": state} if _STATE.fullmatch(state) else {})


def _spans(operation: str) -> Callable[[Mapping[str, str]], dict[str, str]] | None:
    """Return what makes the spans of a row, None where nobody would hear of them."""
    try:
        from opentelemetry import trace  # an extra
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return None
    tracer = trace.get_tracer("pipeline.connect")
    if not tracer.start_span(_FIRST_SPAN, context=Context()).get_span_context().is_valid:
        return None
    w3c = TraceContextTextMapPropagator()

    def carry(context: Mapping[str, str]) -> dict[str, str]:
        carrier: dict[str, str] = {}
        span = tracer.start_span(_FIRST_SPAN, context=w3c.extract(context, context=Context()))
        with trace.use_span(span, end_on_exit=True):
            tracer.start_span(operation, attributes={"op": "c"}).end()
            w3c.inject(carrier)
        return carrier

    return carry
