"What people really bring: links, other picture files, folders that programs made, keypoints of other tools and frames, consoles that know no ε"
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from posereid import cli
from posereid.core import InputError
from posereid.data.pairs import load_poses
from posereid.data.layouts import load_dataset
from posereid.data.market import reading_notes
from posereid.data.manifest import pick
from posereid.pose.table import PoseTable
from posereid.pose.files import read_poses, write_market_csv, write_poses
from posereid.pose.joints import walking_pose
from posereid.experiment.inputs import folder_inputs

slow = pytest.mark.slow
REID = ['reid.width=4', 'reid.epochs=1', 'reid.bs=8']
GAN = ['transfer.width=4', 'transfer.d_width=4', 'transfer.pairs=16', 'transfer.parts=1',
       'transfer.bs=8', 'transfer.beta=0']


@pytest.fixture
def market(sets, tmp_path): return Path(shutil.copytree(sets/'Market-1501', tmp_path/'market'))


@pytest.fixture
def audited(capsys):
    "Exit status and text of an audit"
    def _f(*args, **kwargs):
        capsys.readouterr()
        try: cli.posereid_audit(*args, **kwargs)
        except SystemExit as e: return e.code,capsys.readouterr().out
        return 0,capsys.readouterr().out
    return _f


def guider(data, out, **kwargs):
    cli.posereid_guider(data, out=out, preset='smoke', set=REID, **kwargs)
def trained(out): return json.loads((out/'metrics.json').read_text())['n_pictures']
def train_pictures(root): return sorted((root/'bounding_box_train').iterdir())


def table_of(sets, df=None):
    "Known joints of the toy Market-1501"
    table = read_poses(sets/'Market-1501_poses.csv')
    names = [n for n in table.names if df is None or n in {Path(p).name for p in df.path}]
    return PoseTable(names, table.get(names))

# --- pictures ---

def test_a_hub_snapshot_is_all_links(sets, tmp_path, refused):
    root,blobs = tmp_path/'snapshots'/'market',tmp_path/'blobs'
    blobs.mkdir()
    for i,p in enumerate(sorted((sets/'Market-1501').rglob('*.jpg'))):
        link = root/p.relative_to(sets/'Market-1501')
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(p, blobs/f'{i:040x}')  # no ending
        link.symlink_to(os.path.relpath(blobs/f'{i:040x}', link.parent))
    refused(guider, root, tmp_path/'o', says=['is a link out of the set', '--read links=true'])
    refused(guider, root, tmp_path/'o', read=['odd=skip'],
            says=['None of the', 'is a link out of the set', '--read links=true'])
    guider(root, tmp_path/'o', read=['links=true'])
    assert trained(tmp_path/'o')==len(train_pictures(root))


def test_links_within_a_set(market, tmp_path):
    p = train_pictures(market)[0]
    (market/'store').mkdir()
    p.rename(market/'store'/p.name)
    p.symlink_to(Path('..')/'store'/p.name)
    guider(market, tmp_path/'o')
    assert trained(tmp_path/'o')==len(train_pictures(market))


def test_every_kind_of_picture_is_trained_on(market, tmp_path):
    n = len(train_pictures(market))
    kinds = ('webp','tiff','png','bmp','ppm','jpeg2000')
    ends = dict(webp='.webp', tiff='.tif', png='.png', bmp='.bmp', ppm='.ppm', jpeg2000='.jp2')
    for i,p in enumerate(train_pictures(market)[:12]):
        kind = kinds[i%6]
        # half of them under a wrong ending
        Image.open(p).save(p.with_suffix('.jpg' if i>=6 else ends[kind]), kind)
        if i>=6: continue
        p.unlink()
    df = load_dataset(market)
    # counts.json
    assert (df.split=='train').sum()==n and not df.attrs['skipped'] and len(df.attrs['ignored'])<=1
    guider(market, tmp_path/'o')
    assert trained(tmp_path/'o')==n


