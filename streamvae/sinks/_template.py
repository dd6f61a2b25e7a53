"""Names with places for numbers, ``clip%d/%05d.png``."""

from __future__ import annotations

import re
from pathlib import Path

from streamvae._errors import UsageError

from ._partial import partial_of, refuse_existing

#: A number's place, as printf has it.
_PLACE = re.compile(r"%(0\d+)?d")


class Template:
    """What the pictures of a stream are called.

    Args:
        given: With no place for a number, with one (the picture's), or two (the clip's first).

    Raises:
        UsageError: It has more places, or a percent sign that is none.
    """

    def __init__(self, given: str) -> None:
        self.given, self._root = given, Path.cwd()
        self.path = self._root / given
        self.places = len(_PLACE.findall(given))
        if "%" in _PLACE.sub("", given) or self.places > 2:
            raise UsageError(
                "expected a template with one number's place (frames/%05d.png), or two for "
                f"several clips (clip%d/%05d.png), got {given!r}"
            )

    @property
    def manifest(self) -> Path:
        """Where what is said of all of them lies: in the last directory that has no place."""
        return self._beside(".manifest.json")

    @property
    def lock(self) -> Path:
        """The file beside it that is there while somebody writes to these names."""
        return self._beside(".lock")

    def _beside(self, suffix: str) -> Path:
        first = next((part for part in self.path.parents if "%" not in str(part)), self._root)
        name = "-".join(self.path.relative_to(first).parts)
        partial = partial_of(first / name)
        return partial.with_name(partial.name + suffix)

    def name(self, clip: int, index: int) -> Path:
        """What one picture is called."""
        numbers = iter((clip, index) if self.places == 2 else (index,))
        return self._root / _PLACE.sub(lambda place: place[0] % next(numbers), self.given)

    def there(self, clips: int) -> int:
        """How many pictures are there, from the first on without a gap, of every clip."""
        count = 0
        while all(self.name(clip, count).exists() for clip in range(clips)):
            count += 1
            if not self.places:
                break
        return count

    def refuse_taken(self, clip: int, *, overwrite: bool) -> None:
        """Refuse a directory with files of these names, unless they may be replaced.

        Raises:
            UsageError: There are some.
        """
        if not self.places or overwrite:
            refuse_existing(self.name(clip, 0), overwrite=overwrite)
            return
        directory = self.name(clip, 0).parent
        named = re.compile(_pattern(self._of(clip).name))
        taken = [one.name for one in _listed(directory) if named.fullmatch(one.name)]
        if taken:
            raise UsageError(
                f"{directory / min(taken)} exists already, as {len(taken)} of {self.given} do; "
                "pass overwrite=True to the sink to replace them"
            )

    def _of(self, clip: int) -> Path:
        """The template of one clip's pictures."""
        if self.places < 2:
            return self.path
        return self._root / _PLACE.sub(lambda place: place[0] % clip, self.given, count=1)


def _pattern(name: str) -> str:
    return r"\d+".join(re.escape(part) for part in re.split(r"%(?:0\d+)?d", name))


def _listed(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []
