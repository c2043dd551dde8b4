"""`python -m ft_focalsam`: the command `ft-focalsam`."""

from .cli.main import main

if __name__ == "__main__":
    main()
