"An index of features: what it finds, what comes and goes, and what a kill or a broken file leaves"
import ast, json, os, re, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from posereid.core import InputError
from posereid.metrics.rerank import rerank_features
from posereid.metrics.retrieval import euclidean_distance, top_matches
from posereid.search import index as module
from posereid.search.index import (KINDS, add_to_index, build_index, gallery_rows, index_of, index_parameters,
                                   open_index, remove_from_index, search_index)
from posereid.stages.trained import Trained

faiss = pytest.importorskip('faiss')


class Colours(Trained):
    "A net whose features are the colours of a picture, so that nobody has to train"
    def __init__(self, hash='c0105c0105c0'):
        self.hash,self.kind,self.folder,self.most = hash,dict(size=(8,4), crop=()),Path('colours'),0
    def features(self, paths, flip=False, **_):
        self.most = max(self.most, len(paths))
        x = torch.stack([self._one(p, flip) for p in paths])
        return torch.nn.functional.normalize(x, dim=1)
    def _one(self, path, flip):
        im = module.open_picture(path, convert=True).resize((4,8))
        x = torch.from_numpy(np.array(im)).float().flatten()
        return x + torch.from_numpy(np.asarray(im)[:,::-1].copy()).float().flatten() if flip else x


def made(n, d=16, seed=0, distinct=None):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((distinct or n, d)).astype(np.float32)
    x = (x/np.linalg.norm(x, axis=1, keepdims=True))[np.arange(n)%(distinct or n)]
    rows = pd.DataFrame(dict(path=[f'/g/{o:05d}.jpg' for o in rng.permutation(n)], pid=1+np.arange(n)%7,
                             camid=np.arange(n)%4, seq=-1, frame=np.arange(n), date=1000+np.arange(n)))
    return rows.assign(bytes=-1, digest=[f'{o:x}' for o in range(n)]), x


def picture(path, seed, size=(12,24)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1],size[0],3), dtype=np.uint8)).save(path, 'png')
    os.utime(path, (1_700_000_000+86400*seed, 1_700_000_000+86400*seed))
    return path


@pytest.fixture
def gallery(tmp_path):
    for i in range(12): picture(tmp_path/'g'/f'cam{i%3}'/f'{i:02d}_c{1+i%3}.png', i)
    return tmp_path/'g'


def refused(f, *says):
    with pytest.raises(InputError) as e: f()
    text = str(e.value)
    assert '\n' not in text and text.endswith(('.','?')), text
    for o in says: assert o in text, (o, text)
    return text


def content(ix):
    "All that an index says, in the order of its rows"
    at = np.arange(len(ix))
    return ix.rows.drop(columns='at').values.tolist(), ix.features_of(at)

# --- ranking ---

def truth(q, x, rows, top, mask=None):
    "Rows by distance and then by path, from all distances in double precision"
    order = np.argsort(rows.path.to_numpy(object))
    d = np.sqrt(np.square(q[:,None].astype(np.float64)-x[order][None]).sum(-1))
    if mask is not None: d[:,~mask] = np.inf
    i = np.argsort(d, axis=1, kind='stable')[:,:top]
    d = np.take_along_axis(d, i, 1)
    return d, np.where(np.isinf(d), -1, i)


@pytest.mark.parametrize('kind', ['exact','hnsw'])
@pytest.mark.parametrize('distinct', [None,40,3,1])
def test_ranking_is_that_of_all_distances(kind, distinct):
    rows,x = made(160, distinct=distinct)
    q = np.concatenate([made(5, seed=1)[1], x[:3]])
    ix = index_of(rows, x, kind)
    for top in (1,7,160,200):
        if kind=='hnsw' and (top>7 or distinct): continue  # a graph promises no ties
        d,i = ix.nearest_rows(q, top)
        want,order = truth(q, x, rows, min(top, 160))
        assert (i[:,:160]==order).all() and np.allclose(d[:,:160], want, atol=1e-7)
        assert (i[:,160:]==-1).all() and np.isinf(d[:,160:]).all()


def test_what_single_precision_cannot_tell_apart():
    "Pictures that differ in the last digits alone are sorted by all digits"
    rng = np.random.default_rng(0)
    one = made(1)[1]
    x = (one*(1+rng.integers(-4, 5, (400,16))*2.**-23)).astype(np.float32)
    rows,q = made(400)[0],made(6, seed=1)[1]
    assert (index_of(rows, x).nearest_rows(q, 5)[1]==truth(q, x, rows, 5)[1]).all()


def test_the_ranking_is_that_of_the_evaluation():
    rows,x = made(300)
    q = made(20, seed=3)[1]
    order = np.argsort(rows.path.to_numpy(object))
    # in double precision, since single precision orders what is nearly equal by chance
    d = euclidean_distance(torch.tensor(q).double(), torch.tensor(x[order]).double())
    ix = index_of(rows, x)
    dist,found = ix.nearest_rows(q, 300)
    assert (found==np.argsort(d.numpy(), axis=1, kind='stable')).all()
    assert np.allclose(dist, np.take_along_axis(d.numpy(), found, 1), atol=1e-6)
    tops,_ = top_matches(d, np.full(20, 99), ix.rows.pid.to_numpy(), np.ones(20, int), ix.rows.camid.to_numpy(), 5)
    assert (tops==found[:,:5]).all()


