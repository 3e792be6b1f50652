"The three steps: who moves, who does not, and that stopping changes nothing"
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from posereid.core import InputError, weights_hash
from posereid.data.block import PictureStore, to_float
from posereid.data.layouts import read_generated
from posereid.data.manifest import pick, train_labels
from posereid.models.reid import reid_net
from posereid.stages import generate as gen, guider as gd, transfer as tr
from posereid.stages.augment import augment, smoothed_eps
from posereid.stages.generate import GenerateSettings, generate, generated_name, plan, write_generated
from posereid.stages.guider import ReIDSettings, equal_steps, freeze, load_reid, step_lr, train_reid
from posereid.stages.inputs import folder_inputs, share_people
from posereid.stages.presets import PRESETS, RECIPES, experiment_settings, other_form, recipe
from posereid.stages.transfer import TransferSettings, guider_input, load_generator, train_transfer
from posereid.synth.world import load_world, tiny_world

SMALL = dict(width=4, d_width=4, d_layers=2, bs=8, pairs=48, parts=3)


class Data:
    "The tiny world, its pictures, labels, and a guider that has seen a batch, so that its running statistics are not 0 and 1"
    def __init__(self):
        w = load_world(tiny_world())
        self.target,self.source,self.poses = w.target,w.source,w.poses
        self.train,self.labels,self.store = pick(w.target, split='train'),train_labels(w.target),PictureStore((64,32))
        torch.manual_seed(0)
        self.R = reid_net(len(self.labels), 'small', 4)
        self.R.head.weight.data.normal_()
        self.R(to_float(self.store.get(self.train)))
        self.R.eval()
    def transfer(self, folder, **kw):
        s = TransferSettings(**{**SMALL, **kw})
        return train_transfer(self.target, self.source, self.poses, self.store, self.labels, self.R, s, folder, every=0)


@pytest.fixture(scope='module')
def data(): return Data()


@pytest.fixture
def stage(data):
    "The transfer callback, one batch in hand, nothing done yet"
    def _stage(**kw):
        torch.manual_seed(0)
        s = TransferSettings(**{**SMALL, **kw})
        dls = tr.stage_batches(data.train, data.source, data.poses, data.store, data.labels, s)
        learn = tr.transfer_learner(dls, tr.transfer_model(s, data.R), s)
        learn.create_opt()
        learn.model.train()
        cb = learn.transfer
        x,y,cb.real,cb.label,cb.is_target = dls.train.one_batch()
        cb.cond,cb.weight,cb.terms,learn.epoch,learn.iter,learn.n_iter = (x,y),None,{},0,0,1
        return cb
    return _stage


def state(net): return {k:v.clone() for k,v in net.state_dict().items()}
def moved(net, before): return any(not torch.equal(v, before[k]) for k,v in net.named_parameters())


# Schedules

def test_step_lr():
    s = ReIDSettings(epochs=10, lr=1., milestones=(.5,.8), gamma=.1)
    assert [round(step_lr(s, e), 6) for e in (0,4.99,5,7.9,8,9.9)] == [1,1,.1,.1,.01,.01]
    assert step_lr(ReIDSettings(warmup=2., lr=1.), 1.) == pytest.approx(.5, abs=1e-3)

def test_equal_steps_stretches_milestones():
    s = equal_steps(ReIDSettings(epochs=20, milestones=(.5,15)), 100, 300)
    assert s.epochs==60 and gd.milestone_epochs(s)==[30,45]

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
    dls = gd.reid_batches(df, data.store, data.labels, s)
    x,y,eps = dls.train.one_batch()
    assert sorted(set(eps.tolist())) == pytest.approx([0., .4])
    learn = gd.reid_learner(dls, data.R, s)
    K,lp = len(data.labels),data.R(x).log_softmax(1)
    hand = torch.stack([-((1-e)*lp[i,t] + e/K*lp[i].sum()) for i,(t,e) in enumerate(zip(y,eps))]).mean()
    torch.testing.assert_close(learn.loss_func(data.R(x), y, eps), hand)

