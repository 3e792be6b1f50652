"Every method: Ctrl-C in an epoch, and the same call again, gives the weights of a training without a stop"
from dataclasses import replace

import pytest, torch
from fastai.callback.core import Callback

from posereid.core import weights_hash
from posereid.data.attributes import with_attributes
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.models.reid import reid_net
from posereid.stages.method import METHODS, find_method, method_names
from posereid.stages.reid import ReIDSettings, load_reid, train_reid
from posereid.synth.attributes import world_attributes
from posereid.synth.world import tiny_world


class Stop(Callback):
    "In the midst of the second of three epochs"
    def after_batch(self):
        if self.epoch==1 and self.iter==1: raise KeyboardInterrupt


@pytest.fixture(scope='module')
def world():
    w = tiny_world()
    return pick(with_attributes(w.target, world_attributes(w)), split='train'),train_labels(w.target)


@pytest.mark.parametrize('name', method_names())
def test_a_stopped_training_goes_on(world, name, tmp_path):
    (df,labels),m = world,find_method(name)
    s = ReIDSettings(width=4, size=(32,16), pad=2, epochs=3, bs=20, method=name, **m.goes_with)
    start = reid_net(3, width=4) if m.starts else None
    go = lambda folder: train_reid(df, PictureStore(s.size), labels, s, tmp_path/folder, every=0,
                                   start=start)
    try:
        METHODS[name] = replace(m, callbacks=lambda o: [*m.callbacks(o), Stop()])
        with pytest.raises(KeyboardInterrupt): go('stopped')
    finally: METHODS[name] = m
    assert not (tmp_path/'stopped/metrics.json').exists()
    whole = go('whole')
    assert weights_hash(go('stopped'))==weights_hash(whole)==weights_hash(load_reid(tmp_path/'whole'))


@pytest.mark.parametrize('name', ['svdnet','pul','mutual','fisher','verification'])
def test_accuracy_is_logged(name):
    "Three of four pictures are right"
    s,label,made = torch.eye(4)*5,torch.tensor([0,1,2,0]),torch.tensor([False,True,False,True])
    out = dict(svdnet=(s, torch.eye(4)), pul=s, mutual=(s, s.flip(0)), fisher=(torch.randn(4, 6), s),
               verification=(s, torch.randn(4, 2), torch.tensor([3,2,1,0])))[name]
    m = find_method(name)
    L = m.loss(ReIDSettings(method=name, **m.goes_with))
    L(out, label, made if name in ('fisher','verification') else torch.zeros(4))
    assert L.stats['accuracy']==.75


def test_who_begins_elsewhere():
    assert {o for o in method_names() if find_method(o).starts}=={'transfer','pul'}


def test_the_neck_of_the_modern_recipe():
    "No constant in the classifier, none that is learned in the neck, and larger maps"
    net = find_method('modern').net(ReIDSettings(width=4), 7)
    assert net.head.bias is None and not net.neck.bias.requires_grad and net.neck.weight.requires_grad
    plain,x = reid_net(7, width=4),torch.zeros(1, 3, 64, 32)
    a,b = (o.body(x).shape[2:] for o in (plain, net))
    assert (b[0],b[1])==(2*a[0],2*a[1])
