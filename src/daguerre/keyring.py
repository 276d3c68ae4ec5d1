"""Owns the keys command: making API keys, listing and revoking them, while the server runs or while it does not."""

import contextlib
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from daguerre import settings as configuration
from daguerre.auth import keys
from daguerre.errors import SettingsError
from daguerre.principal import SCOPES, Scope
from daguerre.store.db import Database
from daguerre.store.keys import KeyRow, KeyRows

app = typer.Typer(no_args_is_help=True, help="API keys: who may use the server, and for what.")

Config = Annotated[Path | None, typer.Option(help="A daguerre.toml; the one in this folder is the default.")]

DAY = 24 * 3600.0
NAME_LENGTH = 64


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose it is; keys of one name see the same jobs.")],
    scope: Annotated[
        list[str] | None, typer.Option(help=f"What it allows: {', '.join(SCOPES)}; may be given again.")
    ] = None,
    days: Annotated[float | None, typer.Option(help="Days after which it expires.", min=0)] = None,
    config: Config = None,
) -> None:
    """Make a key and print it: this once, since only its digest is kept."""
    if not name.isprintable() or not 0 < len(name) <= NAME_LENGTH:
        raise SettingsError(f"a name has 1 to {NAME_LENGTH} printable characters")
    now = time.time()
    row, key = keys.make(name, _scopes(scope or ["generate"]), None if days is None else now + days * DAY, now)
    with _rows(config) as rows:
        rows.add(row).result()
    print(
        f"{row.id}: {', '.join(row.scopes)}, {_until(row)}; this is the only time that the key is shown",
        file=sys.stderr,
    )
    print(key)


@app.command("list")
def show(config: Config = None) -> None:
    """List the keys; never the keys themselves."""
    with _rows(config) as rows:
        for row in rows.all():
            used = "never used" if row.last_used_at is None else f"last used {_moment(row.last_used_at)}"
            print(f"{row.id}  {row.name:<20} {','.join(row.scopes):<24} {_until(row)}, {used}")


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="The id of a key, or the name that keys have.")], config: Config = None
) -> None:
    """Revoke a key; a running server refuses it from the next request on."""
    with _rows(config) as rows:
        count = rows.revoke(key, time.time()).result()
    if not count:
        raise SettingsError(f"there is no key {key!r} that is not revoked")
    print(f"{count} revoked", file=sys.stderr)


@contextlib.contextmanager
def _rows(config: Path | None) -> Iterator[KeyRows]:
    settings, _ = configuration.load({}, config=config)
    database = Database(settings.data / "daguerre.db", is_guest=True)
    try:
        yield KeyRows(database)
    finally:
        database.close()


def _scopes(names: list[str]) -> list[Scope]:
    unknown = [name for name in names if name not in SCOPES]
    if unknown:
        raise SettingsError(f"unknown scope {unknown[0]!r}; known are: {', '.join(SCOPES)}")
    return [scope for scope in SCOPES if scope in names]


def _until(row: KeyRow) -> str:
    if row.revoked_at is not None:
        return f"revoked {_moment(row.revoked_at)}"
    if row.expires_at is None:
        return "does not expire"
    return f"{'expired' if row.expires_at <= time.time() else 'expires'} {_moment(row.expires_at)}"


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
