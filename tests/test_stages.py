"The three steps: who moves, who does not, and that stopping changes nothing"
import json, shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from posereid.core import InputError, weights_hash
from posereid.data.pictures import PictureStore
from posereid.data.transforms import centre_crop, to_float
from posereid.data.layouts import load_dataset
from posereid.data.market import parse_market_name, read_generated
from posereid.data.manifest import make_manifest, pick, train_labels
from posereid.losses.transfer import transfer_loss
from posereid.models.reid import reid_net
from posereid.stages import fit as engine, generate as gen, reid, transfer as tr
from posereid.stages.augment import augment, smoothed_eps
from posereid.stages.generate import (GenerateSettings, generate, generated_name, generated_names,
                                      market_names, plan, plan_id, write_generated)
from posereid.stages.reid import ReIDSettings, equal_steps, freeze, load_reid, step_lr, train_reid
from posereid.experiment.inputs import folder_inputs, poses_beside, read_set, share_people
from posereid.experiment.presets import PRESETS, RECIPES, experiment_settings, other_form, recipe
from posereid.stages.transfer import TransferSettings, guider_input, load_generator, train_transfer
from posereid.synth.world import tiny_world

SMALL = dict(width=4, d_width=4, d_layers=2, bs=8, pairs=48, parts=3)


class Data:
    "The tiny world, its pictures, labels, and a guider that has seen a batch, so that its running statistics are not 0 and 1"
    def __init__(self):
        w = tiny_world()
        self.target,self.source,self.poses = w.target,w.source,w.poses
        self.train,self.labels,self.store = (pick(w.target, split='train'),train_labels(w.target),
                                             PictureStore((64,32)))
        torch.manual_seed(0)
        self.R = reid_net(len(self.labels), 'small', 4)
        self.R.head.weight.data.normal_()
        self.R(to_float(self.store.get(self.train)))
        self.R.eval()
    def transfer(self, folder, **kw):
        s = TransferSettings(**{**SMALL, **kw})
        return train_transfer(self.target, self.source, self.poses, self.store, self.labels, self.R,
                              s, folder, every=0)


@pytest.fixture(scope='module')
def data(): return Data()


@pytest.fixture
def stage(data):
    "The transfer callback, one batch in hand, nothing done yet"
    def _stage(R=None, cbs=(), judge=None, **kw):
        torch.manual_seed(0)
        s,R = TransferSettings(**{**SMALL, **kw}),data.R if R is None else R
        dls = tr.stage_batches(data.train, data.source, data.poses, data.store, data.labels, s,
                               tr.by_triplets(R))
        learn = tr.transfer_learner(dls, tr.transfer_model(s, R, judge), s, cbs)
        learn.create_opt()
        learn.model.train()
        learn.transfer.take(*dls.train.one_batch())
        learn.epoch,learn.iter,learn.n_iter = 0,0,1
        return learn.transfer
    return _stage


def guide(cb):
    "The guider's term on pictures that hang on nothing: its value, and the size of its gradient in each row"
    cb.learn.fake,cb.learn.losses = cb.fake.detach().requires_grad_(),tr.Terms()
    cb.guider_term.after_fake()
    value = cb.losses['guide']
    if value.requires_grad: value.backward()
    return value.detach(), (0 if cb.fake.grad is None else cb.fake.grad.abs().flatten(1).sum(1))


def state(net): return {k:v.clone() for k,v in net.state_dict().items()}
def moved(net, before): return any(not torch.equal(v, before[k]) for k,v in net.named_parameters())


# Schedules

def test_step_lr():
    s = ReIDSettings(epochs=10, lr=1., milestones=(.5,.8), gamma=.1)
    assert [round(step_lr(s, e), 6) for e in (0,4.99,5,7.9,8,9.9)] == [1,1,.1,.1,.01,.01]
    assert step_lr(ReIDSettings(warmup=2., lr=1.), 1.) == pytest.approx(.5, abs=1e-3)

def test_equal_steps_stretches_milestones():
    s = equal_steps(ReIDSettings(epochs=20, milestones=(.5,15)), 100, 300)
    assert s.epochs==60 and reid.milestone_epochs(s)==[30,45]

def test_decay():
    s = TransferSettings(parts=10, lr=1., lr_decay=.5)
    assert [tr.decay_lr(s, e) for e in (0,5,7.5,10)] == [1,1,.5,0]
    assert tr.decay_lr(TransferSettings(lr=1.), 9.9) == 1

def test_smoothed(): assert smoothed_eps(.4, 2) == pytest.approx(.8/3)


# Guider

def test_mixed_batch_loss_by_hand(data):
    "The learner's loss on real and generated pictures together is Eq. 8 with each picture's own ε"
    df = data.train.assign(is_generated=[i%2==0 for i in range(len(data.train))])
    s = ReIDSettings(width=4, bs=8, eps_generated=.4)
    dls = reid.reid_batches(df, data.store, data.labels, s)
    x,y,eps = dls.train.one_batch()
    assert sorted(set(eps.tolist())) == pytest.approx([0., .4])
    learn = reid.reid_learner(dls, data.R, s)
    K,lp = len(data.labels),data.R(x).log_softmax(1)
    hand = torch.stack([-((1-e)*lp[i,t] + e/K*lp[i].sum())
                        for i,(t,e) in enumerate(zip(y,eps))]).mean()
    torch.testing.assert_close(learn.loss_func(data.R(x), y, eps), hand)

def test_reid_stopped_equals_unstopped(data, tmp_path, monkeypatch, when=2):
    s = ReIDSettings(width=4, epochs=4, bs=16, dropout=.2, warmup=1.)
    fit = lambda folder: train_reid(data.train, data.store, data.labels, s,
                                    tmp_path/folder, every=0)
    whole = fit('whole')
    interrupt(monkeypatch, when)
    with pytest.raises(KeyboardInterrupt): fit('stopped')
    monkeypatch.undo()
    assert not (tmp_path/'stopped'/'metrics.json').exists()
    assert weights_hash(fit('stopped')) == weights_hash(whole)
    same_files(tmp_path/'whole', tmp_path/'stopped', 'reid.safetensors', 'log.csv', 'metrics.json')

def same_files(a, b, *names):
    for o in names: assert (a/o).read_bytes()==(b/o).read_bytes(), o
    assert not (b/'checkpoint.pt').exists() and not [o for o in b.iterdir()
                                                     if o.name.startswith('.')]

def interrupt(monkeypatch, epoch):
    "Ctrl-C in the second batch of an epoch"
    was = engine.EpochLog.after_batch
    def after_batch(self):
        if self.epoch==epoch and self.iter==1: raise KeyboardInterrupt
        was(self)
    monkeypatch.setattr(engine.EpochLog, 'after_batch', after_batch)

def test_reid_once(data, tmp_path, monkeypatch):
    s = ReIDSettings(width=4, epochs=1)
    net = train_reid(data.train, data.store, data.labels, s, tmp_path/'r')
    monkeypatch.setattr(reid, 'fit_stage', lambda *a, **k: pytest.fail('trained twice'))
    again = train_reid(data.train, data.store, data.labels, s, tmp_path/'r')
    x = to_float(data.store.get(data.train.path[:4]))
    assert torch.equal(net(x), again(x)) and not again.training
    with pytest.raises(InputError, match='reid.epochs: 1 → 2'):
        train_reid(data.train, data.store, data.labels, ReIDSettings(width=4, epochs=2),
                   tmp_path/'r')

