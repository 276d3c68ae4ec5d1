"""Models that do not fit on the device as a whole: what computes is there, and the pictures are the same."""

import numpy as np
import pytest
import torch
from harness import THIRD_PARTY, Darkroom, assert_parity, job

from daguerre.catalog import Catalog
from daguerre.engine import Budgets, pipelines
from daguerre.engine.offload import Offload, Plan, Sizes, group_of
from daguerre.engine.pipelines import Pipeline, Room, load

pytestmark = THIRD_PARTY

GB = 10**9
SDXL, FLUX = Sizes(2 * GB, 5 * GB, GB), Sizes(10 * GB, 24 * GB, GB)
CPU = torch.device("cpu")
GREY = np.full((32, 32, 3), 128, dtype=np.uint8)


@pytest.mark.parametrize(
    ("sizes", "limit", "plan"),
    [
        (SDXL, 8 * GB, "none"),
        (SDXL, 7 * GB, "encoders"),
        (SDXL, 5 * GB, "model"),
        (SDXL, 4 * GB, "group"),
        (FLUX, 80 * GB, "none"),
        (FLUX, 26 * GB, "encoders"),
        (FLUX, 24 * GB, "model"),
        (FLUX, 12 * GB, "group"),
    ],
)
def test_the_quickest_plan_that_fits(sizes: Sizes, limit: int, plan: Plan) -> None:
    """By sizes; a setting has the last word."""
    assert sizes.plan(limit) == plan
    assert sizes.on_device(plan) <= limit
    assert sizes.plan(limit, "model") == "model"


@pytest.mark.parametrize("offload", ["encoders", "model", "group"])
@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "sd3"])
def test_pictures_are_those_of_diffusers(models: Catalog, name: str, offload: Offload) -> None:
    """From text and from an image, together and one after the other, with a preview on the way."""
    submissions = [
        job(models.model(name), "a bridge", seed=1, steps=3),
        job(models.model(name), "a heron", seed=2, steps=5, preview_every=2),
        job(models.model(name), "a bridge", seed=3, steps=4, guidance_scale=1.0),
        job(models.model(name), "a bridge", GREY, seed=4, steps=4),
    ]
    with Darkroom(budgets=Budgets(offload=offload)) as darkroom:
        darkroom.submit(*submissions)
        assert_parity(submissions, darkroom.outcomes())


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every module of every pipeline that is loaded tells when it computes although its group is not on the device."""
    told: list[str] = []
    make = Pipeline.__init__

    def init(self: Pipeline, *args: object, **kwargs: object) -> None:
        make(self, *args, **kwargs)  # type: ignore[arg-type]
        for name, part in pipelines._modules_of(self._pipe).items():
            group = group_of(name)
            for path, leaf in part.named_modules():
                if not list(leaf.children()):
                    leaf.register_forward_pre_hook(
                        lambda *_, group=group, name=f"{name}.{path}": (
                            None if group in self._parts.present else told.append(name)
                        )
                    )

    monkeypatch.setattr(Pipeline, "__init__", init)
    return told


@pytest.mark.parametrize("offload", ["none", "encoders", "model"])
@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux", "sd3"])
def test_nothing_computes_where_it_is_not(models: Catalog, name: str, offload: Offload, absent: list[str]) -> None:
    """Whoever calls a part, in whatever syntax a prompt is written."""
    options = {"prompt_syntax": "a1111"} if name in ("sd15", "sdxl") else {}
    submissions = [
        job(models.model(name), "a bridge", seed=1, steps=2),
        job(models.model(name), "a bridge", GREY, seed=1, steps=4, prompt_syntax="compel"),
        job(models.model(name), "a heron", seed=2, steps=3, preview_every=1, **options),
    ]
    with Darkroom(budgets=Budgets(offload=offload)) as darkroom:
        for submission in submissions:
            darkroom.paint(submission)
        darkroom.submit(*[job(models.model(name), "two bridges", seed=seed, steps=3) for seed in range(3)])
        darkroom.outcomes()
    assert not absent


def test_parts_leave_when_others_come(models: Catalog) -> None:
    """Under each plan as much is there as its sizes say, and not more."""
    for offload, after in (("none", {"encoders", "denoiser", "others"}), ("model", {"others"})):
        pipeline = load(models.model("sdxl"), torch.float32, Room(CPU, offload=offload))  # type: ignore[arg-type]
        assert not pipeline._parts.present
        pipeline.to_device()
        for group in ("encoders", "denoiser", "others"):
            pipeline._parts.bring_in(group)  # type: ignore[arg-type]
        assert pipeline._parts.present == after
        assert pipeline.device_bytes <= pipeline.bytes
        pipeline.leave_device()
        assert not pipeline._parts.present
    pipeline = load(models.model("sdxl"), torch.float32, Room(CPU, offload="encoders"))
    for group in ("encoders", "others", "denoiser"):
        pipeline._parts.bring_in(group)  # type: ignore[arg-type]
    assert pipeline._parts.present == {"denoiser", "others"}
    pipeline._parts.bring_in("encoders")
    assert pipeline._parts.present == {"encoders", "others"}
