"""Safety checkers with random weights, written as their repositories are laid out."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from PIL import Image
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

#: Of the tiny image encoder, in pixels and channels.
SIDE, PROJECTED, HIDDEN = 32, 24, 32

#: Thresholds of a cosine that each picture passes, and that none does.
ALWAYS, NEVER = -2.0, 2.0


def write(folder: Path, threshold: float = NEVER, concept: torch.Tensor | None = None, **vision: Any) -> Path:
    """A safety checker that sees something where a picture is nearer to a concept than the threshold.

    ``concept`` is one in place of the random ones; ``vision`` are other options of the image encoder.
    """
    checker = _made(**vision)
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(NEVER)
    if concept is not None:
        checker.concept_embeds.data[:] = concept
    return _save(checker, folder)


def _made(**vision: Any) -> StableDiffusionSafetyChecker:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=sizes,
        vision_config={**sizes, "image_size": SIDE, "patch_size": 8, **vision},
        projection_dim=PROJECTED,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(5)
        checker = StableDiffusionSafetyChecker(config)
        for weight in checker.parameters():
            if weight.ndim >= 2:
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return checker.eval()


def _save(checker: StableDiffusionSafetyChecker, folder: Path) -> Path:
    checker.save_pretrained(folder)
    side = checker.config.vision_config.image_size
    CLIPImageProcessorPil(size=side, crop_size=side).save_pretrained(folder)
    return folder


def embeddings(pictures: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """What these checkers' image encoder makes of pictures, [N, projected], each of length 1."""
    checker, see = _made(), CLIPImageProcessorPil(size=SIDE, crop_size=SIDE)
    values = see([Image.fromarray(picture) for picture in pictures], return_tensors="pt").pixel_values
    with torch.no_grad():
        embedded = checker.visual_projection(checker.vision_model(values)[1])
    return torch.nn.functional.normalize(embedded)


def between(wanted: NDArray[np.uint8], *others: NDArray[np.uint8]) -> tuple[torch.Tensor, float]:
    """A concept and a threshold by which one picture is seen, and the others are not."""
    seen, *unseen = embeddings([wanted, *others])
    nearest = max(float(seen @ other) for other in unseen)
    assert nearest < 0.996, "too alike: a checker rounds to thousandths"
    return seen, (1 + nearest) / 2
