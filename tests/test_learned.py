"Learned metrics against loops over all pairs, and through the commands"
import itertools, re
import numpy as np, pytest, torch
from posereid.core import InputError
from posereid.metrics import learned
from posereid.metrics.learned import (LearnedMetric, fit_metric, kissme, load_metric, null_space,
                                      xqda)
from posereid.metrics.retrieval import euclidean_distance


def some(n_ids=10, each=6, dim=8, n_cams=3, seed=0):
    "Features far from the origin, persons of unlike numbers of pictures, cameras in no order"
    rng = np.random.default_rng(seed)
    pids = np.sort(rng.integers(3, 3+n_ids, n_ids*each))*7
    cams = rng.integers(1, 1+n_cams, len(pids))
    x = 5 + rng.normal(size=(1000,dim))[pids] + rng.normal(size=(len(pids),dim))*np.linspace(.2, 2, dim)
    return x + rng.normal(size=(9,dim))[cams], pids, cams


def loops(x, pids, cams=None):
    "Mean squares of differences, pair by pair"
    same,other = [],[]
    for i,j in itertools.combinations(range(len(x)), 2):
        if cams is not None and cams[i]==cams[j]: continue
        d = x[i]-x[j]
        (same if pids[i]==pids[j] else other).append(np.outer(d, d))
    return np.mean(same, 0), np.mean(other, 0)


def slow_distance(q, g, W, M):
    return np.array([[(a-b)@W@M@W.T@(a-b) for b in g] for a in q])


def close(a, b, eps=1e-8):
    a,b = np.asarray(a),np.asarray(b)
    assert a.shape==b.shape and abs(a-b).max()<=eps*abs(b).max(), abs(a-b).max()


# --- KISSME ---

@pytest.mark.parametrize('with_cams', [True,False])
@pytest.mark.parametrize('dims', [8,5,0])
def test_kissme_is_the_loop(dims, with_cams):
    x,pids,cams = some()
    cams = cams if with_cams else None
    m = kissme(x, pids, cams, dims)
    W = np.linalg.svd(x-x.mean(0), full_matrices=False)[2][:dims or 8].T
    s,d = loops(x@W, pids, cams)
    val,vec = np.linalg.eigh(np.linalg.inv(s)-np.linalg.inv(d))
    val[val<=1e-10] = 1e-6
    close(m.distance(x[:9], x[9:]), slow_distance(x[:9], x[9:], W, vec*val@vec.T))
    assert m.fitted_on==(60, len(set(pids)), 3 if with_cams else 0) and m.psd


def test_kissme_replaces_what_is_not_positive():
    "Along the second direction a person differs more than persons do"
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(20), 4)
    x = np.stack([5*rng.normal(size=20)[pids]+rng.normal(size=80),
                  np.tile([-1,1,-1,1], 20)+.1*rng.normal(size=80)], 1)
    s,d = loops(x, pids)
    assert np.linalg.eigvalsh(np.linalg.inv(s)-np.linalg.inv(d))[0]<-1e-3
    val = torch.linalg.eigvalsh(kissme(x, pids).M)
    close(val[0], 1e-6)
    other = torch.linalg.eigvalsh(kissme(x, pids, least=.5).M)
    assert min((other-.5).abs())<1e-6 and min((val-.5).abs())>1e-3


def test_kissme_takes_fewer_dimensions_where_it_must():
    x,pids,cams = some(6, 3, 30)
    m = kissme(x, pids)
    assert len(m.M)==18-len(set(pids)) and m.settings['PCA']==len(m.M)
    with pytest.raises(InputError, match=f'dims={len(m.M)} or fewer'): kissme(x, pids, dims=17)
    # those of the leading components, not any
    W = np.linalg.svd(x-x.mean(0), full_matrices=False)[2][:len(m.M)].T
    s,d = loops(x@W, pids)
    val,vec = np.linalg.eigh(np.linalg.inv(s)-np.linalg.inv(d))
    val[val<=1e-10] = 1e-6
    close(m.distance(x[:4], x[4:]), slow_distance(x[:4], x[4:], W, vec*val@vec.T), 1e-5)


