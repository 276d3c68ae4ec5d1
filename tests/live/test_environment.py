"""A server that is told what to do by the variables that containers commonly set."""

from pathlib import Path

import pytest

from server import ROOT, serving


def test_the_weights_and_the_model_that_others_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MODEL_CACHE_DIR is the folder; DEFAULT_MODEL_ID may be a repository's name, and is told by the model's own."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(ROOT / "weights" / "demo-xl")
    (tmp_path / "models" / "catalog.toml").write_text('[models.mine]\nrepo = "owner/name"\n')
    monkeypatch.setenv("MODEL_CACHE_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("DEFAULT_MODEL_ID", "owner/name")
    with serving(tmp_path / "outputs") as live, live.ask() as client:
        live.wait_ready()
        assert client.get("/health").json()["model"] == "mine"
        models = {model["id"]: model["default"] for model in client.get("/v1/models").json()["data"]}
        assert [name for name, is_default in models.items() if is_default] == ["mine"]
        answer = client.post("/generate", json={"prompt": "a lake", "width": 64, "height": 64, "steps": 2})
        assert '"model": "mine"' in answer.headers["X-Generation-Metadata"].replace('":"', '": "')
