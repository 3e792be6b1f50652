"Keypoint files of other programs; estimators, interrupted folders, banks and masks"
import json
import sys
import numpy as np
import pytest, torch
from PIL import Image
from posereid.core import InputError
from posereid.pose.bank import (bank_rows, covered_share, diverse_poses, good_poses, pose_coverage,
                                pose_distance, pose_kinds)
from posereid.pose.draw import (JOINT_COLORS, MASK_LIMBS, draw_skeletons, flip_colors, flip_heatmaps,
                                heatmaps, stick_masks)
from posereid.pose.estimate import (BlazePose, KeypointRCNN, KnownPoses, contact_sheet,
                                    estimate_folder, list_pictures_in, make_estimator,
                                    pck, read_picture)
from posereid.pose.table import PoseTable, list_names
from posereid.pose.formats import (from_mediapipe, read_coco, read_fdgan, read_market14,
                                   read_mediapipe, read_openpose)
from posereid.pose.files import FORMATS, find_format, read_poses, write_poses
from posereid.pose.joints import (JOINT_SETS, JOINTS, check_joints, flip_joints, from_openpose,
                                  has_pose, to_openpose, walking_pose)


def random_poses(n, size=(128,64), seed=0, missing=.2):
    g = torch.Generator().manual_seed(seed)
    xy = torch.rand(n, 18, 2, generator=g)*torch.tensor([size[1]-1., size[0]-1.])
    conf = torch.rand(n, 18, 1, generator=g)*(torch.rand(n, 18, 1, generator=g)>missing)
    return check_joints(torch.cat([xy,conf], -1))

def table_of(n=6, **kwargs):
    return PoseTable([f'{i:04d}_c1s1_{i:06d}_00.jpg'+'.jpg'*(i==3) for i in range(n)],
                     random_poses(n, **kwargs))

# --- sets of joints ---

def test_body25_by_its_published_order():
    "OpenPose's own listing of BODY_25"
    theirs = ('Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist MidHip RHip RKnee RAnkle '
              'LHip LKnee LAnkle REye LEye REar LEar LBigToe LSmallToe LHeel RBigToe '
              'RSmallToe RHeel').split()
    short = lambda o: o.replace('right ','R').replace('left ','L').replace(' ','').lower()
    assert [short(o) for o in JOINT_SETS['body25']]==[o.lower() for o in theirs]

def test_mediapipe_by_its_published_numbers():
    at = JOINT_SETS['mediapipe33']
    known = {0:'nose', 2:'left eye', 5:'right eye', 7:'left ear', 8:'right ear', 11:'left shoulder',
             12:'right shoulder', 13:'left elbow', 14:'right elbow',
             15:'left wrist', 16:'right wrist', 23:'left hip', 24:'right hip', 25:'left knee',
             26:'right knee', 27:'left ankle', 28:'right ankle'}
    assert all(at[i]==name for i,name in known.items()) and len(set(at))==33

@pytest.mark.parametrize('kind', list(JOINT_SETS))
def test_sets_keep_what_both_have(kind):
    kpts = random_poses(30, seed=2)
    back = to_openpose(from_openpose(kpts, kind), kind)
    for j,name in enumerate(JOINTS):
        if name in JOINT_SETS[kind]: assert torch.equal(back[:,j], kpts[:,j])
        elif name!='neck': assert back[:,j].abs().max()==0
    assert torch.equal(from_openpose(back, kind),
                       from_openpose(to_openpose(from_openpose(back, kind), kind),
                                     kind)), 'a second round trip changes nothing'

@pytest.mark.parametrize('kind', ['coco17','mediapipe33'])
def test_a_neck_needs_both_shoulders(kind):
    kpts = from_openpose(walking_pose(), kind)
    kpts[0,JOINT_SETS[kind].index('left shoulder'),2] = 0
    assert to_openpose(kpts, kind)[0,1].abs().max()==0

@pytest.mark.parametrize('kind', list(JOINT_SETS))
def test_flip_and_conversion_commute(kind):
    "Left and right are swapped by name in every set"
    names = JOINT_SETS[kind]
    other = [names.index(o.replace('left','?').replace('right','left').replace('?','right'))
             for o in names]
    theirs = from_openpose(walking_pose(.7, size=(128,64)), kind)
    mirrored = theirs[:,other].clone()
    mirrored[...,0] = torch.where(mirrored[...,2]>0, 63-mirrored[...,0], 0)
    assert torch.allclose(to_openpose(mirrored, kind), flip_joints(to_openpose(theirs, kind), 64),
                          atol=1e-4)

# --- round trips ---

