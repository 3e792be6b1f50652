"Nothing is trusted by its name: checkpoints, weights, pictures and poses are what their bytes are"
import os
import signal
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from posereid.core import InputError, command, load_weights, save_weights, weights_hash
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.experiment.engine import Experiment
from posereid.experiment.presets import TINY_WORLD, experiment_settings
from posereid.experiment.rows import pick_rows
from posereid.models.reid import reid_net
from posereid.stages import fit, reid
from posereid.stages.reid import ReIDSettings, train_reid
from posereid.synth.world import load_world, make_world, tiny_world


class Stop(Callback):
    "Ctrl-C after some epochs"
    order = 50
    def __init__(self, after): self.after = after
    def after_epoch(self):
        if self.epoch+1==self.after: raise KeyboardInterrupt


@pytest.fixture(scope='module')
def train():
    df = pick(tiny_world().target, split='train')
    def _train(folder, stop=None, **kw):
        "Trained weights; stopped after some epochs, if told so"
        s = ReIDSettings(**{**dict(width=4, epochs=4, bs=24), **kw})
        with pytest.MonkeyPatch.context() as m:
            if stop:
                known = reid.fit_stage
                m.setattr(reid, 'fit_stage', lambda *a: known(*a[:-1], [*a[-1], Stop(stop)]))
            try: return weights_hash(train_reid(df, PictureStore(s.size), train_labels(df), s,
                                                folder, every=0))
            except KeyboardInterrupt: return None
    return _train


@pytest.fixture(scope='module')
def whole(train, tmp_path_factory):
    path = tmp_path_factory.mktemp('trust')/'whole'
    return train(path),(path/'log.csv').read_bytes()


@pytest.fixture(scope='module')
def at_three(train, tmp_path_factory):
    train(path := tmp_path_factory.mktemp('trust')/'stopped', stop=3)
    return path


@pytest.fixture
def stopped(at_three, tmp_path):
    "A run that was stopped after its third epoch of four"
    return shutil.copytree(at_three, tmp_path/'run')


def flipped(path, at, bit=4):
    data = bytearray(path.read_bytes())
    data[int(at*(len(data)-1))] ^= 1<<bit
    path.write_bytes(data)


def test_the_checkpoint_before_is_kept(stopped, train, whole):
    assert {'checkpoint.pt','checkpoint.before.pt'} <= {o.name for o in stopped.iterdir()}
    assert (train(stopped), (stopped/'log.csv').read_bytes())==whole
    assert not list(stopped.glob('checkpoint*'))


@pytest.mark.parametrize('at', [0, .03, .2, .4, .6, .8, .97, 1])
def test_a_bit_of_a_checkpoint(stopped, train, whole, at):
    "Either the bit does not matter, or it is told; the weights are those of a whole run"
    flipped(stopped/'checkpoint.pt', at)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        assert (train(stopped), (stopped/'log.csv').read_bytes())==whole
    told = [str(o.message) for o in told if 'checkpoint' in str(o.message)]
    assert all('checkpoint.pt is damaged' in o for o in told)


def test_flips_in_tensors_are_told(stopped):
    "Every bit of the weights themselves"
    keep = fit.Checkpoint(stopped/'checkpoint.pt', of='')
    state = torch.load(stopped/'checkpoint.pt', weights_only=True)
    keep.of,right = state['of'],state.pop('digest')
    assert keep.read(stopped/'checkpoint.pt')[1]=='' and fit.state_digest(state)==right
    for k,v in state['model'].items():
        if not v.numel(): continue
        old = v.clone()
        v[(-1,)*v.ndim] += 1
        assert fit.state_digest(state)!=right, k
        v.copy_(old)
    for k,v in dict(epoch=2, of='x', log='').items(): assert fit.state_digest({**state, k:v})!=right


