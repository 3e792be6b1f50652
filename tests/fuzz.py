"""Damage what posereid reads, by chance and by kind, and see that it is refused in a sentence or read aright.

    python tests/fuzz.py --n 100000 --seed 0 --log tests/fuzz_log.csv [--only openpose coco] [--minutes 25]

A fault is an exception that is no `InputError`, an answer that comes late, or a result that cannot be right. Input i of
a parser is the same for every run with that seed: `python tests/fuzz.py --only coco --seed 0 --show 1234` shows it.
"""
import argparse, csv, json, os, random, re, signal, sys, tempfile, time, traceback, warnings
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

os.environ.setdefault('POSEREID_QUIET', '1')
os.environ.setdefault('MPLBACKEND', 'agg')

import numpy as np, torch
from posereid.core import InputError
from posereid.pose.joints import JOINT_SETS

SECONDS = 5 # the longest that an answer may take

# --- damage of any file ---

TOKENS = [b'NaN', b'-Infinity', b'1e400', b'-0', b'9'*5000, b'[' * 10_000, b'{"a":' * 3000, b'null', b'true', b'""',
          b'"x"', b'[]', b'{}', b'\0', b'\xef\xbb\xbf', b'\xe9', b'\xff\xfe', b'\r', b'\r\n', b'\n', b',', b':', b';',
          b'"', b'\\', b'\\ud800', b'1e-400', b'18446744073709551616', b'.', b'-1', b'1_0', b'\xd9\xa3', b' ', b'\t']

def bytes_damaged(data, rng):
    "One to three changes of bytes"
    for _ in range(rng.choice((1,1,1,2,3))):
        n,kind = len(data),rng.randrange(7)
        i = rng.randrange(n+1)
        j = min(n, i+rng.choice((1,1,2,5,40)))
        if kind==0: data = data[:i] + bytes(b ^ 1<<rng.randrange(8) for b in data[i:j]) + data[j:]
        elif kind==1: data = data[:i]+data[j:]
        elif kind==2: data = data[:i]
        elif kind==3: data = data[:i]+rng.choice(TOKENS)+data[i:]
        elif kind==4: data = data[:i]+rng.choice(TOKENS)+data[j:]
        elif kind==5: data = data[:i]+data[i:j]*rng.choice((2,3,50))+data[j:]
        else: data = data.replace(b'\n', rng.choice((b'\r\n', b'\r', b'', b'\n\n')), rng.choice((-1,1)))
    return data

# --- damage of JSON, by its parts ---

class Raw(str): "What stands in the file as it is"

VALUES = [None, True, False, 0, -1, 1, 2, 1.5, -0., 1e308, -1e308, 1e39, 1e-320, 2**31, 2**53+1, 2**63, 10**20, '', 'x', '1',
          'nan', 'a/b', '../x', '\0', '\ud800', '𝄞', [], {}, [[]], [{}], {'a':1}, [None], [1,2,3], ['x']]
RAWS = ['NaN', 'Infinity', '-Infinity', '1e400', '9'*400, '9'*5000, '['*10_000, '['*100+']'*100, '-', 'tru', '1.e5', '']

def json_text(value, rng):
    "JSON of a value in which `Raw` may stand"
    raws = []
    def plain(o):
        if isinstance(o, Raw):
            raws.append(o)
            return f'@@{len(raws)-1}@@'
        if isinstance(o, dict): return {k: plain(v) for k,v in o.items()}
        return [plain(v) for v in o] if isinstance(o, list) else o
    text = json.dumps(plain(value), indent=rng.choice((None,None,1)), ensure_ascii=rng.random()<.7)
    return re.sub(r'"@@(\d+)@@"', lambda m: raws[int(m[1])], text)

def places(value, at=()):
    "Every place in a value, as (container, key)"
    for k,v in (value.items() if isinstance(value, dict) else enumerate(value)):
        yield value,k
        if isinstance(v, (dict,list)) and v: yield from places(v)

def json_damaged(value, rng):
    "Text of a JSON value with one to three changes of its parts"
    value,twice = json.loads(json.dumps(dict(top=value))),None
    for _ in range(rng.choice((1,1,1,2,3))):
        every = list(places(value))
        others = [(o,k) for o,k in every if not isinstance(o[k], float)] # lists of numbers are long
        o,k = rng.choice(others if others and rng.random()<.7 else every)
        v,kind = o[k],rng.randrange(11)
        if kind<=3: o[k] = deepcopy(rng.choice(VALUES))
        elif kind==4: o[k] = Raw(rng.choice(RAWS))
        elif kind==5 and o is not value:
            del o[k]
        elif kind==6 and isinstance(o, dict) and o is not value:
            new = rng.choice((k.upper(), k+'s', '', rng.choice(list(o))))
            o[new] = o.pop(k)
        elif kind==7: o[k] = [v] if rng.random()<.5 else {'a':v}
        elif kind==8 and isinstance(v, list):
            o[k] = deepcopy(rng.choice((v[:1], v[:-1], v+v[:1], v+v, [], v[::-1], v[0] if v else v)))
        elif kind==9 and isinstance(o, dict): twice = k
        else: o[k] = str(v) if isinstance(v, (int,float)) else deepcopy(rng.choice(VALUES))
    text = json_text(value['top'], rng)
    if twice and f'"{twice}":' in text: text = text.replace(f'"{twice}":', f'"{twice}":{rng.choice(("null","1","[]"))},"{twice}":', 1)
    return text.encode('utf-8', 'surrogatepass')

