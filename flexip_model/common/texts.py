"""Text that people bring: UTF-8, or what a byte-order mark says; never guessed, and never mangled in silence."""

from __future__ import annotations

MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",  # before UTF-16's, which it begins with
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
    b"\xef\xbb\xbf": "utf-8-sig",
}
LOST = "\N{REPLACEMENT CHARACTER}"
"""What stands in a text where another program could not read a character."""


def encoding_of(start: bytes) -> str:
    """The encoding of a text file, for `open`, from its first four bytes or more."""
    return next((name for mark, name in MARKS.items() if start.startswith(mark)), "utf-8")


def decode_text(content: bytes, name: str) -> str:
    """The text of a file's bytes, without a byte-order mark.

    Args:
        name: of the file, for the message.

    Raises:
        ValueError: it is in another encoding.
    """
    try:
        return content.decode(encoding_of(content[:4]))
    except UnicodeDecodeError as error:
        raise ValueError(not_unicode(name, error)) from error


def not_unicode(name: object, error: UnicodeDecodeError) -> str:
    """A sentence for a file in another encoding."""
    return (
        f"{name} is not UTF-8 (byte 0x{error.object[error.start]:02X} at {error.start:,}); "
        "save it as UTF-8, or as UTF-16 with a byte-order mark"
    )
