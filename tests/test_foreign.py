"Weights of other toolboxes: their nets expressed anew, and what must be refused"
import pickle

import numpy as np, pytest, torch, torchvision
import torch.nn.functional as F
from torch import nn

from posereid.core import InputError
from posereid.models.foreign import (ARCHS, TOOLBOXES, _shapes, differences_of, foreign_state,
                                     is_foreign, nearest_arch, net_from, read_checkpoint,
                                     read_foreign, which_toolbox, write_foreign)
from posereid.models.reid import reid_net, set_stats


def shaken(net):
    "A net with statistics as after a training"
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-.1, .1), m.running_var.uniform_(.5, 2)
            nn.init.uniform_(m.weight, .5, 1.5), nn.init.uniform_(m.bias, -.2, .2)
    return net.eval()


@pytest.fixture(scope='module')
def ours():
    torch.manual_seed(0)
    return shaken(set_stats(reid_net(5, 'resnet18')))


@pytest.fixture(scope='module')
def x(): return torch.randint(0, 256, (3,3,64,32), generator=torch.Generator().manual_seed(1)).float()


def imagenet(x):
    "Pictures as all of these toolboxes normalise them"
    mean,std = (torch.tensor(o).view(1,3,1,1) for o in ((.485,.456,.406), (.229,.224,.225)))
    return (x/255-mean)/std


def same(a, b):
    return [*a.body.state_dict()]==[*b.body.state_dict()] and all(
        torch.equal(u, v) for u,v in zip(a.body.state_dict().values(), b.body.state_dict().values()))

# --- nets as the toolboxes build them ---

class Trunk(nn.Module):
    "A ResNet-18 under its usual names; `base` and `model` of the toolboxes"
    def __init__(self, fc=False, relu=True, pool=None, stride=2):
        super().__init__()
        net = torchvision.models.resnet18(weights=None)
        for k,m in net.named_children():
            if k not in ('avgpool','fc') or k=='fc' and fc: setattr(self, k, m)
        if pool is not None: self.maxpool = pool
        self.layer4[0].conv1.stride = self.layer4[0].downsample[0].stride = (stride,stride)
        self.has_relu = relu
    def forward(self, x):
        x = self.bn1(self.conv1(x))
        x = self.maxpool(F.relu(x) if self.has_relu else x)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class Theirs(nn.Module):
    "A trunk under a toolbox' name, and what is behind it"
    def __init__(self, name, trunk, **behind):
        super().__init__()
        setattr(self, name, trunk)
        for k,m in behind.items(): setattr(self, k, m)
        self.name = name
    def mean(self, x): return getattr(self, self.name)(imagenet(x)).mean((2,3))


def block(): return nn.ModuleDict(dict(add_block=nn.Sequential(nn.Linear(512, 64), nn.BatchNorm1d(64)),
                                       classifier=nn.Sequential(nn.Linear(64, 9))))

def torchreid():
    net = Trunk()
    net.classifier = nn.Linear(512, 9)
    return net

THEIRS = {'torchreid': (torchreid, 'state_dict'),
          'layumi': (lambda: Theirs('model', Trunk(fc=True), classifier=block()), None),
          'open-reid': (lambda: Theirs('base', Trunk(fc=True), feat=nn.Linear(512, 64),
                                       feat_bn=nn.BatchNorm1d(64), classifier=nn.Linear(64, 9)), 'state_dict'),
          'strong-baseline': (lambda: Theirs('base', Trunk(), bottleneck=nn.BatchNorm1d(512),
                                             classifier=nn.Linear(512, 9, bias=False)), None),
          'fast-reid': (lambda: Theirs('backbone', Trunk(),
                                       heads=nn.ModuleDict(dict(bottleneck=nn.Sequential(nn.BatchNorm2d(512))))),
                        'model'),
          'FD-GAN': (lambda: Theirs('base_model', nn.ModuleDict(dict(base=Trunk(fc=True))),
                                    embed_model=nn.Linear(512, 2)), 'state_dict')}


def trunk_of(net, toolbox):
    prefix = TOOLBOXES[toolbox].rstrip('.')
    return net.get_submodule(prefix) if prefix else net


