"The renderer against a slow one: spheres in place of cones, one pixel at a time, rules of clothes in plain words"
import math
from dataclasses import replace

import numpy as np, pytest, torch
import torch.nn.functional as F
from posereid.synth import render as R
from posereid.synth.people import COLOURS, PARTS, body, sample_people, sample_poses
from posereid.synth.render import SHOT, Camera, cone_depth, render, sample_camera, sample_shots

AT = {k: i for i,k in enumerate(SHOT)}
H,W = 48,24        # of the pictures below; the fine grid has twice as many each way


def shots(n, **kw):
    "Nothing in the way, nothing moved, but for `kw`"
    s = np.zeros((n, len(SHOT)), np.float32)
    for k,v in dict(dict(scale=.9, bright=1.), **kw).items(): s[:,AT[k]] = v
    return s


def camera(size=(H,W), light=(0.,0.,-1.), ambient=1., gain=(1.,1.,1.), grey=.5):
    scene = torch.full((3, round(2.5*size[0]), round(3*size[1])), grey)
    return Camera(scene, torch.tensor(light), ambient, torch.tensor(gain), .1,
                  torch.arange(18.).view(6,3)/18)


# --- the slow renderer ---

def slow(people, angles, shot, h=2*H, w=2*W, n_balls=150):
    "Of one person: for each pixel the depth of the nearest sphere, its part, place along the part, and normal; and the placed points"
    p,ends,radii = body(people, angles)
    p,ends,radii = ({k: v[0].double().numpy() for k,v in p.items()},ends[0].double().numpy(),
                    radii[0].double().numpy())
    phi = float(shot[AT['pitch']])
    # y is down, z away: what is near (z<0) sinks
    turn = np.array([[1,0,0],[0,math.cos(phi),-math.sin(phi)],[0,math.sin(phi),math.cos(phi)]])
    p,ends = {k: turn@v for k,v in p.items()},ends@turn.T
    there = (radii>0).all(1)
    lo = (ends[there][...,:2]-radii[there][...,None]).min((0,1))
    hi = (ends[there][...,:2]+radii[there][...,None]).max((0,1))
    scale = shot[AT['scale']]*h/max(hi[1]-lo[1], .8)
    to = np.array([w*(.5+shot[AT['dx']]), h*(.5+shot[AT['dy']])]) - scale*(lo+hi)/2
    put = lambda v: v*scale + np.array([*to, 0.])
    depth,part = np.full((h,w), np.inf),np.full((h,w), -1)
    along,normal = np.zeros((h,w)),np.zeros((h,w,3))
    yy,xx = np.mgrid[:h,:w]+.5
    for k in np.flatnonzero(there):
        (a,b),(ra,rb) = put(ends[k]),radii[k]*scale
        for t in np.linspace(0, 1, n_balls):
            c,r = a+t*(b-a),ra+t*(rb-ra)
            d2 = r*r-(xx-c[0])**2-(yy-c[1])**2
            z = np.where(d2>0, c[2]-np.sqrt(d2.clip(0)), np.inf)
            new = z<depth-1e-9
            depth[new],part[new] = z[new],k
            q = np.stack([xx, yy, np.where(new, z, 0)], -1)[new]
            normal[new] = (q-c)/r
            along[new] = ((q-a)@(b-a))/max((b-a)@(b-a), 1e-9)
    axes = ('right','up','fwd','headfwd','headup')
    return dict(depth=depth, part=part, along=along, normal=normal, scale=scale,
                axes={k: p[k] for k in axes}, p={k: put(v) for k,v in p.items() if k not in axes})


