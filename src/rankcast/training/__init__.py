"""A whole run: training, its folder, the comparison with other allocators, and pictures."""
