"""Runs that are killed at random moments, and started again until they are done, end with the same bytes as one that never was.

    python tests/kill.py --n 50 --seed 0 --log tests/kill_log.csv
"""
import argparse, csv, hashlib, os, random, subprocess, sys, tempfile, time
from pathlib import Path

RUN = """
import sys
from functools import partial
from posereid.experiment import engine
from posereid.experiment.presets import TINY_WORLD, experiment_settings
from posereid.experiment.rows import pick_rows
# a checkpoint after every epoch
engine.train_reid = partial(engine.train_reid, every=0)
engine.train_transfer = partial(engine.train_transfer, every=0)
small = ['reid.width=4', 'reid.epochs=4', 'transfer.width=4', 'transfer.d_width=4',
         'transfer.pairs=128', 'transfer.parts=8', 'generate.bs=16']
print('ready', flush=True)
engine.Experiment(pick_rows('control best new'), experiment_settings('smoke', opts=[*TINY_WORLD, *small]),
                  sys.argv[1]).results()
"""
KEPT = '*.csv','*.safetensors','*.jpg','metrics.json','reid.json','generator.json','scores.json'


def start(path):
    p = subprocess.Popen([sys.executable, '-c', RUN, str(path)], text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, env={**os.environ, 'OMP_NUM_THREADS':'1',
                                                      'POSEREID_QUIET':'1'})
    p.stdout.readline()
    return p


def whole(path):
    "Seconds of a run that nobody kills"
    p,t = start(path),time.time()
    err = p.communicate(timeout=300)[1]
    assert p.returncode==0, err[-2000:]
    return time.time()-t


def content(path):
    "Digest of each file that a run leaves; no other files may be there"
    files = sorted({o for k in KEPT for o in Path(path).rglob(k)})
    left = [o for o in Path(path).rglob('.*') if o.is_file()]
    assert not left, left
    return {o.relative_to(path).as_posix(): hashlib.blake2b(o.read_bytes()).hexdigest() for o in files}


def trial(path, rng, seconds, most=6):
    "Kill a run up to `most` times, at moments spread over its length; how often it was killed"
    kills = 0
    while True:
        p = start(path)
        try: p.wait(rng.uniform(.02, .3)*seconds if kills<most else 300)
        except subprocess.TimeoutExpired:
            p.kill(); p.communicate()
            kills += 1
            continue
        err = p.communicate()[1]
        assert p.returncode==0, err[-2000:]
        return kills


def main(n, seed=0, log=None):
    "Trials, and a line of the log for each"
    rng,lines = random.Random(seed),[]
    with tempfile.TemporaryDirectory() as d:
        seconds = whole(Path(d)/'whole')
        right = content(Path(d)/'whole')
        for i in range(n):
            path = Path(d)/f'run{i}'
            kills = trial(path, rng, seconds)
            now = content(path)
            odd = [k for k in {**right, **now} if right.get(k)!=now.get(k)]
            lines.append(dict(trial=i, kills=kills, files=len(now), different=len(odd),
                              which=' '.join(odd[:3])))
            print(lines[-1], flush=True)
            if log:
                with open(log, 'w', newline='', encoding='utf-8') as f:
                    out = csv.DictWriter(f, [*lines[0], 'command'], lineterminator='\n')
                    out.writeheader()
                    out.writerows({**o, 'command':f'python tests/kill.py --n {n} --seed {seed}'}
                                  for o in lines)
    return lines


if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument('--n', type=int, default=50)
    a.add_argument('--seed', type=int, default=0)
    a.add_argument('--log')
    res = main(**vars(a.parse_args()))
    print(sum(o['kills'] for o in res), 'kills,', sum(o['different'] for o in res), 'files differ')
