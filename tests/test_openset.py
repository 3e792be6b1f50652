"Thresholds, trials and intervals against loops, and against crowds whose truth is known"
import json
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from scipy import stats
from posereid.core import InputError
from posereid.stages.trained import Trained
from posereid.search.openset import (Rate, Trials, _MOST, _roc, binomial_interval, calibrate,
    calibrate_on, in_gallery, load_threshold, make_trials, people_rate, plot_threshold, same_person,
    split_people, threshold_at)


def crowd(n, seed, q=2, g=4, d=6):
    "Distances of pictures of `n` people, and their ids"
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(n,d))
    x,y = (np.repeat(people, k, 0) + .4*rng.normal(size=(n*k,d)) for k in (q,g))
    dist = np.sqrt(np.maximum(0, (x**2).sum(1)[:,None]+(y**2).sum(1)-2*x@y.T))
    ids = [np.repeat(np.arange(1, n+1), k) for k in (q,g)]
    return dist, *ids, ids[0]*0+1, ids[1]*0+2


class Net:
    "Features by path, without a net"
    kind,hash = dict(size=(64,32), crop=()),'0123456789ab'
    seen = Trained.seen
    def __init__(self, features): self.known,self.asked = features,[]
    def features(self, paths, flip=False, convert=True, desc=''):
        self.asked.append(flip)
        return F.normalize(torch.stack([self.known[p] for p in paths]), dim=1)


def people(n=12, q=2, g=4, seed=0):
    "A manifest of `n` people in two cameras, and a net that knows them"
    gen,rows,known = torch.Generator().manual_seed(seed),[],{}
    centre = torch.randn(n, 8, generator=gen)
    for pid in range(1, n+1):
        for split,k in (('query',q),('gallery',g)):
            for i in range(k):
                path = f'{split}/{pid}_{i}.jpg'
                rows.append(dict(path=path, pid=pid, camid=1+i%2, split=split, is_generated=False))
                known[path] = centre[pid-1]+.3*torch.randn(8, generator=gen)
    return pd.DataFrame(rows),Net(known)

# --- rates and their intervals ---

@pytest.mark.parametrize('k,n', [(1,10), (3,10), (7,9), (40,1000)])
def test_the_ends_of_the_binomial_interval(k, n):
    "At the lower end k or more has 2.5 %, at the upper k or fewer"
    lo,hi = binomial_interval(k, n)
    assert stats.binom.sf(k-1, n, lo)==pytest.approx(.025)
    assert stats.binom.cdf(k, n, hi)==pytest.approx(.025)
    assert binomial_interval(k, n, .5)[0]>lo


def naive_variance(hit, a, b):
    "All couples of trials that share somebody, one by one"
    e = hit-hit.mean()
    share = [[bool({*o}&{*p}) for p in zip(a, b)] for o in zip(a, b)]
    return (e[:,None]*e*np.array(share)).sum()/len(e)**2


@pytest.mark.parametrize('seed', range(6))
def test_variance_adds_all_trials_that_share_a_person(seed):
    from posereid.search.openset import _variance
    rng = np.random.default_rng(seed)
    m,n = 80,7
    a,b = rng.integers(n, size=(2,m))
    if seed%2: b = a
    hit = rng.random(m)<.2+.5*(a==3)
    want = max(0, naive_variance(hit, a, b))
    assert _variance(hit-hit.mean(), a, b, n)==pytest.approx(want)


def test_a_rate_counts_and_widens():
    a,b = np.repeat(np.arange(10), 40),np.tile(np.arange(10,20), 40)
    hit = a<2 # two people are in all false accepts
    r = people_rate(hit, a, b)
    assert (r.k, r.n, r.people, r.value)==(80, 400, 20, .2)
    assert (r.lo_alone, r.hi_alone)==binomial_interval(80, 400)
    assert r.lo<r.lo_alone<.2<r.hi_alone<r.hi


def test_no_false_accept_says_little():
    "With none, each person counts in one trial; a pair takes two people"
    none,a = np.zeros(1000, bool),np.arange(1000)%50
    assert people_rate(none, a).hi==pytest.approx(1-.025**(1/50))
    assert people_rate(none, a, (a+1)%50).hi==pytest.approx(1-.025**(1/25))
    assert people_rate(~none, a).lo==pytest.approx(.025**(1/50))
    assert people_rate(none, a*0)[3:5]==(0, 1)


