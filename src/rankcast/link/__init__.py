"""A radio link: how its SNR moves, what it carries, and what a plan costs on it."""
