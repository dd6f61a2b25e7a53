"""What ``info.step`` says: a step, and what is to be known of it."""


def kind_of(step: str) -> str:
    """The step without what is said of it: ``"eager (no CUDA)"`` is ``"eager"``."""
    return step.partition(";")[0].partition(" (")[0]
