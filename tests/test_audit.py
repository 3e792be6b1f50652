"The auditor: published counts on trees of names, faults that somebody planted, and its three forms of report"
import json, os, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from PIL import Image
from posereid.core import InputError
from posereid.data.audit import PUBLISHED, _check_counts, audit, count_splits, look_at
from posereid.data.market import MARKET_FOLDERS, read_market
from posereid.data.manifest import pick
from posereid.synth.sets import toy_sets
from posereid.synth.world import tiny_world


def fails(a): return {f.check for f in a.findings if f.level == 'fail'}
def found(a, check, level='fail'):
    return [f for f in a.findings if f.check == check and f.level == level]
def names(fs): return ' '.join(os.path.basename(p) for f in fs for p in f.files)

@pytest.fixture
def market(tmp_path): return Path(shutil.copytree(toy_sets()/'Market-1501', tmp_path/'set'))

def manifest(kind):
    "A table without files that has every published count of a set"
    want, parts = PUBLISHED[kind], []
    for split in ('train','query','gallery'):
        w, n = want[split], want[split]['pictures']
        special = [-1]*w.get('junk', 0) + [0]*w.get('distractors', 0)
        pids = special + [(1 if split == 'train' else 2000) + i % w['people']
                          for i in range(n-len(special))]
        cams = np.repeat(np.arange(1, len(w['cameras'])+1), w['cameras'])
        np.random.default_rng(0).shuffle(cams)
        path = [f'/set/{MARKET_FOLDERS[split]}/{i}.jpg' + '.jpg'*(i < w.get('doubled', 0))
                for i in range(n)]
        parts.append(pd.DataFrame(dict(path=path, pid=pids, camid=cams, split=split)))
    return pd.concat(parts, ignore_index=True)

@pytest.mark.parametrize('kind', ['market1501', 'dukemtmc', 'cuhk03-labeled', 'cuhk03-detected'])
def test_published_counts_are_met_and_missed(kind):
    df = manifest(kind)
    check = lambda df, skipped=(): [f for f in _check_counts(count_splits(df), PUBLISHED[kind], df,
                                        skipped) if 'unmatched' not in f.text]
    assert [f.level for f in check(df)] in ([], ['ok'])
    less = check(df.iloc[1:], ['/set/bounding_box_train/x0.jpg'])
    n, c = PUBLISHED[kind]['train'], df.camid[0]
    assert ({f.text for f in less}
            == {f"train: {n['pictures']-1:,} pictures, but {n['pictures']:,} are published",
                f"train: camera {c} has {n['cameras'][c-1]-1:,} of {n['cameras'][c-1]:,}"})
    assert all(f.files == ['/set/bounding_box_train/x0.jpg'] for f in less)
    assert 'train: 0 people' in ' '.join(f.text for f in check(df[df.split != 'train']))

def test_a_missed_count_names_the_files(market):
    one = sorted((market/'bounding_box_train').iterdir())[5]
    one.rename(one.with_name('x'+one.name))
    a = audit(market)
    assert a.status == 1 and found(a, 'counts')[0].files == [str(one.with_name('x'+one.name))]
    assert 'train: 59 pictures, but 60 are published' in str(a)

def test_names_without_pictures(market):
    for p in market.rglob('*.jpg'): p.write_bytes(b'')
    a = audit(market)
    assert (a.status == 0 and 'names without pictures' in str(a)
            and audit(market, decode=True).status == 1)

def test_a_whole_toy_set_passes():
    for o, n in {'Market-1501':None, 'DukeMTMC-reID':None, 'cuhk03-np':'cuhk03-detected',
                 'MARS':'mars'}.items():
        a = audit(toy_sets()/o, n, decode=True)
        assert a.status == 0, [f.text for f in a.findings if f.level == 'fail']
        assert 'counts.json' in a.against and found(a, 'counts', 'ok')

def test_raw_cuhk03():
    pytest.importorskip('h5py')
    if not (toy_sets()/'cuhk03').is_dir(): pytest.skip('written without h5py')
    a = audit(toy_sets()/'cuhk03', 'cuhk03-labeled', against='none')
    assert (a.layout == 'CUHK03 raw file, labeled' and a.status == 0
            and a.splits[0]['pictures'] == 60)
    assert 'fail' in str(audit(toy_sets()/'cuhk03', 'cuhk03-labeled'))