def test_reid_same_seed_same_net(data, tmp_path):
    s = ReIDSettings(width=4, epochs=1)
    a,b = (train_reid(data.train, data.store, data.labels, s, tmp_path/o) for o in 'ab')
    assert weights_hash(a)==weights_hash(b)

def test_diverged_is_a_sentence(data, tmp_path):
    with pytest.raises(InputError, match='finite'):
        train_reid(data.train, data.store, data.labels, ReIDSettings(width=4, epochs=3, lr=1e12),
                   tmp_path/'r')
    assert not (tmp_path/'r'/'reid.safetensors').exists()

@pytest.mark.parametrize('kw,said', [(dict(epochs=0),'reid.epochs'), (dict(bs=0),'reid.bs'),
                                     (dict(size=(32,16)),'reid.size'), (dict(arch='vgg'),'arch')])
def test_bad_reid_settings(data, tmp_path, kw, said):
    with pytest.raises(InputError, match=said):
        train_reid(data.train, data.store, data.labels, ReIDSettings(**kw), tmp_path/'r')

def test_load_reid_elsewhere(tmp_path):
    with pytest.raises(InputError, match='posereid_guider'): load_reid(tmp_path)


# Frozen

def test_freeze_holds_running_statistics():
    net = freeze(reid_net(3, 'small', 4))
    before = weights_hash(net)
    wrap = torch.nn.Sequential(net).train()
    wrap(torch.randn(4,3,64,32))
    assert weights_hash(net)==before and not any(m.training for m in net.modules())
    assert not any(p.requires_grad for p in net.parameters()) and freeze(net) is net
    with torch.no_grad(): assert net(torch.randn(1,3,64,32)).shape==(1,3)


# Transfer

def test_each_optimiser_moves_its_own(stage):
    cb = stage()
    m,opt = cb.model,cb.opt
    G,D,R = (state(o) for o in (m.G, m.D, m.R))
    cb.forward()
    cb.backward_D()
    assert all(p.grad is None for p in [*m.G.parameters(), *m.R.parameters()])
    opt.D.step()
    assert moved(m.D, D) and not moved(m.G, G)
    D,grads = state(m.D),[p.grad.clone() for p in m.D.parameters()]
    cb.backward_G()
    assert (all(torch.equal(p.grad, g) for p,g in zip(m.D.parameters(), grads))
            and all(p.requires_grad for p in m.D.parameters()))
    opt.G.step()
    assert moved(m.G, G) and not moved(m.D, D)
    assert all(torch.equal(v, R[k]) for k,v in m.R.state_dict().items())

def test_order_of_a_step(stage, monkeypatch):
    cb,seen = stage(),[]
    for name in ('forward','backward_D','backward_G'):
        was = getattr(type(cb), name)
        monkeypatch.setattr(type(cb), name,
                            lambda self, was=was, name=name: (seen.append(name), was(self))[1])
    for name in 'DG':
        o = getattr(cb.opt, name)
        monkeypatch.setattr(o, 'step',
                            lambda was=o.step, name=name: (seen.append(f'step {name}'), was())[1])
    cb.step()
    assert (seen == ['forward','backward_D','step D','backward_G','step G']
            and cb.loss==cb.terms['l1'])

def test_guider_sees_target_rows_only(stage):
    cb = stage(beta=.5)
    assert 0 < cb.is_target.sum() < len(cb.is_target)
    cb.forward()
    value,size = guide(cb)
    assert (size[~cb.is_target]==0).all() and (size[cb.is_target]>0).all()
    want = F.cross_entropy(cb.model.R(cb.fake[cb.is_target]), cb.label[cb.is_target])
    torch.testing.assert_close(cb.losses.log['guide'], want.detach())
    torch.testing.assert_close(value, .5*want.detach())

@pytest.mark.parametrize('mining', ['semihard','all','hardest'])
def test_guider_by_triplets(stage, data, mining):
    "Eq. 4 takes the positives of the batch and mines semi-hard negatives; `mining` names other ways"
    torch.manual_seed(3)
    T = reid_net(None, 'small', 4).eval()
    cb = stage(T, foreground=1., margin=.01, mining=mining)
    x,k = cb.positive,cb.is_target
    assert x.shape==cb.real.shape and (x!=cb.real)[k].any() and cb.weight.shape==(len(x),1,64,32)
    cb.forward()
    value,size = guide(cb)
    assert (size[~k]==0).all()
    f,r = (F.normalize(T.embed(o[k]).detach(), dim=1) for o in (cb.fake, x))
    who,hinge = cb.label[k],[]
    for a in range(len(f)):
        ap,an = (f[a]-r[a]).norm(),[(f[a]-f[b]).norm() for b in range(len(f)) if who[a]!=who[b]]
        beyond = [o for o in an if o>ap] if mining=='semihard' else []
        hinge += [.01+ap-o for o in (an if mining=='all' else [min(beyond or an)])]
    hinge = torch.stack(hinge)
    torch.testing.assert_close(value, hinge.clamp_min(0).mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(cb.losses.log['active'], (hinge>0).float().mean())

@pytest.mark.parametrize('triplets', [False, True])
def test_no_target_row_is_zero(stage, triplets):
    "The same columns as any other batch, so that the mean of the part exists"
    R = reid_net(None, 'small', 4).eval() if triplets else None
    with_rows,cb = stage(R),stage(R)
    with_rows.step()
    names = list(with_rows.terms)
    cb.learn.n_target = 0
    cb.step()
    assert (cb.terms['guide']==0 and all(torch.isfinite(o) for o in cb.terms.values())
            and list(cb.terms)==names)
    assert names==['d_real','d_fake',*['active']*triplets,'adv','l1','guide']

def test_eq_5_by_hand(stage):
    cb = stage(lam=7., beta=.3)
    cb.forward()
    d = cb.model.D(*cb.cond, cb.fake)
    l1,ce = (cb.fake-cb.real).abs().mean(),F.cross_entropy(cb.model.R(cb.fake[cb.is_target]),
        cb.label[cb.is_target])
    want = torch.autograd.grad(F.softplus(-d).mean() + 7*l1 + .3*ce, list(cb.model.G.parameters()),
                               retain_graph=True)
    cb.backward_G()
    for p,g in zip(cb.model.G.parameters(), want):
        torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-6)
    assert (list(cb.losses)==['adv','l1','guide']
            and list(cb.terms)==['d_real','d_fake','adv','l1','guide'])
    log = [cb.terms[o] for o in cb.losses]
    assert torch.equal(sum(cb.losses.values()).detach(), transfer_loss(*log, 7., .3))  # to the bit

@pytest.mark.parametrize('kw', [dict(adv=.3), dict(adv=0.), dict(beta=0.),
                                dict(gan='lsgan', lam=3.), dict(aux='apart', guider_pad=2)])
def test_terms_are_eq_5_in_its_order(stage, kw):
    "Numbers of old runs come again: the bits of the sum depend on its order, the pictures that the guider sees on the random numbers"
    one,two = stage(**kw),stage(**kw)
    s = one.settings
    for cb in (one,two):
        torch.manual_seed(1)
        cb.forward()
    torch.manual_seed(2)
    one.backward_G()
    torch.manual_seed(2)
    R,rows,zero = two.model.R,two.is_target.bool(),two.fake.new_zeros(())
    with tr.held(two.model.D):
        adv = tr.generator_adv_loss(two.model.D(*two.cond, two.fake), s.gan) if s.adv else zero
        l1 = tr.l1_loss(two.fake, two.real, None)
        seen = two.fake[rows] if R is None else guider_input(two.fake[rows], pad=s.guider_pad)
        ce = zero if R is None else tr.guider_ce(R(seen), two.label[rows], rows[rows])
        transfer_loss(s.adv*adv, l1, ce, s.lam, s.beta).backward()
    for p,q in zip(one.model.G.parameters(), two.model.G.parameters()):
        assert torch.equal(p.grad, q.grad)

