"""Owns the acceptance gate: prompts, painting them, and judging colour, shape and blankness without a model.

A checkpoint ships when the colours of object and ground are right in 90% of 12 colours × 5 shapes × 5 seeds, the shape
overlaps the drawn one by 0.6 in 80%, and none of 20 arbitrary prompts gives a blank. Landscapes are judged by eye.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageDraw

from daguerre.demo.captions import with_article
from daguerre.demo.drawing import SHAPES, SIZE, Floats, shape_mask
from daguerre.demo.graphic import COLOURS, Graphic

COLOUR_SHARE, SHAPE_SHARE, OVERLAP, FLAT = 0.9, 0.8, 0.6, 8.0
LANDSCAPES = (
    "a beautiful sunset over mountains",
    "a beautiful sunset over mountains",
    "a beautiful sunset over mountains",
    "sunset over the ocean with a boat",
    "night sky over snowy mountains, moon and stars",
    "a sunny day over green hills with clouds",
    "a city skyline at night",
    "stormy sea with lightning",
    "a forest at sunrise, lake reflection",
    "desert dunes at sunset",
    "a cabin by a lake, mountains, midday",
    "a peaceful lake in the mountains at dawn, highly detailed",
)
ARBITRARY = (
    "a photo of a cat",
    "a cute robot, 3d render",
    "a castle in the clouds, fantasy, 8k, highly detailed",
    "portrait of an old man",
    "an astronaut riding a horse",
    "a bowl of fruit on a table",
    "a steam locomotive",
    "cyberpunk street",
    "ein schöner Sonnenuntergang",
    "美しい夕日",
    "a dragon",
    "logo of a coffee shop",
    "a vintage car parked on the street",
    "two dogs playing in the snow",
    "abstract art",
    "zxqv",
    "🙂",
    "a woman reading a book in a library, oil painting",
    "an underwater coral reef with tropical fish",
    "1234567890",
)

Bytes = npt.NDArray[np.uint8]


class Verdict(msgspec.Struct, frozen=True):
    """What was seen in one graphic: the colours' names, the overlap with the shape asked for, the likeliest shape."""

    asked: Graphic
    colour: str
    ground: str
    overlap: float
    likeliest: str

    @property
    def is_coloured(self) -> bool:
        """Whether both colours are the ones asked for."""
        return self.colour == self.asked.colour and self.ground == self.asked.ground

    @property
    def is_shaped(self) -> bool:
        """Whether the shape overlaps enough with the one asked for."""
        return self.overlap >= OVERLAP


class Findings(msgspec.Struct, frozen=True):
    """The gate's figures; `likeliest` is stricter than the gate: the shape asked for fits best of the five."""

    graphics: int
    colours: float
    shapes: float
    likeliest: float
    mean_overlap: float
    blanks: int

    @property
    def is_passed(self) -> bool:
        """Whether a checkpoint with these figures may ship."""
        return self.colours >= COLOUR_SHARE and self.shapes >= SHAPE_SHARE and self.blanks == 0


def graphics_of(seeds: int, colours: Sequence[str] = tuple(COLOURS)) -> list[tuple[str, Graphic, int]]:
    """List prompts with what they ask for and the seed to paint them from: every colour and shape, on many grounds."""
    names, asked = list(COLOURS), []
    for seed in range(seeds):
        for place, colour in enumerate(names):
            for turn, shape in enumerate(SHAPES):
                ground = names[(place + 1 + (5 * turn + 3 * seed) % (len(names) - 1)) % len(names)]
                text = f"{with_article(colour)} {shape} on a {ground} background"
                if seed % 5 == 2:
                    text = f"{colour} {shape}, {ground} background"
                if seed % 5 == 4 and colour != "white":  # a ground that is not named is white
                    text, ground = f"{with_article(colour)} {shape}", "white"
                asked.append((text, Graphic(colour, ground, shape), seed * 1000 + place * 10 + turn))
    return [entry for entry in asked if entry[1].colour in colours]


def judge(picture: Bytes, asked: Graphic) -> Verdict:
    """Judge an 8-bit picture [256,256,3] of a graphic."""
    pixels = picture.astype(np.float32) / 255
    frame = np.concatenate([pixels[:6].reshape(-1, 3), pixels[-6:].reshape(-1, 3)])
    ground = np.median(np.concatenate([frame, pixels[:, :6].reshape(-1, 3), pixels[:, -6:].reshape(-1, 3)]), axis=0)
    distance = np.linalg.norm(pixels - ground, axis=2)
    mask = distance > max(0.08, float(np.quantile(distance, 0.98)) / 2)
    colour = np.median(pixels[mask], axis=0) if mask.any() else ground
    overlaps = {shape: best_overlap(mask, shape) for shape in SHAPES}
    likeliest = max(overlaps, key=lambda shape: overlaps[shape])
    return Verdict(asked, name_colour(colour), name_colour(ground), overlaps[asked.shape], likeliest)


def name_colour(colour: Floats) -> str:
    """Return the name whose colour is nearest."""
    return min(COLOURS, key=lambda name: float(np.linalg.norm(COLOURS[name] - colour)))


