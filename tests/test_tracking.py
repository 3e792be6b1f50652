"Following a training, and what fastai expects of the learners: nothing of it changes a weight, repeats a step or waits for a device"
import csv, json, random, sys, time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ProgressCallback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.learner import Recorder

from posereid import core
from posereid.core import InputError, RunFolder, seed_everything, weights_hash
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.models.reid import reid_net
from posereid.stages.fit import (FOLLOWERS, StageRecorder, finish_stage, fit_stage, open_run, read_log,
                                 tell_scores)
from posereid.stages.play import pose_frame, pose_slider
from posereid.stages.reid import (ReIDSettings, reid_batches, reid_learner, reid_terms, step_lr,
                                  train_reid)
from posereid.stages.tracking import tracker, use_tracking
from posereid.stages.transfer import (TransferSettings, TwoAdams, decay_lr, stage_batches, start_from,
                                      train_transfer, transfer_learner, transfer_model)
from posereid.synth.world import tiny_world

S = ReIDSettings(width=4, epochs=4, bs=16, lr=.02)
TRIPLETS = replace(S, loss='triplet', bs=24)
T = TransferSettings(width=4, d_width=4, beta=0., pairs=64, parts=4, bs=8)


@pytest.fixture(scope='module')
def world():
    w = tiny_world()
    return SimpleNamespace(target=pick(w.target, 'train'), source=w.source, poses=w.poses,
                           store=PictureStore((64,32)), labels=train_labels(w.target))

@pytest.fixture(autouse=True)
def nobody_follows():
    yield
    use_tracking('none')
    assert not FOLLOWERS


def reid(w, s=S):
    "A fresh learner of step one"
    seed_everything(0)
    net = reid_net(None if s.loss=='triplet' else len(w.labels), width=4)
    return reid_learner(reid_batches(w.target, w.store, w.labels, s), net, s)

def transfer(w, s=T):
    "A fresh learner of step two"
    seed_everything(0)
    return transfer_learner(stage_batches(w.target, w.source, w.poses, w.store, w.labels, s),
                            transfer_model(s), s)

KINDS = dict(reid=(reid, S), triplets=(reid, TRIPLETS), transfer=(transfer, T))

def fit(learn, s, run, **kwargs):
    "A training as the stages make it"
    if isinstance(s, TransferSettings):
        return fit_stage(learn, s.parts, run, partial(decay_lr, s), lambda l: l.transfer.terms, **kwargs)
    return fit_stage(learn, s.epochs, run, partial(step_lr, s), reid_terms, **kwargs)

@pytest.fixture(params=KINDS)
def stage(request, world):
    make,s = KINDS[request.param]
    return lambda: make(world, s), s


class Stop(Callback):
    "Ctrl-C before an epoch, or before a step"
    def __init__(self, epoch=None, step=None): self.at,self.step = epoch,step
    def before_epoch(self):
        if self.epoch==self.at: raise KeyboardInterrupt
    def before_batch(self):
        if self.step is not None and self.train_iter==self.step: raise KeyboardInterrupt

def curves(folder):
    "Steps and values of a run folder's events"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    acc = EventAccumulator(str(folder/'tensorboard')).Reload()
    return {k: [(o.step, o.value) for o in acc.Scalars(k)] for k in acc.Tags()['scalars']}

def of_log(folder):
    "The curves that log.csv has"
    df = pd.read_csv(folder/'log.csv')
    return {f'train/{k}': [*zip(df.epoch.tolist(), df[k].astype(np.float32).tolist())]
            for k in df.columns.drop('epoch')}

def same_curves(folder):
    got,log = curves(folder),of_log(folder)
    assert {k:v for k,v in got.items() if k.startswith('train/')}==log


# --- what fastai expects ---

