"Whatever a file holds, it is read aright or refused in a sentence; what the sentence advises works"
import json, math, shutil, time
from pathlib import Path

import numpy as np
import pytest

import fuzz
from fuzz import Parser, Raw, fuzz as run_fuzz, json_text, outcome, rng_of
from posereid import records
from posereid.core import InputError, RunFolder, load_json, parse_json, settings_from
from posereid.records import Between, guessed, misfit, read_columns, read_json, walk_json

PARSERS = {o.name: o for o in fuzz.parsers()}
SEED = 1 # not that of the committed log

# --- every parser ---

@pytest.mark.parametrize('name', PARSERS)
def test_no_damage_is_a_fault(name):
    res,faults = run_fuzz(PARSERS[name], 100, SEED)
    assert not faults, f'{name}: {faults[:5]}'
    assert res['inputs']==100 and res['accepted']+res['refused']==100
    assert res['refused']>=10 or name=='poses_part', 'the damage is too small to say anything'

@pytest.mark.slow
@pytest.mark.parametrize('name', PARSERS)
def test_no_damage_is_a_fault_by_hypothesis(name, tmp_path):
    hypothesis = pytest.importorskip('hypothesis', reason='pip install hypothesis')
    from hypothesis import strategies as st
    parser = PARSERS[name]
    parser.prepare(tmp_path)
    @hypothesis.settings(max_examples=1000, deadline=None, database=None, derandomize=True,
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(st.integers(0, 2**32), st.one_of(st.none(), st.binary(max_size=200)))
    def no_fault(i, raw):
        "Damage by number, or bytes that hypothesis thinks of"
        how,said = outcome(parser, parser.damaged(rng_of(name, SEED, i)) if raw is None else raw)
        assert how!='fault', said
    no_fault()

@pytest.mark.parametrize('name', PARSERS)
def test_an_input_is_told_by_its_number(name):
    of = lambda: [PARSERS[name].damaged(rng_of(name, 0, i)) for i in range(12)]
    assert of()==(a := of()) and len(set(a))>6

# --- the test of the test ---

def toy(read, right=None, make=lambda rng: (dict(a=[1,2]), [1,2])):
    return Parser('toy', 'toy.json', make, read, right)

def faults_of(parser, n=40): return [said for _,said in run_fuzz(parser, n)[1]]

def test_other_errors_are_faults():
    assert faults_of(toy(lambda p: json.loads(p.read_bytes())['a']))
    says = faults_of(toy(lambda p: read_json(p)['a']))
    assert says and all('KeyError' in o or 'TypeError' in o for o in says)

def test_nonsense_is_a_fault():
    good = lambda v: '' if isinstance(v, list) and all(type(o) is int and abs(o)<1e9 for o in v) else f'{v!r}'
    loose,strict = (lambda p: read_json(p, {'a':object})['a']),(lambda p: read_json(p, {'a':[Between(-9, 9, whole=True)]})['a'])
    assert all('read, but' in o for o in faults_of(toy(loose, good), 100))
    assert faults_of(toy(loose, good), 100) and not faults_of(toy(strict, good), 300)

def test_an_error_that_is_no_sentence_is_a_fault():
    def read(p): raise InputError('wrong')
    parser = toy(lambda p: None)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(fuzz, 'check_valid', lambda *a: None)
        parser.read = read
        assert all('no sentence' in o for o in faults_of(parser)) and faults_of(parser)

def test_a_late_answer_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, 'SECONDS', .1)
    def busy(path):
        while True: pass
    parser = toy(busy)
    parser.prepare(tmp_path)
    t = time.time()
    how,said = outcome(parser, b'{}')
    assert how=='fault' and 'Late' in said and time.time()-t<3

def test_a_valid_file_that_is_read_as_another_stops_the_fuzz(tmp_path):
    parser = toy(lambda p: [1,3])
    parser.same = lambda o,t: o==t
    with pytest.raises(AssertionError, match='read as another'): run_fuzz(parser, 3)

