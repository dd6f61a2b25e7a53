"""The page of families says what the code says."""

import re
from pathlib import Path

import pytest

import tools.families_page as tool
from streamvae.codecs import known_families

ROOT = Path(__file__).parent.parent


PAGE = (ROOT / "docs" / "families.md").read_text()
ROWS = {
    line.split(" | ")[0].strip("|` "): line for line in PAGE.splitlines() if line.startswith("| `")
}
AGAIN = "the page is another now: run `python tools/families_page.py`"


@pytest.fixture(scope="module")
def tested():
    """Give the tests' tiny models by class."""
    return tool.entries()


def test_every_family_has_its_row() -> None:
    """The page has its heading, and one row for every class that can be streamed, in order."""
    assert PAGE.startswith(tool.INTRO), AGAIN
    assert tuple(ROWS) == known_families(), AGAIN


def test_rows_say_what_the_code_says(tested) -> None:
    """Kind, way, proof and, where it depends on nothing else, exactness are the code's."""
    for name, row in ROWS.items():
        title, kind, way, exact, proof, *_ = row.strip("| ").split(" | ")
        assert (title, kind, way, proof) == tool.told(name, tested.get(name, [])), AGAIN
        said = tool.codec_class(name).exactness if name in known_families() else None
        assert not isinstance(said, str) or exact == tool.cell(said), AGAIN


@pytest.mark.parametrize(
    "name", ["AutoencoderKL", "AutoencoderKLHunyuanVideo", "AutoencoderKLWan", "AutoencoderTiny"]
)
def test_figures_are_those_of_plans(name, tested) -> None:
    """Rows as the command would write them now, for classes that are planned quickly."""
    assert ROWS[name] == tool.row(name, tested.get(name, [])), AGAIN


def test_proofs_are_there() -> None:
    """Every test that the page names exists, and every class is proved by one."""
    for name, row in ROWS.items():
        named = re.findall(r"`(tests/[^`]+)`", row)
        assert named, name
        for test in named:
            path, _, function = test.partition("::")
            assert f"def {function}" in (ROOT / path).read_text(), test
