"Tables row by row: what each part asks for, what is missing of it, and the command that makes a line again"
import shlex
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from fastcore.script import anno_parser

from posereid import cli
from posereid.core import InputError
from posereid.experiment import tables as T
from posereid.experiment.tables import (CONTROLS, EPSILONS, LINE, NS, TABLES, alpha_rows,
    append_lines, best_eps, eps_rows, find_table, n_controls, n_rows,
    open_part, part_name, part_names, part_rows, read_lines, reproduce, run_name, world_of)

# The CSVs' pair: what tells a row, and what a table prints
KEY,TITLE = ('row','title') if 'title' in LINE else ('name','row')

def by_row(rows):
    return {r['row']: {k: v for k,v in r.items() if k not in ('row','title')} for r in rows}


# --- the rows of the figures ---

def test_rows_of_figure_5():
    got = by_row(n_rows((1,3), (.2,.8), 'try'))
    assert list(got)==['try_1_eps_0.2','try_1_eps_0.8','try_3_eps_0.2','try_3_eps_0.8']
    for n in (1,3):
        for e in (.2,.8):
            assert got[f'try_{n}_eps_{e:g}']=={'pictures':'generator', 'generate.n_each':n,
                                               'reid.eps_generated':e}
    assert ([r['row'] for r in n_rows()]==[f'N_{n}_eps_0.4' for n in (1,2,3,5,10)]
            and NS==(1,2,3,5,10) and EPSILONS==(.2,.4,.8))
    assert all(f"N={r['generate.n_each']}" in r['title']
               and f"ε={r['reid.eps_generated']:g}" in r['title'] for r in n_rows(NS, EPSILONS))


def test_controls_of_figure_5():
    got = by_row(n_controls((2,5)))
    assert got=={'equal_steps_2':{'steps':'equal', 'generate.n_each':2},
                 'equal_steps_5':{'steps':'equal', 'generate.n_each':5},
                 'smoothed_2':{'steps':'equal', 'eps_real':'average', 'generate.n_each':2},
                 'smoothed_5':{'steps':'equal', 'eps_real':'average', 'generate.n_each':5}}
    assert len(n_controls())==10 and all(f"N={r['generate.n_each']}" in r['title']
                                         and ('smoothed' in r['title'])==('eps_real' in r)
                                         for r in n_controls())


def test_rows_of_figure_6():
    got = by_row(eps_rows((0,.4)))
    assert got=={'guided_eps_0':{'pictures':'generator', 'reid.eps_generated':0.},
                 'guided_eps_0.4':{'pictures':'generator', 'reid.eps_generated':.4},
                 'unguided_eps_0':{'pictures':'generator', 'transfer.beta':0.,
                                   'reid.eps_generated':0.},
                 'unguided_eps_0.4':{'pictures':'generator', 'transfer.beta':0.,
                                     'reid.eps_generated':.4}}
    assert [r['reid.eps_generated'] for r in eps_rows()]==[0,.2,.4,.6,.8,1]*2
    assert by_row(alpha_rows((0,.25)))=={
        'guided_alpha_0':{'pictures':'generator', 'reid.margin_generated':0.},
        'guided_alpha_0.25':{'pictures':'generator', 'reid.margin_generated':.25}}
    assert [r['reid.margin_generated'] for r in alpha_rows()]==[0,.25,.5,.75,1]


def tried(of, n_seeds=1):
    "What the part `tuning` found: `of(n, e, seed)` is a mAP"
    return pd.DataFrame([{'part':'tuning', 'seed':s, KEY:f'try_{n}_eps_{e:g}',
                          'map_trap':of(n, e, s)}
                         for n in NS for e in EPSILONS for s in range(n_seeds)])


