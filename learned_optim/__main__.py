"""`python -m learned_optim` is the command `learned-optim`."""

from learned_optim.cli import main

if __name__ == "__main__":
    main()
