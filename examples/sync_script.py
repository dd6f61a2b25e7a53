"""The same without asyncio: frames in a plain loop, a file, an array."""

from streamvae import NpyFile, collect, iter_decode, save
from streamvae.models import default_vae, demo_latents

latents, fps = demo_latents()
latents = latents[:, :, :2]
vae = default_vae()

for frame in iter_decode(latents, vae, fps=fps):
    print(f"frame {frame.index} at {frame.time:.2f} s: mean brightness {frame.data.mean():.0f}")

stats = save(latents, vae, NpyFile("frames.npy", overwrite=True))
print(f"frames.npy: {stats.frames} frames after {stats.total:.1f} s")

clip = collect(latents, vae, output="float32")
print(f"in memory: {clip.shape}, {clip.dtype}, from {clip.min():.2f} to {clip.max():.2f}")
