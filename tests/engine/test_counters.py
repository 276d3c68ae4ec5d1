"""What the engine counts: forwards and their rows, who stood aside, what each picture took of the device."""

from pathlib import Path

import diffusers
import lorafiles
import pytest
import torch
from harness import THIRD_PARTY, Darkroom, count_forwards, job

from daguerre import catalog
from daguerre.catalog import Catalog
from daguerre.engine import Engine, Event, Painted, Stepped
from daguerre.engine.share import DeviceMemory, Share
from daguerre.loras import Loras
from daguerre.recipe import LoraWish
from daguerre.telemetry.counters import Memory

pytestmark = THIRD_PARTY


def _painted(darkroom: Darkroom) -> list[Painted]:
    return [event for event in darkroom.events if isinstance(event, Painted)]


def test_forwards_are_counted_with_their_rows_and_shared_out(models: Catalog) -> None:
    """As many as were computed; the pictures' parts of their seconds are all of these, none counted twice."""
    sd15 = models.model("sd15")
    submissions = [job(sd15, f"a bridge {seed}", seed=seed, steps=4 + seed, scheduler="euler") for seed in range(3)]
    darkroom = Darkroom()
    darkroom.submit(*submissions)
    with count_forwards() as rows, darkroom:
        darkroom.outcomes()
    counters = darkroom.engine.counters
    assert sum(counters.forwards.values()) == len(rows)
    assert sum(count * number for count, number in counters.forwards.items()) == 2 * (4 + 5 + 6)
    painted = _painted(darkroom)
    around = sum(event.encode_seconds + event.decode_seconds for event in painted)
    assert sum(event.device_seconds for event in painted) == pytest.approx(around + counters.forward_seconds)
    assert all(event.device_seconds > 0 for event in painted)
    assert {event.memory_peak for event in painted} == {None}
    assert counters.memory == Memory()


def test_a_picture_that_lets_others_go_first_is_counted(models: Catalog) -> None:
    """A long one stands aside for a short one of another size; one that is alone never does."""
    sd15 = models.model("sd15")
    long, short = job(sd15, "a bridge", steps=40), job(sd15, "a boat", width=64, steps=2)

    def react(engine: Engine, event: Event) -> None:
        if isinstance(event, Stepped) and event.job_id == long.id and event.step == 2:
            engine.submit(short)

    with Darkroom() as alone:
        alone.paint(job(sd15, "a bridge", steps=10))
    assert alone.engine.counters.preemptions == 0
    with Darkroom(react=react) as darkroom:
        darkroom.expect(short)
        darkroom.submit(long)
        darkroom.outcomes()
    assert 1 <= darkroom.engine.counters.preemptions <= 4


def test_tokens_are_told_where_they_were_read(models: Catalog) -> None:
    """Of prompt and negative; none when the prompt was known; nothing of a pipeline that encodes for itself."""
    sd15 = models.model("sd15")
    with Darkroom() as darkroom:
        for seed in (1, 2):
            darkroom.paint(job(sd15, "a bridge", seed=seed))
        darkroom.paint(job(sd15, "a bridge", guidance_scale=1.0))
    assert [event.tokens for event in _painted(darkroom)] == [154, 0, 77]


def test_loras_are_counted_when_they_are_looked_for_and_when_they_change(models: Catalog, tmp_path: Path) -> None:
    """The first picture waits for the disk, the next one does not; each change of what the denoiser wears is one."""
    path = models.model("sd15").path
    (tmp_path / "sd15").symlink_to(path)
    unet = diffusers.UNet2DConditionModel.from_pretrained(path, subfolder="unet")
    tensors = lorafiles.diffusers_lora({"unet": lorafiles.layers(unet, lorafiles.ATTENTION)})
    lorafiles.write(tmp_path / "loras" / "one.safetensors", tensors)
    loras, sd15 = Loras(tmp_path), catalog.read(tmp_path, "sd15").model("sd15")
    with Darkroom() as darkroom:
        for weight in (0.0, 1.0, 1.0, 0.5, 0.0):
            wishes = (LoraWish("one", weight),) if weight else ()
            assert darkroom.paint(job(sd15, "a bridge", all_loras=loras, loras=wishes)).error is None
    counters = darkroom.engine.counters
    assert (counters.adapter_misses, counters.adapter_hits) == (1, 2)
    assert counters.lora_switches == 3


def test_forwards_still_under_way_count_like_the_others() -> None:
    """On a device that tells late; nothing is known of a picture of which no forward was timed."""
    share = Share(forwards=4)
    assert share.seconds == 0
    for _ in range(2):
        share.add(0.5)
    assert share.seconds == 2.0


def test_the_peak_is_that_since_it_was_last_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own numbers of a device with memory of its own."""
    peaks = [5, 9]
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: peaks[0])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _device: peaks.pop(0))
    memory = DeviceMemory(torch.device("cuda", 0))
    assert [memory.lap(), memory.lap()] == [5, 9]
    assert DeviceMemory(torch.device("cpu")).lap() is None


def test_the_watchdog_tells_how_long_a_step_takes(models: Catalog) -> None:
    """While there is one; nothing between steps."""
    seen: list[float] = []

    def react(engine: Engine, event: Event) -> None:
        if isinstance(event, Stepped):
            seen.append(engine.step_seconds)

    with Darkroom(react=react) as darkroom:
        darkroom.paint(job(models.model("sd15"), "a bridge"))
    assert all(seconds > 0 for seconds in seen)
    assert darkroom.engine.step_seconds == 0
