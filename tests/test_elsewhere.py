"Pictures from elsewhere as a generated set, and sets for other toolboxes by rules of their readers expressed anew"
import re, shutil
from collections import Counter
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from posereid.core import InputError
from posereid.data.elsewhere import (import_pictures, map_of_folders, market_names_of, plan_of_map,
                                     read_map, write_market_set)
from posereid.data.manifest import pick, train_labels
from posereid.data.market import parse_market_name, read_duke, read_generated, read_market
from posereid.data.pictures import PictureStore
from posereid.stages.augment import augment, check_generated
from posereid.stages.generate import write_generated
from posereid.stages.reid import ReIDSettings, train_reid
from posereid.synth.world import load_world, tiny_world


@pytest.fixture(scope='module')
def world(): return load_world(tiny_world())

@pytest.fixture(scope='module')
def target(world): return world.target


@pytest.fixture
def drawn(tmp_path, target):
    "A folder of pictures that someone drew, two of each of eight training pictures, and their map"
    train = pick(target, 'train')
    (tmp_path/'drawn'/'sub').mkdir(parents=True)
    rows = []
    for i in range(8):
        for k in (0, 1):
            name = f'{"sub/"*(i==3)}new_{i}_{k}.{"jpg" if k else "png"}'
            noise = np.random.default_rng(10*i+k).integers(0, 256, (64,32,3), np.uint8)
            Image.fromarray(noise).save(tmp_path/'drawn'/name)
            rows.append(dict(picture=name, source=Path(train.path[5*i]).name, pose=Path(train.path[5*i+1]).name,
                             person=f'{train.pid[5*i]:04d}', k=k))
    return tmp_path/'drawn',pd.DataFrame(rows)


def saved(rows, tmp_path, name='map.csv', **kw):
    rows.to_csv(tmp_path/name, index=False, **kw)
    return tmp_path/name

# --- a generated set like ours ---

def test_the_set_is_like_ours(drawn, target, tmp_path):
    folder,rows = drawn
    df = import_pictures(folder, saved(rows, tmp_path), target, tmp_path/'set', 'fd-gan')
    again = read_generated(tmp_path/'set')
    assert df.attrs['notes']==[] and df.equals(again)
    own = write_generated(np_pictures(3), pd.DataFrame(dict(source_path=df.source_path[:3], pose_path=df.pose_path[:3],
                          k=[0,1,0], pid=df.pid[:3], camid=df.camid[:3])), tmp_path/'own', 'abc')
    assert [*own.columns]==[*df.columns] and own.dtypes.equals(df.dtypes)
    assert {o.name for o in (tmp_path/'set').iterdir()}=={'bounding_box_train','manifest.csv'}=={o.name for o in (tmp_path/'own').iterdir()}
    train = pick(target, 'train')
    for i,r in df.iterrows():
        n = i//2
        assert (r.pid,r.camid,r.source_path,r.pose_path)==(train.pid[5*n],train.camid[5*n],train.path[5*n],train.path[5*n+1])
        assert Path(r.path).read_bytes()==(folder/rows.picture[i]).read_bytes()
    assert set(df.generator)=={'fd-gan'} and df.k.tolist()==[0,1]*8 and set(df.seed)=={0}
    assert Path(df.path[6]).name=='sub_new_3_0.png'


def np_pictures(n):
    return torch.randint(0, 256, (n,3,64,32), dtype=torch.uint8)


def test_the_set_is_trained_on_as_ours(drawn, target, tmp_path):
    folder,rows = drawn
    df = import_pictures(folder, rows.assign(pose=''), target, tmp_path/'set', 'x', seed=3)
    real = pick(target, 'train')
    check_generated(real, df)
    both = augment(target, df)
    assert len(both)==len(real)+16 and both.is_generated.sum()==16
    s = ReIDSettings(arch='small', width=8, epochs=1, bs=32, size=(64,32))
    net = train_reid(both, PictureStore(s.size), train_labels(target), s, tmp_path/'run')
    assert net.head.out_features==real.pid.nunique()
    check_generated(real, read_generated(tmp_path/'set'))
    shutil.move(tmp_path/'set', tmp_path/'moved') # the manifest is relative to the set
    assert read_generated(tmp_path/'moved').source_path.tolist()==df.source_path.tolist()


def test_maps(drawn, target, tmp_path):
    folder,rows = drawn
    least = read_map(saved(rows[['picture','source']], tmp_path))
    assert least.k.tolist()==[0,1]*8 and set(least.pose)==set(least.person)=={''}
    assert import_pictures(folder, least, target, tmp_path/'set', 'x').pose_path.eq('').all()
    for kw in (dict(person=''), dict(person=rows.person.astype(int)), dict(person=rows.person.astype(float)),
               dict(source=[f'bounding_box_train/{o}' for o in rows.source])):
        assert plan_of_map(read_map(saved(rows.assign(**kw), tmp_path)), folder, target).k.tolist()==[0,1]*8
    whole = rows.assign(source=[target.path[[Path(p).name for p in target.path].index(o)] for o in rows.source])
    assert plan_of_map(whole, folder, target).source_path.tolist()==whole.source.tolist()
    assert plan_of_map(rows, folder, target.assign(own_id='p'+target.pid.astype(str))).pid.tolist()==\
           plan_of_map(rows.assign(person='p'+rows.person.astype(int).astype(str)), folder,
                       target.assign(own_id='p'+target.pid.astype(str))).pid.tolist()
    # of a table whose rows are not numbered from 0
    moved = target.set_index(target.index[::-1]+5)
    assert plan_of_map(rows, folder, moved).equals(plan_of_map(rows, folder, target))


def test_poses_of_another_set(drawn, target, world, tmp_path):
    folder,rows = drawn
    lent = [Path(p).name for p in world.source.path[:16]]
    p = plan_of_map(rows.assign(pose=lent), folder, target, world.source)
    assert p.pose_path.tolist()==world.source.path[:16].tolist()
    with pytest.raises(InputError, match='in neither set'): plan_of_map(rows.assign(pose=lent), folder, target)
    (folder/'skeleton.txt').write_text('x')
    assert plan_of_map(rows.assign(pose='skeleton.txt'), folder, target).pose_path[0]==str(folder/'skeleton.txt')
    query = Path(pick(target, 'query').path[0]).name
    with pytest.raises(InputError, match='would be a leak'): plan_of_map(rows.assign(pose=query), folder, target)
    assert set(plan_of_map(rows.assign(pose=query), folder, target, test_poses=True).pose_path)=={pick(target, 'query').path[0]}


def test_folders_of_poses(target, tmp_path):
    train = pick(target, 'train')
    for j in (1, 2, 10):
        (tmp_path/'gen'/f'pose{j}').mkdir(parents=True)
        for p in train.path[:4]: Image.new('RGB', (32,64), (j,j,j)).save(tmp_path/'gen'/f'pose{j}'/Path(p).name)
    rows = map_of_folders(tmp_path/'gen')
    assert Counter(rows.k)=={0:4, 1:4, 9:4}
    df = import_pictures(tmp_path/'gen', rows, target, tmp_path/'set', 'pose2id')
    assert len(df)==12 and sorted(df.source_path.unique())==sorted(train.path[:4])
    assert {Path(p).name.split('_')[0] for p in df.path}=={'pose1','pose2','pose10'}
    assert any('equal to another one' in o for o in df.attrs['notes'])
    with pytest.raises(InputError, match='no folders'): map_of_folders(tmp_path/'set'/'bounding_box_train')

# --- refused ---

@pytest.mark.parametrize('change,says', [
    (dict(source='test'), 'a test picture: a net that learns'), (dict(source='nobody.jpg'), 'is no picture of the target'),
    (dict(person='0999'), 'is said to show person 0999'), (dict(picture='none.png'), 'is not in'),
    (dict(picture='../map.csv'), 'is not below'), (dict(pose='none.jpg'), 'in neither set'),
    (dict(picture=''), '`picture` of row 0 is empty'), (dict(source=' '.strip()), '`source` of row 0 is empty'),
    (dict(k=-1), '`k` must be'), (dict(k=.5), '`k` must be'), (dict(k=1), 'comes twice in source and k'),
    (dict(picture='new_1_0.png'), 'comes twice in picture')])
def test_rows_that_are_wrong(change, says, drawn, target, tmp_path):
    folder,rows = drawn
    if change.get('source')=='test': change = dict(source=Path(pick(target, 'gallery').path[2]).name)
    rows = rows.astype(object)
    for k,v in change.items(): rows.loc[0, k] = v
    with pytest.raises(InputError, match=says) as e:
        import_pictures(folder, saved(rows, tmp_path), target, tmp_path/'set', 'x')
    assert not (tmp_path/'set').exists() and '\n' not in str(e.value)


