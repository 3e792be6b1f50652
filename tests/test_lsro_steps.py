"The steps of the DCGAN by hand, what it is trained on, and the set that is drawn from it"
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import CancelBatchException
from PIL import Image
from torch import nn

from posereid.core import InputError, weights_hash
from posereid.data.pictures import PictureStore
from posereid.data.manifest import pick
from posereid.models.dcgan import DCGANGenerator
from posereid.stages import lsro
from posereid.stages.lsro import (DCGANCallback, DCGANSettings, draw_unlabelled, load_dcgan,
                                  noise_pictures, train_dcgan)
from posereid.synth.world import tiny_world

S = DCGANSettings(width=4, epochs=1, bs=20, z=8)


@pytest.fixture(scope='module')
def target(): return tiny_world().target

@pytest.fixture(scope='module')
def real(target): return pick(target, split='train')

@pytest.fixture(scope='module')
def store(): return PictureStore((64,32))

@pytest.fixture(scope='module')
def G(real, store, tmp_path_factory):
    return train_dcgan(real, store, S, tmp_path_factory.mktemp('g')/'g')


# --- one batch, by hand ---

class ToyD(nn.Module):
    "score = w · (mean of the picture)"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(.7))
    def forward(self, y): return self.w*y.flatten(1).mean(1)

class ToyG(nn.Module):
    "Every pixel is v · (mean of the noise); the noise is kept"
    z = 50
    def __init__(self):
        super().__init__()
        self.v,self.seen = nn.Parameter(torch.tensor(1.5)),[]
    def forward(self, z):
        self.seen.append(z)
        return (self.v*z.mean(1))[:,None,None,None].expand(-1, 3, 4, 2)


def toy(real):
    "A callback with nets of one weight each and plain gradient descent of step 1"
    model = SimpleNamespace(G=ToyG(), D=ToyD())
    opt = SimpleNamespace(D=torch.optim.SGD([model.D.w], lr=1.),
                          G=torch.optim.SGD([model.G.v], lr=1.))
    cb = DCGANCallback()
    cb.learn = SimpleNamespace(model=model, opt=opt, xb=(real,), loss=None)
    return cb, model


def sig(x): return 1/(1+np.exp(-x))


def test_a_batch_by_hand():
    torch.manual_seed(0)
    real = torch.randn(6, 3, 4, 2)
    cb,model = toy(real)
    with pytest.raises(CancelBatchException): cb.before_batch()
    z, = model.G.seen                       # drawn once, and used in both steps
    assert (z.shape==(6, 50) and len(z.unique(dim=0))==6 and z.min()<0
            and z.std()==pytest.approx(1, abs=.15))
    r,m = real.flatten(1).mean(1).numpy().astype(float),z.mean(1).detach().numpy().astype(float)
    w,v = .7,1.5
    a,b = w*r,w*v*m
    d_loss = np.log1p(np.exp(-a)).mean() + np.log1p(np.exp(b)).mean()
    w1 = w - ((sig(a)-1)*r + sig(b)*v*m).mean()   # d/dw of −log σ(wr) − log(1 − σ(wvm))
    v1 = v - ((sig(w1*v*m)-1)*w1*m).mean()        # d/dv of −log σ(w₁vm), D has moved before
    assert (model.D.w.item()==pytest.approx(w1, abs=1e-5)
            and model.G.v.item()==pytest.approx(v1, abs=1e-5))
    got = {k: o.item() for k,o in cb.terms.items()}
    want = dict(d_loss=d_loss, d_real=sig(a).mean(), d_fake=sig(b).mean(),
                adv=np.log1p(np.exp(-w1*v*m)).mean())
    assert (got==pytest.approx(want, abs=1e-5)
            and cb.learn.loss.item()==pytest.approx(d_loss, abs=1e-5))
    assert not any(o.requires_grad for o in cb.terms.values())


