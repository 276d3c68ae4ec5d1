"""Adapters of every layout and kind: pictures equal those of plain diffusers; runs in company keep their own."""

import contextlib
import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import lorafiles
import original
import pytest
import torch
from harness import THIRD_PARTY, Darkroom, Floats, assert_same, difference, floats, job, paint_all
from lorafiles import ATTENTION, CONVOLUTIONS, FEED_FORWARD, PROJECTIONS, Tensors, kohya, layers

from daguerre import adapterfile, catalog
from daguerre.catalog import Catalog, Model
from daguerre.engine import Budgets, Submission, pipelines
from daguerre.engine.adapter_cache import AdapterCache, Hosted, read
from daguerre.errors import InvalidRecipe
from daguerre.loras import Loras
from daguerre.recipe import LoraWish

pytestmark = THIRD_PARTY

WISH = "a red fox in the snow"


class Shelf:
    """A weights folder of a test's own: the tiny models, and the LoRAs that the test puts beside them."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.folder = folder
        for path in models.iterdir():
            (folder / path.name).symlink_to(path)
        self.catalog: Catalog = catalog.read(folder, "sd15")
        self.loras = Loras(folder)

    def put(self, name: str, tensors: Tensors, metadata: dict[str, Any] | None = None) -> Path:
        """Writes a LoRA."""
        return lorafiles.write(self.folder / "loras" / f"{name}.safetensors", tensors, metadata)

    def job(self, model: str, prompt: str = WISH, loras: dict[str, float] | None = None, **fields: Any) -> Submission:
        """A submission as the service makes it, with LoRAs and their weights."""
        found = self.catalog.model(model)
        wishes = tuple(LoraWish(name, weight) for name, weight in (loras or {}).items())
        return job(found, prompt, all_loras=self.loras, loras=wishes, **fields)


@pytest.fixture
def shelf(tmp_path: Path, models: Catalog) -> Shelf:
    """A shelf with the tiny models and no LoRA."""
    return Shelf(tmp_path, models.model("sd15").path.parent)


def pipe_of(model: Model) -> Any:
    """A plain pipeline."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(model.path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def plain(pipe: Any, submission: Submission) -> Floats:
    """The picture as diffusers paints it, with whatever its layers have been changed by."""
    recipe = submission.recipe
    image = pipe(
        prompt=recipe.prompt,
        negative_prompt=recipe.negative_prompt or None,
        width=recipe.width,
        height=recipe.height,
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(recipe.seed),
        output_type="pt",
    ).images[0]
    return floats(image)


@contextlib.contextmanager
def changed(pipe: Any, deltas: Tensors, weight: float = 1.0) -> Iterator[None]:
    """While it lasts, these are added to the pipeline's own weights: what every adapter means."""
    targets = {name: _weight(pipe, name) for name in deltas}
    before = {name: target.data.clone() for name, target in targets.items()}
    for name, target in targets.items():
        target.data += weight * deltas[name].view(target.shape)
    yield
    for name, target in targets.items():
        target.data.copy_(before[name])


def _weight(pipe: Any, name: str) -> torch.nn.Parameter:
    part, _, path = name.partition(".")
    weight: torch.nn.Parameter = getattr(pipe, part).get_submodule(path).weight
    return weight


def products(tensors: Tensors, names: dict[str, str], alpha: float = 2.0) -> Tensors:
    """The weights that a LoRA in kohya's layout makes, by ``part.path``."""
    found = {}
    for name, path in names.items():
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        found[path] = (up.flatten(1) @ down.flatten(1)) * alpha / down.shape[0]
    return found


