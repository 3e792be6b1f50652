"The gated siamese net against loops over pairs: gate, boost, distance, loss"
import pytest, torch
import torch.nn.functional as F

from posereid.core import InputError
from posereid.evaluate.protocol import reestimate_bn
from posereid.methods.gated import GatedPairs, TellNet, contrastive_loss
from posereid.models.gates import Gated, GateMetric, MatchingGate
from posereid.models.reid import reid_net
from posereid.stages.method import find_method
from posereid.stages.reid import ReIDSettings, first_net


def gated(p=.5, arch='small', **kwargs):
    torch.manual_seed(0)
    return Gated(reid_net(None, arch, width=4), p=p, **kwargs).eval().requires_grad_(False)


def by_words(net, a, b):
    "Features of one pair, written as the page says it"
    unit = lambda o: o/o.square().mean().sqrt()
    a,b = (unit(o).reshape(net.shape) for o in (a,b))
    W = net.gates.mix.weight[...,0]
    s = [torch.stack([W@o[:,r].mean(1) for r in range(o.shape[1])], 1) for o in (a,b)]
    g = torch.exp(-(s[0]-s[1])**2/net.gates.p**2)
    out = []
    for o in (a,b):
        o = o.clone()
        for r in range(o.shape[1]):
            for c in range(o.shape[2]):
                v = o[:,r,c]*(1+g[:,r])
                o[:,r,c] = v/v.norm()
        f = net.base.body[net.cut:](o[None]).mean((2,3))[0]
        out.append(f/f.norm())
    return *out, g.mean()


def test_a_pair_by_words():
    net = gated()
    torch.nn.init.uniform_(net.gates.p, .1, .5)
    e = torch.rand(3, net.n_features)
    u,v,g = net.pair(e, e.flip(0)*7)
    for i in range(3):
        a,b,c = by_words(net, e[i], e[2-i])
        assert torch.allclose(u[i], a, atol=1e-5) and torch.allclose(v[i], b, atol=1e-5)
        assert torch.allclose(g[i], c, atol=1e-5)
    assert .05<g[0]<.95 and torch.allclose(g[1], torch.tensor(1.))


def test_distance_of_all_pairs():
    net = gated()
    q,g = torch.rand(3, net.n_features),torch.rand(5, net.n_features)
    want = torch.stack([torch.stack([(lambda u,v,_: (u-v).norm())(*by_words(net, a, b)) for b in g])
                        for a in q])
    for room in (1, 2*8*net.n_features, 2**25):
        assert torch.allclose(GateMetric(net, room).distance(q, g), want, atol=1e-5)
    assert torch.allclose(net.metric.distance(q.numpy(), F.normalize(g)), want, atol=1e-5)
    assert net.metric.distance(q[:0], g).shape==(0,5)
    assert net.metric.said and not net.metric.psd and net.metric.dims==net.n_features


def test_the_gate_matters():
    "With all gates open the distances are others, and their order may be"
    net,wide = gated(p=.1),gated(p=1e6)
    q = torch.rand(6, net.n_features)
    assert (net.metric.distance(q, q)-wide.metric.distance(q, q)).abs().max()>1e-3
    assert torch.allclose(wide.pair(q, q.flip(0))[2], torch.ones(6))
    assert net.pair(q[:1], q[1:2])[2]<.5


def test_a_metric_leaves_the_mode_alone_and_refuses_other_features():
    net = gated().train()
    net.base.body[1].eval()
    before = net.base.body[1].running_mean.clone(), net.base.body[-1].bn1.running_mean.clone()
    net.metric.distance(torch.rand(2, net.n_features), torch.rand(2, net.n_features))
    assert net.training and net.base.body[-1].training and not net.base.body[1].training
    assert torch.equal(before[1], net.base.body[-1].bn1.running_mean)
    for bad in (torch.rand(2, net.n_features+1), torch.rand(net.n_features)):
        with pytest.raises(InputError, match='numbers each'):
            net.metric.distance(bad, torch.rand(2, net.n_features))
        with pytest.raises(InputError, match='numbers each'):
            net.metric.distance(torch.rand(2, net.n_features), bad)


def test_embedding_is_the_map_before_the_gate():
    net,x = gated(),torch.rand(2, 3, 64, 32)*2-1
    assert torch.allclose(net.embed(x), net.base.body[:5](x).flatten(1), atol=1e-6)
    assert net.shape==(16,8,4) and torch.equal(net(x), net.embed(x))
    with pytest.raises(InputError, match='maps of'): net.embed(torch.rand(1, 3, 64, 64))
    assert Gated(reid_net(None, width=4), (128,64), at=1).shape==(8,32,16)