def test_reid_stopped_equals_unstopped(data, tmp_path, monkeypatch, when=2):
    s = ReIDSettings(width=4, epochs=4, bs=16, dropout=.2, warmup=1.)
    fit = lambda folder: train_reid(data.train, data.store, data.labels, s, tmp_path/folder, every=0)
    whole = fit('whole')
    interrupt(monkeypatch, when)
    with pytest.raises(KeyboardInterrupt): fit('stopped')
    monkeypatch.undo()
    assert not (tmp_path/'stopped'/'metrics.json').exists()
    assert weights_hash(fit('stopped')) == weights_hash(whole)
    same_files(tmp_path/'whole', tmp_path/'stopped', 'reid.safetensors', 'log.csv', 'metrics.json')

def same_files(a, b, *names):
    for o in names: assert (a/o).read_bytes()==(b/o).read_bytes(), o
    assert not (b/'checkpoint.pt').exists() and not [o for o in b.iterdir() if o.name.startswith('.')]

def interrupt(monkeypatch, epoch):
    "Ctrl-C in the second batch of an epoch"
    was = gd.EpochLog.after_batch
    def after_batch(self):
        if self.epoch==epoch and self.iter==1: raise KeyboardInterrupt
        was(self)
    monkeypatch.setattr(gd.EpochLog, 'after_batch', after_batch)

def test_reid_once(data, tmp_path, monkeypatch):
    s = ReIDSettings(width=4, epochs=1)
    net = train_reid(data.train, data.store, data.labels, s, tmp_path/'r')
    monkeypatch.setattr(gd, 'fit_stage', lambda *a, **k: pytest.fail('trained twice'))
    again = train_reid(data.train, data.store, data.labels, s, tmp_path/'r')
    x = to_float(data.store.get(data.train.path[:4]))
    assert torch.equal(net(x), again(x)) and not again.training
    with pytest.raises(InputError, match='reid.epochs: 1 → 2'):
        train_reid(data.train, data.store, data.labels, ReIDSettings(width=4, epochs=2), tmp_path/'r')

def test_reid_same_seed_same_net(data, tmp_path):
    s = ReIDSettings(width=4, epochs=1)
    a,b = (train_reid(data.train, data.store, data.labels, s, tmp_path/o) for o in 'ab')
    assert weights_hash(a)==weights_hash(b)

def test_diverged_is_a_sentence(data, tmp_path):
    with pytest.raises(InputError, match='finite'):
        train_reid(data.train, data.store, data.labels, ReIDSettings(width=4, epochs=3, lr=1e12), tmp_path/'r')
    assert not (tmp_path/'r'/'reid.safetensors').exists()

@pytest.mark.parametrize('kw,said', [(dict(epochs=0),'reid.epochs'), (dict(bs=0),'reid.bs'), (dict(size=(32,16)),'reid.size'),
                                     (dict(arch='vgg'),'arch')])
def test_bad_reid_settings(data, tmp_path, kw, said):
    with pytest.raises(InputError, match=said): train_reid(data.train, data.store, data.labels, ReIDSettings(**kw), tmp_path/'r')

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
    assert all(torch.equal(p.grad, g) for p,g in zip(m.D.parameters(), grads)) and all(p.requires_grad for p in m.D.parameters())
    opt.G.step()
    assert moved(m.G, G) and not moved(m.D, D)
    assert all(torch.equal(v, R[k]) for k,v in m.R.state_dict().items())

def test_order_of_a_step(stage, monkeypatch):
    cb,seen = stage(),[]
    for name in ('forward','backward_D','backward_G'):
        was = getattr(type(cb), name)
        monkeypatch.setattr(type(cb), name, lambda self, was=was, name=name: (seen.append(name), was(self))[1])
    for name in 'DG':
        o = getattr(cb.opt, name)
        monkeypatch.setattr(o, 'step', lambda was=o.step, name=name: (seen.append(f'step {name}'), was())[1])
    cb.step()
    assert seen == ['forward','backward_D','step D','backward_G','step G']

def test_guider_sees_target_rows_only(stage):
    cb = stage()
    assert 0 < cb.is_target.sum() < len(cb.is_target)
    cb.forward()
    cb.fake = cb.fake.detach().requires_grad_()
    cb.guide().backward()
    size = cb.fake.grad.abs().flatten(1).sum(1)
    assert (size[~cb.is_target]==0).all() and (size[cb.is_target]>0).all()
    want = F.cross_entropy(cb.model.R(cb.fake[cb.is_target]), cb.label[cb.is_target])
    torch.testing.assert_close(cb.guide(), want)

