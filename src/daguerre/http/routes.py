"""Owns the table of routes: everything that this server answers to."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from daguerre.http import docs, jobs, stream
from daguerre.http.dialects import a1111, a1111_lists, openai
from daguerre.http.generate import generate, img2img, inpaint, txt2img
from daguerre.http.images import download, image_file, output, thumbnail
from daguerre.http.loras import load as load_lora
from daguerre.http.loras import loras
from daguerre.http.loras import unload as unload_lora
from daguerre.http.metrics import metrics, usage
from daguerre.http.models import capabilities, load, model, models, schedulers, styles, unload
from daguerre.http.operations import health, livez, ping, readyz
from daguerre.http.state import State


def _under_v1(path: str, endpoint: Callable[[Request[State]], Awaitable[Response]], method: str) -> list[BaseRoute]:
    return [Route(prefix + path, endpoint, methods=[method]) for prefix in ("/v1", "/api/v1")]


def _everywhere(name: str, endpoint: Callable[[Request[State]], Awaitable[Response]]) -> list[BaseRoute]:
    """The paths under which clients look for a mode of painting."""
    paths = (f"/v1/{name}", f"/v1/generate/{name}", f"/api/v1/{name}", f"/api/v1/generate/{name}")
    return [Route(path, endpoint, methods=["POST"]) for path in paths]


ROUTES: list[BaseRoute] = [
    Route("/generate", generate, methods=["POST"]),
    *jobs.ROUTES,
    *stream.ROUTES,
    *_everywhere("txt2img", txt2img),
    *_everywhere("img2img", img2img),
    *_everywhere("inpaint", inpaint),
    *openai.ROUTES,
    *a1111.ROUTES,
    *a1111_lists.ROUTES,
    Route("/models", models),
    *_under_v1("/models", models, "GET"),
    *_under_v1("/models/load", load, "POST"),
    *_under_v1("/models/unload", unload, "POST"),
    *_under_v1("/models/{id}", model, "GET"),
    Route("/loras", loras),
    *_under_v1("/loras", loras, "GET"),
    *_under_v1("/loras/list", loras, "GET"),
    *_under_v1("/loras/load", load_lora, "POST"),
    *_under_v1("/loras/unload", unload_lora, "POST"),
    *_under_v1("/schedulers", schedulers, "GET"),
    *_under_v1("/styles", styles, "GET"),
    *_under_v1("/capabilities", capabilities, "GET"),
    Route("/outputs/{filename}", output),
    Route("/download/{filename}", download),
    *_under_v1("/images/{id}/file", image_file, "GET"),
    Route("/metrics", metrics),
    *_under_v1("/usage", usage, "GET"),
    Route("/outputs/{filename}/thumbnail", thumbnail),
    Route("/ping", ping),
    Route("/health", health),
    Route("/livez", livez),
    Route("/readyz", readyz),
    *docs.ROUTES,
]
ROUTES.append(Route("/openapi.json", docs.describing(ROUTES)))
