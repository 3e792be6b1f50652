"Keypoint files of other programs, written by hand: whose pose, which joints, which pixels"
import json, math, random

import numpy as np
import pytest, torch
from PIL import Image

from posereid.core import InputError
from posereid.pose.estimate import (KnownPoses, estimate_folder, list_pictures_in, make_estimator,
                                    read_picture)
from posereid.pose.table import PoseTable, check_poses, find_pictures
from posereid.pose.formats import (read_coco, read_mediapipe, read_mmpose, read_openpifpaf,
                                   read_yolo)
from posereid.pose.files import (FORMATS, find_format, read_market_csv, read_poses,
                                 write_market_csv, write_poses)
from posereid.pose.joints import JOINT_SETS, has_pose, walking_pose

# One person in a picture of 128 x 64, each joint written down once: x, y, confidence
BODY = {'nose':(31,12,.9), 'left eye':(33,10,.8), 'right eye':(29,10,.8), 'left ear':(36,11,.5),
        'right ear':(26,11,.4),
        'left shoulder':(42,26,.9), 'right shoulder':(20,28,.7), 'left elbow':(45,44,.8),
        'right elbow':(17,45,.8), 'left wrist':(46,60,.6), 'right wrist':(15,61,.6),
        'left hip':(38,62,.9), 'right hip':(25,63,.9), 'left knee':(37,88,.8),
        'right knee':(26,89,.8), 'left ankle':(36,118,.7), 'right ankle':(27,120,.7)}
COCO = ('nose','left eye','right eye','left ear','right ear','left shoulder','right shoulder',
        'left elbow','right elbow','left wrist','right wrist',
        'left hip','right hip','left knee','right knee','left ankle','right ankle')
OPENPOSE = ('nose','neck','right shoulder','right elbow','right wrist','left shoulder','left elbow',
            'left wrist','right hip','right knee','right ankle',
            'left hip','left knee','left ankle','right eye','left eye','right ear','left ear')
NECK = (31,27,.7)   # in the middle of the shoulders, as sure as the less sure of them
WANT = torch.tensor([NECK if o=='neck' else BODY[o] for o in OPENPOSE])

def flat(names, body=BODY, neck=NECK, conf=1., dx=0.):
    "x, y, confidence of each named joint, one after another"
    out = []
    for o in names:
        x,y,c = neck if o=='neck' else body.get(o, (0,0,0))
        out += [x+dx*(c>0), y, c*conf]
    return out

def save(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding='utf-8')
    return path

def same(table, name, want=WANT, tol=1e-4):
    assert torch.allclose(table[name], want, atol=tol), (table[name]-want).abs().max()

def shares(k, size=(128,64)):
    "Pixels as shares of the picture"
    k = torch.as_tensor(k).reshape(-1,3).clone()
    k[:,0],k[:,1] = (k[:,0]+.5)/size[1], (k[:,1]+.5)/size[0]
    k[:,:2] *= k[:,2:]>0
    return k.flatten().tolist()

# --- each format against written coordinates ---

def test_the_market_csv(tmp_path):
    y,x = [[round(float(WANT[j,i])) for j in range(18)] for i in (1,0)]
    y[4],x[4] = -1,-1
    f = save(tmp_path/'market-annotation-train.csv',
             f'name:keypoints_y:keypoints_x\n0002_c1s1_000451_03.jpg: {y}: {x}\n')
    got = read_poses(f)
    assert (got.names==['0002_c1s1_000451_03.jpg'] and not got.joints[0,4].any()
            and got.frames is None and got.notes=={})
    seen = [j for j in range(18) if j!=4]
    assert torch.equal(got.joints[0,seen,:2], WANT[seen,:2]) and (got.joints[0,seen,2]==1).all()

def test_the_openpose_folder(tmp_path):
    people = [dict(person_id=[-1], pose_keypoints_2d=flat(OPENPOSE), face_keypoints_2d=[],
                   hand_left_keypoints_2d=[], hand_right_keypoints_2d=[])]
    save(tmp_path/'op'/'0002_c1s1_000451_03_keypoints.json', dict(version=1.3, people=people))
    assert find_format(tmp_path/'op')=='openpose'
    same(read_poses(tmp_path/'op'), '0002_c1s1_000451_03.jpg')

def test_the_openpose_folder_of_body25(tmp_path):
    "In the published order of BODY_25, with a hip in the middle and feet"
    names = OPENPOSE[:8] + ('mid hip',) + OPENPOSE[8:] + ('left big toe',)*6
    save(tmp_path/'a_keypoints.json', dict(people=[dict(pose_keypoints_2d=flat(names,
        {**BODY, 'mid hip':(1,2,.9), 'left big toe':(3,4,.9)}))]))
    same(read_poses(tmp_path), 'a.jpg')

def test_the_openpose_tree_mirrors_the_set(tmp_path):
    for d,dx in (('0001',0),('0002',5)):
        save(tmp_path/'op'/'train'/d/'0_keypoints.json',
             dict(people=[dict(pose_keypoints_2d=flat(OPENPOSE, dx=dx))]))
    save(tmp_path/'op'/'__MACOSX'/'train'/'0001'/'0_keypoints.json', 'rubbish')
    save(tmp_path/'op'/'train'/'._0_keypoints.json', 'rubbish')
    pics = [f'/data/set/{half}/{d}/0.png' for half in ('train','test') for d in ('0001','0002')]
    got = read_poses(tmp_path/'op', names=pics)
    assert got.names==pics[:2]
    same(got, pics[0]); assert got[pics[1]][0,0]==36
    assert got.of(pics).any(-1).any(-1).tolist()==[True,True,False,
                                                   False], 'no pose of train falls to test'
    assert read_poses(tmp_path/'op').names==['train/0001/0.jpg','train/0002/0.jpg']
    with pytest.raises(InputError, match=r'0001/0 may mean /data/set/train/0001/0.png or '
                       r'/data/set/test/0001/0.png; .* such as train/0001/0\.'):
        read_poses(tmp_path/'op'/'train', names=pics)

