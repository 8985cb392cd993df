"""Where what was fetched or computed once is kept: data sets, and the statistics of large ones."""

import os
from pathlib import Path

CACHE_VARIABLE = "TINYRES_CACHE"


def cache_folder() -> Path:
    """The folder $TINYRES_CACHE, else the system's usual one (pooch.os_cache: ~/.cache/tinyres on Linux).

    It may not be there yet, and may not be writable: whoever writes into it makes it.
    """
    chosen = os.environ.get(CACHE_VARIABLE, "")
    if chosen:
        return Path(os.path.expanduser(chosen))  # not Path.expanduser, which raises where there is no home
    import pooch

    return Path(pooch.os_cache("tinyres"))
