"""IP-Adapters: parity with diffusers' own, company of runs with and without, who is on when, and whose memory it is."""

import gc
import hashlib
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import ipfiles
import numpy as np
import pytest
import torch
from harness import (
    THIRD_PARTY,
    Darkroom,
    Floats,
    Picture,
    assert_parity,
    assert_same,
    difference,
    floats,
    job,
    paint_all,
    paint_in_step,
)
from harness import plain as without
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from daguerre.catalog import Catalog, Model
from daguerre.engine import Budgets, Reference, Submission
from daguerre.engine.pipelines import Pipeline
from daguerre.errors import InvalidRecipe
from daguerre.loras import Loras
from daguerre.recipe import LoraWish
from daguerre.references import References
from daguerre.samplers import samplers_for

pytestmark = THIRD_PARTY

PREFIXES = {"ip_adapter_proj_model": "image_proj", "image_proj": "image_proj"}


@pytest.fixture(scope="module")
def shelf(models: Catalog) -> References:
    """IP-Adapters for the tiny models, beside them."""
    weights = models.model("sd15").path.parent
    folder = weights / "ip-adapters"
    for name in ("sd15", "sdxl"):
        unet = diffusers.UNet2DConditionModel.from_pretrained(weights / name / "unet")
        ipfiles.write(folder / f"{name}.safetensors", ipfiles.plain(unet))
        ipfiles.write(folder / f"{name}-plus.safetensors", ipfiles.plus(unet, seed=1))
    flux = diffusers.FluxTransformer2DModel.from_pretrained(weights / "flux" / "transformer")
    ipfiles.write(folder / "flux.safetensors", ipfiles.plain(flux, seed=2))
    ipfiles.write_encoder(folder / "image_encoder")
    return References(weights)


def picture(seed: int, width: int = 40, height: int = 56) -> Picture:
    """A reference image: a coarse random mosaic."""
    tiles = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return tiles.repeat(8, 0).repeat(8, 1)


def reference(seed: int, scale: float = 0.8) -> Reference:
    """The same as the engine is given it."""
    pixels = picture(seed)
    return Reference(pixels, scale, hashlib.sha256(pixels.tobytes()).hexdigest())


def seeing(shelf: References, submission: Submission, *references: Reference, adapter: str | None = None) -> Submission:
    """The submission with reference images."""
    wanted = shelf.adapter(adapter or submission.model.name, submission.model)
    s = submission
    return Submission(s.id, s.recipe, s.model, s.image, s.mask, s.client, s.adapters, wanted, references)


@torch.no_grad()
def diffusers_paints(
    submission: Submission, name: str, mode: str = "txt2img", change: Callable[[Any], object] = lambda _: None
) -> Floats:
    """The picture of a plain pipeline into which diffusers itself has put the IP-Adapter, once for each reference."""
    model, recipe, references = submission.model, submission.recipe, submission.references
    folder = model.path.parent / "ip-adapters"
    pipe = diffusers.DiffusionPipeline.from_pretrained(model.path)
    if mode != "txt2img":
        auto = {"img2img": diffusers.AutoPipelineForImage2Image, "inpaint": diffusers.AutoPipelineForInpainting}[mode]
        pipe = auto.from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    change(pipe)
    sampler = samplers_for(type(pipe.scheduler).__name__)[recipe.scheduler]
    pipe.scheduler = getattr(diffusers, sampler.scheduler).from_config(pipe.scheduler.config, **sampler.options)
    pipe.register_modules(
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder"),
        feature_extractor=CLIPImageProcessorPil(size=ipfiles.SIDE, crop_size=ipfiles.SIDE),
    )
    state = _state(load_file(folder / f"{name}.safetensors"))
    denoiser = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    denoiser._load_ip_adapter_weights([state] * len(references))
    pipe.set_ip_adapter_scale([reference.scale for reference in references])
    images = {"image": submission.image, "mask_image": submission.mask}
    given = {field: Image.fromarray(pixels) for field, pixels in images.items() if pixels is not None}
    if submission.image is not None:
        given["strength"] = recipe.strength
    image = pipe(
        prompt=recipe.prompt,
        negative_prompt=recipe.negative_prompt or None,
        width=recipe.width,
        height=recipe.height,
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(recipe.seed),
        ip_adapter_image=[Image.fromarray(reference.picture) for reference in references],
        output_type="pt",
        **given,
    ).images[0]
    return floats(image)


