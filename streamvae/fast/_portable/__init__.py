"""Decoders channels last: cuDNN's convolutions, and all between two of them in one pass.

For any card; kernels are Triton's where it is installed, else torch's own operations. It may know
codecs and `streamvae.fast._wan`; only `streamvae.fast` comes in.
"""

from .obstacles import STEP
from .wan import PortableWan, portable_wan

__all__ = ["STEP", "PortableWan", "portable_wan"]
