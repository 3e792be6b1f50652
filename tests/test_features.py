"Features of other toolboxes: their evaluation expressed anew, and what must be refused"
import pickle

import numpy as np, pandas as pd, pytest, torch

from posereid.core import InputError
from posereid.data.manifest import pick
from posereid.data.pictures import PictureStore
from posereid.evaluate.features import (Features, features_of, read_features, score_file,
                                        write_features)
from posereid.evaluate.protocol import evaluate_reid
from posereid.models.reid import reid_net
from posereid.synth.world import load_world, tiny_world


@pytest.fixture(scope='module')
def df(): return load_world(tiny_world()).target

@pytest.fixture(scope='module')
def net():
    torch.manual_seed(0)
    return reid_net(None, 'small', 8)

@pytest.fixture(scope='module')
def store(): return PictureStore((64,32))

@pytest.fixture(scope='module')
def ours(df, net, store): return features_of(net, df, store)

def numbers(r): return {k: v for k,v in r.to_dict().items() if k!='protocol'}

def same(a, b):
    return numbers(a)==numbers(b) and all(np.array_equal(getattr(a, o), getattr(b, o))
                                          for o in ('ranks','cmc','ap_trap','ap_mean','inp','n_good'))

# --- equal to the digit ---

@pytest.mark.parametrize('kind', ['npz','pt','pth','mat'])
@pytest.mark.parametrize('kw', [{}, dict(distance='cosine'), dict(distance='squared', max_rank=5), dict(empty='skip'),
                                dict(rerank={}), dict(rerank=dict(k1=5, k2=2))], ids=str)
def test_scores_are_those_of_evaluate_reid(kind, kw, df, net, store, ours, tmp_path):
    got = score_file(read_features(write_features(ours, tmp_path/f'f.{kind}')), 'x', **kw)
    want = evaluate_reid(net, df, store, 'x', **kw)
    assert same(got, want)
    head,tail = want.protocol.rsplit('; ', 1)
    assert got.protocol==f'{head}; features of f.{kind}, 64 numbers each' and tail=='pictures 64×32'


def test_flipped_and_without_cameras(df, net, store, tmp_path):
    for kw in (dict(flip=True), dict(cameras=False)):
        f = features_of(net, df, store, **kw)
        want = evaluate_reid(net, df, store, **kw)
        assert same(score_file(f), want)
        assert score_file(f).protocol.count('no cameras')==want.protocol.count('no cameras')
    back = read_features(write_features(f, tmp_path/'f.npz'), cameras=False)
    assert same(score_file(back), want)


def test_a_set_of_no_cameras(df, net, store, tmp_path):
    free = df.assign(camid=0)
    f = features_of(net, free, store)
    back = read_features(write_features(f, tmp_path/'f.pt'))
    assert not back.notes and same(score_file(back), evaluate_reid(net, free, store))
    # a query that is in the gallery would find itself
    twice = Features(f.q, torch.cat([f.g, f.q[:2]]), f.query, pd.concat([f.gallery, f.query[:2]], ignore_index=True))
    with pytest.raises(InputError, match='2 queries have the very features'): score_file(twice)
    known = Features(twice.q, twice.g, f.query.assign(camid=1), twice.gallery.assign(camid=1+(np.arange(len(twice.g))<44)))
    score_file(known)

# --- the evaluations of others, expressed anew ---

def torchreid_scores(qf, gf, q_pids, g_pids, q_camids, g_camids):
    "rank-1 and mAP by mean precision, queries without a match skipped"
    d = np.sqrt(np.maximum(((qf[:,None].astype(np.float64)-gf[None])**2).sum(2), 0))
    first,aps = [],[]
    for i in range(len(qf)):
        order = np.argsort(d[i], kind='stable')
        order = order[~((g_pids[order]==q_pids[i]) & (g_camids[order]==q_camids[i]))]
        hit = g_pids[order]==q_pids[i]
        if not hit.any(): continue
        first.append(hit[0])
        aps.append((hit.cumsum()/np.arange(1, len(hit)+1))[hit].mean())
    return np.mean(first), np.mean(aps)


