"Right values of what could be changed without any other test noticing"
import warnings
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from PIL import Image
from posereid.core import InputError, RunFolder, hash_settings, later
from posereid.data.manifest import make_manifest, pick, train_labels
from posereid.data.own import camera_rule
from posereid.data.pictures import PictureStore
from posereid.data.transforms import centre_crop, random_crop
from posereid.evaluate.protocol import evaluate_reid, seen_by
from posereid.experiment.engine import score_model
from posereid.experiment import engine
from posereid.experiment.presets import check_settings, experiment_settings
from posereid.experiment.rows import pick_rows, row_settings
from posereid.experiment.judges import gradient_energy
from posereid.experiment.inputs import share_people, world_inputs
from posereid.losses.transfer import guider_triplet
from posereid.models.reid import reid_net
from posereid.pose.draw import draw_skeletons
from posereid.pose.table import PoseTable
from posereid.stages.generate import skeletons_for
from posereid.stages.reid import ReIDSettings, reid_batches, reid_learner
from posereid.stages.transfer import (TransferSettings, guider_input, stage_batches,
                                     train_transfer, transfer_learner, transfer_model)
from posereid.synth.world import tiny_world


@pytest.fixture(scope='module')
def world(): return tiny_world()


def test_a_pose_comes_from_its_own_frame(tmp_path):
    "A picture twice as large lends the same skeleton, with joints twice as far"
    joints = torch.rand(2, 18, 3)*torch.tensor([30., 60., 1.]) + torch.tensor([1., 2., 0.])
    for name,(h,w) in dict(small=(64,32), large=(128,64)).items():
        Image.new('RGB', (w,h)).save(tmp_path/f'{name}.png')
    joints[:,:,2] = 1
    joints[1,:,:2] = 2*joints[0,:,:2] + .5  # pixel centres: x + ½ is what doubles
    paths = [str(tmp_path/'small.png'), str(tmp_path/'large.png')]
    drawn = skeletons_for(paths, PoseTable([o.split('/')[-1] for o in paths], joints),
                          PictureStore((64,32)))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0],
        draw_skeletons(joints[:1], (64,32))[0])


def test_the_middle_is_the_middle():
    x = torch.arange(8*6).view(1, 1, 8, 6)
    assert torch.equal(centre_crop(x, (4,2))[0,0], x[0,0,2:6,2:4])
    # what is odd is left over below and to the right
    assert torch.equal(centre_crop(x, (5,3))[0,0], x[0,0,1:6,1:4])


def test_a_net_of_crops_is_scored_on_the_middle(world, tmp_path):
    "`score_model` shows a net what it was trained to see"
    inputs,s = world_inputs(world),ReIDSettings(width=4, crop=(56,28))
    torch.manual_seed(0)
    net = reid_net(len(train_labels(world.target)), 'small', 4).eval()
    got = score_model(net, inputs, s, tmp_path)
    store = inputs.store((64,32))
    score = lambda o: evaluate_reid(net, inputs.target, o, inputs.name).map_trap*100
    assert got['map_trap']==pytest.approx(score(seen_by(store, (56,28))), abs=1e-4)
    assert abs(got['map_trap']-score(store))>1e-3 and '56×28' in got['protocol']


def triplet_stage(world, **kw):
    "Learner of step two with a guider without classifier, and its first batch"
    s,labels = (TransferSettings(width=4, d_width=4, d_layers=2, bs=16, pairs=32, parts=1, **kw),
                train_labels(world.target))
    torch.manual_seed(0)
    R = reid_net(None, 'small', 4).eval()
    store = PictureStore((64,32))
    dls = stage_batches(pick(world.target, 'train'), world.source, world.poses, store, labels, s,
                        positives=True)
    return s,R,transfer_learner(dls, transfer_model(s, R), s),dls.train.one_batch()


