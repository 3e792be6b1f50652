"The engine's further rows, and tables that go on where they stopped"
import json
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from posereid import cli
from posereid.core import InputError
from posereid.data.sampler import pk_shape
from posereid.data.block import ReIDBatch, TripletBatch, reid_dls
from posereid.data.transforms import colour_jitter, random_erase
from posereid.experiment.engine import Experiment
from posereid.experiment.rows import pick_rows, row_settings
from posereid.evaluate.protocol import class_probability
from posereid.experiment.presets import experiment_settings
from posereid.evaluate.results import difference, finding, scores_table, verdict, verdicts
from posereid.experiment.tables import (EPSILONS, LINE, NS, TABLES, n_rows, part_names, part_rows,
                                        read_lines, reproduce, row_and_title, run_name)

SMALL = ['world.n_train=6', 'world.per_train=4', 'world.n_source=4', 'world.per_source=8',
         'world.n_test=4', 'world.per_test=5', 'world.n_junk=2',
         'world.n_distractor=2', 'reid.width=4', 'reid.epochs=1', 'reid.bs=8', 'transfer.width=4',
         'transfer.d_width=4', 'transfer.pairs=32',
         'transfer.parts=2', 'transfer.bs=8', 'dcgan.epochs=1', 'dcgan.width=4', 'dcgan.bs=8']
TRIED = pd.DataFrame([dict(part='tuning', row=f'try_{n}_eps_{e:g}', map_trap=-abs(e-.4)) for n in NS
                      for e in EPSILONS])


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('POSEREID_CACHE', str(tmp_path_factory.mktemp('cache')))
        m.setenv('POSEREID_QUIET', '1')
        yield


@pytest.fixture(scope='module')
def exp(tmp_path_factory):
    rows = pick_rows('guided reconstructed shuffled diverse trusted lsro guided_lsro reranked '
                     'guided_erasing jitter own new small_guider')
    return Experiment(rows, experiment_settings('smoke', opts=SMALL+['generate.n_bank=8']),
                      tmp_path_factory.mktemp('e')/'run')


@pytest.fixture(scope='module')
def table(exp): return exp.results().set_index('row')


def sets_of(exp, name, **kw):
    from posereid.data.market import read_generated
    from posereid.experiment.rows import row_settings
    row = next(r for r in exp.rows if r['row']==name)
    return read_generated(exp.pictures(row, row_settings(row, exp.groups)))


def test_rows_have_the_pictures_and_steps_they_should(table):
    n = 24
    assert (table.pictures[['guided','lsro','own','trusted']].tolist()==[3*n]*4
            and table.pictures['guided_lsro']==5*n and table.pictures['reranked']==n)
    assert table.steps[['guided','lsro','jitter','reranked']].nunique()==1
    # equal steps, but for whole epochs: one epoch is the least
    assert abs(table.steps['guided_lsro']-table.steps['guided'])<=15
    assert table.eps_generated['lsro']==1 and np.isnan(table.eps_generated['jitter'])


def test_poses_of_rows(exp):
    own,mixed,new = (sets_of(exp, o) for o in ('reconstructed','shuffled','guided'))
    assert ((own.pose_path.map(lambda p: Path(p).name)==own.source_path.map(lambda p: Path(p).name))
            .all())
    target = {Path(p).name for p in exp.train.path}
    assert (set(mixed.pose_path.map(lambda p: Path(p).name))<=target
            and not set(new.pose_path.map(lambda p: Path(p).name)) & target)
    assert sets_of(exp, 'diverse').pose_path.nunique()<=8


def test_nothing_but_the_rows_differs(exp, table):
    "Re-ranking trains nothing, and rows with the same pictures share them"
    where = lambda o: exp.made['folders', o]
    assert (where('trusted')['generator']==where('guided')['generator']
            ==where('reconstructed')['generator']!=where('small_guider')['generator'])
    assert (json.loads((where('reranked')['reid']/'scores_reranked.json').read_text())['protocol']
            .count('re-ranked (k1=20')==1)
    for o in ('rank1_grey','map_trap_grey','rank1_bn'): assert table[o].between(0, 100).all()


