"Each finding of the auditor by hand: what is counted, what is named, what fails, and how the report is laid out"
import json, os
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

import posereid.data.audit as A
from posereid.core import InputError
from posereid.data.audit import PUBLISHED, Audit, Finding, audit, count_splits, look_at


def found(fs, check=None, level=None):
    return [f for f in getattr(fs, 'findings', fs)
            if check in (None, f.check) and level in (None, f.level)]

def frame(*rows, **kw):
    "A manifest without files: split, pid, camid; `kw` are further columns"
    return pd.DataFrame([dict(path=f'/set/{s}/{i:03d}.jpg', split=s, pid=p, camid=c)
                         for i,(s,p,c) in enumerate(rows)]).assign(**kw)

def noise(path, seed=0, size=(16,8), **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    im = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size,3), dtype=np.uint8))
    im.save(path, **kw)
    return im

TRAIN = [(1,1),(1,2),(2,1),(2,2)]
TEST = [('query',3,1),('gallery',3,2)]

@pytest.fixture
def market(tmp_path):
    "A set of eight pictures in the Market-1501 layout: two people in training, one in query and gallery, junk and a distractor"
    root = tmp_path/'set'
    names = [*(f'bounding_box_train/{p:04d}_c{c}s1_00000{i}_01.jpg'
               for i,(p,c) in enumerate(TRAIN)), 'query/0003_c1s1_000004_01.jpg',
             'bounding_box_test/0003_c2s1_000005_01.jpg', 'bounding_box_test/-1_c2s1_000006_01.jpg',
             'bounding_box_test/0000_c3s1_000007_01.jpg']
    for i,o in enumerate(names): noise(root/o, i)
    return root

def paths(root, part): return sorted((root/part).iterdir())


# --- counts ---

def test_counts_by_hand():
    df = frame(('train',1,1), ('train',1,3), ('train',2,3), ('train',0,1), ('query',5,1),
               ('query',6,2), ('query',9,1), ('gallery',5,2), ('gallery',6,2),
               ('gallery',7,1), ('gallery',8,1), ('gallery',8,3), ('gallery',10,1),
               ('gallery',-1,1), ('gallery',-1,2), ('gallery',0,4))
    df.loc[[0,4],'path'] = ['/set/a.jpg.jpg', '/set/b.PNG.jpg']
    train,query,gallery = count_splits(df)
    assert train==dict(split='train', pictures=4, people=2, junk=0, distractors=1,
                       cameras={1:2, 3:2}, doubled=1)
    # 6 is in camera 2 alone, 9 nowhere
    assert query==dict(split='query', pictures=3, people=3, junk=0, distractors=0,
                       cameras={1:2, 2:1}, doubled=1, unmatched=2)
    # 7, 8 and 10
    assert gallery==dict(split='gallery', pictures=9, people=5, junk=2, distractors=1,
                         cameras={1:4, 2:3, 3:1, 4:1}, doubled=0, never_queried=3)
    assert (count_splits(df[df.split!='query'])[-1]['never_queried']==0
            and [o['split'] for o in count_splits(df[df.split!='train'])]==['query','gallery'])


def test_tracklets_are_counted_where_there_are_any():
    rows = [('train',1,1)]*3+[('train',2,1)]*2
    assert ('tracklets' not in count_splits(frame(*rows))[0]
            and 'tracklets' not in count_splits(frame(*rows, tracklet=''))[0])
    assert 'tracklets' not in count_splits(frame(*rows, tracklet=[None]*5))[0]
    assert count_splits(frame(*rows, tracklet=['a','a','b','c','c']))[0]['tracklets']==3


@pytest.mark.parametrize('name,ends', [('a.jpg',['.jpg']), ('a.jpg.jpg',['.jpg','.jpg']),
                                       ('a.JPG.png',['.png','.jpg']), ('a.b.jpg',['.jpg']),
                                       ('a',[]), ('a.txt',[]), ('a.jpg.txt',[])])
def test_endings(name, ends): assert A._ends(f'/x.jpg/{name}')==ends