def test_the_command_writes_a_log(tmp_path, capsys):
    assert fuzz.main(['--n','30','--seed','3','--only','scores_json','name_mars','--log',str(tmp_path/'l.csv')])==0
    log = read_columns(tmp_path/'l.csv', dict(parser=str, inputs=int, accepted=int, refused=int, faults=int,
                                              slowest_ms=float, command=str), ended=True)
    assert log['parser'].tolist()==['scores_json','name_mars'] and log['inputs'].tolist()==[30,30]
    assert log['faults'].tolist()==[0,0] and log['command'][0]=='python tests/fuzz.py --n 30 --seed 3'

def test_the_committed_log_has_every_parser_and_no_fault():
    log = read_columns(Path(__file__).with_name('fuzz_log.csv'), dict(parser=str, inputs=int, accepted=int, refused=int,
                       faults=int, slowest_ms=float, command=str), ended=True)
    assert log['parser'].tolist()==list(PARSERS), 'run the command of the log again'
    assert not log['faults'].any() and (log['accepted']+log['refused']==log['inputs']).all()
    assert (log['slowest_ms']<1000*fuzz.SECONDS).all() and len(set(log['command']))==1

# --- numbers and texts, where they are used ---

WRONG = [True, '1', None, [], {}, [1], Raw('NaN'), Raw('1e400'), Raw('-1e400'), Raw('9'*400), Raw('9'*5000), Raw('['*5000), Raw('')]
USED = { # places that a reader uses, and what is right there, too
    'openpose': ([('people',), ('people',0), ('people',0,'pose_keypoints_2d'), ('people',0,'pose_keypoints_2d',4)], ()),
    'coco': ([('images',0,'id'), ('images',0,'file_name'), ('images',0,'height'), ('annotations',0,'image_id'),
              ('annotations',0,'keypoints'), ('annotations',0,'keypoints',3), ('annotations',0,'keypoints',5)], ('height',)),
    'coco_results': ([(0,), (0,'image_id'), (0,'keypoints'), (0,'keypoints',4)], ()),
    'mmpose': ([(0,'keypoints'), (0,'keypoints',0), (0,'keypoints',0,0), (0,'keypoint_scores',0)], ()),
    'openpifpaf': ([(0,'keypoints'), (0,'keypoints',1)], ()),
    'mediapipe': ([(0,'file_name'), (0,'height')], ('height',)),
    'reid_json': ([('n_ids',), ('width',), ('arch',), ('loss',), ('size',), ('size',0), ('flip',), ('lr',), ('milestones',0)], ('flip','lr','weights')),
    'generator_json': ([('width',), ('size',), ('size',1), ('shared',), ('norm',), ('depth',), ('betas',0)], ('shared','depth')),
    'dcgan_json': ([('width',), ('z',), ('size',0)], ()),
    'scores_json': ([('rank1',), ('map_mean',), ('protocol',)], ('protocol',)),
    'per_query_json': ([('protocol',), ('n_query',)], ('protocol',)),
    'counts_json': ([('train',), ('train','pictures'), ('train','cameras'), ('train','cameras',0)], ('train','cameras')),
    'settings_json': ([('settings',), ('settings','reid'), ('settings','reid','width')], ()),
    'world_json': ([('size',), ('world',), ('turned',), ('spread',), ('content',)], ()),
    'poses_info': ([('estimator',)], ())}
# what may stand in a place all the same: null for a size that is not known, a text that is as good as another
FINE = {('coco','height'):[None], ('mediapipe','height'):[None], ('coco','id'):['1'], ('coco_results','image_id'):['1'],
        ('coco','file_name'):['1'], ('mediapipe','file_name'):['1'], ('reid_json','flip'):[True], ('generator_json','depth'):[None],
        ('scores_json','protocol'):['1'], ('per_query_json','protocol'):['1'], ('counts_json','train'):[{}],
        ('counts_json','cameras'):[[],{},[1]], ('coco','annotations'):[[]], ('openpose','people'):[[]], ('reid_json','milestones'):[[],[1]]}