def test_pictures_without_an_ending(sets, tmp_path):
    for i,p in enumerate(train_pictures(sets/'Market-1501')):
        home = tmp_path/'own'/'train'/p.name[:4]
        home.mkdir(parents=True, exist_ok=True)
        Image.open(p).save(home/f'picture {i}', ('webp','tiff','png','jpeg2000')[i%4])
    (home/'notes').write_text('no picture')
    df = load_dataset(tmp_path/'own')
    assert (len(df)==len(train_pictures(sets/'Market-1501'))
            and [Path(o).name for o in df.attrs['ignored']]==['notes'])
    assert reading_notes(df)[0]=='files that are no pictures: 1 (notes)'


def test_folders_that_programs_made(sets, tmp_path, capsys):
    root = Path(shutil.copytree(sets/'folders', tmp_path/'folders'))
    want = load_dataset(root)
    for junk in ('__MACOSX/Anna/._0.jpg', 'train/__MACOSX/0.jpg',
                 'train/@eaDir/0.jpg/SYNOPHOTO.jpg', 'gallery/.thumbs/0.jpg', 'query/desktop.ini'):
        (root/junk).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(want.path[0], root/junk)
    df = load_dataset(root)
    assert (df.path.tolist()==want.path.tolist() and df.pid.tolist()==want.pid.tolist()
            and len(df.attrs['ignored'])==4)
    guider(root, tmp_path/'o')
    assert 'files that are no pictures: 4' in capsys.readouterr().out


def test_pictures_on_their_side(market, sets, tmp_path, audited):
    "Audit, estimates and stages agree on which way is up"
    side = Image.Exif(); side[0x0112] = 6
    for p in train_pictures(market)[:3]:
        Image.open(p).transpose(Image.Transpose.ROTATE_90).save(p, exif=side, quality=95,
            subsampling=0)
    assert audited(market, decode=True, poses=sets/'Market-1501_poses.csv', against='none')[0]==0
    i = folder_inputs(market, poses=sets/'Market-1501_poses.csv')
    assert i.store((64,32)).sizes(train_pictures(market)[:3]).tolist()==[[64,32]]*3
    from posereid.pose.estimate import read_picture
    assert tuple(read_picture(train_pictures(market)[0]).shape)==(3,64,32)


def test_a_broken_test_picture_is_found_before_training(market, tmp_path, refused):
    p = sorted((market/'query').iterdir())[-1]
    p.write_bytes(p.read_bytes()[:300])
    refused(guider, market, tmp_path/'o', says=[str(p), 'truncated'])
    assert not (tmp_path/'o').exists()


def test_skipped_pictures_are_told(market, tmp_path, capsys, refused):
    shutil.copy(train_pictures(market)[0], market/'bounding_box_train'/'holiday.jpg')
    refused(guider, market, tmp_path/'o', says=['holiday.jpg', '--read odd=skip'])
    guider(market, tmp_path/'o', read=['odd=skip'])
    assert 'pictures skipped: 1 (holiday.jpg)' in capsys.readouterr().out
    refused(guider, market, tmp_path/'o2', read=['od=skip'], says=["no choice 'od'", "'odd'"])
    refused(guider, market, tmp_path/'o2', read=['skip'], says='name=value')

# --- keypoint files ---

def inputs(sets, poses, **kwargs):
    return folder_inputs(sets/'Market-1501', poses=poses,
                         choices=dict(pose_read=kwargs) if kwargs else None)
def same(i, table, tol=1e-3):
    "Seen joints are where they should be"
    want,got = table.of(i.target),i.poses.of(i.target)
    both = (want[...,2]>0) & (got[...,2]>0)
    both[:,1] = False  # COCO has no neck, it is put between the shoulders
    assert both.sum()>100 and (got-want)[both][:,:2].abs().max()<tol
    return i


@pytest.mark.parametrize('kind,name', [('openpose','poses'), ('fdgan','poses'),
                                       ('coco','poses.json'), ('market','poses.csv')])
def test_files_and_folders_of_poses(sets, tmp_path, kind, name):
    write_poses(tmp_path/name, table_of(sets), kind)
    same(inputs(sets, tmp_path/name), table_of(sets), tol=1e-2)