def test_an_epsilon_for_each_picture(exp, table):
    import posereid.experiment.engine as e
    row = next(r for r in exp.rows if r['row']=='trusted')
    g = e.row_settings(row, exp.groups)
    path = exp.pictures(row, g)
    eps = exp.own_eps(row, g, (path,))[path]
    assert (len(eps)==48 and eps.min()>=0 and eps.max()<=1
            and eps.mean()==pytest.approx(.4, abs=1e-6))
    union = exp.union((path,), {path: eps})
    batch = ReIDBatch(union, exp.inputs.store((64,32)), exp.labels, eps_generated=.9)
    assert torch.allclose(batch.eps, torch.tensor([0.]*24+eps.tolist()))
    triplets = TripletBatch(union, exp.inputs.store((64,32)), exp.labels, P=3, K_real=2,
                            K_generated=2)
    # there an ε only tells who is generated
    assert torch.equal(triplets.eps>0, torch.tensor([False]*24+[True]*48))


def test_the_smoothed_control_is_as_soft_as_the_augmented_row(exp):
    smoothed,guided = pick_rows('smoothed guided')
    _,real,new = pk_shape(128, 6, 2) # six people: as many pictures of each as fit
    alone,mixed = real*(real-1),new*(real+new-1)
    for loss,eps,margin in (('ce', .4*2/3, 1.), ('triplet', 0., (alone+.5*mixed)/(alone+mixed))):
        g = row_settings(smoothed, {**exp.groups, 'reid':replace(exp.groups['reid'], loss=loss,
                                        bs=128, eps_generated=.4, margin=1., margin_generated=.5)})
        g['generate'] = replace(g['generate'], n_each=2)
        s,ours = exp.row_recipe(smoothed, g),exp.row_recipe(guided, g)
        assert ((s.eps_real, s.margin)==pytest.approx((eps, margin), abs=1e-6)
                and (ours.eps_real, ours.margin)==(0., 1.))


def test_class_probability():
    logits = torch.tensor([[0., 0.], [0., np.log(3.)]])
    net = torch.nn.Module(); net.forward = lambda x: logits
    assert (class_probability(net, torch.zeros(2,3,4,4, dtype=torch.uint8), [0,1])
            .tolist()==pytest.approx([.5,.75]))


# --- other light and holes ---

@pytest.fixture
def pics():
    return torch.randint(0, 256, (40,3,64,32), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))


def test_holes_are_rectangles_within_bounds(pics):
    got = random_erase(pics, torch.Generator().manual_seed(1), p=1.)
    for a,b in zip(pics, got):
        y,x = (a!=b).any(0).nonzero().T
        h,w = y.max()-y.min()+1, x.max()-x.min()+1
        # noise equals what was there now and then
        assert .01<h*w/2048<.45 and ((a!=b).any(0).sum()>=.95*h*w)


def test_neither_draws_chance_when_off(pics):
    df = pd.DataFrame(dict(path=[str(i) for i in range(40)], pid=[1,2]*20, camid=1, split='train',
                           is_generated=False))
    class Store:
        def preload(self, items): return self
        size = (64,32)
        def get(self, paths): return pics[[int(p) for p in paths]]
    a,b,c = (reid_dls(df, Store(), {1:0,2:1}, bs=8, seed=3, **kw).one_batch()[0]
             for kw in ({}, dict(erase=0., jitter=0.), dict(jitter=.3)))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_jitter_moves_brightness_by_no_more_than_asked():
    grey = torch.full((500,3,8,8), 100, dtype=torch.uint8)
    y = colour_jitter(grey, torch.Generator().manual_seed(0), .2).float()[:,:,0,0]
    assert 100*.8*.9-1<=y.min() and y.max()<=100*1.2*1.1+1 and y.std(0).min()>5


# --- tables ---

ARGS = dict(preset='smoke', opts=SMALL, seeds=[1])


def test_a_table_goes_on_where_it_stopped(tmp_path):
    where = dict(out=tmp_path/'o', runs=tmp_path/'r')
    one = reproduce('tbl1', only='control', **where, **ARGS)
    first = (tmp_path/'o'/'tbl1.csv').read_bytes()
    both = reproduce('tbl1', only='control equal_steps', **where, **ARGS)
    assert (both.row.tolist()==['control','equal_steps']
            and (tmp_path/'o'/'tbl1.csv').read_bytes().startswith(first))
    assert (list(both.columns)==LINE
            and both.command.str.startswith('posereid_reproduce tbl1 --seeds 1 --rows').all())
    other = reproduce('tbl1', only='control', **where, **{**ARGS, 'opts':SMALL+['reid.lr=0.01']})
    # other settings are another line
    assert other.row.tolist()==['control','equal_steps','control'] and other.run.nunique()==2
    again = reproduce('tbl1', only='control', out=tmp_path/'o2', runs=tmp_path/'r2', **ARGS)
    assert again.map_trap.tolist()==one.map_trap.tolist()


