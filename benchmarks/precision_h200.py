"""How far ``mode="fast"`` is from float32, beside how far diffusers' own decode is, on a card.

The autoencoder in bfloat16, batch 1: diffusers' decoder, fast mode's and (where it is installed)
fastvae's decode the same latents in lockstep with a float32 copy of the weights, without TF32. (On
a CPU in float32, with a float64 copy.) Errors are relative; their ratio is promised to be at most
1.02 over the whole clip and in each chunk, so that nothing drifts. On random weights and noise;
and, of Wan 2.1, on weights that a few minutes on the scene that streamvae ships have trained, in
this process, and latents of that scene. Prints promises and whether they are kept, and writes
everything as JSON, after each case.

    python benchmarks/precision_h200.py --trained-minutes 3
    python benchmarks/precision_h200.py --weights random --sizes 720x1280x84
    python benchmarks/precision_h200.py --weights random --families "Wan 2.2-5B" QwenImage
    python benchmarks/precision_h200.py --quick         # tiny, also without a GPU: a rehearsal
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from _families import ENTRIES, Entry, build
from _measure import Json, clocks, facts, promised, show_promises, write
from _precision import measure
from torch import nn

from streamvae.codecs import codec_for
from streamvae.report import ACCEPTED_RATIO
from streamvae.report._bench_clip import latents

RESULTS = Path(__file__).parent / "results"
TOOLS = Path(__file__).parents[1] / "tools"
#: Height, width and latents: three of the table's, and some that no tile divides.
SIZES = ("480x832x84", "720x1280x21", "1088x1920x9", "8x8x84", "104x456x84", "376x680x21")
#: As released; there is no clip of them in the table of families.
_KL = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
FAMILIES = {
    entry.name: entry
    for entry in (*ENTRIES, Entry("AutoencoderKL", "AutoencoderKL", (1, 4, 128, 128), config=_KL))
}
WAN = "Wan 2.1"


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny weights, small and few frames")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--reference-device", type=torch.device, help="of the float32 copy")
    both = ("random", "trained")
    parser.add_argument("--weights", nargs="+", choices=both, default=both)
    parser.add_argument("--trained-minutes", type=float, default=3.0, help="of training")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="HxWxT of Wan 2.1, T latents")
    parser.add_argument(
        "--families", nargs="+", choices=FAMILIES, default=[WAN], help="others in a size of theirs"
    )
    parser.add_argument("--out", type=Path, help="the JSON; in results/ by default")
    said = parser.parse_args()
    said.device = torch.empty(
        0, device=said.device or ("cuda" if torch.cuda.is_available() else "cpu")
    ).device
    if said.quick:
        said.sizes = ["16x24x3"]
    said.dtype = torch.bfloat16 if said.device.type == "cuda" else torch.float32
    said.sizes = [_size(parser, text) for text in said.sizes]
    said.out = said.out or RESULTS / f"precision_{'quick' if said.quick else 'h200'}.json"
    return said


def _size(parser: argparse.ArgumentParser, text: str) -> tuple[int, int, int]:
    if re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", text) is None:
        parser.error(f"expected HxWxT, as in 720x1280x84, got {text!r}")
    height, width, steps = map(int, text.split("x"))
    return height, width, steps


#: A label, an autoencoder and latents for it.
Case = tuple[str, nn.Module, torch.Tensor]


def on_random_weights(said: argparse.Namespace) -> Iterator[Case]:
    """Noise, and every weight drawn."""
    for name in said.families:
        entry = FAMILIES[name]
        if said.quick and name == WAN:
            entry = replace(entry, config={"base_dim": 8, "num_res_blocks": 1})
        vae = build(entry, said.device, said.dtype)
        codec = codec_for(vae)
        if name != WAN:
            generator = torch.Generator().manual_seed(1)
            z = torch.randn(entry.latents, generator=generator).to(said.device, said.dtype)
            yield f"{name}, random, {'x'.join(map(str, entry.latents))}", vae, z
            continue
        for height, width, steps in said.sizes:
            z = latents(codec, (height, width), steps)
            yield f"{name}, random, {height}x{width}x{steps}", vae, z


def on_trained_weights(said: argparse.Namespace) -> Iterator[Case]:
    """A scene, and weights that have learnt it."""
    sys.path.append(str(TOOLS))
    from train_wide_decoder import Scene, evaluate, extended, train

    scene = Scene.load(said.device, quick=said.quick)
    vae = train(scene, minutes=said.trained_minutes, quick=said.quick)
    print(f"  the whole scene: PSNR {evaluate(vae, scene)} dB", flush=True)
    # Not by diffusers' own, which warns of layers to be kept in float32 where there are none.
    nn.Module.to(vae, said.dtype)
    for height, width, steps in said.sizes:
        places = -(-height // 8), -(-width // 8)
        z = extended(scene.latents, steps, *places).to(said.dtype)
        yield f"{WAN}, trained, {height}x{width}x{steps}", vae, z


def show_case(found: Json) -> None:
    """Print what was measured."""
    for way, one in found.items():
        line = f"    {way:8s} error {one['error']:.4g}, {one['levels']} levels off at most"
        if "ratio" in one:
            each = one["ratio of each chunk"]
            places = (each[0], each[len(each) // 2], each[-1])
            line += f", ratio {one['ratio']:.3f}; first, middle, last chunk: "
            line += ", ".join(f"{ratio:.3f}" for ratio in places)
        print(f"{line}  [{one['step']}]", flush=True)


def kept(cases: Json) -> dict[str, Json]:
    """Each promise that was measured."""
    rows: dict[str, tuple[float, float]] = {}
    for name, found in cases.items():
        rows[f"{name}: error / own"] = (found["fast"]["ratio"], ACCEPTED_RATIO)
        rows[f"{name}: worst chunk"] = (found["fast"]["ratio, worst chunk"], ACCEPTED_RATIO)
        most = 2 * max(found["own"]["levels"], 1)
        rows[f"{name}: levels off"] = (found["fast"]["levels"], most)
    return promised(rows)


def main() -> None:
    """Measure, print, write."""
    said = options()
    began = time.perf_counter()
    cases: Json = {}
    result: Json = facts(said.device) | {
        "what": "relative errors against float32, batch 1" + (", tiny" if said.quick else ""),
        "dtype": str(said.dtype).removeprefix("torch."),
        "trained for, minutes": said.trained_minutes if "trained" in said.weights else None,
        "clocks before": clocks(said.device),
        "cases": cases,
    }
    parts = {"random": on_random_weights, "trained": on_trained_weights}
    for weights in said.weights:
        for name, vae, z in parts[weights](said):
            print(f"[{time.perf_counter() - began:.0f} s] {name}", flush=True)
            cases[name] = measure(vae, z, said.reference_device)
            show_case(cases[name])
            result["promises"] = kept(cases)
            result["seconds so far"] = time.perf_counter() - began
            write(result, said.out)
            if said.device.type == "cuda":
                torch.cuda.empty_cache()
    result["clocks after"] = clocks(said.device)
    write(result, said.out)
    show_promises(result["promises"], quick=said.quick)


if __name__ == "__main__":
    main()
