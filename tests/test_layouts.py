"Readers of every layout: toy sets in their true forms, independent counts, and input that somebody broke"
import os
import shutil
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from posereid.core import InputError
from posereid.data import market as L
from posereid.data import mars as mars_module
from posereid.data.cuhk03 import BOXES
from posereid.matlab import mat_table
from posereid.data.market import account, read_duke, read_market, read_msmt17, reading_notes
from posereid.data.own import camera_rule, number_people, read_csv, read_folder
from posereid.data.layouts import (check_test, check_train, find_layout, load_dataset, matched,
                                   reader_choices, there_are, typed)
from posereid.metrics.protocols import multi_query, pool_features
from posereid.data.cuhk03 import read_cuhk03, read_cuhk03_split
from posereid.data.mars import read_mars, read_mars_tracks
from posereid.matlab import read_mat
from posereid.data.manifest import make_manifest, pick
from posereid.synth.sets import (toy_sets, write_mat)
from posereid.synth.world import tiny_world


def error(f, *words):
    "The one-sentence error that `f` must raise"
    with pytest.raises(InputError) as e: f()
    said = str(e.value)
    assert '\n' not in said and said[-1] in '.?)', said
    for w in words: assert str(w) in said, (w, said)
    return said

def paint(path, size=(8,16), seed=0, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3),
                        dtype=np.uint8)).save(path, **kw)
    return path

def files(root): return sum(len(fs) for _, _, fs in os.walk(root))

def books_meet(df, root):
    b = account(df, root)
    assert (b['files'] == files(root) == b['read'] + b['ignored'] + b['skipped']
            + sum(b['unread'].values())), b
    return b

@pytest.fixture(scope='module')
def sets(): return toy_sets()

@pytest.fixture(scope='module')
def target(): return tiny_world()/'target'

@pytest.fixture
def market(target, tmp_path): return Path(shutil.copytree(target, tmp_path/'set'))

@pytest.fixture
def mars(sets, tmp_path): return Path(shutil.copytree(sets/'MARS', tmp_path/'MARS'))

# --- every layout on files of the true form

def test_all_layouts_are_found_and_read(sets):
    for folder, name in {'Market-1501':'market1501', 'DukeMTMC-reID':'dukemtmc',
                         'cuhk03-np':'cuhk03', 'cuhk03-np/labeled':'cuhk03', 'MARS':'mars'}.items():
        assert find_layout(sets/folder)[0] == name
    for folder, name in {'Market-1501':None, 'DukeMTMC-reID':None, 'cuhk03-np':'cuhk03-detected',
                         'MARS':None}.items():
        df = load_dataset(sets/folder, name)
        assert df.split.isin(['train','query','gallery']).all() and (df.camid > 0).all()
        books_meet(df, sets/folder)

def test_either_order_of_name_and_root(sets):
    assert (load_dataset('dukemtmc', sets/'DukeMTMC-reID')
            .equals(load_dataset(sets/'DukeMTMC-reID', 'dukemtmc')))
    error(lambda: load_dataset('duke', sets/'DukeMTMC-reID'), "'dukemtmc'")
    error(lambda: load_dataset(sets/'DukeMTMC-reID', boxes='labeled'), 'dukemtmc', 'boxes')

def test_duke(target, sets):
    df, src = read_duke(sets/'DukeMTMC-reID'), read_market(target)
    assert (df.split == 'train').sum() == (src.split == 'train').sum()
    assert len(df) == (src.pid >= 0).sum() and df.pid.min() > 0
    content = lambda d: sorted(Path(p).read_bytes() for p in d.path)
    assert content(df) == content(src[src.pid >= 0])
    assert check_test(df).attrs['unmatched'] == 0

def test_cuhk03_forms_agree(target, sets, tmp_path):
    pytest.importorskip('h5py')
    for b, n in (('labeled', 108), ('detected', 107)):
        raw, np_ = (read_cuhk03(sets/'cuhk03', b, unpack=tmp_path/b),
                    read_cuhk03(sets/'cuhk03-np', b))
        key = lambda d: sorted((p, c, s, Image.open(f).tobytes())
                               for p,c,s,f in zip(d.pid, d.camid, d.split, d.path))
        assert len(raw) == n and key(raw) == key(np_)
        assert (raw.attrs['layout'] == f'CUHK03 raw file, {b}'
                and set(raw.dataset) == {f'cuhk03-{b}'})
        q = pick(raw, 'query')
        assert not q.duplicated(['pid','camid']).any() and matched(raw).all()
        assert not set(raw.pid[raw.split == 'train']) & set(raw.pid[raw.split != 'train'])
    again = read_cuhk03(sets/'cuhk03', 'labeled', unpack=tmp_path/'labeled')
    assert len(again) == 108

