"Manifest, readers, pairs and batches: oracles, bad input, and the promise about seeds"
import os, shutil
from collections import defaultdict
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from posereid.data import pairs, pictures, transforms
from posereid.core import InputError
from posereid.data.layouts import check_test, check_train, find_layout, load_dataset
from posereid.data.market import parse_mars_name, parse_market_name, read_generated, read_market
from posereid.data.own import read_csv
from posereid.data.mars import read_mars
from posereid.data.manifest import (label_of, make_manifest, pick, picture_keys, read_manifest,
                                    train_labels, train_rows, write_manifest)
from posereid import imagefiles as I
from posereid.data.sampler import epoch_pairs, make_pairs, pair_report


def error(f, *words):
    "The one-sentence error that `f` must raise"
    with pytest.raises(InputError) as e: f()
    said = str(e.value)
    assert '\n' not in said and said[-1] in '.?)', said
    for w in words: assert str(w) in said, (w, said)
    return said

def paint(path, size=(32,64), mode='RGB', seed=0, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    a = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(a).convert(mode).save(path, **kw)
    return path

@pytest.fixture(scope='module')
def market(tmp_path_factory):
    "Six people, three pictures in each of two cameras; the last three people are the test half"
    root, n = tmp_path_factory.mktemp('run3_c2s1')/'set', 0
    for p in (2, 7, 11, 20, 21, 22):
        for c in (1, 3):
            for i in range(3):
                folder = ('bounding_box_train' if p < 20 else 'query' if i == 0
                          else 'bounding_box_test')
                paint(root/folder/f'{p:04d}_c{c}s1_{n:06d}_01.jpg', seed=n, quality=95); n += 1
    paint(root/'bounding_box_test'/'0000_c1s1_000001_01.jpg')
    paint(root/'bounding_box_test'/'-1_c2s1_000001_01.jpg.jpg')
    return root

@pytest.fixture(scope='module')
def mars(tmp_path_factory):
    root = tmp_path_factory.mktemp('mars')
    for p in (1, 5):
        for t in (1, 2):
            for f in range(1, 4):
                paint(root/'bbox_train'/f'{p:04d}'/f'{p:04d}C1T{t:04d}F{f:03d}.jpg',
                      seed=100*p+10*t+f)
    return root

@pytest.fixture(scope='module')
def block():
    import posereid.data.block as b
    return b

@pytest.fixture
def copy(market, tmp_path): return Path(shutil.copytree(market, tmp_path/'set'))

def poses_of(block, *dfs):
    from posereid.pose.table import PoseTable
    from posereid.pose.joints import walking_pose
    names = [os.path.basename(p) for df in dfs for p in df.path]
    return PoseTable(names, walking_pose(torch.linspace(0, 6, len(names))))

# --- names and folders

def test_names_are_read_from_the_base_name_only():
    assert parse_market_name('/data/0009_c5s5/run3_c2/0002_c1s1_000451_03.jpg') == (2,1,1,451,3)
    assert parse_market_name('0002_c1s1_000451_03.jpg.jpg')[:2] == (2,1)
    assert parse_market_name('0002_c1s1_000451_03_g1.jpg')[:2] == (2,1)
    assert parse_mars_name('00-1C1T0001F001.jpg').pid == -1
    for bad in ('002_c1s1_000451_03.jpg', 'x0002_c1s1_000451_03.jpg', '0002_c1_f0046182.jpg',
                '0002_c1s1_000451_03', '0002_c1s1_000451_03x.jpg'):
        error(lambda: parse_market_name(bad), bad)

def test_market(market):
    df = read_market(market)
    assert df.split.value_counts().to_dict() == dict(train=18, query=6, gallery=14)
    assert sorted(set(df.pid)) == [-1,0,2,7,11,20,21,22]
    assert sum(p.endswith('.jpg.jpg') for p in df.path) == 1
    assert all(os.path.isabs(p) for p in df.path)
    assert train_labels(df) == {2:0, 7:1, 11:2}
    assert check_train(check_test(df)).attrs['single'] == []
    assert read_market(os.path.relpath(market)).equals(df)

def test_wrong_folders(market, mars, copy, tmp_path):
    error(lambda: read_market(tmp_path/'none'), tmp_path/'none', 'bounding_box_train',
          'does not exist')
    error(lambda: read_market(mars), mars, 'bounding_box_train', 'bbox_train/')
    error(lambda: read_market(market/'bounding_box_train'), f'give its parent {market}')
    error(lambda: read_market(market, ('multi',)), 'gt_bbox')
    error(lambda: read_market(market, 'test'), "'test'")
    error(lambda: load_dataset(tmp_path/'none'), tmp_path/'none', 'does not exist')
    error(lambda: load_dataset(market.parent.parent/'nothing here'), 'was expected')
    for f in (copy/'query').iterdir(): f.unlink()
    error(lambda: read_market(copy), copy/'query', 'query pictures', 'it is empty')
    paint(copy/'query'/'holiday.jpg')
    error(lambda: read_market(copy), copy/'query'/'holiday.jpg', '0002_c1s1_000451_03.jpg')

def test_finding_the_layout(market, mars, tmp_path):
    nest = tmp_path/'market1501'/'Market-1501-v15.09.15'
    shutil.copytree(market, nest)
    assert find_layout(tmp_path) == ('market1501', nest)
    shutil.copytree(mars, tmp_path/'mars'/'MARS')
    error(lambda: find_layout(tmp_path), 'several sets', nest)
    assert len(load_dataset(tmp_path/'mars')) == 12

def test_other_files_are_told(copy):
    (copy/'query'/'Thumbs.db').touch()
    (copy/'bounding_box_test'/'._0002_c1s1_000451_03.jpg').touch()
    assert [Path(p).name for p in read_market(copy).attrs['ignored']] == ['Thumbs.db',
        '._0002_c1s1_000451_03.jpg']

def test_single_pictures_and_hopeless_sets(market, mars):
    df = read_market(market)
    one = pd.concat([df, df.iloc[:1].assign(pid=99, path='/x/0099.jpg')], ignore_index=True)
    assert check_train(one).attrs['single'] == [99]
    error(lambda: check_train(pick(df, 'train').drop_duplicates('pid'), market), market,
          'single picture')
    error(lambda: check_train(pick(df, 'train', pid=2), market), market, 'two identities')
    error(lambda: check_test(pick(df, ['train','gallery']), market), market, 'no query')
    error(lambda: check_test(df[(df.split != 'gallery') | (df.camid == 2)], market),
          'another camera')
    assert check_test(df[(df.split != 'gallery') | (df.pid != 20)]).attrs['unmatched'] == 2

# --- manifests

def test_manifest_round_trip_and_types(market, tmp_path):
    df = pick(read_market(market), 'train').assign(is_generated=True, generator='12e456789012',
                                                   source_path='/a/b.jpg', k=0)
    (tmp_path/'x').mkdir()
    write_manifest(df, tmp_path/'x')
    back = read_manifest(tmp_path/'x')
    assert (back.path.tolist() == df.path.tolist()
            and back.generator.tolist() == df.generator.tolist())
    assert back.is_generated.dtype == bool and back.pid.dtype == np.int64
    assert not (tmp_path/'x'/'manifest.csv').read_text().count(',/')
    assert [o.name for o in (tmp_path/'x').iterdir()] == ['manifest.csv']

def test_training_rows_are_picked_once(market):
    df = read_market(market)
    train = pick(df, 'train')
    assert train_rows(df).equals(train) and train_rows(train) is train
    some = train.iloc[::2]  # training rows alone, but with an index of their own
    assert (train_rows(some).index.tolist() == list(range(len(some)))
            and train_rows(some).path.tolist() == some.path.tolist())
    mixed = train.assign(is_generated=train.index % 2 == 1)
    assert (train_rows(mixed) is mixed
            and train_rows(mixed, real_only=True).path.tolist() == train.path[::2].tolist())
    assert train_rows(train, real_only=True) is train
    with pytest.raises(InputError, match='no column'):
        train_rows(train.drop(columns='is_generated'), real_only=True)

@pytest.mark.parametrize('change,words', [
    (dict(pid=1.5), ['pid', '1.5']), (dict(pid=None), ['pid']), (dict(camid=-2), ['camid']),
    (dict(split='test'), ["'test'"]), (dict(is_generated='maybe'), ['is_generated', 'maybe']),
    (dict(path='/a/1.jpg'), ['/a/1.jpg', 'twice'])])
def test_bad_rows(change, words):
    rows = [dict(path=f'/a/{i}.jpg', pid=i+1, camid=1, split='train', is_generated=False)
            for i in range(3)]
    rows[2] = {**rows[2], **change}
    error(lambda: make_manifest(rows, 'mine.csv'), 'mine.csv', *words)

def test_bad_files(tmp_path):
    error(lambda: read_manifest(tmp_path), tmp_path, 'manifest.csv')
    error(lambda: read_csv(tmp_path/'no.csv'), tmp_path/'no.csv')
    for text in ('', 'path,pid,split\n', 'a,b\n1,2\n', 'path,pid,split\n"a,1,train\n',
                 'path,pid,split\na.jpg,1,train\n'):
        (tmp_path/'m.csv').write_text(text)
        error(lambda: read_csv(tmp_path/'m.csv'), tmp_path/'m.csv')
    (tmp_path/'m.csv').write_bytes(b'path,pid,split\n\xff\xfe,1,train\n')
    error(lambda: read_csv(tmp_path/'m.csv'), tmp_path/'m.csv')

def test_labels_do_not_depend_on_order(market):
    df = read_market(market)
    mixed = df.sample(frac=1, random_state=0)
    assert train_labels(mixed) == train_labels(df)
    train = pick(df, 'train')
    assert (label_of(train, train_labels(df))
            == np.searchsorted(np.unique(train.pid), train.pid)).all()

def test_generated_set(market, tmp_path):
    src = pick(read_market(market), 'train')
    out = [tmp_path/'bounding_box_train'/Path(p).name.replace('.jpg', '_g1.jpg') for p in src.path]
    for p in out: paint(p)
    df = make_manifest(src[['pid','camid','split']].assign(path=list(map(str, out)),
                                                          is_generated=True, source_path=src.path,
                                                          pose_path=src.path, k=1,
                                                          generator='000000000012', seed=3))
    write_manifest(df, tmp_path)
    pd.testing.assert_frame_equal(read_generated(tmp_path), df)
    assert find_layout(tmp_path)[0] == 'generated'
    out[0].unlink()
    error(lambda: read_generated(tmp_path), tmp_path, 'not there', out[0])
    write_manifest(df.iloc[2:], tmp_path)
    error(lambda: read_generated(tmp_path), tmp_path, out[1], 'does not list')
    # names are only names: who is in a picture stands in the manifest
    write_manifest(df.iloc[1:].assign(pid=5), tmp_path)
    assert set(read_generated(tmp_path).pid) == {5}

# --- pairs

def test_pairs_against_a_loop():
    rng = np.random.default_rng(0)
    for trial in range(12):
        n = int(rng.integers(4, 30))
        df = pd.DataFrame(dict(pid=rng.integers(-1, 6, n), camid=rng.integers(1, 4, n),
                               path=[f'{i}.jpg' for i in range(n)]))
        mates = lambda i, rule: [j for j in range(n) if j != i and df.pid[i] == df.pid[j] > 0
                                 and (rule == 'any' or df.camid[i] == df.camid[j])]
        rule = ('any','same_camera')[trial % 2]
        usable = [i for i in range(n) if mates(i, 'any')]
        if not usable:
            error(lambda: make_pairs(df, rule))
            continue
        allowed = {i: set(mates(i, rule) or mates(i, 'any')) for i in usable}
        x, y = make_pairs(df, rule, n=len(usable)*60, seed=trial)
        assert np.bincount(x, minlength=n)[usable].tolist() == [60]*len(usable)
        seen = defaultdict(set)
        for i, j in zip(x, y): seen[i].add(j)
        assert all(seen[i] <= allowed[i] for i in usable)
        assert all(len(allowed[i]) > 6 or seen[i] == allowed[i] for i in usable)
        rep = pair_report(df, rule)
        assert (rep.n_usable == len(usable)
                and rep.n_fallback == sum(not mates(i, rule) for i in usable))

def test_pairs_are_uniform_and_seeded():
    df = pd.DataFrame(dict(pid=[3]*5, camid=[1]*5, path=list('abcde')))
    x, y = make_pairs(df, n=20_000, seed=0)
    share = np.histogram2d(x, y, bins=[range(6)]*2)[0]/4000
    assert np.allclose(share, .25*(1-np.eye(5)), atol=.03)
    same = lambda a, b: all((i == j).all() for i, j in zip(a, b))
    assert same(epoch_pairs(df, n=40, seed=1, epoch=2), epoch_pairs(df, n=40, seed=1, epoch=2))
    assert not same(epoch_pairs(df, n=40, seed=1, epoch=2), epoch_pairs(df, n=40, seed=2, epoch=1))

# --- pictures and batches

def test_bad_pictures(block, tmp_path):
    store = pictures.PictureStore((16,8))
    whole = paint(tmp_path/'whole.jpg')
    (tmp_path/'cut.jpg').write_bytes(whole.read_bytes()[:-200])
    (tmp_path/'head.jpg').write_bytes(whole.read_bytes()[:60])
    (tmp_path/'none.jpg').write_bytes(b'')
    png = paint(tmp_path/'whole.png')
    (tmp_path/'cut.png').write_bytes(png.read_bytes()[:-900])
    for name in ('cut.jpg', 'head.jpg', 'none.jpg', 'cut.png'):
        error(lambda: store.get([whole, tmp_path/name]), tmp_path/name, 'truncated')
    for mode in ('L', 'RGBA', 'CMYK', 'P', '1', 'I;16'):
        p = tmp_path/f'{mode[0]}.{"jpg" if mode == "CMYK" else "png"}'
        Image.new(mode, (8,16)).save(p)
        error(lambda: store.get([p]), p, f'mode is {mode}', 'convert')
        assert tuple(pictures.PictureStore((16,8), convert=True).get([p]).shape) == (1,3,16,8)
    error(lambda: store.get([tmp_path]), tmp_path)
    assert len(store) == 0 or all(str(whole) == p for p in store._rows)

def test_store_is_pillow_and_survives_its_limit(block, market):
    df = read_market(market)
    for size in ((64,32), (48,20)):
        want = np.stack([np.asarray(Image.open(p).resize(size[::-1], Image.Resampling.BILINEAR))
                         for p in df.path]).transpose(0,3,1,2)
        for room in (0, 5, 1000):
            store = pictures.PictureStore(size, max_bytes=room*3*size[0]*size[1])
            for _ in range(2): assert (store.get(df).numpy() == want).all()
            assert len(store) == min(room, len(df))
            assert store.sizes(df).unique(dim=0).tolist() == [[64,32]]

def test_crop_against_a_loop(block):
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (20,3,12,8), generator=rng).to(torch.uint8)
    top, left, flip = (torch.randint(-3, 4, (20,), generator=rng),
                       torch.randint(-3, 4, (20,), generator=rng),
                       torch.rand(20, generator=rng) < .5)
    pad = np.pad(x.numpy(), ((0,0),(0,0),(5,5),(5,5)), mode='edge')
    got = transforms.crop_at(x, top, left, (10,7), flip)
    for i in range(20):
        c = pad[i, :, top[i]+5:top[i]+15, left[i]+5:left[i]+12]
        assert (got[i].numpy() == (c[..., ::-1] if flip[i] else c)).all()

