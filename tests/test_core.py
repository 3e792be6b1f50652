"Safeguards of posereid.core: failures leave nothing, types of settings, folders of others"
import dataclasses, json, os, subprocess, sys, threading, time
from pathlib import Path

import numpy as np, pytest, torch
from torch import nn

from posereid import core
from posereid.core import *


@dataclasses.dataclass
class Settings:
    lr: float = 2
    size: tuple = (64,32)
    milestones: tuple = (.6,.85)
    epochs: int = 20
    name: str = 'small'
    flip: bool = True
    depth: int|None = None
    warm: 'float' = .5


def options(*opts): return set_options({'a':Settings(), 'b':Settings()}, list(opts))

# --- settings ---

@pytest.mark.parametrize('opt,name,value', [
    ('a.lr=3','lr',3.), ('a.lr=1e-3','lr',1e-3), ('a.size=128x64','size',(128,64)),
    ('a.size=128,64','size',(128,64)), ('a.size=(128, 64)','size',(128,64)),
    ('a.milestones=.5,.75','milestones',(.5,.75)), ('a.epochs=3','epochs',3),
    ('a.name=resnet50','name','resnet50'), ('a.name=x=y','name','x=y'), ('a.flip=no','flip',False),
    ('a.flip=1','flip',True), ('a.depth=4','depth',4), ('a.depth=none','depth',None),
    ('a.warm=1','warm',1.), (' a.epochs = 3 ','epochs',3)])
def test_option_types(opt, name, value):
    got = getattr(options(opt)['a'], name)
    assert got == value and type(got) is type(value)


def test_options_leave_the_rest_alone():
    groups = {'a':Settings(), 'b':Settings()}
    new = set_options(groups, ['a.epochs=1', 'a.epochs=2', 'a.lr=5'])
    assert ((new['a'].epochs, new['a'].lr) == (2,5.) and new['b'] == groups['b']
            and groups['a'] == Settings())
    assert set_options(groups, []) == groups and set_options(groups, None) == groups


@pytest.mark.parametrize('opt,said', [
    ('a.epoch=3',"nearest is 'a.epochs'"), ('c.epochs=3',"nearest is '[ab].epochs'"),
    ('lr=3',"[ab].lr"), ('a.epochs',"group.name=value"), ('a.epochs=3.5',"takes int"),
    ('a.flip=perhaps',"takes bool"), ('a.lr=',"takes float"), ('a.size=bigxtall',"takes tuple")])
def test_option_errors(opt, said):
    with pytest.raises(InputError, match='(?s)'+said.replace('.', r'\.')) as e: options(opt)
    assert '\n' not in str(e.value)


def test_json_and_hash():
    obj = dict(s=Settings(), p=Path('x'), n=np.float32(.5), a=np.arange(2), t=torch.ones(1),
               u={2,1}, big=np.int64(3))
    assert (json.loads(to_json(obj))
            == dict(s={**dataclasses.asdict(Settings()), 'size':[64,32], 'milestones':[.6,.85]},
                    p='x', n=.5, a=[0,1], t=[1.], u=[1,2], big=3))
    assert hash_settings(1, 2) != hash_settings(2, 1) and len(hash_settings(obj)) == 12
    assert hash_settings({'a':{'b':1,'c':2}}) == hash_settings({'a':{'c':2,'b':1}})
    with pytest.raises(TypeError): to_json(dict(f=print))

# --- files ---

def names(folder): return sorted(o.name for o in folder.iterdir())


def test_write_beside_folder_replaces_and_restores(tmp_path):
    out = tmp_path/'set'
    for text in 'ab':
        with write_beside(out) as p:
            p.mkdir(); (p/text).write_text(text)
    assert names(tmp_path) == ['set'] and names(out) == ['b']
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            with write_beside(out) as p:
                p.mkdir(); (p/'c').touch()
                raise error
    with pytest.raises(FileNotFoundError):
        with write_beside(out): pass  # nothing was written
    assert names(tmp_path) == ['set'] and names(out) == ['b']


def test_write_beside_makes_parents_and_keeps_suffix(tmp_path):
    with write_beside(tmp_path/'a'/'b.csv') as p:
        assert p.suffix == '.csv' and p.parent == tmp_path/'a'
        p.write_text('x')
    assert names(tmp_path/'a') == ['b.csv']


def test_lock_waits(tmp_path):
    order = []
    def second():
        with locked(tmp_path/'x'): order.append(2)
    with locked(tmp_path/'x'):
        t = threading.Thread(target=second); t.start()
        time.sleep(.1); order.append(1)
    t.join()
    assert order == [1,2]

# --- weights ---

def net(): return nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4,2))


def test_weights_round_trip_whatever_the_layout(tmp_path):
    a = net().to(memory_format=torch.channels_last)
    save_weights(a, tmp_path/'w.safetensors')
    b = load_weights(net(), tmp_path/'w.safetensors')
    assert (weights_hash(a) == weights_hash(b)
            and sha12(tmp_path/'w.safetensors') == sha12(tmp_path/'w.safetensors'))
    with torch.no_grad(): next(b.parameters()).view(-1)[0] += 1e-7
    assert weights_hash(a) != weights_hash(b)
    assert len(weights_hash(net().bfloat16())) == 12


def test_weights_errors(tmp_path):
    save_weights(net(), tmp_path/'w.safetensors')
    for other,said in [(net()[:2], 'too many'), (nn.Sequential(*net(), nn.Linear(2,2)), 'missing')]:
        before = weights_hash(other)
        with pytest.raises(InputError, match=said): load_weights(other, tmp_path/'w.safetensors')
        assert weights_hash(other) == before
    (tmp_path/'half.safetensors').write_bytes((tmp_path/'w.safetensors').read_bytes()[:50])
    with pytest.raises(InputError, match='half.safetensors'):
        load_weights(net(), tmp_path/'half.safetensors')