@pytest.mark.parametrize('kind', ['market','openpose','body25'])
def test_lossless_formats_are_identities(tmp_path, kind):
    table = table_of()
    table = PoseTable(table.names[:-1]+['odd name é.png'], table.joints)
    assert write_poses(tmp_path/'p', table, kind)=={}
    back = read_poses(tmp_path/'p')
    assert dict(zip(back.names, back.joints.tolist()))==dict(
        zip(table.names, table.joints.tolist()))
    assert [o.name for o in tmp_path.iterdir()]==['p']

def test_coco_keeps_all_but_the_neck(tmp_path):
    table = table_of()
    lost = write_poses(tmp_path/'c.json', table, 'coco')
    back = read_poses(tmp_path/'c.json')
    keep = [j for j in range(18) if j!=1]
    assert back.names==table.names and torch.equal(back.joints[:,keep], table.joints[:,keep])
    assert set(lost)<={'neck put between the shoulders','neck left out','neck added'} and lost
    assert write_poses(tmp_path/'c.json', back, 'coco')=={}, 'what was read back once is kept'

def test_fdgan_keeps_places_and_says_what_not(tmp_path):
    table = table_of()
    lost = write_poses(tmp_path/'f', table, 'fdgan')
    back = read_poses(tmp_path/'f')
    assert back.names==table.names and lost=={'confidence': int((table.joints[...,2]>0).sum())}
    assert (torch.equal(back.joints[...,:2], table.joints[...,:2])
            and torch.equal(back.joints[...,2], (table.joints[...,2]>0).float()))
    assert np.loadtxt(tmp_path/'f'/'0000_c1s1_000000_00.txt').shape==(18,2)
    moved = table.joints.clone(); moved[0,0] = torch.tensor([-3.,5.,1.])
    assert write_poses(tmp_path/'f', PoseTable(table.names, moved),
                       'fdgan')['outside the picture, so missing']==1
    assert not read_poses(tmp_path/'f')[table.names[0]][0].any()

def test_mediapipe_round_trip(tmp_path):
    table = table_of()
    write_poses(tmp_path/'m.json', table, 'mediapipe', sizes=(128,64))
    back = read_poses(tmp_path/'m.json', min_visible=0)
    keep = [j for j in range(18) if j!=1]
    assert torch.allclose(back.joints[:,keep], table.joints[:,keep], atol=1e-4)
    with pytest.raises(InputError, match='sizes'):
        write_poses(tmp_path/'m.json', table, 'mediapipe')

def test_mat_round_trip(tmp_path):
    pytest.importorskip('scipy')
    table = table_of()
    lost = write_poses(tmp_path/'m.mat', table, 'market14')
    back = read_poses(tmp_path/'m.mat', names=table.names)
    assert (torch.allclose(back.joints[:,1:14,:2], table.joints[:,1:14,:2], atol=1e-4)
            and not back.joints[:,[0,14,15,16,17]].any())
    assert lost['names']==6 and lost['confidence']>0
    with pytest.raises(InputError, match='6 poses but there are 5'):
        read_poses(tmp_path/'m.mat', names=table.names[:5])

def test_mat_of_version_73(tmp_path):
    h5py = pytest.importorskip('h5py')
    pp = np.arange(56.).reshape(2,28)+1
    with h5py.File(tmp_path/'m.mat', 'w') as f: f['pp'] = pp
    for o in ('b.jpg','a.jpg'): Image.new('RGB', (4,4)).save(tmp_path/o)
    table = read_market14(tmp_path/'m.mat', tmp_path)
    assert (table.names==['a.jpg','b.jpg'] and table['a.jpg'][1].tolist()==[1.,15.,1.]
            and table['b.jpg'][13].tolist()==[41.,55.,1.])
    with h5py.File(tmp_path/'n.mat', 'w') as f: f['other'] = pp
    with pytest.raises(InputError, match='holds no `pp`'):
        read_market14(tmp_path/'n.mat', ['a.jpg'])
    with h5py.File(tmp_path/'n.mat', 'w') as f: f['pp'] = pp[:,:27]
    with pytest.raises(InputError, match='28 numbers'):
        read_market14(tmp_path/'n.mat', ['a.jpg','b.jpg'])
    (tmp_path/'t.mat').write_bytes((tmp_path/'m.mat').read_bytes()[:700])
    with pytest.raises(InputError, match='t.mat: no whole .mat'):
        read_market14(tmp_path/'t.mat', ['a.jpg','b.jpg'])

def test_library_that_is_not_there(tmp_path, monkeypatch):
    (tmp_path/'m.mat').write_bytes(b'MATLAB 7.3 MAT-file'+b' '*600)
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(InputError, match='pip install h5py'):
        read_market14(tmp_path/'m.mat', ['a.jpg'])

