"""What chunks launched as graphs promise on one NVIDIA card, every figure in one run.

The Wan 2.1 autoencoder as it is shipped, random weights, bfloat16, warm, batch 1, 720x1280, 21
latents, files without fsync. Prints each promise and whether it is kept, and writes all samples
with versions, clocks, command, machine and date as JSON, after each part.

    python benchmarks/graphs_h200.py                # about three minutes
    python benchmarks/graphs_h200.py --quick        # tiny weights, also without a GPU: a rehearsal
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import _graphs as graphs
import torch
from _loops import Case
from _measure import Json, clocks, facts, filesystem, promised, show, show_promises, write

from streamvae.codecs import codec_for
from streamvae.report._bench_clip import latents, random_wan

RESULTS = Path(__file__).parent / "results"
#: In the order that they are measured; exactness comes after cancels, as it is promised.
PARTS = ("warm up", "walls", "busy", "cancels", "exactness", "streams", "lengths")
#: Streams at once, and cancels.
STREAMS, CANCELS = 4, 20


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny weights, small and few frames")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--rounds", type=int, help="samples of every time")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument("--scratch", type=Path, help="folder for the files written")
    parser.add_argument("--out", type=Path, help="the JSON; in results/ by default")
    said = parser.parse_args()
    said.device = said.device or ("cuda" if torch.cuda.is_available() else "cpu")
    said.rounds = said.rounds or (1 if said.quick else 5)
    said.out = said.out or RESULTS / f"graphs_{'quick' if said.quick else 'h200'}.json"
    return said


class Run:
    """One run: its clips, and what was measured so far.

    Args:
        said: Options.
        scratch: An empty folder.
        runner: The run's event loop.
    """

    def __init__(self, said: argparse.Namespace, scratch: Path, runner: asyncio.Runner) -> None:
        self.quick, self.rounds = said.quick, said.rounds
        self._room = (scratch, runner)
        self.device = torch.empty(0, device=said.device).device
        self.cuda = self.device.type == "cuda"
        small = {"base_dim": 8, "num_res_blocks": 1} if said.quick else {}
        vae = random_wan(**small)
        torch.nn.Module.to(vae, self.device, torch.bfloat16 if self.cuda else torch.float32)
        self.vae = vae
        self.large = (32, 48) if said.quick else (720, 1280)
        self.medium = (32, 32) if said.quick else (480, 832)
        self.steps = 6 if said.quick else 21
        self.case = self.clip(self.large, self.steps)
        self.result: Json = {}

    def clip(self, size: tuple[int, int], steps: int) -> Case:
        """Latents for pictures of ``size``."""
        return Case(self.vae, latents(codec_for(self.vae), size, steps), *self._room)

    def warm_up(self) -> Json:
        """The first stream's costs, paid before it."""
        return graphs.warm_up(self.case)

    def walls(self) -> Json:
        """Whole clips."""
        short = self.clip(self.large, 5 if self.quick else 9)
        return graphs.walls(self.case, short, self.rounds)

    def busy(self) -> Json:
        """By the profiler; without a device there is nothing to see."""
        return graphs.busy(self.case) if self.cuda else {"by stats": self._stats().device_busy}

    def cancels(self) -> Json:
        """At random moments of a steady chunk."""
        chunk = graphs.period(self._stats())
        return graphs.cancels(self.case, 3 if self.quick else CANCELS, chunk)

    def exactness(self) -> Json:
        """Of a long stream and a short one at the same time."""
        long = self.clip(self.large, 4 * self.steps).z
        other = self.clip(self.large, 4 if self.quick else 9).z.flip(2)
        return graphs.exactness(self.case, long, other)

    def streams(self) -> Json:
        """Several that share a codec."""
        clip = self.clip(self.medium, 3 if self.quick else 13)
        return graphs.side_by_side(clip, STREAMS, 1 if self.quick else 3)

    def lengths(self) -> Json:
        """169 latents against 21."""
        return graphs.lengths(self.case, self.clip(self.large, 12 if self.quick else 169))

    def _stats(self) -> graphs.StreamStats:
        return graphs.raw_stats(self.case)


