"Test pictures and test people that somebody put where a net learns from: the audit names them, a run refuses or tells"
import io, json, os, shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import posereid.data.near as N
import posereid.experiment.inputs as I
from posereid import cli
from posereid.core import InputError
from posereid.data.audit import audit
from posereid.data.manifest import pick
from posereid.data.market import read_market
from posereid.data.near import (close_people, held_out, likeness, near_copies, near_hash,
                                near_pairs, refuse_copies, refuse_people, same_bytes,
                                shared_people, thumbnail)
from posereid.experiment.inputs import folder_inputs, share_people, target_inputs
from posereid.synth.world import tiny_world

REID = ['reid.width=4', 'reid.epochs=1', 'reid.bs=8']
GAN = ['transfer.width=4', 'transfer.d_width=4', 'transfer.pairs=16', 'transfer.parts=1',
       'transfer.bs=8', 'transfer.beta=0']


# --- what is planted ---

def saved(im, quality=75):
    f = io.BytesIO()
    im.save(f, 'JPEG', quality=quality)
    return Image.open(f)

def shifted(im, dy, dx):
    h,w = im.size[::-1]
    a = np.pad(np.asarray(im), ((2,2), (2,2), (0,0)), 'edge')
    return Image.fromarray(a[2-dy:2-dy+h, 2-dx:2-dx+w])

def mirrored(im): return im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)

NEAR = dict(saved_60=lambda o: saved(o, 60), saved_95=lambda o: saved(o, 95),
            right=lambda o: shifted(o, 0, 1), corner=lambda o: shifted(o, -2, 2),
            both=lambda o: saved(shifted(o, 1, -1)), mirror=mirrored,
            mirror_saved=lambda o: saved(mirrored(o)), larger=lambda o: o.resize((64,128)),
            smaller=lambda o: o.resize((29,58)), brighter=lambda o: o.point(lambda v: v*1.1))


class Home:
    "A set and a source in a folder, into which things are put"
    def __init__(self, tmp):
        world = tiny_world()
        self.set,self.lent = tmp/'set',tmp/'lent'
        shutil.copytree(world/'target', self.set)
        shutil.copytree(world/'source', self.lent)
        for o,name in (('target','set'), ('source','lent')):
            shutil.copy(world/f'{o}_poses.csv', tmp/f'{name}_poses.csv')
        self.test = [*sorted((self.set/'query').iterdir()),
                     *(o for o in sorted((self.set/'bounding_box_test').iterdir())
                       if o.name[:4] not in ('0000','-1_c'))]

    def train(self, name='0901_c1s1_000101_01.jpg'): return self.set/'bounding_box_train'/name
    def source(self, name='0023C1T0001F901.jpg'): return self.lent/'bbox_train'/'0023'/name

    def put(self, to, f=None, of=3):
        "Put a test picture to `to`, byte for byte or changed by `f`; both paths"
        if f is None: shutil.copy(self.test[of], to)
        else:
            with Image.open(self.test[of]) as im: f(im).save(to, quality=95)
        return str(to),str(self.test[of])


@pytest.fixture
def home(tmp_path): return Home(tmp_path)

def fails(a): return {(f.check, f.leak) for f in a.findings if f.level=='fail'}
def files(a, check): return [p for f in a.findings if f.check==check and f.level!='ok'
                             for p in f.files]
def audited(home, **kw): return audit(home.set, against='none', source=home.lent, **kw)


# --- the audit ---

def test_a_clean_set_has_no_leak(home):
    a = audited(home, near=True)
    assert a.status==0 and not fails(a) and a.decoded
    assert [f.level for f in a.findings if f.check in ('leaks','near')]==['ok']*4
    assert not [f for f in audited(home).findings if f.check=='near']


@pytest.mark.parametrize('where,way', [*(('train',o) for o in NEAR), ('source','saved_60'),
                                       ('source','corner'), ('source','mirror')])
