"Exported nets: the same numbers, whatever the format and the size of the pictures, or no file"
import json, sys, warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from posereid.core import InputError, save_weights, to_json, weights_hash
from posereid.data.manifest import pick
from posereid.data.transforms import to_float, to_uint8
from posereid.deploy import export as ex
from posereid.deploy.export import (FAR, RUNTIMES, Exported, Painter, Prepared, check_target,
                                    export_generator, export_int8, export_reid, export_run, parity,
                                    parity_line, parity_table, pil_resize, pillow_turns, refusal)
from posereid.models.reid import reid_net
from posereid.stages.reid import ReIDSettings
from posereid.stages.trained import Trained
from posereid.stages.transfer import TransferSettings, transfer_model
from posereid.synth.world import tiny_world

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')


def folder_of(root, arch='small', size=(64,32), crop=(56,28), width=8):
    "A run folder with random weights and BatchNorms that have seen something"
    root.mkdir(parents=True)
    torch.manual_seed(0)
    net = reid_net(10, arch, width)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, .1)
            m.running_var.uniform_(.5, 2)
            m.weight.data.uniform_(.5, 1.5)
            m.bias.data.normal_(0, .1)
    d = json.loads(to_json(ReIDSettings(arch=arch, width=width, size=size, crop=crop)))
    (root/'reid.json').write_text(to_json(d | dict(n_ids=10)), encoding='utf-8')
    save_weights(net, root/'reid.safetensors')
    return root


@pytest.fixture(scope='module')
def net(tmp_path_factory): return Trained(folder_of(tmp_path_factory.mktemp('run')/'reid'))


@pytest.fixture(scope='module')
def made(net, tmp_path_factory):
    "An ONNX file, and its report"
    file = tmp_path_factory.mktemp('onnx')/'reid.onnx'
    return file, export_reid(net, file)


@pytest.fixture(scope='module')
def df(): return tiny_world().target


def noise(h, w, n=1, seed=0):
    return torch.randint(0, 256, (n,3,h,w), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))

def by_pillow(x, size):
    im = Image.fromarray(x.permute(1,2,0).contiguous().numpy())
    return torch.from_numpy(np.array(im.resize(size[::-1], Image.Resampling.BILINEAR))).permute(2,0,1)

# --- resizing ---

def test_resizing_is_pillows_byte_for_byte():
    rng = np.random.default_rng(0)
    for i in range(150):
        (h,w),to = rng.integers(1, 180, 2).tolist(),tuple(rng.integers(1, 150, 2).tolist())
        x = noise(h, w, seed=i)
        assert torch.equal(pil_resize(x, to, pillow_turns())[0].byte(), by_pillow(x[0], to)), (h,w,to)


@pytest.mark.parametrize('h,w,to', [(300,130,(256,128)), (128,64,(256,128)), (1080,400,(256,128)),
                                    (97,35,(64,32)), (66,33,(64,32)), (68,34,(64,32))])
def test_resizing_at_the_sizes_of_people(h, w, to):
    x = noise(h, w)
    assert torch.equal(pil_resize(x, to, pillow_turns())[0].byte(), by_pillow(x[0], to))


def test_the_order_of_the_sides_matters():
    "Or else the choice between them would be tested by nothing"
    x = noise(300, 130)
    assert not torch.equal(pil_resize(x, (256,128), True), pil_resize(x, (256,128), False))
    x = noise(128, 64)
    assert torch.equal(pil_resize(x, (256,128), True), pil_resize(x, (256,128), False))

# --- the net ---

def test_file_and_report(made, net):
    file,r = made
    assert r['of']=='noise' and r['pictures']==48 and r['length']<=FAR and r['cosine_min']>.9999
    assert json.loads(Path(f'{file}.json').read_text(encoding='utf-8'))==json.loads(to_json(r))
    assert sorted(o.name for o in file.parent.iterdir())==['reid.onnx','reid.onnx.json']


