"""The catalogues of IP-Adapters, reference images and embeddings: what headers say, and files that are none."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from daguerre import catalog, embeddings, ipadapterfile, recipe
from daguerre.catalog import Model
from daguerre.embeddings import Embeddings
from daguerre.errors import CatalogError, InvalidRecipe
from daguerre.recipe import Draft, Recipe, ReferenceUse, ReferenceWish
from daguerre.references import References, misfit

Shapes = dict[str, tuple[int, ...]]

DEMO = Path(__file__).parents[2] / "weights" / "demo-xl"
CONTEXT, WIDTHS, SEEN = 768, (320, 640), 1024
PLAIN: Shapes = {
    "image_proj.proj.weight": (4 * CONTEXT, SEEN),
    "image_proj.proj.bias": (4 * CONTEXT,),
    "image_proj.norm.weight": (CONTEXT,),
    "image_proj.norm.bias": (CONTEXT,),
    **{
        f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight": (width, CONTEXT)
        for i, width in enumerate(WIDTHS)
        for part in "kv"
    },
}
PLUS: Shapes = {
    "image_proj.latents": (1, 16, 768),
    "image_proj.proj_in.weight": (768, 1280),
    "image_proj.proj_out.weight": (2048, 768),
    "ip_adapter.1.to_k_ip.weight": (640, 2048),
    "ip_adapter.1.to_v_ip.weight": (640, 2048),
}
FLUX: Shapes = {
    "ip_adapter_proj_model.proj.weight": (4 * 4096, 768),
    "ip_adapter_proj_model.proj.bias": (4 * 4096,),
    "ip_adapter_proj_model.norm.weight": (4096,),
    "ip_adapter_proj_model.norm.bias": (4096,),
    **{
        f"double_blocks.0.processor.ip_adapter_double_stream_{part}_proj.{kind}": shape
        for part in "kv"
        for kind, shape in (("weight", (3072, 4096)), ("bias", (3072,)))
    },
}


def packed(shapes: Shapes, dtype: Any = np.float16) -> bytes:
    """A file of zeros."""
    data: bytes = save({name: np.zeros(shape, dtype) for name, shape in shapes.items()})
    return data


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file into a folder of the weights."""

    def write(data: bytes, name: str, folder: str = "ip-adapters") -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def model() -> Model:
    """The embedded one."""
    return catalog.read(DEMO.parent, "demo-xl").model()


def encoder(put: Callable[..., Path], name: str = "encoder", **config: Any) -> None:
    """An image encoder's folder, with weights of nothing."""
    put(json.dumps(config).encode(), "config.json", f"ip-adapters/{name}")
    put(packed({"w": (1,)}), "model.safetensors", f"ip-adapters/{name}")


def completed(shelf: References, model: Model, **fields: Any) -> Recipe:
    """A draft's recipe."""
    draft = recipe.parse({"prompt": "a lake"} | fields)
    return shelf.completed(recipe.resolve(draft, model, 0, {}), draft, model)


@pytest.mark.parametrize(
    ("shapes", "kind", "family", "width", "widths"),
    [
        (PLAIN, "plain", "sd", SEEN, WIDTHS),
        (PLUS, "plus", "sdxl", 1280, (640,)),
        (FLUX, "plain", "flux", 768, (3072,)),
    ],
)
def test_layouts(
    put: Callable[..., Path], shapes: Shapes, kind: str, family: str, width: int, widths: tuple[int, ...]
) -> None:
    """The kind, the family, the image encoder's width and the attentions, from shapes alone."""
    file = ipadapterfile.read(put(packed(shapes), "x.safetensors"))
    assert (file.kind, file.family, file.encoder_width, file.widths) == (kind, family, width, widths)