def test_near_duplicates_are_found(home, where, way):
    "In training and in the source, under another name and number, with both paths"
    new,old = home.put(getattr(home, where)(), NEAR[way])
    a = audited(home, near=True)
    assert fails(a)=={('near',False)} and a.status==1
    assert files(a, 'near')==[f'{new} ≈ {old}' + ' (mirrored)'*('mirror' in way)]
    one, = [f for f in a.findings if f.check=='near' and f.level=='fail']
    assert ('training' if where=='train' else 'the source') in one.text and ': 1' in one.text
    assert audited(home).status==0  # not looked for without the flag
    page = a._repr_html_()
    assert f'{Path(new).name} ≈ {Path(old).name}' in page


@pytest.mark.parametrize('where', ['train','source'])
def test_equal_bytes_are_found_without_decoding(home, where):
    new,old = home.put(getattr(home, where)())
    a = audited(home)
    assert fails(a)=={('leaks',True)} and a.status==2 and not a.decoded
    assert files(a, 'leaks')==[f'{new} = {old}']
    # nor are they called near as well
    near = audited(home, near=True)
    assert near.status==2 and not files(near, 'near') and files(near, 'leaks')==[f'{new} = {old}']


def test_a_test_person_in_training_is_found(home):
    pid = home.test[0].name[:4]
    first = sorted((home.set/'bounding_box_train').iterdir())[0]
    first.rename(to := first.with_name(pid + first.name[4:]))
    a = audit(home.set, against='none')
    assert fails(a)=={('people',True)} and a.status==2 and str(to) in files(a, 'people')
    df = read_market(home.set)
    assert {k: v[0] for k,v in shared_people(df).items()}=={int(pid): str(to)}
    assert Path(shared_people(df)[int(pid)][1]).name.startswith(pid)


def test_numbers_of_the_source_are_its_own(home):
    "A person of the source with the number of a test person is another person"
    pid = home.test[0].name[:4]
    old = home.lent/'bbox_train'/'0023'
    for p in old.iterdir(): p.rename(p.with_name(pid + p.name[4:]))
    old.rename(old.with_name(pid))
    assert audited(home, near=True).status==0
    folder_inputs(home.set, home.lent, need_poses=False)


@pytest.mark.parametrize('source', ['Market-1501', 'DukeMTMC-reID', 'cuhk03-np', 'MARS',
                                    'MSMT17_V1', 'folders', 'own/own.csv'])
def test_a_source_of_any_layout(home, sets, source):
    "Its training pictures alone are compared: these sets hold the test pictures of `home` as well"
    how = dict(source_name='cuhk03-labeled') if source=='cuhk03-np' else {}
    a = audit(home.set, against='none', source=sets/source, **how)
    assert a.status==0 and sum(f.check=='leaks' for f in a.findings)==2
    read = dict(source_read=dict(layout=how['source_name'])) if how else None
    i = folder_inputs(home.set, sets/source, need_poses=False, choices=read)
    assert len(i.near)==0


def test_a_source_needs_no_test_and_may_have_odd_files(home, tmp_path):
    "As where it lends its poses: its training pictures are read, and nothing else"
    lent = tmp_path/'only'/'bounding_box_train'
    shutil.copytree(home.set/'bounding_box_train', lent)
    new,old = home.put(lent/'0901_c1s1_000101_01.jpg')
    shutil.copy(old, lent/'copy of 1.jpg')
    a = audit(home.set, against='none', source=lent.parent)
    assert files(a, 'leaks')==[f'{new} = {old}']
    with pytest.raises(InputError, match='copy of 1.jpg'):
        audit(home.set, source=lent.parent, source_read=dict(odd='error'))


def test_what_a_source_must_have(home, tmp_path):
    with pytest.raises(InputError, match='no known set'):
        audit(home.set, source=tmp_path/'nothing')
    (tmp_path/'own.csv').write_text(f'path,pid,split,camid\n{home.test[0]},1,query,1\n'
                                    f'{home.test[1]},1,gallery,2\n')
    with pytest.raises(InputError, match='no training pictures.*--source_layout'):
        audit(home.set, source=tmp_path/'own.csv')


def test_pictures_that_cannot_be_compared_are_counted(home):
    home.train().write_bytes(b'no picture')
    a = audited(home, near=True)
    near = [f for f in a.findings if f.check=='near']
    assert fails(a)=={('decoding',False)} and '1 pictures could not be compared' in near[0].text
    assert 'compared' not in near[1].text


