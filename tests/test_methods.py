"Rows of other methods in the engine: what a pair shares, what a method needs, and what is kept of it"
import shutil, subprocess
from types import SimpleNamespace

import pandas as pd, pytest, torch

from posereid.core import InputError, load_json, weights_hash
from posereid.experiment.engine import ELSEWHERE, Experiment
from posereid.deploy.export import export_reid
from posereid.experiment.presets import TINY_WORLD, experiment_settings
from posereid.experiment.report import report, score_intervals
from posereid.experiment.rows import METHOD_ROWS, both_rows, check_row, pick_rows
from posereid.experiment.tables import PAPER_LINES, TABLES, part_names
from posereid.experiment.verify import verify_pictures, verify_scores
from posereid.search.why import explain
from posereid.stages.method import METHODS, Method, check_method, find_method, method_names, register
from posereid.stages.reid import ReIDSettings, first_net, load_reid

OPTS = [*TINY_WORLD, 'reid.epochs=2', 'transfer.pairs=32', 'transfer.parts=1', 'dcgan.epochs=1']
PAIRS = [r['row'] for r in METHOD_ROWS if not r['row'].endswith(('_pt','_hard'))]
ROWS = {r['row']: r for r in METHOD_ROWS}


@pytest.fixture(scope='module')
def exp(tmp_path_factory):
    g = experiment_settings('smoke', opts=OPTS)
    return Experiment(pick_rows('methods'), g, tmp_path_factory.mktemp('methods')/'run')


@pytest.mark.parametrize('key', [k for k in PAIRS if k!='base_xq'])
def test_a_pair(exp, key):
    "Equal steps, the same ε for real pictures, three times the pictures, one generator for all"
    a,b = (exp.result(ROWS[o]) for o in (key, f'{key}_pt'))
    net = lambda o: exp.made['folders', o]
    if key!='lsro_soft':
        assert (a['pictures'], b['pictures'])==(60,180)
        assert abs(a['steps']-b['steps'])<=.02*a['steps']
    if 'descriptor' in ROWS[key]: # nothing is trained, and no label is soft
        assert all(pd.isna(o[k]) for o in (a, b) for k in ('eps_real','eps_generated'))
    else: assert a['eps_real']==pytest.approx(.4*2/3) and b['eps_real']==pytest.approx(a['eps_real'])
    assert a['map_trap']>5 and b['map_trap']>5 and net(key)['reid']!=net(f'{key}_pt')['reid']
    of = exp.result(ROWS['base_pt']) and net('base_pt')['generator']
    assert net(f'{key}_pt')['generator']==(None if key=='pul' else of)


@pytest.mark.parametrize('key', [k for k in PAIRS if 'reid.method' in ROWS[k]])
def test_a_net_is_read_again(exp, key):
    exp.result(ROWS[f'{key}_pt'])
    folder = exp.made['folders', f'{key}_pt']['reid']
    x = torch.rand(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))*2-1
    with torch.no_grad(): a,b = exp.made[folder.name].embed(x),load_reid(folder).embed(x)
    assert torch.equal(a, b)
    assert load_json(folder/'reid.json')['method']==ROWS[key]['reid.method']


def test_the_baseline_is_the_smoothed_control(exp):
    exp.result(ROWS['base'])
    exp.result(pick_rows('smoothed')[0])
    assert exp.made['folders', 'base']['reid']==exp.made['folders', 'smoothed']['reid']


def test_another_set_lends_the_beginning(exp):
    "Two-step transfer and PUL go on from a net of another world, whose people are others"
    exp.result(ROWS['transfer'])
    other = exp.made['elsewhere']
    assert other.inputs.world.cast.settings.world==exp.inputs.world.cast.settings.world+ELSEWHERE
    row = ROWS['transfer']
    first = exp.start(exp.row_recipe(row, exp.row_groups(row)))
    said = (exp.made['folders', 'transfer']['reid']/'settings.json').read_text()
    assert f'"start": "{weights_hash(first[1])}"' in said and other.run.path in first[0].parents
    assert exp.start(ReIDSettings(method='trinet', loss='triplet')) is None


