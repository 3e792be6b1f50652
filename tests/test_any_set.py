"The main job on every set that the readers know, on files of the true layout: the whole run, and each stage by its own command"
import json, os, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from posereid import cli
from posereid.core import InputError
from posereid.data.audit import audit
from posereid.data.layouts import check_train, load_dataset, reader_choices, there_are, typed
from posereid.data.market import read_generated, read_msmt17
from posereid.data.manifest import pick
from posereid.stages.generate import generated_names
from posereid.experiment.inputs import folder_inputs

REID = ['reid.width=4', 'reid.epochs=1', 'reid.bs=8']
GAN = ['transfer.width=4', 'transfer.d_width=4', 'transfer.pairs=16', 'transfer.parts=1',
       'transfer.bs=8']
slow = pytest.mark.slow

# set, source, further arguments, what the protocol says
SETS = [pytest.param('Market-1501', 'MARS', {}, 'Market-1501: 16 queries of 8 people', marks=slow),
        pytest.param('DukeMTMC-reID', 'MARS', {}, 'DukeMTMC-reID: 16 queries'),
        pytest.param('cuhk03-np', 'MARS', dict(layout='cuhk03-labeled'),
                     'CUHK03 new protocol (767/700), labeled boxes', marks=slow),
        pytest.param('cuhk03-np', 'MARS', dict(read=['boxes=detected']),
                     'CUHK03 new protocol (767/700), detected boxes', marks=slow),
        pytest.param('cuhk03', 'MARS', dict(layout='cuhk03-labeled'), 'labeled boxes', marks=slow),
        pytest.param('cuhk03', 'MARS', dict(layout='cuhk03-detected'), 'detected boxes',
                     marks=slow),
        pytest.param('MARS', 'MSMT17_V1', {}, 'tracklets pooled by max, 32 query tracklets',
                     marks=slow),
        pytest.param('MSMT17_V1', 'MARS', {}, 'MSMT17_V1: 16 queries', marks=slow),
        pytest.param('MSMT17_V2', 'MARS', {}, 'MSMT17_V2: 16 queries', marks=slow),
        pytest.param('folders', 'MARS', {}, 'unknown camera, never removed', marks=slow),
        pytest.param('folders_cam', 'folders', dict(read=['camera=^c([0-9]+)']),
                     'same person in same camera removed'),
        pytest.param('own/own.csv', 'folders', {}, 'own.csv: 16 queries', marks=slow)]
names = (lambda p: f"{p.values[0]}-{'-'.join(p.values[2].get('read', []))}"
         f"{p.values[2].get('layout', '')}")


def there(sets, name):
    if not (sets/name).exists(): pytest.skip(f'{name} was written without h5py')
    return sets/name


@pytest.mark.parametrize('name,source,args,says', SETS, ids=map(names, SETS))
def test_run(sets, tmp_path, name, source, args, says):
    cli.posereid_run(out=tmp_path/'run', preset='smoke', data=there(sets, name), source=sets/source,
                     rows='control,guided', set=REID+GAN, **args)
    df = pd.read_csv(tmp_path/'run'/'results.csv')
    assert df.rank1.between(0, 100).all() and df.pictures[1]==3*df.pictures[0]
    said = json.loads(next((tmp_path/'run').glob('reid-*/scores.json')).read_text())['protocol']
    assert says in said, said


@pytest.mark.parametrize('name,source,args,says', SETS, ids=map(names, SETS))
def test_stage_by_stage(sets, tmp_path, capsys, name, source, args, says):
    data,lent = there(sets, name),sets/source
    cli.posereid_guider(data, out=tmp_path/'guider', preset='smoke', set=REID, **args)
    cli.posereid_transfer(data, lent, guider=tmp_path/'guider', out=tmp_path/'transfer',
                          preset='smoke', set=GAN, **args)
    cli.posereid_generate(data, lent, generator=tmp_path/'transfer',
                          out=tmp_path/'generated', **args)
    cli.posereid_augment(data, generated=tmp_path/'generated', out=tmp_path/'augmented',
                         preset='smoke', set=REID, **args)
    scored = capsys.readouterr().out.strip().splitlines()[-3:-1]
    cli.posereid_eval(data, tmp_path/'augmented', **args)
    assert capsys.readouterr().out.strip().splitlines()[-2:]==scored and says in scored[1]
    gen,real = read_generated(tmp_path/'generated'),folder_inputs(data, need_poses=False,
        layout=args.get('layout'), choices=_choices(args)).train
    who = dict(zip(real.path, zip(real.pid, real.camid)))
    assert (len(gen)==2*len(real)
            and [who[o] for o in gen.source_path]==list(zip(gen.pid, gen.camid)))


