"Synthetic people against slower and plainer ways to say the same"
import math
from pathlib import Path

import numpy as np, pytest, torch
from dataclasses import replace

from posereid.core import InputError
from posereid.data.market import parse_market_name
from posereid.data.manifest import pick
from posereid.pose.files import read_market_csv
from posereid.synth.people import ANGLES, PARTS, body, sample_people, sample_poses, skeleton
from posereid.synth.render import SHOT, cone_depth, render, sample_camera, sample_shots
from posereid.synth.world import (TINY, WorldSettings, cast_world, check_world, load_world,
                                  render_as, tiny_world)


@pytest.fixture(scope='module')
def world(tmp_path_factory): return tiny_world(root=tmp_path_factory.mktemp('w')/'world')


def test_cone_is_a_union_of_spheres():
    "The closed form against the nearest of 4,000 spheres between the two ends, on random cones and rays"
    rng = torch.Generator().manual_seed(0)
    n,s = 400,torch.linspace(0, 1, 4000)
    a,b = torch.randn(n, 3, generator=rng),torch.randn(n, 3, generator=rng)
    ra,rb = .1+torch.rand(n, generator=rng),.1+torch.rand(n, generator=rng)
    o = (a+b)[:,:2]/2 + torch.randn(n, 2, generator=rng)*.7
    c = a[:,None] + s[None,:,None]*(b-a)[:,None]
    r2 = (ra[:,None]+s*(rb-ra)[:,None])**2 - (c[...,:2]-o[:,None]).pow(2).sum(-1)
    want = torch.where(r2>0, c[...,2]-r2.clamp(min=0).sqrt(), torch.tensor(math.inf)).amin(1)
    got = cone_depth(o, a, b, ra, rb)[0]
    # rays that graze the edge may fall either way on the grid
    sure = (r2.amax(1).abs()>1e-3)
    assert (got.isfinite()==want.isfinite())[sure].all()
    both = got.isfinite()&want.isfinite()&sure
    assert (both.sum()>100 and (got-want)[both].abs().max()<2e-2
            and (got-want)[both].abs().median()<1e-5)


def test_bones_keep_their_length():
    "Whatever the pose, a thigh is a thigh"
    who = sample_people(1, 0)[[0]*50]
    p = skeleton(who, sample_poses(50, 1))
    for x,y in (('rhip','rkne'), ('lkne','lank'), ('rsho','relb'), ('lelb','lwri')):
        d = (p[x]-p[y]).norm(dim=1)
        assert d.std()<.02*d.mean(), (x,y)


def test_turning_round_mirrors_left_and_right():
    a = np.zeros((2, len(ANGLES)), np.float32); a[1,0] = np.pi
    p = skeleton(sample_people(1, 0)[[0,0]], a)
    assert torch.allclose(p['rsho'][0]*torch.tensor([-1,1,-1.]), p['rsho'][1], atol=1e-5)


def test_absent_parts_are_not_drawn():
    who = sample_people(200, 3)
    _,_,r = body(who, sample_poses(200, 3))
    for name,has in (('backpack',who.kind[:,4]==1), ('skirt',who.kind[:,2]==2),
                     ('hair',who.kind[:,3]==2), ('coat',who.kind[:,5]==1)):
        assert ((r[:,PARTS.index(name)]>0).all(1)==has).all()


def test_a_joint_lies_on_its_person():
    "Visible trunk joints fall on pixels that show the person"
    cams = [sample_camera([1,i]) for i in range(2)]
    _,joints,mask = render(sample_people(40, 5), sample_poses(40, 6), cams, np.arange(40)%2,
                           sample_shots(40, 7, pitch=.1, occlusion=0.), range(40))
    for j in (1,2,5,8,11):
        x,y,c = joints[:,j].unbind(1)
        on = mask[torch.arange(40), y.round().long().clamp(0,63), x.round().long().clamp(0,31)]
        assert (on[c>0]>0).float().mean()>.95, j


