"""How much memory a file may make us take: not what its header claims, but what a file of its size can hold.

Deflate (gzip, zip) packs zeros 1,032-fold, photographs less than twofold, grey drawings two- to tenfold.
"""

SMALL = 64 * 2**20  # bytes that anything may take
MOST_SHRINKAGE = 256
LARGEST = 16 * 2**30  # bytes that nothing may take


class SizeError(ValueError):
    """An array of more bytes than any data set should have, or than its file can be believed to hold."""


def check_size(where: str, claimed: int, fix: str) -> None:
    """Raise SizeError, beginning with `where`, for an array of more bytes than any data set here should have."""
    if claimed > LARGEST:
        raise SizeError(f"{where}: {claimed:,} bytes of values, expected at most {LARGEST:,} ({LARGEST >> 30} GiB). "
                        f"{fix}")


def check_shrinkage(where: str, claimed: int, packed: int, fix: str) -> None:
    """Raise SizeError, beginning with `where`, if `packed` bytes claim to hold more than images ever pack to."""
    check_size(where, claimed, fix)
    most = max(SMALL, MOST_SHRINKAGE * packed)
    if claimed > most:
        raise SizeError(f"{where}: its {packed:,} packed bytes claim to hold {claimed:,}, expected at most {most:,} "
                        f"({MOST_SHRINKAGE} times as many): far more than images shrink. {fix}")
