"""What ``streamvae bench`` uses of NVML, with the counts of a card that was looked at."""

#: Millijoules, as they are read one after another.
COUNTS = iter([910_000, 910_000, 1_030_000, 1_100_000, 2_900_000])
CARDS = {"GPU-of-this-process": 0}


class NVMLError(Exception):
    pass


def nvmlInit() -> None:  # noqa: N802  # its name
    """Begin."""


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:  # noqa: N802
    """Find a card."""
    if uuid not in CARDS:
        raise NVMLError("Not Found")
    return CARDS[uuid]


def nvmlDeviceGetHandleByIndex(index: int) -> int:  # noqa: N802
    """Find a card."""
    if index != 0:
        raise NVMLError("Invalid Argument")
    return index


def nvmlDeviceGetTotalEnergyConsumption(handle: int) -> int:  # noqa: N802
    """Count, in millijoules."""
    assert handle == 0
    return next(COUNTS)
