"""An exception in, what may be told of it out: class, message and trace, bounded and masked.

Text that people and headers see never holds the value of a field that is marked personal, nor an input that pydantic
quotes. Sizes are capped, so that a record never grows beyond what its topic takes.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import PipelineError
from pipeline.event import Message, PersonalMark

__all__ = ["MASK", "Failure", "describe"]

MASK = "•••"
_CLASS_CHARS = 200
_MESSAGE_CHARS = 1000
_TRACE_CHARS = 3000
_CAUSES = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """What is told of an exception. ``kind`` is its class with module; builtins stand without one."""

    kind: str
    message: str
    trace: str = ""


def describe(error: BaseException, message: Message | None = None) -> Failure:
    """Return what may be told of ``error``. ``message`` is what was being handled: its personal values are masked."""
    told = getattr(error, "pipeline_failure", None)
    if isinstance(told, Failure):  # it was raised in another process, where its trace and its class were
        return told
    try:
        return _describe(error, _pattern(message))
    except Exception:  # noqa: BLE001 — an error may be anything, and its record must still be settled
        return Failure(_class(error)[:_CLASS_CHARS], "")


def _describe(error: BaseException, secret: re.Pattern[str] | None) -> Failure:
    parts = []
    cause: BaseException | None = error
    for _ in range(_CAUSES):
        if cause is None:
            break
        frames = "".join(traceback.format_tb(_theirs(cause.__traceback__)))
        parts.append(f"{frames}{_class(cause)}: {_masked(_text(cause), secret)}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    trace = "\ncaused the error above it:\n".join(parts)
    return Failure(
        _class(error)[:_CLASS_CHARS],
        _masked(_text(error), secret)[:_MESSAGE_CHARS],
        trace if len(trace) <= _TRACE_CHARS else "…" + trace[-_TRACE_CHARS:],
    )


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of the worker itself: a trace begins in the handler."""
    while trace and trace.tb_next and trace.tb_frame.f_globals.get("__name__", "").startswith("pipeline.worker."):
        trace = trace.tb_next
    return trace


def _class(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _text(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_context=False, include_input=False)
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
    if isinstance(error, PipelineError):
        return error.what
    return str(error)


def _masked(text: str, secret: re.Pattern[str] | None) -> str:
    return text if secret is None else secret.sub(MASK, text)


def _pattern(message: Message | None) -> re.Pattern[str] | None:
    """Return what matches any personal value of a message, longest first; None where it has none."""
    if message is None:
        return None
    values = {text for text in _personal(message) if text}
    if not values:
        return None
    return re.compile("|".join(map(re.escape, sorted(values, key=len, reverse=True))), re.IGNORECASE)


def _personal(model: BaseModel) -> Iterator[str]:
    for name, info in type(model).model_fields.items():
        value = getattr(model, name, None)
        if _marked(info):
            yield from _leaves(value)
        elif isinstance(value, BaseModel):
            yield from _personal(value)
        elif isinstance(value, list | tuple | set | frozenset):
            for item in value:
                if isinstance(item, BaseModel):
                    yield from _personal(item)
        elif isinstance(value, dict):
            for item in value.values():
                if isinstance(item, BaseModel):
                    yield from _personal(item)


def _marked(info: FieldInfo) -> bool:
    return any(isinstance(mark, PersonalMark) for mark in info.metadata) or "PersonalMark()" in repr(info.annotation)


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name, None))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(name)
            yield from _leaves(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _leaves(item)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
        yield repr(value)