def painted(*submissions: Submission) -> list[Floats]:
    """Their pictures, painted at one moment."""
    outcomes, _ = paint_all(submissions)
    return [outcomes[submission.id].exact for submission in submissions]


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_diffusers_own_layout(shelf: Shelf, name: str) -> None:
    """Linear layers and convolutions, against load_lora_weights and set_adapters at another weight."""
    pipe = pipe_of(shelf.catalog.model(name))
    path = shelf.put("style", lorafiles.diffusers_lora({"unet": layers(pipe.unet, ATTENTION + CONVOLUTIONS)}))
    submission, without = shelf.job(name, loras={"style": 0.7}), shelf.job(name)
    bare = plain(pipe, without)
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
    pipe.set_adapters(["style"], [0.7])
    ours, ours_without = painted(submission, without)
    assert_same(ours, plain(pipe, submission))
    assert_same(ours_without, bare)
    assert difference(ours, bare) > 8


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_kohyas_layout(shelf: Shelf, name: str) -> None:
    """Flat names and an alpha."""
    pipe = pipe_of(shelf.catalog.model(name))
    found = {kohya(path): layer for path, layer in layers(pipe.unet, ATTENTION + FEED_FORWARD).items()}
    path = shelf.put("style", lorafiles.flat_lora(found))
    submission = shelf.job(name, loras={"style": 1.3})
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
    pipe.set_adapters(["style"], [1.3])
    (ours,) = painted(submission)
    assert_same(ours, plain(pipe, submission))


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_the_names_of_the_original_checkpoint(shelf: Shelf, name: str, prefix: str) -> None:
    """AUTOMATIC1111's layout, of every layer that a LoRA may change: input, middle and output blocks."""
    pipe = pipe_of(shelf.catalog.model(name))
    names = {tensor.data_ptr(): name.removesuffix(".weight") for name, tensor in original.tensors_of(pipe).items()}
    every = {path: layer for path, layer in pipe.unet.named_modules() if hasattr(layer, "weight")}
    every = {path: layer for path, layer in every.items() if layer.weight.ndim in (2, 4)}
    assert any("upsamplers" in path for path in every)
    found = {}
    for path, layer in every.items():
        own = names[layer.weight.data_ptr()].removeprefix("model.diffusion_model.")
        found[prefix + (own.replace(".", "_") if prefix.endswith("_") else own)] = path, layer
    tensors = lorafiles.flat_lora({name: layer for name, (_, layer) in found.items()})
    shelf.put("style", tensors)
    submission = shelf.job(name, loras={"style": 0.4})
    with changed(pipe, products(tensors, {name: f"unet.{path}" for name, (path, _) in found.items()}), 0.4):
        expected = plain(pipe, submission)
    (ours,) = painted(submission)
    assert_same(ours, expected)
    assert difference(ours, plain(pipe, submission)) > 8


def test_diffusers_layout_from_before_peft(shelf: Shelf) -> None:
    """``attn1.processor.to_q_lora.down.weight``."""
    pipe = pipe_of(shelf.catalog.model("sd15"))
    found = layers(pipe.unet, ("to_q", "to_k", "to_v", "to_out.0"))
    tensors: Tensors = {}
    deltas: Tensors = {}
    for path, layer in found.items():
        made = lorafiles.lora(layer)
        attention, _, kind = path.removesuffix(".0").rpartition(".")
        name = f"unet.{attention}.processor.{kind}_lora"
        tensors |= {f"{name}.{part}.weight": tensor for part, tensor in made.items()}
        deltas[f"unet.{path}"] = made["up"] @ made["down"]
    shelf.put("style", tensors)
    submission = shelf.job("sd15", loras={"style": 1.0})
    with changed(pipe, deltas):
        expected = plain(pipe, submission)
    assert_same(painted(submission)[0], expected)


#: Layers of the tiny FLUX as its makers name them, and as diffusers does: several where they were one.
DOUBLE, SINGLE = "transformer_blocks.0.", "single_transformer_blocks.0."
FLUX = {
    "double_blocks_0_img_attn_qkv": [DOUBLE + f"attn.to_{i}" for i in "qkv"],
    "double_blocks_0_txt_attn_qkv": [DOUBLE + f"attn.add_{i}_proj" for i in "qkv"],
    "double_blocks_0_img_attn_proj": [DOUBLE + "attn.to_out.0"],
    "double_blocks_0_txt_attn_proj": [DOUBLE + "attn.to_add_out"],
    "double_blocks_0_img_mlp_0": [DOUBLE + "ff.net.0.proj"],
    "double_blocks_0_img_mlp_2": [DOUBLE + "ff.net.2"],
    "double_blocks_0_txt_mlp_0": [DOUBLE + "ff_context.net.0.proj"],
    "double_blocks_0_txt_mlp_2": [DOUBLE + "ff_context.net.2"],
    "double_blocks_0_img_mod_lin": [DOUBLE + "norm1.linear"],
    "double_blocks_0_txt_mod_lin": [DOUBLE + "norm1_context.linear"],
    "single_blocks_0_linear1": [*(SINGLE + f"attn.to_{i}" for i in "qkv"), SINGLE + "proj_mlp"],
    "single_blocks_0_linear2": [SINGLE + "proj_out"],
    "single_blocks_0_modulation_lin": [SINGLE + "norm.linear"],
}


