"""What the fused step of Wan's autoencoders promises on one NVIDIA H200, every figure in one run.

The autoencoder as it is shipped, random weights and gammas, bfloat16, batch 1. Every specialisation
of the kernels against float64, element by element; chunks against float32; eager, ours and (where
it is installed) fastvae in turns. Prints promises and whether they are kept, and writes all samples
with versions, clocks, command, machine and date as JSON, after each part.

    python benchmarks/fast_h200.py                      # about five minutes
    python benchmarks/fast_h200.py --only kernels errors times --sizes 480x832
    python benchmarks/fast_h200.py --quick              # tiny, also without a GPU: a rehearsal
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import _fast as fast
import torch
from _measure import Json, clocks, facts, promised, show, show_promises, write
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan

from streamvae.fast._wan.released import WAN22

RESULTS = Path(__file__).parent / "results"
PARTS = ("first use", "kernels", "errors", "times", "layers", "levels", "memory", "families")
#: Other autoencoders: their size, and latents of which errors are measured.
FAMILIES = {"Wan 2.2-5B": ((704, 1280), 3), "QwenImage": ((1024, 1024), 1)}
SIZES = ("480x832", "720x1280", "1088x1920")
#: Only on a card.
CUDA_PARTS = {"kernels", "layers", "levels", "memory"}


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny weights, small and few frames")
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--rounds", type=int, default=3, help="clips of every way")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="HxW")
    parser.add_argument("--latents", type=int, default=7, help="of the clips of errors")
    parser.add_argument("--out", type=Path, help="the JSON; in results/ by default")
    said = parser.parse_args()
    said.device = torch.empty(
        0, device=said.device or ("cuda" if torch.cuda.is_available() else "cpu")
    ).device
    if said.quick:
        said.sizes, said.rounds, said.latents = ["32x48"], 1, 3
    said.out = said.out or RESULTS / f"fast_{'quick' if said.quick else 'h200'}.json"
    return said


@torch.no_grad()
def autoencoder(said: argparse.Namespace, family: str = "Wan 2.1") -> torch.nn.Module:
    """An autoencoder, its gammas random too: a norm without its gamma would not be seen."""
    small = {"base_dim": 8, "num_res_blocks": 1} if said.quick else {}
    if family == "Wan 2.2-5B":
        small = WAN22 | ({"base_dim": 8, "decoder_base_dim": 12} if said.quick else {})
    torch.manual_seed(0)
    with said.device:
        kind = AutoencoderKLQwenImage if family == "QwenImage" else AutoencoderKLWan
        vae = kind(**small).eval().requires_grad_(requires_grad=False)
    for name, parameter in vae.named_parameters():
        if "gamma" in name:
            parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
    on_cuda = said.device.type == "cuda"
    torch.nn.Module.to(vae, said.device, torch.bfloat16 if on_cuda else torch.float32)
    return vae


def families(said: argparse.Namespace) -> Json:
    """Errors and times of the other autoencoders."""
    found: Json = {}
    for name, (size, latents) in FAMILIES.items():
        vae, own = autoencoder(said, name), (32, 48) if said.quick else size
        found[name] = {
            "errors": fast.errors(vae, said.device, own, latents),
            "times": fast.times(vae, said.device, own, said.rounds),
        }
        del vae
    return found


def measure(part: str, vae: torch.nn.Module, said: argparse.Namespace) -> Json:
    """Measure one part."""
    sizes = {name: tuple(map(int, name.split("x"))) for name in said.sizes}
    device, rounds = said.device, said.rounds
    first, middle = next(iter(sizes.values())), sizes.get("720x1280") or next(iter(sizes.values()))

    def errors(size: tuple[int, ...]) -> Json:
        return fast.errors(vae, device, size, said.latents if size[0] <= 720 else 3)

    parts: dict[str, Callable[[], Json]] = {
        "first use": lambda: fast.first_use(vae, device, first),
        "kernels": lambda: fast.kernels(vae, device, (27, 45), 4),
        "errors": lambda: {name: errors(size) for name, size in sizes.items()},
        "times": lambda: {n: fast.times(vae, device, size, rounds) for n, size in sizes.items()},
        "layers": lambda: fast.layers(vae, device, middle) | {"": fast.build_seconds(vae, device)},
        "levels": lambda: {n: fast.levels(vae, device, size, rounds) for n, size in sizes.items()},
        "memory": lambda: {str(n): fast.memory(vae, device, middle, n) for n in (21, 85)},
        "families": lambda: families(said),
    }
    return parts[part]()


def show_part(part: str, found: Json) -> None:
    """Print what was measured."""
    if part in SHOWN:
        SHOWN[part](found)
        return
    for key, value in found.items():
        print(f"  {key}: {value}")


def show_times(found: Json) -> None:
    """Each way's times, by size."""
    for size, each in found.items():
        for key in each["ours"]:
            show(f"{size}: {key}", {way: one[key] for way, one in each.items()}, "ms")