def test_sources_that_are_generated_or_not_clear(drawn, target, tmp_path):
    folder,rows = drawn
    first = [Path(p).name for p in target.path].index(rows.source[0])
    made = target.assign(is_generated=target.index==first)
    with pytest.raises(InputError, match='a generated picture itself'): plan_of_map(rows, folder, made)
    twice = pd.concat([target, target.loc[[first]].assign(path=f'/other/{rows.source[0]}')], ignore_index=True)
    with pytest.raises(InputError, match='could be'): plan_of_map(rows, folder, twice)
    exact = rows.assign(source=[f'other/{o}' if o==rows.source[0] else o for o in rows.source])
    assert plan_of_map(exact, folder, twice).source_path[0]==f'/other/{rows.source[0]}'
    named = rows.assign(source=[target.path[first] if i==0 else o for i,o in enumerate(rows.source)], k=[7]+rows.k.tolist()[1:])
    assert plan_of_map(named, folder, target).k[0]==7
    with pytest.raises(InputError, match='Two pictures have the source'):
        plan_of_map(named.assign(k=[1]+rows.k.tolist()[1:]), folder, target)


def test_pictures_that_are_wrong(drawn, target, tmp_path):
    folder,rows = drawn
    make = lambda **kw: import_pictures(folder, rows, target, tmp_path/'set', 'x', **kw)
    first = folder/rows.picture[0]
    before = first.read_bytes()
    shutil.copy(pick(target, 'query').path[1], first)
    with pytest.raises(InputError, match='byte for byte'): make()
    for mode in ('L','RGBA','P','I;16'):
        Image.new(mode, (32,64)).save(first)
        with pytest.raises(InputError, match='must be an 8-bit RGB picture'): make()
    assert any('not RGB' in o for o in make(convert=True).attrs['notes'])
    shutil.rmtree(tmp_path/'set')
    first.write_bytes(before[:100])
    with pytest.raises(InputError, match='new_0_0.png'): make()
    Image.new('RGB', (48,96)).save(first)
    notes = make().attrs['notes']
    assert len(notes)==1 and notes[0].startswith('1 of 16 pictures have another size') and '96×48 for 64×32' in notes[0]
    assert Image.open(tmp_path/'set'/'bounding_box_train'/rows.picture[0]).size==(48,96)
    shutil.rmtree(tmp_path/'set')
    shutil.copy(pick(target, 'train').path[1], first)
    assert ['training pictures' in o for o in make().attrs['notes']]==[True]


def test_pictures_that_are_not_in_the_map(drawn, target, tmp_path):
    folder,rows = drawn
    make = lambda r, **kw: import_pictures(folder, r, target, tmp_path/'set', 'x', **kw)
    with pytest.raises(InputError, match='3 pictures of .* are not in the map'): make(rows[:-3])
    df = make(rows[:-3], skip=True)
    assert len(df)==13 and '3 pictures' in df.attrs['notes'][0]
    (folder/'notes.txt').write_text('no picture')
    make(rows, fresh=True)


def test_where_it_may_write(drawn, target, tmp_path):
    folder,rows = drawn
    make = lambda out, **kw: import_pictures(folder, rows, target, out, 'x', **kw)
    for out in (folder, folder/'in', tmp_path):
        with pytest.raises(InputError, match='lie in one another'): make(out, fresh=True)
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('x')
    for kw in ({}, dict(fresh=True)):
        with pytest.raises(InputError, match='no generated set'): make(tmp_path/'mine', **kw)
    assert (tmp_path/'mine'/'thesis.txt').exists()
    (tmp_path/'empty').mkdir()
    make(tmp_path/'empty')
    with pytest.raises(InputError, match='holds a generated set'): make(tmp_path/'empty')
    for name in ('', ' ', 'a/b', 'a,b', 'x'*81, 'a\nb'):
        with pytest.raises(InputError, match='name of a generator'):
            import_pictures(folder, rows, target, tmp_path/'n', name)
    flat = rows.assign(picture=['sub_new_3_0.png' if o=='new_0_0.png' else o for o in rows.picture])
    (folder/'new_0_0.png').rename(folder/'sub_new_3_0.png')
    with pytest.raises(InputError, match='both be called'): import_pictures(folder, flat, target, tmp_path/'n', 'x')
    assert sorted(o.name for o in tmp_path.iterdir())==['drawn','empty','mine']

# --- readers of other toolboxes ---

def jpgs(folder): return sorted(str(o) for o in Path(folder).iterdir() if o.name.endswith('.jpg'))

def as_torchreid(root, relabel_of='bounding_box_train'):
    "Its rules: pattern in the whole path, −1 left out, people to 1501, six cameras counted from 0, labels of training"
    res = {}
    for sub in ('bounding_box_train','query','bounding_box_test'):
        assert (Path(root)/sub).is_dir()
        found = [(p, *map(int, re.search(r'([-\d]+)_c(\d)', p).groups())) for p in jpgs(Path(root)/sub)]
        found = [o for o in found if o[1]!=-1]
        assert all(0<=i<=1501 and 1<=c<=6 for _,i,c in found)
        label = {i: n for n,i in enumerate({i for _,i,_ in found})}
        res[sub] = [(p, label[i] if sub==relabel_of else i, c-1) for p,i,c in found]
    return res

def as_fastreid(root):
    "The same; people and cameras of training are texts with the name of the set"
    found = [(p, *map(int, re.search(r'([-\d]+)_c(\d)', p).groups())) for p in jpgs(Path(root)/'bounding_box_train')]
    assert all(0<=i<=1501 and 1<=c<=6 for _,i,c in found)
    return [(p, f'market1501_{i}', f'market1501_{c-1}') for p,i,c in found if i!=-1]


def check_read(root, df, rows):
    "Each toolbox finds every picture with its person and camera"
    got,train = as_torchreid(root),rows[rows.split=='train']
    assert len(got['bounding_box_train'])==len(train)
    people = {}
    for p,i,c in got['bounding_box_train']: people.setdefault(i, set()).add(Path(p).name)
    want = {k: set(g.name) for k,g in train.groupby('pid')}
    assert sorted(map(sorted, people.values()))==sorted(map(sorted, want.values()))
    assert sorted(people)==[*range(train.pid.nunique())]
    cam = dict(zip(train.name, train.camid))
    assert all(c+1==max(cam[Path(p).name], 1) for p,_,c in got['bounding_box_train'])
    for sub,s in (('query','query'), ('bounding_box_test','gallery')):
        part = rows[(rows.split==s) & (rows.pid!=-1)]
        assert sorted((Path(p).name, i, c+1) for p,i,c in got[sub])==sorted(zip(part.name, part.label, part.camid))
    fast = as_fastreid(root)
    assert len(fast)==len(train) and len({i for _,i,_ in fast})==train.pid.nunique()
    assert sorted((i, c) for _,i,c in fast)==sorted((f'market1501_{a}', f'market1501_{max(b,1)-1}') for a,b in zip(train.label, train.camid))
    origin = dict(zip(zip(rows.split, rows.name), rows.path))
    for s,sub in (('train','bounding_box_train'), ('query','query'), ('gallery','bounding_box_test')):
        for p in jpgs(Path(root)/sub): assert Path(p).read_bytes()==Path(origin[s, Path(p).name]).read_bytes()


@pytest.fixture
def both(drawn, target, tmp_path):
    return pd.concat([target, import_pictures(*drawn, target, tmp_path/'set', 'x')], ignore_index=True)


@pytest.mark.parametrize('link', [False,True])
def test_real_and_generated_in_one_folder(link, both, tmp_path):
    rows = write_market_set(both, tmp_path/'market', link)
    check_read(tmp_path/'market', both, rows)
    assert all(Path(o).is_symlink()==link for o in jpgs(tmp_path/'market'/'query'))
    back = read_market(tmp_path/'market', links=True)
    assert Counter(zip(back.split, back.pid, back.camid))==Counter(zip(both.split, both.pid, both.camid))
    named = pd.read_csv(tmp_path/'market'/'names.csv')
    assert named.name.tolist()==rows.name.tolist() and named.is_generated.sum()==16
    real = rows[~rows.is_generated]
    assert real.name.tolist()==[Path(o).name for o in real.path]
    gen = rows[rows.is_generated]
    assert gen.name.tolist()==[f'{Path(s).stem}_g{int(k)}.jpg' for s,k in zip(gen.source_path, gen.k)]


def test_two_generators_at_once(both, tmp_path):
    more = both[both.is_generated].assign(generator='y')
    rows = market_names_of(pd.concat([both, more.assign(path=more.path+'.copy')], ignore_index=True))
    assert rows[rows.split=='train'].name.is_unique and len(rows)==len(both)+16
    assert set(rows.name[rows.is_generated].str.extract(r'_g(\d)\.jpg$')[0])=={'0','1','2','3'}


