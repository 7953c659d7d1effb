"""Memory for decoding: shared by threads, never more than there is, and the same pixels."""

import io
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from manyviews.data import canvas as canvases
from manyviews.data.decode import BadImage, decode
from manyviews.data.reading import Reading
from manyviews.data.room import SMALL, Room


def test_threads_never_hold_more_than_the_room():
    room, lock, held = Room(lambda: 10 * SMALL + 8), threading.Lock(), {"now": 0, "most": 0}

    def work(k: int) -> None:
        size = (2 + k % 3) * SMALL
        with room.turn():
            room.claim(SMALL + 1, "file")  # claims grow: nobody may wait for somebody who waits for him
            room.claim(size, "pixels")
            with lock:
                held["now"] += size + SMALL + 1
                held["most"] = max(held["most"], held["now"])
            time.sleep(0.001)
            with lock:
                held["now"] -= size + SMALL + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(48), timeout=60))
    assert 3 * SMALL < held["most"] <= 5 * SMALL + 4  # half of the free memory
    with room.turn():
        room.claim(4 * SMALL, "pixels")  # everything was given back


def test_a_picture_without_room_is_refused_and_small_ones_do_not_ask():
    def asked() -> int:
        raise AssertionError

    room = Room(asked)
    with room.turn(), room.turn():
        room.claim(SMALL, "pixels")
        room.claim(SMALL, "pixels")  # the same pixels
    room = Room(lambda: 4 * SMALL)
    with pytest.raises(BadImage, match=r"takes about 0\.2 GB"), room.turn():
        room.claim(3 * SMALL, "pixels")
    with room.turn():
        room.claim(2 * SMALL, "pixels")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def pictures() -> dict[str, tuple[bytes, Reading]]:
    rng = np.random.default_rng(0)
    color = Image.fromarray(np.kron(rng.integers(0, 256, (60, 90, 3)), np.ones((4, 4, 1))).astype(np.uint8))
    gray, clear = color.convert("L"), color.convert("RGBA")
    clear.putalpha(gray)
    turned = Image.Exif()
    turned[0x0112] = 3
    deep = np.asarray(clear).astype(np.uint16) * 256 + 77
    floats, stream = np.asarray(color).astype(np.float32).mean(2) / 200 - 0.3, io.BytesIO()
    tifffile.imwrite(stream, floats)
    bands = io.BytesIO()
    tifffile.imwrite(bands, np.concatenate([np.asarray(color)] * 2, 2), photometric="minisblack", planarconfig="contig")
    return {
        "color": (encoded(color, "PNG"), Reading()),
        "upside down": (encoded(color, "PNG", exif=turned), Reading()),
        "gray": (encoded(gray, "PNG"), Reading(1)),
        "gray as color": (encoded(gray, "PNG"), Reading()),
        "clear": (encoded(clear, "PNG"), Reading()),
        "palette": (encoded(color.quantize(17), "PNG", transparency=3), Reading()),
        "inks": (encoded(color.convert("CMYK"), "TIFF"), Reading(1)),
        "wide": (encoded(Image.fromarray(deep[..., 0]), "PNG"), Reading()),
        "deep": (bytes(imagecodecs.png_encode(deep)), Reading()),
        "floats": (stream.getvalue(), Reading(1)),
        "bands": (bands.getvalue(), Reading(6)),
    }


@pytest.mark.filterwarnings("ignore:Black and white of")
@pytest.mark.parametrize("name", pictures())
def test_a_picture_that_shrinks_by_rows_is_the_same_bit_for_bit(name, monkeypatch):
    raw, reading = pictures()[name]
    whole = canvases.to_canvas(decode(raw, reading=reading)[0], 64)
    monkeypatch.setattr(canvases, "_LARGE", 0)
    monkeypatch.setattr(sys.modules["manyviews.data.decode"], "_ROWS", 4 * 360 * 7)  # seven rows at a time
    np.testing.assert_array_equal(canvases.decoded(raw, 64, reading), whole)
