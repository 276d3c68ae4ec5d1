"""Owns diffusers' pipelines: loading one from a folder, and making the shell that a run calls."""

import contextlib
import copy
import functools
import inspect
import logging
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image

from daguerre.catalog import Model
from daguerre.embeddings import Learned
from daguerre.engine.adapters import Adapters
from daguerre.engine.conditioning import Conditioning
from daguerre.engine.events import Place
from daguerre.engine.loading import BUILDING, read_pipe
from daguerre.engine.offload import Offload, Parts, Plan, Sizes, group_of
from daguerre.engine.preview import Preview, can_preview
from daguerre.engine.references import References
from daguerre.engine.tuning import UNTUNED, Tuning
from daguerre.errors import BadOutput, CatalogError, FieldError, InvalidRecipe
from daguerre.recipe import Mode, Recipe
from daguerre.samplers import samplers_for

if TYPE_CHECKING:
    from daguerre.engine.submission import Reference

log = logging.getLogger(__name__)

OnStep = Callable[[int, int, "Callable[[], HostPixels | None]"], None]


def quiet() -> None:
    """Keeps the libraries' progress bars and advice out of the terminal: the engine's own events tell what matters.

    Their errors go the way of all log lines: written by themselves, they would wait for a pipe that nobody reads.
    """
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        library.utils.logging.disable_default_handler()
        library.utils.logging.enable_propagation()