def kept(result: Json) -> dict[str, Json]:
    """Each promise that was measured: what came out, what was promised, and whether it holds."""
    rows: dict[str, tuple[float, float]] = {}
    if "warm up" in result:
        rows["warm-up at 720p, s"] = (result["warm up"]["first in the process, s"], 3.0)
    if "walls" in result:
        clips, chunk = result["walls"]["clips"], result["walls"]["steady chunk, s"]
        cpu = result["walls"]["launch thread, ms a steady chunk"]["graph"]["median"]
        rows["raw / device alone"] = (
            clips["raw"]["median"] / clips["device alone"]["median"],
            1.01,
        )
        rows["launch thread, ms a steady chunk"] = (cpu, 2.0)
        rows["steady chunk / eager"] = (
            chunk["graph"]["median"] / chunk["eager"]["median"],
            1.0,
        )
    if result.get("busy", {}).get("steady chunks", {}).get("graphs"):
        busy = result["busy"]
        share = busy["steady chunks"]["share"]
        rows["idle share, steady chunks"] = (1 - share, 0.005)
        rows["stats - profiler, points"] = (100 * abs(busy["by stats"] - share), 0.5)
    if "cancels" in result:
        idle = result["cancels"]["device idle after, chunks"]["max"]
        rows["cancel to idle, in chunks, worst"] = (idle, 1.0)
    if "exactness" in result:
        rows["frames unlike vae.decode's"] = (
            sum(one["unequal frames"] for one in result["exactness"].values()),
            0,
        )
    if "streams" in result:
        one, several = (each["median"] for each in result["streams"].values())
        rows["one stream's frames/s / four's"] = (one / several, 1 / 0.97)
    if "lengths" in result:
        rows |= _of_lengths(*result["lengths"].values())
    return promised(rows)


def _of_lengths(short: Json, long: Json) -> dict[str, tuple[float, float]]:
    rows: dict[str, tuple[float, float]] = {}
    for name in ("allocated", "reserved", "steady chunk, s"):
        if short[name]:
            rows[f"{name}: long / short - 1"] = (abs(long[name] / short[name] - 1), 0.02)
    return rows


def main() -> None:
    """Measure, print, write."""
    said = options()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=said.scratch) as scratch, asyncio.Runner() as runner:
        run = Run(said, Path(scratch), runner)
        result: Json = facts(run.device) | {
            "what": "AutoencoderKLWan, batch 1, " + ("tiny" if said.quick else "as shipped"),
            "dtype": str(run.vae.dtype),
            "size": run.large,
            "latents": run.steps,
            "rounds": said.rounds,
            "filesystem": filesystem(Path(scratch)),
            "clocks before": clocks(run.device),
        }
        for part in said.only:
            result[part] = getattr(run, part.replace(" ", "_"))()
            result[f"clocks after {part}"] = clocks(run.device)
            result["promises"] = kept(result)
            result["seconds so far"] = time.perf_counter() - began
            print(f"[{result['seconds so far']:.0f} s] {part}")
            write(result, said.out)
    if "walls" in result:
        show("whole clips", result["walls"]["clips"])
        show("a steady chunk", result["walls"]["steady chunk, s"])
    if "streams" in result:
        show("streams that share a codec", result["streams"], "frames/s")
    for part in ("warm up", "busy", "cancels", "exactness", "lengths"):
        for key, value in result.get(part, {}).items():
            print(f"  {part}: {key}: {value}")
    if result.get("warm up", {}).get("step", "graph") != "graph":
        print(f"  no graphs: {result['warm up']['step']}")
    show_promises(result["promises"], quick=said.quick)


if __name__ == "__main__":
    main()
