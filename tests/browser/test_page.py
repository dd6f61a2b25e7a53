"""The page of ``streamvae serve``, in Chromium: dropped in, watched, left."""

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from streamvae import collect
from streamvae.models import default_vae, demo_latents
from tests.browser.cdp import CHROMIUM, Browser, Page, browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

#: Latents of a clip that is decoded within a few seconds, and of one that nobody waits for.
SHORT, LONG = 25, 600

CANVAS = "document.querySelector('canvas.screen:not([hidden])')"
VIDEO = "document.querySelector('video.screen:not([hidden])')"
STATE = "document.querySelector('.job.chosen').dataset.state"

#: The pixels on the canvas, RGBA, as base64 (in pieces: a call takes only so many arguments).
PIXELS = f"""(() => {{
  const it = {CANVAS};
  const {{ data }} = it.getContext("2d").getImageData(0, 0, it.width, it.height);
  let text = "";
  for (let at = 0; at < data.length; at += 8192) {{
    text += String.fromCharCode(...data.subarray(at, at + 8192));
  }}
  return btoa(text);
}})()"""


def clip(count: int) -> torch.Tensor:
    """``count`` latents of the demo, over and over: (1, 64, count, 6, 8)."""
    latents, _ = demo_latents()
    middle = latents[:, :, :, 6:12, 12:20]
    return middle[:, :, torch.arange(count) % middle.shape[2]].contiguous()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """``streamvae serve`` with the embedded autoencoder; where it is."""
    process = subprocess.Popen(
        [sys.executable, "-m", "streamvae", "serve", "--port", "0", "--device", "cpu"],
        stdout=subprocess.PIPE,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        text=True,
    )
    assert process.stdout is not None
    try:
        found = re.search(r"http://\S+/", process.stdout.readline())
        assert found, "streamvae serve did not say where"
        yield found[0]
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``short.npy`` and ``long.npy``."""
    folder = tmp_path_factory.mktemp("latents")
    np.save(folder / "short.npy", clip(SHORT).numpy())
    np.save(folder / "long.npy", clip(LONG).numpy())
    return folder


@pytest.fixture
async def chromium(tmp_path: Path) -> AsyncIterator[Browser]:
    """A browser, whose pages must have complained of nothing in the end."""
    async with browser(tmp_path / "profile") as running:
        yield running
    assert running.complaints == []


def asked(url: str) -> Any:
    """What the server answers: JSON, text, or None where there is nothing."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # our own server
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return json.loads(text) if text.startswith("{") else text


async def stopped(server: str, job: str) -> None:
    """Return when the job is no more, or cancelled, and nothing is decoded."""
    while True:
        told = await asyncio.to_thread(asked, f"{server}jobs/{job}")
        figures = await asyncio.to_thread(asked, f"{server}metrics")
        active = re.search(r"^streamvae_streams_active (\S+)", figures, re.MULTILINE)
        assert active
        if (told is None or told["state"] == "cancelled") and float(active[1]) == 0:
            return
        await asyncio.sleep(0.02)


async def chosen(page: Page) -> str:
    """The id of the job on show, once there is one."""
    job = await page.until(
        "document.querySelector('.job.chosen:not([data-id^=upload])')?.dataset.id"
    )
    return str(job)


async def pixels(page: Page, index: int) -> npt.NDArray[np.uint8]:
    """The frame ``index`` as it is on the canvas after one scrubbed to it: (H, W, 3)."""
    await page.evaluate(
        "{ const it = document.querySelector('#seek');"
        f" it.value = {index}; it.dispatchEvent(new Event('input')); }}"
    )
    await page.until(f"{CANVAS}.dataset.frame === '{index}'")
    data = base64.b64decode(await page.evaluate(PIXELS))
    return np.frombuffer(data, np.uint8).reshape(96, 128, 4)[:, :, :3]