def test_the_command(home, capsys):
    def said(**kw):
        try: cli.posereid_audit(home.set, against='none', source=home.lent, **kw)
        except SystemExit as e: return e.code,capsys.readouterr().out
        return 0,capsys.readouterr().out
    assert said(near=True)[0]==0
    new,old = home.put(home.train(), saved)
    assert said()[0]==0
    code,out = said(near=True)
    assert code==1 and f'{new} ≈ {old}' in out
    home.put(home.source(), of=7)
    code,out = said(near=True, json=True)
    assert code==2 and [o['leak'] for o in json.loads(out)['findings'] if o['level']=='fail']==[
        False,True]
    code,out = said(source_layout='mars', source_read=['odd=skip'])
    assert code==2


def test_options_of_a_source_need_one(home, refused):
    for kw in (dict(source_layout='mars'), dict(source_read=['odd=skip'])):
        refused(cli.posereid_audit, home.set, says=['--source,', next(iter(kw))], **kw)


def test_features_of_a_net(home, tmp_path, capsys):
    "A made-up net that knows people, but not pictures: it sees what hashes cannot"
    df = read_market(home.set)
    query = pick(df, 'query')
    who = dict(zip(df.path, df.pid))
    mine = [o for o in df.path[df.split=='train']][:2]
    who[mine[0]] = who[mine[1]] = query.pid[0]
    axes = np.random.default_rng(0).normal(size=(df.pid.max()+2, 32))
    noise = lambda p: .2*np.random.default_rng(len(Path(p).name)+who[p]).normal(size=32)
    embed = lambda paths: np.stack([axes[who[p]] + noise(p) for p in paths])
    a = audit(home.set, against='none', embed=embed)
    one, = [f for f in a.findings if f.check=='features']
    n = (query.pid==query.pid[0]).sum()
    assert one.level=='note' and a.status==0 and n<=len(one.files)<=20
    assert {o.split(' ~ ')[0] for o in one.files[:n]}<=set(mine)
    assert {read_market(home.set).set_index('path').pid[o.split(' ~ ')[1].split(' (')[0]]
            for o in one.files[:n]}=={query.pid[0]}
    # and a real net, by the command
    cli.posereid_guider(home.set, out=tmp_path/'net', preset='smoke', set=REID)
    capsys.readouterr()
    cli.posereid_audit(home.set, against='none', source=home.lent, model=tmp_path/'net')
    assert capsys.readouterr().out.count(' features ')==2


# --- a run ---

def run(home, out, **kw):
    cli.posereid_run(out=out, preset='smoke', data=home.set, source=home.lent, rows='control',
                     **{**kw, 'set':[*REID, *kw.get('set', [])]})


@pytest.mark.parametrize('what', ['person','train','source'])
def test_a_run_refuses(home, tmp_path, refused, what):
    "Status 2 and one sentence with both paths and the cure, before anything is trained"
    if what=='person': paths = home.put(home.train(f'{home.test[3].name[:4]}_c1s1_000101_01.jpg'),
                                        mirrored)
    else: paths = home.put(getattr(home, what)())
    says = dict(person='number them anew', train='take them out',
                source='generate.test_poses=True')[what]
    err = refused(run, home, tmp_path/'run', says=[paths[0], says, 'posereid_audit'])
    pid = home.test[3].name[:4]
    assert (paths[1] in err) if what!='person' else (f'person {int(pid)} ' in err
                                                     and f'query/{pid}_' in err)
    assert not (tmp_path/'run').exists()
    if what!='source':
        refused(cli.posereid_guider, home.set, out=tmp_path/'net', preset='smoke', set=REID,
                says=[paths[0], says])
        assert not (tmp_path/'net').exists()


def test_others_are_counted(home, refused, tmp_path):
    for i in range(3): home.put(home.train(f'09{i:02d}_c1s1_000101_01.jpg'), of=i)
    refused(run, home, tmp_path/'run', says='and 2 others are test pictures')
    for i in range(3): (home.train(f'09{i:02d}_c1s1_000101_01.jpg')
                        .rename(home.train(f'{home.test[i].name[:4]}_c1s1_{i:06d}_01.jpg')))
    n = len({o.name[:4] for o in home.test[:3]})
    refused(run, home, tmp_path/'run', says=f'so are {n-1} others' if n>1 else 'is in training')


