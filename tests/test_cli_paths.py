"What commands hand on: every option reaches the function that it is for, and what comes back is told in the right words"
import ast, importlib, inspect, json, shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from fastcore.script import anno_parser

from posereid import cli
from posereid.core import InputError
from posereid.experiment.tables import LINE, TABLES

KEY,TITLE = ('row','title') if 'title' in LINE else ('name','row')   # the CSVs' pair


def home(name):
    "The module that the commands import a function from"
    for o in ast.walk(ast.parse(inspect.getsource(cli))):
        if isinstance(o, ast.ImportFrom) and name in [a.name for a in o.names]:
            return importlib.import_module('.'*o.level+o.module, 'posereid')
    raise AssertionError(f'the commands import no {name}')


@pytest.fixture
def spy(monkeypatch):
    "Put `f` in place of a function and keep what each call bound to its parameters, so that order and names may change"
    def _f(name, f=None, returns=None, through=False):
        mod,calls = home(name),[]
        real = getattr(mod, name)
        real = getattr(real, 'real', real)      # of a function that is watched already
        f = real if through else f
        sig = inspect.signature(real)
        def g(*args, **kwargs):
            b = sig.bind(*args, **kwargs)
            b.apply_defaults()
            calls.append(SimpleNamespace(**b.arguments))
            return f(*args, **kwargs) if f else returns
        g.real = real
        monkeypatch.setattr(mod, name, g)
        return calls
    return _f


@pytest.fixture
def said(capsys):
    def _f():
        out = capsys.readouterr().out
        return out.splitlines()
    return _f


# --- words ---

@pytest.mark.parametrize('s,want', [('128x64',(128,64)), ('64,32',(64,32)), ('64 X 32',(64,32)),
                                    ('1x2',(1,2)), (None,None), ('',None)])
def test_sizes(s, want): assert cli.parse_size(s)==want

@pytest.mark.parametrize('s',
                         ['64','x','64x','x32','0x32','64x0','-64x32','64x32x3','a x b','64.0x32'])
def test_no_sizes(s):
    with pytest.raises(InputError, match='64x32'): cli.parse_size(s)

def test_choices():
    assert cli.parse_choices([' odd = skip ', 'camera=_c([0-9]+)=', 'x='])=={'odd':'skip',
        'camera':'_c([0-9]+)=', 'x':''} and cli.parse_choices(None)==cli.parse_choices([])=={}
    with pytest.raises(InputError, match="'skip'"): cli.parse_choices(['odd=skip', 'skip', 'no'])

def test_seeds():
    assert cli.parse_seeds('1-3,7')==[1,2,3,7]
    assert (cli.parse_seeds('3,1 2')==[3,1,2] and cli.parse_seeds('7')==[7]
            and not cli.parse_seeds('') and not cli.parse_seeds(None))
    for s in ('3-1', 'one', '1,-2', '1.5'):
        with pytest.raises(InputError, match=s): cli.parse_seeds(s)

def test_what_is_said_of_reading():
    f = cli._choices
    assert f(['a=1'], None, ['b=2'], ['c=3'], ['d=4'])==dict(read={'a':'1'}, source_read={'b':'2'},
        pose_read={'c':'3'}, source_pose_read={'d':'4'})
    assert (f(None, 'mars', ['b=2'], None, None)==dict(source_read={'b':'2', 'layout':'mars'})
            and not f(None, None, None, None, None))
    # the option goes before the choice
    assert f(None, 'mars', ['layout=folder'], None, None)==dict(source_read={'layout':'mars'})

def test_a_line_is_told_at_once(monkeypatch):
    log = []
    monkeypatch.setattr(cli.sys, 'stdout',
                        SimpleNamespace(write=log.append, flush=lambda: log.append('flush')))
    cli.tell('a', 1, Path('b'))
    assert log==['a 1 b\n', 'flush']

def test_the_command_in_the_report():
    line = cli._command_line('posereid_run', out=Path('a b'), seed=0, fresh=True, no_cameras=False,
                             source=None, set=['reid.epochs=1','x=a b'], read=('odd=skip',))
    assert (line=="posereid_run --out 'a b' --seed 0 --fresh --set reid.epochs=1 'x=a b' --read "
            "odd=skip")


# --- posereid_run ---

