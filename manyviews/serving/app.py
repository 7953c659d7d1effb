"""The HTTP API and the page. Whoever may reach it may ask it about pictures, and about nothing else."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from manyviews import __version__
from manyviews.data import BadImage
from manyviews.errors import printable
from manyviews.serving.look import Look

HERE = Path(__file__).parent

_CLIENTS = 1000  # whose requests are counted at a time
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; connect-src 'self'; "
_POLICY += "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class About(BaseModel):
    """What the model is."""

    name: str
    backbone: str
    dimensions: int
    test_size: int
    classes: list[str]
    images: int


class Class(BaseModel):
    """A class and its calibrated probability."""

    name: str
    probability: float


class Neighbor(BaseModel):
    """A known image, the cosine similarity of its features, and a small picture of it as a data URI."""

    name: str
    similarity: float
    src: str


class Answer(BaseModel):
    """What the model says about a picture."""

    classes: list[Class]
    known: bool | None
    neighbors: list[Neighbor]
    pictures: dict[str, str]


def build(look: Look, *, hosts: tuple[str, ...] | None, largest: int, per_minute: int) -> FastAPI:
    """The application.

    Args:
        look: the model.
        hosts: names under which it may be asked for, without a port; None for any. A page elsewhere that has its name
            point to this machine (DNS rebinding) is refused so.
        largest: bytes of the largest file that is taken.
        per_minute: pictures that one client may ask about in a minute.
    """
    # No documentation pages: they load scripts from elsewhere. The description itself is at /openapi.json.
    app = FastAPI(title="manyviews", version=__version__, docs_url=None, redoc_url=None)
    asked: OrderedDict[str, deque[float]] = OrderedDict()

    @app.middleware("http")
    async def guarded(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if hosts is not None and name.strip("[]").lower() not in hosts:
            return Response("This server does not go by that name.", 421)
        found = await go_on(request)
        found.headers["Content-Security-Policy"] = _POLICY
        found.headers["X-Content-Type-Options"] = "nosniff"
        found.headers["Referrer-Policy"] = "no-referrer"
        found.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        found.headers["Cache-Control"] = "no-store"
        return found

    def counted(client: str) -> None:
        now, times = time.monotonic(), asked.setdefault(client, deque())
        asked.move_to_end(client)
        while len(asked) > _CLIENTS:
            asked.popitem(last=False)
        while times and now - times[0] > 60:
            times.popleft()
        if len(times) >= per_minute:
            wait = max(1, round(60 - (now - times[0])))
            raise HTTPException(
                429, f"Up to {per_minute} pictures a minute: wait {wait} s.", headers={"Retry-After": str(wait)}
            )
        times.append(now)

    @app.get("/api/model", summary="What the model is")
    def about() -> About:
        return About(**look.facts())

    @app.post(
        "/api/look",
        summary="What the model says about a picture, whose file is the body",
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
        responses={
            413: {"description": "The file is too large."},
            415: {"description": "Another content type than image/... or application/octet-stream."},
            422: {"description": "The body is no image that can be read."},
            429: {"description": "Too many pictures in a minute."},
        },
    )
    async def look_at(request: Request, k: Annotated[int, Query(ge=1, le=50)] = 5) -> Answer:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Types that a form of a page elsewhere cannot send without being asked first.
        if not (kind.startswith("image/") or kind == "application/octet-stream"):
            raise HTTPException(415, "Send the image file as the body, as application/octet-stream or image/....")
        counted(request.client.host if request.client else "")
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > largest:
                raise HTTPException(413, f"The file is larger than {largest / 1e6:g} MB.")
        try:
            found: dict[str, Any] = await run_in_threadpool(look.at, bytes(content), k)
        except BadImage as error:
            raise HTTPException(422, f"The picture cannot be read: {printable(error.reason, 200)}.") from None
        return Answer(**found)

    def file(name: str, kind: str) -> Callable[[], Response]:
        text = (HERE / name).read_text(encoding="utf-8")
        return lambda: Response(text, media_type=kind)

    app.get("/", include_in_schema=False, response_class=HTMLResponse)(file("page.html", "text/html"))
    app.get("/page.js", include_in_schema=False)(file("page.js", "text/javascript"))
    app.get("/page.css", include_in_schema=False)(file("page.css", "text/css"))
    return app
