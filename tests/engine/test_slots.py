"""The slots of adapters count among what is on the device: room is made for them before a picture begins."""

from collections.abc import Mapping
from pathlib import Path

import lorafiles
import pytest
import torch
from harness import THIRD_PARTY, Darkroom, Picture, difference, job
from lorafiles import ATTENTION, CONVOLUTIONS, kohya, layers

from daguerre import catalog
from daguerre.catalog import Catalog, Model
from daguerre.engine import Budgets, ModelPlaced, Stepped, Submission
from daguerre.engine.adapter_cache import Hosted, read
from daguerre.engine.pipelines import Pipeline, load
from daguerre.errors import InvalidRecipe
from daguerre.loras import Loras
from daguerre.recipe import LoraWish

pytestmark = THIRD_PARTY

RANKS = {"small": 3, "large": 40}


class Rack:
    """A weights folder with the tiny models, and LoRAs of three kinds for Stable Diffusion 1.5."""

    def __init__(self, folder: Path, models: Path) -> None:
        for path in models.iterdir():
            (folder / path.name).symlink_to(path)
        self.catalog: Catalog = catalog.read(folder, "sd15")
        unet = load(self.catalog.model(), torch.float32).denoiser
        found = layers(unet, ATTENTION + CONVOLUTIONS)
        for name, rank in RANKS.items():
            lora = lorafiles.diffusers_lora({"unet": found}, rank, seed=rank)
            lorafiles.write(folder / "loras" / f"{name}.safetensors", lora)
        named = {kohya(path): (f"unet.{path}", layer) for path, layer in found.items()}
        lorafiles.write(folder / "loras" / "lokr.safetensors", lorafiles.lycoris(named, lorafiles.lokr)[0])
        self.loras = Loras(folder)
        #: Numbers in the slots of all layers, for each rank.
        self.a_rank = sum(layer.weight[0].numel() + layer.weight.shape[0] for layer in found.values())

    def hosted(self, name: str) -> Hosted:
        """A LoRA in host memory."""
        return read(self.loras.find(name).adapter, torch.float32)

    def job(self, model: Model, worn: Mapping[str, float], seed: int = 0, steps: int = 3) -> Submission:
        """A picture with LoRAs."""
        wishes = tuple(LoraWish(name, weight) for name, weight in worn.items())
        return job(model, "a mill", all_loras=self.loras, loras=wishes, seed=seed, steps=steps)

    def fresh(self, submission: Submission) -> Picture:
        """The same in an engine of its own."""
        with Darkroom() as darkroom:
            return darkroom.paint(submission).picture


@pytest.fixture
def rack(tmp_path: Path, models: Catalog) -> Rack:
    """One rack."""
    return Rack(tmp_path, models.model("sd15").path.parent)


def _slots(pipeline: Pipeline) -> int:
    """Bytes of all tensors that lie in slots, counted one by one."""
    found = 0
    for wardrobe in (pipeline.adapters._denoiser, pipeline.adapters._encoders):
        for slot in wardrobe._slots.values():
            pairs = [slot.down, slot.up, *(tensor for pair in slot.kroneckers for tensor in pair)]
            found += sum(tensor.nbytes for tensor in pairs if tensor is not None)
    return found


def test_what_slots_lack_is_what_they_take(rack: Rack) -> None:
    """Said beforehand, for products of both kinds; the second time nothing is lacking, at the end nothing is left."""
    pipeline = load(rack.catalog.model(), torch.float32)
    bare = pipeline.device_bytes
    small, large, lokr = (rack.hosted(name) for name in ("small", "large", "lokr"))
    sets = [
        ([(small, 1.0)], 8 * 4 * rack.a_rank),  # ranks are allocated from 8 on, doubling
        ([(small, 0.5)], 0),
        ([(small, 1.0), (large, 0.0)], 0),
        ([(small, 1.0), (large, 0.3)], 56 * 4 * rack.a_rank),  # 43 in all: 64, of which 8 were there
        ([(lokr, 1.0)], lokr.bytes),
        ([(small, 0.2), (lokr, 1.0)], 0),
    ]
    for worn, lacking in sets:
        before = pipeline.device_bytes
        assert pipeline.adapters.lacks(worn) == lacking
        pipeline.adapters.grow(worn)
        assert pipeline.device_bytes == before + lacking == pipeline.bytes
        assert pipeline.adapters.lacks(worn) == 0
        pipeline.adapters.wear_on_denoiser(worn)
        assert pipeline.device_bytes == before + lacking
    pipeline.adapters.wear_on_denoiser([(small, 1.0), (large, 1.0), (lokr, 1.0)])
    assert bare + _slots(pipeline) == pipeline.device_bytes > bare
    pipeline.leave_device()
    assert pipeline.device_bytes == bare
    assert pipeline.adapters.lacks(sets[0][0]) == sets[0][1]


