"""Owns encoding as AUTOMATIC1111 does: chunks of 75 tokens, each encoded by itself, then weighted token by token.

From the observable behaviour that its users' prompts rely on: a chunk that would end within twenty tokens after a comma
ends at the comma; BREAK ends a chunk; the weighted embeddings of a chunk keep the mean that they had without weights.
"""

from collections.abc import Iterator
from typing import Any

import torch

from daguerre.emphasis import Parsed
from daguerre.engine import length
from daguerre.engine.shortened import Shortened

CHUNK = 75  # tokens between start and end
BACK = 20  # tokens that may move to the next chunk, to end at a comma
SLIGHT = 1e-5  # a mean that small beside the values is none

#: Tokens of a chunk, each with its weight.
Chunk = list[tuple[int, float]]


def encode(pipe: Any, positive: Parsed, negative: Parsed | None, clip_skip: int) -> dict[str, torch.Tensor]:
    """Embeddings of a CLIP pipeline: one text encoder (Stable Diffusion) or two side by side (SDXL).

    Gives ``prompt_embeds`` [1, 77 × chunks, channels] and the like, by the pipeline's names of them.

    Raises:
        InvalidRecipe: a prompt is too long.
    """
    pairs = [(getattr(pipe, f"tokenizer{end}"), getattr(pipe, f"text_encoder{end}")) for end in ("", "_2")
             if getattr(pipe, f"text_encoder{end}", None) is not None]  # fmt: skip
    prompts = {"": positive} | ({} if negative is None else {"negative_": negative})
    chunked = {sign: [_chunks(tokenizer, prompt) for tokenizer, _ in pairs] for sign, prompt in prompts.items()}
    for sign, side in chunked.items():
        length.check(CHUNK * max(map(len, side)), f"{sign}prompt")
    count = max(len(chunks) for side in chunked.values() for chunks in side)
    is_xl = len(pairs) > 1
    found: dict[str, torch.Tensor] = {}
    for sign, side in chunked.items():
        made = [
            _embed(*pair, [*chunks, *[[] for _ in range(count - len(chunks))]], clip_skip, is_xl)
            for pair, chunks in zip(pairs, side, strict=True)
        ]
        found[f"{sign}prompt_embeds"] = torch.cat([embeds for embeds, _ in made], dim=-1)
        if is_xl:
            found[f"{sign}pooled_prompt_embeds"] = made[-1][1]
    zeros = getattr(pipe.config, "force_zeros_for_empty_prompt", False)
    if zeros and negative is not None and not negative.text.strip():
        for name in [name for name in found if name.startswith("negative_")]:
            found[name] = torch.zeros_like(found[name])
    return found


def _chunks(tokenizer: Any, prompt: Parsed) -> list[Chunk]:
    comma = tokenizer(",", add_special_tokens=False).input_ids[-1]
    return [chunk for section in prompt.sections for chunk in _filled(list(_tokens(tokenizer, section)), comma)]


def _tokens(tokenizer: Any, section: Any) -> Iterator[tuple[int, float]]:
    for part in section:
        for token in tokenizer(part.text, add_special_tokens=False, verbose=False).input_ids:
            yield token, part.weight


def _filled(tokens: Chunk, comma: int) -> Iterator[Chunk]:
    """Parts of at most a chunk; of nothing, one empty chunk."""
    while len(tokens) > CHUNK:
        commas = [i for i in range(CHUNK - BACK, CHUNK) if tokens[i][0] == comma]
        end = commas[-1] + 1 if commas and tokens[CHUNK][0] != comma else CHUNK
        yield tokens[:end]
        tokens = tokens[end:]
    yield tokens


def _embed(
    tokenizer: Any, encoder: Any, chunks: list[Chunk], clip_skip: int, is_xl: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The chunks' embeddings one after the other, and the first one's pooled embedding."""
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    rows = [[start, *(token for token, _ in chunk), end] for chunk in chunks]
    ids = torch.tensor([row + [pad] * (CHUNK + 2 - len(row)) for row in rows], device=encoder.device)
    weights = [[1.0, *(weight for _, weight in chunk)] for chunk in chunks]
    spread = torch.tensor([row + [1.0] * (CHUNK + 2 - len(row)) for row in weights], device=encoder.device)
    output = Shortened(encoder, clip_skip)(ids)
    embeds = output.hidden_states[-2] if is_xl else output.last_hidden_state
    weighted = embeds * spread[..., None].to(embeds.dtype)
    before, after = embeds.float().mean((1, 2)), weighted.float().mean((1, 2))
    # Unweighted chunks stay what they are to the bit; where the mean is nothing but rounding, there is none to keep.
    has_mean = (spread != 1).any(dim=1) & (after.abs() > SLIGHT * weighted.float().abs().mean((1, 2)))
    scale = torch.where(has_mean, before / after, torch.ones_like(after)).to(embeds.dtype)
    return (weighted * scale[:, None, None]).flatten(0, 1)[None], output[0][:1]