# --- files of others, mutated ---

def openpose(people): return json.dumps(dict(version=1.1, people=people))
def person(k=18, c=.5):
    return dict(pose_keypoints_2d=[10.,20.,c]*k, face_keypoints_2d=[], hand_left_keypoints_2d=[])

@pytest.mark.parametrize('text,says', [
    (openpose([person()])[:-20], 'no whole JSON'), ('', 'no whole JSON'), ('[]', 'people'),
    ('{"people": 3}', 'people'), ('{"people": ["x"]}', 'people'),
    (openpose([person(17)]), '54 or 75 numbers'),
    (openpose([dict(pose_keypoints_2d='x')]), 'but got str'), (openpose([{}]), 'but got NoneType'),
    (openpose([dict(pose_keypoints_2d=['1']*54)]), '54 or 75'),
    (openpose([dict(pose_keypoints_2d=[float('nan')]*54)]), 'not a finite number'),
    (openpose([dict(pose_keypoints_2d=[float('inf'),1.,.5]*18)]),
     'joint 0 is not a finite number')])
def test_mutated_openpose_names_the_file(tmp_path, text, says):
    (tmp_path/'good_keypoints.json').write_text(openpose([person()]))
    (tmp_path/'odd_keypoints.json').write_text(text)
    with pytest.raises(InputError, match=says) as e: read_openpose(tmp_path)
    assert 'odd_keypoints.json' in str(e.value)

def test_openpose_people(tmp_path):
    for name,people in dict(none=[], one=[person()], two=[person(c=.3), person(25, c=.6)]).items():
        (tmp_path/f'{name}_keypoints.json').write_text(openpose(people))
    table = read_poses(tmp_path)
    assert table.notes=={'nobody found':['none.jpg'], 'several people, best taken':['two.jpg']}
    assert not table['none.jpg'].any() and table['two.jpg'][0,2]==pytest.approx(.6)
    with pytest.raises(InputError, match='two_keypoints.json: 2 people'):
        read_poses(tmp_path, people='error')
    with pytest.raises(InputError, match="'best', 'first' or 'error'"):
        read_poses(tmp_path, people='all')
    assert set(read_poses(tmp_path, names=['none.png','one.bmp','two.jpg']).names)=={'none.png',
        'one.bmp','two.jpg'}
    with pytest.raises(InputError, match='extension alone'):
        read_poses(tmp_path, names=['one.png','one.jpg'])

def test_names_in_openpose_files_are_base_names(tmp_path):
    ((tmp_path/'a_keypoints.json')
     .write_text(json.dumps(dict(image='some/where/b.png', people=[person()]))))
    assert read_openpose(tmp_path).names==['b.png']
    (tmp_path/'b_keypoints.json').write_text(json.dumps(dict(image='b.png', people=[])))
    with pytest.raises(InputError, match='b.png has a second file'): read_openpose(tmp_path)

def test_a_missing_joint_may_say_anything(tmp_path):
    ((tmp_path/'a_keypoints.json')
     .write_text(openpose([dict(pose_keypoints_2d=[float('nan'),1.,0.]+[1.,1.,1.]*17)])))
    assert not read_openpose(tmp_path)['a.jpg'][0].any()

def coco(**kwargs): return dict(image_id=1, num_keypoints=3, keypoints=[5.,6.,2]*17, **kwargs)

@pytest.mark.parametrize('data,says', [
    (dict(images=[dict(id=1)], annotations=[]), 'file_name'),
    (dict(images=[], annotations=[coco()]), 'no picture has the id 1'),
    (dict(images=[dict(id=1, file_name='a.jpg')], annotations=[{**coco(), 'keypoints':[1]*52}]),
     'expected 51 or 78'),
    (dict(images=[dict(id=1, file_name='a.jpg')],
          annotations=[{**coco(), 'keypoints':[1.,1.,7]*17}]), 'is 0, 1 or 2'),
    (dict(images=[dict(id=1, file_name='a.jpg')], annotations=['x']), 'expected keypoints'),
    ([dict(keypoints=[1]*51)], 'image_id'),
    (dict(images=3), 'file_name'), (dict(images=[], annotations=3), 'must be a list'),
    ([dict(image_id=[1], keypoints=[1]*51)], 'image_id'), (5, 'file_name'),
    ([dict(image_id='a.jpg', keypoints=[1]*51, keypoint_scores=[1]*3)], '17 numbers'),
    ([dict(image_id='a.jpg', keypoints=[float('nan')]*51)], 'not a finite')])
