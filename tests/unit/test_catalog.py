"""The catalogue: what is in a weights folder, told from files alone; and what is not let in."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daguerre import catalog, weightfile
from daguerre.errors import CatalogError, ModelNotFound, ModelNotPulled
from daguerre.loras import Loras

ROOT = Path(__file__).parent.parent.parent
COMMON = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight")
SD15 = (*COMMON, "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight")
SDXL = (*COMMON, "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight")


def _tensor(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def _file(header: Any, data: int = 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def _checkpoint(names: tuple[str, ...]) -> bytes:
    return _file({name: _tensor(4 * i, 4 * i + 4) for i, name in enumerate(names)}, 4 * len(names))


def _folder(path: Path, **index: Any) -> Path:
    """A diffusers folder with one part that has weights."""
    (path / "unet").mkdir(parents=True)
    (path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(_file({"w": _tensor(0, 8)}))
    (path / "unet" / "config.json").write_text('{"sample_size": 16}')
    parts = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]} | index
    (path / "model_index.json").write_text(json.dumps(parts))
    return path


GOOD = {"a": _tensor(0, 4), "b": _tensor(4, 8)}
CORRUPT: dict[str, bytes] = {
    "nothing": b"",
    "seven bytes": b"\x02\0\0\0\0\0\0",
    "a header beyond the end": _file(GOOD, length=10**6),
    "a header of 2⁶³": _file(GOOD, length=2**63),
    "a header larger than any model's": _file({"a": _tensor(0, 8), "__metadata__": {"x": "y" * 9_000_000}}),
    "cut off in the tensors": _file(GOOD)[:-1],
    "more than the tensors": _file(GOOD, 9),
    "not UTF-8": _file(b'{"\xff": 1}'),
    "no JSON": _file(b"{" + b" " * 20),
    "a list": _file([GOOD]),
    "nested beyond reason": _file(b'{"a":' + b"[" * 100_000),
    "no tensors": _file({}, 0),
    "a name twice": _file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' * 2),
    "overlapping": _file({"a": _tensor(0, 8), "b": _tensor(4, 8)}),
    "a hole": _file({"a": _tensor(4, 8)}),
    "backwards": _file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]}}),
    "longer than its shape": _file({"a": _tensor(0, 8, [1])}),
    "an unknown dtype": _file({"a": _tensor(0, 8, dtype="F33")}),
    "a dtype of another size": _file({"a": _tensor(0, 8, dtype="F64")}),
    "a negative side": _file({"a": _tensor(0, 8, [-2, -1])}),
    "a shape of texts": _file({"a": _tensor(0, 8, ["2"])}),
    "a shape that overflows": _file({"a": _tensor(0, 8, [2**62, 2**62])}),
    "three offsets": _file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}),
    "a tensor with more to say": _file({"a": _tensor(0, 8) | {"code": "x"}}),
    "metadata that nest": _file({"a": _tensor(0, 8), "__metadata__": {"a": {}}}),
    "a pickle": pickle.dumps({"a": 1}),
    "a zip, as torch.save writes": b"PK\x03\x04" + bytes(200),
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_file_that_is_no_safetensors_is_told_and_costs_no_other(tmp_path: Path, name: str) -> None:
    """As a checkpoint or as part of a folder: the model is named with a reason, and the good one stays."""
    (tmp_path / "good.safetensors").write_bytes(_checkpoint(SD15))
    (tmp_path / "bad.safetensors").write_bytes(CORRUPT[name])
    part = _folder(tmp_path / "folder") / "unet" / "diffusion_pytorch_model.safetensors"
    part.write_bytes(CORRUPT[name])
    found = catalog.read(tmp_path, "good")
    assert found.model().family == "sd"
    for bad in ("bad", "folder"):
        with pytest.raises(CatalogError, match=rf"model '{bad}' cannot be used: .*safetensors") as raised:
            found.model(bad)
        assert str(tmp_path) not in str(raised.value)
    assert len(found.problems) == 2


def test_the_headers_that_tests_write_are_otherwise_good(tmp_path: Path) -> None:
    """Else the corrupt ones could be refused for another reason."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(_file(GOOD | {"__metadata__": {"format": "pt"}}))
    header = weightfile.read_header(path)
    assert (header.shapes, header.metadata, header.elements) == ({"a": (1,), "b": (1,)}, {"format": "pt"}, 2)


