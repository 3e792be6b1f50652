"On a device: everything is computed there, nothing mixes, the results are the CPU's; no driver is needed (see `elsewhere`)"
import json
from copy import deepcopy
from dataclasses import replace

import pandas as pd
import pytest
import torch

from posereid.experiment.engine import Experiment
from posereid.experiment.presets import TINY_WORLD, experiment_settings
from posereid.experiment.rows import pick_rows
from posereid.core import weights_hash
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.stages.lsro import DCGANSettings, train_dcgan
from posereid.stages.transfer import train_transfer
from posereid.stages.reid import load_reid, train_reid
from posereid.synth.world import tiny_world

if not torch.__version__.startswith('2.14'):
    pytest.skip('the pretended device is made for torch 2.14', allow_module_level=True)
from elsewhere import CUDA, Elsewhere, pretended

ROWS = 'control guided best trusted'
MORE = ('lsro reranked best_averaged best_picked best_taught best_consistent best_matched best_views '
        'best_warped cross')


@pytest.fixture
def there(monkeypatch):
    "The device, chosen as the commands choose it"
    tiny_world()
    monkeypatch.setenv('POSEREID_DEVICE', 'cuda:0')
    with pretended() as d: yield d


def run(path, rows, recipe=None):
    g = experiment_settings('smoke', opts=[*TINY_WORLD, 'transfer.pairs=64', 'reid.epochs=1',
                                           'transfer.bs=8'], recipe_name=recipe)
    exp = Experiment(pick_rows(rows), g, path)
    table = exp.results()
    return table,{p.name: weights_hash(load_reid(p)) for p in path.glob('reid-*')}


def test_it_refuses_to_mix(there):
    "The pretended device itself: what a GPU would refuse is refused, what waits is counted"
    a,b = torch.ones(2,3).to(CUDA),torch.ones(2,3)
    assert type(a) is Elsewhere and a.device==CUDA and (a+1).sum().item()==12
    for f in (lambda: a+b, lambda: b[torch.zeros(1, dtype=torch.long).to(CUDA)], lambda: a.numpy(),
              lambda: torch.cat([a, b]),
              lambda: torch.randn(3, device=CUDA, generator=torch.Generator())):
        with pytest.raises((RuntimeError,TypeError)): f()
    before = sum(there.waits.values())
    a*2; a[0]; a.mean(); a.clone()
    assert sum(there.waits.values())==before
    for f in (lambda: a[a>0], lambda: a.nonzero(), lambda: float(a.sum()), lambda: a[[0]], a.cpu):
        f()
        assert sum(there.waits.values())>before
        before = sum(there.waits.values())


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('rows,recipe', [
    (ROWS,None), ('control guided','R-Tri'), pytest.param(MORE, None, marks=pytest.mark.slow)])
def test_rows_on_a_device(tmp_path, monkeypatch, rows, recipe):
    "Weights and scores of the CPU, to the bit; a sum in another order would not be caught by less"
    torch.set_num_threads(1)
    here = run(tmp_path/'a', rows, recipe)
    monkeypatch.setenv('POSEREID_DEVICE', 'cuda:0')
    with pretended() as d: there = run(tmp_path/'b', rows, recipe)
    assert there[0].map_trap.tolist()==here[0].map_trap.tolist() and there[1]==here[1]
    # features were taken there, and not on the CPU
    assert d.ran['convolution'] and d.ran['convolution_backward'] and d.missed['convolution']==0


def waits_a_step(fit, few, many):
    "How often a step of training waits, apart from what an epoch does once, and where"
    (steps,waits),(all_steps,all_waits) = (steps_and_waits(fit, o) for o in (few, many))
    more = {k: (v-waits[k])/(all_steps-steps) for k,v in all_waits.items() if v>waits[k]}
    return sum(more.values()),more

def steps_and_waits(fit, n):
    with pretended() as d: run = fit(n)
    return json.loads((run/'metrics.json').read_text())['steps'],d.waits