def test_planted_faults_are_named(market):
    train, gallery = (sorted((market/'bounding_box_train').iterdir()),
                      sorted((market/'bounding_box_test').iterdir()))
    real = [p for p in gallery if p.name[:4] not in ('0000',) and p.name[0] != '-']
    train[0].write_bytes(train[0].read_bytes()[:-300])
    train[1].write_bytes(b'')
    train[2].write_bytes(b'GIF89a not a picture')
    train[3].rename(train[3].with_name('copy of '+train[3].name))
    shutil.copy(real[0], market/'bounding_box_train'/real[0].name)
    shutil.copy(train[4], train[4].with_name(train[4].name.replace('_0', '_9', 1)
                                             if '_0' in train[4].name else '0'+train[4].name))
    with Image.open(train[5]) as im: im.save(market/'query'/train[5].name.replace('.jpg', '.png'))
    a = audit(market, decode=True)
    # a test person and a test picture in training
    assert a.status == 2 and {'counts','decoding','people','twins','files','leaks'} <= fails(a)
    broken = ' '.join(p for f in found(a, 'decoding') for p in f.files)
    for i in range(3): assert str(train[i]) in broken
    assert 'copy of '+train[3].name in ' '.join(p for f in found(a, 'files') for p in f.files)
    assert real[0].name in names(found(a, 'people')+found(a, 'twins'))
    assert train[5].name.replace('.jpg', '.png') in ' '.join(p for f in found(a, 'twins')
        for p in f.files)
    assert 'other bytes' in str(a)

def test_without_decoding_empty_files_are_seen(market):
    one = sorted((market/'query').iterdir())[0]
    one.write_bytes(b'')
    a = audit(market)
    assert str(one)+' is empty' in found(a, 'sizes')[0].files and not a.decoded

def test_odd_pictures(market):
    train = sorted((market/'bounding_box_train').iterdir())
    Image.new('CMYK', (32,64)).save(train[0], format='JPEG')
    Image.new('RGB', (1,1)).save(train[1])
    Image.fromarray(np.full((64,32), 40000, np.uint16)).save(train[2].with_suffix('.png'))
    train[2].unlink()
    Image.new('L', (9000,9000)).save(train[3], format='PNG')
    a = audit(market, decode=True)
    assert sum(str(train[0]) in p and 'CMYK' in p for f in found(a, 'modes', 'note')
               for p in f.files) == 1
    assert any('I;16' in p for p in found(a, 'modes', 'note')[0].files)
    assert any(str(train[1])+' is 1×1' in p for f in found(a, 'sizes', 'note') for p in f.files)
    assert any('9000×9000' in p for p in found(a, 'decoding')[0].files)
    assert 'error' in look_at(str(market)) and 'error' in look_at('/no/picture.jpg')

def test_a_missing_folder_is_a_finding(market):
    shutil.rmtree(market/'query')
    a = audit(market)
    assert a.status == 1 and 'query' in found(a, 'folders')[0].text
    assert any('query: 0 pictures, but 16' in f.text for f in found(a, 'counts'))

def test_unanswerable_queries_and_people_on_both_sides(market):
    df = read_market(market)
    pid = pick(df, 'query').pid.iloc[0]
    for p in df.path[(df.split == 'gallery') & (df.pid == pid)]: os.unlink(p)
    a = audit(market, against='none')
    n = (df[df.split == 'query'].pid == pid).sum()
    assert (found(a, 'queries', 'note')[0].text.endswith(f': {n} of 16')
            and len(found(a, 'queries', 'note')[0].files) == n)

def test_keypoints():
    root, poses = tiny_world()/'target', tiny_world()/'target_poses.csv'
    a = audit(root, poses=poses)
    assert found(a, 'keypoints', 'ok')[0].text.startswith('120 of 120')

def test_keypoints_that_do_not_fit(market, tmp_path):
    lines = (tiny_world()/'target_poses.csv').read_text().splitlines()
    kept, lost = lines[:-10], [l.split(':')[0] for l in lines[-10:]]
    ((tmp_path/'k.csv')
     .write_text('\n'.join(kept + [kept[1].replace(kept[1].split(':')[0], 'other.jpg')])))
    a = audit(market, poses=tmp_path/'k.csv')
    note = found(a, 'keypoints', 'note')
    assert (note[0].text.startswith('110 of 120')
            and {os.path.basename(p) for p in note[0].files} == set(lost))
    assert note[1].files == ['other.jpg']
    with pytest.raises(InputError): audit(market, poses=tmp_path/'none.csv')

def test_reports(market, tmp_path):
    (market/'query'/'<b>&.jpg').touch()
    a = audit(market)
    d = json.loads(a.json())
    assert d['status'] == 1 and d['splits'][0]['pictures'] == 60 and d['books']['skipped'] == 1
    assert ('<b>&' in str(a) and '<b>&' not in a._repr_html_()
            and '&lt;b&gt;&amp;' in a._repr_html_())
    for k in ('files','read'): assert isinstance(d['books'][k], int)

def test_against(market):
    assert audit(market, against='none').against == '' and audit(market, against='mars').status == 1
    with pytest.raises(InputError, match='market1501'): audit(market, against='market')
    (market/'counts.json').write_text('{')
    with pytest.raises(InputError, match='counts.json'): audit(market)
    (market/'counts.json').unlink()
    assert audit(market).status == 1 and '12,936' in str(audit(market))
    assert audit(tiny_world()/'target').against == ''