def test_the_best_epsilon_of_each_n():
    best = {1:.8, 2:.2, 3:.4, 5:.8, 10:.2}
    rows = best_eps(tried(lambda n,e,s: 50-abs(e-best[n])))
    assert {r['row']: (r['generate.n_each'], r['reid.eps_generated'])
            for r in rows}=={f'tuned_{n}': (n,e) for n,e in best.items()}
    assert all(f'N={n}, ε={e:g}' in r['title'] for r,(n,e) in zip(rows, best.items()))
    # means 4.5, 5.5, 5; firsts and lasts say otherwise
    mean = best_eps(tried(lambda n,e,s: {.2:[9,0], .4:[6,5], .8:[0,10]}[e][s], 2))
    assert {r['reid.eps_generated'] for r in mean}=={.4}
    assert (best_eps(tried(lambda n,e,s: 1.)[1:])==[]
            and len(best_eps(tried(lambda n,e,s: 1., 2)[1:]))==5)


# --- the tables ---

def all_parts(): return [(k,p) for k,t in TABLES.items() for p in t['parts']]


def test_tables_and_their_controls():
    "Every part of a table of scores has a control with matched steps; names of parts are unlike; recipes are the paper's"
    assert set(TABLES)==set('main tbl1 tbl2 tbl3 tbl4 cross fig3 fig4 fig5 fig6 controls beside '
                            'beyond coverage soft best combine modern'.split())
    for k,t in TABLES.items():
        assert (t['seeds'] in (3,5,[1,2,3,4,5,11,12,13,14,15]) and t['title']
                and len({part_name(p) for p in t['parts']})==len(t['parts']))
    for k,p in all_parts():
        # the pieces of `best` have their controls in the part before
        names = part_names(p)
        if k!='fig5' and part_name(p)!='pieces' and not p.get('validation'):
            # a method with pose transfer has itself, alone, as its control
            assert 'equal_steps' in names or all(o.removesuffix('_pt') in names for o in names), k
    assert ([p.get('recipe') for p in TABLES['tbl2']['parts']]==[None,'D-CE','D-Tri',None]
            and [p.get('recipe') for p in TABLES['tbl3']['parts']]==[None,'R-Tri',None])
    assert ([part_name(p) for p in TABLES['tbl2']['parts']]==['R-CE','D-CE','D-Tri','beside']
            and part_name(TABLES['main']['parts'][0])=='')
    assert CONTROLS=='equal_steps smoothed'
    assert [t for t in TABLES if TABLES[t].get('pictures')]==['fig3','fig4']
    assert part_names(TABLES['main']['parts'][0])[:6]==['control','equal_steps','smoothed',
        'unguided','guided','new']
    assert part_names(TABLES['tbl1']['parts'][0])==['control','equal_steps','smoothed',
                                                    'guided','lsro']
    assert part_names(TABLES['fig5']['parts'][-1])==[f'tuned_{n}' for n in NS]
    tuning,*rest = TABLES['fig5']['parts']
    # chosen on people and a world of its own
    assert (tuning['validation'] and tuning['worlds']==[0]
            and not any(p.get('validation') or 'worlds' in p for p in rest))
    assert [p['opts'][0] for p in TABLES['coverage']['parts']]==[f'world.directions={d}'
        for d in (1,2,4,6)]


def test_rows_without_true_renderings():
    part = dict(rows='main own new_0')
    assert ([r['row'] for r in part_rows(part)][-3:]==['new','new_0','own']
            and {r['row'] for r in part_rows(part, rendered=False)}
            =={'control','equal_steps','smoothed','unguided','guided'})
    mine = [dict(row='a', pictures='rendered'), dict(row='b')]
    assert part_rows(dict(rows=mine), rendered=False)==mine[1:] and part_rows(dict(rows=mine))==mine
    done = tried(lambda n,e,s: e)
    late = dict(part='late', rows=best_eps, after='tuning', names=['x'])
    assert (len(part_rows(late, done))==5 and part_rows(late, done.assign(part='other'))==[]
            and part_names(late)==part_names(dict(rows='guided', names=['x']))==['x'])


def test_names_of_tables():
    assert find_table('tbl1') is TABLES['tbl1']
    with pytest.raises(InputError, match="'tabl1'.*'tbl1'"): find_table('tabl1')


# --- lines ---

def line(**kw):
    return {**{k: '' for k in LINE},
            **{'part':'', 'seed':1, 'map_trap':50., 'run':'r', KEY:'guided', TITLE:'guided'}, **kw}


