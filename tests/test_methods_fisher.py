"FisherNet: Fisher vectors by autograd, eigenvalues by SciPy, and batches of people"
import numpy as np, pytest, torch
from scipy.linalg import eigh

from posereid.methods.fisher import LDALoss, lda_eigenvalues, lda_loss
from posereid.models.fisher import FisherLayer, FisherNet, power_normalise
from posereid.models.reid import reid_net
from posereid.stages.reid import ReIDSettings


def layer(seed=0, d=4, k=3):
    torch.manual_seed(seed)
    m = FisherLayer(d, k).double()
    with torch.no_grad(): m.weight.normal_(); m.log_std.normal_(std=.4)
    return m, torch.randn(1, 7, d).double()


def test_a_fisher_vector_is_the_scaled_gradient_of_the_likelihood():
    m,x = layer()
    g_mean,g_log = torch.autograd.grad(m.densities(x)[0].logsumexp(-1).mean(), (m.mean, m.log_std))
    w,sd = m.weight.softmax(0)[:,None],m.log_std.exp()
    want = torch.cat([(g_mean*sd/w.sqrt()).flatten(), (g_log/(2*w).sqrt()).flatten()])
    assert torch.allclose(m(x)[0], want, atol=1e-10)


def test_densities_are_those_of_torch():
    m,x = layer(1)
    mix = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=m.weight),
        torch.distributions.Independent(torch.distributions.Normal(m.mean, m.log_std.exp()), 1))
    assert torch.allclose(m.densities(x)[0].logsumexp(-1), mix.log_prob(x), atol=1e-10)


def test_the_number_and_order_of_places_do_not_matter():
    m,x = layer(2)
    assert torch.allclose(m(x), m(torch.cat([x,x.flip(1)], 1)), atol=1e-10)


def test_power_normalise():
    v = torch.tensor([[0.,4,-9],[1,0,0]], requires_grad=True)
    out = power_normalise(v)
    assert torch.allclose(out.norm(dim=1), torch.ones(2)) and (out.sign()==v.sign()).all()
    assert abs(out[0,2]/out[0,1]+1.5)<.01
    assert torch.autograd.grad(out.sum(), v)[0].isfinite().all()


@pytest.mark.parametrize('ridge', [.01, 1.])
@pytest.mark.parametrize('n,d', [(5,3),(4,20)])
def test_eigenvalues_by_scipy(ridge, n, d):
    r = np.random.default_rng(n*d)
    who = np.repeat([3,8,5,1], [n,n+1,n,n-1])
    x,w = r.normal(size=(len(who), d)),r.choice([1.,.5], len(who))
    sw,sb,total,mean = np.zeros((d,d)),np.zeros((d,d)),w.sum(),(w[:,None]*x).sum(0)/w.sum()
    for c in (1,3,5,8):
        at = who==c
        m = (w[at,None]*x[at]).sum(0)/w[at].sum()
        for o,v in zip(x[at], w[at]): sw += v*np.outer(o-m, o-m)/total
        sb += w[at].sum()*np.outer(m-mean, m-mean)/total
    want = eigh(sb, sw+ridge*np.trace(sw+sb)/d*np.eye(d), eigvals_only=True)[-3:]
    got = lda_eigenvalues(torch.from_numpy(x), torch.from_numpy(who), torch.from_numpy(w), ridge)
    assert np.allclose(got, want, atol=1e-7)
    assert np.allclose(lda_eigenvalues(torch.from_numpy(x*.01+3), torch.from_numpy(who), torch.from_numpy(w), ridge), want, atol=1e-6)


def test_the_gradient_by_differences():
    torch.manual_seed(0)
    emb,who = torch.randn(8, 3).double().requires_grad_(),torch.arange(4).repeat_interleave(2)
    assert torch.autograd.gradcheck(lambda e: lda_loss(lda_eigenvalues(e, who), 1.), emb)
    values = torch.tensor([1.,1.9,2.], requires_grad=True)
    assert torch.autograd.grad(lda_loss(values), values)[0].tolist()==[-.5,-.5,0]


def test_generated_pictures_weigh_less():
    s,loss = ReIDSettings(eps_real=.1, eps_generated=.4, margin_generated=.25),None
    loss = LDALoss(s)
    torch.manual_seed(0)
    emb,scores,who = torch.randn(12, 4),torch.randn(12, 6),torch.arange(6).repeat_interleave(2)
    gen = torch.arange(12)%2==1
    from posereid.losses.identity import lsr_loss
    total = loss((emb, scores), who, gen)
    ce = lsr_loss(scores, who, torch.where(gen, .4, .1))
    v = lda_eigenvalues(emb, who, torch.where(gen, .25, 1.), loss.ridge)
    assert torch.isclose(total, ce+loss.weight*lda_loss(v)) and torch.isclose(loss.stats['least'], v[0])
    assert loss((emb*torch.nan, scores*torch.nan), who, gen).isnan()


@pytest.mark.parametrize('arch', ['small_dense','resnet18'])
def test_other_bodies(arch):
    net = FisherNet(reid_net(None, arch, width=4), 5).eval()
    assert net(torch.zeros(2, 3, 64, 32)).shape==(2,5) and net.embed(torch.zeros(2, 3, 96, 64)).shape==(2,64)
