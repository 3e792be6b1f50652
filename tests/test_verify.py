"What `posereid_verify` makes again beyond models and plain sets: averaged scores, borrowed poses, guessed sides, chosen halves"
import json, shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from posereid.core import save_weights
from posereid.experiment import verify as V
from posereid.experiment.engine import Experiment
from posereid.experiment.inputs import folder_inputs
from posereid.experiment.presets import TINY_WORLD, experiment_settings
from posereid.experiment.rows import pick_rows
from posereid.experiment.verify import run_inputs, verify_pictures, verify_run, verify_scores
from posereid.pose.table import PoseTable
from posereid.synth.world import WorldSettings, make_world, tiny_world

OPTS = [*TINY_WORLD, 'reid.epochs=1', 'reid.width=4', 'transfer.width=4', 'transfer.d_width=4',
        'transfer.pairs=32', 'generate.bs=16']
ROWS = 'best_averaged best_picked guessed_soft synthetic'


def groups(opts=()): return experiment_settings('smoke', opts=[*OPTS, *opts], scratch=True)

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A run of a synthetic world"
    run = tmp_path_factory.mktemp('world')/'run'
    Experiment(pick_rows(ROWS), groups(), run).results()
    return run

@pytest.fixture(scope='module')
def real(tmp_path_factory):
    "A run of folders, with poses of a synthetic world that is none of them"
    tmp = tmp_path_factory.mktemp('real')
    for o in ('target','source'): shutil.copytree(tiny_world(1)/o, tmp/o)
    for o in ('target','source'): shutil.copy(tiny_world(1)/f'{o}_poses.csv', tmp)
    inputs = folder_inputs(tmp/'target', tmp/'source')
    Experiment(pick_rows('synthetic best_averaged'), groups(), tmp/'run', inputs).results()
    return tmp/'run'

@pytest.fixture
def run(made, tmp_path): return shutil.copytree(made, tmp_path/'run')

def state(run): return {p: (p.stat().st_mtime_ns, p.read_bytes())
                        for p in sorted(run.rglob('*')) if p.is_file()}
def only(run, name): return next(run.glob(name))
def averaged(run): return only(run, '*/scores_averaged.json')
def scores(run): return pd.DataFrame(verify_scores(run, run_inputs(run))).set_index('where')
def sets(run, **kw): return pd.DataFrame(verify_pictures(run, run_inputs(run), **kw)).set_index('where')
def change(file, f): file.write_text(json.dumps(f(json.loads(file.read_text()))))

def swapped(a, b):
    "Two pictures of a set in each other's place"
    x,y = a.read_bytes(),b.read_bytes()
    assert x!=y
    a.write_bytes(y); b.write_bytes(x)

def first_two(folder): return sorted((folder/'bounding_box_train').iterdir())[:2]


@pytest.mark.parametrize('which', ['made','real'])
def test_nothing_is_left_unchecked_and_nothing_written(which, request):
    run = request.getfixturevalue(which)
    before = state(run)
    res = verify_run(run)
    assert res.differ.sum()==0 and not res.what[res.check!='made with'].any()
    assert (res.n[res.check!='made with']>0).all()
    assert res[res['where'].str.endswith('scores_averaged.json')].n.tolist()==[12]
    assert state(run)==before


# --- averaged scores ---

def test_an_averaged_score_is_made_again(run):
    file = averaged(run)
    change(file, lambda d: {**d, 'map_trap':d['map_trap']+1e-9})
    line = scores(run).loc[f'{file.parent.name}/{file.name}']
    assert line.differ==1 and 'map_trap' in line.what
    # nor is it that of the model alone
    alone = json.loads(only(run, 'reid-*/scores.json').read_text())
    change(file, lambda d: {**alone, 'views':d['views']})
    assert scores(run).loc[f'{file.parent.name}/{file.name}'].differ>0


def test_its_queries_as_well(run):
    file = averaged(run).parent/'per_query_averaged.csv'
    text = file.read_text().splitlines()
    file.write_text('\n'.join([*text[:-1], text[-1].replace(text[-1].split(',')[-1], '0.123')])+'\n')
    assert scores(run).loc[f'{file.parent.name}/scores_averaged.json'].what==file.name


