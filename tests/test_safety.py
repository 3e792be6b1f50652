"No file of weights or of data can run code: what is read is tensors, numbers and text"
import ast, os, pickle
from pathlib import Path

import numpy as np, pytest, torch

from posereid.core import InputError
from posereid.models.reid import read_state
from posereid.pose import estimate
from posereid.pose.formats import read_market14

ROOT = Path(__file__).parents[1]
# a call that can unpickle → the argument that forbids it
ASKED = {'load':('torch','weights_only',True), 'load_state_dict_from_url':('hub','weights_only',True)}
NEVER = {('pickle','load'), ('pickle','loads'), ('pickle','Unpickler'), ('joblib','load'),
         ('dill','load'), ('torch','jit'), ('shelve','open')}

def unrestricted(source):
    "Calls in a source that could run what a file says"
    res = []
    for o in ast.walk(ast.parse(source)):
        if not isinstance(o, ast.Call) or not isinstance(o.func, ast.Attribute): continue
        owner = o.func.value
        owner = owner.id if isinstance(owner, ast.Name) else getattr(owner, 'attr', '')
        given = {k.arg: getattr(k.value, 'value', None) for k in o.keywords}
        wants = ASKED.get(o.func.attr)
        if wants and owner==wants[0] and given.get(wants[1]) is not wants[2]: res.append(o.lineno)
        if (owner, o.func.attr) in NEVER: res.append(o.lineno)
        if owner in ('np','numpy') and o.func.attr=='load' and given.get('allow_pickle'):
            res.append(o.lineno)
    return res

@pytest.mark.parametrize('call,bad', [
    ('torch.load(p)', 1), ('torch.load(p, weights_only=False)', 1),
    ('torch.load(p, weights_only=True)', 0), ('torch.hub.load_state_dict_from_url(u)', 1),
    ('torch.hub.load_state_dict_from_url(u, weights_only=True)', 0), ('pickle.loads(b)', 1),
    ('np.load(p, allow_pickle=True)', 1), ('np.load(p)', 0), ('json.load(f)', 0)])
def test_the_walk_sees_them(call, bad): assert len(unrestricted(call))==bad

@pytest.mark.parametrize('path', sorted((ROOT/'posereid').rglob('*.py')), ids=lambda o: o.stem)
def test_nothing_unpickles(path):
    lines = unrestricted(path.read_text(encoding='utf-8'))
    assert not lines, f'{path.name}, lines {lines}: a file of weights could run code here'

class Planted:
    "A pickle that makes a file when it is loaded"
    def __init__(self, made): self.made = made
    def __reduce__(self): return os.mkdir, (str(self.made),)

def test_planted_checkpoint_of_the_cache_is_refused(tmp_path, monkeypatch):
    made = tmp_path/'made'
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    (tmp_path/'checkpoints').mkdir()
    (tmp_path/'checkpoints'/estimate._RCNN).write_bytes(pickle.dumps(Planted(made)))
    with pytest.raises(InputError, match='these are no whole weights'): estimate._rcnn_state(None)
    assert not made.exists()

@pytest.mark.parametrize('save', [lambda o, p: p.write_bytes(pickle.dumps(o)),
                                  lambda o, p: torch.save(dict(state_dict=o), p)])
def test_planted_weights_are_refused(tmp_path, save):
    made,file = tmp_path/'made',tmp_path/'w.pth'
    save(Planted(made), file)
    with pytest.raises(InputError, match='no whole file of tensors'): read_state(file)
    assert not made.exists()

# --- files of poses in MATLAB's format ---

def test_no_damage_to_a_mat_file_ends_the_process(tmp_path):
    io,file = pytest.importorskip('scipy.io'),tmp_path/'points.mat'
    io.savemat(file, dict(pp=np.arange(56.).reshape(2,28)))
    names,whole = ['a.jpg','b.jpg'],file.read_bytes()
    kept = read_market14(file, names).joints
    rng,outcomes = np.random.default_rng(0),{'read':0,'refused':0}
    for _ in range(400):
        b = bytearray(whole)
        b[rng.integers(len(b))] ^= int(rng.integers(1, 256))
        file.write_bytes(b[:rng.integers(len(b))] if rng.random()<.2 else b)
        try: read_market14(file, names); outcomes['read'] += 1
        except InputError as e:
            assert str(file) in str(e)
            outcomes['refused'] += 1
    assert outcomes['refused']>50 and kept.shape==(2,18,3)

def test_mat_file_of_text_is_refused(tmp_path):
    io,file = pytest.importorskip('scipy.io'),tmp_path/'text.mat'
    io.savemat(file, dict(pp='not numbers'))
    with pytest.raises(InputError, match='must be a matrix of numbers'): read_market14(file, ['a.jpg'])

# --- the library's own files ---

BROKEN = {'empty':'', 'cut':'{"size": [64,', 'list':'[1, 2]', 'other':'{"a": 1}', 'bytes':b'\xff\xfe\x00',
          'deep':'['*100_000}

def readers():
    from posereid.experiment.engine import score_model
    from posereid.stages.trained import kind_of
    from posereid.stages.lsro import load_dcgan
    from posereid.stages.reid import ReIDSettings, load_reid
    from posereid.stages.transfer import load_generator
    from posereid.synth.world import load_world
    return {'reid.json':load_reid, 'generator.json':load_generator, 'dcgan.json':load_dcgan,
            'world.json':load_world, 'scores.json':lambda p: score_model(None, None, ReIDSettings(), p),
            'size.json':lambda p: kind_of(p/'size.json')}

@pytest.mark.parametrize('how', BROKEN)
def test_damaged_json_is_named(tmp_path, how):
    for name,read in readers().items():
        data = BROKEN[how]
        (tmp_path/name).write_bytes(data if isinstance(data, bytes) else data.encode())
        with pytest.raises(InputError, match=f'{name} is damaged'): read(tmp_path)

TEXT = {'write_text','read_text'}

@pytest.mark.parametrize('path', sorted((ROOT/'posereid').rglob('*.py')), ids=lambda o: o.stem)
def test_text_has_an_encoding(path):
    "What a console's locale says has no part in files"
    bad = []
    for o in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if not isinstance(o, ast.Call): continue
        name = o.func.attr if isinstance(o.func, ast.Attribute) else getattr(o.func, 'id', '')
        given = {k.arg for k in o.keywords}
        mode = ''.join(a.value for a in o.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
        if name in TEXT and 'encoding' not in given: bad.append(o.lineno)
        if isinstance(o.func, ast.Name) and name=='open' and 'b' not in mode and 'encoding' not in given:
            bad.append(o.lineno)
    assert not bad, f'{path.name}, lines {bad}'