#: The same of Stable Diffusion 3.
SD3 = {
    "joint_blocks_0_x_block_attn_qkv": [DOUBLE + f"attn.to_{i}" for i in "qkv"],
    "joint_blocks_0_context_block_attn_qkv": [DOUBLE + f"attn.add_{i}_proj" for i in "qkv"],
    "joint_blocks_0_x_block_attn_proj": [DOUBLE + "attn.to_out.0"],
    "joint_blocks_0_context_block_attn_proj": [DOUBLE + "attn.to_add_out"],
    "joint_blocks_0_x_block_mlp_fc1": [DOUBLE + "ff.net.0.proj"],
    "joint_blocks_0_x_block_mlp_fc2": [DOUBLE + "ff.net.2"],
    "joint_blocks_0_context_block_mlp_fc1": [DOUBLE + "ff_context.net.0.proj"],
    "joint_blocks_0_context_block_mlp_fc2": [DOUBLE + "ff_context.net.2"],
    "joint_blocks_0_x_block_adaLN_modulation_1": [DOUBLE + "norm1.linear"],
}


@pytest.mark.parametrize(("name", "original_names"), [("flux", FLUX), ("sd3", SD3)])
def test_transformers_in_kohyas_layout(shelf: Shelf, name: str, original_names: dict[str, list[str]]) -> None:
    """The original's fused layers. diffusers' own conversions know the large models only, so weights are added."""
    pipe = pipe_of(shelf.catalog.model(name))
    layers_of = {
        flat: [pipe.transformer.get_submodule(path) for path in paths] for flat, paths in original_names.items()
    }
    fused = {
        f"lora_unet_{flat}": torch.nn.Linear(parts[0].in_features, sum(part.out_features for part in parts))
        for flat, parts in layers_of.items()
    }
    tensors = lorafiles.flat_lora(fused)
    shelf.put("style", tensors)
    deltas: Tensors = {}
    for full, delta in products(tensors, {full: full for full in fused}).items():
        flat = full.removeprefix("lora_unet_")
        rows = [layer.out_features for layer in layers_of[flat]]
        deltas |= {
            f"transformer.{path}": part for path, part in zip(original_names[flat], delta.split(rows), strict=True)
        }
    submission, without = shelf.job(name, loras={"style": 0.6}), shelf.job(name)
    bare = plain(pipe, without)
    with changed(pipe, deltas, 0.6):
        expected = plain(pipe, submission)
    ours, ours_without = painted(submission, without)
    assert_same(ours, expected)
    assert_same(ours_without, bare)
    assert difference(ours, bare) > 8


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_transformers_in_diffusers_layout(shelf: Shelf, name: str) -> None:
    """Names below ``transformer``, which are also the beginning of its blocks' names."""
    pipe = pipe_of(shelf.catalog.model(name))
    tensors = lorafiles.diffusers_lora({"transformer": layers(pipe.transformer, ATTENTION)})
    path = shelf.put("style", tensors)
    submission = shelf.job(name, loras={"style": 0.8})
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
    pipe.set_adapters(["style"], [0.8])
    assert_same(painted(submission)[0], plain(pipe, submission))


KINDS = {
    "loha": lorafiles.loha,
    "loha of a high rank": lambda layer: lorafiles.loha(layer, rank=12),
    "lokr": lorafiles.lokr,
    "lokr decomposed": lambda layer: lorafiles.lokr(layer, rank=2),
}
CONVOLVED = {"loha with a core": lambda layer: lorafiles.loha(layer, is_tucker=True)}


