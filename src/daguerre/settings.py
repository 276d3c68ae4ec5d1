"""Owns the settings: one frozen tree from daguerre.toml, the environment and the command line."""

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from daguerre.errors import SettingsError

PREFIX = "DAGUERRE_"
CONFIG_FILE = Path("daguerre.toml")

Seconds = Annotated[float, Meta(gt=0)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. A key is the key in daguerre.toml, and in upper case after DAGUERRE_ a variable."""

    #: Address to listen on. Anything but loopback needs authentication or --insecure.
    host: str = "127.0.0.1"
    #: Port to listen on; 0 takes a free one.
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    #: Host names that requests may name beside the address listened on; "*" allows all.
    allowed_hosts: tuple[str, ...] = ("localhost",)
    #: Model that serves requests which name none.
    default_model: str = "demo-xl"
    #: auto takes CUDA, then Apple's MPS, then the CPU.
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    #: auto is bfloat16 on capable cards, float16 on older ones, float32 on the CPU.
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    #: regional compiles a denoiser's repeated blocks, full all of it: a slower start, then faster pictures.
    compile: Literal["off", "regional", "full"] = "off"
    #: Whether UNet and VAE keep channels innermost, which most cards like better.
    channels_last: bool = False
    #: Processor threads that paint on the CPU; 0 leaves one core of three or more to the rest of the server.
    threads: Annotated[int, Meta(ge=0)] = 0
    #: Folder of what the server keeps for itself.
    data: Path = Path("data")
    #: Folder of models and of catalog.toml.
    weights: Path = Path("weights")
    #: Bytes of the device that weights may take, the others waiting in host memory; 0: four fifths of it.
    device_memory: Annotated[int, Meta(ge=0)] = 0
    #: Bytes of host memory that weights may take, the others waiting on disk; 0: seven tenths of it.
    host_memory: Annotated[int, Meta(ge=0)] = 0
    #: Models that stay where they are once they are loaded.
    pinned_models: tuple[str, ...] = ()
    #: Where models are pulled from: the Hub, or a mirror of it.
    hub_endpoint: Annotated[str, Meta(pattern=r"^https?://[^\s@]+$")] = "https://huggingface.co"
    #: Whether POST /v1/models/load may pull a model of the catalogue that is not on this machine.
    allow_pull: bool = False
    #: Folder that finished pictures are written to.
    outputs: Path = Path("outputs")
    #: Jobs that may wait; more are refused with 503.
    queue_limit: Annotated[int, Meta(ge=1)] = 100
    #: Pictures under way at once; they share forwards of the denoiser where they can.
    max_runs: Annotated[int, Meta(ge=1)] = 16
    #: A job that has waited and run this long is ended with 504.
    job_timeout: Seconds = 600.0
    #: A job that has not begun after this long is ended with 504.
    wait_timeout: Seconds = 600.0
    #: A job that has run this long is ended with 504.
    run_timeout: Seconds = 600.0
    #: A step that takes longer means that the device hangs: the process ends with code 70, for a supervisor to restart.
    step_timeout: Seconds = 600.0
    #: New jobs are refused while the disk of the outputs has less room than this, in bytes.
    least_disk: Annotated[int, Meta(ge=0)] = 256 * 1024 * 1024
    #: queued answers POST /generate with 202 and the job, as if each client had asked for that.
    generate_default: Literal["sync", "queued"] = "sync"
    #: How long a finished job's result is kept; its picture files stay.
    result_ttl: Seconds = 3600.0
    #: Largest request body, in bytes.
    body_limit: Annotated[int, Meta(ge=1024)] = 32 * 1024 * 1024
    #: A request that has not arrived whole after this is answered 408 and its connection closed.
    receive_timeout: Seconds = 30.0
    #: Connections open at once; more are closed at once.
    connection_limit: Annotated[int, Meta(ge=1)] = 10_000
    #: After SIGTERM, running jobs have this long to finish.
    grace_timeout: Seconds = 20.0
    #: Ways to authenticate; none is for loopback only.
    auth: Literal["none"] = "none"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def cpu_threads(self) -> int:
        """How many threads paint on the CPU."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.threads or (cores - 1 if cores > 2 else cores)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ, config: Path | None = None
) -> tuple[Settings, dict[str, str]]:
    """The settings in force and where each came from: a flag, over the environment, over the file, over the default.

    Raises:
        SettingsError: a key is unknown or a value cannot be; the message names the key and its source.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(Settings.__struct_fields__, "default")
    for source, layer in (
        *_file_layers(config, environ),
        ("environment", _from_environ(environ)),
        ("command line", {key: value for key, value in flags.items() if value is not None}),
    ):
        for key, value in layer.items():
            values[key] = _checked(key, value, source)
            origins[key] = source
    return Settings(**values), origins


def _file_layers(config: Path | None, environ: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    named = config or (Path(environ[PREFIX + "CONFIG"]) if environ.get(PREFIX + "CONFIG") else None)
    path = named or CONFIG_FILE
    if named is None and not path.exists():
        return []
    try:
        return [(path.name, tomllib.loads(path.read_text()))]
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: not TOML: {error}") from None


#: Variables that containers commonly set, by the setting that each means; one with our own prefix wins.
COMMON = {"MODEL_CACHE_DIR": "weights", "DEFAULT_MODEL_ID": "default_model"}


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    """The DAGUERRE_* variables by key; lists are joined by commas."""
    found: dict[str, Any] = {key: environ[name] for name, key in COMMON.items() if environ.get(name)}
    for name, value in environ.items():
        if name.startswith(PREFIX) and name != PREFIX + "CONFIG":
            found[name.removeprefix(PREFIX).lower()] = value
    return found


_FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}


def _checked(key: str, value: Any, source: str) -> Any:
    if key not in _FIELDS:
        raise SettingsError(f"unknown setting {key!r} ({source}); known are: {', '.join(_FIELDS)}")
    kind = _FIELDS[key].type
    if isinstance(value, str) and kind == tuple[str, ...]:
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        # Text from the environment and the command line may spell numbers; a TOML file has real ones.
        return msgspec.convert(value, kind, strict=source not in ("environment", "command line"), dec_hook=_path)
    except msgspec.ValidationError as error:
        raise SettingsError(f"setting {key!r} ({source}): {error}") from None


def _path(kind: type, value: Any) -> Any:
    if kind is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    raise msgspec.ValidationError(f"expected a path, got {value!r}")