def test_missed_counts_name_what_may_explain_them(tmp_path):
    rows = [('train',1,1)]*3+[('train',2,2)]*2+[('gallery',3,1)]
    df = frame(*rows)
    for i,p in enumerate(df.path[:5]):
        df.loc[i,'path'] = str(tmp_path/f'{i}.jpg')
        # times 100, 103, 102, 101, 100
        (tmp_path/f'{i}.jpg').touch(); os.utime(tmp_path/f'{i}.jpg', (100+i*7%4,)*2)
    got = lambda want, skipped={}: A._check_counts(count_splits(df), want, df, skipped)
    assert [(f.level, f.files) for f in got(dict(train=dict(pictures=5, people=2, cameras=[3,2]),
                                                 gallery=dict(pictures=1)))]==[('ok',[])]
    assert '4 published counts' in got(dict(train=dict(pictures=5, people=2, cameras=[3,2]),
                                            gallery=dict(pictures=1)))[0].text
    lost = {os.sep.join(['','set',d,'x.jpg']): 'why'
            for d in ('bounding_box_train','bounding_box_test','bounding_box_training')}
    few, = got(dict(train=dict(pictures=6, people=2)), lost)
    assert (few.level=='fail' and '5 pictures' in few.text and '6 are' in few.text
            and few.files==[os.sep.join(['','set','bounding_box_train','x.jpg'])])
    # one too many of camera 1, one too few of camera 2: the suspects are of camera 1, the last
    # written first
    cams, = got(dict(train=dict(cameras=[2,3])))
    assert ('camera 1 has 3 of 2, camera 2 has 2 of 3' in cams.text
            and cams.files==[str(tmp_path/f'{i}.jpg') for i in (1,2,0)])
    cams, = got(dict(train=dict(cameras={'1':3, '4':2})))
    assert ('camera 2 has 2 of 0, camera 4 has 0 of 2' in cams.text and 'camera 1' not in cams.text
            and cams.files==[str(tmp_path/f'{i}.jpg') for i in (3,4)])
    # hand-drawn boxes are not asked for
    assert ([f.text for f in got(dict(multi=dict(pictures=9), other=dict(pictures=9)))]
            ==['all 0 published counts are met'])
    # unless there are some
    boxes = pd.concat([df, df[:1].assign(split='multi')], ignore_index=True)
    assert ['multi: 1' in f.text and f.level=='fail' for f in A._check_counts(count_splits(boxes),
                dict(multi=dict(pictures=9)), boxes, {})]==[True]
    none, = got(dict(query=dict(pictures=1234)))
    assert 'query: 0 pictures' in none.text and '1,234' in none.text
    assert 'never queried' in got(dict(gallery=dict(never_queried=3)))[0].text


def test_suspects_are_few():
    df = frame(*[('train',1,1)]*30)
    assert (len(A._suspects(df, 'train', [1]))==20
            and A._suspects(df, 'train', [2])==A._suspects(df, 'query', [1])==[])


def test_what_counts_are_compared_with(market):
    text = lambda f: json.dumps(f)
    assert audit(market, against='none').against=='' and not found(audit(market, against='none'),
        'counts')
    auto = audit(market)
    assert (auto.against.startswith('market1501: ')
            and PUBLISHED['market1501']['source'] in auto.against)
    (market/'counts.json').write_text(text(dict(train=dict(pictures=4, people=2),
                                                query=dict(unmatched=0),
                                                gallery=dict(junk=1, distractors=1))))
    own = audit(market)
    assert (own.against=='counts.json of the set' and '5 published' in found(own, 'counts')[0].text
            and own.status==0)
    assert (audit(market, against='dukemtmc').against.startswith('dukemtmc')
            and audit(market, against='none').against=='')
    (market/'counts.json').unlink()
    for o in (market, market.parent):                 # a synthetic world has no published counts
        (o/'world.json').write_text('{}')
        a = audit(market)
        assert a.against=='' and not found(a, 'counts')
        (o/'world.json').unlink()
    (market/'counts.json').write_text('[')
    for k in ('none','mars'): audit(market, against=k)  # a file that is not asked for is not read
    with pytest.raises(InputError, match='counts.json'): audit(market)
    with pytest.raises(InputError, match="'mraket1501'.*'market1501'"):
        audit(market, against='mraket1501')


def test_counts_of_a_variant_lie_in_its_folder(tmp_path):
    "cuhk03-labeled looks into labeled/, too"
    (tmp_path/'labeled').mkdir()
    (tmp_path/'labeled'/'counts.json').write_text(json.dumps(dict(train=dict(pictures=1))))
    assert A._published('cuhk03-labeled', tmp_path, 'auto')==('counts.json of the set',
        dict(train=dict(pictures=1)))
    assert (A._published('cuhk03-detected', tmp_path, 'auto')[1]==PUBLISHED['cuhk03-detected']
            and A._published('folder', tmp_path, 'auto')==('', None))


