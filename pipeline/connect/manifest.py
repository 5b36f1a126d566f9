"""A connector in, what other ways of running Kafka Connect take out: Strimzi's KafkaConnector, or plain JSON."""

from __future__ import annotations

import re

from pipeline.connector import Connector
from pipeline.errors import ConfigError

__all__ = ["kafka_connector", "plain"]

_STRIMZI_KEYS = ("connector.class", "tasks.max", "name")  # have places of their own in the manifest
_KUBERNETES_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_ENVIRONMENT = re.compile(r"\$\{env:([^{}:]+)\}")


def plain(connector: Connector) -> dict[str, object]:
    """Return the JSON that Connect's own API, and managed Connect, take."""
    return {"name": connector.name, "config": {key: value for key, value in connector.config.items() if key != "name"}}


def kafka_connector(connector: Connector, *, cluster: str, secret: str = "") -> dict[str, object]:
    """Return Strimzi's manifest for the KafkaConnect ``cluster``.

    ``${env:NAME}`` becomes ``${secrets:SECRET:NAME}`` where ``secret`` (NAMESPACE/NAME) is given, for Strimzi's
    KubernetesSecretConfigProvider. Raises ConfigError for a name that Kubernetes does not take.
    """
    name = connector.name.replace("_", "-").lower()
    if not _KUBERNETES_NAME.fullmatch(name):
        raise ConfigError(
            f"{connector.source}: {connector.name!r} is no name for Kubernetes", remedy="use a-z, 0-9, - and ."
        )
    tasks = connector.config.get("tasks.max", "1")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", tasks):
        raise ConfigError(f"{connector.source}: tasks.max: {tasks!r} is not a number of tasks", remedy="write it as 1")
    config = {key: value for key, value in connector.config.items() if key not in _STRIMZI_KEYS}
    if secret:
        config = {key: _ENVIRONMENT.sub(rf"${{secrets:{secret}:\1}}", value) for key, value in config.items()}
    return {
        "apiVersion": "kafka.strimzi.io/v1beta2",
        "kind": "KafkaConnector",
        "metadata": {"name": name, "labels": {"strimzi.io/cluster": cluster}},
        "spec": {
            "class": connector.config.get("connector.class", ""),
            "tasksMax": int(tasks),
            "config": config,
        },
    }
