"""``streamvae decode``, one file of latents at a time."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import streamvae
from streamvae.models import demo_latents
from tests import tiny

from .command import LATENTS, Invoke, command, environment, one_error


def test_decode_writes_every_file_side_by_side(invoke: Invoke, vae: Path) -> None:
    """One decode fills several files with the same frames, and sums up what it did."""
    out = ("-o", "a.npy", "-o", "a.raw", "-o", "a.mp4")
    result = invoke("decode", "z.safetensors", "--vae", vae, "--fps", 8, *out)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert result.stdout.startswith("9 frames of 48x32 in ")
    expected = streamvae.collect(LATENTS, str(vae))
    assert np.array_equal(np.load("a.npy"), np.asarray(expected)[0])
    assert Path("a.raw").read_bytes() == np.asarray(expected).tobytes()
    assert json.loads(Path("a.raw.json").read_text())["fps"] == 8
    assert Path("a.mp4").stat().st_size > 0


def test_warmup_decodes_before(invoke: Invoke, vae: Path) -> None:
    """``--warmup`` decodes once before, says so, and changes nothing; latents must be right."""
    result = invoke("decode", "z.safetensors", "--vae", vae, "--warmup", "-o", "a.npy")
    assert result.exit_code == 0, result.output
    first, second, *_ = result.stdout.splitlines()
    assert first.startswith("warm after ")
    assert second.startswith("9 frames")
    assert np.array_equal(np.load("a.npy"), np.asarray(streamvae.collect(LATENTS, str(vae)))[0])
    save_file({"latents": torch.ones(1, 3, 2, 4, 6)}, "bad.safetensors")
    result = invoke("decode", "bad.safetensors", "--vae", vae, "--warmup", "-o", "b.npy")
    assert "expected" in one_error(result, 2)
    both = ("bad.safetensors", "z.safetensors")
    result = invoke("decode", *both, "--vae", vae, "--warmup", "-o", "c{stem}.npy")
    assert result.exit_code == 1
    assert Path("cz.npy").exists()


def test_float32_keeps_the_decoder_s_values(invoke: Invoke, vae: Path) -> None:
    """``--float32`` gives what vae.decode gives, bit for bit."""
    result = invoke("decode", "z.safetensors", "--vae", vae, "-o", "a.npy", "--float32", "-q")
    assert (result.exit_code, result.output) == (0, "")
    with torch.inference_mode():
        whole = tiny.wan21().decode(LATENTS, return_dict=False)[0]
    assert torch.equal(torch.from_numpy(np.load("a.npy")), whole[0].permute(1, 2, 3, 0))


def test_weights_can_be_cast(invoke: Invoke, vae: Path) -> None:
    """``--dtype`` decodes with weights of that dtype."""
    result = invoke(
        "decode", "z.safetensors", "--vae", vae, "-o", "a.npy", "--dtype", "bfloat16", "-q"
    )
    assert result.exit_code == 0, result.output
    expected = streamvae.collect(LATENTS, tiny.wan21().to(torch.bfloat16))
    assert np.array_equal(np.load("a.npy"), np.asarray(expected)[0])


def test_without_a_vae_the_embedded_one_decodes(invoke: Invoke) -> None:
    """``decode`` without ``--vae`` takes latents of the embedded autoencoder."""
    latents = demo_latents()[0][:, :, :1, :8, :8]
    save_file({"latents": latents.contiguous()}, "demo.safetensors")
    result = invoke("decode", "demo.safetensors", "-o", "a.npy", "-q", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert np.array_equal(np.load("a.npy"), np.asarray(streamvae.collect(latents))[0])


BAD = {
    "no such latents": (("none.safetensors", "-o", "a.npy"), "found none at"),
    "latents by another suffix": (("z.txt", "-o", "a.npy"), "expected a file of latents"),
    "no latents in the file": (("text.safetensors", "-o", "a.npy"), "to be a .safetensors file"),
    "no output": (("z.safetensors",), "--out"),
    "unknown output": (("z.safetensors", "-o", "a.gif"), "expected a path ending in"),
    "no fps for a video": (("z.safetensors", "-o", "a.mp4"), "expected --fps"),
    "bad fps": (("z.safetensors", "-o", "a.mp4", "--fps", "0"), "fps"),
    "output is there": (("z.safetensors", "-o", "there.npy"), "pass --overwrite"),
    "output twice": (("z.safetensors", "-o", "a.npy", "-o", "a.npy"), "more than once"),
    "no such folder": (("z.safetensors", "-o", "no/a.npy"), "expected a writable directory"),
    "latents of another vae": (("wide.safetensors", "-o", "a.npy"), "C = 4"),
    "no such vae": (("z.safetensors", "-o", "a.npy", "--vae", "./not/there"), "./not/there"),
    "latents before weights": (
        ("text.safetensors", "-o", "a.npy", "--vae", "./not/there"),
        "to be a .safetensors file",
    ),
    "unknown device": (("z.safetensors", "-o", "a.npy", "--device", "tpu9"), "--device"),
    "absent device": (("z.safetensors", "-o", "a.npy", "--device", "cuda:99"), "usable device"),
    "inexact chunks": (("z.safetensors", "-o", "a.npy", "--latents-per-chunk", "2"), "mode='fast'"),
    "floats in a video": (("z.safetensors", "-o", "a.mp4", "--fps", "8", "--float32"), "8 bits"),
    "unknown option": (("z.safetensors", "-o", "a.npy", "--speed", "9"), "--speed"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, invoke: Invoke, vae: Path) -> None:
    """What cannot be done is said in one line, with exit code 2, and leaves nothing."""
    args, said = BAD[case]
    Path("z.txt").write_text("no latents")
    Path("text.safetensors").write_text("no latents")
    Path("there.npy").write_text("of value")
    save_file({"latents": LATENTS.repeat(1, 2, 1, 1, 1)}, "wide.safetensors")
    before = sorted(Path().iterdir())
    given = args if "--vae" in args else (*args, "--vae", vae)
    assert said in one_error(invoke("decode", *given), 2)
    assert sorted(Path().iterdir()) == before
    assert Path("there.npy").read_text() == "of value"


def test_files_are_replaced_when_told(invoke: Invoke, vae: Path) -> None:
    """``--overwrite`` replaces a file that is there."""
    Path("a.npy").write_text("old")
    result = invoke("decode", "z.safetensors", "--vae", vae, "-o", "a.npy", "--overwrite")
    assert result.exit_code == 0, result.output
    assert np.load("a.npy").shape == (9, 32, 48, 3)


def test_frames_before_bad_latents_are_kept(invoke: Invoke, vae: Path) -> None:
    """NaN in a later latent fails the stream; the line says where the frames before it are."""
    latents = LATENTS.clone()
    latents[:, :, 2] = torch.nan
    save_file({"latents": latents}, "nan.safetensors")
    line = one_error(invoke("decode", "nan.safetensors", "--vae", vae, "-o", "a.npy"), 1)
    assert "NaN or infinity in chunk 2" in line
    assert "5 frames kept in" in line
    assert "a.npy.partial" in line
    assert not Path("a.npy").exists()
    expected = np.asarray(streamvae.collect(LATENTS, str(vae)))[0, :5]
    assert np.array_equal(np.load("a.npy.partial"), expected)


@pytest.fixture
def _default_sigint() -> Iterator[None]:
    """Started in the background by a shell, a process ignores SIGINT, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_default_sigint")