def layumi_scores(m):
    "rank-1 and mAP by trapezoids from a pytorch_result.mat; junk removed, all queries counted"
    first,aps = [],[]
    ql,qc,gl,gc = (m[k][0] for k in ('query_label','query_cam','gallery_label','gallery_cam'))
    for f,l,c in zip(m['query_f'], ql, qc):
        index = np.argsort(m['gallery_f']@f)[::-1]
        good = (gl==l) & (gc!=c)
        index = index[~((gl==-1) | (gl==l) & (gc==c))[index]]
        rows = np.flatnonzero(good[index])
        if not len(rows): first.append(0), aps.append(0); continue
        before = [i/r if r else 1. for i,r in enumerate(rows)]
        aps.append(np.mean([(b+(i+1)/(r+1))/2 for i,(b,r) in enumerate(zip(before, rows))]))
        first.append(rows[0]==0)
    return np.mean(first), np.mean(aps)


def test_torchreid_scores_ours(ours, tmp_path):
    z = np.load(write_features(ours, tmp_path/'f.npz'))
    keep = z['g_pids']!=-1 # its readers leave junk out
    got = torchreid_scores(z['qf'], z['gf'][keep], z['q_pids'], z['g_pids'][keep], z['q_camids'], z['g_camids'][keep])
    r = score_file(ours, empty='skip')
    assert got==pytest.approx((r.rank(1), r.map_mean), abs=1e-12)


def test_layumi_scores_ours(ours, tmp_path):
    scipy_io = pytest.importorskip('scipy.io')
    m = scipy_io.loadmat(write_features(ours, tmp_path/'f.mat'))
    r = score_file(ours)
    assert layumi_scores(m)==pytest.approx((r.rank(1), r.map_trap), abs=1e-12)


def test_a_file_of_layumi(ours, tmp_path):
    "As its test.py writes it: labels and cameras as lists of numbers"
    scipy_io = pytest.importorskip('scipy.io')
    scipy_io.savemat(tmp_path/'pytorch_result.mat', dict(gallery_f=ours.g.numpy(), query_f=ours.q.numpy(),
        gallery_label=ours.gallery.pid.tolist(), gallery_cam=ours.gallery.camid.tolist(),
        query_label=ours.query.pid.tolist(), query_cam=ours.query.camid.tolist()))
    f = read_features(tmp_path/'pytorch_result.mat')
    assert not f.notes and same(score_file(f), score_file(ours))

# --- ways to number and to order ---

def arrays(f):
    return dict(qf=f.q.numpy(), gf=f.g.numpy(), q_pids=f.query.pid.to_numpy(), g_pids=f.gallery.pid.to_numpy(),
                q_camids=f.query.camid.to_numpy(), g_camids=f.gallery.camid.to_numpy())

def read(tmp_path, *args, **fields):
    np.savez(tmp_path/'x.npz', **fields)
    return read_features(tmp_path/'x.npz', *args)


def test_cameras_from_zero(ours, tmp_path):
    a = arrays(ours)
    f = read(tmp_path, **{**a, 'q_camids':a['q_camids']-1, 'g_camids':a['g_camids']-1})
    assert 'cameras count from 0' in f.notes[0] and same(score_file(f), score_file(ours))
    assert f.query.camid.tolist()==ours.query.camid.tolist()
    f = read(tmp_path, **{**a, 'q_camids':a['q_camids']-1, 'g_camids':a['g_camids']-1, 'first_camid':0})
    assert f.gallery.camid.tolist()==ours.gallery.camid.tolist()
    # only one side has a camera 0
    one = read(tmp_path, **{**a, 'g_camids':a['g_camids']-1, 'q_camids':a['q_camids']*0+3})
    assert one.query.camid.unique().tolist()==[4] and one.gallery.camid.min()==1


def test_unknown_cameras_stay_unknown_in_our_files(ours, tmp_path):
    cam = ours.gallery.camid.where(np.arange(len(ours.g))>3, 0)
    f = Features(ours.q, ours.g, ours.query, ours.gallery.assign(camid=cam))
    back = read_features(write_features(f, tmp_path/'f.mat'))
    assert back.gallery.camid.tolist()==cam.tolist() and not back.notes


def test_persons_from_zero(ours, tmp_path):
    a = arrays(ours)
    keep = a['g_pids']!=0
    less = lambda o: np.where(o>0, o-a['q_pids'].min(), o)
    f = read(tmp_path, **{**a, 'q_pids':less(a['q_pids']), 'g_pids':less(a['g_pids'])[keep], 'gf':a['gf'][keep],
                          'g_camids':a['g_camids'][keep]})
    assert 'persons count from 0' in f.notes[0]
    assert (f.gallery.pid==-1).sum()==(a['g_pids']==-1).sum() and f.query.pid.min()==1
    alone = read(tmp_path, **{**a, 'g_pids':a['g_pids'][keep], 'gf':a['gf'][keep], 'g_camids':a['g_camids'][keep]})
    assert same(score_file(f), score_file(alone))
    # distractors in the gallery do not move anybody
    assert not read(tmp_path, **a).notes


