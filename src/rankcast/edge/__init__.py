"""Run on a device: fetch, verify, activate and prove an adapter, and keep the one before."""