def test_pul_gets_pictures_of_a_generator_that_saw_no_label(exp):
    from posereid.data.market import read_generated
    folder = exp.pictures(ROWS['pul_pt'], exp.row_groups(ROWS['pul_pt']))
    mine = exp.pictures(ROWS['base_pt'], exp.row_groups(ROWS['base_pt']))
    a,b = read_generated(folder),read_generated(mine)
    assert (a.source_path==b.source_path).all() and (a.pose_path==b.pose_path).all()
    assert folder!=mine and open(a.path[0], 'rb').read()!=open(b.path[0], 'rb').read()


def test_a_metric_is_fitted_on_generated_pictures_too(exp):
    for key,n in (('lomo_xqda',60), ('lomo_xqda_pt',180)):
        r = exp.result(ROWS[key])
        assert f'fitted on {n} pictures of 10 people' in r['protocol'] and 'xqda' in r['protocol']
        assert (exp.made['folders', key]['reid']/'metric-xqda.npz').exists()
        assert (r['net'], r['loss'])==('lomo','')


def test_reranking_of_two_kinds(exp):
    r = {k: exp.result(ROWS[k])['protocol'] for k in ('base','base_rerank','base_daf')}
    assert 'no re-ranking' in r['base'] and 'lam=0.3' in r['base_rerank'] and 'parts=4' in r['base_daf']


def test_what_real_pictures_lack(exp):
    real = SimpleNamespace(inputs=SimpleNamespace(world=None), groups=dict(rows=SimpleNamespace(
        start='', attributes='')))
    lacks = lambda key: Experiment.lacks(real, ROWS[key])
    assert 'rows.start' in lacks('transfer') and 'generator' in lacks('pul_pt')
    assert 'rows.attributes' in lacks('attributes') and not lacks('svdnet') and not lacks('lomo_xqda')
    real.groups['rows'].start = real.groups['rows'].attributes = 'there'
    assert not lacks('transfer') and not lacks('attributes')
    assert not exp.lacks(ROWS['transfer'])
    real.elsewhere = lambda: Experiment.elsewhere(real)
    with pytest.raises(InputError, match='rows.start=FOLDER'): real.elsewhere()


def test_a_run_goes_on_without_what_it_lacks(tmp_path, monkeypatch):
    "One sentence for each row that cannot be trained, before the others' scores"
    said,rows = [],pick_rows('control smoothed')
    monkeypatch.setattr(Experiment, 'lacks', lambda self, r: 'no bread'*(r['row']=='smoothed'))
    groups = experiment_settings('smoke', opts=OPTS)
    exp = Experiment(rows, groups, tmp_path/'run', say=said.append)
    assert list(exp.results().row)==['control'] and 'control, smoothed is left out: no bread.' in said
    assert 'dotted' not in report(exp).read_text() # the page is of the rows that ran
    with pytest.raises(InputError, match='no row to train'):
        Experiment(rows[1:], groups, tmp_path/'run').results()


def test_a_table_goes_on_without_what_it_lacks(tmp_path, monkeypatch):
    from posereid.experiment import tables
    said,monk = [],monkeypatch
    monk.setattr(Experiment, 'lacks', lambda self, r: 'no bread' if r['row']=='smoothed' else '')
    monk.setitem(tables.TABLES, 'two', dict(title='Two', seeds=1, parts=[dict(rows='control smoothed')]))
    df = tables.reproduce('two', tmp_path, tmp_path/'runs', [1], 'smoke', opts=OPTS, say=said.append)
    assert list(df.row)==['control'] and 'control, smoothed is left out: no bread.' in said


