"""What is decoded again and again: an autoencoder, latents, and pictures for the encoder."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch

from .._errors import UsageError
from .._pixels import yuv420p
from .._sync import iter_decode
from ..abc import Backend, Codec
from ..backends import for_device
from ..codecs import ModuleCodec, codec_for
from ..models import default_vae, demo_latents
from ..models._load import load_autoencoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

#: Stands for Wan 2.1's autoencoder in full size, its weights drawn: nothing is downloaded.
RANDOM_WAN = "random-wan"


@dataclass
class Clip:
    """One autoencoder and one clip of latents, and where files go.

    Attributes:
        vae: A diffusers autoencoder of video.
        z: Latents, as its codec wants them, on its device, in its dtype.
        scratch: An empty folder; everything in it is deleted between runs.
        runner: The one event loop of this run.
        real: Frames (N, H, W, 3), uint8, of a real scene in the clip's size, for the encoder. None
            to encode what is decoded.
    """

    vae: torch.nn.Module
    z: torch.Tensor
    scratch: Path
    runner: asyncio.Runner
    real: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        self.codec: Codec = codec_for(self.vae)
        self.backend: Backend = for_device(self.codec.device)

    @property
    def steps(self) -> int:
        """Latents."""
        return int(self.z.shape[self.codec.axis])

    @functools.cached_property
    def planes(self) -> npt.NDArray[np.uint8]:
        """``real`` as a device turns it into 4:2:0, for sinks that are given that.

        Raises:
            ValueError: There are no such pictures.
        """
        if self.real is None:
            raise ValueError("expected pictures for the encoder, got none")
        real = torch.from_numpy(self.real)[None]
        parts = [yuv420p(real[:, i : i + 8])[0] for i in range(0, real.shape[1], 8)]
        planes: npt.NDArray[np.uint8] = torch.cat(parts).unsqueeze(-1).numpy()
        return planes

    def whole(self, z: torch.Tensor) -> torch.Tensor:
        """All at once, by the autoencoder itself."""
        return cast("ModuleCodec", self.codec).whole(z)

    def pieces(self) -> Iterator[torch.Tensor]:
        """The latents, cut as a stream cuts them."""
        begin, axis = 0, self.codec.axis
        for size in self.codec.cut(self.steps, None, "exact").sizes():
            if begin >= self.steps:
                return
            yield self.z.narrow(axis, begin, min(size, self.steps - begin))
            begin += size

    def finish_launches(self) -> None:
        """Wait for everything the device was given on the calling thread's stream."""
        if self.codec.device.type == "cuda":
            torch.cuda.current_stream(self.codec.device).synchronize()

    def settle(self) -> None:
        """Empty the folder, and wait until the device has nothing left of what ran before."""
        for path in self.scratch.iterdir():
            path.unlink()
        if self.codec.device.type == "cuda":
            torch.cuda.synchronize(self.codec.device)


def autoencoder(
    source: str | None, device: torch.device | str, dtype: torch.dtype | None = None
) -> torch.nn.Module:
    """Load what is to be measured: an autoencoder of video that decodes latents, told no more.

    Args:
        source: None for the embedded VAE, `RANDOM_WAN`, or a folder or hub id.
        device: Where to decode.
        dtype: Of the weights; None for float32, of `RANDOM_WAN` on a CUDA device bfloat16.

    Raises:
        UnknownSourceError: There is none.
        UsageError: It is not one of video, or wants to be told more than latents.
    """
    if source is None:
        vae: torch.nn.Module = default_vae()
    elif source == RANDOM_WAN:
        on_cuda = torch.device(device).type == "cuda"
        vae, dtype = random_wan(), dtype or (torch.bfloat16 if on_cuda else None)
    else:
        vae = load_autoencoder(source, dtype)
    # Not by diffusers' own, which warns of layers to be kept in float32 where there are none.
    torch.nn.Module.to(vae, device, dtype or codec_for(vae).dtype)
    codec = codec_for(vae)
    if not isinstance(codec, ModuleCodec) or codec.kind != "video" or codec.missing(1):
        raise UsageError(
            "expected an autoencoder of video that decodes latents and nothing else, got "
            f"{codec.family}"
        )
    return vae


def random_wan(**config: object) -> AutoencoderKLWan:
    """Wan 2.1's autoencoder, ready to decode, with every weight drawn anew from seed 0.

    Parameters that begin as all zeros or all ones are drawn as well, so that no layer does nothing.

    Args:
        **config: What is to be unlike the released one.
    """
    from diffusers import AutoencoderKLWan

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLWan(**config).eval().requires_grad_(requires_grad=False)
        for parameter in vae.parameters():
            if bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return vae


def latents(codec: Codec, size: tuple[int, int], steps: int) -> torch.Tensor:
    """Noise for ``steps`` latents, finished, on the codec's device.

    Args:
        codec: Of video.
        size: Height and width of the pictures, each at least as large as asked for.
        steps: Latents.

    Raises:
        LatentsError: The codec cannot decode as many.
    """
    height, width = codec.picture(_shape(codec, (8, 8), steps)) or (64, 64)
    places = (-(-size[0] * 8 // height), -(-size[1] * 8 // width))
    shape = _shape(codec, places, steps)
    codec.check(shape)
    made = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    z = made.to(codec.device, codec.dtype)
    if z.is_cuda:
        torch.cuda.synchronize(z.device)
    return z


def pictures(
    count: int,
    height: int,
    width: int,
    *,
    device: torch.device | str = "cpu",
    latents: int | None = None,
) -> npt.NDArray[np.uint8]:
    """Frames of a real scene, (count, height, width, 3), uint8: the demo clip to and fro.

    Of small pictures its corner, of large ones all of it, resized.

    Args:
        count: Frames.
        height: Of each.
        width: Of each.
        device: Where it is decoded.
        latents: How many of its latents are decoded at most; None for as many as it takes.
    """
    whole, _ = demo_latents()
    scale = 16  # of the embedded VAE
    steps = min(count, 17) if latents is None else latents
    corner = whole[:, :, :steps, : -(-height // scale), : -(-width // scale)]
    with closing(iter_decode(corner, device=device)) as stream:
        clip = np.stack([np.asarray(frame.data, np.uint8) for frame in stream][:count])
    way = [*range(len(clip)), *range(len(clip) - 2, 0, -1)]
    made = np.empty((count, height, width, 3), np.uint8)
    for index in range(min(count, len(way))):
        made[index] = _fitted(clip[way[index]], height, width)
    for index in range(len(way), count):
        made[index] = made[index - len(way)]
    return made


def _fitted(picture: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """A picture in another size: cut if it is larger both ways, else resized."""
    if picture.shape[0] >= height and picture.shape[1] >= width:
        return picture[:height, :width]
    given = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(given, (height, width), mode="bicubic")
    whole = resized.round().clamp(0, 255).byte()[0].permute(1, 2, 0)
    fitted: npt.NDArray[np.uint8] = whole.numpy()
    return fitted


def _shape(codec: Codec, places: tuple[int, int], steps: int) -> tuple[int, ...]:
    extents = {"B": 1, "C": codec.channels, "T": steps, "H": places[0], "W": places[1]}
    return tuple(extents[name] for name in codec.layout)
