"""A whole run: its configuration, its folder, training, comparison and pictures."""