def same(a, b): return all(torch.equal(i, j) for p, q in zip(a, b) for i, j in zip(p, q))

def test_reid_batches(block, market):
    df = pick(read_market(market), 'train')
    labels, store = train_labels(df), pictures.PictureStore((64,32))
    both = make_manifest(pd.concat([df, df.assign(path=[p+'x' for p in df.path],
                                                  is_generated=True)], ignore_index=True))
    make = block.ReIDBatch(both, store, labels, eps_real=.1, eps_generated=.4)
    assert make.eps.tolist() == pytest.approx([.1]*18 + [.4]*18)
    dls = block.reid_dls(df, store, labels, bs=4, pad=0, flip=False, seed=2)
    x, y, eps = map(torch.cat, zip(*dls.train))
    assert len(dls.train) == 4 and x.min() >= -1 and x.max() <= 1
    lookup = {bytes(p.numpy()): l for p, l in zip(store.get(df), label_of(df, labels))}
    assert [lookup[bytes(p.numpy())] for p in transforms.to_uint8(x)] == y.tolist()
    assert len(block.reid_dls(df.iloc[:3], store, labels, bs=32).train) == 1
    val = block.reid_dls(df, store, labels, bs=4, valid_df=df).valid
    assert same([[transforms.to_float(store.get(df))]], [[torch.cat([b[0] for b in val])]])

