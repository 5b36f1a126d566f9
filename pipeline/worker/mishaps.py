"""What can happen to a handler's process, as errors that settlement decides about."""

from __future__ import annotations

from pipeline.errors import PipelineError

__all__ = ["ProcessEnded", "ProcessUnavailable"]


class ProcessEnded(PipelineError):
    """The process of a handler ended in the middle of an attempt: that attempt failed, and counts."""


class ProcessUnavailable(PipelineError):
    """No process for a handler could be started: its record waits, and no attempt is counted."""
