"""OpenTelemetry's current span in, its W3C traceparent out; None without span or without OpenTelemetry (extra otel)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

__all__ = ["current_traceparent"]


def current_traceparent() -> str | None:
    """Return the traceparent of the span that is current here."""
    return _reader()()


@cache
def _reader() -> Callable[[], str | None]:
    try:
        from opentelemetry import trace  # an extra
    except ImportError:
        return lambda: None

    def read() -> str | None:
        span = trace.get_current_span().get_span_context()
        return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}" if span.is_valid else None

    return read