@pytest.fixture
def run(spy, monkeypatch, said):
    "`posereid_run` without inputs and experiment: what each of them was given"
    def _f(notes=(), **kwargs):
        made = SimpleNamespace()
        class Engine:
            def __init__(self, rows, groups, out, inputs=None, fresh=False, say=None):
                made.__dict__.update(rows=[r['row'] for r in rows], groups=groups, out=out,
                                     inputs=inputs, fresh=fresh, say=say)
            def results(self): return 'the table'
        monkeypatch.setattr(home('Experiment'), 'Experiment', Engine)
        made.settings = spy('experiment_settings', through=True)
        made.read = spy('folder_inputs', returns=SimpleNamespace(notes=list(notes)))
        made.report,made.text = (spy('report', returns='page.html'),
                                 spy('text_table', lambda t: f'<{t}>'))
        cli.posereid_run(**kwargs)
        made.settings,made.said = made.settings[0],said()
        return made
    return _f


def test_a_run_in_a_synthetic_world(run):
    r = run(preset='smoke', seed=3, world=2, size='48x24', recipe='D-CE', rows='equal_steps,guided',
            validation=True, set=['reid.epochs=7'])
    s = r.settings
    assert (s.preset, s.seed, s.world, s.size, s.validation, list(s.opts), s.scratch,
            s.recipe_name)==('smoke', 3, 2, (48,24), True, ['reid.epochs=7'], False, 'D-CE')
    assert (r.rows==['equal_steps','guided'] and r.inputs is None and r.read==[]
            and r.fresh is False and r.say is cli.tell)
    assert r.out==Path('runs/smoke-world2-seed3-D-CE-validation')
    assert r.said==['report','','<the table>','','page.html']
    line = r.report[0]
    words = shlex.split(list(vars(line).values())[1])
    assert words[0]=='posereid_run'
    again = vars(anno_parser(cli.posereid_run).parse_args(words[1:]))
    assert {k: again[k]
            for k in ('preset','seed','world','size','recipe','rows','validation','set')}==dict(
        preset='smoke', seed=3, world=2, size='48x24', recipe='D-CE', rows='equal_steps,guided',
        validation=True, set=['reid.epochs=7'])


@pytest.mark.parametrize(
    'kw,out', [({}, 'runs/default-world0-seed0'), (dict(preset='smoke'), 'runs/smoke-world0-seed0'),
               (dict(seed=4, world=1), 'runs/default-world1-seed4'),
               (dict(validation=True), 'runs/default-world0-seed0-validation'),
               (dict(recipe='R-Tri'), 'runs/default-world0-seed0-R-Tri'),
               (dict(out=Path('here'), seed=4), 'here'),
               (dict(data=Path('/a/b/set'), seed=2, rows='control'), 'runs/default-set-seed2')])
def test_where_a_run_lies(run, kw, out): assert run(**kw).out==Path(out)


def test_what_is_default_is_not_in_the_command(run):
    line = lambda **kw: list(vars(run(**kw).report[0]).values())[1]
    assert (line()==line(fresh=True)=='posereid_run' and line(seed=1)=='posereid_run --seed 1'
            and line(from_scratch=True)=='posereid_run --from_scratch')
    assert (line(data=Path('/a/my set'), no_cameras=True, ids=4, rows='control')=="posereid_run "
            "--rows control --data '/a/my set' --ids 4 --no_cameras")


def test_generators_from_nothing(run):
    assert [run(**kw).settings.scratch
            for kw in ({}, dict(from_scratch=True),
                       dict(data=Path('/a'), rows='control'))]==[False,True,True]
    assert run(fresh=True).fresh is True


