"DPFL: two scales, their consensus, and what it teaches them, against code written another way"
import pytest, torch
import torch.nn.functional as F

from posereid.core import weights_hash
from posereid.methods.dpfl import ConsensusLoss, consensus_feedback
from posereid.models.reid import reid_net
from posereid.models.scales import TwoScales, halved
from posereid.stages.method import check_method, find_method
from posereid.stages.reid import ReIDSettings, first_net


def two(n_ids=5, **kwargs):
    torch.manual_seed(0)
    return TwoScales(*(reid_net(n_ids, width=4, **kwargs) for _ in range(2)))


def test_halved_is_the_mean_of_four():
    x = torch.rand(2, 3, 7, 6)
    out = halved(x)
    assert out.shape==(2,3,3,3)
    for i in range(3):
        for j in range(3):
            assert torch.allclose(out[...,i,j], x[...,2*i:2*i+2,2*j:2*j+2].mean((2,3)), atol=1e-6)


@pytest.mark.parametrize('T', (.5, 1., 3.))
def test_feedback_against_a_loop(T):
    torch.manual_seed(1)
    own,con = torch.randn(4, 6, requires_grad=True),torch.randn(4, 6, requires_grad=True)
    want = 0.
    for a,b in zip(own.detach().double(), con.detach().double()):
        p,q = (b/T).exp(),(a/T).exp()
        p,q = p/p.sum(),q/q.sum()
        want += T*T*sum(pi*(pi/qi).log() for pi,qi in zip(p, q))/4
    loss = consensus_feedback(own, con, T)
    assert abs(loss.item()-want.item())<1e-5
    loss.backward()
    # the gradient in the scores is T(q − p), and none in the consensus
    q,p = (own/T).softmax(1),(con/T).softmax(1)
    assert torch.allclose(own.grad, T*(q-p)/4, atol=1e-6) and con.grad is None


def test_the_loss_is_its_parts():
    torch.manual_seed(2)
    scores,who,eps = [torch.randn(4, 6) for _ in range(3)],torch.randint(6, (4,)),torch.rand(4)
    def lsr(z):
        q = torch.stack([F.one_hot(y, 6)*(1-e)+e/6 for y,e in zip(who, eps)])
        return F.cross_entropy(z, q)
    L = ConsensusLoss(None, weight=.3, temperature=2.)
    back = sum(consensus_feedback(o, scores[0], 2.) for o in scores[1:])
    assert torch.allclose(L(tuple(scores), who, eps), sum(map(lsr, scores)) + .3*back, atol=1e-5)
    assert torch.allclose(L.stats['consensus'], lsr(scores[0]), atol=1e-5)
    assert torch.allclose(L.stats['scales'], lsr(scores[1])+lsr(scores[2]), atol=1e-5)
    assert torch.allclose(L.stats['feedback'], back, atol=1e-5)
    assert L.stats['accuracy']==(scores[0].argmax(1)==who).float().mean()
    assert not any(o.requires_grad for o in L.stats.values())
    default = ConsensusLoss(None)
    assert (default.weight, default.temperature)==(1., 1.)


def test_each_scale_has_its_own_body_and_classifier():
    net,x = two(),torch.rand(4, 3, 32, 16)*2-1
    net.eval()
    assert weights_hash(net.base)!=weights_hash(net.small)
    before = net(x)
    f = torch.cat([net.base.body(x).mean((2,3)), net.small.body(halved(x)).mean((2,3))], 1)
    assert torch.allclose(net.embed(x), f, atol=1e-6)
    assert torch.allclose(before, f@net.fused.weight.T+net.fused.bias, atol=1e-6)
    scores = net.train()(x)
    for o,want in zip(scores, ({'base','small','fused'}, {'base'}, {'small'})):
        net.zero_grad()
        o.square().sum().backward(retain_graph=True)
        assert {k.split('.')[0] for k,p in net.named_parameters()
                if p.grad is not None and p.grad.any()}==want


def test_dropout_is_that_of_the_settings():
    net = find_method('dpfl').net(ReIDSettings(width=4, dropout=.5), 5)
    assert net.drop.p==net.base.drop.p==net.small.drop.p==.5


@pytest.mark.parametrize('arch', ('small','small_dense','resnet18'))
def test_any_body(arch):
    s = ReIDSettings(arch=arch, width=4, method='dpfl')
    net = first_net(s, 7)
    assert net.head.out_features==7 and net.n_features==2*net.base.n_features
    assert check_method(s).name=='dpfl'
    assert net.eval()(torch.zeros(2, 3, 64, 32)).shape==(2,7)
    assert net.embed(torch.zeros(2, 3, 64, 32)).shape==(2,net.n_features)
