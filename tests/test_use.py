"Commands for a trained model, end to end on a tiny world: what they print and leave, and one sentence for each bad input"
import configparser, re, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from posereid import cli, use

ROOT = Path(__file__).parents[1]
WORLD = ['world.n_train=6', 'world.per_train=4', 'world.n_source=4', 'world.per_source=8', 'world.n_test=8',
         'world.per_test=5', 'world.n_junk=2', 'world.n_distractor=2']


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp('use')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('POSEREID_CACHE', str(home/'cache'))
        m.setenv('POSEREID_QUIET', '1')
        cli.posereid_synth(out=home/'world', preset='smoke', set=WORLD)
        cli.posereid_guider(home/'world/target', out=home/'guider', preset='smoke',
                            set=['reid.width=4','reid.epochs=1','reid.bs=8'])
        yield home


@pytest.fixture
def said(capsys):
    def run(f, *args, **kwargs):
        capsys.readouterr()
        f(*args, **kwargs)
        return capsys.readouterr().out
    return run


@pytest.fixture
def refused(capsys):
    def run(f, *args, **kwargs):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e: f(*args, **kwargs)
        err = capsys.readouterr().err.strip()
        assert e.value.code == 2 and len(err.splitlines()) == 1, err
        return err
    return run


def test_from_a_folder_to_an_answer(home, said, refused, tmp_path):
    pytest.importorskip('faiss')
    gallery = shutil.copytree(home/'world/target/bounding_box_test', tmp_path/'gallery')
    query = sorted((home/'world/target/query').iterdir())[0]
    index,net = tmp_path/'index',dict(model=home/'guider')
    n = len(list(gallery.iterdir()))
    assert f'{n} pictures indexed' in said(use.posereid_index, gallery, out=index, camera='_c([0-9]+)', **net)
    assert 'add to it' in refused(use.posereid_index, gallery, out=index, **net)
    out = said(use.posereid_search, index, [query], top=3)
    hits = re.findall(r'^  (\d+): distance ([\d.]+), camera (\d)', out, re.M)
    assert [o[0] for o in hits] == ['1','2','3'] and sorted(float(o[1]) for o in hits) == [float(o[1]) for o in hits]
    only = said(use.posereid_search, index, [query], top=50, cameras='2')
    assert set(re.findall(r'camera (\d)', only)) == {'2'}
    # the query itself is added, found first, and left out on request
    mine = tmp_path/'mine'
    mine.mkdir()
    shutil.copy(query, mine)
    assert '1 added' in said(use.posereid_index, mine, out=index, add=True, **net)
    assert '1: distance 0.000' in said(use.posereid_search, index, [query], top=1)
    assert '1: distance 0.000' not in said(use.posereid_search, index, [query], top=1, skip_own=True)
    assert '1 removed' in said(use.posereid_index, mine/query.name, out=index, remove=True)
    assert said(use.posereid_search, index, [query], top=3) == out
    assert 'two calls' in refused(use.posereid_index, mine, out=index, add=True, remove=True)


def test_search_leaves_pages_and_verdicts(home, said, refused, tmp_path):
    pytest.importorskip('faiss')
    index,net,query = tmp_path/'index',dict(model=home/'guider'),sorted((home/'world/target/query').iterdir())
    said(use.posereid_index, home/'world/target', out=index, **net)
    said(use.posereid_calibrate, home/'world/target', far=.3, kind='identification', out=tmp_path/'t.json', **net)
    out = said(use.posereid_search, index, query[:2], top=2, threshold=tmp_path/'t.json', html=tmp_path/'a.html',
               why=tmp_path/'b.html')
    assert len(re.findall(r'n the gallery: nearest distance', out)) == 2
    for page in ('a.html','b.html'):
        text = (tmp_path/page).read_text(encoding='utf-8')
        assert text.count('data:image/jpeg') >= 6 and 'http' not in text
    said(use.posereid_calibrate, home/'world/target', far=.3, out=tmp_path/'pairs.json', **net)
    assert "kind 'identification'" in refused(use.posereid_search, index, query[:1], threshold=tmp_path/'pairs.json')
    # a threshold of other distances has another rate, and re-ranking does not change who is near
    said(use.posereid_calibrate, home/'world/target', far=.3, kind='identification', flip=True, out=tmp_path/'f.json', **net)
    assert 'with mirrored pictures' in refused(use.posereid_search, index, query[:1], threshold=tmp_path/'f.json')
    said(use.posereid_calibrate, home/'world/target', far=.3, kind='identification', distance='cosine', out=tmp_path/'c.json', **net)
    assert 'cosine' in refused(use.posereid_search, index, query[:1], threshold=tmp_path/'c.json')
    verdict = lambda **kw: re.search(r'nearest distance [\d.]+', said(use.posereid_search, index, query[:1], threshold=tmp_path/'t.json', **kw))[0]
    assert verdict(top=1, rerank=20) == verdict(top=1) == verdict(top=5)
    # of a few pictures, the rate is another
    assert 'pictures; with' in said(use.posereid_search, index, query[:1], threshold=tmp_path/'t.json', cameras='2')
    assert 'does not exist' in refused(use.posereid_search, index, [tmp_path/'nobody.jpg'])
    assert refused(use.posereid_search, tmp_path/'nothing', query[:1])


