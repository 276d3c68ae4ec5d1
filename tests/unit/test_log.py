"""The log: one line for each record whatever is in it, and a sink that cannot be written costs lines, never time."""

import json
import logging
import os
import select
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daguerre.settings import Settings
from daguerre.telemetry import logs, sinks
from daguerre.telemetry.lines import JsonLine, TextLine
from daguerre.telemetry.progress import Progress, Step
from daguerre.telemetry.request import request_id

FORGERIES = [
    "a\r\n12:00:00 INFO    job succeeded",
    '"}\n{"level": "critical", "message": "forged"}',
    "a\x1b[2J\x1b]0;title\x07",
    "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg",
    "\u202ereversed\u2066",
    "\x00\x7f\x9b31m",
    "\ud800 alone",
]


def _record(message: str, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("daguerre.test", logging.INFO, "", 0, "%s", (message,), None)
    record.fields = fields
    return record


@pytest.mark.parametrize("text", FORGERIES)
def test_no_text_can_forge_a_line(text: str) -> None:
    """Neither as a message nor as a field, whatever a reader takes for its end; nothing in it steers a terminal."""
    record = _record(f"model {text}", prompt=text, client=text)
    for formatter in (JsonLine(), TextLine()):
        line = formatter.format(record)
        assert len(line.splitlines()) == 1
        assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 or letter == "\u202e" for letter in line)
    assert json.loads(JsonLine().format(record))["prompt"] == text


def test_a_json_line_has_the_request_and_the_traceback() -> None:
    """The request by its name, from wherever in it something is logged; a traceback as a string of the same line."""
    token = request_id.set("mine")
    try:
        int("first\nsecond")
    except ValueError:
        record = logging.LogRecord("daguerre", logging.ERROR, "", 0, "failed", (), sys.exc_info())
        line = JsonLine().format(record)
    finally:
        request_id.reset(token)
    told = json.loads(line)
    assert "\n" not in line
    assert (told["level"], told["message"], told["request_id"]) == ("error", "failed", "mine")
    assert "ValueError: invalid literal" in told["exception"]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own, whose sinks are taken off at the end."""
    made = logging.getLogger("daguerre.test_log")
    made.setLevel(logging.INFO)
    made.propagate = False
    yield made
    for handler in list(made.handlers):
        made.removeHandler(handler)
        handler.close()


def test_a_pipe_that_nobody_reads_costs_lines_not_time(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who logs goes on; what does not fit is counted; the end waits for no reader; one who comes finds lines."""
    monkeypatch.setattr(sinks, "WAITING", 50)
    monkeypatch.setattr(sinks, "FLUSH", 0.2)
    reader, writer = os.pipe()
    sink = sinks.Terminal(JsonLine(), writer)
    logger.addHandler(sink)

    def log() -> None:
        for _ in range(1000):
            logger.info("x" * 1000)

    logging_thread = threading.Thread(target=log, daemon=True)
    logging_thread.start()
    logging_thread.join(30)
    assert not logging_thread.is_alive()
    assert sink.dropped > 500
    assert select.select([reader], [], [], 10)[0]
    sink.close()
    os.set_blocking(reader, False)
    first = os.read(reader, 100_000).split(b"\n")[0]
    assert json.loads(first)["message"] == "x" * 1000
    os.close(reader)
    os.close(writer)


