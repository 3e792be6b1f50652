"Features, protocol and figures on small nets whose answers are known"
import io
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from torch import nn
from posereid.core import InputError
from posereid.evaluate.plots import plot_cmc, plot_grid, plot_intervals, plot_ranking
from posereid.evaluate.protocol import (batches, eval_mode, evaluate_reid, extract_features, identity_scores,
    protocol_string, rank_pictures, reestimate_bn, to_input)
from posereid.metrics.retrieval import retrieval
from posereid.metrics.stats import mean_interval


class TinyNet(nn.Module):
    "Convolution, BatchNorm, dropout: everything that has a mode"
    def __init__(self, k=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3,8,3,padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(.5))
        self.head = nn.Linear(8, k)
    def embed(self, x): return self.body(x).mean((2,3))
    def forward(self, x): return self.head(self.embed(x))


class Store:
    "Random pictures by path"
    size = (12,8)
    def get(self, paths):
        gens = (torch.Generator().manual_seed(int(p)) for p in paths)
        return torch.stack([torch.randint(0, 256, (3,*self.size), dtype=torch.uint8, generator=g) for g in gens])


def manifest(n=30, seed=0):
    rng = np.random.default_rng(seed)
    splits = ['query']*8+['gallery']*(n-8)
    df = pd.DataFrame(dict(path=list(map(str, range(n))), pid=rng.integers(1, 5, n), camid=rng.integers(1, 4, n), split=splits))
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
    for bs in (1,7,20): torch.testing.assert_close(extract_features(net.train(), pics, bs=bs), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole, F.normalize(net.eval().embed(pics/127.5-1), dim=1).detach(), atol=1e-5, rtol=1e-4)


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
    assert not torch.allclose(extract_features(net, pics), extract_features(net, pics.flip(-1)), atol=1e-3)


def test_grey_keeps_brightness_alone(pics):
    g = to_input(pics, grey=True)
    assert torch.equal(g[:,0], g[:,1]) and torch.equal(g[:,0], g[:,2])
    x = pics.float()
    torch.testing.assert_close(g[:,0], (.299*x[:,0]+.587*x[:,1]+.114*x[:,2])/127.5-1, atol=1e-5, rtol=1e-4)


def test_batches_are_even_and_complete(pics):
    for bs in (1,3,7,19,20,100):
        parts = list(batches(pics, bs))
        assert torch.equal(torch.cat(parts), pics) and max(map(len, parts))<=bs and max(map(len, parts))-min(map(len, parts))<=1
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
    said = evaluate_reid(net, df, Store(), dataset='tiny', flip=True, grey=True, empty='skip', distance='cosine').protocol
    n = df[df.split=='query'].pid.nunique()
    for o in ('tiny: ', f'8 queries of {n} people', '21 gallery pictures (2 distractors; 1 junk removed)', 'cosine',
              'same camera removed', 'mirrored', 'map_trap', 'map_mean', 'are skipped', 'grey pictures 12×8'):
        assert o in said, o
    plain = evaluate_reid(net, df, Store()).protocol
    assert 'count 0' in plain and 'euclidean' in plain and not any(o in plain for o in ('grey','mirrored','unknown'))
    df.loc[3, 'camid'] = 0
    assert '1 pictures of unknown camera' in protocol_string(df[:8], df[8:])


def test_bad_test_sets(net):
    df = manifest()
    with pytest.raises(InputError, match='of tiny has no gallery'): evaluate_reid(net, df[df.split=='query'], Store(), dataset='tiny')
    with pytest.raises(InputError, match='euclidean'): evaluate_reid(net, df, Store(), distance='manhattan')
    twice = pd.concat([df, df[:1].assign(split='gallery')])
    evaluate_reid(net, twice, Store())  # the camera removes the query's own picture
    with pytest.raises(InputError, match='give cameras'): evaluate_reid(net, twice.assign(camid=0), Store())
    lonely = df.assign(pid=np.arange(1, len(df)+1))
    assert evaluate_reid(net, lonely, Store()).map_mean==0


