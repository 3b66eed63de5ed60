"""Which version a device is to have: rollouts in stages, by rules and kept in a database."""
