"""Choosing ranks for a link: the problem, its solvers, and beliefs about what a rank is worth."""