async def test_upload_is_seen_while_it_is_decoded(
    server: str, files: Path, chromium: Browser
) -> None:
    """The first picture before half of the decode, then every frame, in the decoder's colours."""
    page = await chromium.page(server)
    await page.evaluate("document.querySelector('#fps').value = 60")
    await page.give("#file", [files / "short.npy"])
    job = await chosen(page)
    await page.until(f"{CANVAS}?.dataset.frame !== undefined")
    told = await asyncio.to_thread(asked, f"{server}jobs/{job}")
    frames = 4 * (SHORT - 1) + 1
    assert told["frames"] < frames / 2, told

    await page.until(f"{CANVAS}.dataset.frame === '{frames - 1}'")
    assert await page.evaluate(f"{CANVAS}.dataset.drawn") == str(frames)
    await page.until(f"{STATE} === 'done'")

    decoded = collect(clip(4), default_vae())[0]
    for index in (0, 5, 12):
        seen = (await pixels(page, index)).astype(float)
        wanted = decoded[index].astype(float)
        assert np.abs(seen - wanted).mean() <= 3, "off by more than JPEG's noise"
        blocks = (seen - wanted).reshape(12, 8, 16, 8, 3).mean((1, 3))
        assert np.abs(blocks).max() <= 3, "another colour"


async def test_chunked_body_shows_every_frame(server: str, files: Path, chromium: Browser) -> None:
    """By fetch as by WebSocket; the keys play, pause and step, and the figures are there."""
    page = await chromium.page(server)
    await page.choose("#transport", "fetch")
    await page.evaluate("document.querySelector('#fps').value = 60")
    await page.give("#file", [files / "short.npy"])
    frames = 4 * (SHORT - 1) + 1
    await page.until(f"{CANVAS}?.dataset.drawn === '{frames}'")
    await page.until(f"{STATE} === 'done'")
    assert await page.evaluate("document.querySelector('#transport').value") == "fetch"

    await page.press("Home")
    await page.until(f"{CANVAS}.dataset.frame === '0'")
    await page.press("ArrowRight")
    await page.until(f"{CANVAS}.dataset.frame === '1'")
    await page.press("ArrowLeft")
    await page.until(f"{CANVAS}.dataset.frame === '0'")
    await page.press(" ")
    await page.until(f"Number({CANVAS}.dataset.frame) > 3")
    await page.press(" ")
    await page.until("document.querySelector('#play').title.startsWith('Play')")

    said = await page.evaluate(
        "['first', 'count', 'rate', 'received', 'limit'].map("
        "(id) => document.getElementById(id).textContent)"
    )
    assert all(re.search("[0-9]", each) for each in said), said
    assert "decode" in await page.evaluate("document.querySelector('#lanes').ariaLabel")


async def test_mp4_plays_during_the_decode_and_after_it(
    server: str, files: Path, chromium: Browser
) -> None:
    """By Media Source while it is made; the finished file, by its link, when the job is done."""
    page = await chromium.page(server)
    await page.choose("#transport", "mse")
    await page.give("#file", [files / "short.npy"])
    job = await chosen(page)
    await page.until(f"{VIDEO}?.currentTime > 0")
    told = await asyncio.to_thread(asked, f"{server}jobs/{job}")
    assert told["state"] == "running", "it played when all was over"
    assert await page.evaluate(f"[{VIDEO}.videoWidth, {VIDEO}.videoHeight]") == [128, 96]

    await page.until(f"{STATE} === 'done'")
    seconds = (4 * (SHORT - 1) + 1) / 16
    await page.until(f"{VIDEO}.buffered.length && {VIDEO}.buffered.end(0) > {seconds - 0.1}")

    await page.choose("#transport", "file")
    await page.until(f"{VIDEO}?.src.endsWith('/video.mp4') && {VIDEO}.currentTime > 0")
    assert abs(await page.evaluate(f"{VIDEO}.duration") - seconds) < 0.1
    link = await page.evaluate("document.querySelector('.job.chosen .job-download').href")
    assert link == f"{server}jobs/{job}/video.mp4"