# --- people, queries, names ---

def names_of(df, check, level):
    return {f.text.split(':')[0]: f.files for f in found(A._check_names(df, None), check, level)}


def test_people_by_hand():
    ok = frame(*(('train',p,c) for p,c in TRAIN), *TEST, ('gallery',0,1), ('gallery',-1,2))
    assert ({f.level for f in A._check_names(ok, None)}=={'ok'}
            and len(found(A._check_names(ok, None), 'people'))==3)
    df = frame(('train',1,1), ('train',1,2), ('train',1,3), ('train',1,4), ('train',2,1),
               ('train',0,1), ('train',-1,1), ('query',1,1), ('gallery',1,2), ('gallery',0,1),
               ('gallery',-1,1))
    fail,note = names_of(df, 'people', 'fail'),names_of(df, 'people', 'note')
    both, = [v for k,v in fail.items() if 'training and test' in k]
    # three of training, then those of the test
    assert both==[*df.path[:3], *df.path[7:9]]
    assert [v for k,v in fail.items() if 'nobody' in k]==[df.path[5:7].tolist()]
    assert [v for k,v in note.items() if 'one picture' in k]==[[df.path[4]]]
    assert any('1 (pid 1)' in f.text for f in found(A._check_names(df, None), 'people'))
    many = frame(*(('train',p,1) for p in range(1,9)), *(('query',p,1) for p in range(1,9)))
    assert any('8 (pid 1, 2, 3, 4, 5)' in f.text
               for f in found(A._check_names(many, None), 'people', 'fail'))


def test_names_that_end_twice_and_repeat():
    df = frame(('train',1,1), ('train',1,2), ('query',2,1), ('gallery',2,2), ('multi',1,1))
    df['path'] = ['/s/t/a.jpg.jpg', '/s/t/b.jpg', '/s/q/b.jpg', '/s/g/c.jpg', '/s/m/c.jpg']
    notes = found(A._check_names(df, None), 'names', 'note')
    assert ([f.files for f in notes]==[['/s/t/a.jpg.jpg'], ['/s/t/b.jpg','/s/q/b.jpg']]
            and ': 1;' in notes[0].text and ': 2;' in notes[1].text)
    # one file in two splits is no repeated name
    same = pd.concat([df[:1], df[1:2], df[1:2].assign(split='gallery')], ignore_index=True)
    assert len(found(A._check_names(same, None), 'names', 'note'))==1


def test_queries_are_asked_for_only_with_a_gallery():
    df = frame(('train',1,1), ('train',1,2), ('query',3,1))
    assert (not found(A._check_names(df, None), 'queries')
            and not found(A._check_names(df.assign(split='gallery'), None), 'queries'))


def test_unanswered_queries_are_noted_and_fail_where_all_are():
    level = lambda *rows: [(f.level, [o[-7:-4] for o in f.files])
                           for f in found(A._check_names(frame(*rows), None), 'queries')]
    assert (level(('query',1,1), ('query',2,1), ('gallery',1,2))==[('note',['001'])]
            and level(('query',1,1), ('query',2,1), ('gallery',3,2))==[('fail',['000','001'])])
    assert level(('query',1,1), ('gallery',1,2))==[('ok',[])]


# --- files ---

def test_every_file_is_accounted_for(market):
    (market/'readme.txt').write_text('x')
    (market/'query'/'Thumbs.db').write_text('x')
    (market/'query'/'x.heic').write_text('x')
    (market/'pose').mkdir()
    (market/'pose'/'a.json').write_text('{}')
    (market/'pose'/'b.json').write_text('{}')
    a = audit(market, against='none')
    sums, = [f for f in found(a, 'files') if 'read' in f.text and '=' in f.text]
    assert (sums.level=='ok' and '13 files = 8 read + 2 no pictures + 0 skipped' in sums.text
            and 'pose 2' in sums.text and 'readme.txt 1' in sums.text)
    assert sorted(map(os.path.basename, sums.files))==['Thumbs.db','x.heic']
    kinds, = [f for f in found(a, 'files', 'fail')]
    assert ([os.path.basename(o) for o in kinds.files]==['x.heic'] and 'HEIC' in kinds.text
            and ': 1' in kinds.text and a.status==1)