def test_a_run_on_folders(run):
    r = run(notes=['one','two'], data=Path('/a/set'), preset='smoke', seed=5, size='48x24',
            validation=True, rows='main', source=Path('/s'), poses=Path('/p.csv'),
            source_poses=Path('/q.csv'), ids=9, convert=True, no_cameras=True, layout='folder',
            read=['odd=skip'], pose_read=['people=first'], source_layout='mars',
            source_read=['links=true'], source_pose_read=['format=yolo'])
    i, = r.read
    assert (str(i.data), str(i.source), str(i.poses), str(i.source_poses), i.size, i.seed, i.ids,
            i.layout)==('/a/set', '/s', '/p.csv', '/q.csv', (48,24), 5, 9, 'folder')
    assert (i.validation, i.convert, i.cameras, i.need_poses,
            i.need_test)==(True, True, False, True, True)
    assert i.choices==dict(read={'odd':'skip'}, pose_read={'people':'first'},
                           source_read={'links':'true', 'layout':'mars'},
                           source_pose_read={'format':'yolo'})
    assert (r.inputs.notes==['one','two'] and r.said[:2]==['one','two'] and 'new' not in r.rows
            and 'guided' in r.rows)
    i, = run(data=Path('/a/set'), rows='control').read
    assert (i.cameras is True and not i.choices and i.layout is None and i.validation is False
            and i.source is None and i.poses is None and i.convert is False and i.ids is None)


@pytest.mark.parametrize('kw',
                         [dict(source=Path('/s')), dict(poses=Path('/p')),
                          dict(source_poses=Path('/p')), dict(ids=4), dict(convert=True),
                          dict(no_cameras=True), dict(layout='mars'), dict(read=['odd=skip']),
                          dict(pose_read=['people=first']), dict(source_layout='mars'),
                          dict(source_read=['odd=skip']), dict(source_pose_read=['people=first'])])
def test_what_goes_with_a_folder_only(refused, kw):
    refused(cli.posereid_run, preset='smoke', says=[f'--{next(iter(kw))}', '--data'], **kw)


@pytest.mark.parametrize('kw',
                         [dict(source_poses=Path('/p')), dict(source_layout='mars'),
                          dict(source_read=['odd=skip']), dict(source_pose_read=['people=first'])])
def test_what_goes_with_a_source_only(refused, spy, kw):
    read = spy('folder_inputs', returns=SimpleNamespace(notes=[]))
    refused(cli.posereid_run, preset='smoke', data=Path('/a'), rows='control',
            says=[f'--{next(iter(kw))}', '--source,'], **kw)
    assert read==[]


def test_rendered_rows_need_a_world(refused, spy):
    spy('folder_inputs', returns=SimpleNamespace(notes=[]))
    refused(cli.posereid_run, preset='smoke', data=Path('/a'), rows='control,own,new',
            says=['new, own', '--data'])


# --- posereid_reproduce ---

@pytest.fixture
def table(spy, monkeypatch, said):
    "`posereid_reproduce` on a table of two parts, with lines as they might be"
    toy = dict(title='A toy', seeds=2,
               parts=[dict(part='one', rows='equal_steps guided'),
                      dict(part='two', rows='unguided guided'), dict(part='none', rows='guided')])
    monkeypatch.setitem(TABLES, 'toy', toy)
    df = pd.DataFrame([{'part':p, KEY:n, TITLE:n, 'seed':1} for p,n in (('one','guided'),
                           ('one','equal_steps'),('two','unguided'),('two','guided'))])
    def _f(name='toy', **kwargs):
        before = torch.get_num_threads()
        made = SimpleNamespace(calls=spy('reproduce', returns=df))
        made.scores = spy('scores_table', lambda d, *a, **k: f"scores of {' '.join(d[KEY])}")
        made.pictures = spy('picture_table', lambda d, *a, **k: f"pictures of {' '.join(d[KEY])}")
        spy('plain_table', lambda t, *a, **k: f'[{t}]')
        try: cli.posereid_reproduce(name, **kwargs)
        finally:
            made.threads = torch.get_num_threads()
            torch.set_num_threads(before)
        made.said = said()
        return made
    _f.toy = toy
    return _f


def test_a_table_is_printed_part_by_part(table):
    t = table()
    assert t.said==['', 'A toy', '', 'one', '[scores of guided equal_steps]', '', 'two',
                    '[scores of unguided guided]', '', str(Path('reproduce')/'toy.csv')]
    refs = [list(vars(o).values())[1] for o in t.scores]
    # the control with matched steps, or else the first row
    assert refs==['equal_steps','unguided']
    table.toy['pictures'] = True
    t = table(out=Path('/o'))
    assert t.said==['', 'A toy', '', '[pictures of guided equal_steps]', '',
                    '[pictures of unguided guided]', '', '/o/toy.csv']