def test_views_of_another_generator_are_not_it(run):
    "The weights that drew the views are those of the row, and not just any"
    file = averaged(run)
    before = scores(run).loc[f'{file.parent.name}/{file.name}']
    for home in run.glob('transfer-*'):
        G = V.load_generator(home)
        with torch.no_grad():
            for p in G.parameters(): p.mul_(1.5)
        save_weights(G, home/'G.safetensors')
    after = scores(run).loc[f'{file.parent.name}/{file.name}']
    assert before.differ==0 and after.differ>0


def test_rows_that_are_not_known_are_said_to_be_unchecked(made, tmp_path):
    "Of Python's own rows; nothing is trained to find out"
    row = dict(pick_rows('best_averaged')[0], row='own', average=2)
    run = tmp_path/'run'
    two = Experiment([dict(row, **{'transfer.lam':7.})], groups(), run).results()
    before,where = state(run),f'{averaged(run).parent.name}/scores_averaged.json'
    line = scores(run).loc[where]
    assert (line.n,line.differ)==(0,0) and line.what.startswith('not checked: averaged')
    assert state(run)==before
    # a row that differs in the number alone is scored for itself
    three = Experiment([dict(row, average=3, **{'transfer.lam':7.})], groups(), run).results()
    assert len(set(run.glob('*/scores_averaged.json')))==1
    assert json.loads(next(run.glob('*/scores_averaged.json')).read_text())['views']==3
    assert three.map_trap[0]!=two.map_trap[0]
    # also where a row that is known has left all of its folders
    Experiment(pick_rows('best_averaged'), groups(), run).results()
    assert scores(run).loc[where].n==0
    assert sorted(o.n for i,o in scores(run).iterrows() if 'averaged' in i)==[0,12]


def test_an_unfinished_generator_is_not_trained_on(run):
    file = averaged(run)
    for o in run.glob('transfer-*'): (o/'metrics.json').unlink()
    before = state(run)
    line = scores(run).loc[f'{file.parent.name}/{file.name}']
    assert (line.n,line.differ)==(0,0) and state(run)==before


def test_re_ranked_and_averaged(made, tmp_path):
    "A score of both kinds is looked at, too"
    row = dict(pick_rows('best_averaged')[0], row='own', rerank=True)
    run = tmp_path/'run'
    Experiment([row], groups(), run).results()
    name = f'{only(run, "*/scores_reranked_averaged.json").parent.name}/scores_reranked_averaged.json'
    assert scores(run).loc[name].what.startswith('not checked')
    known = lambda which: [row] if which=='all' else pick_rows(which)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(V, 'pick_rows', known)
        assert scores(run).loc[name][['n','differ']].tolist()==[12,0]


# --- pictures ---

def test_poses_of_a_synthetic_world(real):
    "Drawn again by the joints of its own folder, and not of real pictures of the same names"
    home = next(o.parent for o in real.glob('generated-*/manifest.csv')
                if 'world-' in o.read_text())
    inputs = run_inputs(real)
    df = V.read_generated(home)
    assert not {*df.pose_path} & {*inputs.source.path}
    assert {Path(o).name for o in df.pose_path} & {Path(o).name for o in inputs.source.path}
    run = shutil.copytree(real, real.with_name('swapped'))  # its paths are relative
    assert sets(run, sample=1).loc[home.name][['n','differ','what']].tolist()==[16,0,'']
    swapped(*first_two(run/home.name))
    assert sets(run, sample=10**6).loc[home.name][['n','differ']].tolist()==[120,2]
    names = sorted({Path(o).name for o in df.pose_path})
    inputs.poses = PoseTable(names, torch.ones(len(names), 18, 3))
    assert (inputs.poses.rows_of(list(df.pose_path))>=0).all()
    assert (V._bank(df, inputs).of(list(df.pose_path))!=1).any()


