"Networks: variants, gradients, sizes, statistics"
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from posereid.core import InputError, load_weights, save_weights
from posereid.models.discriminator import StackedDiscriminator, receptive_field
from posereid.models.generator import SiameseUNet, Up, box_kernel, check_depth, unet_depth
from posereid.models.reid import ReIDNet, reid_net, set_stats, small_body

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def pictures(*shape): return torch.rand(*shape)*2-1

ENDINGS = [dict(head=4), dict(blend=True), dict(head=4, blend=True),
           dict(head=4, blend=True, shared=True, norm='instance')]
VARIANTS = ENDINGS + [dict(up=u, norm=n, shared=s, skips=k)
            for u,n,s,k in itertools.product(('resize','transposed'), ('batch','instance'),
                                             (False,True), ('both','appearance'))]

# generator

@pytest.mark.parametrize('h,w', [(1,1), (3,2), (5,7)])
def test_box_kernel_is_doubling_and_convolution(h, w):
    x,k = torch.randn(2,4,h,w,dtype=torch.double), torch.randn(4,3,3,3,dtype=torch.double)
    want = F.conv2d(F.interpolate(x, scale_factor=2), k.transpose(0,1), padding=1)
    torch.testing.assert_close(F.conv_transpose2d(x, box_kernel(k), stride=2, padding=1), want)

def test_box_kernel_gradient_is_that_of_doubling_and_convolution():
    x,k = (torch.randn(2,4,5,3,dtype=torch.double),
           torch.randn(4,3,3,3,dtype=torch.double, requires_grad=True))
    a = F.conv_transpose2d(x, box_kernel(k), stride=2, padding=1)
    b = F.conv2d(F.interpolate(x, scale_factor=2), k.transpose(0,1), padding=1)
    g = torch.randn_like(a)
    torch.testing.assert_close(*(torch.autograd.grad(o, k, g)[0] for o in (a,b)))

@pytest.mark.parametrize('kw', VARIANTS, ids=lambda o: '-'.join(map(str, o.values())))
def test_every_variant_gives_a_picture_and_a_gradient_everywhere(kw):
    G,(x,s) = SiameseUNet(width=4, **kw), pictures(2,2,3,64,32).requires_grad_()
    y = G(x, s)
    assert y.shape == (2,3,64,32) and y.abs().max() <= 1
    (y-pictures(2,3,64,32)).abs().mean().backward()
    assert [k for k,p in G.named_parameters()
            if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()] == []

@pytest.mark.parametrize('kw', VARIANTS, ids=lambda o: '-'.join(map(str, o.values())))
def test_both_inputs_matter(kw):
    G,x,s = SiameseUNet(width=4, **kw), pictures(2,3,64,32), pictures(2,3,64,32)
    far = lambda a, b: (a-b).abs().mean().item() > 1e-4
    with torch.no_grad():
        assert far(G(x, s), G(-x, s)) and far(G(x, s), G(x, -s)) and far(G(x, s), G(s, x))

@pytest.mark.parametrize('head', [0,4])
def test_a_mask_copies_or_paints(head):
    G,x,s = SiameseUNet(width=4, head=head, blend=True), pictures(2,3,64,32), pictures(2,3,64,32)
    last = G.head if head else G.decoder.ups[0]
    last.weight.data.zero_()
    for m,want in [(99.,x), (-99.,torch.full_like(x, .5).tanh())]:
        last.bias.data = torch.tensor([.5,.5,.5,m])
        torch.testing.assert_close(G(x, s), want)

def test_shared_has_one_encoder():
    n = {k: sum(p.numel() for p in SiameseUNet(width=4, shared=k).parameters())
         for k in (False,True)}
    m = sum(p.numel() for p in SiameseUNet(width=4).skeleton.parameters())
    assert n[False] - n[True] == m

