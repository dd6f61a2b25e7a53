"""What a stream was worth: compared with the autoencoder's own decode."""

from ._both import Reference
from ._compare import TOLERANCES, WIDE_TOLERANCE
from ._verification import Verdict, Verification
from ._verify import verify

__all__ = ["TOLERANCES", "WIDE_TOLERANCE", "Reference", "Verdict", "Verification", "verify"]