@pytest.mark.parametrize('name', USED)
def test_what_is_used_is_checked(name, tmp_path, monkeypatch):
    "A wrong type in a place that a reader uses is refused, and never read as a number"
    monkeypatch.setattr(fuzz, 'some_body', lambda rng, n=18, *_: [5.,6.,.9]*n) # a missing joint may say anything
    parser = PARSERS[name]
    parser.prepare(tmp_path)
    for place in USED[name][0]:
        last = next(o for o in reversed(place) if isinstance(o, str)) if any(isinstance(o, str) for o in place) else ''
        fine = FINE.get((name,last), []) if place[-1]==last else []
        for bad in WRONG:
            if not isinstance(bad, Raw) and any(type(bad) is type(o) and bad==o for o in fine): continue
            value = json.loads(json.dumps(parser.make(rng_of(name, SEED, 0))[0]))
            o = value
            for k in place[:-1]: o = o[k]
            if type(o[place[-1]]) is type(bad) and o[place[-1]]==bad: continue
            o[place[-1]] = bad
            data = json_text(value, rng_of(name, SEED, 0)).encode()
            how,said = outcome(parser, data)
            assert how=='refused', (name, place, bad, how, said)

# --- the readers of records ---

def test_parse_json_by_hand():
    assert parse_json('{"a": [1, 2.5, null]}')=={'a':[1,2.5,None]} and parse_json(b'\xef\xbb\xbf[]')==[]
    assert parse_json('['*64+']'*64) and math.isnan(parse_json('[NaN]', nan=True)[0])
    for bad,says in (('['*65+']'*65, '64 levels'), ('{"a":{"b":1,"b":2}}', "'b' comes twice"), ('[-Infinity]', 'Infinity'),
                     ('{"x":[0,[1e999]]}', r'x\[1\]\[0\]: inf'), ('[9223372036854775808]', 'too large'), (b'["\xe9"]', 'byte 2 is no UTF-8'),
                     ('1'*5000, '4,300 digits'), ('{"a":{"a":1e999}}', 'a.a: inf'), ('['+'1,'*200_000+'1e999]', r'\[200000\]: inf')):
        with pytest.raises(ValueError, match=says): parse_json(bad)
    assert parse_json(f'[{2**63-1}, {-2**63}, 1e308]')[0]==2**63-1

def test_a_file_that_is_too_large(tmp_path, monkeypatch):
    from posereid import core
    (tmp_path/'a.json').write_text('[1, 2, 3]')
    monkeypatch.setattr(core, '_MOST', 5)
    with pytest.raises(InputError, match='9 bytes'): read_json(tmp_path/'a.json')
    with pytest.raises(InputError, match='is damaged.*9 bytes'): load_json(tmp_path/'a.json')
    monkeypatch.setattr(records, '_LARGEST', 5)
    (tmp_path/'a.csv').write_text('k\n1\n2\n')
    with pytest.raises(InputError, match='6 bytes'): read_columns(tmp_path/'a.csv', {'k':int})
    monkeypatch.setattr(records, '_LONGEST', 8); monkeypatch.setattr(records, '_BLOCK', 4)
    (tmp_path/'b.json').write_text('["' + 'x'*99 + '"]')
    with pytest.raises(InputError, match='one value of more'): list(walk_json(tmp_path/'b.json'))

def test_files_that_are_none(tmp_path):
    for read in (read_json, lambda p: read_columns(p, {}), lambda p: list(walk_json(p))):
        with pytest.raises(OSError): read(tmp_path/'none')
        with pytest.raises(OSError): read(tmp_path)

@pytest.mark.parametrize('nan', [False,True])
def test_walking_and_reading_agree(tmp_path, nan, monkeypatch):
    "On damaged files, too, whatever the size of a block"
    monkeypatch.setattr(records, '_BLOCK', 37)
    file,n = tmp_path/'a.json',0
    for i in range(400):
        rng = rng_of('walk', 0, i)
        value,_ = fuzz.coco_file(rng)
        value['annotations'] = value['annotations'][:1]
        value['annotations'][0]['keypoints'] = value['annotations'][0]['keypoints'][:6]
        file.write_bytes(fuzz.json_damaged(value, rng) if i%2 else fuzz.bytes_damaged(json.dumps(value).encode(), rng))
        try: whole = read_json(file, nan=nan)
        except InputError: whole = None
        try: parts = list(walk_json(file, nan=nan))
        except InputError: parts = None
        assert (whole is None)==(parts is None), (i, file.read_bytes())
        if isinstance(whole, dict):
            again = {}
            for k,at,v in parts:
                if at is None: again[k] = v if v!=[] else []
                else: again[k].append(v)
            assert str(again)==str(whole)
            n += 1
    assert 20<n<380

