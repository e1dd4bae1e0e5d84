"""The guide names every option that there is."""

import argparse
import dataclasses
import re
from pathlib import Path

from processes import ROOT

from maru import MaruConfig
from maru_lmcache import MaruL1Config
from maru_lmcache.command import MaruServerCommand

GUIDE = (Path(ROOT) / "docs/lmcache.md").read_text()


def test_every_flag_is_in_the_guide() -> None:
    parser = argparse.ArgumentParser()
    MaruServerCommand().add_arguments(parser)
    ours = [action for action in parser._actions if action.dest.startswith("maru_")]
    assert len(ours) > 10
    documented = set(re.findall(r"`(--[a-z\[\]-]*maru-[a-z-]+)", GUIDE))
    for action in ours:
        flag = action.option_strings[0]
        either = flag.replace("--maru", "--[no-]maru")
        assert flag in documented or either in documented, flag


def test_every_setting_is_in_the_guide() -> None:
    for settings in (MaruL1Config, MaruConfig):
        for field in dataclasses.fields(settings):
            assert f"`{field.name}`" in GUIDE, field.name