# --- run folders ---

def test_run_continues_refuses_and_starts_over(tmp_path):
    run = RunFolder(tmp_path/'r', dict(s=Settings(), k='v'))
    (run/'x.txt').touch(); run.finish(dict(map=np.float64(.5)))
    assert names(tmp_path/'r') == ['metrics.json','settings.json','x.txt']
    assert set(json.loads((run/'settings.json').read_text())) == {'settings','provenance'}
    assert RunFolder(tmp_path/'r', dict(k='v', s=Settings())).metrics == {'map':.5}
    with pytest.raises(InputError, match='s.epochs: 20 → 3') as e:
        RunFolder(tmp_path/'r', dict(s=Settings(epochs=3), k='v'))
    assert '--fresh' in str(e.value) and str(tmp_path/'r') in str(e.value)
    with pytest.raises(InputError,
                       match='new: absent → 1; k: "v" → absent|k: "v" → absent; new: absent → 1'):
        RunFolder(tmp_path/'r', dict(s=Settings(), new=1))
    assert not RunFolder(tmp_path/'r', dict(s=Settings(epochs=3)), fresh=True).done
    assert names(tmp_path/'r') == ['settings.json']


@pytest.mark.parametrize('text', [None, '', 'no json', '[]', '{"editor.fontSize": 12}'])
@pytest.mark.parametrize('fresh', [False, True])
def test_foreign_folders_are_left_alone(tmp_path, text, fresh):
    (tmp_path/'mine.txt').write_text('precious')
    if text is not None: (tmp_path/'settings.json').write_text(text)
    with pytest.raises(InputError, match='choose another --out'):
        RunFolder(tmp_path, {}, fresh=fresh)
    assert (tmp_path/'mine.txt').read_text() == 'precious'


def test_run_in_odd_places(tmp_path):
    (tmp_path/'file').touch(); (tmp_path/'empty').mkdir(); (tmp_path/'empty'/'.hidden').touch()
    with pytest.raises(InputError, match='is a file'): RunFolder(tmp_path/'file', {})
    assert not RunFolder(tmp_path/'empty', {}).done
    assert not RunFolder(tmp_path/'a'/'b', {}).done


def test_provenance_is_no_setting(tmp_path, monkeypatch):
    RunFolder(tmp_path/'r', dict(a=1))
    monkeypatch.setattr(core, 'provenance', lambda: dict(torch='0.1'))
    RunFolder(tmp_path/'r', dict(a=1))

# --- commands, progress, import ---

def test_command_statuses(capsys, monkeypatch):
    @command
    def posereid_x(e):
        if e: raise e
        return 5
    monkeypatch.delenv('POSEREID_DEBUG', raising=False)
    assert posereid_x(None) == 5
    for e,status,said in [(InputError('no\n  such'), 2, 'posereid_x: no such\n'),
                          (KeyboardInterrupt(), 130, 'the same command continues'),
                          (FileNotFoundError(2, 'No such file or directory', 'a.jpg'), 2,
                           'No such file or directory: a.jpg')]:
        with pytest.raises(SystemExit) as got: posereid_x(e)
        err = capsys.readouterr().err
        assert got.value.code == status and said in err and len(err.strip().splitlines()) == 1
    # a fault of ours keeps its traceback
    with pytest.raises(ZeroDivisionError): posereid_x(ZeroDivisionError())
    monkeypatch.setenv('POSEREID_DEBUG', '1')
    with pytest.raises(InputError): posereid_x(InputError('x'))


def test_progress(capsys, monkeypatch):
    monkeypatch.setenv('POSEREID_QUIET', '1')
    assert list(progress(iter('ab'), desc='x')) == ['a','b'] and capsys.readouterr() == ('','')
    monkeypatch.setenv('POSEREID_QUIET', '0'); monkeypatch.setattr(core, '_watched', lambda: False)
    assert list(progress([1,2], desc='x')) == [1,2] and list(progress([], desc='none')) == []
    assert capsys.readouterr() == ('','x: done (2, 0 s)\nnone: done (0, 0 s)\n')
    monkeypatch.setattr(core, '_watched', lambda: True)
    assert list(progress([1,2], desc='x', leave=True)) == [1,2]
    assert '2/2' in capsys.readouterr().err
    assert core._bar('x', 0, 0, time.time()) == 'x: 0 (0 s)'


def test_core_imports_no_torch():
    code = ("import sys, posereid.core; assert not "
            "{'torch','numpy','fastai','pandas','matplotlib'} & set(sys.modules)")
    subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(core.__file__).parents[1])


def test_one_thread_under_nbdev_test():
    code = "import torch, posereid.core; print(torch.get_num_threads())"
    env = {k:v for k,v in os.environ.items() if k!='OMP_NUM_THREADS'}
    run = lambda **kw: subprocess.run([sys.executable, '-c', code], env={**env, **kw},
                                      cwd=Path(core.__file__).parents[1],
                                      capture_output=True, text=True, check=True).stdout.strip()
    assert run(IN_TEST='1') == '1'


def test_figure_style():
    from matplotlib import pyplot as plt
    before = plt.rcParams['font.size']
    with figure_style(figure_figsize=(1,1)):
        assert tuple(plt.rcParams['figure.figsize']) == (1,1) and plt.rcParams['font.size'] == 8
    assert plt.rcParams['font.size'] == before
