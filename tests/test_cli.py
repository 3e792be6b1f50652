"Commands, in this process where possible: what they leave, how they go on, and one sentence for each bad input"
import json, os, re, shutil, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from posereid import cli

ROOT = Path(__file__).parents[1]
WORLD = ['world.n_train=6', 'world.per_train=4', 'world.n_source=4', 'world.per_source=8',
         'world.n_test=4', 'world.per_test=5', 'world.n_junk=2', 'world.n_distractor=2']
REID = ['reid.width=4', 'reid.epochs=1', 'reid.bs=8']
GAN = ['transfer.width=4', 'transfer.d_width=4', 'transfer.pairs=32', 'transfer.parts=2',
       'transfer.bs=8']
COMMANDS = [f'posereid_{o}' for o in 'run synth guider transfer generate augment eval audit pose '
            'compare reproduce'.split()]


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('POSEREID_CACHE', str(tmp_path_factory.mktemp('cache')))
        m.setenv('POSEREID_QUIET', '1')
        m.delenv('POSEREID_DEBUG', raising=False)
        yield Path(os.environ['POSEREID_CACHE'])


# --- posereid_run ---

def run(out, **kwargs):
    return cli.posereid_run(out=Path(out), preset='smoke', set=WORLD+REID+GAN, **kwargs)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp('main')/'run'
    run(out)
    return out


def test_run_leaves_table_and_page(done):
    df = pd.read_csv(done/'results.csv')
    assert df.columns.tolist()==('row title pictures steps eps_real eps_generated rank1 rank5 '
                                 'map_trap map_mean d_steps d_smoothed rank1_bn map_trap_bn '
                                 'map_mean_bn rank1_grey map_trap_grey net loss size '
                                 'seed world').split()
    assert df.pictures.tolist()==[24]*3+[72]*3
    assert df.steps.tolist()==[3, 9, 9, 9, 9, 9]
    assert df.row.tolist()=='control equal_steps smoothed guided new best'.split()
    assert df.eps_real.round(4).tolist()==[0, 0, .2667, 0, 0, .2667]
    assert df.eps_generated.tolist()[3:]==[.4]*3 and df.eps_generated[:3].isna().all()
    assert ((df.d_steps-(df.map_trap-df.map_trap[1])).abs().max()<2e-4
            and (df.d_smoothed-(df.map_trap-df.map_trap[2])).abs().max()<2e-4)
    page = (done/'report.html').read_text(encoding='utf-8')
    assert not re.search(r'(src|href)="(?!data:)', page) and page.count('data:image/png;base64,')==3
    for o in ('posereid_run', '--set', 'world.n_train=6', 'Δ smoothed',
              'copy of the source picture'):
        assert o in page, o
    errors = pd.read_csv(done/'errors.csv', index_col='row')
    assert errors.index.tolist()==['copy','mean','guided','best','true']
    assert errors.title.tolist()==['copy of the source picture','mean picture of the identity',
                                   'guided','guided, best','true rendering']
    assert errors.l1['true']==0 and (errors.l1.drop('true')>0).all()


def test_guider_is_the_control_and_nothing_is_trained_twice(done):
    kinds = [o.name.split('-')[0] for o in done.iterdir() if o.is_dir()]
    assert {k: kinds.count(k) for k in kinds}==dict(figures=1, reid=7, transfer=2, generated=2,
                                                    rendered=1)


def test_stopped_and_started_again_gives_the_same_bytes(done, tmp_path, monkeypatch, capsys):
    from posereid.experiment import engine as experiments
    real,calls = experiments.train_transfer,[]
    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls)==2: raise KeyboardInterrupt
        return real(*args, **kwargs)
    monkeypatch.setattr(experiments, 'train_transfer', stop)
    with pytest.raises(SystemExit) as e: run(tmp_path/'run')
    assert e.value.code==130 and 'the same command continues' in capsys.readouterr().err
    assert not (tmp_path/'run'/'results.csv').exists()
    run(tmp_path/'run')
    out = capsys.readouterr().out
    assert 'control, smoothed' in out and out.strip().endswith('report.html')
    for o in ('results.csv','errors.csv'):
        assert (tmp_path/'run'/o).read_bytes()==(done/o).read_bytes(), o


