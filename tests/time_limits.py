# SPDX-License-Identifier: BSD-3-Clause
"""A pytest plugin: no test, collection or end of a run hangs; what does is stopped, and says where.

Two limits hold for every test. At the first, that of pyproject.toml, pytest-timeout fails the test by a signal, and the
run goes on. What a signal cannot end, such as a wait in C or a lock that is waited for again on the way out, is ended
with its process at the second, by a thread of faulthandler's, which needs neither Python's lock nor a package: it
prints all stacks, and where pytest-xdist runs, this names the test and starts a new worker.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

SLOW_LIMIT = 1800.0  # seconds, of a test marked slow
COLLECTION_LIMIT = 600.0
EXIT_LIMIT = 60.0  # from the last test to the end of the process, which threads left behind may hold up
HARD = 1.5  # the second limit in terms of the first

_stderr = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not pluginmanager.hasplugin("timeout"):  # then the second limit holds alone
        parser.addini("timeout", "limit on a test in seconds", default="0")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # during the tests pytest captures it
    if not config.pluginmanager.hasplugin("timeout"):
        config.addinivalue_line("markers", "timeout(seconds): another limit than that of pyproject.toml")


def pytest_unconfigure(config: pytest.Config) -> None:
    faulthandler.dump_traceback_later(EXIT_LIMIT, exit=True, file=config.stash[_stderr])


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(SLOW_LIMIT))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    with _ended_after(session.config, COLLECTION_LIMIT):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    with _ended_after(item.config, HARD * _limit(item)):
        return (yield)


def _limit(item: pytest.Item) -> float:
    """The first limit on a test in seconds, 0 for none, by the rules of pytest-timeout."""
    if mark := item.get_closest_marker("timeout"):
        return float(mark.args[0])
    option = item.config.getoption("timeout", None)
    return float(item.config.getini("timeout") if option is None else option)


@contextmanager
def _ended_after(config: pytest.Config, seconds: float) -> Iterator[None]:
    """Print all stacks and end the process if the body takes longer; 0 seconds, or a debugger: never."""
    if seconds and not config.getoption("usepdb"):
        faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[_stderr])
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