def test_csv_and_folders(tmp_path):
    for s, p in (('train','a'), ('train','b'), ('query','c'), ('gallery','c')):
        f = tmp_path/'o'/s/p/f'{s}.jpg'
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8,16), (ord(s[0]),0,0)).save(f)
    a = audit(tmp_path/'o')
    assert 'no cameras' in found(a, 'cameras', 'ok')[0].text and a.against == '' and a.status == 0
    (tmp_path/'o'/'m.csv').write_text('path,pid,split,camid\ntrain/a/train.jpg,1,train,1\n'
                                      'query/c/query.jpg,2,query,0\n'
                                      'gallery/c/gallery.jpg,2,gallery,2\n')
    with pytest.raises(InputError, match='query.jpg'): audit(tmp_path/'o'/'m.csv')

def test_it_imports_neither_fastai_nor_torch():
    code = ("import sys\nfrom posereid.data.audit import audit\nfrom pathlib import Path\naudit("
            f"{str(tiny_world()/'target')!r}, decode=True)\nassert not {{'fastai','torch'}} & "
            "set(sys.modules)")
    res = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                         cwd=Path(__file__).parents[1])
    assert res.returncode == 0, res.stderr

# --- people, queries and cameras

def table(root, *rows):
    "A CSV of small pictures: split, pid, camid"
    for i in range(len(rows)):
        (Image.fromarray(np.random.default_rng(i).integers(0, 256, (16,8,3), dtype=np.uint8))
         .save(root/f'{i}.jpg'))
    (root/'m.csv').write_text('path,pid,split,camid\n' + ''.join(f'{i}.jpg,{p},{s},{c}\n'
                                  for i, (s, p, c) in enumerate(rows)))
    return root/'m.csv'

TRAIN = [('train',1,1), ('train',1,2), ('train',2,1), ('train',2,2)]

@pytest.mark.parametrize('rows,level,words', [
    ([('query',3,1), ('gallery',3,2), ('gallery',4,1)], 'ok', ['every query has']),
    ([('query',3,1), ('query',4,1), ('gallery',3,2)], 'note', ['1 of 2']),
    # two cameras, but nobody is in both
    ([('query',3,1), ('gallery',3,1), ('gallery',4,2)], 'fail', ['1 of 1']),
    # the camera of junk does not count
    ([('query',3,2), ('gallery',3,2), ('gallery',-1,1)], 'fail',
     ['1 of 1', 'from camera 2', '--no_cameras']),
    ([('query',3,0), ('gallery',4,0)], 'fail', ['1 of 1']),
    ([('query',3,0), ('gallery',3,0)], 'ok', [])])
def test_queries_that_nothing_answers(tmp_path, rows, level, words):
    a = audit(table(tmp_path, *TRAIN, *rows))
    one, = found(a, 'queries', level)
    assert a.status == (level == 'fail') and all(w in one.text for w in words)
    assert ('--no_cameras' in one.text) == ('--no_cameras' in words)
    if level == 'fail': assert one.files == [str(tmp_path/'4.jpg')]

def test_nobody_is_found_among_training_pictures(market):
    first = sorted((market/'bounding_box_train').iterdir())[0]
    assert not [f for f in found(audit(market, against='none'), 'people')]
    for who in ('0000', '-1'):
        odd = first.with_name(who+first.name[4:])
        shutil.copy(first, odd)
        a = audit(market, against='none')
        assert (a.status == 1 and [f.files for f in found(a, 'people')] == [[str(odd)]]
                and 'of nobody (pid −1 or 0): 1' in found(a, 'people')[0].text)
        odd.unlink()

def test_names_that_repeat(market):
    train = sorted((market/'bounding_box_train').iterdir())
    (market/'gt_bbox').mkdir()
    shutil.copy(train[0], market/'gt_bbox')  # hand-drawn boxes have the names of their pictures
    assert not found(audit(market, against='none'), 'names', 'note')
    shutil.copy(train[1], market/'query')
    note, = found(audit(market, against='none'), 'names', 'note')
    assert (': 2;' in note.text
            and sorted(note.files) == sorted([str(train[1]), str(market/'query'/train[1].name)]))

# --- the scale of keypoints

@pytest.fixture
def scaled(market, tmp_path):
    "The audit of keypoints that were changed by `f`, and their table"
    from posereid.pose.table import PoseTable
    from posereid.pose.files import read_poses, write_market_csv
    t = read_poses(tiny_world()/'target_poses.csv')
    def _f(f):
        k = f(t.joints.clone())
        k[k[...,2] == 0] = 0
        write_market_csv(tmp_path/'k.csv', PoseTable(t.names, k))
        return audit(market, poses=tmp_path/'k.csv', against='none'), PoseTable(t.names, k)
    return _f