def test_no_target_row_is_zero(stage):
    cb = stage()
    cb.is_target = torch.zeros_like(cb.is_target)
    cb.step()
    assert cb.terms['guide']==0 and all(torch.isfinite(o) for o in cb.terms.values())

def test_eq_5_by_hand(stage):
    cb = stage(lam=7., beta=.3)
    cb.forward()
    d = cb.model.D(*cb.cond, cb.fake)
    l1,ce = (cb.fake-cb.real).abs().mean(),F.cross_entropy(cb.model.R(cb.fake[cb.is_target]), cb.label[cb.is_target])
    want = torch.autograd.grad(F.softplus(-d).mean() + 7*l1 + .3*ce, list(cb.model.G.parameters()), retain_graph=True)
    cb.backward_G()
    for p,g in zip(cb.model.G.parameters(), want): torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-6)

def test_apart_equals_mixed_without_batch_statistics(stage):
    a,b = stage(norm='instance'),stage(norm='instance', aux='apart')
    b.is_target = b.is_target[torch.randperm(len(b.is_target))]
    for o in (a,b): o.forward()
    torch.testing.assert_close(a.fake, b.fake, rtol=1e-4, atol=1e-5)

def test_unguided_needs_no_guider(stage):
    cb = stage(beta=0., adv=0.)
    assert cb.model.R is None
    D = state(cb.model.D)
    cb.step()
    assert cb.terms['guide']==0 and not moved(cb.model.D, D)

def test_guider_input(data):
    x = to_float(data.store.get(data.train.path[:3]))
    assert torch.equal(data.R(guider_input(x)), data.R(x))
    x.requires_grad_()
    y = guider_input(x, (72,40), (64,32), pad=2)
    assert y.shape==x.shape
    y.sum().backward()
    assert (x.grad!=0).any()

def test_transfer_stopped_equals_unstopped(data, tmp_path, monkeypatch, when=1):
    kw,before = dict(ema=.9, lr_decay=.5, foreground=1., dropout=.1, guider_pad=2),weights_hash(data.R)
    whole = data.transfer(tmp_path/'whole', **kw)
    interrupt(monkeypatch, when)
    with pytest.raises(KeyboardInterrupt): data.transfer(tmp_path/'stopped', **kw)
    monkeypatch.undo()
    assert weights_hash(data.transfer(tmp_path/'stopped', **kw)) == weights_hash(whole)
    same_files(tmp_path/'whole', tmp_path/'stopped', 'G.safetensors', 'D.safetensors', 'log.csv', 'metrics.json', 'samples.png')
    assert weights_hash(data.R)==before and not data.R.training
    assert weights_hash(load_generator(tmp_path/'whole'))==weights_hash(whole)
    log = pd.read_csv(tmp_path/'whole'/'log.csv')
    assert list(log.epoch)==[0,1,2] and {'adv','l1','guide','d_real','d_fake'} < set(log.columns)

def test_begin_with_other_weights(data, tmp_path):
    first = data.transfer(tmp_path/'a')
    s = TransferSettings(**{**SMALL, 'lr':0., 'norm':'batch'})
    fit = lambda o, init: train_transfer(data.target, data.source, data.poses, data.store, data.labels, data.R, s, tmp_path/o, init=init)
    for o,init in (('b',tmp_path/'a'), ('c',tmp_path/'a'/'G.safetensors')):
        assert all(torch.equal(p,q) for p,q in zip(fit(o, init).parameters(), first.parameters()))
    with pytest.raises(InputError, match='init'): fit('b', None)

@pytest.mark.parametrize('kw,said', [(dict(gan='wgan'),'wgan'), (dict(aux='x'),'transfer.aux'), (dict(parts=0),'transfer.parts'),
                                     (dict(size=(64,30)),'halve'), (dict(pair='same'),'same'), (dict(norm='layer'),'layer')])
