"""``--timeline`` and ``--report``."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.families.sound import ltx2_audio, ltx2_vocoder

from .command import LATENTS, Invoke, one_error
from .test_outputs import SOUND


def test_a_decode_draws_and_tells(invoke: Invoke, vae: Path) -> None:
    """A timeline of every chunk, and lines that end with the limit and what would help."""
    args = ("decode", "z.safetensors", "--vae", vae, "-o", "a.npy", "--report")
    result = invoke(*args, "--timeline", "t.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "timeline: t.json" in lines
    for begin in ("between chunks: ", "launch thread, a chunk: ", "decode ", "limit: ", "help: "):
        assert any(line.startswith(begin) for line in lines), begin
    pieces = [one for one in json.loads(Path("t.json").read_text())["traceEvents"] if "dur" in one]
    assert {one["cat"] for one in pieces} >= {"compute", "copy", "persist"}


def test_quiet_draws_without_a_word(invoke: Invoke, vae: Path) -> None:
    """``--quiet`` keeps to itself where the timeline went; standard output stays the video's."""
    args = ("decode", "z.safetensors", "--vae", vae, "--timeline", "t.html")
    result = invoke(*args, "-o", "a.npy", "-q")
    assert (result.exit_code, result.output) == (0, "")
    assert Path("t.html").read_text().startswith("<!doctype html>")
    result = invoke(*args, "-o", "-", "--fps", 8, "--report")
    assert result.exit_code == 0
    assert result.stdout_bytes.startswith(b"YUV4MPEG2")
    assert "limit: " in result.stderr


def test_several_latents_have_a_timeline_each(invoke: Invoke, vae: Path) -> None:
    """``{stem}`` stands for the latents' name, and is asked for."""
    save_file({"latents": LATENTS}, "y.safetensors")
    args = ("decode", "y.safetensors", "z.safetensors", "--vae", vae, "-o", "{stem}.npy", "-q")
    assert "expected {stem} in the name of --timeline" in one_error(
        invoke(*args, "--timeline", "t.html"), 2
    )
    assert not Path("y.npy").exists()
    result = invoke(*args, "--timeline", "{stem}.html")
    assert (result.exit_code, result.output) == (0, "")
    assert Path("y.html").exists()
    assert Path("z.html").exists()


@pytest.mark.parametrize("name", ["t.svg", "nowhere/t.png"])
def test_what_cannot_be_drawn_is_refused_before(invoke: Invoke, vae: Path, name: str) -> None:
    """Nothing is decoded for a timeline that cannot be written."""
    args = ("decode", "z.safetensors", "--vae", vae, "-o", "a.npy", "--timeline", name)
    one_error(invoke(*args), 2)
    assert not Path("a.npy").exists()


def test_video_with_sound(invoke: Invoke, vae: Path, tmp_path: Path) -> None:
    """Both streams are drawn and told."""
    ltx2_audio().save_pretrained(tmp_path / "pipe" / "audio_vae")
    ltx2_vocoder(in_channels=32).save_pretrained(tmp_path / "pipe" / "vocoder")
    save_file({"latents": SOUND}, "sound.safetensors")
    args = ("decode", "z.safetensors", "--vae", vae, "--audio", "sound.safetensors", "--fps", 8)
    more = ("--audio-vae", tmp_path / "pipe", "-o", "a.mp4", "--timeline", "t.html", "--report")
    result = invoke(*args, *more)
    assert result.exit_code == 0, result.output
    assert [line for line in result.stdout.splitlines() if line in {"video:", "sound:"}]
    assert "<h2>sound: " in Path("t.html").read_text()


def test_the_demo_draws_and_tells(invoke: Invoke) -> None:
    """The demo has both options."""
    result = invoke(
        "demo", "--seconds", "0.04", "--device", "cpu", "--report", "--timeline", "t.png"
    )
    assert result.exit_code == 0, result.output
    assert Path("t.png").stat().st_size > 1000
    assert "timeline: t.png" in result.stdout
    assert "help: " in result.stdout