def test_a_feature_of_zeros_is_at_distance_one():
    rows,x = made(50)
    x[7] = 0
    d,i = index_of(rows, x).nearest_rows(x[:1], 50)
    at = np.argsort(np.argsort(rows.path.to_numpy(object)))[7]
    assert abs(d[0][i[0]==at][0]-1)<1e-6


@pytest.mark.parametrize('kind', ['exact','ivf','hnsw'])
@pytest.mark.parametrize('share', [.002,.05,.5,.99])
def test_the_top_among_allowed_is_exact(kind, share):
    rows,x = made(1000, distinct=700)
    q = made(10, seed=1)[1]
    mask = np.random.default_rng(2).random(1000)<share
    d,i = index_of(rows, x, kind).nearest_rows(q, 10, mask)
    want,order = truth(q, x, rows, 10, mask)
    assert mask[i[i>=0]].all()
    assert np.allclose(np.where(np.isinf(d), 9, d), np.where(np.isinf(want), 9, want), atol=1e-5)
    if kind!='ivf': assert (i==order).all()


def test_a_mask_of_nothing_finds_nothing():
    rows,x = made(20)
    d,i = index_of(rows, x).nearest_rows(x[:2], 3, np.zeros(20, bool))
    assert (i==-1).all() and np.isinf(d).all()


@pytest.mark.parametrize('kind', KINDS)
def test_a_kind_finds_most_of_what_lies_in_heaps(kind):
    x = made(3000, d=32, distinct=150)[1] + .3*made(3000, d=32, seed=5)[1]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    rows = made(3000)[0]
    exact = index_of(rows, x).nearest_rows(x[:50], 10)[1]
    found = index_of(rows, x, kind).nearest_rows(x[:50], 10)[1]
    recall = np.mean([len({*a} & {*b})/10 for a,b in zip(exact.tolist(), found.tolist())])
    assert recall>=dict(exact=1, ivf=.95, hnsw=.98, pq=.3)[kind], recall


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('n', [1,2,5,80])
def test_few_pictures(kind, n):
    rows,x = made(n)
    ix = index_of(rows, x, kind)
    d,i = ix.nearest_rows(x[:1], 5)
    assert (i[0,:min(n,5)]>=0).all() and (i[0,n:]==-1).all()
    assert bool(ix.notes)==(kind in ('ivf','pq'))
    if kind in ('ivf','pq'): assert re.search('^[0-9]+ pictures are few', ix.notes[0])


def test_few_lists_are_read_on_where_they_hold_too_little():
    rows,x = made(400)
    ix = index_of(rows, x, 'ivf')
    assert ix.settings['parameters']['probe']==1
    assert (ix.nearest_rows(x[:5], 300)[1]>=0).all()

# --- what comes and goes ---

@pytest.mark.parametrize('kind', KINDS)
def test_any_history_ends_as_built_anew(kind, tmp_path):
    rows,x = made(240, distinct=200)
    rng = np.random.default_rng(0)
    there = rng.random(240)<.5
    ix = index_of(rows[there], x[there], kind, root='/g')
    for step in range(6):
        place = {p: i for i,p in enumerate(rows.path)}
        now = np.array([place[f'/g/{p}'] for p in ix.rows.path])
        gone = rng.random(len(now))<.2
        new = np.setdiff1d(np.flatnonzero(rng.random(240)<.2), now[~gone])
        ix.change(~gone, rows.iloc[new].assign(path=[p[3:] for p in rows.path.iloc[new]]), x[new])
    now = np.array([place[f'/g/{p}'] for p in ix.rows.path])
    again = index_of(rows.iloc[now[::-1]], x[now[::-1]], kind, root='/g')
    assert ix.rows.drop(columns='at').values.tolist()==again.rows.drop(columns='at').values.tolist()
    assert len(now)==len(ix)==ix.index.ntotal
    assert ix.cameras==sorted({*rows.camid.iloc[now]}-{0})
    if kind!='pq': assert (content(ix)[1]==x[now]).all()
    if kind in ('exact','ivf'):
        top = [o.nearest_rows(x[:9], 20, np.arange(len(now))%2>0) for o in (ix,again)]
        assert (top[0][1]==top[1][1]).all() and np.allclose(top[0][0], top[1][0])
    if kind=='exact':
        for o,name in ((ix,'a'), (again,'b')): o.write(tmp_path/name)
        for f in ('index.1.faiss','rows.1.csv'):
            assert (tmp_path/'a'/f).read_bytes()==(tmp_path/'b'/f).read_bytes()


