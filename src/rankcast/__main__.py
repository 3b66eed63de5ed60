"""`python -m rankcast` is `rankcast`."""

from rankcast.cli.main import main

if __name__ == "__main__":
    main()
