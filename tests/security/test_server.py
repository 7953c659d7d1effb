"""The server answers at its own name, serves its own files, and takes bodies of a bounded size."""

import io

import pytest
import torch
from PIL import Image

import manyviews as mv
from manyviews.backbones import Encoder
from manyviews.serving.look import Look
from manyviews.verbs import serve as serving

pytest.importorskip("fastapi")
from starlette.testclient import TestClient

from manyviews.serving.app import build


@pytest.fixture(scope="module")
def look():
    torch.manual_seed(0)
    encoder = Encoder("resnet18", stem="small", channels=(8, 8, 16, 16), layers=(1, 1, 1, 1)).eval()
    return Look(mv.Pretrained(encoder, (0.5,) * 3, (0.25,) * 3, 32, "a network"))


@pytest.fixture
def client(look):
    return TestClient(build(look, hosts=serving.LOOPBACK, largest=10_000, per_minute=1000), base_url="http://localhost")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "0.0.0.0", "[::2]"],
)
def test_another_name_is_refused_everywhere(client, host):
    """A page elsewhere may have its name point here (DNS rebinding): its browser then sends that name."""
    for path in ("/", "/page.js", "/api/model", "/openapi.json", "/nothing"):
        assert client.get(path, headers={"host": host}).status_code == 421
    assert (
        client.post("/api/look", content=b"x", headers={"host": host, "content-type": "image/png"}).status_code == 421
    )
    for own in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert client.get("/api/model", headers={"host": own}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py",
        "/..%2fapp.py",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/page.js/../app.py",
        "/page.html",
        "/static/",
        "/page.css%00.py",
        "/api/../app.py",
        "/look.py",
        "/.git/config",
    ],
)
def test_no_file_is_served_but_the_pages_own(client, path):
    found = client.get(path)
    assert found.status_code == 404 or (found.status_code == 200 and found.url.path in ("/", "/page.js"))
    assert "root:" not in found.text and "FastAPI" not in found.text


def test_bodies_are_bounded_whatever_they_say(client):
    send = {"content-type": "application/octet-stream"}

    def unsaid():  # chunks, without a length before them
        for _ in range(40):
            yield bytes(4096)

    assert client.post("/api/look", content=unsaid(), headers=send).status_code == 413
    assert client.post("/api/look", content=bytes(10_001), headers=send).status_code == 413
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "TIFF", compression="group4")  # a kilobyte of 81 million pixels
    assert len(file.getvalue()) < 10_000
    reply = client.post("/api/look", content=file.getvalue(), headers=send)
    assert reply.status_code == 422 and "pixels" in reply.text
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"):
        assert client.request(method, "/api/look").status_code == 405


def test_it_listens_at_this_machine_alone_unless_told_otherwise(look, monkeypatch, capsys):
    told = []

    class Nothing:
        def run(self):
            pass

    monkeypatch.setattr(serving, "_server", lambda config, started: told.append(config) or Nothing())
    serving.serve(look.weights)
    serving.serve(look.weights, host="0.0.0.0")
    serving.serve(look.weights, host="0.0.0.0", names=["Photos.example"])
    assert [config.host for config in told] == ["127.0.0.1", "0.0.0.0", "0.0.0.0"]
    assert [config.proxy_headers for config in told] == [False, False, True]  # else anybody may be a new client
    for host, status in (("evil.example", 421), ("photos.example", 200)):
        assert TestClient(told[2].app, base_url=f"http://{host}").get("/").status_code == status
    assert "Everybody who can reach 0.0.0.0" in capsys.readouterr().err
    assert TestClient(told[0].app, base_url="http://evil.example").get("/").status_code == 421
