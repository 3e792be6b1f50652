"Image scores beyond L1: masks, joints, identity, and the optional networks"
import sys, types
import numpy as np, pytest, torch, torch.nn.functional as F
from posereid.core import InputError
from posereid.metrics.images import (DIALECTS, INCEPTION, LPIPS_NETS, fid, identity_utility,
                                     inception_score, lpips, mask_ssim, pckh)

def rand(*shape, seed=0): return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pics(): return rand(3,3,24,20)*2-1, rand(3,3,24,20, seed=1)*2-1


def slow_ssim(a, b, w):
    "SSIM of one channel in [0,1] at every whole window, by its definition"
    h,k = a.shape; res = np.zeros((h-10,k-10))
    for y in range(h-10):
        for x in range(k-10):
            p,q = a[y:y+11,x:x+11],b[y:y+11,x:x+11]
            mp,mq = (w*p).sum(),(w*q).sum()
            vp,vq,c = (w*(p-mp)**2).sum(),(w*(q-mq)**2).sum(),(w*(p-mp)*(q-mq)).sum()
            res[y,x] = (2*mp*mq+1e-4)*(2*c+9e-4)/((mp**2+mq**2+1e-4)*(vp+vq+9e-4))
    return res


def test_mask_ssim_is_its_definition(pics):
    a,b = pics
    m = (rand(3,1,24,20, seed=2)>.4).float()
    g = np.exp(-np.arange(-5,6)**2/4.5); w = np.outer(g,g)/g.sum()**2
    A,B,M = (o.double().numpy() for o in ((a+1)/2, (b+1)/2, m))
    counts = [np.mean([slow_ssim(A[i,c]*M[i,0], B[i,c]*M[i,0], w) for c in range(3)])
              for i in range(3)]
    np.testing.assert_allclose(mask_ssim(a, b, m), counts, atol=1e-4)
    v = M[:,0,5:-5,5:-5]
    out = [(np.mean([slow_ssim(A[i,c], B[i,c], w) for c in range(3)], 0)*v[i]).sum()/v[i].sum()
           for i in range(3)]
    np.testing.assert_allclose(mask_ssim(a, b, m, 'left_out'), out, atol=1e-4)


def test_an_empty_mask_counts_as_background_or_is_an_error(pics):
    a,b = pics
    assert torch.allclose(mask_ssim(a, b, torch.zeros(3,1,24,20)), torch.ones(3))
    with pytest.raises(InputError, match='nothing in a picture'):
        mask_ssim(a, b, torch.zeros(3,1,24,20), 'left_out')


@pytest.mark.parametrize('mask', [torch.ones(3,24,20), torch.ones(2,1,24,20),
                                  255*torch.ones(3,1,24,20), torch.full((3,1,24,20), torch.nan)])
def test_masks_that_are_none(pics, mask):
    with pytest.raises(InputError, match='mask must be'): mask_ssim(*pics, mask)


def test_background_is_one_of_two(pics):
    with pytest.raises(InputError, match='left_out'):
        mask_ssim(*pics, torch.ones(3,1,24,20), 'black')


def test_masks_of_bytes_and_bools(pics):
    m = rand(3,1,24,20, seed=3)>.5
    assert torch.equal(mask_ssim(*pics, m), mask_ssim(*pics, m.float()))

# --- joints ---

def plain_pckh(found, known, alpha):
    "One joint at a time"
    right = total = left_out = 0
    for f,k in zip(found.tolist(), known.tolist()):
        head = [k[j] for j in (0,1,14,15,16,17) if k[j][2]>0]
        if len(head)<2: left_out += 1; continue
        w,h = (max(o[i] for o in head)-min(o[i] for o in head) for i in (0,1))
        for a,b in zip(f, k):
            if b[2]>0:
                total += 1
                right += a[2]>0 and abs(a[0]-b[0])<alpha*w and abs(a[1]-b[1])<alpha*h
    return right, total, left_out