def test_mutated_coco(tmp_path, data, says):
    (tmp_path/'c.json').write_text(json.dumps(data))
    with pytest.raises(InputError, match=says) as e: read_coco(tmp_path/'c.json')
    assert 'c.json' in str(e.value)

def test_notes_of_two_tables_add_up(tmp_path):
    for o in 'ab': (tmp_path/f'{o}_keypoints.json').write_text(openpose([]))
    a,b = (read_openpose(tmp_path/f'{o}_keypoints.json') for o in 'ab')
    assert (a+b).notes=={'nobody found':['a.jpg','b.jpg']}

def test_coco_results_and_two_people(tmp_path):
    rows = [dict(image_id='dir/a.jpg', score=1., keypoints=[1.,2.,.4]*17),
            dict(image_id='dir/a.jpg', score=.1, keypoints=[3.,4.,.8]*17),
            dict(image_id=12, keypoints=[5.,6.,.5]*17)]
    (tmp_path/'c.json').write_text(json.dumps(rows))
    table = read_poses(tmp_path/'c.json', names=['0012.jpg','0013.jpg'])
    assert (table['a.jpg'][0].tolist()==pytest.approx([3.,4.,.8])
            and table['0012.jpg'][1].tolist()==pytest.approx([5.,6.,.5]))
    assert table.notes=={'several people, best taken':['a.jpg']} and len(table)==2

@pytest.mark.parametrize('text,says', [('1 2\n'*17, '17 lines'), ('', '0 lines'),
                                       ('1;2\n'*18, '18 lines'), ('nan nan\n'*18, 'not a number'),
                                       ('1 2 3\n'*18, '18 lines'), ('a b\n'*18, '18 lines'),
                                       ('1 inf\n'*18, 'not a finite')])
def test_mutated_fdgan(tmp_path, text, says):
    (tmp_path/'a.txt').write_text(text)
    with pytest.raises(InputError, match=says) as e: read_poses(tmp_path)
    assert 'a.txt' in str(e.value)

def test_fdgan_with_commas_and_nobody(tmp_path):
    (tmp_path/'a.txt').write_text('1, 2\n'*18); (tmp_path/'b.txt').write_text('-1 -1\n'*18)
    table = read_fdgan(tmp_path)
    assert table['a.jpg'][3].tolist()==[2.,1.,1.] and table.notes=={'nobody found':['b.jpg']}

@pytest.mark.parametrize('sep', [';','\t',','])
def test_csv_with_other_separators(tmp_path, sep):
    (tmp_path/'p.csv').write_text(sep.join(['name','keypoints_y','keypoints_x'])+'\n')
    with pytest.raises(InputError, match='fields stand between colons') as e:
        read_poses(tmp_path/'p.csv')
    assert 'p.csv' in str(e.value)

@pytest.mark.parametrize('entry,says', [(dict(file_name='a.jpg'), 'expected file_name'),
    (dict(file_name='a.jpg', height=1, width=1, pose_landmarks=[dict(x=0,y=0)]*5), '33 landmarks'),
    (dict(file_name='a.jpg', height=1, width=1, pose_landmarks=[dict(x=0)]*33), 'x and y'),
    (dict(file_name='a.jpg', height=1, width=1, pose_landmarks=[[0,0,0,1]]*33),
     '33 landmarks but found 4'), (3, 'expected file_name'),
    (dict(file_name='a.jpg', height=1, width=1, pose_landmarks=[dict(x=float('nan'),y=0)]*33),
     'not a finite')])
def test_mutated_mediapipe(tmp_path, entry, says):
    (tmp_path/'m.json').write_text(json.dumps([entry]))
    with pytest.raises(InputError, match=says): read_mediapipe(tmp_path/'m.json')

def test_formats_are_found_or_refused(tmp_path):
    for kind in ('market','openpose','coco','fdgan','mediapipe'):
        write_poses(tmp_path/kind, table_of(), kind, sizes=(128,64))
        assert find_format(tmp_path/kind)==kind
    (tmp_path/'x.bin').write_bytes(bytes(range(256)))
    (tmp_path/'none').mkdir()
    (tmp_path/'none'/'x.bin').touch()
    (tmp_path/'x.json').write_text('{"a": 1}')
    for o in ('x.bin','none','x.json'):
        with pytest.raises(InputError, match='market .*; openpose .*; coco .*; name one with') as e:
            read_poses(tmp_path/o)
        assert o in str(e.value)
    with pytest.raises(InputError, match='no such'): read_poses(tmp_path/'gone')
    with pytest.raises(InputError, match="no format 'yaml'"): read_poses(tmp_path/'market', 'yaml')
    with pytest.raises(InputError, match="no format 'yaml' to write"):
        write_poses(tmp_path/'y', table_of(), 'yaml')
    with pytest.raises(InputError, match='no such folder'): list_names(tmp_path/'gone')
    assert (read_poses(tmp_path/'market', 'market').names==table_of().names
            and set(FORMATS)>{'market'})

