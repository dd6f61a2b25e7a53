"""The Python in the README and in the documentation, run as it stands there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: What needs a GPU and a download of gigabytes is only compiled.
HEAVY = "WanPipeline"


def _snippets() -> list[tuple[str, str]]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        (f"{page.name}-{number}", snippet)
        for page in pages
        for number, snippet in enumerate(
            re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        )
    ]


@pytest.mark.parametrize(("name", "snippet"), _snippets(), ids=[name for name, _ in _snippets()])
def test_snippet_runs_as_it_stands(
    name: str, snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snippet of the documents runs to its end, and what it asserts holds."""
    code = compile(snippet, name, "exec")
    if HEAVY not in snippet:
        monkeypatch.chdir(tmp_path)
        exec(code, {"__name__": name})  # noqa: S102  # our own documents