def dressed(kind, r, y, x):
    "The colour that pixel (y, x) of a slow rendering should have, by its part; -1 for the upper garment, whose pattern is another matter"
    sleeve,lower,hair = (int(kind[i]) for i in (1,2,3))
    name,t,n = PARTS[r['part'][y,x]],r['along'][y,x],r['normal'][y,x]
    skin,hairy,low,shoe,bag = (COLOURS.index(o) for o in ('skin','hair','lower','shoe','bag'))
    limb = name[:-2] if name[-2:] in ('_r','_l') else name
    if limb=='foot': return shoe
    if limb in ('backpack','handbag'): return bag
    if limb=='hair': return hairy
    if limb in ('hand','neck'): return skin
    if limb=='farm' and sleeve==0: return skin
    if limb=='uarm' and sleeve==0 and t>.6: return skin
    if limb in ('pelvis','skirt'): return low
    if limb=='shin': return low if lower==0 else skin
    if limb=='thigh': return low if lower in (0,1) or t<.5 else skin
    if limb=='head':
        front,top = n@r['axes']['headfwd'],n@r['axes']['headup']
        return hairy if hair>0 and (top>.42 or (front<.1 and top>-.45)) else skin
    return -1


@pytest.fixture(scope='module')
def crowd():
    "Eight people in plain clothes and their slow renderings, some looked down upon, some moved, one cut"
    who,ang = sample_people(8, 4),sample_poses(8, 5)
    who.kind[:,0] = 0
    who.kind[:,1] = torch.tensor([0,1]*4)
    who.kind[:,2] = torch.tensor([0,1,2,2,1,0,2,1])
    who.kind[:,3] = torch.tensor([0,1,2,2,1,0,1,2])
    who.kind[:,4] = torch.tensor([0,1,2,0,1,2,0,1])
    s = shots(8)
    s[:,AT['pitch']] = np.array([0,.1,.2,.28,0,.1,.2,.28])
    s[:,AT['dx']] = np.array([0,.1,-.1,0,.05,0,.45,0])
    s[:,AT['dy']] = np.array([0,.05,-.05,.03,0,-.04,0,.3])
    s[:,AT['scale']] = np.array([.9,.8,1.,.7,.9,.9,.9,1.2])
    return who,ang,s,[slow(who[[i]], ang[i:i+1], s[i]) for i in range(8)]


def plain(who, colour=(.8,.5,.3)):
    return replace(who, colours=torch.tensor(colour).expand(len(who), len(COLOURS), 3).clone())


def test_shape_of_a_person(crowd):
    "The share of each pixel that shows the person"
    who,ang,s,want = crowd
    _,_,mask = render(who, ang, [camera()], np.zeros(8, int), s, range(8), (H,W))
    for i in range(8):
        fine = torch.from_numpy(want[i]['part']>=0)[None,None].float()
        d = (mask[i]-F.avg_pool2d(fine, 2)[0,0]).abs()
        assert mask[i].mean()>.05 and d.mean()<.004, i


@pytest.mark.parametrize('light', [(0.,0.,-1.), (.6,-.8,0.), (-.36,-.48,-.8)])
def test_light(crowd, light):
    "Lambert: ambient + (1 − ambient) max(0, n · light), times colour, gain and brightness"
    who,ang,s,want = crowd
    s = s.copy(); s[:,AT['bright']] = np.linspace(.8, 1.1, 8)
    cams = [camera(light=light, ambient=.3, gain=(.9,1.,1.1)), camera(light=light, ambient=.6)]
    at = np.arange(8)%2
    pics,_,mask = render(plain(who), ang, cams, at, s, range(8), (H,W), noise=0.)
    for i in range(8):
        amb,gain = (.3,(.9,1.,1.1)) if at[i]==0 else (.6,(1.,1.,1.))
        lit = amb+(1-amb)*np.clip(want[i]['normal']@np.array(light), 0, None)
        col = np.where((want[i]['part']>=0)[...,None], lit[...,None]*np.array([.8,.5,.3]), .5)
        col = F.avg_pool2d(torch.from_numpy(col).permute(2,0,1)[None],
                           2)[0]*torch.tensor(gain)[:,None,None]*s[i,AT['bright']]
        d = ((col.clamp(0,1)*255)-pics[i]).abs()
        assert d.median()<1 and d.quantile(.97)<6 and d.mean()<1.5, (i, d.mean())