def test_same_folder_other_settings(done, refused):
    kept = (done/'results.csv').read_bytes()
    f = cli.posereid_run
    refused(f, out=done, preset='smoke', seed=1, set=WORLD+REID+GAN,
            says=['reid.seed: 0 → 1', '--fresh', str(done)])
    refused(f, out=done, preset='smoke', set=WORLD+REID+GAN+['transfer.beta=2'],
            says=['transfer.beta: 1.0 → 2.0'])
    assert (done/'results.csv').read_bytes()==kept


def test_rows_and_fresh(done, tmp_path):
    shutil.copytree(done, tmp_path/'run')
    run(tmp_path/'run', rows='equal_steps,own')
    df = pd.read_csv(tmp_path/'run'/'results.csv')
    assert (df.row.tolist()==['equal_steps','own'] and df.title.tolist()
            ==['control, equal steps','rendered in own poses'] and df.d_smoothed.isna().all())
    run(tmp_path/'run', rows='control', validation=True, fresh=True)
    assert json.loads((tmp_path/'run'/'settings.json')
                      .read_text())['settings']['world']['validation'] is True
    assert (len(pd.read_csv(tmp_path/'run'/'results.csv'))==1
            and not list((tmp_path/'run').glob('transfer-*')))


# --- recipes, and one folder that lends its own poses ---

TRI = ['reid.bs=12']

@pytest.mark.parametrize('recipe', ['D-CE','R-Tri','D-Tri'])
def test_every_recipe_runs_small(recipe, tmp_path):
    cli.posereid_run(out=tmp_path/'run', preset='smoke', recipe=recipe,
                     rows='equal_steps,smoothed,guided,cross', set=WORLD+REID+GAN+TRI)
    df = pd.read_csv(tmp_path/'run'/'results.csv')
    loss,net = (('triplet' if 'Tri' in recipe else 'ce'),
                ('small_dense-4' if recipe[0]=='D' else 'small-4'))
    assert df.row.tolist()==['equal_steps','smoothed','guided','cross']
    assert set(df.loss)=={loss} and set(df.net)=={net} and df.map_trap.between(0, 100).all()
    transfers = [json.loads((o/'settings.json').read_text())['settings']['guider']
                 for o in (tmp_path/'run').glob('transfer-*')]
    assert len(set(transfers))==2 # guided by either form


def test_unknown_recipe(tmp_path, refused):
    refused(cli.posereid_run, out=tmp_path/'run', preset='smoke', recipe='R-CF',
            says="nearest is 'R-CE'")
    refused(cli.posereid_run, out=tmp_path/'run', preset='smoke', ids=5, says='--data')


def test_run_on_one_folder(world, tmp_path, refused):
    kwargs = dict(data=world/'target', poses=world/'target_poses.csv', preset='smoke',
                  set=REID+GAN, seed=1)
    cli.posereid_run(out=tmp_path/'run', rows='main,synthetic', **{**kwargs, 'set':WORLD+REID+GAN})
    df = pd.read_csv(tmp_path/'run'/'results.csv')
    assert df.row.tolist()==['control','equal_steps','smoothed','unguided','guided','synthetic']
    inputs = json.loads((tmp_path/'run'/'settings.json').read_text())['settings']['inputs']
    assert (inputs['split'], inputs['target'], inputs['taken_as_source'],
            inputs['validation'])==(1, 4, 2, 0)
    cli.posereid_run(out=tmp_path/'val', rows='control', validation=True, **kwargs)
    scores, = [json.loads(o.read_text()) for o in (tmp_path/'val').glob('reid-*/scores.json')]
    assert 'others for validation' in scores['protocol']
    refused(cli.posereid_run, out=tmp_path/'no', ids=6, **kwargs, says=['2 to 4', '--ids'])
    refused(cli.posereid_run, out=tmp_path/'no', rows='new', **kwargs,
            says='only a synthetic world')

# --- looking at what one brings ---

def test_audit_of_a_world_and_of_a_spoilt_one(world, tmp_path, capsys):
    cli.posereid_audit(world/'target', decode=True, poses=world/'target_poses.csv')
    assert 'query' in capsys.readouterr().out
    shutil.copytree(world/'target', tmp_path/'set')
    bad = sorted((tmp_path/'set/query').iterdir())[0]
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(SystemExit) as e:
        cli.posereid_audit(tmp_path/'set', decode=True, against='none', json=True)
    out = capsys.readouterr().out
    assert e.value.code==1 and bad.name in out and isinstance(json.loads(out), dict)


