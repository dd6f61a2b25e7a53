"""What the documents say is what is done."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _fenced_lines(document: Path) -> list[str]:
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]


def _fresh_clone_commands() -> list[str]:
    return [line for line in _fenced_lines(ROOT / "README.md") if line.startswith("python -m venv")]


def _steps(script: Path) -> list[str]:
    lines = (line.strip() for line in script.read_text().splitlines())
    return [line for line in lines if line and not line.startswith(("#", "set ", "cd "))]


def test_ci_runs_the_readme_s_test_command() -> None:
    """CI runs the second command of the README, to the letter, and nothing else."""
    _, tests = _fresh_clone_commands()
    assert _steps(ROOT / ".ci" / "run") == [tests]


def test_the_readme_s_commands_install_the_tested_set() -> None:
    """Both commands of a fresh clone install under the constraints, in one line each."""
    commands = _fresh_clone_commands()
    assert [" -c constraints.txt " in command for command in commands] == [True, True]


def test_constraints_are_exact_pins_by_name() -> None:
    """The tested set is exact, and no line of it depends on one place to download from."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9.]+", pin)] == []


def test_the_changelog_has_an_open_section() -> None:
    """What is not released yet has its place in the changelog."""
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()
