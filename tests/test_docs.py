"The site without Quarto: every notebook is processed as for the site, and the pages are read"
import ast, json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest, yaml

from posereid.docs import readme

ROOT = Path(__file__).parents[1]
NBS = ROOT/'nbs'
NOTEBOOKS = sorted(o for o in NBS.rglob('*.ipynb')
                   if not any(p[0] in '._' for p in o.relative_to(ROOT).parts))
CONFIG = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))

def show(nb): return nb.relative_to(NBS).as_posix()
def cells(nb): return json.loads(nb.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def prose(nb):
    return re.sub(r'```.*?```|`[^`\n]*`', '',
                  '\n\n'.join(source(c) for c in cells(nb) if c['cell_type']=='markdown'),
                  flags=re.S)
def directive(cell, key):
    return next((m[1] for m in [re.search(rf'^#\|\s*{key}\s*:\s*(.+)$', source(cell), re.M)] if m),
                None)

# --- the site, made in a copy ---

def run(code, cwd):
    env = {**os.environ, 'PYTHONPATH':str(cwd), 'OMP_NUM_THREADS':'1', 'PYTHONWARNINGS':'ignore'}
    env.pop('IN_TEST', None)
    res = subprocess.run([sys.executable, '-c', code], cwd=cwd, env=env, capture_output=True,
                         text=True, stdin=subprocess.DEVNULL)
    assert res.returncode==0, res.stderr[-3000:]


@pytest.fixture(scope='session')
def copy(tmp_path_factory):
    "A copy of the repository, exported anew"
    root = tmp_path_factory.mktemp('site')
    for o in ('nbs','posereid'):
        shutil.copytree(ROOT/o, root/o,
                        ignore=shutil.ignore_patterns('__pycache__','.ipynb_checkpoints','*_files'))
    for o in ('settings.ini','_quarto.yml','CHANGELOG.md'): shutil.copy(ROOT/o, root/o)
    run('from nbdev.doclinks import nbdev_export; nbdev_export()', root)
    return root


@pytest.fixture(scope='session')
def proc(copy):
    "The processed pages"
    run('from nbdev.serve import proc_nbs; proc_nbs(n_workers=2, force=True)', copy)
    return copy/'_proc'


def test_modules_are_as_exported(copy):
    for py in sorted((copy/'posereid').rglob('*.py')):
        old = ROOT/py.relative_to(copy)
        if py.name=='_modidx.py' and not old.exists(): continue
        assert old.exists() and old.read_bytes()==py.read_bytes(), (f'{py.relative_to(copy)} is '
            'not as nbdev_export makes it')


def front_matter(page):
    first = cells(page)[0]
    assert first['cell_type']=='raw', f'{page.name} has no front matter'
    return yaml.safe_load(source(first).strip().strip('-'))


def test_every_notebook_is_a_page(proc):
    for nb in NOTEBOOKS:
        page = proc/nb.relative_to(NBS)
        assert page.exists(), f'{show(nb)} is no page'
        fm = front_matter(page)
        assert (fm.get('title') and fm.get('output-file')
                and fm.get('description')), f'{show(nb)}: {fm}'
    assert (proc/'_quarto.yml').exists() and (proc/'styles.css').exists()


def symbols(copy):
    "Page and name of everything public"
    found = {}
    exec((copy/'posereid/_modidx.py').read_text(encoding='utf-8'), found)
    for module,syms in found['d']['syms'].items():
        for full,(link,_) in syms.items():
            name = full.removeprefix(module+'.')
            if '.' not in name and not name.startswith('_'): yield module, name


def shown(page):
    return '\n\n'.join(''.join(o['data'].get('text/markdown', '')) for c in cells(page)
                     if c['cell_type']=='code' for o in c.get('outputs', []) if 'data' in o)


def test_every_public_symbol_is_shown_with_its_table(proc, copy):
    pages = {front_matter(p)['output-file']: shown(p) for p in proc.rglob('*.ipynb')}
    for module,name in symbols(copy):
        text = pages[module.removeprefix('posereid.')+'.html']
        assert re.search(rf'^### {name}$', text, re.M), f'{module}.{name} is not shown on its page'
    for module in {m for m,_ in symbols(copy)}:
        text = pages[module.removeprefix('posereid.')+'.html']
        documented = re.search(r'^\s+\w+:?[^\n]*# ', (copy/f"{module.replace('.', '/')}.py").read_text(
            encoding='utf-8'), re.M)
        assert not documented or '| **Details** |' in text, (f'the page of {module} has no table '
            'of parameters')


def texts(page):
    "All Markdown of a processed page"
    for c in cells(page):
        if c['cell_type']=='markdown': yield source(c)
        yield from (''.join(o['data'].get('text/markdown', '')) for o in c.get('outputs', [])
                    if 'data' in o)


FENCE = re.compile(r'^(`{3,})[^\n]*\n(.*?)^\1', re.M|re.S)

def test_no_link_shows_as_brackets(proc):
    "Code has no links, and no link lies within another"
    for page in proc.rglob('*.ipynb'):
        for text in texts(page):
            raw = [o[2] for o in FENCE.finditer(text) if re.search(r'\]\(https?:', o[2])]
            assert not raw, f'{page.name}: a link in code: {raw[0][:200]}'
            nested = re.findall(r'(?<!!)\[[^\[\]]*\[[^\[\]]*\]\([^)]*\)[^\[\]]*\]\([^)]*\)',
                                FENCE.sub('', text))
            assert not nested, f'{page.name}: a link in a link: {nested[0]}'


def test_parameter_tables_have_four_columns(proc):
    "No bar of a type ends a cell, and the signature leaves comments to the table"
    n = 0
    for page in proc.rglob('*.ipynb'):
        for table in re.findall(r'^\|  +\| \*\*Type\*\*.*(?:\n\|.*)*', shown(page), re.M):
            n += 1
            rows = [re.sub(r'`[^`\n]*`', '', o) for o in table.splitlines()]
            wide = [len(re.findall(r'(?<!\\)\|', o)) for o in rows]
            odd = [o for o,n in zip(rows, wide) if n!=wide[0]]
            assert not odd, f'{page.name}: {odd}'
        for text in texts(page):
            if '| **Details** |' not in text: continue # what has no table keeps its comment
            sig = re.search(r'```python\n(.*?)```', text, re.S)[1]
            assert not re.search(r'\s# ', sig), f'{page.name}: {sig}'
    assert n>300


def test_exported_source_is_folded(proc):
    for page in proc.rglob('*.ipynb'):
        assert not any(re.search(r'^#\| code-fold: show', source(c), re.M)
                       for c in cells(page)), page.name


def test_tables_of_results_are_tidy(proc):
    "Intervals do not break, the index's name has no row of its own, nothing is a widget"
    for page in (proc/'experiments').glob('*.ipynb'):
        for c in cells(page):
            for o in c.get('outputs', []):
                html = ''.join(o.get('data', {}).get('text/markdown', ''))
                assert not re.search(r'>[^<]*\d \[[+−-]?\d[^<]*\]', html), page.name
                assert 'text/html' not in o.get('data', {}), page.name
                assert not re.search(r'(?:<th></th>\s*){2,}</tr>', html), page.name

# --- what is written in the notebooks ---

def is_shown(cell):
    return not re.search(r'^#\|\s*(hide$|include: *false|output: *false)', source(cell), re.M)

def draws(cell):
    "Does a cell show a figure or a table?"
    data = [o.get('data', {}) for o in cell.get('outputs', [])]
    return (any(k.startswith('image/') for o in data for k in o)
            or any('<table' in ''.join(o.get('text/html', '')) for o in data))

def uncited(nb):
    cited = set(re.findall(r'@((?:fig|tbl)-[\w-]*\w)', prose(nb)))
    labels = ({directive(c, 'label') for c in cells(nb) if c['cell_type']=='code'}-{None}
              | set(re.findall(r'\{#([\w-]+)', prose(nb))))
    return {o for o in labels if o.startswith(('fig-','tbl-'))}-cited

def unlabelled(nb, what=draws):
    return [i for i,c in enumerate(cells(nb)) if c['cell_type']=='code' and is_shown(c) and what(c)
            and not (directive(c, 'label') or '').startswith(('fig-','tbl-'))]

def pictured(cell):
    return any(k.startswith('image/') for o in cell.get('outputs', []) for k in o.get('data', {}))


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=show)
def test_figures_and_tables_are_cited(nb):
    "Each labelled figure and table is cited in the text of its page"
    lost = uncited(nb)
    assert not lost, (f'{show(nb)}: no text cites {sorted(lost)}; write "(@{min(lost)})" after the '
                      'sentence that it supports')


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=show)
def test_pictures_have_labels(nb):
    bare = unlabelled(nb, pictured)
    assert not bare, f'{show(nb)}: cells {bare} show a picture without label and caption'


