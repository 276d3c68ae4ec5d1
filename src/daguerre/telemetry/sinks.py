"""Owns where log lines go. Whoever logs never waits: a pipe that nobody reads or a full disk costs lines only."""

import abc
import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from queue import Empty, Full, Queue

from daguerre.telemetry.progress import Progress

log = logging.getLogger(__name__)

#: Lines that wait to be written; more are dropped and counted.
WAITING = 4096
#: Seconds in which what waits can still be written when the server ends.
FLUSH = 1.0
#: Bytes of a log file, and how many older ones are kept.
FILE_BYTES, FILES = 16 * 1024 * 1024, 5
#: Seconds between two looks at the progress of jobs.
TICK = 0.2


class Sink(logging.Handler, abc.ABC):
    """Formats a line on the thread that logs it, so that nothing of the record is kept, and writes it on its own."""

    tick: float | None = None

    def __init__(self, name: str, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.set_name(name)
        self.dropped = 0
        self._is_failing = False
        self._lines: Queue[str | None] = Queue(WAITING)
        self._thread = threading.Thread(target=self._write_for_ever, name="daguerre-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hands a line over; never waits."""
        try:
            self._lines.put_nowait(self.format(record))
        except (Full, TypeError, ValueError):
            self.dropped += 1

    def close(self) -> None:
        """Writes what waits, as far as that is quick."""
        with contextlib.suppress(Full):
            self._lines.put(None, timeout=FLUSH)
        self._thread.join(FLUSH)
        super().close()

    def _write_for_ever(self) -> None:
        while True:
            try:
                line = self._lines.get(timeout=self.tick)
            except Empty:
                self._try(self.rest)
                continue
            if line is None:
                self._try(self.end)
                return
            self._try(self.write, line)

    def _try(self, write: Callable[..., None], *line: str) -> None:
        try:
            write(*line)
            self._is_failing = False
        except (OSError, ValueError) as error:  # full, closed, gone
            self.dropped += 1
            if not self._is_failing:
                self._is_failing = True  # told once, by the other sinks: this line, too, comes back here
                log.warning("log lines cannot be written to %s: %s", self.name, getattr(error, "strerror", error))

    @abc.abstractmethod
    def write(self, line: str) -> None:
        """Writes one.

        Raises:
            OSError, ValueError: it could not be written.
        """

    def rest(self) -> None:
        """Called when there was no line for a tick."""

    def end(self) -> None:
        """Called after the last line."""


class Terminal(Sink):
    """Standard error, or another descriptor; on a terminal, the progress of running jobs stands below the last line."""

    def __init__(self, formatter: logging.Formatter, descriptor: int, progress: Progress | None = None) -> None:
        self._descriptor = descriptor
        self._progress = progress
        self.tick = None if progress is None else TICK
        super().__init__("standard error", formatter)

    def write(self, line: str) -> None:
        """Writes a line, and the progress again below it."""
        above, below = ("", "") if self._progress is None else (self._progress.erase(), self._drawn())
        self._put(f"{above}{line}\n{below}")

    def rest(self) -> None:
        """Shows what has changed meanwhile."""
        if self._progress is not None and self._progress.has_changed:
            self._put(self._progress.erase() + self._drawn())

    def end(self) -> None:
        """Leaves a clean terminal."""
        if self._progress is not None:
            self._put(self._progress.erase())

    def _drawn(self) -> str:
        assert self._progress is not None
        width, height = os.get_terminal_size(self._descriptor)
        return self._progress.draw(width or 80, height or 24)  # some terminals do not know their size

    def _put(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(self._descriptor, data) :]


class LogFile(Sink):
    """A file that is put aside when it has grown large; one that cannot be written is tried again with every line."""

    def __init__(self, formatter: logging.Formatter, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        super().__init__(path.name, formatter)

    def write(self, line: str) -> None:
        """Appends a line."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self._path, "a", opener=_open_for_us)
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[self._file.write(data) :]
            if self._file.tell() > FILE_BYTES:
                self.end()
                self._put_aside()
        except OSError:
            self.end()
            raise

    def end(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _put_aside(self) -> None:
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{number}") for number in range(1, FILES))]
        for newer, older in reversed(list(itertools.pairwise(names))):
            if newer.exists():
                newer.replace(older)


def _open_for_us(path: str, flags: int) -> int:
    """Clients' addresses, and prompts where they are logged, are not for everybody on this machine."""
    return os.open(path, flags, 0o640)
