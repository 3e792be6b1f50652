"Verif + Identif and transfer: partners, losses against loops, the two steps, stopping and going on"
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest, torch
from fastai.callback.core import Callback

from posereid.core import InputError, seed_everything, weights_hash
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.methods.transfer import TwoSteps
from posereid.methods.verification import (DrawPartners, VerificationLoss, draw_partners,
                                            partners_of)
from posereid.models.pairs import OneMaskNet, PairNet
from posereid.models.reid import reid_net
from posereid.stages.fit import read_log
from posereid.stages.method import METHODS, find_method
from posereid.stages.reid import ReIDSettings, first_net, load_reid, train_reid
from posereid.synth.world import tiny_world

S = ReIDSettings(width=4, epochs=4, bs=24, loss='triplet', method='verification')


@pytest.fixture(scope='module')
def world():
    w = tiny_world()
    train = pick(w.target, split='train')
    return train, PictureStore(S.size), train_labels(w.target)


class StopAt(Callback):
    "Ctrl-C in the middle of an epoch"
    def __init__(self, epoch): self.at = epoch
    def after_batch(self):
        if self.epoch==self.at: raise KeyboardInterrupt


def stopped(name, epoch, *args, **kwargs):
    "Begin a training and stop it in an epoch"
    m = find_method(name)
    METHODS[name] = replace(m, callbacks=lambda t: [*m.callbacks(t), StopAt(epoch)])
    try:
        with pytest.raises(KeyboardInterrupt): train_reid(*args, every=0, **kwargs)
    finally: METHODS[name] = m

# --- partners

@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('rule', ('anchor','any'))
def test_partners_are_others_and_obey_the_rule(seed, rule):
    r = torch.Generator().manual_seed(seed)
    label = torch.arange(5).repeat_interleave(6)[torch.randperm(30, generator=r)]
    gen = torch.rand(30, generator=r) < .4
    at = draw_partners(label, 1., gen, rule)
    assert (at!=torch.arange(30)).all()
    if rule=='anchor':
        for i,j in enumerate(at.tolist()):
            some = [k for k in range(30) if k!=i and not gen[k]]
            assert gen[i] or not some or not gen[j]
    else: assert gen[at[~gen]].any()


def test_the_ratio_is_that_of_negatives_to_positives():
    torch.manual_seed(0)
    label = torch.arange(1000).repeat_interleave(2)
    for ratio in (0., .5, 1., 4.):
        same = (label==label[draw_partners(label, ratio)]).float().mean()
        assert abs(same-1/(1+ratio)) < .04, ratio


def test_each_positive_and_each_negative_has_the_same_chance():
    torch.manual_seed(0)
    label = torch.tensor([0,0,0,1,2])
    n = torch.stack([draw_partners(label, 1.) for _ in range(3000)])[:,0].bincount(minlength=5)/3000
    assert torch.allclose(n, torch.tensor([0.,.25,.25,.25,.25]), atol=.04)


def test_a_batch_of_one_person_and_a_batch_of_singles():
    assert sorted(draw_partners(torch.zeros(2, dtype=int), 100.).tolist())==[0,1]
    lone = torch.arange(3),1.,torch.tensor([False,True,True]) # a real one among generated ones
    assert all(draw_partners(*lone)[0]>0 for _ in range(20))
    at = draw_partners(torch.arange(6), 0.)
    assert (at!=torch.arange(6)).all()


def test_the_callback_hands_over_partners_by_the_ratio_of_the_moment():
    torch.manual_seed(0)
    label = torch.arange(500).repeat_interleave(2)
    cb,model = DrawPartners(10, rule='any'),SimpleNamespace()
    gen,share = torch.zeros(1000, dtype=torch.bool),[]
    for epoch in (0,9):
        cb.learn = SimpleNamespace(yb=(label,gen), model=model, epoch=epoch, iter=99, n_iter=100)
        cb.before_batch()
        share.append((label==label[model.partner]).float().mean().item())
    assert abs(share[0]-1/(1+4**.099)) < .05 and abs(share[1]-1/(1+4**.999)) < .05
    cb.after_fit()
    assert model.partner is None

