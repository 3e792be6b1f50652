"Triplets: mining and losses against written-out loops, the anchor rule, the batches that feed them"
import os
from collections import Counter

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from posereid.data import transforms
from posereid.core import InputError
from posereid.data import pictures
from posereid.data.manifest import make_manifest, train_labels
from posereid.data.sampler import draw_positives, pk_batches, pk_report, pk_shape
from posereid.losses.identity import (ANCHOR_RULES, MINING, collapsed, distances,
                                      triplet_candidates, triplet_indices, triplet_loss)
from posereid.losses.transfer import GUIDER_MINING, guider_triplet

LOOPED = 'semihard','semihard_tf','hardest','batch_hard','all'


def error(f, *words):
    "The one-sentence error that `f` must raise"
    with pytest.raises(InputError) as e: f()
    for w in words: assert str(w) in str(e.value), (w, str(e.value))

# --- losses against loops

def dist(u, v, squared): return ((u-v)**2).sum() if squared else ((u-v)**2).sum().sqrt()

def unit(e, normalise): return e/e.norm(dim=1, keepdim=True) if normalise else e

def mined(d, pos, neg, mining):
    "Negatives of one pair, by the words of the page"
    beyond = [n for n in neg if d[n] > d[pos]]
    if mining=='all': return neg
    if mining.startswith('semihard') and beyond: return [min(beyond, key=lambda n: d[n])]
    return [(max if mining=='semihard_tf' else min)(neg, key=lambda n: d[n])]

def oracle(e, y, g, m, mg, mining, rule, normalise, squared):
    "One value a triplet, found by loops over all anchors"
    e,out,n = unit(e, normalise),[],len(y)
    for a in range(n):
        d = [dist(e[a], e[j], squared).item() for j in range(n)]
        ok = [j for j in range(n) if rule=='any' or g[a] or not g[j]]
        P,N = [j for j in ok if y[j]==y[a] and j!=a],[j for j in ok if y[j]!=y[a]]
        if not N: continue
        if mining=='batch_hard': P = sorted(P, key=lambda j: -d[j])[:1]
        for p in P:
            for k in mined(d, p, N, mining):
                out.append(max(0., (mg if g[a] or g[p] or g[k] else m) + d[p] - d[k]))
    return out

def batch(seed, grid=False):
    "A random batch: few identities, some of one picture; on a grid it is full of ties and coincidences"
    r = torch.Generator().manual_seed(seed)
    n,k = int(torch.randint(1, 13, (1,), generator=r)),int(torch.randint(1, 5, (1,), generator=r))
    e = (torch.randint(1, 4, (n,2), generator=r).double() if grid
         else torch.randn(n, 4, generator=r).double())
    return e, torch.randint(0, k, (n,), generator=r), torch.rand(n, generator=r) < .5