# --- damage of tables, by their cells ---

CELLS = ['', ' ', 'nan', 'NaN', 'inf', '-inf', '1e400', '-1', '0', '1', '1.5', '1e9', '9'*25, '9'*5000, 'x', 'True', 'None', 'null',
         '"', '""', 'a"b', "'", '1_0', '٣', '0x1', '\0', '[1]', '[]', 'é', '../x', '-0', '+1', '1e-400', '2147483648', '/', 'NA']

def table_damaged(text, rng, sep=','):
    "A table with one to three changes of its cells, lines and columns"
    rows = [o.split(sep) for o in text.rstrip('\n').split('\n')]
    for _ in range(rng.choice((1,1,1,2,3))):
        kind,i = rng.randrange(12),rng.randrange(len(rows))
        if not rows[i] or not rows[0]: continue
        j = rng.randrange(len(rows[i]))
        if kind<=3: rows[i][j] = rng.choice(CELLS)
        elif kind==4: rows[0][min(j, len(rows[0])-1)] = rng.choice((*rows[0], '', 'x', rows[0][0].upper()))
        elif kind==5: rows[i].insert(j, rng.choice(CELLS))
        elif kind==6: del rows[i][j]
        elif kind==7:
            for o in rows: del o[j:j+1]
        elif kind==8: rows.insert(i, list(rng.choice(rows)))
        elif kind==9 and len(rows)>1: del rows[i]
        elif kind==10: rows = rows[:rng.randrange(1, len(rows)+1)]
        else: rng.shuffle(rows[i])
    text = '\n'.join(sep.join(o) for o in rows)+'\n'
    if rng.random()<.15: text = text.replace('\n', rng.choice(('\r\n','\r','\n\n')))
    if rng.random()<.1: text = text[:rng.randrange(len(text)+1)]
    return text.encode('utf-8', 'surrogatepass')

# --- parsers ---

class Parser:
    """What is read: `make(rng)` gives a valid content and what reading must give, `read(file)` reads, `right(result)`
    tells what is odd in any result, `same(result, truth)` compares a valid one"""
    def __init__(self, name, file, make, read, right=None, same=None, kind='json', beside=None, sep=','):
        self.name,self.file,self.make,self.read,self.kind,self.sep = name,file,make,read,kind,sep
        self.right,self.same,self.beside = right or (lambda o: ''),same or (lambda o,t: True),beside or (lambda d: None)
    def prepare(self, folder):
        "Write what lies beside the file"
        self.folder,self.path = folder,folder/self.file
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.beside(folder)
    def bytes_of(self, value):
        return value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else json.dumps(value).encode()
    def damaged(self, rng):
        "The bytes of one damaged file"
        value,_ = self.make(rng)
        if self.kind=='json' and rng.random()<.6: data = json_damaged(value, rng)
        elif self.kind=='table' and rng.random()<.7: data = table_damaged(value, rng, self.sep)
        else: return bytes_damaged(self.bytes_of(value), rng)
        return bytes_damaged(data, rng) if rng.random()<.1 else data

def rng_of(name, seed, i): return random.Random(f'{name} {seed} {i}')

class Late(BaseException): pass

@contextmanager
def in_time(seconds=None):
    "Inside, an answer that comes late is an error; seconds of work, since a busy machine is no fault"
    seconds = seconds or SECONDS
    def stop(*_): raise Late(f'no answer after {seconds} s')
    timers = (signal.ITIMER_PROF,signal.SIGPROF,seconds), (signal.ITIMER_REAL,signal.SIGALRM,100*seconds)
    old = [signal.signal(sig, stop) for _,sig,_ in timers]
    for timer,_,n in timers: signal.setitimer(timer, n)
    try: yield
    finally:
        for timer,_,_ in timers: signal.setitimer(timer, 0)
        for (_,sig,_),o in zip(timers, old): signal.signal(sig, o)

def outcome(parser, data):
    "'accepted', 'refused' or 'fault', and what was said"
    parser.path.write_bytes(data)
    try:
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter('error', RuntimeWarning) # numpy's, of numbers that are none
            res = parser.read(parser.path)
            why = parser.right(res)
    except InputError as e:
        said = ' '.join(str(e).split()) # as a command says it
        return ('refused',said) if said[-1:] in ('.','?',')') else ('fault',f'no sentence: {said[:200]}')
    except OSError as e: return 'refused',str(e) # a command says this in a sentence, too
    except (Exception, Late) as e:
        at = traceback.extract_tb(e.__traceback__)[-1]
        return 'fault',f'{type(e).__name__}: {str(e)[:200]} ({Path(at.filename).name}:{at.lineno})'
    return ('fault',f'read, but {why}') if why else ('accepted','')