def test_a_full_disk_costs_lines_and_is_told_by_the_other_sink(
    logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, not for every line; when there is room again, lines are written again."""
    path = tmp_path / "logs" / "daguerre.log"
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    sink = sinks.LogFile(JsonLine(), path)
    told: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(sinks.__name__).addHandler(listener)
    logger.addHandler(sink)
    for number in range(3):
        logger.info("%d", number)
    _wait_for(lambda: sink.dropped == 3)
    path.unlink()
    logger.info("again")
    _wait_for(lambda: path.exists() and path.read_text().count("again") == 1)
    logging.getLogger(sinks.__name__).removeHandler(listener)
    assert told == ["log lines cannot be written to daguerre.log: No space left on device"]
    assert json.loads(path.read_text())["message"] == "again"


def test_a_large_file_is_put_aside(logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few old ones are kept, in their order, and no line is lost between two of them."""
    monkeypatch.setattr(sinks, "FILE_BYTES", 2000)
    monkeypatch.setattr(sinks, "FILES", 3)
    path = tmp_path / "new folder" / "daguerre.log"
    sink = sinks.LogFile(JsonLine(), path)
    logger.addHandler(sink)
    for number in range(40):
        logger.info("%d", number)
    sink.close()
    found = [name for name in (f"{path}.2", f"{path}.1", str(path)) if Path(name).exists()]
    numbers = [int(json.loads(line)["message"]) for name in found for line in Path(name).read_text().splitlines()]
    assert numbers == list(range(numbers[0], 40))
    assert len(found) >= 2
    assert not stat.S_IMODE(path.stat().st_mode) & stat.S_IROTH
    assert not Path(f"{path}.3").exists()


def _wait_for(holds: "object") -> None:
    end = time.monotonic() + 10
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_progress_stands_below_the_lines() -> None:
    """Each running job has a line, cut to the terminal; it is taken off before the next line is written."""
    progress = Progress()
    progress.show("0190-12345678", Step("m\x1b[2J", 5, 10, 2.0))
    progress.show("0190-87654321", Step("model" * 100, 10, 10, 2.0))
    drawn = progress.draw(60, 24)
    assert [line[:8] for line in drawn.splitlines()] == ["12345678", "87654321"]
    assert "█" * 12 + "░" * 12 + " 5/10" in drawn
    assert "\x1b" not in drawn
    assert max(map(len, drawn.splitlines())) < 60
    assert progress.erase() == "\x1b[2A\r\x1b[J"
    assert progress.erase() == ""
    progress.hide("0190-12345678")
    assert progress.has_changed
    assert progress.draw(60, 24).count("\n") == 1


def test_the_last_words_of_a_process_do_not_wait_for_a_reader() -> None:
    """A process that ends itself ends, with its code, although its standard error is a full pipe."""
    code = """
import logging
from daguerre import cli
from daguerre.settings import Settings
from daguerre.telemetry import logs
log = logs.start(Settings())
for _ in range(3000):
    logging.getLogger("daguerre").info("x" * 1000)
cli._leave(log, "a step has taken too long")
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    assert process.wait(30) == 70
    assert process.stderr is not None
    process.stderr.close()


def test_the_last_words_tell_what_every_thread_was_at() -> None:
    """Its stacks are one string of one line for a program, and lines for a person."""
    code = """
from daguerre import cli
from daguerre.settings import Settings
from daguerre.telemetry import logs
cli._leave(logs.start(Settings(log_format="{}")), "a step has taken too long")
"""
    for form in ("json", "text"):
        command = [sys.executable, "-c", code.format(form)]
        told = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=30).stderr
        assert "a step has taken too long; leaving with code 70" in told
        stacks = json.loads(told)["stacks"] if form == "json" else told
        assert '", line ' in stacks
        assert "in _leave" in stacks


def test_closed_descriptors_are_opened(tmp_path: Path) -> None:
    """A process started without standard error opens nothing in its place: what is printed would end up there."""
    code = f"""
import os
from daguerre.settings import Settings
from daguerre.telemetry import logs
logs.start(Settings(log_dir=__import__("pathlib").Path({str(tmp_path)!r})))
print(os.open({str(tmp_path / "database")!r}, os.O_CREAT | os.O_RDWR))
"""
    (tmp_path / "script.py").write_text(code)
    command = ["/bin/sh", "-c", 'exec "$0" "$1" 2>&-', sys.executable, str(tmp_path / "script.py")]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=True).stdout
    assert int(told) > 2


@pytest.mark.parametrize(
    ("environ", "level", "folder"),
    [
        ({"LOG_LEVEL": "WARNING", "LOG_DIR": "/logs"}, "warning", Path("/logs")),
        ({"LOG_LEVEL": "error", "DAGUERRE_LOG_LEVEL": "debug", "DAGUERRE_LOG_DIR": "/mine"}, "debug", Path("/mine")),
        ({"LOG_LEVEL": "", "LOG_DIR": ""}, "info", None),
    ],
)
def test_the_common_variables_are_heard(environ: dict[str, str], level: str, folder: Path | None) -> None:
    """LOG_LEVEL and LOG_DIR as containers set them; one with our own prefix wins."""
    from daguerre import settings

    found, origins = settings.load({}, environ)
    assert (found.log_level, found.log_dir) == (level, folder)
    assert origins["log_level"] == ("default" if level == "info" else "environment")


def test_where_lines_go_follows_the_settings(tmp_path: Path) -> None:
    """JSON for a pipe, text where that is asked for; the file is JSON but for text."""
    for form, is_json in (("auto", True), ("json", True), ("text", False)):
        code = f"""
import logging, pathlib
from daguerre.settings import Settings
from daguerre.telemetry import logs
log = logs.start(Settings(log_format="{form}", log_dir=pathlib.Path({str(tmp_path)!r}) / "{form}"))
logging.getLogger("daguerre").warning("hello")
log.close()
"""
        told = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=30).stderr
        written = (tmp_path / form / logs.FILE).read_text()
        assert told == written
        assert told.startswith("{") == is_json
        assert "hello" in told


def test_a_record_that_cannot_be_formatted_is_dropped(tmp_path: Path) -> None:
    """Whoever logs it does not hear of it."""
    sink = sinks.LogFile(JsonLine(), tmp_path / "daguerre.log")
    sink.handle(logging.LogRecord("daguerre", logging.INFO, "", 0, "%d", ("no number",), None))
    assert sink.dropped == 1
    sink.close()


def test_settings_name_the_log() -> None:
    """The defaults: JSON or text by itself, no file, no prompts."""
    defaults = Settings()
    assert (defaults.log_format, defaults.log_dir, defaults.log_prompts) == ("auto", None, False)
