"""The safety checker against diffusers' own call, and files that are none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkerfiles
import diffusers
import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from harness import THIRD_PARTY
from numpy.typing import NDArray
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from daguerre.catalog import Catalog
from daguerre.engine.safety_checker import SafetyChecker
from daguerre.errors import CatalogError

pytestmark = THIRD_PARTY

SIZES = ((64, 64), (32, 96), (200, 40), (31, 33))


def _pictures(count: int) -> list[NDArray[np.uint8]]:
    """Patches of colour, of several sizes."""
    chance = np.random.default_rng(0)
    few = [chance.integers(0, 256, (4, 4, 3), np.uint8) for _ in range(count)]
    sizes = [SIZES[number % len(SIZES)] for number in range(count)]
    return [
        np.ascontiguousarray(picture.repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)[:height, :width])
        for picture, (height, width) in zip(few, sizes, strict=True)
    ]


@pytest.mark.parametrize("has_special_care", [False, True])
def test_it_sees_what_diffusers_sees(tmp_path: Path, models: Catalog, *, has_special_care: bool) -> None:
    """Picture by picture, as a pipeline asks its checker; some are seen and some are not."""
    pictures = _pictures(40)
    nearest = (checkerfiles.embeddings(pictures) @ torch.nn.functional.normalize(_concepts(tmp_path)).T).amax(1)
    folder = checkerfiles.write(tmp_path / "checker", float(nearest.median()))
    if has_special_care:  # pictures near to these are looked at more strictly
        _edit(folder, special_care_embeds_weights=lambda tensor: tensor.fill_(0.1))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        models.model("sd15").path,
        safety_checker=StableDiffusionSafetyChecker.from_pretrained(folder),
        feature_extractor=CLIPImageProcessorPil.from_pretrained(folder),
        requires_safety_checker=True,
    )
    wanted = []
    for picture in pictures:
        _, flagged = pipe.run_safety_checker(picture[None].astype(np.float32) / 255, "cpu", torch.float32)
        wanted += flagged
    checker = SafetyChecker(folder)
    assert [checker.flags(picture) for picture in pictures] == wanted
    assert 5 < sum(wanted) < 35


def _concepts(tmp_path: Path) -> torch.Tensor:
    return _tensors(checkerfiles.write(tmp_path / "same"))["concept_embeds"]


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(folder / "model.safetensors")
    return tensors


def _edit(folder: Path, **changes: Callable[[torch.Tensor], Any]) -> None:
    tensors = _tensors(folder)
    for name, change in changes.items():
        change(tensors[name])
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_the_files_of_the_best_known_one(tmp_path: Path) -> None:
    """Its names have one part more, its numbers are halves, and its processor is told in older words."""
    seen, unseen = _pictures(2)
    concept, threshold = checkerfiles.between(seen, unseen)
    folder = checkerfiles.write(tmp_path / "checker", threshold, concept)
    own = _tensors(folder)
    tensors = {name.replace("vision_model.", "vision_model.vision_model."): own[name].half() for name in own}
    tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    told = {"crop_size": 32, "size": 32, "resample": 3, "do_center_crop": True, "do_normalize": True, "do_resize": True}
    told |= {"feature_extractor_type": "CLIPFeatureExtractor", "do_convert_rgb": True}
    told |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    checker = SafetyChecker(folder)
    assert checker.flags(seen)
    assert not checker.flags(unseen)


def _without(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        tensors = _tensors(folder)
        del tensors[name]
        safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return harm


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _told(file: str, **words: Any) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | words))

    return harm


HARMS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut off": (_cut, "safetensors"),
    "pickle": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04cposix\nsystem\n"), "safetensors"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights in safetensors"),
    "another network": (_without("concept_embeds"), "no StableDiffusionSafetyChecker"),
    "not whole": (_without("vision_model.pre_layrnorm.weight"), "tensors are missing"),
    "not a number": (lambda folder: _edit(folder, concept_embeds=lambda t: t[3].fill_(float("nan"))), "not finite"),
    "other shapes": (_told("config.json", projection_dim=25), "other shapes"),
    "no processor": (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
    "code": (_told("config.json", auto_map={"AutoModel": "evil.Model"}), "code of its own"),
    "code of the processor": (_told("preprocessor_config.json", auto_map={"A": "b.C"}), "code of its own"),
}


@pytest.mark.parametrize("name", HARMS)
def test_broken_files_are_told(tmp_path: Path, name: str) -> None:
    """By what is wrong with them, and by no path."""
    harm, told = HARMS[name]
    folder = checkerfiles.write(tmp_path / "checker")
    harm(folder)
    with pytest.raises(CatalogError, match=told) as caught:
        SafetyChecker(folder)
    assert str(tmp_path) not in str(caught.value)


def test_numbers_that_run_over_let_nothing_pass(tmp_path: Path) -> None:
    """They compare with no concept: that is a failure, not a picture in which nothing is seen."""
    folder = checkerfiles.write(tmp_path / "checker", checkerfiles.ALWAYS)
    _edit(folder, **{"visual_projection.weight": lambda tensor: tensor.fill_(3e38)})
    with pytest.raises(ArithmeticError):
        SafetyChecker(folder).flags(_pictures(1)[0])