def test_few_people_widen_by_students_distribution():
    hit,a = np.arange(6)%2==0,np.arange(6)
    few = (stats.norm.ppf(.025)/stats.t.ppf(.025, 5))**2
    n = .25/(.25/6*6/5)*few
    assert people_rate(hit, a)[3:5]==pytest.approx(binomial_interval(n/2, n))


def test_rates_want_trials():
    with pytest.raises(InputError, match='needs trials'): people_rate([], [])
    with pytest.raises(InputError, match='one number for each'): people_rate([True,False], [0])


def test_the_interval_covers_the_truth():
    "300 draws of independent impostors, and 200 crowds whose pairs share people"
    t = [threshold_at(np.random.default_rng(s).random(400), .05) for s in range(300)]
    r = [people_rate(np.random.default_rng(9000+s).random(400)<o, np.arange(400))
         for s,o in enumerate(t)]
    assert np.mean([o.lo_alone<=p<=o.hi_alone for o,p in zip(r, t)])>=.93
    assert np.mean([o.lo<=p<=o.hi for o,p in zip(r, t)])>=.93
    assert np.mean(t)==pytest.approx(20/401, abs=.002)
    a,b = (np.random.default_rng(k).normal(scale=1.16**.5, size=(500_000,6)) for k in (1,2))
    far = np.sort(np.linalg.norm(a-b, axis=1))
    made = [calibrate_on(*crowd(80, s), far=.01, seed=s) for s in range(200)]
    true = [far.searchsorted(o.t)/len(far) for o in made]
    in_people = np.mean([o.measured.lo<=p<=o.measured.hi for o,p in zip(made, true)])
    in_pairs = np.mean([o.measured.lo_alone<=p<=o.measured.hi_alone for o,p in zip(made, true)])
    assert .9<=in_people<=1 and in_pairs<.6
    assert np.mean(true)==pytest.approx(.01, abs=.001)

# --- thresholds and trials ---

@pytest.mark.parametrize('n,far,j', [(100,.05,5), (99,.05,5), (98,.05,4), (1000,.001,1), (99,.29,29),
                                     (20,.05,1)])
def test_which_impostor_is_the_threshold(n, far, j):
    d = np.random.default_rng(0).permutation(np.arange(1., n+1))
    assert threshold_at(d, far)==j and (d<j).sum()==j-1


@pytest.mark.parametrize('n,far,least', [(999,.001,'1,000'), (19,.05,'20'), (0,.5,'2')])
def test_a_rate_that_no_impostor_supports(n, far, least):
    with pytest.raises(InputError, match=f'at least {least} impostors, but there are {n}'):
        threshold_at(np.arange(n), far)


@pytest.mark.parametrize('far', [0, 1, -.1, 5])
def test_rates_are_between_0_and_1(far):
    with pytest.raises(InputError, match='between 0 and 1'): threshold_at(np.arange(1000), far)


def test_halves_are_of_people():
    pids = np.repeat(np.arange(-1, 12), 3)
    seen = set()
    for seed in range(5):
        a,b = split_people(pids, seed)
        assert sorted([*a,*b])==[*range(1,12)] and len(a)==5
        assert [*split_people(pids, seed)[0]]==[*a]
        seen.add(tuple(a))
    assert len(seen)>1