def test_metadata_and_nothing_of_this_machine(made, net):
    file,_ = made
    m = onnx.load(str(file))
    said = {o.key: o.value for o in m.metadata_props}
    assert said['weights']==net.hash and json.loads(said['size'])==[64,32]
    assert json.loads(said['crop'])==[56,28] and said['posereid'] and 'uint8 RGB' in said['expects']
    assert [o.name for o in m.graph.input]==['pictures'] and [o.name for o in m.graph.output]==['features']
    dims = [o.dim_param or o.dim_value for o in m.graph.input[0].type.tensor_type.shape.dim]
    assert dims==['n',3,'h','w']
    onnx.checker.check_model(m)
    data = file.read_bytes()
    assert b'.py' not in data and str(Path.home()).encode() not in data and b'stack_trace' not in data


def test_features_of_any_number_and_size(made, net):
    there = Exported(made[0])
    for n,h,w in [(1,64,32), (1,128,64), (5,300,130), (2,31,90)]:
        x = noise(h, w, n)
        want = F.normalize(net.net.embed(torch.stack(
            [to_float(by_pillow(o, (64,32))[:,4:60,2:30]) for o in x])), dim=1)
        assert (there(x)-want).norm(dim=1).max()<FAR


def test_features_keep_their_order(made, net):
    "Pictures of several sizes go in groups"
    x = [noise(*o, seed=i)[0] for i,o in enumerate([(64,32),(70,40),(64,32),(80,41),(70,40)])]
    f = Exported(made[0]).features(x, bs=4)
    for o,v in zip(x, f): assert (Exported(made[0]).features([o])[0]-v).norm()<1e-6


@pytest.mark.parametrize('to', ['torchscript','torch.export'])
def test_other_formats(net, tmp_path, to):
    file = tmp_path/f'reid{RUNTIMES[to]}'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        r = export_reid(net, file, to)
    assert r['length']<=FAR and r['runtime']==to
    there = Exported(file)
    assert there.meta['weights']==net.hash and there.meta['size']==[64,32]
    assert len(there(noise(128, 64, 1)))==1 and len(there(noise(33, 70, 7)))==7


def test_paths_and_pictures_are_the_same(made, net, df):
    paths = list(pick(df, 'query').path)[:5]
    pics = [torch.from_numpy(np.array(Image.open(p))).permute(2,0,1) for p in paths]
    a,b = Exported(made[0]).features(paths),Exported(made[0]).features(pics)
    assert torch.equal(a, b) and (a-net.features(paths)).norm(dim=1).max()<FAR


def test_own_size_needs_no_resizing(net, tmp_path):
    file = tmp_path/'own.onnx'
    r = export_reid(net, file, input_size=(64,32))
    m = onnx.load(str(file))
    assert [o.dim_value for o in m.graph.input[0].type.tensor_type.shape.dim][2:]==[64,32]
    assert r['length']<=FAR                        # on pictures of other sizes, too: Pillow resizes
    assert not [o for o in m.graph.initializer if o.data_type==onnx.TensorProto.DOUBLE]
    x = noise(128, 64)
    assert (Exported(file).features(x)-Exported(file)(by_pillow(x[0], (64,32))[None])).norm()<1e-6


def test_fixed_size(net, tmp_path):
    file = tmp_path/'market.pt'
    r = export_reid(net, file, 'torchscript', list(noise(128, 64, 5)), input_size=(128,64))
    assert r['length']<=FAR and r['pictures']==5
    with pytest.raises(InputError, match='takes pictures of 128×64, but one is of 64×32'):
        Exported(file).features(noise(64, 32))


def test_mirrored_features(net, tmp_path, df):
    paths = list(pick(df, 'query').path)[:5]
    export_reid(net, tmp_path/'flip.pt', 'torchscript', paths, flip=True)
    f = Exported(tmp_path/'flip.pt').features(paths)
    assert (f-net.features(paths, flip=True)).norm(dim=1).max()<FAR
    assert (f-net.features(paths)).norm(dim=1).max()>1e-3


def test_the_net_is_left_alone(net, tmp_path):
    before,modes = weights_hash(net.net),[m.training for m in net.net.modules()]
    net.net.train()
    try: export_reid(net, tmp_path/'a.pt', 'torchscript')
    finally: trains,_ = net.net.training,net.net.eval()
    assert trains and weights_hash(net.net)==before
    assert [m.training for m in net.net.modules()]==modes