def test_what_a_table_is_made_of(table):
    c, = table(seeds='2,1', out=Path('/o'), runs=Path('/r'), preset='smoke', rows='guided',
               set=['reid.epochs=1']).calls
    assert (c.name, c.out, c.runs, c.seeds, c.preset, c.data, c.only, list(c.opts), c.say)==('toy',
        Path('/o'), Path('/r'), [2,1], 'smoke', None, 'guided', ['reid.epochs=1'], cli.tell)
    c, = table().calls
    assert (not c.seeds and c.out==Path('reproduce') and c.runs==Path('runs/reproduce')
            and c.preset=='default' and c.only=='' and list(c.opts)==[] and c.data is None)
    c, = table(data=Path('/a/set'), poses=Path('/p'), source=Path('/s'), source_poses=Path('/q'),
               ids=3, no_cameras=True, layout='folder', read=['odd=skip'], source_layout='mars',
               pose_read=['people=first']).calls
    assert c.data==dict(data=Path('/a/set'), poses=Path('/p'), source=Path('/s'),
                        source_poses=Path('/q'), ids=3, layout='folder', cameras=False,
                        choices=dict(read={'odd':'skip'}, source_read={'layout':'mars'},
                                     pose_read={'people':'first'}))
    c, = table(data=Path('/a/set')).calls
    assert c.data['cameras'] is True and not c.data.get('choices')
    from posereid.experiment.inputs import folder_inputs
    inspect.signature(folder_inputs).bind(**c.data)


def test_threads_of_a_table(table, refused):
    assert table(threads=2).threads==2 and table().threads==1
    for n in (0,-1): refused(cli.posereid_reproduce, 'toy', threads=n, says=['--threads', str(n)])


@pytest.mark.parametrize('kw', [dict(source=Path('/s')), dict(poses=Path('/p')), dict(ids=4),
                                dict(no_cameras=True), dict(layout='mars'), dict(read=['odd=skip']),
                                dict(source_read=['odd=skip'])])
def test_what_goes_with_a_real_table_only(table, refused, kw):
    refused(cli.posereid_reproduce, 'toy', says=[f'--{next(iter(kw))}', '--data'], **kw)


# --- single stages ---

SCORES = dict(rank1=11.1, rank5=22.2, map_trap=33.3, map_mean=44.4, protocol='the protocol')

@pytest.fixture
def inputs(spy, monkeypatch):
    "Inputs that are not read"
    i = SimpleNamespace(train='train rows', target='target', source='source', poses='poses',
                        notes=['a note'])
    i.store = lambda size: ('store', tuple(size))
    i.read,i.target_read = spy('folder_inputs', returns=i),spy('target_inputs', returns=i)
    i.labels,i.apart = spy('train_labels', returns={7:0}),[]
    monkeypatch.setattr(cli, '_keep_apart', lambda *args: i.apart.append(args))
    return i


def reading(i):
    return dict(data=str(i.data), source=i.source and str(i.source), poses=i.poses and str(i.poses),
                source_poses=i.source_poses and str(i.source_poses), size=i.size, cameras=i.cameras,
                layout=i.layout, choices=i.choices or {}, convert=i.convert,
                need_poses=i.need_poses, need_test=i.need_test, ids=i.ids, validation=i.validation)

PLAIN = dict(data='/a', source=None, poses=None, source_poses=None, size=(64,32), cameras=True,
             layout=None, choices={}, convert=False, need_poses=False, need_test=True, ids=None,
             validation=False)


def test_a_world_is_drawn(spy, said):
    calls = spy('write_world_at', returns='/where')
    cli.posereid_synth(out=Path('/w'), preset='smoke', world=3, size='128x64', validation=True,
                       fresh=True, set=['world.n_train=9'])
    cli.posereid_synth()
    (a,b) = calls
    assert (a.settings.world, a.settings.validation, tuple(a.settings.size), a.settings.n_train,
            a.out, a.fresh)==(3, True, (128,64), 9, Path('/w'), True)
    assert (b.settings.world, b.settings.validation, tuple(b.settings.size), b.out,
            b.fresh)==(0, False, (64,32), Path('world'), False) and said()==['/where']*2


TARGET = dict(data=Path('/a'), size=(64,32), cameras=True, layout=None, read={}, convert=False)