def _state(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """A file's tensors as `load_ip_adapter` hands them on."""
    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        part = PREFIXES.get(prefix, "ip_adapter")
        rest = rest.replace("processor.ip_adapter_double_stream_k_proj", "to_k_ip")
        state[part][rest.replace("processor.ip_adapter_double_stream_v_proj", "to_v_ip")] = tensor
    return state


@pytest.mark.parametrize("name", ["sd15", "sd15-plus", "sdxl", "sdxl-plus", "flux"])
@pytest.mark.parametrize("guidance", [4.0, 1.0])
def test_parity_with_diffusers(models: Catalog, shelf: References, name: str, guidance: float) -> None:
    """One picture and two, each at its own scale, against `load_ip_adapter` on a plain pipeline."""
    model = models.model(name.split("-")[0])
    for references in ([reference(1, 0.7)], [reference(1, 1.0), reference(2, 0.4)]):
        fields: dict[str, Any] = {"guidance_scale": guidance, "negative_prompt": "fog"}
        submission = seeing(shelf, job(model, "a red fox", **fields), *references, adapter=name)
        outcomes, _ = paint_all([submission])
        assert_same(outcomes[submission.id].exact, diffusers_paints(submission, name))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
@pytest.mark.parametrize("mode", ["img2img", "inpaint"])
def test_starting_from_images(models: Catalog, shelf: References, photograph: Picture, name: str, mode: str) -> None:
    """Image-to-image and inpainting with references."""
    mask = np.zeros(photograph.shape[:2], np.uint8)
    mask[8:24, 8:24] = 255
    images = (photograph, mask if mode == "inpaint" else None)
    start = job(models.model(name), "a boat", *images, strength=0.8, steps=5)
    submission = seeing(shelf, start, reference(3))
    outcomes, _ = paint_all([submission])
    assert_same(outcomes[submission.id].exact, diffusers_paints(submission, name, mode))


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_scale_nothing_is_no_adapter_and_scale_acts(models: Catalog, shelf: References, name: str) -> None:
    """To the bit at 0; and the more scale, the further away."""
    bare = job(models.model(name), "a red fox")
    submissions = [seeing(shelf, bare, reference(1, scale)) for scale in (0.0, 0.3, 1.0)]
    pictures = [paint_all([submission])[0][submission.id].exact for submission in (*submissions, bare)]
    assert np.array_equal(pictures[0], pictures[3])
    distances = [float(np.abs(one - pictures[0]).mean()) for one in pictures]
    assert 0.001 < distances[1] < distances[2]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_company_with_and_without(models: Catalog, shelf: References, name: str) -> None:
    """Runs with references, at several scales, in one engine with runs that have none: each as if it were alone."""
    model = models.model(name)
    bare = [job(model, "a mill", steps=4, seed=seed) for seed in range(3)]
    looking = [
        seeing(shelf, job(model, "a mill", steps=4, seed=9), reference(1)),
        seeing(shelf, job(model, "a dam", steps=3, seed=8), reference(2)),
        seeing(shelf, job(model, "a dam", steps=4, seed=7), reference(2, 0.3)),
        seeing(shelf, job(model, "a dam", steps=4, seed=6), reference(1), reference(2)),
    ]
    outcomes, rows = paint_all([looking[0], bare[0], looking[1], bare[1], *looking[2:], bare[2]])
    assert_parity(bare, outcomes)
    for submission in looking:
        assert_same(outcomes[submission.id].exact, diffusers_paints(submission, name))
    assert max(rows) > min(rows)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_runs_of_one_scale_share_forwards(models: Catalog, shelf: References, name: str) -> None:
    """Four pictures of four steps need four forwards, whatever they look at; another scale, or none, needs its own."""
    model = models.model(name)

    def jobs(*references: Reference) -> list[Submission]:
        many = [job(model, "a mill", steps=4, seed=seed, scheduler="euler") for seed in range(4)]
        return [seeing(shelf, one, *references) if references else one for one in many]

    same = jobs(reference(1), reference(9, 0.2))
    same[2:] = [seeing(shelf, one, reference(4), reference(5, 0.2)) for one in same[2:]]
    outcomes, rows = paint_in_step(same)
    assert len(rows) == 4
    assert len(paint_in_step([*same, *jobs(reference(1)), *jobs()])[1]) == 12
    assert len(paint_in_step([*jobs(reference(1, 0.5))[:1], *jobs(reference(1))[:1]])[1]) == 8
    for submission in same:
        assert_same(outcomes[submission.id].exact, diffusers_paints(submission, name))


def test_a_run_alone_takes_as_many_forwards_as_without(models: Catalog, shelf: References) -> None:
    """Exactly one a step; the image encoder is none of them."""
    bare = job(models.model("sdxl"), "a mill", steps=5)
    _, rows = paint_all([bare])
    _, looking = paint_all([seeing(shelf, job(models.model("sdxl"), "a mill", steps=5), reference(1))])
    assert rows == looking == [2] * 5


def test_a_picture_is_looked_at_once(models: Catalog, shelf: References) -> None:
    """Its embeddings are kept by what it shows, for whoever brings it again."""
    looks = []

    def count(module: torch.nn.Module, _args: Any, _output: Any) -> None:
        if type(module).__name__ == "CLIPVisionModelWithProjection":
            looks.append(module)

    handle = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        with Darkroom() as darkroom:
            for seed, shown in ((0, 1), (1, 1), (2, 2), (3, 1)):
                one = job(models.model("sd15"), "a mill", seed=seed)
                assert darkroom.paint(seeing(shelf, one, reference(shown))).error is None
    finally:
        handle.remove()
    assert len(looks) == 2


def test_two_adapters_of_one_model_go_together(models: Catalog, shelf: References) -> None:
    """Each picture is seen by its own."""
    jobs = [
        seeing(shelf, job(models.model("sd15"), "a mill", seed=seed), reference(1), adapter=name)
        for seed in range(2)
        for name in ("sd15", "sd15-plus")
    ]
    outcomes, _ = paint_all(jobs)
    for submission, name in zip(jobs, ("sd15", "sd15-plus") * 2, strict=True):
        assert_same(outcomes[submission.id].exact, diffusers_paints(submission, name))


def test_a_reproducible_run_in_company(models: Catalog, shelf: References) -> None:
    """With references, too, it is the same picture to the bit."""
    model = models.model("sd15")
    one, same = (seeing(shelf, job(model, "a mill", reproducible=True), reference(1)) for _ in range(2))
    alone, _ = paint_all([one])
    company, _ = paint_all([same, job(model, "a dam"), seeing(shelf, job(model, "a dam"), reference(2))])
    assert np.array_equal(alone[one.id].picture, company[same.id].picture)


def test_with_a_lora(models: Catalog, shelf: References, tmp_path: Path) -> None:
    """Both at once, in company of runs with one of them: against weights that were changed by hand."""
    model = models.model("sd15")
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    torch.manual_seed(5)
    down, up = torch.randn(4, 32), torch.randn(32, 4) * 0.2
    name = f"lora_unet_{layer.replace('.', '_')}"
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(4.0)}
    ipfiles.write(tmp_path / "loras" / "loud.safetensors", tensors)
    loras = Loras(tmp_path)
    fields: dict[str, Any] = {"loras": (LoraWish("loud", 1.0),)}
    worn = job(model, "a mill", all_loras=loras, **fields)
    both = seeing(shelf, job(model, "a mill", all_loras=loras, **fields), reference(1))
    looking = seeing(shelf, job(model, "a mill"), reference(1))
    outcomes, _ = paint_all([worn, both, looking, job(model, "a dam")])
    expected = diffusers_paints(both, "sd15", change=lambda pipe: pipe.unet.get_submodule(layer).weight.add_(up @ down))
    assert_same(outcomes[both.id].exact, expected)
    for other in (worn, looking):
        assert difference(outcomes[both.id].picture, outcomes[other.id].picture) > 1