def _without(name: str) -> Shapes:
    return {key: shape for key, shape in PLAIN.items() if key != name}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{",
        packed(PLAIN)[:-1],
        packed(PLAIN) + b"\0",
        packed(PLAIN, np.int64),
        packed({"image_proj.proj.weight": (8, 8)}),
        packed({"ip_adapter.1.to_k_ip.weight": (8, 8), "ip_adapter.1.to_v_ip.weight": (8, 8)}),
        packed(_without("ip_adapter.1.to_v_ip.weight")),
        packed(_without("image_proj.norm.bias")),
        packed(_without("image_proj.proj.weight")),
        packed(PLAIN | {"ip_adapter.1.to_v_ip.weight": (320, 1024)}),
        packed(PLAIN | {"ip_adapter.3.to_v_ip.weight": (640, 1024), "ip_adapter.3.to_k_ip.weight": (640, 1024)}),
        packed(PLAIN | {"ip_adapter.1.to_k_ip.weight": (320,)}),
        packed(PLAIN | {"image_proj.proj.weight": (5 * CONTEXT, SEEN)}),
        packed(PLAIN | {"lora_unet_x.lora_down.weight": (4, 4)}),
        packed(PLAIN | {"ip_adapter.0.to_k_lora.down.weight": (4, 4)}),  # Face ID
        packed(_without("image_proj.proj.weight") | {"image_proj.proj.0.weight": (8, 8)}),
        packed(PLUS | {"image_proj.proj_out.weight": (768, 768)}),
        packed(FLUX | {"double_blocks.0.processor.ip_adapter_double_stream_k_proj.bias": (8,)}),
        packed({key: shape for key, shape in FLUX.items() if not key.endswith("_v_proj.bias")}),
    ],
)
def test_files_that_are_none(put: Callable[..., Path], data: bytes) -> None:
    """Each is a CatalogError, without a path."""
    path = put(data, "x.safetensors")
    with pytest.raises(CatalogError) as caught:
        ipadapterfile.read(path)
    assert str(path.parent) not in str(caught.value)


def test_the_image_encoder_is_found_by_its_width(put: Callable[..., Path], tmp_path: Path) -> None:
    """By the projection's for a plain one, by the hidden states' for a plus one; a full CLIP's is within."""
    put(packed(PLAIN), "plain.safetensors")
    put(packed(PLUS), "plus.safetensors")
    put(packed(FLUX), "flux.safetensors")
    encoder(put, "a", projection_dim=512, hidden_size=768)
    encoder(put, "b", projection_dim=1024, hidden_size=1280)
    encoder(put, "c", projection_dim=768, vision_config={"hidden_size": 1024})
    found = {known.name: known.adapter.encoder.name for known in References(tmp_path).adapters}
    assert found == {"plain": "b", "plus": "b", "flux": "c"}


def test_what_is_broken_is_told_and_costs_no_other(put: Callable[..., Path], tmp_path: Path) -> None:
    """No encoder, one that asks for code, one in another format, a wrong table, a file that is named and not there."""
    put(packed(PLAIN), "good.safetensors")
    put(packed(PLUS), "lonely.safetensors")
    put(packed(FLUX), "coded.safetensors")
    put(packed(PLAIN), "astray.safetensors")
    encoder(put, "good", projection_dim=1024, hidden_size=1)
    encoder(put, "coded", projection_dim=768, auto_map={"AutoModel": "evil.Model"})
    tables = '[ip_adapters.gone]\n[ip_adapters.odd]\nfile = "../x.safetensors"\n'
    tables += '[ip_adapters.astray]\nimage_encoder = "coded"\n'
    (tmp_path / "catalog.toml").write_text(tables)
    shelf = References(tmp_path)
    assert [known.name for known in shelf.adapters] == ["good"]
    told = "\n".join(shelf.problems)
    assert "'lonely': it needs an image encoder (CLIP) whose hidden states are 1280 wide" in told
    assert "'coded': " in told
    assert "never run" in told
    assert "'gone': there is no gone.safetensors" in told
    assert "catalog.toml:3: " in told
    assert "'astray': it needs an image encoder (CLIP) whose projection are 1024 wide; 'coded' is not it" in told
    assert str(tmp_path) not in told