def test_a_near_duplicate_is_told_and_reported(home, tmp_path, capsys):
    "A copy in the source is let through where test poses are asked for"
    new,old = home.put(home.train(), lambda o: saved(shifted(o, 0, 1)))
    home.put(home.source(), of=9)
    run(home, tmp_path/'run', set=['generate.test_poses=true'])
    out = capsys.readouterr().out
    assert f'{new} is nearly the test picture {old};' in out
    page = (tmp_path/'run'/'report.html').read_text(encoding='utf-8')
    section = page.partition('<h2>Near duplicates of test pictures</h2>')[2].partition('<h2>')[0]
    assert new in section and old in section and section.count('<tr>')==2


def test_a_clean_run_says_nothing(home, tmp_path):
    i = folder_inputs(home.set, home.lent)
    assert len(i.near)==0 and not [o for o in i.notes if 'near' in o]
    from posereid.experiment.report import near_section
    assert near_section(i.near)==''


def test_near_duplicates_in_the_source(home):
    new,old = home.put(home.source(), mirrored)
    i = folder_inputs(home.set, home.lent, need_poses=False)
    assert i.near[['path','other','mirrored']].values.tolist()==[[new, old, True]]
    assert len(folder_inputs(home.set, home.lent, need_poses=False, test_poses=True).near)==0
    # a step that makes no score has no test to spoil
    assert folder_inputs(home.set, home.lent, need_poses=False, need_test=False).near is None


@pytest.mark.parametrize('size', [(32,16), (64,32), (96,48)])
def test_decoded_pictures_of_any_size_serve(home, size):
    new,old = home.put(home.train(), saved)
    i = target_inputs(home.set, size)
    assert i.near[['path','other']].values.tolist()==[[new, old]]
    # too small ones show too little, so that the files are decoded again
    assert (I._looks_of(i.store(size)) is None)==(size==(32,16))


def test_large_sets_are_left_to_the_audit(home, monkeypatch):
    home.put(home.train(), saved)
    monkeypatch.setattr(I, 'MOST_PAIRS', 61*60-1)
    i = target_inputs(home.set)
    assert i.near is None and 'posereid_audit --near' in i.notes[0]
    monkeypatch.setattr(I, 'MOST_PAIRS', 61*60)
    assert len(target_inputs(home.set).near)==1


def test_people_set_aside_are_a_test_too(home):
    "Without a source the training people lend poses; a copy under another number is found in both"
    df = read_market(home.set)
    target,lent,held = share_people(pick(df, 'train'), share=1/3, validation=2)
    train = pick(df, 'train')
    for pids in (target, lent):
        a,b = (train.path[train.pid.isin(o)].iloc[0] for o in (held, pids))
        new = Path(b).with_name(f'{Path(b).name[:4]}_c6s1_999999_01.jpg')
        shutil.copy(a, new)
        with pytest.raises(InputError, match=f'{new}.*{a}'): folder_inputs(home.set,
                                                                           validation=True)
        new.unlink()
    # the published test is not what a validation scores
    home.put(home.train())
    assert len(folder_inputs(home.set, validation=True, need_poses=False).near)==0
    with pytest.raises(InputError, match='byte for byte'): folder_inputs(home.set)


# --- steps two and three ---

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "Run folder of a generator"
    tmp = tmp_path_factory.mktemp('trained')
    step('transfer', Home(tmp), tmp/'G')
    return tmp/'G'


def step(which, home, out, generator=None, opts=(), **kw):
    "A step as a command: of `home`, or of another target or source"
    kw = {'data':home.set, 'source':home.lent, 'preset':'smoke', 'out':out, **kw}
    if which=='transfer': cli.posereid_transfer(set=[*GAN, *opts], **kw)
    else: cli.posereid_generate(generator=generator, set=['generate.n_each=1', *opts], **kw)


STEPS = pytest.mark.parametrize('which', ['transfer','generate'])

def hard_link(home, to):
    os.link(home.test[5], to)
    return str(to),str(home.test[5])

