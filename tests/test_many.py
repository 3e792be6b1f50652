"Two processes with a batch of b are one with a batch of 2b; they write what one would, and nobody waits for ever"
import os, socket, subprocess, sys, textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip('accelerate')
ROOT = Path(__file__).parents[1]

HEAD = '''
import sys, torch, warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
import pandas as pd
import posereid.stages.method as M, posereid.stages.transfer as T
from posereid.core import ranks, launched
from posereid.data.manifest import pick, train_labels
from posereid.data.pictures import PictureStore
from posereid.many import *
from posereid.models.reid import reid_net
from posereid.stages.reid import ReIDSettings, freeze, train_reid
from posereid.stages.transfer import TransferSettings, train_transfer
from posereid.synth.world import tiny_world
warnings.filterwarnings('ignore')
torch.set_num_threads(1)
out = Path(sys.argv[1])
world = tiny_world()
df = pick(world.target, 'train')
labels = train_labels(df)
both = pd.concat([df, df.assign(is_generated=True)], ignore_index=True)
store = PictureStore((64,32))

def frozen_norms(make):
    def made(*args, **kwargs):
        net = make(*args, **kwargs)
        for o in net.modules():
            if isinstance(o, torch.nn.BatchNorm2d): freeze(o).requires_grad_(True)
        return net
    return made

def reid(**kwargs):
    M.net_from = frozen_norms(M.net_from)
    s = ReIDSettings(width=4, epochs=2, bs=16, lr=.02, erase=.5, jitter=.2, **kwargs)
    train_reid(both, store, labels, s, out)

def transfer(by='ce', **kwargs):
    guider = None
    if by:
        torch.manual_seed(7)
        guider = reid_net(len(labels) if by=='ce' else None, width=4).eval()
    s = TransferSettings(width=4, d_width=4, bs=8, pairs=64, parts=2, norm='instance', **kwargs)
    train_transfer(df, world.source, world.poses, store, labels, guider, s, out)

with joined() if launched()>1 else nullcontext():
'''


