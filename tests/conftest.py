"Tests keep quiet and open no window"
import os

os.environ.setdefault('POSEREID_QUIET', '1')
os.environ.setdefault('MPLBACKEND', 'agg')
