"""The optimizer of the embedded VAE: momentum with orthogonalised steps for convolutions."""

import torch
from torch import Tensor

#: Newton-Schulz coefficients of Muon (Jordan et al., 2024): quick, to about 0.7..1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Muon for convolution kernels, Adam for everything else (scales and biases).

    On few steps it learns much more than Adam alone: all directions of a kernel move alike.
    A group with ``kernels=True`` holds kernels, flattened to (out, in * taps) for the step.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], rate: float) -> None:
        kernels = [p for p in parameters if p.ndim >= 4 and min(p.shape[:2]) > 1]
        known = {id(p) for p in kernels}
        others = [p for p in parameters if id(p) not in known]
        groups = [
            {"params": kernels, "kernels": True, "rate": rate},
            {"params": others, "kernels": False, "rate": rate / 10},
        ]
        super().__init__(groups, {"factor": 1.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Move every parameter against its gradient, by ``rate`` times ``factor``."""
        for group in self.param_groups:
            move = self._kernel_step if group["kernels"] else self._adam_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    way = move(self.state[parameter], parameter.grad)
                    parameter.add_(way, alpha=-group["rate"] * group["factor"])

    @staticmethod
    def _kernel_step(state: dict[str, Tensor], gradient: Tensor) -> Tensor:
        momentum = state.setdefault("momentum", torch.zeros_like(gradient))
        momentum.lerp_(gradient, 0.05)
        flat = gradient.lerp(momentum, 0.95).flatten(1)
        scale = max(1.0, flat.shape[0] / flat.shape[1]) ** 0.5
        way: Tensor = _orthogonal(flat).view_as(gradient) * scale
        return way

    @staticmethod
    def _adam_step(state: dict[str, Tensor], gradient: Tensor) -> Tensor:
        count = state.setdefault("count", torch.zeros(()))
        count += 1
        first = state.setdefault("first", torch.zeros_like(gradient)).lerp_(gradient, 0.1)
        second = state.setdefault("second", torch.zeros_like(gradient))
        second.lerp_(gradient.square(), 0.01)
        bias = (1 - 0.9**count) / (1 - 0.99**count).sqrt()
        way: Tensor = first / (second.sqrt() + 1e-8) / bias.to(first.device)
        return way


def _orthogonal(matrix: Tensor) -> Tensor:
    """Bring all singular values of a matrix near 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    result: Tensor = x.mT if tall else x
    return result.to(matrix.dtype)
