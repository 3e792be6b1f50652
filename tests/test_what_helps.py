"The pieces of the row `best`: who guides, who is normalised by whom, when the generated pictures leave, how limbs move"
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from posereid.core import InputError, hash_settings
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.experiment import engine
from posereid.experiment.presets import TINY_WORLD, experiment_settings
from posereid.experiment.rows import FRONT, MAIN, OPTIONAL, pick_rows
from posereid.models.reid import OwnNorms, reid_net
from posereid.pose.joints import walking_pose
from posereid.pose.limbs import CUTOUTS, move_limbs, limb_channels
from posereid.stages.reid import ReIDSettings, reid_batches, reid_learner, train_reid
from posereid.stages.transfer import TransferSettings, transfer_choices, transfer_model
from posereid.synth.world import tiny_world


@pytest.fixture(scope='module')
def exp(tmp_path_factory):
    groups = experiment_settings('smoke', opts=TINY_WORLD)
    rows = pick_rows('smoothed guided best best_mixed best_shared')
    return engine.Experiment(rows, groups, tmp_path_factory.mktemp('helps')/'run')


@pytest.fixture(scope='module')
def both():
    "Real pictures of the tiny world, and each twice more as a generated one"
    world = tiny_world()
    real = pick(world.target, split='train')
    rows = [real, real.assign(is_generated=True), real.assign(is_generated=True)]
    return (pd.concat(rows, ignore_index=True), PictureStore((64,32)),
            train_labels(world.target))


def row(name): return next(o for o in MAIN+OPTIONAL if o['row']==name)


def test_the_smoothed_control_guides(exp):
    g = exp.row_groups(row('best'))
    assert g['guider']==exp.row_recipe(row('smoothed'), exp.groups)!=exp.groups['reid']
    assert exp.row_groups(row('guided'))['guider']==exp.groups['reid']
    # what the row's own model has does not reach its guider
    assert g['guider'].norms=='shared' and g['reid'].norms=='own'


def test_best_is_all_of_its_pieces(exp):
    "Each row that leaves a piece out differs from `best` in that piece alone"
    best = row('best')
    leaves = dict(best_hard={'eps_real'}, best_shared={'reid.norms'}, best_mixed={'reid.real_last'},
                  best_plain={'transfer.limbs','transfer.head'}, best_own_guider={'guider'},
                  best_unguided={'guider','transfer.beta','reid.eps_generated'})
    for name,keys in leaves.items():
        other = row(name)
        assert {k for k in {*best,*other} if best.get(k)!=other.get(k)}-{'row','title'}==keys
    assert FRONT==[r['row'] for r in pick_rows('front')] and 'unguided' not in FRONT


def test_without_generated_pictures_norms_and_end_do_not_matter(exp, monkeypatch):
    monkeypatch.setattr(engine, 'train_reid', lambda *o, **kw: None)
    s = exp.groups['reid']
    paths = {exp.train_reid(o)[0] for o in (s, replace(s, norms='own'), replace(s, real_last=.4))}
    assert len(paths)==1


def test_old_run_folders_keep_their_names():
    "Fields that came later are no part of a hash while they hold what was done before"
    assert hash_settings(ReIDSettings())!=hash_settings(ReIDSettings(norms='own'))
    for s in (ReIDSettings(), TransferSettings()):
        assert 'norms' not in str(engine.to_json(s)) and 'limbs' not in str(engine.to_json(s))


def test_mining_is_kept_where_triplets_guide():
    df = pick(tiny_world().target, split='train')
    poses,s = tiny_world().poses,TransferSettings()
    of = lambda net: transfer_choices(df, None, poses, net, s, {})
    assert of(reid_net(None, 'small', 4))['mining']=='semihard'
    assert 'mining' not in of(reid_net(4, 'small', 4))


@pytest.mark.parametrize('loss', ['ce','triplet'])
def test_real_pictures_are_the_last(both, loss):
    df,store,labels = both
    dls = reid_batches(df, store, labels,
                       ReIDSettings(epochs=5, real_last=.4, norms='own', bs=36, loss=loss))
    seen,steps = [],len(dls.train)
    for epoch in range(5):
        dls.train.set_epoch(epoch)
        seen.append(torch.cat([b[1] for b in dls.train]).float().mean().item())
    assert np.allclose(seen, [2/3]*3+[0]*2) and len(list(dls.train))==steps