def test_weights_of_pixels(stage):
    cb = stage(foreground=3., beta=0.)
    cb.forward()
    cb.backward_G()
    w = cb.weight
    assert w.shape[1]==1 and w.max()>w.min()
    want = ((cb.fake-cb.real).abs()*w).mean().detach()/w.mean()
    torch.testing.assert_close(cb.terms['l1'], want)
    assert not torch.isclose(cb.terms['l1'], (cb.fake-cb.real).abs().mean().detach(), rtol=1e-3)

def test_running_average_of_a_step(stage):
    "Its decay grows with the steps of the whole training, not of the part"
    cb = stage(ema=.99)
    cb.learn.epoch,cb.learn.n_iter,cb.learn.iter = 2,10,5
    was = state(cb.model.G_ema)
    cb.step()
    for k,v in cb.model.G.named_parameters():
        torch.testing.assert_close(dict(cb.model.G_ema.named_parameters())[k],
                                   was[k].lerp(v.detach(), 1-26/35))


def test_judge_is_asked_and_not_heard(stage, data):
    "The same gradients with and without; its loss is Eq. 3 on the generated target pictures"
    torch.manual_seed(5)
    J = reid_net(len(data.labels), 'small', 4).eval()
    J.head.weight.data.normal_()
    a,b = stage(),stage(judge=J)
    for cb in (a,b):
        cb.forward()
        cb.backward_G()
    assert all(torch.equal(p.grad, q.grad)
               for p,q in zip(a.model.G.parameters(), b.model.G.parameters()))
    rows = b.is_target
    torch.testing.assert_close(b.terms['judge'],
                               F.cross_entropy(J(b.fake[rows]), b.label[rows]).detach())
    assert list(b.terms)==[*a.terms, 'judge'] and not any(o.requires_grad for o in J.parameters())


# Terms of a reader

class PullTerm(tr.Callback):
    "Grey pictures, please"
    def __init__(self, share, bad=None): self.share,self.bad,self.seen = share,bad,0
    def after_fake(self):
        self.seen += 1
        value = self.fake.pow(2).mean()
        self.losses.add('pull', value*torch.nan if self.epoch==self.bad else value, self.share)

def test_a_term_adds_its_gradient(stage):
    a,b = stage(),stage(cbs=[PullTerm(3.)])
    for cb in (a,b):
        cb.forward()
        cb.backward_G()
    g = torch.autograd.grad(3*b.model(*b.cond).pow(2).mean(), list(b.model.G.parameters()))
    for p,q,r in zip(a.model.G.parameters(), b.model.G.parameters(), g):
        torch.testing.assert_close(q.grad, p.grad+r, rtol=1e-3, atol=1e-6)
    assert (list(b.terms)==[*a.terms, 'pull'] and b.terms['pull']==b.fake.pow(2).mean()
            and not any(o.requires_grad for o in b.terms.values()))

def test_g_draws_once_a_batch(stage, monkeypatch):
    cb,n = stage(cbs=[PullTerm(1.)]),[]
    monkeypatch.setattr(type(cb.model), 'forward',
                        lambda self, x, s: (n.append(len(x)), self.G(x, s))[1])
    cb.step()
    assert n==[8] and cb.pull_term.seen==1

def test_d_is_still_while_terms_are_collected(stage):
    "A term may ask D, too: the gradient flows through it and not into it"
    class Ask(tr.Callback):
        def after_fake(self): self.losses.add('ask', self.model.D(*self.cond, self.fake).mean())
    cb = stage(cbs=[Ask()])
    cb.forward()
    cb.opt.D.zero_grad()
    cb.backward_G()
    assert all(p.grad is None and p.requires_grad for p in cb.model.D.parameters())

def fit(data, folder, *cbs, **kw):
    s = TransferSettings(**{**SMALL, 'beta':0., **kw})
    return train_transfer(data.target, data.source, data.poses, data.store, data.labels, None, s,
                          folder, cbs=cbs)

def test_a_term_pulls(data, tmp_path):
    logs = {}
    for w in (0., 20.):
        fit(data, tmp_path/f'{w:g}', PullTerm(w), lr=2e-3)
        logs[w] = pd.read_csv(tmp_path/f'{w:g}'/'log.csv')
    assert list(logs[0.])==['epoch','d_real','d_fake','adv','l1','guide','pull']
    assert logs[20.].pull.iloc[-1] < .8*logs[0.].pull.iloc[-1]
    plain = fit(data, tmp_path/'plain', lr=2e-3)
    assert (weights_hash(load_generator(tmp_path/'0'))==weights_hash(plain)
            !=weights_hash(load_generator(tmp_path/'20')))

def test_a_run_knows_its_terms(data, tmp_path):
    "The same terms read what is there, others are refused, none leaves the settings as they always were"
    a = fit(data, tmp_path/'a', term:=PullTerm(1.))
    assert (json.loads((tmp_path/'a'/'settings.json').read_text())['settings']['cbs'][0]
            == {'class':'PullTerm', 'share':1., 'bad':None, 'seen':0})
    assert weights_hash(fit(data, tmp_path/'a', PullTerm(1.)))==weights_hash(a) and term.seen==6
    with pytest.raises(InputError, match='cbs'): fit(data, tmp_path/'a', PullTerm(2.))
    with pytest.raises(InputError, match='cbs'): fit(data, tmp_path/'a')
    fit(data, tmp_path/'b')
    assert 'cbs' not in json.loads((tmp_path/'b'/'settings.json').read_text())['settings']

def test_a_term_that_is_not_finite_is_named(data, tmp_path):
    with pytest.raises(InputError, match='`pull` was no longer a finite number in epoch 2 of 3'):
        fit(data, tmp_path/'t', PullTerm(1., bad=1), pairs=24)
    assert (len(pd.read_csv(tmp_path/'t'/'log.csv'))==1
            and not (tmp_path/'t'/'G.safetensors').exists())

class Named(tr.Callback):
    def __init__(self, called, of=lambda o: o.mean()): self.called,self.of = called,of
    def after_fake(self): self.losses.add(self.called, self.of(self.fake))

@pytest.mark.parametrize('name', ['l1','pull','active','d_fake','judge','epoch'])
def test_two_terms_of_one_name(data, tmp_path, name):
    "One sentence, without what fastai says before it"
    class First(tr.Callback):
        def after_fake(self):
            self.losses.add('first', self.fake.mean(), active=self.fake.detach().mean(),
                            pull=self.fake.detach().mean())
    with pytest.raises(InputError) as e: fit(data, tmp_path/'t', First(), Named(name))
    assert (str(e.value)==f"The generator's log has a column {name!r} already; give this term "
            "another name.")

