"""``streamvae decode`` of several files of latents."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import streamvae

from .command import LATENTS, Invoke, one_error


@pytest.fixture(autouse=True)
def _three_files() -> None:
    Path("z").mkdir()
    for number, name in enumerate("abc"):
        save_file({"latents": LATENTS[:, :, : number + 1].contiguous()}, f"z/{name}.safetensors")


def length(name: str) -> int:
    """Frames of an array."""
    return len(np.load(name))


def test_each_has_its_own_output(invoke: Invoke, vae: Path) -> None:
    """``{stem}`` stands for the latents' name; each is what it is alone, and said in a line."""
    files = sorted(Path("z").iterdir())
    result = invoke("decode", *files, "--vae", vae, "-o", "{stem}.npy", "-o", "{stem}_%d.png")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert [length(f"{name}.npy") for name in "abc"] == [1, 5, 9]
    assert len(list(Path().glob("?_*.png"))) == 15
    expected = np.asarray(streamvae.collect(LATENTS, str(vae)))[0]
    assert np.array_equal(np.load("c.npy"), expected)
    lines = result.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["1", "5", "9"]
    assert lines[2].endswith(": c.npy, c_%d.png")


def test_failures_are_listed_at_the_end(invoke: Invoke, vae: Path) -> None:
    """One that fails keeps no other from being decoded; it is named, and the exit code is 1."""
    nan = LATENTS.clone()
    nan[:, :, 2] = torch.nan
    save_file({"latents": nan}, "z/b.safetensors")
    Path("z/broken.safetensors").write_text("no latents")
    Path("c.npy").write_text("of value")
    result = invoke("decode", *sorted(Path("z").iterdir()), "--vae", vae, "-o", "{stem}.npy", "-q")
    assert (result.exit_code, result.stdout) == (1, "")
    said = result.stderr.splitlines()
    assert said[0] == "error: 3 of 4 failed:"
    assert said[1].startswith("  z/b.safetensors: expected finite values")
    assert "5 frames kept in" in said[1]
    assert said[2].startswith("  z/broken.safetensors: expected ")
    assert said[3] == "  z/c.safetensors: c.npy exists already; pass --overwrite to replace it"
    assert len(said) == 4
    assert length("a.npy") == 1
    assert Path("c.npy").read_text() == "of value"


def test_what_is_there_can_be_left_alone(invoke: Invoke, vae: Path) -> None:
    """``--skip-existing`` decodes what is missing, output by output."""
    Path("a.npy").write_text("of value")
    Path("b.npy").write_text("of value")
    Path("b.raw").write_text("of value")
    files, out = sorted(Path("z").iterdir()), ("-o", "{stem}.npy", "-o", "{stem}.raw")
    result = invoke("decode", *files, "--vae", vae, *out, "--skip-existing")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert result.stdout.splitlines()[-1] == "1 skipped, there already"
    assert Path("a.npy").read_text() == Path("b.raw").read_text() == "of value"
    assert Path("a.raw").stat().st_size == 32 * 48 * 3
    assert length("c.npy") == 9


def test_a_batch_goes_on(invoke: Invoke, vae: Path) -> None:
    """With ``--resume --skip-existing`` the same command finishes what an earlier one began."""
    nan = LATENTS.clone()
    nan[:, :, 2] = torch.nan
    save_file({"latents": nan}, "z/c.safetensors")
    args = ("decode", *sorted(Path("z").iterdir()), "--vae", vae, "-o", "{stem}.npy")
    assert invoke(*args).exit_code == 1
    assert length("c.npy.partial") == 5
    result = invoke(*args, "--resume", "--skip-existing", "--nonfinite", "warn")
    assert result.exit_code == 0, result.output
    assert "2 skipped" in result.stdout
    assert length("c.npy") == 9


BAD = {
    "one output for all": (
        ("z/a.safetensors", "z/b.safetensors", "-o", "a.npy"),
        "expected {stem}",
    ),
    "one name for two": (
        ("z/a.safetensors", "a.safetensors", "-o", "{stem}.npy"),
        "with different names, got z/a.safetensors and a.safetensors",
    ),
    "several into a pipe": (
        ("z/a.safetensors", "z/b.safetensors", "-o", "-", "--fps", "8"),
        "expected {stem}",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_batches_are_one_line(case: str, invoke: Invoke, vae: Path) -> None:
    """What cannot be meant is said in one line, with exit code 2, before anything is loaded."""
    args, said = BAD[case]
    assert said in one_error(invoke("decode", *args, "--vae", "./not/there"), 2)
    assert not list(Path().glob("*.npy"))