def test_bad_transfer_settings(data, tmp_path, kw, said):
    with pytest.raises(InputError, match=said): data.transfer(tmp_path/'t', **kw)

def test_guided_without_guider(data, tmp_path):
    with pytest.raises(InputError, match='beta=0'):
        train_transfer(data.target, data.source, data.poses, data.store, data.labels, None, TransferSettings(), tmp_path/'t')


# Generate

@pytest.fixture(scope='module')
def G(): 
    torch.manual_seed(1)
    return tr.transfer_model(TransferSettings(**SMALL, beta=0.)).G.eval()

def test_plan(data):
    one,two = (plan(data.target, data.source, data.poses, GenerateSettings(n_each=n)) for n in (1,2))
    assert len(two)==2*len(data.train) and (two.k==[0,1]*len(data.train)).all()
    assert (two[two.k==0].pose_path.values==one.pose_path.values).all()
    assert (two.groupby('source_path').pose_path.nunique()==2).all()
    assert set(two.source_path)==set(data.train.path) and set(two.pose_path) <= set(data.source.path)
    assert (plan(data.target, data.source, data.poses, GenerateSettings(seed=1)).pose_path!=two.pose_path).any()

def test_no_pose_of_a_test_picture_unless_asked(data):
    test = data.target[data.target.split=='query'].assign(split='train')
    mixed = pd.concat([data.source, test], ignore_index=True)
    with pytest.raises(InputError, match=f'{len(test)} pictures of the source are test pictures'): plan(data.target, mixed, data.poses, GenerateSettings())
    assert len(plan(data.target, mixed, data.poses, GenerateSettings(test_poses=True)))==len(plan(data.target, data.source, data.poses, GenerateSettings()))


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
    other = generate(G, data.target, data.source, data.poses, data.store, GenerateSettings(bs=7), tmp_path/'h')
    same = [Path(a).read_bytes()==Path(b).read_bytes() for a,b in zip(df.path, other.path)]
    assert sum(same) > .95*len(same)  # a picture depends on (x, s, weights) alone, to the rounding of a byte

def test_generate_leaves_nothing_half(data, G, tmp_path, monkeypatch):
    was,n = gen.save_jpegs,[]
    def stop(*a):
        if n: raise KeyboardInterrupt
        n.append(was(*a))
    monkeypatch.setattr(gen, 'save_jpegs', stop)
    fit = lambda: generate(G, data.target, data.source, data.poses, data.store, GenerateSettings(bs=50), tmp_path/'g')
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
    return todo.assign(path=[f'/x/{generated_name(p,k)}' for p,k in zip(todo.source_path, todo.k)], split='train', is_generated=True)

def test_augment(data, extra):
    both = augment(data.target, extra)
    assert len(both)==3*len(data.train) and both.is_generated.sum()==len(extra) and set(both.split)=={'train'}
    assert train_labels(both)==data.labels

def test_augment_refuses(data, extra):
    for bad,said in ((extra[:0],'empty'), (extra.assign(pid=9999),'9999'), (extra.assign(is_generated=False),'not'),
                     (extra.assign(source_path='/q/else.jpg'),'else.jpg')):
        with pytest.raises(InputError, match=said): augment(data.target, bad)

# --- recipes, triplets, folders ---

@pytest.mark.parametrize('name', RECIPES['paper'])
def test_a_step_of_each_recipe_at_paper_size(name, data, tmp_path):
    "256×256, 224×224 cropped; batches of two pictures, or of two people with four each"
    paper = ReIDSettings(**{**PRESETS['paper']['reid'], **recipe(name), 'weights':''})
    s = replace(paper, epochs=1, bs=8 if paper.loss=='triplet' else 2)
    df = data.train[data.train.pid.isin(sorted(data.labels)[:2])].groupby('pid').head(4 if s.loss=='triplet' else 1)
    net = train_reid(df, PictureStore(s.size), train_labels(df), s, tmp_path/'run')
    assert (net.head is None)==(s.loss=='triplet') and all(p.isfinite().all() for p in net.parameters())
    assert (s.size, s.crop, s.momentum, s.weight_decay)==((256,256), (224,224), .9, 5e-4)


