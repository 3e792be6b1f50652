"Features, protocol and figures on small nets whose answers are known"
import io
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from torch import nn
from posereid.core import InputError
from posereid.evaluate.plots import plot_cmc, plot_grid, plot_intervals, plot_ranking
from posereid.evaluate.protocol import (batches, eval_mode, evaluate_reid, extract_features,
    identity_scores,
    protocol_string, rank_pictures, reestimate_bn, test_rows, to_input, tracklet_features)
from posereid.metrics.retrieval import euclidean_distance, retrieval, score_features
from posereid.metrics.protocols import single_shot_cmc


class TinyNet(nn.Module):
    "Convolution, BatchNorm, dropout: everything that has a mode"
    def __init__(self, k=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3,8,3,padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                                  nn.Dropout(.5))
        self.head = nn.Linear(8, k)
    def embed(self, x): return self.body(x).mean((2,3))
    def forward(self, x): return self.head(self.embed(x))


class Store:
    "Random pictures by path"
    size = (12,8)
    def get(self, paths):
        gens = (torch.Generator().manual_seed(int(p)) for p in paths)
        return torch.stack([torch.randint(0, 256, (3,*self.size), dtype=torch.uint8, generator=g)
                            for g in gens])


def manifest(n=30, seed=0):
    rng = np.random.default_rng(seed)
    splits = ['query']*8+['gallery']*(n-8)
    df = pd.DataFrame(dict(path=list(map(str, range(n))), pid=rng.integers(1, 5, n),
                           camid=rng.integers(1, 4, n), split=splits))
    df.loc[n-3:, 'pid'] = [-1,0,0]
    return df


@pytest.fixture
def net():
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def pics(): return Store().get(range(20))