def check_valid(parser, seed, i=0):
    "A file that nobody has damaged must be read as it is"
    value,truth = parser.make(rng_of(parser.name, seed, i))
    parser.path.write_bytes(parser.bytes_of(value))
    res = parser.read(parser.path)
    assert not parser.right(res), parser.right(res)
    assert parser.same(res, truth), f'{parser.name}: a valid file was read as another'

def fuzz(parser, n, seed=0, minutes=None, keep=20):
    "Numbers of a parser, and its first faults"
    with tempfile.TemporaryDirectory() as d:
        parser.prepare(Path(d))
        for i in range(5): check_valid(parser, seed, i)
        res = dict(parser=parser.name, inputs=0, accepted=0, refused=0, faults=0, slowest_ms=0.)
        faults,end = [],time.time()+60*(minutes or 1e9)
        for i in range(n):
            if time.time()>end: break
            data = parser.damaged(rng_of(parser.name, seed, i))
            t = time.process_time()
            how,said = outcome(parser, data)
            res['slowest_ms'] = max(res['slowest_ms'], 1000*(time.process_time()-t))
            res['inputs'] += 1
            res[how if how!='fault' else 'faults'] += 1
            if how=='fault' and len(faults)<keep: faults.append((i, said))
    res['slowest_ms'] = round(res['slowest_ms'], 1)
    return res,faults

# --- poses ---

def some_body(rng, n=18, w=64, h=128):
    "x, y, confidence of each of n joints, flat; some are missing"
    out = []
    for _ in range(n):
        out += [0.,0.,0.] if rng.random()<.15 else [round(rng.uniform(2, w), 2), round(rng.uniform(2, h), 2),
                                                   round(rng.uniform(.1, 1), 3)]
    return out

def odd_poses(t):
    "What no table of poses may hold"
    k = t.joints
    if k.dtype!=torch.float32 or k.shape!=(len(t.names),18,3): return f'joints are {k.dtype} {tuple(k.shape)}'
    if not k.isfinite().all(): return 'a joint is not finite'
    if len(k) and (k.abs().max()>1e6 or k[...,2].min()<0): return 'a joint lies beyond all pictures'
    if k[k[...,2]==0].any(): return 'a missing joint has a place'
    if len(set(t.names))<len(t.names) or not all(type(o) is str and o.strip() and '\0' not in o for o in t.names): return 'odd names'
    if t.frames is not None and not (t.frames.isfinite().all() and t.frames.min()>=0 and t.frames.max()<=1e6): return 'odd frames'
    if not all(type(v) is list for v in t.notes.values()): return 'odd notes'

def nose_of(t, name): return [round(o, 2) for o in t[name][0].tolist()]

def same_noses(t, truth):
    "`truth`: the nose of each picture; x and y of a missing one are 0"
    return set(t.names)==set(truth) and all(np.allclose(t[n][0], v, atol=.011) for n,v in truth.items())

def openpose_file(rng):
    people = [dict(person_id=[-1], pose_keypoints_2d=some_body(rng)) for _ in range(rng.choice((1,1,2)))]
    best = max(people, key=lambda p: sum(p['pose_keypoints_2d'][2::3]))
    data = dict(version=1.3, people=people)
    if rng.random()<.3: data |= dict(canvas_height=256, canvas_width=128)
    return data,{'a.jpg': best['pose_keypoints_2d'][:3]}

def coco_images(rng, n=3): return [dict(id=7*i+3, file_name=f'train/{i}.jpg', height=128, width=64) for i in range(n)]

def coco_file(rng):
    notes,truth = [],{}
    for i in range(3):
        k = some_body(rng, 17)
        v = [round(2*o) and 2-(o<.5) if j%3==2 else o for j,o in enumerate(k)]
        notes.append(dict(id=i+1, image_id=7*i+3, category_id=1, iscrowd=0, area=9., num_keypoints=17, bbox=[0,0,9,9],
                          keypoints=v))
        seen = {0:0., 1:.5, 2:1.}[v[2]]
        truth[f'{i}.jpg'] = [*v[:2],seen] if seen else [0,0,0]
    return dict(info={}, images=coco_images(rng), annotations=notes, categories=[dict(id=1, name='person')]),truth

def result_file(rng):
    rows,truth = [],{}
    for i in range(3):
        k = some_body(rng, rng.choice((17,17,26,133)))
        rows.append(dict(image_id=7*i+3, category_id=1, score=.5, keypoints=k)); truth[f'{i}.jpg'] = k[:3]
    return rows,truth