def test_no_recorder_unless_asked_for(stage, tmp_path):
    make,s = stage
    a,b = make(),make()
    fit(a, s, RunFolder(tmp_path/'a', {}))
    assert not hasattr(a, 'recorder') and not a._grab_cbs(Recorder)
    fit(b, s, RunFolder(tmp_path/'b', {}), cbs=[EarlyStoppingCallback('train_loss', patience=99)])
    assert weights_hash(a.model)==weights_hash(b.model)
    assert (tmp_path/'a/log.csv').read_bytes()==(tmp_path/'b/log.csv').read_bytes()
    r,n = b.recorder,len(b.dls.train)
    assert len(r.losses)==len(r.losses) and not r.waiting # read twice, the same
    assert len(r.losses)==len(r.lrs)==4*n and r.iters==[n, 2*n, 3*n, 4*n] and len(r.values)==4
    assert r.metric_names==['epoch','train_loss','time'] and len(b._grab_cbs(Recorder))==1


def test_the_recorder_is_fastais(world, tmp_path):
    "Its numbers are those of fastai's own"
    a,b = reid(world),reid(world)
    a.add_cb(StageRecorder())
    fit(a, S, RunFolder(tmp_path/'a', {}))
    b.add_cb(own := Recorder())
    fit(b, S, RunFolder(tmp_path/'b', {}))
    assert own.losses and [o.item() for o in a.recorder.losses]==[o.item() for o in own.losses]
    assert a.recorder.lrs==own.lrs and a.recorder.lrs[-1]==step_lr(S, 3.99)!=S.lr


def test_a_part_of_an_epoch_is_recorded(world, tmp_path):
    "The last step of two and a third epochs of three batches is seen before it ends the training"
    learn = reid(world)
    fit_stage(learn, 7/3, RunFolder(tmp_path/'a', {}), lambda e: .01, reid_terms,
              cbs=[EarlyStoppingCallback('train_loss', patience=99)])
    n = len(learn.dls.train)
    steps = round(7/3*n)
    assert len(learn.recorder.losses)==steps and len(learn.recorder.values)==3
    assert all(len(o)==1 for o in learn.recorder.values)


def test_a_recorder_does_not_wait(world, tmp_path, monkeypatch):
    if not torch.__version__.startswith('2.14'): pytest.skip('the pretended device is of torch 2.14')
    from elsewhere import pretended
    torch.set_num_threads(1)
    monkeypatch.setenv('POSEREID_DEVICE', 'cuda:0')
    def waits(n):
        w = SimpleNamespace(**{**vars(world), 'target':pd.concat([world.target]*n, ignore_index=True)})
        with pretended() as d:
            fit_stage(reid(w), 1, RunFolder(tmp_path/f'{n}', {}), lambda e: .01, reid_terms,
                      cbs=[StageRecorder()])
        return len(w.target)//S.bs,sum(d.waits.values())
    (a,few),(b,many) = waits(2),waits(6)
    assert 0<(many-few)/(b-a)<=1


