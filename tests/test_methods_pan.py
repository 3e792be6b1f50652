"PAN: where a body is cut, the affine part against a loop, and a base branch that does not notice"
import pytest, torch
import torch.nn.functional as F

from posereid.core import InputError, weights_hash
from posereid.methods.pan import AlignLoss
from posereid.models.align import (Aligned, GridNet, affine_part, body_layers, cut_body,
                                   quadrilateral)
from posereid.models.reid import reid_net
from posereid.stages.method import find_method
from posereid.stages.reid import ReIDSettings, first_net


def aligned(arch='small', n_ids=5, **kwargs):
    torch.manual_seed(0)
    return Aligned(*(reid_net(n_ids, arch, width=4) for _ in range(2)), **kwargs)


def looked_at(m, theta):
    "Bilinear interpolation by loops, zeros beyond the border"
    c,h,w = m.shape
    out = torch.zeros(c, h, w)
    for i in range(h):
        for j in range(w):
            x,y = (2*j+1)/w-1, (2*i+1)/h-1
            x,y = (theta@torch.tensor([x,y,1.])).tolist()
            u,v = ((x+1)*w-1)/2, ((y+1)*h-1)/2
            for a in range(h):
                for b in range(w):
                    out[:,i,j] += m[:,a,b]*max(0, 1-abs(a-v))*max(0, 1-abs(b-u))
    return out


def test_look_at_against_loops():
    torch.manual_seed(1)
    m,theta = torch.rand(3, 2, 6, 4),torch.eye(3)[:2]+.4*torch.randn(3, 2, 3)
    for a,b,c in zip(affine_part(m, theta), m, theta): assert torch.allclose(a, looked_at(b, c), atol=1e-5)
    half = affine_part(m.bfloat16(), theta)
    assert half.dtype==torch.bfloat16


def test_the_quadrilateral_is_what_is_seen():
    "What lies within it is seen, what lies beyond is not"
    torch.manual_seed(2)
    theta = torch.tensor([[[.5,.1,-.2],[-.1,.4,.3]]])
    q = quadrilateral(theta, (40,20))[0]
    by_hand = [[(.5*x+.1*y-.2+1)/2*20, (-.1*x+.4*y+.3+1)/2*40] for x,y in ((-1,-1),(1,-1),(1,1),(-1,1))]
    assert torch.allclose(q, torch.tensor(by_hand), atol=1e-5)
    m = torch.zeros(1, 1, 40, 20)
    x,y = q.mean(0).long()
    m[0,0,y,x] = 1
    assert affine_part(m, theta).max()>.2
    m = torch.zeros(1, 1, 40, 20)
    m[0,0,:int(q[:,1].min())-1] = 1
    assert affine_part(m, theta).max()==0


@pytest.mark.parametrize('arch,sizes', (('small',4), ('small_dense',4), ('resnet18',5)))
def test_a_cut_is_the_last_of_its_size(arch, sizes):
    net = reid_net(None, arch, width=4)
    layers,x = body_layers(net),torch.zeros(1, 3, 128, 64)
    net.eval()
    outs = []
    for o in layers:
        x = o(x)
        outs.append(x.shape)
    for at in range(-sizes, sizes-1):
        if at==-1: continue
        n,shape = cut_body(net, at)
        assert outs[n-1][1:]==shape and outs[n][2:]!=shape[1:]
        assert len({o[2:] for o in outs[:n]})==at%sizes+1
    for at in (sizes-1, -1, -sizes-1, sizes+3):
        with pytest.raises(InputError, match=f'{sizes} sizes'): cut_body(net, at)


def test_a_cut_leaves_the_net_alone():
    net = reid_net(None, width=4).train()
    before = weights_hash(net)
    cut_body(net, 1)
    assert weights_hash(net)==before and net.training and net.body[1].training
    cut_body(net.eval(), 1)
    assert not net.training


@pytest.mark.parametrize('arch', ('swin_t','mobilenet_v3_small'))
def test_bodies_that_are_no_row(arch):
    net = reid_net(None, arch)
    if arch=='swin_t':
        with pytest.raises(InputError, match='no row of such layers'): body_layers(net)
    else: assert len(body_layers(net))>4
    with pytest.raises(InputError, match='no row of such layers'):
        net.body = torch.nn.Conv2d(3, 4, 1)
        body_layers(net)