def test_two_pictures(home, said, refused, tmp_path):
    net,(a,b,*_) = dict(model=home/'guider'),sorted((home/'world/target/query').iterdir())
    said(use.posereid_calibrate, home/'world/target', far=.2, out=tmp_path/'t.json', plot=tmp_path/'t.png', **net)
    assert Image.open(tmp_path/'t.png').size[0] > 300
    out = said(use.posereid_same, a, a, threshold=tmp_path/'t.json', html=tmp_path/'w.html', **net)
    assert out.startswith('The same person') and (tmp_path/'w.html').exists()
    assert 'person' in said(use.posereid_same, a, b, threshold=tmp_path/'t.json', **net)
    said(cli.posereid_guider, home/'world/target', out=tmp_path/'other', preset='smoke',
         set=['reid.width=4','reid.epochs=1','reid.bs=8','reid.seed=1'])
    assert 'calibrate' in refused(use.posereid_same, a, b, model=tmp_path/'other', threshold=tmp_path/'t.json')
    assert 'needs at least' in refused(use.posereid_calibrate, home/'world/target', far=1e-9, **net)


def test_export_is_compared(home, said, refused, tmp_path):
    pytest.importorskip('onnxruntime'); pytest.importorskip('onnxscript')
    out = said(use.posereid_export, home/'guider', out=tmp_path/'m.onnx', data=home/'world/target', threads=1)
    assert 'rank-1' in out and (tmp_path/'m.onnx').exists() and (tmp_path/'m.onnx.json').exists()
    assert 'did you mean' in refused(use.posereid_export, home/'guider', out=tmp_path/'x.onnx', to='onx')
    assert refused(use.posereid_export, tmp_path, out=tmp_path/'x.onnx') and not (tmp_path/'x.onnx').exists()


def test_pictures_from_elsewhere_become_a_row(home, said, refused, tmp_path):
    train = sorted((home/'world/target/bounding_box_train').iterdir())[:6]
    drawn = tmp_path/'drawn'
    drawn.mkdir()
    for i,o in enumerate(train): Image.open(o).transpose(Image.FLIP_LEFT_RIGHT).save(drawn/f'p{i}.jpg', quality=95)
    rows = pd.DataFrame(dict(picture=[f'p{i}.jpg' for i in range(6)], source=[o.name for o in train]))
    rows.to_csv(tmp_path/'map.csv', index=False)
    out = said(use.posereid_import, drawn, home/'world/target', map=tmp_path/'map.csv', name='mirror',
               out=tmp_path/'set', market=tmp_path/'market')
    assert '6 pictures of' in out
    assert len(list((tmp_path/'market/bounding_box_train').iterdir())) == 24+6
    out = said(cli.posereid_augment, home/'world/target', generated=tmp_path/'set', out=tmp_path/'aug', preset='smoke',
               set=['reid.width=4','reid.epochs=1','reid.bs=8'])
    assert 'rank-1' in out
    assert 'give one of them' in refused(use.posereid_import, drawn, home/'world/target', out=tmp_path/'set2')
    assert refused(use.posereid_import, drawn, home/'world/target', map=tmp_path/'gone.csv', out=tmp_path/'set2')
    rows.iloc[:5].to_csv(tmp_path/'few.csv', index=False)
    assert 'not in the map' in refused(use.posereid_import, drawn, home/'world/target', map=tmp_path/'few.csv', out=tmp_path/'set2')
    assert not (tmp_path/'set2').exists()