def test_the_dwpose_file_with_a_canvas(tmp_path):
    "A canvas of 768 x 384 for a picture of 128 x 64: six times as large"
    k = flat(OPENPOSE)
    k[0::3],k[1::3] = [(x+.5)*6-.5 for x in k[0::3]], [(y+.5)*6-.5 for y in k[1::3]]
    save(tmp_path/'0001.json', [dict(people=[dict(pose_keypoints_2d=k, face_keypoints_2d=None)],
                                     animals=[], canvas_height=768, canvas_width=384)])
    got = read_poses(tmp_path)
    assert got.frames.tolist()==[[768.,384.]] and got.notes=={}
    same(got.fitted([(128,64)]), '0001.jpg')
    with pytest.raises(InputError, match='give `sizes`'): got.fitted()
    with pytest.raises(InputError, match='lies outside'):
        check_poses(PoseTable(got.names, got.joints), ['0001.jpg'], [(128,64)])
    check_poses(got, ['0001.jpg'], [(128,64)])

def test_the_dwpose_file_of_shares(tmp_path):
    for canvas in ({}, dict(canvas_height=768, canvas_width=384)):
        save(tmp_path/'a.json', dict(people=[dict(pose_keypoints_2d=shares(WANT))], **canvas))
        got = read_poses(tmp_path)
        assert (got.frames.tolist()==[[1,1]]
                and got.notes=={'shares of the picture, scaled':['a.jpg']})
        same(got.fitted([(128,64)]), 'a.jpg')
        same(got.fitted([(256,128)]), 'a.jpg', torch.cat([(WANT[:,:2]+.5)*2-.5, WANT[:,2:]], 1))

def test_the_coco_annotations(tmp_path):
    v = [c for o in COCO for c in (*BODY[o][:2], 2)]
    # the right ear is hidden, the right wrist is not labelled
    v[3*4+2],v[3*10:3*11] = 1, [0,0,0]
    data = dict(info={}, images=[dict(id=7, file_name='a.jpg', height=256, width=128),
                                 dict(id=3, file_name='b.jpg', height=128, width=64)],
                annotations=[dict(id=1, image_id=3, category_id=1, num_keypoints=16, iscrowd=0,
                                  area=1., bbox=[0,0,1,1], keypoints=v)],
                categories=[dict(id=1, name='person')])
    got = read_poses(save(tmp_path/'c.json', data))
    assert (got.names==['a.jpg','b.jpg'] and got.notes=={'nobody found':['a.jpg']}
            and got.frames.tolist()==[[256,128],[128,64]])
    want = WANT.clone(); want[:,2] = 1; want[16,2] = .5; want[4] = 0
    same(got, 'b.jpg', want)
    same(got.fitted([(128,64),(256,128)]), 'b.jpg',
         torch.cat([((want[:,:2]+.5)*2-.5)*(want[:,2:]>0), want[:,2:]], 1))
    data['images'],data['annotations'] = data['annotations'],data['images']
    again = dict(annotations=data['images'], images=data['annotations'])
    back = read_poses(save(tmp_path/'d.json', again))
    assert (torch.equal(back['b.jpg'], got['b.jpg'])
            and back.frames[back.names.index('b.jpg')].tolist()==[128,64]), '`images` may come last'

def results(*ids):
    return [dict(image_id=i, category_id=1, score=.8, keypoints=flat(COCO, dx=n))
            for n,i in enumerate(ids)]

def test_the_coco_results_by_their_annotation_file(tmp_path):
    f = save(tmp_path/'r.json', results(900, 17))
    images = save(tmp_path/'i.json', dict(images=[dict(id=17, file_name='train/b.jpg'),
                                                  dict(id=900, file_name='train/a.jpg'),
                                                  dict(id=5, file_name='train/c.jpg')]))
    got = read_poses(f, images=images)
    same(got, 'a.jpg'); assert got['b.jpg'][0,0]==32 and got.notes=={'nobody found':['c.jpg']}

def test_the_coco_results_by_number(tmp_path):
    f = save(tmp_path/'r.json', results(12, 3))
    got = read_poses(f, names=['/s/000003.jpg','/s/000012.jpg','/s/000013.jpg'])
    same(got, '000012.jpg'); assert got['000003.jpg'][0,0]==32 and len(got)==2

@pytest.mark.parametrize('names', [None, [], ['a.jpg','b.jpg','c.jpg'], ['12.jpg','3.jpg','a.jpg'],
                                   ['3.jpg','12.jpg','012.jpg'], ['3.jpg','13.jpg']])
def test_numbers_that_say_nothing_are_refused(tmp_path, names):
    "Never in the order of names"
    f = save(tmp_path/'r.json', results(12, 3))
    with pytest.raises(InputError, match='`images`, the annotation file .*called by their numbers, '
                       'such as 0000') as e:
        read_poses(f, names=names)
    assert 'r.json, entry' in str(e.value)

def test_a_picture_has_one_id_and_an_id_one_picture(tmp_path):
    im = lambda i,name: dict(id=i, file_name=name)
    note = [dict(image_id=1, num_keypoints=17, keypoints=[1,1,2]*17)]
    for images,says in (([im(1,'a.jpg'),im(2,'a.jpg')], 'a.jpg has two ids, 1 and 2'),
                        ([im(1,'a.jpg'),im(2,'./a.jpg')], 'two ids'),
                        ([im(1,'a.jpg'),im(1,'b.jpg')], 'the id 1 belongs to a.jpg and to b.jpg'),
                        ([im(1,'x/a.jpg'),im(2,'a.jpg')], 'a.jpg has a second entry')):
        with pytest.raises(InputError, match=says) as e:
            read_poses(save(tmp_path/'c.json', dict(images=images, annotations=note)))
        assert 'c.json' in str(e.value)
        assert 'image 1' in str(e.value)
    got = read_poses(save(tmp_path/'c.json',
                          dict(images=[im(1,'x/0.jpg'),im(2,r'y\0.jpg')], annotations=note)))
    assert got.names==['x/0.jpg','y/0.jpg'] and has_pose(got.joints).tolist()==[True,False]