@pytest.mark.parametrize('margin', [.3, 1.])
def test_eq_4_has_the_real_picture_as_positive_and_its_margin(world, margin):
    "The guider's term of a batch by hand: anchor G(x, s), positive a real picture of that person, margin α"
    s,R,learn,(x,sk,y,label,is_target,positive) = triplet_stage(world, margin=margin)
    seen = {}
    class Look(Callback):
        order = 50
        def after_fake(self):
            seen.update(guide=self.losses.log['guide'].item(), fake=self.fake.detach().clone(),
                        positive=self.positive.clone(), label=self.label.clone(),
                        rows=self.is_target.bool().clone(), x=self.cond[0].clone())
    learn.add_cb(Look())
    torch.manual_seed(1)
    learn.fit(1)
    rows = seen['rows']
    look = lambda o: guider_input(o[rows], s.guider_size, s.guider_crop)
    def term(pos, m):
        with torch.no_grad():
            return guider_triplet(R.embed(look(seen['fake'])), R.embed(look(pos)),
                                  seen['label'][rows], rows[rows], m).item()
    assert not torch.equal(seen['positive'][rows], seen['x'][rows])
    assert seen['guide']==pytest.approx(term(seen['positive'], margin), rel=1e-4, abs=1e-6)
    assert abs(seen['guide']-term(seen['x'], margin))>1e-4
    assert abs(seen['guide']-term(seen['positive'], margin+.5))>1e-2


def test_weights_decay(world):
    "A step without gradient shrinks each weight by lr·wd"
    s = ReIDSettings(width=4, bs=8, lr=.1, weight_decay=.01, momentum=0.)
    train,labels = pick(world.target, 'train'),train_labels(world.target)
    torch.manual_seed(0)
    net = reid_net(len(labels), 'small', 4)
    learn = reid_learner(reid_batches(train, PictureStore((64,32)), labels, s), net, s)
    learn.create_opt()
    p = net.head.weight
    before = p.detach().clone()
    for o in net.parameters(): o.grad = torch.zeros_like(o)
    learn.opt.set_hypers(lr=.1)
    learn.opt.step()
    assert torch.allclose(p, before*(1-.1*.01), atol=1e-7) and not torch.equal(p, before)


def test_lsro_pictures_have_eps_1_beside_guided_ones(monkeypatch):
    monkeypatch.setattr(engine, 'read_generated', lambda folder: range(3))
    eps = engine.Experiment.own_eps(None, dict(also='dcgan'), {}, ('guided','dcgan'))
    assert {k: v.tolist() for k,v in eps.items()}=={'dcgan': [1., 1., 1.]}


def test_cameras_of_distractors_do_not_matter():
    "Distractors and junk may have no camera; the rule is that of the identities"
    rows = [dict(path=f'{i}.jpg', pid=pid, camid=cam, split=split)
            for i,(pid,cam,split) in enumerate([(1,1,'query'), (1,2,'gallery'), (0,0,'gallery'),
                                                (-1,0,'gallery')])]
    assert camera_rule(pd.DataFrame(rows)).startswith('cameras known')


@pytest.mark.parametrize('share,most', [(1/3,8), (.5,6), (0,12)])
def test_the_most_identities_that_a_target_can_have(share, most):
    "What the source does not need is the target's; one more is refused"
    df = make_manifest(pd.DataFrame(dict(path=[f'{p}_{k}.jpg' for p in range(1,13) for k in (0,1)],
                                         pid=[p for p in range(1,13) for _ in (0,1)], camid=1,
                                         split='train')))
    target,*_ = share_people(df, ids=most, share=share)
    assert len(target)==most
    with pytest.raises(InputError, match=str(most)): share_people(df, ids=most+1, share=share)


def test_a_run_from_before_a_setting_came_is_the_same_run(tmp_path):
    "A field made by `later` is its default in older run folders; another value is another run"
    @dataclass
    class Before: lr:float = .1
    @dataclass
    class After(Before): pillow:str = later('soft', since='0.2')
    RunFolder(tmp_path/'run', dict(reid=Before())).finish(dict(score=1))
    assert RunFolder(tmp_path/'run', dict(reid=After())).metrics==dict(score=1)
    assert hash_settings(After())==hash_settings(Before())!=hash_settings(After(pillow='hard'))
    with pytest.raises(InputError, match='reid.pillow: absent'):
        RunFolder(tmp_path/'run', dict(reid=After(pillow='hard')))


def test_half_of_the_crops_are_mirrored():
    "Each picture by a draw of its own"
    ramp = torch.arange(8).expand(2000, 1, 4, 8).contiguous()
    out = random_crop(ramp, torch.Generator().manual_seed(0), pad=0)
    mirrored = (out[:,0,0,0]==7).float()
    assert .45 < mirrored.mean() < .55 and torch.equal(out[mirrored==0], ramp[mirrored==0])
    assert torch.equal(random_crop(ramp, torch.Generator().manual_seed(0), pad=0, flip=False), ramp)


