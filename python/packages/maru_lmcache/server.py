"""Maru under `lmcache server`: a server module that puts the shared pool in place
of its own L1.

    lmcache server ... --server-module '{"module_path": "maru_lmcache.server",
        "config": {"server_url": "unix:///run/user/1000/maru.sock"}}'

`maru-lmcache server ... --maru-server-url URL` says the same in LMCache's flags.
"""

import argparse
import logging
import sys
from dataclasses import replace
from typing import Any

from lmcache.cli.commands.server import ServerCommand
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.config import StorageManagerConfig, parse_args_to_config
from lmcache.v1.distributed.storage_manager import L1WriteCompletion, StorageManager
from lmcache.v1.multiprocess.engine_context import MPCacheServerContext
from lmcache.v1.multiprocess.ext_server_module import ExtServerModuleBuildContext
from lmcache.v1.multiprocess.modules.engine_driven_transfer import (
    EngineDrivenContextEntry,
    EngineDrivenTransferModule,
)
from lmcache.v1.multiprocess.modules.lmcache_driven_transfer import (
    LMCacheDrivenTransferModule,
)

from maru_lmcache.config import MaruL1Config
from maru_lmcache.l1 import MaruL1Manager
from maru_lmcache.layouts import world_size

logger = logging.getLogger(__name__)

# What `lmcache server` builds before server modules are asked is thrown away: as little as will do.
BOOT_L1_SIZE_GB = 1 / 64


class MaruModule:
    """The module that `lmcache server` has of it: a status, and the L1's owner.

    Args:
        context: The server's context.
        manager: The L1 over the pool.
    """

    def __init__(self, context: MPCacheServerContext, manager: MaruL1Manager) -> None:
        self._context = context
        self._manager = manager

    @property
    def context(self) -> MPCacheServerContext:
        """The server's context."""
        return self._context

    def report_status(self) -> dict[str, Any]:
        """What the status page shows."""
        return {
            "maru": {
                "server_url": self._manager.maru_config.server_url,
                "shared_memory": self._context.shm_pool_info["shm_name"],
            }
        }

    def close(self) -> None:
        """The context closes the storage manager, and that the L1."""


def build_server_modules(build: ExtServerModuleBuildContext) -> MaruModule:
    """The factory that `--server-module` names.

    Raises:
        ValueError: A setting makes no sense, or LMCache's own do not go with a
            shared pool.
        MaruError: The Maru server cannot be reached, or refuses.
    """
    settings = _storage_settings(sys.argv)
    ttls = {
        "write_ttl_seconds": settings.l1_manager_config.write_ttl_seconds,
        "read_ttl_seconds": settings.l1_manager_config.read_ttl_seconds,
    }
    config = MaruL1Config.from_dict({**ttls, **build.config})
    if build.mp_config.p2p_config.enabled:
        raise ValueError(
            "P2P transfer was set up with the private L1 already: leave it out, instances that "
            "share a pool need none"
        )
    context = build.server_context
    wants_shared_memory = (
        config.shared_memory is not False
        and build.mp_config.supported_transfer_mode != "lmcache_driven"
    )
    # First the old one: closing it ends a notifier that the process has once, and ours begins anew.
    first = context.storage_manager
    first.close()
    manager = MaruL1Manager(
        config,
        layouts=lambda key: _registered_layout(context, key),
        outside_writers=wants_shared_memory,
    )
    try:
        shared = manager.shared_file() if wants_shared_memory else None
        if config.shared_memory and shared is None:
            raise ValueError(
                "shared_memory: the pool is not one file right under /dev/shm that this host has; "
                "serve such a one, or leave the setting out and workers send pickles"
            )
        storage = StorageManager(
            replace(
                settings,
                l1_manager_config=manager.config,
                l1_manager_configs=[manager.config],
            ),
            _l1_managers=(manager,),
        )
    except BaseException:
        manager.close()
        raise
    name, size = shared or ("", 0)
    # The transfer modules keep this very dictionary.
    context.shm_pool_info.update(shm_name=name, pool_size=size)
    context._storage_manager = storage
    # The gauge of L2 keeps asking the first one.
    first._l2_adapters = storage._l2_adapters
    first._adapter_descriptors = storage._adapter_descriptors
    for module in build.modules:
        if isinstance(module, LMCacheDrivenTransferModule):
            _rebind(module, storage)
        elif isinstance(module, EngineDrivenTransferModule):
            _forget_unfinished(module)
    logger.info(
        "L1 is the pool of the Maru server at %s; workers of the engine-driven mode use %s",
        config.server_url,
        f"shared memory ({name})" if name else "pickles",
    )
    return MaruModule(context, manager)


