"""Bits through 5G NR's coding and modulation, simulated with Sionna (extra `[phy]`)."""