def test_features_do_not_depend_on_batches_or_mode(net, pics):
    whole = extract_features(net.eval(), pics)
    assert whole.dtype==torch.float32 and whole.norm(dim=1).sub(1).abs().max()<1e-5
    for bs in (1,7,20):
        torch.testing.assert_close(extract_features(net.train(), pics, bs=bs), whole, atol=1e-5,
                                   rtol=1e-4)
    raw = net.eval().embed(pics/127.5-1).detach()
    torch.testing.assert_close(whole, F.normalize(raw, dim=1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(extract_features(net, pics, bs=7, normalise=False), raw, atol=1e-5,
                               rtol=1e-4)


def test_features_leave_the_model_as_it_was(net, pics):
    net.train(); net.body[1].eval()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    extract_features(net, pics, flip=True)
    assert [m.training for m in net.body] == [True,False,True,True] and net.training
    assert all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_mode_comes_back_after_an_error(net):
    with pytest.raises(RuntimeError), eval_mode(net.train()): raise RuntimeError
    assert net.training and net.body[1].training


def test_flip_forgets_left_and_right(net, pics):
    a, b = (extract_features(net, o, flip=True) for o in (pics, pics.flip(-1)))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(extract_features(net, pics), extract_features(net, pics.flip(-1)),
                              atol=1e-3)


def test_grey_keeps_brightness_alone(pics):
    g = to_input(pics, grey=True)
    assert torch.equal(g[:,0], g[:,1]) and torch.equal(g[:,0], g[:,2])
    x = pics.float()
    torch.testing.assert_close(g[:,0], (.299*x[:,0]+.587*x[:,1]+.114*x[:,2])/127.5-1, atol=1e-5,
                               rtol=1e-4)


def test_batches_are_even_and_complete(pics):
    for bs in (1,3,7,19,20,100):
        parts = list(batches(pics, bs))
        assert (torch.equal(torch.cat(parts), pics) and max(map(len, parts))<=bs
                and max(map(len, parts))-min(map(len, parts))<=1)
    assert list(batches(pics[:0]))==[]


def test_bad_features(net, pics):
    with pytest.raises(InputError, match='no pictures'): extract_features(net, pics[:0])
    with pytest.raises(InputError, match='uint8'): extract_features(net, pics.float())
    net.body[0].weight.data.fill_(float('nan'))
    with pytest.raises(InputError, match='diverged'): extract_features(net, pics)


def test_evaluation_is_the_sum_of_its_parts(net):
    df, store = manifest(), Store()
    q, g = df[df.split=='query'], df[df.split=='gallery']
    res = evaluate_reid(net, df, store, dataset='tiny', bs=5)
    fq, fg = (extract_features(net, store.get(o.path)) for o in (q,g))
    ref = retrieval(torch.cdist(fq.double(), fg.double()), q.pid, g.pid, q.camid, g.camid)
    scores = lambda r: [r.map_trap, r.map_mean, r.minp, *r.cmc]
    np.testing.assert_allclose(scores(res), scores(ref))
    cos = evaluate_reid(net, df, store, distance='cosine')
    np.testing.assert_allclose([cos.map_trap, *cos.cmc], [res.map_trap, *res.cmc])
    assert res.n_gallery==21 and rank_pictures(net, q, g, store).shape==(8,22)


def test_order_of_the_manifest_does_not_matter(net):
    df = manifest()
    a, b = (evaluate_reid(net, o, Store()) for o in (df, df.sample(frac=1, random_state=0)))
    assert b.to_dict()==pytest.approx(a.to_dict())


def test_protocol_names_everything(net):
    df = manifest()
    said = evaluate_reid(net, df, Store(), dataset='tiny', flip=True, grey=True, empty='skip',
                         distance='cosine').protocol
    n = df[df.split=='query'].pid.nunique()
    for o in ('tiny: ', f'8 queries of {n} people',
              '21 gallery pictures (2 distractors; 1 junk removed)', 'cosine',
              'same camera removed', 'mirrored', 'map_trap', 'map_mean', 'are skipped',
              'grey pictures 12×8'):
        assert o in said, o
    plain = evaluate_reid(net, df, Store()).protocol
    assert 'count 0' in plain and 'euclidean' in plain and not any(o in plain
        for o in ('grey','mirrored','unknown'))
    df.loc[3, 'camid'] = 0
    assert '1 pictures of unknown camera' in protocol_string(df[:8], df[8:])


def test_bad_test_sets(net):
    df = manifest()
    with pytest.raises(InputError, match='of tiny has no gallery'):
        evaluate_reid(net, df[df.split=='query'], Store(), dataset='tiny')
    with pytest.raises(InputError, match='euclidean'):
        evaluate_reid(net, df, Store(), distance='manhattan')
    twice = pd.concat([df, df[:1].assign(split='gallery')])
    evaluate_reid(net, twice, Store())  # the camera removes the query's own picture
    with pytest.raises(InputError, match='give cameras'):
        evaluate_reid(net, twice.assign(camid=0), Store())
    lonely = df.assign(pid=np.arange(1, len(df)+1))
    assert evaluate_reid(net, lonely, Store()).map_mean==0


def test_identity_scores(net, pics):
    labels = torch.arange(20)%4
    with torch.no_grad(): logits = net.eval()(pics/127.5-1)
    s = identity_scores(net.train(), pics, labels, bs=7)
    assert s['n']==20 and s['ce']==pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert s['top1']==pytest.approx((logits.argmax(1)==labels).float().mean().item())
    with pytest.raises(InputError, match='20 pictures and 3 labels'):
        identity_scores(net, pics, [0,1,2])


def test_reestimated_statistics_are_the_average_over_batches(net, pics):
    net.train()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    res = reestimate_bn(net, pics, bs=10)
    with torch.no_grad(): maps = [net.body[0](x/127.5-1) for x in pics.split(10)]
    mean, var = (torch.stack([f(m, (0,2,3)) for m in maps]).mean(0)
                 for f in (torch.mean, torch.var))
    torch.testing.assert_close(res.body[1].running_mean, mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(res.body[1].running_var, var, atol=1e-5, rtol=1e-4)
    assert not any(m.training for m in res.modules()) and res.body[1].momentum==.1
    assert net.training and all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    assert all(torch.equal(a, b) for a,b in zip(net.parameters(), res.parameters()))


def test_a_frozen_model_can_be_reestimated(net, pics):
    net.eval().requires_grad_(False)
    net.train = lambda mode=True: net  # as a frozen guider does, to stay in eval mode
    assert not torch.equal(reestimate_bn(net, pics).body[1].running_mean, net.body[1].running_mean)


def test_figures_can_be_saved(pics):
    import matplotlib.pyplot as plt
    res = retrieval([[.1,.2]], [1], [2,1], [1], [2,2])
    figs = [plot_grid(pics[:6].view(2,3,3,12,8)),
            plot_grid([[pics[0]/127.5-1, None],[pics[1]]], row_titles='ab', col_titles='cd'),
            plot_ranking(pics[:2], pics[2:8].view(2,3,3,12,8), np.eye(2,3)>0),
            plot_cmc({'one':res}, max_rank=5),
            plot_intervals(pd.DataFrame(dict(title=['three']*3+['one'], value=[.1,.2,.3,.1])))]
    for fig in figs:
        f = io.BytesIO(); fig.savefig(f, format='png')
        assert 1000 < len(f.getvalue()) < 60000
    assert not plt.get_fignums()


# --- pooled queries and re-ranking ---

@pytest.fixture
def several():
    "Eight queries, a gallery without junk, and two more pictures of each query for pooling"
    df = manifest(40)
    df = df[df.pid>0].reset_index(drop=True)
    q = df[df.split=='query']
    more = pd.concat([q.assign(split='multi', path=[str(100+2*i+k) for i in range(len(q))])
                      for k in (0,1)])
    return pd.concat([df, more], ignore_index=True)


@pytest.mark.parametrize('how', ['mean','max'])
def test_pooled_queries_by_hand(net, several, how):
    r = evaluate_reid(net, several, Store(), multi=how)
    feat = lambda d: extract_features(net, Store().get(d.path))
    q,g,m = (several[several.split==o] for o in ('query','gallery','multi'))
    f = feat(m)
    same = [torch.tensor(((m.pid==p) & (m.camid==c)).tolist()) for p,c in zip(q.pid, q.camid)]
    pooled = F.normalize(torch.stack([f[o].mean(0) if how=='mean' else f[o].amax(0) for o in same]),
                         dim=1)
    want = retrieval(torch.cdist(pooled, feat(g)), q.pid, g.pid, q.camid, g.camid)
    assert (r.map_mean==pytest.approx(want.map_mean, abs=1e-6)
            and f'multi-query ({how})' in r.protocol)


def test_pooling_needs_pictures(net, several):
    with pytest.raises(InputError, match='split `multi`'):
        evaluate_reid(net, several[several.split!='multi'], Store(), multi='mean')
    with pytest.raises(InputError, match='must be'):
        evaluate_reid(net, several, Store(), multi='median')


def test_reranked_evaluation_by_hand(net, several):
    from posereid.metrics.rerank import rerank_features
    r = evaluate_reid(net, several, Store(), rerank=dict(k1=5, k2=2))
    q,g = (several[several.split==o] for o in ('query','gallery'))
    d = rerank_features(*(extract_features(net, Store().get(o.path)) for o in (q,g)), k1=5,
                        k2=2, lam=.3)
    assert r.map_trap==pytest.approx(retrieval(d, q.pid, g.pid, q.camid, g.camid).map_trap,
                                     abs=1e-9)
    assert ('re-ranked (k1=5, k2=2, lam=0.3)' in r.protocol
            and 'no re-ranking' in evaluate_reid(net, several, Store()).protocol)


def test_junk_is_nobodys_neighbour(net):
    "Re-ranking with junk in the gallery equals re-ranking without it"
    df = manifest(40)
    a,b = (evaluate_reid(net, o, Store(), rerank=dict(k1=4, k2=2)) for o in (df, df[df.pid!=-1]))
    assert a.map_trap==pytest.approx(b.map_trap, abs=1e-9) and a.rank(1)==b.rank(1)


def test_rerank_settings_are_checked(net, several):
    with pytest.raises(InputError, match='k1'):
        evaluate_reid(net, several, Store(), rerank=dict(k1=0))
    with pytest.raises((InputError, TypeError)):
        evaluate_reid(net, several, Store(), rerank=dict(k3=1))


# --- tracklets, as MARS ---

class Loud(nn.Module):
    "Features whose lengths differ much, so that it matters whether frames are normalised before they are pooled"
    def embed(self, x):
        f = torch.cat([h.mean((2,3)) for h in x.chunk(2, dim=-1)], 1)
        return f*(1+20*x[:,:1,0,0].abs()) - .3


def films(seed=0, n_people=6, junk=2, strangers=2):
    "Tracklets of 1 to 5 frames; a query for each person in each camera, in the gallery too, as in MARS"
    rng,rows = np.random.default_rng(seed),[]
    who = [(p,c,t) for p in range(1, n_people+1) for c in (1,2,3) for t in (1,2)]
    who += [(-1,1,t) for t in range(junk)] + [(0,2,t) for t in range(strangers)]
    for p,c,t in who:
        for f in range(1, int(rng.integers(2, 6))):
            rows.append(dict(pid=p, camid=c, tracklet=f'{p:04d}C{c}T{t:04d}', frame=f,
                             split='gallery', dataset='mars'))
    g = pd.DataFrame(rows)
    g.insert(0, 'path', [str(o) for o in rng.permutation(len(g))])
    asked = g.tracklet.str.endswith('T0001') & (g.pid>0)
    return pd.concat([g[asked].assign(split='query'), g], ignore_index=True)


def raw(model, paths): return torch.stack([model.embed(Store().get([p])/127.5-1)[0] for p in paths])


def pooled_by_hand(model, df, how='max', split='gallery', before=lambda f: f):
    "Tracklet features one after the other, all frames of one at a time"
    groups = df[df.split==split].groupby('tracklet', sort=False)
    f = [before(raw(model, g.path)) for _,g in groups]
    f = torch.stack([o.amax(0) if how=='max' else o.mean(0) for o in f])
    heads = groups.first()
    return F.normalize(f, dim=1), heads.pid.to_numpy(), heads.camid.to_numpy()


@pytest.mark.parametrize('how', ['auto','max','mean'])
def test_tracklets_by_hand(how):
    df, by = films(), 'mean' if how=='mean' else 'max'
    r = evaluate_reid(Loud(), df, Store(), tracklets=how, bs=7)
    (q,qp,qc),(g,gp,gc) = (pooled_by_hand(Loud(), df, by, o) for o in ('query','gallery'))
    want = retrieval(torch.cdist(q.double(), g.double()), qp, gp, qc, gc)
    assert r.ap_trap==pytest.approx(want.ap_trap, abs=1e-9) and (r.ranks==want.ranks).all()
    assert (f'tracklets pooled by {by}, 18 query tracklets of 6 people, 38 gallery tracklets (2 '
            'distractors; 2 junk removed)' in r.protocol)
    assert ('MARS as its authors score it' in r.protocol)==(by=='max') and r.n_query==18


def test_each_rule_of_pooling_matters():
    "Max is not mean, and frames are not normalised before they are pooled: three different rankings"
    df = films(n_people=12)
    unit = lambda f: F.normalize(f, dim=1)
    q,g = (pooled_by_hand(Loud(), df, 'max', o) for o in ('query','gallery'))
    others = [pooled_by_hand(Loud(), df, 'mean'), pooled_by_hand(Loud(), df, 'max', before=unit)]
    for o in others: assert (g[0]-o[0]).abs().max()>.05
    r = evaluate_reid(Loud(), df, Store())
    bad = [pooled_by_hand(Loud(), df, 'max', o, unit) for o in ('query','gallery')]
    bad = retrieval(torch.cdist(bad[0][0], bad[1][0]), q[1], g[1], q[2], g[2])
    assert (abs(r.map_trap-bad.map_trap)>1e-3
            and abs(r.map_trap-evaluate_reid(Loud(), df, Store(), tracklets='mean').map_trap)>1e-3)


def test_the_query_is_removed_by_its_camera():
    "Every tracklet of the person in that camera is out, the query's own among them; other queries may be found"
    df = films()
    r = evaluate_reid(Loud(), df, Store())
    assert (r.n_good==4).all() and r.n_gallery==6*6+2
    fewer = df[(df.split=='query') | ~df.tracklet.isin(df.tracklet[df.split=='query'])]
    assert (evaluate_reid(Loud(), fewer, Store()).n_good==2).all()


def test_frames_are_read_in_batches_and_forgotten():
    "The store never gives more than a batch, and each gallery frame is read once; queries are not read again"
    class Counting(Store):
        def __init__(self): self.read,self.most = [],0
        def get(self, paths):
            self.read += list(paths); self.most = max(self.most, len(paths))
            return super().get(paths)
    df, store = films(), Counting()
    want = evaluate_reid(Loud(), df, store, bs=5)
    assert store.most==5 and sorted(store.read)==sorted(df.path[df.split=='gallery'])
    # queries of one frame
    part = df.drop(index=df.index[df.split=='query'][df[df.split=='query'].tracklet.duplicated()])
    other = Counting()
    r = evaluate_reid(Loud(), part, other, bs=5)
    assert len(other.read)==len(part) and r.ap_trap!=pytest.approx(want.ap_trap)


def test_tracklet_features_in_any_order():
    df = films()
    g = df[df.split=='gallery']
    which = g.groupby('tracklet', sort=False).ngroup().to_numpy()
    want = pooled_by_hand(Loud(), df)[0]
    mixed = np.random.default_rng(1).permutation(len(g))
    for bs in (1,4,1000):
        got = tracklet_features(Loud(), Store().get(g.path.iloc[mixed]), which[mixed], bs=bs)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    for bad in (which[:-1], np.r_[which,0], which+1, which-1, np.zeros(0)):
        with pytest.raises(InputError): tracklet_features(Loud(), Store().get(g.path), bad)
    with pytest.raises(InputError, match='median'):
        tracklet_features(Loud(), Store().get(g.path), which, 'median')


def test_negative_features_keep_their_maximum():
    "A maximum below zero is not lifted to zero"
    class Below(nn.Module):
        def embed(self, x): return x.mean((2,3))-3
    pics = Store().get(range(6))
    got = tracklet_features(Below(), pics, [0,0,0,1,1,1])
    f = Below().embed(pics/127.5-1)
    torch.testing.assert_close(got, F.normalize(torch.stack([f[:3].amax(0), f[3:].amax(0)]), dim=1),
                               atol=1e-5, rtol=1e-4)


def test_rows_are_what_is_ranked():
    df = films()
    mixed = df.sample(frac=1, random_state=0)
    q,g = test_rows(mixed)
    assert [list(o.tracklet) for o in (q,g)]==[list(mixed.tracklet[mixed.split==o].unique())
                                               for o in ('query','gallery')]
    assert len(q)==18 and len(g)==40 and g.n_frames.sum()==(df.split=='gallery').sum()
    first = df[(df.split=='gallery') & (df.frame==1)].set_index('tracklet').path
    assert (g.set_index('tracklet').path==first[g.tracklet]).all()
    q,g = test_rows(df, 'none')
    assert (len(g)==(df.split=='gallery').sum() and (g.n_frames==1).all()
            and list(q.path)==list(df.path[df.split=='query']))
    r = evaluate_reid(Loud(), df, Store())
    q,g = test_rows(df)
    one = q.iloc[3:4]
    alone = pd.concat([df[(df.split=='query') & (df.tracklet==one.tracklet.iloc[0])],
                       df[df.split=='gallery']])
    assert evaluate_reid(Loud(), alone, Store()).ap_trap[0]==pytest.approx(r.ap_trap[3])


def test_the_same_name_of_two_people_is_two_tracklets():
    df = films().assign(dataset='own', tracklet='T1')
    q,g = test_rows(df, 'max')
    assert len(g)==6*3+2 and not g.duplicated(['pid','camid']).any()


def test_pooling_is_asked_for_or_known():
    df = films()
    assert len(test_rows(df.assign(dataset='market1501'))[1])==(df.split=='gallery').sum()
    assert len(test_rows(df.drop(columns='dataset'))[1])==(df.split=='gallery').sum()
    assert len(test_rows(df.assign(dataset='own'), 'mean')[1])==40
    assert (len(test_rows(df.assign(dataset=df.dataset.where(df.index>0, 'own')))[1])
            ==(df.split=='gallery').sum())
    bare = df.assign(tracklet=df.tracklet.where(df.index>0))
    assert 'frame by frame' in evaluate_reid(Loud(), bare, Store()).protocol
    for how in ('max','mean'):
        with pytest.raises(InputError, match='1 of .* name none'): test_rows(bare, how)
    with pytest.raises(InputError, match="'auto'"): test_rows(df, 'median')
    with pytest.raises(InputError, match='`multi`'): evaluate_reid(Loud(), df, Store(), multi='max')


# --- no cameras ---

def test_without_cameras_queries_leave_the_gallery(net):
    df = manifest(40).assign(camid=1)
    twice = pd.concat([df, df[df.split=='query'][:3].assign(split='gallery')], ignore_index=True)
    a,b = (evaluate_reid(net, o, Store(), cameras=False) for o in (df, twice))
    assert (a.ranks==b.ranks).all() and b.n_gallery==a.n_gallery
    assert ('3 gallery pictures that are queries dropped' in b.protocol
            and '; 0 gallery pictures that are' in a.protocol)
    assert 'no cameras: every other picture of the person counts' in b.protocol
    assert 'same camera' not in b.protocol and 'unknown camera' not in b.protocol
    assert len(test_rows(twice, cameras=False)[1])==len(df[df.split=='gallery'])
    q,g = (df[df.split==o] for o in ('query','gallery'))
    f = [extract_features(net, Store().get(o.path)) for o in (q,g)]
    want = retrieval(torch.cdist(*f), q.pid, g.pid, q.camid*0, g.camid*0)
    assert b.ap_mean==pytest.approx(want.ap_mean, abs=1e-9) and (b.n_good>0).any()
    known = manifest(40)  # cameras are there, but do not count
    free = evaluate_reid(net, known, Store(), cameras=False)
    assert free.n_good.tolist()==[int((known.pid[8:]==p).sum()) for p in known.pid[:8]]


def test_without_cameras_tracklets_leave_the_gallery():
    df = films().assign(camid=1)
    r = evaluate_reid(Loud(), df.assign(camid=0), Store(), cameras=False)
    assert (r.n_good==3).all() and r.n_gallery==6*3+2
    assert '18 gallery tracklets that are queries dropped' in r.protocol
    same = films()
    assert len(test_rows(same, cameras=False)[1])==22


def test_one_camera_is_said(net):
    df = manifest(40).assign(camid=1)
    with pytest.raises(InputError, match=r'one camera \(1\).*--no_cameras'):
        evaluate_reid(net, df, Store())
    own = manifest(40)
    own['camid'] = own.pid.clip(lower=1)
    with pytest.raises(InputError, match='one camera alone.*--no_cameras'):
        evaluate_reid(net, own, Store())
    with pytest.raises(InputError, match='one camera'):
        evaluate_reid(Loud(), films().assign(camid=4), Store())
    evaluate_reid(net, df.assign(camid=0), Store())  # unknown cameras remove nothing
    one = own.copy()
    one.loc[one.index[one.split=='gallery'][0], ['pid','camid']] = [int(own.pid[0]), 9]
    assert evaluate_reid(net, one, Store()).n_good.max()==1
    itself = df[df.split=='query']
    with pytest.raises(InputError, match='queries themselves'):
        evaluate_reid(net, pd.concat([itself, itself.assign(split='gallery')]), Store(),
                      cameras=False)
    with pytest.raises(InputError, match='no_cameras'):
        evaluate_reid(net, pd.concat([itself, df, itself.assign(split='gallery')]).assign(camid=0),
                      Store())


# --- single shots, and names of protocols ---

@pytest.mark.parametrize('kwargs', [{}, dict(rerank=dict(k1=4, k2=2)), dict(distance='cosine'),
                                    dict(cameras=False)])
def test_single_shots_by_hand(net, kwargs):
    df = manifest(40)
    r,plain = (evaluate_reid(net, df, Store(), single_shot=n, **kwargs) for n in (30,0))
    q,g = (df[df.split==o] for o in ('query','gallery'))
    f = [extract_features(net, Store().get(o.path)) for o in (q,g)]
    d = euclidean_distance(*f)
    if 'rerank' in kwargs:
        from posereid.metrics.rerank import rerank_features
        d = torch.ones_like(d)
        keep = torch.as_tensor((g.pid!=-1).to_numpy().copy())
        d[:,keep] = rerank_features(f[0], f[1][keep], k1=4, k2=2)
    cams = [o.camid*(0 if kwargs.get('cameras') is False else 1) for o in (q,g)]
    np.testing.assert_allclose(r.single_shot, single_shot_cmc(d, q.pid, g.pid, *cams, repeats=30))
    assert ((r.ranks==plain.ranks).all() and plain.single_shot is None
            and 'single_shot' not in plain.to_dict())
    assert r.to_dict()['single_shot']==r.single_shot.tolist() and 'mean over 30 draws' in r.protocol
    assert ((r.under('skip').single_shot==r.single_shot).all()
            and 'one of each person' in r._repr_markdown_())
    assert 'draws' not in plain.protocol


@pytest.mark.parametrize('bad', [-1, 1.5, True])
def test_single_shots_are_a_number(net, bad):
    with pytest.raises(InputError, match='single_shot'):
        evaluate_reid(net, manifest(), Store(), single_shot=bad)


def test_single_shots_are_written(net, tmp_path):
    import json
    evaluate_reid(net, manifest(), Store(), single_shot=5).write_json(tmp_path/'s.json')
    d = json.loads((tmp_path/'s.json').read_text())
    assert len(d['single_shot'])==50 and 'single_shot' not in d['both']['skip']


TODAY = ('tiny: 8 queries of 4 people, 21 gallery pictures (2 distractors; 1 junk removed); single '
         'query, same person in same camera removed; euclidean distance of L2-normalised features; '
         'no re-ranking; AP by trapezoid (map_trap) and as mean precision (map_mean); ties in '
         'gallery order; queries without a match count 0; pictures 12×8')

@pytest.mark.parametrize('name', [None,'market1501','dukemtmc','own','mars2',float('nan')])
def test_sentences_of_other_sets_stay_as_they_are(net, name):
    df = manifest()
    df.loc[:3, 'pid'] = [1,2,3,4]
    df = df if name is None else df.assign(dataset=name)
    assert evaluate_reid(net, df, Store(), dataset='tiny').protocol==TODAY


@pytest.mark.parametrize('name,says',
                         [('cuhk03-labeled','CUHK03 new protocol (767/700), labeled boxes'),
    ('msmt17','MSMT17'), ('cuhk03-detected','CUHK03 new protocol (767/700), detected boxes'),
    ('cuhk03','CUHK03 new protocol (767/700), boxes unknown'), ('mars','MARS frame by frame')])
def test_sets_with_a_protocol_of_their_own(net, name, says):
    df = manifest().assign(dataset=name)
    assert f'; {says}' in evaluate_reid(net, df, Store()).protocol
    df.loc[0, 'dataset'] = 'other'
    assert says not in evaluate_reid(net, df, Store()).protocol


# --- features of zero ---

class Dead(nn.Module):
    "Zero for dark pictures"
    def embed(self, x): return (x.mean((2,3))).clamp_min(0)


def test_features_of_zero_stay_and_are_counted():
    df = manifest()
    class Dim(Store):
        def get(self, paths):
            dark = torch.tensor([int(p)%5==0 for p in paths]).byte()
            return super().get(paths)//(1+3*dark)[:,None,None,None]
    n = int((extract_features(Dead(), Dim().get(df.path))==0).all(1).sum())
    assert 0<n<len(df)
    for distance in ('euclidean','cosine'):
        r = evaluate_reid(Dead(), df, Dim(), distance=distance)
        assert np.isfinite(r.map_trap) and f'{n} features are zero' in r.protocol
    class Nothing(nn.Module):
        def embed(self, x): return x.new_zeros(len(x), 4)
    for rerank in (None, {}):
        r = evaluate_reid(Nothing(), df, Store(), rerank=rerank)
        assert np.isfinite([r.map_trap, *r.cmc]).all() and '30 features are zero' in r.protocol


def test_zero_features_rank_as_their_matrix_does():
    rng = np.random.default_rng(0)
    q,g = (torch.as_tensor(rng.normal(size=(n,3))).float() for n in (20,60))
    g[::7] = 0; q[3] = 0
    ids = [rng.integers(1, 6, 20), rng.integers(1, 6, 60), np.ones(20, int), np.full(60, 2)]
    unit = [F.normalize(o, dim=1) for o in (q,g)]
    a = score_features(q*3, g*5, *ids, normalise=True)
    b = retrieval(euclidean_distance(*unit), *ids)
    live = np.arange(20)!=3  # all is equally far from a query of zero
    assert a.ap_mean[live]==pytest.approx(b.ap_mean[live])
    assert b.ap_mean[live]!=pytest.approx(score_features(q, g, *ids, distance='cosine')
                                          .ap_mean[live])


def test_statistics_need_pictures(net, pics):
    with pytest.raises(InputError, match='there are none'): reestimate_bn(net, pics[:0])


# --- files of the true layouts ---

@pytest.fixture(scope='module')
def toys():
    from posereid.synth.sets import toy_sets
    return toy_sets()


def test_mars_from_disk(net, toys):
    "The toy MARS: every query has its match among other queries only, which must not leave the gallery"
    from posereid.data.mars import read_mars
    from posereid.data.pictures import PictureStore
    df, store = read_mars(toys/'MARS', splits=('query','gallery')), PictureStore((32,16))
    r = evaluate_reid(net, df, store, 'MARS')
    q,g = test_rows(df)
    assert (r.n_query, r.n_gallery, len(g),
            r.n_valid)==(32, 37, 40, 32)==(len(q), (g.pid>=0).sum(), 40, 32)
    assert 'MARS as its authors score it' in r.protocol and 'of 48 and 60 frames' in r.protocol
    assert all(str(t) in p for t,p in zip(q.tracklet, q.path)) and all(p.endswith('F001.jpg')
        for p in q.path)
    one = extract_features(net,
                           store.get(df.path[(df.split=='gallery') & (df.tracklet==q.tracklet[5])]),
                           normalise=False)
    both = tracklet_features(net, store.get(df.path),
                             df.groupby(['split','tracklet'], sort=False).ngroup())
    torch.testing.assert_close(both[5], F.normalize(one.amax(0), dim=0), atol=1e-5, rtol=1e-4)
    # as toolboxes do that drop the queries
    without = df[(df.split=='query') | ~df.tracklet.isin(q.tracklet)]
    assert evaluate_reid(net, without, store).n_valid==0
    with pytest.raises(InputError,
                       match='all gallery tracklets of the people asked for are queries'):
        evaluate_reid(net, df, store, cameras=False)


@pytest.mark.parametrize('boxes', ['labeled','detected'])
def test_cuhk03_from_disk(net, toys, boxes):
    from posereid.data.cuhk03 import read_cuhk03
    from posereid.data.pictures import PictureStore
    r = evaluate_reid(net, read_cuhk03(toys/'cuhk03-np', boxes), PictureStore((32,16)), 'toy',
                      single_shot=100)
    assert (f'CUHK03 new protocol (767/700), {boxes} boxes' in r.protocol
            and 'mean over 100 draws' in r.protocol)
    # eight people, eight places
    assert r.n_valid==16 and r.single_shot[0]>=r.rank(1)-.3 and r.single_shot[7]==1