def test_lr_find_leaves_no_trace(stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make,s = stage
    plain,found = make(),make()
    before = weights_hash(found.model)
    got = found.lr_find(start_lr=1e-5, end_lr=10, num_it=30, show_plot=False)
    assert 1e-5<got.valley<10 and weights_hash(found.model)==before
    lrs = found.recorder.lrs
    assert len(lrs)>5 and lrs[0]<lrs[-1] and not any(tmp_path.iterdir())
    for o,k in ((plain,'a'),(found,'b')): fit(o, s, RunFolder(tmp_path/k, {}))
    assert weights_hash(plain.model)==weights_hash(found.model)
    assert (tmp_path/'a/log.csv').read_bytes()==(tmp_path/'b/log.csv').read_bytes()


def test_lr_find_that_is_interrupted_leaves_no_trace(stage, tmp_path):
    make,s = stage
    plain,found = make(),make()
    before = weights_hash(found.model)
    found.add_cb(stop := Stop(step=4))
    with pytest.raises(KeyboardInterrupt):
        found.lr_find(start_lr=1., end_lr=10, num_it=30, show_plot=False)
    found.remove_cb(stop)
    assert weights_hash(found.model)==before and not hasattr(found, 'lr_finder')
    for o,k in ((plain,'a'),(found,'b')): fit(o, s, RunFolder(tmp_path/k, {}))
    assert weights_hash(plain.model)==weights_hash(found.model)


def test_the_rates_of_lr_find_are_used(world):
    "A callback before which the step was made would set the rate in vain"
    learn,seen = transfer(world),[]
    class Look(Callback):
        def after_fake(self): seen.append(self.opt.G.param_groups[0]['lr'])
    learn.add_cb(Look())
    learn.lr_find(start_lr=1e-6, end_lr=1e-2, num_it=10, show_plot=False)
    assert seen[0]==pytest.approx(1e-6) and seen[-1]>1e-3 and seen==learn.recorder.lrs


def test_plots(stage):
    import matplotlib.pyplot as plt
    make,s = stage
    learn = make()
    learn.fit_one_cycle(2, 1e-3)
    ax = learn.recorder.plot_loss(skip_start=0)
    assert len(ax.lines)==1 and len(ax.lines[0].get_ydata())==len(learn.recorder.losses)
    learn.recorder.plot_sched()
    assert max(learn.recorder.lrs)==pytest.approx(1e-3, rel=.3) and len(set(learn.recorder.lrs))>2
    for k in (3, 5):
        learn.show_results(max_n=k)
        assert len(plt.gcf().axes)==(4*k if isinstance(s, TransferSettings) else k)
    plt.close('all')


def test_show_results_changes_nothing(stage, tmp_path):
    import matplotlib.pyplot as plt
    make,s = stage
    a,b = make(),make()
    before = weights_hash(a.model)
    a.show_results(); a.show_results(ds_idx=0)
    plt.close('all')
    assert weights_hash(a.model)==before and a.model.training and a.dls.train.epoch==0
    for o,k in ((a,'a'),(b,'b')): fit(o, s, RunFolder(tmp_path/k, {}))
    assert weights_hash(a.model)==weights_hash(b.model)


def test_results_say_the_guess(world):
    learn = reid(world)
    b = [*learn.dls.train.new().one_batch()]
    learn.model.eval()
    guess = learn.model(b[0]).argmax(1)
    row, = learn.shows(learn, b, 8)
    assert len(row)==8
    for (picture,title),label,o in zip(row, b[1].tolist(), guess.tolist()):
        assert title==(str(label) if label==o else f'{label} → {o}')
    learn.shows = None
    with pytest.raises(InputError, match='learn.shows'): learn.show_results()


def test_triplets_guess_by_the_nearest_other(world):
    learn = reid(world, TRIPLETS)
    learn.model.eval()
    b = [*learn.dls.train.new().one_batch()]
    out = learn.model(b[0])
    row, = learn.shows(learn, b, 24)
    for i,(_,title) in enumerate(row):
        d = ((out-out[i])**2).sum(1)
        d[i] = torch.inf
        assert title.split(' → ')[-1]==str(b[1][d.argmin()].item())


def test_transfer_draws_with_the_generator(world):
    learn = transfer(world, replace(T, limbs=True))
    learn.model.eval()
    x,s,fake,y = learn.shows(learn, [*learn.dls.train.new().one_batch()], 4)
    assert [o[0][0].shape for o in (x,s,fake,y)]==[(3,64,32)]*4
    assert not torch.equal(fake[0][0], x[0][0]) and -1<=fake[0][0].min()<=fake[0][0].max()<=1


def test_callbacks_of_fastai(stage, tmp_path, capsys):
    from fastai.callback.tensorboard import TensorBoardCallback
    make,s = stage
    learn = make()
    learn.path = tmp_path
    board = TensorBoardCallback(str(tmp_path/'tensorboard'), trace_model=False, log_preds=False)
    learn.fit(3, lr=1e-3, cbs=[board, CSVLogger(), SaveModelCallback('train_loss'),
                               EarlyStoppingCallback('train_loss', patience=1, min_delta=9.)])
    n = len(learn.dls.train)
    assert learn.epoch==1 and 'early stopping' in capsys.readouterr().out
    got = curves(tmp_path)
    assert [a for a,_ in got['train_loss']]==[*range(1, 2*n+1)]
    assert [b for _,b in got['train_loss']]==pytest.approx([float(o) for o in learn.recorder.losses])
    assert got['lr_0'][0][1]==pytest.approx(1e-3) and 'mom_0' in got
    assert len(list(csv.DictReader(open(tmp_path/'history.csv'))))==2
    assert (tmp_path/'models/model.pth').exists()


def test_the_table_of_fastai_is_printed_where_it_is_asked_for(world, capsys, monkeypatch):
    learn = reid(world)
    learn.fit(1)
    assert not capsys.readouterr().out
    learn.fit(1, cbs=[ProgressCallback])
    assert 'train_loss' in capsys.readouterr().out


def test_resuming_tells_callbacks_of_new_epochs_alone(world, tmp_path):
    class Epochs(Callback):
        order = 70
        def before_fit(self): self.seen = []
        def after_epoch(self): self.seen.append(self.epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(reid(world), S, open_run(tmp_path/'a', {}), every=0, cbs=[Stop(2)])
    learn = reid(world)
    fit(learn, S, open_run(tmp_path/'a', {}), every=0,
        cbs=[look := Epochs(), EarlyStoppingCallback('train_loss', patience=99)])
    assert look.seen==[2,3] and len(learn.recorder.values)==2
    fit(learn, S, RunFolder(tmp_path/'b', {}), cbs=[look := Epochs()])
    assert look.seen==[0,1,2,3]


def test_two_adams_as_fastai_knows_it():
    p = [[torch.ones(2, requires_grad=True)] for _ in range(2)]
    o = TwoAdams(p, lr=.1, betas=(.5,.9))
    assert o.hypers==[dict(wd=0, lr=.1, eps=1e-8, mom=.5, sqr_mom=.9)]*2
    o.set_hypers(lr=slice(1e-3), mom=np.array([.1,.2]), sqr_mom=.99, wd=.01)
    assert [h['lr'] for h in o.hypers]==[.001/10,.001]
    assert [g['betas'] for x in (o.D,o.G) for g in x.param_groups]==[(.1,.99),(.2,.99)]
    assert [g['weight_decay'] for x in (o.D,o.G) for g in x.param_groups]==[.01]*2
    for q, in p: q.sum().backward()
    o.zero_grad()
    assert all(q.grad is None for q, in p)
    json.dumps(o.hypers)


def test_events_may_come_as_a_list_and_from_an_instance(world):
    learn,seen = reid(world),[]
    cb = Callback(before_fit=lambda self: seen.append('fit'), before_epoch=lambda self: seen.append('epoch'))
    learn.create_opt()
    learn.add_cb(cb)
    learn(['before_fit','before_epoch'])
    assert seen==['fit','epoch']


# --- trackers ---

def test_a_run_that_is_followed_is_the_same_run(world, tmp_path):
    pytest.importorskip('tensorboard')
    a = train_reid(world.target, world.store, world.labels, S, tmp_path/'a')
    use_tracking('tensorboard')
    b = train_reid(world.target, world.store, world.labels, S, tmp_path/'b')
    assert weights_hash(a)==weights_hash(b)
    for o in ('settings.json','log.csv','metrics.json','reid.json','reid.safetensors'):
        assert (tmp_path/'a'/o).read_bytes()==(tmp_path/'b'/o).read_bytes(), o
    assert {o.name for o in (tmp_path/'b').iterdir()}-{o.name for o in (tmp_path/'a').iterdir()}=={
        'tensorboard'}
    same_curves(tmp_path/'b')
    m,got = json.loads((tmp_path/'b/metrics.json').read_text()),curves(tmp_path/'b')
    assert {k: v for k,v in got.items() if k.startswith('metrics/')}=={
        f'metrics/{k}': [(3, np.float32(v))] for k,v in m.items() if isinstance(v, (int,float))}
    # done is done: nothing is written again
    files = sorted((tmp_path/'b/tensorboard').iterdir())
    train_reid(world.target, world.store, world.labels, S, tmp_path/'b')
    assert sorted((tmp_path/'b/tensorboard').iterdir())==files
    # and begun anew it is followed anew
    train_reid(world.target, world.store, world.labels, S, tmp_path/'b', fresh=True)
    same_curves(tmp_path/'b')


@pytest.mark.parametrize('first,second', [(True,True),(False,True),(True,False)])
def test_resuming_repeats_no_step(world, tmp_path, first, second):
    "Stopped after epoch 3 with a checkpoint of epoch 2, so that one epoch comes twice"
    pytest.importorskip('tensorboard')
    whole = reid(world)
    fit(whole, S, RunFolder(tmp_path/'whole', {}))
    class Late(Callback):
        "The last checkpoint is one epoch old"
        order = 29
        def after_train(self): self.learn.checkpoint.every = 0 if self.epoch<2 else 99
    if first: use_tracking('tensorboard')
    with pytest.raises(KeyboardInterrupt):
        fit(reid(world), S, open_run(tmp_path/'a', {}), every=0, cbs=[Late(), Stop(3)])
    assert len(read_log(tmp_path/'a/log.csv'))==3 and not any(o.trackers for o in FOLLOWERS)
    use_tracking('tensorboard' if second else 'none')
    run = open_run(tmp_path/'a', {})
    learn = fit(reid(world), S, run)
    finish_stage(run, dict(steps=4))
    assert weights_hash(learn.model)==weights_hash(whole.model)
    if second: same_curves(tmp_path/'a')
    got = curves(tmp_path/'a')['train/loss']
    assert [a for a,_ in got]==([0,1,2,3] if second else [0,1,2])


def test_a_killed_process_repeats_no_step(tmp_path):
    "The tracker is not closed, and its next one goes on"
    pytest.importorskip('tensorboard')
    t = tracker('tensorboard', tmp_path, {})
    for e in range(3): t.row(dict(epoch=e, loss=e))
    t = tracker('tensorboard', tmp_path)
    for e in range(5): t.row(dict(epoch=e, loss=e))
    t.scores(dict(a=1, b=True, c='x', d=[1]))
    t.close()
    got = {k: sorted(v) for k,v in curves(tmp_path).items()} # files of one second have no order
    assert got=={'train/loss':[(e, float(e)) for e in range(5)], 'metrics/a':[(4,1.)]}


def test_sheets_and_settings(world, tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from PIL import Image
    import io
    use_tracking('tensorboard')
    s = replace(T, parts=2)
    args = world.target,world.source,world.poses,world.store,world.labels,None,s
    G = train_transfer(*args, tmp_path/'a')
    use_tracking('none')
    assert weights_hash(train_transfer(*args, tmp_path/'b'))==weights_hash(G)
    same_curves(tmp_path/'a')
    acc = EventAccumulator(str(tmp_path/'a/tensorboard')).Reload()
    sheets = acc.Images('train/sheet')
    assert [o.step for o in sheets]==[0,1]
    with Image.open(io.BytesIO(sheets[1].encoded_image_string)) as a, \
         Image.open(tmp_path/'a/samples.png') as b:
        assert np.array_equal(np.array(a.convert('RGB')), np.array(b.convert('RGB')))
    assert sheets[0].encoded_image_string!=sheets[1].encoded_image_string
    text = acc.Tensors('settings/text_summary')[0].tensor_proto.string_val[0].decode()
    assert json.loads(text.strip('`\n'))==json.loads((tmp_path/'a/settings.json').read_text())['settings']


def test_all_stages_of_an_experiment_and_their_scores(tmp_path):
    pytest.importorskip('tensorboard')
    from posereid.experiment.engine import Experiment
    from posereid.experiment.presets import TINY_WORLD, experiment_settings
    from posereid.experiment.rows import pick_rows
    g = experiment_settings('smoke', opts=[*TINY_WORLD, 'transfer.pairs=64', 'reid.epochs=1'])
    rows = pick_rows('control guided')
    a = Experiment(rows, g, tmp_path/'a').results()
    use_tracking('tensorboard')
    exp = Experiment(rows, g, tmp_path/'b')
    b = exp.results()
    assert (tmp_path/'a/results.csv').read_bytes()==(tmp_path/'b/results.csv').read_bytes()
    folders = [o for o in (tmp_path/'b').iterdir() if (o/'log.csv').exists()]
    assert {o.name.split('-')[0] for o in folders}=={'reid','transfer'} and len(folders)==3
    for o in folders: same_curves(o)
    for k in ('control','guided'):
        got = curves(exp.made['folders', k]['reid'])
        assert [v for _,v in got['scores/map_trap']]==pytest.approx([b.set_index('row').map_trap[k]])


def test_random_numbers_are_left_alone(tmp_path):
    pytest.importorskip('tensorboard')
    seed_everything(3)
    before = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state()
    t = tracker('tensorboard', tmp_path, {})
    t.row(dict(epoch=0, loss=1.))
    t.close()
    after = random.getstate(),np.random.get_state()[1].tolist(),torch.get_rng_state()
    assert before[:2]==after[:2] and torch.equal(before[2], after[2])


def wandb_records(data, block=1<<15):
    "What W&B's file holds, a log of LevelDB: blocks of pieces, each with check sum, length and kind"
    at,whole = 7,b''
    while at+7<=len(data):
        if block-at%block<7: at += block-at%block
        n,kind = int.from_bytes(data[at+4:at+6], 'little'),data[at+6]
        whole += data[at+7:at+7+n]
        if kind in (1,4):
            yield whole
            whole = b''
        at += 7+n

def offline_history(folder):
    "Rows of the history and the summary that W&B wrote offline, of all sessions"
    from wandb.proto import wandb_internal_pb2 as pb
    rows,summary,config,ids = [],{},{},set()
    value = lambda o: json.loads(o.value_json)
    name = lambda o: o.key or '.'.join(o.nested_key)
    for path in sorted((folder/'wandb').glob('offline-run-*/run-*.wandb')):
        for _ in range(100): # W&B's own process may still be writing
            records = [pb.Record.FromString(o) for o in wandb_records(path.read_bytes())]
            if any(o.WhichOneof('record_type')=='exit' for o in records): break
            time.sleep(.1)
        for r in records:
            kind = r.WhichOneof('record_type')
            if kind=='history': rows.append({name(o): value(o) for o in r.history.item})
            if kind=='summary': summary.update({name(o): value(o) for o in r.summary.update})
            if kind=='run':
                ids.add(r.run.run_id)
                config.update({name(o): value(o) for o in r.run.config.update})
    return rows,summary,config,ids

@pytest.fixture
def offline(monkeypatch):
    pytest.importorskip('wandb')
    for k,v in dict(MODE='offline', SILENT='true').items(): monkeypatch.setenv(f'WANDB_{k}', v)


def test_wandb_offline(world, tmp_path, offline):
    plain = train_reid(world.target, world.store, world.labels, S, tmp_path/'plain')
    use_tracking('wandb')
    w = train_reid(world.target, world.store, world.labels, S, tmp_path/'a')
    assert weights_hash(w)==weights_hash(plain)
    assert (tmp_path/'a/settings.json').read_bytes()==(tmp_path/'plain/settings.json').read_bytes()
    rows,summary,config,ids = offline_history(tmp_path/'a')
    log = pd.read_csv(tmp_path/'a/log.csv')
    assert [o['epoch'] for o in rows]==[0,1,2,3]==[o['_step'] for o in rows]
    assert [o['train/loss'] for o in rows]==log.loss.tolist()
    assert summary['metrics/n_ids']==len(world.labels) and config['reid']['width']==4 and len(ids)==1


def test_wandb_goes_on(tmp_path, offline):
    for some in ((0,1),(1,2)):
        t = tracker('wandb', tmp_path, dict(lr=.1))
        for e in some: t.row(dict(epoch=e, loss=e))
        t.close()
    rows,_,_,ids = offline_history(tmp_path)
    assert [o['epoch'] for o in rows]==[0,1,2] and len(ids)==1


def test_wandb_of_fastai(stage, tmp_path, offline):
    import wandb
    from fastai.callback.wandb import WandbCallback
    make,s = stage
    learn = make()
    with wandb.init(dir=tmp_path, project='x'):
        learn.fit(1, cbs=[WandbCallback(log_preds=False)])
        loss = wandb.run.summary['train_loss']
    assert loss==pytest.approx(learn.recorder.losses[-1].item(), rel=1e-5)


@pytest.mark.parametrize('name', ['tensorboard','wandb'])
def test_without_the_package(tmp_path, monkeypatch, name):
    for o in [*sys.modules]:
        if o.split('.')[0]==name or o.startswith('torch.utils.tensorboard'):
            monkeypatch.delitem(sys.modules, o)
    monkeypatch.setitem(sys.modules, name, None)
    for f in (lambda: use_tracking(name), lambda: tracker(name, tmp_path/'a')):
        with pytest.raises(InputError) as e: f()
        assert str(e.value)==(f"--log {name} needs the package {name}; "
                              "`pip install 'posereid[log]'`.")
    assert not FOLLOWERS and not (tmp_path/'a').exists()


def test_use_tracking():
    pytest.importorskip('tensorboard')
    with pytest.raises(InputError, match="did you mean 'tensorboard'"): use_tracking('tensorbord')
    use_tracking(None)
    assert not FOLLOWERS
    use_tracking('tensorboard'); use_tracking('tensorboard'); use_tracking(None)
    assert [o.name for o in FOLLOWERS]==['tensorboard']
    use_tracking('none')
    assert not FOLLOWERS


def test_a_damaged_state_is_told(tmp_path):
    pytest.importorskip('tensorboard')
    (tmp_path/'tensorboard').mkdir()
    (tmp_path/'tensorboard/followed.json').write_text('{"next": -1, "id": "a"}')
    with pytest.raises(InputError, match='followed.json'): tracker('tensorboard', tmp_path)


def test_other_processes_follow_nothing(world, tmp_path, monkeypatch):
    from posereid.stages import fit as stage_fit
    use_tracking('tensorboard')
    monkeypatch.setattr(stage_fit, 'ranks', lambda: (1,2))
    assert stage_fit.followed(RunFolder(tmp_path/'a', {}))==[]
    tell_scores(tmp_path/'a', dict(a=1))
    assert not (tmp_path/'a/tensorboard').exists()


def test_a_loss_that_is_not_finite_closes_the_tracker(world, tmp_path):
    pytest.importorskip('tensorboard')
    use_tracking('tensorboard')
    nan = lambda l: dict(loss=l.loss*torch.nan)
    with pytest.raises(InputError, match='finite'):
        fit_stage(reid(world), 2, open_run(tmp_path/'a', {}), lambda e: .01, nan)
    assert not FOLLOWERS[0].trackers


# --- notebooks ---

def experiment(rows, table=None):
    from posereid.experiment.engine import Experiment
    exp = Experiment.__new__(Experiment)
    exp.rows,exp.run = rows,SimpleNamespace(path=SimpleNamespace(name='a<b'))
    if table is not None: exp.table = table
    return exp

def test_rich_tables_are_those_of_the_report():
    from posereid.experiment.engine import ResultsTable
    from posereid.evaluate.tables import TERMINAL, html_table, text_table
    line = dict(row='a', title='<i>a</i> & "b"', pictures=12000, steps=1234, eps_real=.1,
                eps_generated=np.nan, rank1=50., rank5=62.55, map_trap=41.25, map_mean=40.,
                d_steps=-1.25, d_smoothed=0., seed=1, net='small-8')
    df = ResultsTable([line, {**line, 'row':'b', 'd_steps':1e-12, 'rank1':100.}])
    assert df._repr_html_()==html_table(pd.DataFrame(df), TERMINAL)
    assert repr(df)==text_table(pd.DataFrame(df)) and '<i>' not in df._repr_html_()
    assert type(df[['row']]) is pd.DataFrame

def test_an_experiment_shows_itself():
    from posereid.experiment.engine import ResultsTable
    rows = [dict(row='a', title='<b>'), dict(row='b')]
    exp = experiment(rows)
    assert repr(exp).startswith('Experiment a<b: 2 rows, none scored') and repr(exp).endswith('<b>\nb')
    page = exp._repr_html_()
    assert 'a&lt;b' in page and '<td>&lt;b&gt;</td>' in page and '<b>' not in page
    exp.table = ResultsTable([dict(row='b', title='B', map_trap=12.34)])
    assert '2 rows, 1 scored' in repr(exp) and exp.lines().title.tolist()==['<b>','B']
    assert '<td>12.3</td>' in exp._repr_html_() and 'nan' not in exp._repr_html_()


class Shown:
    "A display of a notebook"
    def __init__(self): self.seen = []
    def update(self, o):
        from fastcore.xml import to_xml
        self.seen.append(o.data if type(o).__name__=='HTML' else to_xml(o))

@pytest.fixture
def at_a_notebook(monkeypatch):
    if not hasattr(core, '_in_notebook'): pytest.skip('core.progress has no bar for notebooks yet')
    import IPython.display
    monkeypatch.setenv('POSEREID_QUIET', '0')
    monkeypatch.setattr(core, '_in_notebook', lambda: True)
    out = Shown()
    def display(o, display_id=None):
        out.update(o)
        return out
    monkeypatch.setattr(IPython.display, 'display', display)
    return out

def test_the_bar_of_a_notebook(at_a_notebook, capsys):
    seen = at_a_notebook.seen
    assert list(core.progress('abc', desc='naps'))==['a','b','c']
    assert 'naps' in ''.join(seen) and '3/3' in ''.join(seen) and seen[-1]==''
    assert capsys.readouterr()==('','')
    seen.clear()
    assert list(core.progress(iter('abcdefg'), desc='naps'))==[*'abcdefg'] and '2/?' in ''.join(seen)
    assert seen[-1]==''
    assert list(core.progress([]))==[] and list(core.progress(range(9), total=3))==[*range(9)]

def test_a_bar_that_is_left_is_gone(at_a_notebook):
    def f():
        for o in core.progress(range(9), desc='x'):
            if o==3: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): f()
    assert at_a_notebook.seen[-1]==''
    it = core.progress(range(9)); next(it); it.close()
    assert at_a_notebook.seen[-1]==''

def test_a_quiet_bar(at_a_notebook, monkeypatch):
    monkeypatch.setenv('POSEREID_QUIET', '1')
    assert list(core.progress('abc', desc='naps'))==['a','b','c'] and not at_a_notebook.seen


@pytest.fixture(scope='module')
def walker(world):
    model = transfer_model(TransferSettings(beta=0., head=8, blend=True))
    start_from(model, 'shipped')
    return model.G,world.store.get(world.target.path[:1])[0]

def test_frames_of_the_slider(walker):
    frames = [pose_frame(*walker, phase=o) for o in (-1.5, -.5, .5, 1.5)]
    assert len({o.numpy().tobytes() for o in frames})==4
    assert all(torch.equal(o, pose_frame(*walker, phase=p)) for o,p in zip(frames, (-1.5,-.5,.5,1.5)))
    third = frames[0].shape[-1]//3
    assert all(torch.equal(o[:,::3,:third:3], walker[1]) for o in frames)
    assert not torch.equal(frames[0][:,:,third:2*third], frames[3][:,:,third:2*third])

def test_the_slider(walker):
    w = pytest.importorskip('ipywidgets')
    assert pose_slider(*walker) is None
    G = walker[0].train()
    box = pose_slider(*walker, watched=True)
    assert G.training and not G.eval().training
    phase,turn,picture = box.children
    seen = {bytes(picture.value)}
    for o in (.5, 1.):
        phase.value = o
        seen.add(bytes(picture.value))
    turn.value = 1.2
    seen.add(bytes(picture.value))
    assert len(seen)==4 and bytes(picture.value).startswith(b'\x89PNG') and len(picture.value)<60_000
    import io
    from PIL import Image
    with Image.open(io.BytesIO(picture.value)) as o:
        assert np.array_equal(np.array(o), pose_frame(*walker, 1., 1.2).permute(1,2,0).numpy())

def test_the_slider_without_its_package(walker, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(InputError, match=r"pip install 'posereid\[notebooks\]'"): pose_slider(*walker, watched=True)


@pytest.mark.parametrize('name,args', [('posereid_run', dict(preset='smoke')), ('posereid_reproduce', dict(name='tbl1')),
                                       ('posereid_guider', dict(data='nowhere')), ('posereid_transfer', dict(data='nowhere', source='nowhere'))])
def test_commands_that_train_take_a_log(name, args, refused, tmp_path, monkeypatch):
    import posereid.cli as cli
    monkeypatch.chdir(tmp_path)
    refused(getattr(cli, name), **args, log='tensorbord', says="did you mean 'tensorboard'")
