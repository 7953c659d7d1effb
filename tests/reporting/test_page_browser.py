"""The page in a real browser: it opens from disk, prints nothing on its console, requests nothing, and works.

Needs Chromium: `apt-get install chromium`, or any browser by one of the names below.
"""

import dataclasses
import io
import os
import shutil
import sys
import time

import numpy as np
import pytest
from PIL import Image

from manyviews.data import open_source
from manyviews.evaluation import Metric, evaluate
from manyviews.reporting import embedding_map
from manyviews.reporting.page import write

from .conftest import stored, untrained_run

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOSTILE = "<img src=x onerror=alert(1)>"
LABELS = [f"{HOSTILE}</script><script>alert(2)</script>", "oak", "rowan"]
COUNT = 45


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if not found and not os.environ.get("CI"):
        pytest.skip(f"there is no browser to test the page in: install one of {', '.join(NAMES)}")
    assert found, "Continuous integration installs a browser, and there is none."
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A page of two runs, a ResNet and a transformer, on pictures with hostile names and labels."""
    folder, rng = tmp_path_factory.mktemp("browser"), np.random.default_rng(0)
    photos = folder / "photos"
    photos.mkdir()
    lines = ["path,label"]
    for i in range(COUNT):
        pixels = (rng.integers(0, 60, (24, 24, 3)) + np.eye(3)[i % 3] * 150).astype(np.uint8)
        name = f"{i:02} {HOSTILE if i % 2 else 'tree'}.png"
        Image.fromarray(pixels).save(photos / name)
        lines.append(f'{name},"{LABELS[i % 3]}"')
    labels = folder / "labels.csv"
    labels.write_text("\n".join(lines))
    log = [{"step": s, "epoch": s / 10, "loss": 5 - s / 50, "lr": 0.1, "grad_norm": 1 + s} for s in range(1, 80)]
    recall = Metric("mAP", 0.5, (0.4, 0.6), {f"recall at {k}": k / 10 for k in (1, 2, 5, 10)}, {})
    runs = []
    for i, (name, recipe) in enumerate((("mast", "mast_tiny"), (HOSTILE, "moco_v3_tiny"))):
        run = untrained_run(folder / name, recipe, str(photos), log=log, seed=i)
        data = run.recipe.data
        report = evaluate(
            run.encoder, open_source(photos, labels), protocols=["knn"], test_size=32, mean=data.mean, std=data.std
        )
        trained = dataclasses.replace(report.representations["trained"], measures={"retrieval": recall})
        report = dataclasses.replace(report, representations=report.representations | {"trained": trained})
        stored(run.folder, 1, report.to_json())
        runs.append(run)
    with pytest.MonkeyPatch.context() as patch:  # both layouts take long to start
        patch.setitem(sys.modules, "umap", None)
        patch.setattr(embedding_map, "_TSNE", 0)
        return write(runs, folder / "page", data=photos, labels=labels, queries=photos)


@pytest.fixture
def page(browser, index):
    """Opens the page; fails afterwards if anything went wrong in it, or it asked for anything outside its folder."""
    troubles, opened = [], []

    def open_page(width=1280, height=900, touch=False):
        found = browser.new_page(viewport={"width": width, "height": height}, has_touch=touch)
        opened.append(found)
        inside = index.parent.as_uri()
        found.on("console", lambda m: troubles.append(f"console: {m.text}"))
        found.on("pageerror", lambda e: troubles.append(f"error: {e}"))
        found.on("dialog", lambda d: (troubles.append(f"dialog: {d.message}"), d.dismiss()))
        found.on("request", lambda r: None if r.url.startswith(inside) else troubles.append(f"request: {r.url}"))
        found.on("requestfailed", lambda r: troubles.append(f"failed: {r.url}"))
        found.goto(index.as_uri())
        ready(found)
        return found

    yield open_page
    for found in opened:
        found.evaluate("document.querySelectorAll('img').forEach((i) => (i.loading = 'eager'))")
        until(lambda found=found: found.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth)"))
        found.close()
    assert troubles == []


def center(page):
    box = page.locator("#map-canvas").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def until(true, seconds=10.0):
    """Wait until something is true. (Playwright's own waiting evaluates text, which the page's policy forbids.)"""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "This did not become true in time."
        time.sleep(0.02)


def ready(page):
    page.locator("html[data-map=ready]").wait_for(state="attached")


def looks(page):
    """The map as one sees it. (Its canvas holds pictures from disk, and gives no script its pixels.)"""
    return Image.open(io.BytesIO(page.locator("#map-canvas").screenshot())).convert("RGB")


def shades(page):
    return len(looks(page).getcolors(1 << 24))


def to_the_middle(page, number):
    """Find an image by its number in its name, and bring it to the middle of the map."""
    page.fill("#map-filter", f"{number:02} ")
    page.locator("#map-list summary").click()
    page.locator("#map-list li button").first.click()
    page.locator("#map-canvas").scroll_into_view_if_needed()


@pytest.mark.parametrize("width, height", [(360, 740), (1280, 900)])
def test_everything_is_drawn_and_nothing_sticks_out(page, width, height):
    found = page(width, height)
    assert found.evaluate("document.documentElement.scrollWidth") <= width
    charts = found.locator("[data-chart]")
    assert charts.count() > 10
    empty = "(all) => all.filter((f) => !f.querySelector('path, circle, canvas')).map((f) => f.dataset.chart)"
    assert charts.evaluate_all(empty) == []
    assert found.locator(".measure", has_text="recall at 10").locator("path").count() == 2  # a line for each run
    until(lambda: shades(found) > 100)  # thumbnails
    found.uncheck("#map-thumbs")
    found.select_option("#map-color", "cluster")
    assert shades(found) > 5
    sizes = found.evaluate(
        "[...document.querySelectorAll('button, select, input[type=search]')].filter((b) => "
        "b.offsetHeight && !b.closest('.chart, .near')).map((b) => b.offsetHeight)"
    )
    assert min(sizes) >= 24  # to be hit with a finger


def test_the_picked_and_the_pointed_image_are_shown_with_name_and_label_as_text(page):
    found = page()
    to_the_middle(found, 3)
    card, tip = found.locator("#map-card"), found.locator("#tip")
    assert card.locator("b").inner_text() == LABELS[0]
    assert f"03 {HOSTILE}.png" in card.inner_text()
    assert found.locator("#map-legend").inner_text().count(LABELS[0]) == 1
    assert found.locator("[onerror]").count() == 0
    assert found.locator("h1").inner_text() == f"mast, {HOSTILE}"
    assert tip.is_hidden()
    found.mouse.move(*center(found))
    tip.wait_for(state="visible")
    assert f"03 {HOSTILE}.png" in tip.inner_text() and LABELS[0] in tip.inner_text()
    assert "sheet-0.webp" in tip.locator(".thumb").evaluate("(e) => e.style.backgroundImage")
    found.mouse.move(1, 1)
    tip.wait_for(state="hidden")
    # The map of another run keeps the picked image.
    found.locator("#map-runs label").nth(1).click()
    found.wait_for_timeout(900)
    assert f"03 {HOSTILE}.png" in card.inner_text()
    assert found.locator("#map-legend button").count() == 3


def test_the_filter_takes_classes_and_names_and_the_legend_takes_clicks(page):
    found = page()
    count = found.locator("#map-count")
    assert count.inner_text() == "45 images"
    found.fill("#map-filter", "OAK")
    assert count.inner_text() == "15 of 45 images"
    found.fill("#map-filter", "tree.png")
    assert count.inner_text() == "23 of 45 images"
    found.fill("#map-filter", "nothing of the kind")
    assert count.inner_text() == "0 of 45 images"
    found.fill("#map-filter", "")
    rowan = found.locator("#map-legend button", has_text="rowan")
    rowan.click()
    assert count.inner_text() == "30 of 45 images" and rowan.get_attribute("aria-pressed") == "false"
    rowan.click(modifiers=["Shift"])
    assert count.inner_text() == "15 of 45 images"
    for shown in ("45 images", "15 of 45 images", "45 images"):  # alone, all, alone, all
        rowan.dblclick()
        assert count.inner_text() == shown
    found.select_option("#map-color", "predicted")
    assert count.inner_text() == "45 images"
    assert "right" in found.locator("#map-legend").inner_text()


def test_the_map_works_from_the_keyboard_and_the_wheel(page):
    found = page()
    found.locator("#map-canvas").focus()

    def changes(act):
        before = looks(found)
        act()
        until(lambda: looks(found) != before)

    for key in ("ArrowLeft", "ArrowUp", "0", "+", "-", "Enter"):
        changes(lambda key=key: found.keyboard.press(key))
    card = found.locator("#map-card")
    assert "tree.png" in card.inner_text() or HOSTILE in card.inner_text()
    assert card.locator(".near button").count() == 6
    card.locator(".near button").first.focus()
    before = card.locator(".name").inner_text()
    found.keyboard.press("Enter")
    assert card.locator(".name").inner_text() != before
    assert found.evaluate("document.activeElement.closest('#map-card .near') !== null")  # ready for the next one
    found.locator("#map-canvas").focus()
    found.keyboard.press("Escape")
    assert card.inner_text() == ""
    found.keyboard.press("0")
    found.mouse.move(*center(found))
    at = found.evaluate("scrollY")
    changes(lambda: found.mouse.wheel(0, -300))
    assert found.evaluate("scrollY") == at
    for _ in range(4):  # at full view, the wheel scrolls the page
        found.mouse.wheel(0, 300)
        found.wait_for_timeout(100)
    until(lambda: found.evaluate("scrollY") > at)


def test_a_tap_picks_an_image(page):
    found = page(390, 844, touch=True)
    to_the_middle(found, 4)
    found.keyboard.press("Escape")
    found.locator("#map-canvas").evaluate("(c) => c.focus()")
    found.keyboard.press("Escape")
    assert found.locator("#map-card").inner_text() == ""
    found.touchscreen.tap(*center(found))
    assert "04 tree.png" in found.locator("#map-card").inner_text()
    found.locator("#tip").wait_for(state="visible")


def test_all_charts_of_training_show_the_moment_one_points_at(page):
    found = page()
    loss, norm = (found.locator("[data-chart=curve]", has_text=t) for t in ("Loss", "Size of the gradient"))
    found.uncheck("#curve-smooth")
    loss.first.locator("svg").focus()
    found.keyboard.press("Home")
    for chart in (loss.first, norm):
        assert "epoch 0.1" in chart.locator(".readout").inner_text()
    found.keyboard.press("ArrowRight")
    assert "epoch 0.2" in norm.locator(".readout").inner_text()
    assert "3.00" in norm.locator(".readout").inner_text()
    found.select_option("#curve-x", "step")
    found.keyboard.press("Escape")
    log = norm.locator(".tool")
    assert log.get_attribute("aria-pressed") == "true"
    before = norm.locator("svg").inner_html()
    log.click()
    assert norm.locator("svg").inner_html() != before
    norm.locator("details summary").click()
    until(lambda: norm.locator("tbody tr").count() == 50)
    lines = loss.first.locator("path")
    assert lines.count() == 2
    found.locator("#curve-controls .legend button").first.click()
    assert lines.count() == 1


def test_light_and_dark_and_the_tab_key(page):
    paper = "getComputedStyle(document.body).backgroundColor"
    found = page()
    light, theme = found.evaluate(paper), found.locator("#theme")
    theme.click()
    dark = found.evaluate(paper)
    assert dark != light and "dark" in theme.inner_text()
    found.reload()
    ready(found)
    assert found.evaluate(paper) == dark  # remembered
    theme.click()
    assert found.evaluate(paper) == light
    found.emulate_media(color_scheme="dark")
    found.reload()
    ready(found)
    found.evaluate("localStorage.clear()")
    found.reload()
    ready(found)
    assert found.evaluate(paper) == dark  # the system's theme
    found.keyboard.press("Tab")
    assert found.evaluate("document.activeElement.textContent") == "Skip to the report"
    found.keyboard.press("Enter")
    assert found.evaluate("document.activeElement.id") == "main"
    every = "button, a, input, select, canvas, svg[tabindex], [role=region]"
    unnamed = f"""[...document.querySelectorAll('{every}')].filter(
        (e) => !(e.getAttribute('aria-label') || e.title || (e.closest('label') || e).textContent.trim())
    ).map((e) => e.outerHTML)"""
    assert found.evaluate(unnamed) == []
    assert found.locator("img:not([alt])").count() == 0


def test_it_can_be_printed_and_read_without_its_script(browser, index, tmp_path):
    found = browser.new_context(java_script_enabled=False).new_page()
    found.goto(index.as_uri())
    assert found.locator("noscript").count() == 1
    assert found.locator("#accuracy td", has_text="untrained").count() > 0
    assert found.locator("#neighbors img").count() > 100
    found.pdf(path=tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 50_000
    found.context.close()
