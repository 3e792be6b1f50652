"Pages that only read what was measured say the same when they are run again"
import json
import re
from pathlib import Path

import pandas as pd, pytest
from execnb.nbio import read_nb
from execnb.shell import CaptureShell
from posereid.docs import kept_captions
from posereid.experiment.tables import TABLES, part_name, part_names, read_lines, run_name

NBS = Path(__file__).parents[1]/'nbs'
# the other explanations train, if only for seconds
READERS = ('explanations/choices explanations/datasets explanations/pose_coverage '
           'explanations/protocols explanations/reranking'.split())
PAGES = sorted(o for o in (NBS/'experiments').glob('*.ipynb')) + [NBS/f'{o}.ipynb' for o in READERS]
NUMBER = re.compile(r'(?<![\w.])[-−+]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w.]*[\w])')


def said(outputs):
    "Text of outputs: Markdown where there is some, else HTML without its tags, else plain; no figures"
    res = []
    for o in outputs:
        data = o.get('data', {})
        html = re.sub(r'<style.*?</style>|<[^>]*>', ' ', ''.join(data.get('text/html', '')),
                      flags=re.S)
        text = o.get('text') or data.get('text/markdown') or html or data.get('text/plain') or ''
        if 'image/png' not in data and 'Figure' not in ''.join(text)[:20]: res.append(''.join(text))
    return '\n'.join(res)


def numbers(text):
    return [float(o.replace(',', '').replace('−', '-')) for o in NUMBER.findall(text)]
def skipped(cell): return re.search(r'^#\|\s*(slow|notest|eval: *false)', cell.source, re.M)


@pytest.mark.parametrize('page', PAGES, ids=lambda o: o.stem)
def test_run_again_it_says_the_same(page, monkeypatch):
    monkeypatch.chdir(page.parent)
    monkeypatch.setenv('POSEREID_QUIET', '1')
    shell,n = CaptureShell(path=page.parent),0
    for old in read_nb(page).cells:
        if old.cell_type!='code' or skipped(old): continue
        new = shell.run(old.source)
        assert not any(o.get('output_type')=='error' for o in new), said(new)
        a,b = numbers(said(old.outputs)),numbers(said(new))
        assert len(a)==len(b), (f'{page.name}: {len(a)} numbers were saved, {len(b)} came\n'
                                f'{said(new)[:500]}')
        assert all(abs(x-y)<=.01*max(abs(x), abs(y))+1e-9
                   for x,y in zip(a, b)), f'{page.name}: {[o for o in zip(a, b) if o[0]!=o[1]][:5]}'
        assert kept_captions(old)==kept_captions(dict(outputs=new)), (f'{page.name}: a caption is '
            'out of date; run the page and posereid.docs.write_captions()')
        n += len(a)
    assert n or page.stem=='index', f'{page.name} shows no number'


def test_captions_in_the_sources_are_those_that_were_computed():
    kept = [(p.stem, c.source, o) for p in sorted(NBS.rglob('*.ipynb')) for c in read_nb(p).cells
            if c.cell_type=='code' for o in kept_captions(c)]
    assert len(kept)>40 # most tables and figures of experiments
    for page,source,caption in kept:
        assert f'-cap: {json.dumps(caption, ensure_ascii=False)}' in source, (f'{page}: run '
            'posereid.docs.write_captions()')


def test_the_comparison_itself():
    assert numbers('mAP 54.4 [48.7, 60.0], Δ −1.9, 2,240 '
                   'steps, ε=0.4') == [54.4, 48.7, 60., -1.9, 2240., .4]


# --- the lines that pages read

MEASURED = [o for o in TABLES if (NBS/f'experiments/{o}.csv').exists()]
SCORES = ('pictures steps rank1 rank5 map_trap map_mean rank1_bn map_trap_bn map_mean_bn '
          'rank1_grey map_trap_grey'.split())

@pytest.mark.parametrize('name', MEASURED)
def test_lines_name_the_command_that_makes_them(name):
    df,parts = (read_lines(NBS/f'experiments/{name}.csv'),
                {part_name(o): o for o in TABLES[name]['parts']})
    assert (set(df.part)<=set(parts) and not df.duplicated(['part','seed','row']).any()
            and (df.table==name).all())
    for o in df.itertuples():
        assert o.run==run_name(parts[o.part], o.seed)
        if TABLES[name].get('pictures'):
            assert o.command==f'posereid_reproduce {name} --seeds {o.seed}'
        else:
            assert (o.row in part_names(parts[o.part]) and o.command==f'posereid_reproduce {name} '
                    f'--seeds {o.seed} --rows {o.row}')


def test_a_training_has_the_same_numbers_in_every_table():
    scored = [o for o in MEASURED if not TABLES[o].get('pictures')]
    df = pd.concat([read_lines(NBS/f'experiments/{o}.csv') for o in scored])
    shared = df[df.duplicated(['run','row'], keep=False)]
    assert len(shared)>20
    # a processor of another kind may order two distances that are all but equal the other way
    for key,o in shared.groupby(['run','row']):
        assert (o[SCORES].max()-o[SCORES].min()<=2e-4).all(), key
    assert (df.map_trap<=df.map_mean+1e-6).all()


def test_claims_name_lines_that_are_there():
    df = pd.read_csv(NBS/'experiments/claims.csv', keep_default_na=False)
    assert (list(df)==['group','claim','section','table','part','a','b','sign']
            and set(df.sign)<={1,-1} and not df.duplicated(['group','claim']).any())
    for table,claims in df.groupby('table'):
        lines = (read_lines(NBS/f'experiments/{table}.csv') if table!='market'
                 else pd.read_csv(NBS/'experiments/market.csv').assign(part=''))
        for o in claims.itertuples():
            at = lines[lines.part==o.part] if o.part else lines
            assert {o.a,o.b}<=set(at.row) and o.a!=o.b, o
            assert (o.part or at.groupby('row').part.nunique()[[o.a,o.b]].eq(1)
                    .all()), f'{o.claim}: its rows stand in several parts'
    page = '\n'.join(said(c.get('outputs', []))
                     for c in read_nb(NBS/'experiments/claims.ipynb').cells if c.cell_type=='code')
    for o in df.claim: assert o in page, f'{o} is not on the page'
    assert {m[1] for m in re.finditer(r'of_group\([\"\'\\]+([a-z-]+)',
                                      (NBS/'experiments/claims.ipynb')
                                      .read_text(encoding='utf-8'))}==set(df.group)


def test_every_line_of_an_experiment_names_its_command():
    "CSVs of results; the claims and the paper's own numbers are not"
    home = Path(__file__).parents[1]/'nbs'/'experiments'
    files = [o for o in home.glob('*.csv') if o.stem not in ('claims','paper')]
    assert len(files)>15
    for o in files:
        df = pd.read_csv(o)
        assert df.get('command', pd.Series([None])).notna().all(), o.name
