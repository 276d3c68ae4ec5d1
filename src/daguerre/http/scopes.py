"""Owns the table of scopes: what each route asks of those who use it."""

from typing import Literal

from daguerre.principal import Scope

#: Any of which suffices; ``open`` needs no credentials at all.
Needed = tuple[Scope, ...] | Literal["open"]

OPEN: Literal["open"] = "open"
PAINT: Needed = ("generate",)
LOOK: Needed = ("generate", "models", "admin")
MODELS: Needed = ("models",)

#: By path; everything under /v1 answers under /api/v1 by the same rule. A route that is not here lets nobody in.
SCOPES: dict[str, Needed] = {
    **dict.fromkeys(("/ping", "/livez", "/readyz", "/openapi.json", "/", "/docs", "/docs/{filename}"), OPEN),
    "/health": LOOK,
    "/metrics": ("admin",),
    "/v1/usage": LOOK,
    **dict.fromkeys(("/generate", "/generate/queue", "/queue/status", "/queue/status/{id}"), PAINT),
    **dict.fromkeys(("/result/{id}", "/image/{id}", "/status/{id}", "/outputs/{filename}"), PAINT),
    **dict.fromkeys(("/download/{filename}", "/v1/images/{id}/file"), PAINT),
    "/outputs/{filename}/thumbnail": PAINT,
    **dict.fromkeys(("/v1/jobs", "/v1/jobs/{id}", "/v1/jobs/{id}/cancel", "/v1/jobs/{id}/result"), PAINT),
    **dict.fromkeys(("/stream/generate/txt2img", "/v1/stream", "/v1/jobs/{id}/events"), PAINT),
    **{f"/v1/{start}{mode}": PAINT for start in ("", "generate/") for mode in ("txt2img", "img2img", "inpaint")},
    **{f"/v1/images/{name}": PAINT for name in ("generations", "edits", "variations")},
    **dict.fromkeys(("/models", "/v1/models", "/v1/models/{id}"), LOOK),
    **dict.fromkeys(("/loras", "/v1/loras", "/v1/loras/list"), LOOK),
    **dict.fromkeys(("/v1/schedulers", "/v1/styles", "/v1/capabilities"), LOOK),
    **{f"/v1/{kind}/{change}": MODELS for kind in ("models", "loras") for change in ("load", "unload")},
    # Of AUTOMATIC1111's API nothing here changes more than its caller's own jobs and choices.
    **{
        f"/sdapi/v1/{name}": PAINT
        for name in (
            "txt2img",
            "img2img",
            "progress",
            "interrupt",
            "skip",
            "options",
            "png-info",
            "sd-models",
            "samplers",
            "schedulers",
            "prompt-styles",
            "memory",
            "loras",
            "embeddings",
            "cmd-flags",
            "scripts",
            "script-info",
            "sd-vae",
            "sd-modules",
            "upscalers",
            "latent-upscale-modes",
            "face-restorers",
            "realesrgan-models",
            "hypernetworks",
            "refresh-checkpoints",
            "refresh-embeddings",
            "refresh-loras",
            "refresh-vae",
            "unload-checkpoint",
            "reload-checkpoint",
        )
    },
}


def needed(path: str) -> Needed | None:
    """What the route of that path asks; nothing if it is in no table."""
    return SCOPES.get(path.removeprefix("/api") if path.startswith("/api/v1/") else path)
