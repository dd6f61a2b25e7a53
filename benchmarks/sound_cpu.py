"""Live sound without a GPU: latents come one by one, blocks of samples go out.

AutoencoderOobleck as Stable Audio has it (hop 2048, stereo, 44.1 kHz), with random weights of the
size that is embedded for video: 5.4 MB in float16, wide where there are few samples. For each
number of latents a chunk: seconds of sound a second when latents come as fast as they are taken;
when they come in real time, how long after its last latent a block can be played; and how many
latents are decoded for each one given, because every window is decoded with those around it.

    python benchmarks/sound_cpu.py
    python benchmarks/sound_cpu.py --quick         # tiny weights: a rehearsal
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import time
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import torch
from _measure import Json, alternate, facts, summary, write
from diffusers import AutoencoderOobleck

from streamvae import collect, stream_decode
from streamvae.codecs import codec_for

RESULTS = Path(__file__).parent / "results"
RATE = 44100


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny weights, few latents")
    parser.add_argument("--latents", type=int, help="each is 46 ms of sound")
    parser.add_argument("--per-chunk", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, help="samples of every figure")
    parser.add_argument("--out", type=Path, help="the JSON; in results/ by default")
    said = parser.parse_args()
    said.latents = said.latents or (16 if said.quick else 64)
    said.rounds = said.rounds or (1 if said.quick else 5)
    said.out = said.out or RESULTS / f"sound_cpu{'_quick' if said.quick else ''}.json"
    return said


def autoencoder(*, quick: bool) -> AutoencoderOobleck:
    """Random weights, seeded; the encoder is not used and is as small as it can be."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # diffusers still builds Oobleck with the old weight_norm, which says so.
        warnings.simplefilter("ignore", FutureWarning)
        vae = AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 4, 4, 8, 8],
            channel_multiples=[1, 2, 2, 2, 2] if quick else [1, 2, 4, 14, 48],
            decoder_channels=4 if quick else 12,
            decoder_input_channels=64,
            audio_channels=2,
            sampling_rate=RATE,
        )
    return vae.eval().requires_grad_(requires_grad=False)