def test_a_csv_with_the_old_columns_goes_on(tmp_path):
    "`name` and `row` of 0.0.1 are `row` and `title`: nothing is trained again, and the file has today's columns afterwards"
    where = dict(out=tmp_path/'o', runs=tmp_path/'r')
    one,path = reproduce('tbl1', only='control', **where, **ARGS),tmp_path/'o'/'tbl1.csv'
    pd.read_csv(path).rename(columns={'row':'name', 'title':'row'}).to_csv(path, index=False,
        float_format='%.4f')
    heard = []
    assert (reproduce('tbl1', only='control', **where, **ARGS, say=heard.append)
            .row.tolist()==['control'] and not heard)
    both = reproduce('tbl1', only='control equal_steps', **where, **ARGS)
    assert (both.row.tolist()==['control','equal_steps']
            and both.title.tolist()==['control, equal epochs','control, equal steps'])
    assert (pd.read_csv(path).columns.tolist()==LINE
            and both.map_trap[0]==pytest.approx(one.map_trap[0], abs=1e-4))


@pytest.mark.parametrize(
    'old,rows', [(dict(name=['guided','mine'], row=['guided','my own']), ['guided','mine']),
                 (dict(row=['guided by D-Tri','my own']), ['guider_d_tri','my own']),
                 (dict(name=['copy of the source picture','guided by the other form']),
                  ['copy','cross']), (dict(row=['x','y'], title=['X','Y']), ['x','y'])])
def test_old_columns_are_read_as_row_and_title(old, rows):
    df = row_and_title(pd.DataFrame({'seed':[1,2], **old}))
    assert df.row.tolist()==rows and list(df)==['seed','row','title'] and len(set(df.title))==2
    assert row_and_title(df) is df and list(row_and_title(pd.DataFrame(dict(a=[1]))))==['a']


def test_the_main_table_holds_the_six_rows_and_one_more():
    assert part_names(TABLES['main']['parts'][0])==[*(r['row'] for r in pick_rows('main')),
                                                    'unguided_04'] and len(pick_rows('main'))==6


def test_tables_share_what_they_share():
    names = {t: run_name(TABLES[t]['parts'][0], 3)
             for t in ('main','tbl1','tbl4','controls','beside')}
    assert set(names.values())=={'default-world3-seed3'}
    parts = [run_name(p, 1) for t in ('coverage','tbl2','tbl3') for p in TABLES[t]['parts']
             if p.get('part')!='beside']
    assert {run_name(TABLES[t]['parts'][-1], 1) for t in ('tbl2','tbl3','combine','modern')}=={
        'default-world1-seed1'}
    # tbl3 has the R-CE of tbl2, and R-Tri of its own
    assert len(set(parts))==8 and parts[4]==parts[7]=='default-world1-seed1'
    assert parts[8]==run_name(TABLES['cross']['parts'][1], 1)==run_name(TABLES['fig6']['parts'][1],
        1)
    assert run_name(TABLES['fig5']['parts'][0], 0).startswith('default-world0-seed0-')


@pytest.mark.parametrize('name', TABLES)
def test_every_table_is_one(name):
    for part in TABLES[name]['parts']:
        groups = experiment_settings('smoke', opts=part.get('opts', []),
                                     recipe_name=part.get('recipe'))
        from posereid.experiment.rows import check_row
        rows = part_rows(part, TRIED)
        assert ([r['row'] for r in rows]==part_names(part)
                and len({r['row'] for r in rows})==len(rows))
        for r in rows: check_row(r, groups)


def test_epsilon_is_chosen_by_validation_only():
    tuned = TABLES['fig5']['parts'][-1]
    assert [r['reid.eps_generated'] for r in part_rows(tuned, TRIED)]==[.4]*len(NS)
    better = pd.concat([TRIED, TRIED.assign(part='fixed', map_trap=[99.,0.,0.]*len(NS))])
    assert [r['reid.eps_generated'] for r in part_rows(tuned, better)]==[.4]*len(NS)
    # not before everything was tried
    assert part_rows(tuned, TRIED[:-1])==[] and part_rows(tuned)==[]