def test_a_checkpoint_is_what_its_tensors_say(tmp_path: Path) -> None:
    """Never what its name says."""
    (tmp_path / "surely-sdxl.safetensors").write_bytes(_checkpoint(SD15))
    (tmp_path / "v1-5.safetensors").write_bytes(_checkpoint(SDXL))
    (tmp_path / "lora.safetensors").write_bytes(_file({"unet.lora_A.weight": _tensor(0, 8)}))
    found = catalog.read(tmp_path, "v1-5")
    assert (found.model("surely-sdxl").pipeline, found.model("v1-5").pipeline) == (
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
    )
    with pytest.raises(CatalogError, match="no whole checkpoint of Stable Diffusion"):
        found.model("lora")


def test_what_a_checkpoint_predicts_is_not_said_of_folders(tmp_path: Path) -> None:
    """Their schedulers say it."""
    _folder(tmp_path / "a")
    (tmp_path / "b.safetensors").write_bytes(_checkpoint(SD15))
    (tmp_path / "catalog.toml").write_text(
        '[models.a]\nprediction = "epsilon"\n[models.b]\nprediction = "v_prediction"\n'
    )
    found = catalog.read(tmp_path, "b")
    assert found.model().prediction == "v_prediction"
    with pytest.raises(CatalogError, match="a folder's scheduler says it"):
        found.model("a")


def test_weights_are_floating_point_numbers(tmp_path: Path) -> None:
    """Whole ones are weights of a quantised model, which would be painted with as if they were not; tables may be."""
    part = _folder(tmp_path / "folder") / "unet" / "diffusion_pytorch_model.safetensors"
    part.write_bytes(_file({"w.weight": _tensor(0, 8, dtype="I32")}))
    checkpoint = {name: _tensor(4 * i, 4 * i + 4, dtype="F32" if i else "U32") for i, name in enumerate(SD15)}
    (tmp_path / "single.safetensors").write_bytes(_file(checkpoint, 4 * len(SD15)))
    found = catalog.read(tmp_path, "folder")
    for name in ("folder", "single"):
        with pytest.raises(CatalogError, match=r"weights are served as floating-point numbers"):
            found.model(name)
    part.write_bytes(_file({"position_ids": _tensor(0, 8, [1], dtype="I64")}))
    assert found.model("folder").elements == 1


PICKLES = ("x.bin", "x.ckpt", "x.pt", "x.pth", "x.pkl", "X.SafeTensors", "x.safetensors.bin", "x.msgpack", "x", "x.zip")


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_under_any_name_are_no_models(tmp_path: Path, name: str) -> None:
    """Beside the models they are not seen; in place of a part's weights they are refused."""
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    part = _folder(tmp_path / "folder") / "unet"
    (part / "diffusion_pytorch_model.safetensors").unlink()
    (part / name).write_bytes(pickle.dumps({"a": 1}))
    found = catalog.read(tmp_path, "folder")
    assert not [model for model in found.models if model.is_here]
    with pytest.raises(CatalogError, match="cannot be used"):
        found.model("folder")


CODE: dict[str, dict[str, Any]] = {
    "a pipeline of its own": {"_class_name": ["pipeline", "Evil"]},
    "a part from a file of its own": {"unet": ["evil", "Evil"]},
    "a part from any module": {"unet": ["os", "system"]},
    "a part in another folder": {"../other": ["diffusers", "UNet2DConditionModel"]},
    "a part that is not there": {"vae": ["diffusers", "AutoencoderKL"]},
    "a part of three": {"unet": ["diffusers", "UNet2DConditionModel", "os"]},
    "code on the Hub": {"custom_pipeline": "evil/pipeline"},
}


@pytest.mark.parametrize("name", CODE)
def test_an_index_that_asks_for_code_is_refused(tmp_path: Path, name: str) -> None:
    """Before any library reads the folder."""
    _folder(tmp_path / "evil", **CODE[name])
    with pytest.raises(CatalogError, match="model 'evil' cannot be used"):
        catalog.read(tmp_path, "evil").model()


CODE_KEYS = [
    *("auto_map", "custom_pipeline", "kernels", "configuration_files"),
    *("_attn_implementation_internal", "_experts_implementation_internal"),
    *("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"),
]


@pytest.mark.parametrize("value", ["evil/Evil", {"text_config": "evil/kernel@main:forward"}, ["evil/kernel"]])
@pytest.mark.parametrize("key", CODE_KEYS)
def test_a_configuration_that_asks_for_code_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    """However deep the key lies: a module of the repository's, a kernel of the Hub's, another configuration."""
    config = _folder(tmp_path / "evil") / "unet" / "config.json"
    config.write_text(json.dumps({"inner": [{key: value}]}))
    with pytest.raises(CatalogError, match=r"unet/config\.json asks for code"):
        catalog.read(tmp_path, "evil").model()


