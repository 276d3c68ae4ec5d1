"""Owns questions to other servers about credentials: bounded, and given up for a while when they are in vain."""

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx

from daguerre.errors import AuthUnavailable

#: Seconds that an answer may take, and bytes that it may have.
TIMEOUT, LARGEST = 5.0, 256 * 1024
#: Failures in a row after which nothing is asked for so many seconds.
FAILURES, PAUSE = 3, 30.0


class Remote:
    """One address that answers with JSON, behind a circuit breaker. Redirects are not followed: tokens stay here."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._failures = 0
        self._closed_until = 0.0
        self._client = httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False)

    async def ask(self, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """The status, and the JSON where it is 200; else it is 401 or 403, which are answers, too.

        Raises:
            AuthUnavailable: no answer, a broken one, or none was sought.
        """
        left = self._closed_until - time.monotonic()
        if left > 0:
            raise AuthUnavailable(retry_after=left)
        try:
            answer = await self._get(headers or {})
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError):
            self._fail()
            # Neither its text nor its frames are kept: they may hold the token.
            raise AuthUnavailable(retry_after=5.0) from None
        self._failures = 0
        return answer

    async def _get(self, headers: Mapping[str, str]) -> tuple[int, Any]:
        async with self._client.stream("GET", self._url, headers=headers) as response:
            if response.status_code == 200:
                body = bytearray()
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > LARGEST:
                        raise ValueError("too long")
                return 200, json.loads(body)
            if response.status_code in (401, 403):
                return response.status_code, None
        raise ValueError("no answer")

    def _fail(self) -> None:
        self._failures += 1
        if self._failures >= FAILURES:
            self._failures = 0
            self._closed_until = time.monotonic() + PAUSE

    async def close(self) -> None:
        """Ends its connections."""
        await self._client.aclose()