def test_step_one(spy, inputs, said):
    train,score = spy('train_reid', returns='model'),spy('score_model', returns=SCORES)
    cli.posereid_guider(Path('/a'))
    assert said()==['a note',
                    'rank-1 11.1  rank-5 22.2  mAP 33.3 (trapezoid)  44.4 (mean precision)',
                    'the protocol', 'runs/guider']
    cli.posereid_guider(Path('/a'), out=Path('/o'), preset='smoke', seed=4, size='48x24',
                        convert=True, no_cameras=True, layout='folder', read=['odd=skip'],
                        fresh=True, set=['reid.epochs=9'])
    a,b = train
    assert (a.df, a.store, a.labels, str(a.folder), a.fresh, a.settings.seed)==('train rows',
        ('store',(64,32)), {7:0}, 'runs/guider', False, 0)
    assert (b.df, b.store, str(b.folder), b.fresh, b.settings.seed, b.settings.epochs,
            tuple(b.settings.size))==('train rows', ('store',(48,24)), '/o', True, 4, 9, (48,24))
    assert vars(inputs.target_read[0])==TARGET
    assert vars(inputs.target_read[1])=={**TARGET, 'size':(48,24), 'cameras':False,
                                          'layout':'folder', 'read':{'odd':'skip'}, 'convert':True}
    assert (score[1].model, score[1].inputs, score[1].settings, str(score[1].path))==('model',
        inputs, b.settings, '/o') and list(vars(inputs.labels[0]).values())==['target']


def test_step_three(spy, inputs, said, monkeypatch):
    train = spy('train_reid', returns='model')
    spy('score_model', returns=SCORES)
    new,mixed = spy('read_generated', returns='new rows'),spy('augment', returns='real and new')
    checked = []
    monkeypatch.setattr(cli, '_without_test', lambda *args: checked.append(args))
    cli.posereid_augment(Path('/a'))
    cli.posereid_augment(Path('/a'), generated=Path('/g'), out=Path('/o'), preset='smoke', seed=4,
                         size='48x24', convert=True, no_cameras=True, layout='folder',
                         read=['odd=skip'], fresh=True, set=['reid.eps_generated=0.3'])
    a,b = train
    assert ([str(next(iter(vars(o).values()))) for o in new]==['runs/generated','/g']
            and list(vars(mixed[0]).values())[:2]==['train rows','new rows'])
    assert [str(o[2]) for o in checked]==['runs/generated','/g'] and {o[0] for o in checked}=={'new rows'}
    assert (a.df, str(a.folder), a.fresh, a.settings.seed)==('real and new',
        'runs/augmented', False, 0)
    assert (b.df, str(b.folder), b.fresh, b.settings.seed, b.settings.eps_generated,
            b.store)==('real and new', '/o', True, 4, .3, ('store',(48,24)))
    assert vars(inputs.target_read[0])==TARGET
    assert vars(inputs.target_read[1])=={**TARGET, 'size':(48,24), 'cameras':False,
                                          'layout':'folder', 'read':{'odd':'skip'}, 'convert':True}
    assert said()[1:4]==['rank-1 11.1  rank-5 22.2  mAP 33.3 (trapezoid)  44.4 (mean precision)',
                         'the protocol', 'runs/augmented']


READ = dict(poses=Path('/p'), source_poses=Path('/q'), convert=True, layout='folder',
            read=['odd=skip'], pose_read=['people=first'], source_layout='mars',
            source_read=['links=true'], source_pose_read=['format=yolo'])
READ_TOO = dict(source='/s', poses='/p', source_poses='/q', convert=True, layout='folder',
                need_poses=True, need_test=False,
                choices=dict(read={'odd':'skip'}, pose_read={'people':'first'},
                             source_read={'links':'true', 'layout':'mars'},
                             source_pose_read={'format':'yolo'}))