def test_clothes(crowd):
    "In light from everywhere the colours are those of the clothes, part by part; seven greys tell which"
    who,ang,s,want = crowd
    seven = torch.linspace(.05, .95, 7)[None,:,None].expand(8, 7, 3).clone()
    pics,_,_ = render(replace(who, colours=seven), ang, [camera()], np.zeros(8, int), s, range(8),
                      (H,W), noise=0.)
    seen = set()
    for i in range(8):
        part = want[i]['part']
        col = np.full(part.shape, .5)
        for y,x in zip(*np.nonzero(part>=0)):
            k = dressed(who.kind[i], want[i], y, x)
            seen.add((k, PARTS[part[y,x]].split('_')[0]))
            col[y,x] = seven[0,2 if k<0 else k,0]
        d = (F.avg_pool2d(torch.from_numpy(col)[None,None], 2)[0,0]*255-pics[i,0]).abs()
        assert d.median()<1 and (d>4).float().mean()<.02, (i, (d>4).float().mean())
    assert ({COLOURS[k] for k,_ in seen if k>=0}=={'skin','hair','lower','shoe','bag'}
            and {'head','farm','uarm','thigh','shin'}<={o for _,o in seen})


def test_joints_of_a_person(crowd):
    "Where joints lie, and which are behind the body, hidden, or out of the picture"
    who,ang,s,want = crowd
    names = ('nose neck rsho relb rwri lsho lelb lwri rhip rkne rank lhip lkne lank reye leye '
             'rear lear'.split())
    flesh = [.02,.05,.06,.05,.045,.06,.05,.045,.08,.06,.05,.08,.06,.05,.02,.02,.035,.035]
    _,joints,_ = render(who, ang, [camera()], np.zeros(8, int), s, range(8), (H,W))
    cover = shots(8); cover[:] = s
    for k,v in dict(occ_x0=.25, occ_x1=.8, occ_y0=.5, occ_y1=1.).items(): cover[:,AT[k]] = v
    _,hidden,_ = render(who, ang, [camera()], np.zeros(8, int), cover, range(8), (H,W))
    kinds = {0.:0, .5:0, 1.:0, 'out':0}
    for i in range(8):
        for j,k in enumerate(names):
            x,y,z = want[i]['p'][k]
            inside = 0<=x<2*W and 0<=y<2*H
            conf = 0.
            if inside:
                # more than its flesh is in front
                gap = z-1.25*flesh[j]*want[i]['scale'] - want[i]['depth'][int(y),int(x)]
                # too near to tell by spheres
                if abs(gap)<.3: continue
                conf = 1. if gap<0 else 0. if j in (0,14,15,16,17) else .5
            kinds['out' if not inside else conf] += 1
            want_j = [x/2-.5, y/2-.5, conf] if conf else [0,0,0]
            assert joints[i,j].tolist()==pytest.approx(want_j, abs=2e-3), (i,k)
            under = .25*2*W<=x<.8*2*W and y>=H
            assert hidden[i,j].tolist()==pytest.approx([0,0,0] if under else want_j,
                                                       abs=2e-3), (i,k)
    assert all(n>2 for n in kinds.values()), kinds


def test_small_people_are_not_blown_up():
    "A box of less than 0.8 body heights is shown as one of 0.8: who crouches stays small"
    who,ang = sample_people(1, 0),sample_poses(1, 0, rich=False, yaw=np.zeros(1))
    pts,ends,radii = body(who, ang)
    for k,f in ((.5,.5),(1.,None)):
        lo,hi = (ends[...,1]*k-radii*k).min(),(ends[...,1]*k+radii*k).max()
        _,e,r,scale = R._place({o: v*k for o,v in pts.items()}, ends*k, radii*k,
                               torch.from_numpy(shots(1)), 96, 48)
        assert scale.item()==pytest.approx(.9*96/max((hi-lo).item(), .8), rel=1e-5)
        mid = ((e[...,:2]-r[...,None]).amin((1,2))+(e[...,:2]+r[...,None]).amax((1,2)))[0]/2
        assert mid.tolist()==pytest.approx([24,48], abs=1e-3) and torch.allclose(r, radii*k*scale)