def test_names_that_do_not_parse_are_skipped_unless_said_otherwise(market):
    odd = market/'query'/'holiday.jpg'
    noise(odd)
    a = audit(market, against='none')
    skipped, = [f for f in found(a, 'files', 'fail') if any(str(odd) in o for o in f.files)]
    assert (': 1' in skipped.text and a.books['skipped']==1 and a.status==1
            and skipped.files[0].startswith(f'{odd} '))
    # what is said goes before the auditor's own choice
    told = audit(market, against='none', read=dict(odd='error'))
    assert told.status==1 and 'holiday.jpg' in found(told, 'folders', 'fail')[0].text
    with pytest.raises(InputError, match='ood'): audit(market, read=dict(ood='skip'))


def test_books_that_do_not_add_up():
    df = frame(*TEST)
    books = dict(files=5, read=2, ignored=1, skipped=1, unread=dict(a=1))
    assert found(A._check_books(df, books, [], 'x'), 'files')[0].level=='ok'
    for k in ('files','read','ignored','skipped'):
        assert found(A._check_books(df, {**books, k:7}, [], 'x'), 'files')[0].level=='fail'
    assert found(A._check_books(df, {**books, 'unread':{}}, [], 'x'), 'files')[0].level=='fail'
    assert [f.text for f in found(A._check_books(df, books, ['one is lost'], 'x'), 'folders',
                                  'fail')]==['one is lost']
    df.attrs['notes'] = ['something was decided']
    assert [f.text for f in found(A._check_books(df, books, [], 'x'), 'people',
                                  'note')]==['something was decided']
    assert found(A._check_books(df, books, [], 'x'), 'cameras')[0].level=='ok'
    assert found(A._check_books(df.assign(camid=[0,1]), books, [], 'x'), 'cameras')[0].level=='fail'


def test_hand_drawn_boxes_are_read_where_there_are_any(market):
    assert [o['split'] for o in audit(market, against='none').splits]==['train','query','gallery']
    (market/'gt_bbox').mkdir()
    noise(market/'gt_bbox'/'0003_c1s1_000004_00.jpg', 50)
    assert [o['split']
            for o in audit(market, against='none').splits]==['train','query','gallery','multi']


# --- pictures ---

def test_a_look_at_one_picture(tmp_path, monkeypatch):
    assert (A.MAX_PIXELS, A.MAX_BYTES)==(50_000_000, 536_870_912)
    im = noise(tmp_path/'a.png', 1)
    a = look_at(str(tmp_path/'a.png'))
    assert (a['size'], a['mode'])==((8,16), 'RGB') and len(a['bytes'])==len(a['pixels'])==24
    im.save(tmp_path/'b.png', compress_level=0)
    b = look_at(str(tmp_path/'b.png'))
    assert a['pixels']==b['pixels'] and a['bytes']!=b['bytes']
    # turned back by its EXIF
    im.transpose(Image.Transpose.ROTATE_90).save(tmp_path/'c.png', exif=_turned())
    c = look_at(str(tmp_path/'c.png'))
    assert c['size']==(8,16) and c['pixels']==a['pixels']
    # the same bytes in another shape
    Image.frombytes('RGB', (16,8), im.tobytes()).save(tmp_path/'d.png')
    assert look_at(str(tmp_path/'d.png'))['pixels']!=a['pixels']
    Image.frombytes('L', (24,16), im.tobytes()).save(tmp_path/'e.png')
    assert look_at(str(tmp_path/'e.png'))['pixels']!=a['pixels']
    monkeypatch.setattr(A, 'MAX_PIXELS', 16*8)
    assert 'error' not in look_at(str(tmp_path/'a.png'))
    monkeypatch.setattr(A, 'MAX_PIXELS', 16*8-1)
    assert '8×16 pixels' in look_at(str(tmp_path/'a.png'))['error']
    monkeypatch.setattr(A, 'MAX_BYTES', (tmp_path/'a.png').stat().st_size-1)
    assert 'MB' in look_at(str(tmp_path/'a.png'))['error']
    (tmp_path/'f.jpg').write_bytes(b'')
    assert look_at(str(tmp_path/'f.jpg'))==dict(error='is empty')
    gone = look_at(str(tmp_path/'g.jpg'))['error']
    assert 'FileNotFoundError' in gone and str(tmp_path) not in gone and len(gone)<=120


