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
        if o.get_closest_marker('slow'):
            o.add_marker(pytest.mark.skip(reason='slow; run with --slow'))


@pytest.fixture(scope='session')
def sets():
    "Toy sets in every layout, from the cache of this session"
    from posereid.synth.sets import toy_sets
    return toy_sets()


@pytest.fixture
def refused(capsys):
    "A command must end with status 2 and one sentence that has these words"
    def _f(f, *args, says=(), status=2, **kwargs):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e: f(*args, **kwargs)
        err = capsys.readouterr().err.strip()
        assert (e.value.code==status and len(err.splitlines())==1
                and err.startswith('posereid_')), err
        for o in [says] if isinstance(says, str) else says: assert o in err, (o, err)
        return err
    return _f