def test_the_grid_begins_as_told_and_keeps_where():
    torch.manual_seed(3)
    g = GridNet(4, zoom=.8, gain=.5).eval()
    x = torch.rand(2, 4, 4, 3)
    first = torch.tensor([[.8,0,0],[0,.8,0]])
    assert torch.allclose(g(x), first.expand(2, 2, 3))
    torch.nn.init.normal_(g.out.weight); torch.nn.init.normal_(g.out.bias)
    z = g.conv(x)
    ys,xs = torch.tensor([-.75,-.25,.25,.75]),torch.tensor([-2/3,0,2/3])
    m = torch.cat([z.mean((2,3)), torch.einsum('nchw,w->nc', z, xs)/12,
                   torch.einsum('nchw,h->nc', z, ys)/12], 1)
    want = first.flatten() + .5*(m@g.out.weight.T+g.out.bias)
    assert torch.allclose(g(x).flatten(1), want, atol=1e-5)


def test_the_base_branch_does_not_learn_from_the_other():
    net,x = aligned(),torch.rand(4, 3, 64, 32)*2-1
    torch.nn.init.normal_(net.grid.out.weight)
    base,second = net(x)
    second.sum().backward(retain_graph=True)
    reached = {k.split('.')[0] for k,p in net.named_parameters() if p.grad is not None}
    assert reached=={'branch','second','grid'}
    assert net.grid.conv[0].weight.grad.abs().max()>0 and net.grid.out.bias.grad.abs().max()>0
    net.zero_grad()
    base.sum().backward()
    assert {k.split('.')[0] for k,p in net.named_parameters() if p.grad is not None}=={'base'}


@pytest.mark.parametrize('alpha', (.5,.2))
def test_embedding_and_scores(alpha):
    net,x = aligned(alpha=alpha, zoom=.7).eval(),torch.rand(3, 3, 64, 32)*2-1
    low = net.base.body[:4](x)
    f = [net.base.body(x).mean((2,3))]
    theta = torch.tensor([[.7,0,0],[0,.7,0]]).expand(3, 2, 3)
    f.append(net.branch(affine_part(low, theta)).mean((2,3)))
    e = [alpha*f[0]/f[0].norm(dim=1, keepdim=True), (1-alpha)*f[1]/f[1].norm(dim=1, keepdim=True)]
    assert torch.allclose(net.embed(x), torch.cat(e, 1), atol=1e-5)
    scores = (net.head(f[0])+net.second(f[1]))/2
    assert torch.allclose(net(x), scores, atol=1e-5)
    assert net.n_features==2*net.base.n_features==net.embed(x).shape[1]


def test_the_loss_is_both():
    torch.manual_seed(4)
    scores,who,eps = tuple(torch.randn(4, 6) for _ in range(2)),torch.randint(6, (4,)),torch.rand(4)
    q = torch.stack([F.one_hot(y, 6)*(1-e)+e/6 for y,e in zip(who, eps)])
    L = AlignLoss(None)
    assert torch.allclose(L(scores, who, eps), sum(F.cross_entropy(o, q) for o in scores), atol=1e-5)
    assert torch.allclose(L.stats['base'], F.cross_entropy(scores[0], q), atol=1e-5)
    assert torch.allclose(L.stats['aligned'], F.cross_entropy(scores[1], q), atol=1e-5)
    assert L.stats['accuracy']==((scores[0]+scores[1]).argmax(1)==who).float().mean()


@pytest.mark.parametrize('arch', ('small','small_dense','resnet18'))
def test_any_row_of_layers(arch):
    s = ReIDSettings(arch=arch, width=4, method='pan')
    net = first_net(s, 7)
    assert net.eval()(torch.zeros(2, 3, 64, 32)).shape==(2,7)
    own = next(p for p in net.branch.parameters() if p.ndim==4)
    assert not any(p.shape==own.shape and torch.equal(p, own) for p in net.base.parameters())
    assert find_method('pan').goes_with==dict(loss='ce')
