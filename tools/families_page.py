"""Write docs/families.md: what is known of every family, asked of the code itself.

``python tools/families_page.py`` writes it; a test holds the page to what this would write.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, cast

import diffusers
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "families.md"
sys.path.insert(0, str(ROOT))

import tests.families  # noqa: E402  # needs the root
from streamvae import Plan  # noqa: E402
from streamvae.codecs import ModuleCodec, codec_for, known_families  # noqa: E402

#: What is planned for: latents of video and of sound, pictures in a batch, pixels along a side.
VIDEO, SOUND, PICTURES, SIDE = 33, 64, 4, 512

#: ``latents_per_chunk`` of sound. One at a time, vocoders take minutes to plan.
CHUNK = 8

#: Options as released, where the class has no defaults or others.
_OPTIONS: dict[str, dict[str, object]] = {
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 64,
        "block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "layers_per_block": 2,
        "spatial_compression_ratio": 32,
        "sample_size": 384,
    },
    "AutoencoderKLLTX2Video": {"decoder_causal": False},
}

#: Shapes of those that do not take any.
_SHAPES = {
    "AutoencoderKLAllegro": (1, 4, 34, 65, 70),  # whole windows
    "AutoencoderRAE": (PICTURES, 768, 16, 16),
}

#: What cannot be decoded without tiling.
_TILED = ("AutoencoderKLAllegro",)

#: The test that holds the entries of a table in tests/families to their promises, by their class.
_PROOFS = {
    "Family": "tests/test_families.py::test_equals_diffusers",
    "Image": "tests/codecs/test_by_item.py::test_every_family",
    "Picture": "tests/codecs/test_pictures.py::test_equals_each_item_alone",
    "Sound": "tests/codecs/test_sounds.py::test_equals_decode",
}

INTRO = f"""\
# Families

What can be streamed, how, how exactly, and which tests prove it, with the names of their cases. A
program writes this page (`python tools/families_page.py`), and tests hold it to the code.

"Keeps" is the bytes a stream keeps between two chunks, at their most, and "first" the number of
latents after which the first frame (picture, sample) is there. Nothing was decoded for that: it is
what `codec.plan(shape)` says, in float32, of a model of the class's default options (of those of
the released one, where they differ and it matters):

- **video**: {VIDEO} latents, pictures of {SIDE} x {SIDE} pixels;
- **images**: {PICTURES} pictures of {SIDE} x {SIDE} pixels;
- **sound**: {SOUND} latents, `latents_per_chunk={CHUNK}`.

Other shapes stand beside the figure. In *italics* it is that of the tests' tiny model, because the
default one cannot be planned with on every machine. What a video keeps grows with the area of its
picture; half precision halves it. `codec.plan(shape)` tells yours.

"""

COLUMNS = (
    "class",
    "makes",
    "way of walking",
    "streamed, compared with decoding at once",
    "proved by",
    "keeps",
    "first",
    "notes",
)


class Entry(Protocol):
    """A tiny model of the tables in tests/families."""

    name: str
    make: Callable[[], nn.Module]
    latents: tuple[int, ...]


@dataclass(frozen=True)
class Planned:
    """A codec, a plan, and whether it is that of a tiny model."""

    codec: Any
    plan: Plan
    tiny: bool


def entries() -> dict[str, list[Entry]]:
    """The tests' tiny models, by the name of their class."""
    found: dict[str, list[Entry]] = {}
    for module in pkgutil.iter_modules(tests.families.__path__):
        values = vars(importlib.import_module(f"tests.families.{module.name}")).values()
        for table in [value for value in values if isinstance(value, tuple)]:
            for entry in table:
                if _proof(entry) is not None:
                    found.setdefault(type(entry.make()).__name__, []).append(entry)
    return found


def _proof(entry: object) -> str | None:
    return next((_PROOFS[k.__name__] for k in type(entry).__mro__ if k.__name__ in _PROOFS), None)


def proofs(name: str, tested: list[Entry]) -> dict[str, list[str]]:
    """Tests that hold a class to its promise, with the names of their cases."""
    given: dict[str, list[str]] = {}
    for entry in tested:
        cases = given.setdefault(str(_proof(entry)), [])
        if entry.name not in cases:
            cases.append(entry.name)
    # The tests mirror the package.
    room = codec_class(name).__module__.rpartition(".")[2]
    return given or {f"tests/codecs/test{room}.py": []}


def codec_class(name: str) -> type[ModuleCodec]:
    """The codec of a class."""
    return importlib.import_module("streamvae.codecs")._FAMILIES[name]


def way(name: str) -> str:
    """A codec's file is about one way of walking, and says so in its first line."""
    said = sys.modules[codec_class(name).__module__].__doc__ or ""
    return said.partition("\n")[0].rstrip(".")


@torch.no_grad()
def planned(name: str, tested: list[Entry]) -> Planned | None:
    """A plan for the class's default options, else for the tests' tiny model; None for neither."""
    found = None
    for tiny, make in _makers(name, tested):
        try:
            codec = codec_for(make(), _call(name))
            plan = codec.plan(
                _shape(codec, tested[0] if tiny else None),
                latents_per_chunk=CHUNK if codec.kind == "sound" else None,
            )
            known = plan.state_bytes is not None
        except Exception as error:  # noqa: BLE001  # whatever it is, the tiny model may do
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        if known or found is None:
            found = Planned(codec, plan, tiny)
        if known:
            break
    return found