@pytest.mark.parametrize("kind", [*KINDS, *CONVOLVED])
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_lycoris(shelf: Shelf, name: str, kind: str) -> None:
    """Every kind on matrices and kernels, against the same weights added to the model's own."""
    pipe = pipe_of(shelf.catalog.model(name))
    endings = CONVOLUTIONS[:2] if kind in CONVOLVED else ATTENTION + CONVOLUTIONS
    found = {kohya(path): (f"unet.{path}", layer) for path, layer in layers(pipe.unet, endings).items()}
    tensors, deltas = lorafiles.lycoris(found, (KINDS | CONVOLVED)[kind])
    shelf.put("style", tensors)
    submission = shelf.job(name, loras={"style": 0.5})
    with changed(pipe, deltas, 0.5):
        expected = plain(pipe, submission)
    (ours,) = painted(submission)
    assert_same(ours, expected)
    assert difference(ours, plain(pipe, submission)) > 4


def test_a_core_between_the_matrices_of_a_lora(shelf: Shelf) -> None:
    """LoCon's third tensor: ``lora_mid``."""
    pipe = pipe_of(shelf.catalog.model("sd15"))
    tensors: Tensors = {}
    deltas: Tensors = {}
    for path, layer in layers(pipe.unet, ("conv1",)).items():
        rows, inputs, *kernel = layer.weight.shape
        made = {"down": torch.randn(3, inputs, 1, 1) * 0.2, "up": torch.randn(rows, 3, 1, 1) * 0.3}
        made["mid"] = torch.randn(3, 3, *kernel) * 0.3
        tensors |= {f"{kohya(path)}.lora_{part}.weight": tensor for part, tensor in made.items()}
        deltas[f"unet.{path}"] = torch.einsum(
            "op,pqhw,qi->oihw", made["up"].flatten(1), made["mid"], made["down"].flatten(1)
        )
    shelf.put("style", tensors)
    submission = shelf.job("sd15", loras={"style": 1.0})
    with changed(pipe, deltas):
        expected = plain(pipe, submission)
    assert_same(painted(submission)[0], expected)