async def test_mjpeg_is_drawn_by_the_browser(server: str, files: Path, chromium: Browser) -> None:
    """An image is there while the job runs; a job that is left for another goes on."""
    page = await chromium.page(server)
    await page.choose("#transport", "mjpeg")
    await page.give("#file", [files / "long.npy"])
    first = await chosen(page)
    await page.until("document.querySelector('img.screen:not([hidden])')?.naturalWidth === 128")

    await page.choose("#transport", "socket")
    await page.until(f"{CANVAS}?.dataset.frame !== undefined")
    await page.give("#file", [files / "short.npy"])
    await page.until(f"document.querySelector('.job.chosen').dataset.id !== '{first}'")
    await page.until(f"{CANVAS}?.dataset.frame !== undefined && {STATE} === 'running'")
    told = await asyncio.to_thread(asked, f"{server}jobs/{first}")
    assert told["state"] == "running"
    await page.close()
    async with asyncio.timeout(5):
        await stopped(server, first)


@pytest.mark.parametrize("transport", ["socket", "fetch", "mse"])
async def test_leaving_stops_the_decode(
    server: str, files: Path, chromium: Browser, transport: str
) -> None:
    """Closing the tab, going to another page, cancelling: nothing is decoded 2 s later."""

    async def close(page: Page) -> None:
        await page.close()

    async def navigate(page: Page) -> None:
        await page.goto("data:text/html,elsewhere")

    async def cancel(page: Page) -> None:
        await page.press("x")

    for leave in (close, navigate, cancel):
        page = await chromium.page(server)
        await page.choose("#transport", transport)
        await page.give("#file", [files / "long.npy"])
        job = await chosen(page)
        await page.until("document.querySelector('.screen:not([hidden])')?.dataset.frame")
        async with asyncio.timeout(2):
            await leave(page)
            await stopped(server, job)
    await page.until(f"{STATE} === 'cancelled'")


async def test_refused_files_are_explained(server: str, tmp_path: Path, chromium: Browser) -> None:
    """What is no latents, or not this autoencoder's, is answered with what was expected."""
    np.save(tmp_path / "wrong.npy", np.zeros((1, 3, 5, 8, 8), np.float32))
    page = await chromium.page(server)
    await page.give("#file", [tmp_path / "wrong.npy"])
    said = await page.until("document.querySelector('#notice').textContent")
    assert "expected" in said
    assert "64" in said
    assert await page.evaluate("document.querySelector('.job.chosen')") is None
    # Chromium itself notes every answer of 4xx as an error.
    chromium.complaints[:] = [each for each in chromium.complaints if "422" not in each]


@pytest.mark.parametrize(("size", "dark"), [((1280, 800), False), ((390, 844), True)])
async def test_page_fits_and_everything_has_a_name(
    server: str, chromium: Browser, size: tuple[int, int], dark: bool
) -> None:
    """Desktop and phone: no sideways scrolling, no control without a name or too small to touch."""
    page = await chromium.page(server, size=size, dark=dark)
    width = await page.evaluate("document.documentElement.scrollWidth")
    assert width <= size[0]
    ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark

    tree = (await page.send("Accessibility.getFullAXTree"))["nodes"]
    roles = {"button", "link", "slider", "combobox", "spinbutton", "textbox", "img"}
    seen = [node for node in tree if node.get("role", {}).get("value") in roles]
    assert len(seen) > 8
    assert [node for node in seen if not node.get("name", {}).get("value")] == []

    small = await page.evaluate(
        "[...document.querySelectorAll('button, select, input:not(.hidden-input), label.button')]"
        ".filter((it) => it.checkVisibility() && it.getBoundingClientRect().height < 31)"
        ".map((it) => it.outerHTML)"
    )
    assert small == []


async def test_kept_frames_are_bounded(server: str, chromium: Browser) -> None:
    """Frames are kept encoded up to a bound: the oldest are given up, other jobs' first."""
    page = await chromium.page(server)
    kept = await page.evaluate(
        "import('./static/frames.js').then(({ Shelf }) => {"
        " const shelf = new Shelf(1000);"
        " const [one, other] = [shelf.store(), shelf.store()];"
        " one.add(0, 0, new Uint8Array(100)); one.add(1, 0, new Uint8Array(100));"
        " other.watched = true;"
        " for (let index = 0; index < 500; index += 1)"
        "   if (index !== 7) other.add(index, index, new Uint8Array(100));"
        " return [one.length, other.length, other.oldest.index, other.newest.index,"
        "   other.missed, other.at(10).index, other.before(496).index, other.after(498)]; })"
    )
    assert kept == [1, 9, 491, 499, 1, 491, 495, 1]
