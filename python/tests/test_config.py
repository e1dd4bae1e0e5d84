"""The settings of the L1, and the command, as far as they need no LMCache."""

import subprocess
import sys
from pathlib import Path

import pytest

from maru_lmcache.config import MaruL1Config


def test_from_a_server_module() -> None:
    config = MaruL1Config.from_dict(
        {"server_url": "maru://host:7000", "pool_size_gb": 2, "auto_expand": False}
    )
    assert (config.pool_bytes, config.auto_expand, config.timeout_ms) == (2 << 30, False, 2000)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "server_url"),
        ({"server_url": "localhost"}, "maru://HOST:PORT"),
        ({"server_url": "/sock", "pool_size_gb": 0}, "pool_size_gb"),
        ({"server_url": "/sock", "timeout_ms": -1}, "timeout_ms"),
        ({"server_url": "/sock", "read_ttl_seconds": 0}, "read_ttl_seconds"),
        ({"server_url": "/sock", "pool_size_gb": "4"}, "pool_size_gb"),
        ({"server_url": "/sock", "auto_expand": "no"}, "auto_expand"),
        ({"server_url": "/sock", "timeout_ms": True}, "timeout_ms"),
        ({"server_url": "/sock", "pool_size": 7}, "pool_size; there are: server_url"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MaruL1Config.from_dict(settings)


def test_the_command_says_what_is_missing() -> None:
    command = Path(sys.executable).parent / "maru-lmcache"
    ended = subprocess.run([command, "server"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "pip install lmcache" in ended.stderr