PLANTS = dict(train=lambda h: h.put(h.train()), source=lambda h: h.put(h.source()),
              linked_train=lambda h: hard_link(h, h.train()),
              linked_source=lambda h: hard_link(h, h.source()),
              junk=lambda h: h.put(h.source(), of=h.test.index(junk(h))))

def junk(home):
    "A gallery picture of nobody, which is ranked all the same"
    home.test.append(next((home.set/'bounding_box_test').glob('0000_*')))
    return home.test[-1]


@STEPS
@pytest.mark.parametrize('plant', PLANTS)
def test_a_step_refuses(home, trained, tmp_path, refused, which, plant):
    "As a run does, under whatever name: status 2 and both paths, and nothing is made"
    new,old = PLANTS[plant](home)
    says = 'take them out' if 'train' in plant else 'generate.test_poses=True'
    refused(step, which, home, tmp_path/'out', trained, says=[new, old, says])
    assert not (tmp_path/'out').exists()


@STEPS
def test_a_clean_step_says_nothing(home, trained, tmp_path, capsys, which):
    "Also where the source has the numbers of test people for its own"
    pid,old = home.test[0].name[:4],home.lent/'bbox_train'/'0023'
    names = {p.name: pid+p.name[4:] for p in old.iterdir()}
    for a,b in names.items(): (old/a).rename(old/b)
    old.rename(old.with_name(pid))
    file = home.lent.with_name('lent_poses.csv')
    text = file.read_text()
    for a,b in names.items(): text = text.replace(a, b)
    file.write_text(text)
    step(which, home, tmp_path/'out', trained)
    out = capsys.readouterr().out
    assert (tmp_path/'out'/'metrics.json').exists() and 'test pictures' not in out


@STEPS
def test_a_step_refuses_test_people(home, trained, tmp_path, refused, which):
    name = f'{home.test[3].name[:4]}_c1s1_000101_01.jpg'
    new,_ = home.put(home.train(name), mirrored)
    refused(step, which, home, tmp_path/'out', trained, says=[new, 'number them anew'])
    refused(step, which, home, tmp_path/'out', trained, read=['splits=train'],
            says=[new, 'number them anew'])


@STEPS
def test_test_poses_are_allowed_in_both_steps(home, trained, tmp_path, capsys, refused, which):
    "In the source, and not in training; nothing else of another group is let in"
    for i in (2,3): home.put(home.source(f'0023C1T0001F90{i}.jpg'), of=i)
    allowed = ['generate.test_poses=true']
    step(which, home, tmp_path/'out', trained, allowed)
    assert '2 pictures of the source are test pictures, as' in capsys.readouterr().out
    new,old = home.put(home.train())
    refused(step, which, home, tmp_path/'o', trained, allowed, says=[new, old, 'take them out'])
    if which=='transfer':
        refused(step, which, home, tmp_path/'o', trained, ['generate.n_each=3'],
                says='generate.n_each')


@STEPS
@pytest.mark.parametrize('how', ['read','odd','csv'])
def test_a_test_that_was_not_read_is_looked_up(home, trained, tmp_path, refused, capsys, which,
                                               how):
    "Training alone is asked for; the test folder may even be one that no reader takes"
    kw = dict(read=['splits=train'])
    if how=='odd': (home.set/'query'/'copy of 1.jpg').write_bytes(b'no picture')
    if how=='csv':
        read_market(home.set).to_csv(tmp_path/'set.csv', index=False)
        kw['data'] = tmp_path/'set.csv'
    step(which, home, tmp_path/'clean', trained, **kw)
    assert 'test pictures' not in capsys.readouterr().out
    new,old = home.put(home.source())
    refused(step, which, home, tmp_path/'out', trained, says=[new, old], **kw)


@pytest.mark.parametrize('layout', ['Market-1501', 'DukeMTMC-reID', 'cuhk03-np', 'MARS',
                                    'MSMT17_V1', 'folders'])
def test_test_folders_of_any_layout_are_found(home, sets, tmp_path, layout):
    "Their files are those that the reader would have read, and perhaps more"
    name = 'cuhk03-labeled' if layout=='cuhk03-np' else None
    df = I.read_set(sets/layout, ('train','query','gallery'), layout=name)
    train = pick(df, 'train')
    found = cli._test_files(sets/layout, name, train.path)
    assert set(held_out(df).path)<=set(found) and not set(found) & set(train.path)
    assert not any(o in p for p in found for o in ('detected', 'train'))


