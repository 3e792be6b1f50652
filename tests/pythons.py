"""Build wheel and sdist, install each in virtual environments of several Pythons, and run the smoke preset outside of the checkout.

    python tests/pythons.py python3.10 python3.11 python3.12 python3.13 --log tests/pythons_log.csv

A line of the log has the versions that pip chose, what was installed, the answers of a few commands, and the digest of the
results of the smoke run: equal digests are equal bytes."""
import argparse, csv, hashlib, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).parents[1]
ASK = ("import sys, importlib.metadata as m, posereid; from pathlib import Path; "
       "assert 'site-packages' in posereid.__file__, posereid.__file__; "
       "w = list((Path(posereid.__file__).parent/'weights').rglob('*.safetensors')); "
       "print(sys.version.split()[0], *[m.version(o) for o in ('torch','torchvision','fastai','nbdev')], len(w))")


def run(*words, cwd, quiet=True):
    "Output of a command; what it said on stderr if it fails"
    res = subprocess.run([str(o) for o in words], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if res.returncode: raise RuntimeError(f'{words[0]}: {res.stderr[-1500:]}')
    return res.stdout


def build(home):
    "Wheel and sdist of a copy of what git tracks"
    tree = home/'tree'
    tree.mkdir()
    subprocess.run(f'git -C {ROOT} ls-files -z | tar -C {ROOT} --null -T - -c | tar -x -C {tree}', shell=True, check=True)
    run(sys.executable, '-m', 'venv', home/'builder', cwd=home)
    run(home/'builder/bin/pip', 'install', '-q', 'build', cwd=home)
    run(home/'builder/bin/python', '-m', 'build', '--outdir', home/'dist', tree, cwd=home)
    return next((home/'dist').glob('*.whl')), next((home/'dist').glob('*.tar.gz'))


def try_one(python, package, home):
    "One line of the log"
    env,work = home/f'env-{Path(python).parent.parent.name or python}-{package.suffix[1:]}',home/'work'
    work.mkdir(exist_ok=True)
    run(python, '-m', 'venv', env, cwd=work)
    run(env/'bin/pip', 'install', '-q', package, cwd=work)
    v = run(env/'bin/python', '-c', ASK, cwd=work).split()
    start = time.time()
    run(env/'bin/posereid_run', '--help', cwd=work)
    seconds = time.time()-start
    out = work/env.name
    run(env/'bin/posereid_run', '--preset', 'smoke', '--threads', '1', '--out', out, cwd=work)
    results = (out/'results.csv').read_bytes()
    return dict(zip(('python','torch','torchvision','fastai','nbdev','weights'), v), installed=package.name,
                help='ok' if seconds<5 else f'{seconds:.0f} s', smoke='ok', rows=results.count(b'\n')-1,
                results=hashlib.sha256(results).hexdigest()[:12])


def main():
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument('pythons', nargs='+')
    ask.add_argument('--log', type=Path, default=Path('pythons_log.csv'))
    a = ask.parse_args()
    with tempfile.TemporaryDirectory() as d:
        home,lines = Path(d),[]
        wheel,sdist = build(home)
        for i,python in enumerate(a.pythons):
            for package in (wheel, sdist) if i==0 else (wheel,):
                lines.append(try_one(python, package, home))
                sys.stdout.write(f'{lines[-1]}\n'); sys.stdout.flush()
                with open(a.log, 'w', newline='', encoding='utf-8') as f:
                    out = csv.DictWriter(f, list(lines[0]), lineterminator='\n')
                    out.writeheader(); out.writerows(lines)


if __name__=='__main__': main()
