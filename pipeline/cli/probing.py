"""The options of every command that serves metrics and probes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pipeline.probes import LOOPBACK

__all__ = ["probe_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def probe_options(command: _Command) -> _Command:
    """Add ``--metrics-port`` and ``--metrics-host``."""
    host = click.option(
        "--metrics-host",
        default=LOOPBACK,
        show_default=True,
        metavar="ADDRESS",
        help="Where to serve them: 0.0.0.0 or :: for a kubelet or Prometheus elsewhere. Who reaches it reads all.",
    )
    port = click.option(
        "--metrics-port", type=click.IntRange(0, 65535), help="Serve /metrics, /healthz, /readyz; 0: free port."
    )
    return port(host(command))