def alphapose_file(rng):
    if rng.random()<.5:
        rows,truth = [],{}
        for i in range(2):
            k = some_body(rng, rng.choice((17,26,136)))
            rows.append(dict(image_id=f'{i}.jpg', category_id=1, keypoints=k, score=2.5, box=[1.,2.,3.,4.], idx=[0.]))
            truth[f'{i}.jpg'] = k[:3]
        return rows,truth
    form = rng.choice((('bodies','joints'),('people','pose_keypoints_2d')))
    k = [some_body(rng) for _ in range(2)]
    return ({f'{i}.jpg': {'version':'AlphaPose v0.3', form[0]:[{form[1]:o}]} for i,o in enumerate(k)},
            {f'{i}.jpg': o[:3] for i,o in enumerate(k)})

def mmpose_file(rng):
    k = some_body(rng, rng.choice((17,26,133)))
    one = dict(keypoints=[k[i:i+2] for i in range(0, len(k), 3)], keypoint_scores=k[2::3], bbox=[[0.,0.,64.,128.]],
               bbox_score=.9)
    data = dict(meta_info=dict(dataset_name='coco'), instance_info=[one]) if rng.random()<.3 else [one]
    return data,{'a.jpg': k[:3]}

def openpifpaf_file(rng):
    k = some_body(rng, 17)
    return [dict(keypoints=k, bbox=[0.,0.,64.,128.], score=.9, category_id=1)],{'a.jpg': k[:3]}

def mediapipe_file(rng):
    rows,truth = [],{}
    for i in range(2):
        lm = [dict(x=rng.random(), y=rng.random(), z=0., visibility=rng.choice((.9,.8,.1)), presence=1.) for _ in range(33)]
        rows.append(dict(file_name=f'{i}.jpg', height=128, width=64, pose_landmarks=lm if rng.random()<.5 else [lm]))
        o = lm[0]
        truth[f'{i}.jpg'] = [o['x']*64-.5,o['y']*128-.5,o['visibility']] if o['visibility']>=.5 else [0,0,0]
    return rows,truth

def market_file(rng):
    lines,truth = ['name:keypoints_y:keypoints_x'],{}
    for i in range(3):
        k = some_body(rng)
        y,x = ([k[j+a] if k[j+2] else -1 for j in range(0, 54, 3)] for a in (1,0))
        name = f'{i+1:04d}_c1s1_000451_03.jpg'
        lines.append(f'{name}: {y}: {x}')
        truth[name] = [*k[:2],1.] if k[2] else [0,0,0]
    return '\n'.join(lines)+'\n',truth

def yolo_file(rng):
    k = some_body(rng, 17, 1, 1)
    k = [o/2 if i%3<2 else o for i,o in enumerate(k)]
    return ' '.join(map(str, [0,.5,.5,1.,1.,*k,.9]))+'\n',{'a.jpg': [k[0]-.5,k[1]-.5,k[2]] if k[2] else [0,0,0]}

def fdgan_file(rng):
    k = some_body(rng)
    rows = [(k[j+1],k[j]) if k[j+2] else (-1,-1) for j in range(0, 54, 3)]
    return '\n'.join(f'{y} {x}' for y,x in rows)+'\n',{'a.jpg': [*k[:2],1.] if k[2] else [0,0,0]}

def mat_bytes(**values):
    from posereid.synth.sets import write_mat
    with tempfile.TemporaryDirectory() as d:
        write_mat(Path(d)/'a.mat', **values)
        return (Path(d)/'a.mat').read_bytes()

NAMES14 = ['0.jpg','1.jpg','2.jpg']

def mat_file(rng):
    pp = np.array([[rng.uniform(1, 60) for _ in range(28)] for _ in NAMES14])
    at = JOINT_SETS['market14'].index('neck')
    return mat_bytes(pp=pp),{n: [*(pp[i,[at,14+at]]-1),1.] for i,n in enumerate(NAMES14)}

def same_necks(t, truth): return all(np.allclose(t[n][1], v, atol=1e-3) for n,v in truth.items())

def pose_parsers():
    from posereid.pose.files import read_poses
    def reader(fmt, of=lambda p: p, **more):
        "In turn by its name and as found"
        def read(p):
            named = p.stat().st_size%2 or fmt=='yolo'
            return read_poses(of(p), fmt if named else None, **more)
        return read
    def write_images(d): (d/'images.json').write_text(json.dumps(dict(images=coco_images(None))))
    results = lambda p: read_poses(p, 'coco', images=p.parent/'images.json')
    P = lambda *args, **kw: Parser(*args, **{**dict(right=odd_poses, same=same_noses), **kw})
    return [P('openpose', 'op/a_keypoints.json', openpose_file, reader('openpose', lambda p: p.parent)),
            P('coco', 'a.json', coco_file, reader('coco')),
            P('coco_results', 'a.json', result_file, results, beside=write_images),
            P('coco_images', 'images.json', lambda rng: (dict(images=coco_images(rng)), None), results_by(result_file),
              same=lambda t,_: len(t)==3),
            P('alphapose', 'a.json', alphapose_file, reader('alphapose')),
            P('mmpose', 'a.json', mmpose_file, reader('mmpose')),
            P('openpifpaf', 'a.predictions.json', openpifpaf_file, reader('openpifpaf')),
            P('mediapipe', 'a.json', mediapipe_file, reader('mediapipe')),
            P('market_keypoints', 'a.csv', market_file, reader('market'), kind='table', sep=':'),
            P('yolo', 'y/a.txt', yolo_file, reader('yolo', lambda p: p.parent), kind='table', sep=' '),
            P('fdgan', 'f/a.txt', fdgan_file, reader('fdgan', lambda p: p.parent), kind='table', sep=' '),
            P('market14', 'a.mat', mat_file, lambda p: read_poses(p, names=NAMES14), same=same_necks, kind='bytes')]