# --- what is refused ---

class Swapped(Prepared):
    def prepare(self, pictures): return super().prepare(pictures).flip(1)
class Unscaled(Prepared):
    def prepare(self, pictures): return super().prepare(pictures)*127.5+127.5
class ImageNet(Prepared):
    def prepare(self, pictures): return (super().prepare(pictures)/2+.5-.45)/.225
class Whole(Prepared):
    def cut(self, x): return x
class Corner(Prepared):
    def cut(self, x): return x[..., :self.crop[0], :self.crop[1]]
class Blunt(Prepared):
    def prepare(self, pictures):
        return self.cut(F.interpolate(pictures.float(), self.size, mode='bilinear'))/127.5-1
class Unrounded(Prepared):
    def prepare(self, pictures):
        return self.cut(F.interpolate(pictures.float(), self.size, mode='bilinear',
                                      antialias=True))/127.5-1
class Long(Prepared):
    def forward(self, pictures): return self.net.embed(self.prepare(pictures))
class Half(Prepared):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for p in self.net.parameters(): p.data = p.data.half().float()
class Drifted(Prepared):
    "Statistics of BatchNorm off by a thousandth"
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for m in self.net.modules():
            if isinstance(m, nn.BatchNorm2d): m.running_mean += .001
class Diverged(Prepared):
    def forward(self, pictures): return super().forward(pictures)*float('nan')


@pytest.mark.parametrize('wrong', [Swapped, Unscaled, ImageNet, Whole, Corner, Blunt, Unrounded, Long,
                                   Half, Drifted, Diverged], ids=lambda o: o.__name__)
def test_wrong_exports_leave_nothing(net, tmp_path, wrong):
    with pytest.raises(InputError, match='does not give the features of the net') as e:
        export_reid(net, tmp_path/'reid.pt', 'torchscript', prepare=wrong)
    assert not list(tmp_path.iterdir()) and 'nothing was written' in str(e.value)


def test_a_wrong_export_leaves_the_old_one(net, tmp_path):
    export_reid(net, tmp_path/'reid.pt', 'torchscript')
    old = {o.name: o.read_bytes() for o in tmp_path.iterdir()}
    with pytest.raises(InputError, match='reid.pt: The file does not'):
        export_reid(net, tmp_path/'reid.pt', 'torchscript', prepare=Swapped)
    assert {o.name: o.read_bytes() for o in tmp_path.iterdir()}==old


def test_refusal():
    fine = dict(length=1e-6, cosine_min=1., pictures=7)
    ranked = lambda a,b: refusal(fine | dict(rank1=[a,b], queries=100))
    assert refusal(fine)==ranked(.5, .5)==ranked(.5, .51)==ranked(.51, .5)==''  # one query: a tie
    assert 'rank-1 52.00% instead of 50.00%' in ranked(.5, .52) and ranked(.52, .5)
    assert refusal(fine | dict(length=1.1*FAR)) and refusal(fine | dict(length=float('nan')))


def test_rankings_are_compared(net, made, df):
    r = parity(net, made[0], df=df)
    q,g = pick(df, 'query'),pick(df, 'gallery')
    assert r['pictures']==len(q)+len(g) and r['queries']==len(q) and r['of']=='the test set'
    from posereid.evaluate.protocol import evaluate_reid
    want = evaluate_reid(net.net, df, net.store(), device='cpu')
    for k,v in dict(rank1=want.rank(1), map=want.map_mean).items():
        assert r[k][0]==pytest.approx(v, abs=1e-9) and r[k][1]==pytest.approx(v, abs=2e-3)


def test_fewer_pictures_are_of_whole_people(net, made, df):
    r = parity(net, made[0], df=df, n=20)
    q,g = ex._drawn(df, 20, 0)
    assert r['pictures']==len(q)+len(g)<=20 and set(q.pid)==set(g.pid)
    whole = pick(df, ['query','gallery'])
    assert len(q)+len(g)==whole.pid.isin(set(q.pid)).sum()
    assert set(ex._drawn(df, 20, 1)[0].pid)!=set(q.pid)