def start(script, out, n, call=None):
    "A script in `n` processes that know each other, or in one; `call` are the words of a file of commands"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = {k:v for k,v in os.environ.items() if k not in ('RANK','WORLD_SIZE')}
    env.update(POSEREID_QUIET='1', POSEREID_DEVICE='cpu', OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    if n>1: env.update(WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    each = [subprocess.Popen([sys.executable, *(call or ['-c', script]), str(out)],
                             env={**env, **({'RANK':str(r), 'LOCAL_RANK':str(r)} if n>1 else {})},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for r in range(n)]
    try: said = [o.communicate(timeout=240) for o in each]
    finally: [o.kill() for o in each]
    return [(o.returncode, *s) for o,s in zip(each, said)]


def run(call, out, n):
    said = start(HEAD+textwrap.indent(call, '    '), out, n)
    assert all(o[0]==0 for o in said), said[0][2]+said[-1][2]
    return said


CASES = ["reid()", "reid(loss='triplet')", "transfer()", "transfer('triplets', foreground=1.)"]
MORE = ["transfer(None, beta=0., ema=.9)", "transfer(match=1., aux='apart')",
        "transfer(limbs=True, d_limbs=True)", "reid(loss='triplet', mining='batch_hard', rule='any')"]

def both_ways(calls, tmp):
    "Trainings in one process and in two, as folders"
    text = '\n'.join(f"out = Path(sys.argv[1])/'{i}'\n{o}" for i,o in enumerate(calls))
    for n in (1, 2): run(text, tmp/f'{n}', n)
    return {o: (tmp/'1'/str(i), tmp/'2'/str(i)) for i,o in enumerate(calls)}

@pytest.fixture(scope='module')
def trained(tmp_path_factory): return both_ways(CASES, tmp_path_factory.mktemp('many'))

def same(one, two):
    "Weights after some steps, and the log; the settings of the run are the same"
    for file in one.glob('*.safetensors'):
        a,b = load_file(file),load_file(two/file.name)
        assert list(a)==list(b)
        # where gradients are next to nothing, Adam divides the noise of a sum by itself
        gap = torch.cat([((a[k]-b[k]).abs() - 2e-3*a[k].abs()).flatten().float() for k in a])
        assert (gap>1.5e-4).float().mean()<.002 and gap.max()<1e-3, (file, gap.max(), (gap>1.5e-4).float().mean())
    a,b = read(one),read(two)
    torch.testing.assert_close(a[1], b[1], rtol=2e-3, atol=1e-4)
    assert a[0]==b[0] and {o.name for o in one.iterdir()}=={o.name for o in two.iterdir()}

@pytest.mark.parametrize('call', CASES)
def test_two_processes_are_one(trained, call): same(*trained[call])

@pytest.mark.slow
def test_more_of_two_processes(tmp_path):
    for o in both_ways(MORE, tmp_path).values(): same(*o)


def read(run):
    import json
    from posereid.stages.fit import read_log
    rows = [[float(v) for v in o.values()] for o in read_log(run/'log.csv')]
    return json.loads((run/'settings.json').read_text())['settings'], torch.tensor(rows)


GENERATED = """
from posereid.evaluate.protocol import extract_features
from posereid.stages.generate import GenerateSettings, generate, plan
from posereid.stages.transfer import transfer_model
from posereid.core import seed_everything
seed_everything(3)
G = transfer_model(TransferSettings(width=4, beta=0.)).G.eval()
s = GenerateSettings(n_each=2, bs=16)
made = generate(G, df, world.source, world.poses, store, s, out)
f = extract_features(reid_net(None, width=4), store.get(made.path), bs=50)
torch.save(f, out/f'features{ranks()[0]}.pt')
"""

def test_shared_pictures_and_features(tmp_path):
    "Dealt to two processes or made by one: the same bytes, every one of them, and in order"
    for n in (1, 2): run(GENERATED, tmp_path/f'{n}', n)
    a,b = (sorted((tmp_path/n/'bounding_box_train').iterdir()) for n in '12')
    assert [o.name for o in a]==[o.name for o in b] and len(a)==120
    assert all(p.read_bytes()==q.read_bytes() for p,q in zip(a, b))
    one,two,three = (torch.load(tmp_path/o) for o in ('1/features0.pt','2/features0.pt','2/features1.pt'))
    assert torch.equal(one, two) and torch.equal(two, three)
    assert not [o for o in (tmp_path/'2').iterdir() if o.name[0]=='.']



@pytest.mark.parametrize('n', [2])
def test_a_whole_run(tmp_path, n):
    "The command of a launcher: one table, one report, each told once, nothing left over"
    (tmp_path/'call.py').write_text('from posereid.cli import posereid_run as f; import sys; sys.argv[0]="posereid_run"; f()')
    words = ('--preset smoke --rows control,guided --set world.n_train=12 world.n_test=4 world.n_source=6 '
             'reid.epochs=1 reid.bs=16 transfer.pairs=32 transfer.bs=8 --out').split()
    said = start(None, tmp_path/'r', n, [str(tmp_path/'call.py'), *words])
    assert [o[0] for o in said]==[0]*n, said[1][2]+said[0][2]
    assert 'guided' in said[0][1] and said[1][1]=='' and said[0][1].count('report.html')==1
    assert 'BatchNorm is synchronised on GPUs only' in said[0][2] and not said[1][2]
    assert {'results.csv','report.html','settings.json'} <= {o.name for o in (tmp_path/'r').iterdir()}
    assert not [o for o in (tmp_path/'r').rglob('.*')]
    wrong = start(None, tmp_path/'r2', n, [str(tmp_path/'call.py'), '--preset', 'smoke', '--set', 'reid.bs=31', '--out'])
    assert wrong[0][0]==2 and 'cannot be dealt to 2 processes' in wrong[0][2], wrong
    assert 'Traceback' not in wrong[0][2]
