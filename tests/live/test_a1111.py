"""``webuiapi`` against a live server, unmodified; and what other clients of AUTOMATIC1111's API send."""

import base64
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from PIL import Image

from server import Live

SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 4, "seed": 3}


@pytest.fixture(scope="module")
def api(live: Live) -> webuiapi.WebUIApi:
    """The package's client."""
    return webuiapi.WebUIApi(baseurl=f"{live.address}/sdapi/v1")


@pytest.fixture(scope="module")
def sdapi(live: Live) -> Iterator[httpx.Client]:
    """A plain client of the same routes."""
    with httpx.Client(base_url=f"{live.address}/sdapi/v1", timeout=60) as plain:
        yield plain


def test_txt2img_paints_what_is_asked(api: webuiapi.WebUIApi) -> None:
    """In its size, with the seed and the settings in ``info``."""
    result = api.txt2img(
        prompt="a red square on a white background",
        negative_prompt="blue",
        width=256,
        height=256,
        steps=12,
        seed=1,
        cfg_scale=5,
        sampler_name="Euler",
    )
    red, green, blue = (int(value) for value in np.asarray(result.image.convert("RGB"))[112:144, 112:144].mean((0, 1)))
    assert red > 150
    assert max(green, blue) < 100
    assert result.info["seed"] == 1
    assert result.info["sampler_name"] == "Euler"
    assert result.parameters["steps"] == 12
    assert "Steps: 12, Sampler: Euler, CFG scale: 5, Seed: 1, Size: 256x256" in result.info["infotexts"][0]


def test_batches_and_their_seeds(api: webuiapi.WebUIApi) -> None:
    """``batch_size`` times ``n_iter`` pictures."""
    result = api.txt2img(prompt="a lake", batch_size=2, n_iter=2, **SMALL)
    assert len({image.tobytes() for image in result.images}) == 4
    assert result.info["all_seeds"] == [3, 4, 5, 6]


def test_a_job_is_a_job(sdapi: httpx.Client, client: httpx.Client) -> None:
    """The picture is that of the native route."""
    answer = sdapi.post(
        "/txt2img", json={"prompt": "a lake", "sampler_name": "DPM++ 2M", "scheduler": "Karras", **SMALL}
    )
    ours = {"scheduler": "dpmpp_2m_karras", "prompt_syntax": "a1111"}
    native = client.post("/generate", json={**SMALL, "prompt": "a lake", **ours})
    assert base64.b64decode(answer.json()["images"][0]) == native.content


def test_weights_in_the_prompt_are_read_as_theirs(sdapi: httpx.Client) -> None:
    """Brackets are emphasis, not text; a LoRA that is not there is told."""
    pictures = []
    for prompt in ("a (red) circle", "a (red:1.1) circle", "a red circle"):
        answer = sdapi.post("/txt2img", json={"prompt": prompt, **SMALL}).json()
        with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as image:
            pictures.append(image.tobytes())
    assert pictures[0] == pictures[1] != pictures[2]
    missing = sdapi.post("/txt2img", json={"prompt": "a circle <lora:nobodys:0.8>", **SMALL})
    assert missing.status_code == 422
    assert "nobodys" in missing.json()["detail"]


def test_img2img_starts_from_the_image(api: webuiapi.WebUIApi) -> None:
    """At little strength the picture stays what it was."""
    blue = Image.new("RGB", (128, 128), "blue")
    result = api.img2img(
        images=[blue], prompt="a blue square", denoising_strength=0.2, width=128, height=128, steps=10, seed=1
    )
    red, _, blueness = np.asarray(result.image.convert("RGB")).mean((0, 1))
    assert blueness > 150
    assert red < 100


@pytest.mark.parametrize("is_inverted", [False, True])
def test_inpaint_keeps_what_is_black_in_the_mask(api: webuiapi.WebUIApi, is_inverted: bool) -> None:
    """Or what is white, if that is asked."""
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 128, 64))
    result = api.img2img(
        images=[Image.new("RGB", (128, 128), "white")],
        mask_image=mask,
        inpainting_mask_invert=int(is_inverted),
        prompt="a black background",
        denoising_strength=1.0,
        width=128,
        height=128,
        steps=10,
        seed=1,
    )
    picture = np.asarray(result.image.convert("RGB"))
    painted, kept = picture[:48].mean(), picture[80:].mean()
    if is_inverted:
        painted, kept = kept, painted
    assert kept > 225
    assert painted < kept - 40


