"Maps against loops and hooks, lists against the evaluation, pages with odd names"
import re
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from posereid.core import COLORS, InputError, weights_hash
from posereid.data.manifest import pick
from posereid.metrics.retrieval import retrieval
from posereid.models.reid import reid_net
from posereid.pose.bank import pose_distance
from posereid.pose.table import PoseTable
from posereid.search import why as module
from posereid.evaluate.tables import data_uri
from posereid.search.why import (Why, compare_lists, compare_nets, explain, gradcam_maps,
    hit_marks, hit_poses, overlay, part_maps, plot_change, plot_why, why_page, write_why)
from posereid.synth.world import tiny_world


@pytest.fixture(scope='module')
def world(): return tiny_world()


class Net:
    "A net that is not trained, as `Trained` shows it"
    def __init__(self, seed=0, arch='small', size=(64,32)):
        from posereid.data.pictures import PictureStore
        torch.manual_seed(seed)
        self.net,self.size = reid_net(5, arch, **(dict(width=4) if 'small'==arch else {})).eval(),size
        for m in self.net.modules(): # statistics of their own, or all pictures look alike
            if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, .2)
        self.store = lambda convert=False: PictureStore(size, convert=convert)
    def features(self, paths, flip=False, convert=True, desc='', bs=256):
        from posereid.evaluate.protocol import extract_features
        return extract_features(self.net, self.store().get(list(paths)), flip=flip)
    def __repr__(self): return 'a <net>'


def random_maps(n=3, c=5, h=4, w=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n,c,h,w, generator=g) for _ in range(2))

# --- maps ---

def test_parts_against_loops():
    a,b = random_maps()
    on_a,on_b = part_maps(a, b)
    for n in range(3):
        f,g = a[n].mean((1,2)),b[n].mean((1,2))
        for i in range(4):
            for j in range(2):
                k = 8*f.norm()*g.norm()
                assert on_a[n,i,j]==pytest.approx(float(a[n,:,i,j]@g/k), abs=1e-6)
                assert on_b[n,i,j]==pytest.approx(float(b[n,:,i,j]@f/k), abs=1e-6)


def test_parts_sum_to_the_similarity_of_other_sizes_too():
    a,b = next(random_maps(h=6, w=3)),next(random_maps(h=2, w=5, seed=1))
    s = F.cosine_similarity(a.mean((2,3)), b.mean((2,3)))
    for o in part_maps(a, b): torch.testing.assert_close(o.sum((1,2)), s, atol=1e-5, rtol=0)


def test_a_map_of_zeros_has_no_parts():
    a,_ = random_maps()
    assert all((o==0).all() for o in part_maps(a*0, a))


