"""The cloud's server: plans, files, events and a dashboard. Needs `rankcast[serve]`."""

DEFAULT_DATABASE = "sqlite:///rankcast.db"
"""In the current folder; never in a store, whose files anyone may read."""