def test_a_step_begins_without_the_gradients_of_the_last():
    "The same batch twice: twice the hand-made step, not a growing one; D's are not touched by G's step"
    real = torch.full((1,3,4,2), 2.)
    cb,model = toy(real)
    cb.terms = {}
    fake = torch.full((1,3,4,2), -1.)
    w = .7
    for _ in range(2):
        cb.step_D(real, fake)
        w -= (sig(2*w)-1)*2 - sig(-w)
        assert model.D.w.item()==pytest.approx(w, abs=1e-5)
    kept = model.D.w.grad.clone()
    for _ in range(2):
        v = model.G.v.item()
        cb.step_G(model.G(torch.full((1,50), .5)))
        assert model.G.v.item()==pytest.approx(v-(sig(w*v*.5)-1)*w*.5, abs=1e-5)
    assert torch.equal(model.D.w.grad, kept) and model.D.w.requires_grad


# --- training ---

@pytest.fixture
def watched(monkeypatch):
    "What each batch of a training was: pictures, step sizes, momenta"
    seen,f = [],DCGANCallback.before_batch
    def before_batch(self):
        group = self.opt.D.param_groups[0], self.opt.G.param_groups[0]
        seen.append(SimpleNamespace(x=self.xb[0].clone(), lr=[o['lr'] for o in group],
                                    betas=[tuple(o['betas']) for o in group],
                                    train=self.model.training, chance=torch.get_rng_state()))
        return f(self)
    monkeypatch.setattr(DCGANCallback, 'before_batch', before_batch)
    return seen


def keys(x): return {o.numpy().tobytes() for o in x.contiguous()}


def test_it_sees_the_pictures_as_they_are(real, store, tmp_path, watched):
    "Without `flip` each batch is of the store's pictures, pixel by pixel; with it, half of them are mirrored; never are they shifted"
    x = store.get(list(real.path)).float()/127.5-1
    train_dcgan(real, store, replace(S, flip=False, lr=3e-4, betas=(.4,.9)), tmp_path/'a')
    assert len(watched)==len(real)//20==3 and all(o.train for o in watched)
    assert ({o for b in watched for o in b.lr}=={3e-4}
            and {o for b in watched for o in b.betas}=={(.4,.9)})
    seen = torch.cat([b.x for b in watched])
    near = lambda a,b: (a[:,None]-b[None]).abs().flatten(2).amax(2)<1e-5
    # each once: an epoch is one pass
    assert near(seen, x).any(1).all() and near(seen, x).any(0).all()
    watched.clear()
    train_dcgan(real, store, S, tmp_path/'b')
    seen = torch.cat([b.x for b in watched])
    plain,mirrored = near(seen, x).any(1),near(seen, x.flip(3)).any(1)
    assert (plain|mirrored).all() and .2<mirrored.float().mean()<.8 and .2<plain.float().mean()<.8
    assert ({o for b in watched for o in b.lr}=={2e-4}
            and {o for b in watched for o in b.betas}=={(.5,.999)})


def test_the_first_step_of_adam_is_as_long_as_lr(real, store, tmp_path, monkeypatch):
    f,seen = lsro.DCGANCallback.step_D,[]
    def step_D(self, *args):
        flat = lambda: torch.cat([o.detach().flatten().clone() for o in self.model.D.parameters()])
        before = flat()
        f(self, *args)
        seen.append((flat()-before).abs())
    monkeypatch.setattr(lsro.DCGANCallback, 'step_D', step_D)
    train_dcgan(real, store, replace(S, lr=1e-3), tmp_path/'a')
    assert (seen[0].max().item()==pytest.approx(1e-3, rel=.01)
            and seen[0].median().item()==pytest.approx(1e-3, rel=.01))


def test_only_real_training_pictures_count(target, real, store, tmp_path):
    "Generated rows and other splits change nothing: the folder of one is that of the other"
    odd = real.iloc[:7].assign(is_generated=True, path=real.path.iloc[7:14].values)
    mixed = pd.concat([odd, target], ignore_index=True)
    a = train_dcgan(real, store, S, tmp_path/'a')
    b = train_dcgan(mixed, store, S, tmp_path/'b')
    assert weights_hash(a)==weights_hash(b)
    # the same settings: it is done
    assert weights_hash(train_dcgan(mixed, store, S, tmp_path/'a'))==weights_hash(a)
    u = draw_unlabelled(a, mixed, 1, 0, tmp_path/'u')
    assert u.source_path.tolist()==real.path.tolist()