def test_bytes_are_counted_and_given_back(models: Catalog, shelf: References) -> None:
    """An attached IP-Adapter makes its model that much heavier; with the model it goes, and its memory with it."""
    model = models.model("sd15")
    older = [one for one in gc.get_objects() if type(one) is Pipeline]  # cycles that nobody has collected yet
    with Darkroom() as darkroom:
        darkroom.paint(job(model, "a mill"))
        found = [one for one in gc.get_objects() if type(one) is Pipeline and all(one is not other for other in older)]
        pipeline = found.pop()
        before = pipeline.bytes
        darkroom.paint(seeing(shelf, job(model, "a mill"), reference(1)))
        size = pipeline.bytes - before
        on_disk = sum(path.stat().st_size for path in (model.path.parent / "ip-adapters" / "image_encoder").iterdir())
        assert size > on_disk / 2
        attached = weakref.ref(next(iter(pipeline.references._attached.values())).encoder)
        darkroom.engine.unload(model.name)
        del pipeline, found, older
        darkroom.paint(job(models.model("sdxl"), "a mill"))
        gc.collect()
        assert attached() is None


def test_leaving_the_device_takes_it_off(models: Catalog, shelf: References) -> None:
    """With room for one model only, they take turns; each comes back without its IP-Adapter, and wears it again."""
    from daguerre.engine.pipelines import load

    needed = max(load(models.model(name), torch.float32).bytes for name in ("sd15", "sdxl"))
    with Darkroom(budgets=Budgets(device=needed + 1, offload="none")) as darkroom:
        for seed in range(2):
            for name in ("sd15", "sdxl"):
                submission = seeing(shelf, job(models.model(name), "a mill", seed=seed), reference(1))
                assert_same(darkroom.paint(submission).exact, diffusers_paints(submission, name))


