"""Stands in for fastvae 0.1.0 where that is not installed: its interface, by diffusers' decoder."""

import copy

import torch


class Cache:
    """What fastvae keeps of earlier frames."""

    def __init__(self, places):
        self.feat = [None] * places


class Core:
    """A decoder of its own, rebuilt from an autoencoder's."""

    def __init__(self, vae):
        self.post_quant_conv = copy.deepcopy(vae.post_quant_conv)
        self.decoder = copy.deepcopy(vae.decoder)
        self.places = vae._cached_conv_counts["decoder"]

    def apply_post_quant(self, z):
        return self.post_quant_conv(z.contiguous(memory_format=torch.channels_last_3d))

    def new_cache(self):
        return Cache(self.places)

    def decode_chunk(self, x, cache, first_chunk=False):
        return self.decoder(x, feat_cache=cache.feat, feat_idx=[0], first_chunk=first_chunk)


class FastVAEDecoder:
    """The class that fastvae is used by."""

    def __init__(self, core):
        self.core = core

    @torch.no_grad()
    def decode(self, z):
        cache = self.core.new_cache()
        x = self.core.apply_post_quant(z)
        pieces = [x[:, :, :1], *x[:, :, 1:].split(1, 2)]
        frames = [self.core.decode_chunk(p, cache, not i) for i, p in enumerate(pieces)]
        return torch.cat(frames, 2).clamp(-1, 1)

    @classmethod
    def from_vae(cls, vae):
        if type(vae).__name__ != "AutoencoderKLWan":
            raise NotImplementedError(f"fastvae has no adapter for {type(vae).__name__}")
        return cls(Core(vae))
