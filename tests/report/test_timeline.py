"""Timelines as pictures, pages and traces, and the idle times in them."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from streamvae import (
    AVStats,
    ChunkSpan,
    MissingDependencyError,
    StageTimes,
    StreamStats,
    UsageError,
)
from streamvae.report import check_timeline, gaps, write_timeline


def launch(
    chunk: int,
    on_device: tuple[float, float],
    *,
    asked: float = 0.0,
    begin: float = 0.0,
    admitted: float = 0.0,
    called: float = 0.0,
) -> ChunkSpan:
    """A launch."""
    return ChunkSpan(
        "decode",
        chunk,
        asked,
        begin,
        called,
        admitted=admitted,
        call_begin=called,
        call_end=called + 0.1,
        call_cpu=0.1,
        device_begin=on_device[0],
        device_end=on_device[1],
    )


def stats(*spans: ChunkSpan, busy: float | None = None) -> StreamStats:
    """A stream of these."""
    return StreamStats(
        (StageTimes("decode"), StageTimes("download"), StageTimes("persist")),
        frames=9,
        chunks=3,
        total=9.0,
        timeline=spans,
        device_busy=busy,
    )


#: Three chunks with a gap of a second before the third.
THREE = stats(
    launch(0, (0.0, 2.0)),
    launch(1, (2.0, 4.0)),
    launch(2, (5.0, 7.0), asked=0.5, begin=4.9, admitted=4.9, called=4.9),
    *(ChunkSpan("download", n, 0, 2.0 * n, 2.5 + 2 * n, 1, 3, 2**20) for n in range(3)),
    *(ChunkSpan("persist", n, 0, 2.5 + 2 * n, 4.0 + 2 * n, 1, 3, 2**20) for n in range(3)),
    busy=0.8,
)


@pytest.mark.parametrize(
    ("moments", "cause"),
    [
        ({}, "launch"),
        ({"asked": 4.0, "begin": 4.8, "admitted": 4.8, "called": 4.8}, "latents"),
        ({"asked": 4.9, "begin": 4.9, "admitted": 4.9, "called": 4.9}, "output"),
        ({"asked": 3.0, "begin": 3.5, "admitted": 4.7, "called": 4.9}, "turn"),
        ({"asked": 9.0, "begin": 9.0, "admitted": 9.0, "called": 9.0}, "output"),
    ],
)
def test_what_the_device_waits_for(moments: dict[str, float], cause: str) -> None:
    """An idle time is told apart by where the next chunk was meanwhile, to the last part of it."""
    case = stats(launch(0, (0.0, 4.0)), launch(1, (5.0, 6.0), **moments))
    (gap,) = gaps(case)
    assert (gap.begin, gap.end, gap.seconds) == (4.0, 5.0, 1.0)
    assert gap.cause == cause
    assert sum(gap.waits.values()) == pytest.approx(gap.seconds)
    assert min(gap.waits.values()) >= 0


def test_back_to_back_there_is_no_gap() -> None:
    """Nor where nobody knows when the device worked."""
    assert gaps(stats(launch(0, (0.0, 2.0)), launch(1, (2.0, 4.0)))) == ()
    assert gaps(stats(ChunkSpan("decode", 0, 0, 0, 1), ChunkSpan("decode", 1, 0, 3, 4))) == ()
    assert gaps(StreamStats()) == ()


def test_a_trace_opens_in_perfetto(tmp_path: Path) -> None:
    """Complete events of microseconds in named rows, the idle time, and how full queues were."""
    path = write_timeline(THREE, tmp_path / "t.json")
    trace = json.loads(path.read_text())
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    rows = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert [*rows.values()] == ["launch", "compute", "idle", "copy", "persist"]
    pieces = [event for event in events if event["ph"] == "X"]
    compute = [e for e in pieces if rows[e["tid"]] == "compute"]
    assert [(e["ts"], e["dur"]) for e in compute] == [(0, 2e6), (2e6, 2e6), (5e6, 2e6)]
    (idle,) = (e for e in pieces if rows[e["tid"]] == "idle")
    assert (idle["ts"], idle["dur"]) == (4e6, 1e6)
    assert idle["args"]["latents_s"] == pytest.approx(0.9)
    assert all({"ts", "dur", "pid", "tid", "name", "args"} <= set(event) for event in pieces)


class Tags(HTMLParser):
    """Every tag is closed, and nothing is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.rects: list[dict[str, str | None]] = []
        self.outside: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        if tag == "rect":
            self.rects.append(told)
        self.outside += [tag] if tag in {"script", "link", "img"} or "src" in told else []

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_page_stands_alone(tmp_path: Path) -> None:
    """Every bar is there with its numbers, the idle time too; nothing is loaded or run."""
    path = write_timeline({"a < b": THREE}, tmp_path / "t.html")
    page = path.read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.outside == []
    assert "http" not in page.replace("http://www.w3.org", "")
    kinds = [rect.get("class") for rect in tags.rects if rect.get("class")]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "launch": 3,
        "compute": 3,
        "copy": 3,
        "persist": 3,
        "gap": 1,
    }
    said = "".join(tags.text)
    assert "idle for 1000.00 ms, waiting for latents" in said
    assert "chunk 1, copy: 2.0000 s" in said
    assert "a < b: 9 frames" in said


def test_a_picture(tmp_path: Path) -> None:
    """Streams lie one below the other, each with as many lanes as it has something in."""
    one = write_timeline(THREE, tmp_path / "one.png")
    both = write_timeline({"one": THREE, "two": THREE}, tmp_path / "both.png")
    with Image.open(one) as small, Image.open(both) as large:
        assert small.format == "PNG"
        assert small.width == large.width
        assert large.height > 1.5 * small.height
        assert len(small.convert("RGB").resize((120, 40)).getcolors(10**4) or ()) > 5


def test_video_with_sound_has_a_panel_for_each(tmp_path: Path) -> None:
    """Both streams of a video with sound are drawn, by their names."""
    page = write_timeline(AVStats(THREE, THREE), tmp_path / "t.html").read_text()
    assert "<h2>video: 9 frames" in page
    assert "<h2>sound: 9 frames" in page


@pytest.mark.parametrize("suffix", [".html", ".json", ".png"])
def test_one_chunk_and_very_many(suffix: str, tmp_path: Path) -> None:
    """The shortest and the longest of timelines can be drawn."""
    single = stats(ChunkSpan("settle", 0, 0, 0, 0), ChunkSpan("decode", 0, 0.0, 0.0, 0.0))
    many = stats(*(launch(n, (n, n + 0.9)) for n in range(500)))
    for case in (single, many):
        assert write_timeline(case, tmp_path / f"t{suffix}").stat().st_size > 100


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    """An unknown suffix, a folder that is not there, and a stream that gave nothing."""
    with pytest.raises(UsageError, match=r"expected a timeline ending in .html, .json, .png, got"):
        write_timeline(THREE, tmp_path / "t.svg")
    with pytest.raises(UsageError, match="in a folder that is there"):
        check_timeline(tmp_path / "not" / "there.png")
    with pytest.raises(UsageError, match="empty timeline"):
        write_timeline(StreamStats(), tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


def test_pictures_need_matplotlib(tmp_path: Path) -> None:
    """Without it, the install line is told before anything is decoded; pages need nothing."""
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = sys.modules['matplotlib.figure'] = None\n"
        "from streamvae.report import check_timeline\n"
        "check_timeline('t.html')\n"
        "check_timeline('t.png')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode
    assert MissingDependencyError.__name__ in done.stderr
    assert "pip install 'streamvae[plots]'" in done.stderr
