"""Pictures are diffusers' own: the same arguments and seed give what it gives, and the same bytes again."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from compel import CompelForSDXL
from eye import Paint, Picture, difference, is_blank

from daguerre import Draft, Studio, catalog

# diffusers' schedulers hand tensors to numpy in ways that numpy 2 frowns on.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
]

WEIGHTS = Path(__file__).parents[2] / "weights"
SIDE, STEPS, SEED = 128, 5, 7
SCHEDULERS = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "heun": ("HeunDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
NAMES = catalog.read(WEIGHTS, "demo-xl").model().schedulers


@pytest.fixture(scope="module")
def compel(plain_pipeline: Any) -> CompelForSDXL:
    """Compel as its own manual uses it."""
    return CompelForSDXL(plain_pipeline)


def _by_diffusers(pipeline: Any, scheduler: str, guidance: float, conditioning: dict[str, Any]) -> Picture:
    name, options = SCHEDULERS[scheduler]
    # From the folder each time: a scheduler's options would stay in its config and pass to the next one.
    pipeline.scheduler = getattr(diffusers, name).from_pretrained(WEIGHTS / "demo-xl" / "scheduler", **options)
    picture = pipeline(
        **conditioning,
        width=SIDE,
        height=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
    ).images[0]
    return np.asarray((picture * 255).round(), dtype=np.uint8)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("syntax", ["plain", "compel"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_picture_is_what_diffusers_paints(
    paint: Paint, plain_pipeline: Any, compel: CompelForSDXL, scheduler: str, syntax: str, guidance: float
) -> None:
    """At most one unit of 255 apart, in every pixel."""
    prompt = "a (yellow)1.3 star on a purple background" if syntax == "compel" else "a yellow star, purple background"
    negative = "blurry, night"
    if syntax == "compel":
        made = compel(prompt, negative_prompt=negative)
        conditioning = {
            "prompt_embeds": made.embeds,
            "pooled_prompt_embeds": made.pooled_embeds,
            "negative_prompt_embeds": made.negative_embeds,
            "negative_pooled_prompt_embeds": made.negative_pooled_embeds,
        }
    else:
        conditioning = {"prompt": prompt, "negative_prompt": negative}
    theirs = _by_diffusers(plain_pipeline, scheduler, guidance, conditioning)
    (ours,) = paint(
        prompt,
        negative_prompt=negative,
        prompt_syntax=syntax,
        scheduler=scheduler,
        guidance_scale=guidance,
        width=SIDE,
        height=SIDE,
        steps=STEPS,
        seed=SEED,
    )
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    assert not is_blank(ours)


def test_no_negative_prompt_is_what_diffusers_makes_of_none(paint: Paint, plain_pipeline: Any) -> None:
    """Both syntaxes, with no weights in the prompt, agree with the pipeline that is given the prompt alone."""
    theirs = _by_diffusers(plain_pipeline, "euler", 5.0, {"prompt": "a red circle on a blue background"})
    for syntax in ("plain", "compel"):
        (ours,) = paint(
            "a red circle on a blue background",
            prompt_syntax=syntax,
            scheduler="euler",
            guidance_scale=5.0,
            width=SIDE,
            height=SIDE,
            steps=STEPS,
            seed=SEED,
        )
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1, syntax


def test_a_seed_is_a_picture(studio: Studio) -> None:
    """The same recipe gives the same file to the byte; another seed gives another picture."""
    draft = {"prompt": "a forest at sunrise", "width": SIDE, "height": SIDE, "steps": STEPS}
    one, again, other = (studio.generate(Draft(**draft, seed=seed))[0].read_bytes() for seed in (1, 1, 2))
    assert one == again
    assert one != other


@pytest.mark.parametrize("scheduler", NAMES)
def test_every_scheduler_paints(paint: Paint, scheduler: str) -> None:
    """Each name of the catalogue gives a picture that is no blank, and no other noise than another seed's."""
    one, other = paint(
        "a red circle on a blue background", scheduler=scheduler, width=SIDE, height=SIDE, steps=6, count=2
    )
    assert not is_blank(one)
    assert not is_blank(other)
    assert difference(one, other) > 0.5
