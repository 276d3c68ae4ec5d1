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
#: Settings that are never shown.
SECRETS = frozenset({"jwt_secret", "webhook_secret"})
CONFIG_FILE = Path("daguerre.toml")
#: The key that the command shows to a server. It is no setting: settings are printed.
API_KEY = PREFIX + "API_KEY"

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
    #: Of models that the device has no room for as a whole, the text encoders wait in host memory, each part does while
    #: another computes (model), or the denoiser's layers do, too (group); auto goes by their sizes.
    offload: Literal["auto", "none", "encoders", "model", "group"] = "auto"
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
    #: Every so many seconds, the steps that a queued job's pictures have taken are written to the data folder: a server
    #: that dies or is restarted goes on from there; 0: they begin anew. What is painted sooner writes nothing.
    spill_every: Annotated[float, Meta(ge=0)] = 10.0
    #: New jobs are refused while the disk of the outputs has less room than this, in bytes.
    least_disk: Annotated[int, Meta(ge=0)] = 256 * 1024 * 1024
    #: queued answers POST /generate with 202 and the job, as if each client had asked for that.
    generate_default: Literal["sync", "queued"] = "sync"
    #: How long a finished job's result is kept; its picture files stay, or go by files_ttl.
    result_ttl: Seconds = 3600.0
    #: How long picture files stay; 0: until somebody removes them.
    files_ttl: Annotated[float, Meta(ge=0)] = 0.0
    #: What webhooks are signed with, at least 16 characters; without it there are none.
    webhook_secret: Annotated[str, Meta(pattern=r"^(.{16,})?$")] = ""
    #: How often a webhook is tried.
    webhook_tries: Annotated[int, Meta(ge=1, le=100)] = 10
    #: Before its second try; each later wait is three times as long, an hour at most.
    webhook_wait: Seconds = 2.0
    #: How long one try may take in all.
    webhook_timeout: Seconds = 10.0
    #: File of rules that prompts are checked with, in TOML; empty: prompts are not checked.
    moderation_rules: str = ""
    #: What becomes of prompts while that file cannot be used: closed refuses them, open paints them unchecked.
    moderation_fails: Literal["closed", "open"] = "closed"
    #: Safety checker of the catalogue that looks at every finished picture; empty: none does.
    safety_checker: str = ""
    #: What becomes of pictures in which it sees something: block fails the job, blur blurs them, flag says so of them.
    safety_checker_action: Literal["block", "blur", "flag"] = "block"
    #: What becomes of pictures while it cannot be used: closed fails their jobs, open shows them unchecked.
    safety_checker_fails: Literal["closed", "open"] = "closed"
    #: Hosts, addresses and networks that are not public, but that webhooks may be sent to, and pulls redirected to.
    private_hosts: tuple[str, ...] = ()
    #: Largest request body, in bytes.
    body_limit: Annotated[int, Meta(ge=1024)] = 32 * 1024 * 1024
    #: A request that has not arrived whole after this is answered 408 and its connection closed.
    receive_timeout: Seconds = 30.0
    #: Connections open at once; more are closed at once.
    connection_limit: Annotated[int, Meta(ge=1)] = 10_000
    #: After SIGTERM, running jobs have this long to finish.
    grace_timeout: Seconds = 20.0
    #: Ways to authenticate: keys, hub, jwt, joined by commas; none is for loopback only.
    auth: Annotated[str, Meta(pattern=r"^(none|(keys|hub|jwt)(,(keys|hub|jwt))*)$")] = "none"
    #: Pages of these origins, like https://paint.example, may use this server from browsers.
    cors_origins: tuple[str, ...] = ()
    #: Addresses or networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are believed.
    trusted_proxies: tuple[str, ...] = ()
    #: Jobs that one client may have unfinished; 0: as many as the queue holds.
    client_limit: Annotated[int, Meta(ge=0)] = 0
    #: Jobs of one client that may be painted at once; 0: as many as there is room for.
    client_runs: Annotated[int, Meta(ge=0)] = 0
    #: Megapixel-steps that one client may ask for in a minute (a picture of 1024x1024 in 30 steps is 32); 0: no limit.
    rate_limit: Annotated[int, Meta(ge=0)] = 0
    #: Who says whose a token of the Hub is.
    hub_whoami: Annotated[str, Meta(pattern=r"^https?://[^\s@]+$")] = "https://huggingface.co/api/whoami-v2"
    #: Users of the Hub who may paint with their tokens.
    hub_users: tuple[str, ...] = ()
    #: Organisations of the Hub whose members may.
    hub_organisations: tuple[str, ...] = ()
    #: The secret that JWTs are signed with (HS256), at least 32 bytes.
    jwt_secret: str = ""
    #: Instead of a secret, where the keys are that JWTs are signed with (RS256 or ES256).
    jwt_jwks_url: Annotated[str, Meta(pattern=r"^(https?://[^\s@]+)?$")] = ""
    #: What iss of a JWT must be.
    jwt_issuer: str = ""
    #: What aud of a JWT must be, or contain.
    jwt_audience: str = ""
    #: What is logged: this and what is worse.
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    #: auto is text with the progress of running jobs on a terminal, and JSON elsewhere.
    log_format: Literal["auto", "json", "text"] = "auto"
    #: Folder of a log file beside standard error, put aside at 16 MB and kept five times; none: no file.
    log_dir: Path | None = None
    #: Whether log lines of jobs say what was asked for.
    log_prompts: bool = False
    #: Where traces are sent, like http://collector:4318/v1/traces; empty: nowhere. Needs the extra otel.
    traces_endpoint: Annotated[str, Meta(pattern=r"^(https?://[^\s@]+)?$")] = ""

    @property
    def ways(self) -> frozenset[str]:
        """The ways to authenticate; none where nobody has to."""
        return frozenset(self.auth.split(",")) - {"none"}

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
COMMON = {
    "DEFAULT_MODEL_ID": "default_model",
    "LOG_DIR": "log_dir",
    "LOG_LEVEL": "log_level",
    "MODEL_CACHE_DIR": "weights",
}


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    """The DAGUERRE_* variables by key; lists are joined by commas."""
    found: dict[str, Any] = {key: environ[name] for name, key in COMMON.items() if environ.get(name)}
    if "log_level" in found:
        found["log_level"] = found["log_level"].lower()
    for name, value in environ.items():
        if name.startswith(PREFIX) and name not in (PREFIX + "CONFIG", API_KEY):
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
