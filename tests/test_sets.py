"Toy sets: their form, by eyes that know the real one, and whose joints a keypoint file gives to whom"
import csv, os, re
from collections import Counter, defaultdict
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from posereid.core import InputError, cache_dir
from posereid.data.market import read_market
from posereid.data.mars import read_mars
from posereid.pose.table import PoseTable
from posereid.pose.files import read_market_csv
from posereid.synth import sets as toys
from posereid.synth.sets import toy_sets, write_duke, write_folders, write_msmt17, write_own
from posereid.synth.world import tiny_world

FOLDERS = ['Market-1501','DukeMTMC-reID','cuhk03-np','MARS','MSMT17_V1','MSMT17_V2','folders',
           'folders_cam','own']
BY_PATH = {'cuhk03-np','folders','folders_cam'}
NO_PICTURE = ('.csv','.json','.txt','.mat')


def pixels(path):
    with Image.open(path) as im: return im.size, im.convert('RGB').tobytes()


@pytest.fixture(scope='module', params=[0,1])
def made(request):
    "Folder of a world's toy sets, and its own pictures: pixels → row and joints"
    root,truth = tiny_world(request.param),{}
    for kind,df in (('target', read_market(root/'target')), ('source', read_mars(root/'source'))):
        poses = read_market_csv(root/f'{kind}_poses.csv')
        for r in df.itertuples(): truth[pixels(r.path)] = (r, poses[os.path.basename(r.path)])
    return toy_sets(request.param), truth


def pictures(root):
    "Paths below `root`, as text"
    return sorted(p.relative_to(root).as_posix() for p in root.rglob('*')
                  if p.is_file() and not p.name.endswith(NO_PICTURE))


def pose_file(sets, folder):
    return sets/'own'/'own_poses.csv' if folder=='own' else sets/f'{folder}_poses.csv'


# --- keypoints ---

@pytest.mark.parametrize('folder', FOLDERS)
def test_each_pose_is_that_of_its_picture(made, folder):
    sets,truth = made
    poses,names = read_market_csv(pose_file(sets, folder)), pictures(sets/folder)
    key = (lambda n: n) if folder in BY_PATH else os.path.basename
    assert sorted(poses.names)==sorted(map(key, names))
    for n in names: assert torch.equal(poses[key(n)], truth[pixels(sets/folder/n)][1]), n
    assert len(names)<=220 and (poses.joints[...,2]>0).any(1).all()


def test_names_repeat_just_where_poses_go_by_path(made):
    for folder in FOLDERS:
        most = max(Counter(map(os.path.basename, pictures(made[0]/folder))).values())
        assert (most>1)==(folder in BY_PATH), folder


def test_poses_of_the_raw_file(made):
    "A name of cuhk-03.mat is one picture in both sets of boxes"
    h5py = pytest.importorskip('h5py')
    sets,truth = made
    poses,seen = read_market_csv(sets/'cuhk03_poses.csv'), set()
    with h5py.File(sets/'cuhk03'/'cuhk03_release'/'cuhk-03.mat') as f:
        for boxes in ('labeled','detected'):
            for pair in range(5):
                cells = f[f[boxes][0,pair]]
                for slot,person in np.ndindex(*cells.shape):
                    x = f[cells[slot,person]][:].T
                    if x.ndim<3: continue
                    name = f'{pair+1}_{person+1:03d}_{1+slot//5}_{slot+1:02d}.png'
                    seen.add(name)
                    src = (x.shape[1],x.shape[0]), np.ascontiguousarray(x).tobytes()
                    assert torch.equal(poses[name], truth[src][1]), name
    assert seen=={*poses.names} and all(re.fullmatch('[1-5]_[0-9]{3}_[12]_[0-9]{2}.png', o)
                                        for o in seen)


def test_without_poses_no_file_is_written(tmp_path):
    target = tiny_world()/'target'
    for f,name in ((write_duke,'d'), (write_msmt17,'m'), (write_folders,'f'), (write_own,'o')):
        f(target, tmp_path/name)
    assert not [*tmp_path.rglob('*_poses.csv')] and sorted(os.listdir(tmp_path))==['d','f','m','o']


# --- MSMT17 ---

def lists(root):
    return {o: [l.rsplit(' ', 1) for l in (root/f'list_{o}.txt').read_text().splitlines()]
            for o in ('train','val','query','gallery')}


@pytest.mark.parametrize('folder,homes', [('MSMT17_V1', ('train','test')),
                                          ('MSMT17_V2', ('mask_train_v2','mask_test_v2'))])
def test_msmt17(made, folder, homes):
    sets,truth = made
    root,people = sets/folder, {}
    have = lists(root)
    for kind,rows in have.items():
        home = homes[kind in ('query','gallery')]
        for path,who in rows:
            m = re.fullmatch(
                r'(\d{4})/(\d{4})_(\d{3})_(\d{2})_0303(?:morning|afternoon)_(\d{4})_\d\.jpg', path)
            assert m and m[1]==m[2]==f'{int(who):04d}', path
            src = truth[pixels(root/home/path)][0]
            assert (int(m[4])==(None, 1, 3, 7, 10, 12, 15)[src.camid]
                    and src.split==('train' if kind=='val' else kind))
            assert people.setdefault((home, int(who)), src.pid)==src.pid
    assert (sorted(w for h,w in people if h==homes[0])==list(range(10))
            and sorted(w for h,w in people if h==homes[1])==list(range(8)))
    assert len({*people.values()})==18  # the numbers of the halves mean other people
    on_disk = {f'{homes[k in ("query","gallery")]}/{p}' for k,rows in have.items() for p,_ in rows}
    assert on_disk=={*pictures(root)} and sum(map(len, have.values()))==len(on_disk)
    cams = {p.split('_')[2] for p,_ in sum(have.values(), [])}
    assert {'01','10','12','15'}<=cams