def _choices(args): return dict(read=cli.parse_choices(args.get('read')))


@pytest.mark.parametrize('name', ['Market-1501', 'DukeMTMC-reID', 'cuhk03-np/labeled', 'MARS',
                                  'MSMT17_V1', 'MSMT17_V2', 'folders', 'own/own.csv'])
def test_audit_passes(sets, name, capsys):
    poses = ((sets/name).parent/f'{Path(name).stem}_poses.csv' if '/labeled' not in name
             else sets/'cuhk03-np_poses.csv')
    try: cli.posereid_audit(sets/name, poses=poses, decode=True)
    except SystemExit as e: assert not e.code, capsys.readouterr().out
    assert 'nothing fails' in capsys.readouterr().out

# --- ids ---

def test_msmt17_numbers_its_people_apart(sets):
    for v in (1,2):
        df = load_dataset(sets/f'MSMT17_V{v}')
        train,test = set(df.pid[df.split=='train']),set(df.pid[df.split!='train'])
        assert (train==set(range(1, len(train)+1))
                and test==set(range(len(train)+1, len(train)+len(test)+1)))
        assert df.own_id[df.split=='train'].min()==df.own_id[df.split=='query'].min()=='0000'
        files = [Path(p).name.split('_') for p in df.path]
        assert (df.own_id.tolist()==[f[0] for f in files]
                and df.camid.tolist()==[int(f[2]) for f in files])
        assert df.camid.max()>9
        few = load_dataset(sets/f'MSMT17_V{v}', val=False)
        assert (0 < (few.split=='train').sum() < (df.split=='train').sum()
                and few.attrs['layout']!=df.attrs['layout'])


def test_any_integers_are_people(sets):
    df = load_dataset(sets/'own'/'own.csv')
    own = sorted({int(o) for o in df.own_id})
    assert own[0]<0 and 0 in own and own[-1]>1e6
    assert [own.index(int(o))+1 for o in df.own_id]==df.pid.tolist()
    assert check_train(df) is df


def test_zero_in_training(sets, tmp_path, refused):
    "A set whose protocol says that 0 is a distractor may not train on it; a set of one's own may"
    root = Path(shutil.copytree(sets/'Market-1501', tmp_path/'set'))
    first = sorted((root/'bounding_box_train').iterdir())[0]
    for new in ('0000'+first.name[4:], '-1'+first.name[4:]):
        shutil.copy(first, root/'bounding_box_train'/new)
        refused(cli.posereid_guider, root, out=tmp_path/'o', says=['of nobody', new])
        with pytest.raises(SystemExit) as e: cli.posereid_audit(root)
        assert e.value.code==1
        (root/'bounding_box_train'/new).unlink()


def test_minus_one_may_be_junk(sets, tmp_path, refused):
    df = pick(load_dataset(sets/'Market-1501'), ['train','query','gallery'])
    df = df[df.pid>0][['path','pid','camid','split']]
    df.loc[df.pid==df.pid.min(), 'pid'] = -1
    df.to_csv(tmp_path/'own.csv', index=False)
    refused(cli.posereid_guider, tmp_path/'own.csv', out=tmp_path/'o',
            says=['marks junk', 'own_ids=true'])
    inputs = folder_inputs(tmp_path/'own.csv', need_poses=False,
                           choices=dict(read=dict(own_ids='true')))
    assert inputs.target.pid.min()==1 and inputs.target.pid.nunique()==df.pid.nunique()

# --- names ---

def test_generated_sets_by_any_names(sets, tmp_path):
    "Base names that start again for each person: the folder joins the name, and two people are not mixed up"
    i = folder_inputs(sets/'folders', need_test=False)
    assert len({Path(o).name for o in i.train.path}) < len(i.train)
    from posereid.stages.generate import GenerateSettings, generate, plan
    from posereid.stages.transfer import TransferSettings, transfer_model
    w = folder_inputs(sets/'folders', sets/'MARS', need_test=False)
    todo = plan(w.target, w.source, w.poses, GenerateSettings())
    df = generate(transfer_model(TransferSettings(width=4, beta=0.)).G, w.target, w.source, w.poses,
                  w.store((64,32)), GenerateSettings(), tmp_path/'g')
    assert df.pid.tolist()==todo.pid.tolist() and df.path.nunique()==len(todo)
    for path,source,k in zip(df.path, df.source_path, df.k):
        assert Path(path).name==f'{Path(source).parent.name}_{Path(source).stem}_g{k}.jpg'


