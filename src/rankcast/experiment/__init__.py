"""Experiments as folders: one claim each, run in jobs, resumed, and reported from results alone."""