def _makers(name: str, tested: list[Entry]) -> Iterator[tuple[bool, Callable[[], nn.Module]]]:
    kind = type(tested[0].make()) if tested else getattr(diffusers, name)
    yield False, lambda: _nowhere(kind)
    if tested:
        yield True, lambda: _folded(tested[0].make())


def _folded(module: nn.Module) -> nn.Module:
    """Without the old weight_norm: a weight made anew at each call would count as state."""
    for part in module.modules():
        if hasattr(part, "weight_g"):
            torch.nn.utils.remove_weight_norm(part)
    return module


def _nowhere(kind: type[nn.Module]) -> nn.Module:
    """A model whose weights are nowhere, as if offloaded: nothing is computed from them."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the old weight_norm, of meta weights
        module = _folded(kind(**_OPTIONS.get(kind.__name__, {})))
    if kind.__name__ in _TILED:
        cast("Any", module).enable_tiling()
    vars(module)["_hf_hook"] = types.SimpleNamespace(execution_device=torch.device("cpu"))
    return module.eval().requires_grad_(requires_grad=False)


def _call(name: str) -> dict[str, object]:
    return {"decode_chunk_size": 8} if name == "AutoencoderKLTemporalDecoder" else {}


def _shape(codec: Any, tiny: Entry | None) -> tuple[int, ...]:  # noqa: ANN401
    """Latents of the named size, or as small as a tiny model's."""
    if tiny is None and codec.family in _SHAPES:
        return _SHAPES[codec.family]
    bins = 64 if "Vocoder" in codec.family else 16
    dimensions = {"B": 1, "C": codec.channels, "T": 1, "F": bins, "H": 64, "W": 64}
    shape = [dimensions[name] for name in codec.layout]
    if tiny is not None:
        shape[-len(tiny.latents) :] = [1] * len(tiny.latents)
        shape[1], *rest = tiny.latents
        shape[len(shape) - len(rest) :] = rest
    shape[codec.axis] = {"video": VIDEO, "image": PICTURES, "sound": SOUND}[codec.kind]
    if tiny is None and "H" in codec.layout:
        shape[-2:] = [SIDE * 64 // codec.picture(tuple(shape))[0]] * 2
    return tuple(shape)


def figures(found: Planned | None) -> tuple[str, str]:
    """What a stream keeps, and after how many latents its first frame comes."""
    if found is None:
        return "not foretold", ""
    state, frames = found.plan.state_bytes, found.plan.frames
    kept = "not foretold" if state is None else f"{state:,}"
    first = "" if frames is None else _first(found.plan.chunks, frames)
    if found.tiny:
        kept, first = f"*{kept}*", f"*{first}*"
    if found.tiny or found.codec.family in _SHAPES:
        kept += f" ({' x '.join(map(str, found.plan.shape))})"
    return kept, first


def _first(chunks: tuple[int, ...], frames: tuple[int, ...]) -> str:
    given = zip(accumulate(chunks), frames, strict=True)
    after = next((latents for latents, count in given if count), None)
    return "the last" if after is None else str(after)


def notes(found: Planned | None) -> str:
    """What users of such latents are told, and what comes late."""
    if found is None:
        return ""
    said = list(found.codec.notes(found.plan.shape))
    if found.codec.needs_length:
        said.insert(0, "latents that come one by one are gathered first")
    if found.plan.drained:
        said.append(f"{found.plan.drained:,} of {found.plan.total:,} come after the last latent")
    return "; ".join(said)


def told(name: str, tested: list[Entry]) -> tuple[str, str, str, str]:
    """Class, kind, way and proof, for which nothing has to be planned."""
    proved = "; ".join(
        f"`{proof}`" + (f" ({', '.join(cases)})" if cases else "")
        for proof, cases in proofs(name, tested).items()
    )
    return f"`{name}`", cast("Any", codec_class(name)).kind, cell(way(name)), cell(proved)


def row(name: str, tested: list[Entry]) -> str:
    """A class's line of the table."""
    found = planned(name, tested)
    title, kind, walking, proved = told(name, tested)
    exact = (found.codec if found else cast("Any", codec_class(name))).exactness
    cells = (title, kind, walking, cell(exact), proved, *figures(found), cell(notes(found)))
    return f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """Text of ours as Markdown in a table."""
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


def page() -> str:
    """The whole page."""
    tested = entries()
    lines = []
    for name in known_families():
        started = time.perf_counter()
        lines.append(row(name, tested.get(name, [])))
        print(f"{name}: {time.perf_counter() - started:.1f} s", file=sys.stderr)
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    return INTRO + "\n".join([*head, *lines]) + "\n"


def main() -> None:
    """Write the page, or say whether it would be another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it is another")
    check: bool = parser.parse_args().check
    written, now = PAGE.read_text(encoding="utf-8") if PAGE.exists() else "", page()
    where = PAGE.relative_to(ROOT)
    if check and written != now:
        sys.exit(f"{where} is not what `python tools/families_page.py` writes")
    if not check:
        PAGE.write_text(now, encoding="utf-8")
    print(f"{where}: {len(known_families())} classes")


if __name__ == "__main__":
    main()