# --- rays, parts, patterns ---

def test_cones_of_unlike_ends():
    "Radius 1 at the origin, ½ three to the right: rays through both ends, through the side, past"
    o = torch.tensor([[0.,0.], [3.2,0.], [1.5,0.], [3.6,0.], [0.,1.1], [-.6,.0]])
    a,b = torch.zeros(6,3),torch.tensor([3.,0.,0.]).expand(6,3)
    t,kind = cone_depth(o, a, b, torch.ones(6), torch.full((6,), .5))
    assert (kind[:2].tolist()==[1,2] and t[:2].tolist()==pytest.approx([-1,-math.sqrt(.25-.04)])
            and kind[2]==0 and t[3].isinf() and t[4].isinf() and kind[5]==1
            and t[5].item()==pytest.approx(-.8))
    s = torch.linspace(0, 1, 20001)                # the side: the lowest of all spheres between
    assert t[2].item()==pytest.approx(-((1-.5*s)**2-(1.5-3*s)**2).clamp(min=0).sqrt().max().item(),
                                      abs=1e-5)
    assert cone_depth(o[:1], a[:1]+torch.tensor([0,0,7.]), b[:1]+torch.tensor([0,0,7.]),
                      torch.ones(1), torch.ones(1))[0].item()==pytest.approx(6)


def test_ties_go_to_the_first_part():
    ends = torch.tensor([[[2.,2.,1.],[2.,6.,1.]]]).expand(3,2,3)[None].clone(); ends[0,1,:,2] = 0.
    radii = torch.ones(1,3,2)*1.5; radii[0,1] = 0
    depth,hit = R._cast(ends, radii, 8, 6)
    assert (set(hit['part'].tolist())=={0}
            and depth.isfinite().sum()==len(hit['pix'])==len(hit['pix'].unique()))
    ends[0,1,:,2],radii[0,1] = -1.,1.5                    # nearer: it wins, whatever its place
    assert set(R._cast(ends, radii, 8, 6)[1]['part'].tolist())=={1}
    y,x = np.mgrid[:8,:6]+.5
    near = np.hypot(x-2, y-np.clip(y, 2, 6))<1.5
    assert (depth[0].isfinite().numpy()==near).all()


def test_patterns_by_hand():
    "pattern, right, up, forward → second colour, at a pitch of 0.1"
    cases = [(0,.01,.01,1.,False), (1,.06,.01,0,True), (1,.01,.06,0,False), (1,0,-.02,0,False),
             (1,0,-.09,0,True), (2,.01,.06,0,True), (2,.06,.01,0,False), (2,.044,.06,0,True),
             (2,.046,.01,0,False), (3,.01,.01,0,False), (3,.01,.06,0,True), (3,.06,.06,0,False),
             (4,.04,0,.2,True), (4,-.04,0,.2,True), (4,.05,0,.2,False), (4,.04,0,.1,False),
             (5,.05,.17,-.3,True), (5,.05,.17,-.1,False), (5,.06,.17,-.3,False), (5,0,.22,-.3,True),
             (5,0,.24,-.3,False), (5,0,.1,-.3,False), (6,0,.16,0,True), (6,0,.14,0,False)]
    kind,x,y,f,want = zip(*cases)
    got = R._pattern(torch.tensor(kind), *(torch.tensor(o, dtype=torch.float32) for o in (x,y,f)),
                     torch.full((len(cases),), .1))
    assert got.tolist()==list(want)