def test_a_folder_beside_the_set_is_found(market, sets):
    write_poses(market.parent/'market_poses', table_of(sets), 'openpose')
    same(folder_inputs(market), table_of(sets))


def test_shares_and_other_frames(sets, tmp_path):
    t = table_of(sets)
    share = t.joints.clone()
    share[...,:2] = torch.where(t.joints[...,2:]>0,
                                (t.joints[...,:2]+.5)/torch.tensor([32.,64.]), 0.)
    write_market_csv(tmp_path/'share.csv', PoseTable(t.names, share))
    i = same(inputs(sets, tmp_path/'share.csv'), t)
    assert any('shares of the picture' in o for o in i.notes)
    big = t.joints.clone()
    big[...,:2] = torch.where(t.joints[...,2:]>0, (t.joints[...,:2]+.5)*8-.5, 0.)
    (tmp_path/'canvas').mkdir()
    for n,k in zip(t.names, big):
        people = [dict(pose_keypoints_2d=k.flatten().tolist())]
        ((tmp_path/'canvas'/f'{Path(n).stem}_keypoints.json')
         .write_text(json.dumps(dict(people=people, canvas_width=256, canvas_height=512))))
    same(inputs(sets, tmp_path/'canvas'), t)


def test_poses_of_pictures_of_another_size(sets, tmp_path, audited, refused):
    t = table_of(sets)
    for factor,fails in ((.5, False), (.15, True), (4., True)):
        write_market_csv(tmp_path/'k.csv',
                         PoseTable(t.names,
                                   torch.cat([t.joints[...,:2]*factor, t.joints[...,2:]], -1)))
        status,text = audited(sets/'Market-1501', poses=tmp_path/'k.csv')
        assert status==1 and ('far smaller than their pictures' if factor<1
                              else 'outside their frame') in text, text
        if fails:
            refused(cli.posereid_run, data=sets/'Market-1501', poses=tmp_path/'k.csv',
                    out=tmp_path/'o', preset='smoke', rows='control,guided',
                    says=str(tmp_path/'k.csv'))
    assert not (tmp_path/'o').exists()


def test_numbers_are_no_names(sets, tmp_path, refused):
    "COCO results that give numbers alone: refused, or matched by the file that says which picture has which number"
    t = table_of(sets)
    write_poses(tmp_path/'ann.json', t, 'coco')
    ann = json.loads((tmp_path/'ann.json').read_text())
    order = torch.randperm(len(t), generator=torch.Generator().manual_seed(0)).tolist()
    ids = {o['id']: 1000+order[i] for i,o in enumerate(ann['images'])}
    results = [dict(image_id=ids[a['image_id']], category_id=1, keypoints=a['keypoints'], score=.9)
               for a in ann['annotations']]
    (tmp_path/'results.json').write_text(json.dumps(results))
    (tmp_path/'images.json').write_text(json.dumps(dict(images=[
        dict(id=ids[o['id']], file_name=o['file_name']) for o in ann['images']])))
    call = lambda **kw: cli.posereid_run(data=sets/'Market-1501', poses=tmp_path/'results.json',
                                         out=tmp_path/'o', preset='smoke', rows='control',
                                         set=REID+GAN, **kw)
    refused(call, says=['results.json', 'images'])
    same(inputs(sets, tmp_path/'results.json', images=str(tmp_path/'images.json')), t, tol=1e-2)


def test_a_file_for_the_whole_set_serves_a_part(sets, tmp_path, capsys):
    "MARS lends its training half; its keypoint file may know both"
    cli.posereid_transfer(sets/'Market-1501', sets/'MARS', out=tmp_path/'t',
                          preset='smoke', set=GAN)
    out = capsys.readouterr().out
    n = len(read_poses(sets/'MARS_poses.csv'))-len(load_dataset(sets/'MARS'))
    assert f'pictures of the set that are not read here: {n}' in out