def test_what_was_put_together_twice_is_refused(tmp_path):
    "Of two lists or two annotations of one name, none is dropped or added in silence"
    im = [dict(id=1, file_name='1.jpg'), dict(id=2, file_name='2.jpg')]
    note = lambda i,k: dict(id=i, image_id=k, num_keypoints=17, keypoints=[5,6,2]*17)
    both = dict(images=im, annotations=[note(7,1),note(8,2)])
    assert len(read_poses(save(tmp_path/'c.json', both)))==2
    for notes,says in (([note(7,1),note(8,2),note(7,1)], 'entry 2: the annotation 7 is there twice, first as entry 0'),
                       ([note(7,1),note(7,2)], 'entry 1: the annotation 7'), ([note('a',1),note('a',2)], 'annotation a is'),
                       ([note(True,1)], '`id` must be'), ([note(1.,1)], '`id` must be'), ([note(7,True)], 'image_id'),
                       ([note(7,1.)], 'image_id'), ([note(7,'1')], 'no picture has the id 1')):
        with pytest.raises(InputError, match=says): read_poses(save(tmp_path/'c.json', {**both, 'annotations':notes}))
    text = json.dumps(both)
    for a,b in ((text[:-1]+', '+text[1:], "'images' comes twice"), (text.replace('"id": 1,', '"id": 1, "id": 2,'), "'id' comes twice"),
                (text.replace('"image_id": 1', '"image_id": 2, "image_id": 1'), "'image_id' comes twice")):
        with pytest.raises(InputError, match=b): read_poses(save(tmp_path/'c.json', a))
    # results may say one id several times: two people
    rows = [dict(id=1, image_id='1.jpg', keypoints=[5,6,.5]*17)]*2
    assert read_poses(save(tmp_path/'r.json', rows)).notes=={'several people, best taken':['1.jpg']}

def test_sizes_and_names_are_what_they_should_be(tmp_path):
    note = [dict(image_id=1, num_keypoints=17, keypoints=[5,6,2]*17)]
    im = lambda **kw: dict(images=[{**dict(id=1, file_name='1.jpg'), **kw}], annotations=note)
    for kw in (dict(height=None, width=None), dict(height=0, width=0), dict(height=128), dict(width=64)):
        assert read_poses(save(tmp_path/'c.json', im(**kw))).frames is None
    assert read_poses(save(tmp_path/'c.json', im(height=128, width=64.))).frames.tolist()==[[128,64]]
    for kw,says in ((dict(height='128', width=64), 'height must be'), (dict(height=128, width=-1), 'width must be'),
                    (dict(height=True, width=64), 'height'), (dict(height=1e9, width=64), 'height'), (dict(file_name=5), 'file_name'),
                    (dict(file_name=''), "'' is no name"), (dict(file_name='a/'), 'is no name'), (dict(file_name='a\0b'), 'is no name'),
                    (dict(file_name=' '), 'is no name')):
        with pytest.raises(InputError, match=says): read_poses(save(tmp_path/'c.json', im(**kw)))
    lm = [dict(x=.5, y=.5, visibility=.9)]*33
    for kw in (dict(x=True), dict(x='0.5'), dict(visibility=True), dict(presence='1'), dict(y=None), dict(y=10**400)):
        rows = [dict(file_name='1.jpg', height=128, width=64, pose_landmarks=[{**lm[0], **kw}, *lm[1:]])]
        with pytest.raises(InputError, match='33 pose_landmarks|not a finite'): read_mediapipe(save(tmp_path/'m.json', rows))

def test_a_joint_beyond_all_pictures(tmp_path):
    for v,ok in ((1e6,True), (-1e6,True), (1.1e6,False), (-1e30,False), (3e38,False)):
        rows = [dict(image_id='1.jpg', keypoints=[v,6,.5]+[5,6,.5]*16)]
        file = save(tmp_path/'r.json', rows)
        if ok: assert read_coco(file).joints[0,0,0]==v
        else:
            with pytest.raises(InputError, match='entry 0: joint 0 lies at .* in no picture'): read_coco(file)
        y,x = str([v]+[5]*17),str([5]*18)
        save(tmp_path/'a.csv', f'name:keypoints_y:keypoints_x\n1.jpg: {y}: {x}\n')
        if ok: assert read_market_csv(tmp_path/'a.csv').joints[0,0,1]==v
        else:
            with pytest.raises(InputError, match='line 2: keypoints_y must be'): read_market_csv(tmp_path/'a.csv')

@pytest.mark.parametrize('bad', ['true','"5"','null','[5]','NaN','1e400','9'*400,'9'*5000,'['*9000,'{}'])
def test_a_cell_of_the_market_csv_is_a_number(tmp_path, bad):
    good = '[' + ', '.join(['5']*18) + ']'
    for field in (0,1):
        lists = [good.replace('5', bad, 1) if i==field else good for i in (0,1)]
        save(tmp_path/'a.csv', 'name:keypoints_y:keypoints_x\n' + ''.join(f'{i}.jpg: {": ".join(lists if i==3 else [good]*2)}\n'
                                                                         for i in range(6)))
        with pytest.raises(InputError, match=f'line 5: keypoints_{"yx"[field]} must be'): read_market_csv(tmp_path/'a.csv')

def test_a_name_in_no_encoding_is_that_of_its_file(tmp_path):
    import os
    name = os.fsdecode(b'caf\xe9.jpg')
    write_market_csv(tmp_path/'a.csv', PoseTable([name], walking_pose(torch.zeros(1))))
    assert read_market_csv(tmp_path/'a.csv').names==[name] and b'caf\xe9.jpg' in (tmp_path/'a.csv').read_bytes()

HALPE = COCO + ('head','neck','hip','left big toe','right big toe','left small toe',
                'right small toe','left heel','right heel')
OWN_NECK = (30,22,.6)

def test_halpe_by_its_published_order():
    short = lambda o: dict(head='head top', hip='mid hip').get(o, o)
    assert JOINT_SETS['halpe26']==tuple(map(short, HALPE))