def test_resumed_equals_uninterrupted(block, market, mars):
    df, src = pick(read_market(market), 'train'), read_mars(mars)
    labels, store = train_labels(df), pictures.PictureStore((64,32))
    poses = poses_of(block, df, src)
    makers = [lambda: block.reid_dls(df, store, labels, bs=4, seed=1),
              lambda: block.transfer_dls(df, src, poses, store, labels, bs=8, n_pairs=48, seed=1)]
    for make in makers:
        whole, part = make(), make()
        a = [list(whole.train) for _ in range(3)]
        torch.manual_seed(5); np.random.seed(5)
        part.train.one_batch()
        part.set_epoch(2)
        part.train.one_batch()
        b = list(part.train)
        assert same(a[2], b) and not same(a[1], b)
        whole.set_epoch(1)
        assert same(a[1], list(whole.train))

def test_transfer_batches(block, market, mars):
    from posereid.pose.draw import draw_skeletons
    from posereid.pose.joints import flip_joints
    df, src = pick(read_market(market), 'train'), read_mars(mars)
    labels, store, poses = (train_labels(df), pictures.PictureStore((64,32)),
                            poses_of(block, df, src))
    dls = block.transfer_dls(df, src, poses, store, labels, bs=8, n_pairs=64, seed=3)
    assert len(dls.train) == 8 and len(dls.valid) == 0 and dls.n_inp == 2
    every = pd.concat([df, src], ignore_index=True)
    row = {bytes(p.numpy()): (i, f) for f in (0,1)
           for i, p in enumerate(store.get(every).flip(3) if f else store.get(every))}
    joints = poses.of(every)
    for x, s, y, label, is_target in dls.train:
        assert is_target.tolist() == [True]*4 + [False]*4
        for x1, s1, y1, l, t in zip(*(transforms.to_uint8(o) for o in (x, s, y)), label, is_target):
            (i, f), (j, g) = row[bytes(x1.numpy())], row[bytes(y1.numpy())]
            assert (f == g and i != j and every.pid[i] == every.pid[j]
                    and (i < 18) == (j < 18) == bool(t))
            assert l == (labels[every.pid[i]] if t else -1)
            assert every.camid[i] == every.camid[j] if t else every.tracklet[i] == every.tracklet[j]
            k = joints[j][None]
            assert torch.equal(draw_skeletons(flip_joints(k, 32) if f else k, size=(64,32))[0], s1)
    alone = block.transfer_dls(df, None, poses, store, labels, bs=7, n_pairs=21).train
    assert len(alone) == 3 and all(b[4].all() for b in alone)

