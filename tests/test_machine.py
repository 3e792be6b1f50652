"Threads, precision and reading ahead: each does what it says, and a run that goes on elsewhere says so"
import json, os, threading, time, warnings

import pytest
import torch
from torch import nn

import posereid.core as core
from posereid.core import InputError, RunFolder, precision, use_precision, use_threads
from posereid.data.block import BatchDL, gathered_ahead
from posereid.experiment.engine import Experiment
from posereid.experiment.presets import TINY_WORLD, experiment_settings
from posereid.experiment.rows import pick_rows
from posereid.synth.world import tiny_world


@pytest.fixture
def threads():
    n = torch.get_num_threads()
    yield
    torch.set_num_threads(n)


@pytest.mark.parametrize('idle,most,want', [(1.9,2,2), (1.2,2,1), (0.,2,1), (7.6,4,4), (.4,1,1)])
def test_as_many_threads_as_idle_cores(threads, monkeypatch, idle, most, want):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(core, 'idle_cores', lambda: idle)
    torch.set_num_threads(most)
    assert use_threads()==want

def test_who_says_how_many(threads, monkeypatch, tmp_path):
    "The argument first, then the run that goes on, then the environment"
    monkeypatch.setattr(core, 'idle_cores', lambda: 1.)
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    torch.set_num_threads(3)
    assert use_threads()==3
    (tmp_path/'settings.json').write_text(json.dumps(dict(settings={}, provenance=dict(threads=2))))
    assert use_threads(run=tmp_path)==2 and use_threads(1, tmp_path)==1
    for text in ('', '{"provenance":{"threads":"many"}}', '[]'):
        (tmp_path/'settings.json').write_text(text)
        assert use_threads(run=tmp_path)==1
    with pytest.raises(InputError, match='must be 1 or more, but is 0'): use_threads(0)

def test_idle_cores_are_counted(monkeypatch):
    n = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    for ticks,want in (((100,1000),(150,1100)), .5*n), (((0,10),(0,20)), 0), (((5,10),(15,20)), n):
        seen = iter(ticks)
        monkeypatch.setattr(core, '_core_times', lambda: next(seen))
        assert core.idle_cores(0)==want
    monkeypatch.setattr(core, '_core_times', lambda: None)
    assert core.idle_cores(0)==n


def test_a_run_that_goes_on_elsewhere_says_so(threads, tmp_path):
    torch.set_num_threads(1)
    RunFolder(tmp_path/'r', dict(a=1))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        RunFolder(tmp_path/'r', dict(a=1))
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match='begun elsewhere .threads 1 → 2'): RunFolder(tmp_path/'r', dict(a=1))
    RunFolder(tmp_path/'r', dict(a=1)).finish({})
    with warnings.catch_warnings(): # what is done goes nowhere
        warnings.simplefilter('error')
        RunFolder(tmp_path/'r', dict(a=1))


@pytest.fixture
def bf16(monkeypatch):
    monkeypatch.setenv('POSEREID_PRECISION', 'bf16')
    assert precision()=='bf16'

def trained(path, rows, recipe=None):
    "What convolutions of trainings gave, and what losses took"
    kinds,losses,conv,scores = set(),set(),nn.functional.conv2d,nn.functional.log_softmax
    def seen(*args, **kwargs):
        y = conv(*args, **kwargs)
        if torch.is_grad_enabled(): kinds.add(y.dtype)
        return y
    def scored(x, *args, **kwargs):
        if torch.is_grad_enabled(): losses.add(x.dtype)
        return scores(x, *args, **kwargs)
    def backward(self, *args, **kwargs):
        losses.add(self.dtype)
        return torch.autograd.backward(self, *args, **kwargs)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(nn.functional, 'conv2d', seen)
        m.setattr(nn.functional, 'log_softmax', scored)
        m.setattr(torch.Tensor, 'backward', backward)
        g = experiment_settings('smoke', opts=[*TINY_WORLD, 'transfer.pairs=16', 'transfer.bs=8', 'reid.epochs=1'],
                                recipe_name=recipe)
        Experiment(pick_rows(rows), g, path).results()
    return kinds,losses

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('recipe', [None, 'R-Tri'])
def test_maps_are_halved_and_losses_are_not(tmp_path, bf16, recipe):
    tiny_world()
    # the tanh of G and bilinear resizing stay in single precision, every convolution of a training is in bf16
    assert trained(tmp_path/'r', 'guided', recipe)==({torch.bfloat16}, {torch.float32})

@pytest.mark.filterwarnings('ignore')
def test_usual_precision(tmp_path):
    tiny_world()
    assert trained(tmp_path/'r', 'guided')==({torch.float32}, {torch.float32})

def test_tf32_and_determinism(monkeypatch):
    "What torch is told"
    before = torch.backends.cudnn.benchmark,torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv('POSEREID_PRECISION', 'fp32')
    try:
        for name,fast in (('tf32',True), ('bf16',True), ('fp32',False)):
            use_precision(name)
            assert torch.backends.cudnn.allow_tf32==torch.backends.cuda.matmul.allow_tf32==fast
            assert torch.backends.cudnn.benchmark and precision()==name
        use_precision(deterministic=True)
        assert not torch.backends.cudnn.benchmark and torch.are_deterministic_algorithms_enabled()
        with pytest.raises(InputError, match='--precision must be one of'): use_precision('half')
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1])


def test_reading_ahead_changes_no_batch():
    make = lambda i, rng: (torch.tensor(i), torch.rand(2, generator=rng))
    here,ahead = (list(BatchDL(make, 40, 4, seed=3, ahead=n)) for n in (0,2))
    assert all(torch.equal(a, b) for x,y in zip(here, ahead, strict=True) for a,b in zip(x, y))

def test_reading_ahead_ends_with_its_reader():
    "No thread is left over, and no more is read than was asked for"
    read,before = [],threading.active_count()
    def items():
        for i in range(100):
            read.append(i)
            yield i
    it = gathered_ahead(items(), 2)
    assert next(it)==0
    time.sleep(.3)
    assert len(read)<=5 and threading.active_count()==before+1
    it.close()
    assert threading.active_count()==before
