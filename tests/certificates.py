"""Certificates for servers of tests that speak TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline.local.ports import LOOPBACK

__all__ = ["certificates"]


def certificates(folder: Path) -> None:
    """Write a CA's certificate, and PEM files with key and certificate of a server, ``broker``, and of a ``client``.

    The client's key has the password ``k3y``, its PKCS12 store ``st0re``.
    """

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-days", "2")
    openssl(*new, "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", f"subjectAltName=IP:{LOOPBACK}")
    for name, key in (("broker", ("-nodes",)), ("client", ("-passout", "pass:k3y"))):
        openssl(*new, *signed, *key, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}")
        (folder / f"{name}.pem").write_text((folder / f"{name}.key").read_text() + (folder / f"{name}.crt").read_text())
    store = ("pkcs12", "-export", "-in", "client.pem", "-passin", "pass:k3y", "-passout", "pass:st0re")
    openssl(*store, "-out", "client.p12")
