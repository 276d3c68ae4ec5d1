"""Owns the IP-Adapter's gate: whether what is painted after a reference takes its colours and its hour from it.

References are drawn that no training saw, and painted after with a prompt that says nothing of them. A picture is right
if its colours, averaged over a grid, are nearer to its own reference's than to another's; by chance half of them are.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from daguerre.demo.drawing import Floats
from daguerre.demo.gate import Bytes, lay_out
from daguerre.demo.image_prompt import SIDE
from daguerre.demo.ip_training import NAME
from daguerre.demo.landscape import Landscape, sample_landscape
from daguerre.demo.scene import Scene, draw_scene

HITS = 0.8
PROMPT = "a landscape"
GRID = 4  # cells of each side


class Likeness(msgspec.Struct, frozen=True):
    """The gate's figures: shares of pictures right, with the adapter and without it, and of those with its hour."""

    pictures: int
    colours: float
    bare_colours: float
    hours: float
    bare_hours: float

    @property
    def is_passed(self) -> bool:
        """Whether an adapter with these figures may ship."""
        return self.colours >= HITS


def scenes_unseen(count: int) -> list[Scene]:
    """Choose landscapes that no training saw."""
    start = 11 * 10**12
    return [Scene(sample_landscape(random.Random(start + place)), "", start + place) for place in range(count)]


def colours_of(picture: Bytes) -> Floats:
    """Average a picture [side,side,3] over a grid: [4,4,3] in 0..1."""
    return np.asarray(Image.fromarray(picture).resize((GRID, GRID), Image.Resampling.BOX), np.float32) / np.float32(255)


def distance(one: Bytes, other: Bytes) -> float:
    """Return the mean difference of two pictures' colours."""
    return float(np.abs(colours_of(one) - colours_of(other)).mean())


def hour_of(picture: Bytes, known: Sequence[tuple[str, Bytes]]) -> str:
    """Name the hour whose pictures are nearest on the average."""
    means = {
        time: np.mean([colours_of(other) for hour, other in known if hour == time], axis=0)
        for time in {hour for hour, _ in known}
    }
    return min(means, key=lambda time: float(np.abs(means[time] - colours_of(picture)).mean()))


def load_looking(base: Path, folder: Path) -> StableDiffusionXLPipeline:
    """Load the embedded model with the IP-Adapter in a folder, as anybody would with diffusers."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        base,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(folder / f"{NAME}-encoder", dtype=torch.float32),
        feature_extractor=CLIPImageProcessorPil(size=SIDE, crop_size=SIDE),
        dtype=torch.float32,
    )
    pipeline.load_ip_adapter(str(folder), subfolder="", weight_name=f"{NAME}.safetensors", image_encoder_folder=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def paint_after(
    pipeline: StableDiffusionXLPipeline, references: Sequence[Bytes], scale: float, side: int, steps: int
) -> list[Bytes]:
    """Paint one picture after each reference, from a seed of its own."""
    pipeline.set_ip_adapter_scale(scale)
    pictures: list[Bytes] = []
    for seed, reference in enumerate(references):  # one by one: of a batch, each would see all the others' references
        painted = pipeline(
            PROMPT,
            ip_adapter_image=Image.fromarray(reference),
            num_inference_steps=steps,
            guidance_scale=5.0,
            height=side,
            width=side,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images
        pictures.append((painted[0] * 255).round().astype(np.uint8))
    return pictures


def weigh_likeness(
    scenes: Sequence[Scene], references: Sequence[Bytes], painted: Sequence[Bytes]
) -> tuple[float, float]:
    """Return the shares of pictures with the colours and with the hour of their references."""
    count = len(references)
    others = [references[(place + 1) % count] for place in range(count)]
    near = [
        distance(*three[:2]) < distance(three[0], three[2]) for three in zip(painted, references, others, strict=True)
    ]
    times = [scene.subject.time for scene in scenes if isinstance(scene.subject, Landscape)]
    known = list(zip(times, references, strict=True))
    hours = [hour_of(picture, known) == time for picture, time in zip(painted, times, strict=True)]
    return sum(near) / count, sum(hours) / count


def hold_likeness(base: Path, folder: Path, count: int, side: int, steps: int, sheet: Path | None) -> Likeness:
    """Judge the IP-Adapter in a folder; `sheet` is where references, pictures after them and pictures without go."""
    scenes = scenes_unseen(count)
    references = [draw_scene(scene) for scene in scenes]
    pipeline = load_looking(base, folder)
    after, bare = (paint_after(pipeline, references, scale, side, steps) for scale in (1.0, 0.0))
    figures = [weigh_likeness(scenes, references, painted) for painted in (after, bare)]
    if sheet is not None:
        rows = [picture for three in zip(references, after, bare, strict=True) for picture in three]
        names = [name for scene in scenes for name in (_name(scene), "after it", "without")]
        lay_out(rows, names, columns=12, side=128).save(sheet)
    found = Likeness(count, figures[0][0], figures[1][0], figures[0][1], figures[1][1])
    print(f"pictures      {count} of {side}² in {steps} steps")
    print(f"colours right {found.colours:.1%} (at least {HITS:.0%}); without the adapter {found.bare_colours:.1%}")
    print(f"hour right    {found.hours:.1%}; without the adapter {found.bare_hours:.1%} (not part of the gate)")
    print("passed" if found.is_passed else "NOT passed")
    return found


def _name(scene: Scene) -> str:
    subject = scene.subject
    return f"{subject.time} {subject.place}" if isinstance(subject, Landscape) else ""
