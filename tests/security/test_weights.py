"""Files of weights that are none, by every name: told by what is in them, never by how they are called."""

from pathlib import Path

import badfiles
import pytest
import safetensors.torch
import torch

from daguerre import catalog, weightfile
from daguerre.embeddings import Embeddings
from daguerre.errors import CatalogError
from daguerre.loras import Loras
from daguerre.references import References

#: Ways in which a file can be called something like safetensors (InvokeAI's pull request 2946).
SPELLINGS = (
    *(".SafeTensors", ".SAFETENSORS", ".Safetensors", ".safeTensors", ".safetensorS", ".sAfEtEnSoRs"),
    *(".safetensor", ".safetensorss", ".safe_tensors", ".safe-tensors", ".safe.tensors", ".safetensors2"),
    *(".safetensors ", ".safetensors.", ".safetensors_", ".safetensors~", ".safetensors\t", ".safetensors\n"),
    *(".safetensors.bin", ".safetensors.ckpt", ".safetensors.pt", ".safetensors.pth", ".safetensors.pkl"),
    *(
        ".ckpt",
        ".pt",
        ".pth",
        ".bin",
        ".pkl",
        ".SAFETENSORS.zip",
        ". safetensors",
        ".ѕafetensors",
        ".safe\u200btensors",
    ),
    *(".safeten\u017fors", ".\uff53afetensors", "", ".safetensors"),
)


def _places(weights: Path) -> list[Path]:
    return [weights, *(weights / name for name in ("loras", "embeddings", "ip-adapters", "vaes"))]


@pytest.mark.parametrize("kind", sorted(badfiles.disguises(Path())))
def test_pickles_by_every_spelling(tmp_path: Path, kind: str) -> None:
    """As models, LoRAs, embeddings, IP-Adapters: nothing of it can be used, and nobody opens it."""
    canary = tmp_path / "canary"
    good = tmp_path / "good.safetensors"
    safetensors.torch.save_file({"a.weight": torch.ones(4, 4)}, good)
    content = badfiles.disguises(canary)[kind](good.read_bytes())
    weights = tmp_path / "weights"
    for place in _places(weights):
        place.mkdir(exist_ok=True)
        for number, spelling in enumerate(SPELLINGS):
            (place / f"evil{number}{spelling}").write_bytes(content)
    assert len(SPELLINGS) >= 30
    found = catalog.read(weights, "evil0")
    for model in found.models:
        if model.is_here:
            with pytest.raises(CatalogError):
                found.model(model.name)
    loras, references, embeddings = Loras(weights), References(weights), Embeddings(weights)
    assert [*loras.loras, *references.adapters, *embeddings.embeddings] == []
    assert not canary.exists()


def test_safetensors_by_every_spelling(tmp_path: Path) -> None:
    """A whole file under another name is not there either: one suffix is looked for, and then the content decides."""
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_"
    tensors = {f"{layer}down.weight": torch.ones(4, 64), f"{layer}up.weight": torch.ones(32, 4)}
    (tmp_path / "loras").mkdir()
    for number, spelling in enumerate(SPELLINGS):
        safetensors.torch.save_file(tensors, tmp_path / "loras" / f"good{number}{spelling}")
    seen = [lora.name for lora in Loras(tmp_path).loras]
    assert seen == [f"good{SPELLINGS.index('.safetensors')}"]


@pytest.mark.parametrize("kind", sorted(badfiles.disguises(Path())))
def test_a_header_is_read_and_nothing_else(tmp_path: Path, kind: str) -> None:
    """What has none is refused; what has one is not opened further."""
    canary, path = tmp_path / "canary", tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a.weight": torch.ones(4, 4)}, path)
    path.write_bytes(badfiles.disguises(canary)[kind](path.read_bytes()))
    try:
        header = weightfile.read_header(path)
    except CatalogError:
        header = None
    assert header is None or set(header.dtypes.values()) == {"U8"}
    assert not canary.exists()