@pytest.mark.parametrize('nb', [o for o in NOTEBOOKS
                                if o.parent.name in ('experiments','explanations','benchmarks')],
                         ids=show)
def test_figures_and_tables_of_pages_have_labels(nb):
    bare = unlabelled(nb)
    assert not bare, f'{show(nb)}: cells {bare} show a figure or a table without label and caption'


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=show)
def test_references_and_figures(nb):
    labels = [directive(c, 'label') for c in cells(nb) if c['cell_type']=='code']
    labels = [o for o in labels if o] + re.findall(r'\{#([\w-]+)', prose(nb))
    assert len(labels)==len(set(labels)), f'{show(nb)}: a label twice among {labels}'
    lost = set(re.findall(r'@((?:fig|tbl|eq)-[\w-]+)', prose(nb)))-set(labels)
    assert not lost, f'{show(nb)} refers to {lost}, which no label of the page answers'
    for c in cells(nb):
        label = c['cell_type']=='code' and directive(c, 'label') or ''
        data = [k for o in c.get('outputs', []) for k in o.get('data', {})]
        assert '_' not in label, f'{show(nb)}: {label} has an underscore'
        if label.startswith('fig-'):
            assert directive(c, 'fig-cap') and directive(c, 'fig-alt'), (f'{show(nb)}: {label} '
                'needs a caption and an alternative text')
            assert any(k.startswith('image/') for k in data), (f'{show(nb)}: {label} has no saved '
                'picture; execute the notebook')
        if label.startswith('tbl-'):
            assert directive(c, 'tbl-cap') and data, (f'{show(nb)}: {label} needs a caption and a '
                                                      'saved table')


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=show)
def test_imports_have_a_cell_of_their_own(nb):
    "Building the site runs whatever cell imports, without the cells before it"
    if 'default_exp' not in nb.read_text(encoding='utf-8'): return
    for i,c in enumerate(cells(nb)):
        marks = re.findall(r'^#\|\s*([\w-]+)', source(c), re.M)
        if (c['cell_type']!='code' or {'export','exports','exporti'}&{*marks}
            or directive(c, 'eval')=='false'):
            continue
        kinds = {type(o)
                 for o in ast.walk(ast.parse(re.sub(r'^\s*[%!].*', '', source(c), flags=re.M)))}
        mixed = kinds & {ast.Import, ast.ImportFrom} and kinds & {ast.Expr, ast.Assign}
        assert not mixed, (f'{show(nb)}, cell {i}: imports beside other code; give them a cell of '
                           f'their own\n{source(c)[:200]}')


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=show)
def test_links_between_pages(nb):
    for link in re.findall(r'\]\((?!\w+:|[/#])([^)\s#]+)', prose(nb)):
        assert (nb.parent/link).exists(), f'{show(nb)} links to {link}, which is not there'


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=show)
def test_title_and_subtitle(nb):
    first = cells(nb)[0]
    lines = [o for o in source(first).splitlines() if o.strip()]
    assert (first['cell_type']=='markdown' and lines[0].startswith('# ')
            and lines[1].startswith('> ')), f'{show(nb)}: title and subtitle'