@STEPS
def test_without_lists_the_files_of_a_test_folder_count(home, sets, trained, tmp_path, refused,
                                                        which):
    shutil.copytree(sets/'MSMT17_V1', tmp_path/'MSMT17_V1')
    for o in (tmp_path/'MSMT17_V1').parent.glob('MSMT17_V1/list_[qg]*'): o.unlink()
    for o in sets.glob('MSMT17_V1_poses*'): shutil.copy(o, tmp_path)
    test = next((tmp_path/'MSMT17_V1'/'test').rglob('*.jpg'))
    shutil.copy(test, home.source())
    refused(step, which, home, tmp_path/'out', trained, data=tmp_path/'MSMT17_V1',
            says=[str(test), str(home.source())])


@STEPS
def test_no_test_is_told(home, trained, tmp_path, capsys, which):
    "A person may be called `test`; the pictures of training are none of a test"
    for o in ('query','bounding_box_test'): shutil.rmtree(home.set/o)
    file,names = home.set.with_name('set_poses.csv'),{'name',*os.listdir(home.train().parent)}
    lines = [o for o in file.read_text().splitlines() if o.partition(':')[0] in names]
    file.write_text('\n'.join(lines)+'\n')
    step(which, home, tmp_path/'out', trained)
    assert 'set: no test pictures are there, so that training and source were compared with none' \
        in capsys.readouterr().out
    people = tmp_path/'people'
    df = read_market(home.set, splits='train')
    for pid,who in zip(sorted(set(df.pid)), ['test','query','An','Bo','Cy','Di']):
        for p in df.path[df.pid==pid]:
            (people/who).mkdir(parents=True, exist_ok=True)
            shutil.copy(p, people/who)
    assert cli._test_files(people, 'folder', list(map(str, people.rglob('*.jpg'))))==[]


def test_a_plan_knows_copies_by_their_bytes(home):
    "Without commands, too; hand-drawn boxes of training people are no test"
    from posereid.stages.generate import GenerateSettings, plan
    i = folder_inputs(home.set, home.lent)
    new,old = home.put(home.source())
    more = pd.concat([i.source, i.source[:1].assign(path=new)], ignore_index=True)
    with pytest.raises(InputError, match=f'1 pictures of the source are test.*{new}, which is '
                                         f'{old};'):
        plan(i.target, more, i.poses, GenerateSettings())
    train = i.train[:1]
    boxes = pd.concat([i.target, train.assign(split='multi')], ignore_index=True)
    shutil.copy(train.path.item(), new)
    assert len(plan(boxes, more, i.poses, GenerateSettings(n_each=1)))==len(i.train)
    queried = i.target.pid[i.target.split=='query'].iloc[0]
    boxes = pd.concat([i.target, train.assign(split='multi', pid=queried)], ignore_index=True)
    with pytest.raises(InputError, match='are test pictures'):
        plan(boxes, more, i.poses, GenerateSettings())


def test_refusals_by_hand(tmp_path):
    df = pd.DataFrame([('a','train',1), ('b','query',2), ('c','gallery',2), ('d','train',3)],
                      columns=['path','split','pid'])
    refuse_people(df, 'set')
    with pytest.raises(InputError, match='set: person 2 is in training, a, and in the test, b; '):
        refuse_people(df.assign(pid=[2,2,2,3]), 'set')
    with pytest.raises(InputError, match='and so are 1 others'):
        refuse_people(df.assign(pid=[2,2,3,3]), 'set')
    a,b = (str(tmp_path/o) for o in 'ab')
    for o in (a,b): Path(o).write_bytes(b'x')
    refuse_copies([], [b], 'the source')
    refuse_copies([a], [], 'the source')
    with pytest.raises(InputError, match=f'{a} of the source is the test picture {b}, byte for '
                                         'byte; another cure'):
        refuse_copies([a], [b], 'the source', 'another cure')


# --- the parts ---

