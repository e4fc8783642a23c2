"""The studio's page in a browser, from the first click to a saved session that opens again; by mouse and by keyboard.

It needs Playwright and a Chromium: ``pip install playwright`` and, on Debian or Ubuntu, ``apt-get install chromium``.
STUDIO_PICTURES=DIR keeps pictures of the page at the widths of a desk and of a telephone.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro import one_thread  # noqa: F401
from PIL import Image

from sam2_mem import build_sam2_video_predictor
from sam2_mem.cli.studio import SMALL_MODEL
from sam2_mem.studio.server import Studio, studio_app
from sam2_mem.video import Frame, OverlayWriter
from sam2_mem.video.streams import IteratorSource


def skip(reason: str) -> None:
    """Leave the file out, in a way that the summary of the tests shows."""
    warnings.warn(f"the studio's page is not tested: {reason}", stacklevel=2)
    pytest.skip(reason, allow_module_level=True)


try:
    import uvicorn
    from playwright.sync_api import Page, sync_playwright
except ModuleNotFoundError as missing:
    skip(f"{missing.name} is not installed: pip install {missing.name}")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
if CHROMIUM is None:
    skip("there is no Chromium: apt-get install chromium")

pytestmark = pytest.mark.full
TOKEN = "token-of-the-test"
DEMO = Path(__file__).resolve().parents[2] / "notebooks" / "videos" / "demo"
FRAMES = 14
TO_PAGE = """([x, y]) => {
  const canvas = document.getElementById("first"), area = canvas.getBoundingClientRect();
  const scale = Math.min(area.width / canvas.width, area.height / canvas.height);
  return [area.left + (area.width - canvas.width * scale) / 2 + x * scale, area.top + (area.height - canvas.height * scale) / 2 + y * scale];
}"""
COLOR = """([x, y]) => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  pen.drawImage(document.getElementById("first"), -x, -y);
  return [...pen.getImageData(0, 0, 1, 1).data];
}"""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Studio, str]]:
    """A studio, and its address: over the first frames of the demo clip, as a server of its own."""
    (tmp_path / "clip").mkdir()
    for index in range(FRAMES):
        shutil.copy(DEMO / f"{index:05d}.jpg", tmp_path / "clip")
    predictor = build_sam2_video_predictor("nano_v2", device="cpu", hydra_overrides_extra=["model.image_size=256"])
    studio = Studio(predictor, tmp_path, note=SMALL_MODEL, first_video="clip")
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    host = f"localhost:{listening.getsockname()[1]}"
    settings = uvicorn.Config(studio_app(studio, TOKEN, [host]), log_level="warning", lifespan="off")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield studio, f"http://{host}/{TOKEN}/"
    server.should_exit = True
    studio.close()
    thread.join(20)


@pytest.fixture
def address(served: tuple[Studio, str]) -> str:
    return served[1]


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of which no error may be heard."""
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(60_000)
        page.on(  # what the server refuses is said on the page; the browser logs it as well
            "console",
            lambda message: (
                errors.append(message.text)
                if message.type in ("error", "warning") and "status of 400" not in message.text
                else None
            ),
        )
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(  # a picture that is no longer wanted is let go by the page itself
            "requestfailed",
            lambda request: errors.append(request.url) if request.failure != "net::ERR_ABORTED" else None,
        )
        yield page
        browser.close()
    assert errors == []


def spot(page: Page, x: float, y: float) -> tuple[float, float]:
    """Where a position in the video is on the page."""
    left, top = page.evaluate(TO_PAGE, [x, y])
    return left, top


def shown(page: Page, frame: int) -> None:
    page.wait_for_selector(f'body[data-shown="{frame}"][data-masked="{frame}"]')


def idle(page: Page) -> None:
    page.wait_for_selector('body[data-job=""]')


def drag_box(page: Page, x0: float, y0: float, x1: float, y1: float) -> None:
    page.mouse.move(*spot(page, x0, y0))
    page.mouse.down()
    page.mouse.move(*spot(page, (x0 + x1) / 2, (y0 + y1) / 2))
    page.mouse.move(*spot(page, x1, y1))
    page.mouse.up()