def show_errors(found: Json) -> None:
    """Errors over diffusers' own, chunk by chunk."""
    for size, one in found.items():
        ratios = " ".join(f"{ratio:.3f}" for ratio in one["ratios"])
        print(f"  {size}: two runs equal {one['two runs equal']}, ratios {ratios}")


def show_families(found: Json) -> None:
    """Times and errors of each."""
    show_times({name: one["times"] for name, one in found.items()})
    show_errors({name: one["errors"] for name, one in found.items()})


def show_levels(found: Json) -> None:
    """Both ways to uint8."""
    for size, each in found.items():
        show(f"{size}: a steady chunk as uint8", each, "ms")


#: How parts are printed that are no plain list.
SHOWN: dict[str, Callable[[Json], None]] = {
    "times": show_times,
    "errors": show_errors,
    "families": show_families,
    "levels": show_levels,
    "kernels": lambda found: print(f"  {len(found)} specialisations"),
}


def kept(result: Json) -> dict[str, Json]:
    """Each promise that was measured."""
    rows: dict[str, tuple[float, float]] = {}
    if "first use" in result:
        rows["first use in the process, s"] = (result["first use"]["first, s"], 2.0)
    if "kernels" in result:
        bad = [not (each["right"] and each["equal"]) for each in result["kernels"].values()]
        rows["kernels with a wrong element"] = (sum(bad), 0)
    for name, one in result.get("errors", {}).items():
        if one["ratios"]:
            rows[f"{name}: error / diffusers' own"] = (max(one["ratios"]), 1.02)
        rows[f"{name}: runs that differ"] = (int(not one["two runs equal"]), 0)
    for name, each in result.get("times", {}).items():
        steady = {way: one["steady chunk, ms"]["median"] for way, one in each.items()}
        rows[f"{name}: steady chunk / eager"] = (steady["ours"] / steady["eager"], 1 / 4.3)
        if "fastvae" in steady:
            rows[f"{name}: steady chunk / fastvae"] = (steady["ours"] / steady["fastvae"], 1 / 2.1)
        first = each["ours"]["first chunk, ms"]["median"]
        rows[f"{name}: first chunk / steady"] = (first / steady["ours"], 1 / 4)
    for name, one in result.get("families", {}).items():
        if one["errors"]["ratios"]:
            rows[f"{name}: error / diffusers' own"] = (max(one["errors"]["ratios"]), 1.02)
        key = "first chunk, ms" if name == "QwenImage" else "steady chunk, ms"
        spans = {way: each[key]["median"] for way, each in one["times"].items()}
        rows[f"{name}: {key.removesuffix(', ms')} / eager"] = (
            spans["ours"] / spans["eager"],
            1 / 3,
        )
    for latents, each in result.get("memory", {}).items():
        rows[f"{latents} latents of 720p, GB"] = (each["ours"]["allocated"] / 1e9, 9.5)
    return promised(rows)


def main() -> None:
    """Measure, print, write."""
    said = options()
    began = time.perf_counter()
    vae = autoencoder(said)
    result: Json = facts(said.device) | {
        "what": "AutoencoderKLWan, batch 1, " + ("tiny" if said.quick else "as shipped"),
        "dtype": str(vae.dtype),
        "rounds": said.rounds,
        "clocks before": clocks(said.device),
    }
    for part in said.only:
        if part in CUDA_PARTS and said.device.type != "cuda":
            continue
        print(f"[{time.perf_counter() - began:.0f} s] {part}", flush=True)
        result[part] = measure(part, vae, said)
        show_part(part, result[part])
        result[f"clocks after {part}"] = clocks(said.device)
        result["promises"] = kept(result)
        result["seconds so far"] = time.perf_counter() - began
        write(result, said.out)
    show_promises(result["promises"], quick=said.quick)


if __name__ == "__main__":
    main()
