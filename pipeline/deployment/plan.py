"""Connectors as they should be in, what a deployment would change out; and what deploying needs of Connect."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pipeline.connector import Check, Connector, Difference, State, differences, references
from pipeline.errors import ConfigError, ConnectError

__all__ = ["Cluster", "Plan", "plan", "with_source"]


class Cluster(Protocol):
    """What deploying needs of Connect: ``pipeline.connect.rest.Connect``."""

    def configs(self) -> dict[str, dict[str, str]]:
        """The configurations of all connectors, by name."""

    def config(self, name: str) -> dict[str, str] | None:
        """The configuration that runs; None where there is none."""

    def state(self, name: str) -> State | None:
        """What a connector does."""

    def check(self, connector: Connector) -> Check:
        """What is wrong with its keys."""

    def put(self, connector: Connector) -> None:
        """Create or replace."""

    def task_configs(self, name: str) -> list[dict[str, str]]:
        """What each task was started with."""

    def delete(self, name: str) -> None:
        """Delete."""

    def pause(self, name: str) -> None:
        """Pause."""

    def resume(self, name: str) -> None:
        """Resume."""

    def stop(self, name: str) -> None:
        """Stop."""

    def restart(self, name: str, *, only_failed: bool) -> None:
        """Restart."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a deployment would change. ``running`` is what Connect has, None for a connector that is not there.

    ``check`` is what Connect says of it.
    """

    connector: Connector
    running: dict[str, str] | None
    differences: list[Difference]
    check: Check = field(default_factory=Check)

    @property
    def action(self) -> Literal["create", "update", "unchanged"]:
        """What would be done."""
        return "create" if self.running is None else "update" if self.differences else "unchanged"


def plan(connectors: Iterable[Connector], cluster: Cluster) -> list[Plan]:
    """Compare connectors with what runs. Changes nothing. Raises ConnectError, naming the file."""
    found = []
    for connector in connectors:
        try:
            running, said = cluster.config(connector.name), _said(connector, cluster)
        except ConnectError as error:
            raise with_source(connector, error) from error
        found.append(Plan(connector, running, differences(running, connector.config, said.secrets), said))
    return found


def with_source(connector: Connector, error: ConnectError) -> ConnectError:
    """Return an error of Connect that names the file whose connector it was about."""
    where = connector.source or f"connector {connector.name}"
    return ConnectError(f"{where}: {error.what}", remedy=error.remedy, retryable=error.retryable)


def _said(connector: Connector, cluster: Cluster) -> Check:
    """Ask Connect what is wrong with a connector. Raises ConfigError where it cannot even resolve a reference."""
    try:
        return cluster.check(connector)
    except ConnectError as error:
        for key, value in connector.config.items():
            for provider, path, _ in references(value):
                if provider != "env" and path and path in error.what:
                    raise ConfigError(
                        f"{connector.source}: {key}: {value}: {error.what}",
                        remedy=f"let {path} be there, and readable, where Connect runs; or correct {key}",
                    ) from error
        raise
