"""Owns the rows of usage: what each client's pictures have taken, added up in the transaction that finishes a job."""

import sqlite3

import msgspec

from daguerre.job import Job
from daguerre.store.db import Database


class Usage(msgspec.Struct, frozen=True):
    """A client's totals over its jobs that succeeded; ``since`` is the end of the first, in Unix seconds."""

    since: float | None = None
    jobs: int = 0
    images: int = 0
    steps: int = 0
    pixels: int = 0
    device_seconds: float = 0.0


def add(connection: sqlite3.Connection, job: Job) -> None:
    """Adds a job that has succeeded to its client's totals."""
    pixels = sum(image.width * image.height for image in job.images)
    steps = job.steps or job.recipe.steps * len(job.images)
    connection.execute(
        """
        INSERT INTO usage VALUES (?, ?, 1, ?, ?, ?, ?) ON CONFLICT (client) DO UPDATE SET
            jobs = jobs + 1, images = images + excluded.images, steps = steps + excluded.steps,
            pixels = pixels + excluded.pixels, device_seconds = device_seconds + excluded.device_seconds
        """,
        (job.client, job.finished_at, len(job.images), steps, pixels, job.device_seconds),
    )


async def of(database: Database, client: str) -> Usage:
    """A client's totals.

    Raises:
        StorageFailed: they cannot be read.
    """
    query = "SELECT since, jobs, images, steps, pixels, device_seconds FROM usage WHERE client = ?"
    row = await database.write(lambda connection: connection.execute(query, (client,)).fetchone())
    return Usage() if row is None else Usage(*row)