def test_missing_poses(block, market, mars):
    from posereid.pose.table import PoseTable
    df, src = pick(read_market(market), 'train'), read_mars(mars)
    store, full = pictures.PictureStore((64,32)), poses_of(block, df)
    half = PoseTable(full.names[:9], full.joints[:9])
    assert (len(pairs.poses_for(df, half)[0]) == 9
            and len(pairs.poses_for(df, half, 'keep')[0]) == 18)
    kept = pairs.PairSource(df, half, store, train_labels(df), missing='keep')
    assert (kept.n_skipped == 0 and kept.drawn[9:18].max() == 0
            and kept.drawn[:9].amax((1,2,3)).min() > 0)
    assert pairs.PairSource(df, half, store, train_labels(df)).n_skipped == 9
    error(lambda: pairs.poses_for(src, half), 'has a pose')
    error(lambda: pairs.poses_for(df, half, 'drop'), "'drop'")
    twice = pd.concat([df, df.iloc[:1].assign(path='/else/' + Path(df.path[0]).name)],
                      ignore_index=True)
    error(lambda: pairs.poses_for(twice, half), 'same base name', df.path[0])

def test_keypoint_files_must_fit(block, market, mars, tmp_path):
    from posereid.pose.table import PoseTable
    from posereid.pose.files import write_market_csv
    df, src = pick(read_market(market), 'train'), read_mars(mars)
    full = poses_of(block, df)
    write_market_csv(tmp_path/'k.csv', full)
    assert len(pairs.load_poses(tmp_path/'k.csv', df)) == 18
    error(lambda: pairs.load_poses(tmp_path/'k.csv', src), tmp_path/'k.csv', 'name no picture',
          full.names[0])
    far = full.joints.clone(); far[4,3,0] = 500.
    write_market_csv(tmp_path/'k.csv', PoseTable(full.names, far))
    table = pairs.load_poses(tmp_path/'k.csv', df)
    assert (table.notes['pictures with joints outside, taken as missing'] == [full.names[4]]
            and table[full.names[4]][3].tolist() == [0,0,0])
    assert torch.equal(table.joints[:4], full.joints[:4])
    far = full.joints.clone(); far[4:,3:7,0] = 500.; far[4:,9,1] = -9.
    write_market_csv(tmp_path/'k.csv', PoseTable(full.names, far))
    error(lambda: pairs.load_poses(tmp_path/'k.csv', df), tmp_path/'k.csv', full.names[4], 'elbow',
          'outside')
    error(lambda: pairs.load_poses(tmp_path/'none.csv', df), tmp_path/'none.csv')