@pytest.mark.parametrize(("name", "encoders"), [("sd15", ("te",)), ("sdxl", ("te1", "te2")), ("flux", ("te1",))])
def test_text_encoders(shelf: Shelf, name: str, encoders: tuple[str, ...]) -> None:
    """The prompt is encoded with the adapter, the same prompt beside it without, and each is kept under its own key."""
    pipe = pipe_of(shelf.catalog.model(name))
    found = {}
    for prefix, part in zip(encoders, ("text_encoder", "text_encoder_2"), strict=False):
        for path, layer in layers(getattr(pipe, part), PROJECTIONS).items():
            inner = path.removeprefix("text_model.")
            found[kohya(f"text_model.{inner}", f"lora_{prefix}_")] = f"{part}.{path}", layer
    tensors = lorafiles.flat_lora({name: layer for name, (_, layer) in found.items()})
    shelf.put("words", tensors)
    jobs = [shelf.job(name), shelf.job(name, loras={"words": 0.9}), shelf.job(name, seed=1)]
    jobs += [shelf.job(name, loras={"words": 0.4}), shelf.job(name, loras={"words": 0.9}, seed=1)]
    deltas, expected = products(tensors, {name: path for name, (path, _) in found.items()}), []
    for submission in jobs:
        weight = submission.recipe.loras[0].weight if submission.recipe.loras else 0.0
        with changed(pipe, deltas, weight):
            expected.append(plain(pipe, submission))
    for ours, theirs in zip(painted(*jobs), expected, strict=True):
        assert_same(ours, theirs)
    assert difference(expected[0], expected[1]) > 2


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_several_together_and_runs_without_any(shelf: Shelf) -> None:
    """Up to four at once, of several ranks; runs that differ in adapters or weights at one moment, each as if alone."""
    pipe = pipe_of(shelf.catalog.model("sd15"))
    found = layers(pipe.unet, ATTENTION)
    half = dict(list(found.items())[::2])
    for i, (part, rank) in enumerate([(found, 4), (half, 7), (found, 16), (half, 1)]):
        shelf.put(f"style-{i}", lorafiles.diffusers_lora({"unet": part}, rank, seed=i))
    sets: list[dict[str, float]] = [
        {},
        {"style-0": 1.0},
        {"style-0": 0.5},
        {"style-1": -0.7},
        {"style-0": 0.5, "style-1": 0.3},
        {"style-0": 0.2, "style-1": 0.3, "style-2": -0.4, "style-3": 0.5},
        {"style-3": 0.8},
    ]
    jobs = [shelf.job("sd15", loras=chosen, steps=3 + i % 2, seed=i // 4) for i, chosen in enumerate([*sets, *sets])]
    outcomes, rows = paint_all(jobs, max_runs=len(jobs))
    for name in ("style-0", "style-1", "style-2", "style-3"):
        pipe.load_lora_weights(shelf.folder / "loras", weight_name=f"{name}.safetensors", adapter_name=name)
    for submission in jobs:
        uses = submission.recipe.loras
        if uses:
            pipe.enable_lora()
            pipe.set_adapters([use.name for use in uses], [use.weight for use in uses])
        else:
            pipe.disable_lora()
        theirs = plain(pipe, submission)
        assert_same(outcomes[submission.id].exact, theirs, uses)
    assert max(rows) > 2  # those that agree shared forwards


def test_after_switching_back_nothing_is_left(shelf: Shelf) -> None:
    """The same bytes as before any adapter, and with the first one as before the second; slots keep their tensors."""
    pipe = pipe_of(shelf.catalog.model("sd15"))
    for name, rank in (("small", 4), ("large", 20)):
        shelf.put(name, lorafiles.diffusers_lora({"unet": layers(pipe.unet, ATTENTION)}, rank, seed=rank))
    with Darkroom() as room:
        seen = {}
        for turn in range(3):
            for name in ("", "small", "large"):
                submission = shelf.job("sd15", loras={name: 1.0} if name else {}, reproducible=True)
                seen[name, turn] = room.paint(submission).exact
    for name in ("", "small", "large"):
        assert (seen[name, 1] == seen[name, 2]).all()
        assert_same(seen[name, 0], seen[name, 1])
    assert (seen["", 0] == seen["", 2]).all()
    assert difference(seen["small", 1], seen["large", 1]) > 8


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_forward_is_plain_diffusers_to_a_tenthousandth(shelf: Shelf, name: str) -> None:
    """The denoiser alone, in numbers rather than levels; and switching allocates nothing anew."""
    model = shelf.catalog.model(name)
    pipe = pipe_of(model)
    for i in range(2):
        shelf.put(f"style-{i}", lorafiles.diffusers_lora({"unet": layers(pipe.unet, ATTENTION)}, seed=i))
    ours = pipelines.load(model, torch.float32)
    inputs = _unet_inputs(pipe, name)
    hosted = [read(shelf.loras.find(f"style-{i}").adapter, torch.float32) for i in range(2)]
    pointers = set()
    for turn in range(4):
        worn = hosted[turn % 2]
        ours.adapters.wear_on_denoiser([(worn, 0.7)])
        pointers.add(tuple(id(slot.up) for slot in ours.adapters._denoiser._slots.values()))
        pipe.load_lora_weights(shelf.folder / "loras", weight_name=f"{worn.name}.safetensors", adapter_name="one")
        pipe.set_adapters(["one"], [0.7])
        seen, expected = ours.denoiser(**inputs).sample, pipe.unet(**inputs).sample
        assert (seen - expected).abs().max() <= 1e-4 * expected.abs().max()
        pipe.unload_lora_weights()
    assert len(pointers) == 1
    ours.adapters.wear_on_denoiser([])
    assert torch.equal(ours.denoiser(**inputs).sample, pipe.unet(**inputs).sample)


def _unet_inputs(pipe: Any, name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    width = pipe.unet.config.cross_attention_dim
    inputs: dict[str, Any] = {"sample": torch.randn(2, 4, 16, 16), "timestep": torch.tensor([10, 500])}
    inputs["encoder_hidden_states"] = torch.randn(2, 77, width)
    if name == "sdxl":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 32), "time_ids": torch.ones(2, 6)}
    return inputs


def test_what_diffusers_writes_of_alpha(shelf: Shelf) -> None:
    """The metadata of files that diffusers saves scale their layers, as load_lora_weights does."""
    pipe = pipe_of(shelf.catalog.model("sd15"))
    found = layers(pipe.unet, ATTENTION)
    config = {"r": 4, "lora_alpha": 10, "target_modules": sorted(found), "lora_dropout": 0.0, "bias": "none"}
    about = {"lora_adapter_metadata": {f"unet.{key}": value for key, value in config.items()}, "format": "pt"}
    path = shelf.put("style", lorafiles.diffusers_lora({"unet": found}), about)
    submission = shelf.job("sd15", loras={"style": 0.3})
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
    pipe.set_adapters(["style"], [0.3])
    assert_same(painted(submission)[0], plain(pipe, submission))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_end_one_job(shelf: Shelf, value: float) -> None:
    """A header cannot tell of them: the job that asks for them fails, and the next is painted as if nothing were."""
    pipe = pipe_of(shelf.catalog.model("sd15"))
    tensors = lorafiles.diffusers_lora({"unet": layers(pipe.unet, ATTENTION)})
    next(iter(tensors.values()))[0, 0] = value
    shelf.put("bad", tensors)
    with Darkroom() as room:
        before = room.paint(shelf.job("sd15", reproducible=True)).picture
        for _ in range(2):
            failed = room.paint(shelf.job("sd15", loras={"bad": 1.0}))
            assert isinstance(failed.error, InvalidRecipe)
            assert "not finite" in failed.error.message
        assert (room.paint(shelf.job("sd15", reproducible=True)).picture == before).all()


def test_memory_after_many_switches_is_what_it_was_after_two(shelf: Shelf) -> None:
    """Slots are filled anew, never made anew, whatever the order of ranks and kinds."""
    pipe = pipe_of(shelf.catalog.model("sd15"))
    found = layers(pipe.unet, ATTENTION)
    shelf.put("small", lorafiles.diffusers_lora({"unet": found}, 4))
    shelf.put("large", lorafiles.diffusers_lora({"unet": found}, 30))
    named = {kohya(path): (f"unet.{path}", layer) for path, layer in found.items()}
    shelf.put("lokr", lorafiles.lycoris(named, lorafiles.lokr)[0])
    ours = pipelines.load(shelf.catalog.model("sd15"), torch.float32)
    hosted = {name: read(shelf.loras.find(name).adapter, torch.float32) for name in ("small", "large", "lokr")}
    sets = [["small"], ["large"], ["lokr"], ["small", "lokr"], [], ["large", "small", "lokr"]]
    counts = []
    for turn in range(5):
        for names in sets:
            ours.adapters.wear_on_denoiser([(hosted[name], 0.1 + turn) for name in names])
        gc.collect()
        counts.append(sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects()))
    assert counts[1] == counts[-1]


