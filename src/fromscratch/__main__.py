"""``python -m fromscratch``: the same as the ``fromscratch`` command."""

from fromscratch.cli.main import main

if __name__ == "__main__":
    main()