def test_fastai_learns_from_the_loaders(block, market):
    import fastai.callback.progress  # gives Learner its `no_bar`
    from fastai.learner import Learner
    from torch import nn
    df = pick(read_market(market), 'train')
    labels, store = train_labels(df), pictures.PictureStore((64,32))
    dls = block.reid_dls(df, store, labels, bs=6, valid_df=df)
    learn = Learner(dls, nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(96, 3)),
                    loss_func=lambda p, y, eps: nn.functional.cross_entropy(p, y),
                    path=market.parent)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    assert (dls.train.epoch == 2 and len(learn.recorder.losses) == 6
            and len(learn.recorder.values) == 2)
    assert len(learn.get_preds()[0]) == 18

# --- what is a picture, and how large

def test_a_picture_is_told_by_its_ending_or_its_content(tmp_path):
    kinds = dict(jpeg='jpeg', png='png', webp='webp', tiff='tiff', bmp='bmp', ppm='ppm',
                 jpeg2000='jpeg2000')
    for kind in kinds:
        paint(tmp_path/'x.jpg').rename(tmp_path/kind)  # a name without ending
        Image.open(tmp_path/kind).save(tmp_path/kind, kind)
        assert I.picture_kind(tmp_path/kind) == kind and I.is_picture(tmp_path/kind)
    jpeg = (tmp_path/'jpeg').read_bytes()
    for name, raw, is_one in (('a.JPG', b'', True), ('b.Tiff', b'x', True), ('c.txt', jpeg, False),
                              ('d.MAT', jpeg, False), ('.e.jpg', jpeg, False),
                              ('f.xyz', jpeg, True),
                              ('g', b'BM', False), ('h', b'P5 thoughts', True),
                              ('i', b'P5thoughts', False), ('j', b'P6\n8 8 255\n', True),
                              ('k', b'RIFF\x10\0\0\0WAVEfmt ', False),
                              ('l', b'', False), ('m', b'GIF89a', False)):
        (tmp_path/name).write_bytes(raw)
        assert I.is_picture(tmp_path/name) == is_one, name
    assert I.picture_kind(tmp_path/'none') == I.picture_kind(tmp_path) == ''

def test_pictures_below_a_folder(tmp_path):
    for n in ('b/1.jpg', 'a/c/2.png', '.thumbs/3.jpg', 'b/@eaDir/4.jpg', '__MACOSX/b/5.jpg',
              'b/.6.jpg', 'lost+found/7.jpg', 'eaDir/8.jpg'):
        paint(tmp_path/n)
    (tmp_path/'b'/'n.txt').touch()
    assert [os.path.relpath(p, tmp_path) for p in I.list_images(tmp_path)] == ['a/c/2.png',
        'b/1.jpg', 'eaDir/8.jpg']

