"""An application in, its handlers at home in Django out: apps are loaded, and no connection is used that is stale.

``install(app)`` stands above the imports of models. What Django does around a request happens around every attempt of
a handler: a connection that is older than CONN_MAX_AGE, or has failed, is closed, and CONN_HEALTH_CHECKS looks at one
that is kept before its first use. Connections in a transaction (a ``TestCase``'s) are let alone. Coroutines, whose
connections are on another thread, say it themselves: ``async with afresh_connections():``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import django
from asgiref.sync import sync_to_async
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from pipeline.declaration import Declarations
from pipeline.errors import ConfigError

__all__ = ["afresh_connections", "fresh_connections", "install"]


def install(app: Declarations) -> None:
    """Load Django's apps where nobody has yet, and put ``fresh_connections`` around the handlers.

    Raises ConfigError where there are no settings, or wrong ones.
    """
    if not apps.ready and not apps.loading:  # loading: it is one of the apps that imports the pipeline's application
        try:
            django.setup()
        except ImproperlyConfigured as error:
            raise ConfigError(f"Django: {error}", remedy="export DJANGO_SETTINGS_MODULE=shop.settings") from error
    app.middleware(fresh_connections)


def fresh_connections(message: object, ctx: object) -> Iterator[None]:
    """Middleware for functions: it runs on their thread, whose connections these are."""
    del message, ctx
    _close_stale()
    try:
        yield
    finally:
        _close_stale()


@asynccontextmanager
async def afresh_connections() -> AsyncIterator[None]:
    """Do the same within a coroutine, for ``sync_to_async`` and what Django's models await; a decorator, too."""
    await sync_to_async(_close_stale)()
    try:
        yield
    finally:
        await sync_to_async(_close_stale)()


def _close_stale() -> None:
    for conn in connections.all(initialized_only=True):
        if not conn.in_atomic_block:
            conn.close_if_unusable_or_obsolete()