@pytest.mark.parametrize('arch', ['small','small_dense','resnet18'])
def test_gradcam_is_what_the_gradient_gives(arch):
    "By hooks on the body, against the closed form, for the last map and the one before"
    net = Net(arch=arch).net
    x = torch.rand(2,3,64,32)*2-1
    with torch.no_grad(): m = net.body((x-net.mean)/net.std)
    g = m.mean((2,3)).flip(0)
    on,_ = part_maps(m, m.flip(0))
    own,_ = part_maps(m, m)
    s = F.cosine_similarity(m.mean((2,3)), g)[:,None,None]
    torch.testing.assert_close(gradcam_maps(net, x, g), F.relu(on-s*own), atol=1e-6, rtol=1e-4)
    leaf = m.clone().requires_grad_() # of a scalar product the gradient gives the parts themselves
    (leaf.mean((2,3))*F.normalize(g, dim=1)).sum().backward()
    plain = (m*leaf.grad.mean((2,3))[...,None,None]).sum(1)
    length = m.mean((2,3)).norm(dim=1)[:,None,None]
    torch.testing.assert_close(plain, on*length, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('level', [-2,-3])
def test_gradcam_of_an_earlier_map(level):
    net = Net().net
    x,g = torch.rand(2,3,64,32)*2-1,torch.randn(2,32)
    body = [*net.body]
    y = body[0]((x-net.mean)/net.std)
    cut = len(body)+level+1
    for o in body[1:cut]: y = o(y)
    y = y.detach().requires_grad_()
    z = y
    for o in body[cut:]: z = o(z)
    F.cosine_similarity(z.mean((2,3)), g).sum().backward()
    want = F.relu((y.grad.mean((2,3))[...,None,None]*y).sum(1))
    torch.testing.assert_close(gradcam_maps(net, x, g, level), want.detach(), atol=1e-7, rtol=1e-4)


def test_levels_that_are_not_there():
    net,x = Net().net,torch.zeros(1,3,64,32)
    for level in (0, 1, -5):
        with pytest.raises(InputError, match='from −4 to −1'):
            gradcam_maps(net, x, torch.ones(1,32), level)
    swin = reid_net(5, 'swin_t').eval() # its earlier maps have channels last
    x = torch.zeros(1,3,64,32)
    assert gradcam_maps(swin, x, torch.ones(1,768)).shape==(1,2,1)
    with pytest.raises(InputError, match='from −1 to −1'):
        gradcam_maps(swin, x, torch.ones(1,768), -2)


@pytest.mark.parametrize('how', ['cam','gradcam'])
def test_the_net_stays_as_it_is(world, how):
    t = Net()
    t.net.train(); t.net.body[1].eval()
    t.net.body[0].requires_grad_(False)
    modes,grads = [[getattr(m, k) for m in o] for o,k in ((t.net.modules(),'training'),
                                                         (t.net.parameters(),'requires_grad'))]
    before,q,g = weights_hash(t.net),pick(world.target, 'query'),pick(world.target, 'gallery')
    with torch.no_grad(): w = explain(t, q.path[0], g.path[:3], how)
    assert weights_hash(t.net)==before and all(p.grad is None for p in t.net.parameters())
    assert [m.training for m in t.net.modules()]==modes
    assert [p.requires_grad for p in t.net.parameters()]==grads
    assert not any(o.requires_grad for o in (w.similarity, w.on_query, w.on_hits))


def test_maps_of_pictures(world, monkeypatch):
    t = Net()
    q,g = pick(world.target, 'query'),pick(world.target, 'gallery')
    w = explain(t, q.path[2], g.path[:5])
    f = t.features([q.path[2], *g.path[:5]])
    torch.testing.assert_close(w.similarity, (f[:1]@f[1:].T)[0], atol=1e-5, rtol=0)
    for o in (w.on_query, w.on_hits):
        torch.testing.assert_close(o.sum((1,2)), w.similarity, atol=1e-5, rtol=0)
    x = w.pictures/127.5-1
    with torch.no_grad(): m = t.net.body((x-t.net.mean)/t.net.std)
    want = part_maps(m[:1].expand(5, -1, -1, -1), m[1:])
    cam = explain(t, q.path[2], g.path[:5], 'gradcam')
    grad = [gradcam_maps(t.net, *o) for o in ((x[:1].expand(5, -1, -1, -1), m[1:].mean((2,3))),
                                             (x[1:], m[:1].mean((2,3)).expand(5, -1)))]
    for o,wanted in ((w, want), (cam, grad)):
        torch.testing.assert_close(o.on_query, wanted[0], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(o.on_hits, wanted[1], atol=1e-5, rtol=1e-3)
    back = explain(t, g.path[3], [q.path[2]])
    torch.testing.assert_close(back.on_hits[0], w.on_query[3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(back.on_query[0], w.on_hits[3], atol=1e-5, rtol=1e-4)
    for how in ('cam','gradcam'):
        whole = explain(t, q.path[2], g.path[:5], how)
        some = [torch.cat(o) for o in zip(*(module._maps(t.net, whole.pictures[[0,*i]], how, -1)
                                            for i in ((1,2), (3,4,5))))]
        blocks = module._maps(t.net, whole.pictures, how, -1, bs=2)
        for a,b,c in zip(some, blocks, (whole.similarity, whole.on_query, whole.on_hits)):
            torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(b, c, atol=1e-5, rtol=1e-3)


def test_a_picture_and_itself(world):
    "All of the similarity is there, and no direction in which it would rise"
    p = pick(world.target, 'query').path[0]
    w = explain(Net(), p, [p])
    assert w.similarity[0]==pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(w.on_query, w.on_hits)
    assert explain(Net(), p, [p], 'gradcam').on_hits.max()<1e-5

# --- drawing ---

def rgb(s): return np.array([int(s[i:i+2], 16) for i in (1,3,5)])


def test_overlay_mixes_grey_and_colour():
    x = torch.randint(0, 256, (3,8,4), dtype=torch.uint8)
    grey = (x.float()*torch.tensor([.299,.587,.114])[:,None,None]).sum(0)[...,None].numpy()
    for v,c in ((1.,COLORS[1]), (-1.,COLORS[0])):
        for most,a in ((1,.75), (2,.375), (.5,.75), (None,.75)):
            want = (1-a)*grey+a*rgb(c)
            assert abs(overlay(x, torch.full((2,2), v), most).astype(float)-want).max()<=.51
    assert abs(overlay(x, torch.zeros(2,2)).astype(float)-grey).max()<=.51
    m = torch.tensor([[0.,0.],[0.,1.]])
    strong = abs(overlay(x*0+128, m).astype(int)-128).sum(2)
    assert strong[-1,-1]==strong.max() and strong[0,0]==0


def test_parts_are_drawn_against_an_even_share(world):
    p = pick(world.target, 'query').path
    w = explain(Net(), p[0], [p[1]])
    on_hit,on_query = (o[0] for o in module._drawn(w))
    m = w.on_query[0]-w.on_query[0].mean()
    assert (on_query==overlay(w.pictures[0], m)).all()
    m = w.on_hits[0]-w.on_hits[0].mean()
    assert (on_hit==overlay(w.pictures[1], m)).all()
    w.how = 'gradcam'
    assert (module._drawn(w)[0][0]==overlay(w.pictures[1], w.on_hits[0])).all()


def test_figures(world):
    q,g = pick(world.target, 'query'),pick(world.target, 'gallery')
    w = explain(Net(), q.path[0], g.path[:2], marks=['right','same camera'], poses=world.poses)
    axes = plot_why(w).axes
    assert len(axes)==9 and axes[1].get_xlabel().startswith('right\n')
    assert axes[2].get_xlabel().startswith('same camera\n')
    change = compare_nets(Net(0), Net(1), q.iloc[0], g, k=3, names=('A','B'))
    axes = plot_change(change).axes
    for i,(own,other,word) in enumerate((('before','after','to'), ('after','before','from'))):
        assert axes[4*i].get_ylabel()=='AB'[i]
        for r in change.table[change.table[own]<=3].itertuples():
            said = axes[4*i+int(getattr(r, own))].get_xlabel()
            assert said==('stays' if not r.moved else f'{word} {getattr(r, other):.0f}')

# --- poses and marks ---

def test_marks_are_those_of_the_evaluation():
    assert hit_marks(5, 2, [5,5,5,6,0,-1], [2,1,0,2,2,2])==['same camera','right','right','wrong',
                                                            'wrong','junk']
    assert hit_marks(5, 0, [5,5], [0,2])==['right']*2 # of unknown cameras nothing is left out


def test_poses_as_they_are(world):
    q,g = pick(world.target, 'query'),pick(world.target, 'gallery')
    d,said = hit_poses(world.poses, q.path[1], g.path[:6])
    want = pose_distance(world.poses.of(q.path[1:2]), world.poses.of(g.path[:6]))[0].numpy()
    fine = np.isfinite(want)
    assert d[fine]==pytest.approx(want[fine]) and np.isnan(d[~fine]).all()
    assert said==[f'{o:.2f}' if np.isfinite(o) else s for o,s in zip(want, said)]


def test_poses_in_frames_of_their_own(world):
    "Joints as shares of a picture that is not square are brought into its pixels first"
    q,g = pick(world.target, 'query').path[:2],pick(world.target, 'gallery').path[:3]
    paths = [*q, *g]
    joints = world.poses.of(paths)
    h,w = 64,32
    from posereid.imagefiles import picture_sizes
    h,w = picture_sizes(paths)[paths[0]]
    share = joints.clone()
    share[...,0] /= w; share[...,1] /= h
    table = PoseTable([p.rsplit('/', 1)[-1] for p in paths], share, frames=torch.ones(5,2))
    a,b = (hit_poses(o, q[0], [*g, 'unknown.jpg'])[0] for o in (table, world.poses))
    assert a==pytest.approx(b, abs=1e-4, nan_ok=True) and np.isnan(a[3])


def test_poses_that_are_missing(world):
    few = world.poses.of(pick(world.target, 'query').path[:1]).clone()
    few[:,7:] = 0
    table = PoseTable(['a.jpg','b.jpg'], torch.cat([world.poses.joints[:1], few]))
    assert hit_poses(table, 'a.jpg', ['b.jpg','c.jpg'])[1]==['too few joints in common','no pose']
    assert hit_poses(table, 'c.jpg', ['b.jpg'])[1]==['no pose of the query']

# --- lists ---

def world_of(seed, n=30):
    rng = np.random.default_rng(seed)
    g = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(n)], pid=rng.integers(-1, 5, n),
                          camid=rng.integers(0, 4, n)))
    return g,dict(path='q.jpg', pid=2, camid=int(rng.integers(0, 4))),rng.integers(0, 20, (2,n))/20


@pytest.mark.parametrize('seed', range(8))
def test_lists_against_loops(seed):
    g,q,d = world_of(seed)
    c = compare_lists(*d, q, g, k=4)
    ranks = []
    for o in d:
        order,n,rank = sorted(range(len(g)), key=lambda i: (o[i], i)),0,{}
        for i in order:
            gone = g.pid[i]==-1 or g.pid[i]==2 and q['camid'] and g.camid[i]==q['camid']
            n += not gone
            rank[i] = np.nan if gone else n
        ranks.append(([i for i in order][:[*map(rank.get, order)].index(4)+1], rank))
    want = [*dict.fromkeys([*ranks[1][0], *ranks[0][0]])]
    assert [*c.table.path]==[g.path[i] for i in want]
    for col,(_,rank),o in zip(('before','after'), ranks, d):
        assert [*c.table[col]]==pytest.approx([rank[i] for i in want], nan_ok=True)
        assert [*c.table['dist_'+col]]==[o[i] for i in want]
    assert [*c.table.moved]==pytest.approx([*(c.table.before-c.table.after)], nan_ok=True)
    for ap,o in zip(c.ap, d):
        r = retrieval(o[None], [2], g.pid, [q['camid']], g.camid)
        assert ap==pytest.approx(r.ap_trap[0])


def test_a_list_shorter_than_k():
    g,q,d = world_of(0, n=6)
    c = compare_lists(*d, q, g, k=50)
    assert sorted(c.table.path)==sorted(g.path) and 'pose' not in c.table
    assert 'first 50' in repr(c)


def test_lists_that_are_none():
    g,q,d = world_of(0)
    for bad,word in (((d[0][:-1], d[1]),'29'), ((d[0]*np.nan, d[1]),'NaN')):
        with pytest.raises(InputError, match=word): compare_lists(*bad, q, g)
    with pytest.raises(InputError, match='pid'): compare_lists(*d, q|dict(pid=0), g)
    with pytest.raises(InputError, match='a store'): plot_change(compare_lists(*d, q, g))


def test_two_nets(world):
    q,g = pick(world.target, 'query'),pick(world.target, 'gallery')
    a,b = Net(0),Net(1)
    c = compare_nets(a, b, q.iloc[3], g, k=3, poses=world.poses)
    for net,col in ((a,'before'), (b,'after')):
        f = net.features([q.path[3], *g.path])
        d = dict(zip(g.path, (f[0]-f[1:]).norm(dim=1).tolist()))
        assert [*c.table['dist_'+col]]==pytest.approx([d[p] for p in c.table.path], abs=1e-3)
    assert set(c.pictures)=={q.path[3], *c.table.path}
    assert [*c.table.pose]==hit_poses(world.poses, q.path[3], c.table.path)[1]

# --- pages ---

def no_tags(text): return not re.search(r'<script|<b>|<i>|onerror=', text)


def test_odd_names(tmp_path):
    x,m = torch.zeros(2,3,8,4, dtype=torch.uint8),torch.zeros(1,2,2)
    name = '<script>"\'&\udce9.jpg'
    w = Why(f'd/{name}', [f'e/{name}'], x, torch.ones(1), m, m, 'cam', 'a <i>net', ['<b>'], ['<b>'])
    g = pd.DataFrame(dict(path=[name,'b'], pid=[1,2], camid=[2,2]))
    c = compare_lists([.1,.2], [.2,.1], dict(path='<b>', pid=1, camid=1), g, names=('<b>','<i>'))
    c.pictures = {name:x[0], 'b':x[0], '<b>':x[0]}
    text = write_why(tmp_path/'why.html', [w, c], '<i>', ['<b>','<b>']).read_text(encoding='utf-8')
    assert no_tags(text) and '&lt;script&gt;&quot;&#x27;&amp;' in text
    assert [o.name for o in tmp_path.iterdir()]==['why.html']
    assert 'http' not in text and text.count('<img')==text.count(' alt="')==4+3
    assert text.count('<h1>')==1 and text.count('<h2>')==2
    for row in re.findall(r'<table>.*?</table>', text):
        cells = [len(re.findall(r'<t[dh]>', o)) for o in re.findall(r'<tr>.*?</tr>', row)]
        assert len(set(cells))==1, cells


@pytest.mark.parametrize('marks,poses', [([''],[]), (['right'],[]), ([''],['0.10']), (['right'],['0.1'])])
def test_columns_that_are_there(marks, poses):
    x,m = torch.zeros(2,3,8,4, dtype=torch.uint8),torch.zeros(1,2,2)
    text = Why('q', ['h'], x, torch.ones(1), m, m, 'cam', 'net', marks, poses)._repr_html_()
    assert ('what it is' in text)==any(marks) and ('pose distance' in text)==bool(poses)
    assert len({o.count('<td>')+o.count('<th>') for o in re.findall(r'<tr>.*?</tr>', text)})==1


def test_arrows_and_ranks():
    g = pd.DataFrame(dict(path=[*'abcd'], pid=[1,2,1,3], camid=[2,2,1,2]))
    c = compare_lists([.3,.1,.2,.9], [.1,.3,.2,.9], dict(path='q', pid=1, camid=1), g)
    text = c._repr_html_()
    for name,mark,cells in (('a','right','<td>2</td><td>1</td><td>▲ 1</td>'),
                            ('b','wrong','<td>1</td><td>2</td><td>▼ 1</td>'),
                            ('c','same camera','<td>–</td><td>–</td><td></td>'),
                            ('d','wrong','<td>3</td><td>3</td><td>=</td>')):
        assert f'<td>{name}</td><td>{mark}</td>{cells}' in text
    assert '<img' not in text


def test_pictures_in_a_page():
    import base64, io
    from PIL import Image
    x = np.zeros((3,20,10), np.uint8); x[0,:10] = 255
    for o in (x, x.transpose(1,2,0), torch.tensor(x)):
        im = Image.open(io.BytesIO(base64.b64decode(data_uri(o, 40).split(',')[1])))
        assert im.size==(20,40) and im.format=='JPEG'
        assert im.getpixel((9,5))[0]>200 and im.getpixel((9,35))[0]<50
    assert 'lang="en"' in why_page([])