def test_a_folder_belongs_to_its_settings_and_pictures(real, store, tmp_path):
    train_dcgan(real, store, S, tmp_path/'a')
    for df,s in ((real.iloc[:-1], S), (real, replace(S, seed=1)), (real, replace(S, lr=1e-3))):
        with pytest.raises(InputError, match='--fresh'): train_dcgan(df, store, s, tmp_path/'a')
    again = train_dcgan(real, store, replace(S, seed=1), tmp_path/'a', fresh=True)
    other = train_dcgan(real, store, replace(S, seed=1), tmp_path/'b')
    assert weights_hash(again)==weights_hash(other)!=weights_hash(
        train_dcgan(real, store, S, tmp_path/'c'))


def test_what_is_done_is_not_done_again(real, store, tmp_path, watched):
    train_dcgan(real, store, S, tmp_path/'a')
    n,before = len(watched),{p: p.stat().st_mtime_ns for p in (tmp_path/'a').iterdir()}
    G = train_dcgan(real, store, S, tmp_path/'a')
    assert len(watched)==n>0 and before=={p: p.stat().st_mtime_ns
                                          for p in (tmp_path/'a').iterdir()} and not G.training
    train_dcgan(real, store, S, tmp_path/'a', fresh=True)
    assert len(watched)==2*n


def test_order_and_noise_come_from_the_seed(real, store, tmp_path, watched):
    for i,seed in enumerate((3,3,4)):
        train_dcgan(real, store, replace(S, seed=seed, flip=False), tmp_path/f'{i}')
    a,b,c = watched[0],watched[3],watched[6]
    assert torch.equal(a.x, b.x) and not torch.equal(a.x, c.x)
    # of which the noise is drawn next
    assert torch.equal(a.chance, b.chance) and not torch.equal(a.chance, c.chance)


def test_first_weights_come_from_the_seed(real, store, tmp_path):
    "Whatever was drawn before"
    torch.manual_seed(1); a = train_dcgan(real, store, S, tmp_path/'a')
    torch.manual_seed(2); b = train_dcgan(real, store, S, tmp_path/'b')
    assert weights_hash(a)==weights_hash(b)


