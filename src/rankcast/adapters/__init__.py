"""Low-rank adapters in SVD form whose ranks change between any two steps."""
