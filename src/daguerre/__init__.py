"""Daguerre: a self-hosted image-generation server."""

from typing import TYPE_CHECKING, Any

from daguerre.version import __version__

if TYPE_CHECKING:
    from daguerre.client import AsyncClient, Client
    from daguerre.engine import Engine
    from daguerre.recipe import Draft, Recipe
    from daguerre.studio import Studio

__all__ = ["AsyncClient", "Client", "Draft", "Engine", "Recipe", "Studio", "__version__"]

_HOMES = {
    "AsyncClient": "daguerre.client",
    "Client": "daguerre.client",
    "Draft": "daguerre.recipe",
    "Engine": "daguerre.engine",
    "Recipe": "daguerre.recipe",
    "Studio": "daguerre.studio",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: the command's port is to be open in well under a second."""
    if name not in _HOMES:
        raise AttributeError(f"module 'daguerre' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