def test_a_failed_write_leaves_the_old_files(tmp_path):
    write_poses(tmp_path/'p', table_of(), 'openpose')
    before = {o.name: o.read_bytes() for o in (tmp_path/'p').iterdir()}
    with pytest.raises(InputError, match='extension alone'):
        write_poses(tmp_path/'p', PoseTable(['a.jpg','a.png'], random_poses(2)), 'openpose')
    assert {o.name: o.read_bytes() for o in (tmp_path/'p').iterdir()}==before

# --- drawing ---

def test_masks_against_distances_and_a_slow_closing():
    kpts = random_poses(3, (40,24), seed=5)
    got = stick_masks(kpts, (40,24), radius=2., close=0)
    y,x = torch.meshgrid(torch.arange(40.), torch.arange(24.), indexing='ij')
    for m,k in zip(got, kpts):
        want = torch.zeros(40,24)
        for i,j in [*MASK_LIMBS, *((i,i) for i in range(18))]:
            if not (k[i,2]>0 and k[j,2]>0): continue
            a,d = k[i,:2], k[j,:2]-k[i,:2]
            t = (((x-a[0])*d[0]+(y-a[1])*d[1])/(d@d).clamp_min(1e-9)).clamp(0,1)
            want = want.maximum((2.5-torch.hypot(x-a[0]-t*d[0], y-a[1]-t*d[1])).clamp(0,1))
        assert (m[0]-want).abs().max()<.01
    closed, c = stick_masks(kpts, (40,24), radius=2., close=3), 3
    big = torch.nn.functional.max_pool2d(got, c, 1, 1)
    want = -torch.nn.functional.max_pool2d(torch.nn.functional.pad(-big, (1,1,1,1), value=-1.), c,
                                           1)
    assert (closed-want).abs().max()<1e-6 and (closed>=got).all()

def test_masks_flip_and_batches():
    kpts = walking_pose(torch.linspace(0,6,300), torch.linspace(-1,1,300), (128,64))
    m = stick_masks(kpts, (64,32), source_size=(128,64))
    assert (m.shape==(300,1,64,32)
            and torch.equal(m[17:18], stick_masks(kpts[17:18], (64,32), source_size=(128,64))))
    # an even square closes to one side
    assert ((stick_masks(flip_joints(kpts, 64), (64,32), source_size=(128,64))-m.flip(-1)).abs()
            .max()<.2)
    assert stick_masks(kpts[:0]).shape==(0,1,64,32)

def test_flip_everywhere():
    kpts = random_poses(20, (64,32), seed=3)
    colors,limbs = flip_colors()
    assert (draw_skeletons(flip_joints(kpts, 32)).int()
            -draw_skeletons(kpts, colors=colors, limb_colors=limbs).flip(-1).int()).abs().max()<=1
    again = flip_colors(*flip_colors())
    assert torch.equal(again[0], torch.tensor(JOINT_COLORS).float()) and torch.allclose(again[1],
        .6*torch.tensor(JOINT_COLORS[:17]).float())
    assert torch.allclose(flip_heatmaps(heatmaps(kpts)), heatmaps(flip_joints(kpts, 32)), atol=1e-5)
    assert torch.equal(flip_heatmaps(flip_heatmaps(heatmaps(kpts))), heatmaps(kpts))

# --- bank ---

def test_farthest_points_by_hand():
    bank = walking_pose(torch.linspace(0,6,40), torch.linspace(-1.5,1.5,40))
    rows,d = diverse_poses(bank, 6, seed=4).tolist(), pose_distance(bank, bank)
    for n in range(1,6):
        assert d[:,rows[:n]].amin(1)[rows[n]]==pytest.approx(d[:,rows[:n]].amin(1).max().item(),
            abs=1e-4)