def test_cuhk03_never_guesses(sets, tmp_path):
    error(lambda: load_dataset(sets/'cuhk03-np'), 'labeled', 'detected')
    error(lambda: read_cuhk03(sets/'cuhk03-np', 'label'), "'labeled'")
    error(lambda: read_cuhk03(sets/'cuhk03-np'/'labeled', 'detected'), 'no detected boxes')
    shutil.copytree(sets/'cuhk03-np'/'detected', tmp_path/'x'/'detected')
    assert load_dataset(tmp_path/'x').attrs['layout'] == 'CUHK03 folders, detected'
    error(lambda: read_cuhk03(tmp_path), tmp_path, 'were expected')
    (tmp_path/'raw').mkdir()
    (tmp_path/'raw'/'cuhk-03.mat').touch()
    error(lambda: load_dataset(tmp_path/'raw'), 'cuhk03_new_protocol_config_labeled.mat')

def test_cuhk03_raw_without_h5py(sets, monkeypatch, tmp_path):
    if not (sets/'cuhk03').is_dir(): pytest.skip('written without h5py')
    import builtins
    real = builtins.__import__
    def no_h5py(name, *a, **k):
        if name == 'h5py': raise ImportError
        return real(name, *a, **k)
    monkeypatch.setattr(builtins, '__import__', no_h5py)
    error(lambda: read_cuhk03(sets/'cuhk03', 'labeled', unpack=tmp_path/'u'), 'pip install h5py')

def test_mars_splits(mars):
    t, df = read_mars_tracks(mars), read_mars(mars, splits='all')
    n = t.groupby('half').n.sum()
    assert (df.split == 'train').sum() == n['train'] and (df.split == 'gallery').sum() == n['test']
    q = pick(df, 'query')
    assert q.tracklet.nunique() == t['query'].sum() and len(q) == t.n[t['query']].sum()
    assert set(q.path) <= set(df.path[df.split == 'gallery'])
    assert matched(df).all() and {-1, 0} <= set(df.pid[df.split == 'gallery'])
    assert read_mars(mars).split.unique().tolist() == ['train']
    books_meet(df, mars)
    shutil.rmtree(mars/'info')
    assert (len(read_mars(mars)) == n['train']
            and (read_mars(mars, splits='all').split == 'gallery').sum() == n['test'])
    error(lambda: read_mars(mars, splits=('query',)), mars/'info', 'query_IDX.mat')

def test_mars_without_name_lists_is_the_same(mars):
    want = read_mars(mars, splits='all')
    for h in ('train','test'): (mars/'info'/f'{h}_name.txt').unlink()
    assert read_mars(mars, splits='all').equals(want)

def test_pooling_against_a_loop():
    rng = np.random.default_rng(0)
    for how in ('max','mean'):
        f, g = rng.normal(size=(40,5)).astype(np.float32), rng.integers(0, 7, 40).astype(str)
        got, first = pool_features(f, g, how)
        assert g[first].tolist() == list(dict.fromkeys(g)) and got.numpy().dtype == f.dtype
        for l, v in zip(g[first], got):
            assert np.allclose(v, getattr(np, how)(f[g == l], axis=0), atol=1e-6)
    error(lambda: pool_features(f, g, 'median'), 'mean')
    error(lambda: pool_features(f, g[:3]), '40', '3')

def test_multi_query(market):
    df = read_market(market)
    for p in pick(df, 'query').path:
        shutil.copy(p, (market/'gt_bbox').mkdir(exist_ok=True) or market/'gt_bbox')
    df = read_market(market, 'all')
    q, m = pick(df, 'query'), pick(df, 'multi')
    f = np.random.default_rng(0).normal(size=(len(m), 3))
    got = multi_query(f, m.pid, m.camid, q.pid, q.camid)
    for v, p, c in zip(got, q.pid, q.camid):
        assert np.allclose(v, f[((m.pid == p) & (m.camid == c)).to_numpy()].mean(0))
    error(lambda: multi_query(f[:1], m.pid[:1], m.camid[:1], q.pid, q.camid), 'no picture')

# --- MATLAB files

def test_mat_against_scipy(tmp_path, sets):
    io = pytest.importorskip('scipy.io')
    x = dict(a=np.arange(6, dtype=np.uint8).reshape(2,3), b=np.float64([[1.5,np.nan]]),
             c=np.int64([[7]]), s=np.empty((2,1), object))
    x['s'][:,0] = ['ab', 'ü']
    for zipped in (False, True):
        io.savemat(tmp_path/'x.mat', x, do_compression=zipped)
        got = read_mat(tmp_path/'x.mat')
        for k in 'abc': assert np.array_equal(got[k], x[k], equal_nan=k == 'b')
        assert got['s'] == ['ab', 'ü']
    for f in (sets/'MARS'/'info').glob('*.mat'):
        for k, v in io.loadmat(f).items():
            if k[0] != '_': assert np.array_equal(read_mat(f)[k], v)
    write_mat(tmp_path/'y.mat', n=['one','two'])
    assert [str(o[0]) for o in io.loadmat(tmp_path/'y.mat')['n'].ravel()] == ['one','two']

