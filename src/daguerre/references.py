"""Owns the catalogue of reference images, and of the IP-Adapters that look at them: what there is, and what it fits."""

import functools
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from daguerre import editions, ipadapterfile, layernames, shelf, weightfile
from daguerre.catalog import Model
from daguerre.editions import Edition
from daguerre.errors import CatalogError, FieldError, InvalidRecipe
from daguerre.ipadapterfile import IpAdapterFile, Kind
from daguerre.recipe import Draft, Recipe, ReferenceUse, ReferenceWish

ADAPTERS, PICTURES = "ip-adapters", "references"  # within weights
SUFFIXES = (".png", ".jpg", ".webp")
#: The picture that is meant by ``ip_strength`` without one, where there are several.
SERVERS_OWN = "default"

#: Attentions of a UNet that look at the text, and in FLUX all of the blocks in two streams.
_CROSS = re.compile(r"unet\.(down|up|mid)_block.*\.attn2\.to_k")
_STREAMS = re.compile(r"transformer\.transformer_blocks\.\d+\.attn\.to_k")
_BLOCKS = ("down", "up", "mid")  # the order in which a UNet has them
_FLUX_CONTEXT = "transformer.context_embedder"


class Entry(shelf.Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An IP-Adapter's table in catalog.toml."""

    image_encoder: Annotated[str, Meta(pattern=r"^[^/\\.][^/\\]*$")] | None = None
    scale: Annotated[float, Meta(ge=0, le=1)] = 0.6


class IpAdapter(msgspec.Struct, frozen=True):
    """An IP-Adapter's file and its image encoder as they are now: what the engine needs to know of them."""

    name: str
    path: Path
    encoder: Path  # a folder in diffusers' layout
    edition: Edition  # of both

    @property
    def key(self) -> tuple[Any, ...]:
        """The same without paths: it may stand in logs and dumps."""
        return self.name, *(file[1:] for file in self.edition.files)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """An IP-Adapter that can be used."""

    name: str
    adapter: IpAdapter
    file: IpAdapterFile
    family: str | None
    kind: Kind
    bytes: int
    default_scale: float
    description: str


class References(shelf.Shelf[Entry, Known]):
    """The references of one weights folder, and the IP-Adapters that look at them."""

    noun, folder, table, form = "IP-Adapter", ADAPTERS, "ip_adapters", Entry

    @property
    def adapters(self) -> list[Known]:
        """All IP-Adapters that can be used, by name."""
        self._refresh()
        return list(self._good.values())

    @property
    def names(self) -> list[str]:
        """Of the pictures in the folder."""
        return sorted(_pictures(self._weights / PICTURES))

    def completed(self, recipe: Recipe, draft: Draft, model: Model) -> Recipe:
        """The recipe with the draft's reference images, and the IP-Adapter that will look at them.

        Raises:
            InvalidRecipe: a picture is unknown, or no IP-Adapter fits the model.
        """
        wishes = draft.reference_images
        if not wishes and draft.ip_strength is not None:
            wishes = (ReferenceWish(name=self._servers_own(), scale=draft.ip_strength),)
        if not wishes:
            return recipe
        names = self.names
        told = f"known reference images: {_list(names)}"
        errors = [
            FieldError(f"reference_images[{place}]", f"there is no reference image {wish.name!r}; {told}")
            for place, wish in enumerate(wishes)
            if wish.name is not None and wish.name not in names
        ]
        if errors:
            raise InvalidRecipe(errors)
        known = self._chosen(draft.ip_adapter, model)
        uses = [ReferenceUse(w.name, known.default_scale if w.scale is None else w.scale) for w in wishes]
        return msgspec.structs.replace(recipe, reference_images=tuple(uses), ip_adapter=known.name)

    def adapter(self, name: str, model: Model) -> IpAdapter:
        """What the engine is given for a recipe's IP-Adapter.

        Raises:
            InvalidRecipe: it is there no more, or does not fit the model any more.
        """
        return self._chosen(name, model).adapter

    def picture(self, name: str) -> Path:
        """The file of a reference image.

        Raises:
            InvalidRecipe: there is none of that name.
        """
        found = _pictures(self._weights / PICTURES).get(name)
        if found is None:
            raise InvalidRecipe([FieldError("reference_images", f"there is no reference image {name[:80]!r}")])
        return found

    def _servers_own(self) -> str:
        names = self.names
        if SERVERS_OWN in names or len(names) == 1:
            return SERVERS_OWN if SERVERS_OWN in names else names[0]
        message = f"give reference_images: this server has no single one of its own, nor one named {SERVERS_OWN!r}"
        raise InvalidRecipe([FieldError("ip_strength", f"{message}; known reference images: {_list(names)}")])

    def _chosen(self, name: str | None, model: Model) -> Known:
        """The IP-Adapter of that name, or the first that fits the model."""
        self._refresh()
        known = ", ".join(f"{one.name} ({one.family or 'unknown'})" for one in self.adapters) or "none"
        if name is None:
            fitting = [one for one in self.adapters if misfit(one, model) is None]
            if fitting:
                return fitting[0]
            message = f"no IP-Adapter here fits {model.name!r}, which is {model.family}; known IP-Adapters: {known}"
            raise InvalidRecipe([FieldError("reference_images", message)])
        if name in self._broken:
            raise InvalidRecipe([FieldError("ip_adapter", f"{name!r} cannot be used: {self._broken[name]}")])
        if name not in self._good:
            message = f"there is no IP-Adapter {name[:80]!r}; known IP-Adapters: {known}"
            raise InvalidRecipe([FieldError("ip_adapter", message)])
        why = misfit(self._good[name], model)
        if why is not None:
            message = f"IP-Adapter {name!r} does not fit {model.name!r}, which is {model.family}: {why}"
            raise InvalidRecipe([FieldError("ip_adapter", message)])
        return self._good[name]

    def _made(self, name: str, path: Path, entry: Entry) -> Known:
        file = ipadapterfile.read(path)
        encoder = _encoder(path.parent, file, entry.image_encoder)
        return Known(
            name=name,
            adapter=IpAdapter(name, path, encoder, editions.take([path, encoder])),
            file=file,
            family=entry.base or file.family,
            kind=file.kind,
            bytes=file.bytes,
            default_scale=entry.scale,
            description=entry.description,
        )


def _encoder(folder: Path, file: IpAdapterFile, named: str | None) -> Path:
    """The folder beside the file that holds the image encoder which it was made for."""
    folders = [folder / named] if named else sorted(config.parent for config in folder.glob("*/config.json"))
    for path in folders:
        if _width(path, file.kind) == file.encoder_width:
            weightfile.vet_component(path)
            return path
    of = "projection" if file.kind == "plain" else "hidden states"
    where = f"{named!r} is not it" if named else "put its folder beside the file"
    raise CatalogError(f"it needs an image encoder (CLIP) whose {of} are {file.encoder_width} wide; {where}")


def _width(encoder: Path, kind: Kind) -> int | None:
    """Channels of what an image encoder gives to IP-Adapters of that kind."""
    config = weightfile.read_json(encoder / "config.json")
    vision = config.get("vision_config", config)
    if not isinstance(vision, dict):
        return None
    width = config.get("projection_dim", 512) if kind == "plain" else vision.get("hidden_size", 768)
    return width if isinstance(width, int) else None


def misfit(known: Known, model: Model) -> str | None:
    """Why an IP-Adapter does not fit a model, from their headers; of a checkpoint in one file family and width tell."""
    why = None
    if model.family not in (("flux",) if known.file.is_flux else ("sd", "sdxl")):
        return f"it is for {known.family or 'models with a UNet'}"
    if model.path.is_dir():
        try:
            layers = _layers(model.path, model.edition)
        except CatalogError as error:
            return str(error)
        if layers != (known.file.context, known.file.widths, known.file.is_flux):
            why = "its keys and values are for other attentions"
    elif known.family != model.family:
        why = f"it is for {known.family or 'other models'}"
    elif not known.file.is_flux and known.file.context not in _contexts(model.path):
        why = f"it makes tokens that are {known.file.context} wide"
    if why is not None and known.family not in (None, model.family):
        return f"it is for {known.family}"
    return why


@functools.lru_cache(maxsize=64)
def _layers(folder: Path, _edition: Edition) -> tuple[int, tuple[int, ...], bool]:
    """The width of a model's text, and those of the attentions that look at it, in their order."""
    layers = layernames.of_folder(folder)
    cross = sorted((name for name in layers if _CROSS.fullmatch(name)), key=_place)
    if cross:
        return layers[cross[0]][1], tuple(layers[name][0] for name in cross), False
    streams = sorted((name for name in layers if _STREAMS.fullmatch(name)), key=_place)
    return layers.get(_FLUX_CONTEXT, (0, 0))[1], tuple(layers[name][0] for name in streams), True


def _contexts(path: Path) -> set[int]:
    """The widths of text that the attentions of a checkpoint in a single file look at."""
    shapes = weightfile.read_header(path).shapes
    return {shape[1] for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight") and len(shape) == 2}


def _place(name: str) -> tuple[int, ...]:
    block = next((place for place, mark in enumerate(_BLOCKS) if f".{mark}_block" in name), 0)
    return block, *map(int, re.findall(r"(?<=\.)\d+(?=\.)", name))


def _pictures(folder: Path) -> dict[str, Path]:
    try:
        return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    except OSError:
        return {}


def _list(names: list[str]) -> str:
    return (", ".join(names[:20]) + (", …" if len(names) > 20 else "")) or "none"