def _turned():
    exif = Image.Exif(); exif[0x0112] = 6       # to be turned by 90° clockwise
    return exif


def pic(size=(16,32), mode='RGB', b='b', p='p'):
    return dict(bytes=b, pixels=p, size=size, mode=mode)


def test_sizes_and_modes_by_hand():
    df = frame(*[('train',1,1)]*5)
    looks = dict(zip(df.path, [pic(p='0'), pic(p='1'), pic(p='2', size=(8,9)),
                               pic(p='3', size=(7,40), mode='L'), dict(error='is broken')]))
    fs = A._check_pictures(df, looks)
    bad, = found(fs, 'decoding')
    assert bad.level=='fail' and '1 of 5' in bad.text and bad.files==[f'{df.path[4]} is broken']
    size, = found(fs, 'sizes', 'ok')
    assert ('32×16 in 50%' in size.text and 'heights 9 to 40' in size.text
            and 'widths 7 to 16' in size.text)
    # 8 is large enough, 7 is not, on whichever side
    tiny, = found(fs, 'sizes', 'note')
    assert tiny.files==[f'{df.path[3]} is 40×7'] and ': 1' in tiny.text
    assert [f.files for f in found(fs, 'modes', 'note')]==[[f'{df.path[3]} is L']]
    fs = A._check_pictures(df[:1], {df.path[0]: pic()})
    assert {f.level for f in fs}=={'ok'} and 'all 1' in found(fs, 'decoding')[0].text
    assert [f.check for f in A._check_pictures(df[:1], {df.path[0]: dict(error='x')})]==['decoding']


def test_twins_by_hand():
    rows = [('train',1,1),('query',2,1),('gallery',2,2),('multi',2,1),('train',1,2),('query',3,1),
            ('gallery',3,2),('train',1,3),('multi',3,1)]
    df = frame(*rows)
    def twins(*groups, other=()):
        "Groups of row numbers with equal pixels; `other` have other bytes"
        looks = {p: pic(p=f'own{i}', b=f'own{i}') for i,p in enumerate(df.path)}
        for k,g in enumerate(groups):
            for i in g: looks[df.path[i]] = pic(p=f'{k}', b=f'{k}{i}' if i in other else f'{k}')
        return [(f.level, f.text, f.files) for f in A._check_twins(df, looks)]
    assert [o[0] for o in twins()]==['ok']
    def one(level, words, *groups, **kw):
        (lv,text,files), = twins(*groups, **kw)
        assert (lv==level and words in text and f': {len(groups)}' in text
                and files==[' = '.join(df.path[i] for i in g) for g in groups])
        return text
    assert 'bytes' not in one('fail', 'training and test', (0,2))
    assert ('(1 with' in one('fail', 'training and test', (0,2), (1,4), other=(4,))
            and 'bytes' not in one('fail', 'training and test', (0,1,2)))
    one('note', 'query and gallery', (1,2), (5,6))
    one('note', 'within a split', (0,4), (2,6))
    one('note', 'hand-drawn', (0,8), (1,3))
    one('fail', 'training and test', (0,2,3)); one('note', 'query and gallery', (1,2,3))
    one('note', 'within a split', (3,8))
    assert [o[0] for o in twins((0,2), (1,6), (4,7))]==['fail','note','note']


def test_without_decoding(market):
    size = sum(o.stat().st_size for o in market.rglob('*.jpg'))/1e6
    f, = found(audit(market, against='none'), 'sizes')
    assert f.level=='ok' and f'8 files, {size:,.1f} MB' in f.text and 'not decoded' in f.text
    one,gone = str(paths(market, 'query')[0]),str(market/'gone.jpg')
    Path(one).write_bytes(b'')
    bad, = A._check_bytes([*map(str, paths(market, 'bounding_box_train')), one, gone])
    assert (bad.level=='fail' and '2 of 6' in bad.text
            and bad.files==[f'{one} is empty', f'{gone} is gone'])
    assert A._check_bytes([one])[0].level=='note'


