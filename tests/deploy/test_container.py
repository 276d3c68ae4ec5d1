"""The image and compose.yaml: valid, locked down, and naming nothing that is not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recipes
from compose_spec import PyOptions

from daguerre.http.routes import ROUTES
from daguerre.settings import Settings

ROOT = recipes.ROOT
STATE = "/var/lib/daguerre"


def _lint(path: Path) -> "subprocess.CompletedProcess[str]":
    hadolint = Path(sys.executable).with_name("hadolint")
    return subprocess.run([hadolint, "--no-color", path], capture_output=True, text=True, timeout=60)


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    """In the Dockerfile; in one that installs without care it does."""
    done = _lint(ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && sudo apt-get install gcc\n")
    assert _lint(tmp_path / "Dockerfile").returncode == 1


def test_what_is_copied_is_there_and_is_sent() -> None:
    """.dockerignore sends what the Dockerfile copies, and nothing of what people put beside it."""
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in sent:
        assert (ROOT / name).exists(), name
    copied = [
        source
        for instruction, rest in recipes.dockerfile()
        if instruction == "COPY" and "--from" not in rest
        for source in [word for word in rest.split() if not word.startswith("--")][:-1]
    ]
    for source in copied:
        assert any(name == source or name.startswith(f"{source}/") for name in sent), source
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    assert not any("secrets" in name or "outputs" in name or name == "weights" for name in sent)


def test_the_image_is_not_run_by_root_and_writes_to_volumes_only() -> None:
    """Its settings lie in its volumes; they belong to its user."""
    stage = dict(recipes.last_stage())
    assert stage["USER"] == "10001:10001"
    users = next(rest for instruction, rest in recipes.last_stage() if "useradd" in rest)
    assert "groupadd --gid 10001 daguerre" in users
    assert "useradd --uid 10001 --gid 10001 " in users
    volumes = json.loads(stage["VOLUME"])
    environment = recipes.image_environment()
    for name in ("DAGUERRE_DATA", "DAGUERRE_OUTPUTS", "MODEL_CACHE_DIR"):
        assert environment[name] in volumes
    for name in ("HF_HOME", "TORCH_HOME", "TRITON_CACHE_DIR"):
        assert Path(environment[name]).parent == Path(f"{STATE}/cache")
    made = next(rest for instruction, rest in recipes.last_stage() if "install --directory" in rest)
    assert all(volume in made.split() for volume in volumes)


def test_the_health_check_asks_what_is_there() -> None:
    """It runs here as it stands, against the port that is exposed."""
    stage = dict(recipes.last_stage())
    assert stage["EXPOSE"] == recipes.image_environment()["DAGUERRE_PORT"] == str(Settings().port)
    assert f"127.0.0.1:{stage['EXPOSE']}/livez" in stage["HEALTHCHECK"]
    assert "/livez" in {getattr(route, "path", "") for route in ROUTES}


def test_what_the_entry_point_runs() -> None:
    """The command of the project's own wheel."""
    stage = dict(recipes.last_stage())
    assert (stage["ENTRYPOINT"], stage["CMD"]) == ('["daguerre"]', '["serve"]')


def _parse(text: str) -> Any:
    options = PyOptions()
    options.apply_merge = True
    return options.from_yaml(text)


def _validate(parsed: Any) -> None:
    for validate in (parsed.validate, parsed.validate_volumes, parsed.validate_secrets):
        validate()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("restart: unless-stopped", "restart: sometimes"),
        ("      - daguerre_config\n", "      - another\n"),
        ("read_only: true", "read_onyl: true"),
        ("127.0.0.1:3000:3000", "127.0.0.1:3000:thousands"),
    ],
)
def test_compose_is_what_the_specification_says(before: str, after: str) -> None:
    """A parser that follows it takes the file; of a spoilt one it does not."""
    text = recipes.compose_text()
    parsed = _parse(text)
    _validate(parsed)
    assert set(parsed.service_names()) == {"daguerre", "dev", "prometheus", "grafana"}
    assert before in text
    with pytest.raises(ValueError, match=r".+"):
        _validate(_parse(text.replace(before, after, 1)))


def test_compose_locks_every_service_down() -> None:
    """A root file system that cannot be written, no capabilities, no new ones, and ports for this machine only."""
    for name, service in recipes.compose()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_compose_serves() -> None:
    """On a card, with memory bounded, started again when it dies, and with time to end its jobs."""
    service = recipes.compose()["services"]["daguerre"]
    assert service["restart"] == "unless-stopped"
    assert recipes.seconds(service["stop_grace_period"]) > Settings().grace_timeout + 10
    resources = service["deploy"]["resources"]
    assert resources["reservations"]["devices"] == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert resources["limits"]["memory"]
    assert service["shm_size"]
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108
    places = [volume.split(":")[1] for volume in service["volumes"]]
    assert places == [f"{STATE}/{name}" for name in ("data", "outputs", "logs", "weights", "cache")]


def test_compose_keeps_secrets_in_files_of_their_own() -> None:
    """They come from a folder that git does not know; make up makes it."""
    read = recipes.compose()
    paths = {secret["file"] for secret in read["secrets"].values()}
    assert paths == {"./secrets/daguerre.toml", "./secrets/grafana_password", "./secrets/metrics_key"}
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"{path.removeprefix('./')}:" in makefile for path in paths)
    environment = read["services"]["daguerre"]["environment"]
    assert environment["DAGUERRE_CONFIG"] == "/run/secrets/daguerre_config"
    assert not any("secret" in name.lower() or "token" in name.lower() for name in environment)


def test_compose_volumes_have_names_that_are_declared() -> None:
    """Or are folders of this repository."""
    read = recipes.compose()
    sources = {volume.split(":")[0] for service in read["services"].values() for volume in service.get("volumes", ())}
    assert {source for source in sources if not source.startswith("./")} == set(read["volumes"])


def test_two_services_never_share_a_data_folder() -> None:
    """The second would not start."""
    services = recipes.compose()["services"]
    data = [
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", ())
        if volume.endswith(f":{STATE}/data")
    ]
    assert len(data) == len(set(data)) == 2


def test_profiles() -> None:
    """Nothing but Daguerre starts unless it is asked for."""
    services = recipes.compose()["services"]
    assert {name: service.get("profiles", []) for name, service in services.items()} == {
        "daguerre": [],
        "dev": ["dev"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
def test_the_verbs() -> None:
    """make has no complaint about its file, and lists every verb once."""
    done = subprocess.run(
        ["make", "--no-print-directory", "--warn-undefined-variables", "help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stderr == ""
    verbs = [line.split()[1] for line in done.stdout.splitlines()]
    assert len(verbs) == len(set(verbs))
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert verbs == phony.split()[1:]


@needs_make
def test_make_up_makes_the_secrets(tmp_path: Path) -> None:
    """Readable where they are mounted, in a folder that is nobody else's; a file that is there is left alone."""
    for name in ("Makefile", "deploy/daguerre.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    made = ["make", "secrets/daguerre.toml", "secrets/grafana_password"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    secrets = tmp_path / "secrets"
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert len((secrets / "grafana_password").read_text().strip()) == 32
    (secrets / "daguerre.toml").write_text("queue_limit = 7\n")
    (tmp_path / "deploy" / "daguerre.toml").touch()
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    assert (secrets / "daguerre.toml").read_text() == "queue_limit = 7\n"