def test_shared_trains_on_the_statistics_that_it_keeps():
    "BatchNorm of a shared encoder sees pictures and skeletons as one batch, so eval after one step with momentum 1 repeats the step"
    G,x,s = SiameseUNet(width=4, shared=True), pictures(8,3,64,32), pictures(8,3,64,32)
    norms = [m for m in G.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms: m.momentum = 1.
    y = G(x, s)
    assert {m.num_batches_tracked.item() for m in norms} == {1}
    assert (G.eval()(x, s)-y).abs().max() < .05

@pytest.mark.parametrize('size', [(64,32), (128,64), (128,48), (32,32), (256,128), (80,48)])
def test_sizes(size):
    assert SiameseUNet(size, width=2)(*pictures(2,2,3,*size)).shape == (2,3,*size)

@pytest.mark.parametrize('size', [(70,30), (63,32), (64,31), (100,50), (1,1)])
def test_sizes_that_cannot_be_halved(size):
    with pytest.raises(InputError, match='multiples of'): SiameseUNet(size)

@pytest.mark.parametrize('size,depth', [((64,32),6), ((64,32),0), ((96,48),5)])
def test_depths_that_do_not_fit(size, depth):
    with pytest.raises(InputError, match='depth'): check_depth(size, depth)

def test_proposed_size_can_be_halved():
    for h,w in itertools.product((30,70,100,250), (15,30,50,110)):
        try: unet_depth((h,w))
        except InputError as e:
            near = str(e).rsplit('such as ')[1].rstrip('.').split(' × ')
            unet_depth(tuple(map(int, near)))

@pytest.mark.parametrize('kw', [dict(norm='layer'), dict(up='bilinear'), dict(skips='none')])
def test_unknown_variants(kw):
    with pytest.raises(InputError, match='must be one of'): SiameseUNet(width=2, **kw)

def test_eval_mode_depends_on_the_picture_alone():
    G = SiameseUNet(width=4, dropout=.5)
    x,s = pictures(2,4,3,64,32)
    G(x, s)
    with torch.no_grad():
        torch.testing.assert_close(G.eval()(x, s)[:1], G(x[:1], s[:1]), atol=1e-5, rtol=1e-4)

def test_instance_norm_does_not_couple_a_batch():
    G,(x,s) = SiameseUNet(width=4, norm='instance'), pictures(2,4,3,64,32)
    with torch.no_grad():
        torch.testing.assert_close(G(x, s)[:1], G(x[:1], s[:1]), atol=1e-5, rtol=1e-4)

def test_pix2pix_start():
    G,D = SiameseUNet(width=32), StackedDiscriminator(width=32)
    for m in [*G.modules(), *D.modules()]:
        if isinstance(m, (nn.Conv2d,Up)) and m.weight.numel()>2000:
            assert abs(m.weight.std()-.02) < .002 and abs(m.weight.mean()) < .002
        if isinstance(m, nn.BatchNorm2d): assert abs(m.weight.mean()-1) < .02 and not m.bias.any()

def test_same_seed_same_weights():
    nets = []
    for _ in range(2): torch.manual_seed(7); nets.append(SiameseUNet(width=4).state_dict())
    assert all(torch.equal(v, nets[1][k]) for k,v in nets[0].items())

def test_weights_travel(tmp_path):
    a,b = SiameseUNet(width=4), SiameseUNet(width=4)
    x,s = pictures(2,2,3,64,32)
    a(x, s)
    save_weights(a, tmp_path/'G.safetensors'); load_weights(b, tmp_path/'G.safetensors')
    assert torch.equal(a.eval()(x, s), b.eval()(x, s))
    with pytest.raises(InputError):
        load_weights(SiameseUNet(width=4, up='transposed'), tmp_path/'G.safetensors')

def test_paper_size_steps():
    "256 × 256 and 64 channels, as in §4.2 and pix2pix: one picture forward and backward"
    G,D = (SiameseUNet((256,256), width=64, depth=8, dropout=.5, up='transposed'),
           StackedDiscriminator(64))
    x,s,y = pictures(3,1,3,256,256)
    fake = G(x, s)
    (F.softplus(-D(x, s, fake)).mean() + 10*F.l1_loss(fake, y)).backward()
    assert fake.shape == y.shape and D(x, s, y).shape == (1,1,30,30)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in G.parameters())

