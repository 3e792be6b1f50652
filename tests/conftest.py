"Tests keep quiet and open no window; slow ones wait until they are asked for"
import os

import pytest

os.environ.setdefault('POSEREID_QUIET', '1')
os.environ.setdefault('MPLBACKEND', 'agg')


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the slow tests, too')


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes seconds; run with --slow')


def pytest_collection_modifyitems(config, items):
    if config.getoption('--slow'): return
    for o in items:
        if o.get_closest_marker('slow'): o.add_marker(pytest.mark.skip(reason='slow; run with --slow'))