def test_lines_of_the_paper_have_rows():
    "Every system of the paper's tables that is not the paper's own recipe"
    paper = pd.read_csv('nbs/experiments/paper.csv')
    for t,lines in PAPER_LINES.items():
        want = paper[(paper.table.astype(str)==t[-1]) & paper.cite.notna()].drop_duplicates('method')
        assert sorted(lines.values())==sorted(f'{m} [{c:g}]' for m,c in zip(want.method, want.cite))
        part = next(p for p in TABLES[t]['parts'] if p.get('part')=='beside')
        assert part_names(part)==[r['row'] for r in METHOD_ROWS if r['row'].removesuffix('_pt') in lines]


def test_both_rows():
    a,b = both_rows('x', 'X', reid__method='pan')
    assert b['row']=='x_pt' and b['pictures']=='generator' and 'pictures' not in a
    assert {k for k in a if a[k]==b.get(k)}=={'eps_real','reid.method'}


def test_methods_are_known_by_name():
    assert {'trinet','svdnet','modern','pul'} <= set(method_names())
    assert all(find_method(o).name==o for o in method_names())
    with pytest.raises(InputError, match="nearest is 'trinet'"): find_method('trinett')
    mine = Method('mine_alone', 'Mine', '', loss=None, starts=True)
    register(mine)
    try:
        s = ReIDSettings(method='mine_alone')
        assert check_method(s) is mine
        with pytest.raises(InputError, match='--start'): check_method(s, None)
        with pytest.raises(InputError, match='norms=own'): check_method(ReIDSettings(method='mine_alone',
                                                                                     norms='own'))
    finally: METHODS.pop('mine_alone')


@pytest.mark.parametrize('arch', ('small','small_dense','resnet18'))
@pytest.mark.parametrize('name', method_names())
def test_a_net_without_memory(name, arch):
    "A run folder is checked against a net on `meta`, which must have the same tensors"
    s = ReIDSettings(arch=arch, width=4, method=name, **find_method(name).goes_with)
    shapes = lambda net: {k: v.shape for k,v in net.state_dict().items()}
    with torch.device('meta'): want = shapes(first_net(s, 7))
    assert shapes(first_net(s, 7))==want


def test_rows_that_contradict_themselves():
    g = experiment_settings('smoke')
    with pytest.raises(InputError, match='leave one of them out'):
        check_row({'row':'x', 'descriptor':'bow', 'reid.method':'pan'}, g)
    with pytest.raises(InputError, match='is one of'): check_row({'row':'x', 'metric':'lda'}, g)
    with pytest.raises(InputError, match='reid.loss=triplet, too'):
        experiment_settings('smoke', opts=['reid.method=trinet'])


def test_a_net_that_compares_pairs(exp, tmp_path):
    "The gated net is ranked by its gates, and an index of its maps is refused"
    from posereid.evaluate.protocol import evaluate_reid
    from posereid.stages.trained import Trained
    exp.result(ROWS['gated'])
    folder = exp.made['folders', 'gated']['reid']
    net = load_reid(folder)
    r = evaluate_reid(net, exp.inputs.target, exp.inputs.store((64,32)))
    assert 'gated pairs' in r.protocol
    trained,paths = Trained(folder),list(exp.inputs.target.path[:2])
    with pytest.raises(InputError, match='compares pairs'): trained.features(paths)
    with pytest.raises(InputError, match='compares pairs'):
        export_reid(trained, tmp_path/'net.pt', 'torchscript', paths)
    with pytest.raises(InputError, match='of Gated.*not the mean of one map'):
        explain(trained, paths[0], paths[1:])
    metric = SimpleNamespace(name='xqda', said='', psd=True)
    with pytest.raises(InputError, match='a xqda metric was asked for as well'):
        evaluate_reid(net, exp.inputs.target, exp.inputs.store((64,32)), metric=metric)


