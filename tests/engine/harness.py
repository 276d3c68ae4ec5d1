"""Driving the real engine thread, and the oracle it is held against: the plain diffusers call."""

import contextlib
import inspect
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, Self

import compel
import diffusers
import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from daguerre.catalog import Model
from daguerre.engine import (
    Engine,
    EngineDied,
    Event,
    Options,
    Painted,
    Pixels,
    RunEnded,
    Stepped,
    Submission,
    ip_adapters,
)
from daguerre.engine.pipelines import HostPixels, Pipeline, Timer, load
from daguerre.engine.rendezvous import Call, Meeting, Run
from daguerre.engine.scheduler import bucket
from daguerre.errors import BadOutput, DaguerreError
from daguerre.loras import Loras
from daguerre.recipe import Draft, Recipe, resolve
from daguerre.references import IpAdapter
from daguerre.samplers import samplers_for

Picture = NDArray[np.uint8]  # [H, W, 3]
Floats = NDArray[np.float32]  # [H, W, 3], 0 to 1: a picture before it becomes 8 bit
Paint = Callable[..., tuple[dict[str, "Outcome"], list[int]]]
Mask = NDArray[np.uint8]  # [H, W]
React = Callable[[Engine, Event], None]

#: Warnings of other people's code, which the tests can do nothing about.
THIRD_PARTY = [
    # numpy 2's new arguments, which diffusers' schedulers make it ask torch's tensors for
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
]

#: The largest difference, in any value from 0 to 1, of two pictures that are to be the same.
SAME = 1e-4

#: Seconds that the tests wait for the engine before they call it stuck.
PATIENCE = 40.0

_numbers = itertools.count()


def job(
    model: Model,
    prompt: str,
    image: Picture | None = None,
    mask: Mask | None = None,
    all_loras: Loras | None = None,
    **fields: Any,
) -> Submission:
    """A submission as the service makes it: the draft's fields over the tests' defaults, resolved against the model."""
    given = {"width": 32, "height": 32, "steps": 3, "seed": 0, "guidance_scale": 4.0, "prompt_syntax": "plain"} | fields
    images = {"image": image, "mask": mask}
    draft = Draft(prompt=prompt, **given, **{name: "" for name, value in images.items() if value is not None})
    chosen = {} if all_loras is None else all_loras.chosen(draft, model)
    recipe = resolve(draft, model, 0, {}, loras=chosen)
    adapters = () if all_loras is None else all_loras.adapters(recipe.loras)
    return Submission(f"job-{next(_numbers)}", recipe, model, image, mask, adapters=adapters)


class FloatPixels(HostPixels):
    """The engine's pixels, which also keep what they were made of: 8 bits would hide small differences."""

    def __init__(self, image: torch.Tensor) -> None:  # [3, H, W], 0 to 1
        super().__init__(image)
        self.floats = floats(image)


def floats(image: torch.Tensor) -> Floats:
    """A pipeline's picture, [3, H, W] from 0 to 1, in the order of pictures."""
    array: Floats = image.detach().permute(1, 2, 0).numpy().copy()
    return array