def picture(page: Page, name: str) -> None:
    """A picture at both widths, where somebody wants to look at them; nothing is wider than the page."""
    for width, height in ((1440, 900), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        if folder := os.environ.get("STUDIO_PICTURES"):
            page.screenshot(path=f"{folder}/{name}_{width}.png", full_page=width < 800)
    page.set_viewport_size({"width": 1440, "height": 900})
    page.wait_for_timeout(300)


def test_from_the_first_click_to_a_session_that_opens_again(address: str, page: Page, tmp_path: Path) -> None:
    page.goto(address)
    shown(page, 0)
    picture(page, "opened")
    before = page.evaluate(COLOR, [56, 122])
    page.mouse.click(*spot(page, 56, 130))
    page.wait_for_selector('#objects small:has-text("IoU")')
    page.wait_for_timeout(300)
    assert page.evaluate(COLOR, [56, 122]) != before, "the mask is drawn"
    picture(page, "clicked")

    page.keyboard.press("t")  # track
    page.wait_for_selector('body[data-job="track"]')
    idle(page)
    shown(page, FRAMES - 1)
    page.wait_for_selector("#read img")
    assert len(page.query_selector_all("#read .share")) == 7
    page.wait_for_selector("#alternatives li:nth-child(3) img")
    picture(page, "tracked")
    page.click("#alternatives li:not(:has-text('shown')) button >> nth=0")  # another mask on the frame tracked last
    page.wait_for_selector("#undo:enabled")
    idle(page)
    page.keyboard.press("Control+z")
    idle(page)

    timeline = page.locator("#timeline").bounding_box()  # scrub
    page.mouse.click(timeline["x"] + 96 + (timeline["width"] - 96) * 7.5 / FRAMES, timeline["y"] + 30)
    shown(page, 7)
    page.keyboard.press("b")  # correct
    drag_box(page, 84, 104, 132, 148)
    page.wait_for_selector('#facts dd:has-text("prompted")')
    page.keyboard.press("a")  # a second object, by name
    drag_box(page, 268, 26, 318, 78)
    page.wait_for_selector("#objects li:nth-child(2) small:has-text('IoU')")
    page.locator("#objects li:nth-child(2) input").fill("blue fish")
    page.keyboard.press("Enter")
    page.wait_for_selector('#memory-of:has-text("blue fish")')
    page.keyboard.press("t")
    page.wait_for_selector('body[data-job="track"]')
    idle(page)
    picture(page, "two_objects")

    page.keyboard.press("m")  # another policy beside it
    page.wait_for_selector("#fields label")
    page.select_option("#policy-list", "rmem")
    page.wait_for_selector('#fields span:has-text("bank_size")')
    picture(page, "policies")
    page.click("#compare")
    page.wait_for_selector('body[data-job="compare"]')
    idle(page)
    page.wait_for_selector('#agreement:has-text("IoU with the first")')
    page.click("#second-name")
    page.wait_for_selector('#memory-of:has-text("blue fish, rmem")')
    picture(page, "compared")
    page.keyboard.press("m")
    page.wait_for_selector("#fields label")
    page.fill('#fields input[name="num_maskmem"]', "3")
    page.click("#use")
    page.wait_for_selector('body[data-job="policy"]')
    idle(page)
    page.wait_for_selector('#policy-name:has-text("fifo*")')

    page.keyboard.press("e")  # export
    page.click('#kinds input[value="script"]')
    page.click("#write")
    page.wait_for_selector('#written:has-text("clip.session.json")')
    picture(page, "exported")
    results = tmp_path / "sam2_mem_results" / "clip"
    assert {path.name for path in results.iterdir()} == {
        *("png", "clip.json", "clip.py", "clip.session.json", "clip.session.state")
    }
    page.click('#exports button[aria-label="close"]')

    before = page.url
    page.keyboard.press("o")  # and open it again
    for name in ("sam2_mem_results", "clip", "clip.session.json"):
        page.click(f'#listing li:not(:has-text("open already")) button:has-text("{name}") >> nth=-1')
        page.wait_for_timeout(200)
    page.wait_for_url(lambda url: url != before)
    page.wait_for_selector("#objects li:nth-child(2)")
    idle(page)
    shown(page, 0)
    page.keyboard.press("End")
    shown(page, FRAMES - 1)
    page.wait_for_selector("#read img")  # memory is there as well
    assert page.locator("#objects li:nth-child(2) input").input_value() == "blue fish"
    assert page.inner_text("#policy-name") == "fifo*"


def test_charts_a_sent_video_and_a_camera(served: tuple[Studio, str], page: Page, tmp_path: Path) -> None:
    """Memory through time; a file that the page sends; a camera that is recorded, clicked on and tracked; a second tab."""
    studio, address = served
    pictures = [np.array(Image.open(path)) for path in sorted((tmp_path / "clip").iterdir())]
    paced = (image for image in pictures * 100 if time.sleep(0.1) is None)
    studio.camera = lambda index: IteratorSource(paced)
    page.goto(address)
    shown(page, 0)
    page.mouse.click(*spot(page, 56, 130))
    page.wait_for_selector('#objects small:has-text("IoU")')
    page.keyboard.press("t")
    page.wait_for_selector('body[data-job="track"]')
    idle(page)
    page.keyboard.press("i")
    page.wait_for_selector("#charts .chart svg .cursor", state="attached")
    assert page.locator("#drawings svg").count() == 2
    picture(page, "through_time")
    page.keyboard.press("Escape")
    box = page.locator("#timeline").bounding_box()
    page.mouse.move(box["x"] + 96 + (box["width"] - 96) * 9.5 / FRAMES, box["y"] + 30)
    page.wait_for_selector('#hover span:has-text("frame 9")')

    with OverlayWriter(tmp_path / "sent.mp4", labels=False, codecs=("h264",)) as writer:
        for index, image in enumerate(pictures[:6]):
            writer.write(Frame(index, str(index), image), {})
    page.keyboard.press("o")
    page.set_input_files("#upload", tmp_path / "sent.mp4")
    page.wait_for_selector('#video:has-text("sam2_mem_uploads/sent.mp4")')
    page.wait_for_selector('#position:has-text("frame 0 of 5")')

    page.keyboard.press("o")
    picture(page, "files")
    page.click("#camera")
    page.wait_for_selector('#video:has-text("sam2_mem_camera/")')
    page.wait_for_selector("#stop-camera")
    page.mouse.click(*spot(page, 56, 130))
    page.wait_for_selector('#objects small:has-text("IoU")')
    page.keyboard.press("t")
    page.wait_for_selector('body[data-job="track"]')
    picture(page, "camera")
    page.click("#stop-camera")
    page.wait_for_selector("#stop-camera", state="hidden")
    page.keyboard.press("Escape")
    idle(page)

    other = page.context.browser.new_page()  # type: ignore[union-attr]
    other.goto(page.url)  # the same address again
    page.wait_for_selector("#tabs:has-text('another tab')")
    other.wait_for_selector("#message:has-text('was open already')")


def test_a_page_without_a_video(served: tuple[Studio, str], page: Page) -> None:
    studio, address = served
    studio.first_video = None
    page.goto(address)
    page.wait_for_selector("#open-big")
    picture(page, "empty")
    page.click("#open-big")
    page.click('#listing button:has-text("clip")')
    shown(page, 0)
    page.click("#track")
    page.wait_for_selector('#message:has-text("Click on an object first")')


def test_by_keyboard_alone(address: str, page: Page) -> None:
    page.goto(address)
    shown(page, 0)
    page.keyboard.press("c")
    for key, count in (("ArrowLeft", 13), ("ArrowDown", 1)):
        for _ in range(count):
            page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_selector('#objects small:has-text("IoU")')
    page.keyboard.press("Escape")
    for key, frame in (("ArrowRight", 1), ("Shift+ArrowRight", 11), ("End", FRAMES - 1), ("[", 0)):
        page.keyboard.press(key)
        shown(page, frame)
    page.keyboard.press("Control+z")
    page.wait_for_selector('#objects small:has-text("click on it")')
    page.keyboard.press("Control+Shift+z")
    page.wait_for_selector('#objects small:has-text("IoU")')
    page.keyboard.press("Delete")
    page.wait_for_selector("#clear:disabled")
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    page.wait_for_selector("#message:not([hidden])")


CONTRAST = """() => {
  const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = numbers(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] > 0.9) return color;
    }
    return [18, 21, 26];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest(":disabled")) continue;
    const [a, b] = [numbers(getComputedStyle(element).color), ground(element)].map(luminance).sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push([walker.currentNode.textContent.trim(), (a + 0.05) / (b + 0.05)]);
  }
  return poor;
}"""


def test_text_has_contrast(address: str, page: Page) -> None:
    """WCAG AA, 4.5 to 1, of every visible text; with a control that is too faint."""
    page.goto(address)
    shown(page, 0)
    page.mouse.click(*spot(page, 56, 130))
    page.wait_for_selector('#objects small:has-text("IoU")')
    page.keyboard.press("t")
    page.wait_for_selector("#read img")
    page.wait_for_timeout(300)
    assert page.evaluate(CONTRAST) == []
    faint: Any = page.evaluate("document.querySelector('.brand').style.color = '#555'")
    assert faint and [words for words, _ in page.evaluate(CONTRAST)] == ["sam2_mem"]