def test_a_file_of_another_set(sets, tmp_path, refused):
    refused(cli.posereid_run, data=sets/'Market-1501', poses=sets/'DukeMTMC-reID_poses.csv',
            out=tmp_path/'o', preset='smoke', rows='control',
            says=['name no picture', 'another set'])
    refused(cli.posereid_run, data=sets/'Market-1501', poses=tmp_path/'none', out=tmp_path/'o',
            preset='smoke', rows='control', says=['none', '--poses'])
    refused(cli.posereid_run, data=sets/'Market-1501', out=tmp_path/'o', preset='smoke',
            rows='control', pose_read=['peple=first'], says="'people'")


def test_whom_a_choice_of_the_source_is_for(sets, tmp_path, refused):
    refused(cli.posereid_run, data=sets/'Market-1501', source_layout='mars', out=tmp_path/'o',
            rows='control', says='go with --source')
    refused(cli.posereid_run, layout='mars', out=tmp_path/'o', says='--layout goes with --data')

# --- consoles ---

def in_console(line, encoding, cwd):
    "A new process whose streams have this encoding"
    env = {**os.environ, 'PYTHONIOENCODING':encoding, 'POSEREID_QUIET':'0'}
    code = f'from pathlib import Path; from posereid.cli import *; {line}'
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, cwd=cwd)


@pytest.mark.parametrize('encoding', ['cp1252', 'ascii'])
def test_plain_consoles(tmp_path, encoding):
    wrong = in_console('posereid_synth(set=["world.n_train=ε−1"])', encoding, tmp_path)
    assert wrong.returncode==2 and "'eps-1'" in wrong.stderr.decode(encoding)
    said = in_console('tell("Δ −1.9 ± 0.3 ──")', encoding, tmp_path)
    assert said.returncode==0 and said.stdout.decode(encoding)==('delta -1.9 ± 0.3 --\n'
        if encoding=='cp1252' else 'delta -1.9 +- 0.3 --\n')


@slow
@pytest.mark.parametrize('encoding', ['cp1252', 'ascii'])
def test_plain_consoles_to_the_end(sets, tmp_path, encoding):
    target = str(sets/'DukeMTMC-reID')
    done = in_console(f'posereid_run(data=Path({target!r}), out=Path("o"), preset="smoke", '
                      f'rows="control,equal_steps,smoothed,guided", set={REID+GAN[:-1]})',
                      encoding, tmp_path)
    assert done.returncode==0, done.stderr
    out = done.stdout.decode(encoding)
    assert '-----' in out and '?' not in out
    a,b = sorted((tmp_path/'o').glob('reid-*/per_query.csv'))[:2]
    done = in_console(f'posereid_compare(Path({str(a.parent)!r}), Path({str(b.parent)!r}))',
                      encoding, tmp_path)
    assert done.returncode==0 and done.stdout, done.stderr


@slow
@pytest.mark.parametrize('command', ['run', 'generate', 'eval', 'audit', 'reproduce'])
def test_help_in_plain_consoles(tmp_path, command):
    script = Path(sys.executable).parent/f'posereid_{command}'
    if not script.exists(): pytest.skip('the package is not installed')
    done = subprocess.run([script, '--help'], env={**os.environ, 'PYTHONIOENCODING':'ascii'},
                          capture_output=True, cwd=tmp_path)
    assert done.returncode==0 and b'--layout' in done.stdout, done.stderr


def test_what_is_known_is_refused_before_training(sets, tmp_path, refused):
    "Poses of test pictures alone; poses that nobody has twice; poses with too few joints to be lent"
    t,df = table_of(sets),load_dataset(sets/'Market-1501')
    train = [Path(p).name for p in pick(df, 'train').path]
    call = lambda says: refused(cli.posereid_run, data=sets/'Market-1501', poses=tmp_path/'k.csv',
                                out=tmp_path/'o', preset='smoke', rows='control,guided',
                                set=REID+GAN, says=says)
    rest = [n for n in t.names if n not in train]
    write_market_csv(tmp_path/'k.csv', PoseTable(rest, t.get(rest)))
    call('has a pose')
    ones = list({n[:4]: n for n in train}.values())
    write_market_csv(tmp_path/'k.csv', PoseTable(ones, t.get(ones)))
    call('pair')
    few = t.get(train).clone()
    few[:,7:] = 0.
    write_market_csv(tmp_path/'k.csv', PoseTable(train, few))
    call('at least 8 joints')
    assert not (tmp_path/'o').exists()