def test_recipes_say_what_the_paper_says():
    r = RECIPES['paper']
    assert [(r[k]['lr'], r[k]['milestones'], r[k]['bs'], r[k]['dropout']) for k in ('R-CE','D-CE','R-Tri','D-Tri')]==[
        (1e-3,(30,),16,.5), (1e-2,(25,),16,0.), (1e-3,(),128,0.), (1e-3,(),128,0.)]
    assert all(o['epochs']==50 for o in r.values()) and ReIDSettings().margin==1 and ReIDSettings().margin_generated==.5
    t = experiment_settings('paper')['transfer']
    assert (t.size, t.lr, t.betas, t.lam, t.beta, t.adv)==((256,256), 2e-4, (.5,.999), 10, 1, 1)
    for size in RECIPES:
        for name in r: assert other_form(replace(ReIDSettings(), **recipe(name, size))).loss!=recipe(name, size).get('loss', 'ce')


def test_triplets_stopped_equal_unstopped(data, tmp_path, monkeypatch):
    s = ReIDSettings(width=4, epochs=3, bs=16, loss='triplet')
    train = lambda folder, **kw: train_reid(data.train, data.store, data.labels, s, folder, **kw)
    whole = weights_hash(train(tmp_path/'whole'))
    interrupt(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt): train(tmp_path/'parts', every=0)
    monkeypatch.undo()
    assert weights_hash(train(tmp_path/'parts'))==whole
    assert pd.read_csv(tmp_path/'whole'/'log.csv').columns.tolist()==['epoch','loss','active','triplets','d_ap','d_an','margin']


def test_single_pictures_are_told(data, tmp_path):
    df = data.train.groupby('pid').head(4)
    df = pd.concat([df[df.pid!=df.pid.iloc[0]], df.iloc[:1]])
    with pytest.warns(UserWarning, match='1 pictures are in no triplet'):
        train_reid(df, data.store, train_labels(df), ReIDSettings(width=4, epochs=1, bs=16, loss='triplet'), tmp_path/'run')


def test_triplet_guider_is_frozen_and_guides(data, tmp_path):
    torch.manual_seed(0)
    T = reid_net(None, 'small', 4)
    T(to_float(data.store.get(data.train)))
    before = state(freeze(T))
    s = TransferSettings(**SMALL)
    train = lambda folder, **kw: train_transfer(data.target, data.source, data.poses, data.store, data.labels, T, replace(s, **kw), folder, every=0)
    G = train(tmp_path/'run')
    assert all(torch.equal(v, before[k]) for k,v in T.state_dict().items())
    log = pd.read_csv(tmp_path/'run'/'log.csv')
    assert (log.guide>0).all() and log.active.between(0, 1).all()
    assert weights_hash(G)!=weights_hash(train(tmp_path/'free', beta=0.))


def test_people_are_in_one_part_only(data):
    target,source,held = share_people(data.target, seed=3, validation=2)
    assert len({*target, *source, *held})==len(target)+len(source)+len(held)==data.train.pid.nunique()
    again,other = (share_people(data.target, seed=o, validation=2)[0].tolist() for o in (3, 4))
    assert again==target.tolist()!=other
    for ids in (1, 8):
        with pytest.raises(InputError, match='--ids'): share_people(data.target, ids=ids, validation=2)


def test_one_folder_of_all_kinds_of_pictures(data, tmp_path):
    root = tmp_path/'set'
    shutil.copytree(tiny_world()/'target', root)
    shutil.copy(tiny_world()/'target_poses.csv', tmp_path/'set_poses.csv')
    some = sorted((root/'bounding_box_train').iterdir())[:4]
    for p,mode in zip(some, ('L','RGBA','P','I;16')):
        im = Image.open(p)
        (im.convert('L').convert('I;16') if mode=='I;16' else im.convert(mode)).save(p, 'png') # a png by another name is read by its content
    wide = sorted((root/'query').iterdir())[0]
    Image.open(wide).resize((90,40)).save(wide)
    with pytest.raises(InputError, match='convert'): folder_inputs(root, poses=tmp_path/'set_poses.csv').store((64,32)).get(some)
    i = folder_inputs(root, convert=True, need_poses=False)
    assert i.store((64,32)).get([*some, wide]).shape==(5,3,64,32)
