"PUL: clusters for labels, who is reliable, and generated pictures after their sources"
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from types import SimpleNamespace

from posereid.core import InputError, weights_hash
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.methods.pul import PseudoLabels, pseudo_labels, renumber, row_of_source
from posereid.stages.fit import read_log
from posereid.stages.method import find_method
from posereid.stages.reid import ReIDSettings, reid_batches, train_reid
from posereid.synth.world import tiny_world


@pytest.fixture(scope='module')
def set_():
    w = tiny_world()
    return pick(w.target, split='train'),train_labels(w.target),PictureStore((64,32)),w

@pytest.fixture(scope='module')
def start(set_, tmp_path_factory):
    src = set_[3].source
    return train_reid(src, set_[2], train_labels(src), ReIDSettings(width=4, epochs=20, bs=16), tmp_path_factory.mktemp('s')/'s')


class Stop(Callback):
    def before_batch(self):
        if self.epoch==3: raise KeyboardInterrupt


def test_reliable_against_loops():
    torch.manual_seed(0)
    f = torch.nn.functional.normalize(torch.randn(40, 3), dim=1)
    label,sure = pseudo_labels(f, 5, .9)
    assert label.unique().tolist()==[*range(5)]
    for k in range(5):
        rows = (label==k).nonzero()[:,0]
        mean = f[rows].mean(0)
        centre = f[rows[(f[rows]-mean).norm(dim=1).argmin()]]
        assert sure[rows].tolist()==[bool(f[i]@centre>.9) for i in rows]
        assert sure[rows].any()
    assert torch.equal(pseudo_labels(f, 5, .9)[0], label)


def test_renumber_is_the_best_assignment():
    from itertools import permutations
    r = np.random.default_rng(0)
    for _ in range(20):
        new,old = (torch.from_numpy(r.integers(4, size=15)) for _ in range(2))
        got = renumber(new, old, 4)
        best = max(sum(int(p[a]==b) for a,b in zip(new, old)) for p in permutations(range(4)))
        assert int((got==old).sum())==best
        assert len({(int(a),int(b)) for a,b in zip(new, got)})==len(new.unique())


def both(train):
    made = train.iloc[::3].assign(is_generated=True)
    return pd.concat([train, made.assign(source_path=made.path, path=[f'made{i}.jpg' for i in range(len(made))])],
                     ignore_index=True)


def test_generated_pictures_follow_their_sources(set_):
    df = both(set_[0])
    at = row_of_source(df)
    assert at[:len(set_[0])].tolist()==[*range(len(set_[0]))] and at[len(set_[0]):].tolist()==[*range(0, len(set_[0]), 3)]
    with pytest.raises(InputError, match='generate the set again'): row_of_source(df.assign(source_path='x'))


@pytest.mark.parametrize('real_last', [0., .5])
def test_only_reliable_pictures_are_dealt(set_, real_last):
    train,labels,store,_ = set_
    df = both(train)
    s = ReIDSettings(epochs=4, bs=20, real_last=real_last)
    cb = PseudoLabels(SimpleNamespace(df=df, store=store, labels=labels, settings=s))
    n = len(train)
    cb.label,cb.sure = torch.arange(n)%7,torch.arange(n)%4<2
    dls = reid_batches(train, store, labels, s)
    make = dls.train.make
    make.paths = np.array([*train.path, *train.path.iloc[::3]], object)
    make.generated = torch.from_numpy(df.is_generated.to_numpy(bool, copy=True))
    make.real_from = 2 if real_last else np.inf
    cb.make = make
    for epoch in (0, 3):
        cb.deal(epoch)
        assert len(make.row)==len(df) and cb.sure[cb.source[make.row]].all()
        assert make.generated[make.row].any().item()==(not real_last or epoch<2)
        want = {i for i in range(len(df)) if cb.sure[cb.source[i]] and (not real_last or epoch<2 or i<n)}
        assert set(make.row)==want


@pytest.mark.parametrize('n_epoch,rounds,want', [(20,10,[*range(0,20,2)]), (4,10,[0,1,2,3]), (7,3,[0,3,5])])
def test_rounds(set_, n_epoch, rounds, want):
    train,labels,store,_ = set_
    cb,began = PseudoLabels(SimpleNamespace(df=train, store=store, labels=labels, settings=None)),[]
    cb.rounds,cb.make = rounds,SimpleNamespace()
    cb.learn = SimpleNamespace(n_epoch=n_epoch, loss_func=SimpleNamespace())
    def find(): began.append(cb.learn.epoch); cb.label,cb.sure = torch.arange(len(train)),torch.ones(len(train), dtype=bool)
    cb.find = find
    for cb.learn.epoch in range(n_epoch): cb.before_epoch()
    assert began==want and cb.learn.loss_func.reliable==len(train)


def test_labels_are_not_used_and_resuming_changes_nothing(set_, start, tmp_path):
    train,labels,store,_ = set_
    s = ReIDSettings(width=4, epochs=6, bs=20, lr=.02, method='pul')
    m = find_method('pul')
    few = lambda *more: (lambda t: [type('PseudoLabels', (PseudoLabels,), dict(rounds=3))(t), *more])
    old = m.callbacks
    try:
        m.callbacks = few()
        whole = train_reid(train, store, labels, s, tmp_path/'a', start=start)
        other = train.assign(pid=np.roll(train.pid, 7), camid=1)
        assert weights_hash(train_reid(other, store, labels, s, tmp_path/'o', start=start))==weights_hash(whole)
        m.callbacks = few(Stop())  # in the middle of the second round
        with pytest.raises(KeyboardInterrupt): train_reid(train, store, labels, s, tmp_path/'b', every=0, start=start)
        m.callbacks = few()
        assert weights_hash(train_reid(train, store, labels, s, tmp_path/'b', start=start))==weights_hash(whole)
    finally: m.callbacks = old
    logs = [[o['reliable'] for o in read_log(tmp_path/k/'log.csv')] for k in 'ab']
    assert logs[0]==logs[1] and logs[0][0]==logs[0][1]


def test_the_net_goes_on(set_, start, tmp_path):
    train,labels,store,_ = set_
    s = ReIDSettings(width=4, epochs=2, bs=20, lr=1e-9, method='pul')
    net = train_reid(train, store, labels, s, tmp_path/'a', start=start)
    w = lambda o: torch.cat([p.flatten() for p in o.body.parameters()])
    assert torch.allclose(w(net), w(start), atol=1e-5)