@pytest.mark.parametrize('method', ['farthest','cluster'])
def test_diverse_banks(method):
    bank = torch.cat([walking_pose(torch.rand(190, generator=torch.Generator().manual_seed(0)), 1.),
                      walking_pose(torch.linspace(0,6,10), torch.linspace(-1.5,.5,10))])
    rows = bank_rows(bank, 12, method)
    assert len(rows.unique())==12 and torch.equal(rows, bank_rows(bank, 12, method))
    uniform = [pose_coverage(bank, bank[bank_rows(bank, 12, seed=s)]) for s in range(5)]
    assert (pose_coverage(bank, bank[rows])<min(uniform)+.02
            and covered_share(bank, bank[rows])>=covered_share(bank, bank[bank_rows(bank, 12)]))
    assert sorted(diverse_poses(bank[:7], 7, method).tolist())==list(range(7))
    for n in (0,8):
        with pytest.raises(InputError, match='between 1 and 7'): diverse_poses(bank[:7], n, method)

def test_clusters_with_poses_that_cannot_be_compared():
    bank = torch.cat([walking_pose(torch.linspace(0,6,8)), torch.zeros(4,18,3)])
    for method in ('farthest','cluster'): assert len(diverse_poses(bank, 12, method).unique())==12
    assert set(diverse_poses(bank, 5, seed=1).tolist())&set(range(8))

def test_good_poses_one_reason_at_a_time():
    kpts = walking_pose(torch.arange(6.))
    kpts[0,4:8,2] = 0
    kpts[1,2,2] = 0
    kpts[2,...,2] = .1
    kpts[3,9:11,1] = kpts[3,12:14,1] = 2.
    kpts[4] = 0
    assert good_poses(kpts, min_joints=15, min_confidence=.5).tolist()==[False]*5+[True]
    assert good_poses(kpts, upright=False).tolist()==[False,False,True,True,False,True]

def test_kinds_between_one_and_all():
    kinds = walking_pose(torch.linspace(0,6,5), torch.linspace(-1.5,1.5,5))
    assert pose_kinds(kinds, kinds)==pytest.approx(5, abs=1e-3) and pose_kinds(kinds[:0], kinds)==0
    assert 1<pose_kinds(torch.cat([kinds[:1]]*9+[kinds[1:2]]), kinds)<2

# --- estimators ---

def landmark_model(path, points, flag=.9, side=256):
    "A .tflite file with the same answer for every picture: its mean, times nothing, plus a constant"
    s = pytest.importorskip('ai_edge_litert.schema_py_generated')
    flatbuffers = pytest.importorskip('flatbuffers')
    buffers,tensors = [s.BufferT()],[]
    def tensor(name, shape, data=None, kind=0):
        b = s.BufferT()
        b.data = None if data is None else np.frombuffer(data.tobytes(), np.uint8)
        buffers.append(b)
        t = s.TensorT()
        t.name,t.shape,t.type,t.buffer = name,np.array(shape, np.int32),kind,len(buffers)-1
        tensors.append(t)
        return len(tensors)-1
    f32 = lambda a: np.asarray(a, np.float32)
    pic,axes,mean = (tensor('in', [1,side,side,3]),
                     tensor('axes', [2], np.array([1,2], np.int32), 2), tensor('mean', [1,3]))
    outs = [(tensor(f'w{n}', [n,3], f32(np.zeros((n,3)))), tensor(f'b{n}', [n], f32(v)),
             tensor(f'out{n}', [1,n])) for n,v in ((195,points),(1,[flag]))]
    def op(code, ins, out, kind, options):
        o = s.OperatorT()
        o.opcodeIndex,o.inputs,o.outputs,o.builtinOptionsType,o.builtinOptions = (code,
            np.array(ins, np.int32),np.array([out], np.int32),kind,options)
        return o
    g,m,codes = s.SubGraphT(), s.ModelT(), []
    for builtin in (s.BuiltinOperator.MEAN, s.BuiltinOperator.FULLY_CONNECTED):
        c = s.OperatorCodeT()
        c.builtinCode = c.deprecatedBuiltinCode = builtin
        c.version = 1
        codes.append(c)
    g.tensors,g.inputs,g.outputs = (tensors, np.array([pic], np.int32),
                                    np.array([o for *_,o in outs], np.int32))
    g.operators = [op(0, [pic,axes], mean, s.BuiltinOptions.ReducerOptions, s.ReducerOptionsT())]
    g.operators += [op(1, [mean,w,b], o, s.BuiltinOptions.FullyConnectedOptions,
                       s.FullyConnectedOptionsT()) for w,b,o in outs]
    m.version,m.operatorCodes,m.subgraphs,m.buffers,m.description = 3,codes,[g],buffers,'test'
    builder = flatbuffers.Builder(4096)
    builder.Finish(m.Pack(builder), b'TFL3')
    path.write_bytes(bytes(builder.Output()))

