"""Owns the table of denoisers: which arguments of each class are per row, so that calls of runs can share a forward.

A class that is not in the table still runs, one call at a time. Adding batching for it is one entry here, and a line in
the parity test.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Roles:
    """What the arguments of a denoiser's forward are to a batch; those not named must be equal, and no tensors.

    ``rows``: tensors [rows, ...], or containers of such, concatenated. ``listed``: lists with an entry for each row.
    ``scalars``: one value for the call, broadcast to its rows. ``shared``: position ids, which follow from the size of
    the picture: the first call's serve all. ``alone``: whoever brings one shares with nobody. ``block``: what the class
    fills the first dimension of listed tensors up to a multiple of, so that within a block lengths may differ.
    """

    rows: frozenset[str]
    listed: frozenset[str] = frozenset()
    scalars: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()
    block: int = 1


def _roles(rows: str, listed: str = "", scalars: str = "", shared: str = "", alone: str = "", block: int = 1) -> Roles:
    def named(names: str) -> frozenset[str]:
        return frozenset(names.split())

    return Roles(named(rows), named(listed), named(scalars), named(shared), named(alone), block)


#: By class name.
DENOISERS = {
    "UNet2DConditionModel": _roles(
        "sample encoder_hidden_states class_labels timestep_cond attention_mask encoder_attention_mask"
        " added_cond_kwargs down_block_additional_residuals mid_block_additional_residual"
        " down_intrablock_additional_residuals",
        scalars="timestep",
    ),
    "FluxTransformer2DModel": _roles(
        "hidden_states encoder_hidden_states pooled_projections timestep guidance"
        " controlnet_block_samples controlnet_single_block_samples joint_attention_kwargs",
        shared="img_ids txt_ids",
    ),
    "Flux2Transformer2DModel": _roles(
        "hidden_states encoder_hidden_states timestep guidance",
        shared="img_ids txt_ids",
        alone="kv_cache kv_cache_mode",  # of pictures to refer to: one call's, by its rows
    ),
    "SD3Transformer2DModel": _roles(
        "hidden_states encoder_hidden_states pooled_projections timestep block_controlnet_hidden_states",
    ),
    "QwenImageTransformer2DModel": _roles(
        "hidden_states encoder_hidden_states encoder_hidden_states_mask timestep guidance additional_t_cond",
        listed="img_shapes",
    ),
    "ZImageTransformer2DModel": _roles(
        "t",
        listed="x cap_feats",
        alone="controlnet_block_samples siglip_feats image_noise_mask",
        # Captions of one block are as long after padding, and need no mask: the forward is the one that they had alone.
        block=32,
    ),
}


def count_rows(roles: Roles, arguments: Arguments) -> int:
    """How many rows a call has."""
    for name, value in arguments.items():
        if name in roles.rows and isinstance(value, torch.Tensor):
            return int(value.shape[0])
        if name in roles.listed:
            return len(value)
    return 1


def batch_key(roles: Roles, arguments: Arguments) -> Hashable | None:
    """Calls with equal keys can share a forward; None: this one cannot share."""
    parts: list[Hashable] = []
    for name, value in sorted(arguments.items()):
        if name in roles.scalars:
            continue
        if name in roles.alone and value is not None:
            return None
        if name in roles.listed:
            part = _entries(value, roles.block)
        else:
            part = _shape(value) if name in roles.rows or name in roles.shared else _constant(value)
        if part is None:
            return None
        parts.append((name, part))
    return tuple(parts)


def _shape(value: Any) -> Hashable:
    """What must be equal of an argument that is concatenated: everything but its number of rows and its contents."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape[1:]), str(value.dtype))
    if isinstance(value, dict):
        return tuple((key, _shape(item)) for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(_shape(item) for item in value)
    return (value,)


def _entries(value: Any, block: int) -> Hashable | None:
    """What must be equal of a list: the kinds of its entries, however many there are; None for lists within it."""
    kinds: set[Hashable] = set()
    for entry in value:
        if isinstance(entry, torch.Tensor):
            kinds.add((-(-entry.shape[0] // block), *entry.shape[1:], str(entry.dtype)))
        else:
            kinds.add(_constant(entry))
    return None if None in kinds else frozenset(kinds)


def _constant(value: Any) -> Hashable | None:
    """An argument that must be equal, as something to compare by; None for what holds a tensor."""
    if value is None or isinstance(value, bool | int | float | str):
        return (value,)
    if isinstance(value, dict) and all(_constant(item) is not None for item in value.values()):
        return tuple((str(key), _constant(item)) for key, item in sorted(value.items()))
    if isinstance(value, list | tuple) and all(_constant(item) is not None for item in value):
        return tuple(_constant(item) for item in value)
    return None


def merged(roles: Roles, calls: list[Arguments], padding: int) -> Arguments:
    """One call for all rows, in their order; the last row is repeated ``padding`` times."""
    together: Arguments = {}
    for name, first in calls[0].items():
        values = [arguments[name] for arguments in calls]
        if name in roles.scalars:
            rows = [count_rows(roles, arguments) for arguments in calls]
            spread = [_spread(value, count) for value, count in zip(values, rows, strict=True)]
            device = next(value.device for value in calls[0].values() if isinstance(value, torch.Tensor) and value.ndim)
            together[name] = _padded(torch.cat([value.to(device) for value in spread]), padding)
        elif name in roles.listed:
            joined = [item for value in values for item in value]
            together[name] = joined + joined[-1:] * padding
        elif name in roles.rows:
            together[name] = _joined(values, padding)
        else:
            together[name] = first
    return together


def _spread(value: Any, rows: int) -> torch.Tensor:
    """A scalar for each row. In float32, as the timestep embedding computes: whole numbers and fractions then mix."""
    return torch.as_tensor(value, dtype=torch.float32).reshape(-1).expand(rows)


def _joined(values: list[Any], padding: int) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return _padded(torch.cat(values) if len(values) > 1 else first, padding)
    if isinstance(first, dict):
        return {key: _joined([value[key] for value in values], padding) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_joined(list(items), padding) for items in zip(*values, strict=True))
    return first


def _padded(rows: torch.Tensor, padding: int) -> torch.Tensor:
    return torch.cat([rows, rows[-1:].expand(padding, *rows.shape[1:])]) if padding else rows


def split(output: Any, rows: list[int]) -> list[Any]:
    """The output of a merged call, parted again: each part has the form that its own call would have given."""
    if isinstance(output, torch.Tensor):
        return list(output[: sum(rows)].split(rows))
    if isinstance(output, dict):  # diffusers' outputs are dictionaries too
        parts = {key: split(value, rows) for key, value in output.items()}
        return [type(output)(**{key: part[i] for key, part in parts.items()}) for i in range(len(rows))]
    if isinstance(output, tuple):
        return list(zip(*(split(item, rows) for item in output), strict=True))
    if isinstance(output, list):  # an entry for each row
        starts = [sum(rows[:i]) for i in range(len(rows))]
        return [output[start : start + count] for start, count in zip(starts, rows, strict=True)]
    return [output] * len(rows)
