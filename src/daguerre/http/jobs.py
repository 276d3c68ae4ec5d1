"""Owns the queued routes: submit now, ask later. A client sees its own jobs.

Where nobody has to authenticate, whoever knows an id may ask for it.
"""

import asyncio
import itertools
import math
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from daguerre.answers import Cancellation, JobPage, QueuedJob, QueueStatus, Task, TaskProgress, TaskResult
from daguerre.errors import FieldError, InvalidRecipe, JobCancelled, NoPicture, ResultExpired
from daguerre.http import wire
from daguerre.http.exchange import (
    accepted,
    as_json,
    client_of,
    expect,
    job_json,
    picture_at,
    read_draft,
    read_inputs,
    submit_detached,
)
from daguerre.http.state import State
from daguerre.imaging import media_type
from daguerre.job import Status

#: Jobs of one page, if the client does not say, and at most.
PAGE, MAX_PAGE = 50, 200

#: What clients of the older task API call our states.
TASK_STATES: dict[Status, Literal["PENDING", "PROGRESS", "SUCCESS", "FAILURE"]] = {
    Status.QUEUED: "PENDING",
    Status.RUNNING: "PROGRESS",
    Status.SUCCEEDED: "SUCCESS",
    Status.FAILED: "FAILURE",
    Status.CANCELLED: "FAILURE",
}


async def submit(request: Request[State]) -> Response:
    """``POST /v1/jobs``, ``POST /generate/queue``: 202 once the job is durable."""
    draft = await read_draft(request)
    return accepted(await submit_detached(request, draft, await read_inputs(request, draft)), request)


async def job(request: Request[State]) -> Response:
    """``GET /v1/jobs/{id}``, ``GET /queue/status/{id}``: the job as it stands."""
    return job_json(request, await expect(request))


async def jobs(request: Request[State]) -> Response:
    """``GET /v1/jobs``: the caller's jobs, the newest first, a page at a time."""
    status, limit = request.query_params.get("status"), _limit(request)
    if status is not None and status not in set(Status):
        raise InvalidRecipe([FieldError("status", f"must be one of {', '.join(Status)}")])
    cursor = request.query_params.get("cursor") or None
    service = request.state["service"]
    found = (
        job
        for job in service.jobs_of(client_of(request))
        if (status is None or job.status == status) and (cursor is None or job.id < cursor)
    )
    page = list(itertools.islice(found, limit))
    rest = next(found, None)
    data = [wire.wire_job(job, [], None if job.status.is_final else service.place(job)) for job in page]
    body = JobPage(data, next_cursor=page[-1].id if rest is not None else None)
    return as_json(body)


def _limit(request: Request[State]) -> int:
    text = request.query_params.get("limit", str(PAGE))
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= MAX_PAGE):
        raise InvalidRecipe([FieldError("limit", f"must be a whole number from 1 to {MAX_PAGE}")])
    return int(text)


async def result(request: Request[State]) -> Response:
    """``GET /v1/jobs/{id}/result``, ``GET /result/{id}``: the picture; 202 while there is none yet."""
    service = request.state["service"]
    found = await expect(request)
    if not found.status.is_final:
        wait = max(1, math.ceil(min(60.0, service.place(found).eta)))
        return job_json(request, found, 202, {"retry-after": str(wait)})
    if found.status is not Status.SUCCEEDED:
        raise JobCancelled if found.status is Status.CANCELLED else NoPicture(service.error(found))
    image = picture_at(request, found)
    path = request.state["files"].find(image.filename)
    if path is None:
        raise ResultExpired("the picture's file has been removed")
    data = await asyncio.get_running_loop().run_in_executor(request.state["codec"], path.read_bytes)
    headers = wire.generation_headers(found) | {"x-seed": str(image.seed)}
    return Response(data, headers=headers, media_type=media_type(found.recipe.format))


async def cancel(request: Request[State]) -> Response:
    """``DELETE /v1/jobs/{id}``, ``POST /v1/jobs/{id}/cancel``: a running job stops within one step."""
    service = request.state["service"]
    found = await expect(request)
    is_cancelled = service.cancel(found.id)
    await service.settled()
    return as_json(Cancellation(is_cancelled))


async def queue_status(request: Request[State]) -> Response:
    """``GET /queue/status``: how much there is to do; of the jobs only the caller's own."""
    service = request.state["service"]
    mine = service.unfinished_of(client_of(request))
    body = QueueStatus(
        size=service.waiting,
        running=service.running,
        limit=service.limits.queue,
        eta_s=round(service.all_done, 1),
        jobs=[QueuedJob(job.id, job.status, service.place(job).position) for job in mine],
    )
    return as_json(body)


async def task(request: Request[State]) -> Response:
    """``GET /status/{id}``: the job as clients of the older task API know it."""
    found = await expect(request)
    is_done = found.status is Status.SUCCEEDED
    body = Task(
        task_id=found.id,
        state=TASK_STATES[found.status],
        result=TaskResult(found.id, [f"/outputs/{image.filename}" for image in found.images]) if is_done else None,
        meta=TaskProgress(found.step, found.steps) if found.status is Status.RUNNING else None,
        error=found.error.message if found.error is not None else None,
    )
    return as_json(body)


ROUTES: list[BaseRoute] = [
    Route("/generate/queue", submit, methods=["POST"]),
    Route("/queue/status", queue_status),
    Route("/queue/status/{id}", job),
    Route("/result/{id}", result),
    Route("/image/{id}", result),
    Route("/status/{id}", task),
    *(
        route
        for root in ("/v1", "/api/v1")
        for route in (
            Route(f"{root}/jobs", submit, methods=["POST"]),
            Route(f"{root}/jobs", jobs),
            Route(f"{root}/jobs/{{id}}", job),
            Route(f"{root}/jobs/{{id}}", cancel, methods=["DELETE"]),
            Route(f"{root}/jobs/{{id}}/cancel", cancel, methods=["POST"]),
            Route(f"{root}/jobs/{{id}}/result", result),
        )
    ),
]
