"""Owns the table of routes: everything that this server answers to."""

from starlette.routing import BaseRoute, Route

from daguerre.http.generate import generate
from daguerre.http.images import output
from daguerre.http.operations import health, livez, ping, readyz

ROUTES: list[BaseRoute] = [
    Route("/generate", generate, methods=["POST"]),
    Route("/v1/txt2img", generate, methods=["POST"]),
    Route("/v1/generate/txt2img", generate, methods=["POST"]),
    Route("/api/v1/txt2img", generate, methods=["POST"]),
    Route("/api/v1/generate/txt2img", generate, methods=["POST"]),
    Route("/outputs/{filename}", output),
    Route("/ping", ping),
    Route("/health", health),
    Route("/livez", livez),
    Route("/readyz", readyz),
]
