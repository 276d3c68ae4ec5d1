"""Owns the name of the request that is being served: what all that is logged and accepted for it has in common."""

from contextvars import ContextVar

#: The request's X-Request-Id; empty where there is no request.
request_id: ContextVar[str] = ContextVar("request_id", default="")
