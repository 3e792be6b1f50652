"Several processes at once in one folder, and processes that are killed: no line lost, none spoilt"
import os, signal, subprocess, sys, time

import pandas as pd
import pytest

from posereid.core import hold, let_go

pytestmark = pytest.mark.skipif(sys.platform=='win32', reason='no such locks there')

def start(code, *args):
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONWARNINGS':'ignore::FutureWarning'}
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

def ended(p):
    out,err = p.communicate(timeout=300)
    assert p.returncode==0, err[-2000:]
    return out,err

TRAIN = """
import sys
from posereid.core import weights_hash
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.stages.reid import ReIDSettings, train_reid
from posereid.synth.world import tiny_world
w = tiny_world()
s = ReIDSettings(width=8, epochs=4, bs=16)
train = pick(w.target, split='train')
print(weights_hash(train_reid(train, PictureStore(s.size), train_labels(train), s, sys.argv[1])))
"""

def test_two_trainings_in_one_folder(tmp_path):
    both = [start(TRAIN, tmp_path/'run') for _ in range(2)]
    said = {ended(p)[0] for p in both}
    assert len(said)==1
    assert pd.read_csv(tmp_path/'run'/'log.csv').epoch.tolist()==[0,1,2,3]
    assert {o.name for o in (tmp_path/'run').iterdir()}=={'settings.json','metrics.json',
                                                          'log.csv','reid.json','reid.safetensors'}
    assert [o.name for o in tmp_path.iterdir()]==['run']  # no lock is left

LINES = """
import sys
from pathlib import Path
from posereid.experiment.tables import append_lines
seed,path = int(sys.argv[1]),Path(sys.argv[2])
for i in range(12):
    append_lines([dict(table='t', part='', row=f'r{i}', run='x', seed=seed, map_trap=1.)], path)
"""

def test_three_processes_append_to_one_csv(tmp_path):
    [ended(p) for p in [start(LINES, s, tmp_path/'t.csv') for s in (1,2,3)]]
    df = pd.read_csv(tmp_path/'t.csv')
    assert sorted(zip(df.seed, df.row))==sorted((s, f'r{i}') for s in (1,2,3) for i in range(12))

HOLD = "import sys, time; from posereid.core import hold; hold(sys.argv[1]); print('held', flush=True); time.sleep(60)"

def test_a_killed_process_holds_nothing(tmp_path):
    p = start(HOLD, tmp_path/'run')
    assert p.stdout.readline()=='held\n'
    p.send_signal(signal.SIGKILL); p.wait()
    t = time.time()
    hold(tmp_path/'run'); let_go(tmp_path/'run')
    assert time.time()-t < 5


def test_a_line_that_is_there_is_not_written_twice(tmp_path):
    from posereid.experiment.tables import append_lines
    one = lambda **kw: dict(table='t', part='', row='r', run='x', seed=1, map_trap=1., **kw)
    append_lines([one()], tmp_path/'t.csv')
    df = append_lines([one(), {**one(), 'seed':2}], tmp_path/'t.csv')
    assert df.seed.tolist()==[1,2]==pd.read_csv(tmp_path/'t.csv').seed.tolist()
