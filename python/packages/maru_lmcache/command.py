"""`maru-lmcache server`: LMCache's command, with Maru's flags."""

import argparse
import json
from dataclasses import fields

from lmcache.cli.commands.server import ServerCommand

from maru import Client
from maru_lmcache.config import MaruL1Config
from maru_lmcache.server import without_private_l1


class MaruServerCommand(ServerCommand):
    """`lmcache server`, with its L1 in a Maru pool."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds LMCache's arguments, and Maru's."""
        super().add_arguments(parser)
        maru = parser.add_argument_group("Maru")
        maru.add_argument(
            "--maru-server-url",
            metavar="URL",
            help="Keep L1 in the pool of this Maru server: maru://HOST:PORT, tcp://HOST:PORT, "
            "unix:///PATH or /PATH. Without it, this is `lmcache server` as it is.",
        )
        maru.add_argument(
            "--maru-pool-size-gb",
            type=float,
            metavar="GB",
            help="How much of the pool this instance may fill, with --no-maru-auto-expand.",
        )
        maru.add_argument(
            "--maru-instance-id",
            metavar="NAME",
            help="The instance's name; instances of one name share what they may fill. Default: "
            "from host and process.",
        )
        maru.add_argument(
            "--maru-auto-expand",
            action=argparse.BooleanOptionalAction,
            help="Fill more than --maru-pool-size-gb wherever the pool has room: the default.",
        )
        maru.add_argument(
            "--maru-timeout-ms",
            type=int,
            metavar="MS",
            help="How long a request may take, reconnecting included. Default: 2000.",
        )
        maru.add_argument(
            "--maru-max-inflight",
            type=int,
            metavar="N",
            help="The most requests on their way at a time. Default: 64.",
        )
        maru.add_argument(
            "--maru-eager-map",
            action=argparse.BooleanOptionalAction,
            help="Bring in the mapping of the whole pool at the start: the default.",
        )
        maru.add_argument(
            "--maru-verify",
            choices=["off", "sample", "always"],
            help="Which chunks are held against their checksums before they are read, if the "
            "server asks for checksums. Default: sample, one in 16.",
        )
        maru.add_argument(
            "--maru-host-id",
            metavar="NAME",
            help="The host's name: the same for instances whose processors share a cache-coherent "
            "view of the pool, and for no others. Default: the kernel's boot id.",
        )
        maru.add_argument(
            "--maru-shared-memory",
            action=argparse.BooleanOptionalAction,
            help="Let workers of the engine-driven mode reach the pool's pages themselves, which "
            "needs a pool that is one file right under /dev/shm. Default: wherever that is so; "
            "else they send pickles. (--shm-name has no effect.)",
        )
        maru.add_argument(
            "--maru-visibility-plugin",
            metavar="FILE",
            help="The library that makes chunks visible to other hosts, where the processor's own "
            "instructions are not enough.",
        )

    def execute(self, args: argparse.Namespace) -> None:
        """Runs the server.

        Raises:
            ValueError: A flag makes no sense.
            MaruError: The Maru server cannot be reached, or refuses.
        """
        config = maru_settings(args)
        if config is not None:
            # Told here in a line, rather than by the start of LMCache's server in a hundred.
            Client(
                args.maru_server_url,
                instance=args.maru_instance_id,
                host=args.maru_host_id,
                visibility_plugin=args.maru_visibility_plugin,
            ).close()
            module = {"module_path": "maru_lmcache.server", "config": config}
            args.server_module = [*(args.server_module or []), json.dumps(module)]
            args = without_private_l1(args)
        super().execute(args)


def maru_settings(args: argparse.Namespace) -> dict[str, object] | None:
    """The settings of the server module, as the flags have them; ``None`` without
    ``--maru-server-url``.

    Raises:
        ValueError: A flag makes no sense.
    """
    names = [field.name for field in fields(MaruL1Config)]
    given = {name: getattr(args, f"maru_{name}", None) for name in names}
    settings = {name: value for name, value in given.items() if value is not None}
    if not settings:
        return None
    if "server_url" not in settings:
        flags = ", ".join(f"--maru-{name.replace('_', '-')}" for name in settings)
        raise ValueError(f"{flags} without --maru-server-url: say where the Maru server is")
    settings["read_ttl_seconds"] = args.l1_read_ttl_seconds
    settings["write_ttl_seconds"] = args.l1_write_ttl_seconds
    # Wrong ones are to be told before the server is begun.
    MaruL1Config.from_dict(settings)
    return settings