# --- XQDA ---

def slow_xqda(x, pids, cams, lam, how, dims=None):
    i,e = loops(x, pids, cams)
    i = i + lam*np.eye(len(i))
    a = np.linalg.inv(i)@e
    if how=='svd': W,val,_ = np.linalg.svd(a)
    else:
        val,W = np.linalg.eig(a)
        order = np.argsort(-val.real)
        val,W = val.real[order],W.real[:,order]
    W = W[:,:min(dims or 999, (val>1).sum())]
    return W, np.linalg.inv(W.T@i@W)-np.linalg.inv(W.T@e@W)


@pytest.mark.parametrize('how', ['svd','eigen'])
@pytest.mark.parametrize('lam,dims', [(.001,None), (.3,None), (.001,2), (0,None)])
def test_xqda_is_the_loop(how, lam, dims):
    x,pids,cams = some()
    m = xqda(x, pids, cams, lam, dims, subspace=how)
    W,M = slow_xqda(x, pids, cams, lam, how, dims)
    assert len(m.M)==W.shape[1]
    close(m.distance(x[:9], x[9:]), slow_distance(x[:9], x[9:], W, M), 1e-7)
    assert m.psd or how=='svd'


def test_xqda_of_two_views_is_the_formula_of_its_authors():
    x,pids,cams = some()
    a,b = cams==1,cams==3
    m = xqda(x, pids, cams, views=(1,3))
    same,other = [],[]
    for i in np.flatnonzero(a):
        for j in np.flatnonzero(b):
            (same if pids[i]==pids[j] else other).append(np.outer(x[i]-x[j], x[i]-x[j]))
    i,e = np.mean(same, 0)+.001*np.eye(8),np.mean(other, 0)
    W,val,_ = np.linalg.svd(np.linalg.inv(i)@e)
    W = W[:,:(val>1).sum()]
    close(m.distance(x[:9], x[9:]),
          slow_distance(x[:9], x[9:], W, np.linalg.inv(W.T@i@W)-np.linalg.inv(W.T@e@W)), 1e-7)
    assert m.fitted_on[0]==a.sum()+b.sum() and m.fitted_on[2]==2 and '(1, 3)' in m.said


@pytest.mark.parametrize('how', ['svd','eigen'])
def test_xqda_in_fewer_pictures_than_dimensions(how):
    "What is outside the span of the pictures counts nothing"
    x,pids,cams = some(5, 5, 60)
    W,M = slow_xqda(x, pids, cams, .001, how)
    m = xqda(x, pids, cams, subspace=how)
    assert len(x)<x.shape[1] and m.W.shape==W.shape
    close(m.distance(x[:9], x[9:]), slow_distance(x[:9], x[9:], W, M), 1e-6)


def test_xqda_leaves_out_unknown_cameras():
    x,pids,cams = some()
    off = np.arange(60)%7==0
    m = xqda(x, pids, np.where(off, 0, cams))
    close(m.distance(x[:9], x[9:]), xqda(x[~off], pids[~off], cams[~off]).distance(x[:9], x[9:]))
    assert m.fitted_on[0]==(~off).sum()


