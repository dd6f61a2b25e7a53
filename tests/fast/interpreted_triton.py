"""Run Triton's kernels in its interpreter, without a card, and compare every element.

A program of its own, since TRITON_INTERPRET has to be set before anything imports triton.
Not bfloat16, to which the interpreter does not round but cuts off.
"""

from __future__ import annotations

import torch

from streamvae.fast._portable.selftest import GROUP_NORM, RMS_NORM, check
from streamvae.fast._portable.triton_ops import TritonOps

for dtype, channels in ((torch.float32, 24), (torch.float16, 32), (torch.float32, 3)):
    check(TritonOps(), torch.device("cpu"), dtype, channels, {*RMS_NORM, *GROUP_NORM})
