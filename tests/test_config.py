"Settings in files: what the line says wins, what is refused is said in a sentence, and a run's settings are its own"
import json

import pytest

from posereid import cli
from posereid.core import to_json
from posereid.experiment.presets import experiment_settings


def shown(capsys, **kwargs):
    "What `posereid_run --print_config` prints, read again"
    try: import tomllib
    except ImportError: import tomli as tomllib # Python 3.10
    cli.posereid_run(print_config=True, **kwargs)
    return tomllib.loads(capsys.readouterr().out)


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path/'run.toml').write_text(text, encoding='utf-8')
        return tmp_path/'run.toml'
    return write


def test_the_line_wins(file, capsys):
    path = file('preset = "smoke"\nseed = 4\n[settings.reid]\nepochs = 7\nbs = 16\n')
    d = shown(capsys, config=path)
    assert (d['preset'], d['seed']) == ('smoke', 4)
    assert (d['settings']['reid']['epochs'], d['settings']['reid']['bs'], d['settings']['reid']['width']) == (7, 16, 8)
    assert d['settings']['transfer']['seed'] == 4
    d = shown(capsys, config=path, seed=5, set=['reid.epochs=9'])
    assert (d['seed'], d['settings']['reid']['epochs'], d['settings']['reid']['bs']) == (5, 9, 16)


def test_what_is_printed_is_read_again(file, capsys):
    first = shown(capsys, preset='paper', recipe='D-Tri', set=['reid.lr=1e-05','transfer.depth=4'])
    import contextlib, io
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        cli.posereid_run(print_config=True, preset='paper', recipe='D-Tri', set=['reid.lr=1e-05','transfer.depth=4'])
    again = shown(capsys, config=file(out.getvalue()))
    assert again == first
    assert first['settings']['reid']['lr'] == 1e-5 and first['settings']['transfer']['depth'] == 4


def test_a_run_folder_is_a_config(tmp_path, capsys):
    from posereid.core import RunFolder
    groups = experiment_settings('smoke', 3, opts=['reid.epochs=5'])
    run = RunFolder(tmp_path/'run', dict(groups, inputs=None))
    for o in (run.path, run/'settings.json'):
        d = shown(capsys, config=o)
        for g,s in json.loads(to_json(groups)).items():
            assert {k: v for k,v in d['settings'][g].items() if k in s and v!='none'} == {
                k: v for k,v in s.items() if v is not None}, g


def test_a_preset_fills_nothing_into_a_run(tmp_path, capsys):
    "A field that a run's settings leave out is as before it came, whatever a preset says today"
    from posereid.core import RunFolder
    run = RunFolder(tmp_path/'run', dict(experiment_settings('smoke', 3)))
    d = shown(capsys, config=run.path, preset='paper', set=['reid.norms=own'])
    assert (d['settings']['reid']['norms'], d['settings']['reid']['arch']) == ('own', 'small')
    assert shown(capsys, config=run.path, preset='paper')['settings']['reid']['norms'] == 'shared'


@pytest.mark.parametrize('text,said', [
    ('sead = 3', "the nearest is 'seed'"),
    ('seed = "x"', 'seed must be a whole number'),
    ('seed = true', 'seed must be a whole number'),
    ('[settings.guider]\nepochs = 3', 'one of world, reid'),
    ('[settings.reid]\nlr = "fast"', 'reid.lr must be float'),
    ('[settings.reid]\nepochs = 0', 'epochs'),
    ('[settings.reid]\nlos = "ce"', "the nearest is 'reid.loss'"),
    ('[settings.reid]\nloss = "ec"', "did you mean 'ce'"),
    ('seed = ', 'is no TOML file')])
def test_refused_in_a_sentence(file, capsys, text, said):
    with pytest.raises(SystemExit) as e: cli.posereid_run(config=file(text), print_config=True)
    err = capsys.readouterr().err
    assert e.value.code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_no_such_file(capsys):
    with pytest.raises(SystemExit) as e: cli.posereid_run(config='gone.toml', print_config=True)
    assert e.value.code == 2 and 'gone.toml' in capsys.readouterr().err


def test_the_report_names_the_file_and_no_dict(monkeypatch, file):
    seen = []
    monkeypatch.setattr(cli, '_run', lambda said,out: seen.append((said, cli._line(said), out)))
    path = file('preset = "smoke"\n[settings.reid]\nepochs = 7\n')
    cli.posereid_run(config=path, set=['reid.bs=16'], threads=1)
    said,line,out = seen[0]
    assert said['set'] == [{'reid':{'epochs':7}}, 'reid.bs=16']
    assert f'--config {path}' in line and '--preset smoke' in line and '--set reid.bs=16' in line
    assert '{' not in line and str(out).startswith('runs/smoke')


@pytest.mark.parametrize('name', ['guider','transfer','generate','augment','synth'])
def test_steps_take_the_same_file(name, tmp_path, file, capsys, monkeypatch):
    "A file may hold settings of other steps, and options that this one lacks are refused"
    f = getattr(cli, f'posereid_{name}')
    needed = dict(data=tmp_path/'none', source=tmp_path/'none')
    import inspect
    args = {k: v for k,v in needed.items() if k in inspect.signature(f).parameters}
    with pytest.raises(SystemExit) as e: f(config=file('recipe = "R-CE"\n'), **args)
    assert e.value.code == 2 and "has no option 'recipe'" in capsys.readouterr().err


def test_a_value_for_test_poses_in_a_file():
    opts,lent = cli._test_poses([{'generate':{'test_poses':True}, 'transfer':{'beta':0.}}])
    assert lent is True
    assert experiment_settings(opts=opts, only=('transfer',))['transfer'].beta == 0
    assert cli._test_poses(['transfer.beta=1','generate.test_poses=True']) == (['transfer.beta=1'], True)
    assert cli._test_poses(None) == ([], False)
