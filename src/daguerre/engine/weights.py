"""Owns the tensors of a pipeline: their copies in host memory, and which of the two its modules compute with."""

from collections.abc import Iterable

import torch


class Weights:
    """Parameters and buffers of some modules, which are in host memory now and stay there.

    Where the device is the host, moving is nothing but a word: the tensors are the same.
    """

    def __init__(self, modules: Iterable[torch.nn.Module], device: torch.device) -> None:
        tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
        self._tensors = list(tensors.values())
        for tensor in self._tensors:
            tensor.data = hosted_for(device, tensor.data)
        self._hosted = [tensor.data for tensor in self._tensors]
        self.bytes: int = sum(tensor.nbytes for tensor in self._hosted)

    def to(self, device: torch.device) -> None:
        """Gives the modules copies on the device; from pinned memory the host does not wait for them."""
        for tensor, hosted in zip(self._tensors, self._hosted, strict=True):
            tensor.data = hosted.to(device, non_blocking=True)

    def leave_device(self) -> None:
        """Gives the modules their host copies again: nothing is copied back."""
        for tensor, hosted in zip(self._tensors, self._hosted, strict=True):
            tensor.data = hosted


def hosted_for(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in host memory of its own, from where the device takes it.

    Libraries leave a tensor that is in a file as it is needed where it is, and map the file: what is written into the
    file then shows in the tensor, and where the file is cut off, the process ends.
    """
    if device.type == "cuda":
        return pinned(tensor)
    return tensor if tensor.untyped_storage().resizable() else tensor.clone()


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in page-locked memory, from where a device can fetch it by itself."""
    try:
        return tensor.pin_memory()
    except RuntimeError:  # the system grants no more locked memory: copying is slower, nothing else
        return tensor
