"""Owns the catalogue: which models and styles exist, and what each is by default. It reads folders, never weights."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from daguerre.errors import CatalogError, ModelNotFound
from daguerre.recipe import Style
from daguerre.samplers import samplers_for

CATALOG_FILE = "catalog.toml"

T = TypeVar("T")  # 3.11 has no type parameters yet


class Family(msgspec.Struct, frozen=True):
    """What models of one architecture have in common."""

    name: str
    native_side: int  # pixels
    size_factor: int = 8  # width and height must be multiples of it
    steps: int = 30
    guidance_scale: float = 7.5


#: By diffusers pipeline class. Any other class is served too, under its own name, with the defaults of `_OTHER`.
FAMILIES = {
    "StableDiffusionPipeline": Family("sd", 512),
    "StableDiffusionXLPipeline": Family("sdxl", 1024),
    "StableDiffusion3Pipeline": Family("sd3", 1024, 16, 28, 4.5),
    "FluxPipeline": Family("flux", 1024, 16, 28, 3.5),
}
_OTHER = Family("other", 1024, 16)


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model's table in catalog.toml: what a person may say about it. Absent keys follow from the model itself."""

    description: str = ""
    native_size: tuple[int, int] | None = None
    max_area: int | None = None
    steps: Annotated[int, Meta(ge=1, le=150)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=30)] | None = None
    negative_prompt: str = ""
    scheduler: str | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be served; the fields are the defaults of recipes that name it."""

    name: str
    family: str
    pipeline: str  # diffusers class name
    path: Path
    description: str
    native_size: tuple[int, int]  # width, height in pixels
    size_factor: int
    max_area: int  # pixels
    steps: int
    guidance_scale: float
    negative_prompt: str
    scheduler: str
    schedulers: tuple[str, ...]


class Catalog:
    """The models and styles found under one weights folder."""

    def __init__(self, models: Mapping[str, Model], styles: Mapping[str, Style], default: str) -> None:
        self._models = dict(models)
        self._default = default
        self.styles = dict(styles)

    def model(self, name: str | None = None) -> Model:
        """The model of that name, or the default one.

        Raises:
            ModelNotFound: with the names that are known.
        """
        wanted = self._default if name is None else name
        if wanted not in self._models:
            raise ModelNotFound(wanted, sorted(self._models))
        return self._models[wanted]

    @property
    def models(self) -> list[Model]:
        """All models by name."""
        return [self._models[name] for name in sorted(self._models)]


def read(weights: Path, default: str) -> Catalog:
    """Reads catalog.toml and the diffusers folders beside it.

    Raises:
        CatalogError: catalog.toml is broken, or a folder is not what it says.
    """
    tables = _tables(weights / CATALOG_FILE)
    entries = _convert(tables.pop("models", {}), dict[str, Entry], "models")
    styles = _convert(tables.pop("styles", {}), dict[str, Style], "styles")
    if tables:
        raise CatalogError(f"{CATALOG_FILE}: unknown table {next(iter(tables))!r}; known are models and styles")
    folders = sorted(index.parent for index in weights.glob("*/model_index.json"))
    models = {folder.name: _model(folder, entries.get(folder.name, Entry())) for folder in folders}
    return Catalog(models, styles, default)


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CatalogError(f"{CATALOG_FILE}: {error}") from None


def _convert(value: Any, kind: type[T], table: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise CatalogError(f"{CATALOG_FILE}: [{table}]: {error}") from None


def _model(folder: Path, entry: Entry) -> Model:
    pipeline = str(_json(folder / "model_index.json").get("_class_name"))
    family = FAMILIES.get(pipeline, _OTHER)
    own_scheduler = str(_json(folder / "scheduler" / "scheduler_config.json").get("_class_name"))
    samplers = samplers_for(own_scheduler)
    # A model whose own scheduler has no name in the table is painted with it under the name "default".
    own = next((name for name, s in samplers.items() if s.scheduler == own_scheduler and not s.options), "default")
    schedulers = tuple(sorted({*samplers, own}))
    if entry.scheduler not in (None, *schedulers):
        raise CatalogError(f"{CATALOG_FILE}: [models.{folder.name}]: scheduler must be one of {', '.join(schedulers)}")
    side = _native_side(folder, family)
    native_size = entry.native_size or (side, side)
    return Model(
        name=folder.name,
        family=family.name if family is not _OTHER else pipeline,
        pipeline=pipeline,
        path=folder,
        description=entry.description,
        native_size=native_size,
        size_factor=family.size_factor,
        max_area=entry.max_area or max(1024 * 1024, 4 * native_size[0] * native_size[1]),
        steps=family.steps if entry.steps is None else entry.steps,
        guidance_scale=family.guidance_scale if entry.guidance_scale is None else entry.guidance_scale,
        negative_prompt=entry.negative_prompt,
        scheduler=entry.scheduler or own,
        schedulers=schedulers,
    )


def _native_side(folder: Path, family: Family) -> int:
    """The side that the denoiser was trained at, in pixels: its ``sample_size`` times the VAE's factor."""
    unet, vae = folder / "unet" / "config.json", folder / "vae" / "config.json"
    if not (unet.exists() and vae.exists()):
        return family.native_side
    blocks = _json(vae).get("block_out_channels", [])
    sample_size = _json(unet).get("sample_size")
    return sample_size * 2 ** (len(blocks) - 1) if isinstance(sample_size, int) else family.native_side


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise CatalogError(f"{path.parent.name}/{path.name} is not readable JSON") from None
    if not isinstance(value, dict):
        raise CatalogError(f"{path.parent.name}/{path.name} is not a JSON object")
    return value
