"""A Wan decoder's chunk as some seventy launches of kernels of our own, and no copy between them.

Here live the kernels (``kernels/*.cu``), how they are compiled, loaded and launched, what does the
same in torch, and the step over them. It may know codecs; only `streamvae.fast` comes in.
"""

from .codec import StepCodec, step_codec
from .networks import networks
from .obstacles import STEP

__all__ = ["STEP", "StepCodec", "networks", "step_codec"]
