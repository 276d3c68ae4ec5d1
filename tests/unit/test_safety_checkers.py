"""The catalogue of safety checkers, and the doctor's word on the one that is set."""

from pathlib import Path

import checkerfiles
import pytest

from daguerre import doctor, safety_checkers
from daguerre.errors import CatalogError
from daguerre.job import gravest
from daguerre.safety_checkers import SafetyCheckers
from daguerre.settings import Settings

SHIPPED = "stable-diffusion-safety-checker"


def _weights(folder: Path) -> Path:
    checkerfiles.write(folder / safety_checkers.FOLDER / "whole")
    checkerfiles.write(folder / safety_checkers.FOLDER / "broken")
    (folder / safety_checkers.FOLDER / "broken" / "model.safetensors").write_bytes(b"x")
    (folder / "catalog.toml").write_text(
        "[safety_checkers.far]\nrepo = 'a/far'\nrevision = 'v1'\n"
        "[safety_checkers.wrong]\nrepository = 'a/wrong'\n"
        "[safety_checkers.'../up']\nrepo = 'a/up'\n"
    )
    return folder


def test_what_is_known(tmp_path: Path) -> None:
    """Folders by their names, tables by theirs, and the shipped one; of each whether it is here and where from."""
    found = SafetyCheckers(_weights(tmp_path))
    assert found.names == ["broken", "far", SHIPPED, "whole"]
    far = found.find("far")
    assert far.source is not None
    assert (far.is_here, far.source.repo, far.source.revision) == (False, "a/far", "v1")
    assert (found.find("whole").is_here, found.find("whole").source) == (True, None)
    shipped = found.find(SHIPPED)
    assert shipped.source is not None
    assert shipped.source.repo == "CompVis/stable-diffusion-safety-checker"
    assert not shipped.is_here


def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    """A broken table with its line, a name that leads elsewhere, files that are none; and what is unknown."""
    found = SafetyCheckers(_weights(tmp_path))
    told = "\n".join(found.problems)
    assert "'wrong': catalog.toml:5: " in told
    assert "'../up'" in told
    assert "'broken': model.safetensors is no safetensors file" in told
    assert "'whole'" not in told
    with pytest.raises(CatalogError, match=r"catalog\.toml:5"):
        found.find("wrong")
    with pytest.raises(CatalogError, match=f"known ones: broken, far, {SHIPPED}, whole"):
        found.find("nobodys")


def test_a_processor_as_pipelines_have_it(tmp_path: Path) -> None:
    """In a folder of its own beside the weights."""
    folder = checkerfiles.write(tmp_path / "checker")
    (folder / "feature_extractor").mkdir()
    (folder / "preprocessor_config.json").rename(folder / "feature_extractor" / "preprocessor_config.json")
    safety_checkers.vet(folder)


@pytest.mark.parametrize(
    ("name", "is_bad", "told"),
    [
        ("whole", False, "looks at every picture, on the CPU; then blur; fails closed"),
        ("far", True, "is not here"),
        ("broken", True, "safetensors"),
        ("nobodys", True, "known ones"),
    ],
)
def test_the_doctor_tells_of_it(tmp_path: Path, *, name: str, is_bad: bool, told: str) -> None:
    """Whether pictures would be looked at, and what would be in the way."""
    settings = Settings(weights=_weights(tmp_path), safety_checker=name, safety_checker_action="blur")
    found = {finding.subject: finding for finding in doctor._safety(settings)}
    assert found["safety checker"].is_bad == is_bad
    assert told in found["safety checker"].detail
    assert "catalogue" in found
    assert list(doctor._safety(Settings(weights=tmp_path / "empty"))) == []


def test_the_gravest_is_told() -> None:
    """Of a prompt and several pictures; nothing where there are no filters."""
    assert gravest() is None
    assert gravest(None, None) is None
    assert gravest("passed", None) == "passed"
    assert gravest("unchecked", "passed") == "unchecked"
    assert gravest("passed", "blurred", "flagged", None) == "blurred"
