"""Run `python -m studies`; `python3 dev.py study` does so inside the environment."""

from studies.harness.cli import main

if __name__ == "__main__":
    main()
