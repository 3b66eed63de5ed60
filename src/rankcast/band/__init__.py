"""One band, many devices: who gets which bits of which file, slot by slot.

`rankcast.band.parallel` holds the PettingZoo environment; it is imported only where it is used.
"""
