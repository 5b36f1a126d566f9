"""psycopg's errors in, ours out: one table."""

from __future__ import annotations

import psycopg
from psycopg import errors

from pipeline.errors import PipelineError, SourceError

__all__ = ["translated"]

_REMEDIES: dict[type[psycopg.Error], str] = {
    errors.UndefinedTable: "pipeline db migrate, on this database",
    errors.InvalidSchemaName: "pipeline db migrate, on this database",
    errors.UndefinedColumn: "pipeline db migrate; or correct Outbox(columns=…) where the table is your own",
    errors.InsufficientPrivilege: "grant it: pipeline doctor FILE says what is missing; "
    "pipeline db migrate --sql prints the roles and grants",
    errors.InvalidPassword: "correct user or password in PIPELINE_POSTGRES__DSN",
    errors.InvalidCatalogName: "create the database, or correct its name in PIPELINE_POSTGRES__DSN",
    errors.InFailedSqlTransaction: "an earlier statement of this transaction failed: roll it back first",
    errors.ReadOnlySqlTransaction: "write on the primary, in a transaction that is not READ ONLY",
    errors.LockNotAvailable: "a row or table is locked by somebody else for longer than lock_timeout",
    errors.QueryCanceled: "it was cancelled, or took longer than the role's statement_timeout",
    errors.UniqueViolation: "an event with this id is there already",
    errors.TooManyConnections: "raise max_connections or use a pool",
}
_RETRYABLE = (
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.TooManyConnections,
    errors.SerializationFailure,
    errors.DeadlockDetected,
    errors.DiskFull,
    errors.OutOfMemory,
    errors.LockNotAvailable,  # lock_timeout, statement_timeout and the like, as roles and databases have them
    errors.QueryCanceled,
    errors.IdleInTransactionSessionTimeout,
    errors.ReadOnlySqlTransaction,  # the primary of before a failover
)


def translated(error: psycopg.Error) -> PipelineError:
    """Return the SourceError for a psycopg error: server message (never the failing row), remedy, retryable."""
    remedy = next((text for kind, text in _REMEDIES.items() if isinstance(error, kind)), "")
    lost = isinstance(error, psycopg.OperationalError) and error.sqlstate is None
    if lost and not remedy:
        remedy = "is the server up and reachable? pipeline status, or check PIPELINE_POSTGRES__DSN"
    # message_primary leaves out DETAIL, which quotes the row
    text = error.diag.message_primary or (str(error).strip() or type(error).__name__)
    code = f" (SQLSTATE {error.sqlstate})" if error.sqlstate else ""
    return SourceError(f"PostgreSQL: {text}{code}", remedy=remedy, retryable=lost or isinstance(error, _RETRYABLE))
