"Nets by name, and weights from files: bodies equal the nets' own paths, and what does not fit is said"
import re, sys
from types import SimpleNamespace

import pytest, torch, torchvision
from safetensors.torch import save_file
from torch import nn

from posereid.core import InputError
from posereid.models.reid import (ReIDNet, check_arch, count_parameters, read_state,
                                  reid_net)
from posereid.models import reid as module

tv = torchvision.models

def pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))*2-1

# Bodies

HEADS = [('resnet18','fc'), ('densenet121','classifier'), ('mobilenet_v2','classifier'),
         ('mobilenet_v3_small','classifier'), ('regnet_y_400mf','fc'),
         ('efficientnet_b0','classifier'), ('shufflenet_v2_x0_5','fc'), ('mnasnet0_5','classifier')]

@pytest.mark.parametrize('arch,head', HEADS)
def test_own_classifier_on_our_embedding_gives_the_nets_own_scores(arch, head, tmp_path):
    torch.manual_seed(0)
    own = getattr(tv, arch)(weights=None, num_classes=7).eval()
    save_file(own.state_dict(), tmp_path/'own.safetensors')
    with pytest.warns(UserWarning, match='not used'):
        net = reid_net(None, arch, weights=str(tmp_path/'own.safetensors')).eval()
    x = pictures(2,3,64,32)
    with torch.no_grad():
        f = net.embed(x)
        torch.testing.assert_close(getattr(own, head)(f), own((x-net.mean)/net.std), atol=1e-4,
                                   rtol=1e-4)
    assert f.shape==(2, net.n_features) and f.std()>0

def test_swin_is_turned_to_channels_first_after_its_norm():
    torch.manual_seed(0)
    own = tv.SwinTransformer([4,4], 12, [1,1], [2,2], [7,7], num_classes=7).eval()
    x = pictures(2,3,64,32)
    with torch.no_grad():
        torch.testing.assert_close(
            own.head(ReIDNet(module._torchvision_body(own, 'swin'), 24, None).embed(x)), own(x))

def test_convnext_normalises_after_pooling():
    torch.manual_seed(0)
    own = tv.ConvNeXt([tv.convnext.CNBlockConfig(8, 16, 1), tv.convnext.CNBlockConfig(16, None, 1)],
                      num_classes=7).eval()
    x = pictures(1,3,64,32)
    body = module._torchvision_body(own, 'convnext')
    with torch.no_grad():
        torch.testing.assert_close(own.classifier(ReIDNet(body, 16, None).embed(x)[...,None,None]),
                                   own(x))

def test_densenet_without_its_last_relu_would_be_another():
    own = tv.densenet121(weights=None).eval()
    with torch.no_grad(): assert own.features(pictures(1,3,64,32)).min()<0

@pytest.mark.parametrize('arch', ['small','resnet18','mobilenet_v2'])
def test_seeds_give_the_same_net_and_leave_training_mode_on(arch):
    nets = []
    for _ in range(2): torch.manual_seed(3); nets.append(reid_net(5, arch, width=4))
    a,b = (o.state_dict() for o in nets)
    assert all(torch.equal(a[k], b[k]) for k in a) and all(o.training for o in nets[0].modules())
    assert all(v.item()==0 for k,v in a.items()
               if k.endswith('num_batches_tracked')), 'finding the width must leave no trace'

def test_small_net_of_a_seed_is_as_it_always_was():
    torch.manual_seed(0)
    net = reid_net(5, width=4)
    torch.manual_seed(0)
    body = module.small_body(4)[0]
    head = nn.init.normal_(nn.Linear(32, 5).weight, std=.001)
    assert (all(torch.equal(p, q) for p,q in zip(net.body.parameters(), body.parameters()))
            and torch.equal(net.head.weight, head))

@pytest.mark.parametrize('arch', ['vit_b_16','googlenet','inception_v3','maxvit_t'])
def test_nets_without_a_body_are_refused(arch):
    with torch.device('meta'), pytest.raises(InputError, match='DenseNet.*ResNet'):
        module._torchvision_body(
            tv.get_model(arch, **({'init_weights':False} if arch in ('googlenet','inception_v3')
                                  else {})), arch)

@pytest.mark.parametrize('arch,cure', [('resnet-50','resnet50'),
                                       ('torchvision:resnet','resnet18|resnet34|resnet50'),
                                       ('tiny','small'), ('fcn_resnet50','resnet50')])