@pytest.mark.parametrize('k', [17,26,133,136])
def test_the_alphapose_results(tmp_path, k):
    body = {**BODY, 'head':(31,2,.9), 'hip':(31,62,.9)}
    numbers = flat(COCO) if k in (17,133) else flat(HALPE, body, OWN_NECK)
    numbers += [500.,500.,.99]*(k-len(numbers)//3)     # feet, face and hands, far away
    worse = [v*(.5 if i%3==2 else 1)+(i%3==0) for i,v in enumerate(numbers)]
    rows = [dict(image_id='0002_c1s1_000451_03.jpg', category_id=1, keypoints=o, score=3.,
                 box=[1.,2.,3.,4.], idx=[0.]) for o in (worse,numbers)]
    f = save(tmp_path/'out'/'alphapose-results.json', rows)
    assert find_format(f)==find_format(tmp_path/'out')=='alphapose'
    got = read_poses(tmp_path/'out')
    want = WANT.clone()
    if k in (26,136): want[1] = torch.tensor(OWN_NECK)
    same(got, '0002_c1s1_000451_03.jpg', want)
    assert got.notes=={'several people, best taken':['0002_c1s1_000451_03.jpg']}
    assert read_poses(f, people='first').joints[0,0,0]==32

@pytest.mark.parametrize('form', ['open','cmu'])
def test_the_alphapose_forms(tmp_path, form):
    person = dict(joints=flat(OPENPOSE)) if form=='cmu' else dict(pose_keypoints_2d=flat(OPENPOSE))
    one = {'version':'AlphaPose v0.3', ('bodies' if form=='cmu' else 'people'): [person]}
    f = save(tmp_path/'alphapose-results.json', {'0007_c2s3_070952_01.jpg.jpg': one})
    save(tmp_path/'sep-json'/'0007_c2s3_070952_01.json', one)     # cut at the first dot
    for o in (f, tmp_path/'sep-json', tmp_path/'sep-json'/'0007_c2s3_070952_01.json'):
        assert find_format(o)=='alphapose'
        same(read_poses(o, names=['0007_c2s3_070952_01.jpg.jpg','other.jpg']),
             '0007_c2s3_070952_01.jpg.jpg')
    with pytest.raises(InputError, match='extension alone'):
        read_poses(tmp_path/'sep-json',
                   names=['0007_c2s3_070952_01.jpg.jpg','0007_c2s3_070952_01.jpg'])

def mmperson(k=17, **kwargs):
    numbers = flat(COCO) + [500.,500.,.99]*(k-17)
    return dict(keypoints=[numbers[i:i+2] for i in range(0, 3*k, 3)], keypoint_scores=numbers[2::3],
                bbox=[[0.,0.,64.,128.]], bbox_score=.9, **kwargs)

@pytest.mark.parametrize('k', [17,133])
def test_the_mmpose_folder(tmp_path, k):
    save(tmp_path/'predictions'/'a.json', []); save(tmp_path/'predictions'/'b.json', [mmperson(k)])
    assert find_format(tmp_path/'predictions')=='mmpose'
    got = read_poses(tmp_path/'predictions', names=['a.webp','b.png'])
    same(got, 'b.png'); assert got.notes=={'nobody found':['a.webp']}
    names = {str(i): o.replace(' ', '_') for i,o in enumerate(COCO)}
    f = save(tmp_path/'results_b.json',
             dict(meta_info=dict(dataset_name='coco', keypoint_id2name=names),
                  instance_info=[mmperson(k)]))
    assert find_format(f)=='mmpose'
    same(read_poses(f), 'b.jpg')

@pytest.mark.parametrize('data,says', [
    (dict(instance_info=[dict(frame_id=0, instances=[])]), 'frames of a video'),
    ([dict(keypoints=[[1,2,3]]*17, keypoint_scores=[1]*17)], 'pairs'),
    (dict(meta_info=dict(keypoint_id2name={'0':'L_Eye'}), instance_info=[]), 'L_Eye'),
    ([dict(keypoints=[[1,2]]*17, keypoint_scores=[1]*16)], 'as many'), ([3], 'list of people'),
    ([dict(keypoints=[[1,2]]*18, keypoint_scores=[1]*18)], '51 or 78'),
    ([dict(keypoints=[[1,None]]*17, keypoint_scores=[1]*17)], '51 or 78')])
def test_mutated_mmpose(tmp_path, data, says):
    with pytest.raises(InputError, match=says) as e: read_mmpose(save(tmp_path/'odd.json', data))
    assert 'odd.json' in str(e.value)

def test_the_openpifpaf_folder(tmp_path):
    one = lambda c: dict(keypoints=flat(COCO, conf=c), bbox=[0.,0.,64.,128.], score=.9,
                         category_id=1)
    save(tmp_path/'p'/'x.jpg.jpg.predictions.json', [one(.3),one(1.)])
    save(tmp_path/'p'/'y.png.predictions.json', [])
    assert (find_format(tmp_path/'p')=='openpifpaf'
            ==find_format(tmp_path/'p'/'y.png.predictions.json'))
    got = read_poses(tmp_path/'p')
    same(got, 'x.jpg.jpg')
    assert got.notes=={'nobody found':['y.png'], 'several people, best taken':['x.jpg.jpg']}
    with pytest.raises(InputError, match='x.jpg.jpg.predictions.json: 2 people'):
        read_poses(tmp_path/'p', people='error')
    with pytest.raises(InputError, match='odd.json: expected a list'):
        read_openpifpaf(save(tmp_path/'odd.json', {}))

def yolo(k, *more): return ' '.join(f'{v:g}' for v in (0,.5,.5,.9,.9,*k,*more))+'\n'

def test_the_yolo_folder(tmp_path):
    good = shares(flat(COCO))
    worse = shares(flat(COCO, dx=9.))
    save(tmp_path/'labels'/'a.txt', yolo(good,.4)+yolo(worse,.3))
    save(tmp_path/'labels'/'b.txt', '')
    save(tmp_path/'labels'/'classes.txt', 'person')
    assert find_format(tmp_path/'labels')=='yolo'
    got = read_poses(tmp_path/'labels', names=['a.png','b.png','c.png'])
    assert (got.names==['a.png','b.png'] and got.frames.tolist()==[[1,1]]*2
            and got.notes=={'nobody found':['b.png'], 'several people, best taken':['a.png']})
    same(got.fitted([(128,64)]*2), 'a.png', tol=1e-3)
    assert (KnownPoses(got)([torch.zeros(3,128,64)], ['a.png'])[0,0]
            .tolist()==pytest.approx([31,12,.9], abs=1e-3))

def test_yolo_without_confidences(tmp_path):
    "Pairs alone; most joints win; a track behind is no confidence"
    pairs = lambda k: [v for i,v in enumerate(k) if i%3<2]
    few = shares(flat(COCO[:9]+('?',)*8, dx=1.))
    for more in ((), (7,), (.5,7)):
        save(tmp_path/'a.txt', yolo(pairs(few), *more)+yolo(pairs(shares(flat(COCO))), *more))
        got = read_yolo(tmp_path).fitted([(128,64)])
        if more!=(.5,7):
            same(got, 'a.jpg', torch.where(torch.tensor([True,True,False]), WANT, 1.), tol=1e-3)
    assert not got['a.jpg'][8].any() and got['a.jpg'][0,0]>31.5, ('both boxes .5: the first, whose '
        'hips are at (0, 0)')

def test_yolo_labels_and_unsure_joints(tmp_path):
    k = shares(flat(COCO, {**BODY, 'nose':(31,12,2), 'left eye':(33,10,1)}))
    k[2],k[5],k[8::3] = 2,1,[2]*15
    save(tmp_path/'l'/'a.txt', yolo(k)); save(tmp_path/'l'/'b.txt', yolo([.5,.5,1.]*17))
    got = read_yolo(tmp_path/'l')
    assert got['a.jpg'][[0,15,14],2].tolist()==[1,.5,1] and got['b.jpg'][0,2]==.5
    save(tmp_path/'l'/'b.txt', yolo([.5,.5,.3]*17))
    with pytest.raises(InputError, match='0, 1 or 2, throughout the folder'):
        read_yolo(tmp_path/'l')
    k = shares(flat(COCO)); k[0:3] = [0,0,.45]       # as Ultralytics writes a joint below .5
    save(tmp_path/'p'/'a.txt', yolo(k))
    assert not read_yolo(tmp_path/'p')['a.jpg'][0].any()

@pytest.mark.parametrize('text,says',
                         [(yolo([.5]*50), 'found 55'), (yolo([.5]*51, 1, 1, 1), 'found 59'),
                          ('0 x'+yolo([.5]*51)[3:], 'found 56'),
                          (yolo([30.,12.,.9]*17), 'here is 30; divide by')])
def test_mutated_yolo(tmp_path, text, says):
    save(tmp_path/'a.txt', yolo([.5]*51)+'\n'+text)
    with pytest.raises(InputError, match=says) as e: read_poses(tmp_path)
    assert 'a.txt, line 3' in str(e.value)

def test_the_fdgan_folder(tmp_path):
    lines = [f'{int(y)} {int(x)}' for x,y,_ in WANT.tolist()]
    lines[4] = '-1 -1'
    save(tmp_path/'f'/'0002_c1s1_000451_03.txt', '\n'.join(lines))
    want = WANT.clone(); want[:,2] = 1; want[4] = 0
    assert find_format(tmp_path/'f')=='fdgan'
    same(read_poses(tmp_path/'f'), '0002_c1s1_000451_03.jpg', want)

def test_the_mat_of_14_points(tmp_path):
    io = pytest.importorskip('scipy.io')
    order = ('head top','neck','right shoulder','right elbow','right wrist','left shoulder',
             'left elbow','left wrist','right hip','right knee','right ankle','left hip',
             'left knee','left ankle')
    xy = np.array([{**BODY,'neck':NECK,'head top':(31,2,1)}[o][:2] for o in order], float)+1
    io.savemat(tmp_path/'m.mat',
               dict(pp=np.stack([np.r_[xy[:,0],xy[:,1]], np.r_[xy[:,0]+3,xy[:,1]]])))
    got = read_poses(tmp_path/'m.mat', names=['/z/train/a.jpg','/a/train/b.jpg'])
    assert got.names==['/z/train/a.jpg','/a/train/b.jpg'], 'by base names, as in their folder'
    assert (torch.equal(got.joints[0,1:14,:2], WANT[1:14,:2]) and got.joints[1,1,0]==34
            and not got.joints[:,[0,14,15,16,17]].any())

# --- MediaPipe ---

MARKS = {0:'nose',2:'left eye',5:'right eye',7:'left ear',8:'right ear',11:'left shoulder',
         12:'right shoulder',13:'left elbow',14:'right elbow',15:'left wrist',16:'right wrist',
         23:'left hip',24:'right hip',25:'left knee',26:'right knee',27:'left ankle',
         28:'right ankle'}

def marks(conf=1., **more):
    "33 landmarks as shares"
    out = [dict(x=.5, y=.5, z=0., visibility=0.) for _ in range(33)]
    for i,o in MARKS.items():
        x,y,c = BODY[o]
        out[i] = dict(x=(x+.5)/64, y=(y+.5)/128, z=0., visibility=c*conf, **more)
    return out

def test_the_mediapipe_file(tmp_path):
    f = save(tmp_path/'m.json',
             [dict(file_name='a.jpg', height=128, width=64, pose_landmarks=marks()),
              dict(file_name='b.jpg', height=128, width=64, pose_landmarks=None)])
    assert find_format(f)=='mediapipe'
    got = read_poses(f)
    want = WANT.clone(); want[16] = 0           # the right ear is less sure than a half
    same(got, 'a.jpg', want)
    assert got.frames.tolist()==[[128,64]]*2 and got.notes=={'nobody found':['b.jpg']}
    same(read_poses(f, min_visible=.3), 'a.jpg')
    assert (read_poses(f, min_visible=.75)['a.jpg'][:,2]>0).sum()==10
    same(got.fitted([(256,128)]*2), 'a.jpg',
         torch.cat([((want[:,:2]+.5)*2-.5)*(want[:,2:]>0), want[:,2:]], 1))
    f = save(tmp_path/'n.json', dict(file_name='a.jpg', pose_landmarks=marks()))
    got = read_poses(f)
    assert got.frames.tolist()==[[1,1]]
    same(got.fitted([(128,64)]), 'a.jpg', want)

def test_mediapipe_people_and_presence(tmp_path):
    tasks = lambda *people: [dict(file_name='a.jpg', height=128, width=64,
                                  pose_landmarks=list(people))]
    f = save(tmp_path/'m.json', tasks(marks(.6), marks(1.)))
    got = read_poses(f, min_visible=.3)
    same(got, 'a.jpg'); assert got.notes=={'several people, best taken':['a.jpg']}
    assert read_poses(f, people='first', min_visible=.1)['a.jpg'][0,2]==pytest.approx(.54)
    with pytest.raises(InputError, match='m.json, a.jpg: 2 people'): read_poses(f, people='error')
    assert read_poses(save(f, tasks())).notes['nobody found']==['a.jpg']
    absent = marks(presence=.9); absent[0]['presence'] = .1
    got = read_poses(save(f, tasks(absent)), min_visible=.3)
    assert (not got['a.jpg'][0].any()
            and got['a.jpg'][5].tolist()==pytest.approx([42,26,.9], abs=1e-4))

def test_mediapipe_out_of_the_picture(tmp_path):
    far = marks(); far[27]['y'],far[28]['x'] = 1.01,-.2
    # a toe, which we have no joint for
    feet = marks(); feet[31] = dict(x=.5, y=1.2, visibility=.9)
    unsure = marks(); unsure[28] = dict(x=.5, y=1.3, visibility=.2)
    got = read_poses(save(tmp_path/'m.json',
                          [dict(file_name=f'{n}.jpg', height=128, width=64, pose_landmarks=o)
                           for n,o in enumerate((far,feet,unsure))]))
    assert (got.notes=={'joints out of the picture, taken as missing':['0.jpg']}
            and not got['0.jpg'][[10,13]].any() and got['1.jpg'][10].any())
    check_poses(got, got.names, [(128,64)]*3)

# --- shares, frames, files without joints ---

@pytest.mark.parametrize('kind', ['market','openpose','coco','fdgan','alphapose','mmpose'])
def test_shares_are_recognised_in_every_format(tmp_path, kind):
    k = torch.cat([(WANT[:,:2]+.5)/torch.tensor([64.,128.]), WANT[:,2:]], 1)
    if kind in ('alphapose','mmpose'):
        v = shares(flat(COCO))
        data = ([dict(image_id='a.jpg', keypoints=v, box=[0])] if kind=='alphapose'
                else [dict(keypoints=[v[i:i+2] for i in range(0,51,3)], keypoint_scores=v[2::3])])
        f = save(tmp_path/('a.json' if kind=='alphapose' else 'p/a.json'), data)
        f = f if kind=='alphapose' else f.parent
    else: f = tmp_path/'x'; write_poses(f, PoseTable(['a.jpg'], k[None]), kind)
    got = read_poses(f)
    assert got.frames.tolist()==[[1,1]] and got.notes=={'shares of the picture, scaled':['a.jpg']}
    back = got.fitted([(128,64)])['a.jpg']
    assert torch.allclose(back[:,:2], WANT[:,:2], atol=1e-3)

def test_pixels_are_no_shares(tmp_path):
    tiny = torch.zeros(2,18,3)
    tiny[0,0],tiny[0,1],tiny[1,0] = torch.tensor([[.5,.5,1],[1,1.5,1],[2.,2.01,1]])
    f = tmp_path/'a.csv'
    write_poses(f, PoseTable(['a.jpg','b.jpg'], tiny)); assert read_poses(f).frames is None
    tiny[1,0,1] = 2
    write_poses(f, PoseTable(['a.jpg','b.jpg'], tiny))
    assert read_poses(f).frames.tolist()==[[1,1]]*2
    tiny[0,0,0] = -.9
    write_poses(f, PoseTable(['a.jpg','b.jpg'], tiny))
    assert read_poses(f).frames is not None, 'a share a little outside'
    tiny[0,0,0] = -1.5
    write_poses(f, PoseTable(['a.jpg','b.jpg'], tiny))
    assert read_poses(f).frames is None
    one = torch.zeros(1,18,3); one[0,0] = torch.tensor([1.,1.,1.])
    write_poses(f, PoseTable(['a.jpg'], one))
    assert read_poses(f).frames is None, 'one joint says nothing'
    assert torch.equal(read_market_csv(f).joints, one)

def test_a_file_without_any_joint(tmp_path):
    f = save(tmp_path/'a.csv', 'name:keypoints_y:keypoints_x\n'
             + ''.join(f'{o}.jpg: {[-1]*18}: {[-1]*18}\n' for o in 'ab'))
    assert read_poses(f).notes=={'no joint in the whole file':['a.jpg','b.jpg']}
    assert read_poses(save(f, 'name:keypoints_y:keypoints_x\n')).notes=={}

def test_frames_through_tables():
    k = walking_pose(torch.tensor([0.,1.,2.]), size=(128,64))
    a = PoseTable(['a','b'], k[:2], frames=[(256,64),(0,0)])
    both = a+PoseTable(['c'], k[2:])
    assert (both.frames.tolist()==[[256,64],[0,0],[0,0]]
            and PoseTable(['c'], k[:1], frames=[(0,0)]).frames is None)
    got = both.fitted([(128,64)]*3)
    assert (torch.allclose(got.joints[0,:,1], (k[0,:,1]+.5)/2-.5, atol=1e-4)
            and torch.equal(got.joints[1:], k[1:]) and torch.equal(got.joints[0,:,0], k[0,:,0]))
    missing = k.clone(); missing[0,3] = 0
    assert not PoseTable(['a'], missing[:1], frames=[(9,9)]).fitted([(128,64)]).joints[0,3].any()
    for bad in ([(1,-1)], [(math.nan,1)], [(0,1)]):
        with pytest.raises(InputError, match='above 0'): PoseTable(['a'], k[:1], frames=bad)
    with pytest.raises(InputError, match='give `sizes`'): write_market_csv('never.csv', a)

# --- whose pose is it ---

def test_whole_paths_and_base_names_do_not_mix():
    k = walking_pose(torch.arange(3.))
    base,exact = PoseTable(['0.jpg','1.jpg'], k[:2]), PoseTable(['/s/a/0.jpg','1.jpg'], k[:2])
    items = ['/s/a/0.jpg','/s/b/0.jpg','/s/b/1.jpg']
    assert base.rows_of(items).tolist()==[0,0,1] and exact.rows_of(items).tolist()==[0,-1,-1]
    class Manifest: path = items
    assert torch.equal(base.of(Manifest), k[[0,0,1]]) and exact.of(items)[1:].abs().max()==0
    from pathlib import Path
    assert (base.rows_of(map(Path, items)).tolist()==[0,0,1]
            and PoseTable([], k[:0]).rows_of(items).tolist()==[-1]*3)
    assert PoseTable(['a/0.jpg'], k[:1]).rows_of(items).tolist()==[-1]*3, 'a path is no base name'

def slow_find(names, paths):
    "The path that ends with the name, folder by folder; None where several do"
    out = []
    for n in names:
        n = n.replace('\\', '/').removeprefix('./').split('/')
        fits = [i for i,p in enumerate(paths) if p.split('/')[-len(n):]==n]
        out.append(-1 if not fits else fits[0] if len(fits)==1 else None)
    return out

def test_find_pictures_against_the_slow_way():
    rng = random.Random(0)
    hits = clashes = 0
    for _ in range(400):
        paths = sorted({'/'+'/'.join([*rng.choices('ab', k=rng.randint(0,3)),
                                      rng.choice('01')+'.jpg']) for _ in range(5)})
        names = sorted({'/'.join([*rng.choices('ab', k=rng.randint(0,2)), rng.choice('012')+'.jpg'])
                        for _ in range(2)})
        want = slow_find(names, paths)
        twice = len({i for i in want if i not in (None,-1)})<sum(i not in (None,-1) for i in want)
        if None in want or twice:
            clashes += 1
            with pytest.raises(InputError, match='may mean' if None in want else 'both mean'):
                find_pictures(names, paths)
        else:
            hits += any(i>=0 for i in want)
            assert find_pictures(names, paths).tolist()==want
    assert hits>30 and clashes>30

def test_find_pictures_by_hand():
    paths = ['/s/train/0001/0.jpg','/s/train/0001/10.jpg','/s/test/0001/0.jpg']
    at = find_pictures([r'.\train\0001\0.jpg','10.jpg','0001/x.jpg'], paths)
    assert at.tolist()==[0,1,-1] and at.dtype==np.int64
    assert find_pictures(['01/10.jpg','1/10.jpg'], paths).tolist()==[-1,-1], 'whole components'
    with pytest.raises(InputError, match=r'k.csv: 0001/0.jpg may mean /s/train/0001/0.jpg or '
                       r'/s/test/0001/0.jpg; .* such as train/0001/0.jpg\.$'):
        find_pictures(['0001/0.jpg'], paths, 'k.csv')
    with pytest.raises(InputError, match=r'k.csv: 10.jpg and 0001/10.jpg both mean '
                       r'/s/train/0001/10.jpg; keep one'):
        find_pictures(['10.jpg','x','0001/10.jpg'], paths, 'k.csv')
    assert find_pictures(['0.jpg'], ['/s/0.jpg','/s/0.jpg']).tolist()==[0], ('a picture that is '
        'listed twice is one')

def test_relative_paths_and_absolute_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_pictures([str(tmp_path/'a'/'0.jpg')], ['b/0.jpg','a/0.jpg']).tolist()==[1]

def test_stems_say_the_reason_that_holds(tmp_path):
    for o in ('a','b'): save(tmp_path/f'{o}_keypoints.json', dict(people=[]))
    assert read_poses(tmp_path, names=['a.jpg','c.jpg']).notes['no picture of this name']==['b.jpg']
    with pytest.raises(InputError, match='none of its 2 files is called like a picture of this '
                       'set: a is the first, .*another set'):
        read_poses(tmp_path, names=['x1.jpg','x2.jpg'])
    with pytest.raises(InputError, match='a.jpg and a.png differ in their extension alone'):
        read_poses(tmp_path, names=['a.jpg','a.png','b.jpg'])
    with pytest.raises(InputError, match='a may mean 1/a.jpg or 2/a.jpg; put the files into '
                       'folders like those of the pictures, such as 1/a'):
        read_poses(tmp_path, names=['1/a.jpg','2/a.jpg','b.jpg'])
    assert (read_poses(tmp_path, names=['a.jpg','b.jpg','c.png','c.jpg'])
            .names==['a.jpg','b.jpg']), 'twins that are not asked for'
    assert read_poses(tmp_path, names=['/s/a.jpg','/s/b.jpg']).names==['/s/a.jpg','/s/b.jpg']

# --- large files ---

@pytest.mark.parametrize('block', [1,3,17,64,1000])
def test_json_in_blocks_is_json(tmp_path, monkeypatch, block):
    from posereid import records
    monkeypatch.setattr(records, '_BLOCK', block)
    rows = results('a.jpg','bé.jpg','c "x".jpg')
    for pad in range(7):
        f = save(tmp_path/'r.json',
                 ' '*pad + json.dumps(rows, indent=pad % 3 or None, ensure_ascii=False) + '\n')
        got = read_poses(f)
        assert got.names==['a.jpg','bé.jpg','c "x".jpg'] and got.joints[:,0,0].tolist()==[31,32,33]
    for cut in (1,40,len(json.dumps(rows))-1):
        save(f, json.dumps(rows)[:cut])
        with pytest.raises(InputError, match=r'no whole JSON \(.*, line 1 column \d+\); the file '
                           r'may be cut short'):
            read_coco(f)
    save(f, '[{"image_id": "a.jpg"},\n  {"image_id" 3}]')
    with pytest.raises(InputError, match='entry 0|line 2 column 15'): read_coco(f)

@pytest.mark.parametrize('block', [1,2,5])
def test_numbers_that_a_block_cuts(tmp_path, monkeypatch, block):
    from posereid import records
    monkeypatch.setattr(records, '_BLOCK', block)
    data = dict(a=12345, b=[678,-1.5e-3,True,'x\\y'], c={})
    assert [(k,i,v) for k,i,v in records.walk_json(save(tmp_path/'n.json', data)) if i is not None
            or k!='b']==[('a',None,12345),*[('b',i,v) for i,v in enumerate(data['b'])],
                         ('c',None,{})]
    assert list(records.walk_json(save(tmp_path/'n.json', '12345')))==[(None,None,12345)]

def test_the_place_of_a_mistake_in_a_large_file(tmp_path, monkeypatch):
    from posereid import records
    from posereid.pose import files, reading
    monkeypatch.setattr(records, '_BLOCK', 50)
    for module in (files,reading): monkeypatch.setattr(module, '_CHUNK', 4)
    rows = results(*[f'{i}.jpg' for i in range(30)])
    rows[21]['keypoints'][3] = 'x'
    with pytest.raises(InputError, match='r.json, entry 21: expected 51'):
        read_poses(save(tmp_path/'r.json', rows))
    rows[21]['keypoints'][3] = math.nan
    with pytest.raises(InputError, match='r.json, entry 21: joint 1 is not a finite'):
        read_poses(save(tmp_path/'r.json', rows))
    rows[21]['keypoints'][3] = 1e300
    with pytest.raises(InputError, match='r.json, entry 21: joint 1'):
        read_poses(save(tmp_path/'r.json', rows))
    text = json.dumps(results(*[f'{i}.jpg' for i in range(30)]), indent=1).splitlines()
    text[500] = '&'+text[500]
    with pytest.raises(InputError, match='line 501 column 1'):
        read_poses(save(tmp_path/'r.json', '\n'.join(text)))
    lines = [f'{i}.jpg: {list(range(18))}: {list(range(18))}' for i in range(30)]
    for bad,says in (('x.jpg: [1]: [2]', 'keypoints_y must be'),
                     (lines[0].replace('[0', '["0"', 1), 'keypoints_y must'),
                     (lines[0].replace('17]', 'NaN]'), 'keypoints_y must'), ('x', 'found 1')):
        with pytest.raises(InputError, match='a.csv, line 23: .*'+says):
            read_poses(save(tmp_path/'a.csv', '\n'.join(['name:keypoints_y:keypoints_x',*lines[:21],
                                    bad,*lines[22:]])))
    assert len(read_poses(save(tmp_path/'a.csv',
                               '\n'.join(['name:keypoints_y:keypoints_x',*lines]))))==30

def test_people_are_chosen_over_chunks(tmp_path, monkeypatch):
    from posereid.pose import reading
    monkeypatch.setattr(reading, '_CHUNK', 5)
    rng = random.Random(1)
    rows = [dict(image_id=f'{rng.randrange(20)}.jpg',
                 keypoints=[rng.random()*60+3, n+3., round(rng.random(), 1)+.1]*17)
            for n in range(100)]
    f = save(tmp_path/'r.json', rows)
    for rule,better in (('best', lambda a,b: a[2]>b[2]+1e-6), ('first', lambda a,b: False)):
        want = {}
        for r in rows:
            k = r['keypoints'][:3]
            if r['image_id'] not in want or better(k, want[r['image_id']]): want[r['image_id']] = k
        got = read_poses(f, people=rule)
        assert got.names==list(want) and all(got[n][0].tolist()==pytest.approx(k, abs=1e-4)
                                             for n,k in want.items())
        assert set(got.notes)=={f'several people, {rule} taken'}

def test_every_format_has_words_and_a_reader():
    from posereid.pose.files import _READERS
    assert list(_READERS)==list(FORMATS) and all(isinstance(o, str) and o for o in FORMATS.values())

def test_a_mixed_folder_is_refused(tmp_path):
    save(tmp_path/'a_keypoints.json', dict(people=[])); save(tmp_path/'x.jpg.predictions.json', [])
    with pytest.raises(InputError, match=r'several formats \(openpifpaf, openpose\)'):
        read_poses(tmp_path)
    save(tmp_path/'c'/'c.json', dict(images=[], annotations=[]))
    with pytest.raises(InputError, match='no format of poses'): read_poses(tmp_path/'c')

# --- estimating ---

def test_pictures_whatever_they_are_called(tmp_path):
    exif = Image.Exif(); exif[0x0112] = 6
    for o in ('0001/0.webp','0002/0.webp','0002/x.TIF','@eaDir/0.webp','.hidden/0.webp',
              '__MACOSX/0.webp'):
        (tmp_path/o).parent.mkdir(exist_ok=True)
        Image.new('RGB', (40,20)).save(tmp_path/o, **(dict(exif=exif) if o=='0001/0.webp' else {}))
    Image.new('RGB', (9,9)).save(tmp_path/'0001'/'noend', 'PNG')
    (tmp_path/'0001'/'list.txt').write_text('0.webp')
    found = list_pictures_in(tmp_path)
    assert (list(found)==['0001/0.webp','0001/noend','0002/0.webp','0002/x.TIF']
            and list(list_pictures_in(tmp_path, ['0002']))==['0.webp','x.TIF'])
    assert (read_picture(found['0001/0.webp']).shape==(3,40,20)
            and read_picture(found['0002/0.webp']).shape==(3,20,40))
    known = make_estimator('known', save(tmp_path/'s.json', [dict(image_id='0002/0.webp',
                                                 keypoints=shares(flat(COCO)))]), list(found))
    got = estimate_folder(tmp_path, tmp_path/'o.csv', known, ['0001','0002'], sheet=False)
    assert (has_pose(got.joints).tolist()==[False,False,True,False] and got['0002/0.webp'][0]
            .tolist()==pytest.approx([31.5*40/64-.5,12.5*20/128-.5,.9], abs=1e-4))
    assert torch.allclose(read_market_csv(tmp_path/'o.csv')['0002/0.webp'], got['0002/0.webp'])