def test_pckh_is_the_count_joint_by_joint():
    known = torch.cat([30*rand(40,18,2), (rand(40,18,1, seed=1)>.6).float()], 2)
    found = known + torch.cat([8*(rand(40,18,2, seed=2)-.5), torch.zeros(40,18,1)], 2)
    found[...,2] *= rand(40,18, seed=3)>.2
    known[known[...,2]==0] = torch.tensor([-1.,-1.,0.])
    for alpha in (.5,.1):
        right,total,left_out = plain_pckh(found, known, alpha)
        s = pckh(found, known, alpha)
        assert ((s['joints'],s['left_out'],s['n']) == (total,left_out,40-left_out) and left_out
                and 0<right<total)
        assert s['pckh']==right/total and f'{alpha:g}' in s['dialect']


def test_pckh_at_the_bound_and_without_a_head():
    known = torch.zeros(1,18,3); known[0,[0,1,4]] = torch.tensor([[4.,0,1],[0,8,1],[9,9,1]])
    off = known.clone(); off[0,4,0] += 2
    assert pckh(off, known)['pckh']==2/3          # half a head off is not within half a head
    off[0,4,0] -= .01
    assert pckh(off, known)['pckh']==1
    known[0,0] = 0
    s = pckh(off, known)
    assert np.isnan(s['pckh']) and (s['n'],s['left_out'])==(0,1)


def test_pckh_of_wrong_shapes():
    k = torch.ones(2,18,3)
    with pytest.raises(InputError, match='one for each picture'): pckh(k, k[:1])
    with pytest.raises(InputError, match=r'\(n, 18, 3\)'): pckh(k[0], k[0])
    with pytest.raises(InputError, match='finite'): pckh(k*torch.nan, k*torch.nan)
    with pytest.raises(InputError, match='finite'):
        pckh(torch.cat([k[...,:2]*torch.nan, k[...,2:]], 2), k)

# --- identity ---

@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(30,5)), rng.integers(0, 6, 30), rng.normal(size=(50,5)),
            np.r_[np.arange(6), rng.integers(0, 6, 43), 9])


def test_identity_utility_is_its_definition(sets):
    f,fp,r,rp = sets
    use = identity_utility(*sets)
    u,v = (o/np.linalg.norm(o, axis=1, keepdims=True) for o in (f,r))
    d,dr = 1-u@v.T, 1-v@v.T
    np.fill_diagonal(dr, np.nan)
    # the last has no other
    pairs = [np.delete(dr[i], i)[np.delete(rp, i)==rp[i]].mean() for i in range(49)]
    assert use.nearest==pytest.approx(np.mean(rp[d.argmin(1)]==fp))
    assert use.nearest_real==pytest.approx(np.mean([rp[np.nanargmin(dr[i])]==rp[i]
                                                    for i in range(49)]))
    assert use.distance==pytest.approx(np.mean([d[i,rp==fp[i]].mean() for i in range(30)]),
                                       abs=1e-5)
    assert use.others==pytest.approx(np.mean([d[i,rp!=fp[i]].mean() for i in range(30)]), abs=1e-5)
    assert use.distance_real==pytest.approx(np.mean(pairs), abs=1e-5)
    assert np.isnan(use.top1) and np.isnan(use.seen_by_g) and (use.n,use.n_real)==(30,50)


def test_the_real_set_against_itself_is_perfect(sets):
    *_,r,rp = sets
    use = identity_utility(r, rp, r, rp)
    assert use.nearest==1 and use.distance<use.distance_real


def test_order_scale_and_kind_of_array_change_nothing(sets):
    f,fp,r,rp = sets
    o = np.random.default_rng(1).permutation(50)
    a,b = identity_utility(*sets), identity_utility(torch.tensor(3*f), torch.tensor(fp), 7*r[o],
                                                    rp[o].astype(np.int32))
    for k in ('nearest','nearest_real','distance','distance_real','others'):
        assert getattr(a,k)==pytest.approx(getattr(b,k), abs=1e-5)


def test_top1_of_both_nets(sets):
    s = F.one_hot(torch.as_tensor(sets[1]), 6)
    use = identity_utility(*sets, scores=s.roll(1, 1), guider_scores=s.float(),
                           labels=list(sets[1]))
    assert (use.top1==0 and use.seen_by_g==1 and '100.0 %' in use._repr_markdown_()
            and 'seen by G' in use._repr_markdown_())


