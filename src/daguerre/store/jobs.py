"""Owns the rows of jobs: what is durable of them, and what a new process finds."""

import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future
from typing import NamedTuple

import msgspec

from daguerre.job import Job, Status
from daguerre.store import usage
from daguerre.store.db import Database


class Key(NamedTuple):
    """A client's Idempotency-Key, and the digest of the request that it came with."""

    client: str
    name: str
    digest: str


class Pictures(NamedTuple):
    """The files that a job starts from."""

    image: bytes | None
    mask: bytes | None
    references: tuple[bytes, ...] = ()


class JobRows:
    """The jobs of one database. A change made by one call is there as a whole or not at all."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, job: Job, pictures: Pictures | None, key: Key | None) -> None:
        """A new job; it is durable when this returns.

        Raises:
            StorageFailed: it is not there.
        """

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO jobs VALUES (?, ?, ?, ?)", _row(job))
            if pictures is not None:
                _insert(connection, job.id, pictures)
            if key is not None:
                connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?)", (*key, job.id))

        await self._database.write(change)

    def put(self, job: Job) -> "Future[None]":
        """A job's new state. What a finished one started from is no longer needed, and its webhook is owed."""

        def change(connection: sqlite3.Connection) -> None:
            job_id, *rest = _row(job)
            connection.execute("UPDATE jobs SET status = ?, finished_at = ?, body = ? WHERE id = ?", (*rest, job_id))
            pictures = [(image.filename, job.client) for image in job.images]
            connection.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?)", pictures)
            if job.status.is_final:
                connection.execute("DELETE FROM inputs WHERE job_id = ?", (job_id,))
                connection.execute("DELETE FROM reference_images WHERE job_id = ?", (job_id,))
            if job.status is Status.SUCCEEDED:
                usage.add(connection, job)
            if job.status.is_final and job.webhook is not None:
                connection.execute("INSERT OR IGNORE INTO deliveries VALUES (?, 0, 0.0)", (job_id,))

        return self._database.post(change)

    async def usage(self, client: str) -> usage.Usage:
        """What the pictures of a client have taken so far.

        Raises:
            StorageFailed: it cannot be read.
        """
        return await usage.of(self._database, client)

    async def settled(self) -> None:
        """Returns when everything that was asked for before is durable, or has failed."""
        await self._database.write(lambda _: None)

    async def pictures(self, job_id: str) -> Pictures | None:
        """The files that an unfinished job starts from, if it does."""
        return await self._database.write(lambda connection: _pictures(connection, job_id))

    async def remembered(self, since: float) -> list[Job]:
        """The unfinished jobs and those that ended since that moment, in the order in which they came."""

        def change(connection: sqlite3.Connection) -> list[bytes]:
            query = "SELECT body FROM jobs WHERE finished_at IS NULL OR finished_at >= ? ORDER BY id"
            return [body for (body,) in connection.execute(query, (since,))]

        return list(_jobs(await self._database.write(change)))

    async def keys(self) -> list[tuple[Key, str]]:
        """Every key that is known, with the id of its job."""
        rows = await self._database.write(lambda connection: connection.execute("SELECT * FROM keys").fetchall())
        return [(Key(*key), job_id) for *key, job_id in rows]

    async def client_of(self, job_id: str) -> str | None:
        """Whose the job of that id was, even if its result is no longer kept; nothing if there has been none."""
        query = "SELECT body FROM jobs WHERE id = ?"
        found = await self._database.write(lambda connection: connection.execute(query, (job_id,)).fetchone())
        return None if found is None else next(_jobs([found[0]])).client

    async def client_of_picture(self, filename: str) -> str | None:
        """Whose the picture of that name is."""
        query = "SELECT client FROM pictures WHERE filename = ?"
        found = await self._database.write(lambda connection: connection.execute(query, (filename,)).fetchone())
        return None if found is None else str(found[0])

    def drop(self, before: float) -> "Future[None]":
        """Forgets the jobs that ended before that moment, and their keys."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM jobs WHERE finished_at < ?", (before,))

        return self._database.post(change)


def _insert(connection: sqlite3.Connection, job_id: str, pictures: Pictures) -> None:
    if pictures.image is not None:
        connection.execute("INSERT INTO inputs VALUES (?, ?, ?)", (job_id, pictures.image, pictures.mask))
    rows = [(job_id, place, picture) for place, picture in enumerate(pictures.references)]
    connection.executemany("INSERT INTO reference_images VALUES (?, ?, ?)", rows)


def _pictures(connection: sqlite3.Connection, job_id: str) -> Pictures | None:
    found = connection.execute("SELECT image, mask FROM inputs WHERE job_id = ?", (job_id,)).fetchone()
    query = "SELECT image FROM reference_images WHERE job_id = ? ORDER BY place"
    references = tuple(image for (image,) in connection.execute(query, (job_id,)))
    image, mask = found or (None, None)
    return Pictures(image, mask, references) if image or references else None


def _row(job: Job) -> tuple[str, str, float | None, bytes]:
    return job.id, job.status.value, job.finished_at, msgspec.json.encode(job)


def _jobs(bodies: list[bytes]) -> Iterator[Job]:
    for body in bodies:
        yield msgspec.json.decode(body, type=Job)
