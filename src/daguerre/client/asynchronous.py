"""Owns the asynchronous client: the blocking one's methods, awaited."""

import contextlib
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import httpx

from daguerre.answers import Accepted, Event, WireJob, WireLora, WireModel
from daguerre.client import protocol
from daguerre.client.errors import ClientError, Unreachable, refusal
from daguerre.client.events import EventReader, is_last
from daguerre.client.protocol import Ask, Flow, Outcome, Painting, Patience, Picture
from daguerre.recipe import Draft

T = TypeVar("T")

#: Seconds that calling a job off may take while everything is being cancelled.
PARTING = 5.0


class AsyncClient:
    """A Daguerre server, as `daguerre.Client` has it::

    async with AsyncClient("http://127.0.0.1:8000") as client:
        painting = await client.generate("a red circle on a blue background", seed=3)
    """

    def __init__(
        self, server: str = "http://127.0.0.1:8000", *, api_key: str | None = None, retries: int = 4, **options: Any
    ) -> None:
        """``options`` are those of `httpx.AsyncClient`."""
        self._http = httpx.AsyncClient(**protocol.settings(server, api_key, options))
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def generate(
        self, recipe: Draft | str, *, on_progress: Callable[[Event], object] | None = None, **fields: Any
    ) -> Painting:
        """Paints, and gives the pictures. Whoever cancels this calls the job off.

        Raises:
            Refused, Unreachable, BadAnswer, JobEnded
        """
        job = await self.submit(recipe, **fields)
        async with self._call_off_unless_done(job.id) as undo:
            done = await self.wait(job.id, on_progress=on_progress)
            undo.pop_all()
        return await self._run(protocol.painting(done, self._retries))

    async def submit(self, recipe: Draft | str, *, key: str | None = None, **fields: Any) -> WireJob:
        """Has a job accepted, which from then on survives whatever happens; ``key`` is an Idempotency-Key of yours."""
        return await self._run(protocol.submit(recipe, fields, key, self._retries))

    async def wait(self, job_id: str, *, on_progress: Callable[[Event], object] | None = None) -> WireJob:
        """Waits for a job's end, and gives the job if it has succeeded.

        Raises:
            JobFailed, JobCancelled: it has ended otherwise.
        """
        async with contextlib.aclosing(self.events(job_id)) as events:
            async for event in events:
                if on_progress is not None:
                    on_progress(event)
                done = protocol.outcome(event)
                if done is not None:
                    return done
        raise AssertionError("events end with the job")

    async def stream(self, recipe: Draft | str, **fields: Any) -> AsyncGenerator[Event, None]:
        """Submits, then tells what becomes of the job; closing the iterator before its end calls the job off."""
        job = await self.submit(recipe, **fields)
        async with self._call_off_unless_done(job.id) as undo, contextlib.aclosing(self.events(job.id)) as events:
            yield Accepted(job)
            async for event in events:
                yield event
            undo.pop_all()

    async def events(self, job_id: str) -> AsyncGenerator[Event, None]:
        """A job that exists: its present state, then each change up to its end."""
        reader, patience = EventReader(), Patience(self._retries)
        while True:
            try:
                async with contextlib.aclosing(self._connected(job_id, reader)) as connected:
                    async for event in connected:
                        patience.attempt = 0
                        yield event
                        if is_last(event):
                            return
            except (httpx.TransportError, ClientError) as error:
                await anyio.sleep(patience.pause(error))

    async def _connected(self, job_id: str, reader: EventReader) -> AsyncGenerator[Event, None]:
        """Events of one connection; whoever has heard the last one closes it."""
        path = f"{protocol.job_path(job_id)}/events"
        async with self._http.stream("GET", path, headers=reader.headers) as response:
            if not response.is_success:
                await response.aread()
                raise refusal(response)
            async for line in response.aiter_lines():
                event = reader.read(line)
                if event is not None:
                    yield event
        raise Unreachable("the server ended the stream before the job's end")

    async def job(self, job_id: str) -> WireJob:
        """A job as it stands."""
        return await self._run(protocol.job(job_id, self._retries))

    async def result(self, job_id: str, index: int = 0) -> Picture:
        """A picture of a job.

        Raises:
            Unfinished: there is none yet.
            Conflict: the job has ended without one; ``code`` tells why.
        """
        return await self._run(protocol.result(job_id, index, self._retries))

    async def cancel(self, job_id: str) -> bool:
        """Calls a job off; says whether there was anything left to call off."""
        return await self._run(protocol.cancel(job_id, self._retries))

    async def models(self) -> list[WireModel]:
        """The models of the catalogue, those that are not on the server's machine too."""
        return await self._run(protocol.models(self._retries))

    async def loras(self) -> list[WireLora]:
        """The LoRAs that can be used."""
        return await self._run(protocol.loras(self._retries))

    @contextlib.asynccontextmanager
    async def _call_off_unless_done(self, job_id: str) -> AsyncGenerator[contextlib.AsyncExitStack, None]:
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._call_off, job_id)
            yield undo

    async def _call_off(self, job_id: str) -> None:
        # Whatever brought us here is what is to be told.
        with anyio.move_on_after(PARTING, shield=True), contextlib.suppress(ClientError):
            await self._run(protocol.cancel(job_id, retries=0))

    async def _run(self, flow: Flow[T]) -> T:
        outcome: Outcome = None
        try:
            while True:
                outcome = await self._turn(flow.send(outcome))
        except StopIteration as end:
            done: T = end.value
            return done

    async def _turn(self, step: Ask | float) -> Outcome:
        """Does what a flow has yielded."""
        if not isinstance(step, Ask):
            await anyio.sleep(step)
            return None
        try:
            return await self._http.request(step.method, step.path, **step.options())
        except httpx.TransportError as error:
            return error