def test_queries_before_the_gallery(ours, tmp_path):
    a = arrays(ours)
    f = read(tmp_path, feats=np.concatenate([a['qf'], a['gf']]), pids=np.r_[a['q_pids'], a['g_pids']],
             camids=np.r_[a['q_camids'], a['g_camids']], num_query=len(a['qf']))
    assert same(score_file(f), score_file(ours))
    for n in (0, 60, -1, 'x'):
        with pytest.raises(InputError, match='num_query'):
            read(tmp_path, feats=a['gf'], pids=a['g_pids'], camids=a['g_camids'], num_query=n)


def test_named_pictures(ours, df, tmp_path):
    paths,f = [*ours.query.path, *ours.gallery.path],torch.cat([ours.q, ours.g]).numpy()
    order = np.random.default_rng(1).permutation(len(f))
    short = lambda n: ['/elsewhere/'+'/'.join(p.split('/')[-n:]) for p in paths]
    for n in (1, 2, 4):
        got = read(tmp_path, df, features=f[order], paths=np.array(short(n))[order])
        assert same(score_file(got), score_file(ours)) and torch.equal(got.g, ours.g) and not got.notes
    more = read(tmp_path, df, features=np.r_[f, f[:3]], paths=np.array(paths+['a.jpg','b.jpg','c.jpg']))
    assert '3 features' in more.notes[0] and same(score_file(more), score_file(ours))
    for kw,says in ((dict(features=f[:-1], paths=paths[:-1]), 'no features of 1 of 60'), (dict(features=f[1:], paths=paths), '59 features and 60'),
                    (dict(features=np.r_[f, f[:1]], paths=paths+paths[:1]), 'two features')):
        with pytest.raises(InputError, match=says): read(tmp_path, df, **{**kw, 'paths':np.array(kw['paths'])})
    with pytest.raises(InputError, match='no data set'): read(tmp_path, features=f, paths=np.array(paths))


def test_named_pictures_whose_names_repeat(ours, df, tmp_path):
    "Then the folder decides"
    moved = df.copy()
    test = moved.split!='train'
    moved.loc[test, 'path'] = [f'/s/{s}/{i}.jpg' for s,i in
                               zip(df.split[test], df[test].groupby('split').cumcount())]
    q,g = pick(moved, 'query'),pick(moved, 'gallery')
    f = torch.cat([ours.g, ours.q]).numpy()
    got = read(tmp_path, moved, features=f, paths=np.array([*g.path, *q.path]))
    assert torch.equal(got.q, ours.q) and torch.equal(got.g, ours.g)
    with pytest.raises(InputError, match='two features'):
        read(tmp_path, moved, features=f, paths=np.array([p.split('/')[-1] for p in [*g.path, *q.path]]))


def test_lengths_are_made_one_unless_they_are_or_should_not(ours):
    long = Features(ours.q*3, ours.g*torch.linspace(1, 5, len(ours.g))[:,None], ours.query, ours.gallery)
    assert score_file(long).ap_mean.tolist()==pytest.approx(score_file(ours).ap_mean.tolist())
    raw = score_file(long, normalise=False)
    assert raw.ap_mean.tolist()!=score_file(ours).ap_mean.tolist() and 'features as they are' in raw.protocol
    assert 'L2-normalised' in score_file(long).protocol
    assert 'cosine distance of features as they are' in score_file(long, distance='cosine', normalise=False).protocol
    half = Features(ours.q.half().float(), ours.g.half().float(), ours.query, ours.gallery)
    zero = Features(ours.q, torch.where(torch.arange(44)[:,None]<2, 0., ours.g), ours.query, ours.gallery)
    assert '2 features are zero' in score_file(zero).protocol
    with pytest.raises(InputError, match='distance'): score_file(half, distance='manhattan')


@pytest.mark.parametrize('how', [lambda o: torch.tensor(o), lambda o: o, lambda o: o.tolist(),
                                 lambda o: torch.tensor(o).half() if o.dtype==np.float32 else torch.tensor(o)])
