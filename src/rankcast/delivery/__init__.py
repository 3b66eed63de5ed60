"""Adapters from a cloud to devices: a store, signatures, plans, and what a device does."""
