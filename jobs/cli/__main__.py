"""`python -m persres.jobs.cli`: the command line where no console script is installed, as in a Ray job."""

from .app import main

if __name__ == "__main__":
    main()
