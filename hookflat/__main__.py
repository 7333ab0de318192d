"""`python -m hookflat`, and what `accelerate launch -m hookflat` starts."""

from hookflat.cli import main

if __name__ == "__main__":
    main()
