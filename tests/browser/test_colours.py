"""A chart of colours through a video file, as Chromium shows it."""

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from streamvae.sinks import VideoFile
from tests.sinks.streams import keep
from tests.sinks.test_video import CHART

CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

#: Draws the first frame to a canvas, and tells the colours in the middle of the patches.
PAGE = """<!doctype html><body><script>
const video = document.createElement("video");
const say = (said) => fetch("/seen", {method: "POST", body: JSON.stringify(said)});
video.muted = true;
video.onerror = () => say(video.error.message);
video.onseeked = () => {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0);
  const [w, h] = [canvas.width / 8, canvas.height / 4];
  say([...Array(8).keys()].map((patch) => [...context.getImageData(
    (2 * (patch % 4) + 1) * w, (2 * Math.floor(patch / 4) + 1) * h, 1, 1).data].slice(0, 3)));
};
video.onloadeddata = () => { video.currentTime = 0.15; };
video.src = "/video";
</script></body>"""


class Site:
    """Serves the page and one video, and keeps what the page tells."""

    def __init__(self, video: bytes, kind: str) -> None:
        self._parts = {"/": (b"text/html", PAGE.encode()), "/video": (kind.encode(), video)}
        self.seen: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        _, path, _ = head[0].split()
        sizes = [int(line[15:]) for line in head if line.lower().startswith("content-length:")]
        body = await reader.readexactly(sum(sizes))
        if path == "/seen" and not self.seen.done():
            self.seen.set_result(json.loads(body))
        kind, data = self._parts.get(path, (b"text/plain", b""))
        status = (
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d\r\n"
        )
        writer.write(status % (kind, len(data)) + b"\r\n" + data)
        await writer.drain()
        writer.close()


async def _seen(video: bytes, kind: str, profile: Path) -> object:
    """What the page tells of a video."""
    assert CHROMIUM is not None
    site = Site(video, kind)
    async with await asyncio.start_server(site.answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        browser = await asyncio.create_subprocess_exec(
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            f"http://127.0.0.1:{port}/",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return await asyncio.wait_for(site.seen, 60)
        finally:
            browser.terminate()
            await browser.wait()


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".mp4", "video/mp4"), (".webm", "video/webm"), (".mkv", "video/x-matroska")],
)
@pytest.mark.parametrize(("height", "width"), [(480, 832), (720, 1280)])
async def test_chart(tmp_path: Path, suffix: str, kind: str, height: int, width: int) -> None:
    """Within 12 levels, which is what Chromium's own conversion of BT.709 is off by."""
    chart = np.repeat(np.repeat(CHART.reshape(1, 2, 4, 3), height // 2, 1), width // 4, 2)
    sink = VideoFile(tmp_path / f"a{suffix}", fps=10)
    await keep(sink, np.repeat(chart, 4, 0))
    seen = await _seen(sink.path.read_bytes(), kind, tmp_path / "profile")
    assert isinstance(seen, list), seen
    assert np.abs(np.array(seen) - CHART.astype(int)).max() <= 12, seen