@pytest.mark.parametrize('change,match', [
    (dict(fake=np.zeros((0,5)), fake_pids=np.zeros(0,int)), 'at least one'),
    (dict(fake=np.full((30,5), np.nan)), 'finite'), (dict(fake=np.ones((30,4))), 'of one net'),
    (dict(fake_pids=np.full(30, 77)), 'no real picture'),
    (dict(real_pids=np.full(50, -1)), 'nobody'), (dict(real_pids=['1']*50), 'integer'),
    (dict(scores=np.ones((30,6))), 'labels'),
    (dict(scores=np.ones((29,6)), labels=np.ones(30,int)), r'\(30, K\)')])
def test_identity_of_bad_input(sets, change, match):
    args = dict(zip(('fake','fake_pids','real','real_pids'), sets)) | change
    with pytest.raises(InputError, match=match): identity_utility(**args)


def test_one_person_has_no_others():
    use = identity_utility(np.ones((2,3)), [1,1], np.eye(3), [1,1,1])
    assert np.isnan(use.others) and use.nearest==1 and use.distance_real==pytest.approx(1)

# --- networks ---

CALLS = dict(IS=lambda x: inception_score(x, splits=2), FID=lambda x: fid(x, x),
             LPIPS=lambda x: lpips(x, x))
MODULES = dict(IS='inception', FID='fid', LPIPS='lpip')
NAMES = dict(IS='InceptionScore', FID='FrechetInceptionDistance',
             LPIPS='LearnedPerceptualImagePatchSimilarity')
FILES = dict(IS=INCEPTION, FID=INCEPTION, LPIPS=LPIPS_NETS['alex'])

def fake_package(monkeypatch, what, cls):
    "A torchmetrics that has one metric"
    for o in ('torchmetrics','torchmetrics.image'):
        monkeypatch.setitem(sys.modules, o, types.ModuleType(o))
    mod = types.ModuleType(MODULES[what]); setattr(mod, NAMES[what], cls)
    monkeypatch.setitem(sys.modules, f'torchmetrics.image.{MODULES[what]}', mod)


@pytest.mark.parametrize('what', CALLS)
def test_without_the_package(monkeypatch, what):
    monkeypatch.setitem(sys.modules, f'torchmetrics.image.{MODULES[what]}', None)
    with pytest.raises(InputError, match=r'pip install "torchmetrics\[image\]"'):
        CALLS[what](rand(4,3,32,32))


@pytest.mark.parametrize('what', CALLS)
def test_without_the_weights(monkeypatch, what):
    def fails(**kwargs): raise OSError('no network')
    fake_package(monkeypatch, what, fails)
    with pytest.raises(InputError, match=FILES[what]) as e: CALLS[what](rand(4,3,32,32))
    assert 'checkpoints' in str(e.value)


def test_what_the_networks_are_given(monkeypatch):
    seen = []
    class Metric:
        def __init__(self, **kwargs): seen.append(kwargs)
        def eval(self): return self
        def to(self, device): return self
        def update(self, *args, **kwargs): seen.append((args, kwargs))
        def compute(self): return torch.tensor(3.)
    fake_package(monkeypatch, 'FID', Metric)
    x = rand(5,3,32,32)*2-1
    res = fid(x, (127.5*(x[:3]+1)).round().byte(), bs=2)
    assert (res['value'],res['n'],res['n_real'],res['dialect'])==(3,5,3,DIALECTS['fid'])
    assert [(len(a[0]),k['real']) for a,k in seen[1:]]==[(2,False),(2,False),(1,False),
        (2,True),(1,True)]
    assert torch.equal(seen[1][0][0], seen[4][0][0]) and seen[1][0][0].dtype==torch.uint8


@pytest.mark.parametrize('call,match', [
    (lambda: inception_score(rand(4,3,8,8)), 'at least 10'),
    (lambda: fid(rand(1,3,8,8), rand(4,3,8,8)), 'at least 2'),
    (lambda: fid(rand(4,1,8,8), rand(4,3,8,8)), '3 channels'),
    (lambda: lpips(rand(2,3,64,16), rand(2,3,64,16)), '32×32'),
    (lambda: lpips(rand(2,3,64,32), rand(2,3,64,32), 'alexnet'), 'alex, vgg')])
def test_bad_pictures_are_found_before_the_package(call, match):
    with pytest.raises(InputError, match=match): call()


def test_every_score_has_a_dialect():
    assert {'inception','fid','lpips','ssim','mask_ssim','psnr','pckh','l1',
            'identity'}==set(DIALECTS)