def test_numbers_of_a_term_hide_none():
    terms = tr.Terms()
    terms.add('first', torch.tensor(1.))
    with pytest.raises(InputError, match="'first' already"):
        terms.add('second', torch.tensor(2.), first=torch.tensor(3.))
    assert list(terms)==['first'] and list(terms.log)==['first']
    terms['second'] = torch.tensor(4.)
    assert terms['second']==terms.log['second']==4.
    with pytest.raises(InputError, match='already'): terms['first'] = torch.tensor(5.)
    assert terms['first']==1.

def test_a_term_is_one_number(data, tmp_path):
    with pytest.raises(InputError, match=r'^The term \'each\' must be one number, but has the '
                       r'shape \(8, 3, 64, 32\); take its mean or its sum.$'):
        fit(data, tmp_path/'t', Named('each', lambda o: o))

def test_what_a_run_remembers_of_a_callback():
    cb = PullTerm(2.)
    cb.net,cb.learn = reid_net(3, 'small', 4),None
    assert tr.callback_id(cb) == {'class':'PullTerm', 'share':2., 'bad':None, 'seen':0,
                                  'net':weights_hash(cb.net)}
    cb.net = torch.zeros(3)
    assert tr.callback_id(cb)['net']=='Tensor'


def test_apart_equals_mixed_without_batch_statistics(stage):
    a,b = stage(norm='instance'),stage(norm='instance', aux='apart')
    for o in (a,b): o.forward()
    torch.testing.assert_close(a.fake, b.fake, rtol=1e-4, atol=1e-5)

def test_unguided_needs_no_guider(stage):
    cb = stage(beta=0., adv=0.)
    assert cb.model.R is None
    D = state(cb.model.D)
    cb.step()
    assert cb.terms['guide']==0==cb.terms['adv'] and not moved(cb.model.D, D)

def test_guider_input(data):
    x = to_float(data.store.get(data.train.path[:3]))
    assert torch.equal(data.R(guider_input(x)), data.R(x))
    x.requires_grad_()
    y = guider_input(x, (72,40), (64,32), pad=2)
    assert y.shape==x.shape
    assert torch.equal(centre_crop(x, (60,20)), x[...,2:62,6:26])
    torch.manual_seed(0)
    white,at = torch.ones(1,1,8,6),set()
    for _ in range(200):
        moved = tr.shifted(white, 2)[0,0]
        h,w = (moved==1).any(1).sum().item(),(moved==1).any(0).sum().item()
        assert set(moved.unique().tolist()) <= {-1.,1.} and (moved==1).sum()==h*w  # black comes in
        at.add((h if moved[0,0]==1 or (moved[0]==1).any() else -h,
                w if (moved[:,0]==1).any() else -w))
    # every shift of up to two pixels, either way
    assert at=={(a,b) for a in (8,7,6,-7,-6) for b in (6,5,4,-5,-4)}
    y.sum().backward()
    assert (x.grad!=0).any()

def test_transfer_stopped_equals_unstopped(data, tmp_path, monkeypatch, when=1):
    kw,before = (dict(ema=.9, lr_decay=.5, foreground=1., dropout=.1, guider_pad=2),
                 weights_hash(data.R))
    whole = data.transfer(tmp_path/'whole', **kw)
    interrupt(monkeypatch, when)
    with pytest.raises(KeyboardInterrupt): data.transfer(tmp_path/'stopped', **kw)
    monkeypatch.undo()
    assert weights_hash(data.transfer(tmp_path/'stopped', **kw)) == weights_hash(whole)
    same_files(tmp_path/'whole', tmp_path/'stopped', 'G.safetensors', 'D.safetensors', 'log.csv',
               'metrics.json', 'samples.png')
    assert weights_hash(data.R)==before and not data.R.training
    assert weights_hash(load_generator(tmp_path/'whole'))==weights_hash(whole)
    log = pd.read_csv(tmp_path/'whole'/'log.csv')
    assert list(log.epoch)==[0,1,2] and {'adv','l1','guide','d_real','d_fake'} < set(log.columns)

def test_begin_with_other_weights(data, tmp_path):
    first = data.transfer(tmp_path/'a')
    s = TransferSettings(**{**SMALL, 'lr':0., 'norm':'batch'})
    fit = lambda o, init: train_transfer(data.target, data.source, data.poses, data.store,
                                         data.labels, data.R, s, tmp_path/o, init=init)
    for o,init in (('b',tmp_path/'a'), ('c',tmp_path/'a'/'G.safetensors')):
        assert all(torch.equal(p,q) for p,q in zip(fit(o, init).parameters(), first.parameters()))
    with pytest.raises(InputError, match='init'): fit('b', None)

@pytest.mark.parametrize('kw,said', [(dict(gan='wgan'),'wgan'), (dict(aux='x'),'transfer.aux'),
                                     (dict(parts=0),'transfer.parts'), (dict(size=(64,30)),'halve'),
                                     (dict(pair='same'),'same'), (dict(norm='layer'),'layer')])
def test_bad_transfer_settings(data, tmp_path, kw, said):
    with pytest.raises(InputError, match=said): data.transfer(tmp_path/'t', **kw)

def test_guided_without_guider(data, tmp_path):
    with pytest.raises(InputError, match='beta=0'):
        train_transfer(data.target, data.source, data.poses, data.store, data.labels, None,
                       TransferSettings(), tmp_path/'t')


# Generate

@pytest.fixture(scope='module')
def G(): 
    torch.manual_seed(1)
    return tr.transfer_model(TransferSettings(**SMALL, beta=0.)).G.eval()

def test_plan(data):
    one,two = (plan(data.target, data.source, data.poses, GenerateSettings(n_each=n))
               for n in (1,2))
    assert len(two)==2*len(data.train) and (two.k==[0,1]*len(data.train)).all()
    assert (two[two.k==0].pose_path.values==one.pose_path.values).all()
    assert (two.groupby('source_path').pose_path.nunique()==2).all()
    assert (set(two.source_path)==set(data.train.path)
            and set(two.pose_path) <= set(data.source.path))
    assert (plan(data.target, data.source, data.poses, GenerateSettings(seed=1))
            .pose_path!=two.pose_path).any()

def test_no_pose_of_a_test_picture_unless_asked(data):
    test = data.target[data.target.split=='query'].assign(split='train')
    mixed = pd.concat([data.source, test], ignore_index=True)
    with pytest.raises(InputError, match=f'{len(test)} pictures of the source are test pictures'):
        plan(data.target, mixed, data.poses, GenerateSettings())
    assert len(plan(data.target, mixed, data.poses, GenerateSettings(test_poses=True)))==len(
        plan(data.target, data.source, data.poses, GenerateSettings()))


def test_names(): 
    assert generated_name('/a/0002_c1s1_000451_03.jpg', 1)=='0002_c1s1_000451_03_g1.jpg'
    assert generated_name('/a/0002_c1s1_000451_03.jpg.jpg', 0)=='0002_c1s1_000451_03.jpg_g0.jpg'

def test_generated_set(data, G, tmp_path):
    s = GenerateSettings(bs=50)
    df = generate(G, data.target, data.source, data.poses, data.store, s, tmp_path/'g')
    back = read_generated(tmp_path/'g')
    pd.testing.assert_frame_equal(df, back)
    real = data.train.set_index('path')
    assert len(df)==2*len(real) and df.is_generated.all() and (df.generator==weights_hash(G)).all()
    src = real.loc[df.source_path]
    assert (src.pid.values==df.pid.values).all() and (src.camid.values==df.camid.values).all()
    other = generate(G, data.target, data.source, data.poses, data.store, GenerateSettings(bs=7),
                     tmp_path/'h')
    same = [Path(a).read_bytes()==Path(b).read_bytes() for a,b in zip(df.path, other.path)]
    # a picture depends on (x, s, weights) alone, to the rounding of a byte
    assert sum(same) > .95*len(same)

