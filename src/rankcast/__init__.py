"""rankcast: the rank of every low-rank adapter, chosen for the radio link of this moment."""

__version__ = "0.1.0"