def test_step_two(spy, inputs, said, tmp_path):
    (tmp_path/'reid.json').write_text(json.dumps(dict(size=[96,48], crop=[90,40])))
    guider = spy('guider_for', returns='guider')
    train = spy(next(o for o in ('train_generator','train_transfer')
                     if o in inspect.getsource(cli)))
    cli.posereid_transfer(Path('/a'), Path('/s'), guider=tmp_path)
    cli.posereid_transfer(Path('/a'), Path('/s'), guider=tmp_path/'no', out=Path('/o'),
                          init=Path('/i'), preset='smoke', seed=4, size='48x24', fresh=True,
                          set=['transfer.beta=0'], **READ)
    a,b = train
    assert inputs.apart==[(inputs, Path('/a'), Path('/s'), None, None, False),
                          (inputs, Path('/a'), Path('/s'), 'folder', ['odd=skip'], False)]
    assert (a.target_df, a.source_df, a.poses, a.store, a.labels, a.guider, str(a.folder), a.init,
            a.fresh)==('train rows', 'source', 'poses', ('store',(64,32)), {7:0}, 'guider',
                       'runs/transfer', None, False)
    # the guider is shown pictures of its own kind
    assert (tuple(a.settings.guider_size), tuple(a.settings.guider_crop),
            a.settings.seed)==((96,48), (90,40), 0)
    assert (b.guider, str(b.folder), str(b.init), b.fresh, b.settings.beta,
            b.settings.seed, b.store,
            tuple(b.settings.guider_size))==(None, '/o', '/i', True, 0, 4, ('store',(48,24)), ())
    assert len(guider)==1 and list(vars(guider[0]).values())[:2]==[tmp_path, {7:0}]
    assert reading(inputs.read[0])=={**PLAIN, 'source':'/s', 'need_poses':True, 'need_test':False}
    assert (reading(inputs.read[1])=={**PLAIN, 'size':(48,24), **READ_TOO}
            and said()==['a note','runs/transfer','a note','/o'])


def test_step_three_first_half(spy, inputs, said, tmp_path):
    (tmp_path/'generator.json').write_text(json.dumps(dict(size=[96,48])))
    load = spy('load_generator', returns='G')
    made = spy('generate', returns=pd.DataFrame(dict(pid=[1,1,2,2,2])))
    cli.posereid_generate(Path('/a'), Path('/s'), generator=tmp_path)
    cli.posereid_generate(Path('/a'), Path('/s'), generator=tmp_path, out=Path('/o'),
                          preset='smoke', seed=4, names='market1501', fresh=True,
                          set=['generate.n_each=7', 'generate.test_poses=true'], **READ)
    a,b = made
    assert inputs.apart==[(inputs, Path('/a'), Path('/s'), None, None, False),
                          (inputs, Path('/a'), Path('/s'), 'folder', ['odd=skip'], True)]
    assert (a.G, a.target_df, a.source_df, a.poses, a.store, str(a.folder), a.fresh, a.names,
            a.settings.seed, a.todo)==('G', 'target', 'source', 'poses', ('store',(96,48)),
                                       'runs/generated', False, 'source', 0, None)
    assert (str(b.folder), b.fresh, b.names, b.settings.seed, b.settings.n_each)==('/o', True,
        'market1501', 4, 7) and [list(vars(o).values())[0] for o in load]==[tmp_path]*2
    assert reading(inputs.read[0])=={**PLAIN, 'source':'/s', 'size':(96,48), 'need_poses':True,
                                     'need_test':False}
    assert reading(inputs.read[1])=={**PLAIN, 'size':(96,48), **READ_TOO}
    said = said()
    assert (said[0]=='a note' and said[2]=='runs/generated' and said[5]=='/o'
            and '5' in said[1].split() and '2' in said[1].split()
            and said[1].split().index('5')<said[1].split().index('2'))


# --- looking at things ---

@pytest.fixture
def evaluated(spy, monkeypatch, said, tmp_path):
    (tmp_path/'reid.json').write_text(json.dumps(dict(size=[96,48], crop=[90,40])))
    curve = np.arange(1, 51)/100
    def _f(data='/a/set', **kwargs):
        r = SimpleNamespace(rank=lambda k: k/10, map_trap=.333, map_mean=.444,
                            protocol='the protocol', single_shot=curve)
        opened = []
        place = 'posereid.stages.trained.'
        monkeypatch.setattr(place+'load_reid', lambda folder: opened.append(folder) or 'net')
        monkeypatch.setattr(place+'weights_hash', lambda net: 'hash')
        monkeypatch.setattr(place+'seen_by', lambda store, crop: (store, crop))
        made = SimpleNamespace(load=opened, read=spy('read_set', returns='rows'),
                               checked=spy('check_test', lambda df, *a, **k: df),
                               notes=spy('reading_notes', returns=['said']),
                               calls=spy('evaluate_reid', returns=r))
        cli.posereid_eval(data, model=tmp_path, **kwargs)
        made.said,made.call,made.read,made.checked = (said(),made.calls[0],made.read[0],
                                                      list(vars(made.checked[0]).values()))
        return made
    return _f