@pytest.mark.parametrize('toolbox', THEIRS)
def test_their_checkpoints(toolbox, tmp_path, x):
    "Every tensor of their trunk arrives, all others are named, and the map is the same"
    torch.manual_seed(3)
    (make,wrap),parallel = THEIRS[toolbox],toolbox in ('torchreid','FD-GAN')
    theirs = shaken(make())
    state = {'module.'*parallel+k: v for k,v in theirs.state_dict().items()}
    torch.save(dict({wrap: state}, epoch=3, rank1=np.float32(.5), best=np.float64(.1),
                    optimizer=dict(state={}, param_groups=[dict(lr=.1)])) if wrap else state,
               tmp_path/'model.pth.tar-60')
    net = reid_net(None, 'resnet18').eval()
    got = read_foreign(tmp_path/'model.pth.tar-60', net)
    assert (got.toolbox,got.arch,got.n)==(toolbox, 'resnet18', 120)
    prefix = TOOLBOXES[toolbox]
    outside = [k for k in theirs.state_dict() if not k.startswith(prefix)
               or k[len(prefix):].startswith(('fc.','classifier.'))]
    assert got.unused==outside
    with torch.no_grad():
        want = trunk_of(theirs, toolbox)(imagenet(x)).mean((2,3))
        assert torch.allclose(net.embed(x/127.5-1), want, atol=1e-5)
    assert net.body[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('toolbox', TOOLBOXES)
def test_there_and_back(toolbox, ours, tmp_path, x):
    other = reid_net(7, 'resnet18').eval()
    got = read_foreign(write_foreign(ours, tmp_path/'a.pth', toolbox), other)
    assert got.toolbox==toolbox and same(ours, other) and got.n==120
    with torch.no_grad(): assert torch.equal(ours.embed(x/127.5-1), other.embed(x/127.5-1))


@pytest.mark.parametrize('toolbox', ['torchreid','open-reid','strong-baseline','fast-reid','FD-GAN','layumi'])
def test_their_nets_take_what_is_written(toolbox, ours, x):
    "Their trunk loads it strictly"
    trunk = trunk_of(THEIRS[toolbox][0](), toolbox).eval()
    prefix = TOOLBOXES[toolbox]
    state = {k[len(prefix):]: v for k,v in foreign_state(ours, toolbox).items() if k.startswith(prefix)}
    state = {k: v for k,v in state.items() if not k.startswith('classifier.')}
    lost,odd = trunk.load_state_dict(state, strict=False)
    assert not odd and all(o.startswith(('classifier.','fc.')) for o in lost)
    assert toolbox=='layumi' or not any(o.startswith('fc.') for o in lost)
    with torch.no_grad():
        assert torch.allclose(trunk(imagenet(x)).mean((2,3)), ours.embed(x/127.5-1), atol=1e-5)


def test_the_classifier_goes_along(ours):
    for o in TOOLBOXES:
        state = foreign_state(ours, o)
        assert ('classifier.weight' in state)==(o in ('torchreid','open-reid'))
    assert torch.equal(foreign_state(ours, 'torchreid')['classifier.bias'], ours.head.bias)
    assert torch.equal(foreign_state(ours, 'open-reid')['classifier.weight'], ours.head.weight)
    assert which_toolbox(foreign_state(ours, 'torchreid'))=='torchreid'


def test_dense_nets(tmp_path, x):
    "torchreid's DenseNet is ours; layumi's lacks the last ReLU, as is said"
    torch.manual_seed(0)
    net = shaken(torchvision.models.densenet121(weights=None, num_classes=9))
    ours = reid_net(None, 'densenet121').eval()
    torch.save(dict(state_dict=net.state_dict()), tmp_path/'d.pth')
    got = read_foreign(tmp_path/'d.pth', ours)
    assert (got.toolbox,got.arch,got.differences)==('torchreid', 'densenet121', [])
    with torch.no_grad():
        last = net.features(imagenet(x))
        assert torch.allclose(ours.embed(x/127.5-1), F.relu(last).mean((2,3)), atol=1e-5)
        assert not torch.allclose(ours.embed(x/127.5-1), last.mean((2,3)), atol=1e-2)
    torch.save({f'model.{k}': v for k,v in net.state_dict().items()}, tmp_path/'l.pth')
    assert 'its last map has no ReLU, ours has' in read_foreign(tmp_path/'l.pth', ours).differences
    old = {k.replace('norm1.', 'norm.1.').replace('conv2.', 'conv.2.') if 'denselayer' in k else k: v
           for k,v in net.state_dict().items()}
    torch.save(old, tmp_path/'old.pth')
    again = reid_net(None, 'densenet121')
    read_foreign(tmp_path/'old.pth', again)
    assert same(again, ours)


def test_what_is_said_of_fast_reid_is_so(ours, x):
    "With its pooling and stride the trunk gives other features, with ours the same"
    state = {k.removeprefix('backbone.'): v for k,v in foreign_state(ours, 'fast-reid').items()}
    feats = []
    for kw in (dict(), dict(pool=nn.MaxPool2d(3, 2, ceil_mode=True)), dict(stride=1), dict(relu=False)):
        trunk = Trunk(**kw).eval()
        trunk.load_state_dict(state)
        with torch.no_grad(): feats.append(trunk(imagenet(x)).mean((2,3)))
    with torch.no_grad(): f = ours.embed(x/127.5-1)
    assert torch.allclose(feats[0], f, atol=1e-5) and not any(torch.allclose(o, f, atol=1e-3) for o in feats[1:])


@pytest.mark.parametrize('arch', ARCHS)
def test_every_net_is_known(arch, monkeypatch):
    monkeypatch.setattr('posereid.models.foreign.ARCHS', ARCHS[::-1]) # whichever comes first
    assert nearest_arch({k: torch.empty(v, device='meta') for k,v in _shapes(arch).items()})==arch
    lacking = dict([*_shapes(arch).items()][:-3])
    assert nearest_arch({k: torch.empty(v, device='meta') for k,v in lacking.items()})==arch


def test_the_order_of_names_is_that_of_bodies():
    for arch in ('resnet50','resnext50_32x4d','densenet169'):
        with torch.device('meta'): own = reid_net(None, arch).body.state_dict()
        assert [tuple(v.shape) for v in own.values()]==[*_shapes(arch).values()]
        assert all(k.split('.')[-1]==o.split('.')[-1] for k,o in zip(_shapes(arch), own))

# --- refused ---

def changed(state, how, k):
    v = state[k]
    if how=='lost': return {a: b for a,b in state.items() if a!=k}
    if how=='renamed': return {('layer9.'+a.split('.', 1)[1] if a==k else a): b for a,b in state.items()}
    if how=='shape': return {**state, k: torch.zeros(*v.shape, 2)}
    if how=='nan': return {**state, k: torch.full_like(v, torch.nan)}
    if how=='more': return {**state, 'layer4.7.conv1.weight': v}


@pytest.mark.parametrize('how,says', [('lost','1 of 120 tensors are missing'), ('renamed','1 are unknown'),
    ('shape','1 have another shape'), ('nan','not finite'), ('more','1 are unknown')])
@pytest.mark.parametrize('k', ['bn1.weight','layer1.0.bn1.running_var','layer4.1.bn2.bias'])
def test_what_does_not_fit_is_refused(how, says, k, ours, tmp_path):
    state = {a: b for a,b in foreign_state(ours, 'torchvision').items()}
    state['classifier.weight'] = torch.zeros(9, 512)
    torch.save(changed(state, how, k), tmp_path/'a.pth')
    net = reid_net(5, 'resnet18')
    before = [v.clone() for v in net.state_dict().values()]
    with pytest.raises(InputError, match=says): read_foreign(tmp_path/'a.pth', net)
    assert all(torch.equal(a, b) for a,b in zip(before, net.state_dict().values()))


def test_counters_may_be_missing_and_halves_are_read(ours, tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k,v in foreign_state(ours, 'open-reid').items()
             if not k.endswith('num_batches_tracked')}
    torch.save(state, tmp_path/'a.pth')
    net = reid_net(5, 'resnet18')
    got = read_foreign(tmp_path/'a.pth', net)
    assert got.n==100 and net.body[0].weight.dtype==torch.float32
    assert torch.equal(net.body[0].weight, ours.body[0].weight.half().float())


def test_statistics_are_those_of_imagenet(ours, tmp_path):
    net = reid_net(5, 'resnet18')
    read_foreign(write_foreign(ours, tmp_path/'a.pth'), net)
    assert torch.equal(net.mean, ours.mean) and torch.equal(net.std, ours.std)


@pytest.mark.parametrize('k,what', [('backbone.layer1.0.bn1.IN.weight','IBN'), ('backbone.layer3.1.bn1.BN.bias','IBN'),
    ('backbone.layer2.0.se.fc.0.weight','squeeze'), ('backbone.NL_2.0.g.weight','non-local'), ('usam_1.bn.weight','USAM')])
def test_layers_between_are_refused(k, what, ours, tmp_path):
    torch.save({**foreign_state(ours, 'layumi' if 'usam' in k else 'fast-reid'), k: torch.ones(2)}, tmp_path/'a.pth')
    with pytest.raises(InputError, match=what): read_foreign(tmp_path/'a.pth', reid_net(5, 'resnet18'))


class Evil:
    def __reduce__(self): return (print, ('run',))


def test_nothing_is_run(tmp_path, capsys):
    for i,o in enumerate((dict(state_dict={'conv1.weight':torch.ones(1)}, args=Evil()), Evil(), nn.Linear(2,2))):
        torch.save(o, tmp_path/f'{i}.pth')
        with pytest.raises(InputError, match='no whole file'): read_checkpoint(tmp_path/f'{i}.pth')
    (tmp_path/'p.pth').write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match='no whole file'): read_checkpoint(tmp_path/'p.pth')
    assert capsys.readouterr().out==''