def test_pose_copies_known_poses(world, tmp_path, capsys, refused):
    cli.posereid_pose(world/'target/query', out=tmp_path/'q.csv', estimator='known',
                      weights=world/'target_poses.csv',
                      against=world/'target_poses.csv', no_sheet=True)
    out = capsys.readouterr().out
    assert (tmp_path/'q.csv').exists() and 'PCK@0.2: 100.0' in out
    refused(cli.posereid_pose, world/'target/query', out=tmp_path/'r.csv', estimator='ropenpose',
            says='rcnn')

# --- one command a stage ---

@pytest.fixture(scope='module')
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp('world')/'w'
    cli.posereid_synth(out=out, preset='smoke', set=WORLD)
    return out


@pytest.fixture(scope='module')
def guider(world):
    out = world.parent/'guider'
    cli.posereid_guider(world/'target', out=out, preset='smoke', set=REID)
    return out


def test_stages_one_by_one(world, guider, tmp_path, capsys):
    data,source = world/'target',world/'source'
    cli.posereid_transfer(data, source, guider=guider, out=tmp_path/'t', preset='smoke', set=GAN)
    cli.posereid_generate(data, source, generator=tmp_path/'t', out=tmp_path/'g', preset='smoke')
    assert (len(list((tmp_path/'g'/'bounding_box_train').glob('*.jpg')))==48
            and (tmp_path/'g'/'manifest.csv').exists())
    cli.posereid_augment(data, generated=tmp_path/'g', out=tmp_path/'a', preset='smoke', set=REID)
    said = capsys.readouterr().out
    cli.posereid_eval(data, model=tmp_path/'a')
    again = capsys.readouterr().out
    assert again.strip() and again.strip() in said and 'trapezoid' in again and '8 queries' in again


def test_the_engine_and_the_commands_agree(done, guider):
    rows = pd.read_csv(done/'results.csv')
    assert (json.loads((guider/'scores.json').read_text())['map_trap']
            ==pytest.approx(rows.map_trap[0], abs=1e-4))


def test_run_on_folders(world, tmp_path):
    cli.posereid_run(data=world/'target', source=world/'source', out=tmp_path/'r', preset='smoke',
                     rows='control,unguided', set=REID+GAN)
    df = pd.read_csv(tmp_path/'r'/'results.csv')
    assert df.pictures.tolist()==[24, 72] and df.world.isna().all()
    assert ('Error to the true rendering' not in (tmp_path/'r'/'report.html')
            .read_text(encoding='utf-8'))


def test_synth_again(world, refused):
    before = {p: p.stat().st_mtime_ns for p in world.rglob('*') if p.is_file()}
    cli.posereid_synth(out=world, preset='smoke', set=WORLD)
    refused(cli.posereid_synth, out=world, preset='smoke', world=1, set=WORLD,
            says=['world: 0 → 1', '--fresh'])
    assert {p: p.stat().st_mtime_ns for p in world.rglob('*') if p.is_file()}==before

# --- bad input ---

@pytest.fixture
def data(world, tmp_path):
    for o in ('target','source'): shutil.copytree(world/o, tmp_path/o)
    for o in ('target_poses.csv','source_poses.csv'): shutil.copy(world/o, tmp_path/o)
    return tmp_path


def pictures(folder): return sorted(folder.glob('*.jpg'))


def test_wrong_folder(data, refused):
    f = cli.posereid_guider
    refused(f, data/'nowhere', out=data/'o', says=['nowhere', 'does not exist'])
    refused(f, data/'target'/'query', out=data/'o', says=['query', 'bounding_box_train'])
    shutil.rmtree(data/'target'/'bounding_box_test')
    refused(f, data/'target', out=data/'o', says=['bounding_box_test', 'expected'])
    assert not (data/'o').exists()


def test_empty_split(data, refused):
    for p in pictures(data/'target'/'query'): p.unlink()
    refused(cli.posereid_guider, data/'target', out=data/'o', says=['query', str(data)])
    assert not (data/'o').exists()