def test_broken_mat_files(tmp_path, sets):
    good = (sets/'MARS'/'info'/'tracks_test_info.mat').read_bytes()
    f = tmp_path/'x.mat'
    error(lambda: read_mat(f), f, 'cannot be read')
    for raw, word in ((b'', '0 bytes'), (b'hello', 'no MATLAB file'),
                      (b'\x89HDF\r\n\x1a\n'+bytes(200), '7.3'),
                      (b'MATLAB 7.3 MAT-file'.ljust(600), '7.3'), (good[:-40], 'broken'),
                      (good[:150], 'broken'), (good[:128]+os.urandom(300), f)):
        f.write_bytes(raw)
        error(lambda: mat_table(f, 'track_test_info'), f, word)
    rng = np.random.default_rng(0)
    for _ in range(60):  # whatever a byte turns into, the answer is a table or a sentence
        raw = bytearray(good)
        raw[rng.integers(128, 240)] = rng.integers(256)
        f.write_bytes(raw)
        try: mars_module._tracks(f, 'track_test_info')
        except InputError as e: assert str(f) in str(e)

def test_wrong_cuhk03_splits(sets, tmp_path):
    if not (sets/'cuhk03').is_dir(): pytest.skip('written without h5py')
    root = Path(shutil.copytree(sets/'cuhk03', tmp_path/'c'))
    f = root/'cuhk03_new_protocol_config_labeled.mat'
    good = read_mat(f)
    def put(**kw): write_mat(f, **{k: v for k, v in {**good, **kw}.items() if v is not None})
    for kw, words in ((dict(train_idx=None), ['train_idx']),
                      (dict(train_idx=good['train_idx']-1), ['from 0']),
                      (dict(query_idx=good['query_idx']+200), ['count from 1']),
                      (dict(query_idx=good['train_idx']), ['two parts']),
                      (dict(query_idx=good['query_idx'][1:]), ['no part']),
                      (dict(labels=good['labels'][1:]), ['same number']),
                      (dict(camId=3-good['camId']), ['view']),
                      (dict(filelist=['x.png']+good['filelist'][1:]), ['x.png']),
                      (dict(filelist=good['labels']), ['cell of texts'])):
        put(**kw)
        error(lambda: read_cuhk03_split(f), f, *words)
    put(filelist=['5_999_1_01.png']+good['filelist'][1:])
    error(lambda: read_cuhk03(root, 'labeled', unpack=tmp_path/'u'), '5_999_1_01.png')
    put()
    n = len(read_cuhk03(root, 'labeled', unpack=tmp_path/'u'))
    shutil.copy(root/'cuhk03_new_protocol_config_detected.mat', f)
    error(lambda: read_cuhk03(root, 'labeled', unpack=tmp_path/'u'), 'not named in', "odd='skip'")
    df = read_cuhk03(root, 'labeled', unpack=tmp_path/'u', odd='skip')
    assert len(df) == n-1 and len(df.attrs['skipped']) == 1

