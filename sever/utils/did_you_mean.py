"""The nearest known name for one that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known name as the end of a message.

    Example:
        >>> did_you_mean("BCEDicLoss", ["BCEDiceLoss", "nll_loss"])
        " Did you mean 'BCEDiceLoss'?"
        >>> did_you_mean("zebra", ["BCEDiceLoss"])
        ''
    """
    names: dict[str, str] = {}
    for known_name in known:  # of names that differ only in case, the first
        names.setdefault(known_name.lower(), known_name)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    return f" Did you mean '{names[close[0]]}'?" if close else ""