def test_hidden_faces_are_missing():
    "Who walks away shows no nose, who comes shows it"
    cams,shots = [sample_camera(1)],sample_shots(20, 0, jitter=0., occlusion=0.)
    seen = lambda yaw: (render(sample_people(20, 2),
                               sample_poses(20, 3, rich=False, yaw=np.full(20, yaw)), cams,
                               np.zeros(20, int), shots, range(20))[1][:,0,2]>0).float().mean()
    assert seen(0.)==1 and seen(np.pi)==0


def test_names_and_people(world):
    t = world.target
    for p in t.path: parse_market_name(Path(p).name)
    train,test = (set(t.pid[t.split.isin(s)]) for s in (['train'],['query','gallery']))
    assert not train&(test-{-1,0}) and {-1,0}<=test
    assert not set(world.source.pid)&(train|test)
    for pid,cam in t[t.split=='query'][['pid','camid']].itertuples(index=False):
        assert ((t.split=='gallery')&(t.pid==pid)&(t.camid!=cam)).any()


def test_joints_lie_inside(world):
    j = world.poses.joints
    seen = j[...,2]>0
    assert ((j[...,0][seen]>=-.5).all() and (j[...,0][seen]<=31.5).all()
            and (j[...,1][seen]>=-.5).all() and (j[...,1][seen]<=63.5).all())
    assert (j[~seen]==0).all()


def test_validation_changes_only_the_test(tmp_path):
    s = WorldSettings(**TINY)
    a,b = cast_world(s),cast_world(replace(s, validation=True))
    train = (a.files.group=='train').to_numpy()
    assert ((a.files.file[train]==b.files.file[train]).all()
            and (a.shots[train]==b.shots[train]).all())
    test = (a.files.group=='test').to_numpy()
    assert (a.angles[test]!=b.angles[test]).any(1).mean()>.9


def test_a_true_picture_keeps_the_scene(world):
    "Where neither picture shows a person, the true rendering shows the scene of the appearance"
    t = world.target
    names,poses = pick(t, 'train').path[:8],world.source.path[:8]
    rows = world.cast.rows_of(names)
    keep = world.cast.shots[rows, SHOT.index('occ_y1')]==0
    mine,_,m0 = world.cast.draw(rows)
    true,m1 = render_as(world, names, poses, with_mask=True)
    free = (m0==0)&(m1==0)
    d = (mine.float()-true.float()).abs().mean(1)
    for i in np.flatnonzero(keep): assert d[i][free[i]].mean()<8


@pytest.mark.parametrize('change', [dict(n_train=1), dict(per_train=1), dict(per_source=4),
                                    dict(per_test=3), dict(size=(8,8))])
def test_worlds_that_cannot_be(change):
    with pytest.raises(InputError, match='at least'):
        check_world(replace(WorldSettings(), **change))


# --- the one small world ---

def test_the_tiny_world_is_a_folder_and_what_is_in_it(world, tmp_path):
    again = load_world(world)
    assert world/'target'==world.root/'target' and Path(world)==world.root==again.root
    assert (again.target.equals(world.target) and again.source.equals(world.source)
            and torch.equal(again.poses.joints, world.poses.joints))
    assert world.poses.names==[n for o in ('target','source')
                               for n in read_market_csv(world/f'{o}_poses.csv').names]
    other = tiny_world(1, tmp_path/'w')
    assert (other.cast.settings==replace(world.cast.settings, world=1)
            and len(other.target)==len(world.target))
    assert (other/'world.json').exists() and not torch.equal(other.poses.joints, world.poses.joints)


def test_pictures_are_found_by_name_and_by_path(world):
    paths = pick(world.target, 'query').path.tolist()
    rows = world.cast.rows_of(paths)
    assert rows.tolist()==world.cast.rows_of([Path(p).name for p in paths]).tolist()
    assert [world.root/f for f in world.cast.files.file.iloc[rows]]==[Path(p) for p in paths]
    with pytest.raises(InputError, match='no picture of this world'):
        world.cast.rows_of(['/else/where.jpg'])
