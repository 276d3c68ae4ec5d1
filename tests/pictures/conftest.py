"""Painting for the tests: one engine for all of them, and one plain diffusers pipeline on the same weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eye import Paint, Picture
from PIL import Image

from daguerre import Draft, Studio
from daguerre.settings import Settings

WEIGHTS = Path(__file__).parents[2] / "weights"


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """The real engine on the embedded model, on the CPU."""
    outputs = tmp_path_factory.mktemp("outputs")
    with Studio(Settings(device="cpu", weights=WEIGHTS, outputs=outputs)) as studio:
        yield studio


@pytest.fixture
def paint(studio: Studio) -> Paint:
    """Paints a recipe's pictures, 256² in 12 steps where it says nothing else."""

    def paint(prompt: str, **fields: Any) -> list[Picture]:
        draft = Draft(prompt=prompt, **{"width": 256, "height": 256, "steps": 12, "seed": 0} | fields)
        pictures = []
        for path in studio.generate(draft):
            with Image.open(path) as image:
                pictures.append(np.asarray(image))
        return pictures

    return paint


@pytest.fixture(scope="session")
def plain_pipeline() -> Iterator[Any]:
    """diffusers' own pipeline, as its users load it, on one core: on a busy machine OpenMP waits for the second."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(WEIGHTS / "demo-xl", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield pipeline
    torch.set_num_threads(threads)
