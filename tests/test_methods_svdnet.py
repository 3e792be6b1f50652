"SVDNet: S(W) and decorrelation against NumPy, the phases, what is held in them, stopping and going on"
from dataclasses import replace
from types import SimpleNamespace

import numpy as np, pytest, torch
from fastai.callback.core import Callback

from posereid.core import InputError, weights_hash
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.losses.identity import lsr_loss
from posereid.methods.svdnet import EigenLoss, RestraintRelaxation, rri_count, rri_phase
from posereid.models.eigen import EigenNet, decorrelated, orthogonality
from posereid.models.reid import reid_net
from posereid.stages.fit import read_log
from posereid.stages.method import METHODS, find_method
from posereid.stages.reid import ReIDSettings, first_net, train_reid
from posereid.synth.world import tiny_world

S = ReIDSettings(width=4, epochs=6, bs=12, lr=.1, method='svdnet')


def random(seed, k, n): return torch.randn(k, n, generator=torch.Generator().manual_seed(seed))

@pytest.mark.parametrize('k,n', [(1,1),(2,5),(7,7),(12,20)])
def test_orthogonality_against_a_loop(k, n):
    w = random(k, k, n).numpy()
    own = sum(float(w[i]@w[i]) for i in range(k))
    every = sum(abs(float(w[i]@w[j])) for i in range(k) for j in range(k))
    assert abs(orthogonality(torch.from_numpy(w)).item()-own/every)<1e-5


def by_columns(W):
    "US in the order of the authors' code: for each column of W the closest of those that are left"
    U,S,_ = np.linalg.svd(W, full_matrices=False)
    left,res = [U[:,i]*S[i] for i in range(W.shape[1])],[]
    for w in W.T:
        cos = [w@o/np.linalg.norm(w)/np.linalg.norm(o) for o in left]
        at = int(np.argmax(np.abs(cos)))
        res.append(left.pop(at)*np.sign(cos[at]))
    return np.stack(res, 1)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('k,n', [(1,4),(3,3),(8,16)])
def test_decorrelation(seed, k, n):
    w = random(seed, k, n)
    d = decorrelated(w)
    x = random(seed+100, 15, n)
    assert torch.allclose(torch.cdist(x@w.T, x@w.T), torch.cdist(x@d.T, x@d.T), atol=1e-3)
    g = (d@d.T)
    assert torch.allclose(g, torch.diag(g.diagonal()), atol=1e-4)
    assert np.allclose(d.numpy().T, by_columns(w.double().numpy().T), atol=1e-4)
    cos = torch.nn.functional.normalize(d, dim=1)@torch.nn.functional.normalize(w, dim=1).T
    assert (cos.diagonal()>=0).all()
    assert d.dtype==w.dtype and d.shape==w.shape


def test_decorrelation_of_equal_and_of_empty_projections():
    w = torch.ones(3, 6)
    d = decorrelated(w)
    assert d.isfinite().all() and abs(orthogonality(d)-1)<1e-5
    assert torch.allclose(d.pow(2).sum(), w.pow(2).sum(), atol=1e-4)
    assert torch.equal(decorrelated(torch.zeros(2, 3)), torch.zeros(2, 3))
    twice = decorrelated(torch.tensor([[1.,0.],[1.,0.]])) # what is empty takes the last place
    assert torch.allclose(twice, torch.tensor([[2**.5,0.],[0.,0.]]), atol=1e-6)


def test_sizes_of_the_layer():
    assert EigenNet(reid_net(5, width=4)).n_features==16
    assert EigenNet(reid_net(5, width=4), out=32).n_features==32
    for out in (0,33):
        with pytest.raises(InputError, match='1 to 32'): EigenNet(reid_net(5, width=4), out=out)


@pytest.mark.parametrize('arch', ('small','small_dense','resnet18'))
def test_other_bodies(arch):
    net = first_net(replace(S, arch=arch), 7)
    x = torch.rand(2, 3, 64, 32)
    scores,w = net(x)
    assert scores.shape==(2,7) and w is net.eigen.weight and net.eval()(x).shape==(2,7)
    assert torch.allclose(net.embed(x), net.base.embed(x)@w.T, atol=1e-5)
    assert net.eigen.bias is None and net.embed(x).shape==(2,net.n_features)

# --- phases

