"Consoles, folders and links as they are elsewhere: other encodings, names that are no UTF-8, links, full disks"
import os, shutil, subprocess, sys
from pathlib import Path

import pytest

from posereid.data.manifest import make_manifest, read_manifest, write_manifest
from posereid.synth.world import tiny_world

SMALL = ['reid.width=4', 'reid.epochs=1', 'transfer.width=4', 'transfer.d_width=4',
         'transfer.pairs=32', 'transfer.parts=1']
SCRIPT = 'from posereid.cli import posereid_run\nposereid_run()\n'


def run(home, *args, cwd, status=0, **env):
    "posereid_run in a process of its own"
    script = Path(cwd)/'posereid_run' # arguments are read where a file is called
    script.write_text(SCRIPT)
    p = subprocess.run([sys.executable, script, *map(str, args), '--preset', 'smoke',
                        '--set', *SMALL], cwd=cwd, capture_output=True, timeout=120,
                       env={**os.environ, 'OMP_NUM_THREADS':'1',
                            'PYTHONPATH':os.pathsep.join(sys.path), **env})
    out,err = (o.decode('utf-8', 'replace') for o in (p.stdout, p.stderr))
    assert p.returncode==status and 'Traceback' not in err, err[-2000:]
    return out,err


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with the tiny world, whose name is no UTF-8 where the system has such names"
    path = tmp_path_factory.mktemp('console')
    name = os.fsdecode(b'caf\xe9') if sys.platform.startswith('linux') else 'café'
    shutil.copytree(tiny_world().root, path/name/'w')
    return path/name


def test_a_folder_whose_name_is_no_utf8(home):
    "All of a run, twice, on a console of another encoding"
    args = '--data', home/'w'/'target', '--source', home/'w'/'source', '--rows', 'control,guided'
    for env in (dict(LC_ALL='C', PYTHONUTF8='0', PYTHONCOERCECLOCALE='0'),
                dict(PYTHONIOENCODING='cp1252')):
        out,_ = run(home, *args, '--out', home/'run', cwd=home.parent, **env)
        assert 'guided' in out
    assert (home/'run'/'report.html').stat().st_size > 1000
    for o in (home/'run').glob('reid-*/settings.json'): o.read_text('utf-8')


@pytest.mark.skipif(os.name=='nt', reason='links need rights there')
def test_a_linked_folder(tmp_path):
    "`..` behind a link is another folder than `..` before it"
    from PIL import Image
    (tmp_path/'deep'/'er'/'real').mkdir(parents=True)
    (tmp_path/'link').symlink_to(Path('deep')/'er'/'real')
    (tmp_path/'a').mkdir(); Image.new('RGB', (32,64)).save(tmp_path/'a'/'1.jpg')
    for out in (tmp_path/'link'/'set', tmp_path/'deep'/'er'/'real'/'set2'):
        (out/'b').mkdir(parents=True)
        Image.new('RGB', (32,64)).save(out/'b'/'2.jpg')
        df = make_manifest([dict(path=str(out/'b'/'2.jpg'), pid=1, camid=1, split='train')])
        write_manifest(df.assign(source_path=str(tmp_path/'a'/'1.jpg')), out)
        for o in (out, out.resolve()):
            got = read_manifest(o)
            assert got.path[0]==str(o/'b'/'2.jpg') and Path(got.source_path[0]).is_file()


def test_a_size_that_no_discriminator_takes(tmp_path):
    "Refused before anything is trained"
    _,err = run(tmp_path, '--size', '32x16', '--rows', 'control,guided', '--out', tmp_path/'o',
                cwd=tmp_path, status=2)
    assert 'transfer.d_layers to 2' in err and not (tmp_path/'o').exists()
