"""Owns the catalogue of safety checkers: which there are, and whether one is whole, decided by headers."""

from pathlib import Path

import msgspec

from daguerre import entries, weightfile
from daguerre.catalog import CATALOG_FILE, SHIPPED, Source
from daguerre.errors import CatalogError

FOLDER = "safety-checkers"  # within weights
KIND = "safety_checkers"  # of tables in catalog.toml

#: What the weights of diffusers' StableDiffusionSafetyChecker hold beside its image encoder.
TENSORS = (
    "concept_embeds",
    "concept_embeds_weights",
    "special_care_embeds",
    "special_care_embeds_weights",
    "visual_projection.weight",
)
#: Where the folder says how a picture is made ready; the second is how whole pipelines are laid out.
PREPROCESSORS = ("preprocessor_config.json", "feature_extractor/preprocessor_config.json")


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A safety checker's table in catalog.toml. Its files lie in ``weights/safety-checkers/NAME``."""

    repo: str | None = None
    revision: str | None = None
    description: str = ""


class SafetyChecker(msgspec.Struct, frozen=True):
    """A safety checker that the catalogue knows."""

    name: str
    path: Path
    source: Source | None = None

    @property
    def is_here(self) -> bool:
        """Whether its files are on this machine."""
        return self.path.is_dir()


class SafetyCheckers:
    """The safety checkers of one weights folder, as they were when this was made."""

    def __init__(self, weights: Path) -> None:
        tables = entries.read(SHIPPED, weights / CATALOG_FILE)
        self._broken = dict(tables.broken[KIND])
        named = tables.of(KIND, Entry, self._broken)
        folder = weights / FOLDER
        found = {path.name for path in folder.glob("*/")} | named.keys()
        for name in [name for name in found if (folder / name).parent != folder or name in (".", "..")]:
            self._broken[name] = "its name is none of a folder"
        self._known = {
            name: SafetyChecker(name, folder / name, _source(named.get(name, Entry())))
            for name in sorted(found - self._broken.keys())
        }

    @property
    def names(self) -> list[str]:
        """Of all that are known."""
        return list(self._known)

    @property
    def problems(self) -> list[str]:
        """What is wrong with those that cannot be used."""
        broken = dict(self._broken)
        for checker in self._known.values():
            if checker.is_here:
                try:
                    vet(checker.path)
                except CatalogError as error:
                    broken[checker.name] = str(error)
        return [f"safety checker {name!r}: {why}" for name, why in sorted(broken.items())]

    def find(self, name: str) -> SafetyChecker:
        """The safety checker of that name, whether its files are here or not.

        Raises:
            CatalogError: there is none, with the names that are known; or its table is broken.
        """
        if name in self._broken:
            raise CatalogError(f"safety checker {name!r} cannot be used: {self._broken[name]}")
        if name not in self._known:
            raise CatalogError(f"there is no safety checker {name[:80]!r}; known ones: {', '.join(self._known)}")
        return self._known[name]


def _source(entry: Entry) -> Source | None:
    return None if entry.repo is None else Source(entry.repo, entry.revision)


def vet(folder: Path) -> None:
    """Holds a safety checker's folder to be data and whole, before any library looks at it.

    Raises:
        CatalogError: it asks for code, has no weights in safetensors, is broken, or is something else.
    """
    weightfile.vet_component(folder)
    shapes = weightfile.vet_weights(folder / "model.safetensors").shapes
    for name in TENSORS:
        if name not in shapes:
            raise CatalogError(f"it is no StableDiffusionSafetyChecker: it has no tensor {name!r}")
    preprocessor(folder)


def preprocessor(folder: Path) -> Path:
    """The file that says how a picture is made ready for it.

    Raises:
        CatalogError: there is none.
    """
    for name in PREPROCESSORS:
        if (folder / name).is_file():
            return folder / name
    raise CatalogError("it has no preprocessor_config.json")