def test_hair_on_a_head():
    "Forward and upward part of the normal: the top, and behind the face down to the nape; nothing of a bald head"
    cases = [(1.,.43,True), (1.,.41,False), (.2,0.,False), (.05,0.,True), (.05,-.44,True),
             (.05,-.46,False), (-1.,-.44,True), (-.8,-.5,False)]
    who,n = sample_people(2, 0),len(cases)
    who.kind[:,3] = torch.tensor([0,1])
    f,u,want = zip(*cases)
    for i,hair in enumerate((False,True)):
        hit = dict(part=torch.full((n,), PARTS.index('head')), who=torch.full((n,), i))
        got = R._garment(hit, who, *torch.zeros(3,n), torch.tensor(f), torch.tensor(u),
                         torch.zeros(n))
        assert got.tolist()==[COLOURS.index('hair' if hair and o else 'skin') for o in want]


def test_patterns_lie_on_the_garment():
    "A block shows its second colour above 0.15 body heights; hoops and stripes both of their colours, in rows and in columns"
    # upright, arms down, seen from the front
    who,ang = sample_people(1, 4),np.zeros((1,15), np.float32)
    who.kind[:] = torch.tensor([6,1,0,0,0,0,0])
    two = torch.full((1,7,3), .1); two[0,COLOURS.index('upper2')] = .9
    draw = lambda p,pitch=.1: (render(replace(who, kind=torch.tensor([[p,1,0,0,0,0,0]]),
                                              colours=two, pitch=torch.tensor([pitch])), ang,
                                      [camera()], [0], shots(1), [0], (H,W),
                                      noise=0.)[0][0,0]>190).nonzero()
    r = slow(who, ang, shots(1)[0])
    # row of the hips in the picture
    hips = (r['p']['rhip']+r['p']['lhip'])[1]/4
    line = hips-.15*r['scale']/2
    y = draw(6)[:,0].float()+.5
    assert y.max()<=line+.5 and y.max()>=line-1.5
    hoops,stripes = draw(1, .2),draw(2, .2)
    assert len(hoops)>20 and len(stripes)>20
    assert (len(set(hoops[:,0].tolist()))<20
            and len(set(stripes[:,1].tolist()))<10<len(set(stripes[:,0].tolist())))


# --- what varies ---

def col(s, k): return s[:,AT[k]]


def test_shots_without_jitter():
    s = sample_shots(500, 1, pitch=np.linspace(0, .2, 500), jitter=0., occlusion=0., bright=0.)
    assert ((col(s,'scale')==np.float32(.9)).all() and (col(s,'bright')==1).all()
            and np.allclose(col(s,'pitch'), np.linspace(0, .2, 500)))
    for k in ('dx','dy','sx','sy','occ_x1','occ_y1'): assert (col(s,k)==0).all(), k


def test_shots_are_spread_as_said():
    n = 40000
    s = sample_shots(n, 2)
    # only badly cut boxes are moved so far
    cut = np.abs(col(s,'dy'))>.06+1e-6
    bad = cut | (np.log(col(s,'scale')/.9)>.045*4)
    ok = ~bad
    assert .04<bad.mean()<.06
    assert (np.log(col(s,'scale')[ok]/.9).mean()==pytest.approx(0, abs=.002)
            and np.log(col(s,'scale')[ok]/.9).std()==pytest.approx(.045, rel=.03))
    assert np.log(col(s,'scale')[cut]/.9).mean()==pytest.approx(math.log(1.22), abs=.005)
    assert (col(s,'dy')[cut]>0).mean()==pytest.approx(.7, abs=.04)
    assert (np.median(col(s,'dy')[cut & (col(s,'dy')>0)])==pytest.approx(.1, abs=.005)
            and np.median(col(s,'dy')[cut & (col(s,'dy')<0)])==pytest.approx(-.085, abs=.01))
    assert (col(s,'dx').std()==pytest.approx(.035, rel=.03)
            and np.abs(col(s,'dx')).max()==pytest.approx(.12, abs=1e-6))
    assert col(s,'dy')[ok].std()==pytest.approx(.02, rel=.03)
    for k in ('sx','sy'):
        assert (np.abs(col(s,k)).max()==pytest.approx(.5, abs=.001)
                and col(s,k).std()==pytest.approx(.5/math.sqrt(3), rel=.02))
    assert (np.log(col(s,'bright')).std()==pytest.approx(.06, rel=.03)
            and np.log(sample_shots(n, 2, bright=.2)[:,AT['bright']])
            .std()==pytest.approx(.2, rel=.03))
    assert (abs(np.corrcoef(col(s,'sx'), col(s,'sy'))[0,1])<.02
            and abs(np.corrcoef(col(s,'dx'), col(s,'dy'))[0,1])<.02)
    half = sample_shots(n, 2, jitter=.5)
    assert (half[:,AT['dx']].std()==pytest.approx(.0175, rel=.03)
            and np.abs(half[:,AT['sx']]).max()==pytest.approx(.25, abs=.001))
    ok = np.abs(half[:,AT['dy']])<.05
    assert (half[ok,AT['dy']].std()==pytest.approx(.01, rel=.05)
            and 1-ok.mean()==pytest.approx(.025, abs=.005))


