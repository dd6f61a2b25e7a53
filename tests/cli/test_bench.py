"""``streamvae bench``."""

import json
from pathlib import Path

import pytest

from .command import Invoke, one_error

SHORT = ("bench", "--quick", "--device", "cpu", "--only", "sizes")


def test_bench_prints_a_table_and_writes_all_samples(invoke: Invoke, vae: Path) -> None:
    """One part of a rehearsal: a table, a note that it is one, JSON, plots; and once more."""
    pytest.importorskip("matplotlib")
    for _ in range(2):
        result = invoke(*SHORT, "--rounds", 2, "--source", vae, "--plots", "plots")
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
    for said in ("time over size", "what people do", "streamvae, exact", "rehearsal"):
        assert said in result.stdout
    assert "wrote streamvae-bench.json\nwrote plots/sizes.png\n" in result.stdout
    told = json.loads(Path("streamvae-bench.json").read_text())
    assert (told["source"], told["rounds"]) == (str(vae), 2)
    assert all(len(row["seconds"]["samples"]) == 2 for row in told["sizes"])
    assert told["paths"] == told["memory"] == []
    assert told["notes"][-1].startswith("a rehearsal")


def test_the_size_and_length_of_the_paths(invoke: Invoke, vae: Path) -> None:
    """``--size`` and ``--latents`` are the clip's of every path."""
    args = ("bench", "--quick", "--device", "cpu", "--only", "paths", "--source", vae)
    result = invoke(*args, "--size", "16x32", "--latents", 2, "--dtype", "bfloat16", "-o", "o.json")
    assert result.exit_code == 0, result.output
    told = json.loads(Path("o.json").read_text())
    assert {(row["size"], row["latents"]) for row in told["paths"]} == {("16x32", 2)}
    assert {row["into"] for row in told["paths"]} == {"nothing", "raw", "mp4"}
    assert told["dtype"] == "bfloat16"


BAD = {
    "no size": (("--size", "720p"), "--size as in 720x1280"),
    "no folder": (("-o", "not/there.json"), "expected a folder"),
    "somebody else's file": (("-o", "z.safetensors"), "--overwrite"),
    "somebody else's JSON": (("-o", "list.json"), "--overwrite"),
    "no such source": (("--source", "./none"), "./none"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, invoke: Invoke) -> None:
    """What cannot be measured is said in one line before anything runs, with exit code 2."""
    Path("list.json").write_text("[]")
    args, said = BAD[case]
    assert said in one_error(invoke(*SHORT, *args), 2)
    assert Path("list.json").read_text() == "[]"