# discriminator

@pytest.mark.parametrize('n', [1,2,3,4])
def test_receptive_field_is_what_the_gradient_says(n):
    D,y = StackedDiscriminator(width=2, n_layers=n).eval(), pictures(1,3,160,160).requires_grad_()
    score = D(torch.zeros_like(y), torch.zeros_like(y), y)[0,0]
    mid = score.shape[0]//2
    seen = torch.autograd.grad(score[mid,mid], y)[0][0].abs().sum(0) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == receptive_field(n)

@pytest.mark.parametrize('which', range(3))
def test_the_discriminator_looks_at_all_three(which):
    D,xsy = StackedDiscriminator(width=4).eval(), list(pictures(3,1,3,64,32))
    a = D(*xsy)
    xsy[which] = -xsy[which]
    assert a.shape == (1,1,6,2) and not torch.allclose(a, D(*xsy))

def test_discriminator_gradient_everywhere():
    D = StackedDiscriminator(width=4, norm='instance')
    D(*pictures(3,2,3,64,32)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in D.parameters())

# ReID

@pytest.mark.parametrize('arch,n',
                         [('small',64), ('resnet18',512), ('resnet50',2048), ('densenet169',1664)])
def test_architectures(arch, n):
    net = reid_net(7, arch, width=8).eval()
    x = pictures(2,3,64,32)
    with torch.no_grad():
        f = net.embed(x)
        assert f.shape == (2,n) and net.n_features == n and net(x).shape == (2,7)
        assert (f>=0).all(), 'the last map comes out of a ReLU'
        torch.testing.assert_close(net(x), f@net.head.weight.T + net.head.bias)

def test_small_net_has_a_gradient_everywhere():
    net = reid_net(5, width=4)
    nn.init.normal_(net.head.weight)
    F.cross_entropy(net(pictures(8,3,64,32)), torch.arange(8)%5).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())

def test_no_classifier():
    net = reid_net(None, width=4).eval()
    x = pictures(2,3,64,32)
    assert net.head is None and torch.equal(net(x), net.embed(x))

def test_dropout_is_off_in_eval_and_spares_the_embedding():
    net,x = reid_net(5, width=4, dropout=.5).eval(), pictures(2,3,64,32)
    assert torch.equal(net(x), net(x))
    assert net.train().drop.p == .5 and net.body is not None and isinstance(net.drop, nn.Dropout)

def test_first_loss_is_log_K():
    net = reid_net(50, width=8)
    loss = F.cross_entropy(net(pictures(16,3,64,32)), torch.arange(16))
    torch.testing.assert_close(loss, torch.tensor(50.).log(), atol=.05, rtol=0)

def test_statistics_are_the_input_transform():
    a = ReIDNet(*small_body(4), None).eval()
    x = pictures(2,3,64,32)
    m,s = torch.tensor([.485,.456,.406]).view(3,1,1), torch.tensor([.229,.224,.225]).view(3,1,1)
    want = a.body(((x+1)/2-m)/s).mean((2,3))
    torch.testing.assert_close(set_stats(a).embed(x), want, atol=1e-4, rtol=1e-4)
    assert {'mean','std'} <= set(a.state_dict())

@pytest.mark.parametrize('kw', [dict(arch='vgg61'), dict(weights='imagenet'),
                                dict(arch='resnet18', weights='coco')])
def test_bad_names(kw):
    with pytest.raises(InputError): reid_net(5, **kw)

def test_reid_weights_travel(tmp_path):
    a,b,x = reid_net(5, width=4), reid_net(5, width=4), pictures(4,3,64,32)
    a(x)
    save_weights(a, tmp_path/'r.safetensors'); load_weights(b, tmp_path/'r.safetensors')
    assert torch.equal(a.eval()(x), b.eval()(x))