@pytest.mark.parametrize('chance', [0., .12, .5, 1.])
def test_what_stands_in_the_way(chance):
    s = sample_shots(20000, 3, occlusion=chance)
    x0,x1,y0,y1 = (col(s,f'occ_{k}') for k in ('x0','x1','y0','y1'))
    hid = y1>0
    assert hid.mean()==pytest.approx(chance, abs=.01) and ((x1>0)==hid).all() and (y1[hid]==1).all()
    if not chance: return
    low = hid & (x0==0) & (x1==1)
    left,right = hid & ~low & (x0==0),hid & ~low & (x0>0)
    assert (low.sum()/hid.sum()==pytest.approx(.6, abs=.03)
            and left.sum()/(left|right).sum()==pytest.approx(.5, abs=.05))
    assert .55<=y0[low].min() and y0[low].max()<=.8 and .2<=x1[left].min() and x1[left].max()<=.38
    assert (.62<=x0[right].min()<.64 and .78<x0[right].max()<=.8 and (x1[right]==1).all()
            and y0[left|right].max()<=.4)
    assert set(col(s,'occ_kind'))==set(range(6))


def test_cameras():
    cams = [sample_camera([9,i]) for i in range(300)]
    light = torch.stack([o.light for o in cams])
    assert torch.allclose(light.norm(dim=1), torch.ones(300), atol=1e-5)
    # y points down: light comes from above
    high = torch.asin(-light[:,1])
    assert .5<=high.min()<.53 and 1.07<high.max()<=1.1
    side = torch.atan2(light[:,0], -light[:,2])                        # 0: from behind the camera
    assert side.abs().max()<=2.2 and side.min()<-2 and side.max()>2 and abs(side.mean())<.25
    assert all(.5<=o.ambient<=.7 and .03<=o.pitch<=.28 for o in cams)
    gain = torch.stack([o.gain for o in cams]).log()
    assert gain.std().item()==pytest.approx(.06, rel=.1) and gain.mean().abs()<.01
    assert sample_camera(1, cast=0.).gain.tolist()==[1,1,1]
    assert (sample_camera(1, (40,10)).scene.shape==(3,100,30)
            and sample_camera(1).things.shape==(6,3))
    for o in cams[:20]: assert o.scene.min()>=0 and o.scene.max()<=1 and o.scene.std()>.03
    assert not torch.equal(sample_camera(1).scene, sample_camera(2).scene)


