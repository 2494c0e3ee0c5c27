"""python -m orchestrator: the one way in."""

from orchestrator.cli import main

if __name__ == "__main__":
    main()
