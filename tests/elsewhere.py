"A device that is not there: tensors that say they are on `cuda:0`, compute on the CPU, and refuse to mix"
import sys
from collections import Counter
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map, tree_leaves

CUDA,CPU = torch.device('cuda:0'),torch.device('cpu')
aten = torch.ops.aten

class Elsewhere(torch.Tensor):
    "A tensor of the device"
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(),
            storage_offset=inner.storage_offset(), dtype=inner.dtype, layout=inner.layout,
            device='lazy', requires_grad=inner.requires_grad)
    def __init__(self, inner): self.inner = inner
    @property
    def device(self): return CUDA
    @property
    def is_cuda(self): return True
    @property
    def is_cpu(self): return False
    def __repr__(self): return f'Elsewhere({self.inner})'
    def __tensor_flatten__(self): return ['inner'],None
    @staticmethod
    def __tensor_unflatten__(tensors, meta, size, stride): return Elsewhere(tensors['inner'])
    def __getitem__(self, i):
        return super().__getitem__(_on_device(i))
    def __setitem__(self, i, v):
        return super().__setitem__(_on_device(i), v)
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Device.now.run(func, args, kwargs or {})
    def numpy(self, *a, **k): raise TypeError("can't convert cuda:0 device type tensor to numpy")
    def tolist(self):
        Device.now.wait('tolist')
        return self.inner.tolist()
    def cpu(self): return self.to('cpu')
    def new_tensor(self, data, **kwargs):
        return torch.tensor(data, **{'dtype':self.dtype, **kwargs}).to(CUDA)

def _on_device(i):
    "Lists as indices are copied to the device"
    if isinstance(i, tuple): return tuple(map(_on_device, i))
    if not isinstance(i, list): return i
    return torch.tensor(i, dtype=None if i else torch.long).to(CUDA)

def _where():
    "The line of the library that called"
    f = sys._getframe(2)
    while f:
        name = f.f_code.co_filename
        if '/posereid/' in name and 'tests' not in name: return f"{name.split('/posereid/')[-1]}:{f.f_lineno}"
        f = f.f_back
    return 'elsewhere'

class Device(TorchDispatchMode):
    "While it is on, `cuda:0` is a device, and what would be wrong or slow on one is known"
    now = None
    def __init__(self):
        super().__init__()
        self.waits,self.ran,self.missed = Counter(),Counter(),Counter() # … and ops there and here
    def wait(self, what): self.waits[what, _where()] += 1
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        flat = tree_leaves((args, kwargs))
        ours = [o for o in flat if isinstance(o, Elsewhere)]
        others = [o for o in flat if isinstance(o, torch.Tensor) and not isinstance(o, Elsewhere)]
        to = kwargs.get('device')
        to = torch.device(to) if to is not None else None
        name = func.overloadpacket.__name__
        if not ours and not (to is not None and to.type in ('cuda','lazy')):
            self.missed[name] += any(o.device.type!='meta' for o in others)
            return func(*args, **kwargs)
        self.ran[name] += 1
        self.check(name, func, args, kwargs, ours, others, to)
        inner = lambda o: o.inner if isinstance(o, Elsewhere) else o
        a,k = tree_map(inner, args),tree_map(inner, kwargs)
        if to is not None: k = {**k, 'device':CPU}
        if k.get('pin_memory'): k['pin_memory'] = False
        out = func(*a, **k)
        if to is not None and to.type=='cpu': return out
        if name in ('copy_','set_') and args[0].__class__ is not Elsewhere: return args[0]
        made = tree_map(lambda o: Elsewhere(o) if type(o) is torch.Tensor or
                        isinstance(o, torch.nn.Parameter) else o, out)
        if to is not None or not ours: return made
        return return_and_correct_aliasing(func, args, kwargs, made)

    def check(self, name, func, args, kwargs, ours, others, to):
        if name=='_to_copy':
            if to is not None and (to.type in ('cuda','lazy'))!=bool(ours): self.wait('copy')
            return
        if name=='copy_':
            if others: self.wait('copy')
            return
        if name in ('_local_scalar_dense','item','nonzero','masked_select','is_nonzero','equal','_unique2','unique_dim','unique_consecutive'): self.wait(name)
        g = kwargs.get('generator')
        if g is not None and g.device.type=='cpu' and (ours or to):
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({name})")
        if name in ('index','index_put','index_put_','_index_put_impl_','_unsafe_index'):
            idx = [o for o in args[1] if o is not None]
            if not isinstance(args[0], Elsewhere):
                raise RuntimeError('indices should be on the CPU, as the indexed tensor is')
            for o in idx:
                if not isinstance(o, Elsewhere): self.wait('copy')
                elif o.dtype in (torch.bool, torch.uint8): self.wait('mask')
            others = [o for o in others if not any(o is i for i in idx)]
        if ours and any(o.dim()>0 for o in others):
            raise RuntimeError('Expected all tensors to be on the same device, but found at least two '
                               f'devices, cuda:0 and cpu! ({name} at {_where()})')

@contextmanager
def pretended():
    "`cuda:0` is there inside"
    init,avail,tensor = torch.cuda._lazy_init,torch.cuda.is_available,torch.tensor
    count,torch.cuda.device_count = torch.cuda.device_count,lambda: 1
    name,torch.cuda.get_device_name = torch.cuda.get_device_name,lambda o: 'pretended'
    torch.cuda._lazy_init = lambda: None
    torch.tensor = lambda data, device=None, **kw: (
        tensor(data, **kw).to(device) if torch.device(device or 'cpu').type=='cuda'
        else tensor(data, device=device, **kw))
    Device.now = Device()
    try:
        with Device.now as d: yield d
    finally:
        torch.cuda.device_count,torch.cuda.get_device_name = count,name
        torch.cuda._lazy_init,torch.cuda.is_available,torch.tensor = init,avail,tensor