def slow_columns(path):
    "Texts of a table by the slow way"
    import csv
    with open(path, encoding='utf-8-sig', newline='') as f:
        rows = [o for o in csv.reader(f, skipinitialspace=True) if o]
    return {k.strip(): [o[j] for o in rows[1:]] for j,k in enumerate(rows[0])}

@pytest.mark.parametrize('lines', [1,3,1000])
def test_columns_against_the_slow_way(tmp_path, monkeypatch, lines):
    "With quotes, empty lines and any ending of lines, in blocks of any size"
    monkeypatch.setattr(records, '_LINES', lines)
    for i in range(200):
        rng = rng_of('columns', 0, i)
        cell = lambda: rng.choice(('1',' 2','a','', '"a,b"','"a ""b"""','é','x y','"1\n2"' if i%3==0 else 'z'))
        end = rng.choice(('\n','\r\n','\n','\n\n','\r'))
        text = end.join(','.join(cell() for _ in range(3)) if j else 'p,q, r' for j in range(rng.randrange(1, 12))) + rng.choice(('', end))
        (tmp_path/'a.csv').write_bytes(rng.choice((b'', b'\xef\xbb\xbf'))+text.encode())
        got = read_columns(tmp_path/'a.csv', {}, rest=str, least=0)
        assert {k: v.tolist() for k,v in got.items()}==slow_columns(tmp_path/'a.csv'), repr(text)

@pytest.mark.parametrize('quoted', [False,True])
def test_the_line_of_a_mistake(tmp_path, monkeypatch, quoted):
    monkeypatch.setattr(records, '_LINES', 4)
    rows = [f'{"%s%d%s" % ("q"*0, i, "")},{i/2}' for i in range(30)]
    rows[0] = '"0",0' if quoted else rows[0]
    for i,line in ((0,'x,1'),(7,'7,nan'),(29,'29'),(13,'13,1,2'),(20,'2.5,1')):
        text = '\n'.join(['k,v',*rows[:i],line,*rows[i+1:]])+'\n'
        (tmp_path/'a.csv').write_text(text)
        with pytest.raises(InputError, match=f'line {i+2}\\b'): read_columns(tmp_path/'a.csv', dict(k=int, v=float))

def test_numbers_of_tables(tmp_path):
    good = {'1':(1,1.), '-3':(-3,-3.), '2.0':(2,2.), '1e3':(1000,1000.), ' 7 ':(7,7.), '9007199254740993':(9007199254740993,9007199254740992.)}
    for text,(whole,real) in good.items():
        (tmp_path/'a.csv').write_text(f'k\n{text}\n')
        assert read_columns(tmp_path/'a.csv', {'k':int})['k'].tolist()==[whole]
        assert read_columns(tmp_path/'a.csv', {'k':float})['k'].tolist()==[real]
    for text in ('','x','1_0','٣','0x1','nan','inf','1e999','True','1,','9'*5000,'9'*25):
        (tmp_path/'a.csv').write_text(f'k\n{text}\n' if text else 'k\n""\n', encoding='utf-8')
        with pytest.raises(InputError, match='line 2'): read_columns(tmp_path/'a.csv', {'k':int})
        if text!='9'*25:
            with pytest.raises(InputError, match='line 2'): read_columns(tmp_path/'a.csv', {'k':float})
    assert guessed(['1','']).dtype==float and guessed(['1','9'*25]).dtype==float and guessed(['a']).tolist()==['a']

def test_misfit_of_alternatives():
    kind = {'a':(int, [int], {'b':str}, None)}
    for v in (1, [1,2], {'b':'x'}, None, []): assert misfit({'a':v}, kind)=='', v
    for v,says in ((1.5,'a must be'), ([1,'x'],r'a[1] must be a whole number, but is "x"'), ({'b':1},'a.b must be a text'),
                   (True,'but is true'), ({},'lacks `b`')):
        assert says in misfit({'a':v}, kind), misfit({'a':v}, kind)
    assert misfit({}, kind)=='it lacks `a`' and misfit([], kind).startswith('it must be an object')

