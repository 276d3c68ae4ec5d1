"""Mixed traffic over three models, four LoRAs and two reference images: each picture is the one that is made alone."""

import gc
import random
import re
import time
from dataclasses import replace
from pathlib import Path

import diffusers
import ipfiles
import pytest
import torch
from harness import THIRD_PARTY, Darkroom, Floats, assert_same
from lorafiles import ATTENTION, diffusers_lora, layers
from test_adapters import Shelf
from test_references import reference, seeing

from daguerre.catalog import Catalog
from daguerre.engine import Budgets, Submission
from daguerre.references import References

pytestmark = THIRD_PARTY

NAMES = ("sd15", "sdxl", "flux")
#: LoRAs, by the models that they are for.
LORAS = {"sd15": ("ink", "oil"), "sdxl": ("clay",), "flux": ("glass",)}
MORE_BYTES = 96 * 1024 * 1024


@pytest.fixture
def traffic(tmp_path: Path, models: Catalog) -> list[Submission]:
    """Forty different wishes: with and without LoRAs and references, of several lengths, sizes and samplers."""
    shelf = Shelf(tmp_path, models.model("sd15").path.parent)
    (tmp_path / "ip-adapters").unlink(missing_ok=True)
    for name in NAMES:
        kind = diffusers.FluxTransformer2DModel if name == "flux" else diffusers.UNet2DConditionModel
        part = "transformer" if name == "flux" else "unet"
        denoiser = kind.from_pretrained(tmp_path / name / part)
        ipfiles.write(tmp_path / "ip-adapters" / f"{name}.safetensors", ipfiles.plain(denoiser, seed=len(name)))
        for seed, lora in enumerate(LORAS[name]):
            shelf.put(lora, diffusers_lora({part: layers(denoiser, ATTENTION)}, seed=seed))
    ipfiles.write_encoder(tmp_path / "ip-adapters" / "image_encoder")
    sources, chance = References(tmp_path), random.Random(5)
    made: list[Submission] = []
    for number in range(40):
        name = chance.choice(NAMES)
        loras = {lora: chance.choice((0.4, 0.8)) for lora in LORAS[name] if chance.random() < 0.4}
        side = chance.choice((32, 48))
        one = shelf.job(name, f"wish {number % 7}", loras, steps=chance.randint(2, 8), seed=number, width=side)
        if chance.random() < 0.4:
            one = seeing(sources, one, reference(chance.choice((1, 2)), chance.choice((0.4, 0.8))))
        made.append(one)
    return made


def _flow(traffic: list[Submission], seconds: float) -> tuple[int, int]:
    """Paints each alone, then at random in company for so long; gives how many pictures there were, and more bytes."""
    with Darkroom(budgets=Budgets(device=1, offload="none")) as darkroom:
        alone = {one.id: darkroom.paint(one).exact for one in traffic}
    chance, painted = random.Random(11), 0
    with Darkroom() as darkroom:
        painted += _burst(darkroom, traffic, alone, chance, "warm")
        before = _held()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            painted += _burst(darkroom, traffic, alone, chance, str(painted))
        return painted, _held() - before


def _burst(
    darkroom: Darkroom, traffic: list[Submission], alone: dict[str, Floats], chance: random.Random, name: str
) -> int:
    """Twenty at once, of which some come twice: each must be what it is alone."""
    of = {f"{name}-{number}": chance.choice(traffic) for number in range(20)}
    darkroom.submit(*(replace(one, id=job_id) for job_id, one in of.items()))
    outcomes = darkroom.outcomes()
    for job_id, one in of.items():
        assert_same(outcomes[job_id].exact, alone[one.id], one)
    darkroom.forget()
    return len(of)


def _held() -> int:
    """Bytes that the process holds."""
    gc.collect()
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@torch.no_grad()
def test_company_changes_nothing(traffic: list[Submission]) -> None:
    """For some seconds."""
    painted, _ = _flow(traffic, 3.0)
    assert painted >= 40


@pytest.mark.long
@pytest.mark.timeout(1200)
@torch.no_grad()
def test_five_minutes_of_company(traffic: list[Submission]) -> None:
    """And the memory stays what it was."""
    painted, more = _flow(traffic, 300.0)
    assert painted >= 1000
    assert more < MORE_BYTES