def test_lines_come_and_are_read_again(tmp_path):
    path = tmp_path/'a'/'b'/'t.csv'
    none = read_lines(path)
    assert len(none)==0 and list(none.columns)==LINE
    one = append_lines([line(map_trap=12.345678)], path)
    two = append_lines([line(seed=2, part='ε'), line(seed=3, run='007')], path)
    again = read_lines(path)
    assert (again.seed.tolist()==two.seed.tolist()==[1,2,3] and again.map_trap[0]==12.3457
            and one.map_trap[0]==12.345678)
    assert (again.part.tolist()==['','ε',''] and again.run.tolist()==['r','r','007']
            and list(again.columns)==LINE)
    assert b'\r' not in path.read_bytes() and [o.name for o in path.parent.iterdir()]==['t.csv']
    append_lines([line(run='12', part='7')], tmp_path/'u.csv')
    # text, even where it looks like a number
    assert read_lines(tmp_path/'u.csv')[['run','part']].values.tolist()==[['12','7']]


@pytest.mark.parametrize('gone', [KEY,'part','seed','run','map_trap'])
def test_a_csv_that_lacks_a_column(tmp_path, gone):
    pd.DataFrame([line()]).drop(columns=gone).to_csv(tmp_path/'t.csv', index=False)
    with pytest.raises(InputError, match=rf'{gone}\b.*--out'): read_lines(tmp_path/'t.csv')


@pytest.mark.skipif(KEY!='row', reason='from before the pair was called row and title')
def test_lines_of_older_files(tmp_path):
    "Key and title were `name` and `row`, or there was the title alone; today's come back as they are"
    today = pd.DataFrame([line(row='guided_02', title='guided, ε=0.2'),
                          line(row='mine', title='my own')])
    for old in (today.rename(columns={'title':'row', 'row':'name'}), today,
                today.rename(columns={'title':'row', 'row':'name'})[['name','row','part','seed',
                        'run','map_trap']]):
        old.to_csv(tmp_path/'t.csv', index=False)
        df = read_lines(tmp_path/'t.csv')
        assert (df.row.tolist()==['guided_02','mine']
                and df.title.tolist()==['guided, ε=0.2','my own'] and 'name' not in df)
    for k in ('row','name'):
        df = T.row_and_title(pd.DataFrame({k:['guided, ε=0.2','rendered in new poses',
                                              'true rendering','my own'], 'l1':[1,2,3,4]}))
        assert (df.row.tolist()==['guided_02','new','true','my own'] and df.title[3]=='my own'
                and list(df.columns)==['row','title','l1'])
    assert list(T.row_and_title(pd.DataFrame(dict(l1=[1]))).columns)==['l1']


def test_columns_of_a_line():
    assert ({'table','part','seed','run','command','map_trap','rank1',KEY,TITLE}<=set(LINE)
            and not {'d_steps','d_smoothed'}&set(LINE) and len(set(LINE))==len(LINE))


# --- runs ---

def test_names_of_runs():
    plain = run_name({}, 3)
    assert plain=='default-world3-seed3' and run_name(
        dict(part='x', rows='main', recipe=None, opts=[], validation=False), 3)==plain
    assert (run_name({}, 3, 'smoke')=='smoke-world3-seed3'
            and run_name(dict(worlds=[0]), 3)=='default-world0-seed3'
            and run_name({}, 3, data=dict(data='/a/set')).startswith('default-set-seed3-'))
    other = [dict(recipe='D-CE'), dict(opts=['a.b=1']), dict(validation=True), dict(opts=['a.b=2'])]
    names = [run_name(p, 3) for p in other]+[run_name({}, 3, data=dict(data='/a/set', ids=4)),
                                             run_name({}, 3, data=dict(data='/b/set')),
                                             run_name({}, 3, data=dict(data='/a/set'))]
    assert len({plain, *names})==8 and all(len(o.split('-')[-1])==6 for o in names)
    assert run_name({}, 3, opts=['a.b=1'])==names[1] and run_name(dict(opts=['a.b=1']), 3,
        opts=['c.d=1'])==run_name({}, 3, opts=['a.b=1','c.d=1'])