def best_overlap(mask: npt.NDArray[np.bool_], shape: str) -> float:
    """Lay a shape of equal area over a mask, centre on centre, and return intersection over union, at best of nine."""
    area = float(mask.sum())
    if area < 64:
        return 0.0
    unit = shape_mask(shape, SIZE / 2, SIZE / 2, 64) > 0.5
    radius = 64 * (area / float(unit.sum())) ** 0.5
    rows, columns = (float(places.mean()) for places in np.nonzero(mask))
    unit_rows, unit_columns = (float(places.mean()) - SIZE / 2 for places in np.nonzero(unit))
    best = 0.0
    for scale in (0.94, 1.0, 1.06):
        for shift in (-3, 0, 3):
            size = radius * scale
            x, y = columns - unit_columns * size / 64, rows - unit_rows * size / 64 + shift
            laid = shape_mask(shape, x, y, size) > 0.5
            best = max(best, float((laid & mask).sum() / (laid | mask).sum()))
    return best


def is_blank(picture: Bytes) -> bool:
    """Say whether a picture is (nearly) one colour."""
    return float(picture.astype(np.float32).std(axis=(0, 1)).max()) < FLAT


def load_painter(folder: Path) -> StableDiffusionXLPipeline:
    """Load an exported folder in float32, without a progress bar."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def paint(
    pipeline: StableDiffusionXLPipeline, prompts: Sequence[str], seeds: Sequence[int], steps: int, batch: int = 6
) -> list[Bytes]:
    """Paint each prompt from its own seed at 256², guidance 5; what stands beside it in a batch changes nothing."""
    pictures: list[Bytes] = []
    for start in range(0, len(prompts), batch):
        some = slice(start, start + batch)
        painted = pipeline(
            list(prompts[some]),
            num_inference_steps=steps,
            guidance_scale=5.0,
            height=SIZE,
            width=SIZE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[some]],
            output_type="np",
        ).images
        pictures += list((painted * 255).round().astype(np.uint8))
    return pictures


def weigh(verdicts: Sequence[Verdict], blanks: int) -> Findings:
    """Add verdicts up."""
    count = len(verdicts)
    return Findings(
        count,
        sum(verdict.is_coloured for verdict in verdicts) / count,
        sum(verdict.is_shaped for verdict in verdicts) / count,
        sum(verdict.likeliest == verdict.asked.shape for verdict in verdicts) / count,
        sum(verdict.overlap for verdict in verdicts) / count,
        blanks,
    )


def hold(folder: Path, seeds: int, steps: int, sheet: Path | None) -> Findings:
    """Hold the gate over an exported folder, print what it finds, and lay the pictures out on a sheet."""
    pipeline = load_painter(folder)
    graphics = graphics_of(seeds)
    painted = paint(pipeline, [text for text, _, _ in graphics], [seed for _, _, seed in graphics], steps)
    verdicts = [judge(picture, asked) for picture, (_, asked, _) in zip(painted, graphics, strict=True)]
    strange = paint(pipeline, ARBITRARY, range(len(ARBITRARY)), steps)
    findings = weigh(verdicts, sum(map(is_blank, strange)))
    tell(findings, verdicts)
    if sheet is not None:
        views = paint(pipeline, LANDSCAPES, range(len(LANDSCAPES)), steps)
        shown = len(COLOURS) * len(SHAPES)
        texts = [*LANDSCAPES, *(text for text, _, _ in graphics[:shown]), *ARBITRARY]
        lay_out([*views, *painted[:shown], *strange], texts).save(sheet)
    return findings


def tell(findings: Findings, verdicts: Sequence[Verdict]) -> None:
    """Print figures, in all and by shape."""
    print(f"graphics             {findings.graphics}")
    print(f"colours right        {findings.colours:.1%} (at least {COLOUR_SHARE:.0%})")
    print(f"shape overlap ≥ {OVERLAP}  {findings.shapes:.1%} (at least {SHAPE_SHARE:.0%})")
    print(f"mean overlap         {findings.mean_overlap:.3f}")
    print(f"likeliest of five    {findings.likeliest:.1%} (not part of the gate)")
    print(f"blanks of {len(ARBITRARY)}         {findings.blanks}")
    for shape in SHAPES:
        own = weigh([verdict for verdict in verdicts if verdict.asked.shape == shape], 0)
        shares = f"enough in {own.shapes:.0%}, likeliest in {own.likeliest:.0%}"
        print(f"  {shape:<10} overlap {own.mean_overlap:.3f}, {shares}")
    for verdict in (verdict for verdict in verdicts if not verdict.is_coloured):
        asked = verdict.asked
        print(f"  {asked.colour} {asked.shape} on {asked.ground}: painted {verdict.colour} on {verdict.ground}")
    print("passed" if findings.is_passed else "NOT passed")


def lay_out(pictures: Sequence[Bytes], texts: Sequence[str], columns: int = 10, side: int = 160) -> Image.Image:
    """Lay pictures out in rows, each under its text."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + 14)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        x, y = place % columns * side, place // columns * (side + 14)
        pen.text((x + 2, y + 1), text.encode("ascii", "replace").decode()[: side // 6], fill="black")
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), (x, y + 14))
    return sheet
