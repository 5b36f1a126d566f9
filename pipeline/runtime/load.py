"""``module:app`` in, the application out, with every message that its module names."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from pipeline.app import Pipeline
from pipeline.errors import ConfigError
from pipeline.event import Event, Job, Message

__all__ = ["load_app"]


def load_app(path: str) -> Pipeline:
    """Import ``module:attribute`` (from the working directory too) and return the Pipeline.

    Message classes that stand in the module, defined or imported there, are registered. Raises ConfigError, naming
    what is missing; errors inside the module itself come through as they are.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ConfigError(f"{path!r} does not name an application", remedy="module:attribute, for example shop:app")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{path}: no module {error.name!r}", remedy="run from the folder that holds it, or install it"
        ) from None
    app = getattr(module, attribute, None)
    if not isinstance(app, Pipeline):
        found = ", ".join(name for name, value in vars(module).items() if isinstance(value, Pipeline)) or "none"
        raise ConfigError(f"{path}: {attribute!r} is not a Pipeline", remedy=f"Pipelines in {module_name}: {found}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Message) and value not in {Message, Event, Job}:
            app.register(*([] if value.__pydantic_generic_metadata__["parameters"] else [value]))  # Changed[T] is none
    return app