def test_worlds_and_seeds():
    assert world_of({}, 4)==4 and world_of(dict(worlds=[7]), 4)==7
    assert T._seeds_of({}, [1,2])==[1,2] and T._seeds_of(dict(worlds=[7]), [1,2])==[7]


@pytest.fixture
def opened(monkeypatch):
    "`open_part` without an experiment: what the engine, the settings and the reader were asked for"
    asked = SimpleNamespace()
    real = T.experiment_settings
    def settings(*args, **kw): asked.settings = (args, kw); return real(*args, **kw)
    def inputs(**kw): asked.inputs = kw; return SimpleNamespace(notes=['one','two'])
    def engine(rows, groups, out, inputs=None, fresh=False, say=None):
        asked.engine = dict(rows=rows, groups=groups, out=out, inputs=inputs, fresh=fresh)
        return asked
    for k,f in dict(experiment_settings=settings, folder_inputs=inputs, Experiment=engine).items():
        monkeypatch.setattr(T, k, f)
    return asked


def test_the_engine_of_a_part(opened):
    heard,rows = [],[dict(row='a')]
    open_part(dict(worlds=[5], validation=True, opts=['reid.epochs=3','reid.bs=10'], recipe='D-CE'),
              rows, 2, 'runs', 'smoke', None, ['reid.bs=12'], heard.append)
    g,e = opened.engine['groups'],opened.engine
    # what the caller says goes last
    assert (g['world'].world, g['world'].validation, g['reid'].seed, g['reid'].epochs,
            g['reid'].bs)==(5, True, 2, 3, 12)
    assert ('dense' in g['reid'].arch and e['inputs'] is None and e['rows'] is rows
            and not e['fresh'] and heard==[])
    assert e['out']==Path('runs')/run_name(dict(worlds=[5], validation=True,
                                                opts=['reid.epochs=3','reid.bs=10'], recipe='D-CE'),
                                           2, 'smoke', None, ['reid.bs=12'])
    assert opened.settings[1]['scratch'] is False
    data = dict(data='/a/set', ids=4)
    open_part({}, rows, 2, 'runs', 'smoke', data, [], heard.append)
    i = opened.inputs
    assert (i['data']=='/a/set' and i['ids']==4 and i['seed']==2 and i['validation'] is False
            and tuple(i['size'])==tuple(opened.engine['groups']['transfer'].size))
    assert (heard==['one','two'] and opened.engine['inputs'].notes==['one','two']
            and opened.engine['out'].name==run_name({}, 2, 'smoke', data))
    assert opened.settings[1]['scratch'] is True  # our weights know synthetic worlds only
    open_part(dict(validation=True), rows, 2, 'runs', 'smoke', data)                # nobody listens
    assert opened.inputs['validation'] is True


# --- what is missing ---

@pytest.fixture
def engine(monkeypatch):
    "`reproduce` with an engine that scores 10 × seed + row number, and what it was asked for"
    log = SimpleNamespace(opened=[], made=[])
    def opener(part, rows, seed, say=None, **kw):
        log.opened.append((part_name(part), seed, [r['row'] for r in rows], kw))
        def result(r):
            log.made.append((part_name(part), seed, r['row']))
            return {KEY:r['row'], TITLE:r.get('title', r['row']), 'map_trap':10.*seed, 'seed':seed,
                    'rank1':1.}
        return SimpleNamespace(result=result, left_out=lambda row: False)
    monkeypatch.setattr(T, 'open_part', opener)
    toy = dict(title='Toy', seeds=2,
               parts=[dict(part='one', rows='equal_steps guided'),
                      dict(part='two', recipe='D-CE', rows='equal_steps guided')])
    monkeypatch.setitem(TABLES, 'toy', toy)
    return log


def made(df): return df[['part','seed',KEY]].values.tolist()