def test_nothing_to_find(data, refused):
    "Found out before training, not after it"
    for p in pictures(data/'target'/'bounding_box_test'):
        if not p.name.startswith(('-1','0000')): p.unlink()
    refused(cli.posereid_guider, data/'target', out=data/'o', says=['queries', str(data)])
    refused(cli.posereid_guider, data/'source', out=data/'o', says=['query_IDX.mat', str(data)])
    assert not (data/'o').exists()


def test_single_pictures(data, refused):
    seen = set()
    for p in pictures(data/'target'/'bounding_box_train'):
        if p.name[:4] in seen: p.unlink()
        seen.add(p.name[:4])
    refused(cli.posereid_guider, data/'target', out=data/'o',
            says=['single picture', 'add a second'])
    assert not (data/'o').exists()


@pytest.mark.parametrize('spoil,says', [
    (lambda p: p.write_bytes(p.read_bytes()[:400]), []),
    (lambda p: p.write_bytes(b''), []),
    (lambda p: p.write_text('no picture'), []),
    (lambda p: Image.open(p).convert('CMYK').save(p), ['RGB'])],
                         ids=['truncated','empty','text','cmyk'])
def test_spoilt_picture(data, refused, spoil, says):
    p = pictures(data/'target'/'bounding_box_train')[1]
    spoil(p)
    refused(cli.posereid_guider, data/'target', out=data/'o', preset='smoke', set=REID,
            says=[str(p), *says])
    assert not (data/'o'/'reid.safetensors').exists()


def test_poses(data, guider, refused):
    file,f = data/'target_poses.csv',cli.posereid_transfer
    kept = file.read_text()
    call = lambda *says: refused(f, data/'target', data/'source', guider=guider, out=data/'o',
                                 preset='smoke', set=GAN, says=says)
    lines = kept.splitlines()
    file.write_text('\n'.join([lines[0], *(f'9999_c1s1_{i:06d}_01.jpg:' + lines[1].split(':', 1)[1]
                                           for i in range(20)), *lines[1:]])+'\n')
    call('9999_c1s1_000000_01.jpg', str(file))
    file.write_text('\n'.join([lines[0], *(re.sub(r'([\d.]+),', r'1\1,', l) for l in lines[1:])])
                    +'\n')
    call('outside their pictures', str(file))
    file.write_text('\n'.join([lines[0], *(re.sub(r'\[.*?\]', str([-1]*18), l) for l in lines[1:])])
                    +'\n')
    call('has a joint', str(file))
    file.write_text(kept.replace('name:', 'nom:', 1))
    call('name:keypoints_y:keypoints_x')
    file.unlink()
    call('--poses', str(file))
    assert not (data/'o').exists()


def test_settings_and_sizes(refused, tmp_path):
    f = cli.posereid_run
    for kwargs,says in [(dict(preset='defalt'), "'default'"), (dict(rows='gided'), "'guided'"),
                        (dict(size='64'), '64x32'), (dict(size='65x33'), '65'),
                        (dict(set=['transfer.bata=1']), "'transfer.beta'"),
                        (dict(set=['beta']), 'group.name=value'),
                        (dict(set=['transfer.beta=much']), 'float'),
                        (dict(set=['transfer.gan=wgan']), 'nonsat'),
                        (dict(set=['reid.eps_real=2']), 'between 0 and 1'),
                        (dict(set=['transfer.size=96x20', 'transfer.depth=5']), '96'),
                        (dict(set=['reid.arch=resnet5']), 'resnet50'),
                        (dict(set=['world.n_train=1']), 'n_train'),
                        (dict(set=['transfer.bs=7']), 'even'),
                        (dict(data=tmp_path), 'no known set'), (dict(source=tmp_path), '--data'),
                        (dict(data=tmp_path, rows='new'), 'rendered')]:
        refused(f, out=tmp_path/'o', says=says, **kwargs)
    refused(cli.posereid_guider, tmp_path, set=['transfer.beta=1'], says='reid.')
    assert not (tmp_path/'o').exists()


def test_output_folder_that_is_no_run(data, refused):
    (data/'o').mkdir()
    (data/'o'/'diary.txt').write_text('mine')
    refused(cli.posereid_guider, data/'target', out=data/'o', preset='smoke', set=REID,
            says=[str(data/'o'), 'not a run', '--out'])
    refused(cli.posereid_run, out=data/'o', preset='smoke', fresh=True, says='not a run')
    refused(cli.posereid_synth, out=data/'o', fresh=True, says='not a world')
    refused(cli.posereid_guider, data/'target', out=data/'o'/'diary.txt', preset='smoke', set=REID,
            says='file')
    assert (data/'o'/'diary.txt').read_text()=='mine' and len(list((data/'o').iterdir()))==1


