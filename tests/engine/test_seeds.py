"""Same seed, same bytes."""

import pytest
import tiny
from harness import THIRD_PARTY, Darkroom, difference, job, paint_all

from daguerre.catalog import Catalog

pytestmark = THIRD_PARTY


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_the_same_seed_gives_the_same_bytes(models: Catalog, name: str) -> None:
    """Twice in one engine, and once in a new one; another seed gives other bytes."""
    model = models.model(name)
    with Darkroom() as darkroom:
        first = darkroom.paint(job(model, "a pier", seed=11)).picture
        other = darkroom.paint(job(model, "a pier", seed=12)).picture
        again = darkroom.paint(job(model, "a pier", seed=11)).picture
    with Darkroom() as darkroom:
        anew = darkroom.paint(job(model, "a pier", seed=11)).picture
    assert first.tobytes() == again.tobytes() == anew.tobytes()
    assert difference(first, other) > 1


@pytest.mark.parametrize("scheduler", ["euler_a", "kdpm2_a", "dpmpp_2m_sde", "ddpm", "lcm"])
def test_noise_within_the_loop_is_seeded_too(models: Catalog, scheduler: str) -> None:
    """The schedulers that draw at every step draw from the run's own generator, whoever paints beside it."""
    model = models.model("sdxl")
    mine = job(model, "a pier", seed=11, scheduler=scheduler, reproducible=True)
    alone, _ = paint_all([mine])
    in_company, _ = paint_all([job(model, "a quay", seed=5, scheduler=scheduler), mine, job(model, "a pier", seed=12)])
    assert alone[mine.id].picture.tobytes() == in_company[mine.id].picture.tobytes()


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_a_reproducible_picture_is_the_same_in_any_company(models: Catalog, name: str) -> None:
    """To the byte, where others come and go beside it."""
    model = models.model(name)
    mine = job(model, "a pier", seed=11, steps=5, reproducible=True)
    others = [job(model, "a quay", seed=seed, steps=1 + seed) for seed in range(4)]
    alone, _ = paint_all([mine])
    in_company, _ = paint_all([*others[:2], mine, *others[2:]])
    assert alone[mine.id].picture.tobytes() == in_company[mine.id].picture.tobytes()


@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_each_picture_of_a_job_is_that_of_its_seed(models: Catalog, name: str) -> None:
    """To the byte, on a CPU where nobody else paints."""
    model = models.model(name)
    together = job(model, "a pier", seed=11, count=3)
    with Darkroom() as darkroom:
        pictures = darkroom.paint(together).pictures
        singles = [darkroom.paint(job(model, "a pier", seed=11 + index)).picture for index in range(3)]
    assert [pictures[index].tobytes() for index in range(3)] == [picture.tobytes() for picture in singles]


def test_the_largest_seed(models: Catalog) -> None:
    """2**63 - 1 is a seed as any other."""
    mine = job(models.model("sd15"), "a pier", seed=2**63 - 1)
    outcomes, _ = paint_all([mine])
    assert outcomes[mine.id].error is None
