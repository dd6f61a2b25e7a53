"""The demo clip decoded from latents of its own: steps that train these and the decoder with them.

The clip is walked in windows, the decoder's caches carried on from window to window and cut off
from the gradient there: one optimisation step for each window. The error is the mean squared one
alone, so that PSNR is what rises, and the optimiser is not the one that other clips are trained
with: how large their errors are does not matter here.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from default_vae_model import carry_on, halved
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional

Cache = list[Tensor | str | None]


class Demo:
    """The demo's latents as parameters, their moving average, and the steps over the clip.

    Args:
        vae: Its decoder is trained.
        average: Moving average of ``vae``; its decoder goes on here.
        latents: Where to start from, (1, C, T, h, w).
        clip: What they are to decode to, (1, 3, 4(T-1)+1, H, W) in [-1, 1].
        window: Latents a step; the first step has one more, as the first latent is one frame.
        keep: How much of the moving averages a step keeps.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        average: AutoencoderKLWan,
        latents: Tensor,
        clip: Tensor,
        *,
        window: int,
        keep: float,
    ) -> None:
        self.vae = vae
        self.clip = clip
        self.keep = keep
        self.latents = latents.detach().clone().requires_grad_()
        self.average = latents.detach().clone()
        ends = list(range(1 + window, latents.shape[2], window))
        self.cuts = [0, *ends, latents.shape[2]]
        self.decoder = _decoder(vae)
        self.averages = [*_decoder(average, vae), self.average]
        device = latents.device
        self.optimizer = torch.optim.AdamW(
            [
                {"params": self.decoder, "lr": torch.tensor(1e-8, device=device)},
                {"params": [self.latents], "lr": torch.tensor(1e-8, device=device)},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.0,
            capturable=device.type != "cpu",
        )
        self.squared = torch.ones((), device=device)
        self._kept: list[Cache] = []

    def set_rates(self, decoder: float, latents: float) -> None:
        """Set both learning rates, also for steps that are replayed."""
        for group, rate in zip(self.optimizer.param_groups, (decoder, latents), strict=True):
            group["lr"].fill_(rate)

    def __call__(self) -> None:
        """Go over the clip once."""
        cache = self._fresh()
        for begin, end in self._windows():
            cache = self._step(begin, end, cache)

    def replayed(self) -> Callable[[], None]:
        """Return the pass as one CUDA graph a window.

        Each window's graph reads its caches where the graph before leaves them, so these are kept.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(side)
        graphs = []
        cache = self._fresh()
        for begin, end in self._windows():
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                cache = self._step(begin, end, cache)
            self._kept.append(cache)
            graphs.append(graph)

        def replay() -> None:
            for graph in graphs:
                graph.replay()

        return replay

    def _fresh(self) -> Cache:
        return [None] * int(self.vae._cached_conv_counts["decoder"])

    def _windows(self) -> Iterator[tuple[int, int]]:
        return zip(self.cuts, self.cuts[1:], strict=False)

    def _step(self, begin: int, end: int, cache: Cache) -> Cache:
        """One step over latents ``begin`` to ``end``; returns the caches for the next."""
        cache = copy.copy(cache)  # the decoder writes into the list
        target = self.clip[:, :, max(0, 4 * begin - 3) : 4 * end - 3]
        with halved(self.clip.device.type):
            latents = self.latents[:, :, begin:end]
            output = carry_on(self.vae, latents, cache, first=begin == 0).float()
        squared = functional.mse_loss(output, target)
        self.optimizer.zero_grad(set_to_none=False)
        torch.autograd.backward(5 * squared)
        torch.nn.utils.clip_grad_norm_(self.decoder, 1.0, foreach=True)
        self.optimizer.step()
        current = [*(p.detach() for p in self.decoder), self.latents.detach()]
        torch._foreach_lerp_(self.averages, current, 1 - self.keep)
        self.squared.lerp_(squared.detach(), 0.02)
        return [one.detach() if isinstance(one, Tensor) else one for one in cache]


def _decoder(vae: AutoencoderKLWan, trained: AutoencoderKLWan | None = None) -> list[Tensor]:
    """The decoder's parameters of ``vae`` that are trained in ``trained``, or in itself."""
    names = [
        name
        for name, parameter in (trained or vae).named_parameters()
        if name.startswith(("decoder", "post_quant_conv")) and parameter.requires_grad
    ]
    parameters = dict(vae.named_parameters())
    return [parameters[name] for name in names]
