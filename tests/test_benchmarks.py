"""The benchmark programs run, and what they compute from a trace is right."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(program: str, *args: str) -> str:
    """Run a program as a user would."""
    command = [sys.executable, str(BENCHMARKS / program), *args]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=110, cwd=BENCHMARKS.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that reads traces."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("_trace", BENCHMARKS / "_trace.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gpu_program_rehearses_anywhere(tmp_path: Path) -> None:
    """With tiny weights it runs to its end and writes what makes a figure worth something."""
    out = tmp_path / "wan.json"
    args = ("--quick", "--device", "cpu", "--latents", "3", "--rounds", "1", "--out", str(out))
    printed = run("wan_h200.py", *args)
    result = json.loads(out.read_text())
    assert {"command", "date", "versions", "cpu", "gpu", "filesystem"} <= set(result)
    size = result["sizes"]["32x48"]
    assert size["exact"] is True
    assert {"device alone", "raw, synchronous", "raw, streamvae"} <= set(size["clips"])
    assert {"mp4, streamvae", "mp4, what people do, veryfast"} <= set(size["clips"])
    assert len(size["clips"]["raw, streamvae"]["samples"]) == 1
    assert size["heartbeat"]["idle loop"]["beats"] > 0
    assert "rehearsal" in printed


def test_the_program_for_graphs_rehearses_anywhere(tmp_path: Path) -> None:
    """Without a card its parts run eagerly: frames are equal, and no promise of graphs is told."""
    out = tmp_path / "graphs.json"
    printed = run("graphs_h200.py", "--quick", "--device", "cpu", "--out", str(out))
    result = json.loads(out.read_text())
    assert result["warm up"]["step"].startswith("eager")
    assert all(one["unequal frames"] == 0 for one in result["exactness"].values())
    assert 0 < result["busy"]["by stats"] <= 1
    assert {"raw / device alone", "steady chunk / eager"} <= set(result["promises"])
    assert "idle share, steady chunks" not in result["promises"]
    assert "no graphs: eager" in printed
    assert "rehearsal" in printed


def test_the_program_for_precision_rehearses_anywhere(tmp_path: Path) -> None:
    """On random weights and on some that it trains, fast mode is held against float32 by chunks."""
    out = tmp_path / "precision.json"
    printed = run("precision_h200.py", "--quick", "--device", "cpu", "--out", str(out))
    cases = json.loads(out.read_text())["cases"]
    assert list(cases) == ["Wan 2.1, random, 16x24x3", "Wan 2.1, trained, 16x24x3"]
    for found in cases.values():
        assert 0 < found["own"]["error"] < 0.1
        assert found["fast"]["step"]
        assert len(found["fast"]["ratio of each chunk"]) == 3
        assert 0 < found["fast"]["ratio"] < 2
    assert "the whole scene: PSNR" in printed
    assert "rehearsal" in printed


def test_busy_share_of_steady_graphs(trace: ModuleType) -> None:
    """Between the first graph's first kernel and the last one's last, whatever lies around them."""

    def event(category: str, name: str, begin: float, length: float, **args: int) -> object:
        return {"cat": category, "name": name, "ts": begin, "dur": length, "args": args}

    events = [
        event("kernel", "of the first chunk", 10, 50, stream=7, correlation=1),
        event("cuda_runtime", "cudaGraphLaunch", 60, 5, correlation=2),
        event("cuda_runtime", "cudaGraphLaunch", 70, 5, correlation=3),
        event("kernel", "conv", 100, 40, stream=7, correlation=2),
        event("kernel", "norm", 142, 18, stream=7, correlation=2),
        event("kernel", "quantise", 160, 10, stream=7, correlation=4),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 171, 500, stream=20, correlation=5),
        event("gpu_memset", "Memset (Device)", 172, 8, stream=7, correlation=3),
        event("kernel", "conv", 180, 20, stream=7, correlation=3),
        event("kernel", "of somebody else", 90, 200, stream=9, correlation=6),
        event("kernel", "after all graphs", 210, 10, stream=7, correlation=8),
    ]
    result = trace.steady(events)
    assert result["graphs"] == 2
    assert result["pieces_of_work"] == 4
    assert result["window_ms"] == pytest.approx(0.100)
    assert result["share"] == pytest.approx(0.96)
    assert result["largest_gap_ms"] == pytest.approx(0.002)
    assert trace.steady(events[:1]) == {"graphs": 0}


def test_the_cpu_program_runs(tmp_path: Path) -> None:
    """It measures both loops and the first frame."""
    out = tmp_path / "cpu.json"
    run("cpu.py", "--quick", "--latents", "2", "--rounds", "1", "--out", str(out))
    result = json.loads(out.read_text())
    assert {"decode alone", "raw, synchronous", "raw, streamvae"} <= set(result["clips"])
    assert result["first frame"]["first frame on the host"]["median"] > 0


def test_the_program_for_sinks_runs(tmp_path: Path) -> None:
    """It measures sinks beside the least that writes the same, and the loop while they encode."""
    out = tmp_path / "sinks.json"
    run("sinks_cpu.py", "--quick", "--rounds", "1", "--out", str(out))
    result = json.loads(out.read_text())
    assert {"raw, bare", "raw, RawFile", "mp4, bare", "mp4, VideoFile"} <= set(result["clips"])
    assert result["heartbeat"]["beats"] > 0
    assert {"raw / bare", "mp4 / bare"} <= set(result["promises"])


def test_the_program_for_viewers_rehearses_anywhere(tmp_path: Path) -> None:
    """It compares the file of a job that is watched with that of one that is not, and counts."""
    out = tmp_path / "viewers.json"
    run("viewers_cpu.py", "--quick", "--latents", "1", "--rounds", "1", "--out", str(out))
    result = json.loads(out.read_text())
    assert result["promises"]["files that differ"]["measured"] == 0
    assert result["viewers"]["frames"]["frames"] == 1
    assert set(result["viewers"]) == {"frames", "jpeg", "mp4"}
    assert result["heartbeat"]["10 viewers"]["beats"] > 0


def test_the_program_for_services_rehearses_anywhere(tmp_path: Path) -> None:
    """Streams of one service are compared with themselves alone; a watched job is seen."""
    out = tmp_path / "service.json"
    args = ("--quick", "--device", "cpu", "--streams", "3", "--jobs", "wan", "--out", str(out))
    printed = run("service_h200.py", *args)
    result = json.loads(out.read_text())
    assert result["service"]["equal to alone"] is True
    assert [len(firsts) for firsts in result["service"]["first frames of all"]] == [3]
    assert min(result["jobs"]["wan"]["pictures"]) > 0
    assert {"rate of one / of all", "wan, watched / alone"} <= set(result["promises"])
    assert "rehearsal" in printed


def test_the_program_for_pictures_rehearses_anywhere(tmp_path: Path) -> None:
    """It compares bits where it streams one by one, and tells how far its sink had come."""
    out = tmp_path / "images.json"
    args = ("--quick", "--device", "cpu", "--items", "5", "--rounds", "1", "--out", str(out))
    printed = run("images_h200.py", *args)
    sizes = json.loads(out.read_text())["sizes"]
    assert sizes["5 of 4x6, 1 a chunk"]["exactness"]["floats equal"] is True
    assert sizes["5 of 4x6, 4 a chunk"]["exactness"]["greatest difference"] < 1e-4
    assert sizes["5 of 4x6, 4 a chunk"]["png sink"]["chunks"]["median"] == 2
    assert "rehearsal" in printed


def test_the_program_for_live_sound_runs(tmp_path: Path) -> None:
    """It tells the speed, what windows cost and how late blocks are, and sound that is right."""
    out = tmp_path / "sound.json"
    args = ("--quick", "--latents", "12", "--per-chunk", "4", "--rounds", "1", "--out", str(out))
    run("sound_cpu.py", *args)
    result = json.loads(out.read_text())
    assert result["difference to vae.decode"] < 2e-6
    row = result["per chunk"]["4"]
    assert row["times real time"] > 0
    assert row["latents decoded for one"] > 1
    assert row["in real time"]["first block"]["median"] > 0


def test_a_process_tells_its_peak() -> None:
    """One way of decoding, in a process of its own, prints the bytes it reached."""
    printed = run("cpu.py", "--quick", "--latents", "2", "--only", "stream")
    assert int(printed.split()[-1]) > 10 * 2**20


def test_a_process_tells_its_memory_by_length() -> None:
    """Clips of two lengths stream in one process, and it prints what it held meanwhile."""
    told = json.loads(run("cpu.py", "--quick", "--only", "lengths").splitlines()[-1])
    assert list(told) == ["before", "2 latents", "8 latents"]
    assert min(told.values()) > 10 * 2**20


def test_spans_are_united(trace: ModuleType) -> None:
    """Overlapping and touching work counts once."""
    spans = [(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (3.0, 4.0)]
    assert trace.merged(spans) == [(0.0, 4.0), (5.0, 6.0)]


def test_utilisation_of_a_trace(trace: ModuleType) -> None:
    """Work on the compute stream over the time from the first launch to the last copy's end."""

    def event(category: str, name: str, begin: float, length: float, **args: int) -> object:
        return {"cat": category, "name": name, "ts": begin, "dur": length, "args": args}

    events = [
        {"ph": "M", "name": "process_name"},
        event("cuda_runtime", "cudaLaunchKernel", 100, 5, correlation=1),
        event("cuda_driver", "cuLaunchKernelEx", 106, 5, correlation=2),
        event("cuda_runtime", "cudaLaunchKernel", 50, 5, correlation=9),
        event("kernel", "conv", 110, 40, stream=7, correlation=1),
        event("kernel", "norm", 150, 20, stream=7, correlation=2),
        event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 180, 10, stream=7, correlation=3),
        event("gpu_memset", "Memset (Device)", 185, 10, stream=7, correlation=4),
        event("kernel", "somebody else's", 60, 10, stream=13, correlation=9),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 195, 5, stream=20, correlation=5),
    ]
    result = trace.utilisation(events)
    assert result["window_ms"] == pytest.approx(0.100)
    assert result["union_ms"] == pytest.approx(0.075)
    assert result["share"] == pytest.approx(0.75)
    assert result["largest_gap_ms"] == pytest.approx(0.010)


def test_the_timelines_are_drawn_anywhere(tmp_path: Path) -> None:
    """Both ways are drawn on one scale, and what they say of themselves is written."""
    folders = ("--out", str(tmp_path), "--results", str(tmp_path))
    printed = run("timelines.py", "--device", "cpu", "--latents", "3", "--crop", "3", *folders)
    assert "limit: " in printed
    result = json.loads((tmp_path / "timelines_cpu.json").read_text())
    assert set(result["ways"]) == {"synchronous loop", "streamvae"}
    trace = json.loads((tmp_path / "timelines_cpu_trace.json").read_text())["traceEvents"]
    assert {event["pid"] for event in trace} == {1, 2}
    for end in (".png", ".html"):
        assert (tmp_path / f"timelines_cpu{end}").stat().st_size > 1000


def test_the_plot_of_graphs_is_drawn(tmp_path: Path) -> None:
    """From the committed results."""
    out = tmp_path / "graphs.png"
    run("graphs_plot.py", "--out", str(out))
    assert out.read_bytes().startswith(b"\x89PNG")