@pytest.mark.parametrize('bad', [b'', b'PK\3\4', None])
def test_no_checkpoint_is_whole(stopped, train, whole, bad):
    "Both are cut: the training begins anew, and says so"
    for o in stopped.glob('checkpoint*'):
        o.write_bytes(o.read_bytes()[:len(o.read_bytes())//2] if bad is None else bad)
    with pytest.warns(UserWarning, match='damaged'):
        assert (train(stopped), (stopped/'log.csv').read_bytes())==whole


def test_a_checkpoint_of_another_seed(stopped, train, whole, tmp_path):
    train(tmp_path/'other', stop=3, seed=1)
    for o in stopped.glob('checkpoint*'): shutil.copy(tmp_path/'other'/o.name, o)
    with pytest.warns(UserWarning, match='other settings'):
        assert (train(stopped), (stopped/'log.csv').read_bytes())==whole


@pytest.mark.parametrize('text', ['', 'epoch,loss\n', 'epoch,loss\n0,', '\0\0'])
def test_a_log_that_was_cut(stopped, train, whole, text):
    (stopped/'log.csv').write_text(text)
    assert (train(stopped), (stopped/'log.csv').read_bytes())==whole


def test_collapse_is_remembered(train, tmp_path, monkeypatch):
    monkeypatch.setattr(reid, 'collapsed', lambda *o: True)
    warnings.simplefilter('ignore')
    read = lambda p: pd.read_json(p/'metrics.json', typ='series').collapsed_in
    train(tmp_path/'a', loss='triplet')
    train(tmp_path/'b', loss='triplet', stop=2)
    train(tmp_path/'b', loss='triplet')
    assert read(tmp_path/'a')==read(tmp_path/'b')==[1,2,3,4]


def test_every_bit_of_weights(tmp_path):
    "A flip in a file of weights is refused, or nothing is changed by it"
    net,path = reid_net(3, width=2),tmp_path/'w.safetensors'
    save_weights(net, path)
    right,data = weights_hash(net),path.read_bytes()
    save_weights(net, path)
    assert path.read_bytes()==data
    refused = 0
    for i in range(0, len(data), 41):
        path.write_bytes(data[:i]+bytes([data[i]^1])+data[i+1:])
        try: assert weights_hash(load_weights(reid_net(3, width=2), path))==right, i
        except InputError: refused += 1
    assert refused > .9*len(range(0, len(data), 41))


def _drop(home): min((home/'target'/'query').glob('*.jpg')).unlink()
def _swap(home):
    a,b = sorted((home/'target'/'bounding_box_train').glob('*.jpg'))[:2]
    old = a.read_bytes(); a.write_bytes(b.read_bytes()); b.write_bytes(old)
def _cut(home):
    file = home/'target_poses.csv'
    file.write_text('\n'.join(file.read_text().splitlines()[:20])+'\n')
def _add(home):
    a = min((home/'target'/'bounding_box_test').glob('0*.jpg'))
    shutil.copy(a, a.with_name(a.name.replace('_01.jpg', '_77.jpg').replace('_0', '_9', 1)))


@pytest.mark.parametrize('plant', [_drop, _swap, _cut, _add])
def test_a_world_is_what_was_drawn(tmp_path, plant):
    home = shutil.copytree(tiny_world().root, tmp_path/'world')
    load_world(home)
    plant(home)
    with pytest.raises(InputError, match='not as it was drawn: t'): load_world(home)


@pytest.mark.skipif(os.name=='nt', reason='no such rights there')
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    "A world that is there is read without a lock"
    monkeypatch.setenv('POSEREID_CACHE', str(tmp_path/'cache'))
    w = tiny_world()
    monkeypatch.setattr('posereid.synth.world.locked', None)
    assert make_world(w.cast.settings)==w.root


def test_rows_of_one_table_have_one_test_set(tmp_path):
    from posereid.experiment.inputs import world_inputs
    g = experiment_settings('smoke', opts=[*TINY_WORLD, 'reid.epochs=1'])
    home = shutil.copytree(tiny_world().root, tmp_path/'world')
    go = lambda: Experiment(pick_rows('control'), g, tmp_path/'run',
                            world_inputs(load_world(home)))
    go().results()
    lines = (tmp_path/'run'/'results.csv').read_bytes()
    (tmp_path/'run'/'results.csv').unlink()
    go().results()
    assert (tmp_path/'run'/'results.csv').read_bytes()==lines
    inputs = world_inputs(load_world(home))
    a = min((home/'target'/'query').glob('*.jpg'))
    a.write_bytes(max((home/'target'/'query').glob('*.jpg')).read_bytes())
    with pytest.raises(InputError, match=f'data.query: .*Pictures that differ: query/{a.name}'):
        Experiment(pick_rows('control'), g, tmp_path/'run', inputs)


KILLED = """
import time
from pathlib import Path
from posereid.core import command, hold, write_beside
@command
def go():
    hold('run')
    with write_beside('run/log.csv') as p:
        p.write_text('half'); print('now', flush=True); time.sleep(60)
go()
"""

@pytest.mark.skipif(os.name=='nt', reason='no such signals there')
@pytest.mark.parametrize('sig,status,left', [(signal.SIGTERM,143,0), (signal.SIGINT,130,0),
                                             (signal.SIGKILL,-9,1)])
def test_signals(tmp_path, sig, status, left):
    "SIGTERM cleans up as Ctrl-C does; what a killed process left is swept at the next start"
    from posereid.core import hold, let_go
    (tmp_path/'run').mkdir()
    p = subprocess.Popen([sys.executable, '-c', KILLED], cwd=tmp_path, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert p.stdout.readline()=='now\n'
    p.send_signal(sig)
    err = p.communicate(timeout=60)[1]
    assert p.returncode==status and 'Traceback' not in err
    assert sig==signal.SIGKILL or 'the same command continues' in err
    assert len(list((tmp_path/'run').iterdir()))==left
    hold(tmp_path/'run'); let_go(tmp_path/'run')
    assert not list((tmp_path/'run').iterdir())


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_a_full_disk_is_said(monkeypatch, capsys, tmp_path):
    "Weights, checkpoints and texts that do not fit"
    known = Path.write_bytes
    def full(self, data):
        with open('/dev/full', 'wb', buffering=0) as f: f.write(bytes(data)[:10])
    monkeypatch.setattr(Path, 'write_bytes', full)
    @command
    def save(): save_weights(reid_net(3, width=2), tmp_path/'w.safetensors')
    with pytest.raises(SystemExit) as e: save()
    err = capsys.readouterr().err
    assert e.value.code==2 and 'The disk is full at' in err and 'w.safetensors' in err
    assert not list(tmp_path.iterdir())


def test_pictures_of_equal_size(tmp_path):
    "A run folder knows its pictures by their bytes, not by their names and sizes"
    df = pick(tiny_world().target, split='train')[:1].reset_index(drop=True)
    file = tmp_path/Path(df.path[0]).name
    shutil.copy(df.path[0], file)
    new = df.assign(path=str(file))
    assert fit.frame_id(new)==fit.frame_id(df)
    flipped(file, .5)
    assert fit.frame_id(new)!=fit.frame_id(df)