BOUNDS = [('reid',{},1), ('reid',{'reid.erase':.5, 'reid.jitter':.2},1), ('reid',{'reid.norms':'own'},2),
          ('lsro',{},1), ('transfer',{'transfer.beta':0.},1), ('transfer',{},1),
          ('transfer',{'transfer.limbs':True, 'transfer.aux':'apart', 'transfer.foreground':1.},1),
          ('triplets',{},2), ('triplets',{'reid.mining':'batch_hard'},2), ('triplets',{'reid.mining':'all'},3),
          ('guided by triplets',{},3), ('guided by triplets',{'transfer.mining':'hardest'},3)]

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('stage,opts,bound', BOUNDS, ids=lambda o: ','.join(o) if isinstance(o, dict) else str(o))
def test_waits(tmp_path, monkeypatch, stage, opts, bound):
    "A step copies its batch, and waits for nothing else that is not needed to know a size"
    torch.set_num_threads(1)
    fit = STAGES[stage](tmp_path, dict(opts))
    monkeypatch.setenv('POSEREID_DEVICE', 'cuda:0')
    n,where = waits_a_step(fit, 2, 6)
    assert 0 < n <= bound, where


def _setting(opts, triplets=False):
    world = tiny_world()
    g = experiment_settings('smoke', opts=[*TINY_WORLD, 'transfer.bs=8', 'reid.bs=16',
        *(f'{k}={v}' for k,v in opts.items())], recipe_name='R-Tri' if triplets else None)
    df = pick(world.target, 'train')
    return world,df,g,train_labels(df)

def _reid(tmp, opts, triplets=False):
    world,df,g,labels = _setting(opts, triplets)
    df = pd.concat([df, df.assign(is_generated=True)], ignore_index=True)
    store,s = PictureStore(g['reid'].size),g['reid']
    def fit(n):
        few = pd.concat([df]*n, ignore_index=True)
        train_reid(few, store, labels, replace(s, epochs=1), tmp/f'{n}')
        return tmp/f'{n}'
    return fit

def _transfer(tmp, opts, triplets=False):
    world,df,g,labels = _setting(opts, triplets)
    store,s = PictureStore(g['transfer'].size),g['transfer']
    R = train_reid(df, PictureStore(g['reid'].size), labels, replace(g['reid'], epochs=1), tmp/'R')
    def fit(n):
        train_transfer(df, world.source, world.poses, store, labels, deepcopy(R),
                       replace(s, pairs=s.bs*n, parts=1), tmp/f'G{n}')
        return tmp/f'G{n}'
    return fit

def _lsro(tmp, opts):
    world,df,g,labels = _setting(opts)
    s = DCGANSettings(size=g['transfer'].size, width=4, z=4, bs=16, epochs=1)
    def fit(n):
        few = pd.concat([df]*n, ignore_index=True)
        train_dcgan(few, PictureStore(s.size), s, tmp/f'{n}')
        return tmp/f'{n}'
    return fit

STAGES = {'reid':_reid, 'lsro':_lsro, 'transfer':_transfer,
          'triplets':lambda *o: _reid(*o, True), 'guided by triplets':lambda *o: _transfer(*o, True)}


def test_nets_come_back(there):
    "Evaluation leaves a net where it was"
    from posereid.evaluate.protocol import class_probability, extract_features
    from posereid.models.reid import reid_net
    net,x = reid_net(3, width=2).eval(),torch.zeros(4,3,16,16, dtype=torch.uint8)
    extract_features(net, x); class_probability(net, x, [0,1,2,0])
    assert next(net.parameters()).device.type=='cpu'
    net.to(CUDA)
    assert extract_features(net, x).device.type=='cpu'
    assert next(net.parameters()).device==CUDA


def test_a_device_is_said(there):
    from posereid.core import provenance
    assert provenance()['device'].startswith('cuda:0 (pretended, CUDA')


def test_a_launcher_is_refused(monkeypatch, capsys):
    from posereid.core import command
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(SystemExit) as e: command(lambda: 1)()
    assert e.value.code==2 and 'WORLD_SIZE' in capsys.readouterr().err
