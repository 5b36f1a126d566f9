"""A folder in, real PostgreSQL, Kafka, schema registry and Kafka Connect out, without Docker.

Loopback only, random passwords, all state in the folder; see docs/local-stack.md.
"""

from __future__ import annotations

from pipeline.local.server import ServerStatus
from pipeline.local.stack import Endpoints, LocalStack

__all__ = ["Endpoints", "LocalStack", "ServerStatus"]