def test_blazepose_runs_a_model_file(tmp_path):
    points = np.zeros((39,5)); points[:,0],points[:,1],points[:,3],points[:,4] = 128.,64.,2.,9.
    points[0,4] = -9.
    landmark_model(tmp_path/'m.tflite', points.ravel())
    net = BlazePose(tmp_path/'m.tflite')
    k = net([torch.zeros(3,128,64, dtype=torch.uint8), torch.zeros(3,64,128, dtype=torch.uint8)],
            ['a','b'])
    assert k.shape==(2,18,3) and not k[0,0].any() and 'margin=1.25' in str(net)
    assert (k[0,5].tolist()==pytest.approx([31.5, 23.85, .8808], abs=.1)
            and k[1,5].tolist()==pytest.approx([63.5,-8.5,.8808], abs=.5))
    landmark_model(tmp_path/'n.tflite', points.ravel(), flag=.1)
    assert not BlazePose(tmp_path/'n.tflite')([torch.zeros(3,9,9, dtype=torch.uint8)], ['a']).any()
    (tmp_path/'bad.tflite').write_bytes(b'no model at all')
    with pytest.raises(InputError, match='bad.tflite'): BlazePose(tmp_path/'bad.tflite')

def test_blazepose_without_its_package(tmp_path, monkeypatch):
    (tmp_path/'m.tflite').write_bytes(b'x')
    monkeypatch.setitem(sys.modules, 'ai_edge_litert', None)
    monkeypatch.setitem(sys.modules, 'ai_edge_litert.interpreter', None)
    with pytest.raises(InputError, match='pip install ai-edge-litert'):
        BlazePose(tmp_path/'m.tflite')

def test_keypoint_rcnn_says_which_file_and_where(tmp_path, monkeypatch):
    import urllib.error
    def refuse(*args, **kwargs): raise urllib.error.URLError('no network')
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', refuse)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(InputError, match='keypointrcnn_resnet50_fpn_coco-fc266e95.pth') as e:
        KeypointRCNN()
    assert str(tmp_path/'hub'/'checkpoints') in str(e.value)
    (tmp_path/'w.pth').write_bytes(b'nothing')
    with pytest.raises(InputError, match='w.pth: these are no whole weights'):
        KeypointRCNN(tmp_path/'w.pth')

def test_keypoint_rcnn_decodes_nobody_and_the_best():
    net = KeypointRCNN.__new__(KeypointRCNN); net.min_person,net.min_score = .5,.5
    nobody = dict(scores=torch.zeros(0), keypoints=torch.zeros(0,17,3),
                  keypoints_scores=torch.zeros(0,17))
    assert not net.decode(nobody).any()
    assert not net.decode(dict(scores=torch.tensor([.4]), keypoints=torch.ones(1,17,3),
                               keypoints_scores=torch.ones(1,17))).any()

def people(root, n=7):
    root.mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.new('RGB', (20+i,40), (i,0,0)).save(root/f'{i}.png')
    return PoseTable([f'{i}.png' for i in range(n)], random_poses(n, (40,20)))

def test_a_truncated_part_file_goes_on(tmp_path):
    table = people(tmp_path/'p')
    seen = []
    class Est:
        def __call__(self, pictures, names):
            seen.extend(names)
            if len(seen)==6: raise KeyboardInterrupt
            return table.get(names)
        def __repr__(self): return 'Est'
    out = tmp_path/'o.csv'
    with pytest.raises(KeyboardInterrupt): estimate_folder(tmp_path/'p', out, Est(), batch=2)
    part = tmp_path/'o.csv.part'
    # the power went off while the fourth row was written
    part.write_text(part.read_text()[:-9])
    got = estimate_folder(tmp_path/'p', out, Est(), batch=2)
    assert (seen==['0.png','1.png','2.png','3.png','4.png','5.png','3.png','4.png','5.png','6.png']
            and torch.equal(got.get(table.names), table.joints))
    assert torch.equal(read_poses(out).get(table.names), table.joints) and not part.exists()
    info = json.loads((tmp_path/'o.csv.json').read_text())
    assert info['estimator']=='Est' and info['done'] and info['pictures']==7
    assert Image.open(tmp_path/'o.png').size[1]>100
    n = len(seen); estimate_folder(tmp_path/'p', out, Est()); assert len(seen)==n
    Image.new('RGB', (8,8)).save(tmp_path/'p'/'new.png')
    assert (has_pose(estimate_folder(tmp_path/'p', out, Est()).get(['new.png','0.png']))
            .tolist()==[False,True] and seen[n:]==['new.png'])

def test_uninterrupted_is_resumed(tmp_path):
    table = people(tmp_path/'p')
    a,b = (estimate_folder(tmp_path/'p', tmp_path/f'{n}.csv', KnownPoses(table), batch=n)
           for n in (1,5))
    assert (torch.equal(a.joints, b.joints)
            and (tmp_path/'1.csv').read_bytes()==(tmp_path/'5.csv').read_bytes())

