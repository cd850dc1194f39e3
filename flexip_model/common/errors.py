"""The exception that this package raises for what a user can put right, alone or several at once, and the kind of it
that only a disk can."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class FlexIPError(ValueError):
    """A mistake in a file, a picture or a setting; its text is one sentence for the user: what, expected, do.

    Attributes:
        sentences: the text; of a list of mistakes one sentence for each.
    """

    # Without an `__init__`, so that a compiled UNet can raise it: torch.compile does not trace one.

    @property
    def sentences(self) -> tuple[str, ...]:
        return (str(self),)


class SeveralErrors(FlexIPError):
    """Several mistakes at once."""

    def __init__(self, text: str, sentences: Sequence[str]) -> None:
        super().__init__(text)
        self._sentences = tuple(sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        return self._sentences

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self._sentences)


class UnreadableError(FlexIPError):
    """What lies on a disk is missing or damaged, whatever the settings are: work may go on without it."""


class Mistakes:
    """Mistakes that are gathered, so that a user hears of all of them at once.

    Attributes:
        sentences: one for each.
    """

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Gather a mistake, once."""
        if sentence not in self.sentences:
            self.sentences.append(sentence)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it, a `FlexIPError` ends the block and is gathered."""
        try:
            yield
        except FlexIPError as error:
            for sentence in error.sentences:
                self.add(sentence)

    def tell(self, what: str) -> None:
        """Raise what was gathered; return where nothing was.

        Args:
            what: how a list of several begins, with `{count}` for their number.

        Raises:
            FlexIPError: the one mistake alone, or all as a list.
        """
        if len(self.sentences) == 1:
            raise FlexIPError(self.sentences[0])
        if self.sentences:
            lines = [what.format(count=len(self.sentences)), *(f"  - {sentence}" for sentence in self.sentences)]
            raise SeveralErrors("\n".join(lines), self.sentences)