@dataclass(slots=True)
class Outcome:
    """What became of a submission. It is over when it has all its pictures, or its one error."""

    submission: Submission
    pictures: dict[int, Picture] = field(default_factory=dict)
    floats: dict[int, Floats] = field(default_factory=dict)  # the same pictures
    steps: list[Stepped] = field(default_factory=list)
    error: DaguerreError | None = None
    ends: int = 0  # Painted of the last picture, and RunEnded: of both together there may only be one

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come."""
        return self.ends > 0

    @property
    def picture(self) -> Picture:
        """The only picture of a job that asked for one and got it."""
        assert self.error is None, self.error
        (picture,) = self.pictures.values()
        return picture

    @property
    def exact(self) -> Floats:
        """The same picture in floats."""
        assert self.error is None, self.error
        (picture,) = self.floats.values()
        return picture

    def take(self, event: Event) -> None:
        """Writes an event of this job down."""
        match event:
            case Painted(index=index, pixels=pixels):
                assert index not in self.pictures, "painted twice"
                self._keep(index, pixels)
                self.ends += len(self.pictures) + (self.error is not None) == self.submission.recipe.count
            case Stepped():
                self.steps.append(event)
            case RunEnded(error=error):
                self.error = error
                self.ends += 1

    def _keep(self, index: int, pixels: Pixels) -> None:
        assert isinstance(pixels, FloatPixels)
        try:
            picture = pixels.array().copy()  # of its own: not the engine's tensor
        except BadOutput as error:
            self.error = error
            return
        assert np.array_equal(picture, np.round(pixels.floats.astype(np.float32) * 255)), "8 bits of another picture"
        self.pictures[index], self.floats[index] = picture, pixels.floats


class Darkroom:
    """An engine on the CPU in float32, and everything it has told.

    ``react`` is called on the engine thread; ``options`` are the engine's.
    """

    def __init__(
        self, max_runs: int = 8, react: React | None = None, patience: float = PATIENCE, **options: Any
    ) -> None:
        self._patience = patience
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._react = react
        self._outcomes: dict[str, Outcome] = {}
        self.events: list[Event] = []
        self.threads: dict[str, set[str]] = {}  # names of the threads that emitted, by type of event
        self.engine = Engine(self._emit, Options("cpu", "float32", max_runs, **options))

    def __enter__(self) -> Self:
        self.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.engine.close(PATIENCE)
        _wait_for_loaders()

    def submit(self, *submissions: Submission) -> None:
        """Hands them over; before the engine is started, this is what makes them begin at one moment."""
        self.expect(*submissions)
        for submission in submissions:
            self.engine.submit(submission)

    def expect(self, *submissions: Submission) -> None:
        """Waits for these too, whoever submits them."""
        for submission in submissions:
            self._outcomes[submission.id] = Outcome(submission)

    def outcomes(self) -> dict[str, Outcome]:
        """Waits until every submission is over."""
        self.wait(lambda: all(outcome.is_over for outcome in self._outcomes.values()))
        return self._outcomes

    def is_over(self, submission: Submission) -> bool:
        """Whether nothing more is to come of it."""
        return self._outcomes[submission.id].is_over

    def forget(self) -> None:
        """Drops what was told so far, and the tensors in it."""
        self._outcomes.clear()
        self.events.clear()

    def paint(self, submission: Submission) -> Outcome:
        """One submission, waited for."""
        self.submit(submission)
        return self.outcomes()[submission.id]

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Takes events in until something is so."""
        until = time.monotonic() + self._patience
        while not is_done():
            try:
                self._take(self._events.get(timeout=max(0.0, until - time.monotonic())))
            except Empty:
                raise AssertionError(f"the engine is stuck; its last events: {self.events[-5:]}") from None

    def rest(self) -> dict[str, Outcome]:
        """Everything that has been told by now; after close, everything there is."""
        with contextlib.suppress(Empty):
            while True:
                self._take(self._events.get_nowait())
        return self._outcomes

    def _take(self, event: Event) -> None:
        self.events.append(event)
        assert not isinstance(event, EngineDied), event.error
        outcome = self._outcomes.get(getattr(event, "job_id", ""))
        if outcome is not None:
            outcome.take(event)

    def _emit(self, event: Event) -> None:
        self.threads.setdefault(type(event).__name__, set()).add(threading.current_thread().name)
        self._events.put(event)
        if self._react is not None:
            self._react(self.engine, event)


def _wait_for_loaders() -> None:
    """Waits until no loader is within a load; a closed engine's goes on, and two loads at once may break each other.

    While weights are read, accelerate replaces a method of every torch module: whoever builds one meanwhile gets it
    without weights, and two who overlap may leave it like that for good.
    """
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        frames = sys._current_frames()
        loaders = [frames.get(thread.ident or 0) for thread in threading.enumerate() if "loader" in thread.name]
        if all(frame is None or frame.f_code.co_name == "_load_for_ever" for frame in loaders):
            return
        time.sleep(0.02)
    raise AssertionError("a loader is stuck")


def paint_all(submissions: Sequence[Submission], max_runs: int = 8) -> tuple[dict[str, Outcome], list[int]]:
    """Paints them at once in a new engine: what became of each, and the rows of every forward that was computed.

    All are there before the model is, so they begin at the same moment.
    """
    darkroom = Darkroom(max_runs)
    darkroom.submit(*submissions)
    with count_forwards() as rows, darkroom:
        outcomes = darkroom.outcomes()
    return outcomes, rows