def test_all_norms_are_counted_anew():
    net = gated()
    x = (torch.rand(8, 3, 64, 32)*255).byte()
    new = reestimate_bn(net, x, device='cpu')
    assert new.base.body[-1].bn1.num_batches_tracked==1
    assert new.base.body[-1].bn1.running_mean.abs().max()>0
    assert not new.base.body[-1].bn1.training


@pytest.mark.parametrize('m,mg', ((1.,.5), (.8,.2)))
def test_contrastive_loss_by_cases(m, mg):
    r = torch.Generator().manual_seed(0)
    d = 2*torch.rand(20, generator=r)
    same,gen = torch.rand(20, generator=r)<.5,torch.rand(20, generator=r)<.5
    want = 0.
    for x,s,g in zip(d.tolist(), same.tolist(), gen.tolist()):
        a = mg if g else m
        want += (.5*x*x*(mg/m if g else 1) if s else .5*max(0, a-x)**2)/20
    assert abs(contrastive_loss(d, same, gen, m, mg).item()-want)<1e-6
    assert torch.allclose(contrastive_loss(d, same, False, m, mg),
                          contrastive_loss(d, same, torch.zeros(20).bool(), m, mg))


def pairs_of(maps, who, gen, rule):
    "Who meets whom, by loops"
    e,res = F.normalize(maps),[]
    for a in range(len(who)):
        far = lambda j: (e[a]-e[j]).norm().item()
        ok = [j for j in range(len(who)) if j!=a and (rule=='any' or gen[a] or not gen[j])]
        P,N = [j for j in ok if who[j]==who[a]],[j for j in ok if who[j]!=who[a]]
        if P and N: res += [(a, max(P, key=far), True), (a, min(N, key=far), False)]
    return res


@pytest.mark.parametrize('rule', ('anchor','any'))
def test_the_loss_of_a_batch(rule):
    net,s = gated(),ReIDSettings(width=4, loss='triplet', rule=rule, margin=.9, margin_generated=.3)
    maps,who = torch.rand(8, net.n_features),torch.tensor([0,0,0,1,1,2,2,2])
    gen = torch.tensor([0,1,0,0,1,0,0,1]).bool()
    L = GatedPairs(s)
    L.net = net
    pairs,D = pairs_of(maps, who, gen, rule),net.metric.distance(maps, maps)
    assert len(pairs)>=12
    each = [contrastive_loss(D[i,j][None], torch.tensor([t]), (gen[i]|gen[j])[None], .9, .3)
            for i,j,t in pairs]
    assert torch.allclose(L(maps, who, gen), sum(each)/len(each), atol=1e-5)
    mean = lambda t: torch.stack([D[i,j] for i,j,o in pairs if o==t]).mean()
    assert torch.allclose(L.stats['d_ap'], mean(True), atol=1e-5)
    assert torch.allclose(L.stats['d_an'], mean(False), atol=1e-5)
    names = set(L.stats)
    loss = L(maps[:1].requires_grad_(), who[:1], gen[:1])  # no pair: the same names, and a gradient
    assert set(L.stats)==names and loss==0
    loss.backward()


def test_everything_learns():
    net = gated().train().requires_grad_(True)
    L = GatedPairs(ReIDSettings(loss='triplet'))
    L.net = net
    x,who = torch.rand(6, 3, 64, 32)*2-1,torch.tensor([0,0,1,1,2,2])
    L(net(x), who, torch.zeros(6).bool()).backward()
    assert not [k for k,p in net.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize('arch', ('small','small_dense','resnet18'))
def test_any_row_of_layers(arch):
    s = ReIDSettings(arch=arch, width=4, method='gated', loss='triplet')
    with torch.device('meta'): shapes = {k: v.shape for k,v in first_net(s, 7).state_dict().items()}
    net = first_net(s, 7)
    assert shapes=={k: v.shape for k,v in net.state_dict().items()}
    assert net.head is None and net.eval().embed(torch.zeros(2, 3, 64, 32)).shape==(2,net.n_features)
    m = find_method('gated')
    assert isinstance(m.callbacks(None)[0], TellNet) and m.goes_with==dict(loss='triplet')
    crop = first_net(ReIDSettings(width=4, method='gated', loss='triplet', crop=(48,24), pad=0), 7)
    assert crop.shape==(16,6,3)
    assert MatchingGate(3).p.flatten().tolist()==[1.]*3
