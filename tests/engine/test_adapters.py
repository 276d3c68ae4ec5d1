"""Adapters: of every layout and kind, pictures equal those of plain diffusers; runs in company keep their own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import lorafiles
import pytest
import torch
from harness import THIRD_PARTY, difference, job, paint_all
from lorafiles import ATTENTION, CONVOLUTIONS, Tensors, layers

from daguerre import catalog
from daguerre.catalog import Catalog, Model
from daguerre.engine import Submission
from daguerre.loras import Loras
from daguerre.recipe import LoraWish

pytestmark = THIRD_PARTY

WISH = "a red fox in the snow"


class Shelf:
    """A weights folder of a test's own: the tiny models, and the LoRAs that the test puts beside them."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder = folder
        for path in models.iterdir():
            (folder / path.name).symlink_to(path)
        self.catalog: Catalog = catalog.read(folder, "sd15")
        self.loras = Loras(folder)

    def put(self, name: str, tensors: Tensors, metadata: dict[str, Any] | None = None) -> Path:
        """Writes a LoRA."""
        return lorafiles.write(self.folder / "loras" / f"{name}.safetensors", tensors, metadata)

    def job(self, model: str, prompt: str = WISH, loras: dict[str, float] | None = None, **fields: Any) -> Submission:
        """A submission as the service makes it, with LoRAs and their weights."""
        found = self.catalog.model(model)
        wishes = tuple(LoraWish(name, weight) for name, weight in (loras or {}).items())
        return job(found, prompt, all_loras=self.loras, loras=wishes, **fields)


@pytest.fixture
def shelf(tmp_path: Path, models: Catalog) -> Shelf:
    """A shelf with the tiny models and no LoRA."""
    return Shelf(tmp_path, models.model("sd15").path.parent)


def pipe_of(model: Model) -> Any:
    """A plain pipeline."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(model.path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def plain(pipe: Any, submission: Submission) -> torch.Tensor:
    """The picture as diffusers paints it, with whatever its layers have been changed by: [3, H, W]."""
    recipe = submission.recipe
    image: torch.Tensor = pipe(
        prompt=recipe.prompt,
        negative_prompt=recipe.negative_prompt or None,
        width=recipe.width,
        height=recipe.height,
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(recipe.seed),
        output_type="pt",
    ).images[0]
    return image


def levels(image: torch.Tensor) -> Any:
    """A picture as the engine gives it."""
    return (image.permute(1, 2, 0).numpy() * 255).round().astype("uint8")


@contextlib.contextmanager
def changed(pipe: Any, deltas: Tensors, weight: float = 1.0) -> Iterator[None]:
    """While it lasts, these are added to the pipeline's own weights: what every adapter means."""
    targets = {name: pipe.get_parameter_of(name) if False else _weight(pipe, name) for name in deltas}
    before = {name: target.data.clone() for name, target in targets.items()}
    for name, target in targets.items():
        target.data += weight * deltas[name].view(target.shape)
    yield
    for name, target in targets.items():
        target.data.copy_(before[name])


def _weight(pipe: Any, name: str) -> torch.nn.Parameter:
    part, _, path = name.partition(".")
    weight: torch.nn.Parameter = getattr(pipe, part).get_submodule(path).weight
    return weight


def products(tensors: Tensors, part: str, alpha: float | None = None) -> Tensors:
    """The weights that a LoRA in diffusers' layout makes, by ``part.path``."""
    found = {}
    for name, down in tensors.items():
        if name.startswith(part + ".") and name.endswith(".lora_A.weight"):
            path = name.removesuffix(".lora_A.weight")
            up = tensors[f"{path}.lora_B.weight"]
            scale = 1.0 if alpha is None else alpha / down.shape[0]
            found[path] = (up.flatten(1) @ down.flatten(1)) * scale
    return found


def painted(*submissions: Submission) -> list[Any]:
    """Their pictures, painted at one moment."""
    outcomes, _ = paint_all(submissions)
    return [outcomes[submission.id].picture for submission in submissions]


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_diffusers_own_layout(shelf: Shelf, name: str) -> None:
    """Linear layers and convolutions, against load_lora_weights and set_adapters at another weight."""
    pipe = pipe_of(shelf.catalog.model(name))
    path = shelf.put("style", lorafiles.diffusers_lora({"unet": layers(pipe.unet, ATTENTION + CONVOLUTIONS)}))
    submission, without = shelf.job(name, loras={"style": 0.7}), shelf.job(name)
    bare = levels(plain(pipe, without))
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
    pipe.set_adapters(["style"], [0.7])
    ours, ours_without = painted(submission, without)
    assert difference(ours, levels(plain(pipe, submission))) <= 1
    assert difference(ours_without, bare) <= 1
    assert difference(ours, bare) > 8
