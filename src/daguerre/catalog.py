"""Owns the catalogue: which models and styles exist, and what each is by default. It reads headers, never weights."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from daguerre import checkpointfile, editions, entries, weightfile
from daguerre.editions import Edition
from daguerre.errors import CatalogError, ModelNotFound, ModelNotPulled
from daguerre.recipe import Style
from daguerre.samplers import DIFFUSION, FLOW, samplers_for

log = logging.getLogger(__name__)

CATALOG_FILE = "catalog.toml"
SHIPPED = Path(__file__).parent / "shipped.toml"
VAES = "vaes"  # the folder of autoencoders, within weights
#: Seconds for which a look at a model's files holds: hundreds of jobs a second need not all look.
GLANCE = 0.05


class Family(msgspec.Struct, frozen=True):
    """What models of one architecture have in common."""

    name: str
    native_side: int  # pixels
    scheduler: str  # diffusers class name
    size_factor: int = 8  # width and height must be multiples of it
    steps: int = 30
    guidance_scale: float = 7.5


_FLOW = "FlowMatchEulerDiscreteScheduler"
#: By diffusers pipeline class. Any other class is served too, under its own name, with the defaults of `_OTHER`.
FAMILIES = {
    "StableDiffusionPipeline": Family("sd", 512, "PNDMScheduler"),
    "StableDiffusionXLPipeline": Family("sdxl", 1024, "EulerDiscreteScheduler"),
    "StableDiffusion3Pipeline": Family("sd3", 1024, _FLOW, 16, 28, 4.5),
    "FluxPipeline": Family("flux", 1024, _FLOW, 16, 28, 3.5),
    "QwenImagePipeline": Family("qwen-image", 1328, _FLOW, 16, 50, 4.0),
    "ZImagePipeline": Family("z-image", 1024, _FLOW, 16, 9, 0.0),
}
_OTHER = Family("other", 1024, _FLOW, 16)

#: What a denoiser may predict.
Prediction = Literal["epsilon", "v_prediction"]


class Source(msgspec.Struct, frozen=True):
    """Where on the Hub a model or a VAE is fetched from."""

    repo: str
    revision: str | None = None
    variant: str | None = None  # of its weights: fp16
    file: str | None = None  # of a checkpoint in a single file


class Vae(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A VAE's table in catalog.toml. Its files lie in ``weights/vaes/NAME``."""

    repo: str | None = None
    revision: str | None = None
    variant: str | None = None
    description: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model's table in catalog.toml: what a person may say about it. Absent keys follow from the model itself."""

    repo: str | None = None
    revision: str | None = None
    variant: str | None = None
    file: str | None = None
    pipeline: str | None = None
    vae: str | None = None
    aliases: tuple[str, ...] = ()
    description: str = ""
    native_size: tuple[int, int] | None = None
    max_area: int | None = None
    steps: Annotated[int, Meta(ge=1, le=150)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=30)] | None = None
    negative_prompt: str = ""
    scheduler: str | None = None
    prediction: Prediction | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be served; the fields are the defaults of recipes that name it."""

    name: str
    family: str
    pipeline: str  # diffusers class name
    path: Path  # a diffusers folder, or a checkpoint in a single file
    description: str
    native_size: tuple[int, int]  # width, height in pixels
    size_factor: int
    max_area: int  # pixels
    steps: int
    guidance_scale: float
    negative_prompt: str
    scheduler: str
    schedulers: tuple[str, ...]
    vae: Path | None = None  # in place of its own
    prediction: Prediction | None = None  # of a single file that does not say so itself
    elements: int = 0  # of its weights
    edition: Edition = Edition()  # of its files
    source: Source | None = None
    is_here: bool = True  # whether its files are on this machine

    @property
    def modes(self) -> tuple[str, ...]:
        """What it can be asked for; an unknown class is known to paint from text."""
        return ("txt2img", "img2img", "inpaint") if self.pipeline in FAMILIES else ("txt2img",)

    def as_now(self) -> "Model":
        """The same with the edition that its files are now."""
        return msgspec.structs.replace(self, edition=_edition(self.path, self.vae, self.prediction))


class Catalog:
    """The models and styles of one weights folder. What changes there is seen when a model is next asked for."""

    def __init__(self, weights: Path, default: str) -> None:
        self._weights = weights
        self._default = default
        self._stamp: tuple[Any, ...] = ()
        self._broken: dict[str, str] = {}
        self._looked: dict[str, float] = {}  # when a model's files were last looked at
        self._read()

    def model(self, name: str | None = None) -> Model:
        """The model of that name or alias, or the default one.

        Raises:
            ModelNotFound: with the names that are known.
            ModelNotPulled: it is known, but not on this machine.
            CatalogError: its entry or its files are broken.
        """
        found = self.find(name)
        if not found.is_here:
            raise ModelNotPulled(found.name)
        return found

    def find(self, name: str | None = None) -> Model:
        """The same, whether it is on this machine or not."""
        self._refresh()
        wanted = self._default if name is None else name
        wanted = self._aliases.get(wanted, wanted)
        self._look_at(wanted)
        if wanted in self._broken:
            raise CatalogError(f"model {wanted!r} cannot be used: {self._broken[wanted]}")
        if wanted not in self._models:
            raise ModelNotFound(wanted, [model.name for model in self.models if model.is_here])
        return self._models[wanted]

    @property
    def models(self) -> list[Model]:
        """All models by name, those that are not on this machine too."""
        self._refresh()
        return [self._models[name] for name in sorted(self._models)]

    @property
    def problems(self) -> list[str]:
        """What is wrong with catalog.toml, each with its line, and with the models that cannot be used."""
        self._refresh()
        return self._problems()

    def _problems(self) -> list[str]:
        broken = [f"model {name!r}: {why}" for name, why in sorted(self._broken.items())]
        told = "\n".join(self._tables.problems)
        return [*self._tables.problems, *(line for line in broken if line.split(": ", 1)[1] not in told)]

    def vae(self, name: str) -> Source:
        """Where a VAE of the catalogue is fetched from.

        Raises:
            CatalogError: the catalogue does not say.
        """
        vae = self._vaes.get(name)
        if vae is None or vae.repo is None:
            raise CatalogError(f"the catalogue names no repository for the VAE {name!r}")
        return Source(vae.repo, vae.revision, vae.variant)

    def _look_at(self, name: str) -> None:
        """Whose files are others than they were is read anew; the folder does not tell of what changes within it."""
        known, moment = self._models.get(name), time.monotonic()
        if known is None or moment - self._looked.get(name, -GLANCE) < GLANCE:
            return
        self._looked[name] = moment
        try:
            now = known.as_now()
        except OSError:  # whoever cannot look has seen no change
            return
        if now == known:
            return
        self._stamp = ()
        self._refresh()
        if self._models.get(name) is known:  # catalog.toml cannot be read
            self._models[name] = now

    def _refresh(self) -> None:
        before = None
        try:
            stamp = _stamp(self._weights, self._broken)
            if stamp == self._stamp:
                return
            before = dict(vars(self))
            self._read()
        except CatalogError as error:  # what was read before stays in service
            self._stamp = stamp
            log.warning("%s", error)
        except OSError:  # whoever cannot look has seen no change
            vars(self).update(before or {})
        else:
            for problem in self._problems():
                log.warning("%s", problem)

    def _read(self) -> None:
        before = _stamp(self._weights, self._broken)
        self._tables = entries.read(SHIPPED, self._weights / CATALOG_FILE)
        self._broken = dict(self._tables.broken.get("models", {}))
        models = self._tables.of("models", Entry, self._broken)
        self._vaes = self._tables.of("vaes", Vae)
        self.styles: Mapping[str, Style] = self._tables.of("styles", Style)
        self._models = dict(self._made(models))
        # Other services know models by their repositories; of several in one, the name that sorts first is meant.
        self._aliases = {entry.repo: name for name, entry in sorted(models.items(), reverse=True) if entry.repo}
        self._aliases |= {alias: name for name, entry in models.items() for alias in entry.aliases}
        after = _stamp(self._weights, self._broken)
        self._stamp = after if after == before else ()  # what changed meanwhile may have been missed: once more

    def _made(self, models: Mapping[str, Entry]) -> Iterator[tuple[str, Model]]:
        found = {path.name if path.is_dir() else path.stem: path for path in _paths(self._weights)}
        for name in found.keys() | models.keys():
            if name in self._broken:
                continue
            try:
                model = _model(name, found.get(name), models.get(name, Entry()), self._weights)
            except CatalogError as error:
                self._broken[name] = f"{self._tables.place('models', name)}{error}"
                continue
            except OSError as error:  # it is being taken away at this moment, or is not ours to read
                if editions.is_exhausted(error):
                    raise
                self._broken[name] = f"its files cannot be read: {error.strerror}"
                continue
            if model is not None:
                yield name, model


def read(weights: Path, default: str) -> Catalog:
    """The catalogue of catalog.toml, and of the diffusers folders and checkpoints beside it."""
    return Catalog(weights, default)


def _paths(weights: Path) -> list[Path]:
    """Everything in the folder that claims to be a model."""
    return sorted([*weights.glob("*.safetensors"), *(index.parent for index in weights.glob("*/model_index.json"))])


def _stamp(weights: Path, broken: Mapping[str, str]) -> tuple[Any, ...]:
    """Something that differs when the folder has changed. Of broken models every file counts: somebody is mending.

    Raises:
        OSError: nobody can look now.
    """
    try:
        with os.scandir(weights) as found:
            shelf = sorted((entry.name, *editions.mark(entry.stat())) for entry in found)
        files = [editions.mark(path.stat()) for name in broken for path in (weights / name).rglob("*")]
    except OSError as error:
        if editions.is_exhausted(error):
            raise
        return ()
    return shelf, files


def _edition(path: Path, vae: Path | None, prediction: Prediction | None) -> Edition:
    return editions.take([path] if vae is None else [path, vae], prediction)


def _model(name: str, path: Path | None, entry: Entry, weights: Path) -> Model | None:
    """What a path and an entry make together; None: an entry that says nothing of where its model would come from."""
    vae = None if entry.vae is None else weights / VAES / entry.vae
    if vae is not None and vae.parent != weights / VAES:
        raise CatalogError("vae must be the name of a folder in weights/vaes")
    edition = _edition(path or weights / name, vae, entry.prediction)  # before anything is read of it
    elements = 0
    if path is None:
        if entry.repo is None:
            return None
        pipeline, own, side = entry.pipeline or "", "", None
    elif path.is_dir():
        elements = weightfile.vet_folder(path)
        pipeline = str(weightfile.read_json(path / "model_index.json")["_class_name"])
        own = str(weightfile.read_json(path / "scheduler" / "scheduler_config.json").get("_class_name", ""))
        side = _native_side(path)
        if entry.prediction is not None:
            raise CatalogError("prediction is for checkpoints in a single file; a folder's scheduler says it")
    else:
        header = weightfile.vet_weights(path)
        pipeline, own, side = checkpointfile.pipeline_of(header), "", checkpointfile.native_side(header)
        elements = header.elements
    family = FAMILIES.get(pipeline, _OTHER)
    own = own or family.scheduler
    # Of what is yet to be pulled, only the name of the pipeline tells which of them it could take.
    samplers = samplers_for(own) if path or pipeline else DIFFUSION | FLOW
    # A model whose own scheduler has no name in the table is painted with it under the name "default".
    own = next((key for key, s in samplers.items() if s.scheduler == own and not s.options), "default")
    schedulers = tuple(sorted({*samplers, own}))
    if entry.scheduler not in (None, *schedulers):
        raise CatalogError(f"scheduler must be one of {', '.join(schedulers)}")
    has_vae = vae is None or (vae / "config.json").exists()
    if vae is not None and has_vae and path is not None:
        weightfile.vet_component(vae)
    native_size = entry.native_size or ((side or family.native_side),) * 2
    return Model(
        name=name,
        family=family.name if family is not _OTHER else pipeline,
        pipeline=pipeline,
        path=path or weights / name,
        description=entry.description,
        native_size=native_size,
        size_factor=family.size_factor,
        max_area=entry.max_area or max(1024 * 1024, 4 * native_size[0] * native_size[1]),
        steps=family.steps if entry.steps is None else entry.steps,
        guidance_scale=family.guidance_scale if entry.guidance_scale is None else entry.guidance_scale,
        negative_prompt=entry.negative_prompt,
        scheduler=entry.scheduler or own,
        schedulers=schedulers,
        vae=vae,
        prediction=entry.prediction,
        elements=elements,
        edition=edition,
        source=None if entry.repo is None else Source(entry.repo, entry.revision, entry.variant, entry.file),
        is_here=path is not None and has_vae,
    )


def _native_side(folder: Path) -> int | None:
    """The side that the denoiser was trained at, in pixels: its ``sample_size`` times the VAE's factor."""
    blocks = weightfile.read_json(folder / "vae" / "config.json").get("block_out_channels")
    sample_size = weightfile.read_json(folder / "unet" / "config.json").get("sample_size")
    if not isinstance(sample_size, int) or not isinstance(blocks, list):
        return None
    return sample_size * int(2 ** (len(blocks) - 1))