def test_poses_of_repeated_names_are_not_mixed_up(sets):
    "The joints of a picture are those of its own folder's file"
    i = folder_inputs(sets/'folders', sets/'folders_cam', need_test=False,
                      choices=dict(source_read=dict(camera='^c([0-9]+)')))
    from posereid.pose.files import read_poses
    for df,name in ((i.target,'folders'), (i.source,'folders_cam')):
        table = read_poses(sets/f'{name}_poses.csv')
        want = table.get([os.path.relpath(o, sets/name) for o in df.path])
        assert (want[...,2]>0).any() and (i.poses.of(df)-want).abs().max()==0


def test_bare_names_cannot_serve_them(sets, tmp_path, refused):
    lines = (sets/'folders_poses.csv').read_text(encoding='utf-8').splitlines()
    bare = [lines[0], *(o.rsplit('/', 1)[-1] for o in lines[1:] if o.startswith('train/'))]
    (tmp_path/'bare.csv').write_text('\n'.join(dict.fromkeys(bare))+'\n', encoding='utf-8')
    refused(cli.posereid_run, out=tmp_path/'o', preset='smoke', data=sets/'folders',
            poses=tmp_path/'bare.csv', rows='control,guided', says=['0.jpg', 'bare.csv'])
    assert not (tmp_path/'o').exists()


def test_market_names(sets, tmp_path, capsys, refused):
    "For a toolbox that reads Market-1501's names alone"
    data,lent = sets/'DukeMTMC-reID',sets/'MARS'
    cli.posereid_transfer(data, lent, out=tmp_path/'transfer', preset='smoke',
                          set=[*GAN, 'transfer.beta=0'])
    cli.posereid_generate(data, lent, generator=tmp_path/'transfer', out=tmp_path/'g',
                          names='market1501')
    from posereid.data.market import parse_market_name
    df,names = read_generated(tmp_path/'g'),pd.read_csv(tmp_path/'g'/'names.csv',
        dtype={'own_id':str})
    assert [parse_market_name(o)[:2] for o in df.path]==list(zip(df.pid, df.camid))
    assert (names.name.tolist()==[Path(o).name for o in df.path]
            and names.source.tolist()==[Path(o).name for o in df.source_path])
    assert names.own_id.tolist()==[o[:4] for o in names.source]
    refused(cli.posereid_generate, sets/'MSMT17_V1', lent, generator=tmp_path/'transfer',
            out=tmp_path/'m', names='market1501', says='--names source')
    refused(cli.posereid_generate, data, lent, generator=tmp_path/'transfer', out=tmp_path/'m',
            names='duke', says='market1501')
    assert not (tmp_path/'m').exists()

# --- evaluation needs query and gallery alone ---

@pytest.fixture(scope='module')
def model(sets, tmp_path_factory):
    out = tmp_path_factory.mktemp('model')/'guider'
    cli.posereid_guider(sets/'Market-1501', out=out, preset='smoke', set=REID)
    return out


@pytest.mark.parametrize('name,train',
                         [('Market-1501','bounding_box_train'), ('MARS','bbox_train'),
                          ('MSMT17_V1','train'), ('cuhk03-np','labeled/bounding_box_train'),
                          ('folders','train')])
def test_eval_without_training_pictures(sets, model, tmp_path, capsys, name, train):
    root = Path(shutil.copytree(sets/name, tmp_path/name))
    args = dict(layout='cuhk03-labeled') if name=='cuhk03-np' else {}
    cli.posereid_eval(root, model, **args)
    want = capsys.readouterr().out
    shutil.rmtree(root/train)
    cli.posereid_eval(root, model, **args)
    got = capsys.readouterr().out
    assert got.splitlines()[-2:]==want.splitlines()[-2:]
    assert dict(MARS='tracklets pooled by max').get(name, 'queries') in got


def test_eval_protocols(sets, model, capsys, refused):
    cli.posereid_eval(sets/'cuhk03-np', model, layout='cuhk03-labeled', single_shot=10)
    out = capsys.readouterr().out
    assert 'single-shot rank-1' in out and '767/700' in out
    cli.posereid_eval(sets/'MARS', model, tracklets='mean')
    assert 'pooled by mean' in capsys.readouterr().out
    refused(cli.posereid_eval, sets/'MARS', model, tracklets='median', says='median')


