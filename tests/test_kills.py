"Runs that are killed end with the same bytes: a few here, more with --slow, a log beside"
import os
from pathlib import Path

import pandas as pd
import pytest

import kill

pytestmark = pytest.mark.skipif(os.name=='nt', reason='no such signal there')


def test_a_few_kills():
    res = kill.main(1, seed=1)
    assert all(o['different']==0 for o in res) and sum(o['kills'] for o in res)>0


@pytest.mark.slow
def test_many_kills():
    assert all(o['different']==0 for o in kill.main(2, seed=2))


def test_the_log():
    log = pd.read_csv(Path(__file__).with_name('kill_log.csv'))
    assert (log.different==0).all() and log.kills.sum()>=50 and log.command.nunique()==1