@pytest.mark.parametrize('end', ['jpg', 'png', 'webp', 'tif'])
@pytest.mark.parametrize('way', range(1, 9))
def test_one_rule_of_uprightness(tmp_path, way, end):
    "For each of the eight orientations the header's size is that of the decoded picture, and its corner is where a viewer shows it"
    # white in the first corner of what is stored
    raw = np.zeros((20,40,3), np.uint8); raw[:8,:8] = 255
    exif = Image.Exif(); exif[0x0112] = way
    p = tmp_path/f'x.{end}'
    Image.fromarray(raw).save(p, exif=exif, **(dict(quality=95) if end in ('jpg','webp') else {}))
    im = I.open_upright(p).convert('RGB')
    assert I.picture_size(p) == (im.height, im.width) == ((20,40) if way < 5 else (40,20))
    a = np.asarray(im)[...,0] > 128
    assert ({(r, c) for r in (0,-1) for c in (0,-1) if a[r,c]}
            == {[(0,0), (0,-1), (-1,-1), (-1,0), (0,0), (0,-1), (-1,-1), (-1,0)][way-1]})

@pytest.fixture
def looks(tmp_path, monkeypatch):
    "Which pictures were opened for their sizes since it was asked last; the cache is a folder of this test"
    monkeypatch.setenv('POSEREID_CACHE', str(tmp_path/'cache'))
    seen, was = [], I.picture_size
    monkeypatch.setattr(I, 'picture_size', lambda p: (seen.append(os.path.basename(p)), was(p))[1])
    def _f():
        out = sorted(seen); seen.clear()
        return out
    return _f

def test_sizes_are_kept_until_a_file_changes(tmp_path, looks):
    ps = [str(paint(tmp_path/'s'/f'{n}.bmp', size=(8+i,16))) for i, n in enumerate('abc')]
    sizes = lambda: list(I.picture_sizes(ps, keep_from=3).values())
    want = [(16,8), (16,9), (16,10)]
    assert sizes() == want and looks() == ['a.bmp','b.bmp','c.bmp']
    assert sizes() == want and looks() == []
    st = os.stat(ps[0])
    Image.new('RGB', (16,8)).save(ps[0])  # as many bytes, another date
    assert os.path.getsize(ps[0]) == st.st_size
    os.utime(ps[0], ns=(0, st.st_mtime_ns+1))
    assert sizes()[0] == (8,16) and looks() == ['a.bmp']
    st = os.stat(ps[1])
    Image.new('RGB', (20,30)).save(ps[1])  # other bytes, the same date
    os.utime(ps[1], ns=(0, st.st_mtime_ns))
    assert (sizes() == [(8,16), (30,20), (16,10)] and looks() == ['b.bmp'] and sizes()
            and looks() == [])
    os.unlink(ps[2])
    error(sizes, ps[2], 'does not exist')

def test_few_sizes_are_not_kept(tmp_path, looks):
    ps = [paint(tmp_path/'s'/f'{n}.bmp', size=(8,16)) for n in 'abc']
    for _ in range(2):
        assert (I.picture_sizes(ps, keep_from=4) == {str(p): (16,8) for p in ps}
                and len(looks()) == 3)
    assert not (tmp_path/'cache').exists()

def test_sizes_of_folders_are_kept_apart(tmp_path, looks):
    "Folders of one name, and names with a tab or a line break in them"
    st = None
    for i, home in enumerate(('a','b')):
        p = paint(tmp_path/home/'x'/'1.bmp', size=((8,16), (16,8))[i])
        os.utime(p, ns=(0, 10**18))
        assert list(I.picture_sizes([p], keep_from=1).values()) == [((16,8), (8,16))[i]]
    looks()
    odd = [paint(tmp_path/'c'/n, size=(8,16))
           for n in ('tab\t.bmp', 'line\nbreak.bmp', 'plain.bmp')]
    for want in (3, 0):
        assert set(I.picture_sizes(odd, keep_from=1).values()) == {(16,8)} and len(looks()) == want
    # as long, as old, and the end of the other's name
    twin = [paint(tmp_path/'d'/n, size=s)
            for n, s in (('break.bmp', (16,8)), ('line\nbreak.bmp', (8,16)))]
    for p in twin: os.utime(p, ns=(0, 10**18))
    assert len({os.path.getsize(p) for p in twin}) == 1
    for _ in range(2): assert list(I.picture_sizes(twin, keep_from=1).values()) == [(8,16), (16,8)]

def test_picture_keys():
    # one picture may come twice
    assert picture_keys(['/a/x.jpg','/b/y.jpg','/a/x.jpg']) == ['x.jpg','y.jpg','x.jpg']
    assert (picture_keys(['/a/p/0.jpg','/a/q/r/0.jpg','/a/q/1.jpg'])
            == ['p/0.jpg','q/r/0.jpg','q/1.jpg'])
    assert picture_keys([]) == [] and picture_keys([Path('/a/b/0.jpg')]) == ['0.jpg']

# --- poses of a set

@pytest.fixture
def folders(tmp_path):
    "Two people whose base names start again, 64×32, and their joints"
    from posereid.pose.table import PoseTable
    from posereid.pose.joints import walking_pose
    names = [f'train/{p}/{i}.jpg' for p in ('An','Bo') for i in (0,1)]
    for i, n in enumerate(names): paint(tmp_path/'set'/n, seed=i)
    return tmp_path/'set', PoseTable(names, walking_pose(torch.linspace(0, 6, 4)))

