"Re-ranking against the definition in sets, with ties, odd settings and bad input"
import numpy as np, pytest, torch
from posereid.core import InputError
from posereid.metrics.rerank import divide_and_fuse, rerank, rerank_features


def dist(a, b): return np.sqrt(np.maximum(((a[:,None]-b)**2).sum(2), 0))
def three(q, g): return dist(q, g), dist(q, q), dist(g, g)


def by_sets(qg, qq, gg, k1, k2, lam, kind):
    "The five steps on full matrices, in float32 as far as order is concerned, sorted by `kind`"
    D = np.block([[qq,qg],[qg.T,gg]])**2
    D = D.astype(np.float32)
    D = (D/D.max(0)).T.copy()
    order, n, nq = np.argsort(D, kind=kind), len(D), len(qg)
    rows = order.tolist()
    near = lambda i, k: [j for j in rows[i][:k] if i in rows[j][:k]]
    V = np.zeros((n,n))
    for i in range(n):
        R = set(near(i, k1+1))
        star = set(R)
        for c in R:
            half = set(near(c, int(np.around(k1/2))+1))
            if len(half & R) > 2/3*len(half): star |= half
        star = sorted(star)
        V[i,star] = np.exp(-D[i,star].astype(float))/np.exp(-D[i,star].astype(float)).sum()
    if k2!=1: V = np.stack([V[order[i,:k2]].mean(0) for i in range(n)])
    s = np.stack([np.minimum(V[i], V[nq:]).sum(1) for i in range(nq)])
    return (1-lam)*(1-s/(2-s)) + lam*D[:nq,nq:]