# --- tables that runs and people hand in ---

def test_scores_that_are_none():
    from posereid.metrics.stats import bootstrap_interval, permutation_p
    for x in ([0.,100.], [-100.,100.], [0,.5,1], [-3.,7.]): assert bootstrap_interval(x, n_boot=50).n==len(x)
    for x in ([0.,100.1], [-101.,3.], [1e300,0.], [float('nan'),1.], [float('inf'),1.]):
        for f in (lambda x: bootstrap_interval(x, n_boot=50), permutation_p):
            with pytest.raises(InputError, match='between 0 and 100|must be finite'): f(x)

@pytest.mark.parametrize('change,says', [
    (('0.500000','1.500000'), 'line 2: `ap_trap` must be a number from 0 to 1'), (('0.500000','-0.500000'), 'line 2'),
    (('0.500000','nan'), 'line 2'), (('0.500000',''), 'line 2'), (('0.500000','True'), 'line 2'), ((',3,1,',',-3,1,'), 'n_good'),
    ((',3,1,',',0,1,'), 'has 0 pictures to find, but the first at rank 1'), ((',3,1,',',3,0,'), 'has 3 pictures to find'),
    (('b.jpg','a.jpg'), "'a.jpg' has two lines"), (('0.400000\n',''), 'line 4: `inp` must be'),
    (('b.jpg,2,1,3,2,0.200000,0.200000,0.200000\n',''), 'it has 2 lines, but its .json speaks of 3'), (('inp','imp'), 'lacks the column inp'),
    (('ap_mean','ap_trap'), 'comes twice')])
def test_scores_of_queries_are_checked(tmp_path, change, says):
    from posereid.metrics.stats import read_per_query
    text = fuzz.PER_QUERY + ('a.jpg,1,1,3,1,0.500000,0.300000,0.100000\nb.jpg,2,1,3,2,0.200000,0.200000,0.200000\n'
                             'c.jpg,2,1,4,1,0.700000,0.700000,0.400000\n')
    (tmp_path/'per_query.json').write_text(json.dumps({**fuzz.PROTOCOL, 'n_query':3}))
    (tmp_path/'per_query.csv').write_text(text)
    df,said = read_per_query(tmp_path)
    assert df.ap_trap.tolist()==[.5,.2,.7] and df.index.tolist()==['a.jpg','b.jpg','c.jpg'] and said==fuzz.PROTOCOL['protocol']
    assert change[0] in text
    (tmp_path/'per_query.csv').write_text(text.replace(*change, 1))
    with pytest.raises(InputError, match=says): read_per_query(tmp_path)

def test_a_table_of_pictures_is_what_it_says(tmp_path):
    from posereid.data.manifest import read_table
    def read(data, **kw):
        (tmp_path/'a.csv').write_bytes(data if isinstance(data, bytes) else data.encode())
        return read_table(tmp_path/'a.csv', **kw)
    df = read('path,pid,camid,seq,own_id,eps\na,0007,1,,01,0.5\nb,8,2,3,x,\n')
    assert df.pid.tolist()==[7,8] and df.own_id.tolist()==['01','x'] and df.seq.isna().tolist()==[True,False]
    assert df.eps[0]==.5 and np.isnan(df.eps[1]) and read('path,pid\na,007\n', text=('pid',)).pid.tolist()==['007']
    assert read('path,k,seed\na,1,2.0\n').dtypes[['k','seed']].tolist()==['int64','int64']
    for text,says in (('path,pid\na,1,2\n','line 2 has 3 fields'), ('path,pid\na\n','line 2 has 1 fields'), ('path,path\na,b\n','comes twice'),
                      ('path,k\na,x\n','`k` must be'), ('path,seed\na,1.5\n','`seed` must be'), (b'path\na\0b\n','NUL'), ('','empty'),
                      ('path,pid\n"a,1\n','none of a CSV'), ('path,frame\na,1e999\n','`frame`')):
        with pytest.raises(InputError, match=says): read(text)
    assert read(b'path,pid\ncaf\xe9.jpg,1\n').path.tolist()==[__import__('os').fsdecode(b'caf\xe9.jpg')]