def test_generate_leaves_nothing_half(data, G, tmp_path, monkeypatch):
    was,n = gen.save_jpegs,[]
    def stop(*a):
        if n: raise KeyboardInterrupt
        n.append(was(*a))
    monkeypatch.setattr(gen, 'save_jpegs', stop)
    fit = lambda: generate(G, data.target, data.source, data.poses, data.store,
                           GenerateSettings(bs=50), tmp_path/'g')
    with pytest.raises(KeyboardInterrupt): fit()
    assert [o.name for o in (tmp_path/'g').iterdir()]==['settings.json']
    monkeypatch.undo()
    assert len(fit())==2*len(data.train)

def test_too_few_pictures(data, tmp_path):
    todo = plan(data.target, data.source, data.poses, GenerateSettings(n_each=1))
    with pytest.raises(InputError, match='but 3 came'):
        write_generated(torch.zeros(3,3,64,32, dtype=torch.uint8), todo, tmp_path/'g', 'x')
    assert not (tmp_path/'g'/'bounding_box_train').exists()


# Augment

@pytest.fixture
def extra(data):
    todo = plan(data.target, data.source, data.poses, GenerateSettings())
    return todo.assign(path=[f'/x/{generated_name(p,k)}' for p,k in zip(todo.source_path, todo.k)],
                       split='train', is_generated=True)

def test_augment(data, extra):
    both = augment(data.target, extra)
    assert (len(both)==3*len(data.train) and both.is_generated.sum()==len(extra)
            and set(both.split)=={'train'})
    assert train_labels(both)==data.labels

def test_augment_refuses(data, extra):
    for bad,said in ((extra[:0],'empty'), (extra.assign(pid=9999),'9999'),
                     (extra.assign(is_generated=False),'not'),
                     (extra.assign(source_path='/q/else.jpg'),'else.jpg')):
        with pytest.raises(InputError, match=said): augment(data.target, bad)

# --- recipes, triplets, folders ---

@pytest.mark.parametrize('name', RECIPES['paper'])
def test_a_step_of_each_recipe_at_paper_size(name, data, tmp_path):
    "256×256, 224×224 cropped; batches of two pictures, or of two people with four each"
    paper = ReIDSettings(**{**PRESETS['paper']['reid'], **recipe(name), 'weights':''})
    s = replace(paper, epochs=1, bs=8 if paper.loss=='triplet' else 2)
    df = (data.train[data.train.pid.isin(sorted(data.labels)[:2])].groupby('pid')
          .head(4 if s.loss=='triplet' else 1))
    net = train_reid(df, PictureStore(s.size), train_labels(df), s, tmp_path/'run')
    assert (net.head is None)==(s.loss=='triplet') and all(p.isfinite().all()
        for p in net.parameters())
    assert (s.size, s.crop, s.momentum, s.weight_decay)==((256,256), (224,224), .9, 5e-4)


def test_recipes_say_what_the_paper_says():
    r = RECIPES['paper']
    assert [(r[k]['lr'], r[k]['milestones'], r[k]['bs'], r[k]['dropout'])
            for k in ('R-CE','D-CE','R-Tri','D-Tri')]==[
        (1e-3,(30,),16,.5), (1e-2,(25,),16,0.), (1e-3,(),128,0.), (1e-3,(),128,0.)]
    assert (all(o['epochs']==50 for o in r.values()) and ReIDSettings().margin==1
            and ReIDSettings().margin_generated==.5)
    t = experiment_settings('paper')['transfer']
    assert (t.size, t.lr, t.betas, t.lam, t.beta, t.adv)==((256,256), 2e-4, (.5,.999), 10, 1, 1)
    for size in RECIPES:
        for name in r:
            assert (other_form(replace(ReIDSettings(), **recipe(name, size)))
                    .loss!=recipe(name, size).get('loss', 'ce'))


def test_triplets_stopped_equal_unstopped(data, tmp_path, monkeypatch):
    s = ReIDSettings(width=4, epochs=3, bs=16, loss='triplet')
    train = lambda folder, **kw: train_reid(data.train, data.store, data.labels, s, folder, **kw)
    whole = weights_hash(train(tmp_path/'whole'))
    interrupt(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt): train(tmp_path/'parts', every=0)
    monkeypatch.undo()
    assert weights_hash(train(tmp_path/'parts'))==whole
    assert pd.read_csv(tmp_path/'whole'/'log.csv').columns.tolist()==['epoch','loss','active',
        'triplets','d_ap','d_an','margin']


def test_single_pictures_are_told(data, tmp_path):
    df = data.train.groupby('pid').head(4)
    df = pd.concat([df[df.pid!=df.pid.iloc[0]], df.iloc[:1]])
    with pytest.warns(UserWarning, match='1 pictures are in no triplet'):
        train_reid(df, data.store, train_labels(df),
                   ReIDSettings(width=4, epochs=1, bs=16, loss='triplet'), tmp_path/'run')


def test_triplet_guider_is_frozen_and_guides(data, tmp_path):
    torch.manual_seed(0)
    T = reid_net(None, 'small', 4)
    T(to_float(data.store.get(data.train)))
    before = state(freeze(T))
    s = TransferSettings(**SMALL)
    train = lambda folder, **kw: train_transfer(data.target, data.source, data.poses, data.store,
                                                data.labels, T, replace(s, **kw), folder, every=0)
    G = train(tmp_path/'run')
    assert all(torch.equal(v, before[k]) for k,v in T.state_dict().items())
    log = pd.read_csv(tmp_path/'run'/'log.csv')
    assert (log.guide>0).all() and log.active.between(0, 1).all()
    assert weights_hash(G)!=weights_hash(train(tmp_path/'free', beta=0.))


def test_people_are_in_one_part_only(data):
    target,source,held = share_people(data.target, seed=3, validation=2)
    assert (len({*target, *source, *held})==len(target)+len(source)+len(held)
            ==data.train.pid.nunique())
    again,other = (share_people(data.target, seed=o, validation=2)[0].tolist() for o in (3, 4))
    assert again==target.tolist()!=other
    for ids in (1, 8):
        with pytest.raises(InputError, match='--ids'):
            share_people(data.target, ids=ids, validation=2)


def test_one_folder_of_all_kinds_of_pictures(data, tmp_path):
    root = tmp_path/'set'
    shutil.copytree(tiny_world()/'target', root)
    shutil.copy(tiny_world()/'target_poses.csv', tmp_path/'set_poses.csv')
    some = sorted((root/'bounding_box_train').iterdir())[:4]
    for p,mode in zip(some, ('L','RGBA','P','I;16')):
        im = Image.open(p)
        # a png by another name is read by its content
        (im.convert('L').convert('I;16') if mode=='I;16' else im.convert(mode)).save(p, 'png')
    wide = sorted((root/'query').iterdir())[0]
    Image.open(wide).resize((90,40)).save(wide)
    with pytest.raises(InputError, match='convert'):
        folder_inputs(root, poses=tmp_path/'set_poses.csv').store((64,32)).get(some)
    i = folder_inputs(root, convert=True, need_poses=False)
    assert i.store((64,32)).get([*some, wide]).shape==(5,3,64,32)

# --- names and keys of generated sets

