"""Subjects and schema texts in, their ids out, by Apicurio's own API, as its converters register.

Confluent's API on the same registry does not take all that this does, such as a namespace with a hyphen in it.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from http.client import HTTPException
from urllib.parse import quote

from confluent_kafka.schema_registry.error import SchemaRegistryError

from pipeline.errors import SchemaError
from pipeline.registry.errors import translated

__all__ = ["ApicurioSubjects"]

_TIMEOUT_S = 5.0
_UNTOLD = -1  # an error's code where the registry names none


class ApicurioSubjects:
    """The artifacts of the group ``default``, which are the subjects of Confluent's API. ``url`` ends with /v2."""

    def __init__(self, url: str, username: str | None = None, password: str | None = None) -> None:
        self._url = url
        self._headers = {"Content-Type": "application/json", "X-Registry-ArtifactType": "AVRO"}
        if username:
            user = base64.b64encode(f"{username}:{password or ''}".encode()).decode()
            self._headers["Authorization"] = f"Basic {user}"

    def register(self, subject: str, text: str) -> int:
        """Register a text, if need be as a new version, and return its content's id, which Confluent's API has too.

        Raises SchemaError, retryable while the registry cannot be asked.
        """
        request = urllib.request.Request(  # noqa: S310 — the address is checked where the file is read
            f"{self._url}/groups/default/artifacts?ifExists=RETURN_OR_UPDATE",
            text.encode(errors="replace"),
            {**self._headers, "X-Registry-ArtifactId": quote(subject, safe="")},
            method="POST",
        )
        what = f"register {subject}"
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 — as above
                return int(json.load(answer)["contentId"])
        except urllib.error.HTTPError as error:
            with error:
                raise translated(_refusal(error), what) from error
        except (OSError, HTTPException) as error:
            why = getattr(error, "reason", error) or type(error).__name__
            raise SchemaError(
                f"registry: {what}: {why}", remedy="is the registry up, and its URL in the file right?", retryable=True
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise translated(error, what) from error


def _refusal(error: urllib.error.HTTPError) -> SchemaRegistryError:
    """Return what the registry says as Confluent's client has it."""
    try:
        told = json.loads(error.read())
        return SchemaRegistryError(error.code, int(told["error_code"]), str(told["message"]))
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        return SchemaRegistryError(error.code, _UNTOLD, "")