def results_by(make):
    "A reader of results whose numbers another file explains"
    from posereid.pose.files import read_poses
    rows = make(random.Random(1))[0]
    def read(p):
        (p.parent/'results.json').write_text(json.dumps(rows))
        return read_poses(p.parent/'results.json', 'coco', images=p)
    return read

# --- tables of pictures ---

def picture(path):
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists(): Image.new('RGB', (4,8)).save(path)

OWN = [(f'pics/{p}_{c}.png', p, c, s) for p,s in ((1,'train'),(2,'train'),(3,'query'),(3,'gallery'),(4,'gallery')) for c in (1,2)
       if (s,c) not in (('query',2),('gallery',1))]

def write_own(d):
    for o in OWN: picture(d/o[0])

def own_file(rng):
    return 'path,pid,camid,split\n'+''.join(f'{",".join(map(str, o))}\n' for o in OWN),[o[1] for o in OWN]

def manifest_file(rng):
    rows = [(f'{p}_{k}.png', p, 1, 'train', True, f'src/{p}.png', f'pose/{k}.png', k, '0123456789ab', 0) for p in (1,2) for k in (0,1)]
    head = 'path,pid,camid,split,is_generated,source_path,pose_path,k,generator,seed\n'
    return head+''.join(f'{",".join(map(str, o))}\n' for o in rows),[o[1] for o in rows]

def odd_manifest(df):
    "What no manifest may hold"
    from posereid.data.manifest import SPLITS
    if df.pid.dtype!='int64' or df.camid.dtype!='int64' or df.is_generated.dtype!=bool: return f'types {dict(df.dtypes)}'
    if len(df) and (df.pid.min()<-1 or df.camid.min()<0): return 'odd numbers'
    if not df.split.isin(SPLITS).all(): return 'an odd split'
    if not all(type(o) is str and os.path.isabs(o) and '\0' not in o for o in df.path): return 'odd paths'
    if list(df.index)!=list(range(len(df))): return 'odd rows'
    for c in ('k','seed','seq','frame'):
        if c in df and not ((v := df[c].dropna()).dtype.kind in 'iuf' and (v%1==0).all()): return f'`{c}` is {df[c].dtype}'

def same_pids(df, truth): return df.pid.tolist()==truth

# --- what a run leaves ---

PER_QUERY = 'query,pid,camid,n_good,first_rank,ap_trap,ap_mean,inp\n'

