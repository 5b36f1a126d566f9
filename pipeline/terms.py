"""What one job was enqueued with beside its arguments in, a header of its row out, and back.

A header ``pipeline.terms`` of the row's ``headers``: a JSON object with ``version`` 1 and those of ``timeout_s``,
``expires_s`` and ``retry`` that were given. It stays on the record through retries, dead letters and redrive.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from pipeline.errors import ConfigError, PoisonError
from pipeline.headers import NewerFormat
from pipeline.retry import RetryPolicy

__all__ = ["HEADER", "Terms", "is_number"]

HEADER = "pipeline.terms"
FORMAT_VERSION = 1

_ROW_HEADERS = "headers"
_MARK = HEADER.encode()
_LONGEST_S = 100 * 366 * 86_400
_NUMBERS = ("attempts", "first_s", "factor", "cap_s", "jitter")


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for one job in place of what its handler declares. None: as the handler has it.

    ``timeout_s`` bounds each attempt; ``retry`` has the handler's fatal and uncounted errors; ``expires_s`` after its
    time came, the job does not begin any more. Raises ConfigError for what cannot be.
    """

    timeout_s: float | None = None
    retry: RetryPolicy | None = None
    expires_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("timeout_s", self.timeout_s), ("expires_s", self.expires_s)):
            if value is not None and not (is_number(value) and 0 < value <= _LONGEST_S):
                raise ConfigError(f"{name}={value!r}", remedy="seconds, more than 0")
        if self.retry is None:
            return
        if not isinstance(self.retry, RetryPolicy) or not all(is_number(getattr(self.retry, n)) for n in _NUMBERS):
            raise ConfigError(f"retry={self.retry!r}", remedy="RetryPolicy(attempts=3, first_s=10), of numbers")
        if self.retry.fatal or self.retry.uncounted:
            raise ConfigError(
                "retry: fatal and uncounted errors of one job", remedy="they are the handler's: @app.job(…, retry=…)"
            )

    def __bool__(self) -> bool:
        return self != _NONE

    def data(self) -> dict[str, Any]:
        """Return what was given, as JSON has it."""
        found: dict[str, Any] = {"timeout_s": self.timeout_s, "expires_s": self.expires_s}
        if self.retry is not None:
            found["retry"] = {name: getattr(self.retry, name) for name in _NUMBERS}
        return {name: value for name, value in found.items() if value is not None}

    def header(self) -> str:
        """Return the header's text."""
        return json.dumps({"version": FORMAT_VERSION, **self.data()})

    def policy(self, declared: RetryPolicy) -> RetryPolicy:
        """Return the policy that holds, where the handler has ``declared`` one."""
        if self.retry is None:
            return declared
        return replace(self.retry, fatal=declared.fatal, uncounted=declared.uncounted)

    @classmethod
    def of(cls, headers: Mapping[str, bytes | None]) -> Terms | None:
        """Read them from a record's headers; None where there are none.

        Raises PoisonError where they are corrupt, NewerFormat where a newer worker has to read them.
        """
        row = headers.get(_ROW_HEADERS)
        if not row or _MARK not in row:
            return None
        try:
            text = json.loads(row).get(HEADER)
            if text is None:  # the mark stands elsewhere
                return None
            data = json.loads(text)
            version = data.pop("version")
            if isinstance(version, int) and version > FORMAT_VERSION:
                raise NewerFormat(f"terms of format {version}, this worker knows {FORMAT_VERSION}")
            retry = data.pop("retry", None)
            return cls(**data, retry=None if retry is None else RetryPolicy(**retry))
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError, ConfigError):
            raise PoisonError(f"header {HEADER}: not the terms of a job") from None


_NONE = Terms()


def is_number(value: object) -> TypeGuard[int | float]:
    """Tell whether it is a number: True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