@pytest.mark.parametrize('kw,says', [
    (dict(to='onx'), "did you mean 'onnx'"), (dict(to='torchscript'), 'call it reid.pt'),
    (dict(opset=7), 'from 18 to 23, but is 7'), (dict(opset=99), 'but is 99'),
    (dict(input_size=(64,)), 'a height and a width'), (dict(input_size=(0,32)), 'a height and a width'),
    (dict(input_size=(64.,32)), 'a height and a width'),
    (dict(pictures=[]), 'There are no pictures'), (dict(pictures=['gone.jpg']), 'gone.jpg'),
    (dict(pictures=torch.zeros(2,3,8,8)), 'must be paths, or uint8 RGB'),
    (dict(pictures=torch.zeros(2,1,8,8, dtype=torch.uint8)), 'must be paths, or uint8 RGB')])
def test_bad_input(net, tmp_path, kw, says, monkeypatch):
    monkeypatch.setattr(ex, 'write_module', lambda module, example, file, *a: ex._write_script(
        module, example, file, None, ex._told(net, 'torchscript', None, False), None, ''))
    monkeypatch.setattr(ex, '_open_onnx', ex._open_script)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises((InputError, FileNotFoundError), match=says):
            export_reid(net, tmp_path/'reid.onnx', **kw)
    assert not list(tmp_path.iterdir())


def test_no_test_set(net, made, df):
    with pytest.raises(InputError, match='no queries and gallery'): parity(net, made[0], df=pick(df, 'train'))


@pytest.mark.parametrize('to', RUNTIMES)
def test_a_net_that_cannot_be_written(net, tmp_path, to):
    class Odd(Prepared):
        def forward(self, pictures):
            x = self.prepare(pictures)
            if torch._C._get_tracing_state() or torch.compiler.is_exporting(): raise ValueError('no way')
            return x
    with pytest.raises(InputError, match=f'cannot be written as {to}.*try another'):
        export_reid(net, tmp_path/f'a{RUNTIMES[to]}', to, prepare=Odd)
    assert not list(tmp_path.iterdir())


def test_opset_of_other_formats():
    with pytest.raises(InputError, match='`opset` is a version of ONNX'):
        check_target('a.pt', 'torchscript', 18)
    assert check_target('a.onnx', 'onnx', 18)==Path('a.onnx')


def test_a_crop_that_does_not_fit(net):
    with pytest.raises(InputError, match='crop 72×28 does not fit into pictures of 64×32'):
        Prepared(net.net, (64,32), (72,28))


@pytest.mark.parametrize('name', ['onnx','onnxscript','onnxruntime'])
def test_missing_packages(net, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"needs the package {name}.*pip install 'posereid\[deploy\]'"):
        export_reid(net, tmp_path/'reid.onnx')
    export_reid(net, tmp_path/'reid.pt', 'torchscript')  # which needs none


def test_no_file_and_no_net(made, net, tmp_path):
    for o in ('gone.onnx','gone.txt'):
        with pytest.raises(InputError, match='expected an exported net'): Exported(tmp_path/o)
    for o in RUNTIMES.values():
        (tmp_path/f'bad{o}').write_bytes(b'no net')
        with pytest.raises(InputError, match='is no whole file'): Exported(tmp_path/f'bad{o}')
    m = onnx.load(str(made[0]))
    del m.metadata_props[:]
    onnx.save(m, str(tmp_path/'theirs.onnx'))
    with pytest.raises(InputError, match='does not say of which net'): Exported(tmp_path/'theirs.onnx')
    with pytest.raises(InputError, match='expected a trained ReID net'):
        export_run(tmp_path, tmp_path/'a.pt', 'torchscript')
    with pytest.raises(InputError, match='expected a trained generator'):
        export_run(tmp_path, tmp_path/'a.pt', 'torchscript', generator=True)


