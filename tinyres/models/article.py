"""To be written."""

NETWORKS = ()