@pytest.mark.parametrize('steps', (1,2,7,40,333))
@pytest.mark.parametrize('n', (1,3,7))
@pytest.mark.parametrize('first', (0.,.4,.9))
def test_phases_follow_each_other_and_are_of_one_length(steps, n, first):
    phases = [rri_phase(o, steps, n, first) for o in range(steps)]
    assert phases==sorted(phases) and all(0<=o<=2*n for o in phases)
    start = round(first*steps)
    assert phases[:start]==[0]*start and all(phases[start:])
    long = [phases.count(o) for o in range(1, 2*n+1)]
    assert max(long)-min(long)<=1


def test_as_many_iterations_as_there_is_time_for():
    assert [rri_count(o) for o in (.5,3,3.4,6.7,10,24,100)]==[1,1,1,2,3,7,7]
    assert [rri_count(o, first=.5, most=3) for o in (8,100)]==[2,3]


def test_the_loss_is_that_of_the_baseline():
    scores,w = random(0, 6, 4),random(1, 3, 5)
    label,eps = torch.arange(6)%4,torch.linspace(0, 1, 6)
    loss = EigenLoss(S)
    assert torch.equal(loss((scores,w), label, eps), lsr_loss(scores, label, eps))
    assert torch.equal(loss.stats['orthogonality'], orthogonality(w))

# --- trainings

class Watch(Callback):
    "The layer after each step, and what the optimiser remembers of it; may stop"
    def __init__(self, stop=None): self.stop,self.W,self.rest,self.m = stop,[],[],[]
    def after_batch(self):
        w = self.model.eigen.weight
        self.W.append(w.detach().clone())
        self.rest.append(self.model.head.weight.detach().clone())
        kept = self.opt.opt.state[w].get('momentum_buffer')
        self.m.append(0. if kept is None else kept.abs().max().item())
        if self.epoch==self.stop: raise KeyboardInterrupt


def train(args, folder, stop=None, s=S):
    m,watch = find_method('svdnet'),Watch(stop)
    METHODS['svdnet'] = replace(m, callbacks=lambda t: [*m.callbacks(t), watch])
    try: return watch,train_reid(*args, s, folder, every=0)
    except KeyboardInterrupt: return watch,None
    finally: METHODS['svdnet'] = m


@pytest.fixture(scope='module')
def args():
    w = tiny_world()
    return pick(w.target, split='train'),PictureStore(S.size),train_labels(w.target)


@pytest.mark.parametrize('momentum', (0.,.9))
def test_what_is_held_and_what_moves(args, tmp_path, momentum):
    s = replace(S, momentum=momentum)
    watch,net = train(args, tmp_path/'a', s=s)
    n,steps = rri_count(S.epochs),len(watch.W)
    phases = [rri_phase(o, steps, n) for o in range(steps)]
    assert n==1 and {0,1,2}==set(phases)
    for i in range(1, steps):
        still = torch.equal(watch.W[i], watch.W[i-1])
        if phases[i]!=phases[i-1] and phases[i]==1:
            assert torch.allclose(watch.W[i], decorrelated(watch.W[i-1]), atol=1e-6)
            assert watch.m[i]==0.
        else: assert still==(phases[i]==1), i
        assert not torch.equal(watch.rest[i], watch.rest[i-1])


def test_stopped_and_gone_on(args, tmp_path):
    _,whole = train(args, tmp_path/'whole')
    for epoch in (2,3,5):  # the iteration begins in the third epoch, its relaxation in the fifth
        assert train(args, tmp_path/f'{epoch}', stop=epoch)[1] is None
        assert weights_hash(train_reid(*args, S, tmp_path/f'{epoch}'))==weights_hash(whole)
    log = [float(o['orthogonality']) for o in read_log(tmp_path/'whole/log.csv')]
    assert len(log)==6 and abs(log[3]-1)<1e-3 and max(log[:2])<.9


def test_a_part_of_an_epoch(args, tmp_path):
    watch,net = train(args, tmp_path/'a', s=replace(S, epochs=.5))
    assert len(watch.W)==2 and net is not None


def test_the_layer_is_let_go_at_the_end():
    cb,net = RestraintRelaxation(2.),EigenNet(reid_net(5, width=4))
    cb.learn = SimpleNamespace(model=net)
    net.eigen.weight.requires_grad_(False); cb.after_fit()
    assert net.eigen.weight.requires_grad
