"Controls that are as soft as an augmented set, counted pair by pair; new pictures as the net of the plan makes them"
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from torch import nn

from posereid.core import InputError
from posereid.data.sampler import pk_shape
from posereid.stages.augment import augment, check_generated, smoothed_eps, smoothed_margin
from posereid.stages.generate import GenerateSettings, pictures, plan, plan_id, skeletons_for


# --- how soft ---

@pytest.mark.parametrize('N', [0,1,2,5])
def test_average_smoothing(N):
    "Of 1 + N pictures N have ε"
    assert smoothed_eps(.4, N)==pytest.approx(np.mean([0.]+[.4]*N))


@pytest.mark.parametrize('rule', ['anchor','any'])
@pytest.mark.parametrize('bs,n_ids,N', [(128,751,2), (32,4,1), (64,1<<30,3)])
def test_average_margin(rule, bs, n_ids, N):
    "Pairs of anchor and positive of one person, one at a time; by `anchor` a real anchor has real positives"
    _,real,new = pk_shape(bs, n_ids, N)
    margins = []
    for a in range(real+new):
        for p in range(real+new):
            if a==p or (rule=='anchor' and a<real<=p): continue
            margins.append(1. if a<real and p<real else .2)
    assert smoothed_margin(1., .2, N, bs, n_ids, rule)==pytest.approx(np.mean(margins), abs=1e-6)
    assert smoothed_margin(.7, .7, N, bs, n_ids, rule)==pytest.approx(.7)


# --- the union ---

def rows(root, pids, generated=False, **kw):
    n = len(pids)
    return pd.DataFrame(dict(path=[f'{root}/{i}.jpg' for i in range(n)], pid=pids,
                             camid=[1+i%2 for i in range(n)], split='train',
                             is_generated=generated)).assign(**kw)


def test_the_union_by_hand():
    real = pd.concat([rows('/r', [1,1,2,2]), rows('/q', [7,7]).assign(split='query')],
                     ignore_index=True)
    new = rows('/g', [2,1], True, source_path=['/r/2.jpg','/r/0.jpg'])
    both = augment(real, new)
    assert (both.path.tolist()==['/r/0.jpg','/r/1.jpg','/r/2.jpg','/r/3.jpg','/g/0.jpg','/g/1.jpg']
            and both.is_generated.tolist()==[False]*4+[True]*2)
    assert both.pid.tolist()==[1,1,2,2,2,1] and both.index.tolist()==list(range(6))


@pytest.mark.parametrize('change,says',
                         [(dict(is_generated=[True,False]), ['1 rows','/g/1.jpg']),
                          (dict(pid=[2,9]), ['1 people','9']),
                          (dict(source_path=['/x/2.jpg','/x/7.jpg']), ['1 generated','/x/7.jpg']),
                          (dict(pid=[1,1]), ['1 of','/g/0.jpg','of 1 and not of 2'])])
def test_sets_of_another_target(change, says):
    real,new = rows('/r', [1,1,2,2]),rows('/g', [2,1], True,
                                          source_path=['/r/2.jpg','/r/0.jpg']).assign(**change)
    with pytest.raises(InputError) as e: check_generated(real, new)
    assert all(o in str(e.value) for o in says), e.value
    with pytest.raises(InputError, match='empty'): check_generated(real, new[:0])


# --- pictures of a plan ---

class Store:
    size,shape = (8,4),{}
    def get(self, paths):
        return torch.stack([torch.full((3,8,4), int(Path(p).stem), dtype=torch.uint8)
                            for p in paths])
    def sizes(self, paths): return torch.tensor([(80,40) if 'large' in p else (8,4) for p in paths])


class Poses:
    "One pose: all joints in a column, in pixels of its own picture"
    def of(self, paths):
        paths = list(paths.path) if hasattr(paths, 'path') else list(paths)
        k = torch.zeros(len(paths),18,3)
        for i,p in enumerate(paths):
            k[i] = torch.tensor([20.,40.,1.] if 'large' in p else [2.,4.,1.])
        return k


class Mean(nn.Module):
    "The appearance, a shade darker in train mode; keeps what it saw"
    def __init__(self): super().__init__(); self.w,self.seen = nn.Parameter(torch.zeros(1)),[]
    def forward(self, x, s):
        self.seen.append((len(x), self.training, torch.is_grad_enabled(), x.min().item(),
                          x.max().item(), s.shape, torch.rand(1).item()))
        return x - (.5 if self.training else 0.)