def test_lines_of_a_table_come_back_as_they_were(tmp_path):
    "Whole numbers stay whole, words stay words, and a CSV is the same after it was read and written"
    from posereid.experiment.tables import append_lines, read_lines
    for table in ('tbl1','tbl2','fig6','best'):
        file = Path(__file__).parents[1]/'nbs'/'experiments'/f'{table}.csv'
        shutil.copy(file, tmp_path/'t.csv')
        assert len(read_lines(tmp_path/'t.csv'))==file.read_text().count('\n')-1
        append_lines([], tmp_path/'t.csv')
        assert (tmp_path/'t.csv').read_bytes()==file.read_bytes(), table

def test_lines_of_a_table_are_checked(tmp_path):
    from posereid.experiment.tables import read_lines
    good = fuzz.lines_file(rng_of('lines', 0, 0))[0]
    (tmp_path/'t.csv').write_text(good)
    line = good.splitlines()[1].split(',')
    at = {k: i+(i>3) for i,k in enumerate(fuzz.LINE.strip().split(','))} # the title has a comma
    assert line[at['seed']]=='1' and len(read_lines(tmp_path/'t.csv'))==4
    for k,bad in (('seed','x'), ('seed','1.5'), ('seed',''), ('seed','-1'), ('map_trap','101'), ('map_trap','nan'), ('rank1','-1'),
                  ('steps','many'), ('pictures','x'), ('eps_real','inf'), ('world','0.5')):
        (tmp_path/'t.csv').write_text(good.replace(','.join(line), ','.join([*line[:at[k]], bad, *line[at[k]+1:]])))
        with pytest.raises(InputError, match=f'line 2: `{k}` must be .*; mend or remove it, or name another --out'): read_lines(tmp_path/'t.csv')
    (tmp_path/'t.csv').write_text(good[:-3])
    with pytest.raises(InputError, match='cut short'): read_lines(tmp_path/'t.csv')

def test_a_log_that_was_cut(tmp_path):
    from posereid.stages.fit import last_row, read_log
    file = tmp_path/'log.csv'
    assert read_log(file)==[]
    with pytest.raises(InputError, match='has no row'): last_row(file)
    file.write_text('epoch,loss\n0,2.5\n1,0.125\n')
    assert read_log(file)==[dict(epoch='0', loss='2.5'), dict(epoch='1', loss='0.125')] and last_row(file)=={'loss':.125}
    for text,says in (('epoch,loss\n0,2.5\n1,0.12', 'cut short'), ('epoch,loss\n0,nan\n', 'line 2'), ('epoch,loss\n-1,2\n', 'line 2'),
                      ('loss\n2.5\n', 'lacks the column epoch'), ('epoch,loss\n', 'a header and 0 lines'), ('', 'empty')):
        file.write_text(text)
        with pytest.raises(InputError, match=says+'.*; remove it and run the same command again'): read_log(file)

@pytest.mark.parametrize('name,change,says', [
    ('world_json', ('"spread": 0.3', '"spread": 0.31'), 'its settings are not those that the world was drawn by'),
    ('world_json', ('"world": 0', '"world": 1'), 'its settings are not'), ('world_json', ('"settings"', '"setting"'), 'damaged'),
    ('world_json', ('"n_train": 10', '"n_train": 1000000000'), 'its settings are not'),
    ('generator_json', ('"depth": null', '"depth": 2147483648'), 'generator.json: A U-Net of depth'),
    ('generator_json', ('"depth": null', '"depth": 0'), 'generator.json: A U-Net of depth'),
    ('counts_json', ('[1, 1]', '{"1": 1, "a": 1}'), "'a' is no number of a camera"), ('counts_json', ('[1, 1]', f'{{"{"9"*5000}": 1}}'), 'camera'),
    ('msmt17_list', (' 1\n', f' {"9"*10}\n'), 'the number of a person'), ('msmt17_list', (' 1\n', f' {"9"*5000}\n'), 'the number of a person'),
    ('msmt17_list', (' 1\n', ' ١\n'), 'the number of a person')])