def test_the_library_s_own_attention_may_be_named(tmp_path: Path) -> None:
    """As those do that were saved with it."""
    config = _folder(tmp_path / "good") / "unet" / "config.json"
    config.write_text(json.dumps({"_attn_implementation": "sdpa", "attn_implementation": {"text_config": "eager"}}))
    assert catalog.read(tmp_path, "good").model().name == "good"


def test_a_folder_with_code_in_it_is_refused(tmp_path: Path) -> None:
    """Even where nothing asks for it."""
    (_folder(tmp_path / "evil") / "unet" / "evil.py").write_text("raise SystemExit")
    with pytest.raises(CatalogError, match=r"holds code \(evil.py\)"):
        catalog.read(tmp_path, "evil").model()


@pytest.mark.parametrize(
    "shard", ["../../secret.safetensors", "/etc/passwd", "..\\x.safetensors", "a.bin", "absent.safetensors", 3]
)
def test_an_index_of_shards_names_files_beside_it_only(tmp_path: Path, shard: Any) -> None:
    """Whole safetensors files in the same folder, and nothing else."""
    part = _folder(tmp_path / "evil") / "unet"
    (tmp_path / "secret.safetensors").write_bytes(_file(GOOD))
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(CatalogError, match=r"index\.json (names|maps)"):
        catalog.read(tmp_path, "evil").model()


def test_a_mended_model_is_served_without_a_restart(tmp_path: Path) -> None:
    """Files that come, go and are mended are seen when they are next asked for."""
    found = catalog.read(tmp_path, "a")
    with pytest.raises(ModelNotFound):
        found.model()
    part = _folder(tmp_path / "a") / "unet" / "diffusion_pytorch_model.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    with pytest.raises(CatalogError):
        found.model()
    part.write_bytes(whole)
    assert found.model().elements == 2
    (tmp_path / "b.safetensors").write_bytes(_checkpoint(SDXL))
    assert [model.name for model in found.models if model.is_here] == ["a", "b"]
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ModelNotFound):
        found.model()


def test_what_catalog_toml_says_is_seen_without_a_restart(tmp_path: Path) -> None:
    """Defaults, and names that are other names."""
    _folder(tmp_path / "a")
    found = catalog.read(tmp_path, "a")
    assert found.model().steps == 30
    (tmp_path / "catalog.toml").write_text(
        '[models.a]\nsteps = 7\nguidance_scale = 2\nnegative_prompt = "fog"\nnative_size = [320, 64]\n'
        'scheduler = "heun"\naliases = ["b", "c"]\n'
    )
    model = found.model("c")
    assert (model.name, model.steps, model.guidance_scale, model.negative_prompt) == ("a", 7, 2.0, "fog")
    assert (model.native_size, model.scheduler) == ((320, 64), "heun")


def test_a_model_by_its_repository(tmp_path: Path) -> None:
    """As other services name models; of several in one repository the first by name, and never in place of a name."""
    _folder(tmp_path / "a")
    _folder(tmp_path / "b")
    (tmp_path / "catalog.toml").write_text(
        '[models.b]\nrepo = "owner/name"\n[models.a]\nrepo = "owner/name"\n[models.c]\nrepo = "a"\naliases = ["x/y"]\n'
    )
    found = catalog.read(tmp_path, "a")
    assert found.model("owner/name").name == "a"
    assert found.find("x/y").name == "c"
    assert found.find("stabilityai/stable-diffusion-xl-base-1.0").name == "sdxl-base"