def todo(n):
    return pd.DataFrame(dict(source_path=[f'/r/{i*20}.jpg' for i in range(n)],
                             pose_path=['/s/large/1.jpg' if i%2 else '/s/small/1.jpg'
                                        for i in range(n)], k=0, pid=1, camid=1))


def test_pictures_batch_by_batch():
    G = Mean()
    got = list(pictures(G, todo(7), Poses(), Store(), GenerateSettings(bs=3)))
    assert ([len(o) for o in got]==[3,3,1] and torch.cat(got)[:,0,0,0]
            .tolist()==[0,20,40,60,80,100,120] and got[0].dtype==torch.uint8)
    assert ([o[0] for o in G.seen]==[3,3,1] and not any(o[1] or o[2] for o in G.seen)
            and tuple(G.seen[0][5])==(3,3,8,4))
    assert G.seen[0][3]==pytest.approx(-1) and G.seen[0][4]==pytest.approx(40/127.5-1, abs=1e-4)
    dark = torch.cat(list(pictures(G, todo(7), Poses(), Store(),
                                   GenerateSettings(bs=7, mode='train'))))
    assert G.seen[-1][1] and not G.training and dark[6,0,0,0]==120-64 and dark[0].max()==0
    chance = lambda seed: [list(pictures(G, todo(2), Poses(), Store(),
                                         GenerateSettings(seed=seed))), G.seen[-1][6]][1]
    assert chance(1)==chance(1)!=chance(2)


def test_skeletons_are_at_the_size_of_the_net():
    "A pose of a picture ten times as large is drawn in the same place, one pixel at most apart"
    store = SimpleNamespace(size=(64,32), sizes=lambda paths: torch.tensor([(64,32),(640,320)]))
    k = torch.zeros(2,18,3)
    # pixel centres: (204.5 + ½)/10 − ½ = 20
    k[0],k[1] = torch.tensor([20.,40.,1.]),torch.tensor([204.5,404.5,1.])
    asked = []
    a,b = skeletons_for(['x','y'],
                        SimpleNamespace(of=lambda paths: (asked.append(paths), k)[1]), store)
    assert (asked==[['x','y']] and tuple(a.shape)==(3,64,32) and a.dtype==torch.uint8
            and torch.equal(a, b))
    y,x = a.amax(0).nonzero().float().mean(0).tolist()
    assert (x,y)==pytest.approx((20,40), abs=.01)


def test_the_name_of_a_plan_is_that_of_its_pictures():
    a = todo(4)
    assert plan_id(a)==plan_id(a.copy()) and len(plan_id(a))==12
    others = [a[::-1], a.assign(k=1), a.assign(pose_path='/s/small/1.jpg'),
              a.assign(source_path=a.source_path[::-1].values), a[:3]]
    assert len({plan_id(a), *map(plan_id, others)})==6


def test_a_plan_by_hand():
    target = pd.concat([rows('/r', [1,1,2]), rows('/g', [1], True),
                        rows('/q', [5]).assign(split='query', path='/q/q.jpg')], ignore_index=True)
    source = pd.concat([rows('/s/small', [8,8,9]), rows('/t', [9]).assign(split='query')],
                       ignore_index=True)
    p = plan(target, source, Poses(), GenerateSettings(n_each=2, min_joints=1))
    assert (p.source_path.tolist()==[o for o in ('/r/0.jpg','/r/1.jpg','/r/2.jpg') for _ in (0,1)]
            and p.k.tolist()==[0,1]*3)
    assert (p.pid.tolist()==[1,1,1,1,2,2] and p.camid.tolist()==[1,1,2,2,1,1]
            and set(p.pose_path)<=set(source.path[:3]))
    for kw,says in ((dict(n_each=0), 'generate.n_each'), (dict(bs=0), 'generate.bs'),
                    (dict(mode='evil'), "generate.mode.*'evil'"),
                    (dict(bank='divers'), "generate.bank.*'divers'")):
        with pytest.raises((InputError, ValueError), match=says):
            plan(target, source, Poses(), GenerateSettings(**kw))
    with pytest.raises(InputError, match='bbox_train'):
        plan(target, source[3:], Poses(), GenerateSettings())
