"""Locks on open files, which the system releases when a process ends, however it ends."""

import os

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

HAS_LOCKS = fcntl is not None
_locked: set[int] = set()


def lock(file: int) -> bool | None:
    """Lock an open file or folder for this process alone: a forked one, which may outlive it, is let go.

    Args:
        file: the descriptor. Call `forget` before it is closed.

    Returns:
        Whether it is locked now; None where there are no locks, as on some network drives.
    """
    if not HAS_LOCKS:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    _locked.add(file)
    return True


def forget(file: int) -> None:
    """Note that a descriptor is about to be closed, which releases its lock."""
    _locked.discard(file)


def _close_in_child() -> None:
    while _locked:
        os.close(_locked.pop())


if HAS_LOCKS:
    os.register_at_fork(after_in_child=_close_in_child)
