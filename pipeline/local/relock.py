"""The versions pinned below in, ``jars.lock`` out: every file that they need, with size and checksum.

Run by hand when a version changes: ``python -m pipeline.local.relock``, then review the difference. It trusts
what it downloads; everybody after it trusts the reviewed file only.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["main"]

KAFKA = "4.3.1"
LOG4J = "2.25.3"
DEBEZIUM = "3.7.0.Final"
APICURIO = "3.3.3"
OPENTELEMETRY = "1.49.0"
AVRO_CONVERTER = "2.6.13.Final"

BROKER = [
    f"org.apache.kafka:kafka_2.13:{KAFKA}",
    f"org.apache.kafka:kafka-tools:{KAFKA}",
    f"org.apache.kafka:connect-runtime:{KAFKA}",  # the tools need it anyway
    f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J}",
]
CONNECTOR = [
    f"io.debezium:debezium-connector-postgres:{DEBEZIUM}",
    f"io.opentelemetry:opentelemetry-sdk-extension-autoconfigure:{OPENTELEMETRY}",  # for the tracing.* of its router
]
CONVERTER = [f"io.apicurio:apicurio-registry-utils-converter:{AVRO_CONVERTER}"]  # the last whose dependencies resolve
# What Connect itself gives to a plugin must not be in the plugin's folder a second time.
CONNECT_GIVES = {
    "kafka-clients",
    "connect-api",
    "slf4j-api",
    "zstd-jni",
    "lz4-java",
    "snappy-java",
    "jakarta.ws.rs-api",
    "javax.ws.rs-api",
    "connect-json",
}
HEAD = "# use group:artifact:version:classifier:packaging bytes sha256; made by python -m pipeline.local.relock\n"


def main() -> None:
    """Resolve, download, and write the lock file."""
    from jgo.maven import MavenContext  # only needed by this command

    context = MavenContext(timeout=60)
    broker = dict(_resolve(context, BROKER))
    plugin = {key: each for key, each in _resolve(context, CONNECTOR) if each.artifactId not in CONNECT_GIVES}
    converter = {key: each for key, each in _resolve(context, CONVERTER) if each.artifactId not in CONNECT_GIVES}
    registry = context.project("io.apicurio", "apicurio-registry-app").at_version(APICURIO)
    archive = registry.artifact(classifier="all", packaging="tar.gz")
    lines = [
        _line(use, artifact)
        for use, artifacts in (
            ("kafka", broker.values()),
            ("debezium", plugin.values()),
            ("converter", converter.values()),
            ("registry", [archive]),
        )
        for artifact in artifacts
    ]
    Path(__file__).with_name("jars.lock").write_text(HEAD + "".join(lines))
    sys.stderr.write(f"{len(lines)} files\n")


def _resolve(context: Any, coordinates: list[str]) -> Iterator[tuple[str, Any]]:  # jgo ships no types
    wanted = [context.create_dependency(coordinate) for coordinate in coordinates]
    for dependency in wanted:
        # Without this jgo imports the first one's dependency management over the others' own versions.
        dependency.raw = True
    inputs, transitive = context.resolver.resolve(wanted)
    artifacts = [dependency.artifact for dependency in [*inputs, *transitive]]
    for artifact in sorted(artifacts, key=lambda each: (each.groupId, each.artifactId)):
        yield f"{artifact.groupId}:{artifact.artifactId}", artifact


def _line(use: str, artifact: Any) -> str:  # jgo ships no types
    content = Path(artifact.resolve()).read_bytes()
    coordinate = ":".join(
        (artifact.groupId, artifact.artifactId, artifact.version, artifact.classifier, artifact.packaging)
    )
    return f"{use} {coordinate} {len(content)} {hashlib.sha256(content).hexdigest()}\n"


if __name__ == "__main__":
    main()
