"Poses against slow and simple doubles: every pixel and shape, every pair of poses by hand"
import math
import pytest, torch
from posereid.core import InputError
from posereid.pose.joints import (FLIP, JOINTS, LIMBS, check_joints, flip_joints, inside,
                                  scale_joints, walking_pose)
from posereid.pose.table import PoseTable, check_poses
from posereid.pose.files import read_market_csv, write_market_csv
from posereid.pose.draw import JOINT_COLORS, LIMB_COLORS, draw_skeletons, heatmaps
from posereid.pose.bank import choose_poses, normalise_joints, pose_coverage, pose_distance

def random_poses(n, size, seed=0, beyond=.3, missing=.2):
    "Joints anywhere, also outside the picture, some of them missing"
    g = torch.Generator().manual_seed(seed)
    h,w = size
    xy = (torch.rand(n, 18, 2, generator=g)*(1+2*beyond)-beyond) * torch.tensor([w,h])
    conf = torch.rand(n, 18, 1, generator=g) * (torch.rand(n, 18, 1, generator=g)>missing)
    return check_joints(torch.cat([xy,conf], -1))

def draw_slowly(kpts, size, width, radius):
    "Each pixel's distance to each shape, by projection on the segment"
    y,x = torch.meshgrid(*(torch.arange(s, dtype=torch.float64) for s in size), indexing='ij')
    u = torch.stack([x,y], -1)
    out = torch.zeros(len(kpts), *size, 3, dtype=torch.float64)
    shapes = ([(i,j,width/2,c) for (i,j),c in zip(LIMBS, LIMB_COLORS)]
              + [(i,i,radius,c) for i,c in enumerate(JOINT_COLORS)])
    for o,pose in zip(out, kpts.double()):
        for i,j,r,color in shapes:
            if pose[i,2]==0 or pose[j,2]==0: continue
            a,d = pose[i,:2], pose[j,:2]-pose[i,:2]
            t = (((u-a)@d)/(d@d).clamp_min(1e-12)).clamp(0,1)
            cover = (r+.5-(u-a-t[...,None]*d).norm(dim=-1)).clamp(0,1)
            torch.maximum(o, cover[...,None]*torch.tensor(color, dtype=torch.float64), out=o)
    return out.permute(0,3,1,2)

@pytest.mark.parametrize('size,width,radius',
                         [((64,32),2.,1.), ((48,48),3.5,4.), ((20,60),1.,0.), ((7,5),6.,2.)])
def test_fast_drawing_is_the_slow_one(size, width, radius):
    kpts = random_poses(12, size)
    fast = draw_skeletons(kpts, size, limb_width=width, joint_radius=radius).double()
    assert (fast-draw_skeletons(kpts, size, limb_width=width, joint_radius=radius)).abs().max()==0
    assert (fast-draw_slowly(kpts, size, width, radius)).abs().max()<.52

def test_walkers_upright_and_degenerate_limbs():
    "Vertical, horizontal, diagonal limbs and limbs without length"
    ends = torch.tensor([[(10,10),(10,30)], [(5,20),(25,20)], [(5,5),(20,20)], [(20,5),(5,20)],
                         [(9,9),(9,9)], [(9.,9.),(9.,9.000001)]])
    kpts = torch.zeros(6,18,3)
    kpts[:,8:10,:2],kpts[:,8:10,2] = ends,1
    assert (draw_skeletons(kpts)-draw_slowly(kpts, (64,32), 2., 1.)).abs().max()<.52

def test_a_batch_is_its_pictures():
    kpts = random_poses(600, (64,32))
    whole = draw_skeletons(kpts)
    for i in (0,15,16,31,32,599): assert (draw_skeletons(kpts[i:i+1])[0]==whole[i]).all()
    assert draw_skeletons(kpts[:0]).shape==(0,3,64,32)

def test_defaults_scale_with_the_picture():
    small,big = (draw_skeletons(walking_pose()),
                 draw_skeletons(walking_pose(size=(256,128)), (256,128)))
    shrunk = torch.nn.functional.avg_pool2d(big.float(), 4)
    assert (shrunk-small).abs().mean()<2

@pytest.mark.parametrize('size', [(64,32),(64,33),(50,50)])
def test_flip(size):
    kpts = random_poses(40, size, seed=1)
    limb = [LIMBS.index((FLIP[i],FLIP[j])) for i,j in LIMBS[:17]]
    swapped = draw_skeletons(kpts, size, colors=torch.tensor(JOINT_COLORS)[list(FLIP)],
                             limb_colors=torch.tensor(LIMB_COLORS)[limb])
    assert ((draw_skeletons(flip_joints(kpts, size[1]), size).int()-swapped.flip(-1).int()).abs()
            .max()<=1)
    maps = heatmaps(kpts, size)[:,list(FLIP)].flip(-1)
    assert torch.allclose(heatmaps(flip_joints(kpts, size[1]), size), maps, atol=1e-5)