BROKEN = {
    "a value out of bounds": ("[models.a]\ndescription = 'x'\nsteps = 151\n", 3),
    "a key that is unknown": ("[models.a]\n\n\nstepps = 15\n", 4),
    "a scheduler that it cannot use": ("# a comment\n[models.a]\nscheduler = 'warp'\n", 2),
    "no TOML in one table": ("[models.b]\nsteps = 9\n\n[models.a]\nsteps = = 9\n\n[styles.x]\nprompt = 'x'\n", 5),
    "a table twice": ("[models.a]\nsteps = 9\n[models.a]\nsteps = 9\n", 3),
    "a VAE elsewhere": ("[models.a]\nvae = '../../etc'\n", 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_entry_is_told_with_its_line_and_costs_no_other(tmp_path: Path, name: str) -> None:
    """Its own model is out of service; what else the file says still holds."""
    text, line = BROKEN[name]
    for model in ("a", "b"):
        _folder(tmp_path / model)
    (tmp_path / "catalog.toml").write_text(text + "\n[models.good]\nrepo = 'x/good'\n")
    found = catalog.read(tmp_path, "b")
    assert found.model("b").steps == (9 if "models.b" in text else 30)
    assert found.find("good").source == catalog.Source("x/good")
    with pytest.raises(CatalogError, match=rf"catalog\.toml:{line}: "):
        found.model("a")
    assert any(f"catalog.toml:{line}: " in problem for problem in found.problems)


def test_the_shipped_entries() -> None:
    """Every model that is promised is known, with a repository; none is fetched by asking for it."""
    found = catalog.read(ROOT / "weights", "demo-xl")
    promised = "sdxl-base pony-xl-v6 sdxl-turbo sd-1-5 sd-2-1 flux-krea-dev flux-dev flux-schnell sd-3.5-medium"
    for name in [*promised.split(), "z-image-turbo", "qwen-image"]:
        assert found.find(name).source is not None
    assert found.find("sd-xl-base").name == "sdxl-base"
    assert found.vae("sdxl-fp16-fix").repo == "madebyollin/sdxl-vae-fp16-fix"
    assert found.problems == []
    with pytest.raises(ModelNotPulled, match="daguerre pull sdxl-base"):
        catalog.read(ROOT / "tests", "demo-xl").model("sdxl-base")


def test_the_entry_of_the_guide(tmp_path: Path) -> None:
    """It can be pulled as it stands, though its family is not known before; a scheduler that nobody has is refused."""
    guide = (ROOT / "docs" / "guides" / "hub-model.md").read_text()
    text = guide.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "catalog.toml").write_text(text)
    found = catalog.read(tmp_path, "mine")
    assert (found.problems, found.find("mine").scheduler) == ([], "dpmpp_2m_karras")
    (tmp_path / "catalog.toml").write_text(text.replace("dpmpp_2m_karras", "warp"))
    assert "scheduler must be one of" in catalog.read(tmp_path, "mine").problems[0]


def test_a_model_needs_the_vae_that_its_entry_names(tmp_path: Path) -> None:
    """Without it the model is not all there; with it, its weights are held to be safetensors too."""
    _folder(tmp_path / "a")
    (tmp_path / "catalog.toml").write_text('[models.a]\nvae = "v"\n')
    found = catalog.read(tmp_path, "a")
    with pytest.raises(ModelNotPulled):
        found.model()
    vae = tmp_path / "vaes" / "v"
    vae.mkdir(parents=True)
    (vae / "config.json").write_text("{}")
    (vae / "diffusion_pytorch_model.safetensors").write_bytes(_file(GOOD))
    assert found.model().vae == vae


def test_what_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken file that is mended after the look at it, and before its date is noted down."""
    weights = _folder(tmp_path / "model") / "unet" / "diffusion_pytorch_model.safetensors"
    good = weights.read_bytes()
    _folder(tmp_path / "other")
    found = catalog.read(tmp_path, "other")
    assert found.model("model").is_here
    look = weightfile.vet_folder

    def look_and_mend(folder: Path) -> int:
        try:
            return look(folder)
        finally:
            if folder.name == "model":
                weights.write_bytes(good)

    weights.write_bytes(good[:-4])
    (tmp_path / "model").touch()
    monkeypatch.setattr(weightfile, "vet_folder", look_and_mend)
    with pytest.raises(CatalogError):
        found.model("model")
    monkeypatch.undo()
    assert found.model("model").is_here


@contextlib.contextmanager
def _no_descriptors() -> Iterator[None]:
    """Not one file can be opened while it lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_whoever_cannot_look_has_seen_no_change(tmp_path: Path) -> None:
    """Without descriptors all that was known stays so, whatever has changed meanwhile; then it is seen."""
    _folder(tmp_path / "mine")
    (tmp_path / "loras").mkdir()
    lora = {"a.lora_down.weight": _tensor(0, 8, [1, 2]), "a.lora_up.weight": _tensor(8, 16, [2, 1])}
    (tmp_path / "loras" / "ink.safetensors").write_bytes(_file(lora, 16))
    found, loras = catalog.read(tmp_path, "mine"), Loras(tmp_path)
    before, names = found.model(), [one.name for one in loras.loras]
    assert names == ["ink"]
    (tmp_path / "catalog.toml").write_text('[models.mine]\nsteps = 7\n[loras.pen]\nfile = "ink.safetensors"\n')
    with _no_descriptors():
        for _ in range(2):
            time.sleep(catalog.GLANCE)
            assert found.model() == before
            assert [one.name for one in loras.loras] == names
    assert found.model().steps == 7
    assert [one.name for one in loras.loras] == ["pen"]
