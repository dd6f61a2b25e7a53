"""``streamvae verify``, as people and programs use it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from streamvae import verify
from streamvae._terminal import VERDICTS
from streamvae.cli import app
from tests import tiny
from tests.families.causal import mochi
from tests.families.lookahead import ltx_091
from tests.families.windows import allegro

from .command import environment, one_error

LATENTS = torch.randn(1, 4, 3, 2, 3, generator=torch.Generator().manual_seed(0))

Invoke = Callable[..., Result]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.wan21().save_pretrained("vae")
    save_file({"latents": LATENTS}, "z.safetensors")


@pytest.fixture
def invoke() -> Invoke:
    """Run the command in this process, on the CPU."""
    runner = CliRunner()

    def run(*args: object) -> Result:
        return runner.invoke(app, ["verify", "--device", "cpu", *(str(arg) for arg in args)])

    return run


def test_equal_is_0(invoke: Invoke) -> None:
    """Of equal frames the command says all that the function does, and ends with 0."""
    result = invoke("vae", "z.safetensors")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{verify(tiny.wan21(), LATENTS)}\n"
    assert result.stdout.startswith("equal: AutoencoderKLWan, float32 on cpu\n")


def test_the_exit_code_says_the_verdict(invoke: Invoke) -> None:
    """Each verdict has an exit code of its own, which the first line explains."""
    assert VERDICTS == {"equal": 0, "accepted": 0, "within rounding": 3, "different": 1}
    for make in (mochi, ltx_091):
        make().save_pretrained("other")
        result = invoke("other")
        assert result.stderr == ""  # notes are part of the result
        assert VERDICTS[result.stdout.partition(":")[0]] == result.exit_code != 1


@pytest.mark.parametrize("source", [(), ("embedded",)])
def test_the_embedded_one_by_default(source: tuple[str, ...], invoke: Invoke) -> None:
    """Without a source, or by its name, the embedded autoencoder decodes noise."""
    result = invoke(*source, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "(noise, seed 3)" in result.stdout


def test_fast_mode_prints_its_errors(invoke: Invoke) -> None:
    """With ``--mode fast`` errors against float32 are printed, and a ratio."""
    args = ("vae", "z.safetensors", "--mode", "fast", "--dtype", "bfloat16")
    result = invoke(*args, "--reference-device", "cpu")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "\nfast mode: " in result.stdout
    assert "\nerror against float32 on cpu: " in result.stdout
    assert "(accepted: at most 1.02 is)\n" in result.stdout
    assert "\nratio over 3 chunks: " in result.stdout


def test_quiet_leaves_the_exit_code(invoke: Invoke) -> None:
    """``--quiet`` prints nothing."""
    result = invoke("vae", "-q", "--dtype", "bfloat16")
    assert (result.exit_code, result.output) == (0, "")


def test_tiling(invoke: Invoke) -> None:
    """``--tiling`` is for those that diffusers decodes in tiles only, or whose tiles are meant."""
    vae = allegro()
    vae.save_pretrained("allegro")
    assert "enable_tiling()" in one_error(invoke("allegro"), 2)
    assert invoke("vae", "z.safetensors", "--tiling").exit_code == 0


BAD = {
    "no such latents": (("vae", "none.safetensors"), "found none at"),
    "latents by another suffix": (("no vae either", "z.txt"), "expected a file of latents"),
    "no latents in the file": (("no vae either", "z.npy"), "to be a .npy file"),
    "no such vae": (("./not/there",), "./not/there"),
    "latents of another vae": (("vae", "wide.safetensors"), "C = 4"),
    "inexact chunks": (("vae", "z.safetensors", "--latents-per-chunk", "2"), "mode='fast'"),
    "no such device": (("vae", "--mode", "fast", "--reference-device", "nowhere"), "'nowhere'"),
    "unknown mode": (("vae", "--mode", "quick"), "--mode"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, invoke: Invoke) -> None:
    """What cannot be compared is said in one line, with exit code 2."""
    args, said = BAD[case]
    Path("z.txt").write_text("no latents")
    Path("z.npy").write_text("no latents")
    save_file({"latents": LATENTS.repeat(1, 2, 1, 1, 1)}, "wide.safetensors")
    assert said in one_error(invoke(*args), 2)


def test_programs_get_the_result_and_nothing_else() -> None:
    """Without a terminal nothing is printed but the result, without colour."""
    args = (sys.executable, "-m", "streamvae", "verify", "vae", "z.safetensors")
    run = subprocess.run(args, env=environment(), capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "\x1b" not in run.stdout