def test_keys_of_poses(block, folders, tmp_path):
    "Base names where they tell pictures apart, paths where they do not, whatever pictures have no pose"
    from posereid.pose.table import PoseTable
    from posereid.pose.files import write_market_csv
    root, full = folders
    df = load_dataset(root, 'folder')
    write_market_csv(tmp_path/'k.csv', full)
    table = pairs.load_poses(tmp_path/'k.csv', df)
    assert table.names == df.path.tolist() and torch.equal(table.of(df), full.joints)
    write_market_csv(tmp_path/'one.csv', PoseTable(full.names[:2], full.joints[:2]))
    # its own names differ, but `Bo/0.jpg` may be asked for
    part = pairs.load_poses(tmp_path/'one.csv', df)
    assert part.names == df.path[:2].tolist() and (part.of(df)[2:] == 0).all()
    an = df[df.pid == 1]
    assert pairs.load_poses(tmp_path/'one.csv', an).names == ['0.jpg','1.jpg']
    assert pairs.load_poses(tmp_path/'one.csv', an, by_path=True).names == an.path.tolist()
    assert pairs.poses_for(df, table)[0].tolist() == [0,1,2,3]
    bare = PoseTable(['0.jpg'], full.joints[:1])
    error(lambda: pairs.poses_for(df, bare), df.path[0], df.path[2], 'same base name')
    assert pairs.poses_for(an, bare)[0].tolist() == [0]
    assert pairs.poses_for(df, PoseTable([df.path[3]], full.joints[3:]))[0].tolist() == [3]
    for p in ('An','Bo'): paint(root/'train'/p/'2.jpg', seed=9)
    paint(root/'train'/'Bo'/'3.jpg', seed=9)
    more = load_dataset(root, 'folder')
    # `2.jpg` twice, but the table does not know it
    some = more[~more.path.str.contains('/[01].jpg')]
    assert pairs.poses_for(some, PoseTable(['3.jpg'], full.joints[:1]))[0].tolist() == [2]

def test_poses_of_what_is_not_read(block, folders, tmp_path):
    "Names that are pictures of the set elsewhere are counted; others are of another set"
    from posereid.pose.table import PoseTable
    from posereid.pose.files import write_market_csv
    root, full = folders
    df = load_dataset(root, 'folder')
    df = df[df.pid == 1]
    write_market_csv(tmp_path/'k.csv', full)
    table = pairs.load_poses(tmp_path/'k.csv', df, root)
    assert table.notes == {'pictures of the set that are not '
                           'read here': ['train/Bo/0.jpg','train/Bo/1.jpg']} and len(table) == 2
    write_market_csv(tmp_path/'k.csv', PoseTable(['train/An/0.jpg','strange.jpg'], full.joints[:2]))
    error(lambda: pairs.load_poses(tmp_path/'k.csv', df, root), '1 of 2 poses', 'strange.jpg')
    paint(root/'train'/'@eaDir'/'strange.jpg')
    # what a program made is no picture of the set
    error(lambda: pairs.load_poses(tmp_path/'k.csv', df, root), 'strange.jpg')
    df.attrs['also'] = ['strange.jpg']  # the reader knows it, as the other boxes of CUHK03
    assert pairs.load_poses(tmp_path/'k.csv', df, root).notes == {'pictures of the set that are '
        'not read here': ['strange.jpg']}
    write_market_csv(tmp_path/'k.csv',
                     PoseTable(['train/An/0.jpg','train/Bo/0.png'], full.joints[:2]))
    # a file of one table says endings
    error(lambda: pairs.load_poses(tmp_path/'k.csv', df, root), 'Bo/0.png', 'ending')
    paint(root/'train'/'Bo'/'2.jpg')
    write_market_csv(tmp_path/'k.csv', PoseTable(['train/Bo/2.jpg'], full.joints[:1]))
    error(lambda: pairs.load_poses(tmp_path/'k.csv', df, root), tmp_path/'k.csv',
          'not one of its 1 poses', df.path.iloc[0])

def test_a_file_a_picture_of_more_than_is_read(block, folders, tmp_path):
    "Files that drop the ending: pictures of the set that are not read, whatever their ending, are told once and by one sentence"
    import json
    root, full = folders
    for i in range(4):
        paint(root/('flat' if i < 2 else 'more')/f'p{i}.{"png" if i == 3 else "jpg"}', seed=i)
    df = make_manifest([dict(path=str(root/'flat'/f'p{i}.jpg'), pid=1, split='train')
                        for i in range(2)])
    (tmp_path/'k').mkdir()
    for i, k in enumerate(full.joints):
        ((tmp_path/'k'/f'p{i}_keypoints.json')
         .write_text(json.dumps(dict(people=[dict(pose_keypoints_2d=k.flatten().tolist())]))))
    assert (pairs.load_poses(tmp_path/'k', df, root).notes
            == {'pictures of the set that are not read here': ['p2.jpg','p3.jpg']})
    error(lambda: pairs.load_poses(tmp_path/'k', df, tmp_path/'k'), '2 of 4 poses', 'p2.jpg')

