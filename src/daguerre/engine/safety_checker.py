"""Owns a safety checker in host memory: diffusers' own, read from its files and asked about pictures, on the CPU."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from numpy.typing import NDArray
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from daguerre import safety_checkers, weightfile
from daguerre.engine.loading import BUILDING
from daguerre.errors import CatalogError


class SafetyChecker:
    """A network that compares pictures with concepts that are not to be seen. For one thread.

    Raises:
        CatalogError: its files are none of one, are broken, or hold numbers that are not finite.
        Exception: whatever the libraries make of files that are broken in a way that only they see.
    """

    def __init__(self, folder: Path) -> None:
        safety_checkers.vet(folder)
        self._see = CLIPImageProcessorPil.from_dict(weightfile.read_json(safety_checkers.preprocessor(folder)))
        self._checker = _read(folder)
        self._checker.visual_projection.register_forward_hook(_hold_finite)

    def flags(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether the picture, [H, W, 3], is seen to show one of them.

        Raises:
            ArithmeticError: the network does not come to numbers.
            Exception: whatever torch makes of too little memory.
        """
        values = self._see(Image.fromarray(pixels), return_tensors="pt").pixel_values
        with torch.inference_mode():
            # What it makes black if it sees something is a picture of ours that nobody looks at.
            _, flagged = self._checker(clip_input=values, images=torch.zeros(1, 1))
        return bool(flagged[0])


def _read(folder: Path) -> Any:
    with BUILDING, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about the files is for those who wrote them
        checker, told = StableDiffusionSafetyChecker.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are told instead, and refused below
            output_loading_info=True,
        )
    if told["missing_keys"] or told["mismatched_keys"]:
        raise CatalogError("it is not whole: tensors are missing, or of other shapes than its configuration says")
    for name, tensor in checker.named_parameters():
        if not bool(tensor.isfinite().all()):
            raise CatalogError(f"its tensor {name[:120]!r} holds numbers that are not finite")
    return checker.eval().requires_grad_(False)


def _hold_finite(_module: Any, _inputs: Any, embedded: torch.Tensor) -> None:
    """Comparisons with what is no number are all false: the picture would pass."""
    if not bool(embedded.norm(dim=-1).isfinite().all()):
        raise ArithmeticError("the safety checker's embedding is no number")
