"""A cloud and many devices on one machine, over links that change as real ones do."""
