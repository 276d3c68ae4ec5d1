"""Owns the bodies of requests and of the dialects, as far as they mean something here; dialects ignore the rest."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from daguerre.recipe import MAX_COUNT, MAX_SEED, MAX_SIDE, MIN_SIDE

Count = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
Side = Annotated[int, Meta(ge=MIN_SIDE, le=MAX_SIDE)]
Upload = Annotated[str, Meta(description="A PNG, JPEG or WebP.", extra_json_schema={"format": "binary"})]
Size = Annotated[str, Meta(pattern=r"^(auto|\d{1,5}x\d{1,5})$", description="Like 512x512, or auto.")]


class ModelName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model that is meant."""

    model_id: Annotated[str, Meta(description="A name from the catalogue. `model` means the same.")]


class LoraName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The LoRA that is meant."""

    name: str


class ImagesOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What OpenAI's images routes share; the fields of a recipe may stand beside them."""

    model: Annotated[str, Meta(description="OpenAI's own names mean the default model.")] | None = None
    n: Count | None = None
    size: Size | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None
    user: str | None = None
    seed: Annotated[int, Meta(ge=-1, le=MAX_SEED)] | None = None
    steps: Annotated[int, Meta(ge=1, le=150)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=30)] | None = None
    negative_prompt: Annotated[str, Meta(max_length=10_000)] | None = None


class ImagesRequest(ImagesOptions, frozen=True, kw_only=True):
    """OpenAI's request for pictures."""

    prompt: Annotated[str, Meta(min_length=1, max_length=10_000)]


class EditForm(ImagesRequest, frozen=True, kw_only=True):
    """OpenAI's form for an edit: without a mask image-to-image, else what is transparent in it is painted anew."""

    image: Annotated[Upload, Meta(description="`image[]` means the same.")]
    mask: Upload | None = None
    strength: Annotated[float, Meta(ge=0, le=1)] | None = None


class VariationForm(ImagesOptions, frozen=True, kw_only=True):
    """OpenAI's form for another picture like this one."""

    image: Upload
    strength: Annotated[float, Meta(ge=0, le=1)] | None = None


class ImagesDatum(msgspec.Struct, frozen=True, omit_defaults=True):
    """A picture in OpenAI's words."""

    seed: int
    b64_json: str | None = None
    url: str | None = None


class InputTokens(msgspec.Struct, frozen=True):
    """Nothing is counted in tokens here."""

    text_tokens: int
    image_tokens: int


class ImagesUsage(msgspec.Struct, frozen=True):
    """Nothing is counted in tokens here."""

    total_tokens: int
    input_tokens: int
    output_tokens: int
    input_tokens_details: InputTokens


class ImagesAnswer(msgspec.Struct, frozen=True):
    """Pictures in OpenAI's words."""

    created: int
    data: list[ImagesDatum]
    size: str
    quality: str
    background: str
    output_format: str
    usage: ImagesUsage


class OpenAIFailure(msgspec.Struct, frozen=True):
    """What went wrong, in OpenAI's words; ``param`` is the field."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class OpenAIError(msgspec.Struct, frozen=True):
    """OpenAI's envelope of errors."""

    error: OpenAIFailure


class SdOverride(msgspec.Struct, frozen=True, omit_defaults=True):
    """What holds for one request."""

    sd_model_checkpoint: str | None = None
    CLIP_stop_at_last_layers: int | None = None


class SdTxt2Img(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """AUTOMATIC1111's request for pictures; what is absent follows from the model."""

    prompt: Annotated[str, Meta(max_length=10_000)] | None = None
    negative_prompt: Annotated[str, Meta(max_length=10_000)] | None = None
    width: Side | None = None
    height: Side | None = None
    steps: Annotated[int, Meta(ge=1, le=150)] | None = None
    cfg_scale: Annotated[float, Meta(ge=0, le=30)] | None = None
    seed: Annotated[int, Meta(ge=-1, le=MAX_SEED)] | None = None
    batch_size: Count | None = None
    n_iter: Count | None = None
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    send_images: bool | None = None
    styles: Annotated[list[str], Meta(max_length=1)] | None = None
    override_settings: SdOverride | None = None


class SdImg2Img(SdTxt2Img, frozen=True, kw_only=True, omit_defaults=True):
    """The same from a picture, the first of ``init_images``; what is white in ``mask`` is painted anew."""

    init_images: Annotated[list[str], Meta(min_length=1, description="Base64.")]
    mask: Annotated[str, Meta(description="Base64.")] | None = None
    denoising_strength: Annotated[float, Meta(ge=0, le=1)] | None = None
    inpainting_mask_invert: Literal[0, 1] | None = None


class SdPictures(msgspec.Struct, frozen=True):
    """Pictures in base64, the request's fields again, and a JSON text on how they were made."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class SdState(msgspec.Struct, frozen=True):
    """Where the caller's job at hand stands, and how many are unfinished."""

    skipped: bool
    interrupted: bool
    stopping_generation: bool
    job: str
    job_count: int
    job_timestamp: str
    job_no: int
    sampling_step: int
    sampling_steps: int


class SdProgress(msgspec.Struct, frozen=True):
    """How far the caller's jobs are, from 0 to 1, the seconds left, and a small JPEG of the picture in base64."""

    progress: float
    eta_relative: float
    state: SdState
    current_image: str | None
    textinfo: str | None


class SdOptions(msgspec.Struct, frozen=True):
    """The settings that its clients look for."""

    sd_model_checkpoint: str
    samples_format: str
    CLIP_stop_at_last_layers: int


class SdChoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """The checkpoint that is to paint for this client from now on."""

    sd_model_checkpoint: str | None = None


class SdPicture(msgspec.Struct, frozen=True):
    """A picture in base64."""

    image: str


class SdInfo(msgspec.Struct, frozen=True):
    """What a picture says of its making: as a text, its other texts, and the text's fields."""

    info: str
    items: dict[str, str]
    parameters: dict[str, Any]


class SdModel(msgspec.Struct, frozen=True):
    """A model."""

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None


class SdSampler(msgspec.Struct, frozen=True):
    """A sampler."""

    name: str
    aliases: list[str]
    options: dict[str, str]


class SdScheduler(msgspec.Struct, frozen=True):
    """A schedule of sigmas."""

    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class SdStyle(msgspec.Struct, frozen=True):
    """A style."""

    name: str
    prompt: str
    negative_prompt: str


class SdLora(msgspec.Struct, frozen=True):
    """A LoRA."""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any]


class SdRam(msgspec.Struct, frozen=True):
    """Bytes of the machine's memory."""

    free: int
    used: int
    total: int


class SdMemory(msgspec.Struct, frozen=True):
    """Memory."""

    ram: SdRam
    cuda: dict[str, Any]


class SdScripts(msgspec.Struct, frozen=True):
    """Scripts by what they are for."""

    txt2img: list[str]
    img2img: list[str]


class SdEmbeddings(msgspec.Struct, frozen=True):
    """Textual inversions."""

    loaded: dict[str, Any]
    skipped: dict[str, Any]


class SdError(msgspec.Struct, frozen=True):
    """AUTOMATIC1111's envelope of errors."""

    error: str
    detail: str
    body: str
    errors: str
