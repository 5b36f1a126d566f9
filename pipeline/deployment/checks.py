"""Planned connectors in, an error out that names file and key where one of them must not be deployed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.connector import is_reference, is_secret, masked
from pipeline.deployment.plan import Cluster, Plan
from pipeline.errors import ConfigError

__all__ = ["check", "plain_secrets"]


def plain_secrets(plans: Iterable[Plan]) -> None:
    """Refuse a secret that stands in a file as it is. Raises ConfigError naming file and key."""
    for one in plans:
        connector = one.connector
        for key, value in connector.config.items():
            if value and (is_secret(key) or key in one.check.secrets) and not is_reference(value):
                raise ConfigError(
                    f"{connector.source}: {key}: a secret in plain text, which Connect would keep and show to all",
                    remedy="refer to it: ${env:NAME} or ${file:path:key}; or --allow-plain-secrets",
                )


def check(plans: Sequence[Plan], cluster: Cluster, *, ignore_unknown: bool = False) -> None:
    """Go by what Connect says of all connectors. Raises ConfigError naming file and keys; nothing is changed."""
    for one in plans:
        _check(one, ignore_unknown=ignore_unknown)
    _check_shared({**cluster.configs(), **{one.connector.name: one.connector.config for one in plans}}, plans)


def _signs_in(one: Plan) -> str:
    """Say by which keys the database is reached: Connect tells of all of it under database.hostname."""
    config = one.connector.config
    found = {key: masked(key, config[key], one.check.secrets) for key in _SIGN_IN if config.get(key)}
    listed = ", ".join(f"{key}={value}" for key, value in found.items())
    return f"; the database is reached by {listed}; references are resolved where Connect runs"


_SIGN_IN = ("database.hostname", "database.port", "database.user", "database.password", "database.dbname")


def _check(one: Plan, *, ignore_unknown: bool) -> None:
    where = one.connector.source or one.connector.name
    if one.check.errors:
        listed = "; ".join(f"{key}: {' '.join(texts[0].split())}" for key, texts in sorted(one.check.errors.items()))
        hint = _signs_in(one) if "validating connector config" in listed else ""
        raise ConfigError(
            f"{where}: Connect refuses it: {listed}", remedy=f"correct these keys{hint}; nothing was changed"
        )
    for key, near in one.check.unknown.items():
        if not ignore_unknown:
            hint = f"did you mean {near}? else remove it" if near else "remove it"
            raise ConfigError(
                f"{where}: {key}: unknown key, which Connect would pass over in silence",
                remedy=f"{hint}, or take it with --ignore-unknown; nothing was changed",
            )


_SHARED = {
    ("topic.prefix",): "Debezium names its metrics by it, and the second hangs for a minute for that name",
    ("slot.name", "database.hostname", "database.port", "database.dbname"): "a slot is read by one connector",
}
"""Keys of Debezium connectors that no two may have alike, and why."""


def _check_shared(all_configs: Mapping[str, Mapping[str, str]], plans: Sequence[Plan]) -> None:
    for one in plans:
        mine = one.connector.config
        for name, config in all_configs.items():
            if name == one.connector.name or _class(config) != _class(mine):
                continue
            for keys, why in _SHARED.items():
                if mine.get(keys[0]) and all(mine.get(key) == config.get(key) for key in keys):
                    raise ConfigError(
                        f"{one.connector.source}: {keys[0]}: {mine[keys[0]]!r} is that of connector {name} too",
                        remedy=f"give each connector one of its own: {why}",
                    )


def _class(config: Mapping[str, str]) -> str:
    return config.get("connector.class", "")
