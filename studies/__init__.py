"""The scoreboard: every claim of the paper and every question of ours, as folders that can be run.

`python3 dev.py study` lists, runs and reports them; docs/studies.md says how they work.
"""