def test_blurred_pictures_have_less_energy():
    noise = torch.randint(0, 256, (4,3,16,8), generator=torch.Generator().manual_seed(0),
                          dtype=torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(noise.float(), 3, 1, 1).byte()
    assert gradient_energy(blurred) < .5*gradient_energy(noise)
    step = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    step[...,4:] = 255
    # one of seven differences a row is 1, none a column
    assert gradient_energy(step)==pytest.approx(1/7)


def test_sharpness_is_below_1_of_blurred_pictures():
    from posereid.experiment.judges import _image_errors
    truth = torch.randint(0, 256, (2,3,32,16), generator=torch.Generator().manual_seed(0),
                          dtype=torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(truth.float(), 3, 1, 1).byte()
    assert _image_errors(blurred, truth, torch.ones(2, 1, 32, 16))['sharpness'] < .5


def test_a_guider_with_triplets_needs_two_target_pictures(world, tmp_path):
    "A batch with one target picture has no negative: Eq. 4 would be 0, and β without effect"
    s = TransferSettings(width=4, d_width=4, d_layers=2, bs=2, pairs=4, parts=1)
    R,labels = reid_net(None, 'small', 4).eval(),train_labels(world.target)
    train = lambda source, s: train_transfer(world.target, source, world.poses,
                                             PictureStore((64,32)), labels, R, s,
                                             tmp_path/f'{s.bs}{source is None}')
    with pytest.raises(InputError, match='transfer.bs 2 .* 1 target picture.* 4 or more'):
        train(world.source, s)
    train(None, s)  # without a source the whole batch is target
    train(world.source, replace(s, bs=4))
    with pytest.raises(InputError, match='to 4 or more'):
        check_settings(dict(transfer=s, reid=ReIDSettings(loss='triplet')))
    check_settings(dict(transfer=replace(s, beta=0.), reid=ReIDSettings(loss='triplet')))
    check_settings(dict(transfer=s, reid=ReIDSettings()))
    with pytest.raises(InputError, match='to 4 or more'):  # the guider of a row, not its model
        check_settings(dict(transfer=s, reid=ReIDSettings(), guider=ReIDSettings(loss='triplet')))


def test_a_part_without_a_triplet_is_told(world, tmp_path):
    "All target pictures of one identity: Eq. 4 is 0 throughout, which a log of zeros hides"
    one = world.target[(world.target.split!='train') | (
                           world.target.pid==world.target[world.target.split=='train'].pid.iloc[0])]
    s = TransferSettings(width=4, d_width=4, d_layers=2, bs=4, pairs=8, parts=1)
    run = lambda df, name, **kw: train_transfer(df, world.source, world.poses,
                                                PictureStore((64,32)), train_labels(df),
                                                reid_net(None, 'small', 4).eval(), replace(s, **kw),
                                                tmp_path/name)
    with pytest.warns(UserWarning, match='Part 1 of 1 had no triplet'): run(one, 'one')
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='Part')
        run(world.target, 'all', bs=16, pairs=16)
        run(one, 'unguided', beta=0.)


def test_controls_of_soft_rows_are_smoothed_as_much():
    "ε of the real pictures: 0, the average of the generated and the real ones, or of soft rows"
    groups = experiment_settings('default')
    people = pd.DataFrame(dict(pid=[1+i//10 for i in range(1200)], is_generated=False))
    exp = SimpleNamespace(train=people, labels=range(120))
    recipe = lambda row: engine.Experiment.row_recipe(exp, row, row_settings(row, groups))
    rows = {o['row']: recipe(o)
            for o in pick_rows('smoothed smoothed_soft guided guided_soft new_soft unguided_soft')}
    eps = {k: round(s.eps_real, 6) for k,s in rows.items()}
    assert eps==dict(guided=0, smoothed=round(.8/3, 6), guided_soft=round(.8/3, 6),
                     new_soft=round(.8/3, 6),
                     unguided_soft=round(.8/3, 6), smoothed_soft=round((.8/3+.8)/3, 6))
    assert {k: s.eps_generated for k,s in rows.items() if 'smoothed' not in k}==dict.fromkeys(
        ('guided','guided_soft','new_soft','unguided_soft'), .4)
    assert rows['smoothed_soft'].epochs==3*rows['guided_soft'].epochs
    soft = experiment_settings('default', recipe_name='R-Tri')  # triplets: α instead of ε
    margins = [engine.Experiment.row_recipe(exp, o, row_settings(o, soft)).margin
               for o in pick_rows('smoothed guided smoothed_soft')]
    by_row = dict(zip(('smoothed','guided','smoothed_soft'), margins))
    assert by_row['guided'] > by_row['smoothed'] > by_row['smoothed_soft']