def per_query_file(rng):
    rows = []
    for i in range(6):
        n,first = (0,0) if rng.random()<.1 else (3, rng.choice((1,1,2,5)))
        ap = [f'{rng.random()*(n>0):.6f}' for _ in range(3)]
        rows.append(','.join(map(str, (f'{i//2+1:04d}_c1s1_{i:06d}_00.jpg', i//2+1, 1, n, first, *ap))))
    return PER_QUERY+'\n'.join(rows)+'\n',sum(float(o.split(',')[5]) for o in rows)/6

PROTOCOL = dict(dataset='x', rank1=50., map_trap=40., map_mean=42., n_query=6, n_valid=6, n_gallery=30, protocol='single query, x',
                empty='zero', both={}, cmc=[.5,.7])

def odd_comparison(c):
    t = c.table
    if not all(t[o].between(0, 100).all() for o in 'ab'): return f'scores {t.a.tolist()} and {t.b.tolist()}'
    if not t[['delta','lo','hi']].abs().le(100).all(axis=None) or not t.p.between(0, 1).all(): return 'an odd interval'
    if type(c.protocol) is not str: return 'an odd protocol'

def odd_log(rows):
    rows,last = rows
    if not all(type(o['epoch']) in (int,str) and int(o['epoch'])>=0 for o in rows): return 'odd epochs'
    if not all(np.isfinite(float(v)) for o in rows for v in o.values()): return 'a term is not finite'
    if not all(type(v) is float and np.isfinite(v) for v in last.values()): return 'odd terms'

def log_file(rng):
    rows = [(i, round(rng.random(), 4), round(rng.random(), 4)) for i in range(4)]
    return 'epoch,loss,top1\n'+''.join(f'{",".join(map(str, o))}\n' for o in rows),rows[-1][1]

LINE = 'table,part,row,title,pictures,steps,eps_real,eps_generated,rank1,map_trap,map_mean,seed,world,run,command\n'

def lines_file(rng):
    rows = [('tbl1','',r,f'"{r}, all"',1200,740,0.,'' if r=='control' else .4,round(100*rng.random(), 4),round(100*rng.random(), 4),
             40.5,s,s,f'default-world{s}','posereid_reproduce tbl1') for r in ('control','ours') for s in (1,2)]
    return LINE+''.join(f'{",".join(map(str, o))}\n' for o in rows),[o[9] for o in rows]

def odd_lines(df):
    if not all(type(o) is str for c in ('row','part','run') for o in df[c]): return 'odd texts'
    if not len(df): return ''
    if df.seed.dtype.kind not in 'iu': return f'seeds are {df.seed.dtype}'
    if df.map_trap.dtype.kind not in 'if' or not df.map_trap.dropna().between(0, 100).all(): return 'odd scores'

def weights_of(make, file):
    from posereid.core import save_weights
    save_weights(make(), file)

def run_parsers():
    import pandas as pd
    from posereid.core import RunFolder, parse_json, to_json
    from posereid.data import audit
    from posereid.data.manifest import read_manifest
    from posereid.data.own import read_csv
    from posereid.evaluate.results import paper_context
    from posereid.experiment.engine import score_model
    from posereid.stages.trained import kind_of
    from posereid.experiment.tables import read_lines
    from posereid.metrics.stats import compare_runs
    from posereid.models.dcgan import DCGANGenerator
    from posereid.models.reid import reid_net
    from posereid.stages.fit import last_row, read_log
    from posereid.stages.lsro import DCGANSettings, load_dcgan
    from posereid.stages.reid import ReIDSettings, load_reid
    from posereid.stages.transfer import TransferSettings, load_generator, transfer_model
    plain = lambda o: json.loads(to_json(o))
    small = TransferSettings(width=2, d_width=2, size=(32,16), d_layers=1)
    per_query = per_query_file(random.Random(0))[0]
    def two_runs(d):
        for o in 'ab':
            (d/o).mkdir(exist_ok=True)
            (d/o/'per_query.csv').write_text(per_query)
            (d/o/'per_query.json').write_text(json.dumps(PROTOCOL))
    compare = lambda p: compare_runs(p.parent.parent/'a', p.parent, n_boot=20, n_perm=19)
    net_is = lambda net: '' if all(o.isfinite().all() for o in net.state_dict().values()) and not net.training else 'an odd net'
    settings = dict(reid=ReIDSettings(), data=dict(name='x', n=3))
    def reopen(p):
        run = RunFolder(p.parent, settings)
        return parse_json(run/'settings.json')
    def counts(p):
        return audit._check_counts(audit.count_splits(COUNTED), audit._published('market1501', p.parent, 'auto')[1], COUNTED, {})
    COUNTED = pd.DataFrame(dict(path=['/a.jpg','/b.jpg'], pid=[1,2], camid=[1,2], split=['train','train'], is_generated=False))
    return [
        Parser('own_csv', 'own.csv', own_file, read_csv, odd_manifest, same_pids, 'table', write_own),
        Parser('manifest', 'manifest.csv', manifest_file, lambda p: read_manifest(p.parent), odd_manifest, same_pids, 'table'),
        Parser('per_query_csv', 'b/per_query.csv', per_query_file, compare, odd_comparison,
               lambda c,t: abs(c.table.b.map_trap-100*t)<1e-6, 'table', two_runs),
        Parser('per_query_json', 'b/per_query.json', lambda rng: (PROTOCOL, None), compare, odd_comparison,
               lambda c,t: c.protocol==PROTOCOL['protocol'], beside=two_runs),
        Parser('reid_json', 'reid.json', lambda rng: (dict(n_ids=3, **plain(ReIDSettings(width=2))), None),
               lambda p: (kind_of(p), load_reid(p.parent))[1], net_is, lambda net,t: len([*net.state_dict().values()][-1])==3,
               beside=lambda d: weights_of(lambda: reid_net(3, width=2), d/'reid.safetensors')),
        Parser('generator_json', 'generator.json', lambda rng: (plain(small), None),
               lambda p: (kind_of(p), load_generator(p.parent))[1], net_is,
               beside=lambda d: weights_of(lambda: transfer_model(small).G, d/'G.safetensors')),
        Parser('dcgan_json', 'dcgan.json', lambda rng: (plain(DCGANSettings(width=2, z=3)), None),
               lambda p: load_dcgan(p.parent), net_is, lambda net,t: net.z==3,
               beside=lambda d: weights_of(lambda: DCGANGenerator((64,32), 2, 3), d/'G.safetensors')),
        Parser('log_csv', 'log.csv', log_file, lambda p: (read_log(p), last_row(p)), odd_log, lambda o,t: o[1]['loss']==t, 'table'),
        Parser('counts_json', 'counts.json', lambda rng: (dict(train=dict(pictures=2, people=2, cameras=[1,1]),
               query=dict(pictures=0, people=0)), None), counts, lambda fs: '' if all(type(o.text) is str for o in fs) else 'odd',
               lambda fs,t: all(o.level!='fail' for o in fs)),
        Parser('settings_json', 'settings.json', lambda rng: (dict(settings=plain(settings), provenance=dict(posereid='0')), None),
               reopen, lambda d: '' if d['settings']==plain(settings) else 'other settings were accepted'),
        Parser('metrics_json', 'metrics.json', lambda rng: (dict(n_pictures=12, steps=40, loss=.5, weights='0123'), None),
               lambda p: RunFolder(p.parent, settings).metrics, lambda m: '' if is_plain(m) else 'odd metrics',
               lambda m,t: m['steps']==40, beside=lambda d: RunFolder(d, settings)),
        Parser('scores_json', 'scores.json', lambda rng: (SCORES, None),
               lambda p: score_model(None, None, ReIDSettings(), p.parent),
               lambda m: '' if all(0<=m[k]<=100 and type(m[k]) in (int,float) for k in SCORES if k!='protocol')
               and type(m['protocol']) is str else 'odd scores', lambda m,t: m==SCORES),
        Parser('reproduce_csv', 'tbl1.csv', lines_file, read_lines, odd_lines, lambda df,t: df.map_trap.tolist()==t, 'table'),
        Parser('paper_csv', 'paper.csv', lambda rng: ('table,dataset,method,cite,ours,rank1,map,quoted\n'
               '1,market1501,Basel (R),47,False,73.90,47.78,False\n1,market1501,Ours,,True,,,False\n', None),
               lambda p: paper_context(p, dict(a=('1','Basel (R)'), b=('1','Ours'))),
               lambda d: '' if set(map(type, d.values()))<={str} else 'odd texts',
               lambda d,t: d['a'].startswith('73.90 / 47.78'), 'table')]

SCORES = dict(rank1=50., rank5=70., map_trap=40., map_mean=42., rank1_bn=50., map_trap_bn=40., map_mean_bn=42., rank1_grey=10.,
              map_trap_grey=9., protocol='single query')

def is_plain(o):
    if isinstance(o, dict): return all(map(is_plain, o.values()))
    if isinstance(o, list): return all(map(is_plain, o))
    return type(o) in (str,bool,type(None)) or type(o) in (int,float) and abs(o)<1e309 and o==o

# --- worlds, names, lists, MATLAB tables ---

def world_parser():
    from posereid.synth.world import TINY, WorldSettings, load_world, make_world
    home = make_world(WorldSettings(**TINY))
    def beside(d):
        for o in home.iterdir():
            if o.name!='world.json': (d/o.name).symlink_to(o)
    truth = load_world(home)
    def right(w):
        if w.target.path.map(os.path.basename).tolist()!=truth.target.path.map(os.path.basename).tolist(): return 'other pictures'
        if w.cast.settings!=truth.cast.settings: return f'another world: {w.cast.settings}'
    return Parser('world_json', 'world.json', lambda rng: (json.loads((home/'world.json').read_text()), None),
                  lambda p: load_world(p.parent), right, beside=beside)

NAMES = dict(market='0002_c1s1_000451_03.jpg', duke='0001_c2_f0046182.jpg', cuhk03='0001_c1_1.png', mars='0001C1T0001F001.jpg',
             msmt17='0000_000_01_0303morning_0015_0.jpg')

def name_parsers():
    from posereid.data import market
    for kind,name in NAMES.items():
        f = getattr(market, f'parse_{kind}_name')
        yield Parser(f'name_{kind}', 'name.txt', lambda rng, name=name: (name, None),
                     lambda p, f=f: f(p.read_bytes().decode('utf-8', 'surrogateescape')),
                     lambda o: '' if all(type(v) is int and -1<=v<10**18 or k=='tracklet' and type(v) is str
                                         for k,v in o._asdict().items()) else f'odd numbers {o}', kind='bytes')

def list_parser():
    from posereid.data.market import read_msmt17
    files = [f'{p:04d}/{p:04d}_{k:03d}_0{c}_0303morning_0015_{k}.jpg' for p in (0,1) for k,c in ((0,1),(1,2))]
    def beside(d):
        for half in ('train','test'):
            for o in files: picture(d/half/o)
        for o in ('query','gallery'): (d/f'list_{o}.txt').write_text(''.join(f'{f} {f[:4]}\n' for f in files))
    return Parser('msmt17_list', 'list_train.txt', lambda rng: (''.join(f'{f} {int(f[:4])}\n' for f in files), [1,1,2,2]),
                  lambda p: read_msmt17(p.parent, ('train',)), odd_manifest, same_pids, 'table', beside, ' ')

def table_parsers():
    from posereid.data.cuhk03 import read_cuhk03_split
    from posereid.data.mars import read_mars_tracks
    tracks = np.array([[1,3,1,1],[4,5,1,2],[6,9,2,1]], np.int32)
    def beside(d):
        for o in ('train','test'): (d/'info'/f'tracks_{o}_info.mat').write_bytes(mat_bytes(**{f'track_{o}_info':tracks}))
        (d/'info'/'query_IDX.mat').write_bytes(mat_bytes(query_IDX=np.array([[1]], np.int32)))
    names = [f'1_001_{c}_0{k}.png' for c in (1,2) for k in (1,2)] + [f'1_002_{c}_01.png' for c in (1,2)]
    split = dict(filelist=names, labels=np.array([[1,1,1,1,2,2]], 'u2'), camId=np.array([[1,1,2,2,1,2]], 'u1'),
                 train_idx=np.array([[1,2,3,4]], 'u1'), query_idx=np.array([[5]], 'u1'), gallery_idx=np.array([[6]], 'u1'))
    whole = lambda df: '' if all(df[c].dtype.kind in 'iu' for c in ('pid','camid')) else 'odd numbers'
    return [Parser('mars_tracks', 'info/tracks_test_info.mat', lambda rng: (mat_bytes(track_test_info=tracks), 6),
                   lambda p: read_mars_tracks(p.parent.parent), whole, lambda df,t: len(df)==t, 'bytes', beside),
            Parser('cuhk03_split', 'a.mat', lambda rng: (mat_bytes(**split), 6), read_cuhk03_split, whole,
                   lambda df,t: len(df)==t, 'bytes')]

def estimate_parsers():
    "What an interrupted estimation of poses leaves"
    from posereid.pose.estimate import KnownPoses, estimate_folder
    from posereid.pose.table import PoseTable
    table = PoseTable(['0.png','1.png'], torch.full((2,18,3), .5))
    est = KnownPoses(table)
    info = dict(estimator=str(est), pictures=1, done=False)
    def beside(d):
        for o in table.names: picture(d/'p'/o)
    line = lambda n: json.dumps(dict(name=n, joints=[[1.,2.,.5]]*18))+'\n'
    def read(p):
        "Goes on from these files; afterwards they are as they were"
        for o in ('o.csv','o.csv.part' if p.name.endswith('.json') else 'o.csv.json','o.png'): (p.parent/o).unlink(missing_ok=True)
        if p.name.endswith('.part'): (p.parent/'o.csv.json').write_text(json.dumps(info))
        return estimate_folder(p.parent/'p', p.parent/'o.csv', est, sheet=False)
    return [Parser('poses_info', 'o.csv.json', lambda rng: (info, 2), read, odd_poses, lambda t,n: len(t)==n, beside=beside),
            Parser('poses_part', 'o.csv.part', lambda rng: (line('0.png'), 2), read, odd_poses,
                   lambda t,n: len(t)==n and t['0.png'][0].tolist()==[1,2,.5], 'bytes', beside=beside)]

def parsers(only=()):
    "All parsers, or those of these names"
    res = [*pose_parsers(), *run_parsers(), world_parser(), *name_parsers(), list_parser(), *table_parsers(), *estimate_parsers()]
    names = [o.name for o in res]
    for o in only:
        if o not in names: raise SystemExit(f"no parser {o}; there are {', '.join(names)}")
    return [o for o in res if not only or o.name in only]

# --- the command ---

def main(args=None):
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--n', type=int, default=1000, help='inputs a parser')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--only', nargs='*', default=(), help='names of parsers')
    p.add_argument('--minutes', type=float, help='longest time of a parser')
    p.add_argument('--log', type=Path, help='CSV to write')
    p.add_argument('--show', type=int, help='print this input of each parser, and what becomes of it')
    a = p.parse_args(args)
    rows = []
    for parser in parsers(a.only):
        if a.show is not None:
            with tempfile.TemporaryDirectory() as d:
                parser.prepare(Path(d))
                data = parser.damaged(rng_of(parser.name, a.seed, a.show))
                print(parser.name, data[:3000], *outcome(parser, data), sep='\n')
            continue
        res,faults = fuzz(parser, a.n, a.seed, a.minutes)
        rows.append(res)
        print(*(f'{k} {v}' for k,v in res.items()), sep=', ', flush=True)
        for i,said in faults: print(f'  input {i}: {said}', flush=True)
        if a.log:
            with open(a.log, 'w', newline='', encoding='utf-8') as f:
                command = f'python tests/fuzz.py --n {a.n} --seed {a.seed}'
                if a.minutes: command += f' --minutes {a.minutes:g}'
                out = csv.DictWriter(f, [*res,'command'], lineterminator='\n')
                out.writeheader(); out.writerows(dict(o, command=command) for o in rows)
    return sum(o['faults'] for o in rows)

if __name__=='__main__': sys.exit(bool(main()))