def test_msmt17_lists_can_be_used(made):
    have = lists(made[0]/'MSMT17_V1')
    assert have==lists(made[0]/'MSMT17_V2')
    cam = lambda p: p.split('_')[2]
    assert min(Counter(w for _,w in have['train']).values())>=2
    assert Counter(w for _,w in have['val'])==dict.fromkeys({w for _,w in have['train']}, 1)
    shots = {w: max(p for p,v in have['train'] if v==w) for _,w in have['val']}
    assert all(p>shots[w] for p,w in have['val'])  # the last picture of each person
    for p,w in have['query']: assert any(w==v and cam(p)!=cam(g) for g,v in have['gallery'])
    with pytest.raises(InputError, match='versions 1 and 2'):
        write_msmt17(tiny_world()/'target', 'x', 3)


# --- a folder a person ---

@pytest.mark.parametrize('folder,name',
                         [('folders', r'()(\d+)\.jpg'), ('folders_cam', r'c(\d+)_(\d+)\.jpg')])
def test_a_folder_a_person(made, folder, name):
    sets,truth = made
    numbers,cams,who = defaultdict(list), defaultdict(set), {}
    for n in pictures(sets/folder):
        split,person,base = n.split('/')
        m,src = re.fullmatch(name, base), truth[pixels(sets/folder/n)][0]
        assert m and split==src.split and who.setdefault(person, src.pid)==src.pid and src.pid>0
        assert not m[1] or int(m[1])==src.camid
        numbers[split,person].append(int(m[2])); cams[split,person].add(src.camid)
    for k,v in numbers.items(): assert sorted(v)==list(range(len(v))), k
    assert len({*who.values()})==len(who)==18 and 'Anna B' in who
    assert all(len(v)>=2 for (s,_),v in numbers.items() if s=='train')
    for split,person in numbers:
        if split=='query': assert cams['gallery',person]-cams['query',person]


# --- a table of one's own ---

def test_a_table_of_ones_own(made):
    sets,truth = made
    with open(sets/'own'/'own.csv', encoding='utf-8', newline='') as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0])==['path','pid','camid','split'] and [r['path'] for r in rows]!=[]
    assert (sorted(r['path'] for r in rows)==pictures(sets/'own')
            and not any(':' in r['path'] for r in rows))
    who,seen = {}, defaultdict(set)
    for r in rows:
        src = truth[pixels(sets/'own'/r['path'])][0]
        assert (int(r['camid'])==(None, 1, 4, 9, 10, 17, 23)[src.camid] and r['split']==src.split
                and src.pid>0)
        assert who.setdefault(int(r['pid']), src.pid)==src.pid
        seen[r['split'],int(r['pid'])].add(int(r['camid']))
    assert len({*who.values()})==len(who)==18 and max(c for o in seen.values() for c in o)==23
    train,test = ({p for s,p in seen if (s=='train')==o} for o in (True,False))
    assert {0,-7,1000003}<=train and {-1,4000000000,12}<=test and not train & test
    for s,p in seen:
        if s=='query': assert seen['gallery',p]-seen['query',p]


def test_pictures_of_any_name_and_kind(made):
    names = pictures(made[0]/'own')
    kinds = defaultdict(set)
    for n in names:
        with Image.open(made[0]/'own'/n) as im:
            kinds[Path(n).suffix.lower() if '.' in os.path.basename(n) else ''].add(im.format)
    assert {k: v for k,v in kinds.items() if k in ('','.jpg','.png','.webp')}=={'':{'JPEG'},
        '.jpg':{'JPEG'}, '.png':{'PNG'}, '.webp':{'WEBP'}}
    base = list(map(os.path.basename, names))
    assert (any(' ' in o for o in base) and any('ß' in o for o in base)
            and any(o.count('.')>2 for o in base))


# --- the cache ---

def test_older_sets_are_not_taken(monkeypatch, tmp_path):
    "Sets in the cache under the key of older code stay where they are, and new ones are made beside them"
    monkeypatch.setenv('POSEREID_CACHE', str(tmp_path))
    world = tiny_world().root.name.removeprefix('world-')
    (cache_dir()/f'sets-{world}').mkdir()
    now = toy_sets()
    assert (now.parent==cache_dir() and (now/'MSMT17_V2').is_dir()
            and not [*(cache_dir()/f'sets-{world}').iterdir()])
    monkeypatch.setattr(toys, 'LAID', toys.LAID+1)
    assert toy_sets()!=now and toy_sets(0).is_dir()


def test_nothing_but_the_sets_lies_there(made):
    want = {*FOLDERS, *(f'{o}_poses.csv' for o in FOLDERS if o!='own')}
    assert {*os.listdir(made[0])}-{'cuhk03','cuhk03_poses.csv'}==want
    assert (made[0]/'cuhk03').is_dir()==(made[0]/'cuhk03_poses.csv').is_file()


def test_a_picture_without_a_pose_is_named(tmp_path):
    w = tiny_world()
    lack = PoseTable(w.poses.names[1:], w.poses.joints[1:])
    with pytest.raises(InputError,
                       match=f'1 of the pictures have no pose, such as .*{w.poses.names[0]}'):
        write_folders(w/'target', tmp_path/'f', poses=lack)


def test_each_picture_keeps_its_own_pose(tmp_path):
    w = tiny_world()
    df = w.target[w.target.pid>=0]
    write_duke(w/'target', tmp_path/'d', w.poses)  # written anew, whatever lies in the cache
    assert torch.allclose(read_market_csv(tmp_path/'d_poses.csv').joints, w.poses.of(df), atol=1e-3)
