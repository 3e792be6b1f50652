"Mutual learning: the loss against loops, gradients of each net, stopping and going on"
import math
from dataclasses import replace

import pytest, torch

from posereid.core import weights_hash
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.losses.identity import lsr_loss
from posereid.methods.mutual import MutualLoss, mutual_loss
from posereid.stages.fit import read_log
from posereid.stages.reid import ReIDSettings, first_net, train_reid
from posereid.synth.world import tiny_world

S = ReIDSettings(width=4, epochs=3, bs=24, method='mutual')


def probs(v): return [math.exp(o)/sum(map(math.exp, v)) for o in v]

@pytest.mark.parametrize('seed', range(6))
def test_the_loss_against_loops(seed):
    r = torch.Generator().manual_seed(seed)
    n,K = 5,4
    a,b = torch.randn(2, n, K, generator=r).double()
    label,eps = torch.randint(0, K, (n,), generator=r),torch.rand(n, generator=r).double()
    identity = divergence = 0.
    for i in range(n):
        p,q,e = probs(a[i].tolist()),probs(b[i].tolist()),eps[i].item()
        for k in range(K):
            t = e/K+(1-e)*(k==label[i])
            identity -= t*(math.log(p[k])+math.log(q[k]))/n
            divergence += (q[k]*math.log(q[k]/p[k])+p[k]*math.log(p[k]/q[k]))/n
    got = mutual_loss(a, b, label, eps)
    assert abs(got[0]-identity)<1e-6 and abs(got[1]-divergence)<1e-6
    loss = MutualLoss(S)
    assert abs(loss((a,b), label, eps)-identity-divergence)<1e-6
    assert list(loss.stats)==['accuracy','accuracy_2','divergence']
    acc = [sum(max(range(K), key=lambda k: o[i][k])==label[i] for i in range(n))/n for o in (a,b)]
    assert [round(loss.stats[k].item(), 6) for k in ('accuracy','accuracy_2')]==[round(float(o), 6) for o in acc]


def test_each_net_learns_by_its_own_loss_alone():
    "The gradient of the sum is, for each net, that of @eq-mutual-1 with the other held"
    torch.manual_seed(0)
    net,x = first_net(S, 6),torch.rand(8, 3, 64, 32)
    label,eps = torch.arange(8)%6,torch.full((8,), .2)
    for p in net.parameters(): p.data += .05*torch.randn_like(p)
    a,b = net(x)
    MutualLoss(S)((a,b), label, eps).backward()
    got = {k: p.grad.clone() for k,p in net.named_parameters()}
    for own,other,prefix in ((net.base,net.peer,'base'), (net.peer,net.base,'peer')):
        net.zero_grad()
        mine,q = own(x).log_softmax(-1),other(x).softmax(-1).detach()
        ((q*(q.log()-mine)).sum(1).mean() + lsr_loss(mine, label, eps)).backward()
        for k,p in own.named_parameters():
            assert torch.allclose(p.grad, got[f'{prefix}.{k}'], atol=1e-5), k
        assert all(p.grad is None for p in other.parameters())


def test_the_nets_begin_apart_and_share_nothing():
    net = first_net(S, 6)
    assert not torch.equal(net.base.body[0].weight, net.peer.body[0].weight)
    assert not {id(p) for p in net.base.parameters()} & {id(p) for p in net.peer.parameters()}


@pytest.mark.parametrize('arch', ('small','small_dense','resnet18'))
def test_other_bodies(arch):
    net = first_net(replace(S, arch=arch), 7)
    a,b = net(torch.rand(2, 3, 64, 32))
    assert (a.shape, b.shape, net.eval()(torch.rand(2, 3, 64, 32)).shape)==((2,7),)*3


def test_two_nets_learn_apart(tmp_path):
    w = tiny_world()
    args = pick(w.target, split='train'),PictureStore(S.size),train_labels(w.target),S
    whole = train_reid(*args, tmp_path/'a')
    assert weights_hash(whole.base)!=weights_hash(whole.peer)
    log = read_log(tmp_path/'a/log.csv')
    assert len(log)==3 and set(log[0])=={'epoch','loss','accuracy','accuracy_2','divergence'}