# --- names that fit nothing, or nearly ---

def test_a_few_names_of_no_picture(market, sets, tmp_path, capsys, refused):
    "A deleted picture leaves its row behind: counted; a file of another set: refused, by run and audit alike"
    t,gone = table_of(sets),train_pictures(market)[0]
    write_market_csv(tmp_path/'k.csv', t)
    gone.unlink()
    i = folder_inputs(market, poses=tmp_path/'k.csv')
    assert any(f'names of no picture, left out: 1, among them {gone.name}' in o for o in i.notes)
    for p in train_pictures(market)[:18]: p.unlink()
    refused(cli.posereid_run, data=market, poses=tmp_path/'k.csv', out=tmp_path/'o', preset='smoke',
            rows='control', says='name no picture')
    with pytest.raises(SystemExit) as e:
        cli.posereid_audit(sets/'folders', poses=sets/'DukeMTMC-reID_poses.csv')
    assert e.value.code==1


def test_folders_in_front_of_all_names(sets, tmp_path):
    "`images/train/anna/0.jpg` of a set whose folder is called otherwise"
    t = read_poses(sets/'folders_poses.csv')
    for front in ('images/', '../other place/'):
        write_market_csv(tmp_path/'k.csv', PoseTable([front+o for o in t.names], t.joints))
        i = folder_inputs(sets/'folders', poses=tmp_path/'k.csv')
        assert torch.equal(i.poses.of(i.target),
                           t.get([os.path.relpath(o, sets/'folders') for o in i.target.path]))
    wrong = [o.replace('train/', 'training/') for o in t.names]  # base names alone would be there
    write_market_csv(tmp_path/'k.csv', PoseTable(wrong, t.joints))
    with pytest.raises(InputError, match='name no picture'):
        folder_inputs(sets/'folders', poses=tmp_path/'k.csv')


def test_pictures_beside_those_that_a_table_lists(sets, tmp_path):
    "A CSV that leaves a picture out, with the keypoints of all"
    df = load_dataset(sets/'Market-1501')
    df[df.pid>0].iloc[3:][['path','pid','camid','split']].to_csv(tmp_path/'own.csv', index=False)
    i = folder_inputs(tmp_path/'own.csv', poses=sets/'Market-1501_poses.csv')
    assert any('pictures of the set that are not read here' in o for o in i.notes)


def test_half_size_is_said(sets, tmp_path):
    t = table_of(sets)
    write_market_csv(tmp_path/'k.csv', PoseTable(t.names, t.joints*t.joints.new_tensor([.5,.5,1])))
    assert any('small poses' in o for o in inputs(sets, tmp_path/'k.csv').notes)
    assert not any('small poses' in o for o in inputs(sets, sets/'Market-1501_poses.csv').notes)


def test_pictures_without_a_pose_are_counted(sets, tmp_path):
    t,train = table_of(sets),[Path(p).name
                              for p in pick(load_dataset(sets/'Market-1501'), 'train').path]
    joints = t.joints.clone()
    joints[[t.names.index(o) for o in train[:7]]] = 0.
    write_market_csv(tmp_path/'k.csv', PoseTable(t.names, joints))
    i = folder_inputs(sets/'Market-1501', sets/'MARS', poses=tmp_path/'k.csv')
    assert sum('7 of 60 training pictures have no pose' in o for o in i.notes)==1


