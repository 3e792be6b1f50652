"The house rules that no notebook can see by itself: who imports whom, what lies at the top level, how heavy a page may be"
import ast, base64, configparser, importlib.metadata, json, re, subprocess, sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LIB = ROOT/'posereid'
FLOORS = (['core'], ['imagefiles','matlab','records','many'], ['pose','models','losses','metrics'], ['data'],
          ['synth','evaluate'], ['stages'], ['methods','search','deploy'], ['experiment'], ['cli','docs'], ['use'], ['all'])
FLOOR = {room:i for i,rooms in enumerate(FLOORS) for room in rooms}
TOP = {'nbs','posereid','settings.ini','setup.py','_quarto.yml','tests','README.md','LICENSE',
       '.gitignore','.ci',
       'MANIFEST.in','CONTRIBUTING.md','CHANGELOG.md','CITATION.cff','.gitattributes','.gitconfig','.github'}

MODULES = sorted(o for o in LIB.rglob('*.py') if o.stem not in ('__init__','_modidx'))
NOTEBOOKS = sorted(o for o in (ROOT/'nbs').rglob('*.ipynb')
                   if not any(p[0] in '._' for p in o.relative_to(ROOT).parts))

config = configparser.ConfigParser(delimiters=['='])
config.read(ROOT/'settings.ini', encoding='utf-8')
CFG = config['DEFAULT']