def test_which_pictures_are_the_test():
    df = pd.DataFrame([('a','train',1), ('b','query',2), ('c','gallery',2), ('d','gallery',0),
                       ('e','gallery',-1), ('f','multi',1), ('g','multi',2), ('h','multi',3)],
                      columns=['path','split','pid'])
    assert list(held_out(df).path)==['b','c','d','e','g']
    assert shared_people(df)=={}
    df.loc[0,'pid'] = 2
    assert shared_people(df)=={2:('a','b')}
    df['pid'] = df.pid.where(df.split!='train', 0)
    assert shared_people(df)=={}


def test_only_files_of_one_length_are_read(tmp_path, monkeypatch):
    def file(name, data):
        (tmp_path/name).write_bytes(data)
        return str(tmp_path/name)
    read,digests = [],N.digests
    monkeypatch.setattr(N, 'digests', lambda o: read.extend(Path(p).name for p in o) or digests(o))
    some = [file('a', b'xy'), file('b', b'long'), file('c', b'ab'), file('d', b''), 'gone']
    others = [file('e', b'ab'), file('f', b'abc'), file('g', b''), file('h', b'ab'), 'gone too']
    assert same_bytes(some, others)==[(some[2], others[0])]
    assert sorted(read)==['a','c','e','h']
    assert same_bytes([some[2], others[0]], others)==[(some[2], others[0]), (others[0], others[0])]


@pytest.fixture(scope='module')
def small():
    "Thumbnails and pictures of the tiny world's training and test"
    df = read_market(tiny_world()/'target')
    look = lambda s: np.stack([thumbnail(Image.open(p)) for p in pick(df, s).path])
    a,b = look('train'),look(['query','gallery'])
    return a,b,N._half(a),N._half(b)


@pytest.mark.parametrize('way', NEAR)
def test_every_test_picture_is_found_and_no_other(small, way):
    df = read_market(tiny_world()/'target')
    _,b,_,t = small
    p = np.stack([thumbnail(NEAR[way](Image.open(o))) for o in pick(df, ['query','gallery']).path])
    hit = near_pairs(N._half(p), t, lambda i: p[i], lambda i: b[i])
    assert (hit.a==hit.b).all() and len(hit)>=58
    assert (hit.mirrored==('mirror' in way)).mean()>.9


def test_other_people_are_not_near(small):
    a,b,s,t = small
    assert len(near_pairs(s, t, lambda i: a[i], lambda i: b[i]))==0