def test_broken_files(ours, tmp_path):
    file = write_foreign(ours, tmp_path/'a.pth')
    whole = file.read_bytes()
    for n in (0, 1, 100, len(whole)//2, len(whole)-10):
        file.write_bytes(whole[:n])
        with pytest.raises(InputError, match='a.pth'): read_checkpoint(file)
    for o in ({}, dict(state_dict={}), dict(state_dict={'conv1.weight':[1,2]}), [1], torch.ones(2)):
        torch.save(o, file)
        with pytest.raises(InputError, match='tensors by name'): read_checkpoint(file)
    with pytest.raises(InputError, match='no file'): read_checkpoint(tmp_path)


def test_old_names_of_numpy(tmp_path):
    "Files of NumPy 1 name its numbers otherwise"
    torch.save(dict(state_dict={'a':torch.ones(2)}, rank1=np.float64(.5)), tmp_path/'new.pth', _use_new_zipfile_serialization=False)
    raw = (tmp_path/'new.pth').read_bytes()
    assert b'numpy._core.multiarray' in raw or b'numpy.core.multiarray' in raw
    (tmp_path/'old.pth').write_bytes(raw.replace(b'numpy._core.multiarray', b'numpy.core.multiarray'))
    assert [*read_checkpoint(tmp_path/'old.pth')]==['a']


def test_differences():
    said = lambda *o: ' '.join(differences_of(*o))
    assert said('open-reid', 'resnet50', ['base.fc.weight','classifier.weight'])==''
    assert 'feat and feat_bn' in said('open-reid', 'resnet50', ['feat.weight','feat_bn.bias'])
    assert 'PCB' in said('layumi', 'resnet50', ['classifier0.add_block.0.weight'])
    assert 'last stride' in said('torchreid', 'resnet50', ['fc.0.weight'])
    assert 'last stride' not in said('torchreid', 'densenet121', ['fc.0.weight'])
    assert 'neck' in said('strong-baseline', 'resnet50', [])


def test_the_door_of_a_training(ours, tmp_path, x):
    file = write_foreign(ours, tmp_path/'a.pth', 'layumi')
    with pytest.warns(UserWarning, match='resnet18 of layumi'): net = net_from(4, 'resnet18', weights=file)
    assert same(net, ours) and net.head.out_features==4
    plain = write_foreign(ours, tmp_path/'b.pth', 'torchvision')
    assert not is_foreign(plain) and same(net_from(4, 'resnet18', weights=plain), ours)
    assert not is_foreign(tmp_path/'none.pth')
    with pytest.raises(InputError, match='no file'): net_from(4, 'resnet18', weights=str(tmp_path/'none.pth'))
    assert net_from(4).n_features==192
    # sizes of a net that is already too small are refused by the same sentence
    with pytest.raises(InputError, match='arch=resnet18'): net_from(4, 'small', weights=file)