def test_folders_and_names(tmp_path):
    people(tmp_path/'r'/'a'); people(tmp_path/'r'/'b')
    assert list(list_pictures_in(tmp_path/'r'))==[f'{d}/{i}.png' for d in 'ab' for i in range(7)]
    assert len(list_pictures_in(tmp_path/'r', ['a']))==7
    with pytest.raises(InputError, match='no folder c; it has a, b'):
        list_pictures_in(tmp_path/'r', ['c'])
    (tmp_path/'e').mkdir()
    with pytest.raises(InputError, match='no pictures'): list_pictures_in(tmp_path/'e')
    with pytest.raises(InputError, match='no such folder'): list_pictures_in(tmp_path/'x')

def test_estimators_by_name(tmp_path):
    table = people(tmp_path/'p')
    write_poses(tmp_path/'fd', table, 'fdgan')
    est = make_estimator('known', tmp_path/'fd', table.names)
    assert str(est)=='KnownPoses(7, fd)' and torch.equal(est(None, table.names)[...,:2],
        table.joints[...,:2])
    with pytest.raises(InputError, match="no estimator 'x'"): make_estimator('x')
    with pytest.raises(InputError, match='needs a file: poses'): make_estimator('known')
    with pytest.raises(InputError, match='no such file'): make_estimator('rcnn', tmp_path/'w.pth')

def test_an_estimator_that_miscounts(tmp_path):
    people(tmp_path/'p')
    with pytest.raises(InputError, match='gave 1 poses for 7'):
        estimate_folder(tmp_path/'p', tmp_path/'o.csv', lambda p,n: torch.zeros(1,18,3))

def test_a_file_of_somebody_else_is_not_overwritten(tmp_path):
    table = people(tmp_path/'p'); (tmp_path/'o.csv').write_text('mine')
    with pytest.raises(InputError, match='was not made here'):
        estimate_folder(tmp_path/'p', tmp_path/'o.csv', KnownPoses(table))
    assert (tmp_path/'o.csv').read_text()=='mine'

def test_odd_pictures_are_read(tmp_path):
    Image.new('CMYK', (6,4), (0,255,255,0)).save(tmp_path/'c.jpg')
    Image.fromarray(np.full((4,6), 65535, np.uint16)).save(tmp_path/'d.png')
    Image.new('RGB', (1,1)).save(tmp_path/'e.png')
    Image.new('L', (3,2), 7).save(tmp_path/'g.png')
    Image.new('P', (3,2)).save(tmp_path/'p.png')
    red = read_picture(tmp_path/'c.jpg')
    assert red.shape==(3,4,6) and red[0].min()>200 and red[1].max()<60
    assert (read_picture(tmp_path/'d.png').min()==255 and read_picture(tmp_path/'e.png')
            .shape==(3,1,1) and read_picture(tmp_path/'g.png').unique().tolist()==[7])
    (tmp_path/'t.jpg').write_bytes((tmp_path/'c.jpg').read_bytes()[:80])
    with pytest.raises(InputError, match='t.jpg'): read_picture(tmp_path/'t.jpg')
    assert contact_sheet([read_picture(tmp_path/'e.png'), red], torch.zeros(2,18,3)).height==132

def test_pck_by_hand():
    known = walking_pose(torch.arange(5.), size=(128,64)); est = random_poses(5, seed=9)
    known[4,1,2] = 0
    for wrong in (True,False):
        got = pck(est, known, .5, wrong)
        for j,name in enumerate(JOINTS):
            hits,asked = 0,0
            for e,k in zip(est[:4], known[:4]):
                trunk = (k[1,:2]-(k[8,:2]+k[11,:2])/2).norm()
                there = e[j,2]>0
                asked += bool(wrong or there)
                hits += bool(there and (e[j,:2]-k[j,:2]).norm()<=.5*trunk)
            assert got['joints'][name]==pytest.approx(100*hits/asked)
        assert (got['n'],got['left_out'])==(4,1)
    with pytest.raises(InputError, match='one order'): pck(est, known[:3])

def test_letterbox_of_any_shape():
    from posereid.pose.estimate import _letterbox
    for h,w in ((1,1),(3,300),(128,64)):
        assert (_letterbox(torch.full((3,h,w), 255, dtype=torch.uint8), max(h,w)*1.25, 64)
                .shape==(3,64,64))
    assert from_mediapipe(torch.zeros(2,33,4), torch.tensor([[10,20],[30,40]])).shape==(2,18,3)
