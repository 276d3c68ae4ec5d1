"""Owns the networks that training moves: the two text encoders and the UNet, their shapes and first weights."""

import msgspec
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TIME_WIDTH = 16  # of each of SDXL's six time ids


class Shape(msgspec.Struct, frozen=True):
    """The widths and depths of the networks; tests train a smaller one."""

    first_width: int = 64
    second_width: int = 128
    text_layers: int = 3
    channels: tuple[int, int, int] = (32, 96, 160)
    heads: tuple[int, int, int] = (1, 3, 5)


class Networks(nn.Module):
    """Both text encoders and the UNet under one roof, so that they train and are saved together."""

    def __init__(self, first: nn.Module, second: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.unet = first, second, unet

    def encode(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn tokens [B,77] into SDXL's conditioning: penultimate states [B,77,192] and the pooled text [B,128]."""
        first = self.first(tokens, output_hidden_states=True)
        second = self.second(tokens, output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return states, second.text_embeds

    def forward(
        self, noisy: torch.Tensor, steps: torch.Tensor, tokens: torch.Tensor, keep: torch.Tensor, time_ids: torch.Tensor
    ) -> torch.Tensor:
        """Predict v [B,4,h,w]; where `keep` [B] is 0 the conditioning is zeroed, as an empty prompt's is in SDXL."""
        states, pooled = self.encode(tokens)
        added = {"text_embeds": pooled * keep[:, None], "time_ids": time_ids}
        return self.unet(noisy, steps, states * keep[:, None, None], added_cond_kwargs=added).sample


def build_networks(tokenizer: CLIPTokenizer, shape: Shape) -> Networks:
    """Build all three with first weights drawn from torch's generator."""
    first = CLIPTextModel(_text_config(tokenizer, shape.first_width, shape.text_layers))
    second = CLIPTextModelWithProjection(_text_config(tokenizer, shape.second_width, shape.text_layers))
    for encoder in (first, second):
        start_encoder(encoder)
    return Networks(first, second, _build_unet(shape))


def load_networks(folder: str) -> Networks:
    """Load all three in float32 from a diffusers folder."""
    return Networks(
        CLIPTextModel.from_pretrained(f"{folder}/text_encoder", dtype=torch.float32),
        CLIPTextModelWithProjection.from_pretrained(f"{folder}/text_encoder_2", dtype=torch.float32),
        UNet2DConditionModel.from_pretrained(f"{folder}/unet", dtype=torch.float32),
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        hidden_act="gelu",
    )


def start_encoder(encoder: nn.Module) -> None:
    """Draw larger first weights than CLIP's: at this size its 0.02 leaves all prompts, or pictures, nearly equal."""
    for name, weight in encoder.named_parameters():
        if "token_embedding" in name:
            nn.init.normal_(weight, std=0.5)
        elif "position_embedding" in name:
            nn.init.normal_(weight, std=0.1)
        elif weight.ndim > 1:
            gain = 0.5 if "out_proj" in name or "fc2" in name else 1.0
            nn.init.normal_(weight, std=gain * weight[0].numel() ** -0.5)


def _build_unet(shape: Shape) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=shape.channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=shape.heads,  # SDXL's name for the number of heads
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        cross_attention_dim=shape.first_width + shape.second_width,
        projection_class_embeddings_input_dim=shape.second_width + 6 * TIME_WIDTH,
        use_linear_projection=True,
        norm_num_groups=4,  # groups of a few channels would wipe out flat colour
    )
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if name == "conv_out.weight":
                weight.zero_()
            elif name.endswith(("conv2.weight", "proj_out.weight")):
                weight.mul_(0.3)  # residual branches start small
    return unet
