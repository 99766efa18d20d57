"""`python -m medar`: the command line where the script is not on the path."""

from medar.cli.main import main

if __name__ == "__main__":
    main()
