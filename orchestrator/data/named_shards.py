"""Find the shards that a person names on a command line."""

import logging
import os
from pathlib import Path

from orchestrator.data.shards import COMPLETE_MARKER
from orchestrator.storage import Filesystem
from orchestrator.utils import check_address, is_address

logger = logging.getLogger(__name__)


def named_shards(text: str, root: Path) -> Filesystem:
    """Return the folder of shards that a person names on a command line; it need not exist.

    A relative path is one of the current folder where that holds shards, or where the path begins
    with ./ or ../; any other is a data set of the results root.

    Args:
        text: A path, or the address of a place in a bucket.
        root: The storage root.

    Raises:
        UserError: The address is not served, or cannot be reached.
    """
    check_address(text)
    path = Path(text)
    if is_address(text) or path.is_absolute() or text.startswith("~"):
        return Filesystem(text, root)
    here = (path / COMPLETE_MARKER).is_file()
    if here or text.split("/")[0] in (".", ".."):
        if here and (root / path / COMPLETE_MARKER).is_file() and root / path != path.absolute():
            logger.info(
                f"note: {path.absolute()} is used, not {root / path}, which holds shards as well"
            )
        return Filesystem(os.path.abspath(path))
    return Filesystem(text, root)
