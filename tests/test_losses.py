"Losses against written-out oracles, and their gradients"
import pytest
import torch
import torch.nn.functional as F

from posereid.core import InputError
from posereid.losses.identity import lsr_loss, lsr_target, lsro_loss
from posereid.losses.transfer import (GAN_FORMS, discriminator_loss, generator_adv_loss, guider_ce,
                                      l1_loss, transfer_loss)


def lsr_oracle(logits, targ, eps):
    "Eq. 7 and 8, entry by entry"
    out, K = [], logits.shape[1]
    for row,y,e in zip(logits.double(), targ.tolist(), eps.tolist()):
        p = row.exp()/row.exp().sum()
        q = [1-e+e/K if k==y else e/K for k in range(K)]
        out.append(-sum(a*p[k].log() for k,a in enumerate(q)))
    return torch.stack(out).float()

def batch(seed, n=7, K=9):
    g = torch.Generator().manual_seed(seed)
    return (3*torch.randn(n, K, generator=g), torch.randint(0, K, (n,), generator=g),
            torch.rand(n, generator=g))

@pytest.mark.parametrize('seed', range(10))
def test_lsr_is_eq8_entry_by_entry(seed):
    logits,targ,eps = batch(seed, n=1+seed, K=2+seed)
    want = lsr_oracle(logits, targ, eps)
    torch.testing.assert_close(lsr_loss(logits, targ, eps, reduction='none'), want, atol=1e-5,
                               rtol=1e-5)
    torch.testing.assert_close(lsr_loss(logits, targ, eps), want.mean(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lsr_loss(logits, targ, eps, reduction='sum'), want.sum(), atol=1e-4,
                               rtol=1e-5)

def test_lsr_is_cross_entropy_with_its_target():
    logits,targ,eps = batch(3)
    torch.testing.assert_close(lsr_loss(logits, targ, eps),
                               F.cross_entropy(logits, lsr_target(targ, 9, eps)))

@pytest.mark.parametrize('eps', [0., .2, .4, 1.])
def test_a_number_is_the_same_as_one_a_picture(eps):
    logits,targ,_ = batch(0)
    torch.testing.assert_close(lsr_loss(logits, targ, eps),
                               lsr_loss(logits, targ, torch.full((7,), eps)))
    torch.testing.assert_close(lsr_loss(logits, targ, eps),
                               F.cross_entropy(logits, targ, label_smoothing=eps))

def test_zero_smoothing_is_cross_entropy_bit_for_bit():
    logits,targ,_ = batch(1)
    assert torch.equal(lsr_loss(logits, targ),
                       F.cross_entropy(logits, targ, reduction='none').mean())

@pytest.mark.parametrize('eps', [0., .4, 1., torch.tensor([0.,.1,.4,.4,1.,0.,.2])])
def test_smoothed_labels_are_distributions(eps):
    _,targ,_ = batch(0)
    q = lsr_target(targ, 9, eps)
    torch.testing.assert_close(q.sum(1), torch.ones(7))
    assert q.min() >= 0 and q.shape == (7,9)

def test_lsro_mixes_one_hot_and_uniform():
    logits,targ,_ = batch(4)
    gen = torch.tensor([1,0,1,0,0,1,0]).bool()
    lp = logits.log_softmax(1)
    want = torch.where(gen, -lp.mean(1), -lp[torch.arange(7),targ]).mean()
    torch.testing.assert_close(lsro_loss(logits, targ, gen), want)
    torch.testing.assert_close(lsro_loss(logits, targ, gen.long()), want)

def test_lsr_gradient():
    logits,targ,eps = batch(5, n=3, K=4)
    logits,eps = logits.double().requires_grad_(), eps.double()
    assert torch.autograd.gradcheck(lambda o: lsr_loss(o, targ, eps), logits)

def test_extreme_scores_stay_finite():
    logits = torch.tensor([[1e4,0.,-1e4]], requires_grad=True)
    loss = lsr_loss(logits, torch.tensor([2]), .4)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()

def test_eq1_against_probabilities():
    real,fake = torch.randn(2, 4, 1, 6, 2, dtype=torch.double)
    pr,pf = real.sigmoid(), fake.sigmoid()
    eq1 = pr.log().mean() + (1-pf).log().mean()
    for form in ('nonsat','minimax'):
        torch.testing.assert_close(discriminator_loss(real, fake, form), -eq1)
    torch.testing.assert_close(generator_adv_loss(fake, 'minimax'), (1-pf).log().mean())
    torch.testing.assert_close(generator_adv_loss(fake), -pf.log().mean())

@pytest.mark.parametrize('form', GAN_FORMS)
def test_the_players_pull_apart(form):
    "D wants real up and fake down, G wants fake up, in every form"
    real,fake = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    gr,gf = torch.autograd.grad(discriminator_loss(real, fake+.5, form), (real,fake))
    assert (gr<0).all() and (gf>0).all()
    assert (torch.autograd.grad(generator_adv_loss(fake, form), fake)[0]<0).all()

@pytest.mark.parametrize('form', GAN_FORMS)
def test_sure_scores_stay_finite(form):
    o = torch.tensor([-1e4,1e4], requires_grad=True)
    loss = discriminator_loss(o, -o, form) + generator_adv_loss(o, form)
    loss.backward()
    assert loss.isfinite() and o.grad.isfinite().all()

@pytest.mark.parametrize('f', [lambda: discriminator_loss(torch.zeros(1), torch.zeros(1), 'hinge'),
                               lambda: generator_adv_loss(torch.zeros(1), 'hinge')])
def test_unknown_form(f):
    with pytest.raises(InputError, match='nonsat, minimax, lsgan'): f()

def test_l1_is_the_mean_over_pixels_and_channels():
    a,b = torch.rand(2, 3, 3, 8, 4)*2-1
    torch.testing.assert_close(l1_loss(a, b), (a-b).abs().sum()/(3*3*8*4))

def test_l1_weight_is_scaled_to_a_mean_of_one():
    a,b = torch.rand(2, 3, 3, 8, 4)
    w = torch.rand(3,1,8,4)
    want = ((a-b).abs()*(w/w.mean())).mean()
    for c in (1, 7, .01): torch.testing.assert_close(l1_loss(a, b, c*w), want)
    assert l1_loss(a, b, 0*w) == 0

def test_guider_is_the_mean_over_target_rows():
    logits,targ,_ = batch(6)
    keep = torch.tensor([1,0,0,1,1,0,0]).bool()
    targ[~keep] = -1
    want = F.cross_entropy(logits[keep], targ[keep])
    torch.testing.assert_close(guider_ce(logits, targ, keep), want)
    torch.testing.assert_close(guider_ce(logits, targ, keep.float()), want)

def test_guider_never_looks_at_the_source():
    "Not even a source row of NaN reaches loss or gradient"
    logits,targ,_ = batch(7)
    keep = torch.tensor([1,0,0,1,1,0,0]).bool()
    logits[1] = float('nan'); logits.requires_grad_()
    loss = guider_ce(logits, targ, keep)
    loss.backward()
    assert (loss.isfinite() and torch.equal(logits.grad[~keep], torch.zeros(4,9))
            and (logits.grad[keep]!=0).any(1).all())

def test_guider_without_target_rows_is_zero_through_a_network():
    net = torch.nn.Linear(4, 9)
    loss = guider_ce(net(torch.randn(5,4)), torch.full((5,), -1), torch.zeros(5).bool())
    loss.backward()
    assert loss == 0 and all(torch.equal(p.grad, torch.zeros_like(p)) for p in net.parameters())

def test_eq5():
    assert transfer_loss(1., 2., 3.) == 1+10*2+3
    assert transfer_loss(1., 2., 3., lam=100, beta=.5) == 1+200+1.5
    assert transfer_loss(1., 2., beta=0) == 21