def test_yolo_in_its_own_folder(sets, tmp_path):
    "`labels/…` around files that mirror a set whose names start again"
    t = read_poses(sets/'folders_poses.csv')
    for n,k in zip(t.names, t.joints):
        xy = torch.where(k[:,2:]>0, (k[:,:2]+.5)/torch.tensor([32.,64.]), 0.)
        own = [0,15,14,17,16,5,2,6,3,7,4,11,8,12,9,13,10]  # COCO's order in ours
        line = [0,.5,.5,1,1] + [v for j in own for v in (*xy[j].tolist(), 2. if k[j,2]>0 else 0.)]
        file = tmp_path/'runs'/'labels'/Path(n).with_suffix('.txt')
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(' '.join(f'{v:.6f}' if i else '0' for i,v in enumerate(line)))
    i = folder_inputs(sets/'folders', poses=tmp_path/'runs')
    want,got = (t.get([os.path.relpath(o, sets/'folders') for o in i.target.path]),
                i.poses.of(i.target))
    both = (want[...,2]>0) & (got[...,2]>0)
    both[:,1] = False
    assert both.sum()>500 and (want-got)[both][:,:2].abs().max()<.01


def test_known_poses_by_any_name(market, sets, tmp_path):
    "posereid_pose matches names as the stages do"
    t = table_of(sets)
    where = {p.name: str(p.relative_to(market)) for p in market.rglob('*.jpg')}
    for k,name in enumerate((lambda o: where[o], lambda o: str(market/where[o]))):
        write_market_csv(tmp_path/f'{k}.csv', PoseTable([name(o) for o in t.names], t.joints))
        cli.posereid_pose(market, out=tmp_path/f'out{k}.csv', estimator='known',
                          weights=tmp_path/f'{k}.csv', folders='query', no_sheet=True,
                          against=tmp_path/f'{k}.csv')
        got = read_poses(tmp_path/f'out{k}.csv')
        assert len(got)==16 and torch.equal(got.joints, t.get(got.names))


def test_pictures_of_kinds_that_are_not_read(market, tmp_path, capsys):
    for n in ('a.heic','b.GIF'):
        (market/'bounding_box_train'/n).write_bytes(b'GIF89a' if 'GIF' in n else b'....ftypheic')
    guider(market, tmp_path/'o')
    assert 'pictures of kinds that are not read: 2 (a.heic, b.GIF)' in capsys.readouterr().out
    with pytest.raises(SystemExit) as e: cli.posereid_audit(market)
    assert e.value.code==1


def test_tables_with_holes(tmp_path, sets, refused):
    df = load_dataset(sets/'Market-1501')
    df = df[df.pid>0][['path','pid','camid','split']].astype(object)
    for change,says in ((dict(split=df.split.replace('query','test')),
                         ['are query, the others gallery']),
                        (dict(pid=df.pid.where(df.index!=5, '')), ['`pid` of 1 rows is empty']),
                        (dict(camid=df.camid.where(df.index!=5, '')),
                         ['`camid` of 1 rows is empty', '0 where it is not known'])):
        df.assign(**change).to_csv(tmp_path/'own.csv', index=False)
        refused(guider, tmp_path/'own.csv', tmp_path/'o', says=says)


def test_no_cameras_are_told(sets, tmp_path, capsys):
    guider(sets/'folders', tmp_path/'o')
    assert 'no cameras: every gallery picture' in capsys.readouterr().out


def test_equal_names_are_no_leak_and_copies_are(sets, tmp_path):
    "Another set may call its pictures alike; a copy of a test picture is one under whatever folder"
    from posereid.stages.generate import GenerateSettings, plan
    i = folder_inputs(sets/'Market-1501', sets/'MARS')
    def renamed(paths):
        "The source's pictures under the names of test pictures"
        out = []
        for o,t in zip(i.source.path, i.target.path[i.target.split=='query']):
            to = tmp_path/str(len(out))/Path(t).name
            to.parent.mkdir(exist_ok=True)
            shutil.copy(dict(own=o, test=t)[paths], to)
            out.append(str(to))
        return i.source.iloc[:len(out)].assign(path=out)
    poses = PoseTable([Path(o).name for o in renamed('own').path], i.poses.of(i.source.path[:16]))
    assert len(plan(i.target, renamed('own'), poses, GenerateSettings()))==120
    with pytest.raises(InputError, match='16 pictures of the source are test pictures'):
        plan(i.target, renamed('test'), poses, GenerateSettings())