@pytest.mark.parametrize('rule', ('anchor','any'))
def test_the_rule_of_the_settings_reaches_the_partners(rule):
    label,gen = torch.arange(50).repeat_interleave(4),torch.tensor([0,0,1,1]).bool().repeat(50)
    cb, = partners_of(SimpleNamespace(settings=replace(S, rule=rule, epochs=7)))
    cb.learn = SimpleNamespace(yb=(label,gen), model=SimpleNamespace(), epoch=0, iter=0, n_iter=1)
    cb.before_batch()
    assert gen[cb.learn.model.partner[~gen]].any()==(rule=='any') and cb.epochs==7

# --- nets

def test_dropout_of_the_settings_is_that_of_the_identities():
    net,x = first_net(replace(S, dropout=.9), 7),torch.rand(4, 3, 64, 32)
    torch.nn.init.normal_(net.head.weight)
    net.base.body.eval()
    assert not torch.equal(net(x)[0], net(x)[0]) and net.pair_drop.p==.5
    assert torch.equal(net.eval()(x), net.head(net.embed(x)))


def test_the_verdict_does_not_depend_on_the_order_and_thins_out_in_training():
    net,(a,b) = PairNet(reid_net(5, width=4)),torch.rand(2, 6, 32)
    assert net.squares(a, b).eq(0).any()
    net.eval()
    assert torch.equal(net.squares(a, b), net.squares(b, a))
    assert torch.equal(net.squares(a, b), (a-b)**2)


def test_one_mask_is_shared_by_a_pair_and_not_by_pairs():
    net,(a,b) = OneMaskNet(reid_net(5, width=4)),torch.rand(2, 40, 32)
    s = net.squares(a, b)
    assert len({tuple(o) for o in (s==0).tolist()})==40
    kept = s!=0
    assert torch.allclose(s[kept], 4*((a-b)**2)[kept], atol=1e-5)
    assert torch.equal(net.eval().squares(a, b), (a-b)**2)


def test_without_a_callback_the_next_picture_is_the_partner():
    assert PairNet(reid_net(5, width=4))(torch.rand(3,3,64,32))[2].tolist()==[1,2,0]


@pytest.mark.parametrize('method', ('verification','transfer'))
@pytest.mark.parametrize('arch', ('small','small_dense','resnet18'))
def test_nets_of_other_bodies_and_without_memory(method, arch):
    s = replace(S, method=method, arch=arch)
    with torch.device('meta'): shapes = {k:v.shape for k,v in first_net(s, 7).state_dict().items()}
    net = first_net(s, 7)
    assert {k:v.shape for k,v in net.state_dict().items()}==shapes
    scores,verdict,at = net(torch.rand(4, 3, 64, 32))
    assert (scores.shape, verdict.shape, at.shape)==((4,7), (4,2), (4,))

# --- the loss

@pytest.mark.parametrize('seed', range(8))
def test_the_loss_against_a_loop(seed):
    r = torch.Generator().manual_seed(seed)
    n,K = 9,4
    scores,verdict = torch.randn(n, K, generator=r).double(),torch.randn(n, 2, generator=r).double()
    label,at = (torch.randint(0, k, (n,), generator=r) for k in (K, n))
    gen = torch.rand(n, generator=r) < .5
    s = replace(S, eps_real=.1, eps_generated=.6, margin_generated=.3)
    want = 0.
    for i in range(n):
        eps = .6 if gen[i] else .1
        p = [o/sum(scores[i].exp()) for o in scores[i].exp()]
        want += sum(-((1-eps)*(k==label[i])+eps/K)*math.log(p[k]) for k in range(K))/n
        q = verdict[i].exp()/verdict[i].exp().sum()
        w = .3 if gen[i] or gen[at[i]] else 1.
        want += -w*math.log(q[int(label[i]==label[at[i]])])/n
    loss = VerificationLoss(s)
    assert abs(loss((scores,verdict,at), label, gen)-want) < 1e-6
    assert list(loss.stats)==['accuracy','verification','verified','positive']
    said = (verdict[:,1]>verdict[:,0])==(label==label[at])
    assert abs(loss.stats['verified']-said.float().mean()) < 1e-6

