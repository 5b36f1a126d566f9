"""Errors of the registry and of the way to it in, SchemaErrors out: the one table for all registry adapters."""

from __future__ import annotations

from confluent_kafka.schema_registry.error import SchemaRegistryError

from pipeline.errors import SchemaError

try:  # in the order in which the client looks for its HTTP library
    import httpx2 as httpx
except ImportError:  # clients before 2.16
    import httpx  # type: ignore[no-redef, import-not-found, unused-ignore]  # whichever is installed

__all__ = ["FAILURES", "NOT_FOUND", "translated"]

FAILURES = (SchemaRegistryError, httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError, KeyError)
"""What the client raises: the registry's refusals, the transport's errors, and for an answer that makes no sense."""

NOT_FOUND = frozenset({40401, 40402, 40403, 40408})
"""Subject, version, schema, and a subject's own compatibility: what is not there (Confluent's error codes)."""

# HTTP status → (retryable, what to do)
_TABLE: dict[int, tuple[bool, str]] = {
    401: (True, "correct PIPELINE_REGISTRY__USERNAME and PIPELINE_REGISTRY__PASSWORD"),
    403: (True, "this user may not do that: grant it in the registry"),
    404: (False, "is PIPELINE_REGISTRY__URL right? For Apicurio it ends with /apis/ccompat/v7"),
    405: (False, "is PIPELINE_REGISTRY__URL right? For Apicurio it ends with /apis/ccompat/v7"),
    409: (False, "it breaks the subject's compatibility: pipeline schema push --dry-run names the field"),
    422: (False, "the registry does not take it as a schema: pipeline schema check"),
    429: (True, "the registry asks for fewer calls: try again later"),
}


def translated(error: Exception, what: str) -> SchemaError:
    """Return the SchemaError for a vendor error; ``what`` says what was asked of the registry."""
    if isinstance(error, SchemaRegistryError):
        status = error.http_status_code
        retryable, remedy = _TABLE.get(status, (status >= 500, "see the registry's log" if status >= 500 else ""))
        # -1: no answer of a registry; its body may be a page, or nothing
        text = "" if error.error_code == -1 else f", {error.error_message}"
        return SchemaError(f"registry: {what}: HTTP {status}{text}", remedy=remedy, retryable=retryable)
    if isinstance(error, httpx.TransportError):
        remedy = "is the registry up, and PIPELINE_REGISTRY__URL right? pipeline status"
        return SchemaError(f"registry: {what}: {error or type(error).__name__}", remedy=remedy, retryable=True)
    if isinstance(error, httpx.InvalidURL | httpx.HTTPError):
        return SchemaError(f"registry: {what}: {error}", remedy="correct PIPELINE_REGISTRY__URL")
    remedy = "is that a schema registry? Check PIPELINE_REGISTRY__URL"
    return SchemaError(f"registry: {what}: its answer makes no sense ({type(error).__name__})", remedy=remedy)
