"""Owns the command: serve, generate, models, loras, pull, keys, doctor, backup, restore, config."""

import base64
import contextlib
import faulthandler
import functools
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from msgspec import structs

from daguerre import keyring, recipe
from daguerre import settings as configuration
from daguerre.errors import DaguerreError, InvalidRecipe, SettingsError
from daguerre.settings import API_KEY, Settings

if TYPE_CHECKING:
    from daguerre.telemetry.logs import Logs

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

app.add_typer(keyring.app, name="keys")

FAILED, WRONG_USE, HUNG = 1, 2, 70

Config = Annotated[Path | None, typer.Option(help="A daguerre.toml; the one in this folder is the default.")]
ModelName = Annotated[str | None, typer.Option("--model", help="A model of the catalogue.")]
Device = Annotated[str | None, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")]
Weights = Annotated[Path | None, typer.Option(help="The folder of models.")]
Outputs = Annotated[Path | None, typer.Option(help="The folder for pictures.")]
Data = Annotated[Path | None, typer.Option(help="The folder of what the server keeps for itself.")]


def main() -> None:
    """Runs the command."""
    with _told():
        app()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """A wrong setting is told in one line, without a traceback."""
    try:
        yield
    except (SettingsError, InvalidRecipe) as error:
        _stop(str(error), WRONG_USE)
    except DaguerreError as error:
        _stop(str(error), FAILED)


def _stop(message: str, code: int) -> NoReturn:
    print(f"daguerre: {message}", file=sys.stderr)
    raise SystemExit(code)


@app.callback()
def _daguerre() -> None:
    """A self-hosted image-generation server."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    model: ModelName = None,
    device: Device = None,
    weights: Weights = None,
    outputs: Outputs = None,
    config: Config = None,
    insecure: Annotated[bool, typer.Option(help="Serve other machines although nobody has to authenticate.")] = False,
    reload: Annotated[bool, typer.Option(help="Start again at each change of the sources.")] = False,
) -> None:
    """Serve HTTP."""
    flags = _flags(host=host, port=port, default_model=model, device=device, weights=weights, outputs=outputs)
    settings, _ = configuration.load(flags, config=config)
    if not settings.is_loopback and not settings.ways and not insecure:
        _stop(
            f"listening on {settings.host} would let anybody who reaches it use this machine, since auth is none; "
            "set auth, listen on 127.0.0.1, or say --insecure if something in front of Daguerre authenticates",
            WRONG_USE,
        )
    if reload:
        _serve_and_reload(settings)
    else:
        _serve(settings)


def _serve(settings: Settings, sockets: list[Any] | None = None) -> None:
    from daguerre.app import Daguerre
    from daguerre.http.server import make_server
    from daguerre.store import files, lock
    from daguerre.store.db import DATABASE_FILE, Database
    from daguerre.telemetry import logs

    log = logs.start(settings)
    # A thread that computes in Python gives the event loop its turn within a millisecond instead of five.
    sys.setswitchinterval(0.001)
    with contextlib.closing(log), lock.held(settings.data):
        # A start that cannot succeed is to end with its reason alone.
        files.vet(settings.outputs)
        Database(settings.data / DATABASE_FILE).close()
        make_server(Daguerre(settings, functools.partial(_leave, log), log), settings).run(sockets)
    # Jobs, files and sockets have been ended in order. A device call that hangs could still hold the interpreter.
    os._exit(0)


def _serve_once(settings: Settings, sockets: list[Any]) -> None:
    """What a process of its own begins with, until a source has changed."""
    with _told():
        _serve(settings, sockets)


def _leave(log: "Logs", reason: str) -> None:
    """Ends a process that cannot mend itself, with every thread's stack in the log; a supervisor starts a new one."""
    fields = {"stacks": _stacks()}
    logging.getLogger("daguerre").critical("%s; leaving with code %d", reason, HUNG, extra={"fields": fields})
    log.close()
    os._exit(HUNG)


def _stacks() -> str:
    """What every thread is at. By way of a file: written to a pipe that nobody reads, it would hang here."""
    try:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read().decode(errors="replace")
    except OSError:
        return "no room for the threads' stacks"


def _serve_and_reload(settings: Settings) -> None:
    import uvicorn
    from uvicorn.supervisors import ChangeReload

    config = uvicorn.Config(
        "daguerre.app", settings.host, settings.port, reload=True, reload_dirs=[str(Path(__file__).parent)]
    )
    ChangeReload(config, functools.partial(_serve_once, settings), [config.bind_socket()]).run()


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture shows.")],
    negative: Annotated[str | None, typer.Option(help="What it must not show.")] = None,
    model: ModelName = None,
    steps: Annotated[int | None, typer.Option()] = None,
    guidance: Annotated[float | None, typer.Option()] = None,
    size: Annotated[str | None, typer.Option(help="Like 256x256.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    count: Annotated[int, typer.Option()] = 1,
    scheduler: Annotated[str | None, typer.Option()] = None,
    style: Annotated[str | None, typer.Option()] = None,
    lora: Annotated[list[str] | None, typer.Option(help="A LoRA and its weight, like name:0.8; up to four.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much of it is painted anew, 0 to 1.")] = None,
    mask: Annotated[Path | None, typer.Option(help="White is painted anew, black kept.")] = None,
    out: Annotated[Path | None, typer.Option(help="A file, or a folder; else the outputs folder.")] = None,
    device: Device = None,
    weights: Weights = None,
    config: Config = None,
    server: Annotated[str | None, typer.Option(help="A server that is to paint, like http://127.0.0.1:8000.")] = None,
) -> None:
    """Paint here, or at a server, and print where the picture is. DAGUERRE_API_KEY is the key for a server."""
    fields = {
        "prompt": prompt,
        "negative_prompt": negative,
        "steps": steps,
        "guidance_scale": guidance,
        "resolution": size,
        "seed": seed,
        "count": count,
        "scheduler": scheduler,
        "style": style,
        "loras": [_lora(text) for text in lora] if lora else None,
        "image": _base64(image),
        "strength": strength,
        "mask": _base64(mask),
    }
    draft = recipe.parse({name: value for name, value in fields.items() if value is not None})
    settings, _ = configuration.load(_flags(default_model=model, device=device, weights=weights), config=config)
    if server is not None and (device, weights) != (None, None):
        _stop("--device and --weights are for painting here; a server has its own", WRONG_USE)
    with typer.progressbar(length=100, label="loading", file=sys.stderr) as bar:

        def on_progress(stage: str, fraction: float) -> None:
            bar.label = stage
            bar.update(int(100 * fraction) - bar.pos)

        try:
            paths = _paint(draft, out, on_progress, settings, None if server is None else (server, model))
        except OSError as error:
            _stop(f"the picture cannot be written: {error.strerror}", FAILED)
    for path in paths:
        print(path)


def _paint(
    draft: recipe.Draft,
    out: Path | None,
    on_progress: Callable[[str, float], None],
    settings: Settings,
    there: tuple[str, str | None] | None,
) -> list[Path]:
    """Paints here, or at a server with its model of that name."""
    if there is None:
        from daguerre.studio import Studio

        with Studio(settings) as studio:
            return studio.generate(draft, out, on_progress)
    from daguerre import remote
    from daguerre.client import BadAddress, ClientError, InvalidRequest, NotAllowed

    server, model = there
    wanted = draft if model is None else structs.replace(draft, model=model)
    try:
        return remote.generate(server, os.environ.get(API_KEY), wanted, out or settings.outputs, on_progress)
    except ClientError as error:
        hint = f" Put a key into {API_KEY}." if isinstance(error, NotAllowed) and error.status == 401 else ""
        _stop(f"{error}{hint}", WRONG_USE if isinstance(error, BadAddress | InvalidRequest) else FAILED)


def _lora(text: str) -> dict[str, Any]:
    name, colon, weight = text.rpartition(":")
    if not colon:
        return {"name": text}
    try:
        return {"name": name, "weight": float(weight)}
    except ValueError:
        _stop(f"--lora {text}: the weight must be a number, like name:0.8", WRONG_USE)


def _base64(path: Path | None) -> str | None:
    try:
        return None if path is None else base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        _stop(f"{path}: {error.strerror}", WRONG_USE)


@app.command()
def models(weights: Weights = None, config: Config = None) -> None:
    """List the models: those that are here, and those that can be pulled."""
    from daguerre import catalog

    settings, _ = configuration.load(_flags(weights=weights), config=config)
    found = catalog.read(settings.weights, settings.default_model)
    for model in found.models:
        print(f"{model.name:<20} {model.family:<12} {'here' if model.is_here else 'absent':<8} {model.description}")
    for problem in found.problems:
        print(f"daguerre: {problem}", file=sys.stderr)


@app.command()
def loras(weights: Weights = None, config: Config = None) -> None:
    """List the LoRAs that can be used."""
    from daguerre.loras import Loras

    settings, _ = configuration.load(_flags(weights=weights), config=config)
    found = Loras(settings.weights)
    for lora in found.loras:
        words = f"[{', '.join(lora.trigger_words)}] " if lora.trigger_words else ""
        print(f"{lora.name:<20} {lora.family or 'unknown':<12} rank {lora.rank:<5} {words}{lora.description}")
    for problem in found.problems:
        print(f"daguerre: {problem}", file=sys.stderr)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A model or a safety checker of the catalogue.")],
    weights: Weights = None,
    config: Config = None,
    endpoint: Annotated[str | None, typer.Option(help="The Hub, or a mirror of it.")] = None,
    lines: Annotated[bool, typer.Option(help="Progress in lines for a program: bytes there, of how many.")] = False,
) -> None:
    """Fetch a model of the catalogue from the Hub; an interrupted pull goes on where it was."""
    from daguerre import catalog, pull
    from daguerre.safety_checkers import SafetyChecker, SafetyCheckers

    settings, _ = configuration.load(_flags(weights=weights, hub_endpoint=endpoint), config=config)
    found, checkers = catalog.read(settings.weights, settings.default_model), SafetyCheckers(settings.weights)
    model = checkers.find(name) if name in checkers.names else found.find(name)
    if model.is_here:
        print(f"{model.name} is here already")
        return
    with typer.progressbar(length=1, label=model.name, file=sys.stderr) as bar:

        def on_progress(file: str, done: int, total: int) -> None:
            bar.length, bar.label = total, file
            bar.update(done - bar.pos)
            if lines:
                print(done, total, flush=True)

        place, private = (settings.weights, settings.hub_endpoint, on_progress), settings.private_hosts
        if isinstance(model, SafetyChecker):
            pull.pull_checker(model, *place, private)
        else:
            pull.pull(model, found, *place, private)
    print(f"{model.name} is here")


@app.command()
def doctor(config: Config = None) -> None:
    """Tell what is here, what would be slow or refused, and the remedy."""
    from daguerre.doctor import examine

    settings, _ = configuration.load({}, config=config)
    findings = examine(settings)
    for finding in findings:
        print(finding)
    raise SystemExit(FAILED if any(finding.is_bad for finding in findings) else 0)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The archive to write; it must not be there yet.")],
    include_weights: Annotated[bool, typer.Option(help="Models and LoRAs too, which may be many gigabytes.")] = False,
    data: Data = None,
    weights: Weights = None,
    outputs: Outputs = None,
    config: Config = None,
) -> None:
    """Keep jobs, keys, pictures and the catalogue in one file; a server may be running."""
    from daguerre.backup import backup as keep

    settings, _ = configuration.load(_flags(data=data, weights=weights, outputs=outputs), config=config)
    manifest = keep(settings, file, with_weights=include_weights)
    print(f"{file}: {manifest}")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="An archive that backup has written.")],
    force: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    data: Data = None,
    weights: Weights = None,
    outputs: Outputs = None,
    config: Config = None,
) -> None:
    """Put the files of a backup in their places, each checked before; no server may be running."""
    from daguerre.backup import restore as put_back

    settings, _ = configuration.load(_flags(data=data, weights=weights, outputs=outputs), config=config)
    manifest = put_back(settings, file, force=force)
    print(f"{manifest}, from {manifest.created_at}")


@app.command("config")
def show_config(config: Config = None) -> None:
    """Print the settings in force and where each came from."""
    settings, origins = configuration.load({}, config=config)
    for name, origin in origins.items():
        value = getattr(settings, name)
        print(f"{name} = {'(hidden)' if value and name in configuration.SECRETS else value!s}  # {origin}")


def _flags(**flags: Any) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}
