"""Sign releases of adapters, keep them, plan what a device fetches, and verify what comes."""