def test_a_world_that_is_gone_or_another(real, tmp_path):
    home = next(o.parent for o in real.glob('generated-*/manifest.csv')
                if 'world-' in o.read_text())
    def verified(place):
        "The set, whose poses are said to be of the world in another folder"
        run = shutil.copytree(real, real.with_name(place.name), dirs_exist_ok=True)
        df = pd.read_csv(run/home.name/'manifest.csv')
        old = str(make_world(groups()['world']))
        df['pose_path'] = V.read_generated(home).pose_path.str.replace(old, str(place))
        assert df.pose_path.str.startswith(str(place)).all()
        df.to_csv(run/home.name/'manifest.csv', index=False)
        return sets(run).loc[home.name]
    line = verified(tmp_path/'gone')
    assert line.n==0 and line.what.startswith('not checked: its poses') and 'gone' in line.what
    other = make_world(WorldSettings(world=5, **{k:v for k,v in vars(groups()['world']).items()
                                                 if k!='world'}), tmp_path/'other')
    line = verified(other)
    assert 'not all of its poses' in line.what if line.n==0 else line.differ>0
    same = shutil.copytree(make_world(groups()['world']), tmp_path/'same')
    assert verified(same).differ==0
    some = next((same/'source').rglob('*.jpg'))
    some.write_bytes(some.read_bytes()[:-1]+b'x')
    line = verified(same.rename(tmp_path/'spoilt'))
    assert line.differ==1 and 'spoilt' in line.what


@pytest.mark.parametrize('what', ['picture','choice','stranger'])
def test_the_better_half(run, what):
    "A picture of another pose, the worse half, a picture that no row would make"
    home = only(run, 'picked-*')
    a,b = first_two(home)
    if what=='picture':
        swapped(a, b)
        line = sets(run, sample=1).loc[home.name]
        assert line.differ==2 and a.name in line.what and b.name in line.what
        return
    df = pd.read_csv(home/'manifest.csv')
    twin = next(i for i in range(1, len(df)) if df.source_path[i]!=df.source_path[0])
    if what=='stranger': df.loc[0,'pose_path'] = df.source_path[twin]
    else:
        exp,row,g = next(V._rows_with('keep', run, run_inputs(run)))
        todo = exp.pose_plan({**g, 'generate':replace(g['generate'],
                                                      n_each=2*g['generate'].n_each)})
        mine = todo[todo.source_path==V.read_generated(home).source_path[0]]
        kept = set(V.read_generated(home).query('source_path==@mine.source_path.iloc[0]').k)
        left = mine[~mine.k.isin(kept)].iloc[0]
        df.loc[0,'pose_path'],df.loc[0,'k'] = left.pose_path,left.k
    df.to_csv(home/'manifest.csv', index=False)
    line = sets(run).loc[home.name]
    says = dict(choice='other pictures than its judges choose', stranger='would not make')[what]
    assert line.differ==1 and says in line.what


def test_guessed_sides(run):
    "They are rendered as they were; one wrong picture is one wrong picture, of either kind"
    home = only(run, 'rendered-*')
    assert sets(run, sample=10**6).loc[home.name][['n','differ']].tolist()==[120,0]
    swapped(*first_two(home))
    assert sets(run, sample=10**6).loc[home.name].differ==2


def test_a_generator_that_is_gone(run):
    gone = json.loads(only(run, 'generated-*/settings.json').read_text())['settings']['generator']
    for o in run.glob('transfer-*'): shutil.rmtree(o)
    res = sets(run)
    lines = res[res.index.str.startswith(('generated','picked'))]
    assert (lines.n==0).all() and lines.what.str.startswith('not checked: its generator').all()
    assert lines.what.str.contains(gone).any()


def test_the_command_says_what_was_not_checked(run, capsys):
    from posereid import cli
    cli.posereid_verify(run)
    assert 'not checked' not in capsys.readouterr().out
    for o in run.glob('transfer-*'): shutil.rmtree(o)
    cli.posereid_verify(run)
    assert capsys.readouterr().out.count('not checked')==4
