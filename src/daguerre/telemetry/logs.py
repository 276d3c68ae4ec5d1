"""Owns the log of this process: which lines go where, by the settings."""

import contextlib
import logging
import os
import sys
from dataclasses import dataclass

from daguerre.settings import Settings
from daguerre.telemetry.lines import JsonLine, TextLine
from daguerre.telemetry.progress import Progress
from daguerre.telemetry.sinks import LogFile, Sink, Terminal

#: The file in the folder that the settings name.
FILE = "daguerre.log"


@dataclass(frozen=True, slots=True)
class Logs:
    """Where this process's lines go, and the progress that a terminal shows."""

    sinks: tuple[Sink, ...] = ()
    progress: Progress | None = None

    @property
    def dropped(self) -> int:
        """Lines that could not be written."""
        return sum(sink.dropped for sink in self.sinks)

    def close(self) -> None:
        """Writes what waits, as far as that is quick: whoever reads, or does not, cannot hold the end."""
        for sink in self.sinks:
            logging.getLogger().removeHandler(sink)
            sink.close()


def start(settings: Settings) -> Logs:
    """From now on everything that is logged goes where the settings say."""
    _keep_descriptors()
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    is_text = settings.log_format == "text" or (settings.log_format == "auto" and is_terminal)
    progress = Progress() if is_text and is_terminal else None
    sinks: list[Sink] = []
    if sys.stderr is not None:
        sinks.append(Terminal(TextLine() if is_text else JsonLine(), sys.stderr.fileno(), progress))
    if settings.log_dir is not None:
        formatter = TextLine() if settings.log_format == "text" else JsonLine()
        sinks.append(LogFile(formatter, settings.log_dir / FILE))
    logging.basicConfig(level=settings.log_level.upper(), handlers=sinks, force=True)
    logging.captureWarnings(capture=True)
    for name in ("uvicorn", "uvicorn.error", "asyncio", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return Logs(tuple(sinks), progress)


def _keep_descriptors() -> None:
    """Opens those of 0, 1 and 2 that are closed: else the next file, maybe the database, would get what is printed."""
    for descriptor in range(3):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)