def spans(t):
    "By hand: the share of its picture's 64 rows that each pose of ten joints or more spans"
    out = {}
    for n, k in zip(t.names, t.joints.numpy()):
        y = k[k[:,2] > 0, 1]
        if len(y) >= 10: out[n] = (y.max()-y.min())/64
    return out

def by(share):
    def _f(k):
        from posereid.pose.bank import pose_heights
        h = pose_heights(k, (64,32))
        k[...,:2] *= share/h[~h.isnan()].median()
        return k
    return _f

def test_poses_smaller_than_their_pictures(scaled):
    "A half of the height in the middle of all is the least that passes; single ones below a third are noted"
    a, t = scaled(by(.45))
    one = found(a, 'keypoints')
    assert (a.status == 1 and len(one) == 1 and 'far smaller' in one[0].text
            and '45% of the height' in one[0].text)
    a, t = scaled(by(.55))
    low = sorted(n for n, s in spans(t).items() if s < 1/3)
    assert not found(a, 'keypoints') and sorted(os.path.basename(p)
                                                for f in found(a, 'keypoints', 'note')
                                                if 'less than a third' in f.text
                                                for p in f.files) == low
    # nine joints say nothing
    def one_small(k): k[0,:,:2] *= .3; k[1,:,:2] *= .3; k[1,9:] = 0; return k
    a, t = scaled(one_small)
    note, = [f for f in found(a, 'keypoints', 'note') if 'third' in f.text]
    want = [n for n, s in spans(t).items() if s < 1/3]
    assert (t.names[0] in want and t.names[1] not in want
            and sorted(map(os.path.basename, note.files)) == sorted(want)
            and f': {len(want)}' in note.text)

def test_joints_outside_their_pictures(scaled):
    "A tenth of all joints may be; the pictures are named"
    for share, level in ((.02, 'note'), (.2, 'fail')):
        at = []
        def some(k):
            i, j = (k[...,2] > 0).nonzero().T
            n = int(share*len(i))
            k[i[:n], j[:n], 0] = 40.
            at.append(len(set(i[:n].tolist())))
            return k
        a, _ = scaled(some)
        one, = [f for f in found(a, 'keypoints', level) if 'outside their frame' in f.text]
        assert (len(one.files) == at[0] and f': {at[0]}' in one.text
                and a.status == (level == 'fail'))

def test_frames_of_keypoints(market, tmp_path):
    "Shares and canvases are brought to the picture before they are judged, each row by its own frame"
    from posereid.pose.files import read_poses
    t = read_poses(tiny_world()/'target_poses.csv')
    (tmp_path/'k').mkdir()
    lost = {sorted(t.names)[0]}
    for i, (n, k) in enumerate(zip(t.names, t.joints)):
        scale, k = (1, 6)[i % 2], k.clone()
        k[:,:2] = (k[:,:2]+.5)*scale-.5
        k[k[:,2] == 0] = 0
        people = [dict(pose_keypoints_2d=k.flatten().tolist())]
        (tmp_path/'k'/f'{n[:-4]}_keypoints.json').write_text(json.dumps(dict(people=people,
                    canvas_width=32*scale, canvas_height=64*scale)))
    assert not found(audit(market, poses=tmp_path/'k', against='none'), 'keypoints')
    for n in lost: next(market.rglob(n)).unlink()  # a row in front that is of no picture
    assert not found(audit(market, poses=tmp_path/'k', against='none'), 'keypoints')

def test_keypoints_without_joints_and_broken_pictures(market, scaled):
    a, _ = scaled(lambda k: k*0)
    assert a.status == 1 and any('not one of the 120 poses has a joint' in f.text
                                 for f in found(a, 'keypoints'))
    bad = sorted((market/'query').iterdir())[0]
    bad.write_bytes(b'no picture')
    a, _ = scaled(lambda k: k)
    # its size is not known; that it cannot be decoded is another finding
    assert not found(a, 'keypoints')

def test_what_was_decided_on_keypoints_is_told(market, tmp_path):
    "Notes of the reader become findings"
    from posereid.pose.files import read_poses
    t = read_poses(tiny_world()/'target_poses.csv')
    (tmp_path/'k').mkdir()
    for i, (n, k) in enumerate(zip(t.names, t.joints)):
        people = [dict(pose_keypoints_2d=k.flatten().tolist())]*(2 if i < 3 else 1)
        (tmp_path/'k'/f'{n[:-4]}_keypoints.json').write_text(json.dumps(dict(people=people)))
    notes = read_poses(tmp_path/'k').notes
    a = audit(market, poses=tmp_path/'k', against='none')
    assert notes and all(any(f.text.startswith(what) for f in found(a, 'keypoints', 'note'))
                         for what in notes)
