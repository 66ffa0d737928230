"""Texts that others wrote (names, paths, values out of files), made safe to print."""

import re

import click

# The control characters of ASCII and Latin-1, marks that turn the direction of text, separators of lines and
# paragraphs, and lone surrogates, which stand for the bytes of a file name that is not UTF-8.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, keep: str = "") -> str:
    r"""A text with its control characters written as escapes.

    Printed as they are, they could erase what stands above, forge a line, or fail to be encoded.

    Example:
        >>> printable("a\x1b[2K\r.jpg")
        'a\\x1b[2K\\r.jpg'

    Args:
        text: what is to be printed.
        keep: the control characters to leave as they are.
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), str(text))


def is_printable(text: str) -> bool:
    """Whether a text has no control characters."""
    return not _CONTROL.search(text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def print_error(text: object) -> None:
    """Print a message, of one line or several, on standard error."""
    click.echo(printable(text, keep="\n\t"), err=True)
