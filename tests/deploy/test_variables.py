"""Every variable that a file to deploy with names means something, and its value can be."""

from pathlib import Path

import pytest
import recipes

from daguerre import settings as configuration
from daguerre.settings import COMMON, PREFIX, Settings

#: Variables that the libraries under us read themselves, or that belong to the container's own machinery.
OTHERS = {"HF_HOME", "TORCH_HOME", "TRITON_CACHE_DIR", "PATH", "PYTHONPATH", "PYTHONUNBUFFERED"}
LOGGING = {"LOG_LEVEL", "LOG_DIR"}
NVIDIAS = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}


def _manifests() -> dict[str, str]:
    found: dict[str, str] = {}
    for config in recipes.objects("ConfigMap"):
        found |= config["data"]
    for _, pod in _pods():
        for container in pod["containers"]:
            found |= {variable["name"]: variable["value"] for variable in container.get("env", ())}
    return found


def _pods() -> list[tuple[Path, recipes.Object]]:
    return [
        (path, found["spec"]["template"]["spec"])
        for path, found in recipes.manifests()
        if found["kind"] in ("Deployment", "StatefulSet")
    ]


def _services() -> dict[str, dict[str, str]]:
    services = recipes.compose()["services"]
    return {name: services[name]["environment"] for name in ("daguerre", "dev")}


ENVIRONMENTS = {
    "Dockerfile": recipes.image_environment(),
    **_services(),
    "manifests": _manifests(),
    "unit": recipes.unit_environment(),
}


@pytest.mark.parametrize("environment", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_every_variable_is_read_by_somebody(environment: dict[str, str], tmp_path: Path) -> None:
    """Ours are settings with values that can be; the others are known."""
    for name in environment:
        is_ours = name.startswith(PREFIX) and name.removeprefix(PREFIX).lower() in {
            "config",
            *Settings.__struct_fields__,
        }
        assert is_ours or name in COMMON or name in OTHERS | NVIDIAS | LOGGING, name
    (tmp_path / "daguerre.toml").write_text((recipes.ROOT / "deploy" / "daguerre.toml").read_text())
    # Which ways to authenticate there are is the gate's to know and to test.
    values = {name: value for name, value in environment.items() if name != "DAGUERRE_AUTH"}
    values["DAGUERRE_CONFIG"] = str(tmp_path / "daguerre.toml")
    _, origins = configuration.load({}, values)
    assert len([origin for origin in origins.values() if origin == "environment"]) >= 1


def test_the_example_of_a_configuration_names_settings() -> None:
    """Commented out as they are, its lines could be put in force."""
    text = (recipes.ROOT / "deploy" / "daguerre.toml").read_text()
    lines = [line.removeprefix("# ") for line in text.splitlines() if " = " in line]
    assert lines
    for line in lines:
        assert line.split(" = ")[0] in Settings.__struct_fields__


def test_inside_containers_others_are_served() -> None:
    """What listens on loopback there could be reached by nobody; monitoring asks by the service's name."""
    assert ENVIRONMENTS["Dockerfile"]["DAGUERRE_HOST"] == "0.0.0.0"  # noqa: S104
    assert "daguerre" in ENVIRONMENTS["daguerre"]["DAGUERRE_ALLOWED_HOSTS"].split(",")
    assert "daguerre" in ENVIRONMENTS["manifests"]["DAGUERRE_ALLOWED_HOSTS"].split(",")
    for name in ("daguerre", "manifests"):
        assert ENVIRONMENTS[name]["DAGUERRE_AUTH"] not in ("", "none")
