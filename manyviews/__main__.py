"""`python -m manyviews`, for torchrun."""

from manyviews.cli import main

if __name__ == "__main__":
    main()
