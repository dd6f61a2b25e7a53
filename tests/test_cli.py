"""The command ``streamvae``, as people and programs use it."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

import streamvae
from streamvae._demo import ACROSS, COLUMNS, contact_sheet, exactness, is_exact
from streamvae._whole import Whole
from streamvae.cli import app
from streamvae.models import demo_latents
from tests import tiny

ROOT = Path(__file__).parent.parent
LATENTS = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(0))

Invoke = Callable[..., Result]


@pytest.fixture(scope="session")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.1 autoencoder in diffusers' format."""
    folder = tmp_path_factory.mktemp("vae")
    tiny.wan21().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"latents": LATENTS}, "z.safetensors")


@pytest.fixture
def invoke() -> Invoke:
    """Run the command in this process."""
    runner = CliRunner()

    def run(*args: object) -> Result:
        return runner.invoke(app, [str(arg) for arg in args])

    return run


def command(*args: object) -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-m", "streamvae", *map(str, args)]


def environment() -> dict[str, str]:
    """This very package, and no GPU."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def one_error(result: Result, code: int) -> str:
    """The one line a failed command said."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_version(invoke: Invoke) -> None:
    """``--version`` says which streamvae this is."""
    assert invoke("--version").stdout == f"streamvae {streamvae.__version__}\n"


def test_without_arguments_it_explains_itself(invoke: Invoke) -> None:
    """Alone, the command shows its help and succeeds."""
    result = invoke()
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("demo", "decode", "info"))


def test_info_says_what_there_is(invoke: Invoke) -> None:
    """``info`` names versions, devices, families and sinks."""
    result = invoke("info")
    assert result.exit_code == 0
    for word in (torch.__version__, "diffusers", "cpu", "AutoencoderKLWan", ".mp4", ".raw"):
        assert word in result.stdout


def test_info_says_what_latents_would_give(invoke: Invoke, vae: Path) -> None:
    """``info LATENTS --vae DIR`` knows frames, size and chunks without decoding."""
    stdout = invoke("info", "z.safetensors", "--vae", vae).stdout
    assert "1, 4, 3, 4, 6" in stdout
    assert "gives: 9 frames of 48x32" in stdout
    assert "chunks: 3, of 1 latent(s) first" in stdout
    assert "decoder state: " in stdout
    assert "on the host, in chunks: " in stdout


def test_info_refuses_latents_of_another_vae(invoke: Invoke) -> None:
    """``info`` says so when latents are not of the autoencoder's shape."""
    result = invoke("info", "z.safetensors")
    assert result.exit_code == 2
    assert "expected latents (B, C, T, H, W)" in result.stderr


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
    "unknown output": (("z.safetensors", "-o", "a.gif"), "expected a path ending in .mp4"),
    "no fps for a video": (("z.safetensors", "-o", "a.mp4"), "expected --fps"),
    "bad fps": (("z.safetensors", "-o", "a.mp4", "--fps", "0"), "fps"),
    "output is there": (("z.safetensors", "-o", "there.npy"), "pass --overwrite"),
    "output twice": (("z.safetensors", "-o", "a.npy", "-o", "a.npy"), "more than once"),
    "no such folder": (("z.safetensors", "-o", "no/a.npy"), "expected a writable directory"),
    "latents of another vae": (("wide.safetensors", "-o", "a.npy"), "C = 4"),
    "no such vae": (("z.safetensors", "-o", "a.npy", "--vae", "./not/there"), "./not/there"),
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


def test_an_unknown_command_is_one_line(invoke: Invoke) -> None:
    """A mistyped command is named, and the right one suggested."""
    assert "decode" in one_error(invoke("decod"), 2)


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


def test_traceback_on_demand(invoke: Invoke) -> None:
    """``--traceback`` shows where an error came from, and the line after it."""
    result = invoke("--traceback", "decode", "none.safetensors", "-o", "a.npy")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


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


def test_demo_leaves_a_film_and_a_picture_and_compares(invoke: Invoke) -> None:
    """The demo writes both files, finds every frame equal to vae.decode's, and may run again."""
    for _ in range(2):
        result = invoke("demo", "--seconds", "0.04", "--device", "cpu", "--out", "here")
        assert result.exit_code == 0, result.output
        assert "all 1 frames equal" in result.stdout
        assert "the first 1 frames equal" in result.stdout
        for word in ("first frame after", "frames a second", "memory added", "limit: "):
            assert word in result.stdout
    assert Path("here/demo.mp4").stat().st_size > 0
    with Image.open("here/demo.png") as sheet:
        assert sheet.width == COLUMNS * ACROSS
    assert sorted(path.name for path in Path("here").iterdir()) == ["demo.mp4", "demo.png"]


def test_the_demo_replaces_only_its_own(invoke: Invoke) -> None:
    """A demo.mp4 that no demo wrote is refused before anything is decoded."""
    Path("demo.mp4").write_text("of value")
    assert "--overwrite" in one_error(invoke("demo", "--seconds", "0.04"), 2)
    assert Path("demo.mp4").read_text() == "of value"


def test_contact_sheet_shows_first_to_last() -> None:
    """Twelve pictures lie in three rows, the first frame first, the last one last."""
    frames = np.zeros((97, 64, 112, 3), np.uint8)
    frames[:] = np.arange(97, dtype=np.uint8)[:, None, None, None]
    sheet = np.asarray(contact_sheet(frames, 24.0))
    assert sheet.shape == (3 * 128, 4 * ACROSS, 3)
    assert (sheet[127, 0] == 0).all()
    assert (sheet[-1, -1] == 96).all()


def test_unequal_frames_are_told() -> None:
    """The demo does not call a stream exact that is not."""
    equal = Whole(1.0, 1, frames=9, equal=9, float_frames=9, float_equal=True)
    assert is_exact(equal, 9)
    assert not is_exact(equal, 5)
    wrong = Whole(1.0, 1, frames=9, equal=8, float_frames=9, float_equal=False)
    assert not is_exact(wrong, 9)
    assert exactness(wrong, 9).startswith("NO: 8 of 9")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_peak_memory_is_what_was_added() -> None:
    """Memory that was used and given back counts; what was there before does not."""
    # In a process of its own, as it is used: what other tests leave is given back at any moment.
    code = (
        "import torch\n"
        "from streamvae._whole import PeakMemory\n"
        "there = torch.ones(32 * 2**20, dtype=torch.uint8)\n"
        "peak = PeakMemory('cpu')\n"
        "torch.ones(64 * 2**20, dtype=torch.uint8)\n"
        "print(peak.above())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    # The kernel counts in batches of pages.
    assert 60 * 2**20 <= int(done.stdout) < 128 * 2**20
