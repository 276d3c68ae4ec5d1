"""Owns the blocking client."""

import contextlib
import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from daguerre.answers import Accepted, Event, WireJob, WireLora, WireModel
from daguerre.client import protocol
from daguerre.client.errors import ClientError, Unreachable, refusal
from daguerre.client.events import EventReader, is_last
from daguerre.client.protocol import Ask, Flow, Outcome, Painting, Patience, Picture
from daguerre.recipe import Draft

T = TypeVar("T")


class Client:
    """A Daguerre server::

        with Client("http://127.0.0.1:8000") as client:
            painting = client.generate("a red circle on a blue background", seed=3)

    A recipe is a `Draft`, or a prompt with further fields by name; ``image`` and ``mask`` may be paths or bytes. What
    is refused for being busy, and what breaks, is asked again up to ``retries`` times, and never painted twice for it.
    """

    def __init__(
        self, server: str = "http://127.0.0.1:8000", *, api_key: str | None = None, retries: int = 4, **options: Any
    ) -> None:
        """``options`` are those of `httpx.Client`: a proxy, certificates, timeouts."""
        self._http = httpx.Client(**protocol.settings(server, api_key, options))
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: type | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def generate(
        self, recipe: Draft | str, *, on_progress: Callable[[Event], object] | None = None, **fields: Any
    ) -> Painting:
        """Paints, and gives the pictures. Whoever interrupts this calls the job off.

        Raises:
            Refused, Unreachable, BadAnswer, JobEnded
        """
        job = self.submit(recipe, **fields)
        with self._call_off_unless_done(job.id) as undo:
            done = self.wait(job.id, on_progress=on_progress)
            undo.pop_all()
        return self._run(protocol.painting(done, self._retries))

    def submit(self, recipe: Draft | str, *, key: str | None = None, **fields: Any) -> WireJob:
        """Has a job accepted, which from then on survives whatever happens; ``key`` is an Idempotency-Key of yours."""
        return self._run(protocol.submit(recipe, fields, key, self._retries))

    def wait(self, job_id: str, *, on_progress: Callable[[Event], object] | None = None) -> WireJob:
        """Waits for a job's end, and gives the job if it has succeeded.

        Raises:
            JobFailed, JobCancelled: it has ended otherwise.
        """
        with contextlib.closing(self.events(job_id)) as events:
            for event in events:
                if on_progress is not None:
                    on_progress(event)
                done = protocol.outcome(event)
                if done is not None:
                    return done
        raise AssertionError("events end with the job")

    def stream(self, recipe: Draft | str, **fields: Any) -> Generator[Event, None, None]:
        """Submits, then tells what becomes of the job; closing the iterator before its end calls the job off."""
        job = self.submit(recipe, **fields)
        with self._call_off_unless_done(job.id) as undo:
            yield Accepted(job)
            yield from self.events(job.id)
            undo.pop_all()

    def events(self, job_id: str) -> Generator[Event, None, None]:
        """A job that exists: its present state, then each change up to its end."""
        reader, patience = EventReader(), Patience(self._retries)
        while True:
            try:
                with contextlib.closing(self._connected(job_id, reader)) as connected:
                    for event in connected:
                        patience.attempt = 0
                        yield event
                        if is_last(event):
                            return
            except (httpx.TransportError, ClientError) as error:
                time.sleep(patience.pause(error))

    def _connected(self, job_id: str, reader: EventReader) -> Generator[Event, None, None]:
        """Events of one connection; whoever has heard the last one closes it."""
        with self._http.stream("GET", f"{protocol.job_path(job_id)}/events", headers=reader.headers) as response:
            if not response.is_success:
                response.read()
                raise refusal(response)
            for line in response.iter_lines():
                event = reader.read(line)
                if event is not None:
                    yield event
        raise Unreachable("the server ended the stream before the job's end")

    def job(self, job_id: str) -> WireJob:
        """A job as it stands."""
        return self._run(protocol.job(job_id, self._retries))

    def result(self, job_id: str, index: int = 0) -> Picture:
        """A picture of a job.

        Raises:
            Unfinished: there is none yet.
            Conflict: the job has ended without one; ``code`` tells why.
        """
        return self._run(protocol.result(job_id, index, self._retries))

    def cancel(self, job_id: str) -> bool:
        """Calls a job off; says whether there was anything left to call off."""
        return self._run(protocol.cancel(job_id, self._retries))

    def models(self) -> list[WireModel]:
        """The models of the catalogue, those that are not on the server's machine too."""
        return self._run(protocol.models(self._retries))

    def loras(self) -> list[WireLora]:
        """The LoRAs that can be used."""
        return self._run(protocol.loras(self._retries))

    @contextlib.contextmanager
    def _call_off_unless_done(self, job_id: str) -> Generator[contextlib.ExitStack, None, None]:
        with contextlib.ExitStack() as undo:
            undo.callback(self._call_off, job_id)
            yield undo

    def _call_off(self, job_id: str) -> None:
        with contextlib.suppress(ClientError):  # whatever brought us here is what is to be told
            self._run(protocol.cancel(job_id, retries=0))

    def _run(self, flow: Flow[T]) -> T:
        outcome: Outcome = None
        try:
            while True:
                outcome = self._turn(flow.send(outcome))
        except StopIteration as end:
            done: T = end.value
            return done

    def _turn(self, step: Ask | float) -> Outcome:
        """Does what a flow has yielded."""
        if not isinstance(step, Ask):
            time.sleep(step)
            return None
        try:
            return self._http.request(step.method, step.path, **step.options())
        except httpx.TransportError as error:
            return error
