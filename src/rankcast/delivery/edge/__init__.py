"""What a device does: fetch, verify, activate, prove, keep what was before."""
