"""The server: what it answers, what it refuses, and the page in a real browser."""

import io
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.evaluation.features import test_transform as as_tested
from manyviews.evaluation.index import build
from manyviews.heads.classify import classifier
from manyviews.serving.app import build as application
from manyviews.serving.look import Look
from manyviews.weights.model import Known, Model

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

HOSTILE = "<img src=x onerror=alert(1)>"
LOOPBACK = ("localhost", "127.0.0.1", "testserver")


def png(pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(12):
        (folder / f"{i:02}.png").write_bytes(png(rng.integers(0, 80, (40, 48, 3)) + rng.integers(0, 170, 3)))
    return folder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = Encoder("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2).eval()
    spec = {"kind": "linear"}
    x = torch.randn(40, 24)
    return Model(
        encoder=encoder,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        test_size=32,
        name=HOSTILE,
        head=classifier(spec, 24, 3).eval(),
        head_spec=spec,
        classes=("coat", HOSTILE, "hat"),
        temperature=2.0,
        kept=Known.of(x, x),
        facts={},
    )


@pytest.fixture(scope="module")
def look(model, photos, tmp_path_factory):
    source = mv.data.open_source(photos)
    how = {"test_size": 32, "mean": model.mean, "std": model.std}
    return Look(model, (source, build(model.encoder, source, tmp_path_factory.mktemp("index"), **how)))


def test_it_answers_as_the_model_does(look, model, photos):
    client = TestClient(application(look, hosts=LOOPBACK, largest=10**6, per_minute=100))
    content = (photos / "05.png").read_bytes()
    found = client.post("/api/look?k=3", content=content, headers={"content-type": "image/png"}).json()
    expected = model.predict(photos / "05.png")
    order = expected.ranked(3)[0]
    assert [c["name"] for c in found["classes"]] == [model.classes[i] for i in order]
    assert [c["probability"] for c in found["classes"]] == pytest.approx(expected.probability[0][order], abs=1e-5)
    assert found["known"] == expected.known[0]
    near = mv.search(model, photos / "05.png", photos, k=3).found[0]
    assert [n["name"].endswith(i) for n, i in zip(found["neighbors"], near.ids, strict=True)] == [True] * 3
    assert [n["similarity"] for n in found["neighbors"]] == pytest.approx(near.similarity, abs=2e-3)
    assert set(found["pictures"]) == {"seen", "parts", "attention"}
    assert client.get("/api/model").json()["classes"] == list(model.classes)
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/api/model", "/api/look"} and "requestBody" in paths["/api/look"]["post"]


def test_it_refuses_what_it_should(look):
    client = TestClient(application(look, hosts=LOOPBACK, largest=5000, per_minute=4))
    send = {"content-type": "image/png"}
    good = png(np.full((32, 32, 3), 90))

    def refused(status: int, words: str, content: bytes = good, headers: dict = send) -> None:
        reply = client.post("/api/look", content=content, headers=headers)
        assert reply.status_code == status and words in reply.text

    refused(415, "as the body", headers={"content-type": "text/plain"})  # a form elsewhere can send this
    refused(413, "larger than 0.005 MB", os.urandom(6000))
    refused(422, "not an image", b"hello")
    refused(422, "pixels", png(np.zeros((1, 8000), bool)))
    assert client.post("/api/look", content=good, headers=send).status_code == 200
    refused(429, "a minute")
    assert client.get("/api/model", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/api/model", headers={"host": "127.0.0.1:8000"}).status_code == 200
    for path in ("/docs", "/../pyproject.toml", "/%2e%2e/app.py", "/app.py", "/look.py"):
        assert client.get(path).status_code == 404
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]
    assert client.post("/api/look?k=9999", content=good, headers=send).status_code == 422


def test_an_encoder_alone_shows_neighbors_only(photos):
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", channels=(8, 8, 16, 16), layers=(1, 1, 1, 1)).eval()
    found = Look(mv.Pretrained(encoder, (0.5,) * 3, (0.25,) * 3, 32, "a network")).at(png(np.zeros((50, 40, 3))))
    assert found["classes"] == found["neighbors"] == [] and found["known"] is None
    assert set(found["pictures"]) == {"seen", "parts"}
    assert as_tested(Image.new("RGB", (40, 50)), 32).shape == (3, 32, 32)


def test_the_page_in_a_browser(look, photos):
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    path = next((path for name in names if (path := shutil.which(name))), None)
    if path is None and not os.environ.get("CI"):
        pytest.skip(f"there is no browser to test the page in: install one of {', '.join(names)}")
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(application(look, hosts=LOOPBACK, largest=10**7, per_minute=99), port=0, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page, said, asked = browser.new_page(), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_text("3 classes").wait_for()
        assert page.locator("h1").inner_text() == HOSTILE
        page.set_input_files("#file", str(photos / "03.png"))
        page.wait_for_selector("#answer:not([hidden])")
        assert page.locator("#classes li").count() == 3 and page.locator("#neighbors li").count() == 5
        assert page.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
        for width in (360, 800, 1400):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            if folder := os.environ.get("MANYVIEWS_SCREENSHOTS"):
                page.screenshot(path=f"{folder}/serve{width}.png", full_page=True)
        page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"})
        page.get_by_text("cannot be read").wait_for()
        assert page.locator("#answer").is_hidden()
        browser.close()
    server.should_exit = True
    thread.join(10)
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    assert [text for text in said if "422" not in text] == []  # the browser itself reports the refused picture
