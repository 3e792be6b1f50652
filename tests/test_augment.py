"Step three's set and its control: what is trusted how much"
from dataclasses import replace

import numpy as np, pandas as pd, pytest

from posereid.data.manifest import pick
from posereid.data.sampler import pk_shape
from posereid.stages.augment import as_trusted, augment, doubt, smoothed_eps, smoothed_margin
from posereid.stages.generate import GenerateSettings, plan
from posereid.stages.reid import ReIDSettings
from posereid.synth.world import tiny_world


def manifest(pids, generated=False, first=0):
    return pd.DataFrame([dict(path=f'/d/{first+i}.jpg', pid=p, camid=1+i%2, split='train',
                              is_generated=generated) for i,p in enumerate(pids)])


def test_the_smoothed_control_of_cross_entropy():
    s = ReIDSettings(eps_generated=.4)
    assert [as_trusted(s, n).eps_real for n in (0,1,2,3)]==pytest.approx([0, .2, .8/3, .3])
    assert as_trusted(s, 2)==replace(s, eps_real=smoothed_eps(.4, 2))


@pytest.mark.parametrize('bs,n_ids', [(128,1<<30), (128,6), (24,10)])
def test_the_smoothed_control_of_triplets(bs, n_ids):
    s = ReIDSettings(loss='triplet', bs=bs, margin=1., margin_generated=.5, eps_generated=.4)
    _,real,new = pk_shape(bs, n_ids, 2)
    # a real anchor takes real positives, a generated one takes both
    alone,mixed = real*(real-1),new*(real+new-1)
    res = as_trusted(s, 2, n_ids)
    assert (res==replace(s, margin=res.margin)
            and res.margin==pytest.approx((alone+.5*mixed)/(alone+mixed), abs=1e-6))


def test_the_rule_of_triplets_counts():
    a,b = (smoothed_margin(1., .5, 2, 24, 10, o) for o in ('anchor','any'))
    assert (a!=b and as_trusted(ReIDSettings(loss='triplet', bs=24, rule='any'), 2, 10)
            .margin==pytest.approx(b))


def test_doubt():
    # no doubt at all: all alike
    assert (doubt([1.,0.], .4)==pytest.approx([0., .8], abs=1e-6)
            and doubt([1.,1.], .4)==pytest.approx([.4, .4]))
    assert doubt([1.,.5,.5,0.], .6)==pytest.approx([0., .7, .7, 1.], abs=1e-6)
    p = np.random.default_rng(0).uniform(size=1000)
    assert doubt(p, .4).mean()==pytest.approx(.4) and (np.diff(doubt(np.sort(p), .4))<=0).all()


@pytest.mark.parametrize('eps', [0., .2, .6, .95, 1.])
def test_doubt_keeps_its_mean_and_its_bounds(eps):
    p = np.random.default_rng(1).beta(5, 1, size=500)
    e = doubt(p, eps)
    assert e.mean()==pytest.approx(eps, abs=1e-6) and e.min()>=0 and e.max()<=1
    free = e<1-1e-9
    if free.sum()>1 and eps>0: assert np.allclose(e[free]/(1-p[free]), e[free][0]/(1-p[free][0]))


def test_rows_are_handed_down_and_others_left_out():
    real,new = manifest([1,1,2,2]),manifest([1,2], True, 10)
    both = augment(real, new)
    assert (both.path.tolist()==[*real.path, *new.path]
            and both.is_generated.tolist()==[False]*4+[True]*2)
    test = real.assign(split='gallery', path='/t'+real.path.astype(str))
    # test rows have no part, and no index is left over
    assert augment(pd.concat([test, real]), new).equals(both)
    with pytest.raises(Exception, match='the first is 9'):
        augment(pd.concat([test.assign(pid=9), real]), new.assign(pid=9))


def test_a_plan_gives_poses_of_training_pictures_to_real_training_pictures():
    w = tiny_world()
    train = pick(w.target, 'train')
    target = w.target.assign(is_generated=w.target.path.isin(train.path[::3]))
    source = w.source.assign(split=['train' if i%2 else 'gallery' for i in range(len(w.source))])
    todo = plan(target, source, w.poses, GenerateSettings())
    assert set(todo.source_path)=={p for i,p in enumerate(train.path) if i%3}
    assert set(todo.pose_path)<=set(source.path[1::2]) and len(set(todo.pose_path))>5
    handed = plan(pick(target, 'train', is_generated=False), pick(source, 'train'), w.poses,
                  GenerateSettings())
    assert todo.equals(handed)  # rows that are picked already give the same plan
