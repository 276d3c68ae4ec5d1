"""Owns checkpoints in a single file as their headers tell of them: whose they are, and what no tensor's shape says.

Such a file holds every part of a model under its makers' names: Stable Diffusion 1.x, 2.x and XL as CompVis and
Stability AI wrote them, Stable Diffusion 3 as Stability AI did, FLUX.1 as both are put together by those who share it.
"""

from collections.abc import Mapping

from daguerre.errors import CatalogError
from daguerre.weightfile import Header

CLIP_L = "text_encoders.clip_l.transformer."
CLIP_G = "text_encoders.clip_g.transformer."
T5 = "text_encoders.t5xxl.transformer."
DENOISER = "model.diffusion_model."
#: FLUX's autoencoder comes under either name.
AUTOENCODERS = ("first_stage_model.", "vae.")

_EMBEDDED = "text_model.embeddings.token_embedding.weight"

#: The pipelines that can be loaded from one file, by a tensor that only they have.
MARKS = {
    "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight": "StableDiffusionXLPipeline",
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": "StableDiffusionPipeline",
    "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight": "StableDiffusionPipeline",
    f"{DENOISER}joint_blocks.0.context_block.adaLN_modulation.1.bias": "StableDiffusion3Pipeline",
    f"{DENOISER}vector_in.in_layer.weight": "FluxPipeline",
}
#: The same of files that hold nothing but the denoiser.
_BARE = {"joint_blocks.0.context_block.adaLN_modulation.1.bias", "vector_in.in_layer.weight"}

_NEEDED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "StableDiffusion3Pipeline": {"CLIP-L": (CLIP_L + _EMBEDDED,), "CLIP-G": (CLIP_G + _EMBEDDED,)},
    "FluxPipeline": {"CLIP-L": (CLIP_L + _EMBEDDED,), "T5": (T5 + "shared.weight",)},
}


def pipeline_of(header: Header) -> str:
    """The diffusers class that a file is for.

    Raises:
        CatalogError: it is none that can be loaded, or parts of it are not there.
    """
    pipeline = next((pipeline for tensor, pipeline in MARKS.items() if tensor in header.shapes), None)
    if pipeline is None and _BARE & header.shapes.keys():
        raise CatalogError("it holds a denoiser alone; a checkpoint in a single file has text encoders and a VAE, too")
    if pipeline is None or not any(name.startswith(DENOISER) for name in header.shapes):
        raise CatalogError(
            "it is no whole checkpoint of Stable Diffusion 1.x, 2.x, XL or 3, or of FLUX.1; "
            "other models are served from folders"
        )
    decoders = tuple(f"{prefix}decoder.conv_in.weight" for prefix in AUTOENCODERS)
    needed = {**_NEEDED.get(pipeline, {}), "the VAE": decoders}
    missing = [part for part, names in needed.items() if not any(name in header.shapes for name in names)]
    if missing:
        raise CatalogError(f"it is no whole checkpoint: {', '.join(missing)} not in it")
    return pipeline


def is_sd2(header: Header) -> bool:
    """Whether it is Stable Diffusion 2.x: OpenCLIP's text encoder by itself."""
    return "cond_stage_model.model.token_embedding.weight" in header.shapes


def predicts_v(header: Header) -> bool:
    """Whether the denoiser predicts v (Salimans and Ho 2022) instead of noise.

    Models of SDXL's kind say so by an empty tensor; those of Stable Diffusion 2.x by metadata (https://github.com/
    Stability-AI/ModelSpec), or not at all: then it is the 768-pixel model, which most others were trained from.
    """
    told = header.metadata.get("modelspec.prediction_type")
    if told is not None:
        return told.startswith("v")
    return "v_pred" in header.shapes or (is_sd2(header) and "512" not in _resolution(header))


def native_side(header: Header) -> int | None:
    """The side that it was trained at, in pixels, where that is not the same for all of its family."""
    if not is_sd2(header):
        return None
    return 768 if predicts_v(header) else 512


def _resolution(header: Header) -> str:
    return header.metadata.get("modelspec.resolution", "")