def test_queries_of_each_row(exp):
    "The page's intervals are of the scores that stand in the row"
    rows = [ROWS[k] for k in ('base','base_rerank','base_daf','lomo_xqda')]
    scores = {r['row']: exp.result(r)['map_trap'] for r in rows}
    some = SimpleNamespace(rows=rows, made=exp.made)
    got = score_intervals(some)
    assert [*got]==[*scores] and all(got[k].mean==pytest.approx(v, abs=1e-3) for k,v in scores.items())


def test_what_methods_left_is_verified_or_named(exp, tmp_path):
    "PUL's pictures, drawn by another world's generator, and the scores of a descriptor"
    exp.result(ROWS['pul_pt']); exp.result(ROWS['lomo_xqda'])
    run = exp.run.path
    drawn = exp.pictures(ROWS['pul_pt'], exp.row_groups(ROWS['pul_pt'])).name
    line = pd.DataFrame(verify_pictures(run, exp.inputs, sample=2)).set_index('where').loc[drawn]
    assert line.n>0 and line.differ==0 and not line.what
    folder = exp.made['folders', 'lomo_xqda']['reid']
    shutil.copytree(folder, tmp_path/folder.name)
    lines = {o['where']: o['what'] for o in verify_scores(tmp_path, exp.inputs)}
    assert 'of a descriptor' in lines[f'{folder.name}/scores_xqda.json']


def test_commands_train_a_method(tmp_path):
    run = lambda *o: subprocess.run(o, capture_output=True, text=True, cwd=tmp_path)
    small = ['world.n_train=10','world.per_train=4','world.n_test=6','world.n_source=4']
    assert run('posereid_synth', '--preset', 'smoke', '--out', 'w', '--set', *small).returncode==0
    guide = ('posereid_guider', 'w/target', '--preset', 'smoke', '--threads', '1', '--set',
             'reid.epochs=1')
    r = run(*guide, '--out', 'first')
    assert r.returncode==0, r.stderr
    two = (*guide, 'reid.method=transfer', 'reid.loss=triplet', 'reid.bs=16', '--out', 'second')
    r = run(*two)
    assert r.returncode==2 and '--start' in r.stderr and 'Traceback' not in r.stderr
    r = run(*two, '--start', 'first')
    assert r.returncode==0 and 'mAP' in r.stdout, r.stderr
    r = run('posereid_eval', 'w/target', '--model', 'second', '--metric', 'xqda', '--threads', '1')
    assert r.returncode==0 and 'xqda metric' in r.stdout+r.stderr, r.stderr
    half = run('posereid_eval', 'w/target', '--model', 'first', '--occlude', '0.5,below')
    assert '50 % of each query covered, below' in half.stdout+half.stderr
    for bad in ('much','0.3,left'):
        r = run('posereid_eval', 'w/target', '--model', 'first', '--occlude', bad)
        assert r.returncode==2 and 'Traceback' not in r.stderr and len(r.stderr)>20


@pytest.mark.parametrize('arch,before,after', [('resnet18',7,14), ('mobilenetv3_small_100',7,14)])
def test_last_stride_of_timm(arch, before, after):
    pytest.importorskip('timm')
    from posereid.models.heads import last_stride_1
    from posereid.models.reid import reid_net
    net,x = reid_net(5, f'timm:{arch}').eval(),torch.zeros(1, 3, 224, 224)
    n = sum(o.numel() for o in net.parameters())
    with torch.no_grad():
        assert net.maps(x)[-1].shape[-2:]==(before,before)
        assert last_stride_1(net).maps(x)[-1].shape[-2:]==(after,after)
    assert sum(o.numel() for o in net.parameters())==n and not net.training


def test_a_body_without_a_last_stride():
    timm = pytest.importorskip('timm')
    from posereid.models.heads import last_stride_1
    from posereid.models.reid import reid_net
    with pytest.raises(InputError, match='in no layer with a stride'):
        last_stride_1(reid_net(5, 'timm:swin_tiny_patch4_window7_224'))