@pytest.mark.parametrize('kind', ['ivf','pq'])
def test_removing_goes_on_after_features_were_asked_for(kind):
    rows,x = made(100)
    ix = index_of(rows, x, kind)
    ix.features_of(np.arange(3))
    ix.change(np.arange(100)>=10, rows[:0], x[:0])
    assert len(ix)==90==ix.index.ntotal
    assert ix.nearest_rows(x[:3], 90)[1].min()>=0


def test_lists_that_have_outgrown_their_learning_say_so():
    rows,x = made(200)
    ix = index_of(rows[:20], x[:20], 'ivf').change(np.ones(20, bool), rows[20:], x[20:])
    assert 'learnt from 20 pictures and hold 200' in ix.notes[-1]


def test_change_refuses():
    rows,x = made(20)
    ix = index_of(rows, x)
    refused(lambda: ix.change(np.zeros(20, bool), rows[:0], x[:0]), 'Nothing would be left')
    refused(lambda: ix.change(np.ones(20, bool), rows[:2], x[:2,:8]), 'of 16 numbers', '(2, 8)')
    refused(lambda: ix.nearest_rows(x[:,:8]), '(queries, 16)', '(20, 8)')
    refused(lambda: ix.nearest_rows(x, 0), '--top must be 1 or more')
    refused(lambda: index_of(rows, x[:3]), '20 pictures', '3 features')
    refused(lambda: index_of(rows, x, 'flat'), 'exact, ivf, hnsw, pq')
    assert len(ix)==20

# --- on disk ---

ODD = [' space.jpg', 'a,b.jpg', 'say "x".jpg', 'two\nlines.jpg', 'nan.jpg', 'NA', 'ä–ü.jpg', 'tab\t.jpg',
       '\udcff\udcfe.jpg', "it's.jpg", '=1+1.jpg', '#.jpg', 'trail .jpg', '00012']


@pytest.mark.parametrize('kind', KINDS)
def test_round_trip(kind, tmp_path):
    rows,x = made(len(ODD))
    ix = index_of(rows.assign(path=[f'/g/{o}' for o in ODD]), x, kind, root='/g', model='m')
    ix.write(tmp_path/'x')
    back = open_index(tmp_path/'x', 'm')
    assert sorted(back.rows.path)==sorted(ODD) and back.paths==[f'/g/{o}' for o in back.rows.path]
    assert back.rows.values.tolist()==ix.rows.values.tolist()
    assert back.rows.dtypes.astype(str).tolist()==ix.rows.dtypes.astype(str).tolist()
    assert content(back)[1].tolist()==content(ix)[1].tolist()
    assert back.settings==ix.settings and repr(back)==repr(ix)
    assert [a.tolist() for a in back.nearest_rows(x, 5)]==[a.tolist() for a in ix.nearest_rows(x, 5)]


@pytest.fixture
def written(tmp_path):
    rows,x = made(60)
    index_of(rows, x, model='0123456789ab').write(tmp_path/'x')
    return tmp_path/'x'


