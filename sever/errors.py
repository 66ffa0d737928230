"""The exceptions that `sever` raises in Python; their messages are those of the command line."""

from sever.utils.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    SeverError,
    StorageError,
    TrainingError,
)

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "SeverError",
    "StorageError",
    "TrainingError",
]