def test_a_change_that_chance_seldom_makes(tmp_path, name, change, says):
    parser = PARSERS[name]
    parser.prepare(tmp_path)
    value = parser.make(rng_of(name, 0, 0))[0]
    text = value if isinstance(value, str) else json.dumps(value)
    assert change[0] in text and outcome(parser, text.encode())[0]=='accepted'
    how,said = outcome(parser, text.replace(*change, 1).encode())
    assert how=='refused' and says in said, (how, said)

@pytest.mark.parametrize('bad', [1e7, -1e30, 1e300, math.inf])
def test_a_point_of_a_mat_beyond_all_pictures(tmp_path, bad):
    from posereid.pose.formats import read_market14
    pp = np.full((2,28), 5.)
    (tmp_path/'a.mat').write_bytes(fuzz.mat_bytes(pp=pp))
    assert len(read_market14(tmp_path/'a.mat', ['0.jpg','1.jpg']))==2
    pp[1,3] = bad
    (tmp_path/'a.mat').write_bytes(fuzz.mat_bytes(pp=pp))
    with pytest.raises(InputError, match='1.jpg: joint 3 is not a finite number, or beyond'): read_market14(tmp_path/'a.mat', ['0.jpg','1.jpg'])

def test_names_with_many_digits():
    from posereid.data.market import parse_cuhk03_name, parse_mars_name, parse_market_name
    for parse,name in ((parse_market_name, '0002_c1s1_{}_03.jpg'), (parse_market_name, '0002_c1s1_000451_{}.jpg'),
                       (parse_cuhk03_name, '0001_c1_{}.png'), (parse_mars_name, '0001C1T0001F{}.jpg')):
        assert max(o for o in parse(name.format('9'*18)) if type(o) is int)==10**18-1
        for n in (19, 300, 5000):
            with pytest.raises(InputError, match='is not named like'): parse(name.format('9'*n))

# --- settings by their fields ---

def test_settings_are_of_their_fields_types(tmp_path):
    from posereid.stages.transfer import TransferSettings
    def read(**kw):
        (tmp_path/'s.json').write_text(json.dumps(kw))
        return settings_from(TransferSettings, tmp_path/'s.json')
    s = read(size=[32,16], depth=None, beta=1, lr=1e-3, flip=False, norm='instance', guider_crop=[])
    assert s==TransferSettings(size=(32,16), depth=None, beta=1, lr=1e-3, flip=False, norm='instance') and s.size==(32,16)
    assert read(depth=3).depth==3 and read(betas=[.9,1]).betas==(.9,1)
    for bad in (dict(size=[32]), dict(size=[32,16.5]), dict(size='32x16'), dict(size=[True,16]), dict(width=2.), dict(width='2'),
                dict(width=True), dict(width=None), dict(flip=1), dict(norm='none'), dict(norm=3), dict(lr='x'), dict(lr=False),
                dict(betas=['x']), dict(betas=3), dict(never=1), dict(depth='x'), dict(__class__=3), dict(__init__=3)):
        with pytest.raises(InputError, match=r's\.json is damaged, or of a newer version \(.*\); remove it and run'): read(**bad)

def test_a_folder_of_another_program_is_not_for_removal(tmp_path):
    for text in ('{"editor": 3}', '[1]', '{"settings": 3}', '{"settings": ', ''):
        (tmp_path/'settings.json').write_text(text)
        with pytest.raises(InputError, match='is not a run.*choose another --out') as e: RunFolder(tmp_path, dict(a=1))
        assert 'remove' not in str(e.value) and (tmp_path/'settings.json').read_text()==text
        with pytest.raises(InputError, match='is not a run'): RunFolder(tmp_path, dict(a=1), fresh=True)

# --- advice that works ---

