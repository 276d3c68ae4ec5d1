"""Owns the rows of webhooks that are not delivered yet; they are made together with the end of their job."""

import sqlite3
from concurrent.futures import Future
from typing import NamedTuple

import msgspec

from daguerre.job import Job
from daguerre.store.db import Database


class Delivery(NamedTuple):
    """A webhook that is owed: how often it was tried, and the Unix second of the next try."""

    job_id: str
    attempts: int
    due_at: float


class DeliveryRows:
    """The undelivered webhooks of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def owed(self) -> list[Delivery]:
        """All of them.

        Raises:
            StorageFailed: the database cannot be read.
        """
        query = "SELECT job_id, attempts, due_at FROM deliveries"
        rows = await self._database.write(lambda connection: connection.execute(query).fetchall())
        return [Delivery(*row) for row in rows]

    async def job(self, job_id: str) -> Job | None:
        """The job as its row has it, while it is owed to somebody.

        Raises:
            StorageFailed: the database cannot be read.
        """
        query = "SELECT body FROM jobs JOIN deliveries ON job_id = id WHERE id = ?"
        found = await self._database.write(lambda connection: connection.execute(query, (job_id,)).fetchone())
        return None if found is None else msgspec.json.decode(found[0], type=Job)

    def postpone(self, delivery: Delivery) -> "Future[None]":
        """Writes down that a try failed."""

        def change(connection: sqlite3.Connection) -> None:
            query = "UPDATE deliveries SET attempts = ?, due_at = ? WHERE job_id = ?"
            connection.execute(query, (delivery.attempts, delivery.due_at, delivery.job_id))

        return self._database.post(change)

    def settle(self, job_id: str) -> "Future[None]":
        """Nothing more is owed."""

        def change(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM deliveries WHERE job_id = ?", (job_id,))

        return self._database.post(change)