def _rebind(module: LMCacheDrivenTransferModule, storage: StorageManager) -> None:
    """The module keeps the methods that it calls when a GPU's stream is done."""
    keys = list[ObjectKey]
    module.register_host_func("finish_write", storage.finish_write, keys)
    module.register_host_func(
        "finish_write_by_owner", storage.finish_write_by_owner, L1WriteCompletion
    )
    module.register_host_func("finish_read_prefetched", storage.finish_read_prefetched, keys)
    module.register_host_func(
        "finish_read_by_owner", storage.finish_read_by_owner, L1WriteCompletion
    )


def _forget_unfinished(module: EngineDrivenTransferModule) -> None:
    """When a worker is gone, LMCache finishes the writes that it had begun through
    shared memory, though nobody knows how far they got. In a private L1 that harms
    its owner; here all instances would read it. So what such a worker has not
    finished stays staged, unseen, until its reservation expires: by then it does
    not write any more either.
    """
    release = module._release_entry

    def release_entry(instance_id: int, entry: EngineDrivenContextEntry) -> None:
        pending = module._pending_shm_writes
        with module._pending_shm_lock:
            begun = [transfer for transfer in pending if transfer[0] == instance_id]
            keys = [key for transfer in begun for key in pending.pop(transfer)]
        if keys:
            logger.warning(
                "worker %d is gone before it had written %d chunks; they are not stored",
                instance_id,
                len(keys),
            )
        release(instance_id, entry)

    module._release_entry = release_entry


def _registered_layout(context: MPCacheServerContext, key: ObjectKey) -> MemoryLayoutDesc | None:
    """How this server's workers said that chunks of such a key lie."""
    groups = context.layout_desc_registry.find_group_layout_descs(key.model_name, world_size(key))
    return None if groups is None else groups.get(key.object_group_id)


def _storage_settings(argv: list[str]) -> StorageManagerConfig:
    """What the server was told of its storage (L2 adapters, policies): the factory
    is not given it, so the command line is read once more, by LMCache's parser.

    Raises:
        ValueError: The process is no `lmcache server`, or is to have several L1s.
    """
    spec = sys.modules["__main__"].__spec__
    if argv[1:2] == ["server"]:
        flags = argv[2:]
    elif spec is not None and spec.name.startswith("lmcache.v1.multiprocess."):
        # `python -m lmcache.v1.multiprocess.http_server` takes the same ones.
        flags = argv[1:]
    else:
        raise ValueError(
            "the settings of the storage are read from the command line of `lmcache server`, which "
            "this process is not: make a StorageManager with _l1_managers=(MaruL1Manager(...),)"
        )
    parser = argparse.ArgumentParser(add_help=False)
    ServerCommand().add_arguments(parser)
    args, _ = parser.parse_known_args(flags)
    return parse_args_to_config(without_private_l1(args))


def without_private_l1(args: argparse.Namespace) -> argparse.Namespace:
    """Arguments of `lmcache server` whose private L1 takes next to nothing.

    Raises:
        ValueError: They want several L1s.
    """
    if args.l1_manager:
        raise ValueError(
            "--l1-manager: with Maru the pool is the one L1; leave it out, and affinity tags of L2 "
            "adapters with it"
        )
    args.l1_size_gb = BOOT_L1_SIZE_GB
    args.l1_init_size_gb = BOOT_L1_SIZE_GB
    args.l1_use_lazy = False
    args.l1_use_hugepages = False
    args.l1_devdax_path = None
    args.gds_l1_path = None
    args.eviction_policy = "noop"
    return args