def test_ways_to_write_arrays(how, ours, tmp_path):
    torch.save({k: how(v) for k,v in arrays(ours).items()}, tmp_path/'f.pt')
    f = read_features(tmp_path/'f.pt')
    assert torch.allclose(f.q.float(), ours.q, atol=1e-3) and f.g.dtype in (torch.float32,torch.float64)
    columns = {k: v[:,None] if v.ndim==1 else v for k,v in arrays(ours).items()}
    assert same(score_file(read(tmp_path, **columns)), score_file(ours))
    floats = {k: v.astype(np.float64) for k,v in arrays(ours).items()}
    assert same(score_file(read(tmp_path, **floats)), score_file(ours))

# --- refused ---

class Evil:
    def __reduce__(self): return (print, ('run',))


def test_nothing_is_run(tmp_path, capsys):
    np.savez(tmp_path/'a.npz', qf=np.array([Evil()], object))
    torch.save(dict(qf=Evil()), tmp_path/'a.pt')
    (tmp_path/'b.pt').write_bytes(pickle.dumps(Evil()))
    (tmp_path/'b.npz').write_bytes(pickle.dumps(Evil()))
    for o in ('a.npz','a.pt','b.pt','b.npz'):
        with pytest.raises(InputError, match='broken, or holds more'): read_features(tmp_path/o)
    (tmp_path/'c.pkl').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match='should end in'): read_features(tmp_path/'c.pkl')
    assert capsys.readouterr().out==''


@pytest.mark.parametrize('kind', ['npz','pt','mat'])
def test_broken_files(kind, ours, tmp_path):
    file = write_features(ours, tmp_path/f'f.{kind}')
    whole = file.read_bytes()
    for n in (0, 3, 200, len(whole)//2, len(whole)-40):
        file.write_bytes(whole[:n])
        with pytest.raises(InputError): read_features(file)


@pytest.mark.parametrize('change,says', [
    (dict(qf=None), 'qf is missing'), (dict(g_camids=None), 'g_camids is missing'),
    (dict(q_pids=lambda v: v[1:]), '`q_pids` should be one number for each of 16'),
    (dict(g_camids=lambda v: np.r_[v, 1]), '`g_camids` should be one number for each of 44'),
    (dict(qf=lambda v: np.where(np.arange(64)==3, np.nan, v)), 'NaN'), (dict(gf=lambda v: v+np.inf), 'NaN or infinite'),
    (dict(gf=lambda v: v[:,:5]), '64 numbers each, the gallery 5'), (dict(gf=lambda v: v[None]), 'shape'),
    (dict(qf=lambda v: v.T), 'numbers each'), (dict(q_pids=lambda v: v+.5), 'whole numbers'),
    (dict(g_pids=lambda v: v-1), 'some are lower'), (dict(q_camids=lambda v: v-9), 'some are lower'),
    (dict(q_pids=lambda v: v+500), 'nobody'), (dict(q_pids=lambda v: np.stack([v, v], 1)), '`q_pids` should be one'),
    (dict(gf=lambda v: v.astype(str)), 'numbers'), (dict(g_pids=lambda v: v.astype(str)), 'whole numbers')])
def test_what_does_not_fit_is_refused(change, says, ours, tmp_path):
    a = arrays(ours)
    for k,f in change.items():
        if f is None: del a[k]
        else: a[k] = f(a[k])
    with pytest.raises(InputError, match=says) as e: read(tmp_path, **a)
    assert 'x.npz' in str(e.value) and str(e.value).count('\n')==0


def test_other_things_in_files(tmp_path):
    for o in ([1], 3, {}, torch.ones(2)):
        torch.save(o, tmp_path/'f.pt')
        with pytest.raises(InputError, match='arrays by name'): read_features(tmp_path/'f.pt')
    for o in (tmp_path/'none.npz', tmp_path):
        with pytest.raises(InputError, match='no file'): read_features(o)
    np.save(tmp_path/'a', np.ones((2,2)))
    (tmp_path/'a.npy').rename(tmp_path/'a.npz')
    with pytest.raises(InputError): read_features(tmp_path/'a.npz')


def test_writing_is_whole_or_not_at_all(ours, tmp_path, monkeypatch):
    file = write_features(ours, tmp_path/'f.npz')
    before = file.read_bytes()
    assert write_features(ours, tmp_path/'g.npz').read_bytes()==before
    def fails(*_, **__): raise OSError('full')
    monkeypatch.setattr(np, 'savez', fails)
    with pytest.raises(OSError): write_features(ours, file)
    assert file.read_bytes()==before and len([*tmp_path.iterdir()])==2
    with pytest.raises(InputError, match='ending'): write_features(ours, tmp_path/'f.pkl')