@pytest.mark.parametrize("plan", ["encoders", "model", "group"])
def test_on_models_that_come_in_parts(models: Catalog, shelf: References, plan: Any) -> None:
    """Under every memory plan the IP-Adapter is there when its attentions compute."""
    submission = seeing(shelf, job(models.model("sdxl"), "a mill"), reference(1))
    with Darkroom(budgets=Budgets(offload=plan)) as darkroom:
        painted = darkroom.paint(submission).exact
    assert_same(painted, diffusers_paints(submission, "sdxl"))


def test_an_adapter_that_fits_no_longer_fails_its_job_alone(models: Catalog, shelf: References) -> None:
    """Its file was replaced by another model's after the request was accepted."""
    bad = seeing(shelf, job(models.model("sd15"), "a mill"), reference(1))
    assert bad.ip_adapter is not None
    other = shelf.adapter("sdxl", models.model("sdxl"))
    bad = Submission(bad.id, bad.recipe, bad.model, ip_adapter=other, references=bad.references)
    good = job(models.model("sd15"), "a mill")
    outcomes, _ = paint_all([bad, good])
    assert isinstance(outcomes[bad.id].error, InvalidRecipe)
    assert "does not fit" in str(outcomes[bad.id].error)
    assert_same(outcomes[good.id].exact, without(good))


def test_numbers_that_are_none_are_refused(models: Catalog, shelf: References, tmp_path: Path) -> None:
    """A file of NaN is told of; nothing is painted with it, and the engine goes on."""
    model: Model = models.model("sd15")
    folder = model.path.parent / "ip-adapters"
    tensors = load_file(folder / "sd15.safetensors")
    next(iter(tensors.values()))[0] = float("nan")
    path = ipfiles.write(folder / "nan.safetensors", tensors)
    try:
        bad, good = seeing(shelf, job(model, "a mill"), reference(1), adapter="nan"), job(model, "a mill")
        outcomes, _ = paint_all([bad, good])
    finally:
        path.unlink()
    assert "not finite" in str(outcomes[bad.id].error)
    assert outcomes[good.id].error is None


@pytest.mark.parametrize(("change", "told"), [("missing", "not whole"), ("nan", "not finite")])
def test_an_image_encoder_that_is_not_whole(
    models: Catalog, shelf: References, tmp_path: Path, change: str, told: str
) -> None:
    """It is not filled up with chance; the job ends with the reason."""
    model: Model = models.model("sd15")
    folder = tmp_path / "ip-adapters"
    shutil.copytree(model.path.parent / "ip-adapters" / "image_encoder", folder / "encoder")
    shutil.copy(model.path.parent / "ip-adapters" / "sd15.safetensors", folder)
    path = folder / "encoder" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    if change == "nan":
        tensors[name] /= 0
    else:
        del tensors[name]
    ipfiles.write(path, tensors)
    bad = seeing(References(tmp_path), job(model, "a mill"), reference(1))
    outcomes, _ = paint_all([bad])
    assert told in str(outcomes[bad.id].error)
