"""The name of a managed PostgreSQL, or a host's name, in; how things are done and what is different there, out.

Taken from the vendors' public documentation; none of it can be tried here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["PROVIDERS", "Provider", "provider_of"]


@dataclass(frozen=True, slots=True)
class Provider:
    """One service. ``{role}``, ``{name}`` and ``{value}`` stand for what a finding is about.

    ``hosts`` matches its servers' names and ``poolers`` those of its poolers, with the port; ``notes`` are to be known.
    """

    name: str
    hosts: str
    wal_level: str
    replication: str
    setting: str
    poolers: str = "$^"
    fixed: tuple[str, ...] = ()  # settings that nobody can change there
    notes: tuple[tuple[str, str], ...] = ()

    def set(self, name: str, value: str) -> str:
        """Say how a setting that needs no restart is changed."""
        if name in self.fixed:
            return f"{name} cannot be set there: alert on pipeline_slot_wal_retained_bytes, and let the disk grow"
        return self.setting.format(name=name, value=value)

    def is_pooler(self, host: str, port: int) -> bool:
        """Tell whether an address is that of a pooler."""
        return re.search(self.poolers, f"{host}:{port}") is not None


_OWN = Provider(
    name="",
    hosts="$^",
    wal_level="ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
    replication="ALTER ROLE {role} REPLICATION;",
    setting="ALTER SYSTEM SET {name} = '{value}'; SELECT pg_reload_conf();",
)

PROVIDERS: dict[str, Provider] = {
    one.name: one
    for one in (
        Provider(
            name="rds",
            hosts=r"\.rds\.amazonaws\.com(\.cn)?$",
            wal_level="set rds.logical_replication = 1 in the DB parameter group, then reboot the instance",
            replication="GRANT rds_replication TO {role};",
            setting="set {name} = {value} in the DB parameter group (units as the console shows them)",
            notes=(
                ("failover", "a Multi-AZ DB cluster copies slots to its readers by itself (14.8, 15.3 and newer)"),
                ("read replica", "it has copies of failover slots with sync_replication_slots (17 and newer)"),
            ),
        ),
        Provider(
            name="aurora",
            hosts=r"\.cluster-(ro-|custom-)?[a-z0-9]+\.[a-z0-9-]+\.rds\.amazonaws\.com(\.cn)?$",
            wal_level="set rds.logical_replication = 1 in the DB *cluster* parameter group, then reboot the writer",
            replication="GRANT rds_replication TO {role};",
            setting="set {name} = {value} in the DB cluster parameter group (units as the console shows them)",
            notes=(("endpoint", "let database.hostname name the cluster's writer endpoint: it follows a failover"),),
        ),
        Provider(
            name="cloudsql",
            hosts=r"\.sql\.goog$",
            wal_level="set the flag cloudsql.logical_decoding = on; the instance restarts",
            replication="ALTER USER {role} WITH REPLICATION;",
            setting="gcloud sql instances patch INSTANCE --database-flags={name}={value} (and all others set)",
        ),
        Provider(
            name="azure",
            hosts=r"\.postgres\.database\.(azure\.com|chinacloudapi\.cn|usgovcloudapi\.net)$",
            wal_level="set the server parameter wal_level = logical, then restart",
            replication="ALTER ROLE {role} WITH REPLICATION;",
            setting="az postgres flexible-server parameter set --resource-group GROUP --server-name SERVER "
            "--name {name} --value {value}",
            poolers=":6432$",
            fixed=("max_slot_wal_keep_size",),
            notes=(("workers", "max_worker_processes has to be 16 at least for logical decoding"),),
        ),
        Provider(
            name="supabase",
            hosts=r"\.supabase\.(co|com)$",
            wal_level="logical decoding is on there from the start: ask the support",
            replication="ALTER ROLE {role} REPLICATION;",
            setting="supabase --experimental postgres-config update --config {name}={value}",
            poolers=r"\.pooler\.supabase\.com:|:6543$",
            notes=(("address", "the direct address is IPv6, unless the project has the IPv4 add-on"),),
        ),
        Provider(
            name="neon",
            hosts=r"\.neon\.(tech|build)$",
            wal_level="enable logical replication in the project's settings: it cannot be taken back",
            replication="make the role in the console, or by the API: roles made there may replicate",
            setting="ask the support: {name} = {value}",
            poolers=r"-pooler\.",
            notes=(
                ("idle slots", "a slot that nobody reads is removed after about 40 hours: run a relay all the time"),
                ("restore", "restoring a branch removes its slots"),
                ("scale to zero", "a compute that a relay reads never scales to zero"),
            ),
        ),
    )
}  # fmt: skip


def provider_of(name: str, host: str) -> Provider:
    """Return a provider by its name; for an empty one by the host's, which may be nobody's."""
    if name:
        return PROVIDERS[name]
    named = [one for one in PROVIDERS.values() if re.search(one.hosts, host)]
    return min(named, key=lambda one: one.name != "aurora", default=_OWN)  # its names end as those of RDS