@pytest.mark.parametrize('mining', LOOPED)
@pytest.mark.parametrize('rule', ANCHOR_RULES)
def test_loss_is_the_loop(mining, rule):
    empty = 0
    for seed in range(40):
        e,y,g = batch(seed)
        normalise,squared = bool(seed%2),bool(seed//2%2)
        want = oracle(e, y.tolist(), g.tolist(), 1., .5, mining, rule, normalise, squared)
        kw = dict(mining=mining, rule=rule, normalise=normalise, squared=squared)
        got = triplet_loss(e, y, g, reduction='none', **kw)
        assert len(got)==len(want) and np.allclose(sorted(got.tolist()), sorted(want), atol=1e-9)
        empty += not want
        assert np.isclose(triplet_loss(e, y, g, **kw).item(), np.mean(want) if want else 0.)
        assert np.isclose(triplet_loss(e, y, g, reduction='sum', **kw).item(), sum(want))
        some = [o for o in want if o>0]
        assert np.isclose(triplet_loss(e, y, g, reduction='active', **kw).item(),
                          np.mean(some) if some else 0.)
    assert empty

@pytest.mark.parametrize('mining', LOOPED)
def test_loss_is_the_loop_on_ties(mining):
    "Squares of small integers are exact, so equal distances are equal in both"
    for seed in range(100, 140):
        e,y,g = batch(seed, grid=True)
        want = oracle(e, y.tolist(), g.tolist(), 1., .5, mining, 'anchor', False, False)
        got = triplet_loss(e, y, g, reduction='none', mining=mining, normalise=False, squared=False)
        assert len(got)==len(want) and np.allclose(sorted(got.tolist()), sorted(want), atol=1e-9)

@pytest.mark.parametrize('mining', [o for o in MINING if o not in LOOPED])
def test_random_rules_take_what_they_may(mining):
    for seed in range(30):
        e,y,g = batch(seed)
        d,(pos,neg) = distances(e),triplet_candidates(y, g)
        a,p,n = triplet_indices(e, y, g, mining=mining,
                                generator=torch.Generator().manual_seed(seed))
        b = triplet_indices(e, y, g, mining=mining, generator=torch.Generator().manual_seed(seed))
        assert all(map(torch.equal, (a,p,n), b))
        assert pos[a,p].all() and neg[a,n].all()
        def ok(i, j, k):
            m = .5 if g[i] or g[j] or g[k] else 1.
            return (neg[i,k] and (mining=='random' or d[i,k] < d[i,j]+m)
                    and (mining!='semihard_random' or d[i,k] > d[i,j]))
        pairs = {(i,j) for i in range(len(y)) for j in range(len(y))
                 if pos[i,j] and any(ok(i,j,k) for k in range(len(y)))}
        assert set(zip(a.tolist(), p.tolist()))==pairs and len(a)==len(pairs)
        assert all(ok(*o) for o in zip(a.tolist(), p.tolist(), n.tolist()))

def test_random_negatives_are_all_taken():
    y,r = torch.tensor([0,0,1,1,2]),torch.Generator().manual_seed(0)
    hits = Counter(int(n) for _ in range(600)
                   for a,p,n in zip(*triplet_indices(torch.eye(5), y, mining='random', generator=r))
                   if a==0)
    assert set(hits)=={2,3,4} and min(hits.values()) > 150

@pytest.mark.parametrize('mining', MINING)
def test_anchor_rule_in_any_batch(mining):
    for seed in range(30):
        e,y,g = batch(seed)
        a,p,n = triplet_indices(e, y, g, mining=mining)
        real = ~g[a]
        assert not (g[p]|g[n])[real].any()
        assert (y[a]==y[p]).all() and (y[a]!=y[n]).all() and (a!=p).all()

def test_everybody_with_a_pair_is_an_anchor():
    y,g = torch.tensor([0]*6+[1]*6),torch.tensor([0,0,1,1,1,1]*2).bool()
    for mining in LOOPED:
        assert (triplet_indices(torch.randn(12,3), y, g, mining=mining)[0].unique()
                .tolist()==list(range(12)))

@pytest.mark.parametrize('normalise', [True,False])
@pytest.mark.parametrize('squared', [True,False])
@pytest.mark.parametrize('mining', LOOPED)
def test_gradients(mining, normalise, squared):
    r = torch.Generator().manual_seed(3)
    e = torch.randn(8, 3, generator=r).double().requires_grad_()
    y,g = torch.tensor([0,0,0,1,1,1,2,2]),torch.tensor([0,0,1,0,0,1,0,1]).bool()
    f = lambda o: triplet_loss(o, y, g, mining=mining, normalise=normalise, squared=squared)
    assert torch.autograd.gradcheck(f, (e,))
    same = torch.ones(8, 3, requires_grad=True)
    assert torch.autograd.grad(f(same), same)[0].isfinite().all()

@pytest.mark.parametrize('y', [[0,0,0],[0,1,2],[0],[]])
@pytest.mark.parametrize('mining', MINING)
def test_no_triplet_costs_nothing(y, mining):
    e = torch.randn(len(y), 4, requires_grad=True)
    loss,told = triplet_loss(e, torch.tensor(y).long(), mining=mining, stats=True)
    assert loss.item()==0 and not torch.autograd.grad(loss, e)[0].any()
    assert all(o.ndim==0 and o==0 for o in told.values())

def test_stats():
    e,y,g = (torch.randn(24,5),torch.arange(4).repeat_interleave(6),
             torch.tensor([0,0,1,1,1,1]*4).bool())
    loss,told = triplet_loss(e, y, g, reduction='none', stats=True)
    a,p,n = triplet_indices(e, y, g)
    d = distances(e)
    want = dict(active=(loss>0).float().mean(), triplets=torch.tensor(float(len(loss))),
                d_ap=d[a,p].mean(), d_an=d[a,n].mean(), margin=torch.where(g[a], .5, 1.).mean())
    for k,v in want.items(): torch.testing.assert_close(told[k], v)

def test_half_precision_and_integer_flags():
    e,y,g = torch.randn(12,5),torch.arange(4).repeat_interleave(3),torch.tensor([0,0,1]*4)
    assert triplet_loss(e.half(), y, g).dtype==torch.float32
    assert torch.equal(triplet_loss(e, y, g), triplet_loss(e, y, g.bool()))
    assert torch.equal(triplet_loss(e, y),
                       triplet_loss(e, y, torch.zeros(12).bool(), margin_generated=9.))

def test_choices_that_do_not_exist():
    e,y = torch.randn(4,2),torch.tensor([0,0,1,1])
    error(lambda: triplet_loss(e, y, mining='batchhard'), "'batch_hard'")
    error(lambda: triplet_loss(e, y, rule='all'), 'any')
    error(lambda: triplet_loss(e, y, reduction='avg'), 'mean')

def test_collapse_is_one_percent():
    assert (collapsed(1.) and collapsed(.991) and collapsed(1.009) and not collapsed(.989)
            and not collapsed(1.011))
    assert (collapsed(.502, .5) and not collapsed(.51, .5)
            and collapsed(torch.tensor(.5), torch.tensor(.5)) is True)

# --- Eq. 4

def eq4(f, r, y, t, margin, squared, normalise, mining):
    "One value a triplet, by loops"
    rows,out = [i for i in range(len(y)) if t[i]],[]
    f,r = unit(f, normalise),unit(r, normalise)
    for a in rows:
        neg = [b for b in rows if y[b]!=y[a]]
        if not neg: continue
        ap,d = dist(f[a], r[a], squared).item(),{b: dist(f[a], f[b], squared).item() for b in neg}
        beyond = [b for b in neg if d[b]>ap] if mining=='semihard' else []
        for b in neg if mining=='all' else [min(beyond or neg, key=d.get)]:
            out.append(max(0., margin+ap-d[b]))
    return out

@pytest.mark.parametrize('mining', GUIDER_MINING)
def test_eq4_is_the_loop(mining):
    for seed in range(40):
        f,y,t = batch(seed, grid=seed%3==0)
        r = batch(seed)[0].new_tensor(np.random.default_rng(seed).normal(size=f.shape))
        squared,normalise = bool(seed%2),bool(seed//2%2)
        want = eq4(f, r, y.tolist(), t.tolist(), .7, squared, normalise, mining)
        f.requires_grad_()
        kw = dict(margin=.7, squared=squared, normalise=normalise, mining=mining)
        loss,told = guider_triplet(f, r, y, t, stats=True, **kw)
        assert (np.isclose(loss.item(), np.mean(want) if want else 0.)
                and told['triplets']==len(want))
        assert np.isclose(guider_triplet(f, r, y, t, reduction='sum', **kw).item(), sum(want))
        assert np.isclose(told['active'].item(), np.mean([o>0 for o in want]) if want else 0.)
        grad = torch.autograd.grad(loss, f)[0]
        assert grad.isfinite().all() and not grad[~t].any()

def test_eq4_reaches_anchor_and_negative_and_no_source():
    f,r = torch.randn(6, 4).double().requires_grad_(),torch.randn(6, 4).double().requires_grad_()
    y,t = torch.tensor([0,0,1,2,-1,-1]),torch.tensor([1,1,1,1,0,0])
    assert torch.autograd.gradcheck(lambda a,b: guider_triplet(a, b, y, t, margin=3.), (f,r))
    gf,gr = torch.autograd.grad(guider_triplet(f, r, y, t, margin=3.), (f,r))
    for g in (gf,gr): assert g[:4].abs().sum(1).all() and not g[4:].any()
    same = torch.ones(4,3).requires_grad_()
    assert torch.autograd.grad(guider_triplet(same, torch.ones(4,3), torch.tensor([0,0,1,1]),
                                              torch.ones(4)), same)[0].isfinite().all()

# --- batches

def people(counts):
    "A manifest of (real, generated) pictures by pid"
    df = pd.DataFrame([dict(pid=p, is_generated=bool(g)) for p,c in counts.items() for g in (0,1)
                       for _ in range(c[g])])
    df['path'] = [f'{i}.jpg' for i in range(len(df))]
    return df.sample(frac=1, random_state=0).reset_index(drop=True)

def test_thousand_random_batches_keep_the_anchor_rule():
    rng,n_batch,n_real = np.random.default_rng(0),0,0
    seed = 0
    while n_batch < 1000:
        seed += 1
        df = people({p: (int(rng.integers(2, 7)), int(rng.integers(0, 9)))
                     for p in range(1, int(rng.integers(4, 9)))})
        P,K,G = int(rng.integers(2, 4)),int(rng.integers(2, 4)),int(rng.integers(0, 5))
        for b in pk_batches(df, P, K, G, seed=seed):
            y,g = torch.from_numpy(df.pid.values[b]),torch.from_numpy(df.is_generated.values[b])
            pos,_ = triplet_candidates(y, g)
            assert pos[~g].any(1).all(), 'a real anchor has no real positive'
            # a positive that is another picture, not the same one twice
            apart = torch.from_numpy(b[:,None]!=b)
            assert (pos & apart)[~g].any(1).all()
            a,p,n = triplet_indices(torch.randn(len(b), 3), y, g, mining=LOOPED[n_batch%5])
            assert a.unique().tolist()==list(range(len(b)))
            assert not (g[p]|g[n])[~g[a]].any()
            n_batch += 1; n_real += int((~g).sum())
    assert n_real > 4000

def test_every_real_picture_every_epoch_in_full_batches():
    rng = np.random.default_rng(1)
    for seed in range(25):
        counts = {p: (int(rng.integers(2, 12)),) for p in range(1, int(rng.integers(5, 20)))}
        N,K = int(rng.integers(0, 4)),int(rng.integers(2, 5))
        df = people({p: (c[0], N*c[0]) for p,c in counts.items()})
        P = int(rng.integers(2, min(6, len(counts))+1))
        batches = pk_batches(df, P, K, N*K, seed=seed, epoch=3)
        assert set(np.concatenate(batches))==set(range(len(df))), 'a picture is not seen'
        hands = [-(-c[0]//K) for c in counts.values()]
        assert len(batches)==max(-(-sum(hands)//P), max(hands))
        for b in batches:
            o = df.iloc[b]
            assert len(b)==P*K*(1+N) and o.pid.nunique()==P
            assert ((o[~o.is_generated].groupby('pid').size()==K).all()
                    and (o.groupby('pid').size()==K*(1+N)).all())
            assert (o.pid.values.reshape(P,-1)==o.pid.values.reshape(P,-1)[:,:1]).all()
            for p,rows in o[~o.is_generated].groupby('pid'):
                assert rows.index.nunique()==min(K, counts[p][0])

def test_epochs_follow_from_seed_and_number():
    df = people({p: (5,10) for p in range(1, 9)})
    get = lambda **kw: [b.tolist() for b in pk_batches(df, 3, 2, 4, **kw)]
    np.random.seed(0); a = get(seed=1, epoch=2)
    np.random.seed(1); assert a==get(seed=1, epoch=2)
    assert a!=get(seed=1, epoch=1) and a!=get(seed=2, epoch=2)
    met = Counter(frozenset(df.pid.values[b]) for e in range(80) for b in get(epoch=e))
    assert len(met)==56  # every three of eight meet

def test_who_is_left_out_is_told():
    df = people({1:(3,2), 2:(1,2), 3:(0,4), 4:(2,0), 0:(5,0), -1:(2,0), 5:(2,1)})
    rep = pk_report(df)
    assert (rep.n_real, rep.n_generated, rep.n_identities, rep.n_left_out,
            rep.n_nobody)==(7, 3, 3, 7, 7)
    assert (rep.single, rep.only_generated, rep.no_generated)==([2], [3], [4])
    assert all(w in rep._repr_markdown_()
               for w in ('real picture (2)', 'without any (3)', 'without a generated picture (4)'))
    seen = {int(p) for b in pk_batches(df, 3, 2, 1) for p in df.pid.values[b]}
    assert seen=={1,4,5}
    assert pk_report(df[~df.is_generated]).no_generated==[]
    error(lambda: pk_batches(df, 4), 'P must be 2 to 3')
    error(lambda: pk_batches(df.iloc[:0], 2), 'P must be')

def test_shapes_fit():
    for bs in (8, 30, 64, 128):
        for n in (2, 5, 21, 751):
            for N in (0, .4, 1, 2, 10):
                try: P,K,G = pk_shape(bs, n, N)
                except InputError: continue
                assert P<=n and P>=2 and K>=2 and P*(K+G)<=bs and (G>0)==(N>0)
    assert pk_shape(N=2)==(21,2,4) and pk_shape()==(32,4,0)
    error(lambda: pk_shape(128, 1), 'two identities')
    error(lambda: pk_shape(128, K_real=1), 'K_real is 1')

def test_positives_against_a_loop():
    rng = np.random.default_rng(0)
    for seed in range(40):
        df = people({p: (int(rng.integers(1, 5)), int(rng.integers(0, 3))) for p in range(1, 6)})
        rows = rng.integers(0, len(df), 200)
        for how in ('other','any'):
            r = draw_positives(df, rows, how, (seed, 1))
            assert ((df.pid.values[r]==df.pid.values[rows]).all()
                    and not df.is_generated.values[r].any())
            alone = np.array([(~df.is_generated & (df.pid==p)).sum()==1 for p in df.pid])
            if how=='other': assert ((r!=rows) | alone[rows]).all()
            for p in df.pid.unique():
                assert set(r[df.pid.values[rows]==p])<=set(df.index[(df.pid==p) & ~df.is_generated])

# --- loaders

@pytest.fixture(scope='module')
def block():
    import posereid.data.block as b
    return b

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "Four people, three real and six generated pictures each, and one person with a single picture"
    root,rows = tmp_path_factory.mktemp('set'),[]
    for i,(p,g) in enumerate((p,k) for p in (1,2,3,4,9) for k in (range(9) if p<9 else range(1))):
        path = root/f'{p:04d}_c1s1_{i:06d}_00.png'
        (Image.fromarray(np.random.default_rng(i).integers(0, 256, (64,32,3), dtype=np.uint8))
         .save(path))
        rows.append(dict(path=str(path), pid=p, camid=1, split='train', is_generated=g>2))
    return make_manifest(pd.DataFrame(rows))

def same(a, b): return all(torch.equal(i, j) for p,q in zip(a, b) for i,j in zip(p, q))

def test_triplet_loaders(block, world):
    store,labels = pictures.PictureStore((64,32)),train_labels(world)
    make = lambda **kw: block.triplet_dls(world, store, labels, bs=18, seed=4, pad=0,
                                          flip=False, **kw)
    dls = make()
    assert dls.train.make.report.single==[9] and dls.n_inp==1 and len(dls.valid)==0
    row = {bytes(o.numpy()): i for i,o in enumerate(store.get(world))}
    seen = set()
    for x,y,g in dls.train:
        at = [row[bytes(o.numpy())] for o in transforms.to_uint8(x)]
        assert (y.tolist()==[labels[p] for p in world.pid.values[at]]
                and g.tolist()==world.is_generated.values[at].tolist())
        assert g.dtype==torch.bool and len(x)==18 and g.sum()==12
        seen |= {*at}
    assert seen==set(world.index[world.pid<9])
    whole,part = make(P=2, K_real=2, K_generated=1),make(P=2, K_real=2, K_generated=1)
    a = [list(whole.train) for _ in range(3)]
    part.train.one_batch(); part.set_epoch(2); part.train.one_batch()
    assert (same(a[2], list(part.train)) and not same(a[1], a[2]) and len(a[0])==4
            and len(a[0][0][0])==6)
    error(lambda: block.triplet_dls(world, store, labels, crop=(224,224)), 'does not fit')
    error(lambda: block.triplet_dls(world[world.pid.isin([1,9])], store, labels), 'two identities')

def test_fastai_learns_from_triplets(block, world):
    from fastai.learner import Learner
    dls = block.triplet_dls(world, pictures.PictureStore((64,32)), train_labels(world), bs=24)
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64*32*3, 4)),
                    loss_func=triplet_loss, default_cbs=False)
    from fastai.callback.core import TrainEvalCallback
    learn.add_cb(TrainEvalCallback())
    before = learn.model[1].weight.detach().clone()
    learn.fit(1, lr=.01)
    assert learn.model[1].weight.isfinite().all() and (learn.model[1].weight!=before).any()

@pytest.mark.parametrize('how', ['other','any'])
def test_positives_come_last_and_change_nothing(block, world, how):
    from posereid.pose.table import PoseTable
    from posereid.pose.joints import walking_pose
    df,labels = world[~world.is_generated].reset_index(drop=True),train_labels(world)
    names = [os.path.basename(p) for p in df.path]
    joints = walking_pose(torch.linspace(0, 6, len(names)))
    joints[2] = 0.  # the third picture of the first person has no pose
    store,poses = pictures.PictureStore((64,32)),PoseTable(names, joints)
    row = {bytes(p.numpy()): (i, f) for f in (0,1)
           for i,p in enumerate(store.get(df).flip(3) if f else store.get(df))}
    make = lambda **kw: block.transfer_dls(df, df, poses, store, labels, bs=8, n_pairs=160, seed=3,
                                           **kw).train
    seen,itself = set(),0
    for plain,more in zip(make(foreground=2.), make(foreground=2., positives=how)):
        assert len(plain)==6 and len(more)==7 and same([plain], [more[:6]])
        x,r,t = transforms.to_uint8(more[0]),transforms.to_uint8(more[-1]),more[4]
        assert not more[-1][~t].any()
        for x1,r1 in zip(x[t], r[t]):
            (i,f),(j,g) = row[bytes(x1.numpy())],row[bytes(r1.numpy())]
            assert df.pid[i]==df.pid[j] and f==g
            itself += i==j; seen.add(j)
    assert (itself==0) if how=='other' else 15 < itself < 40
    assert seen==set(range(12)), 'the picture without a pose is drawn too'
    assert len(make(positives=how).one_batch())==6 and len(make().one_batch())==5
    a,b = make(positives=how),make(positives=how)
    first = list(a)
    b.set_epoch(1)
    assert same(list(a), list(b)) and not same([o[-1:] for o in first], [o[-1:] for o in b])

# --- pictures of any kind

KINDS = [('RGB',(10,20,30),'png',(10,20,30)), ('L',77,'png',(77,77,77)),
         ('1',1,'png',(255,255,255)), ('LA',(80,255),'png',(80,80,80)), ('LA',(80,0),'png',(0,0,0)),
         ('RGBA',(200,100,0,128),'png',(100,50,0)), ('CMYK',(0,255,255,0),'jpg',(254,0,0)),
         ('CMYK',(0,255,255,0),'tif',(255,0,0)), ('P',0,'gif',(0,0,0)),
         ('YCbCr',(77,128,128),'jpg',(77,77,77)), ('I;16',77<<8,'png',(77,77,77)),
         ('I',77<<8,'tif',(77,77,77))]

@pytest.mark.parametrize('mode,colour,ext,want', KINDS)
def test_one_rule_for_each_kind_of_picture(block, tmp_path, mode, colour, ext, want):
    p = tmp_path/f'a.{ext}'
    Image.new(mode, (8,16), colour).save(p)
    stored = Image.open(p).mode
    assert np.abs(np.array(pictures.open_picture(p, convert=True).getpixel((3,3)))-want).max() <= 2
    if stored=='RGB': assert pictures.open_picture(p).mode=='RGB'
    else:
        error(lambda: pictures.open_picture(p), p, f'mode is {stored}',
              'PictureStore(convert=True)')

@pytest.mark.parametrize('ext', ['jpg','png','tif'])
@pytest.mark.parametrize('turn', range(1, 9))
def test_pictures_stand_upright(block, tmp_path, turn, ext):
    "All eight EXIF orientations of one picture give the picture back"
    ops = {2:'FLIP_LEFT_RIGHT', 3:'ROTATE_180', 4:'FLIP_TOP_BOTTOM', 5:'TRANSPOSE', 6:'ROTATE_90',
           7:'TRANSVERSE', 8:'ROTATE_270'}
    im = Image.fromarray(np.kron(np.arange(8, dtype=np.uint8).reshape(4,2)*30,
                                 np.ones((8,8), np.uint8))).convert('RGB')
    stored,exif,p = (im.transpose(getattr(Image.Transpose, ops[turn])) if turn>1 else im,
                     Image.Exif(),tmp_path/f'a.{ext}')
    exif[0x0112] = turn
    stored.save(p, exif=exif, **(dict(quality=95) if ext=='jpg' else {}))
    got = pictures.open_picture(p)
    assert got.size==im.size and np.abs(np.asarray(got).astype(int)-np.asarray(im)).max() < 12
    assert pictures.PictureStore((32,16)).sizes([p]).tolist()==[[32,16]]

def test_any_size_in_one_folder(block, tmp_path):
    store,sizes = pictures.PictureStore((64,32)),[(32,64),(200,50),(1,1),(1,300),(7,9)]
    for i,o in enumerate(sizes): Image.new('RGB', o, (i,2*i,3*i)).save(tmp_path/f'{i}.png')
    paths = [tmp_path/f'{i}.png' for i in range(len(sizes))]
    assert store.get(paths).flatten(2).float().mean(2).tolist()==[[i,2*i,3*i]
        for i in range(len(sizes))]
    assert store.sizes(paths).tolist()==[[h,w] for w,h in sizes]

def test_palettes_and_grey_with_a_clear_colour(block, tmp_path):
    p = tmp_path/'p.png'
    Image.new('L', (8,16), 200).save(p, transparency=200)
    assert pictures.open_picture(p, convert=True).getpixel((0,0))==(0,0,0)
    im = Image.new('P', (8,16), 1); im.putpalette([0,0,0, 10,200,30]); im.save(p, transparency=1)
    assert pictures.open_picture(p, convert=True).getpixel((0,0))==(0,0,0)
    im.save(p); assert pictures.open_picture(p, convert=True).getpixel((0,0))==(10,200,30)

def test_floating_point_is_refused_always(block, tmp_path):
    Image.new('F', (8,16), .5).save(tmp_path/'f.tif')
    for convert in (False, True):
        error(lambda: pictures.open_picture(tmp_path/'f.tif', convert), 'f.tif', 'floating point')
