"""Owns tuning: what is done to a model's modules, once, so that the same pictures come faster."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Compile = Literal["off", "regional", "full"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How models are tuned. ``threads`` are the processor's, for models on it; nothing leaves torch's own choice.

    ``regional`` compiles a denoiser's repeated blocks: minutes less to compile than ``full``, which compiles the whole
    forward, with CUDA graphs on a card.
    """

    compile: Compile = "off"
    channels_last: bool = False
    threads: int | None = None
    cache: Path | None = None  # of what was compiled

    def prepare(self) -> None:
        """Sets what is of the thread and of the process; on the engine thread, before the first model."""
        import torch

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.cache is not None and self.compile != "off":
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(self.cache))

    def apply(self, denoiser: Any, vae: Any, device: "torch.device") -> None:
        """Tunes the modules of one model that will be on that device, before its denoiser becomes a meeting point."""
        import torch

        if self.channels_last:
            for module in (denoiser, vae):
                if module is not None:
                    module.to(memory_format=torch.channels_last)
        if self.compile == "regional" and getattr(denoiser, "_repeated_blocks", None):
            # Sizes are few, and each bucket of rows is one: static shapes are the faster ones.
            denoiser.compile_repeated_blocks(dynamic=False)
        elif self.compile != "off":
            denoiser.forward = _compiled(denoiser, on_card=device.type == "cuda")

    def needs_warm_up(self, device: "torch.device") -> bool:
        """Whether the first forwards of a model take far longer than the others will."""
        return self.compile != "off" or device.type == "cuda"


#: Models as they come.
UNTUNED = Tuning()


def _compiled(denoiser: "torch.nn.Module", *, on_card: bool) -> Any:
    """The whole forward as one graph; its outputs are copies, since CUDA graphs write the next ones over them."""
    import torch

    compute = torch.compile(denoiser.forward, dynamic=False, mode="reduce-overhead" if on_card else None)
    if not on_card:
        return compute

    def forward(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return _cloned(compute(*args, **kwargs))

    return forward


def _cloned(output: Any) -> Any:
    import torch

    if isinstance(output, torch.Tensor):
        return output.clone()
    if isinstance(output, dict):
        return type(output)(**{key: _cloned(value) for key, value in output.items()})
    return type(output)(_cloned(item) for item in output)