def points(kind, n=72, seed=0):
    rng = np.random.default_rng(seed)
    if kind=='random': return rng.normal(size=(n,6))
    if kind=='clusters': return rng.normal(size=(9,6))[np.arange(n)%9] + .4*rng.normal(size=(n,6))
    if kind=='twins': return np.repeat(rng.normal(size=(n//2,6)), 2, axis=0)
    return rng.integers(0, 3, (n,4)).astype(float)  # a grid, full of ties


@pytest.mark.parametrize('kind', ['random','clusters','twins','grid'])
@pytest.mark.parametrize('k1,k2,lam', [(20,6,.3), (19,6,.3), (20,1,.3), (5,9,0.), (1,1,1.)])
def test_equals_the_definition(kind, k1, k2, lam):
    x = points(kind)
    d = three(x[:30], x[30:])
    for ties,sort in (('argsort',None), ('stable','stable')):
        ref = by_sets(*d, k1, k2, lam, sort)
        assert abs(rerank(*d, k1, k2, lam, ties, chunk=17).numpy()-ref).max()<1e-6


@pytest.mark.parametrize('n,k1,k2', [(6,20,6), (2,20,6), (12,11,30)])
def test_fewer_pictures_than_neighbours(n, k1, k2):
    x = points('random', n)
    d = three(x[:n//2], x[n//2:])
    assert abs(rerank(*d, k1, k2).numpy()-by_sets(*d, k1, k2, .3, None)).max()<1e-6


def test_features_and_distances_agree():
    x = points('clusters').astype(np.float32)
    a, d = (rerank_features(x[:30], torch.as_tensor(x[30:]), k1=8, chunk=13),
            three(x[:30].astype(float), x[30:].astype(float)))
    assert a.dtype==torch.float32 and abs(a.numpy()-rerank(*d, k1=8).numpy()).max()<1e-5


def test_kinds_of_input_and_no_trace():
    x = points('random')
    d = [o.astype(np.float32) for o in three(x[:30], x[30:])]
    kept, ref = [o.copy() for o in d], rerank(*d)
    for change in (torch.as_tensor, np.asfortranarray, lambda o: np.repeat(o, 2, 0)[::2],
                   lambda o: o[::-1,::-1].copy()[::-1,::-1]):
        assert torch.equal(rerank(*map(change, d)), ref)
    assert all((a==b).all() for a,b in zip(d, kept))
    assert abs(rerank(*(o.astype(np.float16) for o in d))-ref).max()<.1


def test_an_asymmetric_matrix_is_read_by_columns():
    "As the reference has it, which transposes after dividing"
    x = points('random')
    d = list(three(x[:30], x[30:]))
    d[2] = d[2]*(1+.05*np.random.default_rng(1).random(d[2].shape))
    assert abs(rerank(*d).numpy()-by_sets(*d, 20, 6, .3, None)).max()<1e-6


@pytest.mark.parametrize('change,says', [
    (dict(k1=0), 'k1'), (dict(k2=2.5), 'k2'), (dict(lam=2), 'lam'), (dict(ties='any'), 'stable'),
    (dict(qq=np.zeros((3,3))), r'\(5, 5\)'), (dict(qg=np.full((5,8), np.nan)), 'NaN'),
    (dict(gg=np.zeros(8)), 'matrix'), (dict(qg=np.zeros((0,8))), 'matrix')])
def test_bad_input(change, says):
    args = dict(qg=np.ones((5,8)), qq=np.ones((5,5)), gg=np.ones((8,8))) | change
    with pytest.raises(InputError, match=says): rerank(**args)


def test_bad_features():
    with pytest.raises(InputError, match='one length'):
        rerank_features(np.ones((2,3)), np.ones((2,4)))


# --- distances of zero ---

def old_D(x, n_query):
    "Rows of D as they were computed before rows of zeros had a rule"
    d = torch.as_tensor(dist(x, x)).square().float()
    return (d/d.amax(1, keepdim=True))[:n_query,n_query:]


@pytest.mark.parametrize('ties', ['argsort','stable'])
@pytest.mark.parametrize('n,k1,k2', [(40,20,6), (40,3,2), (40,1,1), (6,20,6), (700,20,6)])
def test_all_alike_is_finite(n, k1, k2, ties):
    "All identical: D is 0, and the new distance is (1 − lam) times Jaccard's, from features and from distances"
    x = np.ones((n,3))
    a = rerank_features(x[:n//2], x[n//2:], k1, k2, ties=ties)
    b = rerank(*three(x[:n//2], x[n//2:]), k1, k2, ties=ties)
    assert a.isfinite().all() and torch.equal(a, b) and a.min()>=0 and a.max()<=.7+1e-6
    whole = rerank_features(x[:n//2], x[n//2:], k1, k2, lam=1., ties=ties)
    assert (whole==0).all()  # nothing but the old distance, which stays 0


def test_all_alike_by_hand():
    "Four pictures, k1=1, ties by index: everybody's neighbours are the first two, who choose each other"
    x = np.ones((4,2))
    got = rerank_features(x[:1], x[1:], k1=1, k2=1, lam=.3, ties='stable')
    assert got[0].tolist()==pytest.approx([0, .7, .7], abs=1e-6)


def test_a_cluster_of_twins_among_others_is_as_ever():
    rng = np.random.default_rng(0)
    x = np.r_[np.tile(rng.normal(size=(1,6)), (30,1)), rng.normal(size=(42,6))]
    x = x[rng.permutation(len(x))]
    d = three(x[:30], x[30:])
    for ties,sort in (('argsort',None), ('stable','stable')):
        assert abs(rerank(*d, 20, 6, .3, ties).numpy()-by_sets(*d, 20, 6, .3, sort)).max()<1e-6


@pytest.mark.parametrize('scale', [1e-12,.01,1])
@pytest.mark.parametrize('kind', ['random','clusters','twins','grid'])
def test_other_rows_keep_their_bits(kind, scale):
    "However near all pictures lie: only a largest distance of exactly 0 is divided by 1"
    x = points(kind)*scale
    assert torch.equal(rerank(*three(x[:30], x[30:]), lam=1.), old_D(x, 30))


def test_one_row_of_zeros_leaves_the_others():
    "An asymmetric matrix in which one picture alone has only zeros: its row is 0, the rest is finite"
    x = points('random', 20)
    qg,qq,gg = three(x[:8], x[8:])
    qg[:,2] = 0; gg[:,2] = 0  # rows of D are columns of what is given
    got = rerank(qg, qq, gg, k1=4, k2=2, lam=1.)
    want = np.block([[qq,qg],[qg.T,gg]])**2
    want = (want/np.where(want.max(0)==0, 1, want.max(0))).T[:8,8:]
    assert got.isfinite().all() and abs(got.numpy()-want).max()<1e-6


def test_too_large_to_square():
    far = np.eye(6)*1e25
    with pytest.raises(InputError, match='too large'): rerank_features(far[:2], far[2:])
    with pytest.raises(InputError, match='too large'): rerank(*three(far[:2], far[2:]))


# --- Divide and Fuse ---

def fused(x, n_query, parts, k1, k2, lam=0., alpha=1., rounds=1):
    "Picture by picture, on full arrays, in double precision but for the order"
    def D_of(f):
        D = np.array([[((a-b)**2).sum() for b in f] for a in f])
        return D/np.where(D.max(1)==0, 1, D.max(1))[:,None]
    V,n,at,size = [],len(x),0,x.shape[1]
    for p in range(parts):
        width = size//parts + (p<size%parts)
        D,at = D_of(x[:,at:at+width]),at+width
        order = np.argsort(D.astype(np.float32), kind='stable')
        W = np.zeros((n,n))
        for i in range(n):
            for j in order[i,:k1]: W[i,j] = np.exp(-D[i,j])
            W[i] /= W[i].sum()
        for _ in range(rounds): W = np.array([sum(W[j] for j in order[i,:k2])/min(k2, n) for i in range(n)])
        V.append(W)
    F = np.max(V, 0) if np.isinf(alpha) else (sum(o**alpha for o in V)/parts)**(1/alpha)
    J = np.array([[1-np.minimum(F[i], F[j]).sum()/np.maximum(F[i], F[j]).sum() for j in range(n_query, n)] for i in range(n_query)])
    return (1-lam)*J + lam*D_of(x)[:n_query,n_query:]


@pytest.mark.parametrize('kind', ['random','clusters','grid'])
@pytest.mark.parametrize('kw', [dict(parts=1, k1=20, k2=6), dict(parts=3, k1=7, k2=1), dict(parts=4, k1=10, k2=4, alpha=2.),
                                dict(parts=2, k1=5, k2=9, rounds=3), dict(parts=4, k1=8, k2=3, lam=.3, alpha=.5),
                                dict(parts=4, k1=8, k2=3, alpha=np.inf)])
def test_divide_and_fuse_is_the_loop(kind, kw):
    x = points(kind)
    x = x+1e-3*np.random.default_rng(2).normal(size=x.shape) if kind=='grid' else x  # parts have ties that rounding would decide
    x = x.astype(np.float32).astype(float)
    new = divide_and_fuse(x[:20], x[20:], ties='stable', chunk=17, **kw)
    assert new.dtype==torch.float32 and abs(new.numpy()-fused(x, 20, **kw)).max()<1e-5


def test_one_part_is_sparse_contextual_activation():
    "As in the code of Bai and Bai: rows are summed and not averaged, and the whole is twice as many"
    x = points('clusters')
    D = dist(x, x)**2
    D = D/D.max(1, keepdims=True)
    order,f = np.argsort(D, kind='stable'),np.zeros_like(D)
    for i,o in enumerate(order): f[i,o[:9]] = np.exp(-D[i,o[:9]])/np.exp(-D[i,o[:9]]).sum()
    f = np.array([f[o[:4]].sum(0) for o in order])
    s = np.minimum(f[:30,None], f[None,30:]).sum(2)
    assert abs(divide_and_fuse(x[:30], x[30:], 1, 9, 4).numpy()-(1-s/(2*4-s))).max()<1e-5


def test_parts_that_do_not_matter():
    x = points('clusters')
    one,half = divide_and_fuse(x[:30], x[30:], 1, 9, 4),x[:,:3]
    twice = np.concatenate([half,half], 1)
    for alpha in (1.,3.,np.inf):
        assert abs(divide_and_fuse(twice[:30], twice[30:], 2, 9, 4, alpha=alpha)-divide_and_fuse(half[:30], half[30:], 1, 9, 4)).max()<1e-6
    # neither the scale of a part nor a shift
    big = np.concatenate([x[:,:3], 1000*x[:,3:]+5], 1)
    assert abs(divide_and_fuse(big[:30], big[30:], 2, 9, 4)-divide_and_fuse(x[:30], x[30:], 2, 9, 4)).max()<1e-4
    assert abs(divide_and_fuse(x[:30], x[30:], 1, 9, 4, chunk=7)-one).max()<1e-6
    assert abs(divide_and_fuse(x[:30], x[30:], 3, lam=1.)-divide_and_fuse(x[:30], x[30:], 1, lam=1.)).max()<1e-6


def test_fused_features_that_are_all_alike():
    for x in (np.ones((12,4)), np.concatenate([np.ones((12,2)), points('random', 12)[:,:2]], 1)):
        d = divide_and_fuse(x[:4], x[4:], 2, 5, 2, lam=.3, ties='stable')
        assert d.isfinite().all() and d.min()>=0 and d.max()<=1+1e-6
    assert divide_and_fuse(np.ones((2,4)), np.ones((3,4)), 2, 9, 9).abs().max()<1e-6


@pytest.mark.parametrize('kw,says', [(dict(parts=0), 'parts'), (dict(parts=5), 'from 1 to 4'), (dict(alpha=0.), 'alpha'), (dict(alpha=-1.), 'alpha'),
                                     (dict(alpha=float('nan')), 'alpha'), (dict(rounds=0), 'rounds'), (dict(rounds=1.5), 'rounds'), (dict(k1=0), 'k1'),
                                     (dict(lam=2), 'lam'), (dict(ties='x'), 'ties'), (dict(g=np.ones((3,5))), 'one length'), (dict(g=np.full((3,4), np.inf)), 'finite')])
def test_bad_input_of_divide_and_fuse(kw, says):
    with pytest.raises(InputError, match=says): divide_and_fuse(**(dict(q=np.ones((2,4)), g=np.ones((3,4))) | kw))
