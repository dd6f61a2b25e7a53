"""Progress for people."""

import io

import pytest
from tqdm import tqdm

from streamvae import StreamInfo
from streamvae._progress import Reporter

INFO = StreamInfo("X", "video", "uint8", "exact", "eager", "cpu", frames=6)


def test_none(capsys: pytest.CaptureFixture[str]) -> None:
    """False says nothing."""
    reporter = Reporter(False)
    reporter.advance(3, INFO)
    reporter.close()
    assert capsys.readouterr() == ("", "")


def test_a_bar_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """True is a tqdm bar with the total, closed at the end."""
    reporter = Reporter(True)
    reporter.advance(2, INFO)
    reporter.advance(4, INFO)
    reporter.close()
    said = capsys.readouterr().err
    assert "6/6" in said
    assert said.endswith("\n")


def test_the_users_bar() -> None:
    """A bar that is given is moved and left open."""
    text = io.StringIO()
    bar = tqdm(total=6, file=text)
    reporter = Reporter(bar)
    reporter.advance(2, None)
    reporter.advance(4, None)
    reporter.close()
    assert bar.n == 6
    assert not bar.disable
    bar.close()


@pytest.mark.parametrize(("info", "total"), [(INFO, 6), (None, None)])
def test_a_callable(info: StreamInfo | None, total: int | None) -> None:
    """A callable is told frames done and in all."""
    told: list[tuple[int, int | None]] = []
    reporter = Reporter(lambda done, total: told.append((done, total)))
    reporter.advance(2, info)
    reporter.advance(4, info)
    reporter.close()
    assert told == [(2, total), (6, total)]