def test_another_generator_is_a_row_beside_the_controls(home, said, refused, tmp_path):
    data = home/'world/target'
    train = sorted((data/'bounding_box_train').iterdir())
    drawn = tmp_path/'drawn'
    drawn.mkdir()
    for o in train: Image.open(o).transpose(Image.FLIP_LEFT_RIGHT).save(drawn/o.name, quality=95)
    pd.DataFrame(dict(picture=[o.name for o in train], source=[o.name for o in train])).to_csv(tmp_path/'map.csv', index=False)
    said(use.posereid_import, drawn, data, map=tmp_path/'map.csv', name='mirror', out=tmp_path/'set')
    small = ['reid.width=4','reid.epochs=1','reid.bs=8','transfer.width=4','transfer.d_width=4','transfer.pairs=32','transfer.bs=8']
    ask = dict(out=tmp_path/'run', preset='smoke', data=data, source=home/'world/source', rows='equal_steps,imported', threads=1)
    out = said(cli.posereid_run, set=[*small, f'rows.imported={tmp_path/"set"}', 'generate.n_each=1'], **ask)
    rows = pd.read_csv(tmp_path/'run/results.csv').set_index('row')
    assert list(rows.index) == ['equal_steps','imported'] and rows.loc['imported','pictures'] == 48
    assert rows.steps.nunique() == 1 and '{' not in out
    # controls of another N, no set, and a set with a test picture
    ask['out'] = tmp_path/'other'
    assert 'generate.n_each' in refused(cli.posereid_run, set=[*small, f'rows.imported={tmp_path/"set"}'], **ask)
    assert 'rows.imported=FOLDER' in refused(cli.posereid_run, set=small, **ask)
    shutil.copytree(tmp_path/'set', tmp_path/'leak')
    shutil.copy(sorted((data/'query').iterdir())[0], tmp_path/'leak/bounding_box_train'/train[0].name)
    said_ = refused(cli.posereid_run, set=[*small, f'rows.imported={tmp_path/"leak"}', 'generate.n_each=1'], **ask)
    assert 'byte for byte' in said_ and not (tmp_path/'other').exists()


def test_features_of_a_file_score_as_the_net(home, said, refused, tmp_path):
    from posereid.data.layouts import load_dataset
    from posereid.evaluate.features import features_of, write_features
    from posereid.stages.trained import Trained
    net = Trained(home/'guider')
    df = load_dataset(home/'world/target')
    file = write_features(features_of(net.net, df, net.store()), tmp_path/'f.npz')
    line = lambda s: re.search(r'rank-1 .*', s)[0]
    own = said(cli.posereid_eval, home/'world/target', model=home/'guider')
    assert line(said(cli.posereid_eval, features=file)) == line(own)
    assert 'trained on' not in own
    # another set: the protocol says which one the net was trained on
    other = shutil.copytree(home/'world/target', tmp_path/'elsewhere')
    across = said(cli.posereid_eval, other, model=home/'guider')
    assert line(across) == line(own) and across.strip().endswith('; trained on target') and '\nelsewhere: ' in across
    assert '--flip' in refused(cli.posereid_eval, features=file, flip=True)
    assert '--features FILE' in refused(cli.posereid_eval)
    np.savez(tmp_path/'g.npz', a=np.zeros(3))
    assert refused(cli.posereid_eval, features=tmp_path/'g.npz')


def test_the_table_of_extras_is_that_of_the_settings():
    import json
    page = json.loads((ROOT/'nbs/99_use.ipynb').read_text(encoding='utf-8'))
    text = '\n'.join(''.join(c['source']) for c in page['cells'])
    said = {k: set(v.replace(' ', '').split(',')) for k,v in re.findall(r'^\| `(\w+)` \| ([\w, -]+) \|', text.split('| extra |')[1], re.M)}
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    want = {k[6:]: set(v.split()) for k,v in cfg['DEFAULT'].items() if k.startswith('extra_')}
    assert {k: v for k,v in said.items() if k!='all'} == want