def test_a_file_of_another_training(made, tmp_path):
    other = folder_of(tmp_path/'reid')
    t = Trained(other)
    t.hash = '0'*12
    with pytest.raises(InputError, match='not of 000000000000'): parity(t, made[0])

# --- eight bits ---

def test_int8(net, made, df, tmp_path):
    file = tmp_path/'reid.onnx'
    file.write_bytes(made[0].read_bytes())
    r = export_int8(net, file, list(pick(df, 'train').path)[:16], df=df)
    assert sorted(o.name for o in tmp_path.iterdir())==['reid.int8.onnx','reid.int8.onnx.json','reid.onnx']
    assert .95<r['cosine_min']<1-1e-9 and r['length']>FAR and len(r['rank1'])==2
    assert r['bytes']<.5*made[1]['bytes'] and r['runtime']=='onnx, int8'
    ops = {o.op_type for o in onnx.load(str(tmp_path/'reid.int8.onnx')).graph.node}
    assert 'QuantizeLinear' in ops
    with pytest.raises(InputError, match='a float32 file of ONNX'):
        export_int8(net, tmp_path/'reid.int8.onnx', list(pick(df, 'train').path))
    with pytest.raises(InputError, match='16 training pictures or more.*there are 3'):
        export_int8(net, file, list(pick(df, 'train').path)[:3])

# --- the generator ---

def generator(**kw):
    torch.manual_seed(0)
    G = transfer_model(TransferSettings(width=4, beta=0., **kw)).G.eval()
    for p in G.parameters(): p.data *= 3
    for m in G.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.5, 2)
    return G


VARIANTS = [dict(), dict(shared=True), dict(shared=True, limbs=True), dict(limbs=True, warp=True),
            dict(blend=True, head=4, norm='instance', up='transposed', skips='appearance')]

@pytest.mark.parametrize('kw', VARIANTS, ids=str)
def test_generators(kw, tmp_path):
    r = export_generator(generator(**kw), tmp_path/'G.pt', 'torchscript', n=9)
    assert r['max_bytes']<=1 and r['share']<=ex.MOST and r['pictures']==9
    assert sorted(o.name for o in tmp_path.iterdir())==['G.pt','G.pt.json']


@pytest.mark.slow
@pytest.mark.parametrize('to', ['onnx','torch.export'])
@pytest.mark.parametrize('kw', VARIANTS, ids=str)
def test_generators_in_every_format(kw, to, tmp_path):
    file = tmp_path/f'G{RUNTIMES[to]}'
    r = export_generator(generator(**kw), file, to, n=9)
    assert r['max_bytes']<=1 and r['share']<=ex.MOST
    assert len(Exported(file)(*[o[:1] for o in ex._sample(generator(**kw), None, None, 4)]))==1


def test_generator_in_onnx(tmp_path):
    "With limbs, for which ONNX lacks an operation"
    w,G = tiny_world(),generator(limbs=True)
    r = export_generator(G, tmp_path/'G.onnx', df=w.target, poses=w.poses, n=7)
    there = Exported(tmp_path/'G.onnx')
    assert r['pictures']==7 and there.meta['kind']=='generator' and there.meta['weights']==weights_hash(G)
    names = [o.name for o in onnx.load(str(tmp_path/'G.onnx')).graph.input]
    assert names==['pictures','skeletons','moved']
    x,s,moved = ex._sample(G, w.target, w.poses, 5)
    with torch.no_grad(): want = to_uint8(G(to_float(x), to_float(s), moved))
    assert (there(x, s, moved).int()-want.int()).abs().max()<=1 and want.float().std()>5
    with pytest.raises(InputError, match='has no features'): there.features(x)


def test_a_wrong_generator_leaves_nothing(tmp_path):
    class Upside(Painter):
        def forward(self, pictures, skeletons, moved=None): return super().forward(pictures, skeletons).flip(1)
    class Half(Painter):
        def __init__(self, G):
            super().__init__(G)
            for p in self.G.parameters(): p.data = p.data.half().float()
    class Exchanged(Painter):
        def forward(self, pictures, skeletons, moved=None): return super().forward(skeletons, pictures)
    class Darker(Painter):
        def forward(self, pictures, skeletons, moved=None):
            return (super().forward(pictures, skeletons).int()-1).clamp_min(0).byte()
    for o in (Upside, Half, Exchanged, Darker):
        with pytest.raises(InputError, match='does not paint the pictures'):
            export_generator(generator(), tmp_path/'G.pt', 'torchscript', n=9, paint=o)
        assert not list(tmp_path.iterdir())