def test_seeds_of_a_table(engine, tmp_path):
    df = reproduce('toy', tmp_path, tmp_path/'r')
    want = [[p,s,r] for p in ('one','two') for s in (1,2) for r in ('equal_steps','guided')]
    assert (made(df)==want and [list(o) for o in engine.made]==want
            and df.map_trap.tolist()==[10.*s for _,s,_ in want])
    assert made(read_lines(tmp_path/'toy.csv'))==want and set(df.table)=={'toy'}
    assert df.run.tolist()==[run_name(TABLES['toy']['parts'][p=='two'], s) for p,s,_ in want]
    engine.opened.clear()
    reproduce('toy', tmp_path, tmp_path/'r')
    assert engine.opened==[]                        # all there
    df = reproduce('toy', tmp_path, tmp_path/'r', [5], only='guided')
    assert made(df)[8:]==[['one',5,'guided'],['two',5,'guided']]


def test_only_what_is_missing(engine, tmp_path):
    df = reproduce('toy', tmp_path, tmp_path/'r')
    full = read_lines(tmp_path/'toy.csv')
    for gone in ([0], [3], [5], [2,7]):
        full.drop(index=gone).to_csv(tmp_path/'toy.csv', index=False)
        engine.made.clear()
        heard = []
        again = reproduce('toy', tmp_path, tmp_path/'r', say=heard.append)
        assert [list(o) for o in engine.made]==[made(full)[i] for i in gone] and len(again)==8
        assert len(heard)==len(gone) and all(f'toy {p}, seed {s}' in h
                                             for h,(p,s,_) in zip(heard, engine.made))


def test_a_line_is_told_by_part_seed_and_run(engine, tmp_path):
    "Another preset or other settings are other lines; equal runs in two parts are two lines"
    TABLES['toy']['parts'][1]['recipe'] = None
    assert len(reproduce('toy', tmp_path, tmp_path/'r', [1]))==4
    assert len(reproduce('toy', tmp_path, tmp_path/'r', [1], 'smoke'))==8
    assert len(reproduce('toy', tmp_path, tmp_path/'r', [1], opts=['reid.epochs=1']))==12
    df = reproduce('toy', tmp_path, tmp_path/'r', [1], data=dict(data='/a/set'))
    assert (len(df)==16 and df.run.nunique()==4
            and len(reproduce('toy', tmp_path, tmp_path/'r', [1]))==16)
    assert all(kw['preset'] in ('default','smoke') and kw['runs']==tmp_path/'r'
               for *_,kw in engine.opened)


def test_rows_that_are_asked_for(engine, tmp_path):
    df = reproduce('toy', tmp_path, tmp_path/'r', [1], only='guided,equal_steps')
    assert len(df)==4
    with pytest.raises(InputError, match="'gided'.*'guided'"):
        reproduce('toy', tmp_path/'x', tmp_path/'r', only='gided')
    assert not (tmp_path/'x').exists()
    TABLES['toy']['parts'][0]['rows'] = 'main'
    before = len(engine.made)
    # a real set has no true renderings
    reproduce('toy', tmp_path/'y', tmp_path/'r', [1], data=dict(data='/a/set'))
    assert 'new' not in [o[2] for o in engine.made[before:]] and len(engine.made)-before==7


def test_a_choice_comes_before_what_depends_on_it(engine, tmp_path):
    df = reproduce('fig5', tmp_path, tmp_path/'r', [3])
    parts = df.part.tolist()
    assert (parts==['tuning']*15+['fixed']*5+['controls']*10+['tuned']*5
            and df.seed.tolist()==[0]*15+[3]*20)
    one = reproduce('fig5', tmp_path/'b', tmp_path/'r', [3], only='equal_steps_2')
    # nothing is tuned for it
    assert made(one)==[['controls',3,'equal_steps_2']]
    two = reproduce('fig5', tmp_path/'c', tmp_path/'r', [3], only='tuned_5 equal_steps_2')
    assert two.part.tolist()==['tuning']*15+['controls','tuned']


