"""References in connector files: what Kafka's ConfigProviders put in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.connect.references import resolve
from pipeline.errors import ConfigError

PROPERTIES = r"""
# key=comment
! key=comment
key=first
  key : a = b\tc
colon:value
spaced value
nothing
long = one \
       two
even=back\\
escaped\ key\=x=\u00fc\:
key=newest\u0020
"""


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ("${env:NAME}", "from the environment"),
        ("a${env:NAME}-${env:NAME}", "afrom the environment-from the environment"),
        ("${file:F:key}", "newest "),
        ("${file:F:colon}", "value"),
        ("${file:F:spaced}", "value"),
        ("${file:F:nothing}", ""),
        ("${file:F:long}", "one two"),
        ("${file:F:even}", "back\\"),
        ("${file:F:escaped key=x}", "ü:"),
        ("${directory:D:password}", "p w\n"),
        ("${routedByValue} $ ${}", "${routedByValue} $ ${}"),
    ],
)
def test_references_are_replaced(tmp_path: Path, reference: str, value: str) -> None:
    (tmp_path / "f.properties").write_text(PROPERTIES)
    (tmp_path / "password").write_text("p w\n")
    text = reference.replace(":F:", f":{tmp_path}/f.properties:").replace(":D:", f":{tmp_path}:")
    assert resolve(text, "here", {"NAME": "from the environment"}) == value


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("${env:NOWHERE}", "NOWHERE is not set"),
        ("${file:F:gone}", "has no key 'gone'"),
        ("${file:/nowhere:key}", "/nowhere"),
        ("${file:key}", "names no key"),
        ("${directory:D:gone}", "gone"),
        ("${directory:D:../f.properties}", "is not the name of a file"),
        ("${directory:D:binary}", "is not UTF-8"),
        ("${vault:a:b}", "unknown provider 'vault'"),
    ],
)
def test_what_is_missing_is_named_with_its_key(tmp_path: Path, reference: str, told: str) -> None:
    (tmp_path / "f.properties").write_text(PROPERTIES)
    (tmp_path / "binary").write_bytes(b"\xff")
    text = reference.replace(":F:", f":{tmp_path}/f.properties:").replace(":D:", f":{tmp_path}:")
    with pytest.raises(ConfigError, match="here") as raised:
        resolve(text, "here", {})
    assert told in str(raised.value)
    assert raised.value.remedy