# --- trainings

def test_stopped_and_gone_on(world, tmp_path):
    train_reid(*world, S, tmp_path/'a')
    for epoch in (1,3):
        stopped('verification', epoch, *world, S, tmp_path/f'b{epoch}')
        net = train_reid(*world, S, tmp_path/f'b{epoch}')
        assert weights_hash(net)==weights_hash(load_reid(tmp_path/'a'))
    assert len(read_log(tmp_path/'a/log.csv'))==4


def body_of(path, at='model'):
    state = torch.load(path/'checkpoint.pt', weights_only=True)[at]
    return {k.removeprefix('base.body.'):v for k,v in state.items() if k.startswith('base.body.')}, state


def test_two_steps_in_a_training(world, tmp_path):
    start = reid_net(3, width=4)
    start.train()(torch.rand(8, 3, 64, 32)) # running statistics of its own
    s = replace(S, method='transfer', epochs=10)
    first = start.body.state_dict()
    states = []
    for epoch in (1,2):
        stopped('transfer', epoch, *world, s, tmp_path/f'{epoch}', start=start)
        states.append(body_of(tmp_path/f'{epoch}'))
    (held,all1),(free,all2) = states
    assert all(torch.equal(held[k], first[k]) for k in first)
    assert not any(torch.equal(free[k], first[k]) for k in first if 'running' in k or k.endswith('weight'))
    seed_everything(s.seed)
    fresh = first_net(s, len(world[2]), start).head.weight
    assert not torch.equal(fresh, all1['base.head.weight'])
    assert all1['judge.bias'].abs().max()==0 and all2['judge.bias'].abs().max()>0
    done = train_reid(*world, s, tmp_path/'1', start=start)
    whole = train_reid(*world, s, tmp_path/'whole', start=start)
    assert weights_hash(done)==weights_hash(whole)==weights_hash(train_reid(*world, s, tmp_path/'2', start=start))
    with pytest.raises(InputError, match='start'): # another beginning is another training
        train_reid(*world, s, tmp_path/'whole', start=reid_net(3, width=4))


def test_the_first_step_may_end_within_an_epoch():
    net,seen = OneMaskNet(reid_net(5, width=4)),[]
    cb = TwoSteps(2.5, share=.5)  # 10 steps, five of them held
    opt = torch.optim.SGD(net.parameters(), .1, momentum=.9)
    cb.learn = learn = SimpleNamespace(model=net, opt=SimpleNamespace(opt=opt), n_iter=4)
    for step in range(10):
        learn.epoch,learn.iter = divmod(step, 4)
        if not learn.iter: net.train(); cb.before_train()
        cb.before_batch()
        seen.append((net.body.training, next(net.body.parameters()).requires_grad,
                     net.judge.weight.requires_grad))
        assert net.head.weight.requires_grad and net.base.drop.training
    assert seen==[(False,)*3]*5+[(True,)*3]*5
    assert all('momentum_buffer' in opt.state[p] for p in net.parameters())
    net.requires_grad_(False); cb.after_fit()
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize('momentum', (0.,.9))
def test_transfer_with_other_momenta_and_a_first_step_of_no_steps(world, tmp_path, momentum):
    s = replace(S, method='transfer', epochs=.5, momentum=momentum) # a tenth of which is no step
    net = train_reid(*world, s, tmp_path/'a', start=reid_net(3, width=4))
    assert net.head.out_features==len(world[2])


def test_transfer_without_a_start(world, tmp_path):
    with pytest.raises(InputError, match='--start'):
        train_reid(*world, replace(S, method='transfer'), tmp_path/'a')
    with pytest.raises(InputError, match='another body'):
        train_reid(*world, replace(S, method='transfer'), tmp_path/'b', start=reid_net(3, width=8))
    assert not (tmp_path/'b').exists() # so that the next try is free to go there
