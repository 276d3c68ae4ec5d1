"""The catalogue of LoRAs: what files say, what catalog.toml says of them, and the many files that are none."""

import contextlib
import json
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daguerre import adapterfile, layernames
from daguerre.errors import CatalogError, InvalidRecipe, LoraIncompatible, LoraNotFound
from daguerre.loras import Loras
from daguerre.recipe import Draft, LoraUse, LoraWish, parse

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
MODEL = {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (32, 64)}


def header(fields: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file of this header and data, whatever they are."""
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensors(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", **metadata: str) -> bytes:
    """A file of zeros."""
    fields: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        size = {"F32": 4, "F16": 2, "I64": 8, "F8_E4M3": 1}[dtype]
        for side in shape:
            size *= side
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return header(fields, bytes(end))


def lora(rows: int = 32, columns: int = 64, rank: int = 4, layer: str = LAYER, **options: Any) -> bytes:
    """A LoRA of one layer."""
    return tensors({f"{layer}.lora_down.weight": (rank, columns), f"{layer}.lora_up.weight": (rows, rank)}, **options)


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file among the LoRAs."""
    (tmp_path / "loras").mkdir()

    def write(data: bytes, name: str = "style.safetensors") -> Path:
        path = tmp_path / "loras" / name
        path.write_bytes(data)
        return path

    return write


GOOD = lora()
CORRUPT = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a length and nothing else": struct.pack("<Q", 100),
    "cut off in the header": GOOD[:50],
    "cut off in the data": GOOD[:-1],
    "a byte too long": GOOD + b"\0",
    "a header of 2⁶³ bytes": struct.pack("<Q", 2**63) + GOOD[8:],
    "a header of 100 MB": struct.pack("<Q", 100_000_000) + GOOD[8:],
    "a header that is no JSON": struct.pack("<Q", 8) + b"notjson!",
    "a header that is a list": struct.pack("<Q", 2) + b"[]",
    "a header without tensors": header({}, b""),
    "metadata that are no texts": header({"__metadata__": {"a": 1}}, b""),
    "tensors that overlap": header(
        {
            f"{LAYER}.lora_down.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
            f"{LAYER}.lora_up.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [4, 12]},
        },
        bytes(12),
    ),
    "a hole between tensors": header(
        {
            f"{LAYER}.lora_down.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
            f"{LAYER}.lora_up.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [12, 20]},
        },
        bytes(20),
    ),
    "a shape that is not its length": header(
        {f"{LAYER}.lora_down.weight": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 8]}}, bytes(8)
    ),
    "a negative shape": header(
        {f"{LAYER}.lora_down.weight": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, bytes(8)
    ),
    "an unknown dtype": header({"a.lora_down.weight": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "whole numbers for weights": lora(dtype="I64"),
    "eight-bit floats": lora(dtype="F8_E4M3"),
    "a pickle": pickle.dumps({"lora": [1, 2]}),
    "a zip, as torch saves": b"PK\x03\x04" + bytes(200),
    "GGUF": b"GGUF" + bytes(200),
    "HTML": b"<!doctype html><title>404</title>" + bytes(100),
    "a checkpoint": tensors({"model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3)}),
    "down without up": tensors({f"{LAYER}.lora_down.weight": (4, 64)}),
    "up of another rank": tensors({f"{LAYER}.lora_down.weight": (4, 64), f"{LAYER}.lora_up.weight": (32, 5)}),
    "nothing but alpha": tensors({f"{LAYER}.alpha": (1,)}),
    "an alpha that is a matrix": tensors({f"{LAYER}.alpha": (4, 4)}),
    "two kinds at once": tensors({f"{LAYER}.lora_down.weight": (4, 64), f"{LAYER}.lokr_w1": (2, 2)}),
    "half a LoHa": tensors({f"{LAYER}.hada_w1_a": (32, 2), f"{LAYER}.hada_w1_b": (2, 64)}),
    "a LoKr of one matrix": tensors({f"{LAYER}.lokr_w1": (2, 2)}),
    "DoRA": tensors(
        {f"{LAYER}.lora_down.weight": (4, 64), f"{LAYER}.lora_up.weight": (32, 4), f"{LAYER}.dora_scale": (32, 1)}
    ),
    "a rank of nothing": tensors({f"{LAYER}.lora_down.weight": (0, 64), f"{LAYER}.lora_up.weight": (32, 0)}),
}


@pytest.mark.parametrize("data", CORRUPT.values(), ids=CORRUPT)
def test_what_is_no_adapter_is_told_and_costs_no_other(tmp_path: Path, put: Callable[..., Path], data: bytes) -> None:
    """A problem without a path; the LoRA beside it stays."""
    put(data)
    put(GOOD, "good.safetensors")
    loras = Loras(tmp_path)
    with pytest.raises(LoraIncompatible, match="LoRA 'style' cannot be used: ") as told:
        loras.find("style")
    assert str(tmp_path) not in told.value.message
    assert [lora.name for lora in loras.loras] == ["good"]
    assert len(loras.problems) == 1
    put(GOOD)  # mended: seen without a restart
    assert loras.find("style").rank == 4


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), length=st.integers(0, len(GOOD)))
def test_any_byte_may_be_wrong(put: Callable[..., Path], place: int, value: int, length: int) -> None:
    """A file with a byte of it changed, or a part of it missing, is an adapter or is refused; nothing else happens."""
    for data in (GOOD[:place] + bytes([value]) + GOOD[place + 1 :], GOOD[:length]):
        path = put(data, f"{place}-{value}-{length}-{len(data)}.safetensors")
        with contextlib.suppress(CatalogError):
            assert adapterfile.read(path).rank >= 1


@pytest.mark.parametrize("name", ["../style", "loras/style", "/etc/passwd", "style.safetensors", "", "nope", "a\0b"])
def test_names_are_names(tmp_path: Path, put: Callable[..., Path], name: str) -> None:
    """Nothing but a name of the catalogue finds anything."""
    put(GOOD)
    with pytest.raises(LoraNotFound, match="known LoRAs: style"):
        Loras(tmp_path).find(name)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (lora(columns=96), "is 32×96, where the model's is 32×64"),
        (lora(rows=31), "is 31×64, where the model's is 32×64"),
        (lora(layer="lora_unet_double_blocks_0_img_attn_proj"), "which the model does not have"),
        (lora(layer="lora_te2_text_model_encoder_layers_0_mlp_fc1"), "which the model does not have"),
        (lora(layer="nothing"), "which the model does not have"),
    ],
)
def test_wrong_bases(put: Callable[..., Path], data: bytes, why: str) -> None:
    """From the header alone: other shapes, other layers."""
    with pytest.raises(CatalogError, match=why):
        adapterfile.match(adapterfile.read(put(data)), MODEL)


