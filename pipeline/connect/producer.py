"""``producer.override.*`` of a connector file in, librdkafka settings out: JAAS and key stores translated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.connect.options import PRODUCER
from pipeline.errors import ConfigError

__all__ = ["translate"]

_PREFIX = "producer.override."
_STORES = {  # Java's key → (librdkafka's for PEM text, for a PEM file, for a PKCS#12 file)
    "ssl.truststore.location": ("ssl.ca.location", ""),
    "ssl.keystore.location": ("ssl.key.location", "ssl.keystore.location"),
    "ssl.truststore.certificates": ("ssl.ca.pem", ""),
    "ssl.keystore.certificate.chain": ("ssl.certificate.pem", ""),
    "ssl.keystore.key": ("ssl.key.pem", ""),
    "ssl.keystore.password": ("ssl.keystore.password", "ssl.keystore.password"),
}
_JAAS = re.compile(r"""(\w+)\s*=\s*(?:(["'])((?:\\.|(?!\2)[^\\])*)\2|([^\s"';]+))\s*(?=;|\s|$)""", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:([0-3]?[0-7]{1,2})|(.))", re.DOTALL)
_CONTROLS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def translate(settings: Mapping[str, str], path: Path, notice: Callable[[str], None]) -> dict[str, str]:
    """Translate; what has no counterpart and no effect goes to ``notice``. Raises ConfigError for any other key."""
    made: dict[str, str] = {}
    for full, value in settings.items():
        key = full.removeprefix(_PREFIX)
        if key == "sasl.jaas.config":
            made |= _jaas(value, f"{path}: {full}")
        elif key in _STORES:
            made |= _store(key, value, settings, f"{path}: {full}")
        elif key.endswith("store.type") or key == "ssl.truststore.password":
            continue  # used together with their location
        elif key not in PRODUCER:
            raise ConfigError(
                f"{path}: {full}: is not honoured by the native relay",
                remedy="remove it, or pass librdkafka's counterpart with -X key=value",
            )
        elif (name := PRODUCER[key]) is None:
            notice(f"{full} has no meaning in the native relay: nothing expires, and all replicas acknowledge")
        elif key == "ssl.endpoint.identification.algorithm":
            made[name] = value or "none"
        else:
            made[name] = value
    return made


def _jaas(text: str, where: str) -> dict[str, str]:
    found = {name: _plain(quoted) if quote else bare for name, quote, quoted, bare in _JAAS.findall(text)}
    if {"username", "password"} - found.keys():
        raise ConfigError(f"{where}: has no username and password", remedy="use a Plain or Scram login module")
    return {"sasl.username": found["username"], "sasl.password": found["password"]}


def _plain(quoted: str) -> str:
    """Return what Java's tokenizer reads within quotes."""

    def value(found: re.Match[str]) -> str:
        return chr(int(found[1], 8)) if found[1] else _CONTROLS.get(found[2], found[2])

    return _ESCAPE.sub(value, quoted)


def _store(key: str, value: str, settings: Mapping[str, str], where: str) -> dict[str, str]:
    pem, pkcs12 = _STORES[key]
    if not key.endswith("location"):
        return {pem: value}
    kind = settings.get(f"{_PREFIX}{key.removesuffix('location')}type", "JKS").upper()
    if kind == "PEM":
        found = {pem: value}
        return found | ({"ssl.certificate.location": value} if pem == "ssl.key.location" else {})
    if kind == "PKCS12" and pkcs12:
        return {pkcs12: value}
    raise ConfigError(
        f"{where}: a store of type {kind} cannot be read", remedy="convert it to PEM, and say so in its type"
    )