def test_eval_by_default(evaluated, tmp_path):
    m = evaluated()
    c = m.call
    assert (c.model, c.df, c.dataset, c.distance, c.flip, c.grey, c.rerank, c.tracklets, c.cameras,
            c.single_shot)==('net', 'rows', 'set', 'euclidean', False, False, None, 'auto', True, 0)
    store,crop = c.store
    assert (tuple(store.size)==(96,48) and tuple(crop)==(90,40) and not store.convert
            and m.load==[tmp_path])
    assert (str(m.read.root), set(m.read.splits), m.read.optional, m.read.layout,
            m.read.choices or {})==('/a/set', {'query','gallery'}, False, None, {})
    assert m.checked[:3]==['rows', '/a/set', True]
    assert m.said==['set: said',
                    'rank-1 10.0  rank-5 50.0  mAP 33.3 (trapezoid)  44.4 (mean precision)',
                    'the protocol']


@pytest.mark.parametrize('kw,want',
                         [(dict(flip=True), dict(flip=True)), (dict(grey=True), dict(grey=True)),
                          (dict(distance='cosine'), dict(distance='cosine')),
                          (dict(rerank=True), dict(rerank={})),
                          (dict(tracklets='mean'), dict(tracklets='mean')),
                          (dict(no_cameras=True), dict(cameras=False)),
                          (dict(single_shot=4), dict(single_shot=4))])
def test_eval_as_asked(evaluated, kw, want):
    m = evaluated(**kw)
    plain = dict(distance='euclidean', flip=False, grey=False, rerank=None, tracklets='auto',
                 cameras=True, single_shot=0)
    assert ({k: getattr(m.call, k) for k in plain}=={**plain, **want}
            and m.checked[2] is not kw.get('no_cameras', False))
    assert m.said[3:]==(['single-shot rank-1 1.0  rank-5 5.0  rank-10 10.0']
                        if 'single_shot' in kw else [])


def test_eval_reads_as_told(evaluated):
    m = evaluated(convert=True, layout='folder', read=['odd=skip'])
    assert m.call.store[0].convert and m.read.layout=='folder' and m.read.choices=={'odd':'skip'}


def test_audit(spy, said):
    class Report:
        status = 0
        def __str__(self): return 'the report'
        def json(self): return '{}'
    calls = spy('audit', returns=Report())
    cli.posereid_audit(Path('/a'))
    cli.posereid_audit(Path('/a'), layout='mars', name='folder', decode=True, poses=Path('/p'),
                       against='none', json=True, read=['links=true'], pose_read=['people=first'])
    cli.posereid_audit(Path('/a'), name='folder')
    assert said()==['the report','{}','the report']
    a,b,c = calls
    assert (str(a.root), a.name, a.decode, a.poses, a.against, a.read or {}, a.pose_read or {},
            a.watch)==('/a', None, False, None, 'auto', {}, {}, True)
    assert (b.name, b.decode, str(b.poses), b.against, b.read, b.pose_read)==('mars', True, '/p',
        'none', {'links':'true'}, {'people':'first'}) and c.name=='folder'
    Report.status = 1
    with pytest.raises(SystemExit) as e: cli.posereid_audit(Path('/a'))
    assert e.value.code==1 and said()==['the report']


class Table:
    "Poses that are known by their names"
    def __init__(self, names, notes=None): self.names,self.notes = names,notes or {}
    def __contains__(self, o): return o in self.names
    def __str__(self): return f'{len(self.names)} poses'
    def get(self, names): return [(self, o) for o in names]