@pytest.mark.parametrize('front', ['train/', 'set/train/', 'data/set/train/'])
def test_poses_of_other_people_are_not_taken(tmp_path, front):
    "A file that names Bo's pictures alone gives none to An, whose base names are the same"
    for p in ('An','Bo'):
        for i in (0,1):
            f = tmp_path/'set'/'train'/p/f'{i}.jpg'
            f.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (32,64)).save(f)
    df = load_dataset(tmp_path/'set', 'folder')
    joints = walking_pose(torch.linspace(0, 6, 2))
    write_market_csv(tmp_path/'k.csv', PoseTable([f'{front}Bo/{i}.jpg' for i in (0,1)], joints))
    with pytest.raises(InputError): load_poses(tmp_path/'k.csv', df[df.pid == 1], tmp_path/'set')
    assert torch.equal(load_poses(tmp_path/'k.csv', df, tmp_path/'set').of(df)[2:], joints)


@pytest.mark.parametrize('front,ok', [('images/', True), ('../x/', True), ('train/p1/', False),
                                      ('p1/', False), ('query/p0/', False), ('x/p1/', False)])
def test_folders_of_the_set_are_never_passed_over(tmp_path, front, ok, capsys):
    "`train/p1/a.jpg` is p1's, even if p0 alone has an a.jpg; run, audit and estimates agree"
    for k,who in enumerate(('train/p0','train/p1','query/p0','gallery/p0')):
        for i in range(3):
            f = tmp_path/'set'/who/f'{"abcd"[k]}{i}.jpg'
            f.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (32,64)).save(f)
    names = [f'{front}a{i}.jpg' for i in range(3)]
    write_market_csv(tmp_path/'k.csv', PoseTable(names, walking_pose(torch.linspace(0, 6, 3))))
    df = load_dataset(tmp_path/'set')
    read = lambda: load_poses(tmp_path/'k.csv', df, tmp_path/'set')
    if ok: assert len(read())==3 and any('passed over' in o for o in read().notes)
    else:
        with pytest.raises(InputError, match='name no picture'): read()
    try: cli.posereid_audit(tmp_path/'set', poses=tmp_path/'k.csv')
    except SystemExit: pass
    assert ('0 of 12 pictures have a row' in capsys.readouterr().out) is not ok


def test_the_file_of_a_whole_set_for_a_part_as_source(sets):
    i = folder_inputs(sets/'Market-1501', sets/'folders'/'train',
                      source_poses=sets/'folders_poses.csv',
                      choices=dict(source_read=dict(layout='folder')))
    assert any('pictures of the set that are not read here' in o for o in i.notes)


def test_msmt17_says_what_it_lacks(sets, tmp_path):
    root = Path(shutil.copytree(sets/'MSMT17_V1', tmp_path/'m'))
    (root/'list_val.txt').unlink()
    assert any('list_train.txt alone' in o for o in reading_notes(load_dataset(root)))
    assert not any('list_train.txt alone' in o
                   for o in reading_notes(load_dataset(root, val=False)))
    lines = (root/'list_query.txt').read_text().splitlines()
    old = lines[0].split()[0]
    new = '_'.join([*old.split('_')[:2], '16', *old.split('_')[3:]])
    (root/'test'/old).rename(root/'test'/new)
    (root/'list_query.txt').write_text('\n'.join([lines[0].replace(old, new), *lines[1:]])+'\n')
    with pytest.raises(InputError, match='01 to 15'): load_dataset(root)


def test_a_missing_frame_of_mars(sets, tmp_path):
    root = Path(shutil.copytree(sets/'MARS', tmp_path/'MARS'))
    whole = load_dataset(root, splits='all')
    gone = Path(whole.path[whole.split=='train'].iloc[4])
    gone.unlink()
    with pytest.raises(InputError,
                       match=f'{gone.name} is named in train_name.txt and not there.*odd=skip'):
        load_dataset(root)
    df = load_dataset(root, splits='all', odd='skip')
    want = whole[whole.path!=str(gone)].reset_index(drop=True)
    assert df.equals(want) and list(df.attrs['skipped'])==[str(gone)]