def test_missing_joints_never_drawn():
    kpts = random_poses(30, (64,32), missing=0.)
    for j in range(18):
        gone = kpts.clone(); gone[:,j,2] = 0
        moved = gone.clone(); moved[:,j,:2] = torch.tensor([float('nan'),1e9])
        assert (draw_skeletons(gone)==draw_skeletons(moved)).all()
        alone = torch.zeros_like(kpts); alone[:,j] = kpts[:,j]
        seen = draw_skeletons(alone).permute(0,2,3,1).reshape(-1,3).unique(dim=0).float()
        c = torch.tensor(JOINT_COLORS[j]).float()
        assert ((seen-(seen.amax(1)/255)[:,None]*c).abs()<=1).all(), ('a lone joint shows its own '
            'colour only')

def test_far_away_joints_cost_nothing_and_show_nothing():
    kpts = torch.full((3,18,3), 1e7); kpts[...,2] = 1
    assert draw_skeletons(kpts).max()==0
    kpts[:,9,:2] = 10.
    assert draw_skeletons(kpts).max()==255

def test_sizes_of_their_own():
    sizes = torch.tensor([[64,32],[128,64],[100,70]])
    kpts = torch.cat([walking_pose(size=tuple(s.tolist())) for s in sizes])
    got = draw_skeletons(kpts, (96,48), source_size=sizes)
    for i,s in enumerate(sizes):
        assert ((draw_skeletons(kpts[i:i+1], (96,48), source_size=tuple(s.tolist()))[0]==got[i])
                .all())
    assert (heatmaps(kpts, (96,48), source_size=sizes)[0]-heatmaps(kpts[:1], (96,48),
                source_size=(64,32))[0]).abs().max()==0

def test_float_pictures_are_the_bytes():
    kpts = walking_pose(torch.arange(4.))
    assert torch.equal(draw_skeletons(kpts, dtype=torch.float32), draw_skeletons(kpts)/127.5-1)

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_gpu_draws_the_same():
    kpts = random_poses(300, (128,64))
    assert ((draw_skeletons(kpts.cuda(), (128,64)).cpu().int()-draw_skeletons(kpts, (128,64)).int())
            .abs().max()<=1)

def test_heatmaps_against_the_formula():
    kpts = random_poses(3, (20,12))
    maps = heatmaps(kpts, (20,12), sigma=3.)
    for n,j,y,x in ((0,0,0,0),(1,5,19,11),(2,17,7,3),(2,9,10,6)):
        px,py,c = kpts[n,j].tolist()
        assert maps[n,j,y,x].item()==pytest.approx((c>0)*math.exp(-((x-px)**2+(y-py)**2)/18),
                                                   abs=1e-6)

def test_scale_moves_pictures_and_joints_alike():
    "A bright pixel, enlarged threefold, has its centre where the scaled joint is"
    pic = torch.zeros(1,1,8,6); pic[0,0,5,2] = 1
    y,x = (torch.nn.functional.interpolate(pic, scale_factor=3)[0,0].nonzero().float().mean(0)
           .tolist())
    kpts = torch.zeros(1,18,3); kpts[0,0] = torch.tensor([2.,5.,1.])
    assert scale_joints(kpts, (8,6), (24,18))[0,0].tolist()==pytest.approx([x,y,1])
    assert scale_joints(kpts, (8,6), (24,18))[0,1:].abs().max()==0

def test_flip_is_an_involution_and_keeps_missing():
    kpts = random_poses(50, (64,32))
    twice = flip_joints(flip_joints(kpts, 32), 32)
    assert torch.allclose(twice, kpts, atol=1e-4)
    assert torch.equal(flip_joints(kpts, torch.full((50,), 32)), flip_joints(kpts, 32))
    assert (flip_joints(kpts, 32)[:,list(FLIP)][kpts[...,2]==0]==0).all()

def test_inside_edges():
    kpts = torch.zeros(2,18,3)
    kpts[:,0] = torch.tensor([31.4,-.4,1.]); kpts[:,1] = torch.tensor([31.6,3.,1.])
    assert inside(kpts, (64,32))[:,:2].tolist()==[[True,False]]*2
    assert inside(kpts, torch.tensor([[64,32],[64,33]]))[:,1].tolist()==[False,True]

@pytest.mark.parametrize('bad', [torch.zeros(18,3), torch.zeros(2,17,3), torch.zeros(1,18,2),
                                 torch.zeros(0)])
def test_shapes_are_checked(bad):
    with pytest.raises(InputError, match='18, 3'): check_joints(bad)

@pytest.mark.parametrize('plain', [True,False])
def test_files_round_trip(tmp_path, plain):
    kpts = random_poses(40, (128,64), beyond=.1)
    if plain: kpts[...,2] = (kpts[...,2]>0).float()
    names = [f'{i:04d}_c1s1_{i:06d}_00.jpg'+'.jpg'*(i%7==0) for i in range(40)]
    path = tmp_path/'poses.csv'
    write_market_csv(path, PoseTable(names, kpts))
    back = read_market_csv(path)
    assert back.names==names and torch.equal(back.joints, kpts)
    assert (path.read_text()
            .startswith('name:keypoints_y:keypoints_x'+('' if plain else ':keypoints_conf')+'\n'))
    first = path.read_bytes()
    write_market_csv(path, back)
    assert path.read_bytes()==first and [p.name for p in tmp_path.iterdir()]==['poses.csv']