def test_a_file_that_is_replaced_is_read_again(shelf: Shelf) -> None:
    """The catalogue sees it, and the old weights are used no more."""
    pipe = pipe_of(shelf.catalog.model("sd15"))
    found = layers(pipe.unet, ATTENTION)
    shelf.put("style", lorafiles.diffusers_lora({"unet": found}, seed=1))
    with Darkroom() as room:
        first = room.paint(shelf.job("sd15", loras={"style": 1.0})).exact
        path = shelf.put("style", lorafiles.diffusers_lora({"unet": found}, seed=2))
        submission = shelf.job("sd15", loras={"style": 1.0})
        second = room.paint(submission).exact
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
    assert_same(second, plain(pipe, submission))
    assert difference(first, second) > 8


def test_host_memory_is_bounded(shelf: Shelf) -> None:
    """The least recently used leave when there is no room; those that somebody waits for stay, however large."""
    pipe = pipe_of(shelf.catalog.model("sd15"))
    for i in range(4):
        shelf.put(f"style-{i}", lorafiles.diffusers_lora({"unet": layers(pipe.unet, ATTENTION)}, seed=i))
    adapters = [shelf.loras.find(f"style-{i}").adapter for i in range(4)]
    size = read(adapters[0], torch.float32).bytes
    told: list[Any] = []
    brought: list[Any] = []
    cache = AdapterCache(partial(read, dtype=torch.float32), "loras", told.append, brought.append, budget=2 * size)

    def have(*wanted: int) -> list[Hosted] | None:
        chosen = [adapters[i] for i in wanted]
        found = cache.find(chosen)
        while found is None:
            while brought:
                cache.take(brought.pop(0))
            found = cache.find(chosen)
        cache.settle()
        return found

    have(0)
    have(1)
    have(0)
    have(2)  # 1 was used least recently
    assert [event.adapter for event in told if event.place == "disk"] == ["style-1"]
    have(0, 1, 2, 3)
    have(3)
    assert len([event for event in told if event.place == "disk"]) == 3
    cache.close()