# --- configuration ---

def entries(contents):
    "What the sidebar names, as globs"
    for o in [contents] if isinstance(contents, str) else contents:
        if isinstance(o, str): yield o
        else: yield from entries(o['contents'])


def test_sidebar_has_every_notebook_once():
    globs = list(entries(CONFIG['website']['sidebar']['contents']))
    hits = [o for g in globs for o in NBS.glob(g) if o.suffix=='.ipynb']
    assert len(hits)==len(set(hits)), 'a notebook stands twice in the sidebar of _quarto.yml'
    lost = {show(o) for o in set(NOTEBOOKS)-set(hits)}
    assert not lost, f'not in the sidebar of _quarto.yml: {sorted(lost)}'


def test_sidebar_names_only_what_is_there():
    later = set(re.findall(r'^\s*- (\S+)\s+# arriving',
                           (ROOT/'_quarto.yml').read_text(encoding='utf-8'), re.M))
    globs = list(entries(CONFIG['website']['sidebar']['contents']))
    dead = [g for g in globs if '*' not in g and g not in later and not (NBS/g).exists()]
    assert not dead, f'in the sidebar of _quarto.yml, but not there: {dead}'


def test_quarto_files_fit_nbdev():
    stub = yaml.safe_load((NBS/'_quarto.yml').read_text(encoding='utf-8'))
    assert stub=={'metadata-files':['../_quarto.yml','nbdev.yml']}
    settings = dict(re.findall(r'^(\w+) = (.*)$',
                               (ROOT/'settings.ini').read_text(encoding='utf-8'), re.M))
    project = CONFIG['project']
    assert project['type']=='website' and project['output-dir']==settings['doc_path']
    assert all(list(NBS.glob(o)) for o in project['resources'])
    html = CONFIG['format']['html']
    for o in (html['include-after-body'], *(t[1] for t in html['theme'].values()),
              CONFIG['website']['favicon'], CONFIG['website']['image']):
        assert (NBS/o).exists(), o
    assert (settings['custom_sidebar']=='True'
            and settings['renderer']=='posereid.docs.TableRenderer')
    assert not {'title','description','site-url','repo-url',
                'repo-branch'}&set(CONFIG['website']), 'these come from settings.ini'
    assert (NBS/CONFIG['format']['html']['css']).exists()