@torch.no_grad()
def paint_in_step(
    submissions: Sequence[Submission], max_runs: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Outcome], list[int]]:
    """The same without the engine's policy: whatever can share a forward does, from the first call to the last."""
    pipelines = {submission.model: load(submission.model, dtype) for submission in submissions}
    for pipeline in pipelines.values():
        Meeting(pipeline.denoiser)
    outcomes = {submission.id: Outcome(submission) for submission in submissions}
    calls: list[Call] = []

    def advance(run: Run, picture: tuple[str, int], value: Any = None) -> None:
        reached = run.resume(value)
        if isinstance(reached, Call):
            calls.append(reached)
            pictures[run] = picture
        else:
            outcomes[picture[0]].take(Painted(*picture, reached, 0.0, 0.0, 0.0))

    def start(submission: Submission, index: int) -> None:
        pipeline, recipe = pipelines[submission.model], submission.recipe
        images = submission.image, submission.mask
        scales = tuple(reference.scale for reference in submission.seen)
        kind = (submission.model.name, recipe.width, recipe.height, submission.ip_adapter, scales)
        seen = submission.seen
        run = Run(lambda: pipeline.paint(recipe, *images, index, lambda *_: None, Timer(), seen), kind)
        _put_on(pipeline, submission)
        advance(run, (submission.id, index))

    def key(call: Call) -> Hashable:
        """As the engine's: the position ids of FLUX do not tell a wide picture from a high one by their shape."""
        recipe = outcomes[pictures[call.run][0]].submission.recipe
        return call.meeting, call.key, recipe.width, recipe.height, call.run.kind

    pictures: dict[Run, tuple[str, int]] = {}
    with count_forwards() as rows:
        for submission in submissions:
            for index in range(submission.recipe.count):
                start(submission, index)
        while calls:
            first = calls[0]
            together = [call for call in calls if key(call) == key(first)]
            together = together[:8] if first.key is not None else [first]
            calls = [call for call in calls if call not in together]
            total = sum(call.rows for call in together)
            submission = outcomes[pictures[first.run][0]].submission
            _put_on(pipelines[submission.model], submission)
            outputs = first.meeting.forward(together, total if first.key is None else bucket(total))
            for call, output in zip(together, outputs, strict=True):
                advance(call.run, pictures[call.run], output)
    return outcomes, rows


def _put_on(pipeline: Pipeline, submission: Submission) -> None:
    """A submission's IP-Adapter, or none: as the engine does before a prologue and before a forward."""
    if submission.ip_adapter is None:
        pipeline.references.wear(None, ())
        return
    hosted = _hosted(submission.ip_adapter)
    if not pipeline.references.has(hosted):
        pipeline.references.attach(hosted, torch.device("cpu"))
    pipeline.references.wear(hosted, [reference.scale for reference in submission.seen])


@cache
def _hosted(adapter: IpAdapter) -> ip_adapters.HostedIpAdapter:
    return ip_adapters.read(adapter, torch.float32)


#: The first submodule that each denoiser calls, on the tensor that has a row for each picture and guidance branch.
ENTRANCES = {
    "UNet2DConditionModel": "conv_in",
    "FluxTransformer2DModel": "x_embedder",
    "SD3Transformer2DModel": "pos_embed",
    "AuraFlowTransformer2DModel": "pos_embed",
    "Flux2Transformer2DModel": "x_embedder",
    "QwenImageTransformer2DModel": "img_in",
    "ZImageTransformer2DModel": "noise_refiner.0",
}


@contextlib.contextmanager
def count_forwards() -> Iterator[list[int]]:
    """The rows of each denoiser forward. A call that only waits at the rendezvous reaches no submodule."""
    rows: list[int] = []
    entrances: set[torch.nn.Module] = set()

    def find(module: torch.nn.Module, _args: Any) -> None:
        name = ENTRANCES.get(type(module).__name__)
        if name is not None:
            entrances.add(module.get_submodule(name))

    def count(module: torch.nn.Module, args: Any, _output: Any) -> None:
        if module in entrances:
            rows.append(int(args[0].shape[0]))

    hooks = torch.nn.modules.module
    handles = [hooks.register_module_forward_pre_hook(find), hooks.register_module_forward_hook(count)]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


