"""Weights in whose place others are put while the engine runs: the next job gets them, those under way keep theirs."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import ipfiles
import original
import pytest
import torch
from harness import THIRD_PARTY, Darkroom, Picture, assert_same, difference, job, plain
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from daguerre import catalog
from daguerre.catalog import GLANCE, Catalog, Model
from daguerre.embeddings import Embeddings
from daguerre.engine import ModelLoading, Started, Stepped, ip_adapters
from daguerre.engine.adapter_cache import read
from daguerre.engine.pipelines import load
from daguerre.errors import CatalogError
from daguerre.loras import Loras
from daguerre.references import References

pytestmark = THIRD_PARTY

UNET = Path("copy/unet/diffusion_pytorch_model.safetensors")
VAE = Path("copy/vae/diffusion_pytorch_model.safetensors")
OTHER_VAE = Path("vaes/own/diffusion_pytorch_model.safetensors")
SINGLE = Path("copy.safetensors")


def copied(path: Path) -> None:
    """As ``cp`` does it: the file stays, what is in it changes."""
    with path.open("r+b") as file:
        file.write((path.parent / "new").read_bytes())
    (path.parent / "new").unlink()


def moved(path: Path) -> None:
    """As ``mv`` does it: another file of the same name and length, and even of the same time."""
    times = path.stat()
    (path.parent / "new").rename(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace(path: Path, put: Callable[[Path], None] = moved, gain: float = -1.0) -> None:
    """Puts weights of the same names and shapes in a file's place."""
    length = path.stat().st_size
    with safe_open(path, "pt") as file:
        told = file.metadata()
        tensors = {name: (gain * file.get_tensor(name)).contiguous() for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path.parent / "new", told)
    assert (path.parent / "new").stat().st_size == length
    put(path)


def _shelf(models: Catalog, tmp_path: Path) -> Catalog:
    """A weights folder with a copy of the tiny Stable Diffusion 1.5 in it."""
    shutil.copytree(models.model("sd15").path, tmp_path / "copy")
    return catalog.read(tmp_path, "copy")


def _with_vae(models: Catalog, tmp_path: Path) -> Catalog:
    shutil.copytree(models.model("sd15").path / "vae", tmp_path / "vaes" / "own")
    (tmp_path / "catalog.toml").write_text('[models.copy]\nvae = "own"\n')
    return _shelf(models, tmp_path)


def _single(_models: Catalog, tmp_path: Path) -> Catalog:
    """A checkpoint in a single file, and a folder that its tokenizer comes from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        pipe = original.build(is_xl=False)
    pipe.save_pretrained(tmp_path / "folder")
    original.write_checkpoint(pipe, tmp_path / SINGLE)
    return catalog.read(tmp_path, "copy")


def _loads(darkroom: Darkroom) -> int:
    return sum(isinstance(event, ModelLoading) and event.model == "copy" for event in darkroom.events)


def _fresh(shelf: Catalog) -> Picture:
    """What an engine paints that has just been started."""
    with Darkroom() as darkroom:
        return darkroom.paint(job(shelf.model(), "a mill")).picture


@pytest.mark.parametrize(
    ("make", "file", "put"),
    [(_shelf, UNET, copied), (_shelf, VAE, moved), (_with_vae, OTHER_VAE, copied), (_single, SINGLE, moved)],
)
def test_the_next_job_gets_them(
    models: Catalog, tmp_path: Path, make: Callable[..., Catalog], file: Path, put: Callable[[Path], None]
) -> None:
    """Whatever they are part of, and however they came; what has not changed is not read again."""
    shelf = make(models, tmp_path)
    with Darkroom() as darkroom:
        before = darkroom.paint(job(shelf.model(), "a mill")).picture
        assert (darkroom.paint(job(shelf.model(), "a mill")).picture == before).all()
        assert _loads(darkroom) == 1
        replace(tmp_path / file, put)
        time.sleep(GLANCE)
        after = darkroom.paint(job(shelf.model(), "a mill")).picture
        assert _loads(darkroom) == 2
        darkroom.paint(job(shelf.model(), "a mill"))
        assert _loads(darkroom) == 2
    assert difference(before, after) > 8
    assert difference(after, _fresh(shelf)) <= 1


def test_jobs_under_way_go_on_with_what_they_began_with(models: Catalog, tmp_path: Path) -> None:
    """With all their pictures, also those that have yet to begin; the job that came after has the new weights."""
    shelf = _shelf(models, tmp_path)
    long = job(shelf.model(), "a mill", steps=30, count=3)
    expected = [plain(long, index) for index in range(3)]
    with Darkroom(max_runs=2) as darkroom:
        darkroom.submit(long)
        darkroom.wait(lambda: any(isinstance(event, Stepped) and event.step > 3 for event in darkroom.events))
        replace(tmp_path / UNET, copied)
        later = job(shelf.model(), "a mill")
        darkroom.submit(later)
        outcomes = darkroom.outcomes()
        begun = [event.job_id for event in darkroom.events if isinstance(event, Started)]
    assert begun == [long.id, later.id]
    for index in range(3):
        assert_same(outcomes[long.id].floats[index], expected[index])
    assert difference(outcomes[later.id].picture, _fresh(shelf)) <= 1


class Meddler:
    """Puts other weights in the place of UNet's and VAE's each time that diffusers has just read a UNet."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.folder, self.times = folder, times
        really = diffusers.UNet2DConditionModel.from_pretrained

        def from_pretrained(*args: Any, **options: Any) -> Any:
            unet = really(*args, **options)
            if self.times:
                self.times -= 1
                replace(self.folder / UNET, gain=0.9)
                replace(self.folder / VAE, gain=0.9)
            return unet

        monkeypatch.setattr(diffusers.UNet2DConditionModel, "from_pretrained", from_pretrained)