def test_a_chosen_row_alone_is_chosen_first(tmp_path, monkeypatch):
    small = dict(TABLES['fig5'], parts=[{**p, 'worlds':[1]} if 'worlds' in p else p
                                        for p in TABLES['fig5']['parts']])
    monkeypatch.setitem(TABLES, 'fig5', small)
    asked = []
    def result(self, row):
        asked.append(row['row'])
        return dict(row=row['row'], title=row['title'], map_trap=1., seed=1)
    monkeypatch.setattr('posereid.experiment.engine.Experiment.result', result)
    df = reproduce('fig5', tmp_path/'o', tmp_path/'r', only='tuned_2', **ARGS)
    assert (asked==[r['row'] for r in n_rows(NS, EPSILONS, 'try')]+['tuned_2']
            and df.command.iloc[-1].startswith('posereid_reproduce fig5 --seeds 1 --rows tuned_2'))
    with pytest.raises(InputError, match="no row 'tuned_4'; the nearest is 'tuned_"):
        reproduce('fig5', tmp_path/'o', tmp_path/'r', only='tuned_4', **ARGS)


def test_pictures_of_a_table(tmp_path):
    df = reproduce('fig3', tmp_path/'o', tmp_path/'r', **{**ARGS})
    assert ({'copy','unguided','guided','true'}<=set(df.row)
            and df[['l1','pose_error','pck']].notna().all(axis=None))
    assert (tmp_path/'o'/'fig3_seed1.png').stat().st_size>1000
    assert len(reproduce('fig3', tmp_path/'o', tmp_path/'r', **ARGS))==len(df)


def test_what_may_be_said():
    df = pd.DataFrame([dict(part='', seed=s, row=n, title=n, steps=1, rank1=m, map_trap=m,
                            map_mean=m) for s in range(4)
                       for n,m in (('a',1.+s),('b',3.+s+.1*(s%2)),('c',1.+s-.2*(-1)**s))])
    assert ('above' in verdict('B', 'A', difference(df, 'b', 'a'))
            and 'not significantly different' in verdict('C', 'A', difference(df, 'c', 'a')))
    assert 'below' in verdict('A', 'B', difference(df, 'a', 'b'))
    assert 'nothing follows' in verdict('B', 'A', difference(df[df.seed==0], 'b', 'a'))
    assert (finding(df, 'a', ['b','c']) == '“a” is below “b”; it is not significantly different '
            'from “c”.')
    assert verdicts(df, [('b','a')]).endswith('In rank-1: +2.0 [+2.0, +2.1], above.')
    t = scores_table(df, 'a', paper=dict(a='1/2'))
    assert ([c for c in t if 'context' in c]==['the paper, Market-1501 (context)']
            and t.iloc[:,-1].tolist()==['1/2']+['not measured there']*2)
    with pytest.raises(InputError, match="no row 'd'"): difference(df, 'a', 'd')


def test_command(tmp_path, capsys):
    kwargs = dict(out=tmp_path/'o', runs=tmp_path/'r', preset='smoke', set=SMALL)
    cli.posereid_reproduce('controls', rows='equal_steps,smoothed', seeds='1,2', **kwargs)
    out = capsys.readouterr().out
    assert 'control, smoothed' in out and out.strip().endswith('controls.csv')
    assert len(read_lines(tmp_path/'o'/'controls.csv'))==4


def test_the_number_of_threads_is_part_of_the_command(tmp_path):
    before = torch.get_num_threads()
    try:
        lines = [cli.posereid_reproduce('tbl1', rows='control', seeds='1', threads=n,
                                        out=tmp_path/f'o{n}', runs=tmp_path/f'r{n}',
                                        preset='smoke', set=SMALL)
                 or read_lines(tmp_path/f'o{n}'/'tbl1.csv') for n in (1,2)]
    finally: torch.set_num_threads(before)
    assert (['--threads' in o.command[0] for o in lines]==[False,True]
            and lines[1].command[0].endswith('--threads 2'))


@pytest.mark.parametrize('kw,says', [(dict(name='tbl9'), "no table 'tbl9'"),
                                     (dict(name='tbl1', seeds='one'), 'whole numbers'),
                                     (dict(name='tbl1', ids=4), '--data'),
                                     (dict(name='tbl1', rows='gided'), "no row 'gided'"),
                                     (dict(name='tbl1', threads=0), '--threads')])
def test_commands_say_what_is_wrong(kw, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        cli.posereid_reproduce(**kw, out=tmp_path/'o', runs=tmp_path/'r', preset='smoke', set=SMALL)
    err = capsys.readouterr().err.strip()
    assert e.value.code==2 and says in err and len(err.splitlines())==1


def test_a_csv_of_something_else(tmp_path):
    (tmp_path/'tbl1.csv').write_text('a,b\n1,2\n')
    with pytest.raises(InputError, match='is no CSV of posereid_reproduce'):
        reproduce('tbl1', tmp_path, tmp_path/'r', **ARGS)