def test_ctrl_c_keeps_what_there_is(vae: Path, tmp_path: Path) -> None:
    """ctrl-C ends with 130 and one line that says where the frames so far are; they are right."""
    latents = torch.randn(1, 4, 900, 4, 4, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, "long.safetensors")
    partial = tmp_path / "a.raw.partial"
    args = command("decode", "long.safetensors", "--vae", vae, "-o", "a.raw", "--device", "cpu")
    with subprocess.Popen(
        args, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not (partial.exists() and partial.stat().st_size):
            with pytest.raises(subprocess.TimeoutExpired):  # else it has ended by itself
                process.wait(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (130, "")
    (line,) = stderr.splitlines()
    shape = json.loads((tmp_path / "a.raw.partial.json").read_text())["shape"]
    assert line == f"aborted: {shape[0]} frames kept in {partial}"
    frames = np.fromfile(partial, np.uint8).reshape(shape)
    expected = np.asarray(streamvae.collect(latents[:, :, :3], str(vae)))[0]
    count = min(len(frames), 9)
    assert count > 0
    assert np.array_equal(frames[:count], expected[:count])


def test_programs_get_the_summary_and_nothing_else(vae: Path) -> None:
    """Without a terminal there is no bar and no colour: two lines on standard output."""
    args = command("decode", "z.safetensors", "--vae", vae, "-o", "a.npy", "--device", "cpu")
    run = subprocess.run(args, env=environment(), capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert len(run.stdout.splitlines()) == 2
    assert "\x1b" not in run.stdout


def test_people_get_a_bar(vae: Path) -> None:
    """On a terminal a bar moves on standard error."""
    args = command("decode", "z.safetensors", "--vae", vae, "-o", "a.npy", "--device", "cpu")
    ours, theirs = pty.openpty()
    try:
        environ = {**environment(), "TERM": "xterm", "COLUMNS": "100"}
        run = subprocess.run(
            args, env=environ, stdout=subprocess.PIPE, stderr=theirs, text=True, check=False
        )
        shown = os.read(ours, 65536).decode(errors="replace")
    finally:
        os.close(ours)
        os.close(theirs)
    assert run.returncode == 0
    assert "z.safetensors" in shown
    assert len(run.stdout.splitlines()) == 2