def test_what_a_run_leaves(real, store, tmp_path):
    G = train_dcgan(real, store, replace(S, epochs=2), tmp_path/'a', every=0)
    assert {o.name for o in (tmp_path/'a').iterdir()}>={'G.safetensors','dcgan.json','metrics.json',
        'log.csv','settings.json'}
    assert not (tmp_path/'a'/'checkpoint.pt').exists()
    m,log = (json.loads((tmp_path/'a'/'metrics.json').read_text()),
             (tmp_path/'a'/'log.csv').read_text().splitlines())
    assert m['steps']==2*(len(real)//20) and m['generator']==weights_hash(G)
    assert (len(log)==3 and {'d_loss','d_real','d_fake','adv'}<=set(log[0].split(','))
            and {'d_loss','adv'}<=set(m))
    last = dict(zip(log[0].split(','), log[-1].split(',')))
    assert m['d_loss']==pytest.approx(float(last['d_loss']))
    s = DCGANSettings(**json.loads((tmp_path/'a'/'dcgan.json').read_text()))
    assert (s.size, s.width, s.z, s.epochs)==([64,32], 4, 8, 2)
    again = load_dcgan(tmp_path/'a')
    assert (weights_hash(again)==weights_hash(G) and not again.training and not G.training
            and again.z==8)


@pytest.mark.parametrize('name', ['width','z','bs','epochs'])
@pytest.mark.parametrize('n', [0,-1])
def test_counts_are_at_least_one(real, store, tmp_path, name, n):
    with pytest.raises(InputError, match=f'dcgan.{name} .*{n}'):
        train_dcgan(real, store, replace(S, **{name:n}), tmp_path/'r')
    assert not (tmp_path/'r').exists()


def test_the_store_must_have_the_size(real, tmp_path):
    with pytest.raises(InputError, match=r'\(32, 64\).*dcgan.size.*\(64, 32\)'):
        train_dcgan(real, PictureStore((32,64)), S, tmp_path/'r')
    assert not (tmp_path/'r').exists()


def test_defaults_are_those_of_dcgan():
    s = DCGANSettings()
    assert (s.size, s.z, s.lr, s.betas, s.flip, s.seed)==((64,32), 100, 2e-4, (.5,.999), True, 0)
    assert (s.width, s.bs, s.epochs)==(16, 32, 60)   # of the committed tables


# --- drawing ---

def test_noise_pictures_by_hand(G):
    z = torch.randn(11, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(): y = torch.cat([G.eval()(z[i:i+1]) for i in range(11)])
    want = ((y+1)/2*255).round().clamp(0, 255)
    for train in (False, True):             # a generator handed over in train mode draws the same
        G.train(train)
        got = list(noise_pictures(G, 11, 3, bs=4))
        assert [len(o) for o in got]==[4,4,3] and all(o.dtype==torch.uint8 and o.device.type=='cpu'
                                                      for o in got)
        assert (torch.cat(got).float()-want).abs().max()<=1
    assert not G.training and all(p.device.type=='cpu' for p in G.parameters())
    assert [len(o) for o in noise_pictures(G, 130)]==[128,2]
    # seed 0 unless asked
    assert torch.equal(next(noise_pictures(G, 2)), next(noise_pictures(G, 2, 0)))


def test_drawn_pictures_are_those_of_the_seed(G, real, tmp_path):
    "Picture i of the set is picture i of the noise, its rows N times those of the target"
    df = draw_unlabelled(G, real, 3, 4, tmp_path/'u')
    assert (df.source_path.tolist()==[p for p in real.path for _ in range(3)]
            and df.k.tolist()==[0,1,2]*len(real))
    assert (df.pid.tolist()==[p for p in real.pid for _ in range(3)]
            and df.camid.tolist()==[c for c in real.camid for _ in range(3)])
    assert set(df.generator)=={weights_hash(G)} and set(df.seed)=={4} and set(df.split)=={'train'}
    assert json.loads((tmp_path/'u'/'metrics.json').read_text())==dict(n_pictures=3*len(real),
        generator=weights_hash(G))


def test_picture_i_is_that_of_noise_i(real, tmp_path):
    "A generator whose pictures tell their noise: of one grey"
    class Grey(nn.Module):
        z = 4
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(1))
        def forward(self, z):
            return (self.w*z[:,0]/3).clamp(-1, 1)[:,None,None,None].expand(-1, 3, 64, 32)
    df = draw_unlabelled(Grey(), real, 3, 4, tmp_path/'u')
    z = torch.randn(3*len(real), 4, generator=torch.Generator().manual_seed(4))[:,0].numpy()
    got = np.array([np.asarray(Image.open(o), float).mean() for o in df.path])
    assert np.abs(got-((z/3).clip(-1, 1)+1)*127.5).max()<2     # JPEG apart


def test_a_drawn_set_belongs_to_its_settings(G, real, tmp_path):
    draw_unlabelled(G, real, 1, 4, tmp_path/'u')
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'u').rglob('*.jpg')}
    draw_unlabelled(G, real, 1, 4, tmp_path/'u')
    assert (before=={p: p.stat().st_mtime_ns for p in (tmp_path/'u').rglob('*.jpg')}
            and len(before)==len(real))
    other = DCGANGenerator((64,32), 4, 8)
    for args in ((G, real, 2, 4), (G, real, 1, 5), (other, real, 1, 4), (G, real.iloc[1:], 1, 4)):
        with pytest.raises(InputError, match='--fresh'): draw_unlabelled(*args, tmp_path/'u')
    assert len(draw_unlabelled(G, real, 2, 4, tmp_path/'u', fresh=True))==2*len(real)
