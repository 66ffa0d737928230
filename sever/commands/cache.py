"""`sever cache`: the decoded images that a config's runs have left on the disk."""

import re
from collections.abc import Sequence
from pathlib import Path

from sever.config.load import load_config
from sever.config.loader_args import cache_folder
from sever.data_loader.decoded_cache import SUFFIX
from sever.utils.files import remove_abandoned, storage_errors
from sever.utils.logger import print_lines

_NAME = re.compile(rf".+-[0-9a-f]{{16}}{re.escape(SUFFIX)}")


def cache(config_path: Path, overrides: Sequence[str], remove: bool) -> None:
    """Print the files of decoded images in a config's folder of caches, and remove them if asked to.

    Raises:
        StorageError: one cannot be removed.
    """
    folder = cache_folder(load_config(config_path, overrides))
    remove_abandoned(folder)
    files = [path for path in sorted(folder.glob(f"*{SUFFIX}")) if _NAME.fullmatch(path.name)]
    files = [path for path in files if path.is_file() and not path.is_symlink()]
    if not files:
        print_lines([f"{folder}: no decoded images"])
    for path in files:
        size = path.stat().st_size
        if remove:
            with storage_errors(path, "cannot be removed"):
                path.unlink(missing_ok=True)
        print_lines([f"{path}  {size:,} bytes{', removed' if remove else ''}"])