def test_replaced_while_it_is_read(models: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody paints with the UNet of one and the VAE of the other: the model is read once more."""
    shelf = _shelf(models, tmp_path)
    submission = job(shelf.model(), "a mill")
    meddler = Meddler(tmp_path, monkeypatch, times=1)
    with Darkroom() as darkroom:
        picture = darkroom.paint(submission).picture
        assert meddler.times == 0
        later = darkroom.paint(job(shelf.model(), "a mill")).picture
        assert _loads(darkroom) == 1
    assert difference(picture, _fresh(shelf)) <= 1
    assert difference(picture, later) <= 1


def test_files_that_never_rest_fail_who_waits_for_them(
    models: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a reason; and once they rest, the model is served."""
    shelf = _shelf(models, tmp_path)
    meddler = Meddler(tmp_path, monkeypatch, times=3)
    with Darkroom() as darkroom:
        failed = darkroom.paint(job(shelf.model(), "a mill"))
        assert isinstance(failed.error, CatalogError)
        assert "change while they are read" in failed.error.message
        assert meddler.times == 0
        assert darkroom.paint(job(shelf.model(), "a mill")).error is None


def test_weights_in_memory_are_no_window_on_their_file(models: Catalog, tmp_path: Path) -> None:
    """What is written into a file, of the dtype that is computed in, shows in no model that was read from it."""
    shelf = _shelf(models, tmp_path)
    pipeline = load(shelf.model(), torch.float32)
    before = {name: tensor.clone() for name, tensor in pipeline.denoiser.state_dict().items()}
    replace(tmp_path / UNET, copied)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.denoiser.state_dict().items())


def _looked_at(shelf: Catalog) -> Model:
    """The model once a look at its files does not hold any more."""
    time.sleep(GLANCE)
    return shelf.model()


def test_the_catalogue_reads_a_model_anew_whose_files_have_changed(models: Catalog, tmp_path: Path) -> None:
    """Also deep in its folder, and also while catalog.toml cannot be read."""
    shelf = _shelf(models, tmp_path)
    first = shelf.model()
    tensors = load_file(tmp_path / VAE)
    replace(tmp_path / VAE)
    second = _looked_at(shelf)
    assert second.edition != first.edition
    assert first.edition.is_outdated_by(second.edition)
    assert not second.edition.is_outdated_by(first.edition)
    save_file(tensors | {"more": torch.zeros(5)}, tmp_path / VAE)
    third = _looked_at(shelf)
    assert third.elements == first.elements + 5
    (tmp_path / "catalog.toml").write_text("[")
    save_file(tensors, tmp_path / VAE)
    fourth = _looked_at(shelf)
    assert fourth.edition not in (first.edition, second.edition, third.edition)
    assert shelf.model() is fourth


def _lora(path: Path, gain: float) -> None:
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{layer}.lora_A.weight": torch.ones(4, 32) * gain, f"{layer}.lora_B.weight": torch.ones(32, 4)}, path)


def test_a_lora_of_the_same_length_and_time_is_another(tmp_path: Path) -> None:
    """The catalogue tells them apart, and what was asked for under one's key is never what is in the other's file."""
    (tmp_path / "loras").mkdir()
    path = tmp_path / "loras" / "style.safetensors"
    _lora(path, 1.0)
    loras = Loras(tmp_path)
    first = loras.find("style").adapter
    _lora(path.parent / "new", 2.0)
    moved(path)
    second = loras.find("style").adapter
    assert (first.key == second.key) is (first == second) is False
    with pytest.raises(CatalogError, match="changed while it was read"):
        read(first, torch.float32)
    (change,) = read(second, torch.float32).changes.values()
    assert float(change.tensors[0].max()) == 2.0


@pytest.mark.parametrize("part", ["style.safetensors", "image_encoder/model.safetensors"])
def test_an_ip_adapter_of_the_same_length_and_time_is_another(models: Catalog, tmp_path: Path, part: str) -> None:
    """So is one whose image encoder is another."""
    folder = tmp_path / "ip-adapters"
    ipfiles.write_encoder(folder / "image_encoder")
    unet = load(models.model("sd15"), torch.float32).denoiser
    ipfiles.write(folder / "style.safetensors", ipfiles.plain(unet))
    references = References(tmp_path)
    (tmp_path / "sd15").symlink_to(models.model("sd15").path)
    model = catalog.read(tmp_path, "sd15").model()
    first = references.adapter("style", model)
    kept = ip_adapters.read(first, torch.float32)
    before = [tensor.clone() for tensor in kept.encoder.parameters()]
    replace(folder / part, copied)
    assert all(torch.equal(*pair) for pair in zip(before, kept.encoder.parameters(), strict=True))
    with pytest.raises(CatalogError, match="changed while it was read"):
        ip_adapters.read(first, torch.float32)
    replace(folder / part)
    second = references.adapter("style", model)
    assert first.key != second.key
    assert ip_adapters.read(second, torch.float32).bytes == kept.bytes


def test_a_textual_inversion_of_the_same_length_and_time_is_another(tmp_path: Path) -> None:
    """It is read whenever it is named, so its contents tell."""
    path = tmp_path / "embeddings" / "style.safetensors"
    path.parent.mkdir()
    save_file({"emb_params": torch.ones(2, 32)}, path)
    (first,) = Embeddings(tmp_path).embeddings
    before = first.read()
    replace(path)
    assert first.read().digest != before.digest