def test_xqda_keeps_at_least_one_dimension():
    rng = np.random.default_rng(0)  # nothing tells these persons apart
    m = xqda(rng.normal(size=(400,3)), np.arange(400)%5, 1+np.arange(400)//5%2, lam=9.)
    assert len(m.M)==1


# --- null space ---

def slow_null(x, pids):
    "Null directions in the span of the centred features, by SVD"
    x = x-x.mean(0)
    u,s,vt = np.linalg.svd(x, full_matrices=False)
    span = vt[s>1e-9*s[0]].T
    w = np.concatenate([x[pids==p]-x[pids==p].mean(0) for p in set(pids)])@span
    u,s,vt = np.linalg.svd(w)
    rank = (s>1e-9*s[0]).sum()
    return span@vt[rank:].T


def test_null_space_of_few_pictures():
    x,pids,_ = some(5, 4, 40)
    m,W = null_space(x, pids),slow_null(x, pids)
    assert len(m.M)==len(set(pids))-1==W.shape[1] and m.base is None
    t = some(5, 4, 40, seed=3)[0]
    close(m.distance(t[:6], t[6:]), slow_distance(t[:6], t[6:], W, np.eye(W.shape[1])), 1e-7)


def test_null_space_beside_more_pictures_than_dimensions():
    "d is less than n, but more than n − c, so that a few directions are left"
    x,pids,_ = some(20, 2, 38)
    c = len(set(pids))
    m,W = null_space(x, pids),slow_null(x, pids)
    assert 40-c<38 and len(m.M)==38-(40-c)==W.shape[1]<c-1
    close(m.distance(x[:6], x[6:]), slow_distance(x[:6], x[6:], W, np.eye(W.shape[1])), 1e-7)


@pytest.mark.parametrize('kind', ['rbf','chi2'])
def test_kernel_null_space(kind):
    "By the explicit features of the kernel: rows of a square root of K, of training and test together"
    x,pids,_ = some(6, 5, 4)
    x = abs(x)
    t = abs(some(6, 5, 4, seed=5)[0])[:7]
    both = np.concatenate([x, t])
    d = (((both[:,None]-both)**2).sum(2) if kind=='rbf'
         else ((both[:,None]-both)**2/(both[:,None]+both)).sum(2))
    K = np.exp(-d/d[:30,:30].mean())
    val,vec = np.linalg.eigh(K)
    f = vec*np.sqrt(val.clip(0))
    W = slow_null(f[:30], pids)
    m = null_space(x, pids, kernel=kind)
    close(m.settings['gamma'], 1/d[:30,:30].mean())
    assert len(m.M)==len(set(pids))-1
    close(m.distance(t, x), slow_distance(f[30:], f[:30], W, np.eye(W.shape[1])), 1e-5)


def test_chi2_knows_no_unit():
    x,pids,_ = some(6, 5, 4)
    x = abs(x)
    a,b = (null_space(x/k, pids, kernel='chi2').distance(x[:9]/k, x/k) for k in (1,1000))
    close(a, b, 1e-5)


def test_both_ways_to_the_null_space_agree(monkeypatch):
    x,pids,_ = some(6, 5, 4)
    a = null_space(x, pids, kernel='rbf')
    monkeypatch.setattr(learned, '_by_factor', lambda *_: None)
    b = null_space(x, pids, kernel='rbf')
    close(a.distance(x[:9]+.1, x), b.distance(x[:9]+.1, x), 1e-5)
    wide,pids,_ = some(5, 4, 40)
    c = null_space(wide, pids)
    monkeypatch.undo()
    close(null_space(wide, pids).distance(wide[:9]+.1, wide), c.distance(wide[:9]+.1, wide), 1e-6)


def test_a_direction_with_a_little_scatter_within_is_no_null_space():
    x,pids,_ = some()
    x[:,0] = pids+.01*np.random.default_rng(0).normal(size=60)
    with pytest.raises(InputError, match='no direction'): null_space(x, pids)


def test_every_person_is_a_point():
    for m,(x,pids,_) in ((null_space(*(o:=some(8, 4, 50))[:2]), o), (null_space(*(p:=some())[:2], kernel='rbf'), p)):
        y = m.project(x)
        centres = torch.stack([y[torch.as_tensor(pids==p)].mean(0) for p in sorted(set(pids))])
        within = max(float((y[torch.as_tensor(pids==p)]-c).abs().max()) for p,c in zip(sorted(set(pids)), centres))
        assert within<1e-6*torch.pdist(centres).min()


def test_repeated_pictures_have_a_null_space_too():
    "K is singular then"
    x,pids,_ = some(6, 5, 4)
    a,b = null_space(x, pids, kernel='rbf', gamma=.05),null_space(np.repeat(x, 2, 0), np.repeat(pids, 2), kernel='rbf', gamma=.05)
    # all are there twice, so the space is the same
    close(a.distance(x[:9]+.1, x), b.distance(x[:9]+.1, x), 1e-4)


def test_nearly_is_discriminant_analysis():
    LDA = pytest.importorskip('sklearn.discriminant_analysis').LinearDiscriminantAnalysis
    x,pids,_ = some()
    for k in (7,3):
        m = null_space(x, pids, nearly=k)
        z = LDA(n_components=k).fit(x, pids).transform(x)
        ratio = m.distance(x[:9], x[9:]).numpy()/((z[:9,None]-z[9:])**2).sum(2)
        close(ratio, np.full_like(ratio, ratio[0,0]), 1e-6)
        assert m.settings['nearly']==k and len(m.M)==k
        # in units of the scatter within
        y = m.project(x).numpy()
        w = np.concatenate([y[pids==p]-y[pids==p].mean(0) for p in set(pids)])
        close(w.T@w/(60-len(set(pids))), np.eye(k), 1e-7)
    few = np.arange(60)%4
    assert len(null_space(x, few, nearly=7).M)==3  # fewer than persons
    assert 'nearly' not in null_space(*some(5, 4, 40)[:2], nearly=9).settings  # there is a null space


# --- all of them ---

FITS = {'kissme': kissme, 'xqda': xqda, 'xqda eigen': lambda *a: xqda(*a, subspace='eigen'),
        'nearly': lambda *a: null_space(*a, nearly=5), 'rbf': lambda *a: null_space(*a, kernel='rbf')}

@pytest.mark.parametrize('name', FITS)
def test_what_must_not_matter(name):
    x,pids,cams = some()
    ref = FITS[name](x, pids, cams).distance(x[:9], x[9:])
    order = np.random.default_rng(1).permutation(len(x))
    for a in ((x[order],pids[order],cams[order]), (x,pids*11-5,cams), (x,list(pids),list(cams)),
              (torch.as_tensor(x),pids,cams*4), (x+100,pids,cams)):
        move = 100 if a[0] is not x and a[0].mean()>50 else 0
        close(FITS[name](*a).distance(x[:9]+move, x[9:]+move), ref, 1e-6)


@pytest.mark.parametrize('name', FITS)
def test_projected_features_have_this_distance(name):
    x,pids,cams = some()
    m = FITS[name](x, pids, cams)
    if not m.psd:
        with pytest.raises(InputError, match="subspace='eigen'"): m.project(x)
        return
    d = m.distance(x[:9], x[9:])
    close(euclidean_distance(m.project(x[:9]), m.project(x[9:]), squared=True), d, 1e-7)
    assert d.dtype==torch.float64 and d.min()>=0


def test_a_metric_that_is_no_distance():
    m = LearnedMetric('odd', torch.eye(2).double(), torch.diag(torch.tensor([1.,-2.])).double())
    assert not m.psd and m.distance(np.array([[1.,1.]]), np.zeros((1,2))).item()==-1
    with pytest.raises(InputError, match='negative'): m.project(np.zeros((1,2)))


@pytest.mark.parametrize('name', FITS)
def test_files(name, tmp_path):
    x,pids,cams = some()
    m = FITS[name](x.astype(np.float32), pids, cams)
    back = load_metric(m.save(tmp_path/'m.npz'))
    assert (back.hash, back.said, back.dims) == (m.hash, m.said, 8) and repr(m).endswith(m.hash)
    assert torch.equal(back.distance(x[:3], x), m.distance(x[:3], x)) and [o.name for o in tmp_path.iterdir()]==['m.npz']
    z = dict(np.load(tmp_path/'m.npz'))
    z['W'] = z['W']+1e-3
    np.savez(tmp_path/'m.npz', **z)
    with pytest.raises(InputError, match='changed'): load_metric(tmp_path/'m.npz')
    np.savez(tmp_path/'m.npz', a=1)
    with pytest.raises(InputError, match='no learned metric'): load_metric(tmp_path/'m.npz')
    with pytest.raises(InputError, match='no learned metric at'): load_metric(tmp_path/'n.npz')


def bad(match, f, *args, **kwargs):
    with pytest.raises(InputError, match=match): f(*args, **kwargs)

def test_bad_input():
    x,pids,cams = some()
    bad('NaN', kissme, np.where(x>x.mean(), np.nan, x), pids)
    bad('needs one pid', xqda, x, pids[:-1], cams)
    bad('needs one camid', xqda, x, pids, cams[1:])
    bad('whole number', kissme, x, pids+.5)
    bad('only one', null_space, x, pids*0)
    bad('has one; add pictures', kissme, x, np.arange(60))
    bad('two or more', xqda, x, pids, cams*0+4)
    bad('two or more', xqda, x, pids, None)
    bad('two of the cameras', xqda, x, pids, cams, views=(1,1))
    bad('in different cameras', xqda, x[:20], np.r_[1,1,2:20], np.r_[1,1,[2]*18])
    bad('junk', kissme, x, np.where(pids==pids[0], -1, pids))
    bad('nothing|no direction|none', kissme, x[:0], pids[:0])
    bad('span only', xqda, np.repeat(x, 2, 1), pids, cams, lam=0)
    bad('lam', xqda, x, pids, cams, lam=-1)
    bad('dims', xqda, x, pids, cams, dims=0)
    bad('svd, eigen', xqda, x, pids, cams, subspace='qr')
    bad('linear, rbf, chi2', null_space, x, pids, kernel='poly')
    bad('not negative', null_space, x-5, pids, kernel='chi2')
    bad('gamma', null_space, x, pids, kernel='rbf', gamma=0.)
    bad('gamma', null_space, x*0+1, pids, kernel='rbf')
    bad('alike', kissme, x*0+1, pids)
    bad(r"more than 5\d dimensions.*nearly=8", null_space, x, pids)
    bad('8 numbers, but those of the gallery have 3', kissme(x, pids).distance, x, x[:,:3])
    bad('kissme, xqda', fit_metric, 'lmnn', x, pids, cams)
    chi = null_space(abs(x), pids, kernel='chi2')
    bad('not negative', chi.distance, abs(x), -abs(x))


def test_by_name():
    x,pids,cams = some()
    for name,ref in {'kissme':kissme(x, pids, cams), 'xqda':xqda(x, pids, cams),
                     'null:rbf':null_space(x, pids, kernel='rbf'), 'null:chi2':null_space(abs(x), pids, kernel='chi2')}.items():
        m = fit_metric(name, abs(x) if 'chi2' in name else x, pids, cams)
        close(m.distance(abs(x[:5]), abs(x)), ref.distance(abs(x[:5]), abs(x)))
    # no camera is known: all pairs count
    m = fit_metric('kissme', x, pids, cams*0)
    assert m.fitted_on[2]==0
    close(m.distance(x[:5], x), kissme(x, pids).distance(x[:5], x))


# --- in evaluations ---

def test_the_score_by_a_metric():
    from posereid.evaluate.features import Features, score_file
    from posereid.metrics.retrieval import retrieval
    from posereid.metrics.rerank import rerank_features
    from pandas import DataFrame
    x,pids,cams = some(12, 9, 8)
    x = torch.nn.functional.normalize(torch.as_tensor(x).float(), dim=1)
    gpids = pids[30:].copy(); gpids[::9] = -1
    f = Features(x[:30], x[30:], DataFrame(dict(pid=pids[:30], camid=cams[:30])), DataFrame(dict(pid=gpids, camid=cams[30:])))
    who = (pids[:30], gpids, cams[:30], cams[30:])
    for m in (kissme(x, pids, cams, 6), xqda(x, pids, cams), xqda(x, pids, cams, subspace='eigen')):
        r = score_file(f, 'some', metric=m)
        want = retrieval(m.distance(f.q, f.g), *who)
        assert r.map_mean==pytest.approx(want.map_mean, abs=1e-6) and m.said in r.protocol
        assert 'euclidean' not in r.protocol
    assert score_file(f).protocol.count('euclidean distance')==1
    keep = gpids!=-1
    r = score_file(f, metric=m, rerank=dict(k1=5, k2=2))
    d = rerank_features(m.project(f.q), m.project(f.g[torch.as_tensor(keep)]), 5, 2)
    assert r.map_mean==retrieval(d, who[0], gpids[keep], who[2], who[3][keep]).map_mean
    odd = LearnedMetric('odd', torch.eye(8).double(), torch.diag(torch.tensor([1.]*7+[-2.])).double())
    bad('Re-ranking needs', score_file, f, metric=odd, rerank={})
    bad('leave the distance out', score_file, f, distance='cosine', metric=m)
    want = retrieval(odd.distance(f.q, f.g), *who)
    assert score_file(f, metric=odd).map_mean==want.map_mean!=score_file(f).map_mean


def test_evaluate_reid_by_a_metric_is_the_score_of_its_features():
    from posereid.data.pictures import PictureStore
    from posereid.evaluate.features import features_of, score_file, training_features
    from posereid.evaluate.protocol import evaluate_reid
    from posereid.models.reid import reid_net
    from posereid.synth.world import load_world, tiny_world
    df,store = load_world(tiny_world()).target,PictureStore((64,32))
    torch.manual_seed(0)
    net = reid_net(None, 'small', 8)
    t = training_features(net, df, store)
    for m in (xqda(t.x, t.pids, t.camids), kissme(t.x, t.pids, t.camids)):
        for kw in ({}, dict(rerank=dict(k1=5)))[:2 if m.psd else 1]:
            a = evaluate_reid(net, df, store, metric=m, **kw)
            b = score_file(features_of(net, df, store), metric=m, **kw)
            assert a.to_dict()|dict(protocol='')==b.to_dict()|dict(protocol='') and m.said in a.protocol
        # without a Euclidean space
        odd = LearnedMetric('odd', m.W[:,:2], torch.diag(torch.tensor([1.,-.5])).double())
        a,b = evaluate_reid(net, df, store, metric=odd),score_file(features_of(net, df, store), metric=odd)
        assert not odd.psd and a.to_dict()|dict(protocol='')==b.to_dict()|dict(protocol='')
        # single shot takes the metric's distances too
        one = evaluate_reid(net, df, store, metric=m, single_shot=20)
        assert one.single_shot is not None and one.map_mean==pytest.approx(evaluate_reid(net, df, store, metric=m).map_mean)
        assert not np.array_equal(one.single_shot, evaluate_reid(net, df, store, single_shot=20).single_shot)


def test_training_files(tmp_path):
    from posereid.evaluate.features import check_unseen, read_features, read_training
    x,pids,cams = some()
    f = tmp_path/'t.npz'
    for names in (('features','pids','camids'), ('train_f','train_label','train_cam'), ('feats','labels','cams')):
        np.savez(f, **dict(zip(names, (x, pids, cams))))
        t = read_training(f)
        assert torch.equal(t.x, torch.as_tensor(x)) and (t.pids==pids).all() and (t.camids==cams).all() and not t.notes
        assert '60 pictures' in repr(t)
    np.savez(f, features=x, pids=pids, camids=cams-1)
    t = read_training(f)
    assert (t.camids==cams).all() and 'count from 0' in t.notes[0]
    np.savez(f, features=x, pids=pids)
    assert not read_training(f).camids.any()
    # two sides are one set
    g = np.where(pids[30:]==pids[40], -1, pids[30:])
    np.savez(f, qf=x[:30], gf=x[30:], q_pids=pids[:30], g_pids=np.where(np.arange(30)==3, 0, np.r_[pids[0], g[1:]]), q_camids=cams[:30], g_camids=cams[30:])
    t = read_training(f)
    assert (t.pids>0).all() and len(t.x)==len(t.pids)==len(t.camids)<60
    test = read_features(f)
    with pytest.raises(InputError, match=r'\d+ test features are among'): check_unseen(t, test)
    t.x = t.x+1e-3*torch.arange(t.x.shape[1])
    check_unseen(t, test)
    free = t.x.clone()
    for side in (test.g,test.q): # one of either side is enough, whatever its length
        t.x = free.clone(); t.x[0] = 3*side[5]
        with pytest.raises(InputError, match='1 test features are among'): check_unseen(t, test)
    t.x = free[:,:3]
    with pytest.raises(InputError, match='3 numbers'): check_unseen(t, test)
    np.savez(f, features=x, camids=cams)
    with pytest.raises(InputError, match='train_label is missing'): read_training(f)
    np.savez(f, features=x, pids=pids[:4])
    with pytest.raises(InputError, match='one number for each of 60'): read_training(f)


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A tiny world, a net, and features of its training and test pictures"
    from posereid import cli
    from posereid.data.layouts import load_dataset
    from posereid.evaluate.features import features_of, training_features, write_features
    from posereid.stages.trained import Trained
    d = tmp_path_factory.mktemp('learned')
    cli.posereid_synth(out=d/'world', preset='smoke', set=['world.n_train=6','world.per_train=4','world.n_source=4','world.n_test=8',
                                                           'world.per_test=5','world.n_junk=2','world.n_distractor=2'])
    cli.posereid_guider(d/'world/target', out=d/'guider', preset='smoke', set=['reid.width=4','reid.epochs=1','reid.bs=8'])
    net = Trained(d/'guider')
    df = load_dataset(d/'world/target')
    write_features(features_of(net.net, df, net.store()), d/'test.npz')
    t = training_features(net.net, df, net.store())
    np.savez(d/'train.npz', features=t.x, pids=t.pids, camids=t.camids)
    np.savez(d/'long.npz', features=3*t.x, pids=t.pids, camids=t.camids)
    return d


def test_the_command(home, capsys, refused):
    from posereid import cli
    def said(*args, **kwargs):
        capsys.readouterr()
        cli.posereid_eval(*args, **kwargs)
        return capsys.readouterr().out
    line = lambda s: re.search(r'rank-1 .*', s)[0]
    data,model,test = home/'world/target',home/'guider',home/'test.npz'
    for metric in ('xqda','kissme','null:rbf'):
        own = said(data, model, metric=metric)
        assert metric.partition(':')[0]+' metric (' in own and '24 pictures of 6 people in 6 cameras' in own and 'fitted on target' not in own
        for fit in (data, home/'train.npz', home/'long.npz')[2*(metric!='xqda'):]:  # features are divided by their length
            other = said(data, model, metric=metric, fit=fit)
            assert line(other)==line(own) and other.strip().endswith(f'fitted on {fit.name}')
        assert line(said(features=test, metric=metric, fit=home/'train.npz'))==line(own)
    assert line(said(data, model, metric='null:rbf'))!=line(said(data, model))
    assert 're-ranked' in said(data, model, metric='kissme', rerank=True)
    refused(cli.posereid_eval, data, model, metric='lmnn', says='--metric must be one of kissme')
    refused(cli.posereid_eval, data, model, fit=data, says='--metric')
    refused(cli.posereid_eval, data, model, metric='kissme', distance='cosine', says='leave the distance out')
    refused(cli.posereid_eval, features=test, metric='xqda', says='--fit')
    refused(cli.posereid_eval, features=test, metric='xqda', fit=data, says='--fit')
    refused(cli.posereid_eval, features=test, metric='xqda', fit=test, says='among the training features')
    refused(cli.posereid_eval, data, model, metric='xqda', fit=home/'no.npz', says='no file of features')