def test_the_crop_of_a_scene():
    "The middle of the scene; sx and sy move it by 0.6 of the free margin, each along its own side"
    h,w = 40,20
    scene = torch.stack([torch.arange(50.)[:,None].expand(50,30),
                         torch.arange(30.)[None].expand(50,30), torch.zeros(50,30)])
    cams = [replace(camera(), scene=torch.zeros(3,50,30)), replace(camera(), scene=scene)]
    s = torch.from_numpy(shots(4)); s[1,AT['sy']] = .5; s[2,AT['sx']] = .5; s[3,AT['sx']] = -.5
    got = R._background(cams, torch.tensor([1,1,1,1]), s, h, w)
    # 5·(1 + 0.6·0.5) = 6.5, which rounds to even
    assert got[:,0,0,0].tolist()==[5,6,5,5] and got[:,1,0,0].tolist()==[5,5,6,4]
    assert (got[0,0,-1,0]==44 and got[0,1,0,-1]==24
            and R._background(cams, torch.tensor([0]), s[:1], h, w).max()==0)


def test_background_gain_and_brightness():
    "A corner shows no person: scene × gain × brightness"
    who,ang = sample_people(3, 1),sample_poses(3, 1, rich=False, yaw=np.zeros(3))
    s = shots(3); s[:,AT['bright']] = [1.,.5,1.5]
    cams = [camera(grey=.4, gain=(.5,1.,1.5)), camera(grey=.2)]
    pics,_,mask = render(who, ang, cams, [0,0,1], s, [1,2,3], (H,W), noise=0.)
    assert (mask[:,:2,:2]==0).all()
    for i,want in enumerate(([51,102,153],[25.5,51,76.5],[76.5]*3)):
        assert pics[i,:,0,0].tolist()==pytest.approx(want, abs=.51)


def test_things_in_front():
    "A thing has the colour of its kind and camera, darkens in bands, and takes its pixels away from the person"
    who,ang = sample_people(2, 1),sample_poses(2, 1, rich=False, yaw=np.zeros(2))
    s = shots(2, occ_x0=.25, occ_x1=.75, occ_y0=.5, occ_y1=1., occ_kind=np.array([2.,5.]))
    cams = [camera(), replace(camera(), things=camera().things.flip(0))]
    pics,_,mask = render(who, ang, cams, [0,1], s, range(2), (H,W), noise=0.)
    _,_,free = render(who, ang, cams, [0,1], shots(2), range(2), (H,W))
    box = torch.zeros(H,W, dtype=torch.bool); box[H//2:,W//4:3*W//4] = True
    assert ((mask[:,box]==0).all() and torch.equal(mask[:,~box], free[:,~box])
            and free[:,box].sum()>50)
    y = (np.arange(2*H)+.5)/(2*H)
    shade = (.85+.3*np.cos(40*y)).reshape(H,2).mean(1)[H//2:]
    # kind 5 of the other camera is its first, turned round
    for i,k in enumerate((2,0)):
        colour = np.arange(18).reshape(6,3)[k]/18
        want = (colour[:,None]*shade).clip(0,1)*255
        assert np.abs(pics[i,:,H//2:,W//2].numpy()-want).max()<=1


def test_noise():
    "Each picture's own, by its seed, of the asked spread"
    who,ang = sample_people(3, 1),sample_poses(3, 1, rich=False, yaw=np.zeros(3))[[0,0,0]]
    who = who[[0,0,0]]
    draw = lambda seeds,noise: render(who, ang, [camera()], [0,0,0], shots(3), seeds, (H,W),
                                      noise=noise)[0].float()
    none,a,b = draw([4,4,9], 0.),draw([4,4,9], .05),draw([9,4,4], .05)
    assert (torch.equal(a[0], a[1]) and not torch.equal(a[0], a[2]) and torch.equal(a[2], b[0])
            and torch.equal(a[1], b[2]))
    # above the head: a grey scene
    d = (a-none)[:,:,:6]/255
    assert d.std().item()==pytest.approx(.05, rel=.08) and abs(d.mean())<.01
    assert (draw([1,2,3], .012)-none)[:,:,:6].std().item()==pytest.approx(.012*255, rel=.1)
    plain = render(who, ang, [camera()], [0,0,0], shots(3), [1,2,3], (H,W))[0].float()
    assert torch.equal(plain, draw([1,2,3], .012))                       # 0.012 unless asked
