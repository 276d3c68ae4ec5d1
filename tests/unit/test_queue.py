"""The order in which waiting jobs are taken."""

import asyncio

from daguerre.jobs.queue import Queue


def _taken(queue: Queue, count: int) -> list[str]:
    async def take() -> list[str]:
        return [await queue.take() for _ in range(count)]

    return asyncio.run(take())


def test_one_client_is_served_in_order() -> None:
    """First come, first served, but for those taken out."""
    queue = Queue()
    for name in "abcd":
        queue.put(name, "ada")
    assert queue.remove("b")
    assert not queue.remove("b")
    assert "a" in queue
    assert "b" not in queue
    assert _taken(queue, 3) == ["a", "c", "d"]


def test_clients_take_turns() -> None:
    """A client with a thousand jobs does not keep another waiting for more than one of them."""
    queue = Queue()
    for number in range(1000):
        queue.put(f"a{number}", "ada")
    queue.put("b0", "bea")
    queue.put("b1", "bea")
    queue.put("c0", "cleo")
    assert list(queue.turns(is_urgent=False)) == ["ada", "bea", "cleo"]
    assert _taken(queue, 2) == ["a0", "b0"]
    assert list(queue.turns(is_urgent=False)) == ["cleo", "ada", "bea"]
    assert _taken(queue, 5) == ["c0", "a1", "b1", "a2", "a3"]


def test_urgent_jobs_go_first() -> None:
    """Of several the oldest; where a client has both, the urgent one."""
    queue = Queue()
    for name, client in (("a", "ada"), ("b", "bea")):
        queue.put(name, client)
        queue.put(f"{name}!", client, is_urgent=True)
    assert _taken(queue, 4) == ["a!", "b!", "a", "b"]


def test_no_more_of_a_client_at_once_than_allowed() -> None:
    """Its next job waits until one of its own is done; others pass it."""

    async def scene() -> None:
        queue = Queue(at_once=2)
        for name in ("a0", "a1", "a2"):
            queue.put(name, "ada")
        queue.put("b0", "bea")
        assert [await queue.take() for _ in range(3)] == ["a0", "b0", "a1"]
        waiting = asyncio.ensure_future(queue.take())
        await asyncio.sleep(0.01)
        queue.done("b0")
        await asyncio.sleep(0.01)
        assert not waiting.done()
        queue.done("a0")
        queue.done("a0")  # said twice, it counts once
        assert await waiting == "a2"
        queue.put("a3", "ada")
        last = asyncio.ensure_future(queue.take())
        await asyncio.sleep(0.01)
        assert not last.done()
        last.cancel()

    asyncio.run(scene())