def test_wishes_become_uses(put: Callable[..., Path], tmp_path: Path, model: Model) -> None:
    """Scales of the request, of the table and of nobody; the server's own picture."""
    _for_demo(put, "one")
    put(b"", "cliff.png", "references")
    shelf = References(tmp_path)
    assert completed(shelf, model).reference_images == ()
    made = completed(shelf, model, reference_images=[{"name": "cliff", "scale": 0.25}, {"image": "x"}])
    assert made.reference_images == (ReferenceUse("cliff", 0.25), ReferenceUse(None, 0.6))
    assert made.ip_adapter == "one"
    assert completed(shelf, model, ip_strength=0.1).reference_images == (ReferenceUse("cliff", 0.1),)
    put(b"", "dune.jpg", "references")
    with pytest.raises(InvalidRecipe, match="known reference images: cliff, dune"):
        completed(shelf, model, ip_strength=0.1)
    put(b"", "default.webp", "references")
    assert completed(shelf, model, ip_strength=0.1).reference_images == (ReferenceUse("default", 0.1),)
    (tmp_path / "catalog.toml").write_text("[ip_adapters.one]\nscale = 0.9\n")
    assert completed(shelf, model, ip_strength=0, reference_images=[{"name": "cliff"}]).reference_images[0].scale == 0
    assert completed(shelf, model, reference_images=[{"name": "cliff"}]).reference_images[0].scale == 0.9


def _for_demo(put: Callable[..., Path], name: str) -> Path:
    """An IP-Adapter of the embedded model's shapes."""
    from daguerre.references import _layers

    context, widths, _ = _layers(DEMO, 0)
    shapes: Shapes = {
        f"image_proj.{part}": shape
        for part, shape in (
            ("proj.weight", (4 * context, 8)),
            ("proj.bias", (4 * context,)),
            ("norm.weight", (context,)),
            ("norm.bias", (context,)),
        )
    }
    for i, width in enumerate(widths):
        shapes |= {f"ip_adapter.{2 * i + 1}.to_{part}_ip.weight": (width, context) for part in "kv"}
    encoder(put, projection_dim=8)
    return put(packed(shapes), f"{name}.safetensors")


def test_the_embedded_model_takes_what_has_its_shapes(put: Callable[..., Path], tmp_path: Path, model: Model) -> None:
    """And nothing else; changes of a file are seen."""
    path = _for_demo(put, "own")
    put(packed(PLAIN), "other.safetensors")
    encoder(put, "other", projection_dim=SEEN)
    shelf = References(tmp_path)
    before = shelf.adapter("own", model)
    with pytest.raises(InvalidRecipe, match="'other' does not fit 'demo-xl', which is sdxl: it is for sd"):
        shelf.adapter("other", model)
    path.write_bytes(path.read_bytes().replace(b'"F16"', b'"BF16"').ljust(1))
    path.unlink()
    _for_demo(put, "own")
    assert shelf.adapter("own", model).key != before.key
    with pytest.raises(InvalidRecipe, match=re.escape("known IP-Adapters: other (sd), own (unknown)")):
        shelf.adapter("nope", model)


@pytest.mark.parametrize(("width", "fits"), [(768, True), (1024, False)])
def test_checkpoints_in_a_single_file(
    put: Callable[..., Path], tmp_path: Path, model: Model, width: int, fits: bool
) -> None:
    """Stable Diffusion 1.x and 2.x are of one family: the width of their text tells them apart, for embeddings, too."""
    put(packed(PLAIN), "one.safetensors")
    encoder(put, projection_dim=SEEN)
    put(packed({"emb_params": (1, 768)}), "word.safetensors", "embeddings")
    words = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    layers = {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, width)}
    layers[words if fits else "cond_stage_model.model.token_embedding.weight"] = (4, width)
    path = put(packed(layers), "sd.safetensors", ".")
    single = msgspec.structs.replace(model, name="sd", family="sd", pipeline="StableDiffusionPipeline", path=path)
    (known,) = References(tmp_path).adapters
    (word,) = Embeddings(tmp_path).embeddings
    assert (misfit(known, single) is None, word.misfit(single) is None) == (fits, fits)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"reference_images": [{"name": "a", "image": "b"}]}, "either an image or a name"),
        ({"reference_images": [{"name": "a", "scale": float("nan")}]}, "reference_images"),
        ({"reference_images": "a"}, "reference_images"),
        ({"ip_strength": 1.1}, "ip_strength"),
        ({"ip_adapter": "x"}, "needs reference_images"),
    ],
)
def test_drafts_that_are_refused(fields: dict[str, Any], told: str) -> None:
    """By their fields."""
    with pytest.raises(InvalidRecipe, match=told):
        recipe.parse({"prompt": "x"} | fields)


