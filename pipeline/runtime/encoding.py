"""A connector file in, what encodes its records out: in a relay, and in a reconciliation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from pipeline.config import Settings
from pipeline.connect.converters import Converter
from pipeline.connect.file import ConnectorFile
from pipeline.endpoints import registry_address
from pipeline.relay.delivery import Health
from pipeline.relay.encoding import Convert, ConvertedSource, EncodedSource, Source

__all__ = ["converting", "encoding"]

Wrap = Callable[[Source], Source]


def encoding(file: ConnectorFile, settings: Settings, health: Health, ends: ExitStack) -> Wrap:
    """Return what a source is wrapped in where JSON payloads are encoded (``pipeline.payload.encode``).

    ``ends`` closes the registry's connections.
    """
    if not file.encodes:
        return lambda source: source
    from pipeline.registry.client import RegistrySchemas  # 17 MB of memory, which few relays need

    address = registry_address(settings)
    registry = RegistrySchemas(address.url, address.username, address.password)
    ends.callback(registry.close)
    strategy = settings.registry.subject_strategy
    return lambda source: EncodedSource(source, registry, health, strategy=strategy)


def converting(file: ConnectorFile, health: Health, ends: ExitStack) -> Wrap:
    """Return what a source is wrapped in, outside all else that makes records, where a converter is for Avro.

    ``ends`` closes the registries' connections.
    """
    router = file.routers[0]  # converters are the connector's
    key, value = _convert(router.key, "key", ends), _convert(router.value, "value", ends)
    if not key and not value:
        return lambda source: source
    return lambda source: ConvertedSource(source, key, value, health)


def _convert(converter: Converter, of: str, ends: ExitStack) -> Convert | None:
    if (found := converter.avro) is None:
        return None
    from pipeline.connect.avro import AvroWriter
    from pipeline.registry.apicurio import ApicurioSubjects
    from pipeline.registry.subjects import Subjects

    if found.apicurio:
        return AvroWriter(ApicurioSubjects(found.url, found.username, found.password), of, unions=False)
    subjects = Subjects(found.url, found.username, found.password)
    ends.callback(subjects.close)
    return AvroWriter(subjects, of, unions=True)