def naive_trials(dist, qp, gp, qc, gc, kind):
    different,same = [],[]
    for i in range(len(qp)):
        other = [(dist[i,j], qp[i], gp[j]) for j in range(len(gp)) if gp[j]!=qp[i]]
        own = [dist[i,j] for j in range(len(gp)) if gp[j]==qp[i] and (qc[i]==0 or gc[j]!=qc[i])]
        if kind=='verification':
            different += other
            same += [(o, qp[i]) for o in own]
        else:
            near = min(o[0] for o in other)
            different.append((near, qp[i]))
            if own: same.append((min(own) if min(own)<near else np.inf, qp[i]))
    return different,same


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('kind', ['verification','identification'])
def test_trials_against_loops(kind, seed):
    rng = np.random.default_rng(seed)
    qp,gp = rng.integers(3, 8, 9),np.r_[rng.integers(3, 8, 12), 3, 4]
    qc,gc = rng.integers(0, 3, 9),rng.integers(0, 3, 14)
    dist = rng.random((9,14)).astype(np.float32)
    t = make_trials(torch.tensor(dist) if seed%2 else dist, qp, gp, qc, gc, kind)
    ids = np.unique([*qp, *gp])
    different,same = naive_trials(dist, qp, gp, qc, gc, kind)
    whom = (t.a,) if kind=='identification' else (t.a, t.b)
    assert [*zip(t.different, *(ids[o] for o in whom))]==different
    assert [*zip(t.same, ids[t.who])]==same and t.gallery==14


def test_each_half_sees_only_its_own_distances():
    dist,qp,gp,qc,gc = crowd(20, 0)
    th = calibrate_on(dist, qp, gp, qc, gc, .02, seed=3)
    fit,held = split_people(qp, 3)
    for half,changes in ((held,False), (fit,True)):
        d = dist.copy()
        d[np.ix_(np.isin(qp, half), np.isin(gp, half))] *= .5
        assert (calibrate_on(d, qp, gp, qc, gc, .02, seed=3).t!=th.t)==changes
    d = dist.copy()
    d[np.ix_(np.isin(qp, held), np.isin(gp, fit))] = 0 # pairs across the halves are in neither
    assert calibrate_on(d, qp, gp, qc, gc, .02, seed=3).measured==th.measured
    mine = np.ix_(np.isin(qp, held), np.isin(gp, held))
    other = qp[np.isin(qp, held)][:,None]!=gp[np.isin(gp, held)]
    assert th.measured.k==(dist[mine][other]<th.t).sum() and th.measured.n==other.sum()
    assert th.tar.k==(dist[mine][~other]<th.t).sum() and th.tar.n==(~other).sum()


def test_a_distance_at_the_threshold_is_not_accepted():
    dist,qp,gp,qc,gc = crowd(40, 2)
    dist = dist.round(1)
    th = calibrate_on(dist, qp, gp, qc, gc, .05)
    assert (th.held.different==th.t).any() and (th.held.same==th.t).any()
    assert th.measured.k==(th.held.different<th.t).sum() and th.tar.k==(th.held.same<th.t).sum()


def test_nobody_is_an_impostor():
    "Rows without identity change nothing"
    dist,qp,gp,qc,gc = crowd(12, 1)
    th = calibrate_on(dist, qp, gp, qc, gc, .05)
    more = np.c_[dist, np.zeros((len(dist), 3))]
    again = calibrate_on(more, qp, np.r_[gp, -1, 0, 99], qc, np.r_[gc, 1, 1, 1], .05)
    assert repr(again)==repr(th)


def test_one_person_only():
    with pytest.raises(InputError, match='there is 1;'):
        calibrate_on(np.ones((2,2)), [1,1], [1,1], [1,1], [2,2], .1)
    with pytest.raises(InputError, match='no impostor'):
        make_trials(np.ones((1,2)), [1], [1,1], [1], [2,2])


def test_pairs_of_one_person_must_be_there():
    dist,qp,gp,qc,gc = crowd(12, 1)
    with pytest.raises(InputError, match='to find'):
        calibrate_on(dist, qp, gp, qc, qc[0]+gc*0, .05)

# --- with a net ---

def test_distances_rank_alike_and_so_do_their_thresholds():
    df,net = people()
    a,b,c = (calibrate(net, df, .05, distance=o) for o in ('euclidean','squared','cosine'))
    assert a.t**2==pytest.approx(b.t, rel=1e-4) and b.t/2==pytest.approx(c.t, rel=1e-4)
    assert a.measured==b.measured==c.measured and a.tar==c.tar
    assert (a.hash, a.size, a.distance, c.distance)==(net.hash, (64,32), 'euclidean', 'cosine')