def test_names_that_do_not_exist(arch, cure):
    with pytest.raises(InputError, match=cure if arch!='tiny' else 'nearest'): check_arch(arch)

def test_prefix_says_the_same():
    with torch.device('meta'): a,b = reid_net(3, 'torchvision:resnet18'), reid_net(3, 'resnet18')
    assert [*a.state_dict()]==[*b.state_dict()]

def test_too_small_pictures_say_so():
    with torch.device('meta'):
        net = reid_net(3, 'vgg11').eval()
        assert net(torch.zeros(1,3,64,32)).shape==(1,3)
        with pytest.raises(InputError, match='16×8.*larger'): net(torch.zeros(1,3,16,8))

def test_other_errors_of_a_body_pass_through():
    with pytest.raises(RuntimeError, match='dtype|type') as e:
        reid_net(3, width=4)(torch.zeros(1,3,64,32).double())
    assert not isinstance(e.value, InputError)

@pytest.mark.parametrize('arch', ['resnet34','mobilenet_v2','regnet_x_400mf'])
def test_counts_are_torchvisions(arch):
    with torch.device('meta'): net = reid_net(1000, arch)
    assert count_parameters(net)==tv.get_model_weights(arch).DEFAULT.meta['num_params']

# Weights

@pytest.fixture(scope='module')
def state():
    torch.manual_seed(1)
    return tv.resnet18(weights=None, num_classes=4).state_dict()

def loads(path, arch='resnet18'):
    with pytest.warns(UserWarning, match='fc.weight, fc.bias|classifier'):
        return reid_net(5, arch, weights=str(path))

@pytest.mark.parametrize('wrap', [lambda s: s, lambda s: {'state_dict':s, 'epoch':3},
                                  lambda s: {'model':{'state_dict':s}},
                                  lambda s: {f'module.{k}':v for k,v in s.items()},
                                  lambda s: {k:v for k,v in s.items() if 'num_batches' not in k}],
                         ids=['plain','state_dict','nested','module','old'])
def test_wrapped_files(state, tmp_path, wrap):
    torch.save(wrap(state), tmp_path/'w.pth')
    net = loads(tmp_path/'w.pth')
    assert (torch.equal(net.body[0].weight, state['conv1.weight'])
            and torch.equal(net.body[7][1].bn2.running_var, state['layer4.1.bn2.running_var']))
    torch.testing.assert_close(net.std.flatten(), 2*torch.tensor([.229,.224,.225]))
    assert net.head.weight.std()<.01 and net.head.out_features==5, 'the classifier starts anew'

@pytest.mark.parametrize('spoil,word',
                         [(lambda s: {k:v for k,v in s.items() if 'layer4.1.bn2' not in k},
                           "4 of 120 names are missing.*'layer4.1.bn2.weight'"),
    (lambda s: {**s, 'conv1.weight':torch.zeros(64,4,7,7)}, "1 have another shape.*'conv1.weight'"),
    (lambda s: {**s, 'neck.weight':torch.zeros(3)}, "1 are unknown.*'neck.weight'")])
def test_files_of_other_nets(state, tmp_path, spoil, word):
    torch.save(spoil(state), tmp_path/'w.pth')
    with pytest.raises(InputError, match=word):
        reid_net(5, 'resnet18', weights=str(tmp_path/'w.pth'))

def test_files_that_hold_no_weights(tmp_path):
    torch.save(dict(a=1), tmp_path/'a.pth'); torch.save(SimpleNamespace(a=1), tmp_path/'b.pt')
    (tmp_path/'c.pth').write_bytes(b'no weights')
    (tmp_path/'d.safetensors').write_bytes(b'no weights')
    (tmp_path/'e.pth').write_bytes(b'')
    for o in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=re.escape(o.name)): read_state(o)
    for o in ('f.pth','g.bin','weights'):
        with pytest.raises(InputError, match=o): read_state(tmp_path/o)

def test_old_names_of_densenet(tmp_path):
    torch.manual_seed(0)
    own = tv.densenet121(weights=None, num_classes=2).state_dict()
    old = {re.sub(r'(denselayer\d+\.(?:norm|conv))([12])\.', r'\1.\2.', k):v for k,v in own.items()}
    assert [*old]!=[*own] and 'features.denseblock1.denselayer1.norm.1.weight' in old
    torch.save(old, tmp_path/'old.pth')
    assert [*read_state(tmp_path/'old.pth')]==[*own]

