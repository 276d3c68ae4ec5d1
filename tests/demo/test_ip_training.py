"""An IP-Adapter's training repeats itself, resumes, moves nothing but its own, and writes what diffusers reads."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file
from transformers import CLIPTokenizer, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from daguerre import ipadapterfile
from daguerre.demo.autoencoder import build_autoencoder
from daguerre.demo.course import run
from daguerre.demo.export import export
from daguerre.demo.image_prompt import SIDE, WIDTH, as_pixels, as_seen
from daguerre.demo.ip_training import NAME, IpPlan, IpTrainer, scenes_for, twin_of
from daguerre.demo.networks import Networks, Shape, build_networks
from daguerre.demo.scene import draw_scene
from daguerre.demo.tokenizer import corpus, train_tokenizer

TINY = Shape(first_width=32, second_width=32, text_layers=2, channels=(8, 16, 16), heads=(1, 1, 1))
PLAN = IpPlan(seed=5, lessons=3, glances=2, small_samples=6, large_samples=4, batch=2, bf16=False)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from a second thread, and lose a lot to it where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """A tokenizer learned from few captions."""
    return train_tokenizer(corpus(1, scenes=200), size=640)


def networks_of(tokenizer: CLIPTokenizer) -> Networks:
    """Tiny networks; the UNet's last layer is no longer nothing, so that all layers have gradients."""
    torch.manual_seed(3)
    networks = build_networks(tokenizer, TINY)
    torch.nn.init.normal_(networks.unet.conv_out.weight, std=0.1)
    return networks


def begin(tokenizer: CLIPTokenizer) -> IpTrainer:
    """A tiny trainer with random latents and pictures for lessons."""
    trainer = IpTrainer(networks_of(tokenizer), tokenizer, PLAN)
    generator = torch.Generator().manual_seed(2)
    trainer.latents = {side: torch.randn(6, 4, side // 8, side // 8, generator=generator).half() for side in (128, 256)}
    trainer.seen_as = torch.randint(0, 255, (6, 3, SIDE, SIDE), generator=generator).to(torch.uint8)
    return trainer


def weights_after(trainer: IpTrainer, steps: int) -> torch.Tensor:
    """Weights and moving average after so many steps."""
    for _ in range(steps):
        trainer.step()
    return torch.cat([trainer.weights.vector.detach(), trainer.weights.average])


def test_the_same_seed_gives_the_same_weights_also_when_it_was_cut_off(
    tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    """To the bit."""
    whole = weights_after(begin(tokenizer), 6)
    first = begin(tokenizer)
    weights_after(first, 3)
    first.weights.save(tmp_path / "checkpoint.safetensors", {})
    second = begin(tokenizer)
    second.weights.load(tmp_path / "checkpoint.safetensors")
    assert second.seen == 2
    assert torch.equal(weights_after(second, 3), whole)


def test_at_first_nothing_is_changed_and_only_its_own_weights_move(tokenizer: CLIPTokenizer) -> None:
    """The UNet with an adapter that has learned nothing is the bare one, whatever it looks at; the networks stay."""
    bare, trainer = networks_of(tokenizer), begin(tokenizer)
    states = torch.randn(1, 77, 64)
    added = {"text_embeds": torch.randn(1, 32), "time_ids": torch.zeros(1, 6)}
    noisy = torch.randn(1, 4, 8, 8)
    expected = bare.unet(noisy, 500, states, added_cond_kwargs=added).sample

    def adapted() -> torch.Tensor:
        looked = trainer.prompt.look(as_pixels(trainer.seen_as[:1]))[None]
        found: torch.Tensor = trainer.networks.unet(
            noisy, 500, states, added_cond_kwargs=added | {"image_embeds": [looked]}
        ).sample
        return found

    assert torch.equal(adapted(), expected)
    before = trainer.weights.vector.detach().clone()
    weights_after(trainer, 3)
    assert not torch.equal(adapted(), expected)
    assert (before != trainer.weights.vector).float().mean() > 0.9
    own = dict(trainer.networks.named_parameters())
    assert all(torch.equal(weight, own[name]) for name, weight in bare.named_parameters())


def test_a_whole_run_writes_an_ip_adapter(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    """As the catalogue and diffusers read it, in float16, with its licence; it makes of a picture what it did here."""
    trainer = IpTrainer(networks_of(tokenizer), tokenizer, PLAN)
    vae = build_autoencoder().eval()
    trainer.prepare_lessons(tmp_path / "lessons.safetensors", vae)
    run(trainer, tmp_path, lambda: trainer.write(tmp_path))
    assert trainer.seen == PLAN.sizes.total
    path, encoder = tmp_path / f"{NAME}.safetensors", tmp_path / f"{NAME}-encoder"
    file = ipadapterfile.read(path)
    assert (file.kind, file.context, file.encoder_width) == ("plain", 64, WIDTH)
    tensors = load_file(path) | load_file(encoder / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert {found.name for found in encoder.iterdir()} == {"config.json", "model.safetensors"}
    export(tmp_path / "model", trainer.networks, tokenizer, vae)
    pipe = StableDiffusionXLPipeline.from_pretrained(
        tmp_path / "model",
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(encoder),
        dtype=torch.float32,
    )
    pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=path.name, image_encoder_folder=None)
    pictures = np.stack([draw_scene(scene) for scene in trainer.scenes])
    with torch.no_grad(), trainer.weights.averaged():
        expected = trainer.prompt.look(as_pixels(as_seen(pictures)))
        shown = pipe.image_encoder(as_pixels(as_seen(pictures))).image_embeds
    assert (shown - expected).abs().max() < 0.02 * expected.abs().max()


def test_pictures_are_scaled_as_the_engine_scales_them() -> None:
    """To what CLIP's image processor makes of them at the encoder's size."""
    pictures = np.stack([draw_scene(scene) for scene in scenes_for(PLAN)])
    expected = CLIPImageProcessorPil(size=SIDE, crop_size=SIDE)(list(pictures), return_tensors="pt").pixel_values
    assert (as_pixels(as_seen(pictures)) - expected).abs().max() < 1e-5


def test_a_twin_is_another_drawing_of_the_same_scene() -> None:
    """What a caption could say of both is the same; the pictures are not."""
    for scene in scenes_for(PLAN):
        twin = twin_of(scene)
        assert (twin.subject, twin.effect) == (scene.subject, scene.effect)
        assert (draw_scene(twin) != draw_scene(scene)).any()