def test_cameras_per_person_and_flip():
    df,net = people()
    assert calibrate(net, df, .05).tar.n==6*2*2 # the other camera alone
    assert calibrate(net, df, .05, cameras=False).tar.n==6*2*4
    some = calibrate(net, df, .05, per_person=1)
    assert (some.measured.n, some.gallery)==(6*5, 6)
    assert calibrate(net, df, .05, flip=True).flip and net.asked[-1]
    for word in ('cosine','mirrored','seed 4','no cameras','12 people','90 %','Nowhere: '):
        assert word in calibrate(net, df, .05, distance='cosine', flip=True, seed=4, cameras=False,
                                 level=.9, dataset='Nowhere').protocol


def test_junk_and_distractors_are_not_even_read():
    df,net = people()
    more = [dict(path=f'{o}.jpg', pid=o, camid=1, split='gallery', is_generated=False) for o in (0,-1)]
    th = calibrate(net, pd.concat([df, pd.DataFrame(more)], ignore_index=True), .05)
    assert repr(th)==repr(calibrate(net, df, .05))


def test_people_of_the_training_are_refused():
    df,net = people()
    seen = pd.concat([df, df[:1].assign(path='t.jpg', split='train')], ignore_index=True)
    with pytest.raises(InputError, match='person 1 is in training'): calibrate(net, seen, .05)
    new = pd.concat([df, df[:1].assign(path='t.jpg', split='train', pid=99)], ignore_index=True)
    assert 'none of them in training' in calibrate(net, new, .05).protocol
    assert 'training' not in calibrate(net, df, .05).protocol


def test_what_is_refused_is_refused_before_features():
    df,net = people(3)
    with pytest.raises(InputError, match='at least 4'): calibrate(net, df, .05)
    with pytest.raises(InputError, match='`distance`'): calibrate(net, people()[0], distance='l1')
    with pytest.raises(InputError, match='`kind`'): calibrate(net, people()[0], kind='both')
    assert not net.asked


def test_too_many_distances(monkeypatch):
    df,net = people()
    monkeypatch.setattr('posereid.search.openset._MOST', 100)
    with pytest.raises(InputError, match='per_person'): calibrate(net, df, .05)
    assert _MOST>1e8


def test_the_crop_is_what_the_net_sees():
    df,net = people()
    net.kind = dict(size=(64,32), crop=(56,28))
    assert calibrate(net, df, .05).size==(56,28)

# --- files ---

@pytest.fixture
def saved(tmp_path):
    df,net = people()
    th = calibrate(net, df, .05)
    return th,th.save(tmp_path/'t.json'),net


def test_a_threshold_comes_back(saved):
    th,file,net = saved
    back = load_threshold(file, net)
    for k in ('t','far','measured','tar','kind','distance','hash','size','flip','gallery','shares',
              'quantiles','protocol'): assert getattr(back, k)==getattr(th, k), k
    assert isinstance(back.tar, Rate) and back.held is None
    assert [o.name for o in file.parent.iterdir()]==['t.json']
    assert file.stat().st_size<12_000


@pytest.mark.parametrize('change', [dict(t='x'), dict(far=2), dict(kind='both'), dict(distance='l1'),
    dict(size=[1,2,3]), dict(measured=dict(k=1)), dict(shares=[0]), dict(flip=1), dict(quantiles=[]),
    dict(shares=[1,0], quantiles=[0,1]), dict(quantiles=[1,0], shares=[0,1]), dict(t=float('nan'))])
def test_damaged_files(saved, change):
    _,file,_ = saved
    file.write_text(json.dumps(json.loads(file.read_text())|change), encoding='utf-8')
    with pytest.raises(InputError, match='t.json.*calibrate again'): load_threshold(file)


def test_more_hits_than_trials(saved):
    _,file,_ = saved
    d = json.loads(file.read_text())
    d['tar']['k'] = d['tar']['n']+1
    file.write_text(json.dumps(d), encoding='utf-8')
    with pytest.raises(InputError, match='do not fit together'): load_threshold(file)


def test_no_file_and_half_a_file(saved):
    _,file,_ = saved
    with pytest.raises(InputError, match='no file of a threshold'): load_threshold('gone.json')
    file.write_text(file.read_text()[:99], encoding='utf-8')
    with pytest.raises(InputError, match='cut short'): load_threshold(file)


