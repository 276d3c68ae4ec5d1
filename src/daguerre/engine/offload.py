"""Owns the memory plan of a model: which of its parts are on the device at once, and how the others come there in time.

A part that is called and is not on the device comes in, and those that the plan keeps apart from it leave: their host
copies are there all the time, so leaving costs nothing and coming in is one copy from pinned memory. The parts are
called by pipelines, by Compel and by the engine; accelerate's hooks stand before all of these calls, and tell pipelines
on which device they work.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from diffusers.hooks import apply_group_offloading

from daguerre.engine.weights import Weights

#: All parts on the device; text encoders only while they encode; one part at a time; and the denoiser layer by layer.
Plan = Literal["none", "encoders", "model", "group"]
#: What stands in a plan's place where sizes are to decide.
Offload = Literal["auto", "none", "encoders", "model", "group"]
Group = Literal["encoders", "denoiser", "others"]

#: Of the denoiser, what is on the device while it computes layer by layer: a layer or two.
LAYERS = 0.05

_DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model's groups of parts."""

    encoders: int
    denoiser: int
    others: int

    def on_device(self, plan: Plan) -> int:
        """The most that is on the device at once."""
        match plan:
            case "none":
                return self.encoders + self.denoiser + self.others
            case "encoders":
                return max(self.encoders, self.denoiser) + self.others
            case "model":
                return max(self.encoders, self.denoiser, self.others)
            case "group":
                return max(self.encoders, self.others) + int(LAYERS * self.denoiser)

    def plan(self, limit: int, offload: Offload = "auto") -> Plan:
        """The quickest plan that fits into so many bytes, unless a setting names one."""
        if offload != "auto":
            return offload
        plans: tuple[Plan, ...] = ("none", "encoders", "model")
        return next((plan for plan in plans if self.on_device(plan) <= limit), "group")


#: Which groups share the device, by plan: a group that comes in sends away those that it is not with.
_TOGETHER: Mapping[Plan, tuple[frozenset[Group], ...]] = {
    "none": (frozenset(["encoders", "denoiser", "others"]),),
    "encoders": (frozenset(["encoders", "others"]), frozenset(["denoiser", "others"])),
    "model": (frozenset(["encoders"]), frozenset(["denoiser"]), frozenset(["others"])),
    "group": (frozenset(["encoders"]), frozenset(["denoiser"]), frozenset(["others"])),
}


def group_of(part: str) -> Group:
    """The group of a pipeline's part."""
    if part.startswith("text_encoder"):
        return "encoders"
    return "denoiser" if part in _DENOISERS else "others"


class Parts:
    """The modules of one pipeline under a plan. For the engine thread only, but for being made."""

    def __init__(self, modules: Mapping[str, torch.nn.Module], device: torch.device, plan: Plan) -> None:
        self._device = device
        self.plan = plan
        self._modules: dict[Group, list[torch.nn.Module]] = {"encoders": [], "denoiser": [], "others": []}
        for name, module in modules.items():
            self._modules[group_of(name)].append(module)
        self._weights = {group: Weights(members, device) for group, members in self._modules.items()}
        self._present: set[Group] = set()
        sizes = Sizes(**{group: weights.bytes for group, weights in self._weights.items()})
        self.bytes = sizes.on_device("none")
        self.device_bytes = sizes.on_device(plan)
        if plan == "group":
            del self._weights["denoiser"]  # its layers move by themselves
            for module in self._modules["denoiser"]:
                apply_group_offloading(module, device, offload_type="leaf_level", use_stream=device.type == "cuda")
        if plan != "none":
            for group in self._weights:
                for module in self._modules[group]:
                    add_hook_to_module(module, _Arrival(self, group, device))

    @property
    def present(self) -> frozenset[Group]:
        """The groups that are on the device."""
        return frozenset(self._present)

    def to_device(self) -> None:
        """Brings in all at once, if all may be there at once; else what is called comes when it is called."""
        if self.plan == "none":
            for group in self._weights:
                self._enter(group)

    def leave_device(self) -> None:
        """Gives all modules their host copies again."""
        self._leave(self._present)

    def bring_in(self, group: Group) -> None:
        """Sees that a group is on the device, and that no more is there than the plan has room for."""
        if group in self._present:
            return
        fitting = [together for together in _TOGETHER[self.plan] if group in together]
        kept = max(fitting, key=lambda together: len(together & self._present))
        self._leave(self._present - kept)
        self._enter(group)

    def _enter(self, group: Group) -> None:
        self._weights[group].to(self._device)
        self._present.add(group)

    def _leave(self, groups: Set[Group]) -> None:
        for group in groups:
            self._weights[group].leave_device()
        self._present -= groups


class _Arrival(ModelHook):
    """Stands before a module's forward, and before a VAE's encode and decode."""

    def __init__(self, parts: Parts, group: Group, device: torch.device) -> None:
        self._parts = parts
        self._group = group
        #: Where pipelines make their tensors (diffusers reads this).
        self.execution_device = device

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Brings the module in; who called may not have known where it would compute."""
        del module
        self._parts.bring_in(self._group)
        return send_to_device(args, self.execution_device), send_to_device(kwargs, self.execution_device)
