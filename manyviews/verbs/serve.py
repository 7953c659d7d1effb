"""Answer questions about pictures on a page and by HTTP."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from manyviews.data.layout import ALL
from manyviews.errors import UserError, say
from manyviews.evaluation import index as indices
from manyviews.progress import progress
from manyviews.verbs._common import loaded, opened, preprocessing, seen_by
from manyviews.verbs.search import index_folder
from manyviews.weights import Pretrained
from manyviews.weights.model import Model
from manyviews.weights.segmenter import Segmenter

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def serve(
    weights: str | Path | Pretrained,
    *,
    images: Any = None,
    host: str = "127.0.0.1",
    names: Sequence[str] = (),
    port: int = 8000,
    largest: float = 20.0,
    per_minute: int = 120,
    started: Callable[[str], object] | None = None,
) -> None:
    """Serve a page on which a picture is dropped, and an HTTP API, until it is interrupted.

    The page shows the classes of an adapted model, the nearest images and what the encoder looked at. Nothing that is
    sent is kept, no file is served but the page's own, and nothing is loaded from elsewhere. Only this machine can
    reach it, unless `host` says otherwise.

    Args:
        weights: a model's folder (see `adapt`), a run's, or weights: see `load`.
        images: images to find neighbors among: see `search`, with whose index it shares its work; None for none.
        host: the address to listen at.
        names: names under which it may be asked for, as a browser shows them, without the port. If empty, those of this
            machine if only it can reach `host`, else any: then a page of somebody else, open in a browser that can
            reach the server, can ask it, too (DNS rebinding).
        port: the port.
        largest: size of the largest file that is taken, in megabytes.
        per_minute: pictures that one client may ask about in a minute.
        started: is told the address once it answers.

    Raises:
        UserError: bad input, the packages are missing, or the port is taken.
    """
    try:
        import uvicorn

        from manyviews.serving.app import build
    except ImportError:
        raise UserError("Serving needs two packages: pip install 'manyviews[serve]'.") from None
    from manyviews.serving.look import Look

    if not 0 <= port < 2**16:
        raise UserError(f"A port is a number from 0 to 65535, not {port}.")
    if largest <= 0 or per_minute < 1:
        raise UserError("A server takes files of some size, and 1 picture a minute or more.")
    found = loaded(weights)
    if isinstance(found, Segmenter) or (isinstance(found, Model) and found.task == "numbers"):
        what = "masks" if isinstance(found, Segmenter) else "numbers"
        raise UserError(
            f"The page shows classes, and {found.name} gives {what}: use `manyviews predict`, or export it."
        )
    if found.note:
        say(found.note)
    known = None
    if images is not None:
        (source,) = seen_by(found, opened(images, split=ALL))
        how = preprocessing(found)
        with progress("index") as update:
            known = (
                source,
                indices.build(found.encoder, source, index_folder(found.encoder, source, how), progress=update, **how),
            )
    own = host in LOOPBACK
    if not own:
        say(
            f"Everybody who can reach {host} may ask this server about pictures, without a password and unencrypted. "
            "Put it behind a server that knows your users."
        )
    hosts = tuple(name.lower() for name in names) or (LOOPBACK if own else None)
    app = build(Look(found, known), hosts=hosts, largest=int(largest * 1e6), per_minute=per_minute)
    # Whom a request is from is in its own words if it comes from this machine: only a server before this one may say.
    config = uvicorn.Config(
        app, host, port, log_level="warning", access_log=False, server_header=False, proxy_headers=bool(names)
    )
    try:
        _server(config, started).run()
    except SystemExit:  # how uvicorn says that it cannot listen
        raise UserError(f"{host}:{port} cannot be listened at: take another --port, or --port 0 for any.") from None


def _server(config: Any, started: Callable[[str], object] | None) -> Any:
    """A server that tells its address, with the port that it was given, once it answers."""
    import uvicorn

    class Telling(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started and started is not None:
                started(_address(self.config.host, self.servers[0].sockets[0].getsockname()[1]))

    return Telling(config)


def _address(host: str, port: int) -> str:
    try:
        written = f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        written = host
    return f"http://{written}:{port}"