@cache
def _pipe(model: Model, mode: str, dtype: torch.dtype) -> Any:
    if mode == "txt2img":
        index = json.loads((model.path / "model_index.json").read_text())
        absent = {name: None for name, value in index.items() if value == [None, None]}
        pipe = diffusers.DiffusionPipeline.from_pretrained(model.path, dtype=dtype, **absent)
    else:
        auto = {"img2img": diffusers.AutoPipelineForImage2Image, "inpaint": diffusers.AutoPipelineForInpainting}[mode]
        pipe = auto.from_pipe(_pipe(model, "txt2img", dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plain(submission: Submission, index: int = 0, dtype: torch.dtype = torch.float32) -> Floats:
    """Picture ``index`` of a submission as the plain diffusers call paints it."""
    recipe = submission.recipe
    pipe = _pipe(submission.model, recipe.mode, dtype)
    own = _pipe(submission.model, "txt2img", dtype).scheduler
    sampler = samplers_for(type(own).__name__)[recipe.scheduler]
    pipe.scheduler = getattr(diffusers, sampler.scheduler).from_config(own.config, **sampler.options)
    arguments = _prompts(pipe, recipe) | {
        "num_inference_steps": recipe.steps,
        "generator": torch.Generator("cpu").manual_seed(recipe.seed + index),
        "output_type": "pt",
    }
    if "width" in inspect.signature(pipe.__call__).parameters:  # else the image's size is meant
        arguments |= {"width": recipe.width, "height": recipe.height}
    if not type(pipe).__name__.startswith("QwenImage"):
        arguments["guidance_scale"] = recipe.guidance_scale
    elif recipe.guidance_scale > 1:  # which takes it for models that are not distilled under another name
        arguments |= {"true_cfg_scale": recipe.guidance_scale, "negative_prompt": recipe.negative_prompt or " "}
    if submission.image is not None:
        arguments |= {"image": Image.fromarray(submission.image), "strength": recipe.strength}
    if submission.mask is not None:
        arguments["mask_image"] = Image.fromarray(submission.mask)
    image = pipe(**arguments).images[0]
    pipe.scheduler = own
    return floats(image)


def plain_rows(submission: Submission) -> list[int]:
    """The rows of each denoiser forward that the plain call computes."""
    return _plain_once(submission, 0)[1]


def _plain_once(submission: Submission, index: int) -> tuple[Floats, list[int]]:
    """The plain call's picture and rows, kept: most sets are painted in both ways."""
    images = [None if array is None else array.tobytes() for array in (submission.image, submission.mask)]
    key = (submission.model.path, msgspec.json.encode(submission.recipe), index, *images)
    if key not in _plains:
        with count_forwards() as rows:
            _plains[key] = plain(submission, index), rows
    return _plains[key]


_plains: dict[Hashable, tuple[Floats, list[int]]] = {}


def _prompts(pipe: Any, recipe: Recipe) -> dict[str, Any]:
    takes_negative = "negative_prompt" in inspect.signature(pipe.__call__).parameters
    negative = {"negative_prompt": recipe.negative_prompt} if recipe.negative_prompt and takes_negative else {}
    kind = type(pipe).__name__
    if recipe.clip_skip and kind == "StableDiffusionPipeline":
        return {
            "prompt_embeds": _skipped(pipe, recipe.prompt, recipe.clip_skip),
            "negative_prompt_embeds": _last(pipe, recipe.negative_prompt),
        }
    if recipe.prompt_syntax == "plain":
        skip = {"clip_skip": recipe.clip_skip} if recipe.clip_skip else {}
        return {"prompt": recipe.prompt} | negative | skip
    with torch.no_grad():
        if "Flux" in kind:
            made = compel.CompelForFlux(pipe)(recipe.prompt)
            return {"prompt_embeds": made.embeds, "pooled_prompt_embeds": made.pooled_embeds}
        if "StableDiffusion3" in kind:
            return sd3_by_compel(pipe, recipe.prompt, recipe.negative_prompt)
        if "XL" in kind:
            made = compel.CompelForSDXL(pipe)(recipe.prompt, **negative)
            pooled = {
                "pooled_prompt_embeds": made.pooled_embeds,
                "negative_pooled_prompt_embeds": made.negative_pooled_embeds,
            }
        else:
            made = compel.CompelForSD(pipe)(recipe.prompt, negative_prompt=recipe.negative_prompt)
            pooled = {}
    return {"prompt_embeds": made.embeds, "negative_prompt_embeds": made.negative_embeds} | pooled


@torch.no_grad()
def sd3_by_compel(pipe: Any, prompt: str, negative: str) -> dict[str, torch.Tensor]:
    """What Compel makes of a prompt and its negative for each encoder, joined as Stable Diffusion 3's pipeline does."""
    kind = compel.ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
    pairs = [(pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)]
    options = {"returned_embeddings_type": kind, "truncate_long_prompts": False}
    clips = [compel.Compel(*pair, **options)([prompt, negative]) for pair in pairs]
    text = torch.zeros(2, 256, pipe.transformer.config.joint_attention_dim)
    if pipe.text_encoder_3 is not None:
        t5 = compel.Compel(pipe.tokenizer_3, pipe.text_encoder_3, truncate_long_prompts=False, model_max_length=256)
        text = t5([prompt, negative])
    clip = torch.cat(clips, dim=-1)
    clip = torch.cat([clip, clip.new_zeros(*clip.shape[:2], text.shape[-1] - clip.shape[-1])], dim=-1)
    both = torch.cat([clip, text], dim=1)
    pooled = [torch.cat([pooled_words(*pair, words) for pair in pairs], dim=-1) for words in (prompt, negative)]
    return {
        "prompt_embeds": both[:1],
        "negative_prompt_embeds": both[1:],
        "pooled_prompt_embeds": pooled[0],
        "negative_pooled_prompt_embeds": pooled[1],
    }


def pooled_words(tokenizer: Any, encoder: Any, prompt: str) -> torch.Tensor:
    """The pooled embedding of a prompt's words, without what Compel reads as weights."""
    fragments = compel.Compel.parse_prompt_string(prompt).prompts[0].children
    words = " ".join(fragment.text for fragment in fragments)
    tokens = tokenizer(words, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    output = encoder(tokens.input_ids)
    embeds: torch.Tensor = output.text_embeds if "text_embeds" in output else output.pooler_output
    return embeds


def _skipped(pipe: Any, prompt: str, skip: int) -> torch.Tensor:
    """The prompt without CLIP's last layers; diffusers 0.42 looks for these where transformers 5 has them no more."""
    encoder = pipe.text_encoder
    with torch.no_grad():
        return encoder.final_layer_norm(_encoded(pipe, prompt).hidden_states[-1 - skip])


def _last(pipe: Any, prompt: str) -> torch.Tensor:
    return _encoded(pipe, prompt).last_hidden_state


@torch.no_grad()
def _encoded(pipe: Any, prompt: str) -> Any:
    tokens = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return pipe.text_encoder(tokens.input_ids, output_hidden_states=True)


def difference(one: Picture | Floats, other: Picture | Floats) -> float:
    """The largest difference of two pictures, in levels of 0 to 255."""
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    levels = 1 if one.dtype == np.uint8 else 255
    return levels * float(np.abs(one.astype(float) - other.astype(float)).max())


def assert_same(painted: Floats, expected: Floats, about: object = None) -> None:
    """Two pictures are one."""
    assert (painted.shape, painted.dtype) == (expected.shape, expected.dtype)
    assert float(np.abs(painted - expected).max()) <= SAME, about


def assert_parity(submissions: Sequence[Submission], outcomes: dict[str, Outcome]) -> None:
    """Each picture is the plain call's; and no two are alike, or mixing them up would pass."""
    expected: list[tuple[Recipe, Floats]] = []
    for submission in submissions:
        outcome = outcomes[submission.id]
        assert outcome.error is None, (submission.recipe, outcome.error)
        assert sorted(outcome.floats) == list(range(submission.recipe.count))
        for index, picture in outcome.floats.items():
            expected.append((submission.recipe, _plain_once(submission, index)[0]))
            assert_same(picture, expected[-1][1], (submission.recipe, index))
    for (recipe, one), (other_recipe, other) in itertools.combinations(expected, 2):
        assert one.shape != other.shape or difference(one, other) > 1, (recipe, other_recipe)