def test_clothes_tell_people_apart(small):
    "Another colour of the trousers is another person, in the same pose before the same wall"
    _,b,_,_ = small
    def near(b, blue):
        other = b.copy()
        other[:,34:54,8:24,2] = (other[:,34:54,8:24,2].astype(int) + blue).clip(0, 255)
        assert np.abs((other.astype(int)-b) @ [.299,.587,.114]).max()<16  # as bright as before
        return near_pairs(*map(N._half, (other, b)), lambda i: other[i], lambda i: b[i])
    assert len(near(b, 90))==0 and len(near(b//6+100, 32))<5  # nor at dusk
    assert len(near(b, 6))>50


def test_blocks_do_not_matter(small):
    a,b,s,t = small
    s = np.concatenate([s, t[:10]])
    as_set = lambda **kw: set(map(tuple, N._candidates(s, t, **kw).T))
    whole,parts = as_set(),as_set(rows=7, cols=11)
    assert whole==parts and {(60+i,i) for i in range(10)}<={o[:2] for o in whole}


def test_pictures_without_contrast_are_left_out(small):
    "Fifty blank walls would be 2,500 pairs"
    faint = np.concatenate([small[1][:5]//40+100]*10)
    look = lambda i: faint[i]
    assert len(near_pairs(N._half(faint), N._half(faint), look, look))==0


def test_dull_pictures(small):
    "In a sixth of the contrast copies are still found, and other people still told apart"
    a,b = (o//6+100 for o in small[:2])
    assert len(near_pairs(N._half(a), N._half(b), lambda i: a[i], lambda i: b[i]))==0
    c = np.stack([thumbnail(saved(Image.fromarray(o), 90)) for o in b])
    hit = near_pairs(N._half(c), N._half(b), lambda i: c[i], lambda i: b[i])
    assert (hit.a==hit.b).mean()>.95 and hit.a.nunique()>=55


def test_the_next_shot_is_another_picture(small):
    "The same person a moment later, in training: no tile differs much, but the pattern does"
    a,_,s,_ = small
    i,j,k = N._candidates(s, s)
    likes = N._compared(a[i], a[j], k, 2)
    next_ = {(x,y) for x,y,o in zip(i, j, likes) if x!=y and o[1]<16 and .8<o[0]<.9}
    hit = near_pairs(s, s, lambda i: a[i], lambda i: a[i])
    assert next_ and not next_ & set(zip(hit.a, hit.b))
    assert {(o,o) for o in range(len(a))}<=set(zip(hit.a, hit.b))


def test_a_hash_by_hand():
    "Sixteen rows of tiles that grow brighter downwards, and all alike from left to right"
    x = np.repeat(np.arange(0, 160, 10, dtype=np.uint8), 2)[None,:,None,None]
    bits = np.unpackbits(near_hash(np.broadcast_to(x, (1,32,16,3))), axis=1)[0]
    assert bits[:120].all() and not bits[120:].any() and len(bits)==232


def test_pictures_are_laid_onto_each_other(small):
    "Shifts and scales are undone, and what was equal is equal again"
    a = small[0][:20]
    moved = np.stack([np.asarray(shifted(Image.fromarray(o), 2, -1)) for o in a])
    assert np.median(likeness(a, moved)[:,0])>.97 and np.median(likeness(a, moved)[:,1])<4
    cut = np.stack([np.asarray(Image.fromarray(o).resize((32,64), Image.Resampling.BICUBIC,
                                                         box=(1,2,31,63))) for o in a])
    assert likeness(a, cut)[:,0].min()>.95
    assert np.median(likeness(a, np.roll(a, 1, 0))[:,0])<.6


@pytest.mark.parametrize('mode', ['L','RGBA','P','CMYK','I','F','1'])
def test_pictures_of_any_mode_are_compared(home, mode):
    im = Image.open(home.test[3])
    got = thumbnail(im.convert('L').convert(mode) if mode in 'IF' else im.convert(mode))
    assert got.shape==(64,32,3) and got.dtype==np.uint8


def test_whom_features_take_for_one():
    "By hand: strangers at 60°, the test person of the training at 10°"
    at = lambda *deg: np.stack([np.cos(np.deg2rad(deg)), np.sin(np.deg2rad(deg))], 1)
    test,pids = at(0, 5, 65, 70),[1,1,2,2]
    found = close_people(at(195, 12, 300), test, pids)
    # the nearest strangers are 60 degrees apart: 5 and 65
    assert found.attrs['least']==pytest.approx(.5, abs=1e-3)
    assert found[['a','b']].values.tolist()==[[1,1],[1,0],[1,2],[1,3]]
    assert found.cosine.iloc[0]==pytest.approx(np.cos(np.deg2rad(7)))
    assert close_people(at(195, 12), test, pids, least=.99).b.tolist()==[1]
    # distractors and junk are nobody's neighbours
    more = close_people(at(12), at(0, 5, 65, 70, 5), [*pids, 0])
    assert more.attrs['least']==pytest.approx(.5, abs=1e-3)


def test_lists_may_be_empty(small):
    a = small[0]
    assert len(near_copies([], []))==0 and list(near_copies([], []).columns)==['path','other',
                                                                            'pattern','mirrored']
    assert likeness(a[:0], a[:0]).shape==(0,3)


def test_a_generated_set_with_a_test_picture_is_refused(trained, home, tmp_path, capsys):
    "Step three does not learn from what it is scored on, whoever put it there"
    step('generate', home, tmp_path/'g', trained)
    made,test = sorted((tmp_path/'g'/'bounding_box_train').iterdir()),sorted((home.set/'query').iterdir())
    made[3].write_bytes(test[0].read_bytes())
    with pytest.raises(SystemExit) as e:
        cli.posereid_augment(home.set, generated=tmp_path/'g', out=tmp_path/'a', preset='smoke')
    said = capsys.readouterr().err
    assert e.value.code==2 and made[3].name in said and test[0].name in said
    assert not (tmp_path/'a').exists()