def test_pictures_are_made_once(monkeypatch, tmp_path):
    "One call of the engine for all rows of a seed: each error a line, and one sheet beside the CSV"
    asked = []
    class Engine:
        def errors(self, poses=False):
            asked.append(poses)
            return pd.DataFrame([dict(row='unguided', l1=.25), dict(row='guided', l1=.125),
                                 dict(row='best', l1=.0625)])
    monkeypatch.setattr(T, 'open_part', lambda part, rows, seed, **kw: Engine())
    saved = []
    monkeypatch.setattr(T, 'transfer_sheet', lambda exp, **kw: 'sheet')
    monkeypatch.setattr(T, 'save_small', lambda fig, path: saved.append((fig, Path(path))))
    heard = []
    df = reproduce('fig3', tmp_path, tmp_path/'r', [4], say=heard.append)
    assert asked==[True] and saved==[('sheet', tmp_path/'fig3_seed4.png')]
    assert (df[KEY].tolist()==['unguided','guided','best'] and df.l1.tolist()==[.25,.125,.0625]
            and df.map_trap.isna().all() and set(df.seed)=={4} and set(df.table)=={'fig3'})
    assert set(df.command)=={'posereid_reproduce fig3 --seeds 4'+' --threads '
                             f'{torch.get_num_threads()}'*(torch.get_num_threads()!=1)}
    reproduce('fig3', tmp_path, tmp_path/'r', [4], only='guided')
    assert len(asked)==1
    assert len(reproduce('fig3', tmp_path, tmp_path/'r', [4,5]))==6 and len(asked)==2
    # a row that the table got later is added, and nothing twice
    kept = pd.read_csv(tmp_path/'fig3.csv')
    kept[kept[KEY]!='best'].to_csv(tmp_path/'fig3.csv', index=False)
    more = reproduce('fig3', tmp_path, tmp_path/'r', [4,5])
    assert (more[KEY].tolist()==['unguided','guided']*2+['best']*2 and len(asked)==4
            and more.seed.tolist()==[4,4,5,5,4,5])


# --- the command of a line ---

def kwargs(**kw): return dict(dict(preset='default', data=None, opts=(), runs='r'), **kw)

def words_of(command):
    "The command's arguments, as the command itself reads them"
    name,*words = shlex.split(command)
    assert name=='posereid_reproduce'
    return vars(anno_parser(cli.posereid_reproduce).parse_args(words))


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_shortest_command(one_thread):
    assert (T._command('tbl1', 3, 'guided', kwargs())=='posereid_reproduce tbl1 --seeds 3 '
            '--rows guided')
    assert (T._command('fig3', 3, None, kwargs(preset='smoke'))=='posereid_reproduce fig3 --seeds '
            '3 --preset smoke')


def test_a_command_says_all_that_was_said(one_thread):
    "It is read again by the command's own parser"
    data = dict(data='/a/my set', poses='/b/p.csv', source='/c/lent', source_poses='/c/lent.csv',
                ids=7, cameras=False, layout='folder',
                choices=dict(read={'camera':'^c([0-9]+) x', 'odd':'skip'},
                             source_read={'links':'true'}, pose_read={'people':'first'},
                             source_pose_read={'format':'yolo'}))
    got = words_of(T._command('tbl1', 3, 'guided', kwargs(data={**data, 'data':'/a/set'},
                                  preset='smoke', opts=['reid.epochs=2','reid.bs=8'])))
    assert (got['name'], got['seeds'], got['rows'], got['preset'], str(got['data']), got['ids'],
            got['no_cameras'], got['layout'])==('tbl1','3','guided','smoke','set',7,True,'folder')
    assert (str(got['poses']), str(got['source']), str(got['source_poses']))==('p.csv','lent',
        'lent.csv') and got['set']==['reid.epochs=2','reid.bs=8'] and got['threads']==1
    assert (got['read']==['camera=^c([0-9]+) x','odd=skip'] and got['source_read']==['links=true']
            and got['pose_read']==['people=first'] and got['source_pose_read']==['format=yolo'])
    few = words_of(T._command('tbl1', 3, 'guided',
                              kwargs(data=dict(data='/a/set', cameras=True, poses=None, ids=None))))
    assert (not few['no_cameras'] and few['poses'] is None and few['ids'] is None
            and few['layout'] is None and few['preset']=='default' and few['set'] is None
            and few['read'] is None)


def test_threads_of_a_command(one_thread):
    torch.set_num_threads(2)
    assert words_of(T._command('tbl1', 1, None, kwargs()))['threads']==2