def test_other_sets_get_new_names(sets, tmp_path):
    df = read_duke(sets/'DukeMTMC-reID')
    df = df[df.camid<=6]
    rows = write_market_set(df, tmp_path/'m')
    check_read(tmp_path/'m', df, rows)
    assert all(parse_market_name(n)[:2]==(i,c) for n,i,c in zip(rows.name, rows.pid, rows.camid))
    far = df.assign(pid=df.pid+5000)
    rows = write_market_set(far, tmp_path/'far')
    check_read(tmp_path/'far', far, rows)
    assert sorted(rows.label.unique())==[*range(1, far.pid.nunique()+1)]
    assert rows.groupby('pid').label.nunique().eq(1).all()


def test_unknown_cameras_of_training(target, tmp_path):
    df = pick(target, 'train').assign(camid=0)
    rows = write_market_set(df, tmp_path/'m')
    check_read(tmp_path/'m', df, rows)
    assert all('_c1s' in n for n in rows.name)


def test_what_posereid_generate_writes_is_read_as_it_is(target, tmp_path):
    train = pick(target, 'train')
    for names in ('market1501','source'):
        todo = pd.DataFrame(dict(source_path=train.path[:6].repeat(2).tolist(), pose_path=train.path[0], k=[0,1]*6,
                                 pid=train.pid[:6].repeat(2).tolist(), camid=train.camid[:6].repeat(2).tolist()))
        df = write_generated(np_pictures(12), todo, tmp_path/names, 'abc', names=names)
        for o in ('query','bounding_box_test'): (tmp_path/names/o).mkdir()
        got = as_torchreid(tmp_path/names, None)['bounding_box_train']
        assert sorted((Path(p).name, i, c+1) for p,i,c in got)==sorted((Path(p).name, i, c) for p,i,c in zip(df.path, df.pid, df.camid))
        assert len(as_fastreid(tmp_path/names))==12


@pytest.mark.parametrize('change,says', [
    (dict(camid=7), 'stop at camera 6'), (dict(split='query'), 'no training pictures'), (dict(camid=0), 'no known camera'),
    (dict(pid=-1), 'no training pictures')])
def test_what_they_would_stop_at(change, says, target, tmp_path):
    with pytest.raises(InputError, match=says): write_market_set(target.assign(**change), tmp_path/'m')
    assert not (tmp_path/'m').exists()


def test_too_many_people(target):
    many = pd.DataFrame([dict(path=f'/d/{i}.jpg', pid=i, camid=1, split='train', is_generated=False) for i in range(1, 1503)])
    with pytest.raises(InputError, match='at most 1,501'): market_names_of(many)
    assert market_names_of(many[1:]).label.tolist()==[*range(1, 1502)]
    assert market_names_of(many[:-1]).label.tolist()==[*range(1, 1502)]


def test_where_a_market_set_may_be(target, tmp_path):
    df = pick(target, 'train')
    for o in ('run-1_c2','0001_c1s1/m','a2_c3'):
        with pytest.raises(InputError, match='would take for person and camera'): write_market_set(df, tmp_path/o)
    write_market_set(df, tmp_path/'m_c1')
    with pytest.raises(InputError, match='not empty'): write_market_set(df, tmp_path/'m_c1')
    write_market_set(df, tmp_path/'m_c1', fresh=True)
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'a').write_text('x')
    with pytest.raises(InputError, match='not empty'): write_market_set(df, tmp_path/'mine', fresh=True)


def test_odd_names_and_rows(target, tmp_path):
    "PNG files, wrong persons in names, junk and multi"
    train = pick(target, 'train')[:4]
    Image.open(train.path[0]).save(tmp_path/'0001_c1s1_000001_00.png')
    shutil.copy(train.path[1], tmp_path/'0777_c1s1_000001_00.jpg')
    shutil.copy(train.path[2], tmp_path/Path(train.path[3]).name)
    df = train.assign(path=[str(tmp_path/'0001_c1s1_000001_00.png'), str(tmp_path/'0777_c1s1_000001_00.jpg'),
                            str(tmp_path/Path(train.path[3]).name), train.path[3]], pid=train.pid[3], camid=train.camid[3])
    df = pd.concat([df, df[:1].assign(split='multi', path='/gone.jpg')], ignore_index=True)
    rows = write_market_set(df, tmp_path/'m')
    assert len(rows)==4 and rows.name.is_unique and rows.name.str.endswith('.jpg').all()
    assert rows.name[2]==Path(train.path[3]).name!=rows.name[3]
    check_read(tmp_path/'m', df, rows)