class Bench:
    """One autoencoder, its latents (1, 64, T), and the one event loop of this run."""

    def __init__(self, vae: AutoencoderOobleck, z: torch.Tensor, runner: asyncio.Runner) -> None:
        self.vae = vae
        self.z = z
        self.runner = runner
        self.reach = codec_for(vae).reach  # type: ignore[attr-defined]
        self.seconds = self.reach.total(z.shape[2]) / RATE

    async def live(self, latent_seconds: float, given: list[float]) -> AsyncIterator[torch.Tensor]:
        """The latents one by one; notes when each was due, as a source that nobody slows has it.

        ``latent_seconds`` is 0 for latents as fast as they are taken.
        """
        began = time.perf_counter()
        for index in range(self.z.shape[2]):
            due = began + index * latent_seconds
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            given.append(due)
            yield self.z[:, :, index : index + 1]

    async def blocks(self, per_chunk: int, latent_seconds: float = 0.0) -> Json:
        """One stream: its wall time, its first block, and how late each block came."""
        given: list[float] = []
        late: list[float] = []
        first = 0.0
        began = time.perf_counter()
        live = self.live(latent_seconds, given)
        stream = stream_decode(live, self.vae, output="float32", latents_per_chunk=per_chunk)
        async with stream:
            async for chunk in stream.chunks():
                now = time.perf_counter()
                first = first or now - began
                # The block could be made when the latent had come that its last sample needs.
                needed = chunk.start + len(chunk) + self.reach.after
                at = min(-(-needed // self.reach.hop), len(given)) - 1
                chunk_end = min(-(-(at + 1) // per_chunk) * per_chunk, len(given)) - 1
                late.append(now - given[chunk_end])
        return {"wall": time.perf_counter() - began, "first": first, "late": late}

    def fast(self, per_chunk: int) -> float:
        """Wall seconds of a stream whose latents come as fast as they are taken."""
        wall: float = self.runner.run(self.blocks(per_chunk))["wall"]
        return wall

    def whole(self) -> float:
        """Wall seconds of ``vae.decode``, all at once."""
        began = time.perf_counter()
        with torch.no_grad():
            self.vae.decode(self.z)
        return time.perf_counter() - began

    def decoded(self, per_chunk: int) -> float:
        """Latents that go through the decoder for each one given."""
        seen: list[int] = []
        hook = self.vae.decoder.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].shape[2])
        )
        try:
            self.fast(per_chunk)
        finally:
            hook.remove()
        return sum(seen) / self.z.shape[2]

    def paced(self, per_chunk: int, rounds: int) -> Json:
        """Latents in real time: how long after its last latent a block is there, and the first."""
        runs = [
            self.runner.run(self.blocks(per_chunk, self.reach.hop / RATE)) for _ in range(rounds)
        ]
        return {
            "first block": summary([run["first"] for run in runs]),
            "block late, median": summary([sorted(r["late"])[len(r["late"]) // 2] for r in runs]),
            "block late, worst": summary([max(run["late"]) for run in runs]),
            # Blocks come later and later where decoding does not keep up.
            "last block late": summary([run["late"][-1] for run in runs]),
        }


def difference(bench: Bench) -> float:
    """Greatest difference to ``vae.decode``."""
    with torch.no_grad():
        whole = bench.vae.decode(bench.z).sample
    streamed = torch.as_tensor(collect(bench.z, bench.vae, output="float32", latents_per_chunk=8))
    return float((streamed.transpose(1, 2) - whole).abs().max())


def measured(bench: Bench, sizes: list[int], rounds: int) -> Json:
    """Every number of latents a chunk, side by side."""
    ways: dict[str, Callable[[], float]] = {
        str(size): functools.partial(bench.fast, size) for size in sizes
    }
    walls = alternate({"vae.decode": bench.whole} | ways, rounds)
    rows: Json = {}
    for name, wall in walls.items():
        rows[name] = {"wall": wall, "times real time": bench.seconds / wall["median"]}
        if name in ways:
            rows[name]["latents decoded for one"] = bench.decoded(int(name))
            rows[name]["in real time"] = bench.paced(int(name), rounds)
            rows[name]["keeps ahead"] = rows[name]["times real time"] > 1
    return rows


def report(rows: Json) -> None:
    """Print the table, as the documentation has it."""
    print("| latents a chunk | times real time | decoded for one | first block | block late |")
    print("| --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        if "in real time" not in row:
            print(f"| all, `{name}` | {row['times real time']:.2f} | 1 | | |")
            continue
        live = row["in real time"]
        first, late, worst = (
            live[key]["median"] * 1000
            for key in ("first block", "block late, median", "block late, worst")
        )
        print(
            f"| {name} | {row['times real time']:.2f} | {row['latents decoded for one']:.1f} "
            f"| {first:.0f} ms | {late:.0f} ms (worst {worst:.0f}) |"
        )


def main() -> None:
    """Measure, print, write."""
    said = options()
    vae = autoencoder(quick=said.quick)
    z = torch.randn(1, 64, said.latents, generator=torch.Generator().manual_seed(1))
    weights = sum(parameter.numel() for parameter in vae.decoder.parameters())
    result: Json = facts(torch.device("cpu")) | {
        "threads": torch.get_num_threads(),
        "what": "AutoencoderOobleck, hop 2048, stereo, 44.1 kHz, float32, random weights",
        "float16 bytes of the decoder": 2 * weights,
        "latents": said.latents,
        "rounds": said.rounds,
        "load before": os.getloadavg(),
    }
    with asyncio.Runner() as runner:
        bench = Bench(vae, z, runner)
        result["seconds of sound"] = bench.seconds
        result["reach in latents"] = bench.reach.latents
        result["difference to vae.decode"] = difference(bench)
        result["per chunk"] = measured(bench, said.per_chunk, said.rounds)
    result["load after"] = os.getloadavg()
    print(f"{bench.seconds:.2f} s of sound, {2 * weights / 1e6:.1f} MB, load {os.getloadavg()}")
    report(result["per chunk"])
    write(result, said.out)


if __name__ == "__main__":
    main()