def test_a_csv(tmp_path):
    for i in range(4): noise(tmp_path/f'{i}.jpg', i)
    (tmp_path/'m.csv').write_text('path,pid,split,camid\n0.jpg,1,train,0\n1.jpg,1,train,0\n'
                                  '2.jpg,2,query,0\n3.jpg,2,gallery,0\n')
    a = audit(tmp_path/'m.csv', decode=True)
    assert ('all 4' in found(a, 'decoding')[0].text and a.decoded
            and not audit(tmp_path/'m.csv').decoded and a.layout in ('CSV','csv') and a.against=='')


def test_readers(market):
    with pytest.raises(InputError, match="'makret1501'.*'market1501'"): audit(market, 'makret1501')
    a = audit(market, 'market1501', against='none')
    assert a.root==str(market) and a.dataset=='market1501'
    assert (a.splits==audit(os.path.relpath(market), against='none').splits
            and audit(os.path.relpath(market), against='none').root==str(market))


# --- keypoints ---

def skeleton(n_joints, h=30, top=2.):
    "`(18, 3)`: the first joints of a pose in a column, from `top` down to `top+h`"
    k = torch.zeros(18,3)
    k[:n_joints,0],k[:n_joints,1],k[:n_joints,2] = 4.,torch.linspace(top, top+h, n_joints),1.
    return k

@pytest.fixture
def tall(tmp_path):
    "Six pictures of 40 × 16 as a CSV, and the audit of keypoints for them"
    for i in range(6): noise(tmp_path/f'{i}.jpg', i, (40,16))
    rows = ['0.jpg,1,train,1','1.jpg,1,train,2','2.jpg,2,query,1','3.jpg,2,gallery,2',
            '4.jpg,0,gallery,1','5.jpg,2,multi,1']
    (tmp_path/'m.csv').write_text('path,pid,split,camid\n'+'\n'.join(rows)+'\n')
    from posereid.pose.table import PoseTable
    from posereid.pose.files import write_market_csv
    def _f(**poses):
        write_market_csv(tmp_path/'k.csv', PoseTable([f"{k.strip('_')}.jpg" for k in poses],
                                                     torch.stack(list(poses.values()))))
        return found(audit(tmp_path/'m.csv', poses=tmp_path/'k.csv'), 'keypoints')
    _f.root = tmp_path
    return _f

def base(files): return [os.path.basename(o) for o in files]


def test_coverage_by_hand(tall):
    full = skeleton(18)
    # those of hand-drawn boxes are not asked for
    ok, = tall(_0=full, _1=full, _2=full, _3=full, _4=skeleton(10))
    assert (ok.level=='ok' and '5 of 5 pictures' in ok.text and '100.0%' in ok.text
            and '16.4 of 18' in ok.text and ok.files==[])
    few,alien = tall(_0=full, _1=skeleton(1), _2=skeleton(0), x=full, y=skeleton(4))
    assert (few.level=='note' and '3 of 5 pictures' in few.text and '60.0%' in few.text
            and ' 1 of them without' in few.text)
    # (18 + 1 + 0)/3 of the set's own; those that lack a row, then the empty
    assert '6.3 of 18' in few.text and base(few.files)==['3.jpg','4.jpg','2.jpg']
    assert alien.level=='note' and '2 of 5' in alien.text and alien.files==['x.jpg','y.jpg']
    none = tall(x=full, y=full)
    assert (none[-1].level=='fail' and '2 of 2' in none[-1].text and '0 of 5' in none[0].text
            and len(none[0].files)==5)
    assert any(f.level=='fail' and '2 poses' in f.text
               for f in tall(_0=skeleton(0), _1=skeleton(0)))


def test_the_scale_by_hand(tall):
    "Rows 0 to 39: a pose is too small where it spans less than a third of 40 rows, a set of poses where the median spans less than half"
    spans = lambda *hs: [f for f in tall(**{f'_{i}': skeleton(18, h) for i,h in enumerate(hs)})
                         if 'span' in f.text]
    assert not spans(30, 30, 30, 30, 14)
    note, = spans(30, 30, 30, 12, 13)
    assert note.level=='note' and ': 2' in note.text and base(note.files)==['3.jpg','4.jpg']
    assert not [f for f in spans(20.2, 20.2, 20.2, 14, 14)]
    fail, = spans(19.5, 19.5, 19.5, 12, 30)
    assert fail.level=='fail' and '49%' in fail.text and base(fail.files)==['3.jpg']