def test_poses_without_a_joint(block, folders, tmp_path):
    from posereid.pose.table import PoseTable
    from posereid.pose.files import write_market_csv
    root, full = folders
    df = load_dataset(root, 'folder')
    write_market_csv(tmp_path/'k.csv', PoseTable(full.names, full.joints*0))
    error(lambda: pairs.load_poses(tmp_path/'k.csv', df, root),
          'not one of its 4 poses has a joint', 'posereid_pose')
    error(lambda: pairs.poses_for(df, PoseTable(df.path.tolist(), full.joints*0)),
          '4 of the 4 pictures', 'all are missing')
    error(lambda: pairs.poses_for(df, PoseTable(['else.jpg'], full.joints[:1])),
          'None of the 4 pictures', df.path[0])

def test_a_tenth_of_the_joints_may_lie_outside(block, folders, tmp_path):
    from posereid.pose.table import PoseTable
    from posereid.pose.files import write_market_csv
    root, full = folders
    df = load_dataset(root, 'folder')
    n = int((full.joints[...,2] > 0).sum())
    for out in (n//10, n//10+1):
        far = full.joints.clone()
        at = (far[...,2] > 0).nonzero()[-out:]
        far[at[:,0], at[:,1], 0] = -9.
        write_market_csv(tmp_path/'k.csv', PoseTable(full.names, far))
        if out > n//10:
            error(lambda: pairs.load_poses(tmp_path/'k.csv', df), f'{out} of {n} joints', 'x=-9',
                  'height 64 and width 32')
            continue
        table = pairs.load_poses(tmp_path/'k.csv', df)
        assert ((table.joints[at[:,0], at[:,1]] == 0).all()
                and int((table.joints[...,2] > 0).sum()) == n-out)
        assert (len(table.notes['pictures with joints outside, taken as missing'])
                == len(at[:,0].unique()))

def test_poses_must_be_of_their_pictures_size(block, folders, tmp_path):
    "The median pose spans a third of the height at least, and less than a half is said; poses of a few joints say nothing"
    from posereid.pose.bank import pose_heights
    from posereid.pose.table import PoseTable
    from posereid.pose.files import write_market_csv
    root, full = folders
    df = load_dataset(root, 'folder')
    y, seen = full.joints[...,1], full.joints[...,2] > 0
    by_hand = torch.stack([(v[s].max()-v[s].min())/64 for v, s in zip(y, seen)])
    torch.testing.assert_close(pose_heights(full.joints, (64,32)), by_hand)
    torch.testing.assert_close(pose_heights(full.joints,
                                            torch.tensor([[64,32],[128,32],[64,9],[32,32]])),
                               by_hand/torch.tensor([1,2,1,.5]))
    few = full.joints.clone(); few[1:3,:9] = 0; few[3,:8] = 0  # nine joints, nine, ten
    assert (pose_heights(few, (64,32)).isnan().tolist() == [False,True,True,False]
            and pose_heights(few, (64,32), 9).isfinite().all())
    k = few[3:]; s = k[0,:,2] > 0
    # missing joints, at 0, do not count
    torch.testing.assert_close(pose_heights(k, (64,32))[0], (k[0,s,1].max()-k[0,s,1].min())/64)
    def load(joints, share):
        joints = joints.clone(); joints[...,:2] *= (share/by_hand.median())
        write_market_csv(tmp_path/'k.csv', PoseTable(full.names, joints))
        return pairs.load_poses(tmp_path/'k.csv', df)
    assert len(load(full.joints, .36)) == 4 and any('small poses' in o and '36%' in o
                                                    for o in load(full.joints, .36).notes)
    assert not load(full.joints, .52).notes
    error(lambda: load(full.joints, .31), tmp_path/'k.csv', '31% of the height', 'scale')
    # three poses of nine joints
    short = full.joints.clone(); short[:3,9:] = 0; short[:3,:,:2] *= .1
    assert not load(short, by_hand.median()).notes

def test_frames_belong_to_their_poses(block, folders, tmp_path):
    "Rows with frames of their own stay with them when other rows are left out"
    import json
    root, full = folders
    for i in range(4): shutil.copy(root/full.names[i], paint(root/'flat'/f'p{i}.jpg'))
    (tmp_path/'k').mkdir()
    for i, scale in enumerate((8,1,2,4)):
        k = full.joints[i].clone(); k[:,:2] = (k[:,:2]+.5)*scale-.5
        k[full.joints[i,:,2] == 0] = 0
        people = [dict(pose_keypoints_2d=k.flatten().tolist())]
        (tmp_path/'k'/f'p{i}_keypoints.json').write_text(json.dumps(dict(people=people,
                    canvas_width=32*scale, canvas_height=64*scale)))
    df = make_manifest([dict(path=str(root/'flat'/f'p{i}.jpg'), pid=1, split='train')
                        for i in (1,3)])
    got = pairs.load_poses(tmp_path/'k', df, root)
    want = full.joints[[1,3]]
    assert ((got.of(df)-want)[want[...,2] > 0][:,:2].abs() < 1e-2).all()
