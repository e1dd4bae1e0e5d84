"""The command `maru-lmcache`."""

import argparse
import sys

from maru import MaruError


def main() -> None:
    """`maru-lmcache server`."""
    try:
        from maru_lmcache.command import MaruServerCommand
    except ImportError as error:
        sys.exit(
            f"maru-lmcache: LMCache cannot be imported ({error}): "
            "install it beside Maru, `pip install lmcache==0.5.6`"
        )
    parser = argparse.ArgumentParser(
        prog="maru-lmcache", description="LMCache with its L1 in a pool of CXL memory."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    server = MaruServerCommand()
    server.add_arguments(
        commands.add_parser(
            server.name(), help="`lmcache server`, with its L1 in the pool of a Maru server."
        )
    )
    args = parser.parse_args()
    try:
        server.execute(args)
    except ValueError as error:
        print(f"maru-lmcache: {error}", file=sys.stderr)
        sys.exit(2)
    except MaruError as error:
        sys.exit(f"maru-lmcache: {error}")


if __name__ == "__main__":
    main()