def test_drafts_know_of_their_pictures() -> None:
    """Only what comes with a request has to be decoded."""
    assert not Draft(prompt="x", reference_images=(ReferenceWish(name="a"),)).has_pictures
    assert Draft(prompt="x", reference_images=(ReferenceWish(image="a"),)).has_pictures
    assert Draft(prompt="x", image="a").has_pictures


# Embeddings


@pytest.mark.parametrize(
    ("shapes", "widths", "vectors"),
    [
        ({"emb_params": (8, 768)}, (768,), 8),
        ({"<cat-toy>": (768,)}, (768,), 1),
        ({"clip_g": (3, 1280), "clip_l": (3, 768)}, (768, 1280), 3),
        ({"emb_params": (2, 1024), "step": (1,)}, (1024,), 2),
    ],
)
def test_layouts_of_embeddings(
    put: Callable[..., Path], tmp_path: Path, shapes: Shapes, widths: tuple[int, ...], vectors: int
) -> None:
    """Their widths and how many vectors, from shapes alone."""
    put(packed(shapes), "word.safetensors", "embeddings")
    (found,) = Embeddings(tmp_path).embeddings
    assert (found.name, found.widths, found.vectors) == ("word", widths, vectors)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04cposix\nsystem\n",
        packed({"emb_params": (8, 768)})[:-1],
        packed({"emb_params": (76, 8)}),
        packed({"emb_params": (2, 2, 8)}),
        packed({"emb_params": (0, 8)}),
        packed({"emb_params": (2, 8)}, np.int32),
        packed({"a": (2, 8), "b": (2, 8)}),
        packed({"clip_l": (2, 8), "clip_g": (3, 8)}),
        packed({"emb_params": (75, 20_000)}, np.float64),
    ],
)
def test_files_that_are_no_embeddings(put: Callable[..., Path], tmp_path: Path, model: Model, data: bytes) -> None:
    """Told of, refused where a prompt names them, and no hindrance to others."""
    put(data, "torn.safetensors", "embeddings")
    put(packed({"emb_params": (1, 8)}), "whole.safetensors", "embeddings")
    shelf = Embeddings(tmp_path)
    assert [one.name for one in shelf.embeddings] == ["whole"]
    assert len(shelf.problems) == 1
    assert str(tmp_path) not in shelf.problems[0]
    named = recipe.resolve(recipe.parse({"prompt": "a torn flag"}), model, 0, {})
    with pytest.raises(InvalidRecipe, match="'torn' cannot be used"):
        shelf.check(named, model)


def test_words_in_prompts() -> None:
    """Whole words in any case; of two that begin alike the longer one."""
    names = ["cat", "cat-toy", "<s1>", "a.b"]
    assert embeddings.find("a CAT, (cat:1.3) cats, <cat>", names) == ["CAT", "cat", "cat"]
    assert embeddings.find("cat-toy cat", names) == ["cat-toy", "cat"]
    assert embeddings.find("a<s1>b axb", names) == ["<s1>"]
    assert embeddings.find("anything", []) == []
    assert embeddings.replaced("a Cat-Toy, cat", {"cat": "x1", "cat-toy": "y1 y2"}) == "a y1 y2, x1"


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=8), max_size=5))
def test_any_text_and_any_names(text: str, names: list[str]) -> None:
    """Nothing in them is taken for a pattern."""
    assert all(found.casefold() in text.casefold() or found in text for found in embeddings.find(text, names))