def test_joints_outside_by_hand(tall):
    "18 joints on five pictures are 90: nine outside are a tenth and noted, ten fail"
    for n,level in ((1,'note'), (9,'note'), (10,'fail')):
        k = [skeleton(18) for _ in range(5)]
        for i in range(n): k[3+i%2][i,0] = 17.
        out, = [f for f in tall(**{f'_{i}': o for i,o in enumerate(k)}) if 'outside' in f.text]
        assert (out.level==level and base(out.files)==['3.jpg','4.jpg'][:n]
                and f': {min(n,2)}' in out.text)
    for x,n in ((15.4,0), (15.6,1)):          # pixel 15 is the last and ends at 15.5
        k = skeleton(18); k[:,0] = x
        assert len([f for f in tall(_0=k, _1=skeleton(18)) if 'outside' in f.text])==n


def test_choices_of_the_keypoint_reader_are_checked(tall):
    tall(_0=skeleton(18))
    with pytest.raises(InputError, match='peple.*people'):
        audit(tall.root/'m.csv', poses=tall.root/'k.csv', pose_read=dict(peple='first'))


# --- the report ---

@pytest.fixture
def report():
    splits = [dict(split='train', pictures=12345, people=10, junk=0, distractors=0,
                   cameras={1:12000, 2:345}),
              dict(split='gallery', pictures=7, people=3, junk=1, distractors=2, cameras={1:7})]
    return lambda findings=(): Audit('/a/set', 'Market-1501', 'market1501', '', splits,
                                     list(findings), dict(files=0), False, 1.25)


def test_the_text_of_a_report(report):
    files = lambda n: [f'/f/{i}' for i in range(n)]
    text = str(report([Finding('counts', 'ok', 'all is well'),
                       Finding('people', 'note', 'five', files(5)),
                       Finding('names', 'fail', 'seven', files(7))]))
    assert text.splitlines()==['/a/set: Market-1501', 'counts compared with: nothing', '',
        'split    pictures  people  junk  distractors  cameras',
        'train      12,345      10     0            0  1:12,000 2:345',
        'gallery         7       3     1            2  1:7', '', 'ok    counts     all is well',
        'note  people     five', *(' '*17+f'/f/{i}' for i in range(5)),
        'fail  names      seven', *(' '*17+f'/f/{i}' for i in range(5)), ' '*17+'and 2 more', '',
        '1 of 3 checks fail; 1.2 s']
    assert str(report()).splitlines()[-1]=='nothing fails; 1.2 s'


def test_the_page_of_a_report(report):
    a = report([Finding('names', 'note', 'three <b>', ['/f/a', '/f/b', '/f/c']),
                Finding('names', 'fail', 'four', [f'/f/{i}' for i in range(4)])])
    h = a._repr_html_()
    assert ('<td>/' not in h and '<td>a; b; c</td>' in h and '<td>0; 1; 2 and 1 more</td>' in h
            and 'three &lt;b&gt;' in h)
    assert (h.count('<tr>')==1+2+1+2 and '<th>cameras</th>' in h and '<td>12,345</td>' in h
            and 'compared with nothing' in h)


def test_status_and_numbers(report):
    levels = lambda *ls: report([Finding('x', l, 't') for l in ls])
    assert [levels(*o).status
            for o in ((), ('ok',), ('ok','note'), ('note','fail'), ('fail','fail'))]==[0,0,0,1,1]
    assert repr(levels('ok','fail','note'))=='Audit(Market-1501, 3 checks, 1 fail)'
    d = json.loads(levels('ok','fail').json())
    assert (d['status']==1 and [f['level'] for f in d['findings']]==['ok','fail']
            and d['splits'][0]['cameras']=={'1':12000,'2':345} and d['seconds']==1.25)
    assert 'Market-1501, compared with a &lt;set&gt;' in Audit('/', 'Market-1501', '', 'a <set>',
        [], [], {}, False, 0.)._repr_html_()
    # a name that is no text is still printed
    assert '\\udcff' in str(Audit('/a\udcff', 'x', '', '', [], [], {}, False, 0.))


def test_bars_of_threads(market):
    ps = [str(o) for o in market.rglob('*.jpg')]
    assert A._look_at_all(ps, 1, False)==A._look_at_all(ps, 3, True)==[look_at(o) for o in ps]