def name_of(py): return '.'.join(py.relative_to(ROOT).with_suffix('').parts)
def tree_of(py): return ast.parse(py.read_text(encoding='utf-8'))
def cells(nb): return json.loads(nb.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def show(nb): return nb.relative_to(ROOT).as_posix()

# --- layers ---

def imports(tree, module):
    "Absolute names of everything that `module` imports, wherever in its code"
    for o in ast.walk(tree):
        if isinstance(o, ast.Import): yield from (a.name for a in o.names)
        if isinstance(o, ast.ImportFrom):
            base = module.split('.')[:-o.level] if o.level else []
            full = '.'.join([*base, *([o.module] if o.module else [])])
            yield from ([f'{full}.{a.name}' for a in o.names] if full=='posereid' else [full])


def breaches(tree, module):
    "What `module` imports and may not"
    room = module.split('.')[1]
    for full in imports(tree, module):
        top,*rest = full.split('.')
        if (top=='posereid' and rest and rest[0] in FLOOR and rest[0]!=room
            and FLOOR[rest[0]]>=FLOOR[room]):
            yield full
        if top=='fastai' and FLOOR[room]<FLOOR['stages'] and module!='posereid.data.block':
            yield full
        if top=='pandas' and not pandas_allowed(module): yield full


def pandas_allowed(module):
    room = module.split('.')[1]
    return (FLOOR[room]>=FLOOR['data'] and room!='synth'
            or module in ('posereid.metrics.stats','posereid.synth.world'))


@pytest.mark.parametrize('py', MODULES, ids=name_of)
def test_layers(py):
    assert py.relative_to(LIB).parts[0].removesuffix('.py') in FLOOR, f'{py} is in no known room'
    bad = list(breaches(tree_of(py), name_of(py)))
    assert not bad, f'{name_of(py)} imports {bad}: only rooms of a lower floor may be imported'


@pytest.mark.parametrize('module,code,bad', [
    ('posereid.pose.draw',
     'from ..core import x\nfrom .joints import y\nfrom posereid.pose.bank import z', []),
    ('posereid.pose.draw', 'from ..data.block import x', ['posereid.data.block']),
    ('posereid.losses.identity', 'from ..models import reid', ['posereid.models']),
    ('posereid.core', 'from . import __version__\nfrom . import cli', ['posereid.cli']),
    ('posereid.data.layouts', 'def f():\n    import fastai.vision.all', ['fastai.vision.all']),
    ('posereid.data.block', 'from fastai.data.core import DataLoaders', []),
    ('posereid.synth.render', 'import pandas as pd', ['pandas'])])
def test_the_layer_test(module, code, bad): assert list(breaches(ast.parse(code), module)) == bad

# --- notebooks and modules ---

def number(nb): return int(nb.name[:2])


def numbers():
    "Module → number of its notebook"
    return {f'posereid.{m}': number(nb) for nb in NOTEBOOKS for m in default_exp(nb)}


def upward(tree, module, known):
    "Imports from notebooks with the same or a higher number"
    return [o for o in imports(tree, module) if o in known and known[o]>=known[module]]


@pytest.mark.parametrize('py', MODULES, ids=name_of)
def test_imports_come_from_lower_numbers(py):
    "So the pages can be read in the order of their numbers"
    assert not upward(tree_of(py), name_of(py), numbers())


def test_the_test_of_numbers():
    known = {'posereid.a.b':10, 'posereid.a.c':11}
    assert upward(ast.parse('from .c import x'), 'posereid.a.b', known)==['posereid.a.c']
    assert upward(ast.parse('def f():\n    from posereid.a.c import x'), 'posereid.a.b',
                  known)==['posereid.a.c']
    assert upward(ast.parse('from .b import x'), 'posereid.a.c', known)==[]


def public(py):
    "Names that a module exports"
    for o in tree_of(py).body:
        if isinstance(o, ast.Assign) and getattr(o.targets[0], 'id', '')=='__all__':
            return ast.literal_eval(o.value)
    return []


def test_a_name_has_one_home():
    homes = {}
    for py in MODULES:
        if name_of(py)!='posereid.all':
            for o in public(py): homes.setdefault(o, []).append(name_of(py))
    assert not {k:v for k,v in homes.items() if len(v)>1}


def test_all_holds_all():
    import posereid.all as everything
    below = [py for py in MODULES if name_of(py).split('.')[1] not in ('cli','docs','use','all')]
    assert not [f'{name_of(py)}.{o}' for py in below for o in public(py)
                if not hasattr(everything, o)]

def default_exp(nb):
    found = [re.search(r'^#\|\s*default_exp\s+(\S+)', source(c), re.M) for c in cells(nb)
             if c['cell_type']=='code']
    return [m[1] for m in found if m]


FASTAI = {f'posereid.{o}' for o in ('evaluate.protocol','evaluate.features','stages','methods','search',
                                    'deploy','experiment','cli','use','all','data.block')} | {'fastai'}

@pytest.mark.parametrize('nb', [o for o in NOTEBOOKS if o.parent.name=='nbs' and o.name[:2].isdigit()
                                and number(o)<62], ids=show)
def test_low_pages_leave_fastai_out(nb):
    "A process tests one page after another, and with fastai a tensor no longer equals a list"
    for c in cells(nb):
        if c['cell_type']!='code' or source(c).startswith('%'): continue
        brings = [o for o in imports(ast.parse(source(c)), 'posereid.page')
                  for f in FASTAI if o==f or o.startswith(f'{f}.')]
        assert not brings, f'{show(nb)} imports {brings[0]}: pages below 62 do without fastai'


def test_one_notebook_is_one_module():
    made = {}
    for nb in NOTEBOOKS:
        exps = default_exp(nb)
        assert len(exps)<=1, f'{show(nb)} has {len(exps)} default_exp'
        for o in exps:
            assert o not in made, f'{show(nb)} and {made.get(o)} both export {o}'
            assert nb.stem.split('_', 1)[1]==o, (f'{show(nb)} exports {o}; file and module bear '
                                                 'one name')
            made[o] = show(nb)
    orphans = {name_of(py).removeprefix('posereid.') for py in MODULES}-set(made)
    assert not orphans, f'modules without a notebook: {orphans}'


def is_export(cell):
    return cell['cell_type']=='code' and re.search(r'^#\|\s*exports?\b', source(cell), re.M)


PICTURE_KB,PAGE_KB = 200,700 # of a picture, in a notebook or beside it; of a notebook

@pytest.mark.parametrize('nb', NOTEBOOKS, ids=show)
def test_page(nb):
    size = nb.stat().st_size
    assert size<=PAGE_KB*1024, f'{show(nb)} is {size//1024} KB'
    text = nb.read_text(encoding='utf-8')
    assert 'skip_exec' not in text and 'skip_showdoc' not in text, f'{show(nb)} is skipped whole'
    assert not re.search(r'(?<![\w.])/work/|\.\./shared|/home/|/root/',
                         text), f'{show(nb)} names a place of one machine'
    for i,c in enumerate(cells(nb)):
        lines = [l for l in source(c).splitlines() if l.strip() and not l.startswith('#|')]
        assert not is_export(c) or len(lines)<=45, (f'{show(nb)}, cell {i}: an export cell of '
                                                    f'{len(lines)} lines')
        for o in c.get('outputs', []):
            assert o['output_type']!='error', f'{show(nb)}, cell {i}: an error is saved'
            png = ''.join(o.get('data', {}).get('image/png', ''))
            kb = len(base64.b64decode(png))/1024
            assert kb<=PICTURE_KB, f'{show(nb)}, cell {i}: a PNG of {kb:.0f} KB'


def test_picture_files():
    big = [show(o) for o in (ROOT/'nbs').rglob('*.png') if o.stat().st_size>PICTURE_KB*1024]
    assert not big, f'pictures of more than {PICTURE_KB} KB: {big}'

# --- code ---

def functions(tree):
    "Public functions, and public methods and __init__ of public classes"
    for o in tree.body:
        if isinstance(o, ast.FunctionDef) and not o.name.startswith('_'): yield o.name, o
        if isinstance(o, ast.ClassDef) and not o.name.startswith('_'):
            yield from ((f'{o.name}.{f.name}', f) for f in o.body if isinstance(f, ast.FunctionDef)
                        and (f.name=='__init__' or not f.name.startswith('_')))


def is_dataclass(o): return any('dataclass' in ast.unparse(d) for d in o.decorator_list)


def undocumented(py):
    "Public arguments and dataclass fields that have no comment beside them"
    text,tree = py.read_text(encoding='utf-8').splitlines(),tree_of(py)
    bare = (lambda o:
            '#' not in text[o.end_lineno-1][o.end_col_offset if o.lineno!=o.end_lineno else 0:]
            and '#' not in text[o.lineno-1][o.col_offset:])
    for name,f in functions(tree):
        args = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs]
        own = {'self','cls'} if '.' in name else set()
        if any(ast.unparse(d).startswith('patch') for d in f.decorator_list):
            name,own = f'{ast.unparse(args[0].annotation)}.{name}',{args[0].arg}
        yield from (f'{name}({a.arg})' for a in args if a.arg not in own and bare(a))
    for c in tree.body:
        if isinstance(c, ast.ClassDef) and is_dataclass(c) and not c.name.startswith('_'):
            yield from (f'{c.name}.{o.target.id}'
                        for o in c.body if isinstance(o, ast.AnnAssign) and bare(o))