def test_the_family_is_read_off_the_layers(shelf: Shelf) -> None:
    """A header names the rank and the bytes; widths of real models tell the family."""
    layer = torch.nn.Linear(2048, 640, bias=False)
    path = shelf.put("style", lorafiles.flat_lora({"lora_unet_down_blocks_1_attentions_0_attn2_to_k": layer}, 16))
    file = adapterfile.read(path)
    assert (file.family, file.rank, file.bytes) == ("sdxl", 16, path.stat().st_size)


def test_models_that_make_room_for_one_another(shelf: Shelf) -> None:
    """A model that leaves the device leaves its slots there too, and wears its adapters again when it is back."""
    jobs = []
    for name in ("sd15", "sdxl"):
        pipe = pipe_of(shelf.catalog.model(name))
        path = shelf.put(f"{name}-style", lorafiles.diffusers_lora({"unet": layers(pipe.unet, ATTENTION)}))
        submission = shelf.job(name, loras={f"{name}-style": 0.7})
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="style")
        pipe.set_adapters(["style"], [0.7])
        jobs.append((name, plain(pipe, submission)))
    with Darkroom(budgets=Budgets(device=1)) as room:
        for name, expected in [*jobs, *jobs]:
            assert_same(room.paint(shelf.job(name, loras={f"{name}-style": 0.7})).exact, expected)


def test_a_checkpoint_in_a_single_file(shelf: Shelf) -> None:
    """Its layers are known once it is loaded: a LoRA that fits is worn, one that does not is told then."""
    torch.manual_seed(3)
    pipe = original.build(False)
    original.write_checkpoint(pipe, shelf.folder / "file.safetensors")
    found = {kohya(path): layer for path, layer in layers(pipe.unet, ATTENTION).items()}
    shelf.put("style", lorafiles.flat_lora(found))
    shelf.put("other", lorafiles.flat_lora({"lora_unet_mid_block_resnets_7_conv1": torch.nn.Linear(8, 8)}))
    fields: dict[str, Any] = {"width": 64, "height": 64}
    jobs = [shelf.job("file", loras=chosen, **fields) for chosen in ({}, {"style": 1.0}, {"other": 1.0})]
    outcomes, _ = paint_all(jobs)
    bare, worn, refused = (outcomes[submission.id] for submission in jobs)
    assert difference(bare.picture, worn.picture) > 4
    assert isinstance(refused.error, InvalidRecipe)
    assert "which the model does not have" in refused.error.message


@pytest.mark.parametrize(("family", "told"), [("sdxl", "is for sdxl"), ("sd", None)])
def test_a_family_that_a_file_tells(shelf: Shelf, family: str, told: str | None) -> None:
    """Of a single file it is what can be refused before anything is loaded."""
    torch.manual_seed(3)
    original.write_checkpoint(original.build(False), shelf.folder / "file.safetensors")
    about = {
        "modelspec.architecture": {"sdxl": "stable-diffusion-xl-v1-base/lora", "sd": "stable-diffusion-v1/lora"}[family]
    }
    shelf.put("style", lorafiles.flat_lora({"lora_unet_conv_in": torch.nn.Linear(8, 8)}), about)
    if told is None:
        assert shelf.job("file", loras={"style": 1.0}).adapters
    else:
        with pytest.raises(InvalidRecipe, match=told):
            shelf.job("file", loras={"style": 1.0})
