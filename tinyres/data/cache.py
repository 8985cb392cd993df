"""Where data lies: the variable with the user's folder, and the folder for what was fetched or computed once."""

import os
from pathlib import Path

VARIABLE = "TINYRES_DATA"
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
