"""Owns the bare pipeline: diffusers alone, in a process of its own, timed by its own clock.

A line of JSON with the pipeline's arguments comes in on standard input; the seconds that ``pipe(...)`` took go out. The
picture stays a tensor (``output_type="pt"``): what is timed is encoding the prompt, denoising and the VAE's decoding,
which nobody can do without. All that a server adds (8-bit pixels, file format, hops between threads, HTTP) is
measured against this one number, whoever the server is.

The pipeline is loaded in one thread and called in another, as both servers do it. In the thread that loaded it OpenMP
spreads the embedded model's tiny operations over the cores, which gains nothing and, where other processes want the
cores too, can take many times as long: the overhead of any server would look negative.
"""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.machine import MODEL, ROOT, device


class Bare(NamedTuple):
    """The other end of the process."""

    process: "subprocess.Popen[str]"

    def seconds(self, fields: Mapping[str, Any]) -> float:
        """What ``pipe(...)`` takes for a recipe in the wire's words."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(fields), file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


@contextlib.contextmanager
def bare() -> Iterator[Bare]:
    """The process, loaded and waiting."""
    command = [sys.executable, "-m", "benchmarks.bare"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the bare pipeline did not load")
            yield Bare(process)
        finally:
            process.kill()


def load() -> Any:
    """The pipeline as anyone loads it, in the dtype that the server takes for the device."""
    import diffusers
    import torch
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    dtype = torch.float32 if device() == "cpu" else torch.bfloat16
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(MODEL, dtype=dtype, local_files_only=True).to(device())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe in the wire's words as the pipeline's arguments."""
    import torch

    return {
        "prompt": fields["prompt"],
        "width": fields["width"],
        "height": fields["height"],
        "num_inference_steps": fields["steps"],
        "guidance_scale": fields["guidance_scale"],
        "generator": torch.Generator("cpu").manual_seed(fields["seed"]),
    }


def _answer(pipe: Any) -> None:
    import torch

    print("ready", flush=True)
    for line in sys.stdin:
        given = arguments(json.loads(line))
        start = time.perf_counter()
        pipe(**given, output_type="pt")
        if device() != "cpu":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    thread = threading.Thread(target=_answer, args=(load(),))
    thread.start()
    thread.join()
