"""Log files and the console, as `logging.yml` says."""

import logging
import logging.config
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from sever.utils.errors import ConfigError
from sever.utils.files import storage_errors
from sever.utils.input_files import read_config_text
from sever.utils.launcher_env import world_of
from sever.utils.printing import printable
from sever.utils.yaml_parser import parse_yaml

LOGGING_FILE = Path("logging.yml")
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)  # by the `verbose` of a config

_FILE = {
    "class": "logging.handlers.RotatingFileHandler",
    "formatter": "dated",
    "maxBytes": 10485760,
    "backupCount": 5,
    "encoding": "utf-8",
}
_CONSOLE = {"class": "sever.utils.logger.ConsoleHandler", "level": "INFO", "formatter": "message"}
_PACKAGE = {"level": "DEBUG", "handlers": ["console", "info_file", "error_file"], "propagate": False}
# What the `logging.yml` of the project says, for a run from a folder without one.
DEFAULT: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "message": {"format": "%(message)s"},
        "dated": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
    },
    "handlers": {
        "console": _CONSOLE,
        "info_file": {**_FILE, "level": "DEBUG", "filename": "info.log"},
        "error_file": {**_FILE, "level": "WARNING", "filename": "errors.log", "delay": True},
    },
    "loggers": {"sever": _PACKAGE},
}


class PrintableFilter(logging.Filter):
    """Escapes the control characters of what is logged; `_configure` gives it to each handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Escape the record's message and traceback; its text and traceback keep line breaks and tabs."""
        if isinstance(record.args, tuple):
            record.args = tuple(printable(a) if isinstance(a, str | Path) else a for a in record.args)
        with suppress(TypeError, ValueError):  # a message that does not fit its arguments: the handler's
            record.msg, record.args = printable(record.getMessage(), keep="\n\t"), None
        if record.exc_info and record.exc_info[0]:
            record.exc_text = printable("".join(traceback.format_exception(*record.exc_info)), keep="\n\t")
        return True


class ConsoleHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record on standard output."""
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record))
        except Exception:  # as of each handler: the terminal is gone, or the arguments do not fit the message
            self.handleError(record)


def log_to_console() -> None:
    """Log only to the console, before or without a run folder, and only in the main process.

    From then on a line that cannot be logged, on a full disk or to a closed pipe, is dropped.
    """
    logging.raiseExceptions = False
    console = _CONSOLE if world_of(os.environ).is_main else {"class": "logging.NullHandler"}
    loggers = {"sever": {**_PACKAGE, "handlers": ["console"]}}
    _configure({**DEFAULT, "handlers": {"console": console}, "loggers": loggers})


def check_logging_file() -> None:
    """Try `logging.yml` on files that are thrown away, and log to the console again.

    Raises:
        ConfigError: it cannot be read, is not a logging config, or names a file that cannot be written.
    """
    with TemporaryDirectory(prefix="sever-") as folder:
        try:
            _configure_from_file(lambda name: _tried_path(Path(folder), Path(name)))
        finally:
            log_to_console()


def log_to_run(folder: Path) -> None:
    """Set up logging for a run.

    Args:
        folder: the folder of relative file names in `logging.yml`; made if missing.

    Raises:
        ConfigError: `logging.yml` cannot be read, or is not a logging config.
        StorageError: the log files cannot be written. Later on that is a warning.
    """
    with storage_errors(folder, "log files cannot be written there"):
        folder.mkdir(exist_ok=True)
        _configure_from_file(lambda name: _with_parents(folder / name))


def _tried_path(folder: Path, name: Path) -> Path:
    """Where a log file is tried: a relative one in a temporary folder, an absolute one not at all.

    Raises:
        ConfigError: the folder of an absolute one cannot be written to.
    """
    if not name.is_absolute() and ".." not in name.parts:
        return _with_parents(folder / name)
    if name.is_absolute() and not os.access(name.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{LOGGING_FILE}: {name}: there is no folder {name.parent} that you may write to")
    return folder / name.name


def _with_parents(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _configure_from_file(path_of: Callable[[str], Path]) -> None:
    """Set up logging as `logging.yml` says, with the path of each file name in it.

    Raises:
        ConfigError: it cannot be read, or is not a logging config.
        OSError: a log file cannot be written.
    """
    settings = DEFAULT
    if LOGGING_FILE.exists():
        settings = parse_yaml(read_config_text(LOGGING_FILE), str(LOGGING_FILE))
    try:
        handlers = {
            name: {**handler, "filename": str(path_of(handler["filename"]))}
            if "filename" in handler
            else handler
            for name, handler in settings.get("handlers", {}).items()
        }
        _configure({**settings, "handlers": handlers})
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise ConfigError(f"{LOGGING_FILE}: not a logging config: {error}") from error


def _warn_once(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """Say why a line is missing in a log file; the next ones that cannot be written are dropped silently."""
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    error = sys.exc_info()[1]
    reason = error.strerror if isinstance(error, OSError) else error
    logging.getLogger(__name__).warning(
        "%s: lines of the log cannot be written: %s. The training goes on without them.",
        *(handler.baseFilename, reason),
    )


def _configure(settings: Mapping[str, Any]) -> None:
    """Set up logging, with `PrintableFilter` for each handler whatever the settings say."""
    own = "sever.printable"
    filters = {**settings.get("filters", {}), own: {"()": PrintableFilter}}
    handlers = {
        name: {**handler, "filters": [*handler.get("filters", ()), own]}
        for name, handler in settings.get("handlers", {}).items()
    }
    changed = {"disable_existing_loggers": False, **settings, "filters": filters, "handlers": handlers}
    configurator = logging.config.dictConfigClass(changed)
    configurator.configure()
    for handler in configurator.config.get("handlers", {}).values():
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_warn_once, handler)  # type: ignore[method-assign]


def set_verbosity(name: str, verbose: int) -> logging.Logger:
    """A module's logger, set to the level of `verbose`: 0 warnings, 1 info, 2 debug."""
    logger = logging.getLogger(name)
    logger.setLevel(_LEVELS[verbose])
    return logger


def print_lines(lines: Sequence[str]) -> None:
    """Print to standard output, only in the main process."""
    if not world_of(os.environ).is_main:
        return
    for line in lines:
        click.echo(printable(line))