def test_flat_names_of_mobilenet(tmp_path):
    own = tv.mobilenet_v2(weights=None, num_classes=2)
    names = {}
    for i,block in enumerate(own.features):
        at = lambda m: next((k for k,o in own.named_modules() if o is m))
        flat = [m for m in block.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU6))]
        if hasattr(block, 'conv'):
            names.update({f'{at(m)}.':f'features.{i}.conv.{j}.' for j,m in enumerate(flat)})
    old = {next((new+k[len(a):] for a,new in names.items() if k.startswith(a)), k):v
           for k,v in own.state_dict().items()}
    assert 'features.2.conv.7.weight' in old and 'features.1.conv.4.bias' in old
    torch.save(old, tmp_path/'flat.pth')
    got = read_state(tmp_path/'flat.pth')
    assert got.keys()==own.state_dict().keys() and all(torch.equal(got[k], v)
                                                       for k,v in own.state_dict().items())
    assert loads(tmp_path/'flat.pth', 'mobilenet_v2').n_features==1280

def test_imagenet_weights_by_hand_and_by_name(state, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    def offline(*args, **kwargs): raise OSError('no route to host')
    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    with pytest.raises(InputError, match=r'resnet50-0676ba61\.pth into .*checkpoints') as e:
        reid_net(5, 'resnet50', weights='imagenet')
    assert str(tmp_path) in str(e.value)
    torch.save(state, tmp_path/'checkpoints'/'resnet18-f37072fd.pth')
    assert torch.equal(reid_net(5, 'resnet18', weights='imagenet').body[0].weight,
                       state['conv1.weight'])

def test_small_takes_no_weights(tmp_path):
    for o in ('imagenet', str(tmp_path/'x.pth')):
        with pytest.raises(InputError, match='small'): reid_net(5, weights=o)
    assert reid_net(5, width=4, weights='').head.out_features==5

# timm

def test_without_timm_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(InputError, match='pip install timm'): reid_net(5, 'timm:resnet18')

class Fake(nn.Module):
    "What a net of timm looks like from outside"
    num_features = 6
    default_cfg = dict(input_size=(3,32,32), mean=(.5,.5,.5), std=(.25,.25,.25),
                       classifier='last.fc')
    def __init__(self, kind):
        super().__init__(); self.conv,self.kind = nn.Conv2d(3, 6, 3, 2, 1),kind
    def forward(self, x):
        x = self.conv(x)
        return {'map':x, 'last':x.permute(0,2,3,1), 'tokens':x.flatten(2).mT}[self.kind]

@pytest.fixture
def timm(monkeypatch):
    def create_model(name, num_classes, global_pool, pretrained):
        assert num_classes==0 and global_pool==''
        if pretrained: raise OSError('offline')
        return Fake(name)
    cfg = SimpleNamespace(hf_hub_id='timm/fake', url='')
    fake = SimpleNamespace(create_model=create_model,
                           is_model=lambda o: o in ('map','last','tokens'),
                           list_models=lambda: ['map','last','tokens'],
                           get_pretrained_cfg=lambda o: cfg)
    monkeypatch.setitem(sys.modules, 'timm', fake)

def test_maps_of_timm_and_channels_last(timm, tmp_path):
    x = pictures(2,3,32,32)
    torch.save({**Fake('map').state_dict(), 'last.fc.weight':torch.zeros(2,6)}, tmp_path/'w.pth')
    with pytest.warns(UserWarning, match='last.fc.weight'):
        a,b = (reid_net(None, f'timm:{o}', weights=str(tmp_path/'w.pth')).eval()
               for o in ('map','last'))
    assert a.n_features==6 and a.training==b.training
    torch.testing.assert_close(a.embed(x), b.embed(x))
    torch.testing.assert_close(a.embed(x), a.body(2*((x+1)/2-.5)/.5).mean((2,3)))

def test_tokens_of_timm_are_refused(timm):
    with pytest.raises(InputError, match='not in a map'): reid_net(5, 'timm:tokens')

def test_names_and_weights_of_timm(timm):
    with pytest.raises(InputError, match="nearest is 'last'"): reid_net(5, 'timm:lst')
    with pytest.raises(InputError, match='model.safetensors of timm/fake'):
        reid_net(5, 'timm:map', weights='imagenet')

@pytest.mark.parametrize('arch,n', [('resnet18',512), ('mobilenetv3_small_050',1024)])
def test_true_nets_of_timm(arch, n):
    pytest.importorskip('timm')
    net = reid_net(5, f'timm:{arch}').eval()
    assert net.n_features==n and net(pictures(2,3,64,32)).shape==(2,5)
