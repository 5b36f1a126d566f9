"""What the commands share that run until they are told to end: options, and what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from pipeline.errors import ConfigError
from pipeline.probes import LOOPBACK

__all__ = ["client_option", "client_settings", "log_level_option", "probe_options", "say_port"]

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


def log_level_option(command: _Command) -> _Command:
    """Add ``--log-level``."""
    levels = click.Choice(["debug", "info", "warning", "error"])
    return click.option("--log-level", type=levels, default="info")(command)


def client_option(command: _Command) -> _Command:
    """Add ``-X KEY=VALUE``, as the argument ``options``."""
    option = click.option("-X", "options", multiple=True, metavar="KEY=VALUE", help="Pass a setting to librdkafka.")
    return option(command)


def client_settings(options: Sequence[str]) -> dict[str, str]:
    """Return what was given with ``-X``. Raises ConfigError."""
    settings = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not key or not equals:
            raise ConfigError(f"-X {option}: is not KEY=VALUE", remedy="write it as -X socket.timeout.ms=30000")
        settings[key] = value
    return settings


def say_port(port: int) -> None:
    """Tell where metrics and probes are."""
    click.echo(f"metrics and probes on port {port}", err=True)