# --- README ---

README = (ROOT/'README.md').read_text(encoding='utf-8')
RUN,TEST = ('pip install -e . && posereid_run',
            "pip install -e '.[dev]' && nbdev_test && pytest -q tests")


def test_readme_is_fresh():
    assert README==readme(NBS/'index.ipynb'), ('run: python -c "from posereid.docs import '
                                               'write_readme; write_readme()"')


def test_readme_holds_the_two_commands():
    fenced = [l for block in re.findall(r'^```\w*\n(.*?)^```', README, re.S|re.M)
              for l in block.splitlines()]
    assert fenced.count(RUN)==1 and fenced.count(TEST)==1
    assert [l for l in README.splitlines()
            if l.startswith("pip install -e '.[dev]'")]==[TEST], 'what .ci/run looks for'


def test_readme_links_are_there():
    for link in re.findall(r'\]\((?!\w+:|[/#])([^)\s#]+)', README):
        assert (ROOT/link).exists(), f'README.md links to {link}'


def test_quarto_syntax_stays_out_of_the_readme():
    assert not re.search(r'^:::|\{#|\{\{<|@(fig|tbl|eq)-|^#\|', README, re.M)


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=show)
def test_directives_are_yaml(nb):
    "Quarto reads them as YAML: a caption with a colon wants quotes"
    for i,c in enumerate(cells(nb)):
        if c['cell_type']!='code': continue
        for key,value in re.findall(r'^#\| *([\w-]+): (.*)$', source(c), re.M):
            try: read = yaml.safe_load(f'{key}: {value}')
            except yaml.YAMLError: read = None
            assert read and (not key.endswith(('-cap','-alt')) or isinstance(read[key], str)), (
                f'{show(nb)}, cell {i}: {key} is no YAML; put its text in quotes')