def test_broken_cuhk03_raw(sets, tmp_path):
    if not (sets/'cuhk03').is_dir(): pytest.skip('written without h5py')
    root = Path(shutil.copytree(sets/'cuhk03', tmp_path/'c'))
    mat = root/'cuhk03_release'/'cuhk-03.mat'
    raw = mat.read_bytes()
    for bad in (b'', b'MATLAB 5.0 MAT-file'.ljust(300), raw[:len(raw)//2], raw[:600]):
        mat.write_bytes(bad)
        error(lambda: read_cuhk03(root, 'labeled', unpack=tmp_path/'u'), mat)
        assert not (tmp_path/'u').exists()

# --- MARS tables that do not fit

def test_wrong_mars_tables(mars):
    info = mars/'info'
    t, q = (read_mat(info/'tracks_test_info.mat')['track_test_info'],
            read_mat(info/'query_IDX.mat')['query_IDX'])
    names = (info/'test_name.txt').read_text().split()
    def put(a=t, b=q, n=names):
        write_mat(info/'tracks_test_info.mat', track_test_info=a)
        write_mat(info/'query_IDX.mat', query_IDX=b)
        (info/'test_name.txt').write_text('\n'.join(n))
    read = lambda: read_mars(mars, splits='all')
    junk = int(np.flatnonzero(t[:,2] == -1)[0])+1
    for kw, words in ((dict(b=q*0), ['count test tracklets']),
                      (dict(b=q+500), ['count test tracklets']),
                      (dict(b=np.array([[junk]], np.uint16)), ['junk']),
                      (dict(a=t[:,:3]), ['of shape']), (dict(a=t[1:]), ['row 1']),
                      (dict(n=names[:-1]), ['names', 'counts']), (dict(n=names[::-1]), ['sorted']),
                      (dict(n=['0002C1T9999F001.jpg']+names[1:]), ['0002C1T9999F001.jpg'])):
        put(**kw)
        error(read, *words)
    put()
    gone = mars/'bbox_test'/names[-1][:4]/names[-1]
    gone.unlink()
    error(read, 'test_name.txt', names[-1])
    (info/'test_name.txt').write_bytes(b'\xff\xfe\x00')
    error(read, 'test_name.txt')
    write_mat(info/'tracks_test_info.mat', other=t)
    error(read, 'track_test_info', 'other')

def test_a_picture_that_mars_does_not_list(mars):
    extra = paint(mars/'bbox_train'/'0999'/'0999C1T0001F001.jpg')
    error(lambda: read_mars(mars), extra, 'train_name.txt')
    df = read_mars(mars, odd='skip')
    assert list(df.attrs['skipped']) == [str(extra)] and str(extra) not in set(df.path)
    books_meet(df, mars)

# --- names, links, odd files

def test_names_off_the_grammar(market):
    bad = [paint(market/'query'/n)
           for n in ('holiday.jpg', '0003_c1s1_000551_00 (1).jpg', '０００２_c1s1_000451_03.jpg',
                     '0002_c0s1_000451_03.jpg', 'Ünï_c1s1_000451_03.png')]
    odd = (market/'query'/'note.txt'); odd.write_text('x')
    (market/'query'/'.hidden.jpg').touch()
    (market/'query'/'0002_c1s1_000451_09.jpg').mkdir()
    paint(market/'query'/'0002_c1s1_000451_09.jpg'/'0002_c1s1_000451_10.jpg')
    error(lambda: read_market(market), market/'query', '0002_c1s1_000451_03.jpg')
    df = read_market(market, odd='skip')
    assert set(df.attrs['skipped']) == set(map(str, bad)) and len(df) == 120
    assert len(df.attrs['ignored']) == 3
    assert books_meet(df, market)['skipped'] == 5
    error(lambda: read_market(market, odd='drop'), "'drop'")

def test_names_that_are_no_utf8(market):
    name = b'0002_c1s1_000451_03_\xff.jpg'
    try:
        ((Path(os.fsdecode(os.fsencode(market/'query')+b'/'+name)))
         .write_bytes(paint(market/'x.jpg').read_bytes()))
    except OSError: pytest.skip('no such names here')
    assert books_meet(read_market(market), market)['read'] == 121

def test_links(market, tmp_path):
    out = paint(tmp_path/'elsewhere'/'0002_c1s1_000451_03.jpg')
    link = market/'query'/out.name
    link.symlink_to(out)
    error(lambda: read_market(market), link, 'out of the set', out, 'links=True')
    assert list(read_market(market, odd='skip').attrs['skipped']) == [str(link)]
    assert str(link) in set(read_market(market, links=True).path)
    books_meet(read_market(market, odd='skip'), market)
    link.unlink(); link.symlink_to(market/'query'/'none.jpg')
    error(lambda: read_market(market), link, 'not there')
    link.unlink(); link.symlink_to(link.name)  # a link to itself
    error(lambda: read_market(market), link)
    assert len(read_market(market, odd='skip').attrs['skipped']) == 1
    link.unlink(); link.symlink_to(next((market/'bounding_box_train').iterdir()))  # within the set
    assert str(link) in set(read_market(market).path)
    link.unlink()
    # a folder that is a link
    shutil.move(market/'query', tmp_path/'store'); (market/'query').symlink_to(tmp_path/'store')
    assert len(read_market(market)) == 120

def test_one_name_in_two_folders(market):
    one = next((market/'bounding_box_train').iterdir())
    shutil.copy(one, market/'query')
    assert len(read_market(market)) == 121

# --- sets of one's own

def own(root, splits=('train','query','gallery')):
    for i, (s, p, n) in enumerate((('train','Ann','1_c1.jpg'), ('train','Ann','2_c2.jpg'),
                                   ('train','Bob','1_c1.jpg'), ('query','Cy','1_c1.jpg'),
                                   ('gallery','Cy','2_c2.jpg'))):
        if s in splits: paint(root/s/p/n, seed=i)
    return root

def test_own_folders(tmp_path):
    df = load_dataset(own(tmp_path/'o'))
    assert df.attrs['people'] == dict(Ann=1, Bob=2, Cy=3) and df.camid.tolist() == [0]*5
    assert 'no cameras' in df.attrs['cameras'] and 'no cameras' in check_test(df).attrs['cameras']
    assert read_folder(tmp_path/'o', camera='_c([0-9]+)').camid.tolist() == [1,2,1,1,2]
    assert (len(read_folder(tmp_path/'o'/'train')) == 3
            and set(read_folder(tmp_path/'o'/'train').split) == {'train'})
    error(lambda: read_folder(tmp_path/'o', camera='_c('), 'regular expression')
    error(lambda: read_folder(tmp_path/'o', camera='_c1'), 'brackets')
    error(lambda: read_folder(tmp_path/'o', camera='_k([0-9])'), '_c1.jpg')
    error(lambda: read_folder(tmp_path/'none'), 'does not exist')
    (tmp_path/'e').mkdir()
    error(lambda: read_folder(tmp_path/'e'), 'it is empty')
    (tmp_path/'o'/'train'/'Dee').mkdir()
    (tmp_path/'o'/'train'/'readme.txt').touch()
    books_meet(read_folder(tmp_path/'o'), tmp_path/'o')

def test_numbered_folders_keep_their_numbers(tmp_path):
    for i, p in enumerate(('7','0012','-1','0')): paint(tmp_path/'gallery'/p/'a.jpg', seed=i)
    paint(tmp_path/'query'/'7'/'b.jpg')
    assert sorted(read_folder(tmp_path).pid) == [-1,0,7,7,12]
    paint(tmp_path/'query'/'007'/'b.jpg')  # 7 and 007: names, not numbers
    assert (read_folder(tmp_path).attrs['people']
            == {n: i for i, n in enumerate(sorted(['7','007','0012','-1','0']), 1)})

def test_cameras_for_some_are_no_rule(tmp_path):
    rows = [dict(path=f'/x/{i}.jpg', pid=1, camid=c, split=s)
            for i, (c, s) in enumerate(((0,'query'), (1,'gallery'), (2,'gallery')))]
    error(lambda: camera_rule(make_manifest(rows)), '/x/0.jpg', 'camid')
    error(lambda: check_test(make_manifest(rows)), '/x/0.jpg')
    assert 'no cameras' in camera_rule(make_manifest([{**r, 'camid':0} for r in rows]))
    same = [dict(path='/x/a.jpg', pid=1, camid=0, split=s) for s in ('query','gallery')]
    error(lambda: make_manifest(same), 'twice')
    assert len(make_manifest([{**r, 'camid':3} for r in same])) == 2
    error(lambda: make_manifest([{**r, 'camid':3} for r in same]+same[:1]), 'twice')
    error(lambda: make_manifest([dict(same[0], camid=3), dict(same[1], camid=4)]), 'twice')

@pytest.mark.parametrize('sep', [',', ';', '\t', '|'])
def test_csv_separators(sep, tmp_path):
    for i, n in enumerate(('a b.jpg', 'ü.jpg')): paint(tmp_path/n, seed=i)
    rows = [('path','pid','split'), ('a b.jpg','1','train'), ('ü.jpg','2','train')]
    (tmp_path/'m.csv').write_bytes(b'\xef\xbb\xbf'
                                   + '\r\n'.join(sep.join(r) for r in rows).encode())
    df = load_dataset(tmp_path/'m.csv')
    assert df.pid.tolist() == [1,2] and Path(df.path[1]).name == 'ü.jpg'

@pytest.mark.parametrize('text',
                         ['path,pid,split\n,1,train\n', 'path,pid,split\na.jpg,1e300,train\n',
                          'path,pid,split\na.jpg,inf,train\n', 'path,pid,split\na.jpg,nan,train\n',
                          'path,pid,split,camid\na.jpg,1,train,-3\n',
                          'path pid split\na.jpg 1 train\n', '\x00\x00\x00',
                          'path,pid,split\na.jpg,1,train,7,8\nb,c\n', '{"path": "a.jpg"}',
                          'path,pid,split\n../../../../../nowhere/a.jpg,1,train\n'])
def test_broken_csv(text, tmp_path):
    paint(tmp_path/'a.jpg')
    (tmp_path/'m.csv').write_text(text)
    error(lambda: read_csv(tmp_path/'m.csv'), tmp_path/'m.csv')

def test_csv_that_is_none(tmp_path):
    error(lambda: read_csv(tmp_path), tmp_path, 'folder')
    (tmp_path/'m.csv').write_bytes('path,pid,split\na.jpg,1,train\n'.encode('utf-16'))
    error(lambda: read_csv(tmp_path/'m.csv'), tmp_path/'m.csv')

def test_unknown_folders_say_what_was_found(tmp_path):
    (tmp_path/'pictures').mkdir(); (tmp_path/'readme.md').touch()
    error(lambda: load_dataset(tmp_path), tmp_path, 'pictures/', 'readme.md', 'bbox_train')
    error(lambda: load_dataset(tmp_path/'none'), 'does not exist')

# --- whose number is it

@pytest.mark.parametrize('own,split,kw,want', [
    # numbers from 1 stay, with junk and distractors in the gallery
    ([3,7,-1,0], 'tqgg', {}, [3,7,-1,0]),
    # 0 is asked for: they are the set's own
    ([3,0,-1,7], 'tqgg', {}, [3,2,1,4]),
    ([3,7,-2,0], 'tqgg', {}, [3,4,1,2]),                            # below −1, wherever it is
    # said to be none: left as they are, `check_train` refuses them
    ([0,5,0,-1], 'tqgm', dict(own_ids=False), [0,5,0,-1]),
    ([-1,3,3,8], 'tqgg', dict(own_ids=True), [1,2,2,3]),
    # said to be people, though the rule would not need it
    ([3,7,-1,0], 'tqgg', dict(own_ids=True), [3,4,1,2]),
    (['007','12','7',' 9'], 'ttgq', {}, [7,12,7,9]),
    (['Bo','An','Bo','Cy'], 'ttqg', {}, [2,1,2,3]),
    ([2**53,1,1,1], 'tqgg', {}, [2**53,1,1,1])])
def test_people_of_any_numbers(own, split, kw, want):
    pids, said = number_people(own, [dict(t='train', q='query', g='gallery', m='multi')[s]
                                     for s in split], **kw)
    assert list(pids) == want
    rank = max(want) == len(set(own)) and min(want) == 1
    assert [f'1 to {len(set(own))}' in o and 'own_id' in o for o in said] == [True]*rank

def test_junk_among_the_asked(tmp_path):
    for split in ('train','query'):
        error(lambda: number_people([-1,0,3], [split, 'gallery', 'gallery'], 'my.csv'), 'my.csv',
              '1 training or query', 'pid -1', 'own_ids=true')
    # 0 beside −1: a protocol, not somebody's numbers
    error(lambda: number_people([-1,0,3], ['train']*3), 'pid -1')
    error(lambda: number_people([-1,3,3], ['train']*3, own_ids=False), 'pid -1')

@pytest.mark.parametrize('own', [[1.5,2,3], [2**53+2.,1,1], ['','',''], [' ','a','b'], [None,1,2]])
def test_ids_that_are_none(own, tmp_path):
    for i in range(3): paint(tmp_path/f'{i}.jpg', seed=i)
    rows = '\n'.join(f'{i}.jpg,"{"" if o is None else o}",train' for i, o in enumerate(own))
    (tmp_path/'m.csv').write_text(f'path,pid,split\n{rows}\n')
    error(lambda: read_csv(tmp_path/'m.csv'), tmp_path/'m.csv', 'pid')

def test_own_ids_of_a_csv(tmp_path):
    "Printed ids are kept, a column of one's own is not written over, and a part of the set has the numbers of the whole"
    for i in range(4): paint(tmp_path/f'{i}.jpg', seed=i)
    rows = [('0.jpg','0030','train','007'), ('1.jpg','0030','train','007'),
            ('2.jpg','0000','query','010'), ('3.jpg','0000','gallery','010')]
    def put(n):
        (tmp_path/'m.csv').write_text('\n'.join(','.join(r[:n])
                                                for r in [('path','pid','split','own_id'), *rows]))
    put(3)
    df = read_csv(tmp_path/'m.csv')
    assert df.own_id.tolist() == ['0030','0030','0000','0000'] and df.pid.tolist() == [2,2,1,1]
    assert (reading_notes(df) == [df.attrs['cameras'], *df.attrs['notes']]
            and 'numbered 1 to 2' in df.attrs['notes'][0])
    assert read_csv(tmp_path/'m.csv', splits=('train',)).pid.tolist() == [2,2]
    assert read_csv(tmp_path/'m.csv', own_ids=False).pid.tolist() == [30,30,0,0]
    put(4)
    assert read_csv(tmp_path/'m.csv').own_id.tolist() == ['007','007','010','010']

def test_own_ids_of_folders(tmp_path):
    for i, p in enumerate(('7','-1','0')): paint(tmp_path/'gallery'/p/'a.jpg', seed=i)
    paint(tmp_path/'query'/'7'/'b.jpg')
    df = read_folder(tmp_path, own_ids=True)
    assert (df.attrs['people'] == {'-1':1, '0':2, '7':3} and df.own_id.tolist()
            == ['7','-1','0','7'] and 'numbered 1 to 3' in df.attrs['notes'][0])
    assert [o[:10] for o in reading_notes(read_folder(tmp_path))] == ['no cameras']
    # −12 is a number, too: by rank of numbers, not of texts
    paint(tmp_path/'gallery'/'-12'/'a.jpg')
    assert read_folder(tmp_path).attrs['people'] == {'-12':1, '-1':2, '0':3, '7':4}

def test_own_ids_as_printed(sets, tmp_path):
    assert set(read_mars(sets/'MARS', splits='all').own_id) >= {'00-1','0000'} and all(len(o) == 4
        for o in read_mars(sets/'MARS').own_id)
    assert '-1' in set(read_market(sets/'Market-1501').own_id)
    if not (sets/'cuhk03').is_dir(): pytest.skip('written without h5py')
    df = read_cuhk03(sets/'cuhk03', 'labeled', unpack=tmp_path/'u')
    assert (df.own_id.tolist() == [os.path.basename(p)[:5] for p in df.path]
            and df.groupby('own_id').pid.nunique().max() == 1)
    both = {n for b in BOXES
            for n in read_cuhk03_split(sets/'cuhk03'/f'cuhk03_new_protocol_config_{b}.mat').name}
    assert df.attrs['also'] == sorted(both)  # a keypoint file may know the other boxes, too

# --- MSMT17 by hand

ROWS17 = dict(train=[('0001/0001_000_14_x_0.jpg',1), ('0000/0000_000_03_x_0.jpg',0)],
              val=[('0001/0001_001_02_x_0.jpg',1), ('0003/0003_000_01_x_0.jpg',3)],
              query=[('0000/0000_000_01_x_0.jpg',0), ('0001/0001_000_15_x_0.jpg',1)],
              gallery=[('0001/0001_001_01_x_0.jpg',1), ('0000/0000_001_02_x_0.jpg',0)])

@pytest.fixture
def msmt(tmp_path):
    root = tmp_path/'MSMT17'
    for i, (kind, rows) in enumerate(ROWS17.items()):
        for j, (n, _) in enumerate(rows): paint(root/('train' if i < 2 else 'test')/n, seed=10*i+j)
        (root/f'list_{kind}.txt').write_text(''.join(f'{n} {i}\n' for n, i in rows))
    return root

def test_msmt17_by_hand(msmt):
    "Rows in the order of the lists; four numbers are taken by the training half (2 by nobody), whether `val` is read or not"
    df = read_msmt17(msmt)
    assert df.pid.tolist() == [2,1,2,4, 5,6, 6,5] and df.own_id.tolist() == ['0001','0000','0001',
        '0003', '0000','0001', '0001','0000']
    assert (df.camid.tolist() == [14,3,2,1, 1,15, 1,2] and df.split.tolist() == ['train']*4
            + ['query']*2 + ['gallery']*2)
    assert [os.path.relpath(p, msmt) for p in df.path[3:5]] == ['train/0003/0003_000_01_x_0.jpg',
        'test/0000/0000_000_01_x_0.jpg']
    few = read_msmt17(msmt, val=False)
    assert (few.pid.tolist() == [2,1, 5,6, 6,5] and 'list_val' not in few.attrs['layout']
            and 'list_val' in df.attrs['layout'])
    assert read_msmt17(msmt, splits=('query','gallery')).pid.tolist() == [5,6, 6,5]
    assert 'test people from 5' in reading_notes(df)[0] and books_meet(df, msmt)['read'] == 8
    (msmt/'list_val.txt').unlink()
    assert read_msmt17(msmt).pid.tolist() == [2,1, 3,4, 4,3]

def test_msmt17_that_does_not_fit(msmt, tmp_path):
    gone = msmt/'train'/ROWS17['train'][0][0]
    raw = gone.read_bytes()
    gone.unlink()
    error(lambda: read_msmt17(msmt), gone, 'list_train.txt', 'not there', "odd='skip'")
    assert read_msmt17(msmt, odd='skip').pid.tolist() == [1,2,4, 5,6, 6,5]
    (tmp_path/'out.jpg').write_bytes(raw)
    gone.symlink_to(tmp_path/'out.jpg')
    error(lambda: read_msmt17(msmt), gone, 'out of the set')
    df = read_msmt17(msmt, odd='skip')
    assert (list(df.attrs['skipped']) == [str(gone)]
            and 'out of the set' in df.attrs['skipped'][str(gone)] and len(df) == 7)
    assert read_msmt17(msmt, links=True).pid.tolist() == [2,1,2,4, 5,6, 6,5]
    for line, words in (('a.jpg', ['line 1', 'a.jpg']), ('a.jpg -1', ['line 1', '-1']),
                        ('0000/0000_000_00_x_0.jpg 0', ['not there'])):
        (msmt/'list_query.txt').write_text(line+'\n')
        error(lambda: read_msmt17(msmt, links=True), 'list_query.txt', *words)
    (msmt/'list_query.txt').unlink()
    error(lambda: read_msmt17(msmt, splits=('query',)), 'list_query.txt', 'does not exist')
    assert (set(read_msmt17(msmt, splits=('train','gallery'), links=True).split)
            == {'train','gallery'})

def test_msmt17_names(msmt):
    assert L.parse_msmt17_name('/x/12345_000_07_0303morning_0015_0.jpg').camid == 7
    for bad in ('0000_000_00_x.jpg', '0000_000_1_x.jpg', '0000_01_x.jpg'):
        error(lambda: L.parse_msmt17_name(bad), bad)
    # a blank in a name: the person is the last word
    spaced = paint(msmt/'test'/'0000'/'0000_002_01 b_0.jpg')
    spaced.rename(odd := msmt/'test'/'0000'/'0000_002_01_b c.jpg')
    (msmt/'list_query.txt').write_text(f'0000/{odd.name} 0\n')
    assert pick(read_msmt17(msmt), 'query').path.tolist() == [str(odd)]

# --- what a reader says, what may be said to it

def test_notes_of_reading():
    df = pd.DataFrame(dict(path=[]))
    assert reading_notes(df) == []
    df.attrs.update(ignored=[f'/a/{c}.txt' for c in 'abc'],
                    skipped={f'/a/{i}.jpg': f'is bad {i}' for i in range(1200)}, notes=['so it is'])
    assert reading_notes(df) == ['pictures skipped: 1,200 (0.jpg, 1.jpg, 2.jpg, …); the first '
                                 'is bad 0', 'files that are no pictures: 3 (a.txt, b.txt, c.txt)',
                                 'so it is']

def test_which_splits_are_there(sets, mars, msmt, market, tmp_path):
    all_ = ('train','query','gallery')
    assert (there_are(sets/'MSMT17_V1', 'msmt17') == there_are(mars, 'mars')
            == there_are(sets/'DukeMTMC-reID', 'dukemtmc') == all_)
    assert there_are(sets/'cuhk03-np', 'cuhk03-labeled') == there_are(sets/'cuhk03-np'/'detected',
        'cuhk03') == all_ == there_are(tmp_path, 'folder')
    shutil.copytree(sets/'cuhk03-np'/'detected'/'query', tmp_path/'np'/'detected'/'query')
    assert there_are(tmp_path/'np', 'cuhk03') == ('query',)
    for f in (market/'query', mars/'bbox_train'): shutil.rmtree(f)
    (mars/'info'/'query_IDX.mat').unlink()
    (msmt/'list_gallery.txt').unlink()
    assert (there_are(market, 'market1501') == ('train','gallery') and there_are(mars, 'mars')
            == ('gallery',) and there_are(msmt, 'msmt17') == ('train','query'))
    assert there_are(market, 'dukemtmc', ('gallery','query')) == ('gallery',)
    if (sets/'cuhk03').is_dir(): assert there_are(sets/'cuhk03', 'cuhk03-labeled') == all_

def test_choices_are_typed(sets):
    known = dict(links=False, own_ids=None, splits=('train',), part='all', threshold=.3,
                 camera=None)
    def one(k, v): return typed({k: v}, known)[k]
    assert ([one('links', o) for o in ('true','YES','no','False')] == [True,True,False,False]
            and one('links', True) is True)
    assert ([one('own_ids', o) for o in ('true','false','none')] == [True,False,None]
            and one('camera', '_c(.)') == '_c(.)')
    assert one('splits', ' query, gallery,') == ('query','gallery') and typed(
        dict(splits='query,multi'), dict(splits='all'))['splits'] == ('query','multi')
    assert (typed(dict(splits='all'), dict(splits='all'))['splits'] == 'all'
            and one('part', 'a,b') == 'a,b')
    assert one('threshold', '.5') == .5 and one('threshold', 1) == 1
    error(lambda: one('threshold', 'x'), "'threshold'", '0.3', "'x'")
    error(lambda: one('links', 'maybe'), "'links'", "'maybe'")
    error(lambda: typed(dict(lnks=True), known, 'Nobody'), 'Nobody', "'lnks'", "'links'")
    error(lambda: typed(dict(a=1), {}), 'but none.')
    assert ('boxes' not in reader_choices('cuhk03-labeled')
            and reader_choices('msmt17')['val'] is True)

# --- fit for training and for testing

def rows(*some):
    return make_manifest([dict(path=f'/x/{i}.jpg', split=s, pid=p, camid=c)
                          for i, (s, p, c) in enumerate(some)])

def test_nobody_is_trained_on_or_asked_for():
    good = [('train',1,1), ('train',1,2), ('train',2,1), ('query',3,1), ('gallery',3,2),
            ('gallery',0,1), ('gallery',-1,1)]
    assert check_train(rows(*good)) is not None and check_test(rows(*good)).attrs['unmatched'] == 0
    for p in (0, -1):
        error(lambda: check_train(rows(*good, ('train',p,1)), 'my set'), 'my set',
              '1 training pictures', '/x/7.jpg', f'pid {p}')
        error(lambda: check_test(rows(*good, ('query',p,1)), 'my set'), 'my set', '1 queries',
              '/x/7.jpg', f'pid {p}')
    fakes = make_manifest([*rows(*good).to_dict('records'),
                           dict(path='/g.jpg', split='train', pid=0, camid=1, is_generated=True)])
    assert check_train(fakes).attrs['single'] == [2]

def test_matches_without_cameras():
    "One camera, or some known and some not: scored without cameras, where a picture is not its own match"
    one = rows(('query',1,3), ('gallery',1,3), ('query',2,3), ('gallery',4,3))
    error(lambda: check_test(one), 'all 4', 'camera 3', '--no_cameras')
    assert (matched(one, False).tolist() == [True,False]
            and check_test(one, cameras=False).attrs['unmatched'] == 1)
    assert 'no cameras' in check_test(one, cameras=False).attrs['cameras']
    part = rows(('query',1,0), ('gallery',1,3), ('gallery',2,3))
    error(lambda: check_test(part), '/x/0.jpg')
    assert check_test(part, cameras=False).attrs['unmatched'] == 0
    alone = make_manifest([dict(path='/x/a.jpg', split=s, pid=1, camid=2)
                           for s in ('query','gallery')])
    error(lambda: check_test(alone, cameras=False), 'none of the 1 queries', 'without them')
    error(lambda: check_test(rows(('query',1,1), ('gallery',2,2))), 'no person is in both')

# --- folders that programs made

def test_sets_beside_what_programs_made(market, mars, tmp_path):
    home = tmp_path/'home'
    shutil.copytree(market, home/'unzipped'/'Market-1501')
    for junk in ('__MACOSX','@eaDir','.trash'): shutil.copytree(market, home/junk/'Market-1501')
    assert find_layout(home) == ('market1501', home/'unzipped'/'Market-1501')
    n = len(read_mars(mars))
    for junk in ('__MACOSX','@eaDir'):
        shutil.copytree(mars/'bbox_train'/sorted(os.listdir(mars/'bbox_train'))[0],
                        mars/'bbox_train'/junk)
    df = read_mars(mars)
    assert len(df) == n and len(df.attrs['ignored']) > 0 and not books_meet(df, mars)['skipped']
    own(tmp_path/'o')
    shutil.copytree(tmp_path/'o'/'train'/'Ann', tmp_path/'o'/'train'/'@eaDir')
    df = read_folder(tmp_path/'o')
    assert (len(df) == 5 and '@eaDir' not in df.attrs['people']
            and sorted(os.path.basename(p) for p in df.attrs['ignored']) == ['1_c1.jpg','2_c2.jpg'])