def choose_device(name: str) -> torch.device:
    """The device that a setting means; ``auto`` takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def cuda_build() -> str | None:
    """The version of CUDA that torch was built for, like 12.8; none where it was built for the CPU."""
    version: str | None = torch.version.cuda
    return version


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that a setting means; ``auto`` is bfloat16 where the card has it, else float16; float32 on a CPU."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float16


def describe_device(device: torch.device) -> str:
    """The device's name, and its memory where it has some of its own.

    Raises:
        RuntimeError, AssertionError: there is no such device.
    """
    if device.type != "cuda":
        return str(device)
    properties = torch.cuda.get_device_properties(device)
    return f"{device} ({properties.name}, {properties.total_memory / 1024**3:.0f} GiB)"


@dataclass(slots=True)
class Timer:
    """Seconds of a run's phases, as the host sees them: a device may lag behind until the picture is copied.

    ``tokens`` is how many the text encoders read for it, if that is known.
    """

    began: float = field(default_factory=time.perf_counter)
    encoded: float = 0.0
    denoised: float = 0.0
    decoded: float = 0.0
    tokens: int | None = None


class HostPixels:
    """A picture on its way to host memory; see `daguerre.engine.events.Pixels`."""

    def __init__(self, image: torch.Tensor) -> None:  # [3, H, W], 0 to 1
        pixels = image.float().mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
        on_cuda = image.device.type == "cuda"
        self._pixels = pixels.to("cpu", non_blocking=on_cuda)
        # Checked here, told when the picture is fetched: asking now would make the engine wait for the device.
        is_sound = torch.isfinite(image).all() & pixels.any()
        self._is_sound = is_sound.to("cpu", non_blocking=on_cuda)
        self._copied = torch.cuda.Event() if on_cuda else None
        if self._copied is not None:
            self._copied.record()

    def array(self) -> NDArray[np.uint8]:
        """Waits for the copy; see `Pixels.array`."""
        if self._copied is not None:
            self._copied.synchronize()
        if not bool(self._is_sound):
            raise BadOutput
        array: NDArray[np.uint8] = self._pixels.numpy()
        return array


class Pipeline:
    """A loaded diffusers pipeline. Its modules are shared by all runs; what a run changes is its own shell's."""

    def __init__(self, model: Model, pipe: Any, device: torch.device, plan: Plan = "none") -> None:
        self.model = model
        self.place: Place = "host"
        self._pipe = pipe
        self._parts = Parts(_modules_of(pipe), device, plan)
        self._pipes: dict[Mode, Any] = {"txt2img": pipe}
        self.adapters = Adapters(pipe, device)
        self._has_own_memory = device.type == "cuda"
        self.references = References(_denoiser_of(pipe))
        self._preview: Preview | None = None  # made when one is asked for
        self._conditioning = Conditioning(pipe, device, functools.partial(self._parts.bring_in, "encoders"))

    @property
    def denoiser(self) -> torch.nn.Module:
        """The module that is called once a step."""
        module = _denoiser_of(self._pipe)
        assert isinstance(module, torch.nn.Module)
        return module

    @property
    def bytes(self) -> int:
        """Of its weights and of IP-Adapters attached to it; of its slots where the device has no memory of its own."""
        slots = 0 if self._has_own_memory else self.adapters.bytes
        return self._parts.bytes + self.references.bytes + slots

    @property
    def device_bytes(self) -> int:
        """Of all that is on the device at once, when it is there: weights, IP-Adapters and its adapters' slots."""
        return self._parts.device_bytes + self.references.bytes + self.adapters.bytes

    def is_outdated_by(self, model: Model) -> bool:
        """Whether the model is of other files than it was made of, and of newer ones."""
        return self.model.edition.is_outdated_by(model.edition)

    def to_device(self) -> None:
        """Moves the weights to the device, as far as its memory plan has them there."""
        self._parts.to_device()
        self.place = "device"

    def leave_device(self) -> None:
        """Computes no more until it is moved to the device again; what it holds there is given back."""
        self._parts.leave_device()
        self._conditioning.forget()
        self.adapters.leave_device()
        self.references.detach(keep=())
        self.place = "host"

    def _pipe_for(self, mode: Mode) -> Any:
        """diffusers' pipeline of this model for the mode: the same modules under another class.

        Raises:
            InvalidRecipe: diffusers has none for this model.
        """
        if mode not in self._pipes:
            auto = {"img2img": diffusers.AutoPipelineForImage2Image, "inpaint": diffusers.AutoPipelineForInpainting}[
                mode
            ]
            try:
                pipe = auto.from_pipe(self._pipe)
            except ValueError as error:
                message = f"{self.model.name!r} cannot start from an image"
                raise InvalidRecipe([FieldError("mask" if mode == "inpaint" else "image", message)]) from error
            pipe.set_progress_bar_config(disable=True)
            self._pipes[mode] = pipe
        return self._pipes[mode]

    @contextlib.contextmanager
    def tiled_decode(self) -> Iterator[None]:
        """While it lasts, the VAE decodes in tiles: slower, in a fraction of the memory."""
        vae = self._pipe.vae
        can_tile = hasattr(vae, "enable_tiling") and not vae.use_tiling
        if can_tile:
            vae.enable_tiling()
        try:
            yield
        finally:
            if can_tile:
                vae.disable_tiling()

    def paint(
        self,
        recipe: Recipe,
        image: NDArray[np.uint8] | None,
        mask: NDArray[np.uint8] | None,
        index: int,
        on_step: OnStep,
        timer: Timer,
        references: "Sequence[Reference]" = (),
        learned: Sequence[Learned] = (),
    ) -> HostPixels:
        """Paints picture ``index`` of a recipe by calling the pipeline as any user of diffusers would."""
        pipe = self._pipe_for(recipe.mode)
        shell = copy.copy(pipe)
        shell.scheduler = self._scheduler(recipe.scheduler)
        arguments = self._conditioning.arguments(recipe, self.adapters.encoders_key, learned)
        self._conditioning.remember(shell, recipe, self.adapters.encoders_key)
        arguments |= self.references.arguments(references, is_guided=recipe.guidance_scale > 1)
        timer.encoded, timer.tokens = time.perf_counter(), self._conditioning.tokens

        def after_step(_shell: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            timer.denoised = time.perf_counter()
            done, steps = step + 1, int(getattr(shell, "num_timesteps", recipe.steps))
            on_step(done, steps, lambda: self._previewed(recipe, tensors["latents"]))
            return tensors

        arguments |= {
            "width": recipe.width,
            "height": recipe.height,
            "num_inference_steps": recipe.steps,
            "guidance_scale": recipe.guidance_scale,
            # A CPU generator gives the same noise on every device.
            "generator": torch.Generator("cpu").manual_seed(recipe.seed + index),
            "image": None if image is None else Image.fromarray(image),
            "mask_image": None if mask is None else Image.fromarray(mask),
            "strength": None if recipe.strength is None else _strength(recipe.strength, recipe.steps),
            "output_type": "pt",
            "callback_on_step_end": after_step,
        }
        accepted = inspect.signature(shell.__call__).parameters
        output = shell(**{name: value for name, value in arguments.items() if name in accepted and value is not None})
        picture = HostPixels(output[0][0])
        timer.decoded = time.perf_counter()
        return picture

    def _previewed(self, recipe: Recipe, latents: torch.Tensor) -> HostPixels | None:
        """What the latents look like so far, if this pipeline's can be told."""
        pipe = self._pipe
        if latents.ndim == 3 and hasattr(pipe, "_unpack_latents"):  # FLUX and its kin keep them in patches
            latents = pipe._unpack_latents(latents, recipe.height, recipe.width, pipe.vae_scale_factor)
        if self._preview is None and can_preview(getattr(pipe, "vae", None)):
            self._preview = Preview(pipe.vae, latents.device)
        if self._preview is None or latents.ndim != 4 or latents.shape[1] != self._preview.channels:
            return None
        return HostPixels(self._preview.rgb(latents))

    def _scheduler(self, name: str) -> Any:
        """A scheduler of a run's own. The model's own one keeps its class even if no name in the table means it."""
        own = self._pipe.scheduler
        if name == self.model.scheduler and name not in samplers_for(type(own).__name__):
            return type(own).from_config(own.config)
        sampler = samplers_for(type(own).__name__)[name]
        return getattr(diffusers, sampler.scheduler).from_config(own.config, **sampler.options)


def _strength(asked: float, steps: int) -> float:
    """The strength that leaves one step at least: with none, pipelines fail instead of giving the image back."""
    least = 1 / steps
    while steps * least < 1:
        least = math.nextafter(least, 1)
    return max(asked, least)


@dataclass(frozen=True, slots=True)
class Room:
    """Where a model is to compute, how many bytes of weights may be there, and how it is to make do with them."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bytes: int = 2**63
    offload: Offload = "auto"


def load(model: Model, dtype: torch.dtype, room: Room | None = None, tuning: Tuning = UNTUNED) -> Pipeline:
    """Reads a model's files into host memory, pinned where the device can use it. Safetensors only, no network.

    Raises:
        CatalogError: they are not a pipeline that can be served.
        Exception: whatever diffusers makes of files that are broken.
    """
    quiet()
    room = room or Room()
    with BUILDING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about the files is for those who wrote them
        pipe = read_pipe(model, dtype)
    if _denoiser_of(pipe) is None:
        raise CatalogError(f"a {model.pipeline} has no denoiser that Daguerre knows")
    pipe.set_progress_bar_config(disable=True)
    plan = _plan(model, pipe, room)
    if plan != "group":  # layers that come and go have nothing to compile for
        tuning.apply(_denoiser_of(pipe), getattr(pipe, "vae", None), room.device)
    return Pipeline(model, pipe, room.device, plan)


def _plan(model: Model, pipe: Any, room: Room) -> Plan:
    """The memory plan by the model's sizes; where memory is short, the VAE decodes large pictures in tiles."""
    sizes = Counter({"encoders": 0, "denoiser": 0, "others": 0})
    for name, module in _modules_of(pipe).items():
        sizes[group_of(name)] += sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    plan = Sizes(**sizes).plan(room.bytes, room.offload)
    if plan in ("model", "group") and hasattr(getattr(pipe, "vae", None), "enable_tiling"):
        pipe.vae.enable_tiling()
    shown = ", ".join(f"{group} {size / 1e6:.0f} MB" for group, size in sizes.items())
    log.info("%s: %s; memory plan on %s: %s", model.name, shown, room.device, plan)
    return plan


def _modules_of(pipe: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def _denoiser_of(pipe: Any) -> Any:
    """A pipeline's UNet or transformer, if it has one."""
    return getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