def test_names_of_a_whole_set():
    "The base name, with its folder where base names repeat, with its ending where those differ alone, with a number where nothing else helps"
    names = lambda *paths: generated_names([o for o in paths for _ in (0,1)], [0,1]*len(paths))
    both = lambda *stems: [f'{o}_g{k}.jpg' for o in stems for k in (0,1)]
    assert names('/a/x.JPG', '/b/y.webp', '/b/z') == both('x', 'y', 'z')
    assert names('/a/p/0.jpg', '/a/q/0.jpg', '/a/q/1.jpg') == both('p_0', 'q_0', 'q_1')
    assert names('/a/x.jpg', '/a/x.png', '/a/y.png') == both('x.jpg', 'x.png', 'y')
    assert names('/a/p_q/0.jpg', '/a/p/q_0.jpg',
                 '/a/p/0.jpg') == both('p_q_0.jpg-1', 'p_q_0.jpg-2', 'p_0')
    assert names('/a/x.v2', '/a/x.jpg.jpg') == both('x.v2', 'x.jpg')
    assert (generated_name('x.JPeG', 0) == 'x_g0.jpg' and generated_name('x.v2', 3) == 'x.v2_g3.jpg'
            and generated_name('x', 1) == 'x_g1.jpg')

def todo(**kw):
    return pd.DataFrame({**dict(source_path=['/a/1.jpg','/a/1.jpg','/b/2.jpg','/b/2.jpg'],
                                pose_path=['/s/3.jpg','/s/4.jpg']*2, k=[0,1]*2, pid=[5,5,9999,9999],
                                camid=[0,0,9,9]), **kw})

def test_market_names_by_hand():
    want = ['0005_c1s1_000001_00.jpg', '0005_c1s1_000001_01.jpg', '9999_c9s1_000002_00.jpg',
            '9999_c9s1_000002_01.jpg']
    assert (market_names(todo()) == want
            and [parse_market_name(o).pid for o in want] == [5,5,9999,9999])
    for kw in (dict(pid=[5,5,10000,1]), dict(pid=[0,1,1,1]), dict(camid=[0,0,10,1]),
               dict(k=[0,1,0,100])):
        with pytest.raises(InputError, match='--names source'): market_names(todo(**kw))

def test_a_plan_by_its_keys():
    "Two plans are one if their pictures are, wherever the set lies; pictures of one base name in two folders are two"
    moved = todo(source_path=[o.replace('/a/', '/else/a/').replace('/b/', '/else/b/')
                              for o in todo().source_path])
    assert (plan_id(todo()) == plan_id(moved) != plan_id(todo(k=[1,0]*2))
            != plan_id(todo(pose_path=['/s/4.jpg','/s/3.jpg']*2)))
    a,b = (todo(source_path=[f'/a/{p}/0.jpg' for p in ps]) for ps in ('ppqq', 'qqpp'))
    assert plan_id(a) != plan_id(b)

def test_pictures_by_their_keys(tmp_path):
    "`frame_id`: the same where the set was moved, another where people are exchanged or a file is"
    for p,n in (('p',8), ('q',9)):
        (tmp_path/'a'/p).mkdir(parents=True)
        Image.new('RGB', (8,n)).save(tmp_path/'a'/p/'0.bmp')
    shutil.copytree(tmp_path/'a', tmp_path/'b')
    df = lambda home, people: make_manifest([dict(path=str(tmp_path/home/p/'0.bmp'), pid=i,
                                                  split='train') for i,p in people])
    one = engine.frame_id(df('a', [(1,'p'),(2,'q')]))
    assert (one == engine.frame_id(df('b', [(1,'p'),(2,'q')]))
            != engine.frame_id(df('a', [(2,'p'),(1,'q')])))
    for p in 'pq': Image.new('RGB', (8,8)).save(tmp_path/'b'/p/'0.bmp')
    assert engine.frame_id(df('b', [(1,'p'),(2,'q')])) != one
    # alone, the base name is the key
    assert (engine.frame_id(df('b', [(1,'p'),(1,'q')])[:1])
            == engine.frame_id(df('b', [(1,'q'),(1,'p')])[:1]))
    # equal sizes, people exchanged
    same = [df('b', [(i,p)]*1 + [(j,q)]) for i,p,j,q in ((1,'p',2,'q'), (1,'q',2,'p'))]
    assert engine.frame_id(same[0]) != engine.frame_id(same[1])

def test_own_ids_go_into_plan_and_map(data, tmp_path):
    target = data.target.assign(own_id=[f'id{p}' for p in data.target.pid])
    one = plan(target, data.source, data.poses, GenerateSettings(n_each=1))
    assert one.own_id.tolist() == [f'id{p}' for p in one.pid]
    few = one.iloc[:3].assign(pid=[1,2,3])
    df = write_generated(torch.zeros(3,3,16,8, dtype=torch.uint8), few, tmp_path/'g', 'x',
                         names='market1501')
    back = pd.read_csv(tmp_path/'g'/'names.csv')
    assert (back.own_id.tolist() == few.own_id.tolist()
            and back.pose.tolist() == [Path(o).name for o in few.pose_path]
            and back.name.tolist() == [Path(o).name for o in df.path])
    assert 'own_id' not in plan(data.target.drop(columns='own_id', errors='ignore'), data.source,
                                data.poses, GenerateSettings(n_each=1))

def test_names_are_a_setting(data, G, tmp_path):
    "A set under other names is another set; too many people are refused before anything is painted"
    make = lambda d, target=data.target, **kw: generate(G, target, data.source, data.poses,
        data.store, GenerateSettings(n_each=1), tmp_path/d, **kw)
    make('g')
    assert 'names' not in json.loads((tmp_path/'g'/'settings.json').read_text())
    with pytest.raises(InputError, match='names'): make('g', names='market1501')
    many = data.target.assign(pid=data.target.pid.where(data.target.pid < 1, data.target.pid+9999))
    with pytest.raises(InputError, match='--names source'): make('m', many, names='market1501')
    with pytest.raises(InputError, match='one of source, market1501'): make('m', names='sourc')
    assert not (tmp_path/'m').exists()

def test_copies_of_test_pictures_lend_no_poses(data, tmp_path):
    "A copy has the name and the bytes of a test picture; a picture of another set may have its name"
    test = data.target[data.target.split=='gallery']
    def under(folder, paths):
        (tmp_path/folder).mkdir()
        new = [str(tmp_path/folder/Path(o).name) for o in test.path]
        for a,b in zip(paths, new): Path(b).write_bytes(Path(a).read_bytes())
        return test.assign(split='train', path=new)
    copies,others = under('copy', test.path),under('others', data.train.path[:len(test)])
    refused = lambda src: pytest.raises(InputError, match=f'{len(src)} pictures of the source are '
                                        'test pictures')
    with refused(copies): gen._refuse_test_poses(data.target, copies)
    gen._refuse_test_poses(data.target, others)
    twice = pd.concat([copies, others])
    with refused(copies): gen._refuse_test_poses(data.target, twice)
    # in query and gallery at once, as MARS has them
    both = pd.concat([data.target, test.assign(split='query', camid=test.camid+1)])
    with refused(copies): gen._refuse_test_poses(both, copies)
    again = pd.concat([others, test])
    with refused(test): gen._refuse_test_poses(data.target, again)

# --- generated people are those of their sources