def test_identity_scores(net, pics):
    labels = torch.arange(20)%4
    with torch.no_grad(): logits = net.eval()(pics/127.5-1)
    s = identity_scores(net.train(), pics, labels, bs=7)
    assert s['n']==20 and s['ce']==pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert s['top1']==pytest.approx((logits.argmax(1)==labels).float().mean().item())
    with pytest.raises(InputError, match='20 pictures and 3 labels'): identity_scores(net, pics, [0,1,2])


def test_reestimated_statistics_are_the_average_over_batches(net, pics):
    net.train()
    before = {k: v.clone() for k,v in net.state_dict().items()}
    res = reestimate_bn(net, pics, bs=10)
    with torch.no_grad(): maps = [net.body[0](x/127.5-1) for x in pics.split(10)]
    mean, var = (torch.stack([f(m, (0,2,3)) for m in maps]).mean(0) for f in (torch.mean, torch.var))
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
    figs = [plot_grid(pics[:6].view(2,3,3,12,8)), plot_grid([[pics[0]/127.5-1, None],[pics[1]]], row_titles='ab', col_titles='cd'),
            plot_ranking(pics[:2], pics[2:8].view(2,3,3,12,8), np.eye(2,3)>0), plot_cmc({'one':res}, max_rank=5),
            plot_intervals({'three': mean_interval([.1,.2,.3]), 'one': mean_interval([.1])})]
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
    more = pd.concat([q.assign(split='multi', path=[str(100+2*i+k) for i in range(len(q))]) for k in (0,1)])
    return pd.concat([df, more], ignore_index=True)


@pytest.mark.parametrize('how', ['mean','max'])
def test_pooled_queries_by_hand(net, several, how):
    r = evaluate_reid(net, several, Store(), multi=how)
    feat = lambda d: extract_features(net, Store().get(d.path))
    q,g,m = (several[several.split==o] for o in ('query','gallery','multi'))
    f = feat(m)
    same = [torch.as_tensor(((m.pid==p) & (m.camid==c)).to_numpy()) for p,c in zip(q.pid, q.camid)]
    pooled = F.normalize(torch.stack([f[o].mean(0) if how=='mean' else f[o].amax(0) for o in same]), dim=1)
    want = retrieval(torch.cdist(pooled, feat(g)), q.pid, g.pid, q.camid, g.camid)
    assert r.map_mean==pytest.approx(want.map_mean, abs=1e-6) and f'multi-query ({how})' in r.protocol


def test_pooling_needs_pictures(net, several):
    with pytest.raises(InputError, match='split `multi`'): evaluate_reid(net, several[several.split!='multi'], Store(), multi='mean')
    with pytest.raises(InputError, match='must be'): evaluate_reid(net, several, Store(), multi='median')


def test_reranked_evaluation_by_hand(net, several):
    from posereid.metrics.rerank import rerank_features
    r = evaluate_reid(net, several, Store(), rerank=dict(k1=5, k2=2))
    q,g = (several[several.split==o] for o in ('query','gallery'))
    d = rerank_features(*(extract_features(net, Store().get(o.path)) for o in (q,g)), k1=5, k2=2, lam=.3)
    assert r.map_trap==pytest.approx(retrieval(d, q.pid, g.pid, q.camid, g.camid).map_trap, abs=1e-9)
    assert 're-ranked (k1=5, k2=2, lam=0.3)' in r.protocol and 'no re-ranking' in evaluate_reid(net, several, Store()).protocol


def test_junk_is_nobodys_neighbour(net):
    "Re-ranking with junk in the gallery equals re-ranking without it"
    df = manifest(40)
    a,b = (evaluate_reid(net, o, Store(), rerank=dict(k1=4, k2=2)) for o in (df, df[df.pid!=-1]))
    assert a.map_trap==pytest.approx(b.map_trap, abs=1e-9) and a.rank(1)==b.rank(1)


def test_rerank_settings_are_checked(net, several):
    with pytest.raises(InputError, match='k1'): evaluate_reid(net, several, Store(), rerank=dict(k1=0))
    with pytest.raises((InputError, TypeError)): evaluate_reid(net, several, Store(), rerank=dict(k3=1))
