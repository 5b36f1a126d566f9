from __future__ import annotations

from contextlib import closing

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from pipeline.errors import SchemaError
from pipeline.local import Endpoints
from pipeline.registry.client import RegistrySchemas

TEXT = '{"type":"record","name":"R","fields":[{"name":"a","type":"string"}]}'


def client(endpoints: Endpoints, **more: str) -> RegistrySchemas:
    return RegistrySchemas(
        endpoints.registry, endpoints.registry_username, more.get("password", endpoints.registry_password)
    )


def test_a_writers_schema_is_found_by_its_id_and_then_remembered(
    endpoints: Endpoints, registry_client: SchemaRegistryClient, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema_id = registry_client.register_schema(f"{prefix}-value", Schema(TEXT, "AVRO"))
    with closing(client(endpoints)) as schemas:
        assert '"name":"R"' in schemas.text(schema_id).replace(" ", "")
        with monkeypatch.context() as patch:
            patch.setattr(schemas, "_client", None)
            assert '"name":"R"' in schemas.text(schema_id).replace(" ", "")


@pytest.mark.parametrize("what", ["unknown id", "wrong password", "registry down"])
def test_what_the_registry_does_not_tell_now_can_be_asked_again(endpoints: Endpoints, what: str) -> None:
    errors: list[str] = []
    schemas = {
        "unknown id": lambda: client(endpoints),
        "wrong password": lambda: client(endpoints, password="no"),
        "registry down": lambda: RegistrySchemas("http://127.0.0.1:9", on_error=lambda: errors.append(what)),
    }[what]()
    with closing(schemas), pytest.raises(SchemaError) as caught:
        schemas.text(987_654_321)
    assert caught.value.retryable
    assert "no" not in caught.value.what.split()
    assert errors == ([what] if what == "registry down" else [])