def test_real_rows_never_meet_generated_ones_in_a_norm():
    "What real pictures give, and the running averages, do not depend on the generated ones"
    torch.manual_seed(0)
    nets = [OwnNorms(reid_net(5, width=4)).train() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x,generated = torch.randn(8,3,32,16),torch.arange(8)%2==1
    other = torch.where(generated[:,None,None,None], 3*torch.randn_like(x), x)
    a,b = nets[0](x, generated),nets[1](other, generated)
    assert torch.equal(a[~generated], b[~generated]) and not torch.equal(a[generated], b[generated])
    for p,q in zip(nets[0].net.buffers(), nets[1].net.buffers()): assert torch.equal(p, q)
    assert any(not torch.equal(p, q) for p,q in zip(nets[0].second.buffers(),
                                                    nets[1].second.buffers()))


def test_both_kinds_of_rows_train_the_shared_weights(both):
    df,store,labels = both
    s = ReIDSettings(width=4, epochs=1, norms='own', bs=36)
    model = OwnNorms(reid_net(len(labels), 'small', 4))
    before = {k: v.clone() for k,v in model.state_dict().items()}
    reid_learner(reid_batches(df, store, labels, s), model, s).fit(1)
    changed = {k.split('.')[0] for k,v in model.state_dict().items()
               if not torch.equal(v, before[k])}
    assert changed=={'net','second'}


def test_a_part_of_an_epoch(both, tmp_path):
    df,store,labels = both
    s = ReIDSettings(width=4, bs=36, epochs=1.4)
    train_reid(df, store, labels, s, tmp_path/'r')
    assert '"steps": 7' in (tmp_path/'r'/'metrics.json').read_text()
    with pytest.raises(InputError, match='above 0'):
        train_reid(df, store, labels, replace(s, epochs=0), tmp_path/'none')


def test_limbs_turn_and_stretch():
    "A forearm that is turned by a quarter and twice as long shows the same places of the picture"
    # brightness is the row
    x = torch.linspace(-1, 1, 64).view(1,1,64,1).expand(1,3,64,64).contiguous()
    k = walking_pose(size=(64,64))
    own,new = k.clone(),k.clone()
    own[0,3,:2],own[0,4,:2] = torch.tensor([20.,20.]),torch.tensor([20.,30.]) # down, 10 long
    new[0,3,:2],new[0,4,:2] = torch.tensor([10.,40.]),torch.tensor([30.,40.]) # right, 20 long
    arm = [o[0] for o in CUTOUTS].index('right forearm')
    rgb,mask = move_limbs(x, own, new)[0,arm].split([3,1])
    for u in (0,10,20):
        assert abs(rgb[0,40,10+u].item()-x[0,0,20+u//2,0].item())<1e-4 and mask[0,40,10+u]>.5
    assert mask[0,40,45]<.01 and mask[0,20,20]<.5


def test_the_generator_needs_the_limbs():
    "Another collage is another picture; without `limbs` there is none"
    torch.manual_seed(0)
    G = transfer_model(TransferSettings(width=4, head=4, limbs=True, beta=0.)).G.eval()
    x,s = torch.rand(2,2,3,64,32)*2-1
    a,b = walking_pose(torch.tensor([0.,1.])),walking_pose(torch.tensor([2.,3.]))
    with torch.no_grad(): one,two = (G(x, s, limb_channels(x, a, k)) for k in (a, b))
    assert (one-two).abs().max()>1e-3
    with pytest.raises(InputError, match='limb_channels'): G(x, s)


@pytest.mark.parametrize('threads,last', [(1,True),(2,False)])
def test_odd_batches_of_several_threads_are_not_channels_last(both, monkeypatch, threads, last):
    "torch 2.14 crashes there; what one thread does is what the committed CSVs were made with"
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    df,store,labels = both
    s = ReIDSettings(width=4, epochs=1, norms='own', bs=36)
    learn = reid_learner(reid_batches(df, store, labels, s),
                         OwnNorms(reid_net(len(labels), 'small', 4)), s)
    learn.fit(1)
    assert (learn.plain_batch.layout is torch.channels_last)==last
