"""``python -m cifarlib``: the same as the command ``cifarlib``."""

import sys


def main() -> int:
    """The command; Ctrl-C while it is still being imported ends it without a trace, too."""
    if sys.platform == "win32":  # which has no fcntl, and no fork
        print("cifarlib: this runs on Linux and macOS; in Windows, use WSL 2", file=sys.stderr)
        return 2
    try:
        from cifarlib import cli
    except KeyboardInterrupt:
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