def test_progress_and_interrupt_are_the_callers_own(live: Live, api: webuiapi.WebUIApi) -> None:
    """Progress moves, an interrupt ends the caller's picture, and another address keeps its own."""
    other = httpx.Client(base_url=live.address, timeout=60, transport=httpx.HTTPTransport(local_address="127.0.0.2"))
    results: dict[str, Any] = {}
    long = {"prompt": "a lake", "width": 256, "height": 256, "steps": 60}

    def mine() -> None:
        results["mine"] = api.post_and_get_api_result(f"{api.baseurl}/txt2img", long, False)

    def theirs() -> None:
        results["theirs"] = other.post("/sdapi/v1/txt2img", json={**long, "steps": 20})

    threads = [threading.Thread(target=each) for each in (mine, theirs)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 30
    seen = api.get_progress()
    while not seen["state"]["sampling_step"] and time.monotonic() < end:
        time.sleep(0.05)
        seen = api.get_progress()
    assert 0 < seen["progress"] < 1
    assert seen["state"]["job_count"] == 1
    assert seen["eta_relative"] > 0
    assert api.interrupt() == {}
    for thread in threads:
        thread.join(60)
    assert results["mine"].images == []
    assert len(results["theirs"].json()["images"]) == 1
    idle = api.get_progress()
    assert (idle["progress"], idle["state"]["job_count"]) == (0.0, 0)
    other.close()


def test_the_picture_is_shown_as_it_comes_to_be(api: webuiapi.WebUIApi, sdapi: httpx.Client) -> None:
    """``current_image`` is nearer to the picture each time; and that somebody looks changes no picture."""
    fields = {"prompt": "a red circle on white", "width": 128, "height": 128, "steps": 40, "seed": 4}
    answers: list[webuiapi.WebUIApiResult] = []
    painting = threading.Thread(
        target=lambda: answers.append(api.post_and_get_api_result(f"{api.baseurl}/txt2img", fields, False))
    )
    painting.start()
    seen: dict[int, bytes] = {}
    while painting.is_alive():
        told = api.get_progress()
        if told["current_image"]:
            seen[told["state"]["sampling_step"]] = base64.b64decode(told["current_image"])
    painting.join()
    final = answers[0].image.convert("RGB")
    distances = []
    for data in seen.values():
        with Image.open(io.BytesIO(data)) as preview:
            assert (preview.format, preview.size) == ("JPEG", (16, 16))
            small = np.asarray(final.resize(preview.size), dtype=float)
            distances.append(float(np.abs(np.asarray(preview.convert("RGB")) - small).mean()))
    assert len(seen) > 2
    assert distances[-1] < distances[0]
    assert distances[-1] < 40
    alone = sdapi.post("/txt2img", json=fields).json()["images"][0]
    with Image.open(io.BytesIO(base64.b64decode(alone))) as image:
        assert image.convert("RGB").tobytes() == final.tobytes()


def test_nobody_pays_for_previews_that_nobody_wants(live: Live, sdapi: httpx.Client, client: httpx.Client) -> None:
    """Who skips the image gets none, and none is made; neither does somebody else's asking make one."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    other = httpx.Client(base_url=live.address, timeout=60, transport=transport)
    follower = live.ask()
    fields = {"prompt": "a lake", "width": 256, "height": 256, "steps": 150}
    job_id = client.post("/v1/jobs", json=fields).json()["id"]
    shown: list[bool] = []

    def follow() -> None:
        with follower.stream("GET", f"/v1/jobs/{job_id}/events") as events:
            told = (json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: "))
            shown.extend("image" in event for event in told if event["type"] == "progress")

    following = threading.Thread(target=follow)
    with other, follower:
        following.start()
        looks = 0
        while looks < 5 or len(shown) < 10:
            mine = sdapi.get("/progress", params={"skip_current_image": "true"}).json()
            theirs = other.get("/sdapi/v1/progress").json()
            assert mine["current_image"] is theirs["current_image"] is None
            assert (mine["state"]["job"], theirs["state"]["job_count"]) == (job_id, 0)
            looks += 1
        assert not any(shown)
        while sdapi.get("/progress").json()["current_image"] is None:
            assert following.is_alive()
        while not any(shown):  # who follows is told as well
            assert following.is_alive()
            time.sleep(0.05)
        assert sdapi.post("/skip").json() is None
        following.join(30)
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"


def test_progress_of_several(live: Live, sdapi: httpx.Client, client: httpx.Client) -> None:
    """A batch goes forward only, in the steps of one picture; who waits is told so."""
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=live.address, timeout=60, transport=transport) as other:
        batch = {"prompt": "a lake", "width": 128, "height": 128, "steps": 30, "count": 3}
        job_id = client.post("/v1/jobs", json=batch).json()["id"]
        states: list[dict[str, Any]] = []
        while client.get(f"/v1/jobs/{job_id}").json()["status"] in ("queued", "running"):
            told = sdapi.get("/progress", params={"skip_current_image": "true"}).json()
            states += [told] if told["state"]["job"] else []
        assert {told["state"]["sampling_steps"] for told in states} <= {0, 30}
        steps = [told["state"]["sampling_step"] for told in states]
        assert steps == sorted(steps)
        assert [told["progress"] for told in states] == sorted(told["progress"] for told in states)
        assert 0 < max(steps) <= 30
        for _ in range(16):
            other.post("/v1/jobs", json={**batch, "steps": 150, "count": 1})
        mine = [client.post("/v1/jobs", json={**batch, "steps": 150, "count": 1}).json()["id"] for _ in range(2)]
        waiting = sdapi.get("/progress").json()
        assert re.fullmatch(r"In queue: [1-9]\d*/[1-9]\d*", waiting["textinfo"])
        assert waiting["state"]["job"] == mine[0]
        assert waiting["state"]["job_count"] == 2
        assert waiting["eta_relative"] > 0
        assert other.post("/sdapi/v1/interrupt").json() == {}
        assert {client.get(f"/v1/jobs/{each}").json()["status"] for each in mine} <= {"queued", "running"}
        assert sdapi.post("/interrupt").json() == {}
        assert {client.get(f"/v1/jobs/{each}").json()["status"] for each in mine} == {"cancelled"}


def test_options_go_both_ways(api: webuiapi.WebUIApi) -> None:
    """The whole dictionary can be sent back, as Open WebUI does."""
    options = api.get_options()
    assert options["sd_model_checkpoint"] == "demo-xl"
    api.set_options(options)
    assert api.util_get_current_model() == "demo-xl"
    api.util_set_model("demo-xl")
    assert api.util_get_model_names() == ["demo-xl"]


def test_lists(api: webuiapi.WebUIApi) -> None:
    """What clients ask for at their start."""
    assert "Euler a" in api.util_get_sampler_names()
    assert {"realistic", "anime"} <= {style["name"] for style in api.get_prompt_styles()}
    assert api.get_memory()["ram"]["total"] > 0
    assert "Karras" in [scheduler["label"] for scheduler in api.get_schedulers()]
    assert [lora["name"] for lora in api.get_loras()] == ["balloon", "blueprint"]
    for empty in (
        api.get_sd_vae,
        api.get_upscalers,
        api.get_latent_upscale_modes,
        api.get_hypernetworks,
        api.get_face_restorers,
        api.get_realesrgan_models,
    ):
        assert empty() == []
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert api.get_cmd_flags() == {}
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.util_get_scheduler_names() == ["automatic", "karras"]
    api.util_wait_for_ready()
    assert api.refresh_checkpoints() is None
    assert api.skip() is None


def test_every_listed_style_paints(api: webuiapi.WebUIApi) -> None:
    """With its words; none is what it is for the clients that say so."""
    plain = api.txt2img(prompt="a lake", styles=["None", ""], **SMALL)
    for style in api.get_prompt_styles():
        result = api.txt2img(prompt="a lake", styles=[style["name"]], **SMALL)
        assert result.info["styles"] == [style["name"]]
        assert result.info["prompt"] == style["prompt"].replace("{prompt}", "a lake")
        assert result.image.tobytes() != plain.image.tobytes()


def test_every_listed_sampler_paints(sdapi: httpx.Client) -> None:
    """A name in the list that cannot be used would be a trap."""
    for sampler in sdapi.get("/samplers").json():
        answer = sdapi.post("/txt2img", json={"prompt": "a lake", "sampler_name": sampler["name"], **SMALL})
        assert answer.status_code == 200, sampler


def test_png_info_reads_what_was_written(api: webuiapi.WebUIApi, sdapi: httpx.Client) -> None:
    """By its keys, and nothing of a picture that says nothing."""
    image = sdapi.post("/txt2img", json={"prompt": "a lake, with: colons", "negative_prompt": "ink", **SMALL}).json()
    info = sdapi.post("/png-info", json={"image": image["images"][0]}).json()
    assert info["parameters"]["Prompt"] == "a lake, with: colons"
    assert info["parameters"]["Negative prompt"] == "ink"
    assert (info["parameters"]["Size-1"], info["parameters"]["Seed"]) == ("64", "3")
    assert "daguerre" in info["items"]
    assert api.png_info(Image.new("RGB", (8, 8))).info == ""


def test_sillytavern(sdapi: httpx.Client) -> None:
    """Its lists, its wait for a checkpoint; its own keys are left in the body; at its end it interrupts without one."""
    lists = ("upscalers", "latent-upscale-modes", "sd-vae", "samplers", "schedulers", "sd-models")
    told = {name: sdapi.get(f"/{name}").json() for name in lists}
    assert all(isinstance(entries, list) for entries in told.values())
    assert "Euler a" in [sampler["name"] for sampler in told["samplers"]]
    assert [(model["title"], model["model_name"]) for model in told["sd-models"]] == [("demo-xl", "demo-xl")]
    sdapi.post("/options", json={"sd_model_checkpoint": "demo-xl", "sd_vae": "Automatic"})
    waiting = sdapi.get("/progress").json()
    assert (waiting["progress"], waiting["state"]["job_count"]) == (0.0, 0)
    request = {
        "url": "http://127.0.0.1:7860",
        "auth": "",
        "prompt": "a lake",
        "negative_prompt": "",
        "sampler_name": "Euler a",
        "scheduler": "Automatic",
        "steps": 2,
        "cfg_scale": 7,
        "width": 64,
        "height": 64,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 1,
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "seed": -1,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    answer = sdapi.post("/txt2img", json=request)
    assert answer.status_code == 200
    with Image.open(io.BytesIO(base64.b64decode(answer.json()["images"][0]))) as image:
        assert image.size == (64, 64)
    assert sdapi.post("/interrupt").json() == {}


def test_open_webui(sdapi: httpx.Client) -> None:
    """Its engine "automatic1111": an empty Authorization, all of the options sent back, ``info`` in the answer."""
    sdapi.headers["authorization"] = ""
    titles = [model["title"] for model in sdapi.get("/sd-models").json()]
    options = sdapi.get("/options").json()
    options["sd_model_checkpoint"] = titles[0]
    assert sdapi.post("/options", json=options).status_code == 200
    request = {"prompt": "a lake", "batch_size": 1, "width": 64, "height": 64, "steps": 2, "negative_prompt": "ink"}
    told = sdapi.post("/txt2img", json={**request, "sampler_name": "Euler", "a key of its own": 1}).json()
    assert json.loads(told["info"])["negative_prompt"] == "ink"
    with Image.open(io.BytesIO(base64.b64decode(told["images"][0]))) as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("route", "fields", "status", "says"),
    [
        ("txt2img", {"sampler_name": "Nobody's"}, 400, "Sampler not found"),
        ("txt2img", {"script_name": "Nobody's"}, 422, "script_name"),
        ("txt2img", {"alwayson_scripts": {"Nobody's": {"args": []}}}, 422, "alwayson_scripts"),
        ("txt2img", {"steps": 0}, 422, "steps"),
        ("txt2img", {"cfg_scale": "high"}, 422, "cfg_scale"),
        ("txt2img", {"denoising_strength": "much", "width": 63}, 422, "width"),
        ("txt2img", {"styles": ["anime", "realistic"]}, 422, "styles"),
        ("txt2img", {"styles": [3]}, 422, "styles"),
        ("txt2img", {"styles": "nobodys"}, 422, "anime"),
        ("txt2img", {"batch_size": 9}, 422, "batch_size"),
        ("txt2img", {"batch_size": True}, 422, "batch_size"),
        ("txt2img", {"batch_size": 4, "n_iter": 4}, 422, "batch_size"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "nobodys"}}, 404, "demo-xl"),
        ("img2img", {}, 404, "Init image not found"),
        ("img2img", {"init_images": [3]}, 404, "Init image not found"),
        ("img2img", {"init_images": ["…"]}, 422, "Invalid encoded image"),
        ("img2img", {"init_images": ["aGVsbG8="]}, 422, "Invalid encoded image"),
        ("img2img", {"init_images": ["http://127.0.0.1/a.png"]}, 422, "Requests not allowed"),
        ("options", {"sd_model_checkpoint": "nobodys"}, 404, "demo-xl"),
        ("options", {"sd_model_checkpoint": 3}, 404, "model"),
        ("png-info", {}, 422, "image"),
        ("png-info", {"image": "aGVsbG8="}, 422, "image"),
    ],
)
def test_bad_fields(sdapi: httpx.Client, route: str, fields: dict[str, Any], status: int, says: str) -> None:
    """Each gets an error in their form; a wrong model is never painted with in silence."""
    answer = sdapi.post(f"/{route}", json={"prompt": "a lake", **fields} if route != "png-info" else fields)
    assert answer.status_code == status
    assert says in answer.json()["detail"]
    assert set(answer.json()) == {"error", "detail", "body", "errors"}