def test_no_broken_file_reaches_the_reader(written, monkeypatch):
    "One bit at any place of any file, a file cut anywhere or too long by a byte"
    monkeypatch.setattr(faiss, 'read_index', lambda *_: pytest.fail('a broken file was read'))
    rng = np.random.default_rng(0)
    for name in ('index.1.faiss','rows.1.csv','settings.json'):
        good = (written/name).read_bytes()
        places = [0,1,5,9,len(good)-1, *rng.integers(0, len(good), 25)]
        bad = [good[:i]+bytes([good[i]^(1<<int(rng.integers(8)))])+good[i+1:] for i in map(int, places)]
        for data in [*bad, good[:-1], good[:len(good)//2], b'', good+b'\0', good+good]:
            (written/name).write_bytes(data)
            refused(lambda: open_index(written))
        (written/name).write_bytes(good)
    (written/'index.1.faiss').rename(written/'index.7.faiss')
    refused(lambda: open_index(written), 'index.1.faiss is not there')


def resealed(folder, **new):
    "Settings that were changed by somebody who knows how"
    d = json.loads((folder/'settings.json').read_text()) | new
    d['seal'] = module._seal(d)
    (folder/'settings.json').write_text(json.dumps(d))


@pytest.mark.parametrize('new,says', [
    (dict(format=2), 'format 2'), (dict(format='1'), "format '1'"), (dict(what='something else'), 'no search index'),
    (dict(dimension=17), 'does not fit together'), (dict(pictures=61), 'does not fit together'),
    (dict(files={}), 'names no'), (dict(kind=3), 'kind must be'), (dict(kind='lsh'), 'kind')])
def test_settings_that_do_not_fit(written, new, says):
    resealed(written, **new)
    refused(lambda: open_index(written), says)


def test_files_outside_are_not_read(written):
    (written.parent/'rows.1.csv').write_bytes((written/'rows.1.csv').read_bytes())
    d = json.loads((written/'settings.json').read_text())
    resealed(written, files={k.replace('rows', '../rows'): v for k,v in d['files'].items()})
    refused(lambda: open_index(written), 'names no .csv file')


def test_another_model_and_no_index(written, tmp_path):
    refused(lambda: open_index(written, model='another'), '0123456789ab', 'another')
    refused(lambda: open_index(tmp_path/'nothing'), 'no search index')
    (tmp_path/'other').mkdir(); (tmp_path/'other'/'settings.json').write_text('{"what": 1}')
    refused(lambda: open_index(tmp_path/'other'), 'another program')
    (tmp_path/'other'/'settings.json').write_text('[1]')
    refused(lambda: open_index(tmp_path/'other'), 'another program')


class Stop(Exception): pass


@pytest.mark.parametrize('step', range(1, 8))
def test_a_failure_at_any_step_leaves_old_or_new(written, step, monkeypatch):
    "Steps are renamings, and removals of what was before"
    rows,x = made(60)
    old = content(open_index(written))
    ix = open_index(written).change(np.arange(60)%2>0, rows[:0], x[:0])
    new,n = content(ix),[0]
    def breaking(f):
        def g(*args, **kwargs):
            n[0] += 1
            if n[0]==step: raise Stop
            return f(*args, **kwargs)
        return g
    with monkeypatch.context() as m:
        m.setattr(os, 'replace', breaking(os.replace))
        m.setattr(Path, 'unlink', breaking(Path.unlink))
        try: ix.write(written)
        except Stop: pass
        stopped = n[0]>=step
    now = content(open_index(written))
    assert now[0] in (old[0],new[0]) and now[1].tolist()==(old if now[0]==old[0] else new)[1].tolist()
    if not stopped: assert now[0]==new[0]
    ix.write(written)  # and the next one clears up
    assert content(open_index(written))[0]==new[0]
    assert len([o for o in written.iterdir() if o.name[0]!='.'])==3


KILL = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from test_search import made, content
from posereid.search.index import index_of, open_index

x = Path({folder!r})
rows,f = made(3000)
even = np.arange(3000)%2==0
a,b = index_of(rows, f, root='/g'), index_of(rows[even], f[even], root='/g')
a.write(x)
want = [content(o) for o in (a,b)]
t = time.time()
for o in (b,a): o.write(x)
took,rng = (time.time()-t)/2,random.Random(0)
seen,cut = set(),0
for i in range({n}):
    pid = os.fork()
    if not pid:
        while True:
            for o in (b,a): o.write(x)
    time.sleep(rng.uniform(0, 4*took))
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
    cut += any(o.name[0]=='.' for o in x.iterdir())
    now = content(open_index(x))
    which = [k for k,o in enumerate(want) if o[0]==now[0] and (o[1]==now[1]).all()]
    assert len(which)==1, i
    seen.add(which[0])
a.write(x)
print(len(seen), cut, len([o for o in x.iterdir() if o.name[0]!='.']))
"""


@pytest.mark.skipif(os.name=='nt', reason='no such signal there')
def test_kills(tmp_path, n=25):
    "Killed at any moment, the old index or the new one is there, whole"
    code = KILL.format(tests=str(Path(__file__).parent), folder=str(tmp_path/'x'), n=n)
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300,
                         env={**os.environ, 'OMP_NUM_THREADS':'1'})
    assert res.returncode==0, res.stderr[-2000:]
    seen,cut,left = map(int, res.stdout.split())
    assert seen==2 and cut>0 and left==3, res.stdout


def test_a_first_writing_that_fails_leaves_nothing(tmp_path, monkeypatch):
    rows,x = made(10)
    monkeypatch.setattr(module, '_write_rows', lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop): index_of(rows, x).write(tmp_path/'x')
    assert list(tmp_path.iterdir())==[]


def test_a_reader_beside_a_writer_sees_one_of_both(written, monkeypatch):
    "Files that go away between settings and opening are looked for again"
    ix,real,times = open_index(written),module._settings_of,[0]
    def late(folder):
        res = real(folder)
        if not times[0]: times[0] = 1; ix.change(np.arange(60)<30, ix.rows[:0], np.empty((0,16))).write(written)
        return res
    monkeypatch.setattr(module, '_settings_of', late)
    assert len(open_index(written))==30


def test_without_faiss(monkeypatch, gallery, tmp_path, written):
    monkeypatch.setitem(sys.modules, 'faiss', None)
    says = "pip install 'posereid[search]'"
    refused(lambda: build_index(gallery, Colours(), tmp_path/'i'), says)
    refused(lambda: open_index(written), says)
    assert not (tmp_path/'i').exists()


def test_faiss_is_not_imported_before_it_is_needed():
    tree = ast.parse(Path(module.__file__).read_text(encoding='utf-8'))
    names = [a.name for o in tree.body if isinstance(o, ast.Import) for a in o.names]
    names += [o.module for o in tree.body if isinstance(o, ast.ImportFrom)]
    assert names and not [o for o in names if o.startswith('faiss')]

# --- folders ---

def test_a_folder(gallery, tmp_path):
    (gallery/'notes.txt').write_text('no picture')
    net = Colours()
    ix = build_index(gallery, net, tmp_path/'i', camera='_c([0-9])')
    assert [Path(p) for p in ix.paths]==sorted(gallery.rglob('*.png'))
    assert ix.rows.camid.tolist()==[int(p[-5]) for p in ix.rows.path]
    assert ix.rows.path[0]=='cam0/00_c1.png' and ix.settings['root']==str(gallery)
    assert ix.rows.date[0]==1_700_000_000 and ix.rows.bytes[0]==Path(ix.paths[0]).stat().st_size
    assert (content(ix)[1]==net.features(ix.paths).numpy()).all()
    back = open_index(tmp_path/'i', net.hash)
    assert back.rows.values.tolist()==ix.rows.values.tolist()
    assert not [o for o in tmp_path.iterdir() if o.name not in ('g','i')]


def test_pictures_go_in_blocks(gallery, tmp_path):
    for i in range(600): shutil.copy(gallery/'cam0'/'00_c1.png', gallery/f'{i}.png')
    net = Colours()
    assert len(build_index(gallery, net, tmp_path/'i'))==612 and net.most<=256


def test_flip_is_kept(gallery, tmp_path):
    net = Colours()
    build_index(gallery, net, tmp_path/'i', flip=True)
    picture(gallery/'new.png', 77)
    ix = add_to_index(tmp_path/'i', gallery, net)
    assert (content(ix)[1]==net.features(ix.paths, flip=True).numpy()).all()
    found = search_index(tmp_path/'i', gallery/'new.png', net, top=1)
    assert found.hits.distance[0]==0 and found.hits.path[0]==str(gallery/'new.png')


def test_empty_and_missing(tmp_path):
    (tmp_path/'e').mkdir()
    refused(lambda: build_index(tmp_path/'e', Colours(), tmp_path/'i'), 'no pictures below it')
    refused(lambda: build_index(tmp_path/'n', Colours(), tmp_path/'i'), 'does not exist')
    refused(lambda: build_index([], Colours(), tmp_path/'i'), 'no picture')
    refused(lambda: build_index(tmp_path/'e', tmp_path/'n', tmp_path/'i'), 'reid')
    refused(lambda: build_index([tmp_path/'a.png'], Colours(), tmp_path/'i'), 'a.png')
    assert not (tmp_path/'i').exists()


def test_unreadable_pictures(gallery, tmp_path):
    bad = [gallery/f'bad{i}.jpg' for i in range(7)]
    for o in bad: o.write_bytes(b'no picture')
    cut = gallery/'cam1'/'cut.png'
    cut.write_bytes((gallery/'cam0'/'00_c1.png').read_bytes()[:300])
    refused(lambda: build_index(gallery, Colours(), tmp_path/'i'), '8 of 20 pictures', 'bad0.jpg', '3 more', '--skip')
    assert not (tmp_path/'i').exists()
    ix = build_index(gallery, Colours(), tmp_path/'i', skip=True)
    assert len(ix)==12 and ix.settings['unreadable']==8
    assert any('8 left out' in o and 'bad0.jpg' in o for o in ix.notes)
    assert (content(ix)[1]==Colours().features(ix.paths).numpy()).all()
    refused(lambda: add_to_index(tmp_path/'i', gallery, Colours()), '8 of 8 pictures')
    assert len(add_to_index(tmp_path/'i', gallery, Colours(), skip=True))==12
    refused(lambda: build_index(bad, Colours(), tmp_path/'j', skip=True), 'None of the 7', '2 more')
    refused(lambda: build_index(bad, Colours(), tmp_path/'j'), '7 of 7')


def test_an_error_of_the_net_is_not_one_of_pictures(gallery, tmp_path):
    class Broken(Colours):
        def features(self, *_, **__): raise InputError('Some features are NaN.')
    refused(lambda: build_index(gallery, Broken(), tmp_path/'i', skip=True), 'NaN')


def test_the_same_picture_is_no_duplicate(gallery, tmp_path):
    net,out = Colours(),tmp_path/'i'
    build_index(gallery, net, out)
    before = sorted((o.name, o.read_bytes()) for o in out.iterdir())
    for source in (gallery, gallery/'cam1', [gallery/'cam0'/'00_c1.png'], gallery/'cam0'/'00_c1.png'):
        ix = add_to_index(out, source, net)
        assert len(ix)==12 and '0 added, 0 replaced' in ix.notes[-1]
    assert sorted((o.name, o.read_bytes()) for o in out.iterdir())==before
    os.symlink(gallery, tmp_path/'link')
    picture(gallery/'cam1'/'new.png', 50)
    ix = add_to_index(out, gallery/'cam1', net)
    assert len(ix)==13 and '1 added, 0 replaced, 4 as before' in ix.notes[-1]
    shutil.copy(gallery/'cam0'/'00_c1.png', gallery/'cam0'/'03_c1.png')
    ix = add_to_index(out, gallery, net)
    assert len(ix)==13 and '0 added, 1 replaced, 12 as before' in ix.notes[-1]
    build_index(gallery, net, tmp_path/'anew')
    now,new = (open_index(o) for o in (out, tmp_path/'anew'))
    assert now.rows.values.tolist()==new.rows.values.tolist() and (content(now)[1]==content(new)[1]).all()


def test_what_is_known_of_a_picture_may_change(gallery, tmp_path):
    net = Colours()
    build_index(gallery, net, tmp_path/'i')
    assert open_index(tmp_path/'i').settings['cameras']==[]
    add_to_index(tmp_path/'i', gallery, net, camera='_c([0-9])')
    ix = open_index(tmp_path/'i')
    assert ix.settings['cameras']==[1,2,3] and ix.rows.camid.tolist()==[int(p[-5]) for p in ix.rows.path]


def test_pictures_from_elsewhere(gallery, tmp_path):
    other = picture(tmp_path/'other'/'a.png', 40)
    build_index(gallery, Colours(), tmp_path/'i')
    ix = add_to_index(tmp_path/'i', other.parent, Colours())
    assert str(other) in list(ix.rows.path) and len(ix)==13
    assert add_to_index(tmp_path/'i', other, Colours()).notes[-1].startswith('0 added')
    assert len(remove_from_index(tmp_path/'i', other))==12


@pytest.mark.parametrize('what,left', [
    ('cam0/00_c1.png', 11), ('cam0', 8), ('cam0/', 8), ('*_c2*', 8), ('cam?/0*', 2), (['cam0','cam1'], 4),
    (['cam0','cam0/00_c1.png'], 8), ('00_c1.png', 11)])
def test_remove(gallery, tmp_path, what, left, monkeypatch):
    net,out = Colours(),tmp_path/'i'
    build_index(gallery, net, out)
    ix = remove_from_index(out, what)
    assert len(ix)==left==len(open_index(out)) and f'{12-left} removed, {left} are left' in ix.notes[0]
    again = build_index([p for p in ix.paths], net, tmp_path/'j', camera=None)
    assert (content(again)[1]==content(ix)[1]).all()
    assert all(os.path.isfile(p) for p in build_index(gallery, net, tmp_path/'k').paths)


def test_remove_by_the_path_from_here(gallery, tmp_path, monkeypatch):
    build_index(gallery, Colours(), tmp_path/'i')
    monkeypatch.chdir(gallery/'cam1')
    assert len(remove_from_index(tmp_path/'i', '01_c2.png'))==11
    assert len(remove_from_index(tmp_path/'i', gallery/'cam0'))==7
    refused(lambda: remove_from_index(tmp_path/'i', 'cam0/00_c1.png'), 'no picture, folder or pattern', 'cam')
    refused(lambda: remove_from_index(tmp_path/'i', '*'), 'Nothing would be left')
    assert len(open_index(tmp_path/'i'))==7


def test_a_place_that_is_taken(gallery, tmp_path):
    out = tmp_path/'i'
    build_index(gallery, Colours(), out)
    refused(lambda: build_index(gallery/'cam0', Colours(), out), '12 pictures already', '--add', '--fresh')
    assert len(build_index(gallery/'cam0', Colours(), out, fresh=True))==4==len(open_index(out))
    refused(lambda: build_index(gallery, Colours(), gallery), 'no search index')
    refused(lambda: build_index(gallery, Colours(), gallery, fresh=True), 'no search index')
    refused(lambda: build_index(gallery, Colours(), gallery/'cam0'/'00_c1.png'), 'is a file')
    (out/'settings.json').write_text('{')
    refused(lambda: build_index(gallery, Colours(), out), 'settings.json')
    assert len(build_index(gallery, Colours(), out, fresh=True))==12
    (tmp_path/'empty').mkdir()
    assert len(build_index(gallery, Colours(), tmp_path/'empty'))==12


def test_another_net(gallery, tmp_path):
    out = tmp_path/'i'
    build_index(gallery, Colours(), out)
    other = Colours('ffffffffffff')
    for f in (lambda: add_to_index(out, gallery, other), lambda: search_index(out, gallery/'cam0'/'00_c1.png', other),
              lambda: open_index(out).search(gallery/'cam0'/'00_c1.png', other)):
        refused(f, 'c0105c0105c0', 'ffffffffffff')
    refused(lambda: search_index(out, gallery/'cam0'/'00_c1.png'), 'no longer at', '--model')


def test_a_data_set(sets, tmp_path):
    root = sets/'Market-1501'
    df = gallery_rows(root)
    assert (df.camid>0).all() and (df.frame>=0).all() and df.attrs['notes'][0]=='read as market1501: gallery'
    both = gallery_rows(root, splits=('query','gallery'))
    every = gallery_rows(root, splits='all')
    assert len(df)<len(both)<len(every) and not every.path.duplicated().any()
    plain = gallery_rows(root, layout='pictures')
    assert set(every.path)<=set(plain.path) and (plain.camid==0).all()
    ix = build_index(root, Colours(), tmp_path/'i')
    assert len(ix)==len(df) and ix.settings['root']==str(root) and not os.path.isabs(ix.rows.path[0])
    refused(lambda: gallery_rows(root, layout='marked'), 'market1501')


def test_a_csv_with_dates(gallery, tmp_path):
    files = sorted(gallery.rglob('*.png'))
    lines = [f'{o},{1+i%5},gallery,{1+i%2},2024-05-{1+i:02d}T10:00' for i,o in enumerate(files)]
    csv = tmp_path/'set.csv'
    csv.write_text('\n'.join(['path,pid,split,camid,date', *lines, '']))
    ix = build_index(csv, Colours(), tmp_path/'i')
    assert ix.allowed(since='2024-05-02', until='2024-05-03').sum()==2
    assert ix.allowed(since='2024-05-02T10:00', until='2024-05-03T09:59').sum()==1
    csv.write_text(csv.read_text().replace('2024-05-01T10:00', 'May'))
    refused(lambda: build_index(csv, Colours(), tmp_path/'j'), "'May'")


def test_allowed():
    rows,x = made(100)
    ix = index_of(rows, x)
    t = ix.rows
    assert ix.allowed() is None
    for kwargs,want in [(dict(cameras='1, 3'), t.camid.isin([1,3])), (dict(cameras=[2]), t.camid==2),
                        (dict(cameras=2), t.camid==2), (dict(since=50), t.frame>=50), (dict(until='50'), t.frame<=50),
                        (dict(since=10, until=10), t.frame==10), (dict(cameras=[1], since=30), (t.camid==1)&(t.frame>=30))]:
        assert (ix.allowed(**kwargs)==want.to_numpy()).all(), kwargs
    unknown = index_of(rows.assign(frame=-1), x)
    refused(lambda: unknown.allowed(since=0), 'No picture of the index')
    refused(lambda: index_of(rows.assign(camid=0), x).allowed(cameras=1), 'cameras are not known')

# --- searching ---

def test_hits(gallery, tmp_path):
    net = Colours()
    ix = build_index(gallery, net, tmp_path/'i', camera='_c([0-9])')
    q = [gallery/'cam1'/'01_c2.png', gallery/'cam2'/'02_c3.png']
    found = search_index(tmp_path/'i', q, net, top=4)
    d = euclidean_distance(net.features(q), net.features(ix.paths)).numpy()
    order = np.argsort(d, axis=1, kind='stable')[:,:4]
    assert found.hits.path.tolist()==[ix.paths[j] for j in order.ravel()]
    assert np.allclose(found.hits.distance, np.take_along_axis(d, order, 1).ravel(), atol=2e-3)
    assert found.hits['rank'].tolist()==[1,2,3,4]*2 and found.hits['query'].tolist()==[0]*4+[1]*4
    assert found.hits.path[0]==str(q[0]) and found.hits.distance[0]==0
    one = search_index(tmp_path/'i', q[0], net, top=4, cameras='1,3')
    rest = [p for p in np.array(ix.paths)[np.argsort(d[0], kind='stable')] if '_c2' not in p]
    assert one.hits.path.tolist()==rest[:4] and one.notes==['searched 8 of 12 pictures']
    assert len(search_index(tmp_path/'i', q[0], net, top=50).hits)==12


def test_the_own_file_is_left_out(gallery, tmp_path):
    net,q = Colours(),gallery/'cam1'/'01_c2.png'
    shutil.copy(q, gallery/'copy.png')
    Image.open(q).save(gallery/'again.png', compress_level=0)  # the same picture in other bytes
    build_index(gallery, net, tmp_path/'i')
    every,rest = (search_index(tmp_path/'i', q, net, top=5, skip_own=o).hits.path.tolist() for o in (False,True))
    assert {*every[:3]}=={str(q), str(gallery/'copy.png'), str(gallery/'again.png')}
    assert rest[0]==str(gallery/'again.png') and rest[1:3]==every[3:5] and len(rest)==5
    away = shutil.copy(q, tmp_path/'query.png')
    assert search_index(tmp_path/'i', away, net, top=5, skip_own=True).hits.path.tolist()==rest


@pytest.mark.parametrize('kind', ['exact','ivf','hnsw'])
def test_reranking_is_that_of_the_metrics(kind, tmp_path, gallery):
    for i in range(60): picture(gallery/'more'/f'{i:03d}.png', 100+i%40)
    net,q = Colours(),gallery/'cam1'/'01_c2.png'
    ix = build_index(gallery, net, tmp_path/'i', kind)
    before = ix.search(q, net, top=70).hits.path.tolist()
    hits = search_index(tmp_path/'i', q, net, top=50, rerank=30).hits
    d = rerank_features(net.features([q]), net.features(before[:30]), ties='stable')[0].numpy()
    order = np.argsort(d, kind='stable')
    assert hits.path[:30].tolist()==[before[j] for j in order] and hits.path[:30].tolist()!=before[:30]
    assert np.allclose(hits.reranked[:30], d[order], atol=1e-6)
    assert hits.path[30:].tolist()==before[30:50] and hits.reranked[30:].isna().all()
    assert np.allclose(hits.distance[:30], [ix.search(q, net, top=70).hits.set_index('path').distance[p]
                                            for p in hits.path[:30]])
    few = search_index(tmp_path/'i', q, net, top=5, rerank=30).hits
    assert few.path.tolist()==hits.path[:5].tolist()
    refused(lambda: search_index(tmp_path/'i', q, net, rerank=-1), '--rerank')


def test_one_picture_can_be_reranked(gallery, tmp_path):
    build_index([gallery/'cam0'/'00_c1.png'], Colours(), tmp_path/'i')
    assert len(search_index(tmp_path/'i', gallery/'cam1'/'01_c2.png', Colours(), rerank=9).hits)==1


def test_a_picture_that_finds_nothing_but_itself(gallery, tmp_path):
    q = gallery/'cam0'/'00_c1.png'
    build_index([q], Colours(), tmp_path/'i')
    for more in ({}, dict(rerank=5)):
        found = search_index(tmp_path/'i', [q, gallery/'cam1'/'01_c2.png'], Colours(), skip_own=True, **more)
        assert found.hits['query'].tolist()==[1] and len(found.text().splitlines())==3+bool(more)


def test_bad_queries(gallery, tmp_path):
    build_index(gallery, Colours(), tmp_path/'i')
    refused(lambda: search_index(tmp_path/'i', [], Colours()), 'no picture to search for')
    refused(lambda: search_index(tmp_path/'i', gallery/'gone.png', Colours()), 'gone.png')
    (gallery/'x.jpg').write_bytes(b'x')
    refused(lambda: search_index(tmp_path/'i', gallery/'x.jpg', Colours()), 'x.jpg')
    refused(lambda: search_index(tmp_path/'i', gallery/'cam0'/'00_c1.png', Colours(), top=0), '--top')


def test_a_moved_gallery(gallery, tmp_path):
    net,q = Colours(),tmp_path/'q.png'
    shutil.copy(gallery/'cam0'/'00_c1.png', q)
    build_index(gallery, net, tmp_path/'i')
    shutil.move(gallery, tmp_path/'h')
    lost = search_index(tmp_path/'i', q, net, top=2, page=tmp_path/'lost.html')
    assert '2 of the pictures found are no longer there' in lost.notes[-1]
    assert (tmp_path/'lost.html').read_text().count('not there')==2
    found = search_index(tmp_path/'i', q, net, top=2, root=tmp_path/'h')
    assert found.hits.path[0]==str(tmp_path/'h'/'cam0'/'00_c1.png') and not found.notes


def test_the_page(gallery, tmp_path):
    name = '<b onclick="x">&\'.png'
    shutil.copy(gallery/'cam0'/'00_c1.png', gallery/name)
    odd = os.fsdecode(bytes(gallery)+b'/\xff.png')
    shutil.copy(gallery/'cam0'/'03_c1.png', odd)
    net = Colours()
    build_index(gallery, net, tmp_path/'i', camera='_c([0-9])')
    found = search_index(tmp_path/'i', gallery/name, net, top=14, page=tmp_path/'p.html')
    page = (tmp_path/'p.html').read_text(encoding='utf-8')
    assert '<b onclick' not in page and '&lt;b onclick=&quot;x&quot;&gt;&amp;&#x27;.png' in page
    assert page.count('<img')==15==page.count('src="data:image/jpeg;base64,') and page.count('alt="')==15
    assert not re.search(r'https?://|src="(?!data:)|<script|<link', page)
    assert 'prefers-color-scheme:dark' in page and 'lang="en"' in page
    assert '1: distance 0.000' in page and 'camera 1' in page
    text = found.text()
    assert len(text.splitlines())==1+14 and text.splitlines()[0]==str(gallery/name)
    assert repr(found)=='Found(1 queries, 14 hits)'


def test_parameters():
    assert index_parameters('exact', 5, 5)=={}
    for n in (1,38,39,78,1000,10_000,10**6,10**8):
        p = index_parameters('pq', n, 512)
        assert p['lists']<=max(1, n//39) and 1<=p['probe']<=p['lists'] and 1<=p['bits']<=8 and p['parts']==64
    assert [index_parameters('pq', 10**6, d)['parts'] for d in (1,7,64,100,2048)]==[1,1,8,10,256]