def test_one_layer_under_two_names(put: Callable[..., Path]) -> None:
    """Which of the two would count could not be told."""
    other = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    names = (
        [f"{LAYER}.lora_down.weight", f"{other}.lora_A.weight"],
        [f"{LAYER}.lora_up.weight", f"{other}.lora_B.weight"],
    )
    path = put(tensors(dict.fromkeys(names[0], (4, 64)) | dict.fromkeys(names[1], (32, 4))))
    with pytest.raises(CatalogError, match="twice, under two names"):
        adapterfile.match(adapterfile.read(path), MODEL)


def test_every_layout_finds_the_layer() -> None:
    """The names that a layer has, by those who write them."""
    known = layernames.names(MODEL)
    inner = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    original = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    for name in (
        *(LAYER, f"unet.{inner}.to_k", f"{inner}.to_k", f"unet.{inner}.processor.to_k"),
        *(f"base_model.model.{inner}.to_k", f"diffusion_model.{original}", "lora_unet_" + original.replace(".", "_")),
        f"lycoris_{inner.replace('.', '_')}_to_k",
    ):
        assert layernames.find(name, known) == tuple(MODEL), name


def test_what_a_file_says_of_itself_and_what_the_catalogue_says(tmp_path: Path, put: Callable[..., Path]) -> None:
    """Metadata, over them the table of catalog.toml; a broken table costs its own LoRA only."""
    about: dict[str, Any] = {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.trigger_phrase": "ohwx, papercut",
    }
    put(lora(**about))
    found = Loras(tmp_path).find("style")
    assert (found.family, found.trigger_words, found.default_weight) == ("sdxl", ("ohwx", "papercut"), 1.0)
    (tmp_path / "catalog.toml").write_text(
        '[loras.paper]\nfile = "style.safetensors"\nweight = 0.7\ntrigger_words = ["paper"]\ndescription = "Cut."\n'
        '[loras.away]\nfile = "../secret.safetensors"\n[loras.gone]\n[loras.heavy]\nweight = 9\n'
    )
    loras = Loras(tmp_path)
    (found,) = loras.loras
    assert (found.name, found.default_weight, found.trigger_words) == ("paper", 0.7, ("paper",))
    assert found.description == "Cut."
    assert [problem.split(":")[0] for problem in loras.problems] == ["LoRA 'away'", "LoRA 'gone'", "LoRA 'heavy'"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"loras": [{"name": "a"}] * 5}, "loras"),
        ({"loras": [{"name": "a", "weight": 2.1}]}, "loras"),
        ({"loras": [{"name": "a", "weight": "1"}]}, "loras"),
        ({"loras": [{"name": "a", "weight": True}]}, "loras"),
        ({"loras": [{"name": ""}]}, "loras"),
        ({"loras": [{"name": "\ud800"}]}, "loras"),
        ({"loras": [{"name": "a", "path": "/x"}]}, "loras"),
        ({"loras": ["a"]}, "loras"),
        ({"loras": {}}, "loras"),
        ({"lora_scale": 0.5}, "lora_scale"),
        ({"lora_path": 7}, "lora_path"),
        ({"lora_path": "a", "lora_scale": 3}, "lora_scale"),
        ({"lora_path": "a", "loras": [{"name": "b"}]}, "lora_path"),
    ],
)
def test_wrong_wishes(fields: dict[str, Any], field: str) -> None:
    """Each is told by its field."""
    with pytest.raises(InvalidRecipe) as told:
        parse({"prompt": "a fox", **fields})
    assert [error.field for error in told.value.errors] == [field]


def test_the_short_form() -> None:
    """``lora_path`` and ``lora_scale`` mean one LoRA."""
    draft = parse({"prompt": "a fox", "lora_path": "style", "lora_scale": 0.5})
    assert draft.loras == (LoraWish("style", 0.5),)
    assert parse({"prompt": "a fox", "lora_path": "style"}).loras == (LoraWish("style"),)


def test_a_use_is_resolved_to_the_file_as_it_is_now(tmp_path: Path, put: Callable[..., Path]) -> None:
    """What the engine is given differs once the file does."""
    put(GOOD)
    loras = Loras(tmp_path)
    before = loras.adapters([LoraUse("style", 0.5)])
    put(lora(rank=8))
    after = loras.adapters([LoraUse("style", 0.5)])
    assert before != after
    assert (before[0][0].name, before[0][1]) == ("style", 0.5)
    assert Draft(prompt="x").loras == ()
