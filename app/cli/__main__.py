"""`python -m app.cli` is `retort`."""

from app.cli import main

if __name__ == "__main__":
    main()