def test_a_joint_at_minus_one_survives(tmp_path):
    kpts = torch.zeros(1,18,3); kpts[0,0] = torch.tensor([-1.,4.,1.])
    write_market_csv(tmp_path/'p.csv', PoseTable(['a.jpg'], kpts))
    assert torch.equal(read_market_csv(tmp_path/'p.csv').joints, kpts)

def test_empty_files(tmp_path):
    write_market_csv(tmp_path/'p.csv', PoseTable([], torch.zeros(0,18,3)))
    table = read_market_csv(tmp_path/'p.csv')
    assert len(table)==0 and table.get(['a.jpg']).shape==(1,18,3)
    with pytest.raises(InputError, match='No pose for a.jpg. '): table['a.jpg']
    check_poses(table, ['a.jpg'], [(64,32)])
    (tmp_path/'e.csv').write_text('')
    with pytest.raises(InputError, match='first line'): read_market_csv(tmp_path/'e.csv')

@pytest.mark.parametrize('row,says', [
    ('a.jpg: [1]', 'expected 3 fields'), ('a.jpg: [1]: [2]', 'keypoints_y must be a list of 18'),
    (f'a.jpg: {[1]*18}: {[1]*17+["x"]}', 'keypoints_x'),
    (f'a.jpg: {[1]*18}: {[1]*19}', 'keypoints_x'),
    (f'a.jpg: {[1]*18}: [{"NaN,"*17} 1]', 'keypoints_x'), (f'a.jpg: {[1]*18}: 7', 'keypoints_x')])
def test_ragged_rows_name_their_line(tmp_path, row, says):
    good = f'b.jpg: {[1]*18}: {[2]*18}'
    (tmp_path/'p.csv').write_text('\n'.join(['name:keypoints_y:keypoints_x', good, row]))
    with pytest.raises(InputError, match=says) as e: read_market_csv(tmp_path/'p.csv')
    assert 'p.csv, line 3' in str(e.value)

def test_binary_file_is_an_input_error(tmp_path):
    (tmp_path/'p.csv').write_bytes(bytes(range(128,256)))
    with pytest.raises(InputError, match='first line'): read_market_csv(tmp_path/'p.csv')
    with pytest.raises(InputError, match='no such'): read_market_csv(tmp_path)

def test_check_poses_counts_and_names():
    kpts = walking_pose(torch.arange(5.)); kpts[3,4,0] = 40.
    table = PoseTable([f'{i}.jpg' for i in range(5)], kpts)
    check_poses(table, [f'{i}.jpg' for i in range(9)])
    with pytest.raises(InputError, match=f'3.jpg: the {JOINTS[4]} at x=40'):
        check_poses(table, table.names, [(64,32)]*5)
    says = '3 of 5 poses name no picture, among them 2.jpg, 3.jpg, 4.jpg'
    with pytest.raises(InputError, match=says): check_poses(table, ['0.jpg','1.jpg'])

def test_choices_are_distinct_uniform_and_nested():
    bank = walking_pose(torch.linspace(0,6,7))
    chosen = choose_poses(7000, bank, n_each=7, seed=3)
    assert (chosen.sort(1).values==torch.arange(7)).all()
    for k in range(1,7):
        assert torch.equal(choose_poses(7000, bank, n_each=k, seed=3), chosen[:,:k])
    for k in range(7): assert (chosen[:,k].bincount(minlength=7)-1000).abs().max()<150
    pairs = (chosen[:,0]*7+chosen[:,1]).bincount(minlength=49).reshape(7,7)
    assert (pairs[~torch.eye(7, dtype=bool)]-7000/42).abs().max()<70
    for n in (1,15,16,17,100): assert torch.equal(choose_poses(n, bank, seed=3), chosen[:n,:2])

def test_choice_leaves_poor_poses_out():
    bank = walking_pose(torch.linspace(0,6,20)); bank[::2,7:,2] = 0
    assert (choose_poses(100, bank)%2==1).all()
    assert (choose_poses(100, bank, min_joints=7)%2==0).any()
    with pytest.raises(InputError, match='different'): choose_poses(1, bank, n_each=11)

def test_pose_distance_by_hand():
    a,b = random_poses(5, (64,32), missing=.3), random_poses(6, (64,32), seed=1, missing=.3)
    got = pose_distance(a, b, min_shared=6)
    na,nb = normalise_joints(a), normalise_joints(b)
    for i in range(5):
        for j in range(6):
            both = (a[i,:,2]>0) & (b[j,:,2]>0)
            want = ((na[i,both,:2]-nb[j,both,:2]).square().sum(-1).mean().sqrt() if both.sum()>=6
                    else float('inf'))
            assert got[i,j].item()==pytest.approx(float(want), abs=1e-3)

def test_coverage_falls_with_every_pose():
    world = walking_pose(torch.linspace(0,6,60), torch.linspace(-1.5,1.5,60))
    values = [pose_coverage(world, world[:n], bs=7) for n in range(1,60,10)]
    assert all(a>=b for a,b in zip(values, values[1:]))