def test_generators_need_joints(tmp_path):
    w = tiny_world()
    with pytest.raises(InputError, match='pass `poses`'):
        export_generator(generator(), tmp_path/'G.pt', 'torchscript', w.target)
    with pytest.raises(InputError, match='two at least, but there are 0'):
        export_generator(generator(), tmp_path/'G.pt', 'torchscript', w.target, w.poses.take([]))

# --- a run folder ---

def test_run_folder(net, df, tmp_path):
    res = export_run(net.folder, tmp_path/'a.pt', 'torchscript', df, n=30)
    assert list(res)==['a.pt'] and 'rank1' in res['a.pt'] and res['a.pt']['pictures']<=30
    res = export_run(net.folder, tmp_path/'b.pt', 'torchscript', pick(df, 'train'), n=12)
    assert res['b.pt']['of']=='given' and res['b.pt']['pictures']==12
    assert export_run(net.folder, tmp_path/'c.pt', 'torchscript')['c.pt']['of']=='noise'
    for kw in (dict(to='torchscript', df=df), dict(df=None), dict(df=df, generator=True)):
        with pytest.raises(InputError, match='leave out --int8'):
            export_run(net.folder, tmp_path/f"d{RUNTIMES[kw.get('to', 'onnx')]}", int8=True, **kw)


@pytest.mark.slow
def test_run_folder_in_eight_bits(net, df, tmp_path):
    res = export_run(net.folder, tmp_path/'a.onnx', df=df, int8=True)
    assert list(res)==['a.onnx','a.int8.onnx']
    assert res['a.onnx']['rank1'][0]==res['a.int8.onnx']['rank1'][0]
    lines = [parity_line(*o) for o in res.items()]
    assert all('rank-1' in o and 'mAP' in o for o in lines) and lines[0].startswith('a.onnx: ')
    assert parity_table(res)['rank-1, net'].nunique()==1


def test_lines():
    r = dict(bytes=2_500_000, pictures=1234, of='noise', cosine_min=.99, length=.0312)
    assert parity_line('a.onnx', r)==('a.onnx: 2.5 MB, 1,234 pictures of noise: cosine 0.990000 at '
                                      'least, longest difference 3e-02')
    r = dict(bytes=2_500_000, pictures=9, share=.00012, max_bytes=1)
    assert parity_line('G.pt', r)=='G.pt: 2.5 MB, 9 pictures: 0.012% of the bytes differ, by at most 1'

# --- the nets of the paper ---

@pytest.mark.slow
@pytest.mark.parametrize('arch,crop', [('small_dense',()), ('mobilenet_v2',(224,112)),
                                       ('resnet50',(224,112)), ('densenet169',())])
def test_nets_at_the_size_of_the_paper(arch, crop, tmp_path):
    t = Trained(folder_of(tmp_path/'run', arch, (256,128), crop))
    x = [noise(*o, seed=i)[0] for i,o in enumerate([(128,64)]*3+[(300,130),(256,128),(90,60)])]
    for to,end in RUNTIMES.items():
        r = export_reid(t, tmp_path/f'reid{end}', to, x)
        assert r['length']<=FAR/2 and r['cosine_min']>.999999
    with pytest.raises(InputError, match='does not give'):
        export_reid(t, tmp_path/'half.pt', 'torchscript', x, prepare=Half)


@pytest.mark.slow
@pytest.mark.parametrize('opset', [19,20,21,22,23])
def test_opsets(net, tmp_path, opset):
    export_reid(net, tmp_path/'a.onnx', opset=opset)
    assert onnx.load(str(tmp_path/'a.onnx')).opset_import[0].version==opset
