"The DCGAN of LSRO: shapes, two separate steps, going on after a stop, and a set whose people mean nothing"
import pytest, torch
from posereid.core import InputError
from posereid.data.manifest import pick
from posereid.data.pictures import PictureStore
from posereid.losses.identity import lsr_loss
from posereid.models.dcgan import DCGANDiscriminator, DCGANGenerator, dcgan_base
from posereid.stages import lsro
from posereid.stages.lsro import (DCGANSettings, draw_unlabelled, load_dcgan, noise_pictures,
                                  train_dcgan)
from posereid.synth.world import tiny_world

S = DCGANSettings(width=4, epochs=3, bs=16, z=8)


@pytest.fixture(scope='module')
def world(): return tiny_world()

@pytest.fixture(scope='module')
def store(): return PictureStore((64,32))


@pytest.mark.parametrize('size', [(64,32),(128,64),(128,128),(256,128),(96,48)])
def test_sizes(size):
    G,D = DCGANGenerator(size, 4, 8),DCGANDiscriminator(size, 4)
    y = G(torch.randn(2, 8))
    assert y.shape==(2,3,*size) and y.abs().max()<=1 and D(y).shape==(2,)


@pytest.mark.parametrize('size', [(65,32),(64,31),(6,6),(100,50)])
def test_sizes_that_cannot_be_halved(size):
    with pytest.raises(InputError, match='choose sides'): dcgan_base(size)


def test_each_step_moves_its_own_net(world, store, tmp_path, monkeypatch):
    seen = []
    real_D,real_G = lsro.DCGANCallback.step_D,lsro.DCGANCallback.step_G
    copy = lambda net: [p.clone() for p in net.parameters()]
    same = lambda a,b: all(torch.equal(x, y) for x,y in zip(a, b))
    def watch(f, moved, still):
        def g(self, *args):
            a,b = copy(getattr(self.model, moved)),copy(getattr(self.model, still))
            f(self, *args)
            seen.append((moved, not same(a, copy(getattr(self.model, moved))),
                         same(b, copy(getattr(self.model, still)))))
        return g
    monkeypatch.setattr(lsro.DCGANCallback, 'step_D', watch(real_D, 'D', 'G'))
    monkeypatch.setattr(lsro.DCGANCallback, 'step_G', watch(real_G, 'G', 'D'))
    train_dcgan(world.target, store, DCGANSettings(width=4, epochs=1, bs=32, z=8), tmp_path/'r')
    assert [o[0] for o in seen[:2]]==['D','G'] and all(moved and still for _,moved,still in seen)


def test_stopped_equals_unstopped(world, store, tmp_path, monkeypatch):
    whole = train_dcgan(world.target, store, S, tmp_path/'a', every=0)
    real,n = lsro.DCGANCallback.step_G,[0]
    def stop(self, fake):
        n[0] += 1
        if n[0]==5: raise KeyboardInterrupt
        return real(self, fake)
    monkeypatch.setattr(lsro.DCGANCallback, 'step_G', stop)
    with pytest.raises(KeyboardInterrupt):
        train_dcgan(world.target, store, S, tmp_path/'b', every=0)
    monkeypatch.setattr(lsro.DCGANCallback, 'step_G', real)
    again = train_dcgan(world.target, store, S, tmp_path/'b', every=0)
    assert all(torch.equal(a, b)
               for a,b in zip(whole.state_dict().values(), again.state_dict().values()))
    assert (tmp_path/'a'/'log.csv').read_bytes()==(tmp_path/'b'/'log.csv').read_bytes()


def test_the_set(world, store, tmp_path):
    G = train_dcgan(world.target, store, S, tmp_path/'g')
    df = draw_unlabelled(G, world.target, 2, 5, tmp_path/'u')
    real = pick(world.target, split='train')
    assert (len(df)==2*len(real) and df.is_generated.all() and df.generator.nunique()==1
            and (df.pose_path=='').all())
    assert draw_unlabelled(G, world.target, 2, 5, tmp_path/'u').path.tolist()==df.path.tolist()
    a,b,c = (torch.cat(list(noise_pictures(G, 10, s, bs))) for s,bs in ((5,10),(5,3),(6,10)))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_with_epsilon_one_labels_have_no_part():
    torch.manual_seed(0)
    logits,eps = torch.randn(8, 6, requires_grad=True),torch.tensor([0.]*3+[1.]*5)
    y = torch.randint(6, (8,)); z = y.clone(); z[3:] = torch.randint(6, (5,))
    g = [torch.autograd.grad(lsr_loss(logits, o, eps), logits)[0] for o in (y, z)]
    assert not torch.equal(y, z) and torch.allclose(*g, atol=1e-8)


@pytest.mark.parametrize('kw,says',
                         [(dict(epochs=0),'dcgan.epochs'), (dict(size=(128,64)),'dcgan.size is'),
                          (dict(width=0),'dcgan.width')])
def test_bad_settings(world, store, tmp_path, kw, says):
    with pytest.raises(InputError, match=says):
        train_dcgan(world.target, store, DCGANSettings(**kw), tmp_path/'r')


def test_nothing_there(tmp_path):
    with pytest.raises(InputError, match='expected a trained DCGAN'): load_dcgan(tmp_path)
