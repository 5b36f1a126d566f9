"""A broker that asks who one is and lets nobody do what was not granted, and rights as a test grants and takes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from own_broker import more_listeners
from waiting import wait_until

from pipeline.local.kafka import Kafka
from pipeline.local.ports import LOOPBACK

__all__ = ["Guarded", "Right", "Rights"]

Right = tuple[str, str, str]
"""Operation, kind of resource, its name: ``("WRITE", "topic", "orders")``; a name that ends with * is a prefix."""

USERS = ("relay", "worker", "cli")


class Guarded(Kafka):
    """The local broker with ACLs and a listener for users with passwords. Who comes without is a super user.

    That is the controller, the broker itself and the test.
    """

    port_names = (*Kafka.port_names, "sasl")

    def _write_settings(self, logs: Path) -> Path:
        path = super()._write_settings(logs)
        users = " ".join(f'user_{name}="{name}-secret"' for name in USERS)
        path.write_text(
            more_listeners(self, path.read_text(), {"SASL": "SASL_PLAINTEXT"})
            + f"""\
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=false
early.start.listeners=CONTROLLER
listener.name.sasl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {users};
"""
        )
        return path

    def options(self, user: str, password: str | None = None) -> dict[str, str]:
        """Return librdkafka's settings for a user."""
        return {
            "bootstrap.servers": f"{LOOPBACK}:{self.home.port('sasl')}",
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": user,
            "sasl.password": password or f"{user}-secret",
        }

    def environment(self, user: str, others: Mapping[str, str], password: str | None = None) -> dict[str, str]:
        """Return the settings of the command line for a user; ``others`` are those of the other servers."""
        options = self.options(user, password)
        servers = options.pop("bootstrap.servers")
        return {**others, "PIPELINE_KAFKA__BOOTSTRAP_SERVERS": servers, "PIPELINE_KAFKA__OPTIONS": json.dumps(options)}


class Rights:
    """What users may do. A change is waited for: the broker applies it a moment after its controller took it."""

    def __init__(self, broker: Guarded) -> None:
        self._admin = AdminClient({"bootstrap.servers": broker.address()})

    def grant(self, user: str, *rights: Right) -> None:
        """Give rights to a user."""
        for done in self._admin.create_acls([_acl(user, right) for right in rights]).values():
            done.result(60)
        wait_until(lambda: set(rights) <= self._of(user), why=f"{user} has {rights}")

    def take(self, user: str, *rights: Right) -> None:
        """Take rights from a user."""
        wanted = [_filter(user, right) for right in rights]
        for done in self._admin.delete_acls(wanted).values():
            assert done.result(60), "there was no such right"
        wait_until(lambda: not set(rights) & self._of(user), why=f"{user} has no more {rights}")

    def take_all(self) -> None:
        """Take all rights from all."""
        everything = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
        )
        for done in self._admin.delete_acls([everything]).values():
            done.result(60)

    def _of(self, user: str) -> set[Right]:
        found: Iterable[AclBinding] = self._admin.describe_acls(
            AclBindingFilter(
                ResourceType.ANY, None, ResourcePatternType.ANY, f"User:{user}", None, AclOperation.ANY,
                AclPermissionType.ANY,
            )
        ).result(60)  # fmt: skip
        return {
            (
                one.operation.name,
                one.restype.name.lower(),
                one.name + ("*" if one.resource_pattern_type == ResourcePatternType.PREFIXED else ""),
            )
            for one in found
        }


def _acl(user: str, right: Right) -> AclBinding:
    operation, kind, name = right
    prefixed = name.endswith("*")
    return AclBinding(
        ResourceType["BROKER" if kind == "cluster" else kind.upper()],
        name.removesuffix("*"),
        ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        AclOperation[operation],
        AclPermissionType.ALLOW,
    )


def _filter(user: str, right: Right) -> AclBindingFilter:
    one = _acl(user, right)
    return AclBindingFilter(
        one.restype, one.name, one.resource_pattern_type, one.principal, "*", one.operation, one.permission_type
    )
