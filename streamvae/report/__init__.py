"""What a stream was worth: compared with the autoencoder's own decode, and where its time went."""

from ._advice import advice, helps
from ._both import Reference
from ._compare import TOLERANCES, WIDE_TOLERANCE
from ._gaps import Gap, gaps
from ._precision import ACCEPTED_RATIO, Deviation, Precision
from ._timeline import check_timeline, write_timeline
from ._verification import Verdict, Verification
from ._verify import verify

__all__ = [
    "ACCEPTED_RATIO",
    "TOLERANCES",
    "WIDE_TOLERANCE",
    "Deviation",
    "Gap",
    "Precision",
    "Reference",
    "Verdict",
    "Verification",
    "advice",
    "check_timeline",
    "gaps",
    "helps",
    "verify",
    "write_timeline",
]