def test_another_net_or_size_is_refused(saved):
    th,file,net = saved
    other = Net(net.known)
    other.hash = 'ffffffffffff'
    for f in (lambda: load_threshold(file, other), lambda: same_person(other, 'a', 'b', th)):
        with pytest.raises(InputError, match='0123456789ab'): f()
    small = Net(net.known)
    small.kind = dict(size=(32,16), crop=())
    with pytest.raises(InputError, match='64×32'): th.check(small)

# --- verdicts ---

def test_two_pictures(saved):
    th,_,net = saved
    a,b = 'query/1_0.jpg','gallery/1_0.jpg'
    d = float((F.normalize(net.known[a], dim=0)-F.normalize(net.known[b], dim=0)).norm())
    for t,same in ((d*1.01,True), (d*.99,False)):
        th.t = t
        v = same_person(net, a, Path(b), th)
        assert (v.same, v.dist)==(same, pytest.approx(d, abs=1e-4))
        assert str(th.measured if same else th.tar) in v.said
        assert v.closer==th.closer(v.dist)
    th.t = v.dist # a distance at the threshold is not below it
    assert not same_person(net, a, b, th).same


def test_shares_of_impostors():
    th = calibrate_on(*crowd(60, 0), far=.01)
    d = np.sort(th.held.different)
    for p in (.001, .003, .01, .1, .5, .9, .999):
        assert th.closer(np.quantile(d, p))==pytest.approx(p, rel=.15, abs=1e-3)
    assert th.closer(d[0]*.9)==0 and th.closer(d[-1]*1.1)==1
    assert th.shares[1]*len(d)>=1
    assert th.closer(th.t)==pytest.approx(th.measured.value, rel=.15)


def test_lists():
    th = calibrate_on(*crowd(60, 0), far=.1, kind='identification')
    d = [[th.t*2, th.t*.9], [th.t, th.t*3], [np.inf, np.inf]]
    v = in_gallery(torch.tensor(d), th)
    assert [*v.known]==[True,False,False] and v.note==''
    assert v.nearest==pytest.approx([th.t*.9, th.t, np.inf]) and v.closer[2]==1
    assert [o.split(':')[0] for o in v.said]==['In the gallery']+['Not in the gallery']*2
    assert in_gallery(d, th, th.gallery*5//4).note==''
    p = 1-(1-th.measured.value)**10
    assert f'{100*p:.3g} %' in in_gallery(d, th, th.gallery*10).note


def test_a_threshold_is_for_its_kind(saved):
    th,_,net = saved
    with pytest.raises(InputError, match="'identification'"): in_gallery([[1.]], th)
    th.kind = 'identification'
    with pytest.raises(InputError, match="'verification'"): same_person(net, 'a', 'b', th)


def test_the_curve_and_its_figure():
    for kind in ('verification','identification'):
        th = calibrate_on(*crowd(80, 2, q=4), far=.05, kind=kind)
        far,tar = _roc(th.held)
        for f,t in [*zip(far, tar)][::20]:
            cut = np.sort(th.held.different)[round(f*len(th.held.different))-1]
            assert t==pytest.approx((th.held.same<=cut).mean())
        assert len(far)==min(200, len(np.unique(np.geomspace(1, len(th.held.different), 200).round())))
        assert far[0]==pytest.approx(1/len(th.held.different)) and far[-1]==1
        assert len(plot_threshold(th).axes)==2
    flat = Trials(np.ones(4), np.arange(4), None, np.array([np.inf]), np.array([0]), 3)
    assert [*_roc(flat)[1]]==[0]*len(_roc(flat)[1])


@pytest.mark.parametrize('far,says', [(.001,'more often'), (.5,'less often'), (.1,'')])
def test_a_wish_that_is_not_borne_out_is_said(far, says):
    from posereid.search.openset import Rate, Threshold
    th = Threshold(.5, far, Rate(10, 100, 9, .05, .15, .05, .15), Rate(9, 10, 9, .8, 1., .8, 1.),
                   'verification', 'euclidean', '', (), False, 10, [], [], 'p')
    assert (f'{says} than was wished' in repr(th)) if says else ('wished' not in repr(th))