def test_weights_that_are_not_there(data, guider, refused):
    d = data
    refused(cli.posereid_transfer, d/'target', d/'source', guider=d/'no', out=d/'o', preset='smoke',
            says='posereid_guider')
    refused(cli.posereid_generate, d/'target', d/'source', generator=d/'no', out=d/'o',
            says='posereid_transfer')
    refused(cli.posereid_augment, d/'target', generated=d/'no', out=d/'o', says=str(d/'no'))
    refused(cli.posereid_eval, d/'target', model=d/'no', says='posereid_guider')
    first = pictures(d/'target'/'bounding_box_train')[0].name[:4]
    for p in pictures(d/'target'/'bounding_box_train'):
        if p.name.startswith(first): p.unlink()
    shutil.copy(d/'target_poses.csv', d/'p.csv')
    (d/'p.csv').write_text(''.join(l for l in (d/'p.csv').read_text().splitlines(True)
                                   if not (l.startswith(first+'_'))))
    refused(cli.posereid_transfer, d/'target', d/'source', guider=guider, poses=d/'p.csv',
            out=d/'o', preset='smoke', says=['knows 6 people', 'has 5'])
    assert not (d/'o').exists()

# --- as a user calls them ---

@pytest.fixture
def script(tmp_path):
    "A command as pip installs it"
    def _f(name, more=''):
        p = tmp_path/name
        p.write_text(f"import sys\nfrom posereid.cli import {name}\nif __name__=='__main__':\n"
                     f"    try: sys.exit({name}())\n    finally: sys.stdout.flush(){more}\n")
        return [sys.executable, str(p)]
    return _f


ENV = {**os.environ, 'PYTHONPATH':f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}{ROOT}",
       'PYTHONWARNINGS':'ignore'}


def test_help_is_quick(script):
    "No torch is imported for it"
    t = time.time()
    res = subprocess.run(
        [*script('posereid_run', "; print('torch' in sys.modules, 'numpy' in sys.modules)"),
         '--help'], capture_output=True, text=True, env=ENV)
    assert (res.returncode==0 and '--validation' in res.stdout
            and res.stdout.strip().endswith('False False')), res.stdout+res.stderr
    assert time.time()-t<10  # two seconds where nothing else runs


@pytest.mark.parametrize('name', COMMANDS)
def test_every_argument_is_explained(name):
    from fastcore.script import anno_parser
    text = re.sub(r'\s+', ' ', anno_parser(getattr(cli, name)).format_help())
    from fastcore.docments import docments
    docs = docments(getattr(cli, name), returns=False)
    assert all(docs.values()), docs
    assert getattr(cli, name).__doc__.split(',')[0] in text


def test_a_sentence_and_a_status(script, tmp_path):
    res = subprocess.run([*script('posereid_guider'), str(tmp_path/'nowhere'), '--set',
                          'reid.epochs=1', '--set', 'reid.width=4'],
                         capture_output=True, text=True, env=ENV, cwd=tmp_path)
    assert res.returncode==2 and res.stdout=='' and 'Traceback' not in res.stderr
    assert (res.stderr.startswith('posereid_guider: ')
            and len(res.stderr.strip().splitlines())==1), res.stderr


def test_ctrl_c(script, tmp_path, cache):
    # tests in the background of a shell inherit that it is ignored
    p = subprocess.Popen([*script('posereid_run'), '--preset', 'smoke', '--out', str(tmp_path/'o'),
                          '--set', *WORLD, 'reid.epochs=5000'],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                         env={**ENV, 'POSEREID_CACHE':str(cache)},
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    for line in p.stdout:
        if line.startswith('[1/6]'): break
    time.sleep(.5)
    p.send_signal(signal.SIGINT)
    out,err = p.communicate(timeout=60)
    assert p.returncode==130 and 'Traceback' not in err and 'the same command continues' in err, err
    assert (tmp_path/'o'/'settings.json').exists() and not (tmp_path/'o'/'results.csv').exists()