def test_pose(spy, said, monkeypatch):
    files = {'a':'/r/a', 'b':'/r/b'}
    listed,est = spy('list_pictures_in', returns=files),spy('make_estimator', returns='estimator')
    table = Table(['a','b'], {'nobody found':['a'], 'not read':['b','c','d','e']})
    made = spy('estimate_folder', returns=table)
    cli.posereid_pose(Path('/r'))
    cli.posereid_pose(Path('/r'), out=Path('/o.csv'), estimator='blazepose', weights=Path('/w'),
                      folders='x, y', batch=5, fresh=True, no_sheet=True,
                      pose_read=['people=first'])
    cli.posereid_pose(Path('/r'), estimator='known', weights=Path('/k'), skip_unreadable=True,
                      pose_read=['people=first'])
    assert said()[:3]==['poses.csv: 2 poses', 'nobody found: 1, among them a',
                        'not read: 4, among them b, c, d']
    a,b,c = made
    assert (str(a.root), str(a.out), a.estimator, a.folders, a.batch, a.fresh, a.skip_unreadable,
            a.sheet)==('/r', 'poses.csv', 'estimator', None, 32, False, False, True)
    assert (str(b.out), b.folders, b.batch, b.fresh, b.skip_unreadable, b.sheet, c.fresh,
            c.skip_unreadable)==('/o.csv', ['x','y'], 5, True, False, False, False, True)
    assert ([o.folders for o in listed]==[None,['x','y'],None]
            and [o.name for o in est]==['rcnn','blazepose','known']
            and [o.weights and str(o.weights) for o in est]==[None,'/w','/k'])
    assert ([getattr(o, 'choices', {}) for o in est]==[{},{},{'people':'first'}]
            and all(o.names is files for o in est))


def test_how_far_estimates_are(spy, said):
    scores = spy('pck', lambda kpts, known, alpha: dict(mean=100*alpha, n=len(kpts), left_out=3,
                     found=77.77))
    mine,known = Table(['a','b','c']),Table(['c','x','a'])
    cli._tell_pck(mine, known, Path('/r'), Path('/k'))
    first,second = said()
    assert [(o.kpts, o.known, o.alpha) for o in scores]==[
        ([(mine,'a'),(mine,'c')], [(known,'a'),(known,'c')], a) for a in (.1,.2)]
    assert (first.startswith('PCK@0.1: 10.0 over 2 ') and '(3 ' in first and '77.8 %' in first
            and second.startswith('PCK@0.2: 20.0 over 2 '))
    with pytest.raises(InputError, match='/k .*/r'):
        cli._tell_pck(Table(['q']), known, Path('/r'), Path('/k'))


def test_known_poses_are_in_pixels(tmp_path):
    "A file that knows shares and other pictures: only those of the folder, in their own pixels"
    from PIL import Image
    for n,size in (('a',(20,40)),('b',(10,80))): Image.new('RGB', size).save(tmp_path/f'{n}.png')
    from posereid.pose.table import PoseTable
    from posereid.pose.files import write_market_csv
    k = torch.zeros(3,18,3); k[:,:,0],k[:,:,1],k[:,:,2] = 3.,5.,1.
    write_market_csv(tmp_path/'k.csv', PoseTable(['b.png','z.png','a.png'], k))
    files = {f'{n}.png': str(tmp_path/f'{n}.png') for n in 'ab'}
    t = cli._known(files, tmp_path/'k.csv', {})
    assert (sorted(t.names)==['a.png','b.png'] and (t.joints[...,0]==3).all()
            and (t.joints[...,1]==5).all())
    for n in 'ab':
        people = [dict(pose_keypoints_2d=[v for _ in range(18) for v in (.5*100, .25*200, 1.)])]
        (tmp_path/'j').mkdir(exist_ok=True)
        ((tmp_path/'j'/f'{n}_keypoints.json')
         .write_text(json.dumps(dict(people=people, canvas_width=100, canvas_height=200))))
    # a canvas of 100 × 200: the middle of the width, a quarter of the height
    t = cli._known(files, tmp_path/'j', {})
    for n,(w,h) in (('a',(20,40)),('b',(10,80))):
        x,y,_ = t.joints[[Path(o).stem for o in t.names].index(n)].T
        assert (x.mean().item()==pytest.approx(.5*w-.5, abs=.5)
                and y.mean().item()==pytest.approx(.25*h-.5, abs=.5))


def test_compare(spy, said):
    calls = spy('compare_runs', returns='they differ')
    cli.posereid_compare(Path('/a'), Path('/b'))
    cli.posereid_compare(Path('/a'), Path('/b'), level=.9, seed=7)
    assert [(str(o.a), str(o.b), o.level, o.seed)
            for o in calls]==[('/a','/b',.95,0), ('/a','/b',.9,7)] and said()==['they differ']*2