@pytest.fixture(scope='module')
def made():
    "Commands of a small run by the file that they leave: each says what it has read"
    from posereid.data.manifest import pick, train_labels
    from posereid.data.pictures import PictureStore
    from posereid.experiment.engine import score_model
    from posereid.experiment.inputs import world_inputs, write_world_at
    from posereid.stages.fit import read_log
    from posereid.stages.lsro import DCGANSettings, train_dcgan
    from posereid.stages.reid import ReIDSettings, train_reid
    from posereid.stages.transfer import TransferSettings, train_transfer
    from posereid.synth.world import TINY, WorldSettings, load_world, tiny_world
    w = tiny_world()
    df,labels,store = pick(w.target, split='train'),train_labels(w.target),PictureStore((64,32))
    s = ReIDSettings(width=4, epochs=1, bs=24)
    tr = TransferSettings(width=2, d_width=2, d_layers=1, bs=8, pairs=16, parts=1, beta=0.)
    def reid(d): return train_reid(df, store, labels, s, d/'reid')
    def run(d):
        reid(d)
        load_json(d/'reid'/'metrics.json', 'steps')
        read_log(d/'reid'/'log.csv')
        return score_model(reid(d), world_inputs(w), s, d/'reid')
    return {'reid/reid.json':reid, 'reid/metrics.json':run, 'reid/scores.json':run, 'reid/log.csv':run,
            'generator/generator.json':lambda d: train_transfer(w.target, w.source, w.poses, store, labels, None, tr, d/'generator'),
            'dcgan/dcgan.json':lambda d: train_dcgan(df, store, DCGANSettings(width=2, z=3, epochs=1), d/'dcgan'),
            'world/world.json':lambda d: load_world(write_world_at(WorldSettings(**TINY), d/'world')),
            'reid/settings.json':reid}

DAMAGE = {'empty':lambda b: b'', 'cut':lambda b: b[:len(b)//2], 'other':lambda b: b'{"a": 1}\n', 'bytes':lambda b: b'\xff'+b}

@pytest.mark.parametrize('name', ['reid/reid.json','reid/metrics.json','reid/scores.json','reid/log.csv','generator/generator.json',
                                  'dcgan/dcgan.json','world/world.json','reid/settings.json'])
def test_what_the_sentence_advises_works(made, name, tmp_path):
    "Damaged, the file is refused with an advice; who follows it gets what was there before"
    made[name](tmp_path)
    file,known = tmp_path/name,made[name]
    before = file.read_bytes()
    for how,damage in DAMAGE.items():
        file.write_bytes(damage(before))
        with pytest.raises(InputError) as e: known(tmp_path)
        said = str(e.value)
        assert str(file) in said or str(file.parent) in said, said
        if name=='reid/settings.json':
            assert 'choose another --out' in said
            known(tmp_path/'other')
            shutil.rmtree(file.parent)
        elif 'move the folder' in said or '--fresh to draw it again' in said: shutil.rmtree(file.parent)
        else:
            assert 'remove it' in said
            file.unlink()
            if 'metrics.json beside it' in said: (file.parent/'metrics.json').unlink()
        known(tmp_path)
        if file.name!='log.csv': assert file.read_bytes()==before, f'{how}: what was made again is another'

def test_both_files_of_the_queries_are_made_again(made, tmp_path):
    from posereid.metrics.stats import read_per_query
    made['reid/scores.json'](tmp_path)
    for name in ('per_query.csv','per_query.json'):
        file = tmp_path/'reid'/name
        before = file.read_bytes()
        file.write_bytes(before[:-9])
        with pytest.raises(InputError, match=r'remove it and scores\.json, and score the run again'): read_per_query(tmp_path/'reid')
        for o in (name,'scores.json'): (tmp_path/'reid'/o).unlink()
        made['reid/scores.json'](tmp_path)
        assert file.read_bytes()==before

def test_a_size_that_no_memory_holds(made, tmp_path):
    "A network of a damaged size is refused before it is built"
    made['reid/reid.json'](tmp_path)
    from posereid.stages.reid import load_reid
    file = tmp_path/'reid'/'reid.json'
    good = json.loads(file.read_text())
    for change in (dict(width=10**6), dict(width=-3), dict(width=2**62), dict(n_ids=10**9), dict(arch='resnet50'), dict(arch='none')):
        file.write_text(json.dumps({**good, **change}))
        t = time.time()
        with pytest.raises(InputError): load_reid(file.parent)
        assert time.time()-t<5, change
