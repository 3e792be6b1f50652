"APR: attributes of people, their table, and the loss of identities and attributes"
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from scipy.io import savemat

from posereid.core import InputError
from posereid.data.attributes import (ATTRIBUTES, class_attributes, read_market_attributes,
                                      with_attributes)
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.matlab import read_mat
from posereid.methods.attributes import APRLoss, attribute_loss
from posereid.models.attributes import AttributeNet
from posereid.models.reid import reid_net
from posereid.synth.attributes import world_attributes
from posereid.synth.world import tiny_world


@pytest.fixture(scope='module')
def world(): return tiny_world()

@pytest.fixture(scope='module')
def set_(world):
    df = with_attributes(world.target, world_attributes(world))
    return pick(df, split='train'),train_labels(df),PictureStore((64,32))


def test_structs_of_matlab(tmp_path):
    want = dict(a=np.arange(6.).reshape(2,3), deep=dict(b='text', c=np.uint8([[1,2]])))
    for zipped in (False, True):
        savemat(tmp_path/'x.mat', dict(s=want), do_compression=zipped)
        got = read_mat(tmp_path/'x.mat')['s']
        assert np.array_equal(got['a'], want['a']) and got['deep']['b']=='text'
        assert got['deep']['c'].tolist()==[[1,2]]
    many = np.array([(1,'x'),(2,'y')], dtype=[('n','O'),('t','O')])
    savemat(tmp_path/'y.mat', dict(s=many))
    got = read_mat(tmp_path/'y.mat')['s']
    assert [(int(o['n'][0,0]), o['t']) for o in got]==[(1,'x'),(2,'y')]


@pytest.mark.parametrize('lose', ['age','upgreen','image_index'])
def test_a_market_file_that_lacks_a_field(tmp_path, lose):
    names = [*'gender age hair hat backpack bag handbag up clothes down'.split(),
             *(f'up{o}' for o in ATTRIBUTES['upper_colour']), *(f'down{o}' for o in ATTRIBUTES['lower_colour'])]
    ids = np.empty((1,2), object); ids[0] = ['0002','0007']
    one = {**{o: np.ones((1,2), np.uint8) for o in names}, 'image_index':ids}
    one['age'],one['downbrown'] = np.uint8([[4,2]]),np.uint8([[1,2]])
    savemat(tmp_path/'m.mat', dict(market_attribute=dict(train=one, test={**one, 'image_index':np.array([['0009','0011']], object)})))
    t = read_market_attributes(tmp_path/'m.mat')
    assert t.index.tolist()==[2,7,9,11] and t.age.tolist()==[3,1,3,1] and t.lower_colour.tolist()==[-1,8,-1,8]
    savemat(tmp_path/'m.mat', dict(market_attribute=dict(train={k:v for k,v in one.items() if k!=lose}, test=one)))
    with pytest.raises(InputError, match=lose): read_market_attributes(tmp_path/'m.mat')


def test_class_attributes_follow_labels(set_):
    train,labels,_ = set_
    names,values = class_attributes(train, labels)
    assert values.shape==(len(labels), len(names)) and len(names)==10
    back = {p: k for k,p in enumerate(reversed(list(labels)))}
    assert torch.equal(class_attributes(train, back)[1].flip(0), values)
    for pid,k in list(labels.items())[:4]:
        row = train[train.pid==pid].iloc[0]
        assert [row[f'attr_{o}'] for o in names]==values[k].tolist()
    made = train.drop(columns=[c for c in train if c[:5]=='attr_']).assign(is_generated=True)
    assert torch.equal(class_attributes(pd.concat([made, train]), labels)[1], values)


def test_junk_has_no_attributes(world):
    df = with_attributes(world.target, world_attributes(world))
    assert (df[df.pid<1].filter(like='attr_')==-1).all(axis=None) and len(df)==len(world.target)


def test_loss_against_loops():
    torch.manual_seed(0)
    scores = [torch.randn(5, n) for n in (2,4,9)]
    values = torch.tensor([[0,3,8],[1,-1,0],[-1,-1,-1],[0,0,-1],[1,2,5]])
    eps,want = torch.tensor([0.,.4,.2,.3,1.]),0
    for i in range(5):
        costs = []
        for s,v in zip(scores, values[i]):
            if v<0: continue
            target = torch.full((s.shape[1],), eps[i]/s.shape[1]); target[v] += 1-eps[i]
            costs.append(-(target*F.log_softmax(s[i], 0)).sum())
        want += sum(costs)/max(1, len(costs))/5
    assert torch.allclose(attribute_loss(scores, values, eps), want, atol=1e-6)


def test_identities_weigh_eight_times(set_):
    train,labels,_ = set_
    loss = APRLoss(None)
    loss.names,loss.table = class_attributes(train, labels)
    torch.manual_seed(1)
    pred = torch.randn(6, len(labels)),torch.randn(6, sum(map(len, ATTRIBUTES.values())))
    label,eps = torch.arange(6),torch.zeros(6)
    total = loss(pred, label, eps)
    assert torch.isclose(8*total, 8*loss.stats['identity']+loss.stats['attributes'])
    cut = dict(zip(ATTRIBUTES, pred[1].split([*map(len, ATTRIBUTES.values())], 1)))
    by = torch.stack([F.cross_entropy(cut[n], loss.table[label][:,j]) for j,n in enumerate(loss.names)])
    assert torch.isclose(loss.stats['attributes'], by.mean(), atol=1e-6)
    right = torch.stack([cut[n].argmax(1)==loss.table[label][:,j] for j,n in enumerate(loss.names)]).float().mean()
    assert torch.isclose(loss.stats['attribute_accuracy'], right)
    assert torch.isclose(loss(pred[0], label, eps), F.cross_entropy(pred[0], label), atol=1e-6)


@pytest.mark.parametrize('arch', ['small_dense','resnet18'])
def test_other_bodies(arch):
    net = AttributeNet(reid_net(3, arch, width=4), (2,3))
    assert [o.shape[1] for o in net(torch.zeros(2, 3, 64, 32))]==[3,5]
    assert torch.equal(net.eval()(torch.zeros(2, 3, 64, 32)), net.head(net.embed(torch.zeros(2, 3, 64, 32))))