def test_one_camera(sets, model, tmp_path, capsys, refused):
    df = load_dataset(sets/'Market-1501')
    df[df.pid>0][['path','pid','split']].assign(camid=3).to_csv(tmp_path/'one.csv', index=False)
    refused(cli.posereid_eval, tmp_path/'one.csv', model,
            says=['are from camera 3', '--no_cameras'])
    refused(cli.posereid_guider, tmp_path/'one.csv', out=tmp_path/'o',
            says=['are from camera 3', '--no_cameras'])
    with pytest.raises(SystemExit) as e: cli.posereid_audit(tmp_path/'one.csv')
    assert e.value.code==1 and '--no_cameras' in capsys.readouterr().out
    cli.posereid_eval(tmp_path/'one.csv', model, no_cameras=True)
    assert 'no cameras' in capsys.readouterr().out

# --- what a reader is told ---

def paint(path, size=(8,16), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3),
                        dtype=np.uint8)).save(path)
    return path

def test_all_splits_by_name(sets):
    "What the docs of `load_dataset` and `posereid_* --read splits=all` promise"
    assert (len(load_dataset(sets/'Market-1501', splits='all'))
            == len(load_dataset(sets/'Market-1501')))
    assert load_dataset(sets/'MARS', splits='all').split.nunique() == 3
    assert typed(dict(splits='all'), reader_choices('mars')) == dict(splits='all')

def test_all_splits_of_msmt17_are_those_there(sets, tmp_path):
    root = Path(shutil.copytree(sets/'MSMT17_V1', tmp_path/'m'))
    (root/'list_gallery.txt').unlink()
    assert set(read_msmt17(root, splits='all').split) == {'train','query'}

@pytest.mark.parametrize('choice', [dict(camera='true'), dict(camera='no'), dict(dataset='yes')])
def test_text_choices_stay_text(tmp_path, choice):
    paint(tmp_path/'p'/'yes_1.jpg')
    try: df = load_dataset(tmp_path, 'folder', **choice)
    except InputError as e: assert repr(next(iter(choice.values()))) in str(e)
    else: assert df.dataset[0] == 'yes'

def test_audit_of_some_splits(sets):
    for name, n in (('Market-1501', 60), ('MSMT17_V1', 60)):
        a = audit(sets/name, read=dict(splits='train'), against='none')
        assert [s['pictures'] for s in a.splits if s['split'] == 'train'] == [n]
    a = audit(sets/'Market-1501', read=dict(splits='query,gallery'), against='none')
    assert {s['split'] for s in a.splits if s['pictures']} == {'query','gallery'}

def test_open_part_says_nothing_to_nobody(sets, tmp_path):
    from posereid.experiment.tables import TABLES, open_part
    root = Path(shutil.copytree(sets/'Market-1501', tmp_path/'m'))
    (root/'query'/'note.txt').touch()
    open_part(TABLES['tbl1']['parts'][0], [], 1, tmp_path/'runs', 'smoke',
              dict(data=root, need_poses=False))

def test_which_boxes_are_there(sets, tmp_path):
    for b in ('labeled','detected'): shutil.copytree(sets/'cuhk03-np'/b, tmp_path/'np'/b)
    shutil.rmtree(tmp_path/'np'/'labeled'/'query')
    assert (there_are(tmp_path/'np', 'cuhk03-labeled') == ('train','gallery')
            and len(there_are(tmp_path/'np', 'cuhk03-detected')) == 3)

def test_no_two_names_alike():
    paths = ['/a/p_q/0.jpg', '/a/p/q_0.jpg', '/a/p_q_0.jpg-1.jpg', '/a/p/0.jpg', '/a/p_q/1.jpg']
    assert len(set(generated_names(paths, [0]*5))) == 5


def test_reproduce_reads_any_set(sets, tmp_path, refused):
    "Both sets by the choices of their readers, and a line that names them"
    kwargs = dict(out=tmp_path/'out', runs=tmp_path/'runs', seeds='1', rows='control',
                  preset='smoke', set=REID)
    cli.posereid_reproduce('tbl1', data=sets/'cuhk03-np', layout='cuhk03-labeled',
                           source=sets/'folders_cam', source_read=['camera=^c([0-9]+)'], **kwargs)
    line = pd.read_csv(tmp_path/'out'/'tbl1.csv').iloc[0]
    assert ('--layout cuhk03-labeled' in line.command
            and "--source_read 'camera=^c([0-9]+)'" in line.command)
    refused(cli.posereid_reproduce, 'tbl1', source_read=['odd=skip'],
            says='--source_read goes with --data', **kwargs)
