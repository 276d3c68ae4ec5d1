"""The line's sums are those that a look at every job gives, whatever comes and goes."""

import random

import msgspec

from daguerre.job import Job, Status, new_id
from daguerre.jobs.line import Line, Share, left
from daguerre.recipe import Recipe


def _job(random_numbers: random.Random) -> Job:
    recipe = Recipe(
        mode="txt2img",
        prompt="a circle",
        negative_prompt="",
        model="demo-xl",
        style=None,
        width=64 * random_numbers.randint(1, 8),
        height=64,
        steps=random_numbers.randint(1, 50),
        guidance_scale=1.0,
        seed=1,
        count=random_numbers.randint(1, 4),
        scheduler="euler",
        prompt_syntax="plain",
        clip_skip=0,
        strength=None,
        format="png",
        quality=90,
        reproducible=False,
        metadata={},
    )
    return Job(id=new_id(), recipe=recipe, created_at=0.0, client=random_numbers.choice("abc"))


def _share(jobs: list[Job]) -> Share:
    return Share(sum(job.status is Status.QUEUED for job in jobs), sum(map(left, jobs)))


def test_sums_are_those_of_a_look_at_every_job() -> None:
    """Jobs of three clients come, make steps and leave in any order, more than there were slots for to begin with."""
    numbers, line, jobs = random.Random(7), Line(), dict[str, Job]()
    for turn in range(6000):
        if len(jobs) < 5 or numbers.random() < 0.45:
            job = _job(numbers)
        else:
            job = numbers.choice(list(jobs.values()))
            steps = job.recipe.steps * job.recipe.count
            step = numbers.randint(job.step, steps)
            job = msgspec.structs.replace(job, status=Status.RUNNING, step=step, steps=steps)
        if job.id in jobs and numbers.random() < 0.4:
            del jobs[job.id]
            line.remove(job)
        else:
            jobs[job.id] = job
            line.put(job)
        if turn % 64 == 0:
            before = list(jobs.values())
            assert list(line) == list(jobs)
            assert line.whole == _share(before)
            some = numbers.choice(before)
            assert line.up_to(some, ()) == _share(
                [job for job in before[: before.index(some) + 1] if job.client == some.client]
            )
            assert line.of("a") == [job.id for job in before if job.client == "a"]
    for job in list(jobs.values()):
        line.remove(job)
    assert (len(line), line.whole, line.of("a")) == (0, Share(), [])