@pytest.mark.parametrize("name", ["small", "large"])
def test_another_model_makes_room_for_them(rack: Rack, name: str) -> None:
    """Two models and a small LoRA fit onto the device; for a large one the idle model leaves before it is put on."""
    sd15, sdxl = (rack.catalog.model(name) for name in ("sd15", "sdxl"))
    two = sum(load(model, torch.float32).device_bytes for model in (sd15, sdxl))
    expected = rack.fresh(rack.job(sd15, {name: 0.5}))
    with Darkroom(budgets=Budgets(device=two + 8 * 4 * rack.a_rank, offload="none")) as darkroom:
        darkroom.paint(job(sdxl, "a mill"))
        darkroom.paint(job(sd15, "a mill"))
        assert ModelPlaced("sdxl", "host") not in darkroom.events
        assert difference(darkroom.paint(rack.job(sd15, {name: 0.5})).picture, expected) <= 1
        assert (ModelPlaced("sdxl", "host") in darkroom.events) == (name == "large")
        # Back comes the other; where there is no room for both, the slots go with their model and come with it.
        darkroom.paint(job(sdxl, "a mill"))
        assert (ModelPlaced("sd15", "host") in darkroom.events) == (name == "large")
        assert difference(darkroom.paint(rack.job(sd15, {name: 0.5})).picture, expected) <= 1


def test_what_lay_in_slots_that_grew_is_put_in_anew(rack: Rack) -> None:
    """Although nothing else has been worn in between."""
    adapters = load(rack.catalog.model(), torch.float32).adapters
    worn = [(rack.hosted("small"), 0.7)]
    adapters.wear_on_denoiser(worn)
    before = {name: (slot.down[:3].clone(), slot.up[:3].clone()) for name, slot in adapters._denoiser._slots.items()}
    assert not adapters.wear_on_denoiser(worn)
    large = [(rack.hosted("large"), 1.0)]
    assert adapters.lacks(large)
    adapters.grow(large)
    assert adapters.wear_on_denoiser(worn)
    for name, slot in adapters._denoiser._slots.items():
        assert len(slot.up) == 64
        assert torch.equal(slot.down[:3], before[name][0])
        assert torch.equal(slot.up[:3], before[name][1])
        assert not slot.up[3:].any()


def test_slots_that_grow_under_a_picture_keep_what_it_wears(rack: Rack) -> None:
    """One with a small LoRA is under way when one with a large one begins: both are what they are alone."""
    model = rack.catalog.model()
    long, other = rack.job(model, {"small": 0.6}, steps=25), rack.job(model, {"large": 0.2}, seed=1)
    expected = [rack.fresh(submission) for submission in (long, other)]
    with Darkroom() as darkroom:
        darkroom.submit(long)
        darkroom.wait(lambda: any(isinstance(event, Stepped) and event.step > 3 for event in darkroom.events))
        darkroom.submit(other)
        outcomes = darkroom.outcomes()
        last = [event.job_id for event in darkroom.events if isinstance(event, Stepped)][-1]
    assert last == long.id
    assert difference(outcomes[long.id].picture, expected[0]) <= 1
    assert difference(outcomes[other.id].picture, expected[1]) <= 1


def test_a_lora_that_does_not_fit_ends_its_job_alone(rack: Rack) -> None:
    """It is held against the layers where room is made for it."""
    wide = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": torch.nn.Linear(7, 7)}
    path = rack.loras._weights / "loras" / "wrong.safetensors"
    submission = rack.job(rack.catalog.model(), {"small": 1.0})
    ((_, weight),) = submission.adapters
    lorafiles.write(path, lorafiles.diffusers_lora({"unet": wide}))
    wrong = Submission(
        "wrong", submission.recipe, submission.model, adapters=((rack.loras.find("wrong").adapter, weight),)
    )
    with Darkroom() as darkroom:
        assert isinstance(darkroom.paint(wrong).error, InvalidRecipe)
        assert darkroom.paint(submission).error is None