@pytest.mark.parametrize('py', MODULES, ids=name_of)
def test_every_public_argument_is_documented(py):
    bad = list(undocumented(py))
    assert not bad, f'{name_of(py)}: no comment beside {", ".join(bad)}'


@pytest.mark.parametrize('py', MODULES, ids=name_of)
def test_no_print_and_no_star(py):
    for o in ast.walk(tree_of(py)):
        star = isinstance(o, ast.ImportFrom) and o.names[0].name=='*'
        assert not star or name_of(py)=='posereid.all', f'{name_of(py)}, line {o.lineno}: import *'
        if isinstance(o, ast.Call) and isinstance(o.func, ast.Name) and o.func.id=='print':
            assert name_of(py)=='posereid.cli', f'{name_of(py)}, line {o.lineno}: print'

def public_definitions(code):
    "Names of the functions and classes that a cell shows on the site"
    return [o.name for o in ast.parse(code).body
            if isinstance(o, (ast.FunctionDef,ast.ClassDef))
            and (not o.name.startswith('_') or o.name.startswith('__'))]


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=show)
def test_an_export_cell_has_one_public_definition(nb):
    "The site shows what a cell defines below it; of several, it would turn the order round"
    for i,c in enumerate(cells(nb)):
        names = public_definitions(source(c)) if is_export(c) else []
        assert len(names)<2, f'{show(nb)}, cell {i}: {names} want a cell each'


def long_lines(nb):
    "Lengths of the lines of code of a notebook"
    return [len(l) for c in cells(nb) if c['cell_type']=='code' for l in source(c).splitlines()
            if l.strip()]


def test_code_fits_the_column_of_the_site():
    "Ninety-nine of a hundred lines end before column 100, so that the site shows them without scrolling sideways"
    lengths = sorted(o for nb in NOTEBOOKS for o in long_lines(nb))
    assert lengths[int(.99*len(lengths))]<=100, (f'{sum(o>100 for o in lengths)} of {len(lengths)} '
                                                 'lines of code are longer than 100')

# --- top level, pins, installation ---

def git(*args):
    res = subprocess.run(['git', '-C', ROOT, *args], capture_output=True, text=True)
    return res.stdout if res.returncode==0 else None


def test_top_level():
    listed = git('ls-files', '--cached', '--others', '--exclude-standard')
    if listed is None: pytest.skip('not a git checkout')
    have = {o.split('/')[0] for o in listed.splitlines()}
    assert have<=TOP, f'not of the house: {have-TOP}'
    assert {o for o in TOP if (ROOT/o).exists()}==TOP


def test_installed_versions_fit_the_pins():
    for o in map(Requirement, CFG['requirements'].split()):
        version = importlib.metadata.version(o.name)
        assert o.specifier.contains(version, prereleases=True), (f'{o} is asked for, but {version} '
            'is installed')


def test_pins_import_without_a_warning():
    code = ('import posereid.core, torch, torchvision, nbdev, fastcore, execnb, safetensors, PIL, '
            'pandas, seaborn, matplotlib\nfrom fastai.vision.all import Learner')
    res = subprocess.run([sys.executable, '-W', 'default', '-c', code], cwd=ROOT,
                         capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    assert 'torch.jit' not in res.stderr and 'chained_assignment' not in res.stderr, res.stderr


def test_commands_are_declared():
    scripts = dict(o.split('=') for o in CFG['console_scripts'].split())
    made = {name: f'posereid.{py}:{name}' for py in ('cli','use') for name,_ in functions(tree_of(LIB/f'{py}.py'))
            if name.startswith('posereid_')}
    assert scripts==made, f'settings.ini and the commands differ: {scripts.items() ^ made.items()}'


def test_the_log_of_pythons():
    "`tests/pythons.py` has installed wheel and sdist on every Python that is promised, with equal results"
    import csv
    log = ROOT/'tests/pythons_log.csv'
    if not log.exists(): pytest.skip('no log yet')
    lines = list(csv.DictReader(log.open(encoding='utf-8')))
    pythons = {'.'.join(o['python'].split('.')[:2]) for o in lines}
    assert CFG['min_python'] in pythons and len(pythons)>=4
    assert {o['smoke'] for o in lines}=={'ok'} and {Path(o['installed']).suffix for o in lines}=={'.whl','.gz'}
