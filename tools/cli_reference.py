"""Writes docs/cli.md from the command itself: python tools/cli_reference.py"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from daguerre import cli

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# The command

This page is written by `tools/cli_reference.py` from the command itself; `daguerre COMMAND --help` says the same. Exit
codes: 0 done, 1 failed, 2 wrong use, 70 a device that hangs (a supervisor starts a new process). What has no default
here follows from the [settings](settings.md) or from the model.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_of(typer.main.get_command(cli.app), "daguerre")])


def _of(command: Any, name: str) -> Iterator[str]:
    for child, found in sorted(getattr(command, "commands", {}).items()):
        if getattr(found, "commands", None):
            yield from _of(found, f"{name} {child}")
        else:
            yield from _section(found, f"{name} {child}")


def _section(command: Any, name: str) -> Iterator[str]:
    arguments = [found for found in command.params if found.param_type_name == "argument"]
    options = [found for found in command.params if found.param_type_name == "option"]
    usage = " ".join([name, *(str(found.name).upper() for found in arguments)])
    yield f"## `{usage}{' [OPTIONS]' if options else ''}`\n"
    yield f"{command.help}\n"
    rows = [*(_row(str(found.name).upper(), found) for found in arguments), *(_row(_spelt(o), o) for o in options)]
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows, ""])


def _spelt(option: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {str(option.name).upper()}"


def _row(name: str, parameter: Any) -> str:
    default = "" if parameter.default in (None, False, ...) or parameter.required else f" Default: {parameter.default}."
    return f"| `{name}` | {parameter.help or ''}{default} |"


if __name__ == "__main__":
    PAGE.write_text(page())