def test_a_generated_person_is_its_sources(data, extra):
    people = sorted(data.labels)
    wrong = extra.copy()
    wrong.loc[3,'pid'] = next(p for p in people if p != wrong.pid[3])
    with pytest.raises(InputError, match='1 of the generated pictures are of another person.*'
                       f'{Path(wrong.path[3]).name}.*of {wrong.pid[3]} and not of {extra.pid[3]}'):
        augment(data.target, wrong)
    # the target lay elsewhere then
    moved = extra.assign(source_path=['/moved/'+Path(o).name for o in extra.source_path])
    assert len(augment(data.target, moved)) == 3*len(data.train)
    assert len(augment(data.target, extra.drop(columns='source_path'))) == 3*len(data.train)

def test_sources_whose_names_repeat():
    "Two people with `0.jpg` each: by path, or by folder and name where the set was moved"
    real = make_manifest([dict(path=f'/set/{p}/{i}.jpg', pid=n, split='train')
                          for n,p in ((1,'p'),(2,'q')) for i in (0,1)])
    fake = lambda home, pids: make_manifest(
        [dict(path=f'/g/{i}.jpg', pid=n, split='train', is_generated=True,
              source_path=f'{home}/{p}/{k}.jpg')
         for i,(n,p,k) in enumerate(zip(pids, 'ppqq', (0,1,0,1)))])
    for home in ('/set','/moved'):
        assert len(augment(real, fake(home, (1,1,2,2)))) == 8
        with pytest.raises(InputError, match='4 of the generated pictures'):
            augment(real, fake(home, (2,2,1,1)))
    # alone its base name is its key, which no real picture has; its path is known
    one = fake('/set', (1,1,2,2)).iloc[:1]
    assert len(augment(real, one)) == 5

# --- folders as inputs

@pytest.fixture
def sets(tmp_path):
    "The tiny target and source, with their keypoints beside them"
    w = tiny_world()
    for o in ('target','source'):
        shutil.copytree(w/o, tmp_path/o)
        shutil.copy(w/f'{o}_poses.csv', tmp_path/f'{o}_poses.csv')
    return tmp_path

def test_settings_remember_what_was_said(sets):
    "A run that says nothing of reading has the settings that it always had"
    origin = lambda **kw: folder_inputs(sets/'target', need_poses=False, **kw).origin
    plain = dict(data=str(sets/'target'), source=None, convert=False)
    assert (origin() == origin(cameras=True, layout=None, choices={})
            == origin(choices=dict(read={})) == plain)
    said = dict(read=dict(odd='skip'))
    assert origin(cameras=False, layout='market1501', choices=said) == {**plain, 'cameras':False,
        'layout':'market1501', **said}
    i = folder_inputs(sets/'target', need_poses=False, cameras=False)
    assert i.cameras is False and folder_inputs(sets/'target', need_poses=False).cameras is True

def test_every_picture_is_read_before_anything_is_trained(sets):
    i = folder_inputs(sets/'target', sets/'source')
    assert len(i.store((64,32))) == len(i.target)+len(i.source)
    for home,p in (('source', i.source.path[3]), ('target', i.target.path.iloc[-1])):
        raw = Path(p).read_bytes()
        Path(p).write_bytes(raw[:-200])
        with pytest.raises(InputError, match='truncated'):
            folder_inputs(sets/'target', sets/'source')
        Path(p).write_bytes(raw)

def test_inputs_are_fit_for_their_use(sets):
    "A source has to be fit for training; a set scored on people set aside needs no test pictures; one camera alone is refused unless cameras do not count"
    i = folder_inputs(sets/'target', sets/'source')
    df = i.source.assign(split='train')[['path','pid','split','camid']]
    df.assign(pid=1).to_csv(sets/'one.csv', index=False)
    with pytest.raises(InputError, match='one.csv has .* 1 identities'):
        folder_inputs(sets/'target', sets/'one.csv', source_poses=sets/'source_poses.csv')
    t = i.target[i.target.pid > 0][['path','pid','split']].assign(camid=1)
    t.to_csv(sets/'cam.csv', index=False)
    with pytest.raises(InputError, match='--no_cameras'):
        folder_inputs(sets/'cam.csv', need_poses=False)
    assert len(folder_inputs(sets/'cam.csv', need_poses=False, cameras=False).target) == len(t)
    for o in ('query','bounding_box_test'): shutil.rmtree(sets/'target'/o)
    with pytest.raises(InputError, match='query'): folder_inputs(sets/'target', need_poses=False)
    assert (set(folder_inputs(sets/'target', need_poses=False, need_test=False).target.split)
            == {'train'})
    held = folder_inputs(sets/'target', need_poses=False, validation=True)
    assert set(held.target.split) == {'train','query','gallery'}

def test_each_set_by_its_own_choices(sets):
    "Layout, choices and keypoint choices of target and source are not mixed up"
    for o in ('target/bounding_box_train','source/bbox_train'):
        (next((sets/o).rglob('*.jpg')).parent/'holiday.jpg').write_bytes(b'x')
    with pytest.raises(InputError, match='holiday.jpg'):
        folder_inputs(sets/'target', sets/'source', choices=dict(read=dict(odd='skip')))
    how = dict(read=dict(odd='skip'), source_read=dict(odd='skip', layout='mars'))
    i = folder_inputs(sets/'target', sets/'source', choices=how)
    assert ([o.split(':')[0] for o in i.notes if 'skipped: 1 (holiday.jpg)' in o]
            == ['target','source'] and how['source_read']['layout'] == 'mars')
    with pytest.raises(InputError, match='msmt17|MSMT17'):
        folder_inputs(sets/'target', sets/'source',
                      choices={**how, 'source_read':dict(layout='msmt17')})
    for k in ('pose_read','source_pose_read'):
        with pytest.raises(InputError, match="'peple'"):
            folder_inputs(sets/'target', sets/'source', choices={**how, k:dict(peple='first')})
    for k in ('pose_read','source_pose_read'):  # another format than that of the file
        other = 'source' if k=='source_pose_read' else 'target'
        with pytest.raises(InputError, match=f'{other}_poses'):
            folder_inputs(sets/'target', sets/'source', choices={**how, k:dict(format='fdgan')})

def test_joints_of_two_sets(sets):
    "Each set has the joints of its own file; a picture of both counts once; base names are keys where they tell all pictures apart"
    from posereid.pose.table import PoseTable
    from posereid.pose.files import read_poses
    i = folder_inputs(sets/'target', sets/'source')
    for o in ('target','source'):
        df,t = getattr(i, o),read_poses(sets/f'{o}_poses.csv')
        assert torch.equal(i.poses.of(df), t.of(df))
    assert (len(i.poses) == len(i.target)+len(i.source)
            and i.poses.names[0] == Path(i.poses.names[0]).name)
    from posereid.experiment.inputs import _both
    a,b = PoseTable(['x','y'], i.poses.joints[:2]),PoseTable(['y','z'], i.poses.joints[2:4])
    assert _both(a, b).names == ['x','y','z'] and torch.equal(_both(a, b).joints,
        i.poses.joints[[0,1,3]])

