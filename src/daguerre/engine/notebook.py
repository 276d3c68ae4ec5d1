"""Owns the notebook: what forwards take on this device, kept on disk so that a new process need not learn it again."""

import json
import logging
import re
from pathlib import Path

import torch

from daguerre.engine.scheduler import Curve

log = logging.getLogger(__name__)

#: Forwards after which what was learned is worth writing.
EVERY = 200


class Notebook:
    """The curve of one device, dtype and version of torch, in a file of that name; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, device: torch.device, dtype: torch.dtype) -> None:
        self._path = None if folder is None else folder / f"{_name(device, dtype)}.json"
        self._unwritten = 0

    def read(self) -> Curve:
        """What was learned before; a new curve where nothing was, or where it cannot be read."""
        if self._path is None or not self._path.exists():
            return Curve()
        try:
            return Curve.load(json.loads(self._path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            log.warning("%s cannot be read: what forwards take is learned anew", self._path.name)
            return Curve()

    def count(self) -> None:
        """One more forward was measured."""
        self._unwritten += 1

    def write(self, curve: Curve, least: int = EVERY) -> None:
        """Writes what was learned, if that is worth it. It can be learned again, so a failure is only told."""
        if self._path is None or self._unwritten < least:
            return
        self._unwritten = 0
        unfinished = self._path.with_suffix(".unfinished")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(curve.dump()))
            unfinished.replace(self._path)
        except OSError as error:
            log.warning("what forwards take could not be kept: %s", error.strerror)


def _name(device: torch.device, dtype: torch.dtype) -> str:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}-{torch.get_num_threads()}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{kind}-{dtype}-{torch.__version__}".replace("torch.", ""))
