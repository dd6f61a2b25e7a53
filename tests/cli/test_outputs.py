"""What ``streamvae decode`` writes to: options of sinks, templates, standard output, resuming."""

import signal
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import streamvae
from tests import tiny
from tests.families.sound import ltx2_audio, ltx2_vocoder

from .command import LATENTS, Invoke, command, environment, one_error

#: Latents of LTX-2's sound, (B, C, T, F).
SOUND = torch.randn(1, 4, 9, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def expected(vae: Path) -> np.ndarray:
    """The frames (T, H, W, C) of the latents."""
    return np.asarray(streamvae.collect(LATENTS, str(vae)))[0]


def test_a_video_s_options(invoke: Invoke, vae: Path) -> None:
    """Codec, quality, preset and keyframes reach the video, and only outputs that take them."""
    told = ("--codec", "vp9", "--crf", 40, "--preset", 8, "--gop", 3, "--odd", "refuse")
    out = ("-o", "a.mp4", "-o", "a.npy")
    result = invoke("decode", "z.safetensors", "--vae", vae, "--fps", 8, *out, *told)
    assert result.exit_code == 0, result.output
    with av.open("a.mp4") as container:
        assert container.streams.video[0].codec_context.name in {"vp9", "libvpx-vp9"}
        keys = [packet.pts for packet in container.demux(video=0) if packet.is_keyframe]
    assert len(keys) == 3


BAD = {
    "nobody takes it": (("-o", "a.npy", "--crf", "3"), "expected an output that takes --crf"),
    "out of range": (("-o", "a.mp4", "--fps", "8", "--crf", "99"), "crf"),
    "another container's": (("-o", "a.mp4", "--fps", "8", "--codec", "ffv1"), "ffv1"),
    "a bad template": (("-o", "%x.png"), "expected a template"),
    "one name for pictures": (("-o", "a.png"), "expected a template with a number's place"),
    "pictures are there": (("-o", "there%d.png"), "pass --overwrite"),
    "no fps for a pipe": (("-o", "-"), "expected --fps with -"),
    "both ways": (("-o", "a.npy", "--overwrite", "--skip-existing"), "got both"),
    "a pipe cannot be resumed": (("-o", "-", "--fps", "8", "--resume"), "got -, which cannot"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_outputs_are_one_line(case: str, invoke: Invoke, vae: Path) -> None:
    """What cannot be written is said in one line, with exit code 2, and leaves nothing."""
    Path("there0.png").write_text("of value")
    args, said = BAD[case]
    before = sorted(Path().iterdir())
    assert said in one_error(invoke("decode", "z.safetensors", "--vae", vae, *args), 2)
    assert sorted(Path().iterdir()) == before


def test_pictures(invoke: Invoke, vae: Path, expected: np.ndarray) -> None:
    """A template gives a file for each frame."""
    result = invoke("decode", "z.safetensors", "--vae", vae, "-o", "frames/%03d.png")
    assert result.exit_code == 0, result.output
    assert "frames/%03d.png" in result.stdout
    for index, frame in enumerate(expected):
        with Image.open(f"frames/{index:03}.png") as picture:
            assert np.array_equal(np.asarray(picture), frame)


def test_standard_output_is_y4m_and_nothing_else(vae: Path, tmp_path: Path) -> None:
    """``-o -`` sends a video that other programs read; the summary goes to standard error."""
    args = command(
        "decode", "z.safetensors", "--vae", vae, "-o", "-", "--fps", 8, "--device", "cpu"
    )
    run = subprocess.run(args, env=environment(), capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(b"YUV4MPEG2 W48 H32 F8:1 ")
    (tmp_path / "a.y4m").write_bytes(run.stdout)
    with av.open(tmp_path / "a.y4m") as container:
        assert len(list(container.decode(video=0))) == 9
    assert b"9 frames of 48x32" in run.stderr


def test_nobody_reads_standard_output(vae: Path) -> None:
    """A reader that goes ends it without a word, as it ends other programs."""
    latents = torch.randn(1, 4, 30, 16, 24, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, "long.safetensors")
    args = command("decode", "long.safetensors", "--vae", vae, "-o", "-", "--fps", 8)
    with subprocess.Popen(
        args, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read().decode()
    assert (process.returncode, said) == (1, "")


def test_a_killed_decode_goes_on(invoke: Invoke, vae: Path, tmp_path: Path) -> None:
    """After SIGKILL ``--resume`` makes of every file what an undisturbed run would have made."""
    latents = torch.randn(1, 4, 40, 4, 6, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, "long.safetensors")
    out = ("-o", "a.raw", "-o", "a.npy", "-o", "f/%03d.png", "-o", "a.mp4", "--fps", 8)
    args = ("decode", "long.safetensors", "--vae", vae, *out, "--device", "cpu")
    with subprocess.Popen(command(*args), env=environment()) as process:
        while len(list(tmp_path.glob("f/*.png"))) < 20:
            with pytest.raises(subprocess.TimeoutExpired):  # else it has ended by itself
                process.wait(0.005)
        process.send_signal(signal.SIGKILL)
    assert Path("a.npy.partial.manifest.json").exists()
    assert "--resume" not in one_error(invoke(*args), 2)  # pictures are there
    save_file({"latents": latents + 1}, "long.safetensors")
    assert "other latents" in one_error(invoke(*args, "--resume"), 2)
    save_file({"latents": latents}, "long.safetensors")
    result = invoke(*args, "--resume")
    assert result.exit_code == 0, result.output
    expected = np.asarray(streamvae.collect(latents, str(vae)))[0]
    assert np.array_equal(np.load("a.npy"), expected)
    assert Path("a.raw").read_bytes() == expected.tobytes()
    with Image.open(f"f/{len(expected) - 1:03}.png") as last:
        assert np.array_equal(np.asarray(last), expected[-1])
    with av.open("a.mp4") as container:
        assert len(list(container.decode(video=0))) == len(expected)
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipeline's folder with a video's and a sound's autoencoder; latents of sound beside it."""
    tiny.wan21().save_pretrained(tmp_path / "pipe" / "vae")
    ltx2_audio().save_pretrained(tmp_path / "pipe" / "audio_vae")
    ltx2_vocoder(in_channels=32).save_pretrained(tmp_path / "pipe" / "vocoder")
    save_file({"latents": SOUND}, "sound.safetensors")
    return tmp_path / "pipe"


def test_a_video_with_sound(invoke: Invoke, pipe: Path, expected: np.ndarray) -> None:
    """``--audio`` puts both into a video; files of sound get the sound, others the pictures."""
    out = ("-o", "a.mp4", "-o", "a.wav", "-o", "a.npy")
    args = ("decode", "z.safetensors", "--vae", pipe, "--audio", "sound.safetensors", *out)
    result = invoke(*args, "--fps", 8)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("9 frames of 48x32 in ")
    assert np.array_equal(np.load("a.npy"), expected)
    with av.open("a.mp4") as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}
        assert len(list(container.decode(video=0))) == 9
    with av.open("a.wav") as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    decoded = np.asarray(streamvae.collect(SOUND, (ltx2_audio(), ltx2_vocoder(in_channels=32))))
    assert samples == decoded.shape[1]


BAD_SOUND = {
    "nowhere for it": (("-o", "a.npy"), "expected an output that keeps sound for --audio"),
    "two videos": (("z.safetensors", "-o", "{stem}.mp4"), "expected one video for --audio, got 2"),
    "no latents": (("--audio", "none.pt", "-o", "a.mp4"), "found none at"),
}


@pytest.mark.parametrize("case", BAD_SOUND)
def test_bad_sound_is_one_line(case: str, invoke: Invoke, pipe: Path) -> None:
    """Sound that cannot be kept or found is said in one line, with exit code 2."""
    save_file({"latents": LATENTS}, "y.safetensors")
    args, said = BAD_SOUND[case]
    args = tuple(arg.replace("z.saf", "y.saf") for arg in args)
    given = ("z.safetensors", "--vae", pipe, "--audio", "sound.safetensors", "--fps", 8)
    assert said in one_error(invoke("decode", *given, *args), 2)


def test_sound_without_a_decoder(invoke: Invoke, vae: Path) -> None:
    """Without a pipeline that has sound there is nothing to decode it with."""
    save_file({"latents": SOUND}, "sound.safetensors")
    given = ("z.safetensors", "--audio", "sound.safetensors", "--fps", 8, "-o", "a.mp4")
    assert "expected --audio-vae" in one_error(invoke("decode", *given), 2)
    assert "'audio_vae'" in one_error(invoke("decode", *given, "--vae", vae), 2)
    lonely = ("z.safetensors", "--vae", vae, "--audio-vae", vae, "--fps", 8, "-o", "a.mp4")
    assert "expected --audio with --audio-vae" in one_error(invoke("decode", *lonely), 2)