def test_one_name_in_target_and_source(sets):
    "A source picture called like one of the target: both keep their own joints, by path"
    from posereid.pose.table import PoseTable
    from posereid.pose.files import write_market_csv
    i = folder_inputs(sets/'target', sets/'source')
    names,twin = [Path(o).name for o in i.source.path],sets/'lent'/Path(i.train.path[0]).name
    twin.parent.mkdir()
    shutil.copy(i.source.path[0], twin)
    (i.source.assign(path=[str(twin), *i.source.path[1:]])[['path','pid','split']]
     .to_csv(sets/'lent.csv', index=False))
    write_market_csv(sets/'lent_poses.csv',
                     PoseTable([twin.name, *names[1:]], i.poses.of(i.source)))
    two = folder_inputs(sets/'target', sets/'lent.csv')
    assert not torch.equal(i.poses.of(i.source[:1]), i.poses.of(i.train[:1]))
    assert (torch.equal(two.poses.of([str(twin)]), i.poses.of(i.source[:1]))
            and torch.equal(two.poses.of(i.train), i.poses.of(i.train)))

def test_keypoints_of_a_csv_know_its_neighbours(sets):
    "A CSV's set is its folder: poses of pictures beside it, which it does not list, are counted and told"
    df = load_dataset(sets/'target')
    df[df.split=='train'][['path','pid','split','camid']].to_csv(sets/'part.csv', index=False)
    shutil.copy(sets/'target_poses.csv', sets/'part_poses.csv')
    i = folder_inputs(sets/'part.csv', need_test=False)
    n = (df.split!='train').sum()
    assert [o for o in i.notes if 'part_poses.csv: pictures of the set that are not '
            'read here' in o][0].split(': ')[2].split(',')[0] == str(n)

def test_where_keypoints_lie(sets):
    root = sets/'x'
    for name in ('x_poses','x_poses.mat','x_poses.json','x_poses.csv'):
        (sets/name).mkdir() if name=='x_poses' else (sets/name).touch()
        assert poses_beside(root) == sets/name
    assert (poses_beside(sets/'x.csv') == sets/'x_poses.csv'
            and poses_beside(root, sets/'x_poses.mat') == sets/'x_poses.mat')
    for args in ((root, sets/'none.csv'), (sets/'y',)):
        with pytest.raises(InputError, match='none.csv|y_poses.csv'): poses_beside(*args)

def test_splits_that_are_wanted(sets):
    shutil.rmtree(sets/'target'/'query')
    want = ('train','query','gallery')
    assert set(read_set(sets/'target', want, optional=True).split) == {'train','gallery'}
    with pytest.raises(InputError, match='query'): read_set(sets/'target', want)
    assert set(read_set(sets/'target', want, choices=dict(splits='gallery')).split) == {'gallery'}
    df = load_dataset(sets/'target', splits=('train','gallery'))
    df[['path','pid','split','camid']].to_csv(sets/'t.csv', index=False)
    assert len(read_set(sets/'t.csv', ('train',))) == len(df)  # a table is read whole

# --- scores by the cameras or without

def test_scores_without_cameras(sets, tmp_path):
    "`score_model` ranks by the inputs' own rule, and per_query.csv names each query that is ranked, by a key of its own"
    from posereid.experiment import engine as ex
    t = pick(load_dataset(sets/'target'))
    t = t[(t.pid > 0) & (t.split!='train')].reset_index(drop=True)
    q = t[t.split=='query']
    rows = []
    for r in t.itertuples():
        p = sets/'own'/f'{r.split}{r.Index}'/'0.jpg'
        p.parent.mkdir(parents=True)
        shutil.copy(r.path, p)
        rows.append(dict(path=str(p), pid=r.pid, split=r.split, camid=1))
    real = pick(load_dataset(sets/'target'), 'train')[['path','pid','split']].assign(camid=1)
    pd.concat([pd.DataFrame(rows), real]).to_csv(sets/'own.csv', index=False)
    i = folder_inputs(sets/'own.csv', need_poses=False, cameras=False)
    net = reid_net(len(i.train.pid.unique()), 'small', 4).eval()
    path = tmp_path/'r'; path.mkdir()
    res = ex.score_model(net, i, ReIDSettings(width=4), path)
    back = pd.read_csv(path/'per_query.csv')
    assert ('no cameras' in res['protocol'] and len(back) == len(q)
            and set(back['query']) == {f'query{k}/0.jpg' for k in q.index})
    assert [int(q.pid[int(o[5:].split('/')[0])]) for o in back['query']] == back.pid.tolist()

def test_scores_of_tracklets(tmp_path):
    "On MARS each line of per_query.csv is a tracklet"
    from posereid.experiment.engine import score_model
    from posereid.synth.sets import toy_sets
    i = folder_inputs(toy_sets()/'MARS', need_poses=False)
    res = score_model(reid_net(i.train.pid.nunique(), 'small', 4).eval(), i,
                      ReIDSettings(width=4), tmp_path)
    q = pick(i.target, 'query')
    assert (len(pd.read_csv(tmp_path/'per_query.csv')) == q.tracklet.nunique() < len(q)
            and 'tracklets pooled by max' in res['protocol'])

def test_drawn_pictures_are_those_of_the_plan(sets, tmp_path):
    "Rows of a plan find their pictures by source and pose, whatever files are called"
    from posereid.experiment.engine import Experiment
    from posereid.experiment.rows import pick_rows
    i = folder_inputs(sets/'target', sets/'source')
    exp = Experiment(pick_rows('control,guided'), experiment_settings('smoke'), tmp_path/'run', i)
    whole = exp.pose_plan(exp.groups)
    shade = (torch.arange(len(whole)) % 250).to(torch.uint8)
    write_generated(shade[:,None,None,None].expand(-1,3,64,32), whole, tmp_path/'g', 'x')
    some = whole.iloc[[5,0,17]]
    assert exp.drawn(tmp_path/'g', some).float().mean((1,2,3)).round().tolist() == [5,0,17]

def test_a_line_comes_again_by_its_command(sets, tmp_path):
    from posereid.experiment.tables import _command, open_part, TABLES
    d = dict(data=sets/'target', poses=None, cameras=False, layout='market1501',
             choices=dict(read=dict(odd='skip', links='true'), pose_read=dict(people='first')))
    said = _command('tbl1', 1, 'control', dict(preset='smoke', data=d, opts=[]))
    for o in ('--data target', '--no_cameras', '--layout market1501', '--read odd=skip links=true',
              '--pose_read people=first'):
        assert o in said, (o, said)
    plain = _command('tbl1', 1, 'control',
                     dict(preset='smoke', data=dict(data=sets/'target', cameras=True), opts=[]))
    assert not any(o in plain for o in ('--no_cameras', '--layout', '--read'))
    (sets/'target'/'query'/'note.txt').touch()
    told = []
    open_part(TABLES['tbl1']['parts'][0], [], 1, tmp_path/'runs', 'smoke',
              dict(data=sets/'target', need_poses=False), say=told.append)
    assert any('files that are no pictures' in o for o in told)

# --- what a console lacks

@pytest.mark.parametrize('encoding,want', [('ascii', 'eps -1 +- Muller ?? 1,000'),
                                           ('cp1252', 'eps -1 ± Müller ?? 1,000'),
                                           ('iso-8859-7', 'ε -1 ± Muller ?? 1,000'),
                                           ('utf-8', 'ε −1 ± Müller 李□ 1,000')])
def test_letters_that_a_console_lacks(encoding, want):
    "Each letter that is lacking is written in ASCII, the others stay; a stream of another kind is left alone"
    import io
    from posereid.core import plain_console
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    plain_console(out, None, io.StringIO(), object())
    out.write('ε −1 ± Müller 李□ 1,000')
    out.flush()
    assert out.buffer.getvalue().decode(encoding) == want
